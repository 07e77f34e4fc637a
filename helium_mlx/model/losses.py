"""Losses as transformers computes them (`transformers.loss.loss_utils`), and KL divergence; float32, differentiable.

A label of -100 is ignored. As in torch, a mean over no label at all is NaN.

KL(p || q) = sum p d with d = log p - log q; since p and q both sum to one, that is also sum p (d + e^-d - 1), whose
terms are never negative. This second form is what is summed: an error of the normalisers, 1e-6 in a vocabulary of
48,000, enters it squared, and the first form as it is. `RunningDivergence` takes logits that come in parts: those of
a text, 48,000 numbers a token in Helium, never exist together.
"""

import math
from collections.abc import Callable, Iterable
from typing import TypedDict, cast

import mlx.core as mx

IGNORE_INDEX = -100

Logits = Callable[[mx.array], mx.array]
"""Logits (B, L, vocab_size) of ids (B, L)."""

# Where q is e^20 times p, the term is q to float32's precision, and e^-d would overflow soon after.
_LOG_RATIO = 20.0


class LossOptions(TypedDict, total=False):
    """What transformers' causal LM takes beside `labels`.

    `shift_labels`: labels (B, L) that are shifted already, of what follows each position, in place of `labels`, which
    must still be there. `num_items_in_batch`: divides the sum over labels; without it their number does.
    """

    shift_labels: mx.array | None
    num_items_in_batch: float | mx.array | None


def cross_entropy(logits: mx.array, labels: mx.array, count: float | mx.array | None = None) -> mx.array:
    """Return the mean negative log-likelihood of `labels` (any shape) under `logits` (that shape, then classes).

    With `count` it is the sum divided by that.
    """
    # Labels of an unsigned dtype cannot be compared with -100.
    logits, labels = logits.astype(mx.float32).reshape(-1, logits.shape[-1]), labels.astype(mx.int32).reshape(-1)
    counted = labels != IGNORE_INDEX
    picked = mx.take_along_axis(logits, mx.where(counted, labels, 0)[:, None], axis=-1)[:, 0]
    losses = mx.where(counted, mx.logsumexp(logits, axis=-1) - picked, 0)
    return losses.sum() / (counted.sum() if count is None else count)


def causal_lm_loss(
    logits: mx.array,
    labels: mx.array,
    shift_labels: mx.array | None = None,
    num_items_in_batch: float | mx.array | None = None,
) -> mx.array:
    """Return the loss of predicting each label from the position before it; logits (B, L, V), labels (B, L)."""
    if shift_labels is not None:
        return cross_entropy(logits, shift_labels, num_items_in_batch)
    # As in transformers, nothing follows the last position: a single token has no loss, which is NaN.
    nothing = mx.full((labels.shape[0], 1), IGNORE_INDEX, mx.int32)
    following = mx.concatenate([labels[:, 1:].astype(mx.int32), nothing], axis=1)
    return cross_entropy(logits, following, num_items_in_batch)


def sequence_classification_loss(logits: mx.array, labels: mx.array, problem_type: str) -> mx.array:
    """Return the loss of pooled logits (B, num_labels) for a `problem_type` of the config.

    Labels: floats (B,) or (B, num_labels) for regression, classes (B,) for a single label, floats (B, num_labels) for
    several labels at once.
    """
    if problem_type == "single_label_classification":
        return cross_entropy(logits, labels)
    logits, labels = logits.astype(mx.float32), labels.astype(mx.float32)
    if problem_type == "regression":
        return mx.square(logits - labels.reshape(logits.shape)).mean()
    # log(1 + e^x) - x * y: binary cross-entropy without overflow.
    return (mx.logaddexp(logits, mx.array(0.0)) - logits * labels).mean()


def infer_problem_type(num_labels: int, labels: mx.array) -> str:
    """Return the problem type that transformers infers where the config names none."""
    if num_labels == 1:
        return "regression"
    return "single_label_classification" if mx.issubdtype(labels.dtype, mx.integer) else "multi_label_classification"


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
    a window counts like everything else. See `comparison/comparison.py` for models that do not fit in memory together.
    """
    total, count = 0.0, 0
    for ids in windows:
        divergences = kl_divergence(reference(ids), candidate(ids))
        total += cast(float, divergences.sum().item())
        count += divergences.size
    return total / count if count else math.nan


class RunningDivergence:
    """KL(reference || candidate) of each token, in nats, from logits (tokens, some ids) added part by part."""

    def __init__(self, n_tokens: int) -> None:
        self._reference = LogSum(n_tokens)
        self._candidate = LogSum(n_tokens)
        # The sum of exp(reference - its peak) * (reference - candidate).
        self._weighted = mx.zeros((n_tokens, 1))

    def add(self, reference: mx.array, candidate: mx.array) -> None:
        """Take in the logits of some more ids, float32; evaluated."""
        old_peak = self._reference.peak
        self._reference.add(reference)
        self._candidate.add(candidate)
        peak = self._reference.peak
        mine = (mx.exp(reference - peak) * (reference - candidate)).sum(axis=-1, keepdims=True)
        self._weighted = self._weighted * mx.exp(old_peak - peak) + mine
        mx.eval(self._weighted, self._reference.total, self._candidate.total, peak, self._candidate.peak)

    @property
    def mean(self) -> float:
        """The mean over tokens; not below 0, which rounding errors could make it."""
        expected = self._weighted / self._reference.total
        divergence = expected - self._reference.value + self._candidate.value
        return max(0.0, divergence.mean().item())  # pyright: ignore[reportArgumentType]


class LogSum:
    """log(sum(exp(logits))) of each token, over logits (tokens, some ids) added part by part.

    `total` is the sum of exp(logits - peak); nothing is evaluated.
    """

    def __init__(self, n_tokens: int) -> None:
        # Not -inf, of which differences are not numbers.
        self.peak = mx.full((n_tokens, 1), -1e30)
        self.total = mx.zeros((n_tokens, 1))

    def add(self, logits: mx.array) -> None:
        """Take in the logits of some more ids, float32."""
        peak = mx.maximum(self.peak, logits.max(axis=-1, keepdims=True))
        self.total = self.total * mx.exp(self.peak - peak) + mx.exp(logits - peak).sum(axis=-1, keepdims=True)
        self.peak = peak

    @property
    def value(self) -> mx.array:
        """The logarithm, float32 (tokens, 1)."""
        return self.peak + mx.log(self.total)
