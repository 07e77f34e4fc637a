"""What the reader of a request to an engine holds: the chunks, as its worker puts them into the channel.

A reader may be a thread or an asyncio task, and several may share a stream; each chunk goes to one of them.
"""

from collections.abc import AsyncIterator, Callable, Generator, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType

from helium_mlx.engine.channels import Channel
from helium_mlx.errors import GenerationError
from helium_mlx.generation.completion import FinishReason, GenerationChunk
from helium_mlx.generation.request import CompletionRequest
from helium_mlx.option_values import path_of, require_switch
from helium_mlx.table import short_repr
from helium_mlx.tokenizer.tokenizer import HeliumTokenizer


@dataclass(frozen=True)
class EngineCompletion:
    """A request that has ended. `text` and `tokens`, an eos included, are this stream's.

    `generated_tokens` counts those too that came before the request was saved, if it was. `stop_string` is the one that
    ended the text, None where none did; `leading_space` and `cached_tokens` are a chunk's.
    """

    text: str
    tokens: list[int]
    finish_reason: FinishReason
    prompt_tokens: int
    generated_tokens: int
    stop_string: str | None = None
    leading_space: bool = False
    cached_tokens: int = 0


# Tokens of the prompt that a stream is shown by.
_BEGINNING = 40

# Writes a request with that number to a file, with its cache or without.
Save = Callable[[int, CompletionRequest, Path, bool], None]


class EngineStream(Iterator[GenerationChunk], AsyncIterator[GenerationChunk]):
    """The completion of one request as it appears: iterate over it, with `for` or `async for`, or ask for `result`.

    Whoever lets go of it (a `break` out of the loop, an exception, the end of a function) cancels the request, and so
    do `cancel`, `close` and the end of a `with`. Its last chunk then has the `finish_reason` "cancelled" and the token
    -1.
    """

    __slots__ = ("__weakref__", "_channel", "_number", "_read", "_request", "_save", "_tokenizer")

    def __init__(
        self, channel: Channel, save: Save, number: int, request: CompletionRequest, tokenizer: HeliumTokenizer
    ) -> None:
        self._channel = channel
        # The engine's own method: an engine lives as long as one of its streams does.
        self._save = save
        self._number = number
        self._request = request
        self._tokenizer = tokenizer
        self._read: list[GenerationChunk] = []

    def __repr__(self) -> str:
        """Say how it stands, at once: what is read meanwhile may be missing."""
        reason = self._read[-1].finish_reason if self._read else None
        return short_repr(
            self,
            prompt=self._tokenizer.decode(self._request.prompt[:_BEGINNING]),
            state=reason or self._channel.state,
            tokens=len(self.tokens),
            unread=self._channel.unread,
        )

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

    def next_within(self, seconds: float) -> GenerationChunk | None:
        """Wait for the next chunk, so long at most; None if there is none any more. Raises TimeoutError."""
        chunk = self._channel.get(seconds)
        return None if chunk is None else self._noted(chunk)

    async def next_within_async(self, seconds: float) -> GenerationChunk | None:
        """Do what `next_within` does, and let the event loop run meanwhile."""
        chunk = await self._channel.get_async(seconds)
        return None if chunk is None else self._noted(chunk)

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
        """Write a file with which `HeliumEngine.continue_stream` resumes after the last chunk that was read.

        With the cache it resumes at once, and with the same bits; without, the file has a few kilobytes, and what was
        read is computed again first. The request itself continues. The worker writes it, between two steps.

        Raises GenerationError for a request that has ended, or that has an option that batches lack, and
        CheckpointError where the file cannot be written.
        """
        file, with_cache = path_of(path), require_switch("with_cache", with_cache)
        if self._request.options.unbatched:
            raise GenerationError(
                "a request with max_kv_size, kv_bits or prompt_lookup cannot be saved; leave them out"
            )
        if self._request.options.logits_processors:
            raise GenerationError("a request with logits_processors cannot be saved, being functions; leave them out")
        tokens, reason = self.tokens, self._read[-1].finish_reason if self._read else None
        if reason not in (None, "cancelled"):
            raise GenerationError(f"the request has ended ({reason}); there is nothing to resume")
        request = replace(self._request, generated=(*self._request.generated, *tokens))
        self._save(self._number, request, file, with_cache)

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
            stop_string=self._read[-1].stop_string if self._read else None,
            leading_space=bool(self._read) and self._read[-1].leading_space,
            cached_tokens=self._read[-1].cached_tokens if self._read else 0,
        )
