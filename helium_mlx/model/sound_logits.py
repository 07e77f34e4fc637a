"""Whether logits are such that a token may be chosen by them: asked of every step of every way to generate or score.

The answer comes with the tokens, so it costs no wait of its own. A decoding step has two small arrays computed along,
which the host compares; a training-like pass over many positions has the answer itself computed:

    extremes = [*lazily_extreme(logits)]            sound = are_sound(logits)
    mx.async_eval(tokens, extremes)                 mx.async_eval(tokens, sound)
    ...                                             # the next step is begun
    tokens.tolist(), sound_rows(extremes)           require_sound(sound)
"""

import math
from typing import cast

import mlx.core as mx

from helium_mlx.errors import GenerationError


def are_sound(logits: mx.array) -> mx.array:
    """Return for each row of (..., vocab_size) whether it has numbers, some larger than others; (...), lazily.

    All the same are the logits of memory that ran out, which some backends fill with zeros.
    """
    highest = logits.max(axis=-1)
    return mx.isfinite(highest) & (highest > logits.min(axis=-1))


def lazily_extreme(logits: mx.array) -> list[mx.array]:
    """Return the highest and the lowest of each row of (..., vocab_size), for `sound_rows`: two kernels, no wait."""
    return [logits.max(axis=-1), logits.min(axis=-1)]


def sound_rows(extremes: list[mx.array]) -> list[bool]:
    """Return for each row what `are_sound` says, from what `lazily_extreme` returned; waits for it."""
    highest, lowest = (cast("list[float]", each.reshape(-1).tolist()) for each in extremes)
    return [math.isfinite(high) and high > low for high, low in zip(highest, lowest, strict=True)]


def unsound() -> GenerationError:
    """Return the error for logits that are not sound: overflow in 16 bits, damaged weights, or lack of memory."""
    return GenerationError(
        "the model's logits are NaN, infinite or all the same: its weights are damaged, its dtype overflows or "
        "memory ran out; try dtype float32, a smaller max_kv_size, or convert it again"
    )


def require_sound(sound: mx.array) -> None:
    """Raise GenerationError unless all is true of what `are_sound` returned."""
    rows = cast("bool | list[bool]", sound.tolist())
    if not (all(rows) if isinstance(rows, list) else rows):
        raise unsound()
