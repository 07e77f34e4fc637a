"""Text from a model: prefill, decode one token at a time, sample, detokenize, stop.

`stream_generate` yields as text appears; `generate` joins. One decoding step is always in flight: while a token is read
and shown, the device computes the next. A run that ends by length computes exactly the tokens it emits; one that ends
by eos or a stop string has one more step in flight, which is thrown away.
"""

import threading
import time
from collections.abc import Collection, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING, cast, overload

import mlx.core as mx

from helium_mlx.errors import GenerationError, shown
from helium_mlx.generation.completion import CompletionText, DecodedToken, FinishReason, GenerationChunk, ranked
from helium_mlx.generation.prompts import Prompt, holds_ids, require_generator
from helium_mlx.generation.request import CompletionOptions, CompletionRequest, checked_request
from helium_mlx.generation.sampling import Sampler, token_logprobs
from helium_mlx.interpreter_end import guarded
from helium_mlx.kv_cache.cache import KVCache
from helium_mlx.kv_cache.memory import require_run_fits
from helium_mlx.model.argument_checks import length_of_past
from helium_mlx.model.helium import HeliumForCausalLM
from helium_mlx.model.sound_logits import are_distinct, are_finite, require_sound
from helium_mlx.option_values import OnProgress, require_call, require_whole, token_ids
from helium_mlx.tokenizer.tokenizer import HeliumTokenizer

if TYPE_CHECKING:
    from typing_extensions import TypedDict, Unpack

    from helium_mlx.generation.prompt_lookup import LookupDecoding
    from helium_mlx.model.processors import Processor

    class _Options(TypedDict, total=False):
        """What `generate` takes beside the prompt, for its overloads."""

        max_tokens: int
        temperature: float
        top_p: float
        top_k: int
        min_p: float
        repetition_penalty: float
        repetition_context_size: int | None
        presence_penalty: float
        frequency_penalty: float
        seed: int | None
        logit_bias: Mapping[int, float] | None
        banned_ids: Collection[int]
        logits_processors: "Sequence[Processor]"
        stop: str | Sequence[str] | None
        ignore_eos: bool
        extra_eos: int | str | Sequence[int | str]
        logprobs: int
        cache: list[KVCache] | None
        cached_tokens: Sequence[int]
        max_kv_size: int | None
        kv_bits: int | None
        kv_group_size: int
        prefill_step_size: int
        prompt_lookup: int
        heal: bool
        cancel: threading.Event | None
        on_progress: OnProgress | None
        batch_size: int
        samples: int


