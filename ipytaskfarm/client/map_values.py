"""The values of a map, and the output that its items have printed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Generic, TypeAlias, TypeVar

T = TypeVar("T")

Printed: TypeAlias = dict[int, tuple[str, str]]
"""Item -> its output (stdout, stderr).  Items without output are missing."""


class Values(list[T], Generic[T]):
    """The list of a map's values, with the output of its items.

    ``values.stdout[7]`` and ``values.stderr[7]`` are the output of item 7, "" if there is none.  ``values.job`` is the
    map's `Job`.
    """

    def __init__(self, values: Iterable[T] = (), printed: Printed | None = None, job: Any = None) -> None:
        super().__init__(values)
        self._printed: Printed = printed if printed is not None else {}
        self.job = job

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
