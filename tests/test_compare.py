"""The command `compare`."""

import hashlib
import io
import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from compared_checkpoints import write_pair

from helium_mlx import ComparisonReport, cli
from helium_mlx.compare import _lines, build_parser, main
from helium_mlx.comparison import comparison
from helium_mlx.comparison.figures import ComparedModel, LanguageFigures, OwnText
from helium_mlx.comparison.tables import candidate_table
from helium_mlx.comparison.text import STORIES, TEXTS_DIRECTORY

Pair = tuple[str, str]

FIGURES = LanguageFigures(
    mean_kl=0.01234, mean_kl_error=0.00056, p99_kl=0.2, top1_agreement=0.98765, reference_perplexity=7.0,
    candidate_perplexity=7.35, perplexity_ratio=1.05, perplexity_ratio_error=0.0021, reference_bits_per_byte=0.8,
    candidate_bits_per_byte=0.82, tokens=1234, bytes=5000,
)  # fmt: skip
REPORT = ComparisonReport(
    **vars(FIGURES), languages={"en": FIGURES, "português": replace(FIGURES, mean_kl=3e-6, mean_kl_error=1e-6)},
    reference=ComparedModel("demo", "helium_mlx", "float32", 3_612_160, 16.0),
    candidate=ComparedModel("mlx-lm:q", "mlx-lm", "float32", 1_016_000, 4.5), window=512, windows=9,
)  # fmt: skip


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    reference, candidate = write_pair(tmp_path_factory.mktemp("pair"))
    return str(reference), str(candidate)


@pytest.fixture
def text(tmp_path: Path) -> str:
    (tmp_path / "note.txt").write_text("Once upon a time there was a boy.\n\nIl était une fois.", encoding="utf-8")
    return str(tmp_path / "note.txt")


def run(pair: Pair, *flags: str) -> int:
    return main(["--reference", pair[0], "--candidate", pair[1], *flags])


def printed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *flags: str) -> list[str]:
    """Return what the command prints of `REPORT`, with `--candidate` as often as `flags` say."""
    reports = [REPORT] * (1 + flags.count("--candidate"))
    monkeypatch.setattr(comparison, "compare_all", lambda *arguments, **options: iter(reports))
    assert main(["--reference", "demo", "--candidate", "q", *flags]) == 0
    return capsys.readouterr().out.splitlines()


