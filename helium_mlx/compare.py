"""The command `compare`: how far checkpoints are from their reference. `python -m helium_mlx.compare --help`.

The table is Markdown, with a row a language; KL is in nats a token, and what stands behind "±" is a standard error.
"""

import argparse
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from helium_mlx.comparison_report import ComparedModel, ComparisonReport, LanguageFigures
from helium_mlx.config import DTYPES
from helium_mlx.errors import UsageError
from helium_mlx.json_files import one_line
from helium_mlx.terminal import Progress, flags_of, run_command

SIDES = "checkpoint directory, Hub repository, 'demo', or mlx-lm:NAME for what mlx-lm opens"


def build_parser() -> argparse.ArgumentParser:
    """Return the parser; option names are those of `helium_mlx.compare`, and `--text`, `--json` and `--plot`."""
    parser = argparse.ArgumentParser(
        prog="helium-mlx compare", description="Measure how far a checkpoint is from its reference."
    )
    parser.add_argument("--reference", required=True, metavar="A", help=SIDES)
    parser.add_argument(
        "--candidate", required=True, action="append", dest="candidates", metavar="B",
        help="the same; given repeatedly, each is measured against A",
    )  # fmt: skip
    parser.add_argument("--reference-revision", metavar="REV", help="branch, tag or commit of A's Hub repository")
    parser.add_argument("--candidate-revision", metavar="REV", help="branch, tag or commit of B's Hub repository")
    texts = parser.add_mutually_exclusive_group()
    texts.add_argument(
        "--text", action="append", metavar="FILE",
        help="text of your own, UTF-8; - reads standard input; given repeatedly, each file has its row",
    )  # fmt: skip
    texts.add_argument(
        "--languages",
        nargs="+",
        metavar="LANG",
        help="of the package's own text only these (default: en fr de it pt es)",
    )
    parser.add_argument("--window", type=int, metavar="N", help="tokens run at once, BOS included (default: 512)")
    parser.add_argument("--batch-size", type=int, default=4, help="windows run together (default: %(default)s)")
    parser.add_argument("--dtype", choices=DTYPES, help="dtype that both compute in (default: the wider of their own)")
    parser.add_argument("--json", action="store_true", help="print one JSON object a candidate instead of tables")
    parser.add_argument(
        "--update-card", action="store_true", help="write the table into the card of B, a directory that convert made"
    )
    parser.add_argument(
        "--plot", metavar="FILE",
        help="draw a .svg, .png or .pdf: KL by group of layers, or with several candidates KL over size",
    )  # fmt: skip
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit status."""
    parser = build_parser()
    options = vars(parser.parse_args(argv))
    return run_command(lambda: _compare(**options), flags_of(parser))


def _compare(
    *,
    reference: str,
    candidates: list[str],
    text: list[str] | None,
    languages: list[str] | None,
    json: bool,
    plot: str | None,
    update_card: bool,
    **options: object,
) -> None:
    from helium_mlx import card_quality
    from helium_mlx.comparison import compare_all
    from helium_mlx.comparison_text import bundled_documents, documents_of_files

    if options["candidate_revision"] is not None and len(candidates) > 1:
        raise UsageError("--candidate-revision is of one repository; give one --candidate with it")
    if plot is not None:
        from helium_mlx.benchmark_plot import check_plot

        check_plot(plot)
    for candidate in candidates if update_card else []:
        card_quality.require_card(candidate)
    documents = bundled_documents(languages) if text is None else documents_of_files(text)
    reports: list[ComparisonReport] = []
    for report in compare_all(
        reference,
        candidates,
        documents,
        by_layers=plot is not None and len(candidates) == 1,
        on_progress=Progress("Comparing"),
        **options,  # pyright: ignore[reportArgumentType]
    ):
        reports.append(report)
        _print(report, as_json=json, is_first=len(reports) == 1)
        if update_card:
            card_quality.update_card(Path(report.candidate.name), report)
    if len(reports) > 1 and not json:
        print("\n" + "\n".join(summary(reports)))
    if plot is not None:
        from helium_mlx.comparison_plot import draw

        draw(plot, reports)


def _print(report: ComparisonReport, *, as_json: bool, is_first: bool) -> None:
    for note in report.notes:
        print(f"note: {note}", file=sys.stderr)
    if as_json:
        import json

        # JSON has no infinity, which a perplexity can be.
        print(json.dumps(_finite(asdict(report)), ensure_ascii=False, allow_nan=False), flush=True)
        return
    print(("" if is_first else "\n") + "\n".join(table(report)), flush=True)


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
        f"{report.extent}, each behind one BOS; KL(A || B) in nats",
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


def _finite(value: object) -> object:
    """Return what JSON can hold: None for numbers that are not finite."""
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


if __name__ == "__main__":
    sys.exit(main())
