"""The page that `benchmark --report` writes."""

from dataclasses import replace

import pytest

from helium_mlx.diagnostics.chips import BANDWIDTH
from helium_mlx.diagnostics.measures import BUILD, DECODE, KERNELS, MOVED, NODES, ON_GPU, SHARE, START, Figure, Report
from helium_mlx.diagnostics.page import Machine, page

MAC = Machine("Apple M2 Max", 34_359_738_368, "macOS 14.5, arm64", 12, "metal", "3.11.7")
VERSIONS = {"helium_mlx": "0.1.0", "mlx": "0.32.4", "mlx-lm": "0.32.2"}
REPORT = Report(
    [
        Figure(START, None, "s", False, [0.2, 0.1, 0.3], [2.0, 2.1, 2.2]),
        Figure(DECODE, 16, "tokens/s", True, [200.0], [160.0]),
        Figure(MOVED, 16, "MB", False, [1200.0], [1300.0]),
        Figure(SHARE, 16, "%", None, [70.0], [60.0]),
        Figure(ON_GPU.format("4 bits", "alone"), None, KERNELS, False, [80], [111]),
        Figure(NODES.format("4 bits"), None, "nodes", False, [121], [179]),
        Figure(BUILD.format("4 bits"), None, "µs of CPU", False, [500.0], [700.0]),
    ],
    350e9,
    ["prefill of 9: too long"],
)


def lines(machine: Machine = MAC, report: Report = REPORT, against: str | None = "mlx-lm") -> list[str]:
    versions = {name: number for name, number in VERSIONS.items() if against or name != "mlx-lm"}
    return page(
        report, "helium-2b-4bit", against, machine, versions, selfcheck="38 of 38 features within bounds"
    ).splitlines()


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.split("|")[1:-1]]


def section(title: str, of: list[str]) -> list[str]:
    first = of.index(f"## {title}") + 1
    ends = [number for number in range(first, len(of)) if of[number].startswith("## ")]
    return of[first : ends[0] if ends else None]


def test_the_machine_and_the_versions_come_first() -> None:
    title, *rest = lines()
    assert title == "# helium_mlx on Apple M2 Max"
    facts = dict(cells(line) for line in rest if line.startswith("|") and len(cells(line)) == 2)
    expected = {
        "chip": "Apple M2 Max", "memory, GB": "34.4", "system": "macOS 14.5, arm64", "CPUs": "12",
        "computed on": "metal", "Python": "3.11.7", "mlx-lm": "0.32.2", "model": "helium-2b-4bit",
    }  # fmt: skip
    assert facts | expected == facts


def test_both_programs_stand_side_by_side_and_counts_apart() -> None:
    measured, counted = (section(title, lines()) for title in ("Measured", "Counted, as on a GPU"))
    rows = [cells(line) for line in measured if line.startswith("| ")]
    assert rows[0] == [
        "helium-2b-4bit",
        "helium_mlx, median",
        "least",
        "most",
        "mlx-lm, median",
        "least",
        "most",
        "ratio",
    ]
    assert [row[0] for row in rows[1:]] == [
        "start to first token, s", "decode at context 16, tokens/s", "bytes a token at context 16, MB",
    ]  # fmt: skip
    assert rows[1][1:] == ["0.20", "0.10", "0.30", "2.10", "2.00", "2.20", "10.50"]
    assert "- Left out: prefill of 9: too long" in section("Notes", lines())
    assert [cells(line)[0] for line in counted if line.startswith("| ")][1:] == [
        "on a GPU, 4 bits, alone, kernels a token", "graph of a token for a GPU, 4 bits, nodes",
        "building a token's graph, 4 bits, µs of CPU",
    ]  # fmt: skip


def test_the_share_is_of_the_chips_bandwidth() -> None:
    said = section("Share of the memory's bandwidth", lines())
    assert "Apple M2 Max has 400 GB/s; MLX reached 350 GB/s here." in said
    assert [cells(line) for line in said if line.startswith("| ")] == [
        ["context, tokens", "helium_mlx, %", "mlx-lm, %"], ["16", "60", "52"],
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("machine", "said"),
    [
        (replace(MAC, chip="Apple M9"), "The bandwidth of Apple M9 is not known here; MLX reached 350 GB/s."),
        (replace(MAC, chip="AMD EPYC", backend="cpu"), "None: it was computed on the CPU."),
    ],
)
def test_where_there_is_no_share_the_page_says_so(machine: Machine, said: str) -> None:
    assert [line for line in section("Share of the memory's bandwidth", lines(machine)) if line] == [said]


def test_counts_alone_make_a_page_too() -> None:
    only = lines(report=Report([figure for figure in REPORT.figures if figure.unit == KERNELS], None, []))
    assert not [line for line in only if line.startswith("## Measured") or "bandwidth" in line]
    assert "## Counted, as on a GPU" in only


def test_what_could_not_be_counted_is_noted_where_nothing_else_is() -> None:
    only = lines(report=Report([], None, ["kernels on a GPU: no compiler"]))
    assert [line for line in section("Notes", only) if line] == ["- Left out: kernels on a GPU: no compiler"]


def test_a_program_alone_has_no_columns_of_another() -> None:
    alone = replace(REPORT, figures=[replace(figure, baseline=[]) for figure in REPORT.figures])
    assert not [line for line in lines(report=alone, against=None) if "mlx-lm" in line or "ratio" in line]


def test_the_page_ends_with_selfcheck_and_where_to_send_it() -> None:
    assert "38 of 38 features within bounds" in section("Selfcheck", lines())
    assert lines()[-1] == (
        'To share it, open an issue named "Benchmark: Apple M2 Max" where you got helium_mlx from, and paste this page.'
    )


def test_chips_are_named_as_mlx_names_them() -> None:
    for generation in range(1, 6):
        assert f"Apple M{generation}" in BANDWIDTH
    assert all(60e9 < bandwidth < 10e12 for bandwidth in BANDWIDTH.values())
