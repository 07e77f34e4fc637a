"""Text from a model: prefill, decode one token at a time, sample, detokenize, stop.

`stream_generate` yields as text appears; `generate` joins. One decoding step is always in flight: while a token is read
and shown, the device computes the next. A run that ends by length computes exactly the tokens it emits; one that ends
by eos or a stop string has the one step in flight behind it, which is thrown away.
"""

import functools
import inspect
import threading
import time
from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, ParamSpec, cast

import mlx.core as mx

from helium_mlx.arguments import length_of_past
from helium_mlx.cache import KVCache, make_cache
from helium_mlx.errors import ContextOverflowError, GenerationError
from helium_mlx.model import HeliumForCausalLM
from helium_mlx.sampling import Sampler, SamplingOptions, token_logprobs
from helium_mlx.stopping import StopStrings
from helium_mlx.tokenizer import HeliumTokenizer

if TYPE_CHECKING:
    from helium_mlx.prompt_lookup import LookupDecoding

FinishReason = Literal["stop", "length", "eos", "cancelled"]

P = ParamSpec("P")

# How often MLX's cache of free buffers is emptied: growing key-value caches leave one behind of every size.
TOKENS_PER_CLEARING = 256


@dataclass(frozen=True)
class GenerationChunk:
    """One generated token and the text that it made certain (often a whole word, sometimes none).

    `logprob` and `top_logprobs` (token id to natural logarithm, most probable first) are the model's own, before
    temperature and filters, and None and empty unless `logprobs` was asked for. Speeds are tokens a second;
    `peak_memory` is MLX's, in gigabytes (1e9 bytes). `from_draft` says that prompt lookup had guessed the token.
    `finish_reason` is None until the last chunk. A run cancelled in its prompt has one chunk, whose token is -1.
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
    cached_tokens: Sequence[int] = (),
    max_kv_size: int | None = None,
    kv_bits: int | None = None,
    kv_group_size: int = 64,
    prefill_step_size: int = 512,
    prompt_lookup: int = 0,
    cancel: threading.Event | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Generator[GenerationChunk, None, None]:
    """Yield the completion of `prompt` (text, or token ids that are used as they are), a chunk a token.

    The text is the new tokens decoded, so it begins, as in transformers, without the space that parts it from the
    prompt.

    `temperature` 0 is greedy. `logit_bias` is added to the logits of the ids it names; `banned_ids` are not generated,
    and while sampling, nor are the tokenizer's reserved ids, but for those that `logit_bias` names. `stop` strings end
    the text before they appear in it. `logprobs` asks for that many alternatives a token. `cache` holds what precedes
    the prompt; afterwards it also holds the prompt and every token but the last, however the run ended. A cache does
    not know its tokens: `cached_tokens` tells them to the repetition penalty and to prompt lookup. Without a cache,
    `max_kv_size` makes a cache that keeps the first token and the last ones, and `kv_bits` one that is quantized in
    groups of `kv_group_size`. `prefill_step_size` tokens of the prompt are run at a time, and
    `on_progress(done, total)` is called after each step. `prompt_lookup` guesses up to that many tokens ahead from what
    prompt and output repeat (see `prompt_lookup.py`). Setting `cancel` ends the run before its next step, in the
    prompt too.

    A completion ends, with reason "length", where the model's context does, unless a cache that forgets is smaller.

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
    if cache is None:
        cache = make_cache(model, max_kv_size=max_kv_size, kv_bits=kv_bits, kv_group_size=kv_group_size)
    elif max_kv_size is not None or kv_bits is not None:
        raise GenerationError("cache is given beside max_kv_size or kv_bits, which say what cache to make; keep one")
    held = length_of_past(cache, model.config)
    count = max_tokens if _forgets(cache, model) else min(max_tokens, room_after(model, held, len(tokens)))
    eos = frozenset() if ignore_eos else frozenset(tokenizer.eos_token_ids)
    before = list(cached_tokens)
    sampler = Sampler(
        options,
        mx.array(before + tokens, dtype=mx.int32),
        vocab_size=model.config.vocab_size,
        reserved_ids=tokenizer.reserved_ids if temperature > 0 else (),
    )
    return _stream(
        _decoding(model, cache, sampler, logprobs, before + tokens, held + len(tokens) + count, prompt_lookup),
        CompletionText(tokenizer, StopStrings(stop), eos),
        tokens,
        count=count,
        tokens_before=len(before),
        prefill_step_size=prefill_step_size,
        cancel=cancel or threading.Event(),
        on_progress=on_progress,
    )


def _decoding(
    model: HeliumForCausalLM,
    cache: list[KVCache],
    sampler: Sampler,
    logprobs: int,
    prompt: list[int],
    tokens_in_all: int,
    draft_tokens: int,
) -> "Decoding | LookupDecoding":
    if not draft_tokens:
        return Decoding(model, cache, sampler, logprobs)
    # Imported here: it builds on this module, and most runs do without.
    from helium_mlx.prompt_lookup import LookupDecoding, check_draft_tokens

    check_draft_tokens(draft_tokens, cache, tokens_in_all)
    return LookupDecoding(model, cache, sampler, logprobs, prompt=prompt, draft_tokens=draft_tokens)


def _forgets(cache: list[KVCache], model: HeliumForCausalLM) -> bool:
    """Whether a cache keeps fewer tokens than the model's context, so that text may go on without end."""
    size = cache[0].kind.get("max_size")
    return size is not None and size <= model.config.max_position_embeddings


# What `stream_generate` takes and batches do not, with the values that ask for nothing.
FOR_ONE_PROMPT: dict[str, object] = {
    "cache": None, "cached_tokens": (), "max_kv_size": None, "kv_bits": None, "kv_group_size": 64, "logprobs": 0,
    "prompt_lookup": 0, "cancel": None, "on_progress": None,
}  # fmt: skip


