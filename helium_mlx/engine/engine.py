"""`HeliumEngine`: a model as a well-behaved part of a program, safe from any thread and from asyncio.

    with HeliumEngine("demo") as engine:
        for chunk in engine.stream("Once upon a time", max_tokens=64):
            print(chunk.text, end="", flush=True)

An engine owns one thread, in which the model is loaded and everything of MLX happens (`worker.py`); callers give and
get plain Python values. Requests that come while others run decode together with them, in one pass a token, as rows of
a batch that join and leave (`scheduler.py`). Those with `max_kv_size`, `kv_bits` or `prompt_lookup` have a cache of
their own and take a token in turn with the batch. Either way the text is what `stream_generate` gives with the same
options, but for the rounding of sums.

Keys and values of the texts that were run last are kept (`prefix_tree.py`), and a request that begins like one of them
computes only what is new. So does one whose beginning another is computing: it waits for that. Not those with a
cache of their own, nor scores, which need every token's logits.

Not here: more than one model.
"""

import asyncio
import itertools
import threading
import time
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import Future, wait
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, TypeVar

import mlx.core as mx

from helium_mlx.checkpoint.config import HeliumConfig
from helium_mlx.engine.channels import Channel
from helium_mlx.engine.stream import EngineCompletion, EngineStream
from helium_mlx.engine.suggestions import NewestSuggestions, SuggestionOptions, Suggestions, SuggestionStream
from helium_mlx.engine.tasks import ScoreRun
from helium_mlx.engine.worker import EngineWorker
from helium_mlx.errors import EngineError
from helium_mlx.generation.prompts import Prompt
from helium_mlx.generation.request import CompletionOptions, CompletionRequest, checked_request
from helium_mlx.generation.scoring import Score, checked_text
from helium_mlx.kv_cache.cache import KVCache
from helium_mlx.option_values import path_of, require_call, require_switch, require_whole, with_known_keywords
from helium_mlx.table import short_repr
from helium_mlx.tokenizer.tokenizer import HeliumTokenizer

if TYPE_CHECKING:
    from helium_mlx.model.processors import Processor

__all__ = ["EngineCompletion", "EngineStream", "HeliumEngine"]
T = TypeVar("T")
ScoredText = str | Sequence[int] | mx.array

# More than any machine has, and numbers that MLX's sizes can hold.
_MOST = 2**30
_MOST_BYTES = 2**50

# How often, in seconds, who waits looks whether an answer may come, and whether it is wanted.
_LOOK = 1.0
_CANCEL_LOOK = 0.02


