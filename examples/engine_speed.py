"""What an engine's batch is worth, and what a long prompt costs the others: `python examples/engine_speed.py`.

The same requests are made one by one and all at once, in turns, from threads: tokens a second of wall clock and of
CPU time, and how long the first token takes. Then a reader's longest wait for a token, alone and while a prompt as long
as the context is run, a step between two tokens.
"""

import argparse
import statistics
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from helium_mlx import EngineStream, HeliumEngine
from helium_mlx.terminal import run_command

PROMPT = "Once upon a time"


@dataclass
class Figures:
    """One way to make the requests: wall clock and CPU seconds of each round, and the waits for first tokens."""

    run: Callable[[list[float]], None]
    seconds: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    firsts: list[float] = field(default_factory=list)

    def round(self) -> None:
        """Make the requests once."""
        begun, begun_cpu = time.perf_counter(), time.process_time()
        self.run(self.firsts)
        self.seconds.append(time.perf_counter() - begun)
        self.cpu.append(time.process_time() - begun_cpu)

    def describe(self, tokens: int) -> str:
        """Return the line with the medians."""
        wall, cpu = tokens / statistics.median(self.seconds), tokens / statistics.median(self.cpu)
        first, longest = statistics.median(self.firsts) * 1e3, max(self.firsts) * 1e3
        return (
            f"{wall:6,.0f} tokens/s, {cpu:6,.0f} a second of CPU time, first token after {first:.0f} ms "
            f"(longest {longest:.0f} ms)"
        )


def one_by_one(engine: HeliumEngine, requests: int, tokens: int, firsts: list[float]) -> None:
    """Make the requests, each when the one before it has ended."""
    for _ in range(requests):
        _read(_ask(engine, tokens), time.perf_counter(), firsts)


def together(engine: HeliumEngine, requests: int, tokens: int, firsts: list[float]) -> None:
    """Make the requests at once, each read by a thread."""
    begun = time.perf_counter()
    readers = [threading.Thread(target=_read, args=(_ask(engine, tokens), begun, firsts)) for _ in range(requests)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()


def _ask(engine: HeliumEngine, tokens: int) -> EngineStream:
    return engine.stream(PROMPT, max_tokens=tokens, ignore_eos=True)


def _read(stream: EngineStream, begun: float, firsts: list[float]) -> None:
    next(stream)
    firsts.append(time.perf_counter() - begun)
    stream.result()


def measure(engine: HeliumEngine, *, requests: int, tokens: int, rounds: int) -> None:
    """Print tokens a second and the time to the first token, one by one and all at once, in turns."""
    together(engine, requests, tokens, [])
    ways = {way.__name__: Figures(partial(way, engine, requests, tokens)) for way in (one_by_one, together)}
    for _ in range(rounds):
        for way in ways.values():
            way.round()
    print(f"{requests} requests of {tokens} tokens, medians of {rounds} rounds")
    for name, way in ways.items():
        print(f"{name.replace('_', ' '):>11}: {way.describe(requests * tokens)}")


def measure_waits(engine: HeliumEngine, long_prompt: int) -> None:
    """Print a reader's waits for a token, alone and beside a prompt of so many tokens."""
    for length in (0, long_prompt):
        stream = engine.stream(PROMPT, max_tokens=64, ignore_eos=True)
        next(stream)
        begun = time.perf_counter()
        other = engine.stream([1] * length, max_tokens=1) if length else None
        waits, last = [], begun
        for _ in stream:
            now = time.perf_counter()
            waits.append(now - last)
            last = now
        middle, longest = statistics.median(waits) * 1e3, max(waits) * 1e3
        where = f"beside a prompt of {length} tokens" if length else "alone"
        print(f"wait for a token {where}: {middle:.0f} ms, the longest {longest:.0f} ms")
        if other is not None:
            other.result()
            print(f"which itself takes {time.perf_counter() - begun:.1f} s")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script and return its exit status."""
    parser = argparse.ArgumentParser(description="Measure a HeliumEngine: requests together and one by one.")
    parser.add_argument("--model", default="demo", help="directory, Hub repository or 'demo' (default: %(default)s)")
    parser.add_argument("--dtype", default="float32", help="what to compute in (default: %(default)s)")
    parser.add_argument("--requests", type=int, default=16, help="requests at once (default: %(default)s)")
    parser.add_argument("--tokens", type=int, default=64, help="tokens of each (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds (default: %(default)s)")
    parser.add_argument(
        "--long-prompt", type=int, default=2048, help="tokens of the long prompt (default: %(default)s)"
    )
    options = parser.parse_args(argv)

    def run() -> None:
        with HeliumEngine(options.model, dtype=options.dtype, batch_size=options.requests) as engine:
            measure(engine, requests=options.requests, tokens=options.tokens, rounds=options.rounds)
            measure_waits(engine, options.long_prompt)

    return run_command(run)


if __name__ == "__main__":
    sys.exit(main())
