"""One program under measurement, in a process of its own: loads a checkpoint, then answers a measure a line.

`python -m helium_mlx.diagnostics.worker PROGRAM DIRECTORY` reads requests from standard input and answers on standard
output, one JSON object a line each: first what it loaded, then to `{"measure": NAME, ...}` a `{"value": NUMBER}`, or
`{"error": LINE}`. mlx-lm is used as its users do, with its defaults: `mlx_lm.load` and `stream_generate`, whose end at
an eos token alone is switched off, so that both programs generate as many tokens as they are asked for.
"""

import json
import os
import random
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import IO, Protocol, cast

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from helium_mlx.diagnostics.graph_size import step_operations
from helium_mlx.errors import HeliumError

BANDWIDTH_ELEMENTS = 2**26
"""float32 numbers in the array that the bandwidth is measured with: 268 MB, more than any cache holds."""


class Program(Protocol):
    """What both programs can do. `step_size` is the chunk length of prefill, None for the program's default."""

    context: int
    vocab_size: int

    @property
    def model(self) -> nn.Module:
        """The model with its weights."""
        ...

    def generate(self, prompt: list[int], max_tokens: int, step_size: int | None = None) -> Iterator[object]:
        """Yield something a token, as it appears: `max_tokens` of them, greedily."""
        ...

    def cache_bytes(self) -> int:
        """Return how many bytes of keys and values one position takes, in all layers."""
        ...


class HeliumMlx:
    """This package, through `load` and `stream_generate`."""

    def __init__(self, directory: Path) -> None:
        from helium_mlx.model.loading import load

        self.model, self.tokenizer = load(directory)
        self.context, self.vocab_size = self.model.config.max_position_embeddings, self.model.config.vocab_size

    def generate(self, prompt: list[int], max_tokens: int, step_size: int | None = None) -> Iterator[object]:
        """Yield `max_tokens` chunks."""
        from helium_mlx.generation.streaming import stream_generate

        generate = stream_generate if step_size is None else partial(stream_generate, prefill_step_size=step_size)
        return generate(self.model, self.tokenizer, prompt, max_tokens=max_tokens, ignore_eos=True)

    def cache_bytes(self) -> int:
        """Return the bytes of a position."""
        from helium_mlx.kv_cache.memory import bytes_per_token

        return bytes_per_token(self.model.config, dtype=self.model.model.norm.weight.dtype)


class MlxLm:
    """mlx-lm, through `mlx_lm.load` and `mlx_lm.stream_generate`."""

    def __init__(self, directory: Path) -> None:
        try:
            import mlx_lm
        except ImportError as error:
            raise HeliumError(f"mlx-lm is not there ({error}): pip install mlx-lm") from None
        try:
            self.model, self.tokenizer = mlx_lm.load(str(directory))[:2]
        except (TypeError, ValueError, KeyError, OSError) as error:
            first_line = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise HeliumError(f"mlx-lm cannot open {directory} ({first_line}); convert it first") from None
        self.tokenizer.eos_token_ids = set()
        config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
        self.context, self.vocab_size = config["max_position_embeddings"], config["vocab_size"]

    def generate(self, prompt: list[int], max_tokens: int, step_size: int | None = None) -> Iterator[object]:
        """Yield `max_tokens` responses."""
        from mlx_lm import stream_generate

        generate = stream_generate if step_size is None else partial(stream_generate, prefill_step_size=step_size)
        return generate(self.model, self.tokenizer, prompt, max_tokens=max_tokens)

    def cache_bytes(self) -> int:
        """Return the bytes of a position."""
        from mlx_lm.models.cache import make_prompt_cache

        cache = make_prompt_cache(self.model)
        self.model(mx.array([[1]]), cache=cache)
        return sum(_bytes_per_position(layer.keys, layer.values) for layer in cache)


PROGRAMS: dict[str, Callable[[Path], Program]] = {"helium_mlx": HeliumMlx, "mlx-lm": MlxLm}


