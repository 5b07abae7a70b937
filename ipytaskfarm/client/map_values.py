"""What a map gives: its values, and what its items have printed."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any, Generic, TypeAlias, TypeVar

T = TypeVar("T")

Printed: TypeAlias = dict[int, tuple[str, str]]
"""Item -> what it printed: (stdout, stderr).  Silent items are not there."""


class Values(list[T], Generic[T]):
    """The values of a map, in order; a list, that also knows what was printed meanwhile.

    ``values.stdout[7]`` and ``values.stderr[7]`` are what item 7 has printed, "" if nothing.  ``values.job`` is the
    map's `Job`.
    """

    def __init__(self, values: Iterable[T] = (), printed: Printed | None = None, job: Any = None) -> None:
        super().__init__(values)
        self._printed: Printed = printed if printed is not None else {}
        self.job = job

    @property
    def stdout(self) -> list[str]:
        """Return what each item has printed."""
        return self._stream(0)

    @property
    def stderr(self) -> list[str]:
        """Return what each item has printed to stderr."""
        return self._stream(1)

    def _stream(self, number: int) -> list[str]:
        printed = self._printed
        return [printed[item][number] if item in printed else "" for item in range(len(self))]


def show_lines(place: int, out: str, err: str) -> None:
    """Print what an item has printed, each line with the number of the item."""
    for text, stream in ((out, sys.stdout), (err, sys.stderr)):
        if text:
            # Of a line that was drawn over itself, what was seen last.
            lines = (line.removesuffix("\r").rpartition("\r")[2] for line in text.removesuffix("\n").split("\n"))
            stream.write("".join(f"[{place}] {line}\n" for line in lines))
