"""Plain text for people: tables, and text that shows itself."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence

CELL_MAX = 60


class Text(str):
    """A str that an interactive session shows as it is, with its line breaks."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def harmless(value: object) -> str:
    """One line without control characters: names and errors of tasks are hostile text."""
    text = "" if value is None else str(value)
    text = "".join(c if c.isprintable() else " " for c in text)
    return text if len(text) <= CELL_MAX else text[: CELL_MAX - 1] + "…"


def table(headings: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Columns as wide as they need to be; numbers to the right."""
    body = [[harmless(cell) for cell in row] for row in rows]
    widths = [max([len(h), *(len(row[i]) for row in body)]) for i, h in enumerate(headings)]
    right = [bool(body) and all(_is_number(row[i]) for row in body) for i in range(len(headings))]
    lines = [headings, *body]
    return "\n".join(
        "  ".join(c.rjust(w) if r else c.ljust(w) for c, w, r in zip(line, widths, right, strict=True)).rstrip()
        for line in lines
    )


def _is_number(cell: str) -> bool:
    return cell == "" or cell.replace(".", "", 1).isdigit()


def html_table(headings: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """The same, for a notebook."""
    head = "".join(f"<th>{html.escape(h)}</th>" for h in headings)
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(harmless(cell))}</td>" for cell in row) + "</tr>" for row in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
