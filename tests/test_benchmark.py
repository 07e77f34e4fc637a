import json
import os
import platform
import signal
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import pytest

from helium_mlx.benchmark import build_parser, main, table
from helium_mlx.conversion.conversion import convert
from helium_mlx.diagnostics import measures as benchmark_measures
from helium_mlx.diagnostics import page as page_module
from helium_mlx.diagnostics.gpu_kernels import PRECISIONS
from helium_mlx.diagnostics.measures import (
    BUILD,
    CANDIDATE,
    DECODE,
    DRAFT_KERNELS,
    KERNELS,
    MOVED,
    NODES,
    ON_GPU,
    PEAKS,
    PREFILL,
    SHARE,
    START,
    START_PEAK,
    Figure,
    Quantity,
    Report,
    Worker,
    benchmark,
    tokens_after,
)
from helium_mlx.diagnostics.worker import STEPS
from helium_mlx.errors import HeliumError
from helium_mlx.files.hub import DEMO_DIRECTORY


@pytest.fixture
def short_demo(tmp_path: Path) -> Path:
    """The demo in float32, as converted, with a context of 40 tokens."""
    directory = tmp_path / "demo"
    convert(str(DEMO_DIRECTORY), str(directory), dtype="float32", verify=False)
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 40}))
    return directory


