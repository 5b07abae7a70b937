"""Tasks, the classes in which tasks wait, and engines, as the scheduler knows them.

These three refer to one another: a task names its class; a class has its tasks in order and the set of the engines
that may serve it; an engine has a heap of the classes that it may serve.

A *class* contains the tasks that the same engines can run under the same rules (`ClassKey`). Within a class, tasks are
in order of (policy key, queue_seq). Between classes, an engine takes the smallest head that it may serve. Nothing here
scans all classes or all engines to find the next task: classes that every engine may serve are in one heap that all
engines share (`Heads`), a restricted class is in the heap of each engine that may serve it. Heap entries are lazy:
(key, queue_seq, class) only promises that the class's head was not earlier when the entry was pushed, and a look at the
top corrects it. A class is pushed when it gets a head that is earlier than all its entries, so a task that no engine
can run delays no other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from heapq import heappop, heappush, heapreplace
from itertools import islice
from typing import Any, Final

import msgspec

from ..messages import PropertiesChanged
from ..messages.task_types import Incarnation, Needs, Recovery, Rules, RunKey
from ..requirements import Environment, Recycle
from ..states import State
from .decision import Now
from .durations import Durations
from .running_tasks import Claim, NestedWait, RecordedBatch
from .task import DEFAULT_RULES, NO_PAST, QUEUED, Assigned, ClassKey, Place, TaskPast, TrialState

_PENDING, _SCHEDULED = State.PENDING, State.SCHEDULED
"""Access to a member of an enumeration takes long, compared with the code that is run for each task."""

# -- tasks


class TaskEntry(msgspec.Struct, eq=False, gc=False):
    """One unfinished task: its rules and its place, never its payload.

    Only unfinished tasks have an entry. An ended task shrinks to its reason (`state.TaskRegistry.finals`) and a row in
    the store. A million tasks may wait, so common tasks share objects: no rules (None), one `Queued` object for all
    that simply wait, one `TaskClass`, one `TaskPast` for all that have none.

    `attempt` is the number of the latest assignment. `rules` and `function` belong to the task's present position in
    its chain of recovery tasks.
    """

    id: int
    queue_seq: int
    submitted_s: float
    session: str
    function: str | None
    rules: Rules | None
    job: str | None
    """The job that counts the task, whatever its recovery tasks say."""
    past: TaskPast
    place: Place = QUEUED
    attempt: int = 0
    key: Any = 0
    """The key that the queue policy has computed."""
    task_class: TaskClass | None = None
    environment: str | None = None
    """The identity of the environment that counts the task."""
    dependencies: Needs | None = None
    waits_for: set[int] | None = None
    """The tasks that this one waits for; None or empty for no tasks."""
    parent: int | None = None
    """The task that submitted this one."""
    items: int = 0
    """Of a chunk: the number of its items.  0: it is none."""
    part: tuple[int, int] | None = None
    """Of an item of a chunk: (the chunk, its index there)."""

    def __lt__(self, other: TaskEntry) -> bool:
        # A task that left a queue and came back is twice in its heap, under one (key, queue_seq).
        return self.id < other.id

    @property
    def state(self) -> State:
        """Return the public state: scheduled until an engine has begun the task."""
        place = self.place
        return _PENDING if type(place) is Assigned and place.since_s is not None else _SCHEDULED

    def own_past(self) -> TaskPast:
        """Return the task's own past, which may be changed."""
        if self.past is NO_PAST:
            self.past = TaskPast()
        return self.past

    def own_trial_state(self) -> TrialState:
        """Return the task's own trial state, which may be changed."""
        past = self.own_past()
        if past.trial_state is None:
            past.trial_state = TrialState()
        return past.trial_state

    @property
    def retries_left(self) -> int:
        """Return how many runs are still allowed after an error."""
        return (self.rules or DEFAULT_RULES).retries - self.past.errors

    @property
    def losses_left(self) -> int:
        """Return how many runs are still allowed after the loss of an engine.

        That is `lost_retries` if given, else the rest of `retries`.
        """
        rules = self.rules or DEFAULT_RULES
        if rules.lost_retries is not None:
            return rules.lost_retries - self.past.losses
        return rules.retries - self.past.errors

    @property
    def next_recovery(self) -> Recovery | None:
        """Return the next link of the task's chain."""
        return self.rules.recovery if self.rules is not None else None

    @property
    def may_repeat(self) -> bool:
        """Return whether an attempt whose end is unknown may be run again."""
        return self.losses_left > 0

    def is_current(self, engine: Incarnation, run: RunKey) -> bool:
        """Return whether this engine's answer about this run still decides anything."""
        place = self.place
        return type(place) is Assigned and place.engine == engine and place.attempt == run[1]


