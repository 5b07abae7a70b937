"""The values of a map, and the output that its items have printed."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any, TypeAlias

from ..core.messages.payload import ResultBody

KEPT_CHARS = 16 * 1024 * 1024
"""Characters of printed output that are kept for one map."""

Printed: TypeAlias = dict[int, tuple[str, str]]
"""Item -> its output (stdout, stderr).  Items without output are missing."""


class Values(list[Any]):
    """The list of a map's values, with the output of its items.

    ``values.stdout[7]`` and ``values.stderr[7]`` are the output of item 7, "" if there is none.
    """

    def __init__(self, values: Iterable[Any] = (), printed: Printed | None = None) -> None:
        super().__init__(values)
        self._printed: Printed = printed if printed is not None else {}

    @property
    def stdout(self) -> list[str]:
        """Return what each item has printed to stdout."""
        return self._stream(0)

    @property
    def stderr(self) -> list[str]:
        """Return what each item has printed to stderr."""
        return self._stream(1)

    def _stream(self, number: int) -> list[str]:
        printed = self._printed
        return [printed[item][number] if item in printed else "" for item in range(len(self))]


class Gathered:
    """Collects the output of items, and shows it if wanted."""

    def __init__(self, show: bool) -> None:
        self.printed: Printed = {}
        self._show = show
        self._chars = 0

    def take(self, body: ResultBody, places: Any) -> None:
        """Add the output of a chunk; places: the positions of the chunk's items in the map."""
        for index, out, err in body.items:
            self.add(places[index], out, err)

    def add(self, place: int, out: str, err: str) -> None:
        """Add the output of one item; a repeated attempt replaces the output of the one before."""
        if self._show:
            show_lines(place, out, err)
        self._chars += len(out) + len(err)
        if self._chars <= KEPT_CHARS:
            self.printed[place] = out, err
        else:
            remark = f"[left out: the map has printed more than {KEPT_CHARS:,} characters]\n"
            self.printed[place] = (remark if out else ""), (remark if err else "")


def show_lines(place: int, out: str, err: str) -> None:
    """Print the output of an item, each line with the item's number."""
    for text, stream in ((out, sys.stdout), (err, sys.stderr)):
        if text:
            # A line that was redrawn with \r is shown as it was at the end.
            lines = (line.removesuffix("\r").rpartition("\r")[2] for line in text.removesuffix("\n").split("\n"))
            stream.write("".join(f"[{place}] {line}\n" for line in lines))
