"""How far apart two arrays are, as every test of numbers means it."""

import mlx.core as mx


def relative_error(ours: mx.array, reference: mx.array) -> float:
    """max |difference| / max |reference|."""
    difference = mx.abs(ours.astype(mx.float32) - reference.astype(mx.float32)).max()
    return float((difference / mx.abs(reference.astype(mx.float32)).max()).item())  # pyright: ignore[reportArgumentType]
