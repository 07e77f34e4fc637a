"""Text from a model: prefill, decode one token at a time, sample, detokenize, stop.

`stream_generate` yields as text appears; `generate` joins. One decoding step is always in flight: while a token is read
and shown, the device computes the next. A run that ends by length computes exactly the tokens it emits; one that ends
by eos or a stop string has the one step in flight behind it, which is thrown away.
"""

import functools
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, ParamSpec, cast

import mlx.core as mx

from helium_mlx.arguments import length_of_past
from helium_mlx.cache import KVCache, make_cache
from helium_mlx.errors import ContextOverflowError, GenerationError
from helium_mlx.model import HeliumForCausalLM
from helium_mlx.sampling import Sampler, SamplingOptions, token_logprobs
from helium_mlx.stopping import StopStrings
from helium_mlx.tokenizer import HeliumTokenizer

FinishReason = Literal["stop", "length", "eos"]

P = ParamSpec("P")


@dataclass(frozen=True)
class GenerationChunk:
    """One generated token and the text that it made certain (often a whole word, sometimes none).

    `logprob` and `top_logprobs` (token id to natural logarithm, most probable first) are the model's own, before
    temperature and filters, and None and empty unless `logprobs` was asked for. Speeds are tokens a second;
    `peak_memory` is MLX's, in gigabytes (1e9 bytes). `finish_reason` is None until the last chunk.
    """

    text: str
    token: int
    logprob: float | None
    top_logprobs: dict[int, float]
    from_draft: bool
    finish_reason: FinishReason | None
    prompt_tokens: int
    generated_tokens: int
    prompt_tps: float
    generation_tps: float
    peak_memory: float


def stream_generate(
    model: HeliumForCausalLM,
    tokenizer: HeliumTokenizer,
    prompt: str | Sequence[int] | mx.array,
    *,
    max_tokens: int = 256,
    temperature: float = 0.0,
    top_p: float = 1.0,
    top_k: int = 0,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
    repetition_context_size: int | None = None,
    seed: int | None = None,
    logit_bias: Mapping[int, float] | None = None,
    banned_ids: Collection[int] = (),
    stop: str | Sequence[str] = (),
    ignore_eos: bool = False,
    logprobs: int = 0,
    cache: list[KVCache] | None = None,
    prefill_step_size: int = 512,
    on_progress: Callable[[int, int], None] | None = None,
) -> Iterator[GenerationChunk]:
    """Yield the completion of `prompt` (text, or token ids that are used as they are), a chunk a token.

    The text is the new tokens decoded, so it begins, as in transformers, without the space that parts it from the
    prompt.

    `temperature` 0 is greedy. `logit_bias` is added to the logits of the ids it names; `banned_ids` are not generated,
    and while sampling, nor are the tokenizer's reserved ids, but for those that `logit_bias` names. `stop` strings end
    the text before they appear in it. `logprobs` asks for that many alternatives a token. `cache` holds what precedes
    the prompt; afterwards it also holds the prompt and every token but the last, however the run ended.
    `prefill_step_size` tokens of the prompt are run at a time, and `on_progress(done, total)` is called after each
    step. A completion ends, with reason "length", where the model's context does.

    Raises GenerationError for options out of range and ContextOverflowError for a prompt longer than the context,
    both at the call and not at the first chunk.
    """
    options = SamplingOptions(
        temperature, top_p, top_k, min_p, repetition_penalty, repetition_context_size, seed, logit_bias, banned_ids
    )
    for name, value, least in (("max_tokens", max_tokens, 1), ("prefill_step_size", prefill_step_size, 1)):
        if not isinstance(value, int) or value < least:
            raise GenerationError(f"{name} is {value}; it must be a whole number, at least {least}")
    if not isinstance(logprobs, int) or not 0 <= logprobs <= model.config.vocab_size:
        raise GenerationError(f"logprobs is {logprobs}; it must be from 0 to vocab_size = {model.config.vocab_size}")
    tokens = tokens_of_prompt(model, tokenizer, prompt)
    cache = make_cache(model) if cache is None else cache
    room = room_after(model, length_of_past(cache, model.config), len(tokens))
    eos = frozenset() if ignore_eos else frozenset(tokenizer.eos_token_ids)
    sampler = Sampler(
        options,
        mx.array(tokens, dtype=mx.int32),
        vocab_size=model.config.vocab_size,
        reserved_ids=tokenizer.reserved_ids if temperature > 0 else (),
    )
    return _stream(
        Decoding(model, cache, sampler, logprobs),
        CompletionText(tokenizer, StopStrings(stop), eos),
        tokens,
        count=min(max_tokens, room),
        prefill_step_size=prefill_step_size,
        on_progress=on_progress,
    )


