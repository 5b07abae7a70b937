"""The places of a task, and data that only few tasks need."""

from __future__ import annotations

from typing import TypeAlias

import msgspec

from ..messages.task_types import AttemptRow, Incarnation, Recovery, Rules
from ..requirements import Asks
from ..states import Waiting

DEFAULT_RULES = Rules()
NEW_RULES_MAX = 64
"""The number of rules that are remembered with their new priority."""


def job_of(rules: Rules | None) -> str | None:
    """Return the job of tasks with these rules."""
    return rules.job if rules is not None else None


def with_priority(rules: Rules | None, priority: int) -> Rules:
    """Return rules with this priority, for the task and for all recovery tasks down its chain."""
    chain = [rules or DEFAULT_RULES]
    while (link := chain[-1].recovery) is not None:
        chain.append(link.rules or DEFAULT_RULES)
    changed = msgspec.structs.replace(chain.pop(), priority=priority)
    for each in reversed(chain):
        assert each.recovery is not None
        recovery = msgspec.structs.replace(each.recovery, rules=changed)
        changed = msgspec.structs.replace(each, priority=priority, recovery=recovery)
    return changed


def recovery_rules(rules: Rules | None, recovery: Recovery) -> Rules | None:
    """Return the rules of a recovery task that takes over from a task with these rules: the unique key stays."""
    unique = rules.unique if rules is not None else None
    if unique == (recovery.rules.unique if recovery.rules is not None else None):
        return recovery.rules
    return msgspec.structs.replace(recovery.rules or DEFAULT_RULES, unique=unique)


class NewRules:
    """Gives rules another priority.  Tasks that shared their rules share the new ones: a million tasks may."""

    def __init__(self, priority: int) -> None:
        self.priority = priority
        self._known: dict[int, tuple[Rules | None, Rules]] = {}
        """Identity of rules -> (the rules, which must live as long as their identity is used, and the new ones)."""

    def of(self, rules: Rules | None) -> Rules:
        """Return these rules with the new priority."""
        known = self._known.get(id(rules))
        if known is None:
            if len(self._known) >= NEW_RULES_MAX:
                self._known.clear()
            known = self._known[id(rules)] = rules, with_priority(rules, self.priority)
        return known[1]


class Queued(msgspec.Struct, frozen=True):
    """The place of a task that no engine has: in its queue, or set aside until a time."""

    why: Waiting = Waiting.QUEUED
    until_s: float | None = None
    """Monotonic seconds.  None: as soon as an engine is free."""
    until_wall_s: float | None = None
    """The same time in wall-clock seconds, for the store."""


class Assigned(msgspec.Struct, frozen=True, gc=False):
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
FOR_CACHE = Queued(Waiting.CACHE)


class Rejection(msgspec.Struct):
    """How often one engine was rejected by a task, and until when it is not tried again."""

    count: int
    until_s: float
    version: int
    """The version of the engine's properties at the time.  Another version lifts the rejection."""


class TrialState(msgspec.Struct, gc=False):
    """Data that only few tasks need: about trials, and reports of their runs."""

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
    deferred_since_s: float | None = None
    """`began_s` by the controller's monotonic clock, which nobody sets; None: not known yet, as after a restart."""


class TaskPast(msgspec.Struct, gc=False):
    """What earlier attempts of a task have left: the used parts of its budget, and why some engines are not tried."""

    errors: int = 0
    losses: int = 0
    recovery: int = 0
    """The task's position in its chain of recovery tasks."""
    history: list[AttemptRow] | None = None
    rejections: dict[Incarnation, Rejection] | None = None
    avoid: frozenset[Incarnation] | None = None
    """Engines on which the task failed: others are preferred."""
    suspect: bool = False
    """Whether the last attempt lost its engine: then no other task is sent ahead together with this one."""
    trial_state: TrialState | None = None


NO_PAST = TaskPast()
"""The past of all tasks that have none.  It is never changed, see `entries.TaskEntry.own_past`."""


class ClassKey(msgspec.Struct, frozen=True):
    """The common part of tasks of one class: they wait for the same engines."""

    depend: str | None = None
    targets: tuple[int, ...] | None = None
    avoid: frozenset[Incarnation] | None = None
    suspect: bool = False
    own: int | None = None
    """The id of a task that was rejected by engines, and therefore has exclusions of its own."""
    requirements: Asks | None = None
    job: str | None = None
    """Set only if the job matters for recycling."""
    limit_s: float | None = None
    """The tasks' time limit, on farms with agents of limited time."""
    concurrent: bool = False
    """Whether the tasks are coroutines that share an engine."""

    @property
    def restricted(self) -> bool:
        """Return whether some engine may not serve the class, at some moment."""
        return bool(
            self.depend
            or self.targets is not None
            or self.avoid
            or self.own is not None
            or self.requirements is not None
            or self.limit_s is not None
            or self.concurrent
        )

    @property
    def environment(self) -> str | None:
        """Return the identity of the environment that the tasks need."""
        return self.requirements.identity if self.requirements is not None else None


OPEN_CLASS = ClassKey()
