"""A task as the scheduler knows it: its rules and where it is, never its payload.

Only unfinished tasks live here; a finished one shrinks to its reason (`farm.Farm.finals`) and a row in the store.
A million of them may wait, so the common ones share everything they can: no rules (None), one `Queued`
object for all that simply wait, one `TaskClass`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

import msgspec

from .needs import Needs
from .parcels import AttemptRow, Incarnation, Rules, RunKey
from .states import State, Waiting

if TYPE_CHECKING:
    from .queue import TaskClass

DEFAULT_RULES = Rules()


class Queued(msgspec.Struct, frozen=True):
    """In its queue, or set aside until a time."""

    why: Waiting = Waiting.QUEUED
    until_s: float | None = None
    """Monotonic; None: as soon as an engine is free."""
    until_wall_s: float | None = None
    """The same as the store keeps it."""


class Assigned(msgspec.Struct, frozen=True):
    """Given to an engine.  `since_s` None: sent ahead, not begun."""

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
    """How often one engine rejected a task, and until when it is not asked again."""

    count: int
    until_s: float
    version: int
    """The engine's properties version at the time: another one now lifts the rejection."""


class TrialState(msgspec.Struct, gc=False):
    """What only few tasks have come to: trials, and what running ones have said of themselves."""

    trial: int = 1
    """1 + runs that ended with a deferral."""
    began_s: float | None = None
    """Wall-clock begin of the first trial, once it was deferred."""
    received: int = 0
    """So many of the messages sent to it were read by earlier trials."""
    input_losses: int = 0
    """How often it has found its inputs lost."""
    again: bool = False
    """It had ended well before, and was reopened."""
    late: bool = False
    """It runs longer than `warn_after`."""


class TaskEntry:
    """One unfinished task.

    `attempt` is the number of the latest hand-out, `errors` and `losses` what was spent of its budget,
    `recovery` how far down its chain of recovery tasks it is.  `rules` and `function` are those of the link in use.
    """

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
        """What the queue policy made of it."""
        self.history: list[AttemptRow] | None = None
        self.rejections: dict[Incarnation, Rejection] | None = None
        self.avoid: frozenset[Incarnation] | None = None
        """Engines on which it failed: others are preferred."""
        self.suspect = False
        """Its last attempt lost its engine: it runs without neighbours sent ahead."""
        self.task_class: TaskClass | None = None
        self.job: str | None = rules.job if rules is not None else None
        """The job that counts it, whatever its recovery tasks say."""
        self.environment: str | None = None
        """Identity of the environment that counts it."""
        self.dependencies: Needs | None = None
        self.waits_for: set[int] | None = None
        """Tasks that it waits for; None or empty: for none."""
        self.parent: int | None = None
        """The task that submitted it."""
        self.trial_state: TrialState | None = None

    def __lt__(self, other: TaskEntry) -> bool:
        # A task that left a queue and came back stands twice in its heap, under one (key, queue_seq).
        return self.id < other.id

    @property
    def state(self) -> State:
        """The public state: scheduled until an engine began it."""
        place = self.place
        return State.PENDING if type(place) is Assigned and place.since_s is not None else State.SCHEDULED

    def own_trial_state(self) -> TrialState:
        """Its course, to be written to."""
        if self.trial_state is None:
            self.trial_state = TrialState()
        return self.trial_state

    @property
    def retries_left(self) -> int:
        """Runs still allowed after an error."""
        return (self.rules or DEFAULT_RULES).retries - self.errors

    @property
    def losses_left(self) -> int:
        """Runs still allowed after the loss of an engine: `lost_retries` if given, else what is left of `retries`."""
        rules = self.rules or DEFAULT_RULES
        if rules.lost_retries is not None:
            return rules.lost_retries - self.losses
        return rules.retries - self.errors

    @property
    def may_repeat(self) -> bool:
        """Whether an attempt of unknown end may be run again."""
        return self.losses_left > 0

    def is_current(self, engine: Incarnation, run: RunKey) -> bool:
        """Whether an answer of this engine about this run still decides anything."""
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
    """The key of the task that was handed out last; None: none was yet."""
    job: str | None = None
    group: str | None = None
