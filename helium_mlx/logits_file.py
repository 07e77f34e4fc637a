"""Logits kept in a temporary file, in the dtype that they came in, to be read back in the same order.

Nothing is lost by it: log-probabilities are computed in float32 from these numbers whether they come from here or from
the model. A token takes 96 KB of a vocabulary of 48,000 in bfloat16, and 192 KB in float32. The file has no name once
it is made, so that it goes with the process, whatever ends that; `TMPDIR` says where it lies.
"""

import shutil
import tempfile
from types import TracebackType
from typing import cast

import mlx.core as mx

from helium_mlx.errors import ComparisonError


class LogitsFile:
    """Rows of logits, written once and read any number of times; a context, at whose end the file is gone."""

    def __init__(self, rows: int) -> None:
        self._rows = rows
        self._file = tempfile.TemporaryFile()  # noqa: SIM115
        self._dtype, self._columns = mx.float32, 0

    def __enter__(self) -> "LogitsFile":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._file.close()

    def append(self, logits: mx.array) -> None:
        """Write rows (n, vocab_size) behind those that are there.

        Raises ComparisonError, with the first rows, if all the rows do not fit on the disk.
        """
        if not self._columns:
            self._dtype, self._columns = logits.dtype, logits.shape[1]
            _require_space(self._rows * self._row_bytes)
        assert (logits.dtype, logits.shape[1]) == (self._dtype, self._columns)
        try:
            self._file.write(memoryview(cast(bytes, mx.contiguous(logits.view(mx.uint8)))))
        except OSError as error:
            raise ComparisonError(
                f"{tempfile.gettempdir()}: the reference's logits cannot be written ({error.strerror}); "
                "set TMPDIR to a directory with more room"
            ) from None

    def rewind(self) -> None:
        """Go back to the first row."""
        self._file.seek(0)

    def read(self, rows: int) -> mx.array:
        """Return the next rows."""
        octets = self._file.read(rows * self._row_bytes)
        assert len(octets) == rows * self._row_bytes
        return mx.array(cast("list[int]", octets)).view(self._dtype).reshape(rows, self._columns)

    @property
    def columns(self) -> int:
        """The size of the vocabulary."""
        return self._columns

    @property
    def _row_bytes(self) -> int:
        return self._columns * self._dtype.size


def _require_space(needed: int) -> None:
    directory = tempfile.gettempdir()
    free = shutil.disk_usage(directory).free
    if free < needed:
        raise ComparisonError(
            f"{directory}: the reference's logits take {needed / 1e9:.3f} GB there, and {free / 1e9:.3f} GB are free; "
            "set TMPDIR to a directory with more room, or compare on less text"
        )
