"""A benchmark as a page of Markdown to send to others: the machine, both programs, what was counted, selfcheck.

It says of the machine what decides the figures, and nothing about whose it is: no path, no name of a user or a host.
"""

import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx

from helium_mlx import backend
from helium_mlx.diagnostics.chips import BANDWIDTH
from helium_mlx.diagnostics.figure_table import figure_table
from helium_mlx.diagnostics.measures import BUILD, DECODE, MOVED, NODES, ON_GPU, SHARE, Figure, Report
from helium_mlx.files.local_paths import without_local_paths
from helium_mlx.table import Table

# Names of what is counted rather than measured, without what changes in them.
_COUNTED = tuple(name.partition("{")[0] for name in (ON_GPU, NODES, BUILD))


@dataclass(frozen=True)
class Machine:
    """What figures depend on. `memory` is in bytes, 0 where the system does not say."""

    chip: str
    memory: int
    system: str
    cpus: int
    backend: str
    python: str


def this_machine() -> Machine:
    """Return the machine that this runs on."""
    device = mx.device_info()
    memory = device.get("memory_size") if not backend.is_cpu() else None
    return Machine(
        chip=str(device.get("device_name")),
        memory=memory if isinstance(memory, int) else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        system=f"{_system()}, {platform.machine()}",
        cpus=os.cpu_count() or 1,
        backend=backend.name(),
        python=platform.python_version(),
    )


def _system() -> str:
    if sys.platform == "darwin":
        return f"macOS {platform.mac_ver()[0]}"
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        return platform.system()


def selfcheck_summary() -> str:
    """Run `selfcheck` in a process of its own, which computes float32 as such, and return what it found in a line."""
    run = subprocess.run(
        [sys.executable, "-m", "helium_mlx.selfcheck", "--json", "--quiet"], capture_output=True, text=True, check=False
    )
    try:
        found = json.loads(run.stdout)
    except ValueError:
        said = run.stderr.strip().splitlines() or ["it said nothing"]
        return f"It ended with status {run.returncode}: {said[-1]}"
    failed = [feature["feature"] for feature in found["features"] if feature["failed"]]
    bounds = ", ".join(f"{name} {bound:g}" for name, bound in found["limits"].items())
    count = len(found["features"])
    line = f"{count - len(failed)} of {count} features within bounds of transformers' outputs ({bounds})"
    return f"{line}; not {', '.join(failed)}" if failed else line


def page(
    report: Report, model: str, against: str | None, machine: Machine, versions: Mapping[str, str], *, selfcheck: str
) -> str:
    """Return the page."""
    counted = [figure for figure in report.figures if figure.quantity.startswith(_COUNTED)]
    measured = [figure for figure in report.figures if figure not in counted and figure.quantity != SHARE]
    lines = [f"# helium_mlx on {machine.chip}", "", *_facts(model, machine, versions)]
    if measured:
        better = " The ratio is above 1 where helium_mlx is better." if against else ""
        lines += ["", "## Measured", "", f"Medians, and the least and the most of the runs.{better}"]
        lines += ["", *figure_table(measured, model, against, wide=True).markdown()]
        lines += ["", "## Share of the memory's bandwidth", "", *_share(report, against, machine)]
    if counted:
        lines += ["", "## Counted, as on a GPU", "", *figure_table(counted, model, against, wide=False).markdown()]
    lines += ["", "## Notes", "", *(f"- {note}" for note in report.notes)] if report.notes else []
    lines += ["", "## Selfcheck", "", selfcheck, ""]
    lines.append(
        f'To share it, open an issue named "Benchmark: {machine.chip}" where you got helium_mlx from, and paste this '
        "page."
    )
    return str(without_local_paths("\n".join(lines) + "\n"))


def _facts(model: str, machine: Machine, versions: Mapping[str, str]) -> list[str]:
    facts = {
        "chip": machine.chip,
        "memory, GB": f"{machine.memory / 1e9:.1f}",
        "system": machine.system,
        "CPUs": str(machine.cpus),
        "computed on": machine.backend,
        "Python": machine.python,
        **versions,
        "model": model,
    }
    return Table("", [("", "")], [[name, fact] for name, fact in facts.items()]).markdown()


def _share(report: Report, against: str | None, machine: Machine) -> list[str]:
    """Return the share that decoding has of what the chip's memory can move."""
    if machine.backend == "cpu":
        return ["None: it was computed on the CPU."]
    reached = "" if report.bandwidth is None else f"; MLX reached {report.bandwidth / 1e9:.0f} GB/s"
    limit = BANDWIDTH.get(machine.chip)
    if limit is None:
        return [f"The bandwidth of {machine.chip} is not known here{reached}."]
    speeds, moved = (
        {each.tokens: each for each in report.figures if each.quantity == kind} for kind in (DECODE, MOVED)
    )
    programs = [("helium_mlx", "%"), *([(against, "%")] if against else [])]
    rows = [
        [f"{context:,}", *(f"{share:.0f}" for share in _shares(speeds[context], moved[context], limit))]
        for context in moved
        if context is not None
    ]
    said = f"{machine.chip} has {limit / 1e9:.0f} GB/s{f'{reached} here' if reached else ''}."
    return [said, "", *Table("context, tokens", programs, rows).markdown()]


def _shares(speed: Figure, moved: Figure, limit: float) -> list[float]:
    """Return the shares of both programs, or of one, in percent."""
    return [
        100 * statistics.median(megabytes) * 1e6 * statistics.median(rates) / limit
        for rates, megabytes in ((speed.values, moved.values), (speed.baseline, moved.baseline))
        if rates
    ]


def shown_name(model: str) -> str:
    """Return what the page calls a model: a directory's own name, a repository as it is."""
    return Path(model).absolute().name if Path(model).is_dir() else model
