"""One program under measurement, in a process of its own: loads a checkpoint, then answers a measure a line.

`python -m helium_mlx.diagnostics.worker PROGRAM DIRECTORY` reads requests from standard input and answers on standard
output, one JSON object a line each: first what it loaded, then to `{"measure": NAME, ...}` a `{"value": NUMBER}`, null
where the program cannot do it, or `{"error": LINE}`. mlx-lm is used as its users do, with its defaults: `mlx_lm.load`
and `stream_generate`, whose end at an eos token alone is switched off, so that both programs generate as many tokens as
they are asked for.
"""

import json
import os
import random
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import IO, Protocol, cast

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from helium_mlx.diagnostics.gpu_kernels import PRECISIONS, as_on_gpu, kernels, write_small_model
from helium_mlx.diagnostics.graph_size import Operations, step_operations
from helium_mlx.errors import HeliumError
from helium_mlx.memory_limits import wired_memory

BANDWIDTH_ELEMENTS = 2**26
"""float32 numbers in the array that the bandwidth is measured with: 268 MB, more than any cache holds."""


STEPS: dict[str, dict[str, object]] = {
    "alone": {},
    "batch of 4": {},
    "rotating cache": {"max_kv_size": 12},
    "8-bit cache": {"kv_bits": 8},
    "top-p sampling": {"temperature": 0.8, "top_p": 0.9},
    "drafts by lookup": {"prompt_lookup": 4},
}
"""The kinds of decoding steps whose kernels are counted, and the options of `stream_generate` that make them."""


# Of the prompts of a batch.
_LENGTHS = (16, 12, 9, 5)

# Graphs that are built while the clock runs.
_BUILT = 100


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

    def steps(self, kind: str, prompt: list[int], max_tokens: int) -> Iterator[object] | None:
        """Return the loop that takes steps of a kind in `STEPS`; None if the program has none."""
        ...

    def builder(self, prompt: list[int]) -> Callable[[], object]:
        """Return what builds the graph of the next token, after that of the last, and evaluates nothing."""
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

    def steps(self, kind: str, prompt: list[int], max_tokens: int) -> Iterator[object] | None:
        """Return a loop; `stream_generate`, but for the batch."""
        from helium_mlx.generation.streaming import generate, stream_generate

        if kind == "batch of 4":
            prompts = [prompt[:length] for length in _LENGTHS]
            return _later(lambda: generate(self.model, self.tokenizer, prompts, max_tokens=max_tokens, ignore_eos=True))
        with_options = partial(stream_generate, **STEPS[kind])
        return with_options(self.model, self.tokenizer, prompt, max_tokens=max_tokens, ignore_eos=True)

    def builder(self, prompt: list[int]) -> Callable[[], object]:
        """Return the model's step and the sampler's, as `Decoding` takes them."""
        from helium_mlx.generation.sampling import Sampler, SamplingOptions
        from helium_mlx.generation.streaming import prefill
        from helium_mlx.kv_cache.make import make_cache

        cache = make_cache(self.model)
        sampler = Sampler(SamplingOptions(), mx.array(prompt), vocab_size=self.vocab_size)
        token = sampler(prefill(self.model, prompt, cache, step_size=512))

        def build() -> object:
            nonlocal token
            logits = self.model.logits_after(token, cache)
            token = sampler(logits)
            return token, logits.max(axis=-1)

        return build


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
            remedy = f"convert it first: helium-mlx convert --hf-path {shlex.quote(str(directory))} --mlx-path DIR"
            raise HeliumError(f"mlx-lm cannot open {directory} ({first_line}); {remedy}") from None
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

    def steps(self, kind: str, prompt: list[int], max_tokens: int) -> Iterator[object] | None:
        """Return a loop; it has no lookup, and a batch function of its own."""
        from mlx_lm import batch_generate, stream_generate
        from mlx_lm.sample_utils import make_sampler

        options = STEPS[kind]
        if "prompt_lookup" in options:
            return None
        if kind == "batch of 4":
            prompts = [prompt[:length] for length in _LENGTHS]
            return _later(lambda: batch_generate(self.model, self.tokenizer, prompts, max_tokens=max_tokens).texts)
        own: dict[str, object] = {name: value for name, value in options.items() if name in ("max_kv_size", "kv_bits")}
        if "kv_bits" in options:
            own["quantized_kv_start"] = 0
        if "temperature" in options:
            own["sampler"] = make_sampler(cast(float, options["temperature"]), cast(float, options["top_p"]))
        return stream_generate(self.model, self.tokenizer, prompt, max_tokens=max_tokens, **own)  # pyright: ignore[reportArgumentType]

    def builder(self, prompt: list[int]) -> Callable[[], object]:
        """Return what its `generate_step` does for a token."""
        from mlx_lm.models.cache import make_prompt_cache

        cache, model = make_prompt_cache(self.model), cast("Callable[..., mx.array]", self.model)
        token = mx.argmax(model(mx.array([prompt]), cache=cache)[:, -1, :], axis=-1)
        mx.eval([layer.state for layer in cache])

        def build() -> object:
            nonlocal token
            logits = model(token[None], cache=cache)[:, -1, :]
            logprobs = logits - mx.logsumexp(logits, keepdims=True)
            token = mx.argmax(logprobs, axis=-1)
            return token, logprobs.squeeze(0)

        return build


