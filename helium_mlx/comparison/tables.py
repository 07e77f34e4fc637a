"""The tables of a comparison: a row a language, a group of layers, or a candidate. KL is in nats a token."""

import math
from collections.abc import Mapping, Sequence

from helium_mlx.comparison.figures import ComparedModel, LanguageFigures
from helium_mlx.table import Table

_MEAN_KL = ("mean KL", "nats")
_KL_ERROR = ("std. error", "nats")
_P99_KL = ("99 % KL", "nats")
_TOP1 = ("same top-1", "%")
_RATIO = ("perplexity", "B / A")
_RATIO_ERROR = ("std. error", "B / A")


def language_table(rows: Mapping[str, LanguageFigures], unit: str, *, wide: bool = False) -> Table:
    """Return the five figures that matter most of each language, or with `wide` all. Perplexities are of a `unit`.

    Where KL could not be measured, the five are perplexities and bits.
    """
    perplexities = [("perplexity", f"A, a {unit}"), ("perplexity", f"B, a {unit}")]
    bits = [("bits", "A, a byte"), ("bits", "B, a byte")]
    if wide:
        columns = [
            ("text", "tokens"), _MEAN_KL, _KL_ERROR, _P99_KL, _TOP1, *perplexities, _RATIO, _RATIO_ERROR, *bits,
        ]  # fmt: skip
    elif unit == "token":
        columns = [_MEAN_KL, _KL_ERROR, _P99_KL, _TOP1, _RATIO]
    else:
        columns = [*perplexities, _RATIO, *bits]
    return Table(
        "language", columns, [[name, *map(_cells(row, unit).__getitem__, columns)] for name, row in rows.items()]
    )


def layer_table(layers: Mapping[str, float]) -> Table:
    """Return the mean KL of each group of layers."""
    return Table("only this from B", [_MEAN_KL], [[name, _number(kl)] for name, kl in layers.items()])


def candidate_table(candidates: Sequence[tuple[ComparedModel, LanguageFigures]], *, wide: bool = False) -> Table:
    """Return a row a candidate: its size, and its figures over all text."""
    more = [_KL_ERROR, _P99_KL] if wide else []
    columns = [_MEAN_KL, *more, _TOP1, _RATIO, *([_RATIO_ERROR] if wide else [])]
    rows = [
        [
            model.name, f"{model.weight_bytes / 1e6:,.1f}", f"{model.bits_per_weight:.2f}",
            *(cells[column] for column in columns),
        ]
        for model, cells in ((model, _cells(figures, "token")) for model, figures in candidates)
    ]  # fmt: skip
    return Table("B", [("size", "MB"), ("bits", "a weight"), *columns], rows)


def _cells(figures: LanguageFigures, unit: str) -> dict[tuple[str, str], str]:
    return {
        ("text", "tokens"): f"{figures.tokens:,}",
        _MEAN_KL: _number(figures.mean_kl),
        _KL_ERROR: _number(figures.mean_kl_error, 2),
        _P99_KL: _number(figures.p99_kl),
        _TOP1: "-" if figures.top1_agreement is None else f"{100 * figures.top1_agreement:.2f}",
        ("perplexity", f"A, a {unit}"): _perplexity(figures.reference_perplexity),
        ("perplexity", f"B, a {unit}"): _perplexity(figures.candidate_perplexity),
        _RATIO: _decimal(figures.perplexity_ratio, 4),
        _RATIO_ERROR: "-" if figures.perplexity_ratio_error is None else _decimal(figures.perplexity_ratio_error, 2),
        ("bits", "A, a byte"): f"{figures.reference_bits_per_byte:.4f}",
        ("bits", "B, a byte"): f"{figures.candidate_bits_per_byte:.4f}",
    }


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
