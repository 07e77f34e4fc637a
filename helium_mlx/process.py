"""The process that MLX runs in: whether it was forked, whether it is ending, how much memory it has taken.

After a fork MLX's threads are gone, and its first use in the child would hang. At its end Python waits for all threads
but daemons, and calls `atexit` only after that: a thread that waits for what will never come has to notice by itself.

The package imports this file first, so it imports next to nothing itself.
"""

import os
import sys
from contextlib import suppress

_used_before = False
_forked_after_use = False
_ending = False


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


def watch_end() -> None:
    """Have Python say when the interpreter ends. To be called before anything waits for an engine."""
    # Of what was registered, the last is told first; executors, told, wait for their threads.
    import concurrent.futures.thread  # noqa: F401
    import threading

    # How executors learn of it, where Python has it; else their threads are waited for while the main one is alive.
    register = getattr(threading, "_register_atexit", None)
    if register is not None and not _ending:
        # Refused where the end has come already.
        with suppress(RuntimeError):
            register(_note_end)


def is_ending() -> bool:
    """Return whether the main thread is through, and the interpreter waits for the others."""
    import threading

    return _ending or not threading.main_thread().is_alive()


def _note_end() -> None:
    global _ending
    _ending = True


def peak_resident_memory() -> int:
    """Return the most memory, in bytes, that this process has had in RAM since it began."""
    import resource

    return resident_bytes(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


def resident_bytes(max_rss: int) -> int:
    """Return the bytes that a `ru_maxrss` says: it counts bytes on macOS, kibibytes elsewhere."""
    return max_rss if sys.platform == "darwin" else max_rss * 1024
