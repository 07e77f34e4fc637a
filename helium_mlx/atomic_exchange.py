"""Swaps two directories in one step, where the system can: whoever looks, or is killed, meets one or the other."""

import ctypes
import os
import sys
from pathlib import Path

# <fcntl.h> and <linux/fs.h>; <sys/stdio.h> on macOS.
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_RENAME_SWAP = 2


def exchange(first: Path, second: Path) -> bool:
    """Swap what two names of one file system stand for; return False, with nothing done, where that is impossible."""
    names = os.fsencode(first), os.fsencode(second)
    libc = ctypes.CDLL(None)
    if sys.platform == "darwin" and hasattr(libc, "renamex_np"):
        return libc.renamex_np(*names, _RENAME_SWAP) == 0
    if sys.platform == "linux" and hasattr(libc, "renameat2"):
        return libc.renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) == 0
    return False