def _joined(stream: Callable[P, Iterator[GenerationChunk]]) -> Callable[P, str]:
    @functools.wraps(stream)
    def generate(*args: P.args, **kwargs: P.kwargs) -> str:
        return "".join(chunk.text for chunk in stream(*args, **kwargs))

    generate.__name__ = generate.__qualname__ = "generate"
    generate.__doc__ = "Return the completion of `prompt`; takes what `stream_generate` takes."
    return generate


generate = _joined(stream_generate)


def prefill(
    model: HeliumForCausalLM,
    tokens: Sequence[int],
    cache: list[KVCache],
    *,
    step_size: int,
    on_progress: Callable[[int, int], None] | None = None,
) -> mx.array:
    """Run a prompt through the model, `step_size` tokens at a time; return the last logits, (1, vocab_size), lazily."""
    prompt = mx.array(list(tokens), dtype=mx.int32)[None]
    last = (len(tokens) - 1) // step_size * step_size
    for start in range(0, last, step_size):
        model.model.run(model.model.embed(prompt[:, start : start + step_size]), cache)
        mx.eval([layer.state for layer in cache])
        if on_progress:
            on_progress(start + step_size, len(tokens))
    return model.next_logits(prompt[:, last:], cache)


@dataclass(frozen=True)
class DecodedToken:
    """A token as it came off the device, with what `logprobs` asked for."""

    token: int
    logprob: float | None
    top_logprobs: dict[int, float]
    from_draft: bool = False


class Decoding:
    """One request on its way through a model: its cache, its sampler, and one step in flight."""

    def __init__(self, model: HeliumForCausalLM, cache: list[KVCache], sampler: Sampler, top_logprobs: int) -> None:
        self.model = model
        self.cache = cache
        self.sampler = sampler
        self.top_logprobs = top_logprobs

    def tokens(self, logits: mx.array, count: int) -> Iterator[DecodedToken]:
        """Yield `count` tokens, the first from `logits`; while one is read, the next is being computed."""
        step = self._sample(logits)
        for remaining in range(count - 1, -1, -1):
            following = self._sample(self._forward(step[0])) if remaining else step
            yield self._read(step)
            step = following

    def _forward(self, token: mx.array) -> mx.array:
        return self.model.next_logits(token[None], self.cache)

    def _sample(self, logits: mx.array) -> list[mx.array]:
        """Start computing a token: [token], or [token, its log-probability, top ids, their log-probabilities]."""
        step = [self.sampler(logits)]
        if self.top_logprobs:
            step += token_logprobs(logits, step[0], self.top_logprobs)
        mx.async_eval(step, self.sampler.state)
        return step

    def _read(self, step: list[mx.array]) -> DecodedToken:
        token = cast(int, step[0].item())
        if not self.top_logprobs:
            return DecodedToken(token, None, {})
        logprob = cast(float, step[1].item())
        top, scores = cast(list[int], step[2][0].tolist()), cast(list[float], step[3][0].tolist())
        ranked = sorted(zip(top, scores, strict=True), key=lambda pair: -pair[1])
        return DecodedToken(token, logprob, dict(ranked))


