"""The bytes of a file that is being sent, told as the client sends them; the client itself draws nothing.

Its hooks: an addition opens its own file, whose reading is counted; Xet, which reads files by itself, reports to a
class that is stood in for. A client that has neither sends as well, and a file then counts when it has arrived.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from pathlib import Path

    from huggingface_hub import CommitOperationAdd


def addition_of(name: str, content: "Path | bytes", on_bytes: Callable[[int], None]) -> "CommitOperationAdd":
    """Return what the client sends as the file `name`; `on_bytes(done)` is told how much of it has been read."""
    addition = _addition()(name, content)
    addition.on_bytes = on_bytes
    return addition


@contextmanager
def told_by_xet(on_bytes: Callable[[int], None]) -> Iterator[None]:
    """Have Xet tell of its bytes meanwhile, where the client is one that sends with it."""
    try:
        from huggingface_hub.utils import _xet_progress_reporting as reporting

        drawn = reporting.XetUploadProgressReporter
    except (ImportError, AttributeError):
        yield
        return
    reporting.XetUploadProgressReporter = lambda *_, **__: _XetReporter(on_bytes)
    try:
        yield
    finally:
        reporting.XetUploadProgressReporter = drawn


@contextmanager
def without_bars() -> Iterator[None]:
    """Have the client draw nothing meanwhile."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    before = are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if not before:
            enable_progress_bars()


class _XetReporter:
    """Takes the reports that Xet's bars are drawn of."""

    def __init__(self, on_bytes: Callable[[int], None]) -> None:
        self._on_bytes = on_bytes

    def update_progress(self, report: object, *_: object) -> None:
        """Tell of the bytes that are done."""
        # A report of another form is no reason to end an upload.
        with suppress(TypeError, ValueError):
            self._on_bytes(int(getattr(report, "total_bytes_completed", 0)))

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_, **__: None


@cache
def _addition() -> type:
    from huggingface_hub import CommitOperationAdd

    class Addition(CommitOperationAdd):
        on_bytes: Callable[[int], None]

        @contextmanager
        def as_file(self, with_tqdm: bool = False) -> Iterator[BinaryIO]:
            """Open the file; `with_tqdm` says that it is to be sent."""
            with super().as_file() as file:
                if with_tqdm and not isinstance(self.path_or_fileobj, bytes):
                    _count_reads(file, self.on_bytes)
                yield file

    return Addition


def _count_reads(file: BinaryIO, on_bytes: Callable[[int], None]) -> None:
    read = file.read

    def counted(size: int = -1) -> bytes:
        data = read(size)
        # Its place, not a sum: what is sent again counts once.
        on_bytes(file.tell())
        return data

    file.read = counted
