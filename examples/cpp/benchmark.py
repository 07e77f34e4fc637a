"""Measure the program in C++ beside `python -m helium_mlx.generate`: `python examples/cpp/benchmark.py --help`.

A pair is a checkpoint and the bundle exported from it. Each run is a process of its own, the two programs in turns, on
the same prompt, greedily. Cold start is the time from starting a program to its end after one token, the files being in
the page cache; tokens/s is what each says of the tokens after its first.
"""

import argparse
import re
import statistics
import subprocess
import sys
import time

RATES = {"python": re.compile(r"Generation: .*?, ([\d.]+) tokens/s"), "c++": re.compile(r"then ([\d.]+) tokens/s")}


def run(command: list[str]) -> tuple[float, str]:
    """Return how many seconds a command took, and what it wrote to standard error."""
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return time.perf_counter() - start, done.stderr


def commands(program: str, checkpoint: str, bundle: str, prompt: str) -> dict[str, list[str]]:
    """Return what runs the two programs, but for the number of tokens."""
    python = [sys.executable, "-m", "helium_mlx.generate", "--model", checkpoint, "--prompt", prompt, "--temp", "0"]
    hashed = [program, "--bundle", bundle, "--prompt", prompt, "--temp", "0"]
    return {"python": python, "c++": hashed, "c++, --skip-hashes": [*hashed, "--skip-hashes"]}


def measure(command: dict[str, list[str]], runs: int, max_tokens: int) -> dict[str, tuple[float, float]]:
    """Return the medians of cold start, in seconds, and of tokens/s for each program."""
    starts: dict[str, list[float]] = {name: [] for name in command}
    rates: dict[str, list[float]] = {name: [] for name in command}
    for _ in range(runs):
        for name, words in command.items():
            starts[name].append(run([*words, "--max-tokens", "1"])[0])
            told = RATES[name.split(",")[0]].search(run([*words, "--max-tokens", str(max_tokens)])[1])
            assert told is not None, f"{name} told no tokens/s"
            rates[name].append(float(told[1]))
    return {name: (statistics.median(starts[name]), statistics.median(rates[name])) for name in command}


def main() -> None:
    """Print a table, a row for each program and pair."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", required=True, help="the built program, such as build/helium")
    parser.add_argument(
        "--pair", nargs=2, action="append", required=True, metavar=("CHECKPOINT", "BUNDLE"), help="may be repeated"
    )
    parser.add_argument("--prompt", default="Once upon a time")
    parser.add_argument("--max-tokens", type=int, default=200)
    parser.add_argument("--runs", type=int, default=5)
    arguments = parser.parse_args()
    print("| | | cold start, s | tokens/s |\n|--|--|--|--|")
    for checkpoint, bundle in arguments.pair:
        measured = measure(
            commands(arguments.program, checkpoint, bundle, arguments.prompt), arguments.runs, arguments.max_tokens
        )
        for name, (start, rate) in measured.items():
            print(f"| {bundle.rstrip('/').rsplit('/', 1)[-1]} | {name} | {start:.3f} | {rate:.1f} |", flush=True)


if __name__ == "__main__":
    main()
