"""Sequences of tokens as one tree: what several begin with is there once.

The nodes are laid out in one row, depth first, each at the position of its depth. A node's descendants are then a
stretch of the row, so that attention's mask is two comparisons: node i sees node j if j <= i < end[j].
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

Tokens = Sequence[int]


@dataclass(frozen=True)
class TokenTree:
    """Nodes in their order: `tokens`, `positions`, and where the descendants of each `end`.

    `paths` are the nodes of each of the sequences, in their order; `trunk`, how many nodes all of them begin with.
    """

    tokens: list[int]
    positions: list[int]
    ends: list[int]
    paths: list[list[int]]
    trunk: int


def tree_of(sequences: Sequence[Tokens]) -> TokenTree:
    """Return the tree of sequences that are sorted, at least one."""
    tokens: list[int] = []
    positions: list[int] = []
    ends: list[int] = []
    paths: list[list[int]] = []
    trunk = len(sequences[0])
    path: list[int] = []
    before: Tokens = ()
    for sequence in sequences:
        shared = common_length(before, sequence)
        trunk = min(trunk, shared) if paths else trunk
        for node in path[shared:]:
            ends[node] = len(tokens)
        new = range(len(tokens), len(tokens) + len(sequence) - shared)
        tokens += sequence[shared:]
        positions += range(shared, len(sequence))
        ends += [0] * len(new)
        path = path[:shared] + list(new)
        paths.append(path)
        before = sequence
    for node in path:
        ends[node] = len(tokens)
    return TokenTree(tokens, positions, ends, paths, trunk)


def groups_of(sequences: Sequence[tuple[int, ...]], *, most: int, most_nodes: int) -> Iterator[list[tuple[int, ...]]]:
    """Cut sequences that are sorted into groups, each for one tree: of at most `most`, and of few nodes beside a trunk.

    Where a group has several sequences, those have at most `most_nodes` nodes after what all of them begin with.
    """
    group: list[tuple[int, ...]] = []
    trunk = nodes = 0
    for sequence in sequences:
        if group:
            shared = common_length(group[-1], sequence)
            longer = nodes + max(trunk - shared, 0) + len(sequence) - shared
            if len(group) < most and longer <= most_nodes:
                group.append(sequence)
                trunk, nodes = min(trunk, shared), longer
                continue
            yield group
        group, trunk, nodes = [sequence], len(sequence), 0
    if group:
        yield group


def common_length(a: Tokens, b: Tokens) -> int:
    """Return how many tokens both begin with."""
    most = min(len(a), len(b))
    # Whole slices are compared in C; most pairs share all but their ends.
    low, high = 0, most
    if a[:most] == b[:most]:
        return most
    while low < high:
        middle = (low + high + 1) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