def _bytes_per_position(*arrays: mx.array | None) -> int:
    # (B, heads, positions, head_dim)
    return sum(array.nbytes // array.shape[2] for array in arrays if array is not None)


def bytes_read_a_token(model: nn.Module) -> int:
    """Return the bytes of the weights that one token's step reads: all, but of the embedding a single row.

    A model whose head is its embedding reads all of that.
    """
    weights = cast(list[tuple[str, mx.array]], tree_flatten(model.parameters()))
    has_head = any(name.startswith("lm_head.") for name, _ in weights)
    return sum(
        array.nbytes // array.shape[0] if has_head and "embed_tokens." in name else array.nbytes
        for name, array in weights
    )


def random_prompt(length: int, vocab_size: int) -> list[int]:
    """Return BOS and `length - 1` ids drawn evenly, the same ones every time."""
    draw = random.Random(length)
    return [1, *(draw.randrange(min(106, vocab_size - 1), vocab_size) for _ in range(length - 1))]


def prefill_speed(program: Program, *, tokens: int) -> float:
    """Return prompt tokens a second, up to and including the first token of the answer."""
    (first,) = _arrivals(program, tokens, 1)
    return tokens / first


def decode_speed(program: Program, *, context: int, tokens: int) -> float:
    """Return tokens a second after a prompt of `context` tokens, the first of `tokens` left out."""
    arrivals = _arrivals(program, context, tokens)
    return (len(arrivals) - 1) / (arrivals[-1] - arrivals[0])


def peak_memory(program: Program, *, tokens: int, step_size: int | None) -> float:
    """Return the bytes that MLX held at most, weights included, while it ran a prompt and made one token."""
    mx.clear_cache()
    mx.reset_peak_memory()
    _arrivals(program, tokens, 1, step_size)
    return mx.get_peak_memory()


def graph_nodes(program: Program) -> float:
    """Return the operations of one decoding step."""
    return step_operations(program.generate(random_prompt(16, program.vocab_size), 12)).total()


def bandwidth(program: Program | None = None, *, elements: int = BANDWIDTH_ELEMENTS) -> float:
    """Return bytes a second of memory traffic, the best of three operations over a large array, five times each.

    Reading alone (a sum), reading by a matrix product (which uses all cores where MLX's others use one), and a copy
    with one addition, which reads and writes.
    """
    x = mx.ones((elements // 4096, 4096))
    vector = mx.ones((4096,))
    mx.eval(x, vector)
    attempts: list[tuple[int, Callable[[], mx.array]]] = [
        (x.nbytes, lambda: x.sum()),
        (x.nbytes, lambda: x @ vector),
        (2 * x.nbytes, lambda: x + 1),
    ]
    best = 0.0
    for moved, attempt in attempts:
        for _ in range(5):
            start = time.perf_counter()
            mx.eval(attempt())
            best = max(best, moved / (time.perf_counter() - start))
    mx.clear_cache()
    return best


MEASURES: dict[str, Callable[..., float]] = {
    "prefill": prefill_speed,
    "decode": decode_speed,
    "peak": peak_memory,
    "nodes": graph_nodes,
    "bandwidth": bandwidth,
}


def _arrivals(program: Program, prompt: int, tokens: int, step_size: int | None = None) -> list[float]:
    """Return when each token came, in seconds since the start."""
    ids = random_prompt(prompt, program.vocab_size)
    start = time.perf_counter()
    arrivals = [time.perf_counter() - start for _ in program.generate(ids, tokens, step_size)]
    # mlx-lm leaves a step in flight, which must not run into the other program's turn.
    mx.synchronize()
    assert len(arrivals) == tokens, (len(arrivals), tokens)
    return arrivals


def serve(name: str, directory: Path, requests: IO[str], answers: IO[str]) -> None:
    """Load a program, say what it loaded, and answer until `requests` ends."""

    def answer(**values: object) -> None:
        print(json.dumps(values), file=answers, flush=True)

    try:
        program = PROGRAMS[name](directory)
        answer(
            context=program.context,
            weight_bytes=bytes_read_a_token(program.model),
            cache_bytes=program.cache_bytes(),
        )
        for line in requests:
            request = json.loads(line)
            answer(value=MEASURES[request.pop("measure")](program, **request))
    except HeliumError as error:
        answer(error=str(error))


def main() -> int:
    """Run the process: `python -m helium_mlx.diagnostics.worker PROGRAM DIRECTORY`."""
    # What a program prints must not get among the answers.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    serve(sys.argv[1], Path(sys.argv[2]), sys.stdin, answers)
    return 0


if __name__ == "__main__":
    sys.exit(main())
