"""What a key-value cache costs, before it is made, and whether it fits beside the weights.

    print(describe(config, 4096, dtype=mx.bfloat16))   # KV cache: 245,760 bytes a token, 1.01 GB for 4096 tokens
    require_fits(weights_bytes, config, 4096, dtype=mx.bfloat16)

Counted are the weights and the cache at its full length. What a forward pass needs beside them, a tenth of a gigabyte
or so, is not: the limit that Metal recommends leaves room for that. Sizes are bytes, and gigabytes of 1e9.
"""

import os
from collections.abc import Mapping

import mlx.core as mx

from helium_mlx.checkpoint.config import HeliumConfig
from helium_mlx.errors import GenerationError
from helium_mlx.kv_cache.make import CachedModel, caches_for
from helium_mlx.kv_cache.rotating import SPARE
from helium_mlx.kv_cache.storage import KV_GROUP_SIZES


def bytes_per_token(
    config: HeliumConfig, *, kv_bits: int | None = None, kv_group_size: int = 64, dtype: mx.Dtype = mx.bfloat16
) -> int:
    """Return what one token takes in the caches of all layers, scales and biases included.

    `dtype` is the one that the model computes in. Raises GenerationError for bits or groups that do not fit.
    """
    layers = caches_for(config, max_kv_size=None, kv_bits=kv_bits, kv_group_size=kv_group_size)
    per_head = sum(width * part.size for width, part in layers[0].storage.part_layout(config.head_dim, dtype))
    return 2 * len(layers) * config.num_key_value_heads * per_head


def cache_bytes(
    config: HeliumConfig,
    tokens: int,
    *,
    max_kv_size: int | None = None,
    kv_bits: int | None = None,
    kv_group_size: int = 64,
    dtype: mx.Dtype = mx.bfloat16,
) -> int:
    """Return what the caches of all layers take once they have seen `tokens` tokens."""
    layers = caches_for(config, max_kv_size=max_kv_size, kv_bits=kv_bits, kv_group_size=kv_group_size)
    return layers[0].slots_for(tokens) * bytes_per_token(
        config, kv_bits=kv_bits, kv_group_size=kv_group_size, dtype=dtype
    )


def describe(
    config: HeliumConfig,
    tokens: int,
    *,
    max_kv_size: int | None = None,
    kv_bits: int | None = None,
    kv_group_size: int = 64,
    dtype: mx.Dtype = mx.bfloat16,
) -> str:
    """Return the line to print before a long run: bytes a token, and the total for `tokens` tokens."""
    each = bytes_per_token(config, kv_bits=kv_bits, kv_group_size=kv_group_size, dtype=dtype)
    total = cache_bytes(
        config, tokens, max_kv_size=max_kv_size, kv_bits=kv_bits, kv_group_size=kv_group_size, dtype=dtype
    )
    kept = total // each
    held = f"{tokens} tokens" if kept >= tokens else f"the {kept} of {tokens} tokens that it keeps"
    return f"KV cache: {each:,} bytes a token, {shown_bytes(total)} for {held}"


def working_set_bytes() -> int | None:
    """Return how much memory a run should stay within: what Metal recommends, else all there is; None if not known."""
    recommended = mx.device_info().get("max_recommended_working_set_size")
    if isinstance(recommended, int) and recommended > 0:
        return recommended
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None
    return total if total > 0 else None


def require_fits(
    weights_bytes: int,
    config: HeliumConfig,
    tokens: int,
    *,
    max_kv_size: int | None = None,
    kv_bits: int | None = None,
    kv_group_size: int = 64,
    dtype: mx.Dtype = mx.bfloat16,
    limit: int | None = None,
) -> None:
    """Raise GenerationError if weights and a cache of `tokens` tokens are over `limit`, by default the working set.

    The error has the figures and the options of which each would make it fit.
    """
    limit = working_set_bytes() if limit is None else limit
    needed = cache_bytes(
        config, tokens, max_kv_size=max_kv_size, kv_bits=kv_bits, kv_group_size=kv_group_size, dtype=dtype
    )
    if limit is None or weights_bytes + needed <= limit:
        return
    remedy = _remedy(config, tokens, limit - weights_bytes, max_kv_size, kv_bits, kv_group_size, dtype)
    raise _too_large(weights_bytes, needed, f"{tokens} tokens", limit, remedy)


def require_run_fits(model: CachedModel, tokens: int, kind: Mapping[str, int]) -> None:
    """Raise GenerationError unless a run of `tokens` tokens, prompt included, fits beside the weights of `model`.

    `kind`: the settings of its cache, `KVCache.kind`.
    """
    require_fits(
        bytes_in_memory(model), model.config, tokens, dtype=model.dtype,
        max_kv_size=kind.get("max_size"), kv_bits=kind.get("bits"), kv_group_size=kind.get("group_size", 64),
    )  # fmt: skip


def require_batch_fits(model: CachedModel, rows: int, tokens: int) -> None:
    """Raise GenerationError unless `rows` rows of `tokens` tokens, prompts included, fit beside the weights of `model`.

    A row takes as much as the longest beside it (`batch.py`), so `tokens` are those of the longest.
    """
    limit, weights = working_set_bytes(), bytes_in_memory(model)
    each = cache_bytes(model.config, tokens, dtype=model.dtype)
    if limit is None or weights + rows * each <= limit:
        return
    fitting = (limit - weights) // each
    what = f"{rows} rows of {tokens} tokens"
    raise _too_large(weights, rows * each, what, limit, f"give batch_size {fitting}" if fitting > 0 else "")


def bytes_in_memory(model: CachedModel) -> int:
    """Return what the weights of a model take; counts them, which takes a tenth of a millisecond or a few."""
    return sum(tensor.nbytes for tensor in model.tensors().values())


def _too_large(weights: int, cache: int, what: str, limit: int, remedy: str) -> GenerationError:
    return GenerationError(
        f"weights of {shown_bytes(weights)} and a KV cache of {shown_bytes(cache)} for {what} are over the "
        f"{shown_bytes(limit)} that this device recommends; {remedy or 'take a smaller or quantized model'}"
    )


def _remedy(
    config: HeliumConfig,
    tokens: int,
    room: int,
    max_kv_size: int | None,
    kv_bits: int | None,
    kv_group_size: int,
    dtype: mx.Dtype,
) -> str:
    """Return the options that make the cache fit into `room` bytes; "" if none does."""
    options: list[str] = []
    for bits in (8, 4):
        group = kv_group_size if config.head_dim % kv_group_size == 0 else _group_size(config.head_dim)
        if group is None or (kv_bits is not None and bits >= kv_bits):
            continue
        size = cache_bytes(config, tokens, max_kv_size=max_kv_size, kv_bits=bits, kv_group_size=group, dtype=dtype)
        if size <= room:
            options.append(f"kv_bits {bits}" + ("" if group == kv_group_size else f" with kv_group_size {group}"))
            break
    slots = room // bytes_per_token(config, kv_bits=kv_bits, kv_group_size=kv_group_size, dtype=dtype)
    if slots - SPARE >= 2:
        options.append(f"max_kv_size {slots - SPARE}")
    return f"give {' or '.join(options)}" if options else ""


def _group_size(head_dim: int) -> int | None:
    return next((size for size in KV_GROUP_SIZES if head_dim % size == 0), None)


def shown_bytes(count: int) -> str:
    """Return a number of bytes in GB, a small one in MB."""
    return f"{count / 1e9:.2f} GB" if abs(count) >= 1e8 else f"{count / 1e6:.1f} MB"
