"""The command `compare`: how far checkpoints are from their reference. `python -m helium_mlx.compare --help`.

The table has a row a language and fits a terminal of 80 columns; `--wide` prints every figure, in Markdown.
"""

import sys
import textwrap
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from helium_mlx.checkpoint.config import DTYPES
from helium_mlx.comparison.report import ComparisonReport
from helium_mlx.comparison.tables import candidate_table, layer_table
from helium_mlx.errors import UsageError
from helium_mlx.json_writer import to_json
from helium_mlx.progress import Progress, note
from helium_mlx.table import WIDTH
from helium_mlx.terminal import CommandParser

SIDES = "checkpoint directory, Hub repository, 'demo', or mlx-lm:NAME for what mlx-lm opens"


def build_parser() -> CommandParser:
    """Return the parser; option names are those of `helium_mlx.compare`, and `--text`, `--json` and `--plot`."""
    parser = CommandParser(
        "compare",
        "Measure how far a checkpoint is from its reference.",
        examples={
            "--reference kyutai/helium-1-preview-2b --candidate helium-2b-4bit": "what 4 bits change",
            "--reference demo --candidate demo-4bit --candidate demo-8bit --text my.txt": "two, on your own text",
        },
    )
    parser.add_argument("--reference", required=True, metavar="A", help=SIDES)
    parser.add_argument(
        "--candidate", required=True, action="append", dest="candidates", metavar="B",
        help="the same; given repeatedly, each is measured against A",
    )  # fmt: skip
    parser.add_argument("--reference-revision", metavar="REV", help="branch, tag or commit of A's Hub repository")
    parser.add_argument("--candidate-revision", metavar="REV", help="branch, tag or commit of B's Hub repository")
    parser.add_argument("--reference-subfolder", metavar="NAME", help="folder in A that the checkpoint is in")
    parser.add_argument("--candidate-subfolder", metavar="NAME", help="folder in B that the checkpoint is in")
    texts = parser.add_mutually_exclusive_group()
    texts.add_argument(
        "--text", dest="texts", action="append", metavar="FILE",
        help="text of your own, UTF-8; - reads standard input; given repeatedly, each file has its row",
    )  # fmt: skip
    texts.add_argument(
        "--languages",
        nargs="+",
        metavar="LANG",
        help="of the package's own text only these (default: en fr de it pt es); the demo is compared on its stories",
    )
    parser.add_argument("--window", type=int, metavar="N", help="tokens run at once, BOS included (default: 512)")
    parser.add_argument("--batch-size", type=int, default=4, help="windows run together (default: %(default)s)")
    parser.add_argument("--dtype", choices=DTYPES, help="dtype that both compute in (default: the wider of their own)")
    parser.add_argument("--wide", action="store_true", help="print every figure, in Markdown tables of any width")
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
    return build_parser().run(argv, _compare_wired)


def _compare_wired(**options: object) -> None:
    from helium_mlx.memory_limits import wired_memory

    with wired_memory():
        _compare(**options)  # pyright: ignore[reportArgumentType]


def _compare(
    *,
    reference: str,
    candidates: list[str],
    texts: list[str] | None,
    languages: list[str] | None,
    wide: bool,
    json: bool,
    plot: str | None,
    update_card: bool,
    **options: object,
) -> None:
    from helium_mlx.comparison.comparison import compare_all
    from helium_mlx.comparison.text import bundled_documents, documents_of_files
    from helium_mlx.model_card import quality as card_quality

    for option in ("candidate_revision", "candidate_subfolder"):
        if options[option] is not None and len(candidates) > 1:
            raise UsageError(f"--{option.replace('_', '-')} is of one repository; give one --candidate with it")
    if plot is not None:
        from helium_mlx.plotting import check_plot

        check_plot(plot)
    for candidate in candidates if update_card else []:
        card_quality.require_card(candidate)
    documents = bundled_documents(languages, reference=reference) if texts is None else documents_of_files(texts)
    reports: list[ComparisonReport] = []
    for report in compare_all(
        reference,
        candidates,
        documents,
        by_layers=plot is not None and len(candidates) == 1,
        on_progress=Progress("Comparing"),
        **options,  # pyright: ignore[reportArgumentType]
    ):
        for sentence in report.notes:
            note(f"note: {sentence}")
        lines = [to_json(asdict(report))] if json else _lines(report, reports, wide=wide, several=len(candidates) > 1)
        print("\n".join(lines), flush=True)
        reports.append(report)
        if update_card:
            card_quality.update_card(Path(report.candidate.name), report)
    if len(reports) > 1 and not json:
        table = candidate_table([(report.candidate, report) for report in reports], wide=wide)
        print("\n".join(["", *(table.markdown() if wide else table.plain())]))
    if plot is not None:
        from helium_mlx.comparison.plot import draw

        draw(plot, reports)


def _lines(report: ComparisonReport, before: Sequence[ComparisonReport], *, wide: bool, several: bool) -> list[str]:
    """Return what is printed of a report after others: A, the text and the headings only where they are new."""
    reference, candidate, extent = (
        textwrap.fill(line, WIDTH, subsequent_indent="   ", break_long_words=False, break_on_hyphens=False)
        for line in report.described()
    )
    table = report.table(wide=wide)
    if not several:
        lines = [reference, candidate, extent, "", *(table.markdown() if wide else table.plain())]
    else:
        is_new = not before or before[-1].perplexity_unit != report.perplexity_unit
        lines = [*([] if before else [reference, extent]), *([""] if is_new else [])]
        if wide:
            lines += table.beside("B", report.candidate.name).markdown()[0 if is_new else 2 :]
        else:
            lines += [*(table.headings() if is_new else []), candidate, *table.lines()]
    if report.layers:
        layers = layer_table(report.layers)
        lines += ["", *(layers.markdown() if wide else layers.plain())]
    return lines


if __name__ == "__main__":
    sys.exit(main())
