"""Reads tensors of a safetensors file by their byte ranges, some rows at a time if need be.

For what streams: MLX's own loader reads a tensor whole, and keeps it in memory while anything refers to it.
"""

import os
from pathlib import Path
from typing import cast

import mlx.core as mx

from helium_mlx.errors import CheckpointError
from helium_mlx.files.safetensors_header import TensorInfo
from helium_mlx.files.safetensors_writer import DTYPE_NAMES

MLX_DTYPES = {name: dtype for dtype, name in DTYPE_NAMES.items()}


class TensorReader:
    """One file, opened for each read, so that any number of shards can be read in turn.

    What it reads is as long as asked for, and from the file that was there at the start, or it is an error.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._identity = _identity(path.stat())
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from None

    def read_bytes(self, info: TensorInfo, first_row: int = 0, n_rows: int | None = None) -> bytes:
        """Return the bytes of `n_rows` rows (all where None) from `first_row` on. Any thread may call it.

        Raises CheckpointError if the file no longer holds them, or is another one.
        """
        row_bytes = (info.end - info.start) // max(1, info.shape[0] if info.shape else 1)
        start = info.start + first_row * row_bytes
        end = info.end if n_rows is None else start + n_rows * row_bytes
        pieces: list[bytes] = []
        try:
            with self.path.open("rb", buffering=0) as file:
                # One call returns at most 2 GiB, and less if a signal comes.
                while start < end and (piece := os.pread(file.fileno(), end - start, start)):
                    pieces.append(piece)
                    start += len(piece)
                if start < end:
                    raise CheckpointError(
                        f"{self.path}: was cut short while it was being read; restore it and try again"
                    )
                self._require_same(os.fstat(file.fileno()))
        except OSError as error:
            raise CheckpointError(f"{self.path}: cannot be read ({error.strerror})") from None
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def read(self, info: TensorInfo, first_row: int = 0, n_rows: int | None = None) -> mx.array:
        """Return rows of a tensor, read at once."""
        return as_array(self.read_bytes(info, first_row, n_rows), info)

    def require_unchanged(self) -> None:
        """Raise CheckpointError if the file is another one than at the start, or was written to."""
        try:
            self._require_same(self.path.stat())
        except OSError as error:
            raise CheckpointError(f"{self.path}: cannot be read any more ({error.strerror})") from None

    def _require_same(self, status: os.stat_result) -> None:
        if _identity(status) != self._identity:
            raise CheckpointError(f"{self.path}: was changed while it was being read; try again when it is at rest")


def _identity(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_ino, status.st_size, status.st_mtime_ns


def as_array(data: bytes, info: TensorInfo) -> mx.array:
    """Return the array that rows of `info` are, from their bytes, which are copied."""
    dtype, columns = MLX_DTYPES[info.dtype], info.shape[1:]
    if not info.shape:
        return mx.array(cast(list[int], data)).view(dtype).reshape(())
    if not data:
        return mx.zeros((0, *columns), dtype)
    return mx.array(cast(list[int], data)).view(dtype).reshape(-1, *columns)
