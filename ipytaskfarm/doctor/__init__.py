"""What can keep a farm from working, looked for: `rounds` says in which order, the other modules look.

A check is a function that is given what it looks at, where that can be given, and returns what it found.  Nothing is
changed and nothing stays: no folder is made, no key, no process (but by `trial`, which ends its own).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    """What a finding means."""

    OK = "ok"
    WARNING = "warning"
    """It works, or may; somebody should look."""
    WRONG = "wrong"
    """It cannot work so."""


@dataclass(frozen=True)
class Finding:
    """What one check came to."""

    check: str
    """Its name: ``port``."""
    level: Level
    found: str
    remedy: str = ""
    """What to do; "" if it is `OK`."""


def fine(check: str, found: str) -> Finding:
    """As it should be."""
    return Finding(check, Level.OK, found)


def doubtful(check: str, found: str, remedy: str) -> Finding:
    """Return a warning."""
    return Finding(check, Level.WARNING, found, remedy)


def wrong(check: str, found: str, remedy: str) -> Finding:
    """It has to be put right."""
    return Finding(check, Level.WRONG, found, remedy)
