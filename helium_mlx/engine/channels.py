"""Between an engine's worker and everybody else: calls to it (Inbox), and the chunks of a request back (Channel).

A call is a function that the worker runs between two steps. Only plain Python values go back. A channel is bounded:
where it is full the request is preempted, and resumed when the reader has read half of it.
"""

import asyncio
import math
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import TypeVar, cast

from helium_mlx.errors import EngineError
from helium_mlx.generation.completion import GenerationChunk

T = TypeVar("T")

# A waiting reader looks this often, in seconds, whether anything may come: it is told, unless the worker was torn down.
_LOOK = 1.0


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


class Channel:
    """Chunks of one request on their way from the worker to the reader, at most `bound` of them, and how it ended.

    `silence` says why nothing comes any more without the worker having said so, or None.
    """

    def __init__(self, bound: int, *, wake: Callable[[], None], silence: Callable[[], str | None]) -> None:
        self.bound = bound
        # Set by the reader's side, also where garbage is collected: so without a lock.
        self.cancelled = False
        self._wake = wake
        self._silence = silence
        self._condition = threading.Condition()
        self._chunks: deque[GenerationChunk] = deque()
        self._ended = False
        self._error: BaseException | None = None
        self._was_full = False
        self._tasks: list[tuple[asyncio.AbstractEventLoop, asyncio.Future[None]]] = []

    # --- the worker's end

    @property
    def is_full(self) -> bool:
        """Whether a chunk in flight is the last that there is room for."""
        with self._condition:
            if len(self._chunks) >= self.bound - 1:
                self._was_full = True
            return self._was_full

    @property
    def is_ended(self) -> bool:
        """Whether nothing more comes."""
        return self._ended

    @property
    def state(self) -> str:
        """Whether more comes, in a word. Takes no lock."""
        if self._error is not None:
            return "failed"
        return "cancelled" if self.cancelled else "ended" if self._ended else "open"

    @property
    def unread(self) -> int:
        """How many chunks wait for the reader. Takes no lock."""
        return len(self._chunks)

    def put(self, chunk: GenerationChunk) -> None:
        """Hand a chunk over; one with a `finish_reason` is the last."""
        with self._condition:
            if not self._ended:
                self._chunks.append(chunk)
                self._ended = chunk.finish_reason is not None
            self._notify()

    def fail(self, error: BaseException) -> None:
        """End the request with an error, which the reader gets after the chunks that are there."""
        with self._condition:
            if not self._ended:
                self._ended, self._error = True, error
            self._notify()

    def _notify(self) -> None:
        self._condition.notify_all()
        tasks, self._tasks = self._tasks, []
        for loop, future in tasks:
            # A loop that was closed has nobody waiting.
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(_wake_task, future)

    # --- the reader's end

    def cancel(self) -> None:
        """Let the worker drop the request before its next step."""
        self.cancelled = True
        self._wake()

    def discard(self) -> None:
        """Let go of the chunks that nobody will read."""
        with self._condition:
            self._chunks.clear()

    def get(self, seconds: float = math.inf) -> GenerationChunk | None:
        """Wait for the next chunk; None if there is none any more. Raises what the request ended with.

        Raises TimeoutError where nothing comes in so many seconds.
        """
        end = time.monotonic() + seconds
        with self._condition:
            while not self._is_ready:
                self._condition.wait(_until(end))
                self._end_if_silent()
            return self._take()

    async def get_async(self, seconds: float = math.inf) -> GenerationChunk | None:
        """Do what `get` does, and let the event loop run meanwhile."""
        end = time.monotonic() + seconds
        while True:
            with self._condition:
                if self._is_ready:
                    return self._take()
                wait = _until(end)
                loop = asyncio.get_running_loop()
                future: asyncio.Future[None] = loop.create_future()
                self._tasks.append((loop, future))
            await asyncio.wait([future], timeout=wait)
            with self._condition:
                self._tasks = [task for task in self._tasks if task[1] is not future]
                self._end_if_silent()

    @property
    def _is_ready(self) -> bool:
        return bool(self._chunks) or self._ended

    def _take(self) -> GenerationChunk | None:
        if not self._chunks:
            if self._error is not None:
                raise self._error
            return None
        chunk = self._chunks.popleft()
        if self._was_full and len(self._chunks) <= self.bound // 2:
            self._was_full = False
            self._wake()
        return chunk

    def _end_if_silent(self) -> None:
        if not self._is_ready and (said := self._silence()):
            self._ended, self._error = True, EngineError(said)


def _until(end: float) -> float:
    """Return how long to wait before the next look, up to a time. Raises TimeoutError once it has come."""
    left = end - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return min(left, _LOOK)


def _wake_task(future: "asyncio.Future[None]") -> None:
    if not future.done():
        future.set_result(None)
