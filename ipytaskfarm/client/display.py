"""Format results, outputs and jobs as HTML for notebooks."""

from __future__ import annotations

import base64
import html
import itertools
from collections.abc import Iterable, Iterator
from typing import Any

from ..core.messages.payload import AFTER_CHARS
from ..display.colours import ERROR_BACKGROUND
from ..display.text import redrawn

TEXT_MAX = 20_000


def text_html(text: str, *, error: bool = False) -> str:
    """Return text as an HTML element: escaped, as a terminal shows it in the end, and shortened if it is long."""
    text = redrawn(text)
    if not text:
        return ""
    if len(text) > TEXT_MAX:
        text = f"{text[: TEXT_MAX // 2]}\n… {len(text) - TEXT_MAX:,} characters …\n{text[-TEXT_MAX // 2 :]}"
    style = f' style="background:{ERROR_BACKGROUND}"' if error else ""
    shown = f"<pre{style}>{_coloured(text)}</pre>"
    # JupyterLab's styles for these colours apply only below this class.
    return f'<div class="jp-RenderedText">{shown}</div>' if "\x1b" in text else shown


def in_order(
    text: str, end: int, displays: Iterable[tuple[int, dict[str, Any]]]
) -> Iterator[tuple[str, int, dict[str, Any] | None]]:
    """Yield the parts of standard output, and (place, display) of each display, in the order in which they came.

    text: a part of standard output.  end: how many characters the run has written up to its end.
    """
    begin, done = end - len(text), 0
    for place, display in displays:
        upto = min(max(done, display.get(AFTER_CHARS, end) - begin), len(text))
        yield text[done:upto], -1, None
        done = upto
        yield "", place, display
    yield text[done:], -1, None


_ANSI = ("black", "red", "green", "yellow", "blue", "magenta", "cyan", "white")


def _coloured(text: str) -> str:
    """Return text as HTML, with classes for ANSI colours that JupyterLab and nbconvert style by their theme."""
    if "\x1b" not in text:
        return html.escape(text)
    from rich.text import Text as RichText

    parsed = RichText.from_ansi(text, end="")
    edges = sorted({0, len(parsed), *(edge for span in parsed.spans for edge in (span.start, span.end))})
    parts = []
    for start, end in itertools.pairwise(edges):
        classes = []
        for span in parsed.spans:
            if span.start <= start and end <= span.end and not isinstance(span.style, str):
                number = span.style.color.number if span.style.color is not None else None
                if number is not None and number < 16:
                    classes.append(f"ansi-{_ANSI[number % 8]}{'-intense' if number > 7 else ''}-fg")
                if span.style.bold:
                    classes.append("ansi-bold")
        piece = html.escape(parsed.plain[start:end].replace("\x1b", ""))
        parts.append(f'<span class="{" ".join(classes)}">{piece}</span>' if classes else piece)
    return "".join(parts)


def output_html(output: dict[str, Any]) -> str:
    """Return a rich display of a task as HTML: pictures and HTML unchanged, any other type as text."""
    data = output.get("data", {})
    for kind in ("image/png", "image/jpeg"):
        if kind in data:
            return f'<img src="data:{kind};base64,{html.escape("".join(str(data[kind]).split()))}">'
    if "image/svg+xml" in data:
        # Scripts in an SVG file do not run when a page shows the file as a picture.
        packed = base64.b64encode(str(data["image/svg+xml"]).encode()).decode()
        return f'<img src="data:image/svg+xml;base64,{packed}">'
    if "text/html" in data:
        return str(data["text/html"])
    for kind in ("text/markdown", "text/latex"):
        if kind in data:
            return text_html(str(data[kind]))
    return text_html(str(data.get("text/plain", "")))


def value_html(value: object) -> str:
    """Return a value as HTML, as a notebook shows it: its own HTML, or else its repr."""
    own = getattr(type(value), "_repr_html_", None)
    if own is not None and not isinstance(value, type):
        try:
            shown = own(value)
        except Exception:  # the value's own method failed: show its repr
            shown = None
        if isinstance(shown, str):
            return shown
    return text_html(repr(value))
