"""Format text for users: harmless foreign text, durations, sizes, numbers of things."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from datetime import UTC, datetime

_MOMENT = re.compile(r"^(task \d+ .*? at )(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ)")

CELL_MAX = 60
"""Largest number of characters of foreign text in one line, such as a name or an error."""
BEGINNING_MIN = 15
"""If fewer characters of a text's beginning would fit, `summary` shows the last line alone."""


def safe(text: object, width: int = 0) -> str:
    """Return text as one line without control characters, cut to `width` characters (0: not cut).

    Names and errors of tasks come from other users, and must not control the terminal.  None becomes "".
    """
    line = "" if text is None else str(text)
    if not line.isprintable():
        line = "".join(char if char.isprintable() else " " for char in line)
    return line if not width or len(line) <= width else line[: width - 1] + "…"


def local_time(wall_s: float) -> datetime:
    """Return a wall-clock time in the local time zone."""
    return datetime.fromtimestamp(wall_s, UTC).astimezone()


def redrawn(text: str) -> str:
    """Return text as a terminal shows it in the end: carriage returns let later text replace the beginning of a line.

    Progress bars are redrawn so, ten times a second."""
    return "\n".join(map(_last_state, text.split("\n"))) if "\r" in text else text


OUTPUT_S = 1.0
"""How long the engine of a running task has for telling what the task has written."""
OUTPUT_LINES = 10
OUTPUT_WIDTH = 200


def output_so_far(texts: tuple[str, str] | None) -> list[str]:
    """Return the last lines that a running task has written.

    texts: of standard output and standard error; None: its engine has not answered.
    """
    if texts is None:
        return ["what it has written is not known: its engine does not answer, as while C code runs"]
    found = []
    for name, text in zip(("output", "standard error"), texts, strict=True):
        lines = redrawn(text).rstrip("\n").split("\n")
        if lines != [""]:
            found += [f"its last {name}:", *(f"    {safe(line, OUTPUT_WIDTH)}" for line in lines[-OUTPUT_LINES:])]
    return found


def _last_state(line: str) -> str:
    shown = ""
    for part in line.split("\r"):
        if part and "\x1b" in part + shown:  # colours take no room
            shown = part
        elif part:
            shown = part + shown[len(part) :]
    return shown


def stamp(wall_s: float) -> str:
    """Format a wall-clock time as local date and time, as IPython 0.10 did: ``2026/11/28 15:04:05``."""
    return time.strftime("%Y/%m/%d %H:%M:%S", time.localtime(wall_s))


def when(at_s: float | None) -> str:
    """Format a wall-clock time as local date and time."""
    return "" if at_s is None else time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at_s))


def with_local_times(explanation: str) -> str:
    """Return the explanation of an ended task, which has its moment in UTC, with the moment as `when` formats it."""
    return _MOMENT.sub(lambda m: m[1] + when(datetime.fromisoformat(m[2]).timestamp()), explanation, count=1)


def ago(wall_s: float | None, until_s: float | None = None) -> str:
    """Format the time that has passed since a wall-clock time, until another one (None: now)."""
    return "" if wall_s is None else span(max(0.0, (time.time() if until_s is None else until_s) - wall_s))


def span(seconds: float | None) -> str:
    """Format a duration in a suitable unit."""
    if seconds is None:
        return ""
    # Three digits of anything from these limits on are 1000 of the unit.
    for limit, unit, text in ((0.0009995, 1e6, "µs"), (0.9995, 1e3, "ms"), (120.0, 1.0, "s")):
        if seconds < limit:
            return f"{seconds * unit:.3g} {text}"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h"
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def size(count: float | None) -> str:
    """Format a number of bytes."""
    if count is None:
        return ""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < (1024 if unit == "B" else 1023.95):
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def number(count: int, thing: str) -> str:
    """Format a count with its noun: ``1 engine``, ``4,000 engines``."""
    return f"{count:,} {thing}" if count == 1 else f"{count:,} {thing}s"


def counts_text(counts: Mapping[str, int]) -> str:
    """Format the states that have tasks, with their numbers: ``3 running, 4 succeeded``."""
    return ", ".join(f"{count:,} {state}" for state, count in counts.items() if count)


def ending(text: str, width: int = CELL_MAX) -> str:
    """Return a place as one line of `width` characters.  Its end, which has the line's number, is not cut off."""
    line = safe(text)
    return line if len(line) <= width or width < 1 else f"…{line[len(line) - width + 1 :]}"


_LOST_ENGINE = re.compile(r"(?:[A-Za-z]+: )?engine \d+ on ")


def summary(text: str, width: int = CELL_MAX) -> str:
    """Return a text of several lines as one line of `width` characters: its beginning and its last line.

    The last line of an error's text names the cause.  Of a lost engine the first one does: what it has printed, and
    its stack, stand below.
    """
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if lines and _LOST_ENGINE.match(lines[0]):
        return safe(lines[0], width)
    if len(lines) < 2:
        return safe(text.strip(), width)
    last = safe(lines[-1])
    if len(last) >= width - BEGINNING_MIN:
        return safe(last, width)
    return f"{safe(lines[0], width - len(last) - 3)} … {last}"
