"""Text from a model: prefill, decode one token at a time, sample, detokenize, stop.

`stream_generate` yields as text appears; `generate` joins. One decoding step is always in flight: while a token is read
and shown, the device computes the next. A run that ends by length computes exactly the tokens it emits; one that ends
by eos or a stop string has the one step in flight behind it, which is thrown away.
"""

import functools
import inspect
import threading
import time
from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence, Sized
from typing import TYPE_CHECKING, ParamSpec, cast

import mlx.core as mx

from helium_mlx.errors import GenerationError
from helium_mlx.generation.completion import (
    CompletionText,
    DecodedToken,
    FinishReason,
    GenerationChunk,
    StopStrings,
    ranked,
)
from helium_mlx.generation.prompts import holds_ids, require_generator, room_after, tokens_of_prompt
from helium_mlx.generation.sampling import Sampler, SamplingOptions, token_logprobs
from helium_mlx.kv_cache.cache import KVCache
from helium_mlx.kv_cache.make import make_cache
from helium_mlx.kv_cache.memory import require_run_fits
from helium_mlx.model.argument_checks import length_of_past
from helium_mlx.model.helium import HeliumForCausalLM
from helium_mlx.option_values import require_call, require_switch, require_whole, token_ids
from helium_mlx.tokenizer.tokenizer import HeliumTokenizer

if TYPE_CHECKING:
    from helium_mlx.generation.prompt_lookup import LookupDecoding


P = ParamSpec("P")

