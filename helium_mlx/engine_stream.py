"""The two ends of a request to an engine: the channel that its worker fills, and the stream that a reader holds.

Only plain Python values go through. The channel is bounded: where it is full the worker sets the request aside, and
takes it up again when the reader has read half of it. A reader may be a thread or an asyncio task, and several may
share a stream; each chunk goes to one of them.
"""

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from helium_mlx.engine_request import EngineRequest
from helium_mlx.errors import EngineError, GenerationError
from helium_mlx.generation import FinishReason, GenerationChunk
from helium_mlx.option_values import require_switch
from helium_mlx.prompt_cache import path_of

if TYPE_CHECKING:
    from helium_mlx.engine import HeliumEngine

# A waiting reader looks this often, in seconds, whether anything may come: it is told, unless the worker was torn down.
_LOOK = 1.0


@dataclass(frozen=True)
class EngineCompletion:
    """A request that has ended. `text` and `tokens`, an eos included, are this stream's.

    `generated_tokens` counts those too that came before the request was saved, if it was.
    """

    text: str
    tokens: list[int]
    finish_reason: FinishReason
    prompt_tokens: int
    generated_tokens: int


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

    def put(self, chunk: GenerationChunk) -> None:
        """Hand a chunk over; one with a `finish_reason` is the last."""
        with self._condition:
            if not self._ended:
                self._chunks.append(chunk)
                self._ended = chunk.finish_reason is not None
            self._notify()

    def fail(self, error: BaseException) -> None:
        """End the request with an error, which the reader gets behind the chunks that are there."""
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

    def get(self) -> GenerationChunk | None:
        """Wait for the next chunk; None if there is none any more. Raises what the request ended with."""
        with self._condition:
            while not self._is_ready:
                self._condition.wait(_LOOK)
                self._end_if_silent()
            return self._take()

    async def get_async(self) -> GenerationChunk | None:
        """Do what `get` does, and let the event loop run meanwhile."""
        while True:
            with self._condition:
                if self._is_ready:
                    return self._take()
                loop = asyncio.get_running_loop()
                future: asyncio.Future[None] = loop.create_future()
                self._tasks.append((loop, future))
            await asyncio.wait([future], timeout=_LOOK)
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


def _wake_task(future: "asyncio.Future[None]") -> None:
    if not future.done():
        future.set_result(None)


class EngineStream(Iterator[GenerationChunk], AsyncIterator[GenerationChunk]):
    """The completion of one request as it appears: iterate over it, with `for` or `async for`, or ask for `result`.

    Whoever lets go of it (a `break` out of the loop, an exception, the end of a function) cancels the request, and so
    do `cancel`, `close` and the end of a `with`. Its last chunk then has the `finish_reason` "cancelled" and the token
    -1.
    """

    def __init__(self, channel: Channel, engine: "HeliumEngine", number: int, request: EngineRequest) -> None:
        self._channel = channel
        # An engine lives as long as one of its streams does.
        self._engine = engine
        self._number = number
        self._request = request
        self._read: list[GenerationChunk] = []

    def __iter__(self) -> "EngineStream":
        return self

    def __next__(self) -> GenerationChunk:
        chunk = self._channel.get()
        if chunk is None:
            raise StopIteration
        return self._noted(chunk)

    def __aiter__(self) -> "EngineStream":
        return self

    async def __anext__(self) -> GenerationChunk:
        chunk = await self._channel.get_async()
        if chunk is None:
            raise StopAsyncIteration
        return self._noted(chunk)

    def result(self) -> EngineCompletion:
        """Wait for the end and return the whole, chunks that were read before included.

        Raises the error that the request ended with, if it did.
        """
        for _ in self:
            pass
        return self._completion()

    def __await__(self) -> Generator[object, None, EngineCompletion]:
        """`await stream` is `result` for tasks."""
        return self._result().__await__()

    async def _result(self) -> EngineCompletion:
        async for _ in self:
            pass
        return self._completion()

    @property
    def tokens(self) -> list[int]:
        """The tokens of the chunks that were read."""
        return [chunk.token for chunk in self._read if chunk.token >= 0]

    def cancel(self) -> None:
        """Stop within one step, in the prompt too; from any thread. What was computed can still be read."""
        self._channel.cancel()

    def close(self) -> None:
        """Cancel, and let go of what was not read."""
        self._channel.cancel()
        self._channel.discard()

    def save(self, path: str | Path, *, with_cache: bool = True) -> None:
        """Write a file with which `HeliumEngine.continue_stream` goes on behind the last chunk that was read.

        With the cache it goes on at once, and with the same bits; without, the file has a few kilobytes, and what was
        read is computed again first. The request itself goes on. The worker writes it, between two steps.

        Raises GenerationError for a request that has ended, or that has `max_kv_size`, `kv_bits` or `prompt_lookup`,
        and CheckpointError where the file cannot be written.
        """
        file, with_cache = path_of(path), require_switch("with_cache", with_cache)
        if self._request.own_cache.is_wanted:
            raise GenerationError(
                "a request with max_kv_size, kv_bits or prompt_lookup cannot be saved; leave them out"
            )
        tokens, reason = self.tokens, self._read[-1].finish_reason if self._read else None
        if reason not in (None, "cancelled"):
            raise GenerationError(f"the request has ended ({reason}); there is nothing to go on with")
        request = replace(self._request, generated=(*self._request.generated, *tokens))
        self._engine._save(self._number, request, file, with_cache)

    def __enter__(self) -> "EngineStream":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def __aenter__(self) -> "EngineStream":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        # Any thread may collect it, at any point, the worker too: `cancel` takes no lock.
        if not self._channel.is_ended:
            self._channel.cancel()

    def _noted(self, chunk: GenerationChunk) -> GenerationChunk:
        self._read.append(chunk)
        return chunk

    def _completion(self) -> EngineCompletion:
        reason = self._read[-1].finish_reason if self._read else None
        return EngineCompletion(
            text="".join(chunk.text for chunk in self._read),
            tokens=self.tokens,
            # A stream that was closed lets go of its last chunk.
            finish_reason=reason or "cancelled",
            prompt_tokens=len(self._request.prompt),
            generated_tokens=len(self._request.generated) + len(self.tokens),
        )
