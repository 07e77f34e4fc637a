"""A table of figures as text for a terminal, as Markdown for a card, as HTML for a notebook; and objects in a line."""

from collections.abc import Sequence
from dataclasses import dataclass

from helium_mlx.errors import one_line, shown

WIDTH = 80
_CELL = 12
_FACT = 40


@dataclass(frozen=True)
class Table:
    """Rows of a label and of figures, each column with its name and its unit, "" where it has none.

    `label` is the name of the column of labels. Plain text is at most `WIDTH` characters wide for five figures of at
    most 11 characters; a longer label is cut at its beginning. Its columns are at least `narrowest` characters wide.
    """

    label: str
    columns: Sequence[tuple[str, str]]
    rows: Sequence[Sequence[str]]
    narrowest: int = _CELL

    def beside(self, label: str, name: str) -> "Table":
        """Return the table with a first column more, which says the same in every row."""
        return Table(label, [(self.label, ""), *self.columns], [[name, *row] for row in self.rows])

    def headings(self) -> list[str]:
        """Return the two lines of headings of plain text, names and units."""
        names, units = ([column[part] for column in self.columns] for part in (0, 1))
        return [self._line(["", *names]).rstrip(), self._line([self.label, *units]).rstrip()]

    def lines(self) -> list[str]:
        """Return the rows as plain text. Rows of tables with the same labels and columns stand below each other."""
        return [self._line(row) for row in self.rows]

    def plain(self) -> list[str]:
        """Return headings and rows as plain text."""
        return [*self.headings(), *self.lines()]

    def markdown(self) -> list[str]:
        """Return a Markdown table whose columns line up: the first to the left, figures to the right."""
        rows = [[one_line(cell).replace("|", r"\|") for cell in row] for row in [self._titles(), *self.rows]]
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

    def html(self, caption: str = "") -> str:
        """Return a `<table>` with every text in it escaped."""
        # Notebooks alone need it, and every start imports this module.
        from html import escape

        head = "".join(f"<th>{escape(title)}</th>" for title in self._titles())
        body = "".join(
            "<tr>" + "".join(f"<td>{escape(one_line(cell))}</td>" for cell in row) + "</tr>" for row in self.rows
        )
        title = f"<caption>{escape(one_line(caption))}</caption>" if caption else ""
        return f"<table>{title}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"

    def _titles(self) -> list[str]:
        return [self.label, *(", ".join(filter(None, column)) for column in self.columns)]

    def _line(self, row: Sequence[str]) -> str:
        longest = max(len(one_line(cells[0])) for cells in [[self.label], *self.rows])
        widths = [self._width(column) for column in range(len(self.columns))]
        width = min(longest, WIDTH - sum(widths))
        label = one_line(row[0])
        label = label if len(label) <= width else "…" + label[len(label) - width + 1 :]
        return label.ljust(width) + "".join(cell.rjust(each) for cell, each in zip(row[1:], widths, strict=True))

    def _width(self, column: int) -> int:
        cells = [*self.columns[column], *(row[column + 1] for row in self.rows)]
        return max(self.narrowest, 1 + max(map(len, cells)))


def short_repr(subject: object, **facts: object) -> str:
    """Return the `repr` of an object: its class and what matters most, each cut to 40 characters."""
    said = (
        f"{name}={f'{fact:.5g}' if isinstance(fact, float) else shown(fact, _FACT)}" for name, fact in facts.items()
    )
    return f"{type(subject).__name__}({', '.join(said)})"
