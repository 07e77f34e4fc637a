"""GPTQ: rounding column by column, each making up for the errors of those before it.

For a matrix W whose inputs x have the second moments H = E[x x^T], what counts is tr((W - Q) H (W - Q)^T), the squared
error of the outputs. With H = R R^T, R upper triangular, it is the sum over columns j of R_jj^2 times the squared
distance of Q_j from W_j + sum over i < j of (W_i - Q_i) R_ij / R_jj: so each column is rounded to the nearest code
there is for that target. This is the form of QuIP (arXiv:2307.13304, section 3.1), equal to that of GPTQ
(arXiv:2210.17323) and in no need of an inverse.

Each group's scale and bias are fitted, weighted by R_jj^2, when its first column is reached: to the targets that the
groups before it left. Columns are taken in their order on disk; GPTQ's other order, by the size of H_jj, would scatter
the columns of a group, and the plain format has no room for a permutation.
"""

from dataclasses import dataclass

import mlx.core as mx

from helium_mlx.quantization import QuantizationSettings
from helium_mlx.rounding import Lines, fit_lines, packed

# What is added to the diagonal, of its mean: GPTQ's own value.
DAMPING = 0.01

# Rows are independent of each other; so many at a time keep what is in memory small.
ROWS_AT_ONCE = 8192


@dataclass(frozen=True)
class Feedback:
    """R of a Hessian: how a column's error is passed on, and what it costs.

    `shares` (columns, columns), strictly upper triangular: R_ij / R_jj. `importance` (columns,): R_jj^2.
    """

    shares: mx.array
    importance: mx.array


def feedback_of(hessian: mx.array, *, damping: float = DAMPING) -> Feedback:
    """Factor the second moments (columns, columns) of a matrix's inputs, float32; evaluated.

    The damping grows tenfold as long as rounding errors keep the matrix from being positive definite.
    """
    mean = mx.diag(hessian).mean()
    # Inputs that are all zero say nothing: any positive diagonal makes it plain rounding.
    mean = mx.where(mean > 0, mean, 1)
    while True:
        damped = hessian + damping * mean * mx.eye(hessian.shape[0])
        # Cholesky factors are lower triangular: of the matrix with its axes reversed, it is R reversed.
        factor = mx.linalg.cholesky(damped[::-1, ::-1], stream=mx.cpu)[::-1, ::-1]
        diagonal = mx.diag(factor)
        shares = mx.triu(factor / diagonal, 1)
        importance = diagonal * diagonal
        mx.eval(shares, importance)
        if (mx.isfinite(shares).all() & (importance > 0).all()).item():
            return Feedback(shares, importance)
        damping *= 10


def rounded(
    weight: mx.array, feedback: Feedback, packing: QuantizationSettings, dtype: mx.Dtype
) -> dict[str, mx.array]:
    """Return weight, scales and biases as they are stored, for a float32 weight (rows, columns); evaluated."""
    pieces = [
        _rounded_rows(weight[first : first + ROWS_AT_ONCE], feedback, packing, dtype)
        for first in range(0, weight.shape[0], ROWS_AT_ONCE)
    ]
    return {suffix: mx.concatenate([piece[suffix] for piece in pieces]) for suffix in pieces[0]}


def _rounded_rows(
    weight: mx.array, feedback: Feedback, packing: QuantizationSettings, dtype: mx.Dtype
) -> dict[str, mx.array]:
    size = packing.group_size
    errors = mx.zeros(weight.shape)
    codes, lines = [], []
    for first in range(0, weight.shape[1], size):
        last = first + size
        own = weight[:, first:last]
        targets = own + errors[:, :first] @ feedback.shares[:first, first:last]
        importance = feedback.importance[first:last].reshape(1, 1, size)
        line = fit_lines(targets[:, None], packing, dtype, importance=importance)
        codes.append(_group_codes(targets, feedback.shares[first:last, first:last], line, packing.bits, own))
        lines.append(line)
        errors[:, first:last] = own - line.values(codes[-1])[:, 0]
        mx.eval(errors, codes[-1], line.scales, line.biases)
    both = Lines(
        mx.concatenate([line.scales for line in lines], axis=1), mx.concatenate([line.biases for line in lines], axis=1)
    )
    parts = packed(mx.concatenate(codes, axis=1), both, packing, dtype)
    mx.eval(parts)
    return parts


def _group_codes(targets: mx.array, shares: mx.array, line: Lines, bits: int, own: mx.array) -> mx.array:
    """Return the codes (rows, 1, group_size) of one group, column by column.

    `targets` have the errors of the groups before in them, `own` are the weights themselves.
    """
    # Columns first, so that one is contiguous, and passing its error on is a product of a column and a row.
    pending, own = mx.contiguous(targets.T), mx.contiguous(own.T)
    scales, biases = line.scales[:, 0, 0], line.biases[:, 0, 0]
    safe = mx.where(scales == 0, 1, scales)
    codes = []
    for column in range(own.shape[0]):
        code = mx.clip(mx.round((pending[column] - biases) / safe), 0, 2**bits - 1)
        codes.append(code.astype(mx.uint8))
        error = own[column] - (code * scales + biases)
        pending = pending + shares[column][:, None] * error
    return mx.stack(codes, axis=-1)[:, None]
