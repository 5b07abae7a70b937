"""Print tables: rows and columns become text of a given width, or HTML.

A row is always one line.  If the width does not suffice, text is cut first, and then optional columns are left out.
rich knows how many columns of a terminal a character takes.
"""

from __future__ import annotations

import html
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from textwrap import wrap
from typing import Any, TextIO

from rich.cells import cell_len, set_cell_size

from .colours import ERROR_BACKGROUND, MUTED
from .text import CELL_MAX, safe

MARK = "✗"
"""Marks a row about a failure."""
REPR_WIDTH = 100
"""Columns of a table that is no terminal's output: a notebook's text, a log.  The commands cut nothing there."""
LEAST = 12
"""Characters to which a column of text may be cut; after that, optional columns are left out."""
LONG = 24
"""Characters above which a notebook breaks a cell into lines: names can have more; dates, states, reasons have not."""
TEXT_MAX = 120
"""Largest number of characters in a cell that has its own function for cutting."""
DUMB = (None, "", "dumb", "unknown")
"""The values of TERM for terminals on which nothing can be drawn again."""
_GAP = "  "
_BOLD, _RED, _PLAIN = "\033[1m", "\033[31m", "\033[0m"


@dataclass(frozen=True)
class Column:
    """One column of a table."""

    heading: str
    optional: int = 0
    """0: always shown.

    Otherwise the column is left out if all its cells are empty, or if the width does not suffice; the column with the
    highest number goes first.
    """
    right: bool = False
    """Whether the column is aligned to the right; columns of numbers always are."""
    least: int = LEAST
    """Characters to which its text may be cut; after that, optional columns are left out."""
    cut: Callable[[str, int], str] | None = None
    """Function that cuts text to a width, such as `text.summary`; None: cut off the end."""

    def whole(self, cell: object) -> str:
        """Return the whole text of a cell, on one line."""
        return safe(cell, CELL_MAX) if self.cut is None else self.cut(str(cell or ""), TEXT_MAX)

    def fitted(self, cell: object, width: int) -> str:
        """Return the text of a cell, cut to this number of terminal columns; some characters take two."""
        whole = self.whole(cell)
        if cell_len(whole) <= width:
            return whole
        if self.cut is not None:
            whole = self.cut(str(cell), width)
            if cell_len(whole) <= width:
                return whole
        return set_cell_size(whole, width - 1).rstrip() + "…"


