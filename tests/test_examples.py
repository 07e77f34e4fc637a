"""The examples run as they are, on the demo; here on a few rows, so that it takes seconds."""

import re
from pathlib import Path

import pytest
from processes import EXAMPLES, run_example


def run(script: str, *arguments: str) -> str:
    result = run_example(script, *arguments)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.parametrize(
    ("script", "rows", "baseline"),
    [
        ("finetune_language_id.py", ["--sentences", "60", "--held-out", "18"], r"majority baseline"),
        ("finetune_tagging.py", ["--paragraphs", "32", "--held-out", "8"], r"tagging nothing"),
    ],
)
def test_fine_tuning_learns_saves_reloads_and_predicts(
    tmp_path: Path, script: str, rows: list[str], baseline: str
) -> None:
    output = run(script, *rows, "--output", str(tmp_path / "tuned"))
    figures = re.search(rf"accuracy ([\d.]+) \({baseline} ([\d.]+)\)", output)
    assert figures is not None
    assert float(figures[1]) > float(figures[2])
    assert (tmp_path / "tuned/model.safetensors").exists()
    assert len(output.strip().splitlines()) > 3


def test_prompt_lookup_saves_passes_on_a_story_told_again_and_changes_no_text() -> None:
    output = run("benchmark_lookup.py", "--languages", "en", "--texts", "1", "--runs", "1")
    rows = {kind: cells for kind, *cells in (line.strip("| ").split(" | ") for line in output.splitlines()[2:])}
    assert float(rows["told again from the middle"][1]) > 2
    assert float(rows["noise"][1]) < 1.05
    assert {cells[-1] for cells in rows.values()} == {"yes"}


def test_batches_are_measured_a_line_a_size() -> None:
    output = run("benchmark_batch.py", "--batch-sizes", "2", "3", "--max-tokens", "4", "--runs", "1")
    assert [line.split(" | ")[0] for line in output.splitlines()[2:]] == ["| 2", "| 3"]


def test_the_quality_table_sets_widths_by_method_and_sorts_what_is_mixed_by_size(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("mlx_lm")
    monkeypatch.syspath_prepend(str(EXAMPLES))
    from quality_table import Figures, tables

    rows = [
        Figures("mx.quantize", "4 bits", 4.512, 0.0039, 0.2487, 0.1),
        Figures("--rounding gptq", "4 bits", 4.512, 0.0013, 0.1115, 0.1),
        Figures("--rounding gptq", "8 bits", 8.512, 0.00001, 0.0004, 0.1),
        Figures("mlx-lm", "mixed_3_4", 4.1, 0.02, 0.5, 0.3),
        Figures("--target-bpw, gptq", "3.5", 3.5, 0.0088, 0.394, 0.2),
    ]
    assert tables(rows).splitlines() == [
        "| bits | a weight | mx.quantize | --rounding gptq |",
        "|--|--|--|--|",
        "| 4 | 4.51 | 0.0039 / 0.25 | 0.0013 / 0.11 |",
        "| 8 | 8.51 |  | 1e-05 / 0.0004 |",
        "",
        "| | | bits a weight | KL, stories / prose |",
        "|--|--|--|--|",
        "| --target-bpw, gptq | 3.5 | 3.50 | 0.0088 / 0.39 |",
        "| mlx-lm | mixed_3_4 | 4.10 | 0.02 / 0.5 |",
    ]
