"""Beginnings of texts with their keys and values, so that they need not be run again. No thread, no lock.

A tree: each node has the keys and values of up to `BLOCK` tokens, a copy of its own, and only nodes that are full have
children. So what several texts begin with is stored once, but for the last block of it, and is found to the token.

Who is typing makes a text of nearly every prefix: an end that grows, or that changes in its last tokens only, replaces
what it was. So what the newest text shares with the one before it is always there, and of an older one a few of the
last tokens may be gone.

What was used least recently goes first, ends before the beginnings that they follow. Not here: who says how many
bytes there may be (`scheduler.py`), and what a block is made of (`kv_cache/batch.py`).
"""

from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Callable, Sequence

import mlx.core as mx

from helium_mlx.generation.prompt_cache import common_prefix

# Tokens in a node. More means fewer arrays to join when a text is taken up, and more tokens stored twice where texts
# part.
BLOCK = 32

# Tokens of an end that may be lost to the one that replaces it: those of a word that is being typed.
SUPERSEDED = 2


class _Node:
    """Tokens and their block, (..., tokens, width); children in the order of their tokens."""

    __slots__ = ("block", "children", "tokens")

    def __init__(self, tokens: tuple[int, ...], block: mx.array) -> None:
        self.tokens = tokens
        self.block = block
        self.children: list[_Node] = []

    def place_of(self, tokens: tuple[int, ...]) -> int:
        """Return where a child with these tokens is or belongs."""
        return bisect_left(self.children, tokens, key=lambda child: child.tokens)

    def nearest(self, tokens: tuple[int, ...]) -> "tuple[_Node, int]":
        """Return the child that begins most like these tokens, and with how many of them; itself and 0 if none does."""
        place = self.place_of(tokens)
        beside = self.children[max(place - 1, 0) : place + 1]
        return max(((child, common_prefix(child.tokens, tokens)) for child in beside),
                   key=lambda found: found[1], default=(self, 0))  # fmt: skip


class PrefixTree:
    """The prefixes of one model. A token's keys and values take `bytes_per_token` in it."""

    def __init__(self, bytes_per_token: int) -> None:
        self.bytes_per_token = bytes_per_token
        self._root = _Node((), mx.zeros(0))
        # Each node with its parent, those used least recently first. Who uses a node uses its parent after it, so that
        # the first has no children.
        self._parents: OrderedDict[_Node, _Node] = OrderedDict()
        self._tokens = 0

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self._tokens * self.bytes_per_token

    def covered(self, tokens: Sequence[int]) -> int:
        """Return how many tokens of a text's beginning are held."""
        return sum(count for _, count in self._path(tokens))

    def take(self, tokens: Sequence[int]) -> list[mx.array]:
        """Return the blocks of as much of a text's beginning as is held, one after another."""
        path = self._path(tokens)
        self._use([node for node, _ in path])
        return [node.block if count == len(node.tokens) else node.block[..., :count, :] for node, count in path]

    def add(self, tokens: Sequence[int], copy: Callable[[int, int], mx.array], limit: int) -> None:
        """Hold a text, as much of it as fits beside nothing else into `limit` bytes.

        `copy(start, end)` makes the block of that stretch of the text; it is called for what is not held yet.
        """
        path = self._path(tokens)
        whole = [node for node, count in path if count == BLOCK]
        self._use([node for node, _ in path])
        if sum(count for _, count in path) < len(tokens):
            if len(whole) < len(path):
                self._supersede(*path[-1])
            self._extend(whole, tokens, copy, limit)
        self.shrink(limit)

    def shrink(self, limit: int) -> None:
        """Let go of what was used least recently, until at most `limit` bytes are held."""
        while self.nbytes > max(limit, 0):
            self._remove(next(iter(self._parents)))

    def _extend(
        self, whole: list[_Node], tokens: Sequence[int], copy: Callable[[int, int], mx.array], limit: int
    ) -> None:
        """Hold what follows the full nodes `whole`, which are the most recently used."""
        start = len(whole) * BLOCK
        while self.nbytes + (len(tokens) - start) * self.bytes_per_token > limit and len(self._parents) > len(whole):
            self._remove(next(iter(self._parents)))
        end = min(len(tokens), start + max(limit - self.nbytes, 0) // self.bytes_per_token)
        stretches = [(first, min(first + BLOCK, end)) for first in range(start, end, BLOCK)]
        blocks = [copy(first, last) for first, last in stretches]
        mx.eval(blocks)
        for (first, last), block in zip(stretches, blocks, strict=True):
            parent, node = whole[-1] if whole else self._root, _Node(tuple(tokens[first:last]), block)
            parent.children.insert(parent.place_of(node.tokens), node)
            self._parents[node] = parent
            self._tokens += last - first
            whole.append(node)
        self._use(whole)

    def _supersede(self, node: _Node, shared: int) -> None:
        """Let go of an end of which a new text has all but the last tokens."""
        if not node.children and len(node.tokens) - shared <= SUPERSEDED:
            self._remove(node)

    def _path(self, tokens: Sequence[int]) -> list[tuple[_Node, int]]:
        """Return the nodes that a text begins with, each with the number of its tokens that it begins with."""
        path, node = list[tuple[_Node, int]](), self._root
        for start in range(0, len(tokens), BLOCK):
            node, count = node.nearest(tuple(tokens[start : start + BLOCK]))
            if count:
                path.append((node, count))
            if count < BLOCK:
                break
        return path

    def _use(self, path: Sequence[_Node]) -> None:
        for node in reversed(path):
            self._parents.move_to_end(node)

    def _remove(self, node: _Node) -> None:
        parent = self._parents.pop(node)
        del parent.children[parent.place_of(node.tokens)]
        self._tokens -= len(node.tokens)
