"""A farm's picture as plain text and as HTML without scripts: what a saved notebook, or one without widgets, shows."""

from __future__ import annotations

import html
import time
from typing import Any

from ipytaskfarm.core.states import STATE_WORDS
from ipytaskfarm.display.tables import Table
from ipytaskfarm.display.text import number
from ipytaskfarm.system.user_code import with_cells
from ipytaskfarm.view.picture import PictureData

ROWS_MAX = 10
"""The largest number of jobs and of causes."""

STYLE = (
    "<style>.jp-OutputArea-child:has(.ipytaskfarm-last-state) + .jp-OutputArea-child .jupyter-widgets:not(:has(*))"
    " { display: none; }</style>"
)
"""Where the widget beside the state cannot be shown, Jupyter puts a message without any element in its place."""


def head(farm: str, picture: PictureData) -> str:
    """Return the line about the farm."""
    counts = picture.get("counts", {})
    tasks = ", ".join(f"{counts.get(state, 0):,} {state}" for state in STATE_WORDS)
    status = picture.get("status", {})
    engines = sum(picture.get("engine_states", {}).values())
    state = "" if status.get("state") == "up" else f" ({status.get('text') or 'not there'})"
    at_s = status.get("seen_s") if state else None  # of a farm that is gone: when it was like this
    at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at_s))
    return f"farm {farm!r}{state}: {tasks}; {number(engines, 'engine')}, {at}"


def tables(picture: PictureData) -> list[Table]:
    """Return the jobs and the causes of failures, as far as there are some."""
    jobs = sorted(picture.get("jobs", {}).values(), key=lambda job: -job["opened_s"])[:ROWS_MAX]
    causes = sorted(picture.get("causes", {}).values(), key=lambda cause: -cause["count"])[:ROWS_MAX]
    found = []
    if jobs:
        rows = [(job["name"], f"{job['ended']:,}", f"{job['total']:,}", f"{job['failed']:,}") for job in jobs]
        found.append(Table(("job", "ended", "tasks", "failed"), rows))
    if causes:
        rows = [
            (f"{each['count']:,}", each["etype"] or each["reason"], each["text"], with_cells(each["place"]))
            for each in causes
        ]
        found.append(Table(("failed", "error", "message", "place"), rows))
    return found


def bundle_of(farm: str, picture: PictureData, link: str) -> dict[str, Any]:
    """Return the mimetypes of the state: text, and HTML with a link to the page (HTML; "" for none)."""
    line, rows = head(farm, picture), tables(picture)
    shown = "".join(table.html() for table in rows)
    return {
        "text/plain": "\n".join([line, *map(repr, rows)]),
        "text/html": (
            f'{STYLE}<div class="ipytaskfarm-last-state"><div>{html.escape(line)}{f" · {link}" if link else ""}</div>'
            f"{shown}</div>"
        ),
    }
