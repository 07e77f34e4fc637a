"""Whether logits are numbers, so that a token may be chosen by them: asked of every step that generates or scores.

Overflow in 16 bits and damaged weights make NaN and infinities of them, and memory that ran out zeros. What the host
has to know comes with the tokens, one small array more, and so costs no wait of its own:

    highest = logits.max(axis=-1)
    mx.async_eval(tokens, highest)
    ...                                         # the next step is begun
    tokens.tolist(), are_finite(highest)
"""

import math
from typing import cast

import mlx.core as mx

from helium_mlx.errors import GenerationError


def are_sound(logits: mx.array) -> mx.array:
    """Return for each row of (..., vocab_size) whether its highest is a number; (...), lazily."""
    return mx.isfinite(logits.max(axis=-1))


def are_distinct(logits: mx.array) -> mx.array:
    """Return whether some logits of (..., vocab_size) are larger than others; (), lazily.

    All the same are those of memory that ran out, which some backends fill with zeros.
    """
    return logits.max() > logits.min()


def are_finite(highest: mx.array) -> list[bool]:
    """Return of the highest logit of each row, (B,), whether it is a number; waits for it, and for nothing else."""
    return [math.isfinite(value) for value in cast("list[float]", highest.tolist())]


def unsound() -> GenerationError:
    """Return the error for logits by which no token can be chosen."""
    return GenerationError(
        "the model's logits are NaN, infinite or all the same: its weights are damaged, its dtype overflows or "
        "memory ran out; try dtype float32, a smaller max_kv_size, or convert it again"
    )


def require_sound(sound: mx.array) -> None:
    """Raise GenerationError unless all is true of what `are_sound` or `are_distinct` returned; waits for it."""
    rows = cast("bool | list[bool]", sound.tolist())
    if not (all(rows) if isinstance(rows, list) else rows):
        raise unsound()
