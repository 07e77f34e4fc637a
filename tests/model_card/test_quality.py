import json
import math
import os
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import pytest

import helium_mlx
from helium_mlx.compare import main as compare_main
from helium_mlx.comparison.figures import ComparedModel, LanguageFigures, OwnText
from helium_mlx.comparison.report import ComparisonReport
from helium_mlx.errors import CheckpointError
from helium_mlx.files.hub import DEMO_DIRECTORY
from helium_mlx.model_card.quality import HEADING, measured, require_card, update_card, with_quality
from helium_mlx.publishing.publication import publication

FRENCH = LanguageFigures(0.011, 0.001, 0.22, 0.97, 5.0, 5.5, 1.1, 0.01, 1.9, 2.0, 300, 900)
ALL = replace(FRENCH, mean_kl=0.0123)
REPORT = ComparisonReport(
    **asdict(ALL),
    languages={"fr": FRENCH},
    reference=ComparedModel("/home/alice/plans/source", "helium_mlx", "float32", 100, 16.0),
    candidate=ComparedModel("x", "helium_mlx", "float32", 30, 4.5),
    window=512,
    windows=7,
)


@pytest.fixture(scope="session")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("quality") / "x"
    helium_mlx.convert("demo", str(path), quantize=True)
    return path


@pytest.fixture
def converted(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "x"))


def test_the_table_takes_the_place_of_the_advice(converted: Path) -> None:
    before = (converted / "README.md").read_text()
    update_card(converted, REPORT)
    after = (converted / "README.md").read_text()
    assert before.partition(HEADING)[0] == after.partition(HEADING)[0]
    assert before.partition("## Memory")[2] == after.partition("## Memory")[2]
    assert "Not measured" not in after
    assert (
        "beside `source` (A; this model is B), on 7 windows of up to 512 tokens of the package's own text, computed"
        in after
    )
    assert "| mean KL, nats | std. error, nats |" in after
    assert "|        0.0110 |           0.0010 |" in after
    assert "alice" not in after


def test_a_second_comparison_takes_the_place_of_the_first(converted: Path) -> None:
    update_card(converted, REPORT)
    update_card(converted, replace(REPORT, languages={"de": FRENCH}), reference="kyutai/helium-1-2b")
    card = (converted / "README.md").read_text()
    assert card.count(HEADING) == 1
    assert "| fr" not in card
    assert "`kyutai/helium-1-2b`" in card


def test_the_table_of_an_earlier_version_is_replaced() -> None:
    old = (
        f"# x\n\n{HEADING}\n\n`helium_mlx.compare` beside `source`.\n\n| language |       mean KL | same top-1 |\n"
        "|----------|--------------:|-----------:|\n| fr       | 0.147 ± 0.045 |    85.11 % |\n\n## Memory\n\nMuch.\n"
    )
    assert with_quality(old, measured(REPORT, "source")) == "\n".join(
        ["# x", "", HEADING, "", *measured(REPORT, "source"), "", "## Memory", "", "Much.", ""]
    )


def test_the_record_stays_true_and_holds_the_figures(converted: Path) -> None:
    update_card(converted, REPORT)
    record = json.loads((converted / "conversion.json").read_text())
    assert record["comparison"]["figures"]["fr"]["mean_kl"] == 0.011
    assert record["comparison"]["figures"]["all"]["mean_kl"] == 0.0123
    assert "alice" not in json.dumps(record)
    # `publication` compares every file with the record.
    assert publication(converted, "somebody/x").files


def test_card_and_record_say_which_text_it_was(converted: Path) -> None:
    update_card(converted, replace(REPORT, windows=1, texts=(OwnText("t.txt", "ab" * 32),)))
    assert (
        "on 1 window of up to 512 tokens of text of one's own (`t.txt`), computed"
        in (converted / "README.md").read_text()
    )
    comparison = json.loads((converted / "conversion.json").read_text())["comparison"]
    assert comparison["text"] == "text of one's own (`t.txt`)"
    assert comparison["texts"] == [{"name": "t.txt", "sha256": "ab" * 32}]


def test_figures_that_json_lacks_are_null(converted: Path) -> None:
    update_card(converted, replace(REPORT, candidate_perplexity=math.inf))
    assert "Infinity" not in (converted / "conversion.json").read_text()
    require_card(converted)


def test_weights_are_neither_copied_nor_touched(converted: Path) -> None:
    before = (converted / "model.safetensors").stat()
    update_card(converted, REPORT)
    after = (converted / "model.safetensors").stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert sorted(path.name for path in converted.parent.iterdir()) == ["x"]


def test_other_files_stay(converted: Path) -> None:
    (converted / "notes.txt").write_text("x")
    update_card(converted, REPORT)
    assert (converted / "notes.txt").read_text() == "x"


