"""What `benchmark` measures, and how the programs take turns.

Every program has a process of its own for as long as the benchmark lasts (`diagnostics/worker.py`), so that their
memory is apart and neither loads twice. A quantity is measured in one program right after the other, the first changing
from round to round, so that what else the machine does falls on both. The first round warms up caches and kernels and
is not counted, unless it takes a program so long that warming up makes no difference: then it is the only one.
"""

import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from types import TracebackType
from typing import cast

from helium_mlx.errors import HeliumError, UsageError
from helium_mlx.option_values import OnProgress, require_whole
from helium_mlx.process import resident_bytes

CANDIDATE = "helium_mlx"
PROMPT = "Bonjour"
PEAK_PROMPT = 4096
"""Tokens of the prompt whose peak memory is measured, where the context has room for them."""


SLOW = 15.0
"""Seconds above which a program is measured once."""


# Fewer tokens after a context than this say little about speed.
_FEWEST_TOKENS = 16


@dataclass(frozen=True)
class Figure:
    """One quantity: the runs of helium_mlx, and those of the peer if there is one.

    `tokens` is the length of prompt or context that it was measured at, None where there is none.
    """

    quantity: str
    tokens: int | None
    unit: str
    larger_is_better: bool | None
    values: list[float]
    baseline: list[float]

    @property
    def name(self) -> str:
        """The quantity with its length, as the table has it."""
        return self.quantity if self.tokens is None else self.quantity.format(f"{self.tokens:,}")

    @property
    def ratio(self) -> float | None:
        """How many times better helium_mlx is, by the medians; None without a peer or where neither end is better."""
        if not self.baseline or self.larger_is_better is None:
            return None
        values, baseline = statistics.median(self.values), statistics.median(self.baseline)
        return values / baseline if self.larger_is_better else baseline / values


START = "start to first token"
START_PEAK = "peak resident memory of that"
PREFILL = "prefill of {} tokens"
DECODE = "decode at context {}"
PEAKS: dict[str, int | None] = {"peak memory, prompt of {}": None, "peak memory in steps of 512, prompt of {}": 512}
"""Tokens of the prompt that are run at a time: each program's own default, and the same for both."""


ON_GPU = "on a GPU, {}, {}"
"""What is counted rather than measured (`gpu_kernels.py`): precision, and kind of step."""


KERNELS, DRAFT_KERNELS = "kernels a token", "kernels a pass"
NODES = "graph of a token for a GPU, {}"
BUILD = "building a token's graph, {}"
MOVED = "bytes a token at context {}"
SHARE = "share of the bandwidth at context {}"


@dataclass(frozen=True)
class Report:
    """All figures, which rows were left out and why, and which took a program so long that they were measured once.

    `bandwidth` is the memory's, in bytes a second; None where only kernels were counted.
    """

    figures: list[Figure]
    bandwidth: float | None
    left_out: list[str]
    measured_once: list[str] = field(default_factory=list)

    @property
    def notes(self) -> list[str]:
        """A sentence for each row that was left out or measured once."""
        return [f"Left out: {why}" for why in self.left_out] + [f"Measured once: {why}" for why in self.measured_once]