def test_a_terminal_has_five_figures_a_language(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert printed(monkeypatch, capsys) == [
        "A: demo, 3.6 MB, 16.00 bits a weight, computed in float32",
        "B: mlx-lm:q, 1.0 MB, 4.50 bits a weight, computed in float32 by mlx-lm",
        "9 windows of up to 512 tokens of the package's own text, each after one BOS;",
        "   KL(A || B) in nats a token",
        "",
        "              mean KL  std. error     99 % KL  same top-1  perplexity",
        "language         nats        nats        nats           %       B / A",
        "en             0.0123     0.00056       0.200       98.77      1.0500",
        "português    3.00e-06     1.0e-06       0.200       98.77      1.0500",
        "all            0.0123     0.00056       0.200       98.77      1.0500",
    ]


def test_headings_come_once_for_several_candidates(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = printed(monkeypatch, capsys, "--candidate", "r")
    assert [line.split(" ")[0] for line in lines[4:]] == [
        "", "language", "B:", "en", "português", "all", "B:", "en", "português", "all", "", "", "B", "mlx-lm:q",
        "mlx-lm:q",
    ]  # fmt: skip
    assert sum(line.startswith("A: ") for line in lines) == 1
    assert lines[-3:-1] == [
        "B                 MB    a weight        nats           %       B / A",
        "mlx-lm:q         1.0        4.50      0.0123       98.77      1.0500",
    ]


def test_headings_come_again_for_another_unit() -> None:
    of_bytes = replace(REPORT, perplexity_unit="byte")
    assert _lines(of_bytes, [REPORT], wide=False, several=True)[:3] == ["", *of_bytes.table().headings()]


def test_nothing_is_wider_than_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    long = replace(
        FIGURES, mean_kl=1.234e-100, mean_kl_error=1.2e-100, p99_kl=1.234e-100, perplexity_ratio=99_999.12345,
        reference_perplexity=99_999.123, candidate_perplexity=1e300,
    )  # fmt: skip
    name = "notes on " + "how long the name of a file can be " * 3
    report = replace(
        REPORT, **vars(long), languages={name: long, "en": long}, layers={"layers 10 to 12": 1e-9},
        candidate=replace(REPORT.candidate, name=name), texts=(OwnText(name, "0"), OwnText(name + "2", "0")),
    )  # fmt: skip
    for each in (report, replace(report, perplexity_unit="byte")):
        monkeypatch.setattr(comparison, "compare_all", lambda *arguments, each=each, **options: iter([each, each]))
        for flags in (["--candidate", "r"], []):
            assert main(["--reference", "demo", "--candidate", "q", *flags]) == 0
            lines = capsys.readouterr().out.splitlines()
            assert max(map(len, lines)) <= 80
            assert any(line.startswith("…") for line in lines)


def test_wide_is_markdown_with_every_figure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    head, rule, *rows = printed(monkeypatch, capsys, "--wide")[5:]
    assert [cell.strip() for cell in head.split("|")[1:-1]] == [
        "language", "text, tokens", "mean KL, nats", "std. error, nats", "99 % KL, nats", "same top-1, %",
        "perplexity, A, a token", "perplexity, B, a token", "perplexity, B / A", "std. error, B / A",
        "bits, A, a byte", "bits, B, a byte",
    ]  # fmt: skip
    assert set(rule) == set("|-:")
    assert [cell.strip() for cell in rows[0].split("|")[1:-1]] == [
        "en", "1,234", "0.0123", "0.00056", "0.200", "98.77", "7.000", "7.350", "1.0500", "0.0021", "0.8000", "0.8200",
    ]  # fmt: skip
    assert len({len(line) for line in (head, rule, *rows)}) == 1


def test_wide_headings_come_once_for_several_candidates(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = printed(monkeypatch, capsys, "--candidate", "r", "--wide")
    (heading,) = [number for number, line in enumerate(lines) if line.startswith("| B ") and " language |" in line]
    assert set(lines[heading + 1]) == set("|-:")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[heading + 2 : heading + 8]]
    assert [row[:2] for row in rows] == [["mlx-lm:q", name] for name in ("en", "português", "all")] * 2
    assert lines[heading + 8] == ""
    again = _lines(replace(REPORT, perplexity_unit="byte"), [REPORT], wide=True, several=True)
    assert (again[0], again[1].split("|")[1].strip()) == ("", "B")


def test_a_report_says_what_it_was_measured_on() -> None:
    notes, other = OwnText("notes|for\nme`.txt", "0" * 64), OwnText("other.txt", "1" * 64)
    one = replace(REPORT, windows=1, texts=(notes,))
    assert one.extent == "1 window of up to 512 tokens of text of one's own (`notes|for\\nme'.txt`)"
    assert "own (`other.txt`, `notes|for\\nme'.txt`)" in replace(REPORT, texts=(other, notes, other)).extent
    many = tuple(OwnText(str(i), str(i)) for i in range(10))
    assert "own (`0`, `1`, `2`, `3`, `4` and 5 more)" in replace(REPORT, texts=many).extent


@pytest.mark.parametrize(
    ("ratio", "error", "expected"),
    [
        (1.05, 0.0021, ("1.0500", "0.0021")), (0.5, 0.00021, ("0.5000", "0.00021")), (1.0, 0.0, ("1.0000", "0")),
        (0.0123456, 0.0012, ("0.01235", "0.0012")), (3.21098e-6, 4.5e-8, ("3.211e-06", "4.5e-08")),
        (12345.67, 80.0, ("12345.6700", "80.0000")), (2.5e9, 1e7, ("2.500e+09", "1.0e+07")),
        (math.inf, None, ("inf", "-")),
    ],
)  # fmt: skip
def test_the_ratio_of_perplexities_keeps_its_digits(
    ratio: float, error: float | None, expected: tuple[str, str]
) -> None:
    figures = replace(FIGURES, perplexity_ratio=ratio, perplexity_ratio_error=error)
    assert tuple(replace(REPORT, languages={"x": figures}).table(wide=True).rows[0][8:10]) == expected


def test_what_could_not_be_measured_is_a_dash_or_left_out() -> None:
    none = replace(REPORT, mean_kl=None, mean_kl_error=None, p99_kl=None, top1_agreement=None,
                   perplexity_ratio_error=None, perplexity_unit="byte", languages={})  # fmt: skip
    one = replace(none, languages={"x": none})
    assert one.table(wide=True).rows == [
        ["x", "1,234", "-", "-", "-", "-", "7.000", "7.350", "1.0500", "-", "0.8000", "0.8200"]
    ]
    assert one.table().rows == [["x", "7.000", "7.350", "1.0500", "0.8000", "0.8200"]]
    assert one.table().columns[0] == ("perplexity", "A, a byte")


def test_groups_of_layers_have_a_table_of_their_own() -> None:
    with_layers = replace(REPORT, layers={"embedding": 0.0123, "head": 0.0})
    before = _lines(REPORT, [], wide=False, several=False)
    assert _lines(with_layers, [], wide=False, several=False) == [
        *before,
        "",
        "                     mean KL",
        "only this from B        nats",
        "embedding             0.0123",
        "head                       0",
    ]


def test_one_candidate_a_row_in_the_summary() -> None:
    same = replace(FIGURES, mean_kl=0.0, mean_kl_error=0.0)
    table = candidate_table([(REPORT.candidate, REPORT), (REPORT.candidate, same)], wide=True)
    assert [cell.strip() for cell in table.markdown()[0].split("|")[1:-1]] == [
        "B", "size, MB", "bits, a weight", "mean KL, nats", "std. error, nats", "99 % KL, nats", "same top-1, %",
        "perplexity, B / A", "std. error, B / A",
    ]  # fmt: skip
    assert table.rows[1] == ["mlx-lm:q", "1.0", "4.50", "0", "0", "0.200", "98.77", "1.0500", "0.0021"]


def test_the_demo_is_compared_on_stories(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--reference", "demo", "--candidate", "demo", "--languages", "en", "--json"]) == 0
    shown = capsys.readouterr()
    report = json.loads(shown.out)
    assert (report["package_text"], report["texts"]) == ("stories", [])
    stories = (TEXTS_DIRECTORY / STORIES / "en.txt").read_text(encoding="utf-8").strip().split("\n\n")
    assert report["bytes"] == sum(len(story.encode()) for story in stories)
    assert "note: compared on the package's stories alone, because the demo knows no other text" in shown.err


def test_standard_output_has_the_table_and_standard_error_the_rest(
    pair: Pair, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(pair, "--text", text) == 0
    shown = capsys.readouterr()
    lines = shown.out.splitlines()
    assert lines[0].startswith(f"A: {pair[0]}, ")
    assert lines[-2].startswith("language ")
    assert [line.split()[0] for line in lines[-1:]] == ["note"]
    assert "Comparing: 100%" in shown.err
    assert "note: there is a single window to compare, and so no standard error" in shown.err


def test_json_is_one_object_a_candidate_and_nothing_else(
    pair: Pair, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(pair, "--candidate", pair[0], "--text", text, "--json", "--window", "6") == 0
    changed, same = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert (changed["candidate"]["name"], same["candidate"]["name"]) == (pair[1], pair[0])
    assert changed["mean_kl"] > same["mean_kl"] == 0
    assert changed["languages"]["note"]["tokens"] == changed["tokens"]
    assert changed["window"] == 6
    assert changed["texts"] == [{"name": "note.txt", "sha256": hashlib.sha256(Path(text).read_bytes()).hexdigest()}]


def test_json_has_no_infinity(
    pair: Pair, text: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    infinite = replace(REPORT, candidate_perplexity=math.inf)
    monkeypatch.setattr(comparison, "compare_all", lambda *arguments, **options: iter([infinite]))
    assert run(pair, "--json", "--text", text) == 0
    assert json.loads(capsys.readouterr().out)["candidate_perplexity"] is None
    assert "inf" in infinite.table(wide=True).markdown()[-1]


def test_several_candidates_end_with_a_summary(pair: Pair, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(pair, "--candidate", pair[0], "--text", text, "--wide") == 0
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("A: ") for line in lines) == 1
    assert [line.split("|")[1].strip() for line in lines[-2:]] == [pair[1], pair[0]]


def test_standard_input_is_a_text(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO("Une fille, dès l'aube.".encode())))
    assert run(pair, "--text", "-", "--json") == 0
    assert list(json.loads(capsys.readouterr().out)["languages"]) == ["stdin"]


def test_the_packages_own_text_is_compared_by_default(pair: Pair, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(pair, "--languages", "it", "--json") == 0
    assert list(json.loads(capsys.readouterr().out)["languages"]) == ["it"]


def test_the_plot_is_of_layers_for_one_candidate_and_of_sizes_for_several(
    pair: Pair, text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    layers, sizes = tmp_path / "layers.svg", tmp_path / "sizes.svg"
    assert run(pair, "--text", text, "--json", "--plot", str(layers)) == 0
    assert set(json.loads(capsys.readouterr().out)["layers"]) == {"embedding", "layer 0", "layer 1", "head"}
    assert "What each group of layers adds" in layers.read_text()
    assert run(pair, "--candidate", pair[1], "--text", text, "--plot", str(sizes)) == 0
    assert "bits a weight" in sizes.read_text()


@pytest.mark.parametrize(
    ("flags", "status", "said"),
    [
        (["--text", "no/such/file"], 1, "--text no/such/file: cannot be read (No such file or directory)"),
        (["--candidate", "no/such/directory"], 1, "no/such/directory"),
        (["--reference-revision", "main"], 1, "which has no revision main; leave that out"),
        (["--languages", "pl"], 2, "language 'pl': there is text in en, fr, de, it, pt, es"),
        (["--window", "0"], 2, "--window is 0; it must be a whole number, at least 1"),
        (["--batch-size", "-1"], 2, "--batch-size is -1"),
        (["--candidate", "demo-4bit"], 1, "demo-4bit: no such directory, and not a Hub repository (user/name); 'demo'"),
        (["--candidate", ""], 1, "'': no such directory"),
        (["--plot", "no/such/a.svg"], 2, "--plot is no/such/a.svg, and there is no directory no/such; make it first"),
        (["--candidate", "x", "--candidate-revision", "main"], 2, "--candidate-revision is of one repository"),
    ],
)
def test_users_mistakes_are_one_line_and_status_1_or_2(
    pair: Pair, flags: list[str], status: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(pair, *flags) == status
    shown = capsys.readouterr()
    assert shown.out == ""
    assert said in shown.err
    assert len(shown.err.splitlines()) == 1


def test_the_card_of_a_repository_cannot_be_updated(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--reference", "demo", "--candidate", "me/y", "--update-card"]) == 1
    assert "me/y is no directory of yours, and --update-card needs one that `helium-mlx" in capsys.readouterr().err


@pytest.mark.parametrize(
    "flags",
    [[], ["--reference", "a"], ["--candidate", "b"], ["--reference", "a", "--candidate", "b", "--window", "many"],
     ["--reference", "a", "--candidate", "b", "--text", "x", "--languages", "en"]],
)  # fmt: skip
def test_wrong_usage_is_status_2(flags: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(flags)
    assert ended.value.code == 2


def test_a_picture_of_another_format_is_status_2(pair: Pair, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(pair, "--plot", "x.jpeg") == 2
    assert "--plot is x.jpeg; its name must end in .svg, .png, .pdf" in capsys.readouterr().err


def test_ctrl_c_is_status_130(pair: Pair, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(comparison, "compare_all", interrupted)
    assert run(pair, "--text", text) == 130


def test_the_script_has_the_command() -> None:
    assert "compare" in cli.COMMANDS
    assert all(action.help for action in build_parser()._actions)
