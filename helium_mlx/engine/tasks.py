"""The requests of an engine on their way, as its scheduler holds them: rows of the batch, unbatched runs, scores.

An error that a request's own part raises (its sampler, its text) ends that request and nothing else.
"""

import time
import traceback
from collections.abc import Callable, Generator
from concurrent.futures import Future
from typing import TypeVar

import mlx.core as mx

from helium_mlx.engine.channels import Channel
from helium_mlx.errors import EngineError, HeliumError
from helium_mlx.generation.completion import DecodedToken, FinishReason, GenerationChunk
from helium_mlx.generation.decoding_batch import BatchRow
from helium_mlx.generation.request import CompletionRequest
from helium_mlx.generation.scoring import Score, score_steps
from helium_mlx.generation.streaming import CompletionRun
from helium_mlx.kv_cache.cache import KVCache
from helium_mlx.model.helium import HeliumForCausalLM
from helium_mlx.tokenizer.tokenizer import HeliumTokenizer

E = TypeVar("E", bound=BaseException)


def without_locals(error: E) -> E:
    """Return an error whose traceback has its lines still, and no longer holds the arrays of its frames."""
    traceback.clear_frames(error.__traceback__)
    return error


class EngineRow(BatchRow):
    """A request that decodes in the batch. It can be rebuilt from its tokens at any time.

    `failures` counts the steps that failed with it since the last that gave a token, `cached_tokens` the tokens of its
    prompt that were held already when it began.
    """

    def __init__(
        self,
        number: int,
        request: CompletionRequest,
        channel: Channel,
        model: HeliumForCausalLM,
        tokenizer: HeliumTokenizer,
    ) -> None:
        super().__init__(request, model, tokenizer)
        self.number = number
        self.channel = channel
        self.failures = 0
        self.cached_tokens = 0
        self._model = model
        self._tokenizer = tokenizer
        self._started = self._first_token = time.perf_counter()

    @property
    def is_cancelled(self) -> bool:
        """Whether the reader has gone or asked for an end."""
        return self.channel.cancelled

    @property
    def is_over(self) -> bool:
        """Whether nothing is to be done any more."""
        return self.channel.is_ended

    @property
    def prompt(self) -> list[int]:
        """What is to be run before the next token can be drawn."""
        return [*self.request.prompt, *self.tokens]

    def start(self, cached: int = 0) -> None:
        """Note that the prompt is about to be run, but for so many of its first tokens."""
        self._started = time.perf_counter()
        if len(self.tokens) == len(self.request.generated):
            self.cached_tokens = min(cached, len(self.request.prompt))

    def among(self, logits: mx.array) -> mx.array:
        """Return the logits of tokens that can come; where none can, the request fails, and any token will do."""
        try:
            return super().among(logits)
        except HeliumError as error:
            self.fail(error)
            return logits

    def draw(self, logits: mx.array) -> mx.array:
        """Start computing the next token, (1,); where the sampler fails, the request does, and any token will do."""
        try:
            return super().draw(logits)
        except Exception as error:
            self.fail(error)
            return mx.argmax(logits, axis=-1)

    def deliver(self, decoded: DecodedToken) -> None:
        """Hand a token over that was read, with its text."""
        if self.is_over:
            return
        self.failures = 0
        if len(self.tokens) == len(self.request.generated):
            self._first_token = time.perf_counter()
        try:
            text = self.add(decoded)
        except Exception as error:
            self.fail(error)
            return
        self.channel.put(self._chunk(decoded, text, self.reason))

    def rewind(self) -> None:
        """Forget the token that was begun and not read, so that the row can be built anew from its tokens."""
        self.begun = len(self.tokens)
        self.sampler = self.request.sampler(self._model, self._tokenizer, self.tokens)

    def fail(self, error: Exception) -> None:
        """End the request with an error."""
        self.reason = "cancelled"
        self.channel.fail(without_locals(error))

    def cancel(self) -> None:
        """End the request, with the text that was held back."""
        if self.is_over:
            return
        self.reason = "cancelled"
        try:
            text, _ = self.text_of.finish()
        except Exception as error:
            self.fail(error)
            return
        self.channel.put(self._chunk(DecodedToken(-1, None, {}), text, "cancelled"))

    def _chunk(self, decoded: DecodedToken, text: str, reason: FinishReason | None) -> GenerationChunk:
        new = len(self.tokens) - len(self.request.generated)
        prompt_seconds = max(self._first_token - self._started, 1e-9)
        seconds = max(time.perf_counter() - self._first_token, 1e-9)
        return GenerationChunk(
            text=text,
            token=decoded.token,
            logprob=decoded.logprob,
            top_logprobs=decoded.top_logprobs,
            from_draft=decoded.from_draft,
            finish_reason=reason,
            prompt_tokens=len(self.request.prompt),
            generated_tokens=len(self.tokens),
            prompt_tps=(len(self.request.prompt) - self.cached_tokens) / prompt_seconds if new else 0.0,
            generation_tps=(new - 1) / seconds if new else 0.0,
            peak_memory=mx.get_peak_memory() / 1e9,
            stop_string=self.text_of.stop_string,
            leading_space=self.text_of.leading_space,
            cached_tokens=self.cached_tokens,
        )