def _require_batchable(options: dict[str, object]) -> None:
    """Take out of `options` what only a single prompt has; raise GenerationError where it asks for something."""
    for name, nothing in FOR_ONE_PROMPT.items():
        if options.pop(name, nothing) != nothing:
            raise GenerationError(f"{name} is for a single prompt, and a list of prompts came; leave one out")


def _joined(stream: Callable[P, Iterator[GenerationChunk]]) -> Callable[P, str]:
    @functools.wraps(stream)
    def generate(*args: P.args, **kwargs: P.kwargs) -> str:
        prompt = kwargs["prompt"] if "prompt" in kwargs else args[2] if len(args) > 2 else None
        if isinstance(prompt, Sequence) and prompt and not isinstance(prompt[0], int) and not isinstance(prompt, str):
            from helium_mlx.batching import generate_many

            _require_batchable(kwargs)
            return cast(str, generate_many(*args, **kwargs))  # pyright: ignore[reportCallIssue, reportArgumentType]
        return "".join(chunk.text for chunk in stream(*args, **kwargs))

    generate.__name__ = generate.__qualname__ = "generate"
    signature = inspect.signature(stream, eval_str=False)
    vars(generate)["__signature__"] = signature.replace(return_annotation=str)
    generate.__doc__ = (
        "Return the completion of `prompt`; takes what `stream_generate` takes.\n\n"
        "Of a list of prompts, return a list, computed together; options are `batching.batch_generate`'s."
    )
    return generate


generate = _joined(stream_generate)


def prefill(
    model: HeliumForCausalLM,
    tokens: Sequence[int],
    cache: list[KVCache],
    *,
    step_size: int,
    cancel: threading.Event | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> mx.array:
    """Run a prompt through the model, `step_size` tokens at a time; return the last logits, (1, vocab_size), lazily.

    Raises CancelledError once `cancel` is set: the cache then holds the steps that were run.
    """
    prompt = mx.array(list(tokens), dtype=mx.int32)[None]
    last = (len(tokens) - 1) // step_size * step_size
    for start in range(0, last, step_size):
        _raise_if_set(cancel)
        model.model.run(model.model.embed(prompt[:, start : start + step_size]), cache)
        mx.eval([layer.state for layer in cache])
        if on_progress:
            on_progress(start + step_size, len(tokens))
    _raise_if_set(cancel)
    return model.next_logits(prompt[:, last:], cache)


class CancelledError(Exception):
    """The event that was given to cancel a run was set."""


def _raise_if_set(cancel: threading.Event | None) -> None:
    if cancel and cancel.is_set():
        raise CancelledError


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
        return DecodedToken(token, cast(float, step[1].item()), ranked(step[2], step[3])[0])


def ranked(ids: mx.array, logprobs: mx.array) -> list[dict[int, float]]:
    """Return the tokens of each row with their log-probabilities, both (K, top), the most probable first."""
    rows = zip(cast("list[list[int]]", ids.tolist()), cast("list[list[float]]", logprobs.tolist()), strict=True)
    return [dict(sorted(zip(*row, strict=True), key=lambda pair: -pair[1])) for row in rows]


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
            rest, stopped = self.finish()
            text += rest
        return text, "stop" if stopped else reason

    def finish(self) -> tuple[str, bool]:
        """Return the text that was held back, once no more tokens come, and whether a stop string ended it."""
        rest, stopped = self.stops.add(self.detokenizer.finish())
        return rest + self.stops.finish(), stopped


def _stream(
    decoding: "Decoding | LookupDecoding",
    text_of: CompletionText,
    prompt: Sequence[int],
    *,
    count: int,
    tokens_before: int,
    prefill_step_size: int,
    cancel: threading.Event,
    on_progress: Callable[[int, int], None] | None,
) -> Generator[GenerationChunk, None, None]:
    start, prompt_seconds, generated = time.perf_counter(), 0.0, 0
    held = decoding.cache[0].offset + len(prompt)

    def chunk(decoded: DecodedToken, text: str, reason: FinishReason | None) -> GenerationChunk:
        return GenerationChunk(
            text=text,
            token=decoded.token,
            logprob=decoded.logprob,
            top_logprobs=decoded.top_logprobs,
            from_draft=decoded.from_draft,
            finish_reason=reason,
            prompt_tokens=tokens_before + len(prompt),
            generated_tokens=generated,
            prompt_tps=len(prompt) / max(prompt_seconds, 1e-9) if generated else 0.0,
            generation_tps=(generated - 1) / max(time.perf_counter() - start, 1e-9) if generated else 0.0,
            peak_memory=mx.get_peak_memory() / 1e9,
        )

    for layer in decoding.cache:
        # The last token is emitted and not fed back.
        layer.reserve(held + count - 1)
    try:
        logits = prefill(
            decoding.model, prompt, decoding.cache, step_size=prefill_step_size, cancel=cancel, on_progress=on_progress
        )
        for decoded in decoding.tokens(logits, count):
            cancelled, generated = cancel.is_set(), generated + 1
            if generated == 1:
                now = time.perf_counter()
                prompt_seconds, start = now - start, now
                if on_progress:
                    on_progress(len(prompt), len(prompt))
            text, reason = text_of.add(decoded.token, is_last=cancelled or generated == count)
            yield chunk(decoded, text, "cancelled" if cancelled and reason == "length" else reason)
            if reason:
                return
            if generated % TOKENS_PER_CLEARING == 0:
                mx.clear_cache()
    except CancelledError:
        yield chunk(DecodedToken(-1, None, {}), "", "cancelled")
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
            f"{context} and needs room for one more: shorten the prompt, or let the cache forget with a max_kv_size of "
            f"at most {context}"
        )
    return room