@dataclass
class Quantity:
    """A quantity to measure: the request to a worker, the factor to the unit, and the values so far by program.

    `slow` has the seconds that one measurement took, by program, where those were more than `SLOW`.
    """

    quantity: str
    tokens: int | None
    unit: str
    larger_is_better: bool | None
    measure: "Callable[[Worker], float | None]"
    factor: float = 1.0
    once: bool = False
    values: dict[str, list[float]] = field(default_factory=dict)
    slow: dict[str, float] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The quantity with its length."""
        return self.quantity.format(f"{self.tokens:,}")

    def measured(self, worker: "Worker", *, is_first: bool) -> float | None:
        """Return what `worker` measures now; the first time it may turn out to be slow."""
        began = time.perf_counter()
        value = self.measure(worker)
        took = time.perf_counter() - began
        if is_first and took > SLOW:
            self.slow[worker.program] = took
        return value


class Worker:
    """A program's process. Raises HeliumError, one line, if it cannot load the checkpoint or dies."""

    def __init__(self, program: str, directory: Path) -> None:
        self.program, self.directory = program, directory
        self._said = tempfile.TemporaryFile()  # noqa: SIM115
        self._process = subprocess.Popen(
            [sys.executable, "-m", "helium_mlx.diagnostics.worker", program, str(directory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            encoding="utf-8",
        )
        loaded = self._answer()
        self.context = cast(int, loaded["context"])
        self.weight_bytes = cast(int, loaded["weight_bytes"])
        self.cache_bytes = cast(int, loaded["cache_bytes"])

    def ask(self, measure: str, **arguments: int | str | None) -> float | None:
        """Return the value of one of the worker's `MEASURES`; None for what the program has not."""
        assert self._process.stdin is not None
        # Where the process is gone, the answer says why.
        with suppress(BrokenPipeError):
            print(json.dumps({"measure": measure, **arguments}), file=self._process.stdin, flush=True)
        return cast("float | None", self._answer()["value"])

    def bytes_moved(self, context: int, tokens: int) -> float:
        """Return the mean bytes that a step has to read, weights and keys and values, over `tokens` steps."""
        return self.weight_bytes + self.cache_bytes * (context + tokens / 2)

    def _answer(self) -> dict[str, object]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            status = self._process.wait()
            self._said.seek(0)
            said = self._said.read().decode(errors="replace").strip().splitlines() or ["it said nothing"]
            raise HeliumError(f"{self.program} ended with status {status} on {self.directory}: {said[-1]}")
        answer = json.loads(line)
        if "error" in answer:
            raise HeliumError(answer["error"])
        return answer

    def __enter__(self) -> "Worker":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self._process.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            # What a dead process has not read cannot be flushed.
            with suppress(BrokenPipeError):
                if pipe is not None:
                    pipe.close()
        self._process.wait()
        self._said.close()


def benchmark(
    model: str,
    *,
    revision: str | None = None,
    subfolder: str | None = None,
    prompt_tokens: Sequence[int] = (128, 512, 2048),
    contexts: Sequence[int] = (16, 1024, 4000),
    generation_tokens: int = 100,
    against: str | None = None,
    runs: int = 5,
    kernels: bool = False,
    on_progress: OnProgress | None = None,
) -> Report:
    """Measure a checkpoint directory, Hub repository or "demo"; `against` is None or "mlx-lm".

    Lengths that the model's context has no room for are left out and named in the report. With `kernels` nothing is
    measured: only what a GPU would be given is counted. `on_progress(done, total)` is called after every measurement.

    Raises UsageError for numbers out of range, and HeliumError if mlx-lm is asked for and is not installed or cannot
    open the directory.
    """
    from helium_mlx.files.hub import resolve

    for name, values in {"prompt_tokens": prompt_tokens, "contexts": contexts, "runs": [runs]}.items():
        for value in values:
            require_whole(name, value, 1, error=UsageError)
    require_whole("generation_tokens", generation_tokens, 2, error=UsageError)
    if against is not None and find_spec("mlx_lm") is None:
        raise HeliumError("--against mlx-lm needs mlx-lm; install it with: pip install mlx-lm")
    directory = resolve(model, revision=revision, subfolder=subfolder)
    names = [CANDIDATE] if against is None else [CANDIDATE, against]
    with ExitStack() as stack:
        workers = [stack.enter_context(Worker(name, directory)) for name in names]
        small = stack.enter_context(tempfile.TemporaryDirectory())
        counted, left_out = _counted_rows(workers[0], small, with_times=not kernels)
        rows, bandwidth = list[Quantity](), None
        if not kernels:
            timed, without_room = _rows(workers[0].context, prompt_tokens, contexts, generation_tokens)
            rows, left_out = timed, without_room + left_out
        starts = [] if kernels else _start_rows()
        _take_turns(workers, starts, rows + counted, runs, on_progress)
        figures = [
            Figure(row.quantity, row.tokens, row.unit, row.larger_is_better, *_by_program(row, against))
            for row in starts + rows + counted
        ]
        if not kernels:
            bandwidth = cast(float, workers[0].ask("bandwidth"))
            figures += _bandwidth_figures(workers, rows, generation_tokens, bandwidth, against)
    measured_once = [
        f"{row.name}, {program}: a run takes {seconds:.0f} s" for row in rows for program, seconds in row.slow.items()
    ]
    return Report(figures, bandwidth, left_out, measured_once)


def tokens_after(context: int, limit: int, wanted: int) -> int:
    """Return how many tokens to generate after `context`: `wanted`, or what room there is; 0 if that is little."""
    room = min(wanted, limit - context)
    return room if room >= min(wanted, _FEWEST_TOKENS) else 0


def _rows(
    limit: int, prompt_tokens: Sequence[int], contexts: Sequence[int], generation_tokens: int
) -> tuple[list[Quantity], list[str]]:
    rows, left_out = [], []
    for tokens in prompt_tokens:
        row = Quantity(PREFILL, tokens, "tokens/s", True, lambda worker, n=tokens: worker.ask("prefill", tokens=n))
        (rows if tokens < limit else left_out).append(row)
    for context in contexts:
        count = tokens_after(context, limit, generation_tokens)
        row = Quantity(
            DECODE, context, "tokens/s", True,
            lambda worker, c=context, n=count: worker.ask("decode", context=c, tokens=n),
        )  # fmt: skip
        (rows if count else left_out).append(row)
    longest = min(PEAK_PROMPT, limit - 1)
    for quantity, step_size in PEAKS.items():
        rows.append(
            Quantity(
                quantity, longest, "MB", False,
                lambda worker, size=step_size: worker.ask("peak", tokens=longest, step_size=size), 1e-6, once=True,
            )
        )  # fmt: skip
    return rows, [f"{row.name}: the model's context is {limit:,}" for row in left_out]


def _counted_rows(worker: Worker, directory: str, *, with_times: bool) -> tuple[list[Quantity], list[str]]:
    """Return what is counted with small models, written into `directory`, or why it cannot be."""
    from helium_mlx import backend
    from helium_mlx.diagnostics.gpu_kernels import PRECISIONS
    from helium_mlx.diagnostics.worker import STEPS

    if backend.is_cpu() and shutil.which("g++") is None:
        return [], ["kernels on a GPU: on a CPU MLX needs g++ to count them"]
    worker.ask("write_small_models", directory=directory)
    rows = list[Quantity]()
    for precision in PRECISIONS:
        small = str(Path(directory) / precision)
        for kind, options in STEPS.items():
            unit = DRAFT_KERNELS if "prompt_lookup" in options else KERNELS
            rows.append(_counted(ON_GPU.format(precision, kind), unit, "kernels", directory=small, kind=kind))
        rows.append(_counted(NODES.format(precision), "nodes", "nodes", directory=small))
        if with_times:
            built = _counted(BUILD.format(precision), "µs of CPU", "build", directory=small)
            rows.append(replace(built, factor=1e6, once=False))
    return rows, []


def _counted(quantity: str, unit: str, measure: str, **arguments: str) -> Quantity:
    return Quantity(quantity, None, unit, False, lambda worker: worker.ask(measure, **arguments), once=True)


def _start_rows() -> list[Quantity]:
    """Return the rows of a whole process, which no worker is asked for."""
    return [
        Quantity(START, None, "s", False, lambda worker: None),
        Quantity(START_PEAK, None, "MB", False, lambda worker: None, 1e-6),
    ]


def _take_turns(
    workers: list[Worker], starts: list[Quantity], rows: list[Quantity], runs: int, on_progress: OnProgress | None
) -> None:
    """Fill the rows' values: a round to warm up, then `runs` that count. `starts` are those of a process, if any."""
    total = len(workers) * sum(1 if row.once else runs + 1 for row in starts[:1] + rows)
    done = 0

    def note(values: Sequence[tuple[Quantity, float | None]], worker: Worker) -> None:
        nonlocal done
        for row, value in values:
            if value is not None:
                row.values.setdefault(worker.program, []).append(value * row.factor)
        done += 1
        if on_progress:
            on_progress(done, total)

    for run in range(runs + 1):
        order = workers if run % 2 else workers[::-1]
        for worker in order if starts else []:
            measured = whole_process(start_command(worker.program, worker.directory))
            note(list(zip(starts, measured, strict=True)) if run else [], worker)
        for row, worker in product(rows, order):
            if worker.program in row.slow or (row.once and run < runs):
                continue
            value = row.measured(worker, is_first=run == 0)
            if worker.program in row.slow:
                total -= runs
            note([(row, value)] if run or worker.program in row.slow else [], worker)


def _by_program(row: Quantity, against: str | None) -> tuple[list[float], list[float]]:
    return row.values[CANDIDATE], [] if against is None else row.values.get(against, [])


def _bandwidth_figures(
    workers: list[Worker], rows: list[Quantity], generation_tokens: int, bandwidth: float, against: str | None
) -> list[Figure]:
    figures = []
    for row in (row for row in rows if row.quantity == DECODE):
        context = cast(int, row.tokens)
        count = tokens_after(context, workers[0].context, generation_tokens)
        moved = {worker.program: worker.bytes_moved(context, count) for worker in workers}
        share = {name: [100 * moved[name] * speed / bandwidth for speed in row.values[name]] for name in moved}
        baseline = [] if against is None else [moved[against] / 1e6]
        figures += [
            Figure(MOVED, context, "MB", False, [moved[CANDIDATE] / 1e6], baseline),
            Figure(SHARE, context, "%", None, share[CANDIDATE], [] if against is None else share[against]),
        ]
    return figures


def start_command(program: str, directory: Path) -> list[str]:
    """Return the command by which a user has `program` generate one token."""
    options = ["--model", str(directory), "--prompt", PROMPT, "--max-tokens", "1"]
    if program == CANDIDATE:
        return [sys.executable, "-m", "helium_mlx.generate", *options, "--quiet"]
    return [sys.executable, "-m", "mlx_lm", "generate", *options, "--ignore-chat-template"]


# Runs in a small process of its own: a child's peak memory counts what its parent held when it forked.
_LAUNCHER = """
import os, subprocess, sys, time
start = time.perf_counter()
process = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL)
_, status, usage = os.wait4(process.pid, 0)
print(time.perf_counter() - start, usage.ru_maxrss, os.waitstatus_to_exitcode(status))
process.returncode = 0
"""


def whole_process(command: list[str]) -> tuple[float, float]:
    """Return wall seconds and peak resident bytes of a process."""
    result = subprocess.run([sys.executable, "-c", _LAUNCHER, *command], capture_output=True, text=True, check=True)
    seconds, peak, status = map(float, result.stdout.split())
    if status:
        said = result.stderr.strip().splitlines() or ["nothing said"]
        raise HeliumError(f"{command[2]} failed with status {status:.0f}: {said[-1]}")
    return seconds, resident_bytes(int(peak))
