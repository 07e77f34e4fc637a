"""Log-probabilities of many continuations, each token of what they have in common computed once.

Requests are sorted, so that those with one beginning stand together: the few-shot examples of a task, a question, the
first words of two choices. The sequences of a group become one row, a tree (`token_tree.py`), after a trunk that stays
in the cache for the next group. So nothing is padded, no cache is copied for a choice, and a batch costs the memory of
one sequence and of `BRANCHES` tokens beside it.

A row's sums are rounded in another order than alone: in float32 log-probabilities agree to 1e-5.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import cast

import mlx.core as mx

from helium_mlx.evaluation.token_tree import TokenTree, common_length, groups_of, tree_of
from helium_mlx.generation.scoring import HEAD_POSITIONS
from helium_mlx.kv_cache.make import make_cache
from helium_mlx.kv_cache.memory import require_run_fits
from helium_mlx.model.helium import HeliumForCausalLM
from helium_mlx.model.sound_logits import are_sound, require_sound

# Numbers that are added up in a row.
_BLOCK = 256

# Tokens run at a time: a GPU is busy with them, and the masks and scores of a long context stay small.
STEP = 512

# Tokens of a group after what all its sequences begin with: enough for a GPU, and few of which do not see each other.
BRANCHES = 128


@dataclass(frozen=True)
class Continuation:
    """Tokens, of which the last `length` are scored."""

    tokens: tuple[int, ...]
    length: int

    @property
    def inputs(self) -> tuple[int, ...]:
        """What is run: nothing follows the last token."""
        return self.tokens[:-1]

    @property
    def first(self) -> int:
        """The first position whose logits count."""
        return len(self.tokens) - 1 - self.length


@dataclass(frozen=True)
class Answer:
    """The log-probability of a continuation, and whether it is what greedy decoding would have given."""

    logprob: float
    is_greedy: bool


def score_continuations(
    model: HeliumForCausalLM, continuations: Sequence[Continuation], *, batch_size: int
) -> Iterator[tuple[int, Answer]]:
    """Yield the index of each continuation with its answer, as groups of at most `batch_size` sequences are run.

    Raises GenerationError if the longest does not fit into memory, and for logits that are not numbers.
    """
    asked: dict[tuple[int, ...], list[int]] = {}
    for index, continuation in enumerate(continuations):
        asked.setdefault(continuation.inputs, []).append(index)
    if not asked:
        return
    longest = max(map(len, asked))
    require_run_fits(model, longest + BRANCHES, {})
    # Frequencies of these depend on how long a text is, so that none shares its beginning with another.
    is_shared = model.config.rope_parameters["rope_type"] not in ("dynamic", "longrope")
    trunk = _Trunk(model, STEP if is_shared else longest)
    for group in groups_of(sorted(asked), most=batch_size if is_shared else 1, most_nodes=BRANCHES):
        first = min(continuations[index].first for sequence in group for index in asked[sequence])
        tree = tree_of(group)
        wanted = _Wanted()
        places = [
            (index, [wanted.add(node, token) for node, token in _targets(path, continuations[index])])
            for sequence, path in zip(group, tree.paths, strict=True)
            for index in asked[sequence]
        ]
        wanted.found(list(trunk.run(tree, first, wanted.nodes)))
        for index, own in places:
            yield index, wanted.answer(own)


def _targets(path: list[int], continuation: Continuation) -> Iterator[tuple[int, int]]:
    """Give the nodes whose logits count, each with the token that follows there."""
    return zip(path[continuation.first :], continuation.tokens[continuation.first + 1 :], strict=True)


class _Wanted:
    """Which tokens' log-probabilities are wanted at which nodes, each once, and what they are."""

    def __init__(self) -> None:
        self._places: dict[tuple[int, int], int] = {}
        self._values: list[tuple[float, bool]] = []

    def add(self, node: int, token: int) -> int:
        """Return the place of a token at a node."""
        return self._places.setdefault((node, token), len(self._places))

    @property
    def nodes(self) -> dict[int, list[int]]:
        """The tokens that are wanted at each node, the nodes in their order."""
        nodes: dict[int, list[int]] = {}
        for node, token in sorted(self._places):
            nodes.setdefault(node, []).append(token)
        return nodes

    def found(self, values: Sequence[tuple[float, bool]]) -> None:
        """Take the values, in the order of `nodes` and of their tokens."""
        ordered = dict(zip(sorted(self._places), values, strict=True))
        self._values = [ordered[key] for key in self._places]

    def answer(self, places: Sequence[int]) -> Answer:
        """Return the answer of a continuation whose tokens are at these places."""
        values = [self._values[place] for place in places]
        return Answer(sum(logprob for logprob, _ in values), all(is_greedy for _, is_greedy in values))


