"""The end of the interpreter, for threads that it waits for and for daemon threads that are inside of MLX.

At its end Python waits for all threads but daemons, and calls `atexit` only after that: a thread that waits for what
will never come has to notice by itself (`is_ending`). Daemon threads are then stopped where they next need the
interpreter, and one that is inside of MLX takes the whole process down with it: its step is waited for (`guarded`).
"""

import atexit
import threading
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")

# How long the end waits for a step of a daemon thread, in seconds.
PATIENCE = 10.0

_ending = threading.Event()
_exiting = False
_steps_under_way = 0
_condition = threading.Condition()


def watch_end() -> None:
    """Have Python say when the interpreter ends. To be called before anything waits for an engine."""
    # Of what was registered, the last is told first; executors, told, wait for their threads.
    import concurrent.futures.thread  # noqa: F401

    # How executors learn of it, where Python has it; else their threads are waited for while the main one is alive.
    register = getattr(threading, "_register_atexit", None)
    if register is not None and not _ending.is_set():
        # Refused where the end has come already.
        with suppress(RuntimeError):
            register(_ending.set)


def is_ending() -> bool:
    """Return whether the main thread is through, and the interpreter waits for the others."""
    return _ending.is_set() or not threading.main_thread().is_alive()


def guarded(steps: Generator[T, None, R]) -> Generator[T, None, R]:
    """Return the generator, each step of which the end of the interpreter waits for; none begins after the end."""
    try:
        while True:
            with _waited_for():
                try:
                    value = next(steps)
                except StopIteration as done:
                    return done.value
            yield value
    finally:
        steps.close()


@contextmanager
def _waited_for() -> Iterator[None]:
    global _steps_under_way
    if not threading.current_thread().daemon:
        yield
        return
    with _condition:
        while _exiting:
            # Python stops this thread here, where it holds nothing.
            _condition.wait()
        _steps_under_way += 1
    try:
        yield
    finally:
        with _condition:
            _steps_under_way -= 1
            _condition.notify_all()


@atexit.register
def _await_steps() -> None:
    global _exiting
    with _condition:
        _exiting = True
        _condition.wait_for(lambda: _steps_under_way == 0, PATIENCE)
