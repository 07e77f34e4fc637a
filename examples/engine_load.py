"""Loads a `HeliumEngine` with requests, and with everything that goes wrong: `python examples/engine_load.py`.

For `--seconds`, waves of requests from threads and asyncio tasks: read whole, read slowly, cancelled from another
thread, abandoned, saved to a file and resumed, with a sampler that raises, in a batch whose forward pass fails now
and then, through a pause. Each has to end as it should, with the tokens that it has alone (`stream_generate`, the same
seed). After a wave memory is sampled (`soak.py`); in the end no thread may be left.

Exit status 1 if a request is lost or differs, if memory grows, or if a thread stays.
"""

import argparse
import asyncio
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlx.core as mx
from soak import SLACK, Diary

from helium_mlx import EngineStream, HeliumEngine, HeliumError, HeliumForCausalLM, KVCache, load, stream_generate
from helium_mlx.generation.sampling import Sampler
from helium_mlx.terminal import run_command

PROMPTS = (
    "Once upon a time",
    "Il était une fois une fille qui s'appelait Zoé",
    "A",
    "Um drei Uhr trafen sich Anna und Felix im Hafen. Felix hatte einen silbernen Hut verloren",
    "Era una noche tranquila, y Lucía",
    "Ogni giorno, dopo pranzo, Agnese giocava nel parco. " * 5,
)
OPTIONS: tuple[dict[str, Any], ...] = (
    {},
    {"temperature": 0.9, "seed": 7},
    {"temperature": 1.2, "seed": 0, "top_p": 0.8, "top_k": 30, "repetition_penalty": 1.3},
    {"stop": [","], "logprobs": 2},
    {"kv_bits": 8, "kv_group_size": 32},
    {"prompt_lookup": 4},
)

# behaviour -> how often it is picked
BEHAVIOURS = {"whole": 8, "slow": 2, "cancelled": 4, "abandoned": 3, "saved": 2, "poisoned": 2}

# What C's allocator keeps for two dozen threads moves resident memory by some 30 MB from wave to wave, up and down.
MEMORY_SLACK = {**SLACK, "resident": (0.25, 64_000_000)}

# A request with this seed has a sampler that raises at its third token.
POISON = 666
INJECTED = "injected by engine_load"


@dataclass(frozen=True)
class Case:
    """A request and what it gives alone."""

    prompt: str
    options: dict[str, Any]
    tokens: list[int]
    text: str
    reason: str | None


@dataclass
class Tally:
    """What became of the requests."""

    ended: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    tokens: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def note(self, behaviour: str, tokens: int, problem: str | None) -> None:
        """Count a request that has ended."""
        with self._lock:
            self.ended[behaviour] += 1
            self.tokens += tokens
            if problem:
                self.wrong.append(f"{behaviour}: {problem}")


def cases_of(model_name: str, dtype: str) -> list[Case]:
    """Return every prompt with every kind of options, computed alone."""
    model, tokenizer = load(model_name, dtype=dtype)
    cases = []
    for place, prompt in enumerate(PROMPTS):
        for number, given in enumerate(OPTIONS):
            options = {"max_tokens": 4 + 5 * ((place + number) % 5), **given}
            chunks = list(stream_generate(model, tokenizer, prompt, **options))
            text = "".join(chunk.text for chunk in chunks)
            cases.append(Case(prompt, options, [chunk.token for chunk in chunks], text, chunks[-1].finish_reason))
    return cases


def inject_faults(every: int) -> Callable[[], None]:
    """Let poisoned samplers raise, and every so many-th pass over several rows; return what undoes it."""
    draw, logits_after = Sampler.draw, HeliumForCausalLM.logits_after
    passes = 0

    def poisoned(self: Sampler, logits: mx.array) -> mx.array:
        if self.options.seed == POISON and self.drawn == 2:
            raise RuntimeError(INJECTED)
        return draw(self, logits)

    def failing(
        self: HeliumForCausalLM, tokens: mx.array, cache: list[KVCache], row_offsets: Sequence[int] | None = None
    ) -> mx.array:
        nonlocal passes
        passes += tokens.shape[0] > 1
        if tokens.shape[0] > 1 and passes % every == 0:
            raise RuntimeError("a forward pass failed, by engine_load")
        return logits_after(self, tokens, cache, row_offsets)

    def undo() -> None:
        Sampler.draw, HeliumForCausalLM.logits_after = draw, logits_after

    Sampler.draw, HeliumForCausalLM.logits_after = poisoned, failing
    return undo


