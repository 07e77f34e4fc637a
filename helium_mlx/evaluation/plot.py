"""Draws an evaluation: of each row a bar a model with its standard error, and a mark where the page has its figure."""

from collections.abc import Sequence

from helium_mlx.errors import HeliumError
from helium_mlx.evaluation.report import EvaluationReport
from helium_mlx.evaluation.tables import label
from helium_mlx.plotting import drawing

_COLORS = ("#0b6e4f", "#c2702e", "#4a6fa5", "#8a5a83", "#777777")


def draw(path: str, reports: Sequence[EvaluationReport]) -> None:
    """Write the picture of the rows in per cent or BLEU. Raises HeliumError if there are none."""
    names = list(dict.fromkeys(label(row) for report in reports for row in report.rows if 0 <= row.value <= 100))
    if not names:
        raise HeliumError("--plot has nothing to draw, as no row is in per cent or BLEU")
    limit = reports[0].limit
    with drawing(path, "all questions" if limit is None else f"at most {limit} questions a task") as axes:
        axes.figure.set_size_inches(7, max(2.5, 1 + 0.22 * len(names) * len(reports)))  # pyright: ignore[reportAttributeAccessIssue]
        height = 0.8 / len(reports)
        for place, report in enumerate(reports):
            rows = {label(row): row for row in report.rows}
            shown = [(at, rows[name]) for at, name in enumerate(names) if name in rows]
            axes.barh(
                [at + (place - (len(reports) - 1) / 2) * height for at, _ in shown],
                [row.value for _, row in shown],
                xerr=[row.error or 0.0 for _, row in shown],
                height=0.9 * height,
                color=_COLORS[place % len(_COLORS)],
                label=report.label,
                error_kw={"linewidth": 0.8},
            )
            marked = [(at, row.published) for at, row in shown if row.published is not None]
            if marked:
                axes.plot(
                    [value for _, value in marked],
                    [at + (place - (len(reports) - 1) / 2) * height for at, _ in marked],
                    linestyle="", marker="|", markersize=8, color="black", label="published" if place == 0 else None,
                )  # fmt: skip
        axes.set_yticks(range(len(names)), names, fontsize=7)
        axes.invert_yaxis()
        axes.set_xlim(0, 100)
        axes.set_xlabel("per cent, or BLEU")
        axes.grid(axis="x", color="#dddddd", linewidth=0.8)
        axes.tick_params(axis="y", length=0)
        axes.legend(fontsize=7, frameon=False, loc="lower right")
