"""What all commands share: errors as one line, exit statuses, and progress that suits a terminal or a log."""

import argparse
import errno
import io
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Mapping
from types import FrameType

from helium_mlx.errors import HeliumError, UsageError, one_line
from helium_mlx.process import interrupt_as_usual

# Of an error; a path has at most 4096 characters.
_LONGEST = 6000


class _TerminatedError(BaseException):
    """SIGTERM or SIGHUP came; an exception, so that what is half-written is removed on the way out."""


def run_command(command: Callable[[], None], flags: Mapping[str, str] | None = None) -> int:
    """Run `command` and return its exit status.

    0 is done, 1 an error that is named in one line, 2 such an error about the options themselves, 130 Ctrl-C. `flags`,
    from `flags_of`, are what the user knows options by: errors that call them by their names in Python are put so.

    A closed pipe on standard output is silent: the reader has what it wanted. Characters that the terminal's encoding
    lacks are shown as "?".
    """
    interrupt_as_usual()
    _prepare_streams()
    signals = _raise_on_termination()
    try:
        command()
        sys.stdout.flush()
    except HeliumError as error:
        print(f"error: {one_line(in_flags(error, flags or {}), _LONGEST)}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return 130
    except _TerminatedError:
        return 143
    except BrokenPipeError:
        # Python flushes standard output again at exit; give it somewhere to go.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        place = _place(error)
        print(f"error: {error.strerror or error}{f': {place}' if place else ''}", file=sys.stderr)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    finally:
        for number, handler in signals.items():
            signal.signal(number, handler)
    return 0


def _place(error: OSError) -> str | None:
    """Return what an error of the system is about; a full disk under standard output has no name of its own."""
    if error.filename is not None:
        return one_line(str(error.filename))
    try:
        # What could not be written is still there to be written.
        sys.stdout.flush()
    except OSError:
        return "standard output"
    # Unbuffered, nothing is left to be written; whatever else a command writes has a name.
    return "standard output" if error.errno == errno.ENOSPC and not sys.stdout.isatty() else None


def add_repository_options(parser: argparse.ArgumentParser) -> None:
    """Add what says which checkpoint of a repository is meant."""
    parser.add_argument("--revision", help="branch, tag or commit of the Hub repository")
    parser.add_argument(
        "--subfolder",
        metavar="NAME",
        help="folder that holds the checkpoint; for the Hub, user/name:NAME says the same",
    )


def flags_of(parser: argparse.ArgumentParser) -> dict[str, str]:
    """Return the longest flag of each of a parser's options by its name in Python."""
    return {action.dest: max(action.option_strings, key=len) for action in parser._actions if action.option_strings}


def in_flags(error: HeliumError, flags: Mapping[str, str]) -> str:
    """Return the message of an error with flags in the place of options' names in Python.

    Names that are words of English too, such as `stop`, are put so only where the message of a UsageError begins.
    """
    message = str(error)
    first, space, rest = message.partition(" ")
    if isinstance(error, UsageError) and first in flags:
        message = f"{flags[first]}{space}{rest}"
    names = "|".join(name for name in flags if "_" in name)
    # Not within a path or a longer name, nor in quotes, which are of what a file holds.
    return (
        re.sub(rf"(?<![\w./'\"-])(?:{names})(?![\w./'\"-])", lambda name: flags[name[0]], message) if names else message
    )


def _prepare_streams() -> None:
    # A closed descriptor leaves None here.
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def _raise_on_termination() -> "dict[int, signal._HANDLER]":
    def terminate(number: int, frame: FrameType | None) -> None:
        raise _TerminatedError

    if threading.current_thread() is not threading.main_thread():
        return {}
    return {number: signal.signal(number, terminate) for number in (signal.SIGTERM, signal.SIGHUP)}


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
