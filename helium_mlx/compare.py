"""The command `compare`: how far checkpoints are from their reference. `python -m helium_mlx.compare --help`.

The table is Markdown, with a row a language; KL is in nats a token, and what stands after "±" is a standard error.
"""

import sys
from dataclasses import asdict
from pathlib import Path

from helium_mlx.checkpoint.config import DTYPES
from helium_mlx.comparison.report import ComparisonReport
from helium_mlx.comparison.tables import summary, table
from helium_mlx.errors import UsageError
from helium_mlx.json_writer import to_json
from helium_mlx.progress import Progress
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
    return build_parser().run(argv, _compare)


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
        from helium_mlx.comparison.plot import draw

        draw(plot, reports)


def _print(report: ComparisonReport, *, as_json: bool, is_first: bool) -> None:
    for note in report.notes:
        print(f"note: {note}", file=sys.stderr)
    if as_json:
        print(to_json(asdict(report)), flush=True)
        return
    print(("" if is_first else "\n") + "\n".join(table(report)), flush=True)


if __name__ == "__main__":
    sys.exit(main())
