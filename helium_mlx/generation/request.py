"""What a completion is asked for: its options, checked once, and the prompt that they belong to.

The public functions make `CompletionOptions` of their arguments; solo runs, batches, the engine and saved generations
hand a `CompletionRequest` on. Both are plain values, so that they may go from thread to thread.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import cast

import mlx.core as mx

from helium_mlx.checkpoint.config import HeliumConfig
from helium_mlx.errors import GenerationError, OptionError, TokenizerError, shown
from helium_mlx.generation.completion import CompletionText, StopStrings
from helium_mlx.generation.prompts import Prompt, room_after, tokens_of_prompt
from helium_mlx.generation.sampling import Sampler, SamplingOptions, banned_tokens, fresh_seed
from helium_mlx.kv_cache.cache import KVCache
from helium_mlx.kv_cache.make import make_cache
from helium_mlx.kv_cache.memory import cache_bytes
from helium_mlx.kv_cache.rotating import MAX_SIZE
from helium_mlx.kv_cache.storage import require_bits, require_group_size
from helium_mlx.model.helium import HeliumForCausalLM
from helium_mlx.option_values import plain, require_switch, require_whole
from helium_mlx.tokenizer.tokenizer import HeliumTokenizer

# More would hold up every step.
MAX_EXTRA_EOS = 1000

# What batches lack: options that need a cache or steps of their own, each with the value that asks for nothing.
UNBATCHED_OPTIONS: dict[str, object] = {"max_kv_size": None, "kv_bits": None, "kv_group_size": 64, "prompt_lookup": 0}

# What lists of prompts lack: those, and what only an engine's rows have.
SINGLE_OPTIONS: dict[str, object] = {**UNBATCHED_OPTIONS, "heal": False}


@dataclass(frozen=True)
class CompletionOptions(SamplingOptions):
    """The options of a completion: those of the draw, which it inherits, and all others; see `stream_generate`.

    Raises GenerationError for a value that no model could be run with; `require_fit` checks the rest.
    """

    max_tokens: int = 256
    stop: str | Sequence[str] | None = ()
    ignore_eos: bool = False
    extra_eos: int | str | Sequence[int | str] = ()
    logprobs: int = 0
    max_kv_size: int | None = None
    kv_bits: int | None = None
    kv_group_size: int = 64
    prompt_lookup: int = 0
    heal: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        checked: dict[str, object] = {
            "max_tokens": require_whole("max_tokens", self.max_tokens, 1),
            "stop": StopStrings(self.stop).stop,
            "ignore_eos": require_switch("ignore_eos", self.ignore_eos),
            "extra_eos": _tokens_named(self.extra_eos),
            "logprobs": require_whole("logprobs", self.logprobs, 0, allowed="from 0 to the model's vocab_size"),
            "prompt_lookup": require_whole("prompt_lookup", self.prompt_lookup, 0),
            "heal": require_switch("heal", self.heal),
        }
        require_group_size(self.kv_group_size)
        if self.kv_bits is not None:
            require_bits(self.kv_bits)
        checked |= {name: plain(getattr(self, name)) for name in ("kv_bits", "kv_group_size")}
        if self.max_kv_size is not None:
            checked["max_kv_size"] = require_whole("max_kv_size", self.max_kv_size, 2, MAX_SIZE)
        for name, value in checked.items():
            object.__setattr__(self, name, value)

    @property
    def unbatched(self) -> list[str]:
        """The options given that batches lack: with one of them, a completion has a cache and steps of its own."""
        return [name for name in self.single if name in UNBATCHED_OPTIONS]

    @property
    def single(self) -> list[str]:
        """The options given that only a single prompt can have."""
        return [name for name, nothing in SINGLE_OPTIONS.items() if getattr(self, name) != nothing]

    def seeded(self) -> "CompletionOptions":
        """Return the options with a seed, drawn if there is none, so that what was begun with them can be resumed."""
        return self if self.seed is not None else replace(self, seed=fresh_seed())

    def require_fit(self, config: HeliumConfig, tokenizer: HeliumTokenizer) -> None:
        """Raise GenerationError for options that name ids which the model or the tokenizer lacks."""
        most = config.vocab_size
        require_whole("logprobs", self.logprobs, 0, most, allowed=f"from 0 to vocab_size = {most}")
        banned_tokens(self, most, self.reserved_ids(tokenizer))
        self.eos_ids(tokenizer)

    def eos_ids(self, tokenizer: HeliumTokenizer) -> frozenset[int]:
        """Return the tokens that end the text. Raises OptionError for an `extra_eos` that is not one token."""
        try:
            extra = [tokenizer.one_token(token) for token in cast("Sequence[int | str]", self.extra_eos)]
        except TokenizerError as error:
            raise OptionError(f"extra_eos: {error}") from None
        return frozenset(extra if self.ignore_eos else [*tokenizer.eos_token_ids, *extra])

    def reserved_ids(self, tokenizer: HeliumTokenizer) -> frozenset[int]:
        """Return the reserved ids of a tokenizer, which are not drawn; where nothing is drawn there is no need."""
        return tokenizer.reserved_ids if self.temperature > 0 else frozenset()

    def make_cache(self, model: HeliumForCausalLM) -> list[KVCache]:
        """Return an empty cache of the kind that is asked for. Raises GenerationError for a kind that does not fit."""
        return make_cache(model, max_kv_size=self.max_kv_size, kv_bits=self.kv_bits, kv_group_size=self.kv_group_size)

    def cache_bytes(self, config: HeliumConfig, tokens: int, dtype: mx.Dtype) -> int:
        """Return what that cache takes once it has seen so many tokens."""
        return cache_bytes(
            config,
            tokens,
            max_kv_size=self.max_kv_size,
            kv_bits=self.kv_bits,
            kv_group_size=self.kv_group_size,
            dtype=dtype,
        )


def _tokens_named(given: object) -> tuple[int | str, ...]:
    """Return one token or several, each an id or a text. Raises OptionError for anything else."""
    given = plain(given)
    tokens = list(given) if isinstance(given, Iterable) and not isinstance(given, (str, bytes, Mapping)) else [given]
    if len(tokens) > MAX_EXTRA_EOS:
        raise OptionError(f"extra_eos has {len(tokens)} tokens; expected at most {MAX_EXTRA_EOS}")
    checked = [token if isinstance(token, str) else plain(token) for token in tokens]
    for token in checked:
        if not isinstance(token, str) and (type(token) is not int or token < 0):
            raise OptionError(f"extra_eos has {shown(token)}; expected ids of tokens, 0 or more, or their texts")
    return tuple(cast("list[int | str]", checked))


@dataclass(frozen=True)
class CompletionRequest:
    """A prompt and its options. `count` is how many tokens may come in all, `generated` those that have already.

    `cut` are tokens cut off the end of the prompt, whose bytes come first (`healing.py`).
    """

    prompt: list[int]
    options: CompletionOptions
    count: int
    generated: tuple[int, ...] = ()
    cut: tuple[int, ...] = ()

    @property
    def span(self) -> int:
        """How many tokens prompt and completion may have together."""
        return len(self.prompt) + self.count

    def text_of(self, tokenizer: HeliumTokenizer) -> CompletionText:
        """Return what turns tokens into text, after those that were generated already."""
        stops, eos = StopStrings(self.options.stop), self.options.eos_ids(tokenizer)
        if self.options.heal:
            # Few completions begin so.
            from helium_mlx.generation.healing import HealedText

            text_of = HealedText(tokenizer, stops, eos, self.prompt, self.cut)
        else:
            text_of = CompletionText(tokenizer, stops, eos)
        for token in self.generated:
            text_of.add(token, is_last=False)
        return text_of

    def sampler(
        self, model: HeliumForCausalLM, tokenizer: HeliumTokenizer, generated: Sequence[int] | None = None
    ) -> Sampler:
        """Return the sampler as it is after these generated tokens, by default the request's own.

        A draw depends on the seed, its number and the tokens before it alone.
        """
        make: Callable[..., Sampler] = Sampler
        if self.cut:
            # Few completions begin so.
            from helium_mlx.generation.healing import HealedSampler, HeldBytes

            held = HeldBytes(tokenizer, model.config.vocab_size, self.cut, self.options.banned_ids)
            make = partial(HealedSampler, held)
        return make(
            self.options,
            mx.array(self.prompt, dtype=mx.int32),
            vocab_size=model.config.vocab_size,
            reserved_ids=self.options.reserved_ids(tokenizer),
            generated=self.generated if generated is None else generated,
        )


def checked_request(
    model: HeliumForCausalLM,
    tokenizer: HeliumTokenizer,
    prompt: Prompt | mx.array,
    options: CompletionOptions,
    cache: list[KVCache] | None = None,
    *,
    held: int = 0,
) -> CompletionRequest:
    """Return the request for a completion of `prompt`, which follows the `held` tokens that `cache` holds.

    Of the model only the config is read. Raises GenerationError and ContextOverflowError as `stream_generate` does.
    """
    options.require_fit(model.config, tokenizer)
    tokens = tokens_of_prompt(model, tokenizer, prompt)
    cut = 0
    if options.heal:
        from helium_mlx.generation.healing import cut_back

        if held:
            raise GenerationError(f"heal needs the whole prompt, and cache holds {held} tokens of it; leave one out")
        cut = cut_back(tokenizer, tokens)
    kept = len(tokens) - cut
    size = cache[0].kind.get("max_size") if cache else None
    # Where the cache keeps fewer tokens than the context has, text may continue without end.
    forgets = size is not None and size <= model.config.max_position_embeddings
    count = options.max_tokens if forgets else min(options.max_tokens, room_after(model, held, kept))
    if cache and options.prompt_lookup:
        # Few prompts are completed so.
        from helium_mlx.generation.prompt_lookup import check_draft_tokens

        check_draft_tokens(options.prompt_lookup, cache, held + kept + count)
    return CompletionRequest(tokens[:kept], options, count, cut=tuple(tokens[kept:]))
