"""How far one distribution over the vocabulary is from another, from the logits of both: KL divergence, in nats.

Everything is in float32, whatever the logits are in. KL(p || q) = sum p d with d = log p - log q; since p and q both
sum to one, that is also sum p (d + e^-d - 1), whose terms are never negative. This second form is what is summed: an
error of the normalisers, 1e-6 in a vocabulary of 48,000, enters it squared, and the first form as it is.
"""

import math
from collections.abc import Callable, Iterable
from typing import cast

import mlx.core as mx

Logits = Callable[[mx.array], mx.array]
"""Logits (B, L, vocab_size) of ids (B, L)."""

# Where q is e^20 times p, the term is q to float32's precision, and e^-d would overflow soon after.
_LOG_RATIO = 20.0


def logprobs(logits: mx.array) -> mx.array:
    """Return the log-softmax over the last axis, float32."""
    logits = logits.astype(mx.float32)
    return logits - mx.logsumexp(logits, axis=-1, keepdims=True)


def kl_divergence(reference: mx.array, candidate: mx.array) -> mx.array:
    """Return KL(reference || candidate) in nats, at least 0, of logits (..., vocab_size): float32 (...), lazily."""
    p, q = logprobs(reference), logprobs(candidate)
    difference = p - q
    close = mx.exp(p) * (difference + mx.expm1(-difference))
    return mx.where(difference < -_LOG_RATIO, mx.exp(q), close).sum(axis=-1)


def mean_divergence(reference: Logits, candidate: Logits, windows: Iterable[mx.array]) -> float:
    """Return the mean KL(reference || candidate) in nats over all positions of `windows`, ids (B, L) each.

    Both models are in memory, and so are the logits of a window, twice. What a model predicts after the last token of
    a window counts like everything else. See `comparison.py` for models that do not fit in memory together.
    """
    total, count = 0.0, 0
    for ids in windows:
        divergences = kl_divergence(reference(ids), candidate(ids))
        total += cast(float, divergences.sum().item())
        count += divergences.size
    return total / count if count else math.nan
