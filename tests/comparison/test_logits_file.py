import shutil
import tempfile
from pathlib import Path
from types import SimpleNamespace

import mlx.core as mx
import pytest

from helium_mlx import ComparisonError
from helium_mlx.comparison.passes import LogitsFile


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16, mx.float16])
def test_what_is_read_is_what_was_written_bit_for_bit(dtype: mx.Dtype) -> None:
    rows = (100 * mx.random.normal((7, 33), key=mx.random.key(1))).astype(dtype)
    with LogitsFile(7) as file:
        file.append(rows[:3])
        file.append(rows[3:])
        for _ in range(2):
            file.rewind()
            read = mx.concatenate([file.read(5), file.read(2)])
            assert read.dtype == dtype
            assert mx.array_equal(read, rows)
        assert file.columns == 33


def test_nothing_is_left_in_the_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with LogitsFile(2) as file:
        file.append(mx.zeros((2, 4)))
        # A name would stay behind if the process were killed.
        assert list(tmp_path.iterdir()) == []


def test_a_disk_too_small_is_one_line_before_anything_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=7_999_999))
    with (
        LogitsFile(1000) as file,
        pytest.raises(ComparisonError, match=r"take 0\.008 GB there, and 0\.008 GB are free"),
    ):
        file.append(mx.zeros((10, 2000)))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=8_000_000))
    with LogitsFile(1000) as file:
        file.append(mx.zeros((10, 2000)))


def test_a_disk_that_fills_up_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with LogitsFile(1) as file:

        def write(data: memoryview) -> int:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(file, "_file", SimpleNamespace(write=write, close=file._file.close))
        with pytest.raises(ComparisonError, match=r"cannot be written \(No space left on device\); set TMPDIR"):
            file.append(mx.zeros((1, 4)))
