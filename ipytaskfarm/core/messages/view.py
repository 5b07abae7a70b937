"""Messages of the live view: questions about a farm that are paged and filtered, and the changes that followers get.

Every answer is bounded: by the number of its rows, and by the time that is spent on it.  An answer that could not look
at everything says where to go on (`next`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from .tables import FrozenRow, JobRow

JOBS_COUNTED = 500
"""The largest number of jobs of which the failed tasks are counted in one answer."""
PAGE_MAX = 500
"""The largest number of rows of a page."""
AGENTS_MAX = 200
FROZEN_MAX = 100
STRETCHES_MAX = 4000
"""The largest number of stretches of an answer."""


class Stretch(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Runs on one engine, one after the other, with the same name and outcome; mostly a single one."""

    engine_id: int
    name: str
    """"": the tasks have no name."""
    outcome: str
    """As in `Ended`: "" for succeeded."""
    started_s: float
    ended_s: float
    count: int
    """How many runs."""
    first_id: int
    """The task of the first run."""
    busy_s: float
    """The sum of the durations."""
    good: int = 0
    """How many runs of a stretch with an outcome have none: runs of several outcomes were merged."""

    @property
    def bad(self) -> int:
        """Return how many runs have an outcome: an error, or a reason to begin again."""
        return self.count - self.good if self.outcome else 0


class FailureCause(msgspec.Struct, frozen=True):
    """Failed tasks with the same reason, type of error and place."""

    reason: str
    etype: str
    place: str
    text: str
    """The message of the latest one."""
    count: int
    ids: list[int]
    """The latest of them."""
    last_s: float
    """When (wall clock) the latest one failed."""


class JobProgress(msgspec.Struct, frozen=True):
    """How far a job is."""

    id: str
    name: str
    total: int
    """Without the tasks by which others were submitted again."""
    arrived: int
    unfinished: int
    failed: int
    """In `FarmChanges`: how many failed since the last one.  In `JobPage`: 0, see `CauseTable.by_job`."""
    paused: bool
    aborted: str
    """Why all its tasks are aborted; "" if they are not."""
    opened_s: float
    priority: int | None = None
    """The priority that was set for all its tasks.  None: each has its own."""


class FollowFarm(msgspec.Struct, frozen=True, tag=True):
    """Question: send this session `FarmChanges` until it ends (on=False: no longer).

    Answer: `NumberReply`, the number of the last one."""

    on: bool = True


class FarmChanges(msgspec.Struct, frozen=True, tag=True):
    """What has happened since the last one, summed up.  At most four are sent in a second."""

    number: int
    """One more than the last one's: a follower that misses one asks for everything again."""
    at_s: float
    """Wall clock."""
    counts: dict[str, int]
    """Tasks by state, at the end of this time."""
    succeeded: int
    failed: int
    """How many tasks have ended."""
    stretches: list[Stretch] = []
    left_out: int = 0
    """How many runs are in no stretch, because there are too many engines."""
    causes: list[FailureCause] = []
    jobs: list[JobProgress] = []
    stale: bool = False
    """Whether followers have to ask for causes and jobs again: ended tasks were cleared, or too much has changed."""
    held: bool = False
    stopping: bool = False
    refusing: str = ""
    """Why no task is accepted, as in `FarmState`."""


class ReadCauses(msgspec.Struct, frozen=True, tag=True):
    """Question: failed tasks, grouped by cause, the largest group first.  Answer: `CauseTable`."""

    job: str | None = None
    """The id of a job; None: all tasks."""
    count: int = 100
    """The largest number of groups."""
    jobs: list[str] | None = None
    """The ids of the jobs that `CauseTable.by_job` has, at most `JOBS_COUNTED`; None: those with the most failures."""

    @classmethod
    def of_jobs(cls, rows: Sequence[JobRow]) -> ReadCauses:
        """Return the question how many tasks of the last of these jobs have failed."""
        return cls(count=1, jobs=[row.id for row in rows[-JOBS_COUNTED:]])


class CauseTable(msgspec.Struct, frozen=True, tag=True):
    """Failed tasks by cause."""

    rows: list[FailureCause]
    more: int = 0
    """How many smaller groups there are."""
    by_job: list[tuple[str, int]] = []
    """(job, failed tasks that were not submitted again) of jobs with some: those of the question, or with the most."""
    complete: bool = True
    """Whether all failed tasks were looked at in time.  If not, the table has none."""

    def failed(self, rows: Sequence[JobRow]) -> dict[str, int]:
        """Return job -> failed tasks, of the jobs that were counted, as the answer to `ReadCauses.of_jobs`."""
        counted = dict.fromkeys((row.id for row in rows[-JOBS_COUNTED:]), 0)
        return {**counted, **dict(self.by_job)} if self.complete else {}


