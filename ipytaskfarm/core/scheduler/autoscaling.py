"""How many engines, or agents, a farm should have for its waiting and running tasks."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

ENGINE_PATIENCE_S = 10.0
"""More engines are started on this machine if the waiting tasks would take longer than this."""
AGENT_PATIENCE_S = 60.0
"""The same for agents: a batch system takes longer to place one than it takes to fork an engine."""
IDLE_S = 60.0
"""Engines and agents that were not needed for this time are given back."""


@dataclass(frozen=True, kw_only=True)
class Load:
    """The present work."""

    busy: int
    """How many engines run tasks."""
    waiting: int
    """How many tasks could begin if they had an engine."""
    waiting_s: float | None
    """How long one engine would take for the waiting tasks; None if nothing was measured yet."""


@dataclass(frozen=True)
class Limits:
    """The smallest and the largest number."""

    least: int
    most: int
    idle_s: float = IDLE_S


def engines_for(load: Load, there: int, patience_s: float) -> int:
    """Return how many engines this load keeps busy, if the waiting tasks are to be done within `patience_s`.

    As long as nothing was measured, the number at most doubles: a thousand tasks may be done in a second.
    """
    if not load.waiting:
        return load.busy
    if load.waiting_s is None:
        return min(load.busy + load.waiting, max(1, 2 * there))
    return load.busy + max(1, min(load.waiting, ceil(load.waiting_s / patience_s)))


@dataclass
class Scaler:
    """Decides when to grow (at once) and when to shrink (when there were too many for `Limits.idle_s`)."""

    limits: Limits
    patience_s: float
    engines_each: int = 1
    """How many engines each counted unit has."""
    _too_many_since_s: float | None = None

    def wanted(self, load: Load, there: int, now_s: float) -> int:
        """Return the wanted number. `there` includes those that are about to come."""
        engines = engines_for(load, there * self.engines_each, self.patience_s)
        target = max(self.limits.least, min(self.limits.most, ceil(engines / self.engines_each)))
        if target >= there:
            self._too_many_since_s = None
            return target
        if self._too_many_since_s is None:
            self._too_many_since_s = now_s
        if there <= self.limits.most and now_s - self._too_many_since_s < self.limits.idle_s:
            return there
        return target
