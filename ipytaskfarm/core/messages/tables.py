"""Tables: the answers to questions about the farm."""

from __future__ import annotations

from typing import Any, TypeAlias

import msgspec

from .task_types import FailureSummary, Incarnation


class QueueStatusReply(msgspec.Struct, frozen=True, tag=True):
    """Numbers per state, and the ids when they were asked for."""

    counts: dict[str, int]
    ids: dict[str, list[int]] | None = None
    next: int | None = None
    """Where the next question begins; None: these are all ids."""


class TaskRow(msgspec.Struct, frozen=True, array_like=True):
    """One line of a table of tasks."""

    id: int
    state: str
    reason: str
    name: str | None
    engine_id: int | None
    attempts: int
    submitted_s: float
    started_s: float | None = None
    run_s: float | None = None
    completed_s: float | None = None
    failure: FailureSummary | None = None
    priority: int | None = None
    """None: the task has ended."""


class TaskRows(msgspec.Struct, frozen=True, tag="TaskTable"):
    """Rows in order of id, and the ids that were asked for and are not known."""

    rows: list[TaskRow]
    unknown: list[int] = []
    omitted: int = 0
    """How many earlier tasks match too, and were not asked for; -1: not known."""
    next: int | None = None
    """Where the next question begins; None: all tasks were looked at."""


class JobRow(msgspec.Struct, frozen=True):
    """One job."""

    id: str
    name: str
    total: int
    arrived: int
    unfinished: int
    paused: bool
    failed: str
    opened_s: float
    ids: list[int] = []
    """Its tasks; of a map, its chunks and the tasks that are no part of a chunk, in the order of the items."""
    is_map: bool = False
    items: dict[int, int] = {}
    """Of a map: chunk -> number of its items."""
    retries: list[tuple[int, int]] = []
    """(task, the task by which it was retried)."""
    priority: int | None = None
    """As in `JobProgress`."""

    def task_ids(self) -> list[int]:
        """Return the ids of all its tasks as users see them: those of a map's items, and of their retries."""
        if not self.is_map:
            return self.ids
        found: list[int] = []
        for task in self.ids:
            items = self.items.get(task, 0)
            found += range(task + 1, task + 1 + items) if items else (task,)
        return [*found, *(again for _, again in self.retries)]

    def latest_ids(self) -> list[int]:
        """Return the ids of the tasks of a job that is no map; in the place of a retried task is its last retry."""
        known, retried = set(self.ids), dict(self.retries)
        retries = {again for first, again in self.retries if first in known}
        found = []
        for task in self.ids:
            if task not in retries:
                while task in retried:
                    task = retried[task]
                found.append(task)
        return found


class JobTable(msgspec.Struct, frozen=True, tag=True):
    """Jobs, the latest last."""

    rows: list[JobRow]
    next: tuple[float, str, int] | None = None
    """(`opened_s`, job, its last task) of the end of this page, where the next one begins; None: it was the last."""


class ProgressTable(msgspec.Struct, frozen=True, tag=True):
    """(id, value, total or None, message) of running tasks that have reported progress, or whose children have."""

    rows: list[tuple[int, float, float | None, str]]


class RunningTable(msgspec.Struct, frozen=True, tag=True):
    """(id, engine id, for how many seconds) of running tasks, those that have run longest first."""

    rows: list[tuple[int, int, float]]
    count: int = 0
    """How many run; `rows` are bounded."""
    idle: int = 0
    """How many engines run nothing."""


EventRow: TypeAlias = tuple[float, int, str | None, str, int, str]
"""(when, task, name, what, engine id or -1, more)."""


class EventTable(msgspec.Struct, frozen=True, tag=True):
    """Events, in order of time."""

    rows: list[EventRow]
    next: tuple[float, int, str] | None = None
    """(when, task, what) of the earliest event of a full page."""


class EngineRow(msgspec.Struct, frozen=True):
    """One engine as clients see it."""

    id: int
    engine: Incarnation
    node: str
    pid: int
    state: str
    """starting, preparing, idle, busy, unreachable, stopping."""
    task: int | None
    ahead: int
    """How many tasks were sent ahead and have not begun."""
    started_s: float
    facts: dict[str, Any]
    connection_file: str = ""
    note: str = ""
    environment: str = ""
    """The name of its environment.  "": it is blank."""
    coroutines: int = 0
    """How many coroutine tasks it runs; `task` is one of them."""


class FrozenRow(msgspec.Struct, frozen=True):
    """One frozen engine as clients see it."""

    engine: Incarnation
    id: int
    """The id that the engine had; its replacement has it now."""
    node: str
    pid: int
    task: int
    attempt: int
    error: str
    """See `task_types.FrozenRun`."""
    place: str
    ends_s: float
    """When the engine is ended, unless it is used before."""
    connection_file: str
    """The kernel's connection file on the engine's node."""
    state: str = "frozen"
    """frozen, ending, unreachable."""


class EngineTable(msgspec.Struct, frozen=True, tag=True):
    """All engines, by id, and the frozen ones, which are no engines of the pool any more."""

    rows: list[EngineRow]
    frozen: list[FrozenRow] = []
    thawed: dict[int, str] = {}
    """Task -> what has become of the engine that was frozen for it, or why none was, of the last ones."""
    commanded: list[int] = []
    """The ids of the engines that a command to all engines goes to; it waits for those that are being replaced."""


class CommandQueueTable(msgspec.Struct, frozen=True, tag=True):
    """(engine id, task that runs there or None, texts of the commands there in their order), by id."""

    rows: list[tuple[int, int | None, list[str]]]


class FarmState(msgspec.Struct, frozen=True, tag=True):
    """The data of `ipytaskfarm status`."""

    name: str
    incarnation: str
    epoch: int
    pid: int
    started_s: float
    wanted: int
    held: bool
    stopping: bool
    counts: dict[str, int]
    engines: list[EngineRow]
    agents: list[dict[str, Any]]
    clients: int
    store_bytes: int
    losses: list[str] = []
    """The last lost engines, one line each."""
    waiting: int = 0
    """How many tasks could begin if they had an engine."""
    waiting_s: float | None = None
    """How long one engine would take for those.  None: nothing was measured."""
    found: str = ""
    """A text about the tasks in the store when the controller started."""
    frozen: list[FrozenRow] = []
    """The engines that are kept for a debugger."""
    refusing: str = ""
    """Why no task is accepted now; "" if tasks are."""


class ConnectionRow(msgspec.Struct, frozen=True, array_like=True):
    """One peer's session."""

    key: str
    """The title of the peer's key, see `transport.keys`: client, reader, agent, agent:NAME."""
    name: str
    """``user@host pid``, or an agent's node."""
    there: bool
    """Whether the peer is connected now."""
    version: str = ""
    """The peer's version of this package; "" if it is not known."""
    python: str = ""
    """The peer's version of Python; "" if it is not known."""


class ConnectionTable(msgspec.Struct, frozen=True, tag=True):
    """All sessions that the controller knows."""

    rows: list[ConnectionRow]


class KeptTable(msgspec.Struct, frozen=True, tag=True):
    """(engine id, text, reason) of commands done by hand. The reason says why it is not repeated; "" if it is."""

    rows: list[tuple[int, str, str]]


class StickyTable(msgspec.Struct, frozen=True, tag=True):
    """(key, verb, text) in the order in which new engines run them."""

    rows: list[tuple[str, str, str]]
