from pathlib import Path

import pytest

from helium_mlx import plotting
from helium_mlx.diagnostics.measures import DECODE, PREFILL, Figure
from helium_mlx.diagnostics.plot import draw
from helium_mlx.errors import HeliumError, UsageError
from helium_mlx.plotting import check_plot

FIGURES = [
    Figure(PREFILL, 128, "tokens/s", True, [1.0], [2.0]),
    Figure(DECODE, 1024, "tokens/s", True, [40.0, 41.0, 44.0], [30.0, 31.0, 32.0]),
    Figure(DECODE, 16, "tokens/s", True, [50.0, 51.0, 52.0], [45.0, 46.0, 47.0]),
]


def test_the_picture_shows_both_programs(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "speed.svg"
    draw(str(path), FIGURES, against="mlx-lm", caption="a machine")
    first = path.read_bytes()
    text = first.decode()
    assert "dc:date" not in text
    for shown in ("helium_mlx", "mlx-lm", "tokens of context", "tokens a second", "a machine"):
        assert f"<!-- {shown} -->" in text, shown
    draw(str(path), FIGURES, against="mlx-lm", caption="a machine")
    assert path.read_bytes() == first
    draw(str(path), FIGURES, against=None, caption="a machine")
    assert "<!-- mlx-lm -->" not in path.read_text()
    draw(str(tmp_path / "speed.png"), FIGURES, against="mlx-lm", caption="a machine")
    assert (tmp_path / "speed.png").read_bytes().startswith(b"\x89PNG")


def test_the_lines_are_the_medians_by_context(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    from matplotlib.axes import Axes

    drawn, plot = [], Axes.plot

    def remember(self: Axes, x: list[float], y: list[float], **style: object) -> object:
        drawn.append((list(x), list(y)))
        return plot(self, x, y, **style)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(Axes, "plot", remember)
    draw(str(tmp_path / "speed.svg"), FIGURES, against="mlx-lm", caption="")
    assert drawn == [([16, 1024], [51.0, 41.0]), ([16, 1024], [46.0, 31.0])]


def test_no_context_that_fits_is_one_line(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    with pytest.raises(HeliumError, match="nothing to draw"):
        draw(str(tmp_path / "speed.svg"), FIGURES[:1], against=None, caption="")


def test_a_missing_matplotlib_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(plotting, "find_spec", lambda name: None)
    with pytest.raises(HeliumError, match=r"pip install matplotlib"):
        check_plot(str(tmp_path / "speed.svg"))


def test_names_that_cannot_be_written_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(HeliumError, match=r"must end in \.svg, \.png, \.pdf"):
        check_plot(str(tmp_path / "speed.txt"))
    with pytest.raises(HeliumError, match="there is no directory"):
        check_plot(str(tmp_path / "nowhere" / "speed.svg"))
    (tmp_path / "folder.svg").mkdir()
    with pytest.raises(UsageError, match=r"folder\.svg, which is a directory; name a file"):
        check_plot(str(tmp_path / "folder.svg"))
    monkeypatch.setattr("os.access", lambda place, mode: Path(place) != tmp_path)
    with pytest.raises(UsageError, match=f"{tmp_path} may not be written to; name another place"):
        check_plot(str(tmp_path / "speed.svg"))
