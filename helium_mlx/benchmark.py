"""The command `benchmark`: speed and memory on this machine, alone or beside mlx-lm on the same directory.

Runs of the two programs alternate, so that what else the machine does falls on both; figures are medians, with the
smallest and largest beside them, and the ratio is of the medians. `start` is the wall time of a whole process that
generates one token, with its peak resident memory; prefill and decode are timed in this process, greedily.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING

from helium_mlx import __version__
from helium_mlx.errors import HeliumError
from helium_mlx.terminal import run_command

if TYPE_CHECKING:
    from pathlib import Path

PROMPT = "Bonjour"


@dataclass(frozen=True)
class Figure:
    """One quantity: the runs of helium_mlx, and those of the peer if there is one."""

    name: str
    unit: str
    larger_is_better: bool
    ours: list[float]
    theirs: list[float]

    @property
    def ratio(self) -> float | None:
        """How many times better helium_mlx is, by the medians; None without a peer."""
        if not self.theirs:
            return None
        ours, theirs = statistics.median(self.ours), statistics.median(self.theirs)
        return ours / theirs if self.larger_is_better else theirs / ours


Timing = tuple[float, float]
"""Seconds to the first token, and tokens a second after it."""


def benchmark(
    model: str, *, prompt_tokens: int = 128, generation_tokens: int = 100, against: str | None = None, runs: int = 5
) -> list[Figure]:
    """Measure a checkpoint directory, Hub repository or "demo"; `against` is None or "mlx-lm".

    Raises HeliumError if mlx-lm is asked for and is not installed or cannot open the directory.
    """
    from helium_mlx.hub import resolve

    if min(prompt_tokens, generation_tokens - 1, runs) < 1:
        raise HeliumError("prompt-tokens and runs must be at least 1, and generation-tokens at least 2")
    directory = resolve(model)
    programs = [_ours(directory)] + ([_mlx_lm(directory)] if against else [])
    start: list[list[tuple[float, float]]] = [[] for _ in programs]
    timings: list[list[Timing]] = [[] for _ in programs]
    for run in range(runs + 1):
        for i, (command, measure) in enumerate(programs):
            started, timed = _whole_process(command), measure(prompt_tokens, generation_tokens)
            # The first round warms file caches and kernels.
            if run:
                start[i].append(started)
                timings[i].append(timed)

    def figure(name: str, unit: str, larger_is_better: bool, values: list[list[float]]) -> Figure:
        return Figure(name, unit, larger_is_better, values[0], values[1] if against else [])

    return [
        figure("start to one token", "s", False, [[seconds for seconds, _ in runs] for runs in start]),
        figure("peak resident memory of that", "MB", False, [[peak / 1e6 for _, peak in runs] for runs in start]),
        figure(
            f"prefill of {prompt_tokens}", "tokens/s", True, [[prompt_tokens / s for s, _ in runs] for runs in timings]
        ),
        figure("decode", "tokens/s", True, [[speed for _, speed in runs] for runs in timings]),
    ]


Program = tuple[list[str], Callable[[int, int], Timing]]


def _ours(directory: "Path") -> Program:
    from helium_mlx.generation import stream_generate
    from helium_mlx.loading import load

    model, tokenizer = load(directory)

    def measure(prompt_tokens: int, generation_tokens: int) -> Timing:
        prompt = _prompt(prompt_tokens, model.config.vocab_size)
        chunks = stream_generate(model, tokenizer, prompt, max_tokens=generation_tokens, ignore_eos=True)
        return _timed(iter(chunks))

    command = ["-m", "helium_mlx.generate", "--model", str(directory), "--prompt", PROMPT, "--max-tokens", "1"]
    return [sys.executable, *command, "--quiet"], measure


def _mlx_lm(directory: "Path") -> Program:
    try:
        import mlx.core as mx
        from mlx_lm.generate import generate_step
        from mlx_lm.utils import load_model
    except ImportError:
        raise HeliumError("--against mlx-lm needs mlx-lm; install it with: pip install mlx-lm") from None
    try:
        model, config = load_model(directory)
    except (TypeError, ValueError, KeyError, FileNotFoundError) as error:
        raise HeliumError(f"mlx-lm cannot open {directory} ({error}); convert it first") from None

    def measure(prompt_tokens: int, generation_tokens: int) -> Timing:
        prompt = mx.array(_prompt(prompt_tokens, config["vocab_size"]))
        return _timed(iter(generate_step(prompt, model, max_tokens=generation_tokens)))

    command = ["-m", "mlx_lm", "generate", "--model", str(directory), "--prompt", PROMPT, "--max-tokens", "1"]
    return [sys.executable, *command, "--ignore-chat-template"], measure


def _prompt(length: int, vocab_size: int) -> list[int]:
    return [1, *(106 + i * 37 % max(vocab_size - 106, 1) for i in range(length - 1))]


def _timed(tokens: Iterator[object]) -> Timing:
    start = time.perf_counter()
    next(tokens)
    first = time.perf_counter()
    count = sum(1 for _ in tokens)
    return first - start, count / (time.perf_counter() - first)


# Runs in a small process of its own: a child's peak memory counts what its parent held when it forked.
_LAUNCHER = """
import os, subprocess, sys, time
start = time.perf_counter()
process = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL)
_, status, usage = os.wait4(process.pid, 0)
print(time.perf_counter() - start, usage.ru_maxrss, os.waitstatus_to_exitcode(status))
process.returncode = 0
"""


def _whole_process(command: list[str]) -> tuple[float, float]:
    """Return wall seconds and peak resident bytes of a process."""
    result = subprocess.run([sys.executable, "-c", _LAUNCHER, *command], capture_output=True, text=True, check=True)
    seconds, peak, status = map(float, result.stdout.split())
    if status:
        said = result.stderr.strip().splitlines() or ["nothing said"]
        raise HeliumError(f"{command[2]} failed with status {status:.0f}: {said[-1]}")
    # Linux counts kilobytes, macOS bytes.
    return seconds, peak * (1 if sys.platform == "darwin" else 1024)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser; option names are those of `benchmark`."""
    parser = argparse.ArgumentParser(prog="helium-mlx benchmark", description="Measure speed and memory here.")
    parser.add_argument("--model", default="demo", help="directory, Hub repository or 'demo' (default: %(default)s)")
    parser.add_argument("--prompt-tokens", type=int, default=128, help="length of the prompt (default: %(default)s)")
    parser.add_argument(
        "--generation-tokens", type=int, default=100, help="tokens to generate a run (default: %(default)s)"
    )
    parser.add_argument("--against", choices=["mlx-lm"], help="measure this program too, in alternating runs")
    parser.add_argument("--runs", type=int, default=5, help="runs after one to warm up (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print every run as JSON instead of a table")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit status."""
    options = vars(build_parser().parse_args(argv))
    as_json = options.pop("json")
    return run_command(lambda: _print_report(benchmark(**options), options, as_json=as_json))


def _print_report(figures: list[Figure], options: dict[str, object], *, as_json: bool) -> None:
    import mlx.core as mx

    peers = ["mlx"] + (["mlx-lm"] if options["against"] else [])
    machine = {
        "device": str(mx.default_device()),
        "name": str(mx.device_info().get("device_name")),
        "cpus": os.cpu_count(),
    }
    versions = {"helium_mlx": __version__} | {name: version(name) for name in peers}
    if as_json:
        rows = [asdict(figure) | {"ratio": figure.ratio} for figure in figures]
        print(json.dumps({"options": options, "machine": machine, "versions": versions, "figures": rows}))
        return
    print(f"{machine['name']}, {machine['cpus']} CPUs, {machine['device']}; "
          f"{', '.join(f'{name} {number}' for name, number in versions.items())}")  # fmt: skip
    print(f"| {options['model']} | helium_mlx | {options['against'] or '-'} | ratio |\n|--|--|--|--|")
    for figure in figures:
        ratio = "" if figure.ratio is None else f"{figure.ratio:.2f}"
        print(f"| {figure.name}, {figure.unit} | {_spread(figure.ours)} | {_spread(figure.theirs)} | {ratio} |")


def _spread(values: list[float]) -> str:
    if not values:
        return ""
    digits = 2 if statistics.median(values) < 10 else 0
    low, middle, high = (f"{value:.{digits}f}" for value in (min(values), statistics.median(values), max(values)))
    return f"{middle} ({low} to {high})"


if __name__ == "__main__":
    sys.exit(main())