PROGRAMS: dict[str, Callable[[Path], Program]] = {"helium_mlx": HeliumMlx, "mlx-lm": MlxLm}


def _later(run: Callable[[], list[str]]) -> Iterator[str]:
    yield from run()


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


def write_small_models(program: Program, *, directory: str) -> float:
    """Write the models that kernels are counted with, one a precision, for `counted`; return how many."""
    config = cast(HeliumMlx, program).model.config
    for name, bits in PRECISIONS.items():
        write_small_model(Path(directory) / name, config, bits)
    return len(PRECISIONS)


def counted(program: Program, *, directory: str, kind: str) -> Operations | None:
    """Return the operations of one step of a kind, by a small model as on a GPU; None if the program has none."""
    with as_on_gpu():
        small = type(program)(Path(directory))  # pyright: ignore[reportCallIssue]
        # A rotating cache has to be full for longer than it was not, and drafts begin where tokens repeat.
        is_late = {"max_kv_size", "prompt_lookup"} & STEPS[kind].keys()
        loop = small.steps(kind, random_prompt(16, small.vocab_size), 100 if is_late else 24)
        return None if loop is None else step_operations(loop)


def kernels_of_step(program: Program, *, directory: str, kind: str) -> float | None:
    """Return the kernels of one step."""
    operations = counted(program, directory=directory, kind=kind)
    return None if operations is None else kernels(operations)


def nodes_of_step(program: Program, *, directory: str) -> float | None:
    """Return the operations of one step alone, views included."""
    operations = counted(program, directory=directory, kind="alone")
    return None if operations is None else operations.total()


def time_to_build(program: Program, *, directory: str) -> float:
    """Return the seconds of this thread to build the graph of a token as on a GPU, evaluated after that."""
    with as_on_gpu():
        small = type(program)(Path(directory))  # pyright: ignore[reportCallIssue]
        build = small.builder(random_prompt(16, small.vocab_size))
        times = []
        for _ in range(_BUILT):
            start = time.thread_time()
            step = build()
            times.append(time.thread_time() - start)
            mx.eval(step)
        return statistics.median(times)


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


MEASURES: dict[str, Callable[..., float | None]] = {
    "prefill": prefill_speed,
    "decode": decode_speed,
    "peak": peak_memory,
    "write_small_models": write_small_models,
    "kernels": kernels_of_step,
    "nodes": nodes_of_step,
    "build": time_to_build,
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
    with wired_memory():
        serve(sys.argv[1], Path(sys.argv[2]), sys.stdin, answers)
    return 0


if __name__ == "__main__":
    sys.exit(main())
