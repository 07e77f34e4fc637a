"""A comparison as a Markdown table, a row a language, and several candidates as a summary.

KL is in nats a token; the figure after "±" is a standard error.
"""

import math
from collections.abc import Sequence

from helium_mlx.comparison.report import ComparedModel, ComparisonReport, LanguageFigures
from helium_mlx.errors import one_line


def table(report: ComparisonReport) -> list[str]:
    """Return the lines of a report: what was compared, and a Markdown table with a row a language and one for all.

    A second table has KL by group of layers, where that was measured.
    """
    unit = report.perplexity_unit
    header = [
        "language", "tokens", "mean KL", "99 % KL", "same top-1", f"perplexity a {unit}: A", "B", "B / A",
        "bits a byte: A", "B",
    ]  # fmt: skip
    rows = [_cells(language, figures) for language, figures in report.languages.items()]
    rows += [_cells("all", report)] if len(rows) > 1 else []
    layers = [[name, _number(kl)] for name, kl in report.layers.items()]
    return [
        f"A: {_described(report.reference)}",
        f"B: {_described(report.candidate)}",
        f"{report.extent}, each after one BOS; KL(A || B) in nats",
        "",
        *_aligned([header, *rows]),
        *(["", *_aligned([["only this from B", "mean KL"], *layers])] if layers else []),
    ]


def summary(reports: Sequence[ComparisonReport]) -> list[str]:
    """Return a Markdown table with a row a candidate: its size, and its figures over all text."""
    header = ["B", "bits a weight", "MB", "mean KL", "99 % KL", "same top-1", "perplexity B / A"]
    rows = [
        [
            report.candidate.name, f"{report.candidate.bits_per_weight:.2f}",
            f"{report.candidate.weight_bytes / 1e6:,.1f}", _kl(report), _number(report.p99_kl),
            _percent(report.top1_agreement), _ratio(report),
        ]
        for report in reports
    ]  # fmt: skip
    return _aligned([header, *rows])


def _cells(name: str, figures: LanguageFigures) -> list[str]:
    return [
        one_line(name).replace("|", r"\|"), f"{figures.tokens:,}",
        _kl(figures), _number(figures.p99_kl), _percent(figures.top1_agreement),
        _perplexity(figures.reference_perplexity), _perplexity(figures.candidate_perplexity), _ratio(figures),
        f"{figures.reference_bits_per_byte:.4f}", f"{figures.candidate_bits_per_byte:.4f}",
    ]  # fmt: skip


def _described(model: ComparedModel) -> str:
    program = "" if model.program == "helium_mlx" else f" by {model.program}"
    return (
        f"{model.name}, {model.weight_bytes / 1e6:,.1f} MB, {model.bits_per_weight:.2f} bits a weight, "
        f"computed in {model.dtype}{program}"
    )


def _kl(figures: LanguageFigures) -> str:
    error = "" if figures.mean_kl_error is None else f" ± {_number(figures.mean_kl_error, 2)}"
    return _number(figures.mean_kl) + error


def _ratio(figures: LanguageFigures) -> str:
    error = "" if figures.perplexity_ratio_error is None else f" ± {_decimal(figures.perplexity_ratio_error, 2)}"
    return _decimal(figures.perplexity_ratio, 4) + error


def _decimal(value: float, digits: int) -> str:
    """Return four decimals where they have so many significant digits, else those digits."""
    return f"{value:.4f}" if 10.0 ** (digits - 5) <= value < 1e5 else _number(value, digits)


def _number(value: float | None, digits: int = 3) -> str:
    """Return so many significant digits, without an exponent where six decimals or digits do."""
    if value is None:
        return "-"
    if value == 0:
        return "0"
    if value < 1e-4 or value >= 1e6:
        return f"{value:.{digits - 1}e}"
    return f"{value:.{max(digits - 1 - math.floor(math.log10(value)), 0)}f}"


def _perplexity(value: float) -> str:
    return f"{value:,.3f}" if value < 1e5 else f"{value:.3e}"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.2f} %"


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return a Markdown table whose columns line up: the first to the left, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "| "
        + " | ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        )
        + " |"
        for row in rows
    ]
    rule = "|" + "|".join(["-" * (widths[0] + 2), *("-" * (width + 1) + ":" for width in widths[1:])]) + "|"
    return [lines[0], rule, *lines[1:]]
