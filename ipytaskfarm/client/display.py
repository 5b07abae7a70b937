"""HTML of results, outputs and jobs, for notebooks."""

from __future__ import annotations

import base64
import html
from typing import Any

from ..display.colours import BARS, ERROR_BACKGROUND, TRACK
from ..display.text import CELL_MAX, counts_text, safe

TEXT_MAX = 20_000


def text_html(text: str, *, error: bool = False) -> str:
    """Text of a task for a notebook: as it is, bounded, and never as HTML."""
    if not text:
        return ""
    if len(text) > TEXT_MAX:
        text = f"{text[: TEXT_MAX // 2]}\n… {len(text) - TEXT_MAX:,} characters …\n{text[-TEXT_MAX // 2 :]}"
    style = f' style="background:{ERROR_BACKGROUND}"' if error else ""
    return f"<pre{style}>{html.escape(text)}</pre>"


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


def job_html(name: str, counts: dict[str, int], progress: float) -> str:
    """Return a job as HTML with a bar of its succeeded, failed and running tasks."""
    total = sum(counts.values()) or 1
    bars = "".join(
        f'<span style="display:inline-block;height:100%;width:{100 * counts.get(state, 0) / total:.1f}%;'
        f'background:{colour}"></span>'
        for state, colour in BARS.items()
    )
    text = counts_text(counts) or "nothing handed in"
    return (
        f"<div>Job {html.escape(safe(name, CELL_MAX))}: {progress:.0%}"
        f'<div style="width:20em;height:0.8em;background:{TRACK};line-height:0">{bars}</div>{html.escape(text)}</div>'
    )
