import mlx.core as mx
import pytest

from helium_mlx.bundle.functions import FloatCodes


@pytest.mark.parametrize(("mode", "bits", "group_size"), [("mxfp8", 8, 32), ("nvfp4", 4, 16)])
def test_rows_are_unpacked_as_mlx_does(mode: str, bits: int, group_size: int) -> None:
    # Rows of very different sizes, so that many scales occur.
    sizes = mx.power(mx.array(2.0), mx.arange(-20, 12))[:, None]
    weight, scales, *_ = mx.quantize(mx.random.normal((32, 128), key=mx.random.key(0)) * sizes, mode=mode)
    expected = mx.dequantize(weight, scales, group_size=group_size, bits=bits, mode=mode)
    found = FloatCodes(mode, group_size, mx.float32).unpack(weight, scales)
    assert mx.array_equal(found, expected.astype(mx.float32))
    rows = mx.array([[3, 9], [31, 0]])
    assert mx.array_equal(FloatCodes(mode, group_size, mx.float32).unpack(weight[rows], scales[rows]), found[rows])


@pytest.mark.parametrize("mode", FloatCodes.MODES)
def test_every_code_is_what_mlx_makes_of_it(mode: str) -> None:
    bits, group_size = (8, 32) if mode == "mxfp8" else (4, 16)
    # All codes but E4M3's two that stand for no number.
    data = mx.where(mx.arange(256) & 127 == 127, 0, mx.arange(256)).astype(mx.uint8)
    weight = data.view(mx.uint32)[None]
    scales = mx.full((1, 256 * 8 // bits // group_size), 120 if mode == "mxfp8" else 0x38, mx.uint8)
    expected = mx.dequantize(weight, scales, group_size=group_size, bits=bits, mode=mode)
    assert mx.array_equal(FloatCodes(mode, group_size, mx.bfloat16).unpack(weight, scales), expected)
