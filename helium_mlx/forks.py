"""Whether this process is a fork of one that had used MLX.

A fork has one thread: those that MLX computes with are gone, and it waits for them forever. So two functions are
registered that Python calls at each `os.fork`; processes that are started with spawn, or by `subprocess`, call none.
"""

import os
import sys

_used_before = False
_forked_after_use = False


def watch() -> None:
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
