"""The command `evaluate`: a model on the tasks of Helium's page, beside what the page says, or on any of lm-eval's.

`python -m helium_mlx.evaluate --help`. The same command goes on where it was ended, if it has an `--output`.
"""

import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

from helium_mlx.checkpoint.config import DTYPES
from helium_mlx.errors import UsageError
from helium_mlx.json_writer import to_json
from helium_mlx.progress import note
from helium_mlx.table import WIDTH
from helium_mlx.terminal import CommandParser, add_repository_options, written_place

if TYPE_CHECKING:
    from helium_mlx.evaluation.report import EvaluationReport

MODELS = "checkpoint directory, Hub repository, 'demo', or mlx-lm:NAME for what mlx-lm opens"


def build_parser() -> CommandParser:
    """Return the parser; option names are those of `helium_mlx.evaluate`, and `--against`, `--json` and `--plot`."""
    parser = CommandParser(
        "evaluate",
        "Evaluate a model on the published tasks, or on any of lm-eval's.",
        examples={
            "--model kyutai/helium-1-preview-2b --output results": "the page's table, resumable",
            "--model helium-2b-4bit --tasks arc_easy piqa --limit 100": "two tasks, for a first look",
        },
    )
    parser.add_argument("--model", required=True, help=MODELS)
    add_repository_options(parser)
    parser.add_argument(
        "--tasks", nargs="+", default=["published"], metavar="NAME",
        help="published (default), which is Helium's page, or names of lm-eval's tasks",
    )  # fmt: skip
    parser.add_argument(
        "--form", choices=("cloze", "letters", "both"),
        help="how questions with choices are asked: by their text, by a letter, both (default: each row's likeliest)",
    )  # fmt: skip
    parser.add_argument("--limit", type=int, metavar="N", help="questions a task, for testing only (default: all)")
    parser.add_argument(
        "--num-fewshot", type=int, metavar="N",
        help="examples before a question (default: 5 for published tasks, for others their own)",
    )  # fmt: skip
    parser.add_argument(
        "--batch-size", type=int, default=16, metavar="N", help="requests run together (default: %(default)s)"
    )
    parser.add_argument("--dtype", choices=DTYPES, help="dtype to compute in (default: the checkpoint's)")
    parser.add_argument("--seed", type=int, default=1234, help="of the choice of examples (default: %(default)s)")
    parser.add_argument(
        "--output", type=written_place, metavar="DIR", help="keep answers and results here; the same command goes on"
    )
    parser.add_argument("--data-dir", metavar="DIR", help="local copies of the data sets, by their names on the Hub")
    parser.add_argument(
        "--against", nargs="+", default=[], metavar="MODEL", help="models to evaluate after it, in columns beside it"
    )
    parser.add_argument("--log-samples", action="store_true", help="keep every question and answer, in --output")
    parser.add_argument("--json", action="store_true", help="print lm-eval's JSON, an object a model")
    parser.add_argument("--markdown", action="store_true", help="print the tables in Markdown")
    parser.add_argument(
        "--update-card", action="store_true",
        help="write the table into the card of --model, a directory that convert made, and its figures for the Hub",
    )  # fmt: skip
    parser.add_argument("--plot", metavar="FILE", help="draw a .svg, .png or .pdf: each task's figure, with its error")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit status."""
    return build_parser().run(argv, _evaluate_wired)


def _evaluate_wired(**options: object) -> None:
    from helium_mlx.memory_limits import wired_memory

    with wired_memory():
        _evaluate(**options)  # pyright: ignore[reportArgumentType]


def _evaluate(
    *,
    model: str,
    against: list[str],
    json: bool,
    markdown: bool,
    plot: str | None,
    update_card: bool,
    log_samples: bool,
    output: str | None,
    **options: object,
) -> None:
    from helium_mlx.evaluation.running import EvaluationOptions, evaluate_all
    from helium_mlx.evaluation.tables import model_table, result_table

    if log_samples and output is None:
        raise UsageError("log_samples needs --output, where the questions are written to")
    if plot is not None:
        from helium_mlx.plotting import check_plot

        check_plot(plot)
    if update_card:
        from helium_mlx.model_card.evaluated import require_card

        require_card(model)
    reports = []
    asked = EvaluationOptions(log_samples=log_samples, output=output, **options)  # pyright: ignore[reportArgumentType]
    for report in evaluate_all([model, *against], asked):
        if json:
            lines = [to_json(report.harness)]
        else:
            table = result_table(report.rows)
            lines = [*([""] if reports else []), *_wrapped(report.described()), ""]
            lines += table.markdown() if markdown else table.plain()
        print("\n".join(lines), flush=True)
        reports.append(report)
        # At once, and again: what was found stays, whatever ends the rest.
        if update_card and len(reports) == 1:
            _update_card(Path(model), report)
        if plot is not None:
            from helium_mlx.evaluation.plot import draw

            draw(plot, reports)
    if len(reports) > 1 and not json:
        # A column a model, with names of any length.
        table = model_table({report.label: report.rows for report in reports})
        print("\n".join(["", *table.markdown()]))


def _update_card(directory: Path, report: "EvaluationReport") -> None:
    from helium_mlx.model_card.evaluated import for_index, update_card

    update_card(directory, report)
    if not for_index(report):
        why = "a limit is for testing" if report.limit else "local copies of the data are not known to be the Hub's"
        note(f"note: the card has the table, its metadata no figures: {why}")


def _wrapped(lines: list[str]) -> list[str]:
    return [
        textwrap.fill(line, WIDTH, subsequent_indent="   ", break_long_words=False, break_on_hyphens=False)
        for line in lines
    ]


if __name__ == "__main__":
    sys.exit(main())