def whole_problem(case: Case, tokens: Sequence[int], text: str, reason: str | None) -> str | None:
    """Say how a completion differs from the solo run's, if it does."""
    found, expected = (list(tokens), text, reason), (case.tokens, case.text, case.reason)
    return None if found == expected else f"{case.prompt[:20]!r} {case.options}: {found}, alone {expected}"


def part_problem(case: Case, tokens: Sequence[int], reason: str | None) -> str | None:
    """Say how the beginning of a completion differs from the solo run's, if it does."""
    if reason not in ("cancelled", case.reason) or list(tokens) != case.tokens[: len(tokens)]:
        return f"{case.prompt[:20]!r} {case.options}: {list(tokens)} ({reason}), alone {case.tokens}"
    return None


def request(
    engine: HeliumEngine, case: Case, behaviour: str, draw: random.Random, folder: Path
) -> tuple[int, str | None]:
    """Make a request from this thread and treat it as its behaviour says; return its tokens, and what went wrong."""
    options = {**case.options, "temperature": 1.0, "seed": POISON} if behaviour == "poisoned" else case.options
    stream = engine.stream(case.prompt, **options)
    after = draw.randrange(0, len(case.tokens) + 1)
    if behaviour == "poisoned":
        return _poisoned(stream)
    if behaviour == "saved" and "kv_bits" not in options and "prompt_lookup" not in options:
        return _saved(engine, stream, case, min(after, len(case.tokens) - 1), folder / f"{draw.getrandbits(64)}.state")
    if behaviour == "cancelled":
        timer = threading.Timer(draw.random() * 0.05, stream.cancel)
        timer.start()
        end = stream.result()
        timer.join()
        return len(end.tokens), part_problem(case, end.tokens, end.finish_reason)
    read = []
    for chunk in stream:
        read.append(chunk)
        if behaviour == "slow":
            time.sleep(draw.random() * 0.01)
        if behaviour == "abandoned" and len(read) >= after:
            tokens = [each.token for each in read]
            return len(tokens), part_problem(case, tokens, case.reason)
    text = "".join(chunk.text for chunk in read)
    return len(read), whole_problem(case, [chunk.token for chunk in read], text, read[-1].finish_reason)


def _poisoned(stream: EngineStream) -> tuple[int, str | None]:
    try:
        end = stream.result()
    except RuntimeError as error:
        return 0, None if str(error) == INJECTED else f"ended with {error!r}"
    return 0, None if len(end.tokens) < 3 else f"a poisoned sampler gave {len(end.tokens)} tokens"


def _saved(engine: HeliumEngine, stream: EngineStream, case: Case, after: int, path: Path) -> tuple[int, str | None]:
    read = [next(stream) for _ in range(after)]
    stream.save(path, with_cache=after % 2 == 0)
    stream.close()
    end = engine.continue_stream(path).result()
    path.unlink()
    tokens = [*(chunk.token for chunk in read), *end.tokens]
    text = "".join(chunk.text for chunk in read) + end.text
    return len(tokens), whole_problem(case, tokens, text, end.finish_reason)


async def request_async(
    engine: HeliumEngine, case: Case, behaviour: str, draw: random.Random
) -> tuple[int, str | None]:
    """Do what `request` does, from a task."""
    stream = engine.stream(case.prompt, **case.options)
    if behaviour == "cancelled":
        reader = asyncio.ensure_future(stream._result())
        await asyncio.sleep(draw.random() * 0.05)
        stream.cancel()
        end = await reader
        return len(end.tokens), part_problem(case, end.tokens, end.finish_reason)
    read, after = [], draw.randrange(0, len(case.tokens) + 1)
    async for chunk in stream:
        read.append(chunk)
        if behaviour == "slow":
            await asyncio.sleep(draw.random() * 0.01)
        if behaviour == "abandoned" and len(read) >= after:
            return len(read), part_problem(case, [each.token for each in read], case.reason)
    text = "".join(chunk.text for chunk in read)
    return len(read), whole_problem(case, [chunk.token for chunk in read], text, read[-1].finish_reason)


