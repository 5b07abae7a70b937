"""What has happened since followers were told last, summed up while they follow.  Without followers nothing is kept."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from ..messages.task_types import AttemptRow, FailureSummary, Final
from ..messages.view import FailureCause, Stretch
from ..stretches import OpenStretch
from .entries import TaskEntry

TOLD_EVERY_S = 0.25
"""The least time between two messages of changes."""
QUIET_EVERY_S = 1.0
"""The same while nothing happens."""
SHORT_S = 0.02
"""Runs that are shorter than this share a stretch."""
STRETCHES_AT_ONCE = 300
CAUSES_AT_ONCE = 50
IDS_SHOWN = 8
JOBS_AT_ONCE = 50


class _OpenCause:
    __slots__ = ("count", "ids", "last_s", "text")

    def __init__(self) -> None:
        self.count = 0
        self.ids: list[int] = []
        self.text = ""
        self.last_s = 0.0


@dataclass(slots=True)
class Followers:
    """Sessions that follow the farm, and the changes that they are told next."""

    sessions: dict[str, None] = field(default_factory=dict)
    number: int = 0
    """The number of the last message of changes."""
    timer: bool = False
    """Whether the timer of the next message is set."""
    succeeded: int = 0
    failed: int = 0
    stretches: dict[int, list[OpenStretch]] = field(default_factory=dict)
    """Engine id -> its runs."""
    stretches_count: int = 0
    left_out: int = 0
    causes: dict[tuple[str, str, str], _OpenCause] = field(default_factory=dict)
    jobs: dict[str, None] = field(default_factory=dict)
    """Jobs that have changed."""
    job_failures: Counter[str] = field(default_factory=Counter)
    stale: bool = False

    def note_job(self, job: str) -> None:
        """Note that a job has changed."""
        if self.sessions:
            self.jobs[job] = None

    def note_attempt(self, row: AttemptRow, task: TaskEntry, count: int) -> None:
        """Note an attempt that is not the end of its task; `count` is how many items the task stands for."""
        if self.sessions and row.engine_id >= 0:
            name = task.rules.name if task.rules is not None else None
            self.note_run(row.engine_id, name or "", row.outcome, row.started_s, row.ended_s, count, task.id)

    def note_end(self, final: Final, task: TaskEntry, count: int) -> None:
        """Note the end of a task for the readers that follow; `count` is how many items it stands for."""
        reason = final.reason
        if reason:
            self.failed += count
            self._note_failure(final, count)
            if task.job is not None:
                self.job_failures[task.job] += count
        else:
            self.succeeded += count
        engine_id, started_s = final.engine_id, final.started_s
        if engine_id < 0 or started_s <= 0.0:
            return
        rules = task.rules
        name = (rules.name or "") if rules is not None else ""
        ended_s, own = started_s + final.run_s, self.stretches.get(engine_id)
        # The common case, without the call of `note_run`.
        if not own or not own[-1].takes_run(name, reason, started_s, ended_s, count, SHORT_S):
            self.note_run(engine_id, name, reason, started_s, ended_s, count, final.id)

    def note_run(
        self, engine_id: int, name: str, outcome: str, started_s: float, ended_s: float, count: int, task: int
    ) -> None:
        own = self.stretches.get(engine_id)
        if own and own[-1].takes_run(name, outcome, started_s, ended_s, count, SHORT_S):
            return
        run = Stretch(engine_id, name, outcome, started_s, ended_s, count, task, max(0.0, ended_s - started_s))
        if own is None:
            own = self.stretches[engine_id] = []
        if self.stretches_count < STRETCHES_AT_ONCE:
            own.append(OpenStretch(run))
            self.stretches_count += 1
        elif own:
            own[-1].add(run)
        else:
            self.left_out += count

    def _note_failure(self, final: Final, count: int) -> None:
        summary = final.failure or FailureSummary("", "", "")
        key = final.reason, summary.etype, summary.place
        cause = self.causes.get(key)
        if cause is None:
            if len(self.causes) >= CAUSES_AT_ONCE:
                self.stale = True
                return
            cause = self.causes[key] = _OpenCause()
        cause.count += count
        cause.text = summary.value
        cause.last_s = final.completed_s
        if len(cause.ids) < IDS_SHOWN:
            cause.ids.append(final.id)

    def taken_causes(self) -> list[FailureCause]:
        """Return the causes, and forget them."""
        causes, self.causes = self.causes, {}
        return [
            FailureCause(reason, etype, place, each.text, each.count, each.ids, each.last_s)
            for (reason, etype, place), each in causes.items()
        ]

    def taken_stretches(self) -> list[Stretch]:
        """Return the stretches, and forget them."""
        stretches, self.stretches, self.stretches_count = self.stretches, {}, 0
        return [each.closed() for own in stretches.values() for each in own]

    def leave(self, session: str) -> None:
        """Tell a session no more; without any, forget all changes."""
        if session not in self.sessions:
            return
        del self.sessions[session]
        if not self.sessions:
            self.stretches, self.stretches_count, self.left_out = {}, 0, 0
            self.causes, self.jobs, self.job_failures = {}, {}, Counter()
            self.succeeded = self.failed = 0
            self.stale = False
