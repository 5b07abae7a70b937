"""Tables, durations and times on a terminal; plain columns where there is none.

Names and errors of tasks are other people's text: nothing that a terminal would obey gets through `safe`.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence


def safe(text: object, width: int = 0) -> str:
    """Return one line without control characters, cut to `width` (0: as long as it is)."""
    line = "".join(char if char.isprintable() else " " for char in str(text))
    return line if not width or len(line) <= width else line[: width - 1] + "…"


def table(headings: Sequence[str], rows: Sequence[Sequence[object]], right: Sequence[int] = ()) -> None:
    """Print a table; columns whose index is in `right` hold numbers."""
    cells = [[safe(cell) for cell in row] for row in rows]
    if sys.stdout.isatty():
        _rich_table(headings, cells, right)
    else:
        _plain_table(headings, cells, right)


def _rich_table(headings: Sequence[str], cells: Sequence[Sequence[str]], right: Sequence[int]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    drawn = Table(box=SIMPLE_HEAD, pad_edge=False)
    for column, heading in enumerate(headings):
        drawn.add_column(heading, justify="right" if column in right else "left")
    for row in cells:
        drawn.add_row(*(Text(cell) for cell in row))
    Console().print(drawn)


def _plain_table(headings: Sequence[str], cells: Sequence[Sequence[str]], right: Sequence[int]) -> None:
    widths = [max(map(len, column)) for column in zip(headings, *cells, strict=True)]
    for row in (headings, *cells):
        padded = (
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        print("  ".join(padded).rstrip())


def ago(wall_s: float | None) -> str:
    """Return how long ago a wall-clock time was."""
    return "" if wall_s is None else span(max(0.0, time.time() - wall_s))


def span(seconds: float | None) -> str:
    """Return a duration in the unit that suits it."""
    if seconds is None:
        return ""
    for limit, unit, text in ((0.001, 1e6, "µs"), (1.0, 1e3, "ms"), (120.0, 1.0, "s")):
        if seconds < limit:
            return f"{seconds * unit:.3g} {text}"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h"
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def size(count: float) -> str:
    """Return a number of bytes."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def number(count: int, thing: str) -> str:
    """``1 engine``, ``4 engines``."""
    return f"{count} {thing}" if count == 1 else f"{count} {thing}s"


def confirm(question: str, *, yes: bool) -> bool:
    """Ask on the terminal; without one, only `yes` is a yes."""
    if yes:
        return True
    if not sys.stdin.isatty():
        print(f"{question} Nobody is here to answer: use --yes.", file=sys.stderr)
        return False
    return input(f"{question} [y/N] ").strip().lower() in ("y", "yes")