class Wave:
    """So many requests, shared out between threads and tasks; each is drawn from `seed` and its number."""

    def __init__(self, engine: HeliumEngine, cases: list[Case], tally: Tally, *, seed: int, folder: Path) -> None:
        self.engine = engine
        self.cases = cases
        self.tally = tally
        self.seed = seed
        self.folder = folder

    def run(self, requests: int, *, threads: int, tasks: int) -> None:
        """Run them all, and a pause in between."""
        workers = [
            threading.Thread(target=self._thread, args=(range(first, requests // 2, threads),))
            for first in range(threads)
        ]
        workers.append(threading.Thread(target=lambda: asyncio.run(self._loop(range(requests // 2, requests), tasks))))
        for worker in workers:
            worker.start()
        time.sleep(0.02)
        self.engine.pause(keep_caches=bool(self.seed % 2))
        self.engine.resume()
        for worker in workers:
            worker.join()

    def _picked(self, number: int) -> tuple[Case, str, random.Random]:
        draw = random.Random(self.seed * 1_000_003 + number)
        behaviour = draw.choices(list(BEHAVIOURS), list(BEHAVIOURS.values()))[0]
        return draw.choice(self.cases), behaviour, draw

    def _thread(self, numbers: Sequence[int]) -> None:
        for number in numbers:
            case, behaviour, draw = self._picked(number)
            try:
                self.tally.note(behaviour, *request(self.engine, case, behaviour, draw, self.folder))
            except Exception as error:
                self.tally.note(behaviour, 0, f"{case.prompt[:20]!r} {case.options}: {error!r}")

    async def _loop(self, numbers: Sequence[int], tasks: int) -> None:
        await asyncio.gather(*(self._task(numbers[first::tasks]) for first in range(tasks)))

    async def _task(self, numbers: Sequence[int]) -> None:
        for number in numbers:
            case, behaviour, draw = self._picked(number)
            behaviour = "whole" if behaviour in ("saved", "poisoned") else behaviour
            try:
                self.tally.note(f"{behaviour}, task", *await request_async(self.engine, case, behaviour, draw))
            except Exception as error:
                self.tally.note(f"{behaviour}, task", 0, f"{case.prompt[:20]!r} {case.options}: {error!r}")


def load_engine(options: argparse.Namespace) -> None:
    """Measure, load, judge. Raises HeliumError for anything that is not as it should be."""
    cases = cases_of(options.model, options.dtype)
    before = set(threading.enumerate())
    tally = Tally()
    engine = HeliumEngine(options.model, dtype=options.dtype, buffer=8)
    diary, undo = Diary(), inject_faults(every=97)
    begun, waves = time.monotonic(), 0
    try:
        with tempfile.TemporaryDirectory() as folder:
            while time.monotonic() - begun < options.seconds or waves < 6:
                wave = Wave(engine, cases, tally, seed=options.seed + waves, folder=Path(folder))
                wave.run(options.wave, threads=options.threads, tasks=options.tasks)
                waves += 1
                # What is kept for reuse, by MLX and of prefixes, has a limit, and depends on what ran last.
                engine.pause()
                engine.resume()
                mx.clear_cache()
                diary.note(tally.tokens)
            left = [path.name for path in Path(folder).iterdir()]
    finally:
        undo()
        engine.close()
    seconds = time.monotonic() - begun
    for behaviour, count in sorted(tally.ended.items()):
        print(f"{count:6,} {behaviour}")
    print(f"{tally.tokens:,} tokens, {tally.tokens / seconds:,.0f} a second through {waves} pauses")
    judge(tally, waves * options.wave, set(threading.enumerate()) - before, left)
    diary.judge(MEMORY_SLACK)
    print(f"{tally.ended.total():,} requests, none lost, all as alone; nothing grows")


def judge(tally: Tally, made: int, threads: Collection[threading.Thread], files: Sequence[str]) -> None:
    """Raise HeliumError if requests of those made were lost or went wrong, or if threads or files are left."""
    if tally.ended.total() != made:
        raise HeliumError(f"{made} requests were made, and {tally.ended.total()} ended")
    if tally.wrong:
        raise HeliumError(f"{len(tally.wrong)} requests went wrong, the first {tally.wrong[0]}")
    if threads:
        raise HeliumError(f"threads are left: {', '.join(thread.name for thread in threads)}")
    if files:
        raise HeliumError(f"files are left: {', '.join(files)}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script and return its exit status."""
    parser = argparse.ArgumentParser(description="Load a HeliumEngine with requests, slow readers and faults.")
    parser.add_argument("--model", default="demo", help="directory, Hub repository or 'demo' (default: %(default)s)")
    parser.add_argument("--dtype", default="float32", help="what to compute in (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=120, help="how long to load it (default: %(default)s)")
    parser.add_argument("--wave", type=int, default=60, help="requests from sample to sample (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=8, help="threads that make them (default: %(default)s)")
    parser.add_argument("--tasks", type=int, default=12, help="asyncio tasks that make them (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="what requests and faults are drawn from")
    options = parser.parse_args(argv)
    return run_command(lambda: load_engine(options))


if __name__ == "__main__":
    sys.exit(main())
