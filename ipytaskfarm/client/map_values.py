"""What a map gives: its values, and what its items have printed."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any, TypeAlias

from ..core.messages.payload import ResultBody

KEPT_CHARS = 16 * 1024 * 1024
"""How much of what the items of one map print is kept."""

Printed: TypeAlias = dict[int, tuple[str, str]]
"""Item -> what it printed: (stdout, stderr).  Silent items are not there."""


class Values(list[Any]):
    """The values of a map, in order; a list, that also knows what was printed meanwhile.

    ``values.stdout[7]`` and ``values.stderr[7]`` are what item 7 has printed, "" if nothing.
    """

    def __init__(self, values: Iterable[Any] = (), printed: Printed | None = None) -> None:
        super().__init__(values)
        self._printed: Printed = printed if printed is not None else {}

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


class Gathered:
    """Collects what items print, and shows it if that is wished."""

    def __init__(self, show: bool) -> None:
        self.printed: Printed = {}
        self._show = show
        self._chars = 0

    def take(self, body: ResultBody, places: Any) -> None:
        """Take from the end of a chunk; places: of its items in the whole."""
        for index, out, err in body.items:
            self.add(places[index], out, err)

    def add(self, place: int, out: str, err: str) -> None:
        """Take what one item has printed; an item that is tried again counts with its last attempt."""
        if self._show:
            show_lines(place, out, err)
        self._chars += len(out) + len(err)
        if self._chars <= KEPT_CHARS:
            self.printed[place] = out, err
        else:
            remark = f"[left out: the map has printed more than {KEPT_CHARS:,} characters]\n"
            self.printed[place] = (remark if out else ""), (remark if err else "")


def show_lines(place: int, out: str, err: str) -> None:
    """Print what an item has printed, each line with the number of the item."""
    for text, stream in ((out, sys.stdout), (err, sys.stderr)):
        if text:
            # Of a line that was drawn over itself, what was seen last.
            lines = (line.removesuffix("\r").rpartition("\r")[2] for line in text.removesuffix("\n").split("\n"))
            stream.write("".join(f"[{place}] {line}\n" for line in lines))