class UnbatchedRun:
    """A request with an option that batches lack: it has a cache of its own, and takes steps of its own."""

    def __init__(
        self,
        request: CompletionRequest,
        channel: Channel,
        cache: list[KVCache],
        model: HeliumForCausalLM,
        tokenizer: HeliumTokenizer,
        *,
        prefill_step_size: int,
    ) -> None:
        self.request = request
        self.channel = channel
        self._run = CompletionRun(model, tokenizer, request, cache, prefill_step_size=prefill_step_size)
        self._steps = self._run.steps()

    @property
    def is_cancelled(self) -> bool:
        """Whether the reader has gone or asked for an end."""
        return self.channel.cancelled

    @property
    def is_over(self) -> bool:
        """Whether nothing is to be done any more."""
        return self.channel.is_ended

    @property
    def is_in_prompt(self) -> bool:
        """Whether the next step is one of the prompt, the last of which gives the first token."""
        return not self.is_over and self._run.generated == 0

    def advance(self) -> None:
        """Run a step of the prompt, or one that gives a token."""
        try:
            step = next(self._steps)
        except Exception as error:
            self.fail(error)
            return
        if isinstance(step, GenerationChunk):
            if step.finish_reason:
                # Suspended after its last chunk, it would keep its cache until it is collected.
                self._steps.close()
            self.channel.put(step)

    def fail(self, error: Exception) -> None:
        """End the request with an error."""
        self.channel.fail(without_locals(error))

    def cancel(self) -> None:
        """End the request, with the text that was held back, and let go of its cache."""
        self._steps.close()
        try:
            text, _ = self._run.text_of.finish()
        except Exception as error:
            self.fail(error)
            return
        self.channel.put(self._run.cancelled(text))


class ScoreRun:
    """A text that is scored, a step of its tokens at a time."""

    def __init__(
        self,
        text: str | list[int],
        tokens: int,
        model: HeliumForCausalLM,
        tokenizer: HeliumTokenizer,
        *,
        top_logprobs: int,
        prefill_step_size: int,
    ) -> None:
        self.tokens = tokens
        self.future: Future[Score] = Future()
        self._begin: Callable[[], Generator[None, None, Score]] = lambda: score_steps(
            model, tokenizer, text, top_logprobs=top_logprobs, prefill_step_size=prefill_step_size
        )
        self._steps = self._begin()

    @property
    def is_cancelled(self) -> bool:
        """Whether nobody waits for the score any more."""
        return self.future.cancelled()

    @property
    def is_over(self) -> bool:
        """Whether nothing is to be done any more."""
        return self.future.done()

    @property
    def is_in_prompt(self) -> bool:
        """Whether there is more to run: a text to score is all prompt."""
        return not self.is_over

    def advance(self) -> None:
        """Score the next tokens."""
        try:
            next(self._steps)
        except StopIteration as done:
            if self.future.set_running_or_notify_cancel():
                self.future.set_result(done.value)
        except Exception as error:
            self.fail(error)

    def rewind(self) -> None:
        """Let go of the cache and begin anew."""
        self._steps = self._begin()

    def fail(self, error: Exception) -> None:
        """End with an error."""
        if not self.is_over and self.future.set_running_or_notify_cancel():
            self.future.set_exception(without_locals(error))

    def cancel(self) -> None:
        """Let go of the cache; whoever still waits learns that the engine was closed."""
        self._steps.close()
        self.fail(EngineError("the engine was closed before the text was scored; make a new one"))
