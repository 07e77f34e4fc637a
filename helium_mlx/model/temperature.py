"""Dividing logits by a temperature, whatever it is, so that float32 stays finite."""

import mlx.core as mx

# Beyond these nothing changes any more, and scores stay finite in float32, which a draw needs.
MIN_TEMPERATURE = 1e-20
MAX_TEMPERATURE = 1e30


def tempered(logits: mx.array, temperature: float) -> mx.array:
    """Return logits, float32, divided by a temperature above 0."""
    return logits if temperature == 1 else logits / bounded_temperature(temperature)


def bounded_temperature(temperature: float) -> float:
    """Return a temperature above 0 as one by which float32 stays finite."""
    return min(max(temperature, MIN_TEMPERATURE), MAX_TEMPERATURE)
