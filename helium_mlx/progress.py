"""How far something is, on standard error: a bar on a terminal and in a notebook, a line every tenth in a log.

tqdm draws. On a terminal a thread draws the bar again every half second, so that its clocks go on in a long step.
"""

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from tqdm import tqdm

_SECONDS_PER_DRAWING = 0.5
_COUNTED = "{desc}: {percentage:3.0f}% |{bar}| {elapsed}<{remaining}"
_MEASURED = "{desc}: {percentage:3.0f}% |{bar}| {n_fmt}/{total_fmt} {rate_fmt} {elapsed}<{remaining}"

_drawn: "set[Progress]" = set()
_hidden = threading.Event()


class Progress:
    """Called with what is done and the total, shows it; the first call may be with nothing done.

    `unit` "B" is bytes, shown with their number and speed; anything else shows a percentage and the time left.
    `in_log` false shows nothing where there is neither a terminal nor a notebook.
    """

    def __init__(self, label: str, *, unit: str = "", in_log: bool = True) -> None:
        self.label = label
        self.unit = unit
        self.is_drawn = not _hidden.is_set() and (_in_notebook() or sys.stderr.isatty())
        self.is_written = not _hidden.is_set() and not self.is_drawn and in_log
        self._tenth = -1
        self._bar: tqdm[object] | None = None
        self._is_closed = threading.Event()

    def __call__(self, done: int, total: int) -> None:
        """Show that `done` of `total` units are finished."""
        if self.is_drawn:
            self._draw(done, max(total, 1))
        elif self.is_written:
            tenth = done * 10 // max(total, 1)
            if tenth != self._tenth:
                self._tenth = tenth
                print(f"{self.label}: {100 * done // max(total, 1)}%", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Leave the bar as it is, on a line of its own."""
        self._is_closed.set()
        _drawn.discard(self)
        if self._bar is not None:
            self._bar.close()
        self._bar = None

    def _draw(self, done: int, total: int) -> None:
        if self._bar is None:
            if done >= total and self._is_closed.is_set():
                return
            self._bar = _bar(self.label, self.unit, done, total)
            self._is_closed = threading.Event()
            _drawn.add(self)
            if not _in_notebook():
                threading.Thread(target=_redraw, args=(self._bar, self._is_closed), daemon=True).start()
        self._bar.total = total
        self._bar.update(done - self._bar.n)
        if done >= total:
            self._bar.refresh()
            self.close()


@contextmanager
def hidden(quiet: bool = True) -> Iterator[None]:
    """Show nothing meanwhile, if `quiet`."""
    before = _hidden.is_set()
    if quiet:
        _hidden.set()
    try:
        yield
    finally:
        if not before:
            _hidden.clear()


def note(sentence: str) -> None:
    """Say on standard error what goes on, unless nothing is to be shown."""
    if not _hidden.is_set():
        close_bars()
        print(sentence, file=sys.stderr, flush=True)


def close_bars() -> None:
    """Close what is drawn, before something else is to be read on the terminal."""
    for progress in list(_drawn):
        progress.close()


def load_quietly() -> None:
    """In a notebook load tqdm, before another package does: it warns where ipywidgets is missing, and text will do."""
    if _in_notebook():
        import warnings

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import tqdm.auto  # noqa: F401


def _in_notebook() -> bool:
    shell = sys.modules.get("IPython")
    running = None if shell is None else shell.get_ipython()
    return running is not None and "IPKernelApp" in running.config


def _bar(label: str, unit: str, done: int, total: int) -> "tqdm[object]":
    base: Any
    if _in_notebook():
        load_quietly()
        from tqdm.auto import tqdm as base
    else:
        from tqdm import tqdm as base

    class Bar(base):
        """Has a lock of its own, of threads only; tqdm's starts a process that tracks it."""

        monitor_interval = 0

    Bar.set_lock(threading.RLock())
    measured = unit == "B"
    bar = Bar(
        desc=label,
        initial=done,
        total=total,
        unit=unit or "it",
        unit_scale=measured,
        bar_format=_MEASURED if measured else _COUNTED,
        dynamic_ncols=True,
        file=sys.stderr,
    )
    return cast("tqdm[object]", bar)


def _redraw(bar: "tqdm[object]", is_closed: threading.Event) -> None:
    while not is_closed.wait(_SECONDS_PER_DRAWING):
        bar.refresh()