# -- classes


_NO_HEAP: Final[list[tuple[Any, int, TaskEntry]]] = []
"""The heap of a class in which every task came in order."""


def _is_present(entry: tuple[Any, int, TaskEntry]) -> bool:
    """Return whether an entry of a heap has its task's present place, not that of an earlier key or turn."""
    key, seq, task = entry
    return task.queue_seq == seq and bool(task.key == key)


class TaskClass:
    """The waiting tasks of one class, and their measured durations."""

    __slots__ = (
        "_ahead", "_behind", "_end", "_heap", "_heaped", "_left", "alone", "concurrent", "durations", "eligible",
        "ends_with_job", "environment", "gated", "key", "requirements", "reserved_by", "restricted", "size",
    )  # fmt: skip

    def __init__(self, key: ClassKey) -> None:
        self.key = key
        self.restricted = key.restricted
        self.environment = key.environment
        self.requirements = requirements = key.requirements
        recycle = requirements.recycle if requirements is not None else None
        self.ends_with_job = recycle is not None and recycle.on_job_end
        """Whether engines are recycled when its job ends: no other job's tasks are sent behind its own."""
        self.gated = key.limit_s is not None or (requirements is not None and requirements.gated)
        self.concurrent = key.concurrent
        self.alone = key.suspect or key.concurrent or (requirements is not None and requirements.alone)
        self.reserved_by: str | None = None
        """The session of the agent that starts nothing later than this class's head until the head can start."""
        # Tasks that came in order wait in a line of two lists; a deque would take ten times their room in each class.
        self._ahead: list[TaskEntry] = []
        """The front of the line, its first task last."""
        self._behind: list[TaskEntry] = []
        """The rest of the line, its last task last."""
        self._end: tuple[Any, int] = (None, -1)
        """(key, queue_seq) of the last task that joined the line."""
        self._left: dict[TaskEntry, int] | None = None
        """Task -> how many of its entries at the front of the line are outdated: it has left since."""
        self._heap: list[tuple[Any, int, TaskEntry]] = _NO_HEAP
        """The tasks that came out of order, and entries of those that have left it."""
        self._heaped: set[TaskEntry] | None = None
        """The tasks that wait in the heap."""
        self.size = 0
        """How many tasks wait.  Line and heap may hold more entries, of tasks that have left."""
        self.durations = Durations()
        self.eligible: dict[EngineEntry, None] = {}
        """The engines that may serve the class now; empty for unrestricted classes."""

    def push(self, task: TaskEntry) -> bool:
        """Queue a task, and return whether it is the new head."""
        key, seq = task.key, task.queue_seq
        self.size += 1
        task.task_class = self
        end_key, end_seq = self._end
        if not (self._behind or self._ahead) or (seq > end_seq if key == end_key else key > end_key):
            self._behind.append(task)
            self._end = key, seq
            if self.size == 1:
                return True
            # What is in front of it may have left, or wait in the heap behind it.
            return bool(self._left or self._heaped) and self.head() == (key, seq)
        if self._heaped is None:
            self._heap, self._heaped = [], set()
        heappush(self._heap, (key, seq, task))
        self._heaped.add(task)
        return self.head() == (key, seq)

    def push_line(self, tasks: list[TaskEntry]) -> bool:
        """Queue tasks, most of them in the order of their turns, and return whether one of them is the new head."""
        leads, joined = self.push(tasks[0]), 1
        if self._behind and self._behind[-1] is tasks[0]:
            key, seq = self._end
            for task in islice(tasks, 1, None):
                if task.key != key or task.queue_seq < seq:
                    break
                seq = task.queue_seq
                task.task_class = self
                joined += 1
            self._behind += islice(tasks, 1, joined)
            self._end = key, seq
            self.size += joined - 1
        for task in islice(tasks, joined, None):
            leads = self.push(task) or leads
        return leads

    def first(self) -> TaskEntry | None:
        """Return the first waiting task without removing it."""
        first = self._first_in_line()
        if not self._heaped:
            return first
        key, seq, heaped = self._first_in_heap()
        return heaped if first is None or (key, seq) < (first.key, first.queue_seq) else first

    def _first_in_line(self) -> TaskEntry | None:
        left = self._left
        while line := self._turned():
            while line and left and (outdated := left.get(line[-1])):
                if outdated > 1:
                    left[line.pop()] = outdated - 1
                else:
                    del left[line.pop()]
            if line:
                return line[-1]
        return None

    def _turned(self) -> list[TaskEntry]:
        """Return the front of the line, which is empty only if the line is."""
        if not self._ahead:
            self._behind.reverse()
            self._ahead, self._behind = self._behind, self._ahead
        return self._ahead

    def _first_in_heap(self) -> tuple[Any, int, TaskEntry]:
        """Return the first entry of a heap in which a task waits."""
        heap, heaped = self._heap, self._heaped or ()
        while True:
            entry = heap[0]
            if entry[2] in heaped and _is_present(entry):
                return entry
            heappop(heap)

    def head(self) -> tuple[Any, int] | None:
        """Return (key, queue_seq) of the first waiting task."""
        if not self.size:
            return None
        if self._left or self._heaped:
            first = self.first()
            return None if first is None else (first.key, first.queue_seq)
        first = self._ahead[-1] if self._ahead else self._behind[0]
        return first.key, first.queue_seq

    def waiting(self) -> Iterator[TaskEntry]:
        """Yield the entries of waiting tasks, in no order; a task that came back may be there twice."""
        yield from (task for task in self._in_line() if task.task_class is self)
        yield from (entry[2] for entry in self._heap if entry[2].task_class is self and _is_present(entry))

    def holds(self) -> int:
        """Return how many tasks wait, by looking at each entry.  Unlike `head` this changes nothing."""
        left = dict(self._left or ())
        waiting = set()
        for task in self._in_line():
            if left.get(task):
                left[task] -= 1
            else:
                waiting.add(task)
        heaped = self._heaped or ()
        entries = {entry[2] for entry in self._heap if entry[2] in heaped and _is_present(entry)}
        return sum(task.task_class is self for task in waiting | entries)

    def pop(self, limit: tuple[Any, int] | None = None) -> TaskEntry | None:
        """Remove and return the first waiting task, unless it is later than `limit`; None if there is no such task."""
        if not self.size:
            return None
        mixed = bool(self._left or self._heaped)  # `first` changes both
        # The only task of a line of one list is its first and its last.
        line = self._ahead or (self._behind if self.size == 1 and not mixed else self._turned())
        task = self.first() if mixed else line[-1]
        if task is None or (limit is not None and (task.key, task.queue_seq) > limit):
            return None
        if not mixed:
            line.pop()
        elif self._heaped and task in self._heaped:
            heappop(self._heap)
            self._leave_heap(task)
        else:
            self._ahead.pop()
        task.task_class = None
        self.size -= 1
        return task

    def leave(self, task: TaskEntry) -> None:
        """Remove a waiting task that was aborted or changes its class. Its entry stays and is skipped later."""
        task.task_class = None
        self.size -= 1
        if self._heaped and task in self._heaped:
            self._leave_heap(task)
        else:
            left = self._left = self._left or {}
            left[task] = left.get(task, 0) + 1
        if not self.size:
            self._ahead, self._behind, self._left = [], [], None
        elif self._left and self._ahead and self._ahead[-1] in self._left:
            self._first_in_line()  # what is outdated is dropped at once, where possible: later it is dropped in one go

    def _leave_heap(self, task: TaskEntry) -> None:
        if not self._heaped:
            return
        self._heaped.discard(task)
        if not self._heaped:
            self._heap.clear()
        else:
            self._first_in_heap()

    def _in_line(self) -> Iterator[TaskEntry]:
        """Yield the entries of the line in their order, those of tasks that have left included."""
        yield from reversed(self._ahead)
        yield from self._behind

    @property
    def quick(self) -> bool:
        """Return whether tasks of the class may be sent ahead to a busy engine."""
        return not self.alone and self.durations.quick


