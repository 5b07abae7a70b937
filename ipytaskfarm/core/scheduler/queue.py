"""Where tasks wait: one queue per class, and how an engine finds the best head among those that it may serve.

A *class* holds the tasks that the same engines can run under the same rules (`ClassKey`).  Within a class tasks are in
order of (policy key, queue_seq).  Between classes an engine takes the smallest head that it may serve.

Nothing here scans all classes or all engines to find the next task:

* classes that every engine may serve are in one heap (`Heads`) that all engines share;
* a restricted class is in the heap of each engine that may serve it.

Heap entries are lazy: (key, queue_seq, class) promises only that the class's head was no earlier than that when the
entry was pushed.  A look at the top corrects it.  A class is pushed when it gets an earlier head than all its entries
know of, so a task that nobody can run is in nobody's heap and delays nobody.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from heapq import heappop, heappush, heapreplace
from typing import TYPE_CHECKING, Any

import msgspec

from ..messages.task_types import Incarnation, Rules
from ..requirements import Asks
from .durations import Durations
from .task import DEFAULT_RULES, TaskEntry, TaskInfo

if TYPE_CHECKING:
    from .engine_entry import EngineEntry

PolicyKey = Callable[[TaskInfo], Any]


def fifo_key(info: TaskInfo) -> int:
    """Order tasks by priority, the higher first, then by their acceptance."""
    return -info.priority


class ClassKey(msgspec.Struct, frozen=True):
    """What two tasks of one class have in common: they wait for the same engines."""

    depend: str | None = None
    targets: tuple[int, ...] | None = None
    avoid: frozenset[Incarnation] | None = None
    suspect: bool = False
    own: int | None = None
    """A task's id: this task was rejected by engines, and has exclusions of its own."""
    requirements: Asks | None = None
    job: str | None = None
    """Set only where the job counts for recycling."""
    limit_s: float | None = None
    """The tasks' time limit, on farms where the time of agents is limited."""

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
        )

    @property
    def environment(self) -> str | None:
        """Return the identity of the environment that the tasks need."""
        return self.requirements.identity if self.requirements is not None else None


OPEN_CLASS = ClassKey()


def class_key_of(task: TaskEntry, by_time_limit: bool) -> ClassKey:
    """Return the class that a task belongs to as it is now.

    by_time_limit: whether there are agents whose time is limited."""
    rules = task.rules
    if rules is None and task.avoid is None and not task.suspect and not task.rejections:
        return OPEN_CLASS
    rules = rules or DEFAULT_RULES
    own = task.id if task.rejections else None
    requirements = rules.asks
    job = rules.job if requirements is not None and requirements.by_job else None
    limit_s = rules.time_limit_s if by_time_limit else None
    return ClassKey(rules.depend, rules.targets, task.avoid, task.suspect, own, requirements, job, limit_s)


class TaskClass:
    """The waiting tasks of one class, and what is known of their durations."""

    __slots__ = (
        "_heap", "alone", "durations", "eligible", "ends_with_job", "environment", "gated", "key", "reserved_by",
        "restricted", "size",
    )  # fmt: skip

    def __init__(self, key: ClassKey) -> None:
        self.key = key
        self.restricted = key.restricted
        self.environment = key.environment
        recycle = key.requirements.recycle if key.requirements is not None else None
        self.ends_with_job = recycle is not None and recycle.on_job_end
        """Whether engines are recycled when its job ends: no other job's tasks are sent behind its own."""
        self.gated = key.limit_s is not None or (key.requirements is not None and key.requirements.gated)
        self.alone = key.suspect or (key.requirements is not None and key.requirements.alone)
        self.reserved_by: str | None = None
        """The session of the agent that starts nothing later than this class's head until the head can start."""
        self._heap: list[tuple[Any, int, TaskEntry]] = []
        self.size = 0
        """How many tasks wait.  The heap may hold more entries, of tasks that have left."""
        self.durations = Durations()
        self.eligible: dict[EngineEntry, None] = {}
        """The engines that may serve the class now.  Of unrestricted classes it is empty."""

    def push(self, task: TaskEntry) -> bool:
        """Queue a task, and return whether it is the new head."""
        entry = (task.key, task.queue_seq, task)
        heappush(self._heap, entry)
        self.size += 1
        task.task_class = self
        # An entry of a task that has left may stand before it, and nobody may have looked at the head since.
        return self._heap[0] is entry or self.head() == entry[:2]

    def first(self) -> TaskEntry | None:
        """Return the first waiting task, without taking it out."""
        return self._heap[0][2] if self.head() is not None else None

    def head(self) -> tuple[Any, int] | None:
        """Return (key, queue_seq) of the first waiting task."""
        heap = self._heap
        while heap:
            key, seq, task = heap[0]
            if task.task_class is self and task.queue_seq == seq:
                return key, seq
            heappop(heap)
        return None

    def holds_any(self) -> bool:
        """Return whether the heap has a waiting task.  Unlike `head` this changes nothing."""
        return any(task.task_class is self and task.queue_seq == seq for _, seq, task in self._heap)

    def pop(self, limit: tuple[Any, int] | None = None) -> TaskEntry | None:
        """Take out the first waiting task, unless it is later than `limit`.  None: there is no such task."""
        heap = self._heap
        while heap:
            key, seq, task = heap[0]
            if task.task_class is not self or task.queue_seq != seq:
                heappop(heap)
                continue
            if limit is not None and (key, seq) > limit:
                return None
            heappop(heap)
            task.task_class = None
            self.size -= 1
            return task
        return None

    def leave(self, task: TaskEntry) -> None:
        """Let a waiting task go, because it was aborted or changes its class.  Its entry stays and is skipped later."""
        task.task_class = None
        self.size -= 1

    @property
    def quick(self) -> bool:
        """Return whether tasks of the class may be sent ahead to an engine that is busy."""
        return self.durations.quick and not self.alone


