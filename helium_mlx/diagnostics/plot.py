"""Draws decode speed over context, of one program or two, as a file whose name says the format."""

import statistics
from collections.abc import Sequence

from helium_mlx.diagnostics.measures import DECODE, Figure
from helium_mlx.errors import HeliumError
from helium_mlx.plotting import drawing

_COLORS = ("#0b6e4f", "#8a8f98")


def draw(path: str, figures: Sequence[Figure], *, against: str | None, caption: str) -> None:
    """Write the picture: medians as lines, smallest to largest as bands, and `caption` below."""
    decode = sorted((figure for figure in figures if figure.quantity == DECODE), key=lambda figure: figure.tokens or 0)
    if not decode:
        raise HeliumError("--plot has nothing to draw, as no context fits the model's; give shorter --contexts")
    contexts = [figure.tokens or 0 for figure in decode]
    curves = [("helium_mlx", [figure.values for figure in decode])]
    if against is not None:
        curves.append((against, [figure.baseline for figure in decode]))
    with drawing(path, caption) as axes:
        for (label, runs), color in zip(curves, _COLORS, strict=False):
            medians = [statistics.median(values) for values in runs]
            axes.fill_between(
                contexts, list(map(min, runs)), list(map(max, runs)), color=color, alpha=0.15, linewidth=0
            )
            axes.plot(contexts, medians, color=color, linewidth=2, marker="o", markersize=4, label=label)
        axes.legend(frameon=False)
        axes.set_ylim(bottom=0)
        axes.set_xlim(left=0)
        axes.set_xlabel("tokens of context")
        axes.set_ylabel("tokens a second")
        axes.set_title("Decode speed over context", loc="left")
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.yaxis.set_major_formatter("{x:,.0f}")
        axes.grid(axis="y", color="#dddddd", linewidth=0.8)
        axes.spines["left"].set_visible(False)
        axes.tick_params(axis="y", length=0)
