"""Frozen engines: they keep the frames of a failed attempt for a debugger, and are no engines of the pool any more.

Their slots have been filled again, and their runs are settled. What is left to decide is when they end.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from ..messages import FrozenRun
from ..messages.task_types import Incarnation
from .settings import SchedulerSettings

NOTES_KEPT = 100
"""Of how many frozen engines that have ended it is known how, and of how many that were not frozen why."""


@dataclass(slots=True, eq=False)
class FrozenEngine:
    """One frozen engine."""

    name: Incarnation
    id: int
    """The id that it had; its replacement has it now."""
    agent: str
    """The session of the engine's agent."""
    node: str
    pid: int
    connection_file: str
    run: FrozenRun
    ends_s: float
    """When (monotonic) the engine is ended, unless it is used before."""
    ending: str = ""
    """Why the engine was told to end.  "": it was not."""


@dataclass(slots=True)
class FrozenRegistry:
    """The frozen engines, and those about which this turn decides."""

    by_name: dict[Incarnation, FrozenEngine] = field(default_factory=dict)
    """Changed by `add` and `remove` alone."""
    on_node: dict[str, int] = field(default_factory=dict)
    """Node -> how many frozen engines it has, if it has any."""
    offered: dict[Incarnation, FrozenRun] = field(default_factory=dict)
    """Engines that have frozen themselves, which `handlers.freezing` keeps or ends within this turn."""
    thawed: dict[int, str] = field(default_factory=dict)
    """Task -> what has become of the engine that was frozen for it, of the last ones that have ended."""
    missed: dict[int, str] = field(default_factory=dict)
    """Task -> why no engine was frozen when it failed, of the last ones that had asked for it."""

    def add(self, engine: FrozenEngine) -> None:
        """Count a frozen engine."""
        self.by_name[engine.name] = engine
        self.on_node[engine.node] = self.on_node.get(engine.node, 0) + 1
        self.thawed.pop(engine.run.task, None)
        self.missed.pop(engine.run.task, None)

    def remove(self, name: Incarnation) -> FrozenEngine | None:
        """Forget a frozen engine that is gone, and return it.  None: there is none of this name."""
        engine = self.by_name.pop(name, None)
        if engine is not None:
            self.on_node[engine.node] -= 1
            if not self.on_node[engine.node]:
                del self.on_node[engine.node]
        return engine

    def note_end(self, engine: FrozenEngine, how: str) -> None:
        """Note what has become of a frozen engine, for those who look for it."""
        task = engine.run.task
        self.missed.pop(task, None)
        _keep(self.thawed, task, f"the engine that was frozen for task {task} on {engine.node} {how}")

    def note_missed(self, task_id: int, attempt: int, node: str, why: str) -> None:
        """Note why the engine of an attempt that has failed was not frozen, for those who look for it."""
        self.thawed.pop(task_id, None)
        _keep(self.missed, task_id, f"the engine of attempt {attempt} on {node} was not frozen: {why}")

    def note_of(self, task_id: int) -> str | None:
        """Return why no engine is frozen for a task, if that is known."""
        ending = next((e for e in self.by_name.values() if e.run.task == task_id and e.ending), None)
        if ending is not None:
            return f"the engine that was frozen for task {task_id} on {ending.node} ends: {ending.ending}"
        return self.thawed.get(task_id, self.missed.get(task_id))

    def of_task(self, task_id: int) -> FrozenEngine | None:
        """Return the engine that keeps the frames of a task, and was not told to end."""
        return next((e for e in self.by_name.values() if e.run.task == task_id and not e.ending), None)

    def of_agent(self, session: str) -> Iterator[FrozenEngine]:
        yield from [engine for engine in self.by_name.values() if engine.agent == session]

    def has_room(self, node: str, settings: SchedulerSettings) -> bool:
        """Return whether one more engine of a node may be frozen."""
        return self.on_node.get(node, 0) < settings.frozen_engines

    def wants(self, task_id: int, node: str, settings: SchedulerSettings) -> bool:
        """Return whether an engine of a node is frozen if this task fails there: one engine is kept for a task."""
        return self.has_room(node, settings) and self.of_task(task_id) is None

    def full(self, node: str, settings: SchedulerSettings) -> str:
        """Return, for people, that no more engines of a node may be frozen, and what to do about it."""
        most = settings.frozen_engines
        if not most:
            return "this farm freezes no engines: `--frozen-engines` allows some"
        has = f"{node} {'has one frozen engine' if most == 1 else f'has {most} frozen engines'} already"
        return f"{has}, as many as it may have: tc.release() ends them, `--frozen-engines` allows more"


def _keep(notes: dict[int, str], task_id: int, note: str) -> None:
    notes.pop(task_id, None)
    notes[task_id] = note
    if len(notes) > NOTES_KEPT:
        del notes[next(iter(notes))]
