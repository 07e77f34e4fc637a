"""The tables of an evaluation: a row a task beside what was published, or a column a model."""

from collections.abc import Mapping, Sequence

from helium_mlx.evaluation.rows import ResultRow
from helium_mlx.table import Table

_VALUE, _ERROR, _PUBLISHED = ("value", "%"), ("std. error", "%"), ("published", "%")
_DIFFERENCE, _WITHIN = ("difference", "%"), ("within 2", "std. errors")


def result_table(rows: Sequence[ResultRow]) -> Table:
    """Return a row a task: the figure, its standard error, the published one, the difference, whether it is within."""
    cells = [
        [
            label(row), _number(row.value), _number(row.error), _number(row.published),
            "-" if row.difference is None else f"{row.difference:+.1f}",
            {True: "yes", False: "no", None: "-"}[row.is_within],
        ]
        for row in rows
    ]  # fmt: skip
    return Table("task", [_VALUE, _ERROR, _PUBLISHED, _DIFFERENCE, _WITHIN], cells)


def model_table(rows_of_models: Mapping[str, Sequence[ResultRow]]) -> Table:
    """Return a row a task, and of each model, by its label, a column with its figure and its error."""
    found = [{label(row): row for row in rows} for rows in rows_of_models.values()]
    rows = [
        [
            name,
            *("-" if name not in own else f"{_number(own[name].value)} ± {_number(own[name].error)}" for own in found),
        ]
        for name in dict.fromkeys(name for own in found for name in own)
    ]
    return Table("task", [(model, "%") for model in rows_of_models], rows)


def label(row: ResultRow) -> str:
    """Return what a row is called: the page's name, with its language, and how it was asked."""
    language = {"English": "", "German": "de ", "Spanish": "es ", "FLORES-200": "FLORES "}.get(row.language, "")
    how = row.form or (row.metric if row.name == row.task else "")
    return f"{language}{row.name}{f', {how}' if how else ''}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"