# How often MLX's cache of free buffers is emptied: growing key-value caches leave one of every size.
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
    presence_penalty: float = 0.0,
    frequency_penalty: float = 0.0,
    seed: int | None = None,
    logit_bias: Mapping[int, float] | None = None,
    banned_ids: Collection[int] = (),
    logits_processors: "Sequence[Processor]" = (),
    stop: str | Sequence[str] | None = (),
    ignore_eos: bool = False,
    extra_eos: int | str | Sequence[int | str] = (),
    logprobs: int = 0,
    cache: list[KVCache] | None = None,
    cached_tokens: Sequence[int] = (),
    max_kv_size: int | None = None,
    kv_bits: int | None = None,
    kv_group_size: int = 64,
    prefill_step_size: int = 512,
    prompt_lookup: int = 0,
    heal: bool = False,
    cancel: threading.Event | None = None,
    on_progress: OnProgress | None = None,
) -> Generator[GenerationChunk, None, None]:
    """Yield the completion of `prompt` (text, or token ids that are used as they are), a chunk a token.

    The text is the new tokens decoded, so it begins, as in transformers, without the space that parts it from the
    prompt.

    `temperature` 0 is greedy. `presence_penalty` and `frequency_penalty`, -2 to 2, count generated tokens only (see
    `sampling.py`). Each of `logits_processors` is given the ids so far, (1, T), and logits, (1, vocab_size), and
    returns logits; what is in `model/processors.py` will do. `logit_bias` is added to the logits of the ids it names;
    `banned_ids` are not generated, and while sampling, nor are the tokenizer's reserved ids, but for those that
    `logit_bias` names. `stop` strings end the text before they appear in it; so do the model's eos, unless
    `ignore_eos`, and the tokens of `extra_eos`, ids or texts that are one token each. `logprobs` asks for that many
    alternatives a token. `cache` holds what precedes the prompt; afterwards it also holds the prompt and every token
    but the last, however the run ended; until then no other run can have it. A cache does not know its tokens:
    `cached_tokens` tells them, all or none, to the repetition penalty and to prompt lookup. Without a cache,
    `max_kv_size` makes a cache that keeps the first token and the last ones, and `kv_bits` one that is quantized in
    groups of `kv_group_size`. `prefill_step_size` tokens of the prompt are run at a time, and `on_progress(done,
    total)` is called after each step. `prompt_lookup` guesses up to that many tokens ahead from what prompt and output
    repeat (see `prompt_lookup.py`). With `heal`, a prompt that ends inside a word or in a space is completed as if it
    had been typed further (see `healing.py`), and the text begins with the space, where one comes. Setting `cancel`
    ends the run before its next step, in the prompt too.

    A completion ends, with reason "length", where the model's context does, unless a cache that forgets is smaller.

    Raises GenerationError for options out of range (OptionError) and for a cache that does not fit into memory beside
    the weights, and ContextOverflowError for a prompt longer than the context, all at the call and not at the first
    chunk. Numbers may be numpy's or MLX's.
    """
    options = CompletionOptions(
        temperature, top_p, top_k, min_p, repetition_penalty, repetition_context_size, seed, logit_bias, banned_ids,
        presence_penalty, frequency_penalty,
        logits_processors=logits_processors,
        max_tokens=max_tokens, stop=stop, ignore_eos=ignore_eos, extra_eos=extra_eos, logprobs=logprobs,
        max_kv_size=max_kv_size, kv_bits=kv_bits, kv_group_size=kv_group_size, prompt_lookup=prompt_lookup,
        heal=heal,
    )  # fmt: skip
    return _stream(
        model, tokenizer, prompt, options, cache=cache, cached_tokens=cached_tokens,
        prefill_step_size=prefill_step_size, cancel=cancel, on_progress=on_progress,
    )  # fmt: skip


@overload
def generate(
    model: HeliumForCausalLM,
    tokenizer: HeliumTokenizer,
    prompt: "str | Sequence[int] | mx.array",
    **options: "Unpack[_Options]",
) -> str: ...


@overload
def generate(
    model: HeliumForCausalLM,
    tokenizer: HeliumTokenizer,
    prompt: "list[str] | list[list[int]]",
    **options: "Unpack[_Options]",
) -> list[str]: ...


