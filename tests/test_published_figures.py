"""The comparison of printed figures with found ones notices what a page has wrong, and says where."""

import shutil
import sys
from pathlib import Path

import pytest
from processes import EXAMPLES

sys.path.insert(0, str(EXAMPLES))

import published_figures
from published_figures import Figure, difference

ROOT = EXAMPLES.parent
PAGE = "# Sizes\n\n| **4 bits** | 1.22 | 2.23 |\n| 8 bits | 2.31 | 3.32 |\n\nA KL of 0.0039 over 24 windows.\n"


@pytest.fixture
def pages(tmp_path: Path) -> Path:
    """A copy of the pages, to be changed."""
    shutil.copy(ROOT / "README.md", tmp_path)
    for page in ("docs/sizes.md", "examples/menubar.md"):
        (tmp_path / page).parent.mkdir()
        shutil.copy(ROOT / page, tmp_path / page)
    return tmp_path


def replace(page: Path, old: str, new: str) -> int:
    """Change a page, and return the number of the line."""
    before, _, after = page.read_text(encoding="utf-8").partition(old)
    page.write_text(before + new + after, encoding="utf-8")
    return before.count("\n") + 1


def test_pages_as_they_are_hold(pages: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert published_figures.main(["--only", "sizes", "--pages", str(pages)]) == 0
    assert "sizes: 34 of 34 passages hold" in capsys.readouterr().out


def test_a_changed_figure_is_reported_with_file_line_and_both_values(
    pages: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    printed, found = "| 4 bits | 1.22 | 2.32 | 1.14 | 1.61 |", "| 4 bits | 1.22 | 2.23 | 1.14 | 1.61 |"
    line = replace(pages / "README.md", found, printed)
    assert published_figures.main(["--only", "sizes", "--pages", str(pages)]) == 1
    assert f"README.md:{line}: printed {printed!r}, found {found!r}\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "slack", "line"),
    [
        ("| 4 bits | 1.22 | 2.23 |", 0, None),
        ("| 4 bits | 1.22 | 2.24 |", 0, 3),
        ("| 4 bits | 1.22 | 2.24 |", 1, None),
        ("| 8 bits | 1.22 | 2.23 |", 9, 3),
        ("A KL of 0.0038", 0, 6),
        ("KL of 0.0042 over 24 windows", 3, None),
        ("KL of 0.0042 over 24 windows", 2, 6),
        ("KL of 0.0039 over 25 windows", 9, 6),
        ("KL of 3.9e-03 over 24 windows", 1, None),
    ],
)
def test_whole_numbers_are_equal_and_decimals_within_units_of_the_last_digit(
    text: str, slack: int, line: int | None
) -> None:
    reported = difference(Figure("page.md", text, slack), PAGE)
    assert reported is None if line is None else reported and reported.startswith(f"page.md:{line}: printed ")


def test_a_passage_that_is_gone_is_named() -> None:
    assert difference(Figure("page.md", "3.6 MB in bfloat16"), PAGE) == "page.md: nowhere has '3.6 MB in bfloat16'"
    digest = "09cf43df9087e4c28509e3d3cb6e074d7c69fbe322ba2c7652317ff398679fc7"
    other = difference(Figure("page.md", f"{digest}  model"), f"{digest[::-1]}  model\n")
    assert other and other.startswith("page.md:1: printed ")


def test_a_story_may_leave_words_out_and_may_not_change_any(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(published_figures, "_story", lambda prompt: "there was a girl.\n She hid a cup.\n The end.")
    (tmp_path / "README.md").write_text("")
    (tmp_path / "docs").mkdir()
    page = tmp_path / "docs/demo.md"
    for passage, holds in (
        ("there was a girl. She hid a cup. …", True),
        ("there was a girl. … The end.", True),
        ("there was a boy. She hid a cup. …", False),
        ("there was … The end. … She hid", False),
    ):
        page.write_text(f"> **Once** {passage}\n", encoding="utf-8")
        (figure,) = published_figures.stories(tmp_path)
        assert (difference(figure, page.read_text(encoding="utf-8")) is None) == holds, passage
