"""GPTQ: rounding column by column, each making up for the errors of those before it, and then of all others.

For a matrix W whose inputs x have the second moments H = E[x x^T], what counts is tr((W - Q) H (W - Q)^T), the squared
error of the outputs. With H = R R^T, R upper triangular, it is the sum over columns j of R_jj^2 times the squared
distance of Q_j from W_j + sum over i < j of (W_i - Q_i) R_ij / R_jj: so each column is rounded to the nearest code
there is for that target. This is the form of QuIP (arXiv:2307.13304, section 3.1), equal to that of GPTQ
(arXiv:2210.17323) and in no need of an inverse.

Each group's scale and bias are fitted, weighted by R_jj^2, when its first column is reached: to the targets that the
groups before it left. Sweeps follow in which each column takes the code that is best given all other columns, as in
QuantEase (arXiv:2309.01885), and each group the scale and bias that are; no step of them makes the error larger.

Columns are taken in their order on disk; GPTQ's other order, by the size of H_jj, would scatter the columns of a group,
and the plain format has no room for a permutation.
"""

from dataclasses import dataclass

import mlx.core as mx

from helium_mlx import backend
from helium_mlx.checkpoint.quantization_settings import QuantizationSettings
from helium_mlx.errors import QuantizationError
from helium_mlx.quantization.rounding import AffineParameters, fit_affine, packed, stored

# What is added to the diagonal, of its mean. With GPTQ's own value of 0.01, a few thousand tokens fit too closely.
DAMPING = 0.03

# Four bring 1.4 times what the first does.
SWEEPS = 2

# Rows are independent of each other; so many at a time keep what is in memory small.
ROWS_AT_ONCE = 8192


@dataclass(frozen=True)
class HessianFactor:
    """The damped second moments H of a matrix's inputs, half the Hessian of its error, and their factor R.

    `hessian` (columns, columns). `unit_factor` (columns, columns): R_ij / R_jj above the diagonal and 0 elsewhere, by
    which a column's error is passed on. `importance`
    (columns,): R_jj^2, what a column's error costs.
    """

    hessian: mx.array
    unit_factor: mx.array
    importance: mx.array

    def solve(self, x: mx.array) -> mx.array:
        """Return x H^-1, for x (rows, columns)."""
        upper = (self.unit_factor + mx.eye(self.unit_factor.shape[0])) * mx.sqrt(self.importance)
        half = backend.solve_triangular(upper, x.T, upper=True)
        return backend.solve_triangular(upper.T, half, upper=False).T


def factored(hessian: mx.array, *, damping: float = DAMPING) -> HessianFactor:
    """Damp and factor second moments (columns, columns), float32; evaluated.

    The damping grows tenfold as long as rounding errors keep the matrix from being positive definite.

    Raises QuantizationError for moments that are not finite.
    """
    mean = mx.diag(hessian).mean()
    if not mx.isfinite(hessian).all().item():
        raise QuantizationError(
            "what a layer is given on the calibration text is not finite in float32; take an intact source, or another "
            "text"
        )
    # Inputs that are all zero say nothing: any positive diagonal makes it plain rounding.
    mean = mx.where(mean > 0, mean, 1)
    while True:
        damped = hessian + damping * mean * mx.eye(hessian.shape[0])
        # Cholesky factors are lower triangular: of the matrix with its axes reversed, it is R reversed.
        upper = backend.cholesky(damped[::-1, ::-1])[::-1, ::-1]
        diagonal = mx.diag(upper)
        unit_factor = mx.triu(upper / diagonal, 1)
        importance = diagonal * diagonal
        mx.eval(damped, unit_factor, importance)
        if (mx.isfinite(unit_factor).all() & (importance > 0).all()).item():
            return HessianFactor(damped, unit_factor, importance)
        damping *= 10


def rounded(
    weight: mx.array,
    factor: HessianFactor,
    settings: QuantizationSettings,
    dtype: mx.Dtype,
    *,
    sweeps: int = SWEEPS,
) -> dict[str, mx.array]:
    """Return weight, scales and biases as they are stored, for a float32 weight (rows, columns); evaluated.

    `sweeps` 0 is GPTQ alone.
    """
    pieces = []
    for first in range(0, weight.shape[0], ROWS_AT_ONCE):
        matrix = _RoundedRows(weight[first : first + ROWS_AT_ONCE], factor, settings, dtype)
        for _ in range(sweeps):
            matrix.sweep()
        pieces.append(matrix.parts())
        mx.eval(pieces[-1])
    return {suffix: mx.concatenate([piece[suffix] for piece in pieces]) for suffix in pieces[0]}


