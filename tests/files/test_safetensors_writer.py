from pathlib import Path

import mlx.core as mx
import pytest
from safetensors import safe_open

from helium_mlx.files.safetensors_header import read_header
from helium_mlx.files.safetensors_writer import SafetensorsWriter, shards

TENSORS = {
    "half": mx.array([1.5, -2.0, 3.25], mx.float16),
    "codes": mx.array([[1, 2**32 - 1], [3, 4]], mx.uint32),
    "brain": mx.arange(6, dtype=mx.float32).reshape(2, 3).astype(mx.bfloat16),
    "single": mx.array(0.1),
    "scales": mx.array([[7], [255]], mx.uint8),
    "transposed": mx.arange(6, dtype=mx.float32).reshape(2, 3).T,
    "brain scalar": mx.array(-1e-6, mx.bfloat16),
}


def write(path: Path, names: list[str]) -> None:
    with SafetensorsWriter(path, {name: (array.dtype, array.shape) for name, array in TENSORS.items()}) as writer:
        for name in names:
            writer.write(name, TENSORS[name])


def test_mlx_reads_back_what_was_written(tmp_path: Path) -> None:
    write(tmp_path / "a.safetensors", list(TENSORS))
    loaded = mx.load(str(tmp_path / "a.safetensors"))
    assert isinstance(loaded, dict)
    assert loaded.keys() == TENSORS.keys()
    for name, array in TENSORS.items():
        assert loaded[name].dtype == array.dtype
        assert mx.array_equal(loaded[name], array), name


def test_hugging_faces_reader_opens_it(tmp_path: Path) -> None:
    write(tmp_path / "a.safetensors", list(TENSORS))
    with safe_open(tmp_path / "a.safetensors", framework="mlx") as file:
        assert sorted(file.keys()) == sorted(TENSORS)
        assert file.metadata() == {"format": "mlx"}


def test_the_order_of_writing_does_not_change_the_file(tmp_path: Path) -> None:
    write(tmp_path / "a.safetensors", list(TENSORS))
    write(tmp_path / "b.safetensors", sorted(TENSORS))
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_every_tensor_is_aligned_to_its_values(tmp_path: Path) -> None:
    write(tmp_path / "a.safetensors", list(TENSORS))
    for name, info in read_header(tmp_path / "a.safetensors").items():
        assert info.start % TENSORS[name].dtype.size == 0, name


def test_a_tensor_left_out_is_noticed(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="not written"):
        write(tmp_path / "a.safetensors", list(TENSORS)[1:])


def test_shards_keep_order_and_limit() -> None:
    plans = [(str(i), (mx.float32, (size,))) for i, size in enumerate([3, 3, 9, 1, 1])]
    assert [list(shard) for shard in shards(plans, 24)] == [["0", "1"], ["2"], ["3", "4"]]