def generate(
    model: HeliumForCausalLM,
    tokenizer: HeliumTokenizer,
    prompt: str | Sequence[Prompt] | Sequence[int] | mx.array,
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
    stop: str | Sequence[str] | None = (),
    ignore_eos: bool = False,
    extra_eos: int | str | Sequence[int | str] = (),
    logprobs: int = 0,
    cache: list[KVCache] | None = None,
    cached_tokens: Sequence[int] = (),
    max_kv_size: int | None = None,
    kv_bits: int | None = None,
    kv_group_size: int = 64,
    prefill_step_size: int = 512,
    prompt_lookup: int = 0,
    heal: bool = False,
    cancel: threading.Event | None = None,
    on_progress: OnProgress | None = None,
    batch_size: int = 16,
    samples: int = 1,
) -> str | list[str]:
    """Return the completion of `prompt`; takes what `stream_generate` takes.

    Of a list of prompts, return a list, computed together (`batching.py`), at most `batch_size` rows at a time, and
    `samples` completions of each prompt after one another; all options can be given but those that a single prompt
    alone can have.
    """
    options = CompletionOptions(
        temperature, top_p, top_k, min_p, repetition_penalty, repetition_context_size, seed, logit_bias, banned_ids,
        presence_penalty, frequency_penalty,
        logits_processors=logits_processors,
        max_tokens=max_tokens, stop=stop, ignore_eos=ignore_eos, extra_eos=extra_eos, logprobs=logprobs,
        max_kv_size=max_kv_size, kv_bits=kv_bits, kv_group_size=kv_group_size, prompt_lookup=prompt_lookup,
        heal=heal,
    )  # fmt: skip
    if isinstance(prompt, (list, tuple)) and not (prompt and holds_ids(prompt)):
        # A single prompt starts without it.
        from helium_mlx.generation.batching import complete_batch

        _require_batchable(
            options, cache=cache, cached_tokens=len(cached_tokens), cancel=cancel, on_progress=on_progress
        )
        prompts = cast("Sequence[Prompt]", prompt)
        completions = complete_batch(
            model, tokenizer, prompts, options, batch_size=batch_size, samples=samples,
            prefill_step_size=prefill_step_size,
        )  # fmt: skip
        return [each.text for each in sorted(completions, key=lambda each: (each.index, each.sample))]
    if samples != 1:
        raise GenerationError(f"samples is {shown(samples)}, and a single prompt came; give a list: [prompt]")
    chunks = _stream(
        model, tokenizer, cast("Prompt | mx.array", prompt), options, cache=cache, cached_tokens=cached_tokens,
        prefill_step_size=prefill_step_size, cancel=cancel, on_progress=on_progress,
    )  # fmt: skip
    return "".join(chunk.text for chunk in chunks)


def _require_batchable(options: CompletionOptions, **run: object) -> None:
    """Raise GenerationError for what only a single prompt can have."""
    given = [*options.single, *(["logprobs"] if options.logprobs else []), *(name for name in run if run[name])]
    if given:
        raise GenerationError(f"{given[0]} is for a single prompt, and a list of prompts came; leave one out")


def _stream(
    model: HeliumForCausalLM,
    tokenizer: HeliumTokenizer,
    prompt: Prompt | mx.array,
    options: CompletionOptions,
    *,
    cache: list[KVCache] | None,
    cached_tokens: Sequence[int],
    prefill_step_size: int,
    cancel: threading.Event | None,
    on_progress: OnProgress | None,
) -> Generator[GenerationChunk, None, None]:
    """Check everything now, and return what runs the completion."""
    require_generator(model, tokenizer)
    prefill_step_size = require_whole("prefill_step_size", prefill_step_size, 1)
    require_call("cancel", cancel, "is_set")
    require_call("on_progress", on_progress)
    if cache is None:
        cache = options.make_cache(model)
    elif options.max_kv_size is not None or options.kv_bits is not None:
        raise GenerationError("cache is given beside max_kv_size or kv_bits, which say what cache to make; keep one")
    held = length_of_past(cache, model.config)
    _require_single_row(cache)
    request = checked_request(model, tokenizer, prompt, options, cache, held=held)
    before = _tokens_before(cached_tokens, held, model.config.vocab_size)
    run = CompletionRun(
        model,
        tokenizer,
        replace(request, prompt=before + request.prompt),
        cache,
        cached_tokens=len(before),
        prefill_step_size=prefill_step_size,
    )
    return guarded(_chunks(run, cancel, on_progress))


def _chunks(
    run: "CompletionRun", cancel: threading.Event | None, on_progress: OnProgress | None
) -> Generator[GenerationChunk, None, None]:
    """Yield the chunks of a run, and call `on_progress` after each step of its prompt."""
    with closing(run.steps(cancel)) as steps:
        for step in steps:
            in_prompt = isinstance(step, int)
            if on_progress and (in_prompt or step.generated_tokens == 1):
                on_progress(step if in_prompt else len(run.tokens), len(run.tokens))
            if not in_prompt:
                yield step


