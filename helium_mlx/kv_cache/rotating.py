"""A cache of limited size: the first tokens, which attention leans on whatever they are, and the last ones.

The token at position p attends to the first `keep` tokens and to the last `max_size - keep` up to and including
itself, however the text is cut into calls; a mask says so wherever memory holds more than that. Keys stay rotated by
their positions in the text, which continue counting.

Memory: token p is in slot p while slots last, and then in the ring of slots after the first `keep`, whose oldest
token it replaces. The ring has `SPARE` slots more than attention sees. They let up to `SPARE` + 1 tokens be run at
once, and be forgotten again, in place: the step in flight when a text ends, a draft that is refused. Longer calls put
what they need in the order of the text, and the ring together anew.
"""

from collections.abc import Sequence

import mlx.core as mx

from helium_mlx import backend
from helium_mlx.errors import GenerationError
from helium_mlx.kv_cache.cache import KVCache, Rows, both_sides, with_room, write_rows
from helium_mlx.kv_cache.masks import Mask, causal_mask
from helium_mlx.kv_cache.storage import QuantizedStorage
from helium_mlx.option_values import require_whole

SPARE = 32

# What a file of a cache may say.
MAX_SIZE = 2**30


class RotatingKVCache(KVCache):
    """Keeps the first `keep` tokens and the last `max_size - keep`; with `bits`, quantized as `QuantizedKVCache` does.

    `update_and_fetch` returns keys in the order of memory, and so come the columns of attention weights. Where rows
    are padded on the left, the first tokens are padding.

    Raises GenerationError for a `max_size` that leaves no room beside the first tokens.
    """

    __slots__ = ("_constants", "_keep", "_max_size", "_written")

    def __init__(self, max_size: int, keep: int = 1, *, bits: int | None = None, group_size: int = 64) -> None:
        super().__init__(storage=None if bits is None else QuantizedStorage(bits, group_size))
        self._keep = require_whole("keep", keep, 0)
        self._max_size = require_whole("max_kv_size", max_size, self._keep + 1, MAX_SIZE)
        self._written = 0
        self._constants: list[mx.array] | None = None

    @property
    def max_size(self) -> int:
        """How many tokens attention sees."""
        return self._max_size

    @property
    def keep(self) -> int:
        """How many of them are the first ones."""
        return self._keep

    @property
    def kind(self) -> dict[str, int]:
        """The settings of a cache, those that it has: `max_size`, `keep`, `bits`, `group_size`."""
        return {"max_size": self.max_size, "keep": self.keep, **super().kind}

    def slots_for(self, tokens: int) -> int:
        """Return how many tokens' memory is in use once so many were written."""
        return min(tokens, self.max_slots)

    @property
    def max_slots(self) -> int:
        """The most tokens that memory is in use for."""
        return self.max_size + SPARE

    @property
    def written(self) -> int:
        """Tokens written: more than `offset` where the ring had rotated before some were taken back."""
        return self._written

    @property
    def trimmable(self) -> int:
        """How many of the last tokens `trim` can forget: all until the first was dropped, then up to `SPARE` + 1."""
        if self._written <= self.max_slots:
            return self.offset
        return self.offset - (self._written - SPARE - 1)

    def trim(self, tokens: int) -> int:
        """Forget the last `tokens` tokens, or all if there are fewer; return how many were forgotten.

        Raises GenerationError, and forgets nothing, if attention would then want tokens that were dropped.
        """
        tokens = min(self.offset, tokens)
        if tokens > self.trimmable:
            raise GenerationError(
                f"a cache of {self.max_size} tokens that has seen {self.offset} can forget the last {self.trimmable}, "
                f"not {tokens}: those before are gone; start with an empty one"
            )
        self.offset -= tokens
        if self._written <= self.max_slots:
            self._written = self.offset
        return tokens

    def empty(self) -> "RotatingKVCache":
        """Return an empty cache of the same kind."""
        other = super().empty()
        other._written = 0
        return other

    def restore(self, parts: Sequence[mx.array], *, offset: int, written: int, dtype: mx.Dtype) -> None:
        """Take up where a cache of the same kind was whose `parts`, `offset` and so on these were, unchecked."""
        super().restore(parts, offset=offset, written=written, dtype=dtype)
        self._written = written

    def mask(self, length: int) -> Mask:
        """Return the attention mask for `length` new tokens."""
        end = self.offset + length
        if max(self._written, end) <= self.max_size:
            return causal_mask(length)
        if length == 1 and max(self._written, end) > self.max_slots:
            return self._mask_of_full_ring()
        positions, queries = self._positions(length), mx.arange(self.offset, end)[:, None]
        return (positions <= queries) & self._in_window(positions, queries)

    def restrict(self, mask: Mask, length: int) -> Mask:
        """Return a mask over all tokens that came, (..., length, offset + length), for those that are held.

        What is out of the window stays unseen, whatever the mask says.
        """
        end = self.offset + length
        if max(self._written, end) <= self.max_size or not isinstance(mask, mx.array):
            return mask
        positions, queries = self._positions(length), mx.arange(self.offset, end)[:, None]
        # A slot whose token was taken back has a position that no column is for.
        seen = (positions < end) & self._in_window(positions, queries)
        mask = mx.take(mask, mx.minimum(positions, end - 1), axis=-1)
        return mask & seen if mask.dtype == mx.bool_ else mx.where(seen, mask, mx.finfo(mask.dtype).min)

    def _mask_of_full_ring(self) -> mx.array:
        """Return the mask of one new token where every slot is in use, (1, slots): what a long text decodes with."""
        if self._constants is None:
            sizes = (self.keep, self._ring, self.max_size - self.keep)
            self._constants = [mx.arange(self.max_slots)[None], *(mx.array(size) for size in sizes)]
            # Left lazy, they would belong to this thread.
            mx.eval(self._constants)
        last = max(self._written, self.offset + 1) - 1
        return _seen_in_ring(mx.array(last), mx.array(self.offset), *self._constants)

    @property
    def _ring(self) -> int:
        return self.max_slots - self.keep

    def _fits(self, length: int) -> bool:
        """Whether `length` tokens can be written without losing any that they are to see."""
        return length <= SPARE + 1 or self.offset + length <= self.max_slots

    def _in_window(self, positions: mx.array, queries: mx.array) -> mx.array:
        return (positions < self.keep) | (positions > queries - (self.max_size - self.keep))

    def _positions(self, length: int) -> mx.array:
        """Return the position of each key that attention sees with `length` new tokens: (T,)."""
        end = self.offset + length
        if not self._fits(length):
            first, start = self._before()
            return mx.concatenate([mx.arange(first), mx.arange(start, end)])
        last = max(self._written, end) - 1
        if last < self.max_slots:
            return mx.arange(end)
        return _positions_in_ring(mx.arange(self.max_slots), last, self.keep, self._ring)

    def _before(self) -> tuple[int, int]:
        """Return what the next token sees of those before it: the first so many, and from which position on."""
        first = min(self.keep, self.offset)
        return first, max(first, self.offset - (self.max_size - self.keep) + 1)

    def _runs(self, start: int, tokens: int) -> list[tuple[int, int]]:
        """Return the slots, as at most two ranges, of `tokens` tokens from position `start` on."""
        slot = start if start < self.max_slots else self.keep + (start - self.keep) % self._ring
        straight = min(tokens, self.max_slots - slot)
        runs = [(slot, slot + straight), (self.keep, self.keep + tokens - straight)]
        return [(start, end) for start, end in runs if end > start]

    def _place(self, new: list[Rows]) -> list[mx.array]:
        length = new[0][0].shape[2]
        end = self.offset + length
        written = max(self._written, end)
        if not self._fits(length):
            seen = self._rebuild([mx.concatenate(rows) for rows in new], end)
            written = end
        elif written <= self.max_slots:
            seen = super()._place(new)
        else:
            seen = self._overwrite(new, length)
        self.offset, self._written = end, written
        return seen

    def _overwrite(self, new: list[Rows], length: int) -> list[mx.array]:
        missing = self.max_slots - self._held[0].shape[2]
        self._held = [with_room(held, missing) for held in self._held]
        done = 0
        for start, end in self._runs(self.offset, length):
            for held, rows in zip(self._held, new, strict=True):
                run = rows if end - start == length else [block[..., done : done + end - start, :] for block in rows]
                write_rows(held, start, end, run)
            done += end - start
        return both_sides(self._held, self.max_slots)

    def _rebuild(self, new: list[mx.array], end: int) -> list[mx.array]:
        """Return what the new tokens see, in the order of the text, and make the ring of the last ones."""
        first, start = self._before()
        runs = [(0, first), *self._runs(start, self.offset - start)]
        held = self._held or [part[..., :0, :] for part in new]
        seen = [
            mx.concatenate([*(old[..., a:b, :] for a, b in runs), part], axis=2)
            for old, part in zip(held, new, strict=True)
        ]
        total = seen[0].shape[2]
        oldest, split = total - self._ring, total - (end - self._ring - self.keep) % self._ring
        self._held = [
            mx.concatenate([part[..., : self.keep, :], part[..., split:, :], part[..., oldest:split, :]], axis=2)
            for part in seen
        ]
        return both_sides(seen, total)

    def _capacity(self, needed: int) -> int:
        return min(super()._capacity(needed), self.max_slots)


def _positions_in_ring(slots: mx.array, last: mx.array | int, keep: mx.array | int, ring: mx.array | int) -> mx.array:
    # Positions and slots of the ring are the same modulo its length.
    return mx.where(slots < keep, slots, last - (last - slots) % ring)


@backend.fuse
def _seen_in_ring(
    last: mx.array, query: mx.array, slots: mx.array, keep: mx.array, ring: mx.array, window: mx.array
) -> mx.array:
    positions = _positions_in_ring(slots, last, keep, ring)
    return (positions <= query) & ((positions < keep) | (positions > query - window))
