"""Lends a task's slot while it waits for tasks that it has submitted with a client of its own farm.

``current_task().wait(ids)`` says so itself. A `TaskClient`, an executor or a pool inside a task waits as anywhere else:
if all engines run such tasks, what they wait for would never begin. Many calls wait (futures, barriers, iterators), so
the lane's thread looks from outside: a main thread that computes nothing, beside unfinished tasks of its clients,
waits for them.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

from ..core.messages.running_task import Await, TaskCall
from ..core.messages.task_types import RunKey
from .run_records import main_busy_s

IDLE_LOOKS = 2
"""After so many looks in a row between which the main thread has hardly computed, it waits. There are 20 a second."""
BUSY = 0.1
"""The part of the time that a main thread computes at most that waits."""
AGAIN_S = 5.0
"""Seconds after which the wait is told again: a controller that was restarted does not know it."""
IDS_MAX = 1_000
"""The number of awaited tasks that are told at once; the others are when these have ended."""
NUMBER = 0
"""The number of these calls, of which nobody awaits the answer. Those of a task's own calls begin with 1."""


class ClientWaits:
    """What the lane's thread has seen of the running task's waits for tasks of its own clients."""

    def __init__(self, engine: str, farm: str, send: Callable[[TaskCall], None]) -> None:
        """Create it; `farm` is the farm's incarnation."""
        self._engine = engine
        self._farm = farm
        self._send = send
        self._run: RunKey | None = None
        self._earlier: frozenset[int] = frozenset()
        """Unfinished tasks that runs before this one have submitted here."""
        self._known: frozenset[int] = frozenset()
        """The unfinished tasks at the last look."""
        self._looked_s = self._busy_s = 0.0
        self._idle = -1
        """How many looks in a row have seen no computing; -1: there was none to compare with."""
        self._told: frozenset[int] = frozenset()
        """The tasks for which the run waits, as the controller was told."""
        self._told_s = 0.0

    def look(self, run: RunKey, asks: bool) -> None:
        """Look at the running task. The lane's thread calls this 20 times a second.

        asks: whether the task itself waits for an answer of the controller.
        """
        sessions = sys.modules.get("ipytaskfarm.client.sessions")
        if sessions is None:
            return
        if run != self._run:
            self._run, self._earlier = run, self._known
            self._idle, self._told = -1, frozenset()
        self._known = frozenset(sessions.unfinished_tasks(self._farm))
        awaited = self._known - self._earlier
        if not awaited or asks:
            self._idle = -1
            self._go_on()
            return
        now_s, busy_s = time.monotonic(), main_busy_s()
        computes = self._idle >= 0 and busy_s - self._busy_s > BUSY * (now_s - self._looked_s)
        self._looked_s, self._busy_s = now_s, busy_s
        self._idle = 0 if computes else self._idle + 1
        if self._idle < IDLE_LOOKS:
            self._go_on()
        elif not awaited & self._told or now_s - self._told_s > AGAIN_S:
            self._tell(run, frozenset(sorted(awaited)[:IDS_MAX]), now_s)

    def _tell(self, run: RunKey, awaited: frozenset[int], now_s: float) -> None:
        self._told, self._told_s = awaited, now_s
        self._send(TaskCall(self._engine, run, NUMBER, Await(sorted(awaited), keeps=True)))

    def _go_on(self) -> None:
        """Take the slot back, if it was lent."""
        if self._told and self._run is not None:
            self._tell(self._run, frozenset(), 0.0)