def _require_single_row(cache: list[KVCache]) -> None:
    rows = cache[0].batch_size
    if rows not in (None, 1):
        raise GenerationError(f"cache holds {rows} rows, and a stream is one; give a list of prompts without a cache")


def _tokens_before(cached_tokens: object, held: int, vocab_size: int) -> list[int]:
    tokens = [] if cached_tokens is None else token_ids("cached_tokens", cached_tokens, vocab_size)
    if tokens and len(tokens) != held:
        raise GenerationError(f"cached_tokens has {len(tokens)} tokens and the cache holds {held}; give all or none")
    return tokens


def prefill(model: HeliumForCausalLM, tokens: Sequence[int], cache: list[KVCache], *, step_size: int) -> mx.array:
    """Run a prompt through the model, `step_size` tokens at a time; return the last logits, (1, vocab_size), lazily."""
    steps = prefill_steps(model, tokens, cache, step_size=step_size)
    while True:
        try:
            next(steps)
        except StopIteration as done:
            return cast(mx.array, done.value)


def prefill_steps(
    model: HeliumForCausalLM, tokens: Sequence[int], cache: list[KVCache], *, step_size: int
) -> Generator[int, None, mx.array]:
    """Do what `prefill` does, and yield after each step but the last how many tokens are done; return the logits.

    So others can take their steps in between, and whoever stops here has a cache of the steps that were run.
    """
    prompt = mx.array(list(tokens), dtype=mx.int32)[None]
    last = (len(tokens) - 1) // step_size * step_size
    for start in range(0, last, step_size):
        model.model.run(model.model.embed(prompt[:, start : start + step_size]), cache)
        mx.eval([layer.state for layer in cache])
        yield start + step_size
    return model.next_logits(prompt[:, last:], cache)


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
        return self.model.logits_after(token, self.cache)

    def _sample(self, logits: mx.array) -> list[mx.array]:
        """Start computing a token: [token, highest logit], with `top_logprobs` also what those ask for."""
        left = self.sampler.among(logits)
        step = [self.sampler(left), logits.max(axis=-1)]
        if self.top_logprobs:
            step += token_logprobs(left, step[0], self.top_logprobs)
        mx.async_eval(step, self.sampler.state)
        return step

    def _read(self, step: list[mx.array]) -> DecodedToken:
        token, (is_sound,) = cast(int, step[0].item()), are_finite(step[1])
        if not self.top_logprobs:
            return DecodedToken(token, None, {}, is_sound=is_sound)
        logprob, alternatives = cast(float, step[2].item()), ranked(step[3], step[4])[0]
        return DecodedToken(token, logprob, alternatives, is_sound=is_sound)


def _decoding(
    model: HeliumForCausalLM, cache: list[KVCache], sampler: Sampler, request: CompletionRequest
) -> "Decoding | LookupDecoding":
    options = request.options
    if not options.prompt_lookup:
        return Decoding(model, cache, sampler, options.logprobs)
    # Most completions start without it.
    from helium_mlx.generation.prompt_lookup import LookupDecoding

    return LookupDecoding(
        model, cache, sampler, options.logprobs, prompt=request.prompt, draft_tokens=options.prompt_lookup
    )


