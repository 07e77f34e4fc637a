"""The tree of prefixes against a plain dictionary of them, under random additions, look-ups and evictions."""

import gc
from collections.abc import Sequence

import mlx.core as mx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helium_mlx.engine.prefix_tree import BLOCK, SUPERSEDED, PrefixTree

BYTES = 8
ALL = 10**9


def block_of(tokens: Sequence[int], start: int, end: int) -> mx.array:
    """A block (1, 1, tokens, 2) of what a token's keys depend on: those up to it, as one number, and itself."""
    rows = [[hash(tuple(tokens[: place + 1])) % 2**20, tokens[place]] for place in range(start, end)]
    return mx.array(rows, dtype=mx.float32).reshape(1, 1, -1, 2)


def add(tree: PrefixTree, tokens: Sequence[int], limit: int = ALL) -> list[tuple[int, int]]:
    """Add a text; return which stretches of it were copied."""
    copied: list[tuple[int, int]] = []

    def block(start: int, end: int) -> mx.array:
        copied.append((start, end))
        return block_of(tokens, start, end)

    tree.add(tokens, block, limit)
    return copied


def taken(tree: PrefixTree, tokens: Sequence[int]) -> int:
    """Take what there is of a text, and see that it is that of this text; return how many tokens."""
    covered = tree.covered(tokens)
    blocks = tree.take(tokens)
    found = sum(block.shape[-2] for block in blocks)
    assert found == covered
    if found:
        assert mx.array_equal(mx.concatenate(blocks, axis=-2), block_of(tokens, 0, found)).item()
    return found


def text(seed: int, length: int) -> list[int]:
    return [(seed * 7919 + place * place) % 50 for place in range(length)]


def test_what_was_added_is_found_to_the_token_and_no_more() -> None:
    tree, tokens = PrefixTree(BYTES), text(1, 3 * BLOCK + 5)
    assert taken(tree, tokens) == 0
    add(tree, tokens)
    for length in (1, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 4, 3 * BLOCK + 5):
        assert taken(tree, tokens[:length]) == length
        assert taken(tree, [*tokens[:length], 99, *tokens[length:]]) == length
    assert taken(tree, [99, *tokens]) == 0
    assert tree.nbytes == BYTES * len(tokens)


def test_a_shared_beginning_is_stored_once_up_to_its_last_block() -> None:
    tree, beginning = PrefixTree(BYTES), text(1, 4 * BLOCK + 3)
    add(tree, [*beginning, *text(2, 9)])
    assert add(tree, [*beginning, *text(3, 9)]) == [(4 * BLOCK, 4 * BLOCK + 12)]
    assert tree.nbytes == BYTES * (4 * BLOCK + 2 * 12)


def test_a_text_that_grows_token_by_token_is_stored_once() -> None:
    tree, tokens = PrefixTree(BYTES), text(1, 2 * BLOCK + 9)
    for length in range(1, len(tokens) + 1):
        add(tree, tokens[:length])
        assert tree.nbytes == BYTES * length
    # So is one whose last tokens change as a word is typed.
    for last in range(100, 120):
        add(tree, [*tokens, last, last])
        assert tree.nbytes == BYTES * (len(tokens) + 2)


def test_a_beginning_that_is_there_copies_nothing() -> None:
    tree, tokens = PrefixTree(BYTES), text(1, 2 * BLOCK + 9)
    add(tree, tokens)
    for length in (1, BLOCK, BLOCK + 4, len(tokens)):
        assert add(tree, tokens[:length]) == []


def test_the_least_recently_used_goes_first_and_the_ends_before_the_beginnings() -> None:
    tree = PrefixTree(BYTES)
    first, second = text(1, 2 * BLOCK), text(2, 2 * BLOCK)
    add(tree, first)
    add(tree, second)
    assert taken(tree, first) == 2 * BLOCK
    tree.shrink(3 * BLOCK * BYTES)
    assert (tree.covered(first), tree.covered(second)) == (2 * BLOCK, BLOCK)
    tree.shrink(2 * BLOCK * BYTES)
    assert (tree.covered(first), tree.covered(second)) == (2 * BLOCK, 0)
    tree.shrink(0)
    assert (tree.covered(first), tree.nbytes) == (0, 0)