class HeliumEngine:
    """A model on a thread of its own. Every method may be called from any thread.

    `path_or_repo`, `revision`, `subfolder` and `dtype` are `load`'s. At most `batch_size` requests run at a time; the
    others wait in the order in which they came. `buffer` chunks are computed ahead of a reader, who then holds up its
    own request only. `memory_limit` caps the bytes of weights plus caches: a request that could never fit is refused at
    the call with the figures, one that does not fit beside the others waits for them. MLX keeps at most `cache_limit`
    bytes of free buffers beside that while an engine is open; on Metal, memory is wired meanwhile. `prefix_cache_bytes`
    at most are kept of texts that were run, for requests that begin alike, and less where `memory_limit` leaves less
    beside those that run: 0 for none, by default a quarter of what there is beside the weights, at most 1 GiB.

    Making one loads the model and waits for it (from asyncio: `await asyncio.to_thread(HeliumEngine, path)`). Raises
    what `load` raises, GenerationError for sizes out of range, EngineMemoryError for weights over `memory_limit`,
    before they are read, and EngineError in a fork of a process that had used MLX.
    """

    @with_known_keywords
    def __init__(
        self,
        path_or_repo: str | Path,
        *,
        revision: str | None = None,
        subfolder: str | None = None,
        dtype: str | mx.Dtype | None = None,
        batch_size: int = 16,
        prefill_step_size: int = 512,
        buffer: int = 64,
        memory_limit: int | None = None,
        cache_limit: int = 2**28,
        prefix_cache_bytes: int | None = None,
    ) -> None:
        batch_size = require_whole("batch_size", batch_size, 1, _MOST)
        prefill_step_size = require_whole("prefill_step_size", prefill_step_size, 1, _MOST)
        self._buffer = require_whole("buffer", buffer, 2, _MOST)
        if memory_limit is not None:
            memory_limit = require_whole("memory_limit", memory_limit, 1, _MOST_BYTES)
        cache_limit = require_whole("cache_limit", cache_limit, 0, _MOST_BYTES)
        if prefix_cache_bytes is not None:
            prefix_cache_bytes = require_whole("prefix_cache_bytes", prefix_cache_bytes, 0, _MOST_BYTES)
        self._numbers = itertools.count()
        self._clock = time.monotonic
        self._newest = NewestSuggestions()
        self._worker = EngineWorker(
            path_or_repo,
            revision=revision,
            subfolder=subfolder,
            dtype=dtype,
            batch_size=batch_size,
            prefill_step_size=prefill_step_size,
            memory_limit=memory_limit,
            cache_limit=cache_limit,
            prefix_cache_bytes=prefix_cache_bytes,
        )
        self._worker.start()

    def __setattr__(self, name: str, value: object) -> None:
        """Refuse every name: what an engine does is settled where it is made."""
        if not name.startswith("_"):
            raise EngineError(
                f"an engine's {name} cannot be set, since it would change nothing; close it, and make another "
                "HeliumEngine with the arguments that you want"
            )
        super().__setattr__(name, value)

    def __repr__(self) -> str:
        """Say how it stands, at once: the worker goes on meanwhile, so that a request may be missing."""
        # Sizes out of range leave it without a worker.
        worker = vars(self).get("_worker")
        return short_repr(self, **({"state": "closed"} if worker is None else worker.described()))

    @with_known_keywords
    def stream(
        self,
        prompt: Prompt,
        *,
        max_tokens: int = 256,
        temperature: float = 0.0,
        top_p: float = 1.0,
        top_k: int = 0,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        repetition_context_size: int | None = None,
        presence_penalty: float = 0.0,
        frequency_penalty: float = 0.0,
        seed: int | None = None,
        logit_bias: Mapping[int, float] | None = None,
        banned_ids: Collection[int] = (),
        logits_processors: "Sequence[Processor]" = (),
        stop: str | Sequence[str] = (),
        ignore_eos: bool = False,
        extra_eos: int | str | Sequence[int | str] = (),
        logprobs: int = 0,
        max_kv_size: int | None = None,
        kv_bits: int | None = None,
        kv_group_size: int = 64,
        prompt_lookup: int = 0,
        heal: bool = False,
    ) -> EngineStream:
        """Queue a request and return its stream at once; options are those of `stream_generate`.

        Raises at the call what `stream_generate` raises, EngineMemoryError for a request that `memory_limit` has no
        room for, and EngineError if the engine is closed, dead, or of another process.
        """
        worker = self._worker
        worker.require_usable()
        options = CompletionOptions(
            temperature, top_p, top_k, min_p, repetition_penalty, repetition_context_size, seed, logit_bias, banned_ids,
            presence_penalty, frequency_penalty,
            logits_processors=logits_processors,
            max_tokens=max_tokens, stop=stop, ignore_eos=ignore_eos, extra_eos=extra_eos, logprobs=logprobs,
            max_kv_size=max_kv_size, kv_bits=kv_bits, kv_group_size=kv_group_size, prompt_lookup=prompt_lookup,
            heal=heal,
        )  # fmt: skip
        # Empty, it is a plain value too.
        cache = options.make_cache(worker.model) if options.unbatched else None
        request = checked_request(worker.model, worker.tokenizer, prompt, options.seeded(), cache)
        return self._begin(request, cache)

    def complete(self, prompt: Prompt, **options: object) -> str:
        """Return the completion of `prompt`, as `generate` does; options are those of `stream`.

        `stream(...).result()` also says why it ended.
        """
        return self._stream(prompt, options).result().text

    async def complete_async(self, prompt: Prompt, **options: object) -> str:
        """Do what `complete` does, for asyncio; cancelling the task cancels the request."""
        async with self._stream(prompt, options) as stream:
            return (await stream).text

    @with_known_keywords
    def suggest(
        self,
        text: str,
        *,
        max_words: int = 8,
        time_budget_ms: float = 300,
        n: int = 1,
        threshold: float = 0.5,
        handle: str | None = None,
    ) -> SuggestionStream:
        """Return at once a stream of what could be typed next, word by word: up to `n` suggestions.

        Each has at most `max_words` whole words, of one line, and no more than leave its probability a token at
        `threshold` or above. The stream ends `time_budget_ms` after this call, with what there is, and within a step
        once there is a newer one of the same `handle`. See `engine/suggestions.py`. Raises what `stream` raises.
        """
        options = SuggestionOptions(max_words, time_budget_ms, n, threshold, handle)
        deadline = self._clock() + options.time_budget_ms / 1000
        worker = self._worker
        worker.require_usable()
        asked = options.completion(worker.model.config.vocab_size)
        request = checked_request(worker.model, worker.tokenizer, text, asked)
        return self._newest.begin(
            options.handle,
            lambda: SuggestionStream(
                self._begin, request, worker.tokenizer, options, clock=self._clock, deadline=deadline
            ),
        )

    async def suggest_async(self, text: str, **options: object) -> Suggestions:
        """Return the suggestions that there are in the time, for asyncio; options are those of `suggest`.

        Cancelling the task cancels the request.
        """
        async with self._suggest(text, options) as stream:
            return await stream

    @with_known_keywords
    def score(self, text: ScoredText, *, top_logprobs: int = 0, cancel: threading.Event | None = None) -> Score:
        """Return what `helium_mlx.score` returns, computed in steps between those of other requests.

        Setting `cancel`, or Ctrl-C, ends it before its next step. Raises what `helium_mlx.score` and `stream` raise,
        and EngineError once `cancel` is set.
        """
        require_call("cancel", cancel, "is_set")
        future = self._queue_score(text, top_logprobs)
        try:
            while not wait([future], timeout=_LOOK if cancel is None else _CANCEL_LOOK).done:
                self._require_told()
                if cancel is not None and cancel.is_set():
                    raise EngineError("the score was cancelled")
            return future.result()
        finally:
            self._let_go(future)

    async def score_async(self, text: ScoredText, *, top_logprobs: int = 0) -> Score:
        """Do what `score` does, for asyncio; cancelling the task cancels the request."""
        future = self._queue_score(text, top_logprobs)
        scored = asyncio.wrap_future(future)
        try:
            while not (await asyncio.wait([scored], timeout=_LOOK))[0]:
                self._require_told()
            return scored.result()
        finally:
            self._let_go(future)

    def continue_stream(self, path: str | Path) -> EngineStream:
        """Resume what `EngineStream.save` has written, after the last chunk that had been read.

        Raises CheckpointError for a file that is damaged, or of another model, tokenizer or dtype, and what `stream`
        raises.
        """
        worker, file = self._worker, path_of(path)
        number, channel = self._new_channel()

        def load() -> CompletionRequest:
            request, held = worker.load(file)
            worker.scheduler.add(number, request, channel, held=held)
            return request

        with ExitStack() as if_interrupted:
            if_interrupted.callback(channel.cancel)
            request = self._answer(worker.call(load))
            if_interrupted.pop_all()
        return EngineStream(channel, self._save, number, request, worker.tokenizer)

    def pause(self, *, keep_caches: bool = False) -> None:
        """Stop computing within a step, and free the weights, the caches, and MLX's buffers: for an app in background.

        Requests stay, new ones are queued, and all of them continue after `resume`: caches are computed again from the
        tokens, unless they are kept. Those of unbatched requests always are, since a cache that forgets cannot be made
        again. Readers wait meanwhile; cancelling works. Once the main thread has ended, they get an
        EngineError, since the interpreter would wait for them.
        """
        worker, keep_caches = self._worker, require_switch("keep_caches", keep_caches)
        self._answer(worker.call(lambda: worker.pause(keep_caches=keep_caches)))

    def resume(self) -> None:
        """Load the weights and continue. Raises CheckpointError, and stays paused, if they are gone or changed."""
        self._answer(self._worker.call(self._worker.resume))

    @property
    def tokenizer(self) -> HeliumTokenizer:
        """The model's tokenizer, which any thread may use."""
        return self._worker.tokenizer

    @property
    def config(self) -> HeliumConfig:
        """The model's config."""
        return self._worker.model.config

    @property
    def is_open(self) -> bool:
        """Whether requests are taken: not after `close`, nor once the worker has died."""
        return self._worker.is_alive

    @property
    def is_paused(self) -> bool:
        """Whether `pause` was called, and not `resume` after it."""
        return self._worker.is_paused

    def close(self) -> None:
        """Cancel what runs, free the model, and end the thread. Calling it twice does nothing."""
        self._worker.close()

    def __enter__(self) -> "HeliumEngine":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        # Sizes out of range leave it without a worker.
        if "_worker" in vars(self):
            self._worker.stop()

    def _stream(self, prompt: Prompt, options: Mapping[str, object]) -> EngineStream:
        return self.stream(prompt, **options)  # pyright: ignore[reportArgumentType]

    def _suggest(self, text: str, options: Mapping[str, object]) -> SuggestionStream:
        return self.suggest(text, **options)  # pyright: ignore[reportArgumentType]

    def _begin(self, request: CompletionRequest, cache: list[KVCache] | None = None) -> EngineStream:
        """Queue a request; it brings an empty cache if it is to have one of its own."""
        worker = self._worker
        worker.scheduler.require_room(request)
        number, channel = self._new_channel()
        worker.call(lambda: worker.scheduler.add(number, request, channel, cache=cache), queues=True)
        return EngineStream(channel, self._save, number, request, worker.tokenizer)

    def _new_channel(self) -> tuple[int, Channel]:
        worker = self._worker
        return next(self._numbers), Channel(self._buffer, wake=worker.wake, silence=worker.silence)

    def _queue_score(self, text: ScoredText, top_logprobs: int) -> "Future[Score]":
        worker = self._worker
        worker.require_usable()
        scheduler = worker.scheduler
        tokens, top_logprobs = checked_text(worker.model, worker.tokenizer, text, top_logprobs)
        scheduler.budget.require(scheduler.budget.batch_bytes([len(tokens)]), len(tokens))
        run = ScoreRun(
            text if isinstance(text, str) else tokens,
            len(tokens),
            worker.model,
            worker.tokenizer,
            top_logprobs=top_logprobs,
            prefill_step_size=scheduler.prefill_step_size,
        )
        worker.call(lambda: scheduler.add_score(run), queues=True)
        return run.future

    def _require_told(self) -> None:
        if said := self._worker.silence():
            raise EngineError(said)

    def _let_go(self, future: "Future[Score]") -> None:
        """Let the worker drop a score that nobody waits for any more; one that is there stays."""
        if future.cancel():
            self._worker.wake()

    def _save(self, number: int, request: CompletionRequest, path: Path, with_cache: bool) -> None:
        worker = self._worker
        self._answer(worker.call(lambda: worker.save(number, request, path, with_cache=with_cache)))

    def _answer(self, answer: "Future[T]") -> T:
        """Wait for the worker, as long as it lives. Who is interrupted takes back what has not begun."""
        try:
            while not wait([answer], timeout=_LOOK).done:
                if not self._worker.is_alive and not answer.done():
                    self._worker.require_usable()
            return answer.result()
        finally:
            answer.cancel()
