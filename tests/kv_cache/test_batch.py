"""The cache of a ragged batch: its mask, and rows that are taken over, repeated and dropped."""

import mlx.core as mx
import pytest

from helium_mlx.kv_cache.batch import BatchKVCache, copied_block, filled_caches, regrouped


def filled(padding: list[int], columns: int, *, layers: int = 2, base: int = 0) -> list[BatchKVCache]:
    """Caches whose key at (layer, row, column) is a number of its own; values are its negative."""
    caches = []
    for layer in range(layers):
        cache = BatchKVCache(padding)
        numbers = base + 1000 * layer + 100 * mx.arange(len(padding))[:, None] + mx.arange(columns)
        keys = numbers.astype(mx.float32)[:, None, :, None]
        cache.update_and_fetch(keys, -keys)
        caches.append(cache)
    return caches


def held(cache: BatchKVCache) -> list[list[float]]:
    """The keys of each row, without its padding."""
    keys, values = cache.parts
    rows: list[list[float]] = keys[:, 0, :, 0].tolist()  # pyright: ignore[reportAssignmentType]
    negated = (-values[:, 0, :, 0]).tolist()
    assert rows == negated
    return [row[padding:] for row, padding in zip(rows, cache.padding, strict=True)]


def test_a_row_sees_its_own_tokens_and_those_before() -> None:
    cache = filled([0, 2], 3)[0]
    mask = cache.mask(2)
    assert isinstance(mask, mx.array)
    assert mask.shape == (2, 1, 2, 5)
    assert mask[:, 0].tolist() == [
        [[True, True, True, True, False], [True, True, True, True, True]],
        [[False, False, True, True, False], [False, False, True, True, True]],
    ]
    single = cache.mask(1)
    assert isinstance(single, mx.array)
    assert single[:, 0, 0].tolist() == [[True] * 4, [False, False, True, True]]


def test_padding_sees_itself_and_nothing_before() -> None:
    mask = BatchKVCache([0, 2]).mask(3)
    assert isinstance(mask, mx.array)
    assert mask[1, 0].tolist() == [[True, False, False], [False, True, False], [False, False, True]]


@pytest.mark.parametrize(("length", "mask"), [(1, None), (4, "causal")])
def test_without_padding_the_mask_is_the_plain_one(length: int, mask: str | None) -> None:
    assert BatchKVCache([0, 0]).mask(length) == mask


def test_rows_stay_join_and_repeat_in_the_order_asked_for() -> None:
    batch, long, short = filled([0, 1, 3], 5), filled([0, 2], 8, base=10_000), filled([0], 1, base=20_000)
    result = regrouped(batch, [2, 0], [(long, [1, 1, 0]), (short, [0])], room=3)
    for layer, cache in enumerate(result):
        start = 1000 * layer
        assert cache.lengths == [2, 5, 6, 6, 8, 1]
        assert held(cache) == [
            [start + 203, start + 204],
            [start + column for column in range(5)],
            [10_000 + start + 100 + column for column in range(2, 8)],
            [10_000 + start + 100 + column for column in range(2, 8)],
            [10_000 + start + column for column in range(8)],
            [20_000 + start],
        ]


def test_columns_that_no_row_needs_any_longer_are_left_behind() -> None:
    result = regrouped(filled([0, 6, 4], 9), [1, 2], [], room=5)
    assert [cache.offset for cache in result] == [5, 5]
    assert [cache.lengths for cache in result] == [[3, 5], [3, 5]]
    assert result[0].state[0].shape[2] <= 5 + 5


def test_the_batch_lets_its_memory_go_and_the_others_keep_theirs() -> None:
    batch, other = filled([0, 0], 4), filled([0], 4)
    before = [array.tolist() for array in other[0].state]
    regrouped(batch, [1], [(other, [0])], room=1)
    assert [cache.state for cache in batch] == [[], []]
    assert [array.tolist() for array in other[0].state] == before


def test_what_is_appended_goes_behind_every_row() -> None:
    cache = regrouped(filled([0, 2], 4), [0, 1], [], room=600)[0]
    for step in range(300):
        cache.update_and_fetch(mx.full((2, 1, 1, 1), float(step)), mx.full((2, 1, 1, 1), -float(step)))
    assert cache.lengths == [304, 302]
    assert [row[-300:] for row in held(cache)] == [[float(step) for step in range(300)]] * 2


def test_blocks_of_a_row_fill_a_cache_that_holds_the_same() -> None:
    source = filled([0, 2], 8)
    blocks = [copied_block(source, 1, start, end) for start, end in ((0, 1), (1, 4), (4, 6))]
    assert [block.shape for block in blocks] == [(4, 1, tokens, 1) for tokens in (1, 3, 2)]
    for cache, original in zip(filled_caches([0], [blocks], reserved=9), source, strict=True):
        assert (cache.offset, cache.lengths, cache.dtype) == (6, [6], mx.float32)
        assert held(cache)[0] == held(original)[1]
        # There is room for what was reserved.
        assert cache.nbytes == 2 * 9 * 4
        cache.update_and_fetch(mx.full((1, 1, 2, 1), 7.0), mx.full((1, 1, 2, 1), -7.0))
        assert held(cache)[0] == [*held(original)[1], 7, 7]


def test_rows_are_filled_up_to_one_column_whatever_they_begin_with() -> None:
    source = filled([0, 2], 8)
    first = [copied_block(source, 0, 0, 3), copied_block(source, 0, 3, 5)]
    second = [copied_block(source, 1, 0, 2)]
    # The third has no tokens yet: it has more padding to come.
    for cache, original in zip(filled_caches([0, 3, 7], [first, second, []], reserved=20), source, strict=True):
        assert (cache.offset, cache.lengths) == (5, [5, 2, -2])
        assert held(cache) == [held(original)[0][:5], held(original)[1][:2], []]


def test_a_block_holds_no_more_than_its_tokens() -> None:
    cache = filled([0], 4000, layers=1)
    mx.eval(cache[0].state)
    before = mx.get_active_memory()
    block = copied_block(cache, 0, 100, 110)
    mx.eval(block)
    cache.clear()
    mx.synchronize()
    assert mx.get_active_memory() < before - 30_000
    assert block.tolist()[0][0][0] == [100.0]  # pyright: ignore
