"""A generation on disk, to be resumed after a restart: `EngineStream.save`, `HeliumEngine.continue_stream`.

A file is a prompt cache (`generation/prompt_cache.py`), checked as a stranger's like any other, with a second record in
its metadata: prompt, tokens so far and options, the seed among them. As a draw depends on the seed and its number
alone, and the text on the tokens alone, that is all there is to know. The cache is of all tokens but the last, or
empty.

A SHA-256 of record and cache stands beside the record. It finds damage, not malice: who can write the file can make
the model say anything.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import cast

import mlx.core as mx

from helium_mlx.errors import CheckpointError, HeliumError, shown
from helium_mlx.files.untrusted import MalformedFile, parse_json_object
from helium_mlx.generation.request import CompletionOptions, CompletionRequest, checked_request
from helium_mlx.generation.sampling import bias_by_name
from helium_mlx.kv_cache.cache import KVCache
from helium_mlx.kv_cache.disk import header_of, load_fitting, save_cache
from helium_mlx.kv_cache.make import make_cache
from helium_mlx.model.helium import HeliumForCausalLM
from helium_mlx.tokenizer.tokenizer import HeliumTokenizer

RECORD = "helium_mlx_generation"
DIGEST = "helium_mlx_generation_sha256"
VERSION = 2

# The options in a record, each with what it may be.
_OPTIONS: dict[str, tuple[type, ...]] = {
    "temperature": (int, float),
    "top_p": (int, float),
    "top_k": (int,),
    "min_p": (int, float),
    "repetition_penalty": (int, float),
    "repetition_context_size": (int, type(None)),
    "seed": (int,),
    "logit_bias": (dict, type(None)),
    "banned_ids": (list,),
    "stop": (list,),
    "ignore_eos": (bool,),
    "extra_eos": (list,),
    "logprobs": (int,),
    "presence_penalty": (int, float),
    "frequency_penalty": (int, float),
    "heal": (bool,),
}

# Those that older files lack, each with the value that asks for nothing.
_NEWER: dict[str, object] = {"extra_eos": [], "presence_penalty": 0, "frequency_penalty": 0, "heal": False}


def save_state(
    path: Path,
    request: CompletionRequest,
    cache: Sequence[KVCache],
    model: HeliumForCausalLM,
    fingerprint: Mapping[str, str],
) -> None:
    """Write a request with its `generated` tokens, and a cache of all tokens but the last, or none.

    Raises CheckpointError where the file cannot be written.
    """
    given = asdict(request.options)
    given |= {"banned_ids": sorted(request.options.banned_ids), "stop": list(request.options.stop or ())}
    given |= {"extra_eos": list(cast("Sequence[int | str]", request.options.extra_eos))}
    record = {
        "version": VERSION,
        # What was cut off is cut off anew.
        "prompt": [*request.prompt, *request.cut],
        "generated": list(request.generated),
        "max_tokens": request.count,
        "options": {name: given[name] for name in _OPTIONS},
    }
    tokens = [*request.prompt, *request.generated][:-1] if cache else []
    text = json.dumps(record, separators=(",", ":"))
    notes = {RECORD: text, DIGEST: _digest(text, cache)}
    save_cache(path, cache or make_cache(model), tokens=tokens, fingerprint=fingerprint, notes=notes)


def load_state(
    path: Path, model: HeliumForCausalLM, tokenizer: HeliumTokenizer, fingerprint: Mapping[str, str]
) -> tuple[CompletionRequest, list[KVCache] | None]:
    """Return what `save_state` wrote. Raises CheckpointError, one line, for anything else."""
    # The user's own link may lead anywhere.
    target = Path(os.path.realpath(path))
    _, metadata = header_of(target)
    if RECORD not in metadata:
        raise CheckpointError(f"{path}: holds no generation; name a file that `save` of a stream has written")
    cache, held = load_fitting(target, model, fingerprint, make_cache(model))
    try:
        request = _checked(parse_json_object(metadata[RECORD].encode()), model, tokenizer)
    except (MalformedFile, UnicodeEncodeError, HeliumError) as error:
        raise CheckpointError(f"{path}: its generation cannot be resumed: {error}; name another file") from None
    if held and list(held) != [*request.prompt, *request.generated][:-1]:
        raise CheckpointError(f"{path}: its cache is of other tokens than its generation; name another file")
    if metadata.get(DIGEST) != _digest(metadata[RECORD], cache):
        raise CheckpointError(f"{path}: is not as it was written (its SHA-256 differs); name another file")
    return request, cache if held else None


def _digest(record: str, cache: Sequence[KVCache]) -> str:
    digest = hashlib.sha256(record.encode())
    for part in (part for layer in cache for part in layer.parts):
        digest.update(cast(bytes, memoryview(cast(bytes, mx.contiguous(part).view(mx.uint8)))))
    return digest.hexdigest()


def _checked(record: dict[str, object], model: HeliumForCausalLM, tokenizer: HeliumTokenizer) -> CompletionRequest:
    if record.get("version") != VERSION:
        raise MalformedFile(f"its version is {shown(record.get('version'))}, and this program reads {VERSION}")
    prompt, generated = _ids(record, "prompt", model), _ids(record, "generated", model)
    options = record.get("options")
    if isinstance(options, dict):
        options = {**_NEWER, **options}
    if not isinstance(options, dict) or set(options) != set(_OPTIONS):
        raise MalformedFile(f"its options are {shown(options)}")
    for name, kinds in _OPTIONS.items():
        value = options[name]
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            raise MalformedFile(f"its {name} is {shown(value)}")
    count = record.get("max_tokens")
    if type(count) is not int or not len(generated) < count <= 2**30:
        raise MalformedFile(f"its max_tokens is {shown(count)}, after {len(generated)} generated ones")
    bias = options["logit_bias"]
    if bias is not None:
        options = {**options, "logit_bias": bias_by_name(bias)}
    given = CompletionOptions(max_tokens=count, **options)  # pyright: ignore[reportArgumentType]
    request = checked_request(model, tokenizer, prompt, given)
    if len(generated) >= request.count:
        raise MalformedFile(f"its {len(generated)} generated tokens leave no room in the model's context")
    return replace(request, generated=tuple(generated))


def _ids(record: Mapping[str, object], name: str, model: HeliumForCausalLM) -> list[int]:
    ids, vocab_size = record.get(name), model.config.vocab_size
    if not isinstance(ids, list) or not all(type(token) is int and 0 <= token < vocab_size for token in ids):
        raise MalformedFile(f"its {name} is {shown(ids)}; expected ids from 0 to vocab_size - 1 = {vocab_size - 1}")
    return ids
