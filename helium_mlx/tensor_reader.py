"""Reads tensors of a safetensors file by their byte ranges, some rows at a time if need be.

For what streams: MLX's own loader reads a tensor whole, and keeps it in memory while anything refers to it.
"""

import os
from pathlib import Path
from types import TracebackType
from typing import cast

import mlx.core as mx

from helium_mlx.errors import CheckpointError
from helium_mlx.safetensors_header import TensorInfo

MLX_DTYPES = {"BF16": mx.bfloat16, "F16": mx.float16, "F32": mx.float32, "U32": mx.uint32, "U8": mx.uint8}


class TensorReader:
    """One file, open for reading; what it reads is as long as asked for, or an error."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = path.open("rb", buffering=0)
            self._status = os.fstat(self._file.fileno())
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from None

    def read_bytes(self, info: TensorInfo, first_row: int = 0, n_rows: int | None = None) -> bytes:
        """Return the bytes of `n_rows` rows (all where None) from `first_row` on. Any thread may call it.

        Raises CheckpointError if the file no longer holds them.
        """
        row_bytes = (info.end - info.start) // max(1, info.shape[0] if info.shape else 1)
        start = info.start + first_row * row_bytes
        end = info.end if n_rows is None else start + n_rows * row_bytes
        pieces: list[bytes] = []
        try:
            # One call returns at most 2 GiB, and less if a signal comes.
            while start < end and (piece := os.pread(self._file.fileno(), end - start, start)):
                pieces.append(piece)
                start += len(piece)
        except OSError as error:
            raise CheckpointError(f"{self.path}: cannot be read ({error.strerror})") from None
        if start < end:
            raise CheckpointError(f"{self.path}: was cut short while it was being read; restore it and try again")
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def read(self, info: TensorInfo, first_row: int = 0, n_rows: int | None = None) -> mx.array:
        """Return rows of a tensor, read at once."""
        return as_array(self.read_bytes(info, first_row, n_rows), info)

    def require_unchanged(self) -> None:
        """Raise CheckpointError if the file is another one than when it was opened, or was written to."""
        try:
            now = self.path.stat()
        except OSError as error:
            raise CheckpointError(f"{self.path}: cannot be read any more ({error.strerror})") from None
        before = self._status
        if (now.st_ino, now.st_size, now.st_mtime_ns) != (before.st_ino, before.st_size, before.st_mtime_ns):
            raise CheckpointError(f"{self.path}: was changed while it was being read; try again when it is at rest")

    def __enter__(self) -> "TensorReader":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


def as_array(octets: bytes, info: TensorInfo) -> mx.array:
    """Return the array that rows of `info` are, from their bytes, which are copied."""
    dtype, columns = MLX_DTYPES[info.dtype], info.shape[1:]
    if not info.shape:
        return mx.array(cast(list[int], octets)).view(dtype).reshape(())
    if not octets:
        return mx.zeros((0, *columns), dtype)
    return mx.array(cast(list[int], octets)).view(dtype).reshape(-1, *columns)
