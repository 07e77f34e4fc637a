"""What callers want of an engine's worker, on its way there: functions that it calls between two steps."""

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import TypeVar, cast

from helium_mlx.errors import EngineError

T = TypeVar("T")


@dataclass(frozen=True)
class _Call:
    """A function, and where its answer goes; `queues` a request that must be ended."""

    function: Callable[[], object]
    answer: "Future[object]"
    queues: bool

    def run(self) -> None:
        """Do it, unless the caller has taken it back."""
        if not self.answer.set_running_or_notify_cancel():
            return
        try:
            self.answer.set_result(self.function())
        except Exception as error:
            self.answer.set_exception(error)
        except BaseException as error:
            # The worker ends of it; first the caller learns why.
            self.answer.set_exception(error)
            raise


class Inbox:
    """The calls that nobody has taken yet. `put` and `wake` are for any thread, the rest for the worker's."""

    def __init__(self) -> None:
        self._calls: SimpleQueue[_Call | None] = SimpleQueue()

    def put(self, function: Callable[[], T], *, queues: bool) -> "Future[T]":
        """Have a function called. One that queues a request is called by `refuse`, too."""
        answer: Future[object] = Future()
        self._calls.put(_Call(function, answer, queues))
        return cast("Future[T]", answer)

    def wake(self) -> None:
        """Let `take` return. Takes no lock, so that a finalizer may call it anywhere."""
        self._calls.put(None)

    def take(self, *, wait: bool, is_over: Callable[[], bool]) -> None:
        """Do what there is until `is_over`, and first `wait` for something if told to."""
        try:
            while not is_over():
                call = self._calls.get(block=wait)
                wait = False
                if call is not None:
                    call.run()
        except Empty:
            return

    def refuse(self, said: str) -> None:
        """Let those that are left fail, but for requests, which are queued to end like the others."""
        while not self._calls.empty():
            call = self._calls.get()
            if call is not None and call.queues:
                call.run()
            elif call is not None and call.answer.set_running_or_notify_cancel():
                call.answer.set_exception(EngineError(said))
