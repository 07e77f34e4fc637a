import mlx.core as mx
import pytest

from helium_mlx.checkpoint.quantization_settings import MODES, QuantizationSettings
from helium_mlx.checkpoint.row_blocks import dequantized
from helium_mlx.quantization.plain import quantized
from helium_mlx.quantization.rounding import fitted, pack_codes, stored

BITS = MODES["affine"][0]


def groups(kind: str) -> mx.array:
    """Four rows of two groups of 64."""
    normal = mx.random.normal((4, 128), key=mx.random.key(7))
    if kind == "constant":
        return mx.full((4, 128), 0.37)
    if kind == "zero":
        return mx.zeros((4, 128))
    if kind == "outlier":
        return mx.where(mx.arange(128) % 64 == 5, 100.0, normal)
    if kind == "one sided":
        return mx.abs(normal) + 3
    if kind == "huge":
        return normal * 1e36
    if kind == "tiny":
        return normal * 1e-30
    return normal


def error(values: mx.array, weight: mx.array, importance: mx.array | None = None) -> mx.array:
    """Squared errors of each group, in units that do not overflow."""
    size = mx.maximum(mx.abs(weight).max(), 1e-38)
    difference = ((values - weight) / size).square()
    weighted = difference if importance is None else difference * importance
    return weighted.reshape(weight.shape[0], -1, 64).sum(axis=-1)


@pytest.mark.parametrize("bits", BITS)
def test_packed_codes_are_what_mlx_reads(bits: int) -> None:
    codes = mx.random.randint(0, 2**bits, (5, 128), key=mx.random.key(bits))
    read = mx.dequantize(pack_codes(codes, bits), mx.ones((5, 2)), mx.zeros((5, 2)), 64, bits)
    assert mx.array_equal(read, codes.astype(mx.float32))


@pytest.mark.parametrize("bits", BITS)
def test_packed_codes_are_what_mlx_writes(bits: int) -> None:
    weight, scales, biases = mx.quantize(groups("normal"), 64, bits)
    values = mx.dequantize(weight, scales, biases, 64, bits).reshape(4, 2, 64)
    codes = mx.round((values - biases[..., None]) / scales[..., None]).reshape(4, 128)
    assert mx.array_equal(pack_codes(codes, bits), weight)


@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16, mx.float32])
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("kind", ["normal", "constant", "zero", "outlier", "one sided", "huge", "tiny"])
def test_no_group_errs_more_than_plain_rounding(kind: str, bits: int, dtype: mx.Dtype) -> None:
    if dtype == mx.float16 and kind == "huge":
        pytest.skip("float16 cannot hold it, and a conversion says so")
    weight, settings = groups(kind), QuantizationSettings(64, bits)
    ours = error(dequantized(fitted(weight, settings, dtype), settings), weight)
    plain = error(dequantized(quantized(weight, settings, dtype), settings), weight)
    assert mx.isfinite(ours).all().item()
    assert (ours <= plain * (1 + 1e-5) + 1e-12).all().item()


@pytest.mark.parametrize("bits", BITS)
def test_no_group_errs_more_by_weight(bits: int) -> None:
    weight, settings = groups("outlier"), QuantizationSettings(64, bits)
    importance = mx.exp(3 * mx.random.normal((128,), key=mx.random.key(1)))
    ours = dequantized(fitted(weight, settings, mx.bfloat16, importance=importance), settings)
    plain = dequantized(quantized(weight, settings, mx.bfloat16), settings)
    assert (error(ours, weight, importance) <= error(plain, weight, importance) * (1 + 1e-5)).all().item()


@pytest.mark.parametrize(("bits", "share"), [(2, 0.75), (3, 0.82), (4, 0.88)])
def test_normal_weights_err_clearly_less(bits: int, share: float) -> None:
    weight, settings = mx.random.normal((64, 512), key=mx.random.key(0)), QuantizationSettings(64, bits)
    ours = error(dequantized(fitted(weight, settings, mx.bfloat16), settings), weight).sum()
    plain = error(dequantized(quantized(weight, settings, mx.bfloat16), settings), weight).sum()
    assert (ours / plain).item() < share  # pyright: ignore[reportOperatorIssue]


def test_columns_that_count_come_out_better() -> None:
    weight, settings = mx.random.normal((16, 64), key=mx.random.key(3)), QuantizationSettings(64, 2)
    importance = mx.where(mx.arange(64) < 8, 100.0, 1.0)
    alike = dequantized(fitted(weight, settings, mx.float32), settings)
    weighted = dequantized(fitted(weight, settings, mx.float32, importance=importance), settings)

    def of_these(values: mx.array) -> float:
        return (values - weight)[:, :8].square().mean().item()  # pyright: ignore[reportReturnType]

    assert of_these(weighted) < 0.6 * of_these(alike)


def test_columns_without_inputs_do_no_harm() -> None:
    weight, settings = groups("normal"), QuantizationSettings(64, 3)
    parts = fitted(weight, settings, mx.bfloat16, importance=mx.zeros(128))
    assert mx.isfinite(dequantized(parts, settings)).all().item()


def test_scales_are_used_as_they_are_stored() -> None:
    settings = QuantizationSettings(64, 8)
    parts = fitted(groups("one sided"), settings, mx.bfloat16)
    assert parts["scales"].dtype == mx.bfloat16
    weight = groups("one sided").reshape(4, 2, 64)
    scales, biases = (stored(parts[name], mx.float32)[..., None] for name in ("scales", "biases"))
    nearest = mx.clip(mx.round((weight - biases) / scales), 0, 255)
    assert mx.array_equal(pack_codes(nearest.reshape(4, 128), 8), parts["weight"])
