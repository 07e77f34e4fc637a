"""The key-value cache of a batch whose rows differ in length, join and leave: one cache a layer, as in `cache.py`.

All rows end at the same column, so that a step writes one column; a row shorter than the longest begins with padding,
which the mask hides. Whenever rows come or go the cache is written anew, without the columns that no row needs any
longer: a copy of what is held, about what one decoding step reads.

A short row takes as much memory, and as much of attention's time, as the longest row beside it. Which row belongs to
which request is not known here.
"""

from collections.abc import Sequence

import mlx.core as mx

from helium_mlx.kv_cache.cache import KVCache
from helium_mlx.kv_cache.masks import Mask, causal_mask


class BatchKVCache(KVCache):
    """Keys and values (2 * B, n_kv_heads, capacity, head_dim): row r is in the columns padding[r] to `offset`."""

    __slots__ = ("_padding", "_seen", "_starts")

    def __init__(self, padding: Sequence[int]) -> None:
        super().__init__()
        self._padding = tuple(padding)
        self._starts = mx.array(list(padding), dtype=mx.int32)
        self._seen: mx.array | None = None

    @property
    def padding(self) -> tuple[int, ...]:
        """How many columns of padding each row begins with."""
        return self._padding

    @property
    def lengths(self) -> list[int]:
        """Tokens held of each row, hence the position of its next; below 0 while a shorter row's padding goes in."""
        return [self.offset - padding for padding in self.padding]

    def mask(self, length: int) -> Mask:
        """Return the mask for `length` new columns: boolean, (B, 1, length, columns); plain where there is no padding.

        A padding token sees itself: a row of attention that sees nothing at all would be NaN.
        """
        if not any(self.padding):
            return causal_mask(length)
        end = self.offset + length
        if self._seen is None or self._seen.shape[-1] < end:
            # For all the room there is: the tokens that follow see the same.
            self._seen = (mx.arange(self._capacity(end)) >= self._starts[:, None])[:, None, None]
        held = self._seen[..., :end]
        if length == 1:
            return held
        columns = mx.arange(end)
        new = columns[self.offset :, None]
        return (held & (columns <= new)) | (columns == new)

    def copy_rows(self, sources: "Sequence[tuple[BatchKVCache, Sequence[int]]]") -> None:
        """Start filling this empty cache with the last tokens of the given rows of each source, in that order."""
        columns = max(cache.lengths[row] for cache, rows in sources for row in rows)
        first = sources[0][0]
        self._held = [self._copied(part, sources, columns) for part in range(len(first._held))]
        self.offset, self._dtype = columns, first.dtype
        mx.async_eval(self._held)

    def fill(self, rows: Sequence[Sequence[mx.array]]) -> None:
        """Start filling this empty cache with blocks of each row, (2, n_kv_heads, tokens, head_dim), after its padding.

        All rows end at one column: the last of those who have blocks, which others have padding up to.
        """
        columns = max(
            padding + sum(block.shape[2] for block in blocks)
            for padding, blocks in zip(self.padding, rows, strict=True)
            if blocks
        )
        _, n_kv_heads, _, head_dim = next(block for blocks in rows for block in blocks).shape
        self._dtype = next(block.dtype for blocks in rows for block in blocks)

        def empty(tokens: int) -> mx.array:
            return mx.zeros((2, n_kv_heads, tokens, head_dim), self._dtype)

        room = self._capacity(columns) - columns
        filled = [
            mx.concatenate([empty(min(padding, columns)), *blocks, empty(room)], axis=2)
            for padding, blocks in zip(self.padding, rows, strict=True)
        ]
        held = mx.stack(filled, axis=1)
        self._held, self.offset = [held.reshape(-1, *held.shape[2:])], columns

    def clear(self) -> None:
        """Let go of everything that is held."""
        self._held, self.offset = [], 0

    def _copied(self, part: int, sources: "Sequence[tuple[BatchKVCache, Sequence[int]]]", columns: int) -> mx.array:
        _, n_kv_heads, _, width_of_part = sources[0][0]._held[part].shape
        B = len(self.padding)
        copy = mx.zeros((2, B, n_kv_heads, self._capacity(columns), width_of_part), sources[0][0]._held[part].dtype)
        first = 0
        for cache, rows in sources:
            array = cache._held[part]
            width = max(cache.lengths[row] for row in rows)
            block = array.reshape(2, len(cache.padding), *array.shape[1:])[..., cache.offset - width : cache.offset, :]
            if list(rows) != list(range(len(cache.padding))):
                block = mx.take(block, mx.array(list(rows), dtype=mx.int32), axis=1)
            copy[:, first : first + len(rows), :, columns - width : columns] = block
            first += len(rows)
        return copy.reshape(2 * B, *copy.shape[2:])


def regrouped(
    batch: list[BatchKVCache],
    kept: Sequence[int],
    joining: Sequence[tuple[list[BatchKVCache], Sequence[int]]],
    *,
    room: int,
) -> list[BatchKVCache]:
    """Return caches of the rows `kept` of `batch` and, after them, of rows of other caches, perhaps repeated.

    `batch`, which may be empty, is emptied layer by layer, so that there is never more than one layer twice; the others
    stay as they are. `room` is for how many tokens more the longest row may need room.
    """
    parts = [(batch, kept)] if kept else []
    parts += joining
    lengths = [layers[0].lengths[row] for layers, rows in parts for row in rows]
    regrouped = []
    for index in range(len(parts[0][0])):
        cache = BatchKVCache([max(lengths) - length for length in lengths])
        cache.reserve(max(lengths) + room)
        cache.copy_rows([(layers[index], rows) for layers, rows in parts])
        regrouped.append(cache)
        if batch:
            batch[index].clear()
    return regrouped


def copied_block(layers: Sequence[BatchKVCache], row: int, start: int, end: int) -> mx.array:
    """Return a copy of the keys and values of a row's tokens from `start` to `end`, lazily.

    One array, (2 * layers, n_kv_heads, tokens, head_dim): the keys of a layer and then its values, layer by layer.
    """
    padding, sides = layers[0].padding, (row, len(layers[0].padding) + row)
    columns = slice(padding[row] + start, padding[row] + end)
    return mx.stack([layer.state[0][side, :, columns] for layer in layers for side in sides])


def filled_caches(padding: Sequence[int], rows: Sequence[Sequence[mx.array]], *, reserved: int) -> list[BatchKVCache]:
    """Return caches of rows that begin with so much padding and go on with these blocks of `copied_block`.

    `reserved` is for how many columns they will need room.
    """
    layers = next(block.shape[0] for blocks in rows for block in blocks) // 2
    caches = []
    for layer in range(layers):
        cache = BatchKVCache(padding)
        cache.reserve(reserved)
        cache.fill([[block[2 * layer : 2 * layer + 2] for block in blocks] for blocks in rows])
        caches.append(cache)
    return caches
