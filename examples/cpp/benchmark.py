"""Measure the program in C++ beside `python -m helium_mlx.generate`: `python examples/cpp/benchmark.py --help`.

A pair is a checkpoint and the bundle exported from it. Each run is a process of its own, the two programs in turns, on
the same prompt, greedily, past the end of a text. Cold start is the time from starting a program to its end after one
token of a short prompt, the files being in the page cache; tokens/s is what each says of the tokens after its first,
behind prompts of `--contexts` tokens; the ratio is the median of those of the turns, above 1 where C++ is faster.
"""

import argparse
import re
import statistics
import subprocess
import sys
import time

from helium_mlx import HeliumTokenizer
from helium_mlx.bundle.vectors import long_prompt

WORDS = "Once upon a time"
RATES = {"python": re.compile(r"Generation: .*?, ([\d.]+) tokens/s"), "c++": re.compile(r"then ([\d.]+) tokens/s")}


def run(command: list[str]) -> tuple[float, str]:
    """Return how many seconds a command took, and what it wrote to standard error."""
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return time.perf_counter() - start, done.stderr


def commands(program: str, checkpoint: str, bundle: str) -> dict[str, list[str]]:
    """Return what runs the two programs, but for the prompt and the number of tokens."""
    python = [sys.executable, "-m", "helium_mlx.generate", "--model", checkpoint]
    return {
        "python": python,
        "c++": [program, "--bundle", bundle],
        "c++, hashes skipped": [program, "--bundle", bundle, "--skip-hashes"],
    }


def starts_of(command: dict[str, list[str]], runs: int) -> dict[str, float]:
    """Return the median of cold start, in seconds, for each program."""
    starts: dict[str, list[float]] = {name: [] for name in command}
    for _ in range(runs):
        for name, words in command.items():
            asked = ["--prompt", WORDS, "--temp", "0", "--max-tokens", "1"]
            starts[name].append(run([*words, *asked])[0])
    return {name: statistics.median(seconds) for name, seconds in starts.items()}


def rates_of(command: dict[str, list[str]], prompt: str, runs: int, max_tokens: int) -> tuple[float, float, float]:
    """Return the medians of tokens/s, Python's and then C++'s, and of their ratios."""
    rates: dict[str, list[float]] = {name: [] for name in RATES}
    asked = ["--prompt", prompt, "--temp", "0", "--ignore-eos", "--max-tokens", str(max_tokens)]
    for _ in range(runs):
        for name, rate in RATES.items():
            told = rate.search(run([*command[name], *asked])[1])
            assert told is not None, f"{name} told no tokens/s"
            rates[name].append(float(told[1]))
    ratios = [c / p for c, p in zip(rates["c++"], rates["python"], strict=True)]
    return statistics.median(rates["python"]), statistics.median(rates["c++"]), statistics.median(ratios)


def main() -> None:
    """Print two tables, a row for each pair, and for each pair and context."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", required=True, help="the built program, such as build/helium")
    parser.add_argument(
        "--pair", nargs=2, action="append", required=True, metavar=("CHECKPOINT", "BUNDLE"), help="may be repeated"
    )
    parser.add_argument("--contexts", type=int, nargs="+", default=[16, 1024, 4000], help="tokens before the first")
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--runs", type=int, default=5)
    arguments = parser.parse_args()
    pairs = [(bundle.rstrip("/").rsplit("/", 1)[-1], checkpoint, bundle) for checkpoint, bundle in arguments.pair]
    print("| cold start, s | Python | C++ | C++, hashes skipped |\n|--|--|--|--|")
    for name, checkpoint, bundle in pairs:
        starts = starts_of(commands(arguments.program, checkpoint, bundle), arguments.runs)
        print(f"| {name} | {' | '.join(f'{seconds:.2f}' for seconds in starts.values())} |", flush=True)
    print("\n| tokens/s | context | Python | C++ | ratio |\n|--|--|--|--|--|")
    for name, checkpoint, bundle in pairs:
        for context in arguments.contexts:
            command = commands(arguments.program, checkpoint, bundle)
            prompt = long_prompt(HeliumTokenizer.from_pretrained(checkpoint), context)
            python, cpp, ratio = rates_of(command, prompt, arguments.runs, arguments.max_tokens)
            print(f"| {name} | {context:,} | {python:,.4g} | {cpp:,.4g} | {ratio:.2f} |", flush=True)


if __name__ == "__main__":
    main()
