"""Parsing of ids and times in the form in which people write them, on the command line and in magics.

Also of the names of engines: an incarnation names its agent's session, and the session names the agent:
``slurm-1.0:5e2f….3``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import datetime

IDS_MAX = 1_000_000
"""More ids at once are a slip: ``3-90000000``."""

_ID = re.compile(r"[0-9]{1,18}")
_RANGE = re.compile(r"([0-9]{1,18})-([0-9]{1,18})")
_SPAN = re.compile(r"([0-9]+(?:\.[0-9]+)?)([smhd])")
_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def parse_ids(words: Iterable[str], what: str = "task") -> list[int]:
    """Parse ids: ``["7", "3-5", "5,9"]`` -> [7, 3, 4, 5, 9], in the order given, each once.

    what: the kind of the ids, for errors.  Raises ValueError, which names the part that is no id."""
    found: dict[int, None] = {}
    for part in (part.strip() for word in words for part in word.split(",")):
        if match := _RANGE.fullmatch(part):
            first, last = int(match[1]), int(match[2])
            if last < first:
                raise ValueError(f"{part!r} is no range of {what} ids: write {last}-{first}")
            if last - first >= IDS_MAX:
                raise ValueError(f"{part!r} are {last - first + 1:,} {what} ids: no more than {IDS_MAX:,} at once")
            found.update(dict.fromkeys(range(first, last + 1)))
        elif _ID.fullmatch(part):
            found[int(part)] = None
        elif part.isdecimal():
            raise ValueError(f"{part} is no {what} id: there are none so large")
        elif part:
            raise ValueError(f"{part!r} is no {what} id: those are whole numbers, like 3, 3-9 or 3,5,7")
    return list(found)


def parse_span(text: str) -> float:
    """Parse a duration, and return seconds: ``90``, ``90s``, ``30m``, ``2h``, ``1d``, or in clock form ``1:30:00``.

    Raises:
        ValueError: the text is something else. The message says what was expected.
    """
    if match := _SPAN.fullmatch(text):
        return float(match[1]) * _UNITS_S[match[2]]
    if re.fullmatch(r"[0-9]+(\.[0-9]+)?", text):
        return float(text)
    if re.fullmatch(r"[0-9]+(:[0-5][0-9]){1,2}", text):
        hours, minutes, seconds = [*map(int, text.split(":")), 0][:3]
        return hours * 3600.0 + minutes * 60 + seconds
    raise ValueError(f"{text!r} is no duration: seconds, or like 90s, 30m, 2h, 1d or 1:30:00 are expected")


def parse_since(text: str, now_s: float) -> float:
    """Parse a moment, and return seconds since 1970.

    Args:
        text: the time before `now_s` (``90s``, ``10m``, ``2h``, ``1d``), or a date and time in ISO 8601
            (``2026-11-21T10:00``), in this machine's time zone unless it names another.
        now_s: the present time.

    Raises:
        ValueError: the text is something else. The message says what was expected.
    """
    if match := _SPAN.fullmatch(text):
        return now_s - float(match[1]) * _UNITS_S[match[2]]
    try:
        return datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError, OSError):  # the latter two: a year that is out of the clock's range
        expected = "how long ago, like 90s, 10m, 2h or 1d, or since when, like 2026-11-21T10:00"
        raise ValueError(f"{text!r} is not a time: {expected}") from None


SHARED = "agent"
"""The name in sessions of agents that share the role's key."""


def owner(engine: str) -> str:
    """Return the session of the agent that an engine belongs to."""
    return engine.rpartition(".")[0]


def agent_name(session: str) -> str:
    """Return the agent's name according to its key.  "": the session has none."""
    return session.rpartition(":")[0]


def goes_by(agent: str, names: Iterable[str]) -> bool:
    """Return whether an agent's name is one of these, or one of several that share it.

    The agent ``dask-1.host`` goes by the name ``dask-1``."""
    return any(agent == name or agent.startswith(f"{name}.") for name in names)
