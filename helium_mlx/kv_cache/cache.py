"""The key-value cache: what attention has seen so far, one cache a layer.

A cache is lazy: it records array operations and evaluates none. It owns the attention over what it holds, so that the
model does not need to know how keys and values are stored (`storage.py`) or which of them are kept: all of them
(here), or the first and the last (`rotating.py`). Any storage goes with any of the two.

Interface: `offset` (tokens seen, hence the position of the next), `mask(length)` for a call with `length` new tokens,
`attend(queries, keys, values)`, `nbytes`, `state` (the arrays to evaluate), `trimmable`, `trim(n)`, `copy()`, and
`in_use`, while a run of `stream_generate` has it.

Keys and values share their arrays, so that what comes in one array, `attend_joined`, is written by one kernel.
"""

import copy
from collections.abc import Sequence
from typing import TypeVar

import mlx.core as mx

from helium_mlx.kv_cache.masks import Mask, causal_mask
from helium_mlx.kv_cache.storage import PlainStorage, QuantizedStorage, Storage

Cache = TypeVar("Cache", bound="KVCache")
Rows = list[mx.array]
"""What is new of a part: the rows of keys and those of values, (B, n_kv_heads, L, width) each, or both in one array."""


class KVCache:
    """Keeps every token. Arrays: a part each, (2 * B, n_kv_heads, capacity, width), the rows of keys, then of values.

    The first `offset` tokens of the capacity are in use. It grows by a quarter, in multiples of `step` tokens, and
    stops at `reserved`, if that is known: so what is there is copied about four times in all however long the text
    gets, and at most a quarter of the memory is spare.
    """

    # What is set here takes effect: there is nothing else to set.
    __slots__ = ("_dtype", "_held", "in_use", "offset", "reserved", "storage")

    step = 256

    def __init__(self, *, storage: Storage | None = None) -> None:
        self.storage: Storage = PlainStorage() if storage is None else storage
        self.offset = 0
        self.reserved = 0
        self.in_use = False
        self._dtype: mx.Dtype | None = None
        self._held: list[mx.array] = []

    def reserve(self, tokens: int) -> None:
        """Say how many tokens there will be in all; memory is still taken as the text grows."""
        self.reserved = tokens

    def mask(self, length: int) -> Mask:
        """Return the attention mask for `length` new tokens, over the keys that `update_and_fetch` will return."""
        return causal_mask(length)

    def restrict(self, mask: Mask, length: int) -> Mask:
        """Return a caller's mask for `length` new tokens over all that came, (..., length, offset + length), for those
        keys that `update_and_fetch` will return."""
        return mask

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Append keys and values of shape (B, n_kv_heads, L, head_dim); return all that attention is to see."""
        dtype, held = keys.dtype, self._append(keys, values)
        half = len(held) // 2
        return self.storage.unpack(held[:half], dtype), self.storage.unpack(held[half:], dtype)

    def attend(self, queries: mx.array, keys: mx.array, values: mx.array, *, scale: float, mask: Mask) -> mx.array:
        """Append keys and values, and return the attention of `queries`, shape (B, n_heads, L, head_dim)."""
        return self._attend(queries, self._append(keys, values), scale, mask)

    def attend_joined(self, queries: mx.array, keys_values: mx.array, *, scale: float, mask: Mask) -> mx.array:
        """Do what `attend` does, with the rows of keys and those of values in one (2 * B, n_kv_heads, L, head_dim)."""
        self._dtype = keys_values.dtype
        return self._attend(queries, self._place([[part] for part in self.storage.pack(keys_values)]), scale, mask)

    def _attend(self, queries: mx.array, held: list[mx.array], scale: float, mask: Mask) -> mx.array:
        half = len(held) // 2
        return self.storage.attend(queries, held[:half], held[half:], scale=scale, mask=mask)

    def trim(self, tokens: int) -> int:
        """Forget the last `tokens` tokens, or all if there are fewer; return how many were forgotten."""
        tokens = min(self.offset, tokens)
        self.offset -= tokens
        return tokens

    def reorder_cache(self, beam_idx: mx.array) -> None:
        """Have each row go on from what row `beam_idx`, integers (B,), of what is held has seen."""
        rows = self.batch_size
        if rows is not None:
            both = mx.concatenate([beam_idx, beam_idx + rows])
            self._held = [mx.take(part, both, axis=0) for part in self._held]

    def copy(self: Cache) -> Cache:
        """Return a cache that holds the same and goes its own way; memory is shared until one of the two is written."""
        other = copy.copy(self)
        other.in_use = False
        # Writing to a slice of an mx.array changes the Python object, which the two must not share.
        other._held = [copy.copy(part) for part in self._held]
        return other

    def empty(self: Cache) -> Cache:
        """Return an empty cache of the same kind."""
        other = copy.copy(self)
        other.offset, other.reserved, other._dtype, other._held = 0, 0, None, []
        other.in_use = False
        return other

    @property
    def dtype(self) -> mx.Dtype | None:
        """What the keys and values came in; None before the first."""
        return self._dtype

    @property
    def kind(self) -> dict[str, int]:
        """The settings of a cache, those that it has: `max_size`, `keep`, `bits`, `group_size`."""
        if self.storage.bits is None or self.storage.group_size is None:
            return {}
        return {"bits": self.storage.bits, "group_size": self.storage.group_size}

    @property
    def parts(self) -> list[mx.array]:
        """The parts of keys, then of values, without spare room, (B, n_kv_heads, slots in use, width); empty at 0."""
        return both_sides(self._held, self.slots) if self.slots else []

    def restore(self, parts: Sequence[mx.array], *, offset: int, written: int, dtype: mx.Dtype) -> None:
        """Take up where a cache of the same kind was whose `parts`, `offset` and so on these were, unchecked."""
        half = len(parts) // 2
        self._held = [mx.concatenate(list(sides)) for sides in zip(parts[:half], parts[half:], strict=True)]
        self.offset, self._dtype = offset, dtype

    def slots_for(self, tokens: int) -> int:
        """Return how many tokens' memory is in use once so many were written."""
        return tokens

    @property
    def slots(self) -> int:
        """How many tokens' memory is in use."""
        return self.slots_for(self.written)

    @property
    def written(self) -> int:
        """Tokens written: more than `offset` where some were taken back whose places others still have."""
        return self.offset

    @property
    def heads_and_dim(self) -> tuple[int, int] | None:
        """Key-value heads and head dimension of what is held; None before the first token."""
        return (self._held[0].shape[1], self.storage.head_dim(self._held)) if self._held else None

    @property
    def batch_size(self) -> int | None:
        """Rows of what is held; None before the first token."""
        return self._held[0].shape[0] // 2 if self._held else None

    @property
    def trimmable(self) -> int:
        """How many of the last tokens `trim` can forget."""
        return self.offset

    @property
    def is_trimmable(self) -> bool:
        """Whether `trim` can forget any number of tokens."""
        return self.trimmable >= self.offset

    @property
    def state(self) -> list[mx.array]:
        """The arrays held, for `mx.eval`; empty before the first token."""
        return self._held

    @property
    def nbytes(self) -> int:
        """Bytes held, spare room included."""
        return sum(array.nbytes for array in self._held)

    def _append(self, keys: mx.array, values: mx.array) -> list[mx.array]:
        """Append keys and values; return the parts that attention is to see, those of the keys first."""
        self._dtype = keys.dtype
        sides = zip(self.storage.pack(keys), self.storage.pack(values), strict=True)
        return self._place([list(both) for both in sides])

    def _place(self, new: list[Rows]) -> list[mx.array]:
        start, end = self.offset, self.offset + new[0][0].shape[2]
        if not self._held:
            self._held = [_empty(rows, self._capacity(end)) for rows in new]
        elif end > self._held[0].shape[2]:
            capacity = self._capacity(end)
            self._held = [with_room(part[..., :start, :], capacity - start) for part in self._held]
        for held, rows in zip(self._held, new, strict=True):
            write_rows(held, start, end, rows)
        self.offset = end
        return both_sides(self._held, end)

    def _capacity(self, needed: int) -> int:
        held = self._held[0].shape[2] if self._held else 0
        grown = max(needed, held + max(self.step, held // 4))
        rounded = -(-grown // self.step) * self.step
        return min(rounded, self.reserved) if needed <= self.reserved else rounded


class QuantizedKVCache(KVCache):
    """Keeps every token, in `bits` bits a number: 4, 5, 6 or 8. `group_size` (32, 64 or 128) must divide head_dim.

    Raises GenerationError for other bits or group sizes.
    """

    __slots__ = ()

    def __init__(self, bits: int = 8, group_size: int = 64) -> None:
        super().__init__(storage=QuantizedStorage(bits, group_size))


def write_rows(held: mx.array, start: int, end: int, rows: Rows) -> None:
    """Write the slots from `start` to `end` of (2 * B, n_kv_heads, capacity, width)."""
    if len(rows) == 1:
        held[:, :, start:end] = rows[0]
        return
    keys, values = rows
    held[: keys.shape[0], :, start:end] = keys
    held[keys.shape[0] :, :, start:end] = values


def both_sides(held: Sequence[mx.array], slots: int) -> list[mx.array]:
    """Return the first `slots` slots of the parts of keys, then of those of values."""
    if len(held) == 1:
        keys, values = mx.split(held[0][:, :, :slots], 2)
        return [keys, values]
    rows = held[0].shape[0] // 2
    return [part[:rows, :, :slots] for part in held] + [part[rows:, :, :slots] for part in held]


def _empty(rows: Rows, capacity: int) -> mx.array:
    _, n_kv_heads, _, width = rows[0].shape
    return mx.zeros((sum(block.shape[0] for block in rows), n_kv_heads, capacity, width), rows[0].dtype)


def with_room(x: mx.array, tokens: int) -> mx.array:
    """Return (2 * B, n_kv_heads, T, width) with room for `tokens` more tokens, zeros, after it."""
    if tokens == 0:
        return x
    B, n_kv_heads, _, width = x.shape
    return mx.concatenate([x, mx.zeros((B, n_kv_heads, tokens, width), x.dtype)], axis=2)