class Heads:
    """A lazy heap of classes by their heads."""

    __slots__ = ("_tie", "heap")

    def __init__(self) -> None:
        self.heap: list[tuple[Any, int, int, TaskClass]] = []
        """(key and queue_seq of the head when it was pushed, number of the entry, class); some entries are outdated."""
        self._tie = 0

    def push(self, task_class: TaskClass) -> None:
        """Announce a class, or its new head."""
        head = task_class.head()
        if head is not None:
            self.push_head(head, task_class)

    def push_head(self, head: tuple[Any, int], task_class: TaskClass) -> None:
        """Do the same for a class with this head."""
        self._tie += 1
        heappush(self.heap, (head[0], head[1], self._tie, task_class))

    def __contains__(self, task_class: TaskClass) -> bool:
        return any(entry[3] is task_class for entry in self.heap)

    def drop_first(self) -> None:
        """Remove the class that `first` has returned, until it is pushed again."""
        heappop(self.heap)

    def preferred(
        self, engine: EngineEntry | None, wanted: Callable[[TaskClass], bool], as_urgent: bool = True
    ) -> TaskClass | None:
        """Return the earliest class for which `wanted` is true.

        With `as_urgent`, only classes count with heads as urgent as the first.
        """
        passed: list[tuple[Any, int, int, TaskClass]] = []
        found = None
        while (head := self.first(engine)) is not None and (not passed or not as_urgent or head[0] == passed[0][0]):
            if wanted(head[2]):
                found = head[2]
                break
            passed.append(heappop(self.heap))
        for entry in passed:
            heappush(self.heap, entry)
        return found

    def first(self, engine: EngineEntry | None = None) -> tuple[Any, int, TaskClass] | None:
        """Return the class with the earliest head; with `engine`, among those that the engine may serve."""
        heap = self.heap
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
    # An engine keeps its environment until it ends, so a class that needs another one is not examined again.
    environment = task_class.environment
    return engine in task_class.eligible and (environment is None or serves_environment(engine, environment))


