"""Numbered deltas: a page that was away for a moment gets only what it has missed."""

from __future__ import annotations

from collections import deque
from typing import Any, NamedTuple

from .picture import Operation

KEPT = 480
"""How many deltas are kept: two minutes of four in a second."""


class Delta(NamedTuple):
    """Operations, with a number that is one more than the last one's."""

    number: int
    operations: list[Operation]


class DeltaLog:
    """The last deltas of one picture.

    Args:
        name: names the picture: a page that has deltas of another one cannot resume.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.number = 0
        self._deltas: deque[Delta] = deque(maxlen=KEPT)

    def add(self, operations: list[Operation]) -> Delta | None:
        """Number these operations; None if there are none."""
        if not operations:
            return None
        self.number += 1
        delta = Delta(self.number, operations)
        self._deltas.append(delta)
        return delta

    def since(self, name: Any, number: Any) -> list[Delta] | None:
        """Return the deltas after this number.  None: the page needs the whole picture."""
        if name != self.name or not isinstance(number, int) or not 0 <= number <= self.number:
            return None
        if number == self.number:
            return []
        if not self._deltas or self._deltas[0].number > number + 1:
            return None
        return [delta for delta in self._deltas if delta.number > number]
