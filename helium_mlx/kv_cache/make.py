"""Makes the caches of a model: one a layer, of the kind that was asked for."""

from collections.abc import Sequence
from typing import Protocol

import mlx.core as mx

from helium_mlx.checkpoint.config import HeliumConfig
from helium_mlx.kv_cache.cache import Cache, KVCache, QuantizedKVCache
from helium_mlx.kv_cache.rotating import RotatingKVCache
from helium_mlx.kv_cache.storage import QuantizedStorage, require_group_size


class CachedModel(Protocol):
    """What caches have to know of the model that fills them."""

    config: HeliumConfig

    @property
    def dtype(self) -> mx.Dtype:
        """What the model computes in, and caches unless they are quantized."""
        ...

    def tensors(self) -> dict[str, mx.array]:
        """Return every parameter by its name."""
        ...


def new_cache(layers: int) -> list[KVCache]:
    """Return an empty cache for each of `layers` layers."""
    return [KVCache() for _ in range(layers)]


def make_cache(
    model: CachedModel,
    *,
    max_kv_size: int | None = None,
    kv_bits: int | None = None,
    kv_group_size: int = 64,
) -> list[KVCache]:
    """Return an empty cache for each layer of `model`.

    With `max_kv_size` the cache rotates: attention sees the first token and the last `max_kv_size` - 1. One above the
    model's context never comes to rotate. With `kv_bits` keys and values are quantized. Both go together.

    Raises GenerationError for a size below 2, and for bits or a group size that MLX or the model's heads do not allow.
    """
    return caches_for(model.config, max_kv_size=max_kv_size, kv_bits=kv_bits, kv_group_size=kv_group_size)


def caches_for(
    config: HeliumConfig, *, max_kv_size: int | None, kv_bits: int | None, kv_group_size: int
) -> list[KVCache]:
    """Return what `make_cache` returns for a model of this config."""
    require_group_size(kv_group_size)
    if kv_bits is not None:
        QuantizedStorage(kv_bits, kv_group_size).require_fit(config.head_dim)

    def one() -> KVCache:
        if max_kv_size is not None:
            return RotatingKVCache(max_kv_size, bits=kv_bits, group_size=kv_group_size)
        return KVCache() if kv_bits is None else QuantizedKVCache(kv_bits, kv_group_size)

    return [one() for _ in range(config.num_hidden_layers)]


def copy_cache(cache: Sequence[Cache]) -> list[Cache]:
    """Return a copy of each layer's cache; what then happens to one does not happen to the other.

    It costs nothing by itself: memory is shared until one of the two is written.
    """
    return [layer.copy() for layer in cache]
