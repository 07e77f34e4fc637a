"""The requests of an engine on their way, as its worker holds them: rows of the batch, runs of their own, scores.

An error that a request's own part raises (its sampler, its text) ends that request and nothing else.
"""

import threading
import time
import traceback
from collections.abc import Callable, Generator
from concurrent.futures import Future
from dataclasses import replace
from typing import TypeVar

import mlx.core as mx

from helium_mlx.engine.channels import Channel
from helium_mlx.engine.request import EngineRequest
from helium_mlx.errors import EngineError
from helium_mlx.generation.completion import DecodedToken, FinishReason, GenerationChunk
from helium_mlx.generation.decoding_batch import Row
from helium_mlx.generation.scoring import Score, score_steps
from helium_mlx.generation.streaming import stream_generate
from helium_mlx.model.helium import HeliumForCausalLM
from helium_mlx.tokenizer.tokenizer import HeliumTokenizer

E = TypeVar("E", bound=BaseException)


def without_locals(error: E) -> E:
    """Return an error whose traceback has its lines still, and no longer holds the arrays of its frames."""
    traceback.clear_frames(error.__traceback__)
    return error


class EngineRow(Row):
    """A request that decodes in the batch. It can be rebuilt from its tokens at any time.

    `failures` counts the steps that failed with it since the last that gave a token.
    """

    def __init__(
        self,
        number: int,
        request: EngineRequest,
        channel: Channel,
        model: HeliumForCausalLM,
        tokenizer: HeliumTokenizer,
    ) -> None:
        sampler = request.sampler(model, tokenizer, request.generated)
        super().__init__(sampler, request.text_of(tokenizer), request.count, top_logprobs=request.logprobs)
        self.number = number
        self.request = request
        self.channel = channel
        self.failures = 0
        self._model = model
        self._tokenizer = tokenizer
        self.tokens = list(request.generated)
        self.begun = len(self.tokens)
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

    def start(self) -> None:
        """Note that the prompt is about to be run."""
        self._started = time.perf_counter()

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
            text = self.add(decoded.token)
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
            prompt_tps=len(self.request.prompt) / prompt_seconds if new else 0.0,
            generation_tps=(new - 1) / seconds if new else 0.0,
            peak_memory=mx.get_peak_memory() / 1e9,
            stop_string=self.text_of.stop_string,
        )


class OwnRun:
    """A request with a cache of its own (`OwnCache`): `stream_generate`, a token at a time.

    `between` is called between the steps of its prompt, so that the others can take theirs.
    """

    def __init__(
        self,
        number: int,
        request: EngineRequest,
        channel: Channel,
        model: HeliumForCausalLM,
        tokenizer: HeliumTokenizer,
        *,
        prefill_step_size: int,
        between: Callable[[], None],
    ) -> None:
        self.number = number
        self.request = request
        self.channel = channel
        self.is_running = False
        self._between = between
        self._stop = threading.Event()
        # Follows the stream, which does not say what it holds back.
        self._text_of = request.text_of(tokenizer)
        sampling, own = request.sampling, request.own_cache
        self._last = GenerationChunk(
            text="",
            token=-1,
            logprob=None,
            top_logprobs={},
            from_draft=False,
            finish_reason=None,
            prompt_tokens=len(request.prompt),
            generated_tokens=0,
            prompt_tps=0.0,
            generation_tps=0.0,
            peak_memory=0.0,
        )
        self._chunks = stream_generate(
            model,
            tokenizer,
            request.prompt,
            max_tokens=request.count,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            min_p=sampling.min_p,
            repetition_penalty=sampling.repetition_penalty,
            repetition_context_size=sampling.repetition_context_size,
            seed=sampling.seed,
            logit_bias=sampling.logit_bias,
            banned_ids=sampling.banned_ids,
            stop=request.stop,
            ignore_eos=request.ignore_eos,
            logprobs=request.logprobs,
            max_kv_size=own.max_kv_size,
            kv_bits=own.kv_bits,
            kv_group_size=own.kv_group_size,
            prompt_lookup=own.prompt_lookup,
            prefill_step_size=prefill_step_size,
            cancel=self._stop,
            on_progress=self._on_progress,
        )

    @property
    def is_cancelled(self) -> bool:
        """Whether the reader has gone or asked for an end."""
        return self.channel.cancelled

    @property
    def is_over(self) -> bool:
        """Whether nothing is to be done any more."""
        return self.channel.is_ended

    @property
    def is_past_prompt(self) -> bool:
        """Whether the next step is that of a token."""
        return self._last.generated_tokens > 0

    def advance(self) -> None:
        """Run the prompt, or a token."""
        self.is_running = True
        try:
            self._last = next(self._chunks)
        except Exception as error:
            self.fail(error)
            return
        finally:
            self.is_running = False
        if self._last.finish_reason is None:
            self._text_of.add(self._last.token, is_last=False)
        else:
            # Suspended, it would keep its cache until garbage is collected: it holds this object, and this one it.
            self._chunks.close()
        self.channel.put(self._last)

    def fail(self, error: Exception) -> None:
        """End the request with an error."""
        self.channel.fail(without_locals(error))

    def cancel(self) -> None:
        """End the request, with the text that was held back, and let go of its cache."""
        self._chunks.close()
        text, _ = self._text_of.finish()
        ended = replace(
            self._last, text=text, token=-1, logprob=None, top_logprobs={}, from_draft=False, finish_reason="cancelled"
        )
        self.channel.put(ended)

    def _on_progress(self, done: int, total: int) -> None:
        if done < total:
            self._between()
        if self.is_cancelled:
            self._stop.set()


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
