from pathlib import Path

import mlx.core as mx
import pytest
from tiny_checkpoints import write_checkpoint

import helium_mlx
from helium_mlx.checkpoint import row_blocks as blocks
from helium_mlx.checkpoint.checkpoint import open_checkpoint, read_tensors
from helium_mlx.checkpoint.quantization_settings import PARTS, QuantizationSettings
from helium_mlx.checkpoint.row_blocks import all_finite, dequantized, places_of, read_ahead, row_blocks_of
from helium_mlx.files.safetensors_reader import as_array


@pytest.mark.parametrize("quantize", [False, True])
@pytest.mark.parametrize("row_block_bytes", [1, 1000, 1 << 20])
def test_row_blocks_put_together_are_the_tensors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quantize: bool, row_block_bytes: int
) -> None:
    helium_mlx.convert("demo", str(tmp_path / "x"), quantize=quantize, verify=False)
    monkeypatch.setattr(blocks, "ROW_BLOCK_BYTES", row_block_bytes)
    checkpoint = open_checkpoint(tmp_path / "x")
    expected = read_tensors(checkpoint)
    found: dict[str, list[mx.array]] = {}
    places = places_of(checkpoint)
    names = [name for name in places if "embed" in name or "layers.2." in name or "norm" in name]
    for block, data in read_ahead(block for name in names for block in row_blocks_of(checkpoint, places, name)):
        for suffix, (_, info) in block.stored.items():
            name = f"{block.name.rpartition('.')[0]}.{suffix}"
            found.setdefault(name, []).append(as_array(data[suffix], info))
    assert sorted(found) == sorted(names)
    for name, rows in found.items():
        assert mx.array_equal(mx.concatenate(rows), expected[name]), name


def test_an_error_while_reading_ahead_comes_up(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write_checkpoint(tmp_path))
    places = places_of(checkpoint)
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(helium_mlx.CheckpointError, match="cut short"):
        list(read_ahead(block for name in places for block in row_blocks_of(checkpoint, places, name)))


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16, mx.float16])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite_are_found(dtype: mx.Dtype, value: float) -> None:
    x = mx.array([[0.0, -3.0, 1e4], [1e-7, 0.5, 2.0]]).astype(dtype)
    assert all_finite(x).item()
    x[1, 0] = value
    assert not all_finite(x).item()


def test_codes_are_always_finite() -> None:
    assert all_finite(mx.array([2**32 - 1], mx.uint32)).item()
    assert all_finite(mx.array([255], mx.uint8)).item()


@pytest.mark.parametrize("settings", [QuantizationSettings(64, 4), QuantizationSettings(32, 8, "mxfp8")])
@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16, mx.float32])
def test_dequantizing_is_done_in_float32(settings: QuantizationSettings, dtype: mx.Dtype) -> None:
    weight = mx.random.normal((8, 128), key=mx.random.key(1)).astype(dtype)
    parts = mx.quantize(weight, settings.group_size, settings.bits, settings.mode)
    arrays: dict[str, mx.array] = dict(zip(PARTS, parts))  # noqa: B905
    values = dequantized(arrays, settings)
    assert values.dtype == mx.float32
    assert (mx.abs(values - weight.astype(mx.float32)) < 0.3).all().item()
    if settings.has_biases:
        codes = mx.dequantize(parts[0], mx.ones_like(parts[1]), mx.zeros_like(parts[1]), 64, 4).astype(mx.float32)
        scales, biases = (mx.repeat(part.astype(mx.float32), 64, axis=1) for part in parts[1:])
        assert mx.allclose(values, codes * scales + biases, rtol=1e-6, atol=1e-6)
