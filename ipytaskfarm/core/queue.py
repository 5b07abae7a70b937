"""Where tasks wait: one queue per class, and how an engine finds the best head among those it may serve.

A *class* holds the tasks that the same engines can run under the same rules (`ClassKey`).  Within a class
tasks stand in order of (policy key, queue_seq).  Between classes an engine takes the smallest head that it may serve.

Nothing here scans all classes or all engines to find the next task:

* classes that every engine may serve stand in one heap (`Heads`) that all engines share;
* a restricted class stands in the heap of each engine that may serve it.

Heap entries are lazy: (key, queue_seq, class) promises only that the class's head was no earlier than that when it was
pushed.  Looking at the top corrects it.  A class is pushed when it gets an earlier head than all its
entries know of, so a task that nobody can run stands in nobody's heap and delays nobody.
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush, heapreplace
from typing import TYPE_CHECKING, Any

import msgspec

from .durations import Durations
from .messages import Incarnation
from .task import DEFAULT_RULES, Task, TaskInfo

if TYPE_CHECKING:
    from .farm import Engine

PolicyKey = Callable[[TaskInfo], Any]


def fifo_key(info: TaskInfo) -> int:
    """Higher priority first, then order of acceptance."""
    return -info.priority


class ClassKey(msgspec.Struct, frozen=True):
    """What makes two tasks wait for the same engines."""

    depend: str | None = None
    targets: tuple[int, ...] | None = None
    avoid: frozenset[Incarnation] | None = None
    suspect: bool = False
    own: int | None = None
    """A task id: this task has exclusions of its own (it was rejected somewhere)."""

    @property
    def restricted(self) -> bool:
        """Whether some engine may not serve it."""
        return bool(self.depend or self.targets is not None or self.avoid or self.own is not None)


OPEN_CLASS = ClassKey()


def class_key_of(task: Task) -> ClassKey:
    """The class that a task belongs to as it is now."""
    rules = task.rules
    if rules is None and task.avoid is None and not task.suspect and not task.rejections:
        return OPEN_CLASS
    rules = rules or DEFAULT_RULES
    own = task.id if task.rejections else None
    return ClassKey(rules.depend, rules.targets, task.avoid, task.suspect, own)


class TaskClass:
    """The waiting tasks of one class, and what is known of their durations."""

    __slots__ = ("_heap", "durations", "eligible", "key", "restricted", "size")

    def __init__(self, key: ClassKey) -> None:
        self.key = key
        self.restricted = key.restricted
        self._heap: list[tuple[Any, int, Task]] = []
        self.size = 0
        """Waiting tasks; the heap may hold more entries, of tasks that have left."""
        self.durations = Durations()
        self.eligible: dict[Engine, None] = {}
        """Restricted classes only: the engines that may serve it now."""

    def push(self, task: Task) -> bool:
        """Queue a task; True if it is the new head."""
        entry = (task.key, task.queue_seq, task)
        heappush(self._heap, entry)
        self.size += 1
        task.task_class = self
        return self._heap[0] is entry

    def head(self) -> tuple[Any, int] | None:
        """(key, queue_seq) of the first waiting task."""
        heap = self._heap
        while heap:
            key, seq, task = heap[0]
            if task.task_class is self and task.queue_seq == seq:
                return key, seq
            heappop(heap)
        return None

    def pop(self, limit: tuple[Any, int] | None = None) -> Task | None:
        """Take the first waiting task out, unless it stands later than `limit`.  None: there is none."""
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

    def leave(self, task: Task) -> None:
        """A waiting task goes away (aborted, or to another class); its entry stays and is passed over."""
        task.task_class = None
        self.size -= 1

    @property
    def quick(self) -> bool:
        """May be sent ahead of need."""
        return self.durations.quick and not self.key.suspect


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

    def first(self, engine: Engine | None = None) -> tuple[Any, int, TaskClass] | None:
        """The class with the earliest head; with `engine`, of those that it may serve."""
        heap = self._heap
        while heap:
            key, seq, _, task_class = heap[0]
            head = task_class.head()
            if head is None or (engine is not None and engine not in task_class.eligible):
                heappop(heap)
            elif head != (key, seq):
                self._tie += 1
                heapreplace(heap, (head[0], head[1], self._tie, task_class))
            else:
                return key, seq, task_class
        return None
