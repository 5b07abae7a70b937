"""The picture of a farm that a page shows: plain data of bounded size, changed by a few kinds of operations.

A page receives a whole picture, then operations. ``web/static/picture.js`` applies them in the same way.

=========================================  ====================================================================
``["set", section, value]``                the section becomes the value
``["put", section, {key: value}]``         these entries of the section are new, or replaced
``["drop", section, [key]]``               these entries are gone
``["append", section, [row], most]``       rows at the end of the section, of which the last `most` are kept
=========================================  ====================================================================

The operations of one moment are a numbered delta: a page that was away gets only what it has missed (`DeltaLog`).
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Iterable
from typing import Any, NamedTuple, TypeAlias

Operation: TypeAlias = list[Any]
PictureData: TypeAlias = dict[str, Any]


def apply(picture: PictureData, operations: Iterable[Operation]) -> None:
    """Change a picture.

    Raises:
        ValueError: there is no such operation.
    """
    for kind, section, value, *more in operations:
        if kind == "set":
            picture[section] = copy.deepcopy(value)
        elif kind == "put":
            picture.setdefault(section, {}).update(copy.deepcopy(value))
        elif kind == "drop":
            for key in value:
                picture.get(section, {}).pop(key, None)
        elif kind == "append":
            rows = picture.setdefault(section, [])
            rows += copy.deepcopy(value)
            del rows[: max(0, len(rows) - more[0])]
        else:
            raise ValueError(f"a picture has no operation {kind!r}: set, put, drop or append was expected")


class Picture:
    """A picture, and the operations that have changed it since they were taken."""

    def __init__(self) -> None:
        self.data: PictureData = {}
        self._operations: list[Operation] = []

    def set(self, section: str, value: Any) -> None:
        """Replace a section, unless it is the same already."""
        if self.data.get(section) != value or section not in self.data:
            self._do(["set", section, value])

    def put(self, section: str, entries: dict[str, Any]) -> None:
        """Add or replace entries; those that are the same already are left out."""
        known = self.data.get(section, {})
        changed = {key: value for key, value in entries.items() if known.get(key) != value}
        if changed or section not in self.data:
            self._do(["put", section, changed])

    def drop(self, section: str, keys: Iterable[str]) -> None:
        """Remove entries."""
        known = self.data.get(section, {})
        gone = [key for key in keys if key in known]
        if gone:
            self._do(["drop", section, gone])

    def append(self, section: str, rows: list[Any], most: int) -> None:
        """Add rows at the end, and keep the last `most` of the section."""
        if rows or section not in self.data:
            self._do(["append", section, rows[-most:], most])

    def _do(self, operation: Operation) -> None:
        apply(self.data, [operation])
        self._operations.append(operation)

    def taken(self) -> list[Operation]:
        """Return the operations since the last call."""
        operations, self._operations = self._operations, []
        return operations


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
