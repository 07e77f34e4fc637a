"""Measures a bundle beside the Python loop: `python examples/benchmark_bundle.py --model DIR`.

The checkpoint is exported, and the bundle run by `BundleRunner`, the model by `stream_generate`'s own loop. The two
take turns in one process, on the same prompts, and must give the same greedy ids. Printed are medians of `--runs` turns
by wall clock, as Markdown, with the smallest and the largest in parentheses; a ratio above 1 means that the bundle is
better. Opening reads every byte of the bundle, for its hashes.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import mlx.core as mx

from helium_mlx import BundleRunner, HeliumError, HeliumForCausalLM, export, load, make_cache
from helium_mlx.bundle.bundle import open_bundle
from helium_mlx.checkpoint.config import DTYPES
from helium_mlx.generation.sampling import Sampler, SamplingOptions
from helium_mlx.generation.streaming import Decoding, prefill
from helium_mlx.terminal import run_command

STEP = 512
# Ids of real words, whichever the tokenizer.
FIRST_WORD, WORDS = 400, 1000

Rates = tuple[float, float]
"""Tokens a second of a prompt and of what follows it."""


def prompt(tokens: int, vocab_size: int) -> list[int]:
    """Return a prompt of `tokens` tokens."""
    return [1, *(FIRST_WORD + 37 * index % min(WORDS, vocab_size - FIRST_WORD) for index in range(tokens - 1))]


def run_loop(model: HeliumForCausalLM, tokens: Sequence[int], count: int) -> tuple[list[int], Rates]:
    """Run the Python loop; return the greedy ids and its rates."""
    cache = make_cache(model)
    for layer in cache:
        layer.reserve(len(tokens) + count)
    sampler = Sampler(SamplingOptions(), mx.array(list(tokens), dtype=mx.int32), vocab_size=model.config.vocab_size)
    start = time.perf_counter()
    logits = prefill(model, tokens, cache, step_size=STEP)
    mx.eval(logits)
    read = time.perf_counter()
    found = [decoded.token for decoded in Decoding(model, cache, sampler, 0).tokens(logits, count + 1)]
    return found, (len(tokens) / (read - start), count / (time.perf_counter() - read))


def run_bundle(runner: BundleRunner, tokens: Sequence[int], count: int) -> tuple[list[int], Rates]:
    """Run the bundle; return the greedy ids and its rates."""
    start = time.perf_counter()
    steps = runner.greedy(tokens, count + 1)
    found = [next(steps)[0]]
    read = time.perf_counter()
    found += [token for token, _ in steps]
    return found, (len(tokens) / (read - start), count / (time.perf_counter() - read))


def table(model: HeliumForCausalLM, runner: BundleRunner, contexts: Sequence[int], count: int, runs: int) -> str:
    """Return the table; raises HeliumError where the two continue a prompt differently."""
    lines = [["tokens/s", "bundle", "Python loop", "ratio"], ["--"] * 4]
    for context in contexts:
        tokens = prompt(context, model.config.vocab_size)
        turns: list[tuple[Rates, Rates]] = []
        for _ in range(runs + 1):
            from_bundle, bundle_rates = run_bundle(runner, tokens, count)
            from_loop, loop_rates = run_loop(model, tokens, count)
            if from_bundle != from_loop:
                raise HeliumError(
                    f"bundle and model part at token {_first_difference(from_bundle, from_loop)} after {context}"
                )
            turns.append((bundle_rates, loop_rates))
        for index, what in enumerate((f"prompt of {context:,}", f"decode after {context:,}")):
            # The first turn reads function files and warms up.
            bundle, loop = ([turn[side][index] for turn in turns[1:]] for side in (0, 1))
            ratio = statistics.median(b / p for b, p in zip(bundle, loop, strict=True))
            lines.append([what, _summary(bundle), _summary(loop), f"{ratio:.2f}"])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _summary(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.0f} ({min(values):.0f} to {max(values):.0f})"


def _first_difference(from_bundle: Sequence[int], from_loop: Sequence[int]) -> int:
    return next(index for index, pair in enumerate(zip(from_bundle, from_loop, strict=True)) if pair[0] != pair[1])


def build_parser() -> argparse.ArgumentParser:
    """Return the parser."""
    parser = argparse.ArgumentParser(description="Measure a bundle beside the Python loop.")
    parser.add_argument("--model", default="demo", help="checkpoint directory or 'demo' (default: %(default)s)")
    parser.add_argument("--dtype", choices=DTYPES, help="dtype to compute in (default: as `export` has it)")
    parser.add_argument(
        "--contexts", type=int, nargs="+", default=[16, 500, 1000, 2000, 4000],
        help="lengths of prompt (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--tokens", type=int, default=64, help="tokens to decode after each (default: %(default)s)")
    parser.add_argument("--runs", type=int, default=5, help="turns of each (default: %(default)s)")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Print the table and return an exit status."""
    options = vars(build_parser().parse_args(argv))
    return run_command(lambda: _benchmark(**options))


def _benchmark(model: str, dtype: str | None, contexts: list[int], tokens: int, runs: int) -> None:
    with tempfile.TemporaryDirectory() as directory:
        bundle = Path(directory) / "bundle"
        report = export(model, bundle, dtype=dtype, verify=False)
        loaded, _ = load(model, dtype=dtype)
        room = [context for context in contexts if context + tokens <= report.context]
        start = time.perf_counter()
        opened = open_bundle(bundle)
        checked = time.perf_counter()
        # A text goes on after its end: it has to be as long as the model's.
        opened = replace(opened, manifest=replace(opened.manifest, eos_token_ids=()))
        runner = BundleRunner(opened)
        print(table(loaded, runner, room, tokens, runs))
        ready = _seconds(lambda: BundleRunner(opened).feed([1]))
    print(f"\nOpening and checking took {checked - start:.2f} s, from there to the first logits {ready:.2f} s.")


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


if __name__ == "__main__":
    sys.exit(main())
