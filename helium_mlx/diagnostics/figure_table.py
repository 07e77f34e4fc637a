"""The figures of a benchmark as a table: medians, and if asked the smallest and the largest of the runs."""

import statistics
from collections.abc import Sequence

from helium_mlx.diagnostics.measures import Figure
from helium_mlx.table import Table


def figure_table(figures: Sequence[Figure], model: str, against: str | None, *, wide: bool) -> Table:
    """Return a row a figure, of helium_mlx alone or beside another program; `wide` has the spread of the runs."""
    programs = ["helium_mlx", *([against] if against else [])]
    spread = [("least", ""), ("most", "")] if wide else []
    columns = [column for program in programs for column in ((program, "median"), *spread)]
    rows = []
    for figure in figures:
        runs = [figure.values, *([figure.baseline] if against else [])]
        cells = [cell for values in runs for cell in _cells(values)[: 3 if wide else 1]]
        ratio = [] if not against else ["" if figure.ratio is None else f"{figure.ratio:.2f}"]
        rows.append([f"{figure.name}, {figure.unit}", *cells, *ratio])
    return Table(model, [*columns, *([("ratio", "")] if against else [])], rows, narrowest=8)


def _cells(values: list[float]) -> tuple[str, str, str]:
    """Return the median, the smallest and the largest; the last two are empty where all are the same."""
    if not values:
        return "", "", ""
    middle = statistics.median(values)
    digits = 0 if middle >= 100 or all(value == int(value) for value in values) else 1 if middle >= 10 else 2
    median, low, high = (f"{value:,.{digits}f}" for value in (middle, min(values), max(values)))
    return (median, "", "") if min(values) == max(values) else (median, low, high)
