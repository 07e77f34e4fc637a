"""The command `benchmark`: speed and memory on this machine, alone or beside mlx-lm on the same directory.

Figures are medians over the runs, and with `--wide` the smallest and largest beside them; the ratio is of the medians,
above 1 where helium_mlx is better. What takes a program more than 15 seconds is measured once, and said. `start` is the
wall time of a whole process that generates one token, with its peak resident memory; everything else is measured in a
process a program that has the checkpoint loaded, greedily. Peak memory is MLX's own count, weights included. Bytes a
token are counted, not timed; so are the kernels that a GPU would be given, which are the same on every machine
(`diagnostics/gpu_kernels.py`).

The share of the bandwidth is bytes a token times tokens a second, over the memory bandwidth that MLX reached here. A
model that fits the processor's cache can exceed it, and a small one is far from it: neither waits for memory.

What is measured stands in `diagnostics/measures.py`, what is done in the measured process in `diagnostics/worker.py`.
"""

import os
import sys
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import cast

from helium_mlx.diagnostics.figure_table import figure_table
from helium_mlx.diagnostics.measures import Figure, Report, benchmark
from helium_mlx.errors import UsageError
from helium_mlx.files.atomic import replacing, require_writable
from helium_mlx.json_writer import to_json
from helium_mlx.progress import Progress, note
from helium_mlx.terminal import CommandParser, add_repository_options
from helium_mlx.version import __version__

__all__ = ["Figure", "Report", "benchmark", "build_parser", "main"]


def build_parser() -> CommandParser:
    """Return the parser; option names are those of `benchmark`, and `--wide`, `--json`, `--plot` and `--report`."""
    parser = CommandParser(
        "benchmark",
        "Measure speed and memory on this machine.",
        examples={
            "--model helium-2b-4bit": "every figure of a checkpoint",
            "--model helium-2b-4bit --against mlx-lm --plot speed.svg": "beside mlx-lm, drawn",
            "--model helium-2b-4bit --against mlx-lm --report benchmark.md": "a page to send to others",
            "--model helium-2b-4bit --against mlx-lm --kernels": "what each gives a GPU to do, counted",
        },
    )
    parser.add_argument("--model", default="demo", help="directory, Hub repository or 'demo' (default: %(default)s)")
    add_repository_options(parser)
    parser.add_argument(
        "--prompt-tokens", type=int, nargs="+", default=[128, 512, 2048], metavar="N",
        help="lengths of the prompts whose prefill is timed (default: 128 512 2048)",
    )  # fmt: skip
    parser.add_argument(
        "--contexts", type=int, nargs="+", default=[16, 1024, 4000], metavar="N",
        help="lengths of the contexts after which decoding is timed (default: 16 1024 4000)",
    )  # fmt: skip
    parser.add_argument(
        "--generation-tokens", type=int, default=100, metavar="N",
        help="tokens to generate after each context, fewer where it ends before (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--against", choices=["mlx-lm"], help="measure this program too, in turns")
    parser.add_argument(
        "--runs", type=int, default=5, metavar="N", help="runs after one to warm up (default: %(default)s)"
    )
    parser.add_argument(
        "--kernels", action="store_true", help="only count the kernels that a GPU would be given; measure nothing"
    )
    parser.add_argument(
        "--wide", action="store_true", help="print the smallest and largest of the runs too, in a Markdown table"
    )
    parser.add_argument("--json", action="store_true", help="print every run as JSON instead of a table")
    parser.add_argument("--plot", metavar="FILE", help="draw decode speed over context: a .svg, .png or .pdf")
    parser.add_argument(
        "--report", metavar="FILE",
        help="write a page of Markdown to send to others: machine, figures, counts, selfcheck; nothing of whose it is",
    )  # fmt: skip
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit status."""
    return build_parser().run(argv, _run)


def _run(*, json: bool, wide: bool, plot: str | None, report: str | None, **options: object) -> None:
    if plot is not None:
        from helium_mlx.plotting import check_plot

        check_plot(plot)
    if report is not None:
        _require_file(Path(report))
    found = benchmark(**options, on_progress=Progress("Measuring"))  # pyright: ignore[reportArgumentType]
    against = cast("str | None", options["against"])
    machine, versions = _machine(), _versions(against)
    place = _place(machine, versions)
    if report is not None:
        _write_page(Path(report), found, str(options["model"]), against, versions)
    if plot is not None:
        from helium_mlx.diagnostics.plot import draw

        draw(plot, found.figures, against=against, caption=f"{options['model']} on {place}")
    if json:
        rows = [_fields(figure) for figure in found.figures]
        print(to_json({
            "options": dict(options), "machine": machine, "versions": versions,
            "bandwidth": found.bandwidth, "left_out": found.left_out,
            "measured_once": found.measured_once, "figures": rows,
        }))  # fmt: skip
        return
    reached = "" if found.bandwidth is None else f"; memory bandwidth {found.bandwidth / 1e9:.1f} GB/s"
    print(f"{place}{reached}\n")
    print("\n".join(table(found, str(options["model"]), against, wide=wide)))


def _require_file(path: Path) -> None:
    if path.is_dir():
        raise UsageError(f"--report is {path}, a directory; name a file")
    require_writable(path)


def _write_page(path: Path, report: Report, model: str, against: str | None, versions: Mapping[str, str]) -> None:
    from helium_mlx.diagnostics.page import page, selfcheck_summary, shown_name, this_machine

    note("Running selfcheck")
    text = page(report, shown_name(model), against, this_machine(), versions, selfcheck=selfcheck_summary())
    with replacing(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")
    note(f"{path}: a page to send to others; its last line says where")


def _fields(figure: Figure) -> dict[str, object]:
    """Return what `--json` says of a figure, whose runs are there "ours" and those of the baseline "theirs"."""
    names = {"values": "ours", "baseline": "theirs"}
    fields = {names.get(name, name): value for name, value in asdict(figure).items()}
    return fields | {"name": figure.name, "ratio": figure.ratio}


def table(report: Report, model: str, against: str | None, *, wide: bool = False) -> list[str]:
    """Return the lines of a table, 80 columns wide, and one for each row that was left out or measured once.

    With `wide` it is Markdown, and has the smallest and the largest of the runs.
    """
    made = figure_table(report.figures, model, against, wide=wide)
    lines = made.markdown() if wide else map(str.rstrip, made.plain())
    return [*lines, *(["", *report.notes] if report.notes else [])]


def _machine() -> dict[str, object]:
    import mlx.core as mx

    return {
        "device": str(mx.default_device()),
        "name": str(mx.device_info().get("device_name")),
        "cpus": os.cpu_count(),
    }


def _versions(against: str | None) -> dict[str, str]:
    return {"helium_mlx": __version__} | {name: version(name) for name in ("mlx", *([against] if against else []))}


def _place(machine: Mapping[str, object], versions: Mapping[str, str]) -> str:
    programs = ", ".join(f"{name} {number}" for name, number in versions.items())
    return f"{machine['name']}, {machine['cpus']} CPUs, {machine['device']}; {programs}"


if __name__ == "__main__":
    sys.exit(main())
