"""Which engines can take work: those to examine in this turn, and those that were examined in vain.

An engine that is up is in at most one of `candidates`, `idle`, `blocked` and `with_room`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeAlias

from .entries import EngineEntry

IdleEntry: TypeAlias = tuple[bool, int, int, int, EngineEntry]
"""(whether it has an environment, number of its last batch, id, number of the entry, the engine)"""


@dataclass(slots=True)
class Readiness:
    """The engines by whether they can take work."""

    candidates: dict[EngineEntry, None] = field(default_factory=dict)
    """Engines that have not been looked at since something changed for them."""
    idle: dict[EngineEntry, None] = field(default_factory=dict)
    """Empty engines for which no task was found, longest waiting first."""
    idle_heaps: dict[str, list[IdleEntry]] = field(default_factory=dict)
    """An agent's session -> a heap of its idle engines, and of some that were idle, see
    `core.scheduler.engine_choice`."""
    newly_idle: dict[EngineEntry, None] = field(default_factory=dict)
    """Engines that became idle, and are put into `idle_heaps` when the heaps are needed."""
    blocked: dict[EngineEntry, None] = field(default_factory=dict)
    """Empty engines on nodes where no task may be started now."""
    with_room: dict[EngineEntry, None] = field(default_factory=dict)
    """Busy engines to which more could be sent ahead, and for which no task was found."""
    with_runs_ahead: dict[EngineEntry, None] = field(default_factory=dict)
    """Engines that hold more than the run that they are at."""
    next_batch: int = 0
    """The number of the next batch that is sent to an engine."""
    recall_check_s: float | None = None
    """When (monotonic) it is checked whether runs are recalled.  None: no check is due."""
    has_newly_idle: bool = False
    """Whether an engine has become idle since it was last decided when that is checked."""
    random_state: int = 1
    """The state of the random placement."""

    def wake(self, engine: EngineEntry) -> None:
        """Look at this engine in this turn: something has changed for it."""
        if engine.waits_in is not None:
            del engine.waits_in[engine]
            engine.waits_in = None
        self.candidates[engine] = None

    def put(self, engine: EngineEntry, waits_in: dict[EngineEntry, None]) -> None:
        """Add an engine to `idle`, `blocked` or `with_room`: nothing was found for it in this turn."""
        if engine.waits_in is not None:
            del engine.waits_in[engine]
        engine.waits_in = waits_in
        waits_in[engine] = None

    def put_idle(self, engine: EngineEntry) -> None:
        """Add an engine to `idle`.

        Engines that run only restricted tasks are woken by name: no heap is kept in order for them."""
        if engine.waits_in is not None:
            del engine.waits_in[engine]
        engine.waits_in = self.idle
        self.idle[engine] = None
        if not engine.is_newly_idle:
            engine.is_newly_idle = True
            self.newly_idle[engine] = None
        if not engine.idle_s:
            self.has_newly_idle = True

    def withdraw(self, engine: EngineEntry) -> None:
        """Give no more work to this engine."""
        if engine.waits_in is not None:
            del engine.waits_in[engine]
            engine.waits_in = None
        self.candidates.pop(engine, None)
        self.newly_idle.pop(engine, None)
        engine.is_newly_idle = False
        self.with_runs_ahead.pop(engine, None)
