"""Tokens a second of many prompts together over one by one: `python examples/benchmark_batch.py`.

Prints a line a batch size as Markdown: tokens a second of both, which take turns, by wall clock; and the ratio by wall
clock and by the time of all cores. Prompts are openings of stories in the demo's six languages, so rows differ in
length; every completion has `--max-tokens` tokens.

How much work rows share is up to the matrix product. On the CPU, that of MLX's Linux wheel takes half as long for 16
rows as for one row 16 times in 16 bits, and just as long in float32, so that a batch saves only the rest there. Another
BLAS shares more, in float32: `LD_PRELOAD=/usr/lib/x86_64-linux-gnu/openblas-pthread/libblas.so.3`.
"""

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence

from demo_stories import LANGUAGES, stories

from helium_mlx import HeliumForCausalLM, HeliumTokenizer, load, stream_generate
from helium_mlx.generation.batching import batch_generate
from helium_mlx.terminal import run_command

Times = tuple[float, float]
"""Seconds of the wall clock, and of all cores together."""


def openings(count: int) -> list[str]:
    """Return the first words of `count` stories, four to nine of them."""
    each = -(-count // len(LANGUAGES))
    texts = [story.text for language in LANGUAGES for story in stories(language, each, seed=7, held_out=True)]
    return [" ".join(text.split()[: 4 + place % 6]) for place, text in enumerate(texts)][:count]


def timed(work: Callable[..., int], *arguments: object) -> Times:
    """Return the seconds for each token of `work(*arguments)`, which returns how many it made."""
    cores, wall = os.times(), time.perf_counter()
    tokens = work(*arguments)
    after = os.times()
    computed = after.user + after.system - cores.user - cores.system
    return (time.perf_counter() - wall) / tokens, computed / tokens


def one_by_one(model: HeliumForCausalLM, tokenizer: HeliumTokenizer, prompts: Sequence[str], max_tokens: int) -> int:
    """Complete the prompts one after another; return the number of tokens."""
    return sum(
        1
        for prompt in prompts
        for _ in stream_generate(model, tokenizer, prompt, max_tokens=max_tokens, ignore_eos=True)
    )


def together(model: HeliumForCausalLM, tokenizer: HeliumTokenizer, prompts: Sequence[str], max_tokens: int) -> int:
    """Complete the prompts in one batch; return the number of tokens."""
    completions = batch_generate(
        model, tokenizer, prompts, batch_size=len(prompts), max_tokens=max_tokens, ignore_eos=True
    )
    return sum(completion.generated_tokens for completion in completions)


def measure(model_name: str, *, batch_sizes: Sequence[int], max_tokens: int, runs: int) -> str:
    """Return the table; the figures are medians over the runs, after one of two tokens to warm up."""
    model, tokenizer = load(model_name)
    lines = [
        "| rows | one by one, tokens/s | together, tokens/s | ratio, wall time | ratio, core time |",
        "|--|--|--|--|--|",
    ]
    for size in batch_sizes:
        prompts = openings(size)
        for work in (one_by_one, together):
            work(model, tokenizer, prompts, 2)
        apart, joined = list[Times](), list[Times]()
        for _ in range(runs):
            apart.append(timed(one_by_one, model, tokenizer, prompts, max_tokens))
            joined.append(timed(together, model, tokenizer, prompts, max_tokens))
        wall_apart, wall_joined = (statistics.median(times[0] for times in each) for each in (apart, joined))
        cores_apart, cores_joined = (statistics.median(times[1] for times in each) for each in (apart, joined))
        lines.append(
            f"| {size} | {1 / wall_apart:,.0f} | {1 / wall_joined:,.0f} | {wall_apart / wall_joined:.2f} | "
            f"{cores_apart / max(cores_joined, 1e-9):.2f} |"
        )
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Run the script and return its exit status."""
    parser = argparse.ArgumentParser(description="Measure what a batch saves.")
    parser.add_argument("--model", default="demo", help="directory, Hub repository or 'demo' (default: %(default)s)")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[4, 16], metavar="N", help="(default: 4 16)")
    parser.add_argument("--max-tokens", type=int, default=64, help="tokens of a completion (default: %(default)s)")
    parser.add_argument("--runs", type=int, default=3, help="(default: %(default)s)")
    options = parser.parse_args(argv)
    return run_command(
        lambda: print(
            measure(
                options.model,
                batch_sizes=options.batch_sizes,
                max_tokens=options.max_tokens,
                runs=options.runs,
            )
        )
    )


if __name__ == "__main__":
    sys.exit(main())