def test_without_links_files_are_copied(converted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise OSError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    update_card(converted, REPORT)
    assert publication(converted, "somebody/x").files


def test_a_failure_leaves_card_and_record_as_they_were(converted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {path.name: path.read_bytes() for path in converted.iterdir()}

    def fail(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("helium_mlx.model_card.quality.write_json", fail)
    with pytest.raises(KeyboardInterrupt):
        update_card(converted, REPORT)
    assert {path.name: path.read_bytes() for path in converted.iterdir()} == before
    assert sorted(path.name for path in converted.parent.iterdir()) == ["x"]


def test_a_card_that_somebody_changed_is_not_vouched_for(converted: Path) -> None:
    with (converted / "README.md").open("a") as card:
        card.write("mine\n")
    with pytest.raises(CheckpointError, match=r"README.md is not as conversion.json says"):
        update_card(converted, REPORT)


def test_a_directory_that_was_not_converted_has_no_card_of_ours(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    with pytest.raises(
        CheckpointError, match=r"has no conversion\.json, so that `helium-mlx convert` did not"
    ) as caught:
        require_card(tmp_path)
    assert "copy it there" not in str(caught.value)


@pytest.mark.parametrize("name", ["me/y", "demo", "mlx-lm:x"])
def test_only_a_directory_can_have_a_card_that_is_ours_to_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("demo").mkdir()
    with pytest.raises(CheckpointError, match=f"^{name} is no directory .*--update-card needs one that .* convert"):
        require_card(name)


def test_a_card_that_is_missing_is_not_looked_for_elsewhere(converted: Path) -> None:
    (converted / "README.md").unlink()
    with pytest.raises(CheckpointError, match=r"README\.md is missing; convert the checkpoint again$"):
        require_card(converted)


def test_a_directory_inside_would_be_lost_and_is_named(converted: Path) -> None:
    (converted / "inner").mkdir()
    with pytest.raises(CheckpointError, match=r"inner is a directory"):
        update_card(converted, REPORT)


@pytest.fixture
def tuned(tmp_path: Path) -> Path:
    """A checkpoint with chat templates in a folder, as transformers saves those that have a name."""
    source = Path(shutil.copytree(DEMO_DIRECTORY, tmp_path / "tuned"))
    (source / "additional_chat_templates").mkdir()
    (source / "additional_chat_templates/tools.jinja").write_text("{{ messages }}")
    return source


def test_a_folder_of_chat_templates_is_kept(tuned: Path, tmp_path: Path) -> None:
    helium_mlx.convert(str(tuned), str(tmp_path / "y"), quantize=True)
    require_card(tmp_path / "y")
    update_card(tmp_path / "y", REPORT)
    assert (tmp_path / "y/additional_chat_templates/tools.jinja").read_text() == "{{ messages }}"
    assert "|        0.0110 |           0.0010 |" in (tmp_path / "y/README.md").read_text()
    names = [file.name for file in publication(tmp_path / "y", "somebody/y").files]
    assert "additional_chat_templates/tools.jinja" in names


def test_convert_measures_a_checkpoint_with_a_folder_of_chat_templates(
    tuned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("helium_mlx.conversion.conversion.compare", lambda *args, **options: REPORT)
    report = helium_mlx.convert(str(tuned), str(tmp_path / "y"), measure=True)
    written = {path.relative_to(tmp_path / "y").as_posix() for path in (tmp_path / "y").rglob("*") if path.is_file()}
    assert written == {*report.files, "conversion.json"}


def test_only_files_of_its_own_are_kept_in_that_folder(converted: Path, tmp_path: Path) -> None:
    (converted / "additional_chat_templates/deeper").mkdir(parents=True)
    with pytest.raises(CheckpointError, match=r"deeper is a directory, which no converted checkpoint has"):
        require_card(converted)
    shutil.rmtree(converted / "additional_chat_templates")
    (tmp_path / "elsewhere").mkdir()
    (converted / "additional_chat_templates").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match=r"additional_chat_templates is a directory, which no converted"):
        require_card(converted)


def test_a_card_without_the_part_gets_it(converted: Path) -> None:
    assert with_quality("# x\n", ["text"]) == f"# x\n\n{HEADING}\n\ntext\n\n"
    assert with_quality("# x\n\n## Memory\n\ny\n", ["t"]) == f"# x\n\n{HEADING}\n\nt\n\n## Memory\n\ny\n"


def test_convert_measures_if_asked_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Path, Path]] = []

    def compare(reference: Path, candidate: Path, **options: object) -> ComparisonReport:
        asked.append((reference, candidate))
        return REPORT

    monkeypatch.setattr("helium_mlx.conversion.conversion.compare", compare)
    report = helium_mlx.convert("demo", str(tmp_path / "x"), quantize=True, measure=True)
    assert [candidate for _, candidate in asked] == [tmp_path / "x"]
    assert "|        0.0110 |           0.0010 |" in (tmp_path / "x/README.md").read_text()
    assert report.files == json.loads((tmp_path / "x/conversion.json").read_text())["files"]


def test_compare_writes_into_the_card_of_the_candidate(
    converted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text").write_text("Once upon a time there was a fox. The fox had a friend.")
    arguments = ["--reference", "demo", "--text", str(tmp_path / "text"), "--wide", "--update-card", "--candidate"]
    assert compare_main([*arguments, str(converted)]) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert rows[-1] in (converted / "README.md").read_text()
    assert compare_main([*arguments, "demo"]) == 1
    assert "demo is no directory" in capsys.readouterr().err