@pytest.fixture
def small_bandwidth(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spares the tests the array of 268 MB."""
    ask = Worker.ask

    def ask_small(self: Worker, measure: str, **arguments: int) -> float | None:
        return ask(self, measure, **arguments, **({"elements": 2**20} if measure == "bandwidth" else {}))

    monkeypatch.setattr(Worker, "ask", ask_small)


@pytest.fixture
def started_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Starts each program once, not in both rounds: importing mlx-lm takes seconds."""
    original = benchmark_measures.whole_process
    started = cache(lambda *command: original(list(command)))
    monkeypatch.setattr(benchmark_measures, "whole_process", lambda command: started(*command))


@pytest.mark.usefixtures("small_bandwidth", "started_once")
def test_both_programs_side_by_side(short_demo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("mlx_lm")
    lengths = ["--prompt-tokens", "9", "50", "--contexts", "5", "38", "--generation-tokens", "6"]
    assert main(["--model", str(short_demo), "--against", "mlx-lm", "--runs", "1", "--json", *lengths]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["options"]["against"] == "mlx-lm"
    assert set(report["machine"]) == {"device", "name", "cpus"}
    assert set(report["versions"]) == {"helium_mlx", "mlx", "mlx-lm"}
    assert report["bandwidth"] > 0
    assert len(report["left_out"]) == 2
    assert all("context is 40" in reason for reason in report["left_out"])
    rows = {(row["quantity"], row["tokens"]): row for row in report["figures"]}
    lengths_of = {START: None, START_PEAK: None, PREFILL: 9, DECODE: 5, MOVED: 5, SHARE: 5}
    lengths_of |= dict.fromkeys(PEAKS, 39)
    lengths_of |= {row.format(precision): None for row in (BUILD, NODES) for precision in PRECISIONS}
    lengths_of |= {ON_GPU.format(precision, kind): None for precision in PRECISIONS for kind in STEPS}
    assert set(rows) == set(lengths_of.items())
    for row in rows.values():
        assert len(row["ours"]) == 1
        assert len(row["theirs"]) == (0 if row["unit"] == DRAFT_KERNELS else 1)
        assert min(row["ours"] + row["theirs"]) > 0
    decode, moved, share = (rows[quantity, 5] for quantity in (DECODE, MOVED, SHARE))
    for name in ("ours", "theirs"):
        expected = 100 * moved[name][0] * 1e6 * decode[name][0] / report["bandwidth"]
        assert share[name][0] == pytest.approx(expected)
    assert share["ratio"] is None


def test_what_a_gpu_would_be_given_is_counted_and_nothing_measured(
    short_demo: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benchmark_measures, "whole_process", None)
    assert main(["--model", str(short_demo), "--kernels", "--quiet"]) == 0
    place, _, heading, _, *rows = capsys.readouterr().out.splitlines()
    assert "bandwidth" not in place
    assert heading.endswith(" helium_mlx")
    assert len(rows) == len(PRECISIONS) * (len(STEPS) + 1)
    assert all(row.split()[-1].isdigit() for row in rows)


def test_a_report_is_one_page_without_anything_of_its_owner(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "somebody"
    model, path = home / "models" / "my-4bit", home / "page.md"
    model.mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("USER", "somebody")
    found = Report([Figure(DECODE, 16, "tokens/s", True, [300.0], [])], 1e9, [f"prefill of {model}: too long"])
    monkeypatch.setattr("helium_mlx.benchmark.benchmark", lambda **options: found)
    monkeypatch.setattr(page_module, "selfcheck_summary", lambda: f"It ended with status 1: {home}/x is gone")
    assert main(["--model", str(model), "--report", str(path)]) == 0
    text = path.read_text(encoding="utf-8")
    assert "| model " in text and " my-4bit |" in text and "It ended with status 1: x is gone" in text
    assert platform.node() not in text and "somebody" not in text
    assert "decode at context 16, tokens/s" in capsys.readouterr().out
    assert [each.name for each in home.iterdir() if each != model.parent] == ["page.md"]


def test_a_report_that_cannot_be_written_is_refused_before_anything_is_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("helium_mlx.benchmark.benchmark", lambda **options: pytest.fail("it was measured"))
    assert main(["--report", str(tmp_path / "nowhere" / "page.md")]) == 1
    assert "page.md: cannot be written, since" in capsys.readouterr().err


def test_the_summary_of_selfcheck_is_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    features = [{"feature": "masks", "failed": 0}, {"feature": "RoPE", "failed": 2}]
    for stdout, said in (
        (json.dumps({"features": features[:1], "limits": {"float32": 1e-5}}),
         "1 of 1 features within bounds of transformers' outputs (float32 1e-05)"),
        (json.dumps({"features": features, "limits": {"float32": 1e-5}}),
         "1 of 2 features within bounds of transformers' outputs (float32 1e-05); not RoPE"),
        ("", "It ended with status 1: error: broken"),
    ):  # fmt: skip
        run = SimpleNamespace(stdout=stdout, stderr="error: broken\n", returncode=1)
        monkeypatch.setattr(page_module.subprocess, "run", lambda *_, run=run, **__: run)
        assert page_module.selfcheck_summary() == said


def test_kernels_are_left_out_where_mlx_cannot_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    monkeypatch.setattr("helium_mlx.backend.is_cpu", lambda: True)
    report = benchmark(str(DEMO_DIRECTORY), kernels=True)
    assert (report.figures, report.left_out) == ([], ["kernels on a GPU: on a CPU MLX needs g++ to count them"])


def test_programs_take_turns_and_the_first_round_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    turns: list[str] = []

    class Program:
        directory = Path("nowhere")

        def __init__(self, name: str) -> None:
            self.program = name

        def measured(self) -> float:
            turns.append(self.program)
            return float(len(turns))

    monkeypatch.setattr(benchmark_measures, "whole_process", lambda command: (1.0, 2e6))
    rows = [
        Quantity("a", None, "s", False, Program.measured),  # pyright: ignore[reportArgumentType]
        Quantity("b", None, "s", False, Program.measured, once=True),  # pyright: ignore[reportArgumentType]
    ]
    seen: list[tuple[int, int]] = []
    workers = [Program("us"), Program("them")]
    starts = benchmark_measures._start_rows()
    benchmark_measures._take_turns(workers, starts, rows, 2, lambda *done: seen.append(done))  # pyright: ignore
    assert turns == ["them", "us", "us", "them", "them", "us", "them", "us"]
    assert {row.quantity: row.values for row in starts + rows} == {
        START: {"us": [1.0, 1.0], "them": [1.0, 1.0]},
        START_PEAK: {"us": [2.0, 2.0], "them": [2.0, 2.0]},
        "a": {"us": [3.0, 6.0], "them": [4.0, 5.0]},
        "b": {"us": [8.0], "them": [7.0]},
    }
    assert seen[-1] == (14, 14)


def test_a_program_that_is_slow_is_measured_once_and_the_other_as_often_as_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [0.0]

    class Program:
        directory = Path("nowhere")

        def __init__(self, name: str, seconds: float) -> None:
            self.program, self.seconds = name, seconds

        def measured(self) -> float:
            now[0] += self.seconds
            return now[0]

    monkeypatch.setattr(benchmark_measures, "whole_process", lambda command: (1.0, 2e6))
    monkeypatch.setattr(benchmark_measures, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    rows = [Quantity("a at {}", 2048, "s", False, Program.measured)]  # pyright: ignore[reportArgumentType]
    seen: list[tuple[int, int]] = []
    workers = [Program("us", 1.0), Program("them", 16.0)]
    starts = benchmark_measures._start_rows()
    benchmark_measures._take_turns(workers, starts, rows, 2, lambda *done: seen.append(done))  # pyright: ignore
    assert rows[-1].values == {"us": [18.0, 19.0], "them": [16.0]}
    assert (rows[-1].name, rows[-1].slow) == ("a at 2,048", {"them": 16.0})
    assert seen[-1] == (10, 10)


def test_the_table_has_a_row_a_figure() -> None:
    figures = [
        Figure(START, None, "s", False, [0.2, 0.1, 0.3], [0.4, 0.8, 0.6]),
        Figure(DECODE, 1024, "tokens/s", True, [300.0], [1200.0]),
        Figure(ON_GPU.format("4 bits", "alone"), None, KERNELS, False, [104], [145]),
        Figure(SHARE, 1024, "%", None, [12.3], []),
    ]
    report = Report(figures, 1e9, ["prefill of 9: too long"], ["decode at context 1,024, mlx-lm: a run takes 20 s"])
    notes = [
        "",
        "Left out: prefill of 9: too long",
        "Measured once: decode at context 1,024, mlx-lm: a run takes 20 s",
    ]
    assert table(report, "demo", "mlx-lm") == [
        "                                           helium_mlx  mlx-lm   ratio",
        "demo                                           median  median",
        "start to first token, s                          0.20    0.60    3.00",
        "decode at context 1,024, tokens/s                 300   1,200    0.25",
        "on a GPU, 4 bits, alone, kernels a token          104     145    1.39",
        "share of the bandwidth at context 1,024, %       12.3",
        *notes,
    ]
    lines = table(report, "demo", "mlx-lm", wide=True)
    assert [[cell.strip() for cell in line.split("|")[1:-1]] for line in (lines[0], *lines[2:6])] == [
        ["demo", "helium_mlx, median", "least", "most", "mlx-lm, median", "least", "most", "ratio"],
        ["start to first token, s", "0.20", "0.10", "0.30", "0.60", "0.40", "0.80", "3.00"],
        ["decode at context 1,024, tokens/s", "300", "", "", "1,200", "", "", "0.25"],
        ["on a GPU, 4 bits, alone, kernels a token", "104", "", "", "145", "", "", "1.39"],
        ["share of the bandwidth at context 1,024, %", "12.3", "", "", "", "", "", ""],
    ]
    assert lines[6:] == notes


def test_a_program_alone_has_no_empty_columns() -> None:
    report = Report([Figure(DECODE, 1024, "tokens/s", True, [300.0, 290.0, 310.5], [])], 1e9, [], [])
    assert table(report, "demo", None) == [
        "                                  helium_mlx",
        "demo                                  median",
        "decode at context 1,024, tokens/s        300",
    ]
    (row,) = table(report, "demo", None, wide=True)[2:]
    assert [cell.strip() for cell in row.split("|")[2:-1]] == ["300", "290", "310"]


def test_no_row_is_wider_than_a_terminal_or_cut() -> None:
    units = {kind: DRAFT_KERNELS if "prompt_lookup" in options else KERNELS for kind, options in STEPS.items()}
    rows = [(ON_GPU.format(p, kind), unit) for p in PRECISIONS for kind, unit in units.items()]
    rows += [(name.format(p), unit) for p in PRECISIONS for name, unit in ((NODES, "nodes"), (BUILD, "µs of CPU"))]
    rows += [(name.format("131,072"), "MB") for name in (*PEAKS, PREFILL, DECODE, MOVED, SHARE)]
    rows += [(START, "s"), (START_PEAK, "MB")]
    figures = [Figure(name, None, unit, True, [123_456.0], [99_999.0]) for name, unit in rows]
    lines = table(Report(figures, 1e9, [], []), "demo", "mlx-lm")
    assert max(map(len, lines)) <= 80
    assert not [line for line in lines if "…" in line]


@pytest.mark.parametrize(
    ("context", "limit", "wanted", "expected"),
    [(16, 4096, 100, 100), (4000, 4096, 100, 96), (4080, 4096, 100, 16), (4081, 4096, 100, 0), (5, 40, 6, 6),
     (35, 40, 6, 0), (5000, 4096, 100, 0)],
)  # fmt: skip
def test_what_fits_after_a_context(context: int, limit: int, wanted: int, expected: int) -> None:
    assert tokens_after(context, limit, wanted) == expected


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--runs", "0"], "at least 1"),
        (["--generation-tokens", "1"], "at least 2"),
        (["--contexts", "16", "0"], "at least 1"),
        (["--plot", "speed.txt"], "must end in .svg, .png, .pdf"),
        (["--report", "."], "--report is ., a directory; name a file"),
        (["--model", "no/such/directory"], "no/such/directory"),
    ],
)
def test_bad_arguments_are_one_line(flags: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(flags) == (1 if "--model" in flags else 2)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert len(shown.err.splitlines()) == 1
    assert said in shown.err


def test_wrong_usage_is_status_2() -> None:
    for flags in (["--against", "llama.cpp"], ["--contexts", "many"], ["--prompt-tokens"]):
        with pytest.raises(SystemExit) as ended:
            main(flags)
        assert ended.value.code == 2


def test_a_missing_mlx_lm_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(benchmark_measures, "find_spec", lambda name: None)
    assert main(["--against", "mlx-lm"]) == 1
    assert capsys.readouterr().err.splitlines() == [
        "error: --against mlx-lm needs mlx-lm; install it with: pip install mlx-lm"
    ]


def test_a_worker_that_dies_is_one_line() -> None:
    with Worker(CANDIDATE, DEMO_DIRECTORY) as worker:
        os.kill(worker._process.pid, signal.SIGKILL)
        worker._process.wait()
        with pytest.raises(HeliumError, match=f"{CANDIDATE} ended with status -9"):
            worker.ask("bandwidth")


def test_a_checkpoint_that_cannot_be_opened_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(HeliumError) as raised:
        benchmark(str(tmp_path))
    assert len(str(raised.value).splitlines()) == 1


def test_the_parser_names_the_functions_options_and_defaults() -> None:
    import inspect

    parser = build_parser()
    parameters = inspect.signature(benchmark).parameters
    given = {action.dest for action in parser._actions} - {"help", "json", "plot", "quiet", "report", "wide"}
    assert given == set(parameters) - {"on_progress"}
    defaults = vars(parser.parse_args([]))
    for name in given - {"model"}:
        default = parameters[name].default
        assert defaults[name] == (list(default) if isinstance(default, tuple) else default), name