class PageRow(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One line of a page of tasks."""

    id: int
    """Of silent items of a map: the first one's."""
    state: str
    reason: str
    name: str
    job: str
    engine_id: int
    """-1: none."""
    attempts: int
    submitted_s: float
    started_s: float | None
    run_s: float | None
    completed_s: float | None
    etype: str
    text: str
    """The error's message."""
    place: str
    items: int = 1
    """How many items of a map share the run, and the line."""
    priority: int | None = None
    """None: the task has ended."""


class ReadTaskPage(msgspec.Struct, frozen=True, tag=True):
    """Question: a page of tasks that match.  Answer: `TaskPage`."""

    state: str | None = None
    """As in `ListTasks`; "failed" with a job, or a cause, is without tasks that were submitted again."""
    text: str = ""
    """Part of the name, or of the error's type, message or place."""
    job: str | None = None
    engine_id: int | None = None
    cause: tuple[str, str, str] | None = None
    """(reason, etype, place) of a `FailureCause`."""
    before: int | None = None
    """Only tasks with lower ids (oldest_first: higher ones): the `next` of the last page."""
    count: int = 50
    oldest_first: bool = False


class TaskPage(msgspec.Struct, frozen=True, tag=True):
    """Tasks in the order of their ids."""

    rows: list[PageRow]
    next: int | None = None
    """Where the next page begins; None: this was the last one."""
    full: bool = True
    """False if the time was over before the page was full: there may be more beyond `next`."""


class ReadStretches(msgspec.Struct, frozen=True, tag=True):
    """Question: the runs between two moments (wall clock), in stretches.  Answer: `StretchTable`."""

    since_s: float
    until_s: float
    before: int | None = None
    """Only tasks with lower ids: the `next` of the last answer."""
    job: str | None = None


class StretchTable(msgspec.Struct, frozen=True, tag=True):
    """Runs in stretches, in no order."""

    rows: list[Stretch]
    next: int | None = None
    """Where to go on; None: everything was looked at."""
    first_s: float | None = None
    """When the first task that was not cleared was submitted."""


class ReadTaskInput(msgspec.Struct, frozen=True, tag=True):
    """Question: a task as it was submitted.  Answer: `TaskInput`."""

    id: int


class TaskInput(msgspec.Struct, frozen=True, tag=True):
    """A task as it was submitted."""

    id: int
    payload: bytes
    """The encoded `Work`; empty if it is too long to be shown."""
    payload_bytes: int
    function: str | None
    """The digest of the function."""
    rules: str
    """The rules as JSON; "" if all are defaults."""
    submitted_s: float


class WhyWaiting(msgspec.Struct, frozen=True, tag=True):
    """Question: why do tasks wait?  Answer: `WaitingTable`."""


class WaitingTable(msgspec.Struct, frozen=True, tag=True):
    """(reason, how many tasks, one of them, sentences of `ExplainTasks` about it), the largest first."""

    rows: list[tuple[str, int, int, str]]
    unknown: int = 0
    """How many tasks wait that were not looked at."""


class EngineLine(msgspec.Struct, frozen=True, array_like=True):
    """One engine in a page of engines."""

    id: int
    node: str
    state: str
    """As in `EngineRow`."""
    task: int
    """-1: it runs none."""
    name: str
    """The name of that task."""
    since_s: float
    """Since when (wall clock) it has run; 0 if it runs none."""
    ahead: int
    finished: int
    """How many runs it has ended."""
    started_s: float
    pid: int
    note: str = ""
    environment: str = ""
    memory: int = -1
    """The private memory in bytes of the engine and its children, as its agent measured it last; -1: not yet."""
    memory_limit: int = 0
    """At so much memory it is ended; 0: there is no limit."""


class ReadEngines(msgspec.Struct, frozen=True, tag=True):
    """Question: a page of engines, by id.  Answer: `EnginePage`."""

    first: int = 0
    """How many engines are passed over."""
    count: int = 200
    state: str | None = None
    node: str | None = None


class EnginePage(msgspec.Struct, frozen=True, tag=True):
    """Some of the engines, and what all of them do."""

    rows: list[EngineLine]
    total: int
    """How many engines match."""
    states: dict[str, int]
    """State -> number of engines, of all."""
    wanted: int
    agents: list[dict[str, Any]] = []
    """As in `FarmState`; at most `AGENTS_MAX`."""
    agents_total: int = 0
    losses: list[str] = []
    """As in `FarmState`."""
    clients: int = 0
    epoch: int = 0
    frozen: list[FrozenRow] = []
    """The frozen engines, which are no engines of the pool; at most `FROZEN_MAX`."""


class ReadJobs(msgspec.Struct, frozen=True, tag=True):
    """Question: the unfinished jobs, then the others, the latest first.  Answer: `JobPage`."""

    count: int = 100
    job: str | None = None
    """The id of a job: this one alone."""


class JobPage(msgspec.Struct, frozen=True, tag=True):
    """Jobs."""

    rows: list[JobProgress]
    more: int = 0
    """How many others there are."""


VIEW_QUESTIONS = (
    FollowFarm, ReadCauses, ReadEngines, ReadJobs, ReadStretches, ReadTaskInput, ReadTaskPage, WhyWaiting,
)  # fmt: skip
"""The questions of the live view: each changes nothing."""
