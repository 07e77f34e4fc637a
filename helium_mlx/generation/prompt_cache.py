"""Caches on disk: what a model made of a prompt, kept for the next run that begins alike.

    prompts = PromptCache.open("story.safetensors", model, tokenizer)
    cache, held = prompts.prepare(tokens)                   # `held` of the prompt's tokens need not be run again
    for chunk in stream_generate(model, tokenizer, tokens[held:], cache=cache): tokens.append(chunk.token)
    prompts.store(cache, tokens)

A file is safetensors: the parts of each layer's cache (`kv_cache/storage.py`), and one record in the metadata, JSON
with the kind of cache, its place in the text, the token ids, and a fingerprint of model, tokenizer and dtype. It is
read as a stranger's: nothing of it is believed before header, record and shapes have been found to agree. Numbers are
not: who can write the file can make the model say anything.

The fingerprint samples the weights, which takes milliseconds: it tells checkpoints apart, not single numbers.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar, cast

import mlx.core as mx

from helium_mlx.backend import dtype_name
from helium_mlx.files.atomic import require_writable
from helium_mlx.kv_cache.cache import KVCache
from helium_mlx.kv_cache.disk import load_fitting, require_tokens, save_cache
from helium_mlx.kv_cache.make import copy_cache, make_cache
from helium_mlx.model.pretrained import HeliumPreTrainedModel
from helium_mlx.option_values import path_of
from helium_mlx.tokenizer.tokenizer import HeliumTokenizer

_SAMPLES = 16
_PROBE = "Les œuvres d'art, 3,14 naïve façades: ¿dónde está? Straße — it's 中文 🙂\n\tfin."
Cache = TypeVar("Cache", bound=KVCache)


def fingerprint_of(model: HeliumPreTrainedModel, tokenizer: HeliumTokenizer) -> dict[str, str]:
    """Return what tells the cache of this model, tokenizer and dtype from that of others: texts by name."""
    return {
        "model": _digest_of_model(model),
        "tokenizer": _digest_of_tokenizer(tokenizer),
        "dtype": dtype_name(model.body.norm.weight.dtype),
    }


def common_prefix(first: Sequence[int], second: Sequence[int]) -> int:
    """Return how many tokens two sequences begin alike with."""
    for count, (a, b) in enumerate(zip(first, second, strict=False)):
        if a != b:
            return count
    return min(len(first), len(second))


def reuse(cache: Sequence[Cache], cached: Sequence[int], prompt: Sequence[int]) -> tuple[list[Cache], int]:
    """Return a copy of `cache` cut to what `prompt` begins with, and how many tokens that is; it holds `cached`.

    At least one token of the prompt is left to run. A rotating cache that has dropped tokens goes back by a few only;
    past that the copy is empty, and the count 0. The cache given is not changed.

    Raises GenerationError for a cache that holds another number of tokens than there are in `cached`.
    """
    require_tokens(cache, cached)
    held = common_prefix(cached, prompt[:-1])
    surplus = len(cached) - held
    if any(layer.trimmable < surplus for layer in cache):
        return [layer.empty() for layer in cache], 0
    copies = copy_cache(cache) if held else [layer.empty() for layer in cache]
    if held:
        for layer in copies:
            layer.trim(surplus)
    return copies, held


@dataclass
class PromptCache:
    """A cache file and what it holds: `cache` after the tokens `tokens`, both empty if there is no file yet."""

    path: Path
    fingerprint: dict[str, str]
    cache: list[KVCache]
    tokens: tuple[int, ...]

    @classmethod
    def open(
        cls,
        path: str | Path,
        model: HeliumPreTrainedModel,
        tokenizer: HeliumTokenizer,
        *,
        max_kv_size: int | None = None,
        kv_bits: int | None = None,
        kv_group_size: int = 64,
    ) -> "PromptCache":
        """Read the file, if there is one, for runs with these options of `make_cache`.

        Raises GenerationError for options that do not fit, and CheckpointError for a file that is damaged, that was
        written with another model, tokenizer, dtype or other options, or whose directory cannot be written to.
        """
        path = path_of(path)
        empty = make_cache(model, max_kv_size=max_kv_size, kv_bits=kv_bits, kv_group_size=kv_group_size)
        fingerprint = fingerprint_of(model, tokenizer)
        if not os.path.lexists(path):
            require_writable(path)
            return cls(path, fingerprint, empty, ())
        require_writable(path)
        cache, held = load_fitting(path, model, fingerprint, empty)
        return cls(path, fingerprint, cache, held)

    def prepare(self, prompt: Sequence[int]) -> tuple[list[KVCache], int]:
        """Return a cache for a run of `prompt`, and how many of its tokens are in it: the others are to be run.

        At least one is. The cache is a copy; what this object holds stays as it is.
        """
        return reuse(self.cache, self.tokens, prompt)

    def store(self, cache: Sequence[KVCache], tokens: Sequence[int]) -> None:
        """Write a cache that has seen the first of `tokens`, prompt and completion, and hold a copy of it.

        Raises CheckpointError where the file cannot be written; it then stays as it was.
        """
        held = tuple(tokens[: cache[0].offset])
        save_cache(self.path, cache, tokens=held, fingerprint=self.fingerprint)
        self.cache, self.tokens = copy_cache(cache), held


# --- fingerprints


def _digest_of_model(model: HeliumPreTrainedModel) -> str:
    digest = hashlib.sha256(json.dumps(model.config.to_dict(), sort_keys=True, default=str).encode())
    samples: list[mx.array] = []
    for name, tensor in sorted(model.tensors().items()):
        digest.update(f"{name} {tensor.shape} {tensor.dtype}".encode())
        values = tensor.reshape(-1)[:: max(1, tensor.size // _SAMPLES)]
        samples.append(mx.contiguous(values).view(mx.uint8))
    digest.update(cast(bytes, memoryview(cast(bytes, mx.concatenate(samples)))))
    return digest.hexdigest()


def _digest_of_tokenizer(tokenizer: HeliumTokenizer) -> str:
    size = len(tokenizer)
    ids = [*range(min(size, 128)), *range(128, size, max(1, size // 512))]
    described = [
        size,
        tokenizer.vocab_size,
        tokenizer.bos_token_id,
        list(tokenizer.eos_token_ids),
        tokenizer.pad_token_id,
        tokenizer.encode(_PROBE),
        tokenizer.convert_ids_to_tokens(ids),
    ]
    return hashlib.sha256(json.dumps(described).encode()).hexdigest()
