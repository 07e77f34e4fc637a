"""Notebooks, executed by a real kernel: what the first hour looks like there."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
from hub_standin import serve
from hub_standin.client import environment
from nbclient import NotebookClient
from waiting import LONGEST_WAIT

from helium_mlx.files.hub import DEMO_DIRECTORY

REPO = "somebody/tiny-helium"

WITHOUT_WIDGETS = "import sys\nsys.modules['ipywidgets'] = None\nimport helium_mlx"
# What tqdm needs of ipywidgets; it stands in front of an installed one.
WITH_WIDGETS = """
import sys
from types import ModuleType, SimpleNamespace

class Widget:
    def __init__(self, **given):
        self.value, self.bar_style, self.layout = 0, "", SimpleNamespace()
        self.style = SimpleNamespace(bar_color=None)
        vars(self).update(given)
        made.append(self)

made = []
sys.modules["ipywidgets"] = widgets = ModuleType("ipywidgets")
widgets.HTML = widgets.HBox = widgets.FloatProgress = Widget
import helium_mlx
"""
CONVERT = """
progress = helium_mlx.Progress("Converting")
report = helium_mlx.convert("demo", "demo-4bit", quantize=True, on_progress=progress)
"""
COMPARE = """
texts = {"<b>mine</b>": "Once upon a time there was a girl who lived near the harbour."}
helium_mlx.compare("demo", "demo-4bit", texts=texts, on_progress=helium_mlx.Progress("Comparing"))
"""


@pytest.fixture(autouse=True)
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Point the kernel to a stand-in for the Hub, and its own files to a folder for this test."""
    with serve({REPO: DEMO_DIRECTORY}) as hub:
        for name, value in environment(hub.url, tmp_path / "home", IPYTHONDIR=str(tmp_path / "ipython")).items():
            monkeypatch.setenv(name, value)
        yield


def executed(folder: Path, *cells: str) -> list[list[dict[str, Any]]]:
    """Return the outputs of each cell, one kernel for all; an error in a cell is an error here."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    client = NotebookClient(
        notebook, timeout=LONGEST_WAIT, startup_timeout=LONGEST_WAIT, resources={"metadata": {"path": str(folder)}}
    )
    client.execute()
    return [cell.outputs for cell in notebook.cells]


def streamed(outputs: list[dict[str, Any]]) -> str:
    return "".join(output["text"] for output in outputs if output["output_type"] == "stream")


def result(outputs: list[dict[str, Any]]) -> dict[str, str]:
    """Return what the last line of a cell showed, by its kind."""
    return outputs[-1]["data"]


def test_the_first_hour_in_a_notebook(tmp_path: Path) -> None:
    imported, loaded, converted, report, compared, scored, dry_run, tokenizer, engine, stream, closed = executed(
        tmp_path,
        WITHOUT_WIDGETS,
        f"model, tokenizer = helium_mlx.load('{REPO}')",
        CONVERT,
        "report",
        COMPARE,
        "helium_mlx.score(model, tokenizer, 'Once upon a time')",
        "helium_mlx.upload('demo-4bit', 'somebody/new', dry_run=True)",
        "tokenizer",
        "engine = helium_mlx.HeliumEngine('demo')\nengine",
        "stream = engine.stream('Once upon a time', max_tokens=4)\nstream.result()\nstream",
        "engine.close()\nengine",
    )
    assert imported == []
    # Bars of text, and no word about widgets.
    for outputs, label in [(loaded, "Downloading"), (converted, "Converting"), (compared, "Comparing")]:
        assert {output.get("name", "stderr") for output in outputs} == {"stderr"}
        assert re.search(rf"\r{label}: 100% \|█+\|", streamed(outputs)), outputs
        assert "Warning" not in streamed(outputs)
    for outputs, name, heading in [
        (report, "ConversionReport", "weights, MB"),
        (compared, "ComparisonReport", "mean KL, nats"),
        (scored, "Score", "perplexity, a token"),
        (dry_run, "UploadReport", "size, bytes"),
    ]:
        shown = result(outputs)
        assert shown["text/html"].count("<table>") == 1 and f"<th>{heading}</th>" in shown["text/html"]
        assert shown["text/plain"].startswith(f"{name}(") and len(shown["text/plain"]) < 200
    assert "<b>" not in result(compared)["text/html"] and "&lt;b&gt;mine" in result(compared)["text/html"]
    assert result(tokenizer)["text/plain"].startswith("HeliumTokenizer(vocab_size=")
    assert "state='open', rows=0" in result(engine)["text/plain"]
    assert result(stream)["text/plain"] == (
        "EngineStream(prompt='Once upon a time', state='length', tokens=4, unread=0)"
    )
    assert "state='closed'" in result(closed)["text/plain"]


def test_where_widgets_are_installed_the_bar_is_one(tmp_path: Path) -> None:
    ends = "[(bar.value == bar.max, bar.bar_style) for bar in made if hasattr(bar, 'max')]"
    _, loaded, converted, bars = executed(
        tmp_path, WITH_WIDGETS, f"model, tokenizer = helium_mlx.load('{REPO}')", CONVERT, ends
    )
    assert streamed(loaded).startswith(f"Downloading {REPO}: ") and "%" not in streamed(loaded + converted)
    drawn = [output["data"]["text/plain"] for output in loaded + converted if output["output_type"] == "display_data"]
    assert [bar.partition(":")[0] for bar in drawn] == ["Downloading", "Converting"]
    assert result(bars)["text/plain"] == "[(True, 'success'), (True, 'success')]"
