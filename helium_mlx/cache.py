"""The key-value cache: what attention has seen so far, one cache a layer.

A cache is lazy: it records array operations and evaluates none. It owns the attention over what it holds, so that the
model does not need to know how keys and values are stored.

Interface: `offset` (tokens seen, hence the position of the next), `mask(length)` for a call with `length` new tokens,
`attend(queries, keys, values)`, `nbytes`, `state` (the arrays to evaluate), `is_trimmable`, `trim(n)`.
"""

from typing import TYPE_CHECKING

import mlx.core as mx

if TYPE_CHECKING:
    from helium_mlx.pretrained import HeliumPreTrainedModel

Mask = str | mx.array | None
"""What `mx.fast.scaled_dot_product_attention` takes: "causal", boolean (True = attend), additive, or nothing."""


def causal_mask(length: int) -> Mask:
    """Return the mask for `length` queries at the end of what is cached; a single query sees everything."""
    return None if length == 1 else "causal"


class KVCache:
    """Keeps every token. Shapes: keys and values (B, n_kv_heads, capacity, head_dim), the first `offset` in use.

    Capacity grows by a quarter, in multiples of `step` tokens, and stops at `reserved`, if that is known: so what is
    there is copied about four times in all however long the text gets, and at most a quarter of the memory is spare.
    """

    step = 256

    def __init__(self) -> None:
        self.keys: mx.array | None = None
        self.values: mx.array | None = None
        self.offset = 0
        self.reserved = 0

    def reserve(self, tokens: int) -> None:
        """Say how many tokens there will be in all; memory is still taken as the text grows."""
        self.reserved = tokens

    def mask(self, length: int) -> Mask:
        """Return the attention mask for `length` new tokens."""
        return causal_mask(length)

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Append keys and values of shape (B, n_kv_heads, L, head_dim); return all that are held."""
        start, end = self.offset, self.offset + keys.shape[2]
        if self.keys is None or self.values is None:
            spare = self._capacity(end) - end
            self.keys, self.values = _with_room(keys, spare), _with_room(values, spare)
        else:
            if end > self.keys.shape[2]:
                spare = self._capacity(end) - start
                self.keys = _with_room(self.keys[..., :start, :], spare)
                self.values = _with_room(self.values[..., :start, :], spare)
            self.keys[..., start:end, :] = keys
            self.values[..., start:end, :] = values
        self.offset = end
        return self.keys[..., :end, :], self.values[..., :end, :]

    def attend(self, queries: mx.array, keys: mx.array, values: mx.array, *, scale: float, mask: Mask) -> mx.array:
        """Append keys and values, and return the attention of `queries`, shape (B, n_heads, L, head_dim)."""
        keys, values = self.update_and_fetch(keys, values)
        return mx.fast.scaled_dot_product_attention(queries, keys, values, scale=scale, mask=mask)

    def trim(self, tokens: int) -> int:
        """Forget the last `tokens` tokens; return how many were forgotten."""
        tokens = min(self.offset, tokens)
        self.offset -= tokens
        return tokens

    @property
    def heads_and_dim(self) -> tuple[int, int] | None:
        """Key-value heads and head dimension of what is held; None before the first token."""
        return None if self.keys is None else (self.keys.shape[1], self.keys.shape[3])

    @property
    def batch_size(self) -> int | None:
        """Rows of what is held; None before the first token."""
        return None if self.keys is None else self.keys.shape[0]

    @property
    def is_trimmable(self) -> bool:
        """Whether `trim` can forget any number of tokens."""
        return True

    @property
    def state(self) -> list[mx.array]:
        """The arrays held, for `mx.eval`; empty before the first token."""
        return [] if self.keys is None or self.values is None else [self.keys, self.values]

    @property
    def nbytes(self) -> int:
        """Bytes held, spare room included."""
        return sum(array.nbytes for array in self.state)

    def _capacity(self, needed: int) -> int:
        held = 0 if self.keys is None else self.keys.shape[2]
        grown = max(needed, held + max(self.step, held // 4))
        rounded = -(-grown // self.step) * self.step
        return min(rounded, self.reserved) if needed <= self.reserved else rounded


def _with_room(x: mx.array, tokens: int) -> mx.array:
    if tokens == 0:
        return x
    B, n_kv_heads, _, head_dim = x.shape
    return mx.concatenate([x, mx.zeros((B, n_kv_heads, tokens, head_dim), x.dtype)], axis=2)


def new_cache(layers: int) -> list[KVCache]:
    """Return an empty cache for each of `layers` layers."""
    return [KVCache() for _ in range(layers)]


def make_cache(model: "HeliumPreTrainedModel") -> list[KVCache]:
    """Return an empty cache for each layer of `model`."""
    return new_cache(model.config.num_hidden_layers)
