"""What a card says of a model on tasks: a table in its text, and figures in its metadata, which the Hub shows.

The metadata is `model-index`, as huggingface.co/docs/hub/model-cards has it, which names data sets of the Hub. A result
with a limit is for testing, and local copies are not known to be what the Hub has: both stay out of it.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import cast

import yaml

from helium_mlx.errors import CheckpointError
from helium_mlx.evaluation.report import EvaluationReport
from helium_mlx.evaluation.rows import ResultRow
from helium_mlx.evaluation.tables import label, result_table
from helium_mlx.files.atomic import require_writable
from helium_mlx.model_card import quality
from helium_mlx.model_card.quality import card_and_record, rewrite_card, with_section
from helium_mlx.model_card.record import CARD_FILE, recorded_hashes

HEADING = "## Evaluation"
INDEX = "model-index"

# lm-eval's metrics, as the Hub calls them; the others have the same name.
_LOCAL = (
    " The questions were read from local copies of the data sets, which are not known to be what the Hub has, so the "
    "figures are not in the metadata."
)

_METRICS = {"acc": "accuracy", "acc_norm": "accuracy"}


def require_card(model: str | Path) -> None:
    """Raise CheckpointError, before any work, for a model whose card `update_card` would refuse or could not write."""
    quality.require_card(model)
    directory = Path(model).resolve()
    _parts(card_and_record(directory)[0])
    # A new directory takes its place.
    require_writable(directory)


def for_index(report: EvaluationReport) -> bool:
    """Return whether the figures of a report may stand in the metadata."""
    return report.limit is None and not report.is_local


def update_card(directory: Path, report: EvaluationReport) -> None:
    """Write a report into the card and the record of a converted directory, in one step.

    Raises CheckpointError for a directory that was not converted here, or whose card was changed since.
    """
    directory = directory.resolve()
    card, record = card_and_record(directory)
    text = with_section(with_index(card, report, directory.name), HEADING, evaluated(report))
    files = recorded_hashes(record) | {CARD_FILE: hashlib.sha256(text.encode()).hexdigest()}
    found = {
        "rows": [asdict(row) for row in report.rows], "form": report.form, "limit": report.limit, "seed": report.seed,
        "dtype": report.dtype, "versions": dict(report.versions), "data": dict(report.data),
    }  # fmt: skip
    rewrite_card(directory, text, record | {"files": files, "evaluation": found})


def evaluated(report: EvaluationReport) -> list[str]:
    """Return the lines under `HEADING`."""
    described, local = report.described()[1], _LOCAL if report.is_local else ""
    return [
        f"`helium_mlx.evaluate` in {report.dtype}, {described}. Published are the figures on Helium's page, for the "
        f"model before conversion; within 2 means at most two standard errors from them.{local}",
        "",
        *result_table(report.rows).markdown(),
    ]


def with_index(card: str, report: EvaluationReport, name: str) -> str:
    """Return a card whose metadata has the figures of a report, in the place of those it had."""
    values, body = _parts(card)
    values.pop(INDEX, None)
    results = [_result(row, report) for row in report.rows if row.task] if for_index(report) else []
    if results:
        values[INDEX] = [{"name": name, "results": results}]
    return f"---\n{yaml.safe_dump(values, sort_keys=False, allow_unicode=True)}---\n{body}"


def _parts(card: str) -> tuple[dict[str, object], str]:
    """Return the metadata of a card and what comes after it. Raises CheckpointError if there is none."""
    _, _, rest = card.partition("---\n")
    head, closing, body = rest.partition("---\n")
    if not card.startswith("---\n") or not closing:
        raise CheckpointError(f"{CARD_FILE} has no metadata between two lines of ---; convert the checkpoint again")
    return cast("dict[str, object]", yaml.safe_load(head) or {}), body


def _result(row: ResultRow, report: EvaluationReport) -> dict[str, object]:
    shots = "" if row.shots is None else f", {row.shots}-shot"
    return {
        "task": {"type": "text-generation"},
        "dataset": {"name": label(row), "type": _data_set(row.task, report.harness)},
        "metrics": [
            {
                "type": _METRICS.get(row.metric, row.metric),
                "value": round(row.value, 2),
                "name": f"{row.metric}, lm-eval {report.versions['lm_eval']}, {row.task} {row.version}{shots}",
            }
        ],
    }


def _data_set(task: str, harness: Mapping[str, object]) -> str:
    """Return the Hub's name of a task's data, or of the first task's of a group."""
    configs = cast("Mapping[str, Mapping[str, object]]", harness.get("configs", {}))
    groups = cast("Mapping[str, list[str]]", harness.get("group_subtasks", {}))
    while task not in configs and groups.get(task):
        task = groups[task][0]
    path = configs.get(task, {}).get("dataset_path")
    return path if isinstance(path, str) else task