def serves_environment(engine: EngineEntry, identity: str | None) -> bool:
    """Return whether an engine has this environment or is blank; None means that no environment is needed."""
    return identity is None or engine.environment is None or engine.environment.identity == identity


# -- engines


class AssignedRun(msgspec.Struct, eq=False):
    """One run that an engine holds and has not answered."""

    batch: RecordedBatch
    cost_s: float
    """The run's share of `EngineEntry.ahead_s`."""
    quick: bool
    """Whether the run's class has short tasks, behind which others may be sent."""
    task_class: TaskClass | None
    recalled_s: float | None = None
    """When (monotonic) the run was recalled."""
    claim: Claim | None = None
    nested_wait: NestedWait | None = None
    """Set while the run waits inside itself for other tasks."""
    concurrent: bool = False
    """Whether the engine runs it beside its other runs, as a coroutine."""


TEXT_SHOWN = 80
"""The number of characters of a command that are shown."""


class EngineState:
    """The states of an engine, as `tables.EngineRow.state` shows them."""

    PREPARING = "preparing"
    UP = "up"
    AWAY = "unreachable"
    STOPPING = "stopping"


@dataclass(slots=True, eq=False)
class EngineEntry:
    """One incarnation of an engine."""

    name: Incarnation
    id: int
    agent: str
    """The session of the engine's agent."""
    node: str
    state: str = EngineState.PREPARING
    retiring: bool = False
    """Whether the engine is ended as soon as it is empty."""
    withheld_until_s: float = 0.0
    """The engine gets no tasks before this time (monotonic)."""
    assigned: dict[RunKey, AssignedRun] = field(default_factory=dict)
    """The runs that the engine holds, in the order in which it runs them."""
    heads: Heads = field(default_factory=Heads)
    """The restricted classes that the engine may serve."""
    waits_in: dict[EngineEntry, None] | None = None
    """That of `Readiness.idle`, `blocked` and `with_room` in which the engine is."""
    is_newly_idle: bool = False
    """Whether the engine is in `Readiness.newly_idle`."""
    idle_s: float = 0.0
    """The monotonic time since which the engine has no run; 0 if it has one."""
    environment: Environment | None = None
    """None if the engine is blank."""
    ahead_s: float = 0.0
    """How long the engine will take for its runs, as far as their durations are known."""
    current: RunKey | None = None
    """The oldest run that the engine had when it was last examined."""
    since_s: float = 0.0
    """The monotonic time since which that has been its oldest run."""
    last_key: Any = None
    """The policy key of the task that was assigned last."""
    not_quick: int = 0
    """How many of the assigned runs are not quick: nothing is sent behind them."""
    concurrent: int = 0
    """How many of the assigned runs are concurrent: all of them, or none."""
    recycling: dict[tuple[str, Recycle], None] = field(default_factory=dict)
    """(scope, settings) of the tasks that the engine ran.  The scope is an environment's identity, or a job."""
    finished: int = 0
    """How many runs the engine has answered."""
    last_batch: int = 0
    """The number of the batch that was sent to the engine last."""
    # What is above is needed for each task: it lies together in the memory of thousands of engines.
    pid: int = 0
    started_s: float = 0.0
    born_s: float | None = None
    """The same by the controller's monotonic clock, once an agent has reported the engine."""
    facts: dict[str, Any] = field(default_factory=dict)
    connection_file: str = ""
    note: str = ""
    properties: PropertiesChanged | None = None
    preparing: dict[int, str] = field(default_factory=dict)
    """Number -> text of the farm's own unanswered commands, in the order in which they are run."""
    steps_done: int = 0
    """How many of the farm's own commands were answered."""
    step_since_s: float = 0.0
    """Since when (monotonic) the first of `preparing` is run."""
    not_replayed: list[tuple[str, str]] = field(default_factory=list)
    """(text, failure) of commands from the predecessor that failed when they were repeated here."""
    replaces: str = ""
    """What the engine was told about its predecessor; "" if it is no replacement, or is not prepared yet."""
    surplus: bool = False
    """Whether the engine is retiring because fewer are wanted: it is taken back if more are wanted again."""
    recycled: str = ""
    """Why the engine is retiring, if its slot is filled again; "" if it is not retiring, or loses its slot."""
    kept: bool = False
    """Whether the engine is retiring, and not ended yet: a nested wait may need it, see `scheduler.kept_engines`."""
    saving: int = 0
    """The number under which a recycled engine's names will be kept; 0 if they are not being saved."""
    set_up: bool = False
    """Whether the environment's setup has ended."""
    runs: dict[str, int] = field(default_factory=dict)
    """Scope -> how many of its runs have ended here."""
    ran_commands: bool = False
    """Whether MultiEngine commands ran here: such an engine is recycled last for another environment."""

    @property
    def counts_as_wanted(self) -> bool:
        """Return whether the engine is one of those that the farm's owner wants."""
        return not self.retiring or bool(self.recycled)

    @property
    def version(self) -> int:
        """Return the version of the engine's properties; 0 if none were set."""
        return self.properties.version if self.properties else 0

    def age_s(self, now: Now) -> float:
        """Return the seconds since the engine's start."""
        return now.mono_s - self.born_s if self.born_s is not None else now.since_s(self.started_s)

    def preparation(self, mono_s: float) -> str:
        """Return a text for people on the progress of the engine's preparation; "" if it is prepared."""
        if self.state != EngineState.PREPARING or not self.preparing:
            return ""
        line, more, _ = next(iter(self.preparing.values())).partition("\n")
        shown = line if len(line) <= TEXT_SHOWN and not more else f"{line[:TEXT_SHOWN]}…"
        of = self.steps_done + len(self.preparing)
        return f"being prepared: {self.steps_done + 1} of {of}, {shown}, {mono_s - self.step_since_s:.0f} s"

    def add_run(self, run: RunKey, assigned: AssignedRun) -> None:
        """Add a run behind those that the engine has already."""
        self.assigned[run] = assigned
        assigned.batch.unanswered += 1
        self.ahead_s += assigned.cost_s
        self.not_quick += not assigned.quick
        self.concurrent += assigned.concurrent

    def remove_run(self, run: RunKey) -> AssignedRun | None:
        """Remove a run from the engine; None if the engine did not have it."""
        assigned = self.assigned.pop(run, None)
        if assigned is not None:
            # A remainder of the sum without runs is an error of rounding.
            self.ahead_s = self.ahead_s - assigned.cost_s if self.assigned else 0.0
            self.not_quick -= not assigned.quick
            self.concurrent -= assigned.concurrent
            assigned.batch.unanswered -= 1
        return assigned

    def oldest(self) -> RunKey | None:
        """Return the run that the engine is running, as far as is known."""
        return next(iter(self.assigned), None)

    def running(self) -> list[RunKey]:
        """Return the runs that the engine is running, as far as is known: its oldest one, or all concurrent ones."""
        return list(self.assigned) if self.concurrent else list(islice(self.assigned, 1))

    def runs_ahead(self) -> list[RunKey]:
        """Return the runs that the engine holds behind what it is running."""
        return [] if self.concurrent else list(self.assigned)[1:]
