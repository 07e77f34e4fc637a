"""Whether the interpreter is ending. Python then waits for all threads but daemons, and only after that tells `atexit`.

Who waits in such a thread for what will never come has to notice by itself.
"""

# Registers what ends the threads of executors. Of such functions the last registered is called first.
import concurrent.futures.thread  # noqa: F401
import threading
from contextlib import suppress

_ending = threading.Event()


def is_ending() -> bool:
    """Return whether the main thread is through, and the interpreter waits for the others."""
    return _ending.is_set() or not threading.main_thread().is_alive()


# How executors learn of it, where Python has it; else their threads are waited for while the main one counts as alive.
_register = getattr(threading, "_register_atexit", None)
if _register is not None:
    # Imported when the end has come already.
    with suppress(RuntimeError):
        _register(_ending.set)
