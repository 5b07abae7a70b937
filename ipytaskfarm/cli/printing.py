"""Printing of commands: tables in the terminal's width, text without control characters, questions."""

from __future__ import annotations

import codecs
import io
import sys
from collections.abc import Iterable, Sequence
from typing import TextIO

from ipytaskfarm.display.tables import Column, Table, print_table as print_table, terminal_width as terminal_width
from ipytaskfarm.display.text import ago as ago, number as number, safe as safe, size as size, span as span


def table(columns: Sequence[Column | str], rows: Iterable[Sequence[object]], right: Sequence[int] = ()) -> None:
    """Print a table.

    Args:
        columns: `Column` objects, or headings.
        rows: the cells.
        right: columns that are aligned to the right.
    """
    named = [Column(c, right=at in right) if isinstance(c, str) else c for at, c in enumerate(columns)]
    print_table(Table(named, rows))


WIDTH, WIDTH_LEAST, WIDTH_MOST = 80, 40, 120
"""Columns of help texts without a terminal, and their bounds in a terminal: longer lines are hard to read."""


def width() -> int:
    """Return the width of running text in columns."""
    return max(WIDTH_LEAST, min(terminal_width(sys.stdout) or WIDTH, WIDTH_MOST))


_PLAIN = {"✗": "x", "…": ".", "µ": "u", "×": "x", "·": "-", "–": "-", "→": ">", "█": "#", "░": "."}
"""Signs of the farm's own texts as one ASCII character each, so that columns stay straight."""


def print_any_text(*streams: TextIO) -> None:
    """Let streams of a locale without UTF-8 take all text: what they have no sign for is written plainly, or escaped.

    Streams whose handling of errors the user has chosen (``PYTHONIOENCODING=ascii:replace``) stay as they are.
    """
    codecs.register_error("ipytaskfarm", _plain)
    for stream in streams:
        if isinstance(stream, io.TextIOWrapper) and stream.errors in ("strict", "surrogateescape"):
            stream.reconfigure(errors="ipytaskfarm")


def _plain(error: UnicodeError) -> tuple[str | bytes, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    character = error.object[error.start]
    if character in _PLAIN:
        return _PLAIN[character], error.start + 1
    error.end = error.start + 1
    return codecs.backslashreplace_errors(error)


def confirm(question: str, *, yes: bool) -> bool:
    """Ask on the terminal. Without a terminal, only the flag `yes` is a yes."""
    if yes:
        return True
    if not sys.stdin.isatty():
        print(f"{question} Nobody is here to answer: use --yes.", file=sys.stderr)
        return False
    try:
        return input(f"{question} [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:  # Ctrl-D
        print()
        return False