class _RoundedRows:
    """Some rows of a matrix on their way: `codes` and `affine` a group, `errors` (rows, columns) = weight - values."""

    def __init__(
        self, weight: mx.array, factor: HessianFactor, settings: QuantizationSettings, dtype: mx.Dtype
    ) -> None:
        self._factor, self._settings, self._dtype = factor, settings, dtype
        self._groups = [slice(i, i + settings.group_size) for i in range(0, weight.shape[1], settings.group_size)]
        self._errors = mx.zeros(weight.shape)
        self._codes: list[mx.array] = []
        self._affine: list[AffineParameters] = []
        for group in self._groups:
            self._round_group(weight[:, group], group)

    def _round_group(self, own: mx.array, group: slice) -> None:
        targets = own + self._errors[:, : group.start] @ self._factor.unit_factor[: group.start, group]
        importance = self._factor.importance[group].reshape(1, 1, -1)
        affine = fit_affine(targets[:, None], self._settings, self._dtype, importance=importance)
        codes = _passing_on(targets, own, self._factor.unit_factor[group, group], affine, self._settings.bits)
        self._codes.append(codes)
        self._affine.append(affine)
        self._errors[:, group] = own - affine.values(codes)[:, 0]
        mx.eval(self._errors, codes, affine.scales, affine.biases)

    def sweep(self) -> None:
        """Take each group once more: its codes, then its line, given all other groups."""
        for number, group in enumerate(self._groups):
            old, affine = self._codes[number], self._affine[number]
            inner = self._factor.hessian[group, group]
            # Half the gradient of the error by the values.
            slopes = -self._errors @ self._factor.hessian[:, group]
            codes = _descended(old, slopes, inner, affine, self._settings.bits)
            moved = (affine.scales * (codes - old))[:, 0]
            affine, shifts = _refitted(codes, slopes + moved @ inner, inner, affine, self._dtype)
            self._codes[number], self._affine[number] = codes, affine
            self._errors[:, group] = self._errors[:, group] - moved - shifts
            mx.eval(self._errors, codes, affine.scales, affine.biases)

    def parts(self) -> dict[str, mx.array]:
        """Return the parts as they are stored."""
        scales, biases = (
            mx.concatenate(values, axis=1)
            for values in ([line.scales for line in self._affine], [line.biases for line in self._affine])
        )
        return packed(
            mx.concatenate(self._codes, axis=1), AffineParameters(scales, biases), self._settings, self._dtype
        )


def _passing_on(
    targets: mx.array, own: mx.array, unit_factor: mx.array, affine: AffineParameters, bits: int
) -> mx.array:
    """Return the codes (rows, 1, group_size) of a group, each column's error passed on to the next ones.

    `targets` have the errors of the groups before in them, `own` are the weights themselves, (rows, group_size).
    """
    # Columns first, so that one is contiguous, and passing its error on is a product of a column and a row.
    pending, own = mx.contiguous(targets.T), mx.contiguous(own.T)
    column_affine = AffineParameters(affine.scales[:, 0, 0], affine.biases[:, 0, 0])
    codes = []
    for column in range(own.shape[0]):
        codes.append(column_affine.codes(pending[column], bits))
        error = own[column] - column_affine.values(codes[-1])
        pending = pending + unit_factor[column][:, None] * error
    return mx.stack(codes, axis=-1)[:, None]


def _descended(codes: mx.array, slopes: mx.array, hessian: mx.array, affine: AffineParameters, bits: int) -> mx.array:
    """Return codes (rows, 1, group_size), each in turn the best one given the others.

    `slopes` (rows, group_size) is half the gradient by the values; `hessian` the group's own part.
    """
    pending, old = mx.contiguous(slopes.T), mx.contiguous(codes[:, 0].T)
    column_affine = AffineParameters(affine.scales[:, 0, 0], affine.biases[:, 0, 0])
    found = []
    for column in range(old.shape[0]):
        best = column_affine.values(old[column]) - pending[column] / hessian[column, column]
        found.append(column_affine.codes(best, bits))
        moved = column_affine.scales * (found[-1] - old[column])
        pending = pending + hessian[column][:, None] * moved
    return mx.stack(found, axis=-1)[:, None]


def _refitted(
    codes: mx.array, slopes: mx.array, hessian: mx.array, affine: AffineParameters, dtype: mx.Dtype
) -> tuple[AffineParameters, mx.array]:
    """Return the affine that suit a group's codes best given all other groups, and what that adds to its values."""
    c = codes[:, 0]
    weighted = c @ hessian
    a, b, d = (weighted * c).sum(axis=-1), weighted.sum(axis=-1), hessian.sum()
    toward_scale, toward_bias = -(slopes * c).sum(axis=-1), -slopes.sum(axis=-1)
    determinant = a * d - b * b
    is_flat = determinant <= 1e-6 * a * d
    step = (toward_scale * d - toward_bias * b) / mx.where(is_flat, 1, determinant)
    old_scales, old_biases = affine.scales[:, 0, 0], affine.biases[:, 0, 0]
    scales = stored(mx.where(is_flat, old_scales, old_scales + step), dtype)
    biases = stored(old_biases + (toward_bias - b * (scales - old_scales)) / d, dtype)
    shifts = (scales - old_scales)[:, None] * c + (biases - old_biases)[:, None]
    gain = -((shifts @ hessian) * shifts + 2 * shifts * slopes).sum(axis=-1)
    # Rounding to the stored dtype can cost more than the fit brings. False where it is not finite.
    is_better = gain > 0
    kept = AffineParameters(
        mx.where(is_better, scales, old_scales)[:, None, None], mx.where(is_better, biases, old_biases)[:, None, None]
    )
    return kept, mx.where(is_better[:, None], shifts, 0)
