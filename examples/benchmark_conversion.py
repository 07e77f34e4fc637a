"""Measures conversion of a checkpoint, alone or beside mlx-lm's: `python examples/benchmark_conversion.py --help`.

Each conversion is a process of its own, as a user starts it: wall seconds, its peak resident memory, and the bytes
that it left on disk. The programs take turns within a run, so that what else the machine does falls on all of them;
the checkpoint is read once before, so that all find it in the page cache; every result is deleted before the next.

This process imports no MLX before the last child has ended: a child's peak counts what its parent held.
"""

import argparse
import json
import os
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from helium_mlx import HeliumError
from helium_mlx.process import resident_bytes
from helium_mlx.terminal import run_command

WIDTHS = {
    "4-bit": ("-q", "--q-bits", "4", "--q-group-size", "64"),
    "8-bit": ("-q", "--q-bits", "8", "--q-group-size", "64"),
    "unquantized": (),
}
SWEEP_WIDTH = "4-bit"

CANDIDATE, UNVERIFIED, BASELINE = "helium_mlx", "helium_mlx --no-verify", "mlx-lm"
PROGRAMS = {
    CANDIDATE: (("helium_mlx.convert",), ()),
    UNVERIFIED: (("helium_mlx.convert",), ("--no-verify",)),
    BASELINE: (("mlx_lm", "convert"), ()),
}

# config.json -> option of write_random_checkpoint.py
SHAPE_OPTIONS = {
    "hidden_size": "--hidden-size",
    "intermediate_size": "--intermediate-size",
    "num_attention_heads": "--heads",
    "num_key_value_heads": "--kv-heads",
    "head_dim": "--head-dim",
    "vocab_size": "--vocab-size",
}


@dataclass(frozen=True)
class ConversionRun:
    """One conversion: wall seconds, peak resident memory of the process, size of the directory that it wrote."""

    seconds: float
    peak_bytes: int
    written_bytes: int


@dataclass(frozen=True)
class Measurement:
    """The runs of one program on one case: a bit width, or a number of layers."""

    case: str
    program: str
    runs: list[ConversionRun]

    def values(self, quantity: str) -> list[float]:
        """Return one quantity of all runs, in the unit of the table."""
        scale = 1 if quantity == "seconds" else 1e6
        return [getattr(run, quantity) / scale for run in self.runs]


# field of ConversionRun -> row of the table
QUANTITIES = {"seconds": "s", "peak_bytes": "peak resident memory, MB", "written_bytes": "written, MB"}


def benchmark(checkpoint: Path, scratch: Path, *, against: str | None = None, runs: int = 3) -> list[Measurement]:
    """Convert a checkpoint directory to every width; results are written below `scratch`, and deleted.

    Raises HeliumError if a program is missing or a conversion fails.
    """
    programs = _programs(against)
    _read_through(checkpoint)
    measurements = [Measurement(width, program, []) for width in WIDTHS for program in programs]
    for _ in range(runs):
        for measurement in measurements:
            measurement.runs.append(_convert(measurement.program, checkpoint, scratch, measurement.case))
    return measurements


def sweep_layers(
    checkpoint: Path, layers: list[int], scratch: Path, *, against: str | None = None, runs: int = 3
) -> list[Measurement]:
    """Convert checkpoints of the same shape and other numbers of layers, made below `scratch` one at a time.

    Raises HeliumError as `benchmark` does.
    """
    programs = _programs(against)
    measurements: list[Measurement] = []
    for count in layers:
        made = scratch / f"{count}-layers"
        _run(_writing_command(checkpoint, count, made))
        found = [Measurement(f"{count} layers", program, []) for program in programs]
        for _ in range(runs):
            for measurement in found:
                measurement.runs.append(_convert(measurement.program, made, scratch, SWEEP_WIDTH))
        shutil.rmtree(made)
        measurements += found
    return measurements


def _programs(against: str | None) -> list[str]:
    listed = subprocess.run(
        [sys.executable, "-m", "helium_mlx.convert", "--help"], capture_output=True, text=True, check=False
    )
    if listed.returncode:
        raise HeliumError(f"helium_mlx.convert does not start: {_last_line(listed.stderr)}")
    if "--no-verify" not in listed.stdout:
        raise HeliumError("the installed helium_mlx.convert has no --no-verify; install this checkout's")
    if against is None:
        return [CANDIDATE, UNVERIFIED]
    try:
        version(against)
    except PackageNotFoundError:
        raise HeliumError(f"--against {against} needs {against}; install it with: pip install {against}") from None
    return [CANDIDATE, UNVERIFIED, against]


def _convert(program: str, checkpoint: Path, scratch: Path, width: str) -> ConversionRun:
    module, options = PROGRAMS[program]
    output = scratch / "converted"
    paths = ("--hf-path", str(checkpoint), "--mlx-path", str(output))
    # What the run before left to be written would slow this one.
    os.sync()
    try:
        seconds, peak = _run([sys.executable, "-m", *module, *paths, *WIDTHS[width], *options])
        written = sum(path.stat().st_size for path in output.iterdir())
    finally:
        shutil.rmtree(output, ignore_errors=True)
    print(f"{checkpoint.name}, {width}, {program}: {seconds:.2f} s, {peak / 1e6:.0f} MB", file=sys.stderr, flush=True)
    return ConversionRun(seconds, peak, written)


