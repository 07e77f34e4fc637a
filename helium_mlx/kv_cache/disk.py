"""A cache as a file: safetensors with the parts of each layer and one JSON record, read as a stranger's.

The record in the metadata has the kind of cache, its place in the text, the token ids, and a fingerprint of model,
tokenizer and dtype. Nothing is believed before header, record and shapes have been found to agree. Numbers are not
checked: who can write the file can make the model say anything.
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import mlx.core as mx

from helium_mlx.backend import dtype_name
from helium_mlx.checkpoint.config import HeliumConfig
from helium_mlx.errors import CheckpointError, GenerationError, shown
from helium_mlx.files.atomic import replacing
from helium_mlx.files.safetensors_header import TensorInfo, read_header_and_metadata
from helium_mlx.files.safetensors_reader import TensorReader
from helium_mlx.files.safetensors_writer import DTYPE_NAMES, SafetensorsWriter
from helium_mlx.files.untrusted import MalformedFile, parse_json_object
from helium_mlx.kv_cache.cache import KVCache, QuantizedKVCache
from helium_mlx.kv_cache.make import CachedModel
from helium_mlx.kv_cache.rotating import MAX_SIZE, SPARE, RotatingKVCache
from helium_mlx.option_values import path_of, require_whole, token_ids
from helium_mlx.process import require_not_forked

RECORD = "helium_mlx_cache"

# To be raised with anything that changes what parts hold, `rotating.SPARE` included.
VERSION = 1
MAX_LAYERS = 1000
MAX_TOKENS = MAX_SIZE
_DTYPES = {"bfloat16": mx.bfloat16, "float16": mx.float16, "float32": mx.float32}
_PART_NAMES = {1: ("",), 3: (".codes", ".scales", ".biases")}


def save_cache(
    path: str | Path,
    cache: Sequence[KVCache],
    *,
    tokens: Sequence[int] = (),
    fingerprint: Mapping[str, str] | None = None,
    notes: Mapping[str, str] | None = None,
) -> None:
    """Write a cache of one kind in all layers, as `make_cache` makes it; a file of that name is replaced in one step.

    `tokens` are the ids that it holds, for `reuse`; `fingerprint` is what `fingerprint_of` returns; `notes` are kept in
    the metadata beside the record.

    Raises GenerationError for a cache whose layers differ, or that holds another number of tokens, and CheckpointError
    where the file cannot be written.
    """
    require_not_forked("save the cache there")
    path = path_of(path)
    record = _record(cache, tokens, fingerprint or {})
    arrays = {name: part for layer, one in enumerate(cache) for name, part in _named(layer, one.parts)}
    plans = {name: (part.dtype, part.shape) for name, part in arrays.items()}
    with replacing(path) as temporary:
        metadata = {**(notes or {}), RECORD: json.dumps(record, separators=(",", ":"))}
        with SafetensorsWriter(temporary, plans, metadata=metadata) as writer:
            for name, part in arrays.items():
                writer.write(name, part)


def load_cache(path: str | Path) -> list[KVCache]:
    """Return the cache that `save_cache` wrote. Raises CheckpointError, one line, for anything else."""
    require_not_forked("load the cache there")
    return _read(path_of(path)).cache


def load_fitting(
    path: str | Path, model: CachedModel, fingerprint: Mapping[str, str], empty: Sequence[KVCache]
) -> tuple[list[KVCache], tuple[int, ...]]:
    """Return the cache in a file, for this model, and the tokens that it holds. `empty` is one of the kind expected.

    Raises CheckpointError for a file that is damaged, or that was written with another model, tokenizer or kind.
    """
    require_not_forked("load the cache there")
    path = Path(path)
    saved = _read(path)
    _require_same(path, saved, fingerprint, empty)
    _require_fit(path, saved, model.config)
    return saved.cache, saved.tokens


@dataclass(frozen=True)
class _Saved:
    """What a file holds. `kind` is `KVCache.kind`, `shape` (B, n_kv_heads, head_dim), None before the first token."""

    cache: list[KVCache]
    tokens: tuple[int, ...]
    fingerprint: dict[str, str]
    kind: dict[str, int]
    shape: tuple[int, int, int] | None


def _new(kind: Mapping[str, int]) -> KVCache:
    bits, group_size = kind.get("bits"), kind.get("group_size", 64)
    if "max_size" in kind:
        return RotatingKVCache(kind["max_size"], kind["keep"], bits=bits, group_size=group_size)
    return KVCache() if bits is None else QuantizedKVCache(bits, group_size)


def _options(kind: Mapping[str, int]) -> str:
    names = {"max_size": "max_kv_size", "keep": "keep", "bits": "kv_bits", "group_size": "kv_group_size"}
    return " ".join(f"{names[key]} {value}" for key, value in kind.items() if key != "keep" or value != 1) or (
        "neither max_kv_size nor kv_bits"
    )


def _named(layer: int, parts: Sequence[mx.array]) -> Iterator[tuple[str, mx.array]]:
    half = len(parts) // 2
    for side, arrays in (("keys", parts[:half]), ("values", parts[half:])):
        for suffix, array in zip(_PART_NAMES[half] if half else (), arrays, strict=True):
            yield f"layers.{layer}.{side}{suffix}", array


# --- writing


def _record(cache: Sequence[KVCache], tokens: Sequence[int], fingerprint: Mapping[str, str]) -> dict[str, object]:
    if not isinstance(cache, (list, tuple)) or not all(isinstance(one, KVCache) for one in cache):
        raise GenerationError(f"cache is {shown(cache)}; give a list of caches, one a layer: make_cache")
    if not cache or any((one.kind, one.offset) != (cache[0].kind, cache[0].offset) for one in cache):
        raise GenerationError("the cache has no layers, or layers of different kinds or lengths; make it by make_cache")
    if fingerprint and not all(isinstance(text, str) for pair in fingerprint.items() for text in pair):
        raise GenerationError(f"fingerprint is {shown(fingerprint)}; give what fingerprint_of returns")
    ids = token_ids("tokens", tokens, 2**31)
    if ids:
        require_tokens(cache, ids)
    first = cache[0]
    heads_and_dim = first.heads_and_dim if first.slots else None
    return {
        "version": VERSION,
        "kind": first.kind,
        "layers": len(cache),
        "offset": first.offset,
        "written": first.written,
        "shape": None if heads_and_dim is None else [first.batch_size, *heads_and_dim],
        "dtype": None if first.dtype is None or heads_and_dim is None else dtype_name(first.dtype),
        "tokens": ids,
        "fingerprint": dict(fingerprint),
    }


def require_tokens(cache: Sequence[KVCache], tokens: Sequence[int]) -> None:
    """Raise GenerationError unless the cache of every layer holds as many tokens as are said to be in it."""
    if any(layer.offset != len(tokens) for layer in cache):
        raise GenerationError(
            f"the cache holds {cache[0].offset} tokens, and {len(tokens)} came with it; give those that it has seen"
        )


# --- reading


def _read(path: Path) -> _Saved:
    """Return what a file holds, its arrays read. Raises CheckpointError for anything that does not fit together."""
    # The user's own link may lead anywhere.
    target = Path(os.path.realpath(path))
    infos, metadata = header_of(target)
    try:
        return _checked(infos, metadata, target)
    except (MalformedFile, GenerationError) as error:
        raise CheckpointError(f"{path}: holds no cache that can be used: {error}; name another file") from None


def header_of(path: Path) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    """Do what `read_header_and_metadata` does, with errors that speak of no checkpoint."""
    try:
        return read_header_and_metadata(path)
    except CheckpointError as error:
        # What to do with it is another thing.
        raise CheckpointError(f"{str(error).rpartition('; ')[0]}; name another file") from None


def _checked(infos: dict[str, TensorInfo], metadata: Mapping[str, str], path: Path) -> _Saved:
    if RECORD not in metadata:
        raise MalformedFile("its metadata has no record of one")
    try:
        record = parse_json_object(metadata[RECORD].encode())
    except UnicodeEncodeError:
        raise MalformedFile("its record is no UTF-8") from None
    if record.get("version") != VERSION:
        raise MalformedFile(f"its version is {shown(record.get('version'))}, and this program reads {VERSION}")
    kind = _checked_kind(record.get("kind"))
    layers = _whole(record, "layers", 1, MAX_LAYERS)
    offset = _whole(record, "offset", 0, MAX_TOKENS)
    written = _whole(record, "written", offset, MAX_TOKENS)
    cache = [_new(kind) for _ in range(layers)]
    if not _is_place(cache[0], offset, written):
        raise MalformedFile(f"its offset {offset} does not go with the {written} tokens that were written")
    tokens = _checked_tokens(record.get("tokens"), offset)
    fingerprint = record.get("fingerprint")
    if not isinstance(fingerprint, dict) or not all(isinstance(value, str) for value in fingerprint.values()):
        raise MalformedFile(f"its fingerprint is {shown(fingerprint)}")
    slots = cache[0].slots_for(written)
    shape = None
    if slots:
        shape = _checked_shape(record.get("shape"))
        dtype = _DTYPES.get(str(record.get("dtype")))
        if dtype is None:
            raise MalformedFile(f"its dtype is {shown(record.get('dtype'))}; it must be {', '.join(_DTYPES)}")
        _fill(cache, infos, path, shape, dtype, offset, written, slots)
    elif infos:
        raise MalformedFile(f"it has {len(infos)} tensors and no tokens")
    return _Saved(cache, tokens, cast("dict[str, str]", fingerprint), kind, shape)


def _fill(
    cache: list[KVCache],
    infos: dict[str, TensorInfo],
    path: Path,
    shape: tuple[int, int, int],
    dtype: mx.Dtype,
    offset: int,
    written: int,
    slots: int,
) -> None:
    B, n_kv_heads, head_dim = shape
    storage = cache[0].storage
    storage.require_fit(head_dim)
    layout = storage.part_layout(head_dim, dtype)
    names = [
        [f"layers.{layer}.{side}{suffix}" for side in ("keys", "values") for suffix in _PART_NAMES[len(layout)]]
        for layer in range(len(cache))
    ]
    expected = {name: part for row in names for name, part in zip(row, layout * 2, strict=True)}
    wrong = next(iter(expected.keys() ^ infos.keys()), None)
    if wrong is not None:
        raise MalformedFile(f"tensor {shown(wrong)} is {'missing' if wrong in expected else 'not one of a cache'}")
    for name, (width, part_dtype) in expected.items():
        info = infos[name]
        # Scales and biases are float32 where a CPU wrote the file, whatever the model's dtype.
        allowed = [DTYPE_NAMES[part_dtype]] if part_dtype == mx.uint32 or len(layout) == 1 else ["F32", "BF16", "F16"]
        if info.shape != (B, n_kv_heads, slots, width) or info.dtype not in allowed:
            raise MalformedFile(
                f"tensor {name} is {info.dtype} of shape {shown(info.shape)}; "
                f"expected {allowed[0]} of {shown((B, n_kv_heads, slots, width))}"
            )
    reader = TensorReader(path)
    for one, row in zip(cache, names, strict=True):
        parts = [reader.read(infos[name]).astype(expected[name][1]) for name in row]
        one.restore(parts, offset=offset, written=written, dtype=dtype)
        mx.eval(parts)
    reader.require_unchanged()


def _checked_kind(kind: object) -> dict[str, int]:
    known = [(), ("max_size", "keep"), ("bits", "group_size"), ("max_size", "keep", "bits", "group_size")]
    if not isinstance(kind, dict) or set(kind) not in map(set, known):
        raise MalformedFile(f"its kind of cache is {shown(kind)}")
    names = next(names for names in known if set(names) == set(kind))
    return {name: _whole(kind, name, 0, MAX_TOKENS) for name in names}


def _checked_tokens(tokens: object, offset: int) -> tuple[int, ...]:
    if not isinstance(tokens, list) or len(tokens) not in (0, offset):
        raise MalformedFile(f"its tokens are {shown(tokens)}; expected {offset} ids, or none")
    if not all(type(token) is int and 0 <= token < 2**31 for token in tokens):
        raise MalformedFile("its tokens are not all ids")
    return tuple(tokens)


def _checked_shape(shape: object) -> tuple[int, int, int]:
    if not isinstance(shape, list) or len(shape) != 3:
        raise MalformedFile(f"its shape is {shown(shape)}; expected rows, heads and head dimension")
    sizes = {str(index): value for index, value in enumerate(shape)}
    B, n_kv_heads, head_dim = (_whole(sizes, str(index), 1, 2**20) for index in range(3))
    return B, n_kv_heads, head_dim


def _is_place(cache: KVCache, offset: int, written: int) -> bool:
    """Whether a cache of this kind can have seen `offset` tokens after `written` were written."""
    if isinstance(cache, RotatingKVCache) and written > cache.max_slots:
        return written - offset <= SPARE + 1
    return written == offset


def _whole(values: Mapping[str, object], name: str, low: int, high: int) -> int:
    return require_whole(f"its {name}", values.get(name), low, high, error=MalformedFile)


def _require_same(path: Path, saved: _Saved, fingerprint: Mapping[str, str], empty: Sequence[KVCache]) -> None:
    different = [name for name, value in fingerprint.items() if saved.fingerprint.get(name) != value]
    if different:
        raise CheckpointError(
            f"{path}: was written with another {' and '.join(different)}; use what it was written with, delete it, or "
            "name another file"
        )
    if saved.kind != empty[0].kind:
        raise CheckpointError(
            f"{path}: was written with {_options(saved.kind)}, and this run has {_options(empty[0].kind)}; give the "
            "same, delete it, or name another file"
        )


def _require_fit(path: Path, saved: _Saved, config: HeliumConfig) -> None:
    came = (len(saved.cache), None if saved.shape is None else saved.shape)
    expected = (config.num_hidden_layers, (1, config.num_key_value_heads, config.head_dim))
    if came[0] != expected[0] or came[1] not in (None, expected[1]):
        raise CheckpointError(
            f"{path}: has {came[0]} layers of (rows, heads, head_dim) {came[1]}; this model needs {expected[0]} of "
            f"{expected[1]}; delete it, or name another file"
        )
    if len(saved.tokens) != saved.cache[0].offset or any(token >= config.vocab_size for token in saved.tokens):
        raise CheckpointError(
            f"{path}: does not name the {saved.cache[0].offset} tokens that it holds, or has ids from vocab_size "
            f"{config.vocab_size} on; delete it, or name another file"
        )
    dtypes = {dtype_name(one.dtype) for one in saved.cache if one.dtype is not None}
    if dtypes - {saved.fingerprint["dtype"]}:
        raise CheckpointError(
            f"{path}: holds {', '.join(dtypes)}, and its fingerprint says {saved.fingerprint['dtype']}; delete it, or "
            "name another file"
        )