# How often MLX's cache of free buffers is emptied: growing key-value caches leave one behind of every size.
TOKENS_PER_CLEARING = 256


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
    stop: str | Sequence[str] | None = (),
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
    the prompt; afterwards it also holds the prompt and every token but the last, however the run ended; until then no
    other run can have it. A cache does not know its tokens: `cached_tokens` tells them, all or none, to the repetition
    penalty and to prompt lookup. Without a cache,
    `max_kv_size` makes a cache that keeps the first token and the last ones, and `kv_bits` one that is quantized in
    groups of `kv_group_size`. `prefill_step_size` tokens of the prompt are run at a time, and
    `on_progress(done, total)` is called after each step. `prompt_lookup` guesses up to that many tokens ahead from what
    prompt and output repeat (see `prompt_lookup.py`). Setting `cancel` ends the run before its next step, in the
    prompt too.

    A completion ends, with reason "length", where the model's context does, unless a cache that forgets is smaller.

    Raises GenerationError for options out of range (OptionError) and for a cache that does not fit into memory beside
    the weights, and ContextOverflowError for a prompt longer than the context, all at the call and not at the first
    chunk. Numbers may be numpy's or MLX's.
    """
    options = SamplingOptions(
        temperature, top_p, top_k, min_p, repetition_penalty, repetition_context_size, seed, logit_bias, banned_ids
    )
    require_generator(model, tokenizer)
    vocab_size = model.config.vocab_size
    max_tokens = require_whole("max_tokens", max_tokens, 1)
    prefill_step_size = require_whole("prefill_step_size", prefill_step_size, 1)
    logprobs = require_whole("logprobs", logprobs, 0, vocab_size, allowed=f"from 0 to vocab_size = {vocab_size}")
    prompt_lookup = require_whole("prompt_lookup", prompt_lookup, 0)
    ignore_eos = require_switch("ignore_eos", ignore_eos)
    require_call("cancel", cancel, "is_set")
    require_call("on_progress", on_progress)
    tokens = tokens_of_prompt(model, tokenizer, prompt)
    if cache is None:
        cache = make_cache(model, max_kv_size=max_kv_size, kv_bits=kv_bits, kv_group_size=kv_group_size)
    elif max_kv_size is not None or kv_bits is not None:
        raise GenerationError("cache is given beside max_kv_size or kv_bits, which say what cache to make; keep one")
    held = length_of_past(cache, model.config)
    _require_single_row(cache)
    count = max_tokens if _forgets(cache, model) else min(max_tokens, room_after(model, held, len(tokens)))
    require_run_fits(model, held + len(tokens) + count, cache[0].kind)
    eos = frozenset() if ignore_eos else frozenset(tokenizer.eos_token_ids)
    before = _tokens_before(cached_tokens, held, vocab_size)
    sampler = Sampler(
        options,
        mx.array(before + tokens, dtype=mx.int32),
        vocab_size=vocab_size,
        reserved_ids=tokenizer.reserved_ids if options.temperature > 0 else (),
    )
    return _stream(
        _decoding(model, cache, sampler, logprobs, before + tokens, held + len(tokens) + count, prompt_lookup),
        CompletionText(tokenizer, StopStrings(stop), eos),
        tokens,
        held=held,
        count=count,
        tokens_before=len(before),
        prefill_step_size=prefill_step_size,
        cancel=cancel or threading.Event(),
        on_progress=on_progress,
    )


def _require_single_row(cache: list[KVCache]) -> None:
    rows = cache[0].batch_size
    if rows not in (None, 1):
        raise GenerationError(f"cache holds {rows} rows, and a stream is one; give a list of prompts without a cache")


def _tokens_before(cached_tokens: object, held: int, vocab_size: int) -> list[int]:
    tokens = [] if cached_tokens is None else token_ids("cached_tokens", cached_tokens, vocab_size)
    if tokens and len(tokens) != held:
        raise GenerationError(f"cached_tokens has {len(tokens)} tokens and the cache holds {held}; give all or none")
    return tokens


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
    from helium_mlx.generation.prompt_lookup import LookupDecoding, check_draft_tokens

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
        value = options.pop(name, nothing)
        if len(value) if isinstance(value, Sized) else value != nothing:
            raise GenerationError(f"{name} is for a single prompt, and a list of prompts came; leave one out")


def _joined(stream: Callable[P, Iterator[GenerationChunk]]) -> Callable[P, str]:
    @functools.wraps(stream)
    def generate(*args: P.args, **kwargs: P.kwargs) -> str:
        prompt = kwargs["prompt"] if "prompt" in kwargs else args[2] if len(args) > 2 else None
        if isinstance(prompt, (list, tuple)) and prompt and not holds_ids(prompt):
            from helium_mlx.generation.batching import generate_many

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


class Decoding:
    """One request on its way through a model: its cache, its sampler, and one step in flight."""

    drafted = 0

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


def _stream(
    decoding: "Decoding | LookupDecoding",
    text_of: CompletionText,
    prompt: Sequence[int],
    *,
    held: int,
    count: int,
    tokens_before: int,
    prefill_step_size: int,
    cancel: threading.Event,
    on_progress: Callable[[int, int], None] | None,
) -> Generator[GenerationChunk, None, None]:
    start, prompt_seconds, generated, accepted = time.perf_counter(), 0.0, 0, 0
    _claim(decoding.cache, held)
    held += len(prompt)

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
            drafted_tokens=decoding.drafted,
            accepted_tokens=accepted,
            stop_string=text_of.stop_string,
        )

    try:
        for layer in decoding.cache:
            # The last token is emitted and not fed back.
            layer.reserve(held + count - 1)
        logits = prefill(
            decoding.model, prompt, decoding.cache, step_size=prefill_step_size, cancel=cancel, on_progress=on_progress
        )
        sane = _are_sane(logits)
        for decoded in decoding.tokens(logits, count):
            cancelled, generated, accepted = cancel.is_set(), generated + 1, accepted + decoded.from_draft
            if generated == 1:
                now = time.perf_counter()
                prompt_seconds, start = now - start, now
                _require_sane(sane)
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
            layer.in_use = False


def _are_sane(logits: mx.array) -> mx.array:
    """Start computing whether logits are numbers of which some are larger than others: a boolean ()."""
    highest = logits.max()
    sane = mx.isfinite(highest) & (highest > logits.min())
    # Now, so that its value does not have to wait for the step that is begun next.
    mx.async_eval(sane)
    return sane


def _require_sane(sane: mx.array) -> None:
    """Raise GenerationError for logits that no text should be made of: overflow in 16 bits, or memory that ran out."""
    if not sane.item():
        raise GenerationError(
            "the model's logits are NaN, infinite or all the same: its weights are damaged, its dtype overflows or "
            "memory ran out; try dtype float32, a smaller max_kv_size, or convert it again"
        )


_claiming = threading.Lock()


def _claim(cache: list[KVCache], held: int) -> None:
    """Take a cache for one run, which sets `in_use` back at its end. Raises GenerationError if another run has it."""
    with _claiming:
        if cache[0].in_use or cache[0].offset != held:
            what = "is in use by another run" if cache[0].in_use else f"held {held} tokens at the call and has changed"
            raise GenerationError(f"cache {what}; close that run first, or give each one a copy: copy_cache")
        for layer in cache:
            layer.in_use = True
