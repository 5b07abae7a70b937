"""A value that comes from an engine and cannot be unpickled in the client."""

from __future__ import annotations

import os


class OnlyHere:
    """Can be pickled, but not be unpickled in this process."""

    def __init__(self) -> None:
        self.pid = os.getpid()

    def __setstate__(self, state: dict[str, int]) -> None:
        if state["pid"] != os.getpid():
            raise ZeroDivisionError("from another process")
