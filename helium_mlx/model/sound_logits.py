"""Whether logits are such that a token may be chosen by them: asked of every step of every way to generate or score.

The answer is one more small array that is computed along with the tokens and read after them, so it costs no wait of
its own:

    sound = are_sound(logits)
    mx.async_eval(tokens, sound)
    ...                          # the next step is begun
    read = tokens.tolist()
    require_sound(sound)
"""

from typing import cast

import mlx.core as mx

from helium_mlx.errors import GenerationError


def are_sound(logits: mx.array) -> mx.array:
    """Return for each row of (..., vocab_size) whether it has numbers, some larger than others; (...), lazily.

    All the same are the logits of memory that ran out, which some backends fill with zeros.
    """
    highest = logits.max(axis=-1)
    return mx.isfinite(highest) & (highest > logits.min(axis=-1))


def require_sound(sound: mx.array) -> None:
    """Raise GenerationError unless all is true of what `are_sound` returned: overflow in 16 bits, or lack of memory."""
    rows = cast("bool | list[bool]", sound.tolist())
    if not (all(rows) if isinstance(rows, list) else rows):
        raise GenerationError(
            "the model's logits are NaN, infinite or all the same: its weights are damaged, its dtype overflows or "
            "memory ran out; try dtype float32, a smaller max_kv_size, or convert it again"
        )
