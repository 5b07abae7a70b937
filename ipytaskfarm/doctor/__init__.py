"""Checks for conditions that can keep a farm from working. `rounds` decides the order; the other modules check.

A check is a function that gets the examined values as arguments where possible, and returns its finding. Checks change
nothing and leave nothing: no folder, no key, no process (except `trial`, which ends its own).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    """The meaning of a finding."""

    OK = "ok"
    WARNING = "warning"
    """It works, or may work; someone should look at it."""
    WRONG = "wrong"
    """It cannot work like this."""


@dataclass(frozen=True)
class Finding:
    """The result of one check."""

    check: str
    """The name of the check, such as ``port``."""
    level: Level
    found: str
    remedy: str = ""
    """The remedy; "" if the level is `OK`."""


def fine(check: str, found: str) -> Finding:
    """Return a finding that all is well."""
    return Finding(check, Level.OK, found)


def doubtful(check: str, found: str, remedy: str) -> Finding:
    return Finding(check, Level.WARNING, found, remedy)


def wrong(check: str, found: str, remedy: str) -> Finding:
    """Return a finding that must be put right."""
    return Finding(check, Level.WRONG, found, remedy)
