"""What all commands share: errors as one line, exit statuses, common flags."""

import argparse
import errno
import io
import itertools
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from types import FrameType, MappingProxyType
from typing import NoReturn, cast

from helium_mlx.errors import HeliumError, UsageError, did_you_mean, one_line
from helium_mlx.process import interrupt_as_usual
from helium_mlx.progress import close_bars, hidden

# Of an error; a path has at most 4096 characters.
_LONGEST = 6000

# What the commands call the model that they are about.
_MODEL_FLAGS = ("--model", "--path", "--hf-path", "--reference")


class _TerminatedError(BaseException):
    """SIGTERM or SIGHUP came; an exception, so that what is half-written is removed on the way out."""


class CommandParser(argparse.ArgumentParser):
    """The parser of a command, with `--quiet`, examples under its help, and errors in one line.

    `examples` are command lines without the program's name, each with what it does; `details` are printed before
    them, which only help needs. `instead` says what to use for a
    flag that other programs have. Any other unknown flag is answered with the nearest.
    """

    def __init__(
        self,
        command: str,
        description: str,
        *,
        examples: Mapping[str, str],
        details: Callable[[], str] = str,
        instead: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        super().__init__(prog=f"helium-mlx {command}", description=description)
        self.examples = examples
        self.details = details
        self.instead = instead
        self.add_argument("--quiet", action="store_true", help="no progress and no remarks; errors and warnings stay")

    def format_help(self) -> str:
        """Return the help with its details and examples."""
        shown = [f"  # {what}\n  {self.prog} {line}" for line, what in self.examples.items()]
        return f"{super().format_help()}{self.details()}\nexamples:\n" + "\n".join(shown) + "\n"

    def parse_args(self, args: Sequence[str] | None = None, namespace: object = None) -> argparse.Namespace:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Return the options, or end the process with status 2 after a line about the first that is wrong."""
        given = sys.argv[1:] if args is None else list(args)
        # Before what is missing: that is often what was misspelled.
        for word in itertools.takewhile(lambda word: word != "--", given):
            flag = word.partition("=")[0]
            if flag in self.instead:
                self.error(f"{flag} is not an option here: {self.instead[flag]}")
            if flag.startswith("--") and not any(known.startswith(flag) for known in self._option_string_actions):
                self.error(f"there is no option {flag}{self._nearest(flag)}")
        if given and not given[0].startswith("-") and not self._get_positional_actions():
            self._refuse(given[0])
        parsed, extra = super().parse_known_args(given)
        if extra:
            self._refuse(extra[0])
        return parsed

    def error(self, message: str) -> NoReturn:
        """End the process with status 2 and one line."""
        message = one_line(message, _LONGEST)
        end = " See" if message.endswith("?") else "; see"
        self.exit(2, f"error: {message}{end} {self.prog} --help\n")

    def run(
        self, argv: Sequence[str] | None, command: Callable[..., None], flags: Mapping[str, str] | None = None
    ) -> int:
        """Call `command` with the options of a command line and return the exit status; see `run_command`."""
        options = vars(self.parse_args(argv))
        quiet = cast(bool, options.pop("quiet"))
        return run_command(lambda: command(**options), flags or flags_of(self), quiet=quiet)

    def _refuse(self, word: str) -> NoReturn:
        """End the process with a line about an argument without a flag, which most often is meant for the model."""
        named = [flag for flag in _MODEL_FLAGS if flag in self._option_string_actions]
        remedy = f"; a model is given as {named[0]} {word}" if named and not word.startswith("-") else ""
        self.error(f"there is no place for the argument {word!r}{remedy}")

    def _nearest(self, flag: str) -> str:
        return did_you_mean(flag, [known for known in self._option_string_actions if known.startswith("--")])


def written_place(name: str) -> str:
    """Return the name of a file or directory to write, for an option that is never standard output."""
    if name == "-":
        raise argparse.ArgumentTypeError("it cannot be written to standard output; name a place, ./- for one called so")
    return name


def run_command(command: Callable[[], None], flags: Mapping[str, str] | None = None, *, quiet: bool = False) -> int:
    """Run `command` and return its exit status.

    0 is done, 1 an error that is named in one line, 2 such an error about the options themselves, 130 Ctrl-C. `flags`,
    from `flags_of`, are what the user knows options by: errors that call them by their names in Python are put so. With
    `quiet` no progress is shown.

    A closed pipe on standard output is silent: the reader has what it wanted. Characters that the terminal's encoding
    lacks are shown as "?".
    """
    interrupt_as_usual()
    _prepare_streams()
    signals = _raise_on_termination()
    try:
        with hidden(quiet):
            command()
        sys.stdout.flush()
    except HeliumError as error:
        close_bars()
        print(f"error: {one_line(in_flags(error, flags or {}), _LONGEST)}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    except KeyboardInterrupt:
        close_bars()
        print(file=sys.stderr)
        return 130
    except _TerminatedError:
        return 143
    except BrokenPipeError:
        # Python flushes standard output again at exit; give it somewhere to go.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        place = _place(error)
        close_bars()
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
    """Return the first long flag of each of a parser's options by its name in Python."""
    return {
        action.dest: next(flag for flag in action.option_strings if flag.startswith("--"))
        for action in parser._actions
        if action.option_strings
    }


def in_flags(error: HeliumError, flags: Mapping[str, str]) -> str:
    """Return the message of an error with flags in the place of options' names in Python.

    So is the name of any option with which the message of a UsageError begins.
    """
    message = str(error)
    first, space, rest = message.partition(" ")
    if isinstance(error, UsageError) and first in flags:
        message = f"{flags[first]}{space}{rest}"
    return with_flags(message, flags)


def with_flags(message: str, flags: Mapping[str, str]) -> str:
    """Return a message with flags in the place of options' names in Python.

    `overwrite=True` is --overwrite, `verify=False` is --no-verify, and `dtype=...` is --dtype. Names that are words of
    English too, such as `stop`, are put so in these forms only.
    """
    if not flags:
        return message
    names = [rf"(?:{'|'.join(flags)})=(?:True|False|\.\.\.)", *(name for name in flags if "_" in name)]
    # Not within a path or a longer name, nor in quotes, which are of what a file holds.
    named = re.compile(rf"(?<![\w./'\"-])(?:{'|'.join(names)})(?![\w./'\"-])")
    return named.sub(lambda found: flags[found[0].partition("=")[0]], message)


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
