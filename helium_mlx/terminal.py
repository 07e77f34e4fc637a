"""What all commands share: errors as one line, exit statuses, and progress that suits a terminal or a log."""

import os
import sys
from collections.abc import Callable

from helium_mlx.errors import HeliumError


def run_command(command: Callable[[], None]) -> int:
    """Run `command` and return its exit status: 0, 1 for an error that is named in one line, 130 for Ctrl-C.

    A closed pipe on standard output is silent: the reader has what it wanted.
    """
    try:
        command()
        sys.stdout.flush()
    except HeliumError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return 130
    except BrokenPipeError:
        # Python flushes standard output again at exit; give it somewhere to go.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


class Progress:
    """A progress bar on a terminal, a line every tenth elsewhere, both on standard error."""

    def __init__(self, label: str, *, quiet: bool = False) -> None:
        self.label = label
        self.quiet = quiet
        self.interactive = sys.stderr.isatty()
        self.shown = -1

    def __call__(self, done: int, total: int) -> None:
        """Show that `done` of `total` units are finished."""
        steps = 100 if self.interactive else 10
        reached = done * steps // max(total, 1)
        if self.quiet or reached == self.shown:
            return
        self.shown = reached
        percent = 100 * done // max(total, 1)
        if self.interactive:
            bar = "#" * (percent * 30 // 100)
            end = "\n" if done >= total else ""
            print(f"\r{self.label} [{bar:<30}] {percent:3d}%", end=end, file=sys.stderr, flush=True)
        else:
            print(f"{self.label}: {percent}%", file=sys.stderr, flush=True)
