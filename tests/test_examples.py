"""The examples run as they are, on the demo; here on a few rows, so that it takes seconds."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"


def run(script: str, *arguments: str) -> str:
    command = [sys.executable, str(EXAMPLES / script), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize(
    ("script", "rows", "baseline"),
    [
        ("finetune_language_id.py", ["--sentences", "96", "--held-out", "36"], r"majority baseline"),
        ("finetune_tagging.py", ["--paragraphs", "48", "--held-out", "12"], r"tagging nothing"),
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
