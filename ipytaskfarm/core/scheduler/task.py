"""A task as the scheduler knows it: its rules and where it is, never its payload.

Only unfinished tasks are kept here; an ended one shrinks to its reason (`farm.TaskRegistry.finals`) and a row in the
store.  A million tasks may wait, so the common ones share what they can: no rules (None), one `Queued` object for all
that simply wait, one `TaskClass`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

import msgspec

from ..messages.dependencies import Needs
from ..messages.task_types import AttemptRow, Incarnation, Rules, RunKey
from ..states import State, Waiting

if TYPE_CHECKING:
    from .queue import TaskClass

DEFAULT_RULES = Rules()


class Queued(msgspec.Struct, frozen=True):
    """The place of a task that no engine has: in its queue, or set aside until a time."""

    why: Waiting = Waiting.QUEUED
    until_s: float | None = None
    """Monotonic seconds.  None: as soon as an engine is free."""
    until_wall_s: float | None = None
    """The same in wall-clock seconds, as the store keeps it."""


class Assigned(msgspec.Struct, frozen=True):
    """The place of a task that an engine has.  `since_s` None: the run was sent ahead and has not begun."""

    engine: Incarnation
    attempt: int
    since_s: float | None = None
    wall_s: float | None = None


Place: TypeAlias = Queued | Assigned

QUEUED = Queued()
RETURNED = Queued(Waiting.RETURNED)
RETRIED = Queued(Waiting.RETRY)
FOR_TASKS = Queued(Waiting.TASKS)
PAUSED = Queued(Waiting.PAUSED)


class Rejection(msgspec.Struct):
    """How often one engine was rejected by a task, and until when it is not tried again."""

    count: int
    until_s: float
    version: int
    """The version of the engine's properties at the time.  Another version lifts the rejection."""


class TrialState(msgspec.Struct, gc=False):
    """What only few tasks need: their trials, and what their runs have said of themselves."""

    trial: int = 1
    """1 plus the number of runs that ended with a deferral."""
    began_s: float | None = None
    """When (wall clock) the first trial began, once it was deferred."""
    received: int = 0
    """How many of the messages sent to the task were read by earlier trials."""
    input_losses: int = 0
    """How often a run has found inputs lost."""
    again: bool = False
    """Whether the task had succeeded before and was reopened."""
    late: bool = False
    """Whether the run takes longer than `warn_after`."""


class TaskEntry:
    """One unfinished task.

    `attempt` is the number of the latest assignment, `errors` and `losses` what was spent of the budget, `recovery` how
    far down its chain of recovery tasks the task is.  `rules` and `function` are those of the link in use."""

    __slots__ = (
        "attempt", "avoid", "dependencies", "environment", "errors", "function", "history", "id", "job", "key",
        "losses", "parent", "place", "queue_seq", "recovery",
        "rejections", "rules", "session", "submitted_s", "suspect", "task_class", "trial_state", "waits_for",
    )  # fmt: skip

    def __init__(
        self, task_id: int, queue_seq: int, submitted_s: float, session: str, function: str | None, rules: Rules | None
    ) -> None:
        self.id = task_id
        self.queue_seq = queue_seq
        self.submitted_s = submitted_s
        self.session = session
        self.function = function
        self.rules = rules
        self.place: Place = QUEUED
        self.attempt = 0
        self.errors = 0
        self.losses = 0
        self.recovery = 0
        self.key: Any = 0
        """The key that the queue policy has computed."""
        self.history: list[AttemptRow] | None = None
        self.rejections: dict[Incarnation, Rejection] | None = None
        self.avoid: frozenset[Incarnation] | None = None
        """Engines on which the task failed: others are preferred."""
        self.suspect = False
        """Whether the last attempt lost its engine: then nothing is sent ahead together with the task."""
        self.task_class: TaskClass | None = None
        self.job: str | None = rules.job if rules is not None else None
        """The job that counts the task, whatever its recovery tasks say."""
        self.environment: str | None = None
        """The identity of the environment that counts the task."""
        self.dependencies: Needs | None = None
        self.waits_for: set[int] | None = None
        """The tasks that this one waits for.  None or empty: none."""
        self.parent: int | None = None
        """The task that submitted this one."""
        self.trial_state: TrialState | None = None

    def __lt__(self, other: TaskEntry) -> bool:
        # A task that left a queue and came back is twice in its heap, under one (key, queue_seq).
        return self.id < other.id

    @property
    def state(self) -> State:
        """Return the public state: scheduled until an engine has begun the task."""
        place = self.place
        return State.PENDING if type(place) is Assigned and place.since_s is not None else State.SCHEDULED

    def own_trial_state(self) -> TrialState:
        """Return the task's trial state, to be written to."""
        if self.trial_state is None:
            self.trial_state = TrialState()
        return self.trial_state

    @property
    def retries_left(self) -> int:
        """Return how many runs are still allowed after an error."""
        return (self.rules or DEFAULT_RULES).retries - self.errors

    @property
    def losses_left(self) -> int:
        """Return how many runs are still allowed after the loss of an engine.

        That is `lost_retries` if given, else what is left of `retries`."""
        rules = self.rules or DEFAULT_RULES
        if rules.lost_retries is not None:
            return rules.lost_retries - self.losses
        return rules.retries - self.errors

    @property
    def may_repeat(self) -> bool:
        """Return whether an attempt whose end is unknown may be run again."""
        return self.losses_left > 0

    def is_current(self, engine: Incarnation, run: RunKey) -> bool:
        """Return whether an answer of this engine about this run still decides anything."""
        place = self.place
        return type(place) is Assigned and place.engine == engine and place.attempt == run[1]


class TaskInfo(msgspec.Struct, frozen=True):
    """What a queue policy may look at."""

    id: int
    priority: int
    client: str
    queue_seq: int
    started: int
    """How many tasks of this client have begun."""
    served: Any = None
    """The key of the task that was assigned last.  None: none was yet."""
    job: str | None = None
    group: str | None = None
