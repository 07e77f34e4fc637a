"""GPTQ against the form of its paper: plain loops, an inverse, and Gaussian elimination, in Python's float64."""

import math

import mlx.core as mx
import pytest

from helium_mlx.checkpoint.quantization_settings import QuantizationSettings
from helium_mlx.checkpoint.row_blocks import dequantized
from helium_mlx.errors import QuantizationError
from helium_mlx.quantization.gptq import factored, rounded
from helium_mlx.quantization.rounding import fitted

PACKING = QuantizationSettings(32, 3)
Matrix = list[list[float]]


def inputs(n_columns: int, n_tokens: int = 400) -> mx.array:
    """Correlated inputs, some columns far larger than others."""
    mixing = mx.random.normal((n_columns, n_columns), key=mx.random.key(1))
    sizes = mx.exp(mx.random.normal((n_columns,), key=mx.random.key(2)))
    return (mx.random.normal((n_tokens, n_columns), key=mx.random.key(3)) @ mixing) * sizes / n_columns**0.5


def weights(n_rows: int, n_columns: int) -> mx.array:
    return mx.random.normal((n_rows, n_columns), key=mx.random.key(4))


def output_error(values: mx.array, weight: mx.array, x: mx.array) -> float:
    return (x @ (values - weight).T).square().mean().item()  # pyright: ignore[reportReturnType]


def inverse_of(matrix: Matrix) -> Matrix:
    """By Gauss and Jordan; for positive definite matrices, which need no pivots."""
    n = len(matrix)
    rows = [[*row, *(float(i == j) for j in range(n))] for i, row in enumerate(matrix)]
    for k in range(n):
        rows[k] = [value / rows[k][k] for value in rows[k]]
        for i in range(n):
            if i != k:
                rows[i] = [a - rows[i][k] * b for a, b in zip(rows[i], rows[k], strict=True)]
    return [row[n:] for row in rows]


def slow_gptq(row: list[float], hessian: Matrix, scales: list[float], biases: list[float]) -> list[float]:
    """Round one row: the first column left, then change those after it for the best, by the inverse of what is left."""
    remaining, left, values = list(row), inverse_of(hessian), []
    for column in range(len(row)):
        scale, bias = scales[column // 32], biases[column // 32]
        code = min(max(round((remaining[column] - bias) / scale), 0), 7)
        values.append(code * scale + bias)
        share = (remaining[column] - values[-1]) / left[0][0]
        for later in range(column + 1, len(row)):
            remaining[later] -= share * left[0][later - column]
        left = [
            [left[i][j] - left[i][0] * left[0][j] / left[0][0] for j in range(1, len(left))]
            for i in range(1, len(left))
        ]
    return values


def test_values_are_those_of_the_slow_form() -> None:
    x, weight = inputs(64), weights(3, 64)
    factor = factored(x.T @ x)
    parts = rounded(weight, factor, PACKING, mx.float32, sweeps=0)
    ours, scales, biases = dequantized(parts, PACKING).tolist(), parts["scales"].tolist(), parts["biases"].tolist()
    for index, row in enumerate(weight.tolist()):  # pyright: ignore[reportArgumentType]
        slow = slow_gptq(row, factor.hessian.tolist(), scales[index], biases[index])  # pyright: ignore
        assert all(math.isclose(a, b, abs_tol=1e-4) for a, b in zip(ours[index], slow, strict=True))  # pyright: ignore


def test_the_factor_is_one_of_the_damped_moments() -> None:
    x = inputs(64)
    factor = factored(x.T @ x, damping=0.01)
    upper = (factor.unit_factor + mx.eye(64)) * mx.sqrt(factor.importance)
    assert mx.abs(upper @ upper.T - factor.hessian).max().item() < 1e-4 * mx.abs(factor.hessian).max().item()  # pyright: ignore[reportOperatorIssue]
    assert not mx.tril(factor.unit_factor).any().item()


def test_solve_undoes_a_product() -> None:
    x = inputs(64)
    factor, some = factored(x.T @ x), weights(5, 64)
    assert mx.abs(factor.solve(some @ factor.hessian) - some).max().item() < 1e-2  # pyright: ignore[reportOperatorIssue]


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
@pytest.mark.parametrize("group_size", [32, 64, 128])
def test_outputs_err_less_than_fitted(bits: int, group_size: int) -> None:
    x, weight, settings = inputs(128), weights(32, 128), QuantizationSettings(group_size, bits)
    importance = mx.diag(x.T @ x)
    ours = dequantized(rounded(weight, factored(x.T @ x), settings, mx.bfloat16), settings)
    plain = dequantized(fitted(weight, settings, mx.bfloat16, importance=importance), settings)
    assert output_error(ours, weight, x) < 0.8 * output_error(plain, weight, x)


def test_each_sweep_brings_something() -> None:
    x, weight = inputs(128), weights(32, 128)
    factor = factored(x.T @ x)

    def damped_error(sweeps: int) -> float:
        difference = dequantized(rounded(weight, factor, PACKING, mx.bfloat16, sweeps=sweeps), PACKING) - weight
        return ((difference @ factor.hessian) * difference).sum().item()  # pyright: ignore[reportReturnType]

    errors = [damped_error(sweeps) for sweeps in range(4)]
    assert errors == sorted(errors, reverse=True)
    assert errors[1] < 0.97 * errors[0]


def test_rows_do_not_depend_on_each_other() -> None:
    x, weight = inputs(64), weights(8, 64)
    factor = factored(x.T @ x)
    whole, alone = (rounded(some, factor, PACKING, mx.bfloat16) for some in (weight, weight[3:4]))
    assert mx.array_equal(whole["weight"][3:4], alone["weight"])


def test_inputs_of_zeros_are_no_obstacle() -> None:
    weight = weights(4, 64)
    parts = rounded(weight, factored(mx.zeros((64, 64))), PACKING, mx.bfloat16)
    assert output_error(dequantized(parts, PACKING), weight, mx.eye(64)) < 0.05


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_inputs_that_are_not_finite_are_refused(value: float) -> None:
    with pytest.raises(QuantizationError, match="not finite in float32"):
        factored(mx.full((64, 64), value))


def test_inputs_of_one_token_are_no_obstacle() -> None:
    x = inputs(64, n_tokens=1)
    factor = factored(x.T @ x)
    assert mx.isfinite(factor.unit_factor).all().item()
    values = dequantized(rounded(weights(4, 64), factor, PACKING, mx.bfloat16), PACKING)
    assert mx.isfinite(values).all().item()


def test_constant_and_zero_rows_are_exact() -> None:
    x = inputs(64)
    weight = mx.stack([mx.zeros(64), mx.full((64,), 0.5)])
    parts = rounded(weight, factored(x.T @ x), PACKING, mx.bfloat16)
    assert mx.abs(dequantized(parts, PACKING) - weight).max().item() < 1e-3  # pyright: ignore[reportOperatorIssue]
