"""The two passes of a comparison: the reference's, which leaves its logits in a file, and a candidate's beside them.

A pass loads its model, and nothing refers to the model when it ends.
"""

import gc
import math
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from types import TracebackType
from typing import cast

import mlx.core as mx

from helium_mlx.backend import dtype_name
from helium_mlx.checkpoint.row_blocks import all_finite
from helium_mlx.comparison.sides import Loadable
from helium_mlx.comparison.text import EncodedText
from helium_mlx.errors import ComparisonError, one_line
from helium_mlx.files.safetensors_header import FLOAT_DTYPES
from helium_mlx.files.safetensors_reader import TensorReader
from helium_mlx.generation.sampling import token_logprobs
from helium_mlx.model.losses import kl_divergence


@dataclass(frozen=True)
class CandidateRun:
    """What was measured at each position: loss and KL in nats, and whether the two most probable tokens are one.

    The latter two are empty where there was nothing to compare with.
    """

    losses: list[float]
    divergences: list[float]
    agreements: list[bool]

    @property
    def mean_kl(self) -> float:
        """The mean KL of a position; there must be some."""
        return math.fsum(self.divergences) / len(self.divergences)


@dataclass(frozen=True)
class ScoringOptions:
    """How models are run: in `dtype`, `batch_size` windows at a time; `on_scored` is told of each few tokens."""

    dtype: mx.Dtype
    batch_size: int
    on_scored: Callable[[int], None]


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
        """Append rows (n, vocab_size).

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
        data = self._file.read(rows * self._row_bytes)
        assert len(data) == rows * self._row_bytes
        return mx.array(cast("list[int]", data)).view(self._dtype).reshape(rows, self._columns)

    @property
    def columns(self) -> int:
        """The size of the vocabulary."""
        return self._columns

    @property
    def _row_bytes(self) -> int:
        return self._columns * self._dtype.size


def run_reference(side: Loadable, text: EncodedText, how: ScoringOptions, cached: LogitsFile | None) -> list[float]:
    """Return the loss at each position, in nats, and leave the logits in `cached`, if that is given."""
    losses: list[float] = []
    for logits, scored in _scored(side, text, how):
        losses += scored
        if cached is not None:
            cached.append(logits)
        how.on_scored(len(scored))
    return losses


def run_candidate(side: Loadable, text: EncodedText, how: ScoringOptions, cached: LogitsFile | None) -> CandidateRun:
    """Return what is measured at each position, beside the reference's logits in `cached`, if that is given."""
    run = CandidateRun([], [], [])
    if cached is not None:
        cached.rewind()
    for logits, scored in _scored(side, text, how):
        run.losses.extend(scored)
        if cached is not None and cached.columns == logits.shape[1]:
            reference = cached.read(len(scored))
            divergences, same = kl_divergence(reference, logits), reference.argmax(axis=-1) == logits.argmax(axis=-1)
            mx.eval(divergences, same)
            run.divergences.extend(cast("list[float]", divergences.tolist()))
            run.agreements.extend(cast("list[bool]", same.tolist()))
        how.on_scored(len(scored))
    return run


def _scored(side: Loadable, text: EncodedText, how: ScoringOptions) -> Iterator[tuple[mx.array, list[float]]]:
    """Yield logits (n, vocab_size) with the loss at each of these n positions in nats, window after window.

    Raises ComparisonError for logits that are not finite.
    """
    # Memory of the model that ran before.
    gc.collect()
    mx.clear_cache()
    logits_of = side.load(how.dtype)
    windows = iter(text.windows)
    while batch := list(islice(windows, how.batch_size)):
        targets = iter([token for window in batch for token in window.ids[1:]])
        longest = max(window.length for window in batch)
        # Padding comes after a row, where causal attention never looks.
        ids = [window.ids[:-1] + [side.bos] * (longest - window.length) for window in batch]
        for logits in logits_of(mx.array(ids, dtype=mx.int32), [window.length for window in batch]):
            losses = -token_logprobs(logits, mx.array(list(islice(targets, logits.shape[0]))), 0)[0]
            finite = mx.isfinite(logits).all()
            # Both in one evaluation.
            mx.eval(losses, finite)
            if not finite.item():
                raise ComparisonError(f"{side.name}: {_why_not_finite(side, how.dtype)}")
            yield logits, cast("list[float]", losses.tolist())


def _why_not_finite(side: Loadable, dtype: mx.Dtype) -> str:
    """Return the cause of logits that are not finite, and what to do; the weights are read for it."""
    for path, infos in side.files.items():
        reader = TensorReader(path)
        for name, info in infos.items():
            if info.dtype in FLOAT_DTYPES and not all_finite(reader.read(info)).item():
                return f"its weight {one_line(name)} holds NaN or infinity; fetch or convert it again"
    advice = ", though its weights are" if dtype == mx.float32 else "; take dtype float32"
    return f"its logits are not finite in {dtype_name(dtype)}{advice}"


def _require_space(needed: int) -> None:
    directory = tempfile.gettempdir()
    free = shutil.disk_usage(directory).free
    if free < needed:
        raise ComparisonError(
            f"{directory}: the reference's logits take {needed / 1e9:.3f} GB there, and {free / 1e9:.3f} GB are free; "
            "set TMPDIR to a directory with more room, or compare on less text"
        )
