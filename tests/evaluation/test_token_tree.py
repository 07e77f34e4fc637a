"""Sequences as one tree: every token of a common beginning once, and who sees whom."""

from hypothesis import given
from hypothesis import strategies as st

from helium_mlx.evaluation.token_tree import common_length, groups_of, tree_of

SEQUENCES = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=7).map(tuple), min_size=1, max_size=8)


@given(SEQUENCES)
def test_a_path_spells_its_sequence_and_sees_nothing_else(given_sequences: list[tuple[int, ...]]) -> None:
    sequences = sorted(set(given_sequences))
    tree = tree_of(sequences)
    for sequence, path in zip(sequences, tree.paths, strict=True):
        assert [tree.tokens[node] for node in path] == list(sequence)
        assert [tree.positions[node] for node in path] == list(range(len(sequence)))
        last = path[-1]
        assert [node for node in range(last + 1) if last < tree.ends[node]] == path


@given(SEQUENCES)
def test_a_common_beginning_is_there_once(given_sequences: list[tuple[int, ...]]) -> None:
    sequences = sorted(set(given_sequences))
    tree = tree_of(sequences)
    assert len(tree.tokens) == len({sequence[:end] for sequence in sequences for end in range(1, len(sequence) + 1)})
    assert all(path[: tree.trunk] == list(range(tree.trunk)) for path in tree.paths)


@given(SEQUENCES, st.integers(1, 4), st.integers(0, 9))
def test_groups_are_all_of_them_in_order_and_no_larger_than_asked(
    given_sequences: list[tuple[int, ...]], most: int, most_nodes: int
) -> None:
    sequences = sorted(set(given_sequences))
    groups = list(groups_of(sequences, most=most, most_nodes=most_nodes))
    assert [each for group in groups for each in group] == sequences
    for group in groups:
        tree = tree_of(group)
        assert len(group) <= most
        assert len(group) == 1 or len(tree.tokens) - tree.trunk <= most_nodes


@given(st.lists(st.integers(0, 1), max_size=9), st.lists(st.integers(0, 1), max_size=9))
def test_the_common_length_is_the_plain_one(a: list[int], b: list[int]) -> None:
    plain = next((n for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    assert common_length(a, b) == plain
