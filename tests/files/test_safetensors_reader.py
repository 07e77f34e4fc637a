import os
from pathlib import Path

import mlx.core as mx
import pytest

from helium_mlx.errors import CheckpointError
from helium_mlx.files.safetensors_header import TensorInfo, read_header
from helium_mlx.files.safetensors_reader import TensorReader
from helium_mlx.files.safetensors_writer import SafetensorsWriter

TENSORS = {
    "brain": mx.arange(24, dtype=mx.float32).reshape(6, 4).astype(mx.bfloat16),
    "half": mx.array([1.5, -2.0], mx.float16),
    "codes": mx.array([[1, 2**32 - 1], [3, 4]], mx.uint32),
    "scales": mx.array([[7], [255]], mx.uint8),
    "scalar": mx.array(0.1),
    "empty": mx.zeros((0, 3)),
}


@pytest.fixture
def file(tmp_path: Path) -> tuple[Path, dict[str, TensorInfo]]:
    path = tmp_path / "a.safetensors"
    with SafetensorsWriter(path, {name: (array.dtype, array.shape) for name, array in TENSORS.items()}) as writer:
        for name, array in TENSORS.items():
            writer.write(name, array)
    return path, read_header(path)


@pytest.mark.parametrize("name", TENSORS)
def test_reads_what_was_written(file: tuple[Path, dict[str, TensorInfo]], name: str) -> None:
    path, infos = file
    read = TensorReader(path).read(infos[name])
    assert (read.dtype, read.shape) == (TENSORS[name].dtype, TENSORS[name].shape)
    assert mx.array_equal(read, TENSORS[name])


def test_reads_some_rows(file: tuple[Path, dict[str, TensorInfo]]) -> None:
    path, infos = file
    reader = TensorReader(path)
    assert mx.array_equal(reader.read(infos["brain"], 1, 3), TENSORS["brain"][1:4])
    assert reader.read(infos["brain"], 5, 1).tolist() == [[20.0, 21.0, 22.0, 23.0]]


def test_a_file_that_shrinks_is_named(file: tuple[Path, dict[str, TensorInfo]]) -> None:
    path, infos = file
    reader = TensorReader(path)
    os.truncate(path, infos["brain"].end - 1)
    with pytest.raises(CheckpointError, match=r"a\.safetensors: was cut short"):
        reader.read(infos["brain"])


@pytest.mark.parametrize("change", ["append", "replace", "touch", "remove"])
def test_a_file_that_changes_is_noticed(file: tuple[Path, dict[str, TensorInfo]], change: str) -> None:
    path, infos = file
    reader = TensorReader(path)
    reader.require_unchanged()
    if change == "append":
        path.write_bytes(path.read_bytes() + b"x")
    elif change == "replace":
        (path.parent / "b").write_bytes(path.read_bytes())
        os.replace(path.parent / "b", path)
    elif change == "touch":
        os.utime(path, ns=(1, 1))
    else:
        path.unlink()
    with pytest.raises(CheckpointError, match=r"a\.safetensors: "):
        reader.require_unchanged()
    with pytest.raises(CheckpointError, match=r"a\.safetensors: "):
        reader.read(infos["brain"])


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="missing"):
        TensorReader(tmp_path / "missing.safetensors")
