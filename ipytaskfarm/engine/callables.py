"""Functions that an engine has unpacked."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from ..serialization.modules import bundles_of
from .map_chunks import Known
from .side_effects import function_reaches

CALLABLES_KEPT = 512
CALLABLES_BYTES_MAX = 256 * 1024 * 1024


class Callables:
    """Unpacked functions by digest. The least recently used one is dropped first."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, tuple[Known, int]] = OrderedDict()
        self._bytes = 0

    def get(self, digest: str) -> Known | None:
        """Return the function if it is kept, else None."""
        found = self._kept.get(digest)
        if found is None:
            return None
        self._kept.move_to_end(digest)
        return found[0]

    def clear(self) -> None:
        """Forget all functions."""
        self._kept.clear()
        self._bytes = 0

    def add(self, digest: str, function: Callable[..., Any], size_bytes: int) -> Known:
        """Keep a function and return its entry.

        `size_bytes` is the size of its code, including the data that it carries.
        """
        known = Known(function, function_reaches(function), bundles_of(getattr(function, "brought", ((), ()))[1]))
        self._bytes -= self._kept.pop(digest, (known, 0))[1]
        self._kept[digest] = known, size_bytes
        self._bytes += size_bytes
        while len(self._kept) > CALLABLES_KEPT or (self._bytes > CALLABLES_BYTES_MAX and len(self._kept) > 1):
            _, (_, gone) = self._kept.popitem(last=False)
            self._bytes -= gone
        return known
