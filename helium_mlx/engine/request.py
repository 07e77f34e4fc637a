"""What an engine is asked for, checked in the caller's thread: plain values only, so that they may go to the worker."""

import secrets
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import mlx.core as mx

from helium_mlx.checkpoint.config import HeliumConfig
from helium_mlx.generation.completion import CompletionText, StopStrings
from helium_mlx.generation.prompts import Prompt, room_after, tokens_of_prompt
from helium_mlx.generation.sampling import Sampler, SamplingOptions, banned_tokens
from helium_mlx.kv_cache.make import caches_for
from helium_mlx.kv_cache.memory import cache_bytes
from helium_mlx.model.helium import HeliumForCausalLM
from helium_mlx.option_values import require_switch, require_whole
from helium_mlx.tokenizer.tokenizer import HeliumTokenizer


@dataclass(frozen=True)
class OwnCache:
    """The options of `stream_generate` that batches lack: with one of them, a request has its own cache and steps."""

    max_kv_size: int | None = None
    kv_bits: int | None = None
    kv_group_size: int = 64
    prompt_lookup: int = 0

    @property
    def is_wanted(self) -> bool:
        """Whether one of them asks for something."""
        return self.max_kv_size is not None or self.kv_bits is not None or bool(self.prompt_lookup)

    def bytes_for(self, config: HeliumConfig, tokens: int, dtype: mx.Dtype) -> int:
        """Return what the cache takes once it has seen so many tokens."""
        return cache_bytes(
            config,
            tokens,
            max_kv_size=self.max_kv_size,
            kv_bits=self.kv_bits,
            kv_group_size=self.kv_group_size,
            dtype=dtype,
        )


@dataclass(frozen=True)
class EngineRequest:
    """A prompt and its options. `count` is how many tokens may come in all, `generated` those that have already.

    `sampling` always has a seed, so that a request can be gone on with.
    """

    prompt: list[int]
    count: int
    sampling: SamplingOptions
    stop: tuple[str, ...]
    ignore_eos: bool
    logprobs: int
    own_cache: OwnCache = OwnCache()
    generated: tuple[int, ...] = ()

    @property
    def span(self) -> int:
        """How many tokens prompt and completion may have together."""
        return len(self.prompt) + self.count

    def text_of(self, tokenizer: HeliumTokenizer) -> CompletionText:
        """Return what turns tokens into text, behind those that were generated already."""
        eos = frozenset() if self.ignore_eos else frozenset(tokenizer.eos_token_ids)
        text_of = CompletionText(tokenizer, StopStrings(self.stop), eos)
        for token in self.generated:
            text_of.add(token, is_last=False)
        return text_of

    def sampler(self, model: HeliumForCausalLM, tokenizer: HeliumTokenizer, generated: Sequence[int]) -> Sampler:
        """Return the sampler as it is behind these generated tokens: a draw depends on the seed and on its number."""
        sampler = Sampler(
            self.sampling,
            mx.array([*self.prompt, *generated], dtype=mx.int32),
            vocab_size=model.config.vocab_size,
            reserved_ids=tokenizer.reserved_ids if self.sampling.temperature > 0 else (),
        )
        sampler.drawn = len(generated)
        return sampler


def checked_request(
    model: HeliumForCausalLM,
    tokenizer: HeliumTokenizer,
    prompt: Prompt,
    *,
    max_tokens: int,
    temperature: float,
    top_p: float,
    top_k: int,
    min_p: float,
    repetition_penalty: float,
    repetition_context_size: int | None,
    seed: int | None,
    logit_bias: Mapping[int, float] | None,
    banned_ids: Collection[int],
    stop: str | Sequence[str],
    ignore_eos: bool,
    logprobs: int,
    own_cache: OwnCache,
) -> EngineRequest:
    """Return the request. Of the model only the config is read. Raises what `stream_generate` raises at the call."""
    seed = secrets.randbits(64) if seed is None else seed
    sampling = SamplingOptions(
        temperature, top_p, top_k, min_p, repetition_penalty, repetition_context_size, seed, logit_bias, banned_ids
    )
    config = model.config
    max_tokens = require_whole("max_tokens", max_tokens, 1)
    ignore_eos = require_switch("ignore_eos", ignore_eos)
    logprobs = require_whole(
        "logprobs", logprobs, 0, config.vocab_size, allowed=f"from 0 to vocab_size = {config.vocab_size}"
    )
    banned_tokens(sampling, config.vocab_size, tokenizer.reserved_ids if temperature > 0 else ())
    stops = StopStrings(stop).stop
    tokens = tokens_of_prompt(model, tokenizer, prompt)
    forgets = own_cache.max_kv_size is not None and own_cache.max_kv_size <= config.max_position_embeddings
    count = max_tokens if forgets else min(max_tokens, room_after(model, 0, len(tokens)))
    if own_cache.is_wanted:
        _check_own_cache(config, own_cache, len(tokens) + count)
    return EngineRequest(tokens, count, sampling, stops, ignore_eos, logprobs, own_cache)


def _check_own_cache(config: HeliumConfig, own: OwnCache, tokens: int) -> None:
    cache = caches_for(config, max_kv_size=own.max_kv_size, kv_bits=own.kv_bits, kv_group_size=own.kv_group_size)
    if own.prompt_lookup:
        from helium_mlx.generation.prompt_lookup import check_draft_tokens

        check_draft_tokens(own.prompt_lookup, cache, tokens)