class _Trunk:
    """The model with what it holds of the last group's trunk."""

    def __init__(self, model: HeliumForCausalLM, step: int) -> None:
        self.model, self.step = model, step
        self.cache = make_cache(model)
        self.held: list[int] = []

    def run(self, tree: TokenTree, first: int, wanted: dict[int, list[int]]) -> Iterator[tuple[float, bool]]:
        """Run a tree and yield what is wanted of its nodes, in their order; `first` is the first of these."""
        # A position whose logits are wanted is run again: the cache keeps no logits.
        start = min(common_length(self.held, tree.tokens[: tree.trunk]), first) if self.step == STEP else 0
        self._forget(len(self.held) - start)
        # The trunk by itself: the mask of what is causal costs nothing.
        branches = max(start, tree.trunk)
        edges = [*range(start, branches, self.step), *range(branches, len(tree.tokens), self.step), len(tree.tokens)]
        for begin, end in pairwise(edges):
            own = {node: tokens for node, tokens in wanted.items() if begin <= node < end}
            # Often nothing of a trunk is wanted but what comes after it.
            last_only = own.keys() <= {end - 1}
            h = self._step(tree, begin, end, last_only=last_only)
            yield from self._scored(h, end - 1 if last_only else begin, own)
        self.held = tree.tokens
        self._forget(len(tree.tokens) - tree.trunk)

    def _forget(self, tokens: int) -> None:
        for layer in self.cache:
            layer.trim(tokens)
        self.held = self.held[: len(self.held) - tokens]

    def _step(self, tree: TokenTree, begin: int, end: int, *, last_only: bool) -> mx.array:
        """Return the normed hidden states (L, hidden_size) of some of the nodes, or of their last."""
        model = self.model.model
        h = model.embed(mx.array([tree.tokens[begin:end]], dtype=mx.int32))
        if end <= tree.trunk:
            output = model.run(h, self.cache, last_only=last_only)
        else:
            nodes, ends = mx.arange(end), mx.array(tree.ends[:end])
            queries = nodes[begin:, None]
            mask = (nodes <= queries) & (queries < ends)
            positions = mx.array([tree.positions[begin:end]], dtype=mx.int32)
            output = model.run(
                h, self.cache, attention_mask=mask[None, None], position_ids=positions, last_only=last_only
            )
        mx.eval(output.last_hidden_state, [layer.state for layer in self.cache])
        return output.last_hidden_state[0]

    def _scored(self, h: mx.array, begin: int, wanted: dict[int, list[int]]) -> Iterator[tuple[float, bool]]:
        nodes = list(wanted)
        for start in range(0, len(nodes), HEAD_POSITIONS):
            some = nodes[start : start + HEAD_POSITIONS]
            logits = self.model.logits(h[mx.array([node - begin for node in some])])
            rows = [row for row, node in enumerate(some) for _ in wanted[node]]
            tokens = mx.array([token for node in some for token in wanted[node]])
            repeated = logits if len(rows) == len(some) else logits[mx.array(rows)]
            logprobs = token_logprobs(repeated, tokens)
            is_greedy = repeated.argmax(axis=-1) == tokens
            sound = are_sound(logits)
            mx.eval(logprobs, is_greedy, sound)
            require_sound(sound)
            yield from zip(cast("list[float]", logprobs.tolist()), cast("list[bool]", is_greedy.tolist()), strict=True)


def token_logprobs(logits: mx.array, tokens: mx.array) -> mx.array:
    """Return the log-probabilities of `tokens`, integers (K,), under logits (K, vocab_size): float32 (K,), lazily.

    The total of a vocabulary of 48,000, added up in one row, is off by 5e-5 in float32 on a CPU; block by block, 1e-6.
    """
    logits = logits.astype(mx.float32)
    K, vocab_size = logits.shape
    padded = mx.pad(logits, [(0, 0), (0, -vocab_size % _BLOCK)], constant_values=-mx.inf)
    total = mx.logsumexp(mx.logsumexp(padded.reshape(K, -1, _BLOCK), axis=-1), axis=-1)
    return mx.take_along_axis(logits, tokens[:, None], axis=-1)[:, 0] - total
