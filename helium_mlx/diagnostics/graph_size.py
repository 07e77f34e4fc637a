"""How many operations a program hands to MLX for each token that it decodes.

Nothing is rebuilt for counting: the graphs are those that the program's own loop passes to `mx.async_eval`, looked at
before they are evaluated. Arrays that exist already (weights, what the cache holds, the token before) are leaves and
count nothing. A node is an operation as MLX records it, views and reshapes included, before MLX fuses or splits any.
"""

import io
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import cast

import mlx.core as mx
from mlx.utils import tree_flatten

Operations = Counter[str]
"""Number of nodes by MLX's name of the operation; `total()` is the size of the graph."""


# Operations are the graph's rectangles; arrays have no shape of their own.
_OPERATION = re.compile(r'\[label ="([^"]*)", shape=rectangle\]')


def operations(*arrays: mx.array) -> Operations:
    """Count what has to be computed before `arrays` are there; nothing is evaluated."""
    graph = io.StringIO()
    mx.export_to_dot(graph, *arrays)
    # Calls of one compiled function share a number, so that lines are counted and not numbers.
    return Counter(_OPERATION.findall(graph.getvalue()))


@contextmanager
def recorded_graphs() -> Iterator[list[Operations]]:
    """Yield a list that receives the operations of every call of `mx.async_eval` until the context ends."""
    graphs: list[Operations] = []
    evaluate = mx.async_eval

    def record(*trees: object) -> None:
        arrays = [leaf for _, leaf in tree_flatten(list(trees)) if isinstance(leaf, mx.array)]
        graphs.append(operations(*arrays))
        evaluate(*cast(tuple[mx.array, ...], trees))

    mx.async_eval = record
    try:
        yield graphs
    finally:
        mx.async_eval = evaluate


def step_operations(tokens: Iterable[object]) -> Operations:
    """Run a decoding loop to its end and return the operations of one step: of the graphs, the one seen most often.

    The prompt's graph and the steps in which the cache grows are others, so `tokens` should yield ten or more.
    """
    with recorded_graphs() as graphs:
        for _ in tokens:
            pass
    counted = Counter(frozenset(graph.items()) for graph in graphs)
    return Counter(dict(counted.most_common(1)[0][0]))
