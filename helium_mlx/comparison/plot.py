"""Draws a comparison: KL by group of layers, or, of several candidates, KL over bits a weight."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from helium_mlx.comparison.report import ComparisonReport
from helium_mlx.errors import ComparisonError
from helium_mlx.plotting import drawing

if TYPE_CHECKING:
    from matplotlib.axes import Axes


_COLOR = "#0b6e4f"


def draw(path: str, reports: Sequence[ComparisonReport]) -> None:
    """Write the picture of one report with `layers`, or of several. Raises ComparisonError for an empty one."""
    first = reports[0]
    text = f"{first.tokens:,} tokens of {', '.join(first.languages)}; windows of up to {first.window} tokens"
    with drawing(path, f"A: {_short(first.reference.name)}; {text}") as axes:
        if len(reports) == 1:
            _draw_layers(axes, first)
        else:
            _draw_sizes(axes, reports)


def _draw_layers(axes: "Axes", report: ComparisonReport) -> None:
    """Draw a bar a group, the first on top."""
    names, values = list(report.layers), list(report.layers.values())
    if not names or report.mean_kl is None:
        raise ComparisonError("--plot has nothing to draw, as no KL by group of layers was measured")
    axes.barh(names, values, color=_COLOR, height=0.7)
    for index, value in enumerate(values):
        axes.annotate(
            f"{value:.3g}", (value, index), xytext=(4, 0), textcoords="offset points", va="center", fontsize=8
        )
    axes.invert_yaxis()
    axes.set_xlim(0, 1.12 * max(values) or 1.0)
    axes.set_xlabel(f"mean KL in nats a token with only this group from B; with all of B: {report.mean_kl:.3g}")
    axes.set_title(f"What each group of layers adds: {_short(report.candidate.name)}", loc="left")
    axes.grid(axis="x", color="#dddddd", linewidth=0.8)
    axes.tick_params(axis="y", length=0)


def _draw_sizes(axes: "Axes", reports: Sequence[ComparisonReport]) -> None:
    """Draw a point a candidate, on a logarithmic scale of KL; those without a KL above 0 are left out."""
    points = [(each.candidate.bits_per_weight, each.mean_kl, each) for each in reports if each.mean_kl]
    if not points:
        raise ComparisonError("--plot has nothing to draw, as no candidate has a KL above 0")
    for bits, kl, each in points:
        error = 0.0 if each.mean_kl_error is None else each.mean_kl_error
        # On this scale a bar down to 0 would never end.
        below = min(error, 0.9 * kl)
        axes.errorbar(bits, kl, yerr=[[below], [error]], color=_COLOR, fmt="o", markersize=5, capsize=2, linewidth=1)
        axes.annotate(
            _short(each.candidate.name), (bits, kl), xytext=(7, 4), textcoords="offset points", color=_COLOR, fontsize=8
        )  # fmt: skip
    axes.set_yscale("log")
    axes.margins(x=0.2, y=0.15)
    axes.set_xlabel("bits a weight, scales included")
    axes.set_ylabel("mean KL in nats a token")
    axes.set_title("Distance from A over size", loc="left")
    axes.grid(color="#dddddd", linewidth=0.8)


def _short(name: str) -> str:
    """Return a path's last part."""
    return name.rstrip("/").rpartition("/")[2] or name
