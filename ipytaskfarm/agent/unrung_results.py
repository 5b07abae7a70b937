"""Results in flight recorders for which no engine has rung the bell."""

from __future__ import annotations

WAIT_S = 0.1
"""How long results wait for the bell. An engine with other work lets its results gather for as long."""


class UnrungResults:
    """Notices results that have waited for too long: a ring was lost, or the engine's code does not let it ring."""

    def __init__(self) -> None:
        self._since_s: float | None = None

    def are_due(self, found: bool, now_s: float) -> bool:
        """Return whether results must be read now. `found`: whether there are any that were not read."""
        if not found:
            self._since_s = None
            return False
        if self._since_s is None:
            self._since_s = now_s
        return now_s - self._since_s >= WAIT_S

    def read(self) -> None:
        """Note that all results were read."""
        self._since_s = None
