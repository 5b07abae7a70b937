"""A run in progress, as the engine knows it."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from ..core.errors import TimeLimitExceeded
from ..core.messages import Run
from ..core.messages.payload import CallWork, StringWork
from ..core.messages.task_types import FrozenRun, RunKey
from ..core.states import Reason
from .sinks import Sink

if TYPE_CHECKING:
    from .child_processes import Brought
    from .current import CurrentTask
    from .map_chunks import ChunkCalls, ItemNames


class RunningAttempt:
    """One run in progress."""

    __slots__ = (
        "run", "work", "sink", "started_s", "begun", "unready", "current", "brought", "reaches", "chunk", "item",
        "raised", "row", "task", "is_open", "frozen",
    )  # fmt: skip

    def __init__(self, run: Run) -> None:
        self.run = run
        self.work: StringWork | CallWork | None = None
        self.sink = Sink()
        self.started_s = time.time()
        self.begun = 0.0
        self.unready = False
        """Its environment could not be set up."""
        self.current: CurrentTask | None = None
        self.brought: Brought | None = None
        """What its arguments brought by value."""
        self.reaches = False
        """Its code looks as if it changed what belongs to the whole process."""
        self.chunk: ChunkCalls | None = None
        """The calls of a chunk of a map."""
        self.item: tuple[ItemNames, int] | None = None
        """Of a run of one item of a map: its names, and its index among them."""
        self.raised: BaseException | None = None
        """What the farm has raised in it: it was aborted, or is over its time limit."""
        self.row = 0
        """Of a coroutine that runs beside others: its row in the flight recorder."""
        self.task: asyncio.Task[None] | None = None
        """Of a coroutine that runs beside others: the loop's task."""
        self.is_open = False
        """Of a coroutine that runs beside others: whether the user's code runs, so that it may be interrupted."""

        self.frozen: FrozenRun | None = None
        """Set if its failure has frozen the engine."""

    @property
    def key(self) -> RunKey:
        """Return the run's key."""
        return self.run.task, self.run.attempt

    def outcome(self) -> Reason:
        """Return the reason of a run that failed."""
        if isinstance(self.raised, TimeLimitExceeded):
            return Reason.TIME_LIMIT
        return Reason.ABORTED if self.raised is not None else Reason.ERROR
