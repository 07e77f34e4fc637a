"""The rows of an evaluation: from a result of lm-eval to figures, each with its error, beside what was published."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from helium_mlx.evaluation.published import AVERAGE, ROWS

# How far a figure may be from the published one and be called the same, in standard errors.
WITHIN = 2

ENGLISH = "English"


@dataclass(frozen=True)
class ResultRow:
    """A figure of one task: `value` in per cent, or BLEU, and its standard error, None where it has none.

    `form` is how a question with choices was asked, letters or cloze, and "" for any other. `published` is the page's.
    """

    name: str
    language: str
    form: str
    task: str
    metric: str
    shots: int | None
    version: str
    samples: int
    value: float
    error: float | None
    published: float | None = None

    @property
    def difference(self) -> float | None:
        """How far it is from what was published."""
        return None if self.published is None else self.value - self.published

    @property
    def is_within(self) -> bool | None:
        """Whether that is at most two standard errors; None where there is nothing to compare, or no error."""
        if self.difference is None or not self.error:
            return None
        return abs(self.difference) <= WITHIN * self.error


def result_rows(harness: Mapping[str, object], column: int | None) -> tuple[ResultRow, ...]:
    """Return the rows of a result of lm-eval: those of the page in its order, then all others; the average last.

    `column` is the one of the page that they are compared with, if there is one.
    """
    results = _part(harness, "results")
    rows: list[ResultRow] = []
    known: set[str] = set()
    for row in ROWS:
        for each, (task, metric) in row.tasks.items():
            known |= {task, *_children(harness, task)}
            if task in results:
                published = row.values[column] if row.values and column is not None else None
                rows.append(_row(harness, task, metric, row.name, row.language, each, published))
    rows += [
        _row(harness, task, metric, task, "", "", None)
        for task in results
        if task not in known
        for metric in _part(results, task)
        if "," in metric and "_stderr," not in metric
    ]
    average = average_row(rows, None if column is None else AVERAGE[column])
    return (*rows, *([average] if average else []))


def average_row(rows: Sequence[ResultRow], published: float | None) -> ResultRow | None:
    """Return the average of the English rows, of two forms the better; None unless all of them are there."""
    wanted = [row.name for row in ROWS if row.language == ENGLISH]
    best: dict[str, ResultRow] = {}
    for row in rows:
        if row.language == ENGLISH and (row.name not in best or row.value > best[row.name].value):
            best[row.name] = row
    if list(best) != wanted:
        return None
    errors = [row.error for row in best.values() if row.error is not None]
    error = math.sqrt(sum(error**2 for error in errors)) / len(best) if len(errors) == len(best) else None
    value = sum(row.value for row in best.values()) / len(best)
    samples = sum(row.samples for row in best.values())
    return ResultRow("Average", ENGLISH, "", "", "", None, "", samples, value, error, published)


def _row(
    harness: Mapping[str, object], task: str, metric: str, name: str, language: str, form: str, published: float | None
) -> ResultRow:
    result = _part(_part(harness, "results"), task)
    # BLEU is out of 100 as it comes, and perplexities are what they are.
    scale = 100.0 if metric.split(",")[0] in ("acc", "acc_norm", "exact_match", "f1", "em", "acc_mutual_info") else 1.0
    base, _, filter_name = metric.partition(",")
    value, error = result[metric], result.get(f"{base}_stderr,{filter_name}")
    shots, samples = _part(harness, "n-shot").get(task), _samples(harness, task)
    return ResultRow(
        name, language, form, task, base,
        shots if isinstance(shots, int) else None, str(_part(harness, "versions").get(task, "")), samples,
        scale * float(value) if isinstance(value, (int, float)) else math.nan,
        scale * float(error) if isinstance(error, (int, float)) else None, published,
    )  # fmt: skip


def _samples(harness: Mapping[str, object], task: str) -> int:
    counts = _part(harness, "n-samples")
    tasks = [task] if task in counts else _children(harness, task)
    return sum(int(str(_part(counts, each)["effective"])) for each in tasks if each in counts)


def _children(harness: Mapping[str, object], group: str) -> list[str]:
    """Return the tasks of a group, and of the groups in it, with those themselves."""
    children = _part(harness, "group_subtasks").get(group)
    found = [str(child) for child in children] if isinstance(children, (list, tuple)) else []
    return [*found, *(each for child in found for each in _children(harness, child))]


def _part(values: Mapping[str, object], name: str) -> Mapping[str, object]:
    found = values.get(name)
    return {str(key): value for key, value in found.items()} if isinstance(found, Mapping) else {}
