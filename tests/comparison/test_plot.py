from dataclasses import replace
from pathlib import Path

import pytest

from helium_mlx import ComparisonError, ComparisonReport
from helium_mlx.comparison.figures import ComparedModel
from helium_mlx.comparison.plot import draw

pytest.importorskip("matplotlib")

REPORT = ComparisonReport(
    mean_kl=0.02, mean_kl_error=0.004, p99_kl=0.3, top1_agreement=0.95, reference_perplexity=2.0,
    candidate_perplexity=2.1, perplexity_ratio=1.05, perplexity_ratio_error=0.01, reference_bits_per_byte=0.5,
    candidate_bits_per_byte=0.52, tokens=1200, bytes=4000, languages={},
    reference=ComparedModel("some/reference", "helium_mlx", "float32", 3_600_000, 16.0),
    candidate=ComparedModel("out/four-bits/", "helium_mlx", "float32", 1_000_000, 4.5), window=512, windows=9,
    layers={"embedding": 0.007, "layer 0": 0.003, "head": 0.0},
)  # fmt: skip


def candidate(name: str, bits: float, kl: float | None) -> ComparisonReport:
    return replace(REPORT, candidate=replace(REPORT.candidate, name=name, bits_per_weight=bits), mean_kl=kl)


def test_one_candidate_is_drawn_as_a_bar_a_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.axes import Axes

    drawn: list[tuple[list[str], list[float]]] = []
    barh = Axes.barh

    def remember(self: Axes, y: list[str], width: list[float], **style: object) -> object:
        drawn.append((list(y), list(width)))
        return barh(self, y, width, **style)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(Axes, "barh", remember)
    path = tmp_path / "layers.svg"
    draw(str(path), [REPORT])
    assert drawn == [(["embedding", "layer 0", "head"], [0.007, 0.003, 0.0])]
    text = path.read_text()
    for shown in ("embedding", "layer 0", "0.007", "What each group of layers adds: four-bits", "all of B: 0.02"):
        assert shown in text, shown


def test_several_candidates_are_drawn_over_their_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.axes import Axes

    drawn: list[tuple[float, float]] = []
    errorbar = Axes.errorbar

    def remember(self: Axes, x: float, y: float, **style: object) -> object:
        drawn.append((x, y))
        return errorbar(self, x, y, **style)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(Axes, "errorbar", remember)
    path = tmp_path / "sizes.svg"
    draw(str(path), [candidate("q4", 4.5, 0.02), candidate("q8", 8.5, 1e-5), candidate("same", 16, 0.0),
                     candidate("other tokenizer", 4.5, None)])  # fmt: skip
    assert drawn == [(4.5, 0.02), (8.5, 1e-5)]
    text = path.read_text()
    assert "<!-- q4 -->" in text and "<!-- q8 -->" in text
    assert "<!-- same -->" not in text


@pytest.mark.parametrize("suffix", ["svg", "png", "pdf"])
def test_the_same_picture_is_the_same_file(tmp_path: Path, suffix: str) -> None:
    paths = [tmp_path / f"{index}.{suffix}" for index in range(2)]
    for path in paths:
        draw(str(path), [REPORT])
    data = [path.read_bytes() for path in paths]
    assert data[0].startswith({"svg": b"<?xml", "png": b"\x89PNG", "pdf": b"%PDF"}[suffix])
    assert suffix == "pdf" or data[0] == data[1]


@pytest.mark.parametrize(
    "reports", [[replace(REPORT, layers={})], [candidate("same", 16, 0.0), candidate("other", 4, None)]]
)
def test_nothing_to_draw_is_one_line(tmp_path: Path, reports: list[ComparisonReport]) -> None:
    with pytest.raises(ComparisonError, match="nothing to draw"):
        draw(str(tmp_path / "x.svg"), reports)


def test_groups_that_add_nothing_are_drawn_too(tmp_path: Path) -> None:
    draw(str(tmp_path / "x.svg"), [replace(REPORT, layers={"embedding": 0.0, "head": 0.0}, mean_kl=0.0)])
    assert "all of B: 0 -->" in (tmp_path / "x.svg").read_text()