def _run(command: list[str]) -> tuple[float, int]:
    """Return wall seconds and peak resident bytes of a process."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    with tempfile.TemporaryFile("w+", errors="replace") as said:
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=said, env=environment)
        try:
            _, status, usage = os.wait4(process.pid, 0)
        except BaseException:
            process.kill()
            process.wait()
            raise
        seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            said.seek(0)
            raise HeliumError(f"{shlex.join(command)}: status {process.returncode}, {_last_line(said.read())}")
    return seconds, resident_bytes(usage.ru_maxrss)


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["nothing said"])[-1]


def _writing_command(checkpoint: Path, layers: int, output: Path) -> list[str]:
    values = _config_values(checkpoint)
    shape = "1-2b" if values.get("model_type") == "llama" else "preview"
    command = [sys.executable, str(Path(__file__).with_name("write_random_checkpoint.py")), "--shape", shape]
    for key, option in SHAPE_OPTIONS.items():
        if values.get(key) is not None:
            command += [option, str(values[key])]
    return [*command, "--layers", str(layers), "--output", str(output)]


def _config_values(checkpoint: Path) -> dict[str, object]:
    try:
        return json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise HeliumError(f"{checkpoint}: no checkpoint directory ({error})") from None


def _read_through(checkpoint: Path) -> None:
    for path in checkpoint.glob("*.safetensors"):
        with path.open("rb", buffering=0) as file:
            while file.read(1 << 24):
                pass


def build_parser() -> argparse.ArgumentParser:
    """Return the parser."""
    parser = argparse.ArgumentParser(description="Measure conversion: seconds, peak resident memory, bytes written.")
    parser.add_argument("--checkpoint", type=Path, required=True, help="directory to convert; its disk is written to")
    parser.add_argument("--against", choices=[BASELINE], help="measure this program too, in alternating runs")
    parser.add_argument("--runs", type=int, default=3, help="runs of each conversion (default: %(default)s)")
    parser.add_argument(
        "--layers-sweep",
        type=_layer_counts,
        metavar="N,N",
        help="instead, convert to 4 bits random checkpoints of the same shape with these numbers of layers",
    )
    parser.add_argument("--scratch", type=Path, help="directory to write into (default: beside the checkpoint)")
    parser.add_argument("--json", action="store_true", help="print every run as JSON instead of a table")
    return parser


def _layer_counts(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def main(argv: list[str] | None = None) -> int:
    """Measure, print the report and return an exit status."""
    options = build_parser().parse_args(argv)
    return run_command(lambda: _measure_and_print(options))


def _measure_and_print(options: argparse.Namespace) -> None:
    checkpoint: Path = options.checkpoint.resolve()
    if options.runs < 1:
        raise HeliumError(f"--runs is {options.runs}; it must be at least 1")
    _config_values(checkpoint)
    with tempfile.TemporaryDirectory(prefix=".conversions-", dir=options.scratch or checkpoint.parent) as scratch:
        if options.layers_sweep:
            measurements = sweep_layers(
                checkpoint, options.layers_sweep, Path(scratch), against=options.against, runs=options.runs
            )
        else:
            measurements = benchmark(checkpoint, Path(scratch), against=options.against, runs=options.runs)
    if options.json:
        rows = [asdict(measurement) for measurement in measurements]
        print(json.dumps({"machine": _machine(), "versions": _versions(options.against), "measurements": rows}))
    else:
        print(f"{_described(options.against)}; medians of {options.runs}, smallest and largest\n")
        print(table(measurements))


def table(measurements: list[Measurement]) -> str:
    """Return a Markdown table: medians, smallest and largest, and each program's medians over mlx-lm's."""
    programs = list(dict.fromkeys(measurement.program for measurement in measurements))
    cases = list(dict.fromkeys(measurement.case for measurement in measurements))
    found = {(measurement.case, measurement.program): measurement for measurement in measurements}
    candidates = [program for program in programs if program != BASELINE] if BASELINE in programs else []
    heads = ["", "", *programs, *(f"{program} / {BASELINE}" for program in candidates)]
    lines = [_row(heads), "|" + "--|" * len(heads)]
    for case in cases:
        for quantity, name in QUANTITIES.items():
            values = {program: found[case, program].values(quantity) for program in programs}
            medians = {program: statistics.median(values[program]) for program in programs}
            ratios = [f"{medians[program] / medians[BASELINE]:.3f}" for program in candidates]
            lines.append(_row([case, name, *(_spread(values[program]) for program in programs), *ratios]))
    return "\n".join(lines)


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _spread(values: list[float]) -> str:
    middle = statistics.median(values)
    digits = 2 if middle < 10 else 1 if middle < 100 else 0
    if len(values) == 1:
        return f"{middle:.{digits}f}"
    return f"{middle:.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def _machine() -> dict[str, object]:
    import mlx.core as mx

    return {
        "device": str(mx.default_device()),
        "name": str(mx.device_info().get("device_name")),
        "cpus": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
    }


def _versions(against: str | None) -> dict[str, str]:
    return {name: version(name) for name in ("helium-mlx", "mlx", *([against] if against else []))}


def _described(against: str | None) -> str:
    machine = _machine()
    versions = ", ".join(f"{name} {number}" for name, number in _versions(against).items())
    return f"{machine['name']}, {machine['cpus']} CPUs, {machine['device']}; {versions}"


if __name__ == "__main__":
    sys.exit(main())