def test_a_text_over_the_limit_is_kept_as_far_as_there_is_room() -> None:
    tree, tokens = PrefixTree(BYTES), text(1, 3 * BLOCK)
    add(tree, text(2, BLOCK))
    add(tree, tokens, limit=BYTES * (BLOCK + 7) + 1)
    assert tree.covered(tokens) == BLOCK + 7
    assert tree.nbytes == BYTES * (BLOCK + 7)
    # Its own beginning does not go for its end.
    add(tree, tokens, limit=BYTES * (BLOCK + 7))
    assert tree.covered(tokens) == BLOCK + 7
    add(tree, text(3, 5), limit=0)
    assert tree.nbytes == 0


def test_a_copy_that_fails_leaves_a_tree_that_serves() -> None:
    tree, tokens = PrefixTree(BYTES), text(1, 3 * BLOCK)
    add(tree, tokens[:BLOCK])

    def fail(start: int, end: int) -> mx.array:
        if start == 2 * BLOCK:
            raise MemoryError
        return block_of(tokens, start, end)

    with pytest.raises(MemoryError):
        tree.add(tokens, fail, ALL)
    assert taken(tree, tokens) == BLOCK
    add(tree, tokens)
    assert taken(tree, tokens) == 3 * BLOCK


def test_what_is_evicted_waits_for_no_garbage_collector() -> None:
    gc.collect()
    gc.disable()
    try:
        tree = PrefixTree(BYTES)
        before = mx.get_active_memory()
        for seed in range(5):
            add(tree, text(seed, 3 * BLOCK))
        assert mx.get_active_memory() > before
        tree.shrink(0)
        assert mx.get_active_memory() == before
    finally:
        gc.enable()


# Few different tokens, so that beginnings are shared; stretches of them, so that texts span blocks.
STRETCH = st.integers(0, 2).flatmap(lambda token: st.integers(1, BLOCK + 2).map(lambda times: [token] * times))
TEXT = st.lists(STRETCH, min_size=1, max_size=4).map(lambda stretches: [token for each in stretches for token in each])
ACTION = st.one_of(
    st.tuples(st.just("add"), TEXT, st.just(ALL)),
    st.tuples(st.just("add"), TEXT, st.integers(0, 8 * BLOCK * BYTES)),
    st.tuples(st.just("take"), TEXT, st.just(0)),
    st.tuples(st.just("shrink"), st.just([0]), st.integers(0, 8 * BLOCK * BYTES)),
)


def shared(first: Sequence[int], second: Sequence[int]) -> int:
    return next((place for place, (a, b) in enumerate(zip(first, second, strict=False)) if a != b),
                min(len(first), len(second)))  # fmt: skip


@settings(deadline=None, max_examples=150)
@given(st.lists(ACTION, max_size=25))
def test_a_tree_is_a_dictionary_of_prefixes(actions: list[tuple[str, list[int], int]]) -> None:
    tree = PrefixTree(BYTES)
    # Each with the number of the action that added it last.
    added: dict[tuple[int, ...], int] = {}
    evicts = False
    for number, (name, tokens, limit) in enumerate(actions):
        if name == "add":
            before = tree.nbytes
            add(tree, tokens, limit)
            added[tuple(tokens)] = number
            evicts |= before + len(tokens) * BYTES > limit
            assert tree.nbytes <= limit
        elif name == "shrink":
            evicts |= tree.nbytes > limit
            tree.shrink(limit)
            assert tree.nbytes <= limit
        found = taken(tree, tokens)
        most = max((shared(tokens, other) for other in added), default=0)
        assert found <= most
        if not evicts:
            # Ends of texts that were typed over are let go of, never that of the last text.
            least = (shared(tokens, other) - SUPERSEDED * (number - at) for other, at in added.items())
            assert found >= max(least, default=0)
            assert name != "add" or found == len(tokens)