class CompletionRun:
    """One completion with a cache of its own, which already holds `held` tokens: its prompt, then a token at a time.

    `request.prompt` has, before the tokens that are to be run, as many as `cached_tokens` says of those in the cache.

    Raises GenerationError for a cache that does not fit into memory beside the weights.
    """

    def __init__(
        self,
        model: HeliumForCausalLM,
        tokenizer: HeliumTokenizer,
        request: CompletionRequest,
        cache: list[KVCache],
        *,
        cached_tokens: int = 0,
        prefill_step_size: int,
    ) -> None:
        self.held = cache[0].offset
        self.request = request
        self.tokens = request.prompt[cached_tokens:]
        self.prefill_step_size = prefill_step_size
        require_run_fits(model, self.held + len(self.tokens) + request.count, cache[0].kind)
        sampler = request.sampler(model, tokenizer)
        self.decoding = _decoding(model, cache, sampler, request)
        self.text_of: CompletionText = request.text_of(tokenizer)
        self.generated = self._accepted = 0
        self._start, self._prompt_seconds = time.perf_counter(), 0.0

    def steps(self, cancel: threading.Event | None = None) -> Generator["int | GenerationChunk", None, None]:
        """Yield how many tokens of the prompt are done after each of its steps but the last, then a chunk a token.

        It can be run once. Closing it ends the run; `cancel` does so with a last chunk that says it. Either way the
        cache then holds the prompt, as far as it was run, and every token but the last.
        """
        decoding, cancel = self.decoding, cancel or threading.Event()
        self._start = time.perf_counter()
        _claim(decoding.cache, self.held)
        try:
            for layer in decoding.cache:
                # The last token is emitted and not fed back.
                layer.reserve(self.held + len(self.tokens) + self.request.count - 1)
            logits = yield from self._prefill(cancel)
            if logits is None:
                yield self.cancelled("")
            else:
                yield from self._decode(logits, cancel)
        finally:
            # A run that was ended early has the token of the step in flight in its cache.
            kept = self.held + len(self.tokens) + max(self.generated - 1, 0)
            for layer in decoding.cache:
                layer.trim(max(layer.offset - kept, 0))
                layer.in_use = False

    def _prefill(self, cancel: threading.Event) -> Generator[int, None, mx.array | None]:
        """Run the prompt; return its last logits, or None if it was cancelled in between."""
        steps = prefill_steps(self.decoding.model, self.tokens, self.decoding.cache, step_size=self.prefill_step_size)
        while not cancel.is_set():
            try:
                yield next(steps)
            except StopIteration as ended:
                return cast(mx.array, ended.value)
        return None

    def _decode(self, logits: mx.array, cancel: threading.Event) -> Generator[GenerationChunk, None, None]:
        distinct = are_distinct(logits)
        # Now, so that its value does not have to wait for the step that is begun next.
        mx.async_eval(distinct)
        for decoded in self.decoding.tokens(logits, self.request.count):
            decoded.require_sound()
            cancelled = cancel.is_set()
            self.generated += 1
            self._accepted += decoded.from_draft
            if self.generated == 1:
                now = time.perf_counter()
                self._prompt_seconds, self._start = now - self._start, now
                require_sound(distinct)
            is_last = cancelled or self.generated == self.request.count
            text, reason = self.text_of.add(decoded.token, is_last=is_last)
            yield self._chunk(decoded, text, "cancelled" if cancelled and reason == "length" else reason)
            if reason:
                return
            if self.generated % TOKENS_PER_CLEARING == 0:
                mx.clear_cache()

    def cancelled(self, text: str) -> GenerationChunk:
        """Return the last chunk of a run that was ended early, with the text that was held back."""
        return self._chunk(DecodedToken(-1, None, {}), text, "cancelled")

    def _chunk(self, decoded: DecodedToken, text: str, reason: FinishReason | None) -> GenerationChunk:
        generated, seconds = self.generated, max(time.perf_counter() - self._start, 1e-9)
        return GenerationChunk(
            text=text,
            token=decoded.token,
            logprob=decoded.logprob,
            top_logprobs=decoded.top_logprobs,
            from_draft=decoded.from_draft,
            finish_reason=reason,
            prompt_tokens=len(self.request.prompt),
            generated_tokens=generated,
            prompt_tps=len(self.tokens) / max(self._prompt_seconds, 1e-9) if generated else 0.0,
            generation_tps=(generated - 1) / seconds if generated else 0.0,
            peak_memory=mx.get_peak_memory() / 1e9,
            drafted_tokens=self.decoding.drafted,
            accepted_tokens=self._accepted,
            stop_string=self.text_of.stop_string,
            leading_space=self.text_of.leading_space,
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
