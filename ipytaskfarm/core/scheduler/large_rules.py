"""The memory that large rules and many edges of unfinished tasks take, and which tasks have large payloads.

Most tasks share small rules, and `max_tasks` bounds their memory.  A client may as well submit thousands of tasks with
a megabyte of rules each, or with ten thousand edges each.  So these are counted, for each client and in all.
"""

from __future__ import annotations

from collections.abc import Collection, KeysView
from dataclasses import dataclass, field

from ..limits import PAYLOAD_BYTES
from ..messages.task_types import Needs, Rules, RunKey
from .entries import TaskEntry

COUNTED_BYTES = 2048
"""Smaller rules are not counted, nor edges of fewer bytes."""
EDGE_BYTES = 100
"""About what an edge takes in the controller."""
AHEAD_BYTES = 16 << 20
"""The most bytes of large payloads that an engine is sent beside its first run: all are read at once."""
LARGE_BYTES = 1 << 30
"""The most bytes of all clients; one may have a half of them."""


@dataclass(slots=True)
class _HeldRules:
    """Large rules of one client, which tasks of a message share."""

    rules: Rules
    session: str
    size: int
    tasks: int = 0


@dataclass(slots=True)
class LargeRules:
    """The bytes of the large rules and edges of tasks that were accepted since the controller's start."""

    total: int = 0
    of_session: dict[str, int] = field(default_factory=dict)
    payloads: dict[int, int] = field(default_factory=dict)
    """Task -> the bytes of its payload and of code that came with it, if they are many: a hand-out reads them."""
    _rules: dict[int, _HeldRules] = field(default_factory=dict)
    """The address of rules -> these rules, which are kept alive by it."""
    _of_task: dict[int, tuple[str, int, int]] = field(default_factory=dict)
    """Task -> (session, bytes of its edges, address of its rules or 0)."""

    @property
    def tasks(self) -> KeysView[int]:
        """Return the tasks with large rules or many edges."""
        return self._of_task.keys()

    def why_not(self, session: str, rules: Rules | None, rules_bytes: int, needs: Needs | None) -> str:
        """Return why a task of this client with these rules and edges is not taken now; "" if it is."""
        if rules_bytes < COUNTED_BYTES and needs is None:
            return ""
        size = _edge_bytes(needs) + (0 if id(rules) in self._rules else _counted(rules_bytes))
        own, total = self.of_session.get(session, 0) + size, self.total + size
        if not size or (own <= LARGE_BYTES // 2 and total <= LARGE_BYTES):
            return ""
        what = f"{own:,} bytes" if own > LARGE_BYTES // 2 else f"with those of all clients {total:,} bytes"
        return (
            f"the rules and edges of your unfinished tasks take {what} of the controller's memory, more than it gives: "
            "wait until some have ended, or give tasks fewer edges and shorter rules"
        )

    def hold(
        self,
        session: str,
        task: TaskEntry | None,
        rules: Rules | None,
        rules_bytes: int,
        needs: Needs | None,
        code_bytes: dict[str | None, int],
    ) -> None:
        """Record that a task of this client was accepted; None: it was refused, or has ended already.

        code_bytes: digest -> bytes of large functions that came with it and have not been counted yet. Such a function
            is read for the first task that needs it; then the engine has it."""
        if code_bytes and task is not None:
            self.note_payload(task.id, code_bytes.pop(task.function, 0))
        if task is None or (rules_bytes < COUNTED_BYTES and needs is None):
            return
        edge_bytes, key = _edge_bytes(needs), 0
        if rules is not None and _counted(rules_bytes):
            key = id(rules)
            held = self._rules.get(key)
            if held is None:
                held = self._rules[key] = _HeldRules(rules, session, rules_bytes)
                self._add(session, rules_bytes)
            held.tasks += 1
        if key or edge_bytes:
            self._of_task[task.id] = session, edge_bytes, key
            self._add(session, edge_bytes)

    def note_payload(self, task: int, size: int) -> None:
        """Add to the bytes that are read when a task is handed out, if they are many."""
        if size >= PAYLOAD_BYTES:
            self.payloads[task] = self.payloads.get(task, 0) + size

    def fits(self, task: TaskEntry | None, runs: Collection[RunKey]) -> bool:
        """Return whether a task may be sent to an engine that holds these runs."""
        size = self.payloads.get(task.id, 0) if task is not None else 0
        return not size or not runs or size + sum(self.payloads.get(run[0], 0) for run in runs) <= AHEAD_BYTES

    def release(self, task: int) -> None:
        """Record that a task has ended."""
        self.payloads.pop(task, None)
        found = self._of_task.pop(task, None)
        if found is None:
            return
        session, edge_bytes, key = found
        self._add(session, -edge_bytes)
        if key:
            held = self._rules[key]
            held.tasks -= 1
            if not held.tasks:
                del self._rules[key]
                self._add(held.session, -held.size)

    def _add(self, session: str, size: int) -> None:
        self.total += size
        left = self.of_session.get(session, 0) + size
        if left:
            self.of_session[session] = left
        else:
            self.of_session.pop(session, None)


def _counted(size: int) -> int:
    return size if size >= COUNTED_BYTES else 0


def _edge_bytes(needs: Needs | None) -> int:
    return _counted((len(needs.after) + len(needs.inputs)) * EDGE_BYTES) if needs is not None else 0