class CompletionText:
    """Turns the tokens of a completion into text, and says when it ends and why."""

    def __init__(self, tokenizer: HeliumTokenizer, stops: StopStrings, eos: frozenset[int]) -> None:
        self.detokenizer = tokenizer.detokenizer()
        self.stops = stops
        self.eos = eos

    def add(self, token: int, *, is_last: bool) -> tuple[str, FinishReason | None]:
        """Return the text that can be shown with this token, and the reason if it was the end."""
        reason: FinishReason | None = "length" if is_last else None
        text, stopped = "", False
        if token in self.eos:
            reason = "eos"
        else:
            text, stopped = self.stops.add(self.detokenizer.add_token(token))
        if reason and not stopped:
            rest, stopped = self.stops.add(self.detokenizer.finish())
            text += rest + self.stops.finish()
        return text, "stop" if stopped else reason


def _stream(
    decoding: Decoding,
    text_of: CompletionText,
    prompt: Sequence[int],
    *,
    count: int,
    prefill_step_size: int,
    on_progress: Callable[[int, int], None] | None,
) -> Iterator[GenerationChunk]:
    start, prompt_seconds, generated = time.perf_counter(), 0.0, 0
    held = decoding.cache[0].offset + len(prompt)
    for layer in decoding.cache:
        # The last token is emitted and not fed back.
        layer.reserve(held + count - 1)
    logits = prefill(decoding.model, prompt, decoding.cache, step_size=prefill_step_size, on_progress=on_progress)
    try:
        for decoded in decoding.tokens(logits, count):
            now, generated = time.perf_counter(), generated + 1
            if generated == 1:
                prompt_seconds, start = now - start, now
                if on_progress:
                    on_progress(len(prompt), len(prompt))
            text, reason = text_of.add(decoded.token, is_last=generated == count)
            yield GenerationChunk(
                text=text,
                token=decoded.token,
                logprob=decoded.logprob,
                top_logprobs=decoded.top_logprobs,
                from_draft=decoded.from_draft,
                finish_reason=reason,
                prompt_tokens=len(prompt),
                generated_tokens=generated,
                prompt_tps=len(prompt) / max(prompt_seconds, 1e-9),
                generation_tps=(generated - 1) / max(now - start, 1e-9),
                peak_memory=mx.get_peak_memory() / 1e9,
            )
            if reason:
                return
    finally:
        # A run that was ended early has the token of the step in flight in its cache.
        for layer in decoding.cache:
            layer.trim(max(layer.offset - held - max(generated - 1, 0), 0))


def tokens_of_prompt(
    model: HeliumForCausalLM, tokenizer: HeliumTokenizer, prompt: str | Sequence[int] | mx.array
) -> list[int]:
    """Return the ids of a prompt. Raises GenerationError for an empty one and for what is no id of the model's."""
    if isinstance(prompt, (bytes, bytearray)):
        raise GenerationError("prompt is bytes; give text (decode it) or a list of token ids")
    if isinstance(prompt, mx.array):
        prompt = cast(list[int], prompt.tolist())
    tokens = tokenizer.encode(prompt) if isinstance(prompt, str) else list(prompt)
    if not tokens:
        raise GenerationError("prompt has no tokens; give text, or at least the BOS id")
    vocab_size = model.config.vocab_size
    for token in tokens:
        if not isinstance(token, int) or isinstance(token, bool) or not 0 <= token < vocab_size:
            raise GenerationError(f"prompt token {token!r} is not an id from 0 to vocab_size - 1 = {vocab_size - 1}")
    return tokens


def room_after(model: HeliumForCausalLM, held: int, prompt: int) -> int:
    """Return how many tokens fit behind the prompt, at least one."""
    context = model.config.max_position_embeddings
    room = context - held - prompt
    if room < 1:
        before = f" after {held} in the cache" if held else ""
        raise ContextOverflowError(
            f"the prompt has {prompt} tokens{before}; at most {context - held - 1} fit, since the model's context is "
            f"{context} and needs room for one more: shorten the prompt"
        )
    return room
