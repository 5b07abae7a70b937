"""Plain text for people: tables, and text that shows itself."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Sequence
from typing import Any

CELL_MAX = 60


class Text(str):
    """A str that an interactive session shows as it is, with its line breaks."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def harmless(value: object) -> str:
    """Return one line without control characters: names and errors of tasks are hostile text."""
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
    return cell == "" or cell.removeprefix("-").removeprefix("+").replace(".", "", 1).isdigit()


def html_table(headings: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return the same, for a notebook."""
    cells = [[harmless(cell) for cell in row] for row in rows]
    # Said of each cell: notebooks align all of them to the right, and have a style of their own for tables.
    left = [
        "" if cells and all(_is_number(row[i]) for row in cells) else ' style="text-align:left"'
        for i in range(len(headings))
    ]
    head = "".join(f"<th{style}>{html.escape(h)}</th>" for h, style in zip(headings, left, strict=True))
    body = "".join(
        "<tr>" + "".join(f"<td{s}>{html.escape(cell)}</td>" for cell, s in zip(row, left, strict=True)) + "</tr>"
        for row in cells
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


TEXT_MAX = 20_000


def text_html(text: str, *, error: bool = False) -> str:
    """Text of a task for a notebook: as it is, bounded, and never as HTML."""
    if not text:
        return ""
    if len(text) > TEXT_MAX:
        text = f"{text[: TEXT_MAX // 2]}\n… {len(text) - TEXT_MAX:,} characters …\n{text[-TEXT_MAX // 2 :]}"
    style = ' style="color:#b00"' if error else ""
    return f"<pre{style}>{_coloured(text)}</pre>"


def _coloured(text: str) -> str:
    """Return text escaped, with the colours of its ANSI sequences."""
    if "\x1b" not in text:
        return html.escape(text)
    import io

    from rich.console import Console
    from rich.text import Text as RichText

    console = Console(file=io.StringIO(), record=True, width=100_000, force_terminal=True, highlight=False)
    console.print(RichText.from_ansi(text), end="", soft_wrap=True)
    return console.export_html(inline_styles=True, code_format="{code}")


def output_html(output: dict[str, Any]) -> str:
    """Return a rich display of a task: pictures and HTML as such, anything else as text."""
    data = output.get("data", {})
    for kind in ("image/png", "image/jpeg"):
        if kind in data:
            return f'<img src="data:{kind};base64,{html.escape("".join(str(data[kind]).split()))}">'
    if "image/svg+xml" in data:
        # As a picture, in which scripts do not run.
        packed = base64.b64encode(str(data["image/svg+xml"]).encode()).decode()
        return f'<img src="data:image/svg+xml;base64,{packed}">'
    if "text/html" in data:
        return str(data["text/html"])
    for kind in ("text/markdown", "text/latex"):
        if kind in data:
            return text_html(str(data[kind]))
    return text_html(str(data.get("text/plain", "")))


def value_html(value: object) -> str:
    """Return a value as a notebook would show it: by its own HTML, else as text."""
    own = getattr(type(value), "_repr_html_", None)
    if own is not None and not isinstance(value, type):
        try:
            shown = own(value)
        except Exception:  # another's display; the text is all there is
            shown = None
        if isinstance(shown, str):
            return shown
    return text_html(repr(value))


def counts_text(counts: dict[str, int]) -> str:
    """Return the states that have tasks, with their numbers: ``3 pending, 4 succeeded``."""
    return ", ".join(f"{count} {state}" for state, count in counts.items() if count)