class Table:
    """Rows with headings that show themselves in terminals and notebooks.

    Args:
        columns: `Column` objects, or only headings.
        rows: cells in the order of the columns; None is an empty cell.
        failed: positions of the rows that are marked.
        above: lines about the whole table, for example how many rows are not shown.
        nothing: the text of a table without rows.
    """

    def __init__(
        self,
        columns: Sequence[Column | str],
        rows: Iterable[Sequence[object]],
        *,
        failed: Iterable[int] = (),
        above: Sequence[str] = (),
        nothing: str = "nothing",
    ) -> None:
        self._columns = [column if isinstance(column, Column) else Column(column) for column in columns]
        self._given = [list(row) for row in rows]
        self._cells = [
            [column.whole(cell) for column, cell in zip(self._columns, row, strict=True)] for row in self._given
        ]
        self._failed = frozenset(failed)
        self._above = above
        self._nothing = nothing
        filled = [any(cells) for cells in zip(*self._cells, strict=True)] if self._cells else []
        self._shown = [at for at, column in enumerate(self._columns) if not column.optional or (filled and filled[at])]

    def text(self, width: int | None = None, *, styled: bool = False) -> str:
        """Return the table as text.

        Args:
            width: columns of the terminal; None: as wide as the cells need.
            styled: use the terminal's bold and red.
        """
        above = [part for line in self._above for part in wrap(line, width or max(len(line), 1))]
        if not self._cells:
            return "\n".join([*above, self._nothing])
        shown = self._fitting(width)
        widths = self._widths(shown, width)
        lines = [self._line([self._columns[at].heading for at in shown], shown, widths)]
        lines[0] = f"{_BOLD}{lines[0]}{_PLAIN}" if styled else lines[0]
        for position, cells in enumerate(self._given):
            failed = position in self._failed
            line = self._line([cells[at] for at in shown], shown, widths, MARK if failed else "")
            lines.append(f"{_RED}{line}{_PLAIN}" if styled and failed else line)
        return "\n".join([*above, *lines])

    def written_to(self, stream: TextIO) -> Table:
        """Return the table as a stream shows it: without UTF-8, with escapes, which take several columns."""
        encoding, errors = stream.encoding or "utf-8", stream.errors or "strict"
        if encoding.lower().startswith("utf") or errors == "strict":
            return self
        rows = [
            [c.encode(encoding, errors).decode(encoding, "replace") if isinstance(c, str) else c for c in row]
            for row in self._given
        ]
        return Table(self._columns, rows, failed=self._failed, above=self._above, nothing=self._nothing)

    def html(self) -> str:
        """Return the table as HTML for a notebook."""
        above = "".join(f'<div style="color:{MUTED}">{html.escape(line)}</div>' for line in self._above)
        if not self._cells:
            return f"{above}<div>{html.escape(self._nothing)}</div>"
        # Each cell has its own style, because the style sheets of notebooks align all cells to the right.
        aligned = [f'style="{self._style(at)}"' for at in self._shown]
        headings = [self._columns[at].heading for at in self._shown]
        head = "".join(f"<th {style}>{html.escape(text)}</th>" for style, text in zip(aligned, headings, strict=True))
        mark = "<th></th>" if self._failed else ""
        body = "".join(self._html_row(position, aligned) for position in range(len(self._cells)))
        return f"{above}<table><thead><tr>{mark}{head}</tr></thead><tbody>{body}</tbody></table>"

    def __repr__(self) -> str:
        return self.text(terminal_width(sys.stdout) or REPR_WIDTH)

    def _repr_html_(self) -> str:
        return self.html()

    def __len__(self) -> int:
        return len(self._cells)

    def _html_row(self, position: int, aligned: list[str]) -> str:
        failed = position in self._failed
        cells = _at(self._cells[position], self._shown)
        tds = "".join(f"<td {style}>{html.escape(cell)}</td>" for style, cell in zip(aligned, cells, strict=True))
        mark = f"<td>{MARK if failed else ''}</td>" if self._failed else ""
        return f'<tr style="background:{ERROR_BACKGROUND}">{mark}{tds}</tr>' if failed else f"<tr>{mark}{tds}</tr>"

    def _fitting(self, width: int | None) -> list[int]:
        """Return the columns that fit; optional columns are left out by their number, the highest first.

        What then has room comes back, the lowest number first, also a text that is cut below its least width.
        """
        shown, left_out = list(self._shown), list[int]()
        while width is not None and self._total([self._least(at) for at in shown]) > width:
            spare = max(shown, key=lambda at: self._columns[at].optional)
            if not self._columns[spare].optional:
                break
            shown.remove(spare)
            left_out.append(spare)
        for at in reversed(left_out):
            room = (width or 0) - self._total([self._least(at) for at in shown]) - len(_GAP)
            if room >= (self._least(at) if self._is_right(at) else min(self._least(at), LEAST)):
                shown = sorted([*shown, at])
                if room < self._least(at):
                    break
        return shown

    def _widths(self, shown: list[int], width: int | None) -> list[int]:
        """Return the widths of the columns: the widest text is cut first, and no text below its least width if
        possible.
        """
        widths = [self._natural(at) for at in shown]
        excess = 0 if width is None else self._total(widths) - width
        for floors in ([self._least(at) for at in shown], [1] * len(shown)):
            while excess > 0 and (wide := [n for n in range(len(shown)) if widths[n] > floors[n]]):
                widths[max(wide, key=widths.__getitem__)] -= 1
                excess -= 1
        return widths

    def _total(self, widths: list[int]) -> int:
        return sum(widths) + len(_GAP) * (len(widths) - 1) + (len(MARK + _GAP) if self._failed else 0)

    def _line(self, cells: Sequence[object], shown: list[int], widths: list[int], mark: str = "") -> str:
        parts = [mark.ljust(len(MARK))] if self._failed else []
        for at, cell, width in zip(shown, cells, widths, strict=True):
            text = self._columns[at].fitted(cell, width)
            blanks = " " * (width - cell_len(text))
            parts.append(blanks + text if self._is_right(at) else text + blanks)
        return _GAP.join(parts).rstrip()

    def _style(self, at: int) -> str:
        if self._is_right(at):
            return "text-align:right;white-space:nowrap"
        if self._columns[at].cut is None and self._natural(at) <= LONG:
            return "text-align:left;white-space:nowrap"
        # Without a least width, a text that may be broken anywhere has a line for each character in a narrow notebook.
        least = self._least(at) if self._columns[at].cut else LONG
        return f"text-align:left;overflow-wrap:anywhere;min-width:{least}ch"

    def _least(self, at: int) -> int:
        natural = self._natural(at)
        return natural if self._is_right(at) else min(natural, self._columns[at].least)

    def _natural(self, at: int) -> int:
        return max(cell_len(self._columns[at].heading), *(cell_len(cells[at]) for cells in self._cells))

    def _is_right(self, at: int) -> bool:
        return self._columns[at].right or all(_is_number(cells[at]) for cells in self._cells)


def _at(cells: Sequence[str], shown: Iterable[int]) -> list[str]:
    return [cells[at] for at in shown]


def _is_number(cell: str) -> bool:
    return cell == "" or cell.removeprefix("-").removeprefix("+").replace(".", "", 1).replace(",", "").isdigit()


def terminal_width(stream: TextIO | Any) -> int | None:
    """Return the width of the terminal behind a stream, or of the variable COLUMNS; None: there is no terminal."""
    said = os.environ.get("COLUMNS", "")
    if said.isdecimal() and int(said) > 0:
        return int(said)
    try:
        return os.get_terminal_size(stream.fileno()).columns or None if stream.isatty() else None
    except (AttributeError, OSError, ValueError):  # no real file, or a closed one
        return None


def is_styled(stream: TextIO | Any) -> bool:
    """Return whether a stream is a terminal, and the user has not asked for plain text (https://no-color.org)."""
    try:
        return bool(stream.isatty()) and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    except (AttributeError, ValueError):
        return False


def redraws(stream: TextIO | Any) -> bool:
    """Return whether a stream is a terminal on which a line can be drawn again."""
    try:
        return bool(stream.isatty()) and os.environ.get("TERM") not in DUMB
    except (AttributeError, ValueError):
        return False


def print_table(table: Table) -> None:
    """Print a table on stdout in the terminal's width; in a file or a pipe nothing is cut."""
    print(table.written_to(sys.stdout).text(terminal_width(sys.stdout), styled=is_styled(sys.stdout)))
