"""Losses as transformers computes them (`transformers.loss.loss_utils`), in float32, differentiable.

A label of -100 is ignored. As in torch, a mean over no label at all is NaN.
"""

import mlx.core as mx

IGNORE_INDEX = -100


def cross_entropy(logits: mx.array, labels: mx.array) -> mx.array:
    """Return the mean negative log-likelihood of `labels` (any shape) under `logits` (that shape, then classes)."""
    # Labels of an unsigned dtype cannot be compared with -100.
    logits, labels = logits.astype(mx.float32).reshape(-1, logits.shape[-1]), labels.astype(mx.int32).reshape(-1)
    counted = labels != IGNORE_INDEX
    picked = mx.take_along_axis(logits, mx.where(counted, labels, 0)[:, None], axis=-1)[:, 0]
    losses = mx.where(counted, mx.logsumexp(logits, axis=-1) - picked, 0)
    return losses.sum() / counted.sum()


def causal_lm_loss(logits: mx.array, labels: mx.array) -> mx.array:
    """Return the loss of predicting each label from the position before it; logits (B, L, V), labels (B, L)."""
    return cross_entropy(logits[:, :-1], labels[:, 1:])


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