class Heads:
    """A lazy heap of classes by their heads."""

    __slots__ = ("_heap", "_tie")

    def __init__(self) -> None:
        self._heap: list[tuple[Any, int, int, TaskClass]] = []
        self._tie = 0

    def push(self, task_class: TaskClass) -> None:
        """Announce a class, or its new head."""
        head = task_class.head()
        if head is not None:
            self._tie += 1
            heappush(self._heap, (head[0], head[1], self._tie, task_class))

    def __len__(self) -> int:
        """Return the number of entries, outdated ones included."""
        return len(self._heap)

    def __contains__(self, task_class: TaskClass) -> bool:
        """Return whether a class has an entry."""
        return any(entry[3] is task_class for entry in self._heap)

    def drop_first(self) -> None:
        """Remove the class that `first` has returned, until it is pushed again."""
        heappop(self._heap)

    def preferred(
        self, engine: EngineEntry | None, wanted: Callable[[TaskClass], bool], as_urgent: bool = True
    ) -> TaskClass | None:
        """Return the earliest class for which `wanted` is true.

        as_urgent: only among the classes whose heads are as urgent as the first."""
        passed: list[tuple[Any, int, int, TaskClass]] = []
        found = None
        while (head := self.first(engine)) is not None and (not passed or not as_urgent or head[0] == passed[0][0]):
            if wanted(head[2]):
                found = head[2]
                break
            passed.append(heappop(self._heap))
        for entry in passed:
            heappush(self._heap, entry)
        return found

    def first(self, engine: EngineEntry | None = None) -> tuple[Any, int, TaskClass] | None:
        """Return the class with the earliest head; with `engine`, among those that the engine may serve."""
        heap = self._heap
        while heap:
            key, seq, _, task_class = heap[0]
            head = task_class.head()
            if head is None or (engine is not None and not _serves(engine, task_class)):
                heappop(heap)
            elif head != (key, seq):
                self._tie += 1
                heapreplace(heap, (head[0], head[1], self._tie, task_class))
            else:
                return key, seq, task_class
        return None


def _serves(engine: EngineEntry, task_class: TaskClass) -> bool:
    # An engine keeps its environment until it ends, so a class that needs another one need not be looked at again.
    return engine in task_class.eligible and serves_environment(engine, task_class.environment)


def serves_environment(engine: EngineEntry, identity: str | None) -> bool:
    """Return whether an engine has this environment or is blank.  None: no environment is needed."""
    return identity is None or engine.environment is None or engine.environment.identity == identity


@dataclass(slots=True)
class Queues:
    """The classes of waiting tasks, and where engines find them."""

    classes: dict[ClassKey, TaskClass] = field(default_factory=dict)
    last_class: tuple[Rules, TaskClass] | None = None
    """The class of the last fresh task that had rules."""
    open_heads: Heads = field(default_factory=Heads)
    """The unrestricted classes."""
    open_size: int = 0
    """How many tasks wait in unrestricted classes."""
    environment_heads: Heads = field(default_factory=Heads)
    """The classes that need an environment."""
    size: int = 0
    """How many tasks wait in all classes."""
    next_seq: int = 0
    """The `queue_seq` of the next task that joins the end of its queue."""
    last_key: Any = None
    """The policy key of the task that was assigned last."""
    by_time_limit: bool = False
    """Whether tasks with a time limit wait in classes of their own, because some agents' time is limited."""
    has_preferences: bool = False
    """Whether some task had a placement or a locality of its own."""
