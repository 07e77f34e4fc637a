"""The process that MLX runs in: whether it was forked, and how much memory it has taken.

After a fork MLX's threads are gone, and its first use in the child would wait forever. The package imports this file
first, so it imports next to nothing itself.
"""

import os
import sys
from contextlib import suppress
from itertools import pairwise

_used_before = False
_forked_after_use = False

AFTER_A_FORK = "MLX cannot be used after a fork: start the process with spawn"


def is_command() -> bool:
    """Return whether Python was started for one of this package's commands, as a module or by the script."""
    words = getattr(sys, "orig_argv", [])
    is_module = any(flag == "-m" and name.partition(".")[0] == "helium_mlx" for flag, name in pairwise(words))
    return is_module or any(os.path.basename(word) == "helium-mlx" for word in words[:2])


def end_quietly_on_interrupt() -> None:
    """Have Ctrl-C end the process at once, without a traceback, until a command begins that has something to undo."""
    # Imported here: only commands need it.
    import signal

    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        with suppress(ValueError):  # not the main thread
            signal.signal(signal.SIGINT, _end)


def interrupt_as_usual() -> None:
    """Have Ctrl-C raise KeyboardInterrupt again, if `end_quietly_on_interrupt` was called."""
    import signal

    if signal.getsignal(signal.SIGINT) is _end:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _end(number: int, frame: object) -> None:
    with suppress(OSError):
        os.write(2, b"\n")
    os._exit(130)


def watch_forks() -> None:
    """Have Python say when the process is forked. To be called once."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(before=_note_use, after_in_child=_note_fork)


def is_forked_after_use() -> bool:
    """Return whether MLX had computed something before the process was forked, so that it cannot here."""
    return _forked_after_use


def _note_use() -> None:
    global _used_before
    mlx = sys.modules.get("mlx.core")
    # What was computed took memory.
    _used_before = mlx is not None and max(mlx.get_peak_memory(), mlx.get_active_memory(), mlx.get_cache_memory()) > 0


def _note_fork() -> None:
    global _forked_after_use
    _forked_after_use = _forked_after_use or _used_before


def require_not_forked(remedy: str) -> None:
    """Raise HeliumError in a fork of a process that had used MLX: its first use of MLX here would wait forever.

    `remedy` says what to do in a process that was started with spawn.
    """
    if _forked_after_use:
        from helium_mlx.errors import HeliumError

        raise HeliumError(f"this process is a fork of one that had used MLX; {AFTER_A_FORK}, and {remedy}")


def peak_resident_memory() -> int:
    """Return the most memory, in bytes, that this process has had in RAM since it began."""
    import resource

    return resident_bytes(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


def resident_bytes(max_rss: int) -> int:
    """Return the bytes that a `ru_maxrss` says: it counts bytes on macOS, kibibytes elsewhere."""
    return max_rss if sys.platform == "darwin" else max_rss * 1024
