"""The parts of a `Job`: the graph of its tasks, its record, its tasks as users see them, and its events."""

from __future__ import annotations

import threading
import time
import traceback
import uuid
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..core.messages import ListTasks, tables
from ..core.messages.task_types import Packed
from ..core.states import RUNNING, State, state_counts
from .map_jobs import ROWS_MAX, MapMembers, counts
from .old_names import OldNames
from .operate import progress_of
from .tables import StateCounts, TaskCalls
from .tasks import Task

LOOK_EVERY_S = 0.15


class Graph:
    """The edges between the tasks of a job, by their positions."""

    def __init__(self) -> None:
        self.after: list[list[int]] = []
        """Position of a task -> positions of the tasks of the job that it waits for."""
        self.outside: list[list[int]] = []
        """Position of a task -> ids of tasks outside of the job that it waits for."""
        self._before: list[list[int]] | None = None

    def known(self, ids: Sequence[int]) -> None:
        """Set a graph without edges, for a job of another client, whose edges are not known here."""
        self.after = [[] for _ in ids]
        self.outside = [[] for _ in ids]

    def place_of(self, tasks: list[Task]) -> Callable[[Task], int]:
        """Return the function that identifies a task of the job while others are packed: it returns -1 -
        its position.
        """
        positions = {id(task): position for position, task in enumerate(tasks)}

        def place(task: Task) -> int:
            try:
                return -1 - positions[id(task)]
            except KeyError:
                raise ValueError(f"{task!r:.80} is waited for, and was not added to this job: add_task() it") from None

        return place

    def add(self, tasks: list[Task], packed: list[Packed]) -> list[int]:
        """Add the edges of the last tasks, which have just been packed.

        Returns the positions of these tasks, each after the tasks that it waits for.  Raises ValueError, which names
        the tasks of a cycle.
        """
        first = len(tasks) - len(packed)
        after: list[list[int]] = []
        outside: list[list[int]] = []
        for each in packed:
            ids = each.needs.after if each.needs is not None else ()
            after.append([-1 - i for i in ids if i < 0])
            outside.append([i for i in ids if i >= 0])
        order = _in_order(after, first, tasks)
        self.after[first:] = after
        self.outside[first:] = outside
        self._before = None
        return order

    def dependents(self, position: int) -> list[int]:
        """Return the positions of the tasks that wait for this one."""
        if self._before is None:
            self._before = [[] for _ in self.after]
            for waiting, edges in enumerate(self.after):
                for other in edges:
                    self._before[other].append(waiting)
        return self._before[position]


def _in_order(after: list[list[int]], first: int, tasks: list[Task]) -> list[int]:
    """Sort topologically by Kahn's algorithm, which is linear in the number of edges and not recursive."""
    left = [sum(1 for other in edges if other >= first) for edges in after]
    waiting: list[list[int]] = [[] for _ in after]
    for position, edges in enumerate(after):
        for other in edges:
            if other >= first:
                waiting[other - first].append(position)
    ready = deque(position for position, count in enumerate(left) if not count)
    order = []
    while ready:
        position = ready.popleft()
        order.append(first + position)
        for other in waiting[position]:
            left[other] -= 1
            if not left[other]:
                ready.append(other)
    if len(order) < len(after):
        raise ValueError(f"tasks wait for one another in a circle: {_circle(after, left, first, tasks)}")
    return order


def _circle(after: list[list[int]], left: list[int], first: int, tasks: list[Task]) -> str:
    position = next(p for p, count in enumerate(left) if count)
    seen: dict[int, None] = {}
    while position not in seen:
        seen[position] = None
        position = next(other - first for other in after[position] if other >= first and left[other - first])
    path = [*seen][[*seen].index(position) :]
    names = [f"{tasks[first + p].name or tasks[first + p]._short()} (task {first + p} of the job)" for p in path]
    return " waits for ".join([*names, names[0]])


class JobRecord:
    """The state that a `Job` shares with its parts: client, id, name, added tasks, their ids and the graph."""

    def __init__(self, client: TaskCalls, name: str) -> None:
        self.client = client
        self.name = name
        self.id = uuid.uuid4().hex
        self.tasks: list[Task] = []
        """Descriptions in the order of adding; empty for a job of another client."""
        self.members: MapMembers | None = None
        """The tasks of a map, whose ids are listed only when they are needed."""
        self._ids: list[int] = []
        self.graph = Graph()

    def __len__(self) -> int:
        return len(self.members) if self.members is not None else max(len(self.tasks), len(self._ids))

    @property
    def ids(self) -> list[int]:
        """Return the ids of the tasks that were submitted, in the order of adding; the list may be changed."""
        if self.members is not None and not self._ids:
            self._ids = self.members.ids()
        return self._ids

    @property
    def is_submitted(self) -> bool:
        """Return whether any task was submitted."""
        return self.members is not None or bool(self._ids)

    def rows(self) -> list[tables.TaskRow]:
        """Return the controller's rows of the tasks."""
        return self.client.session.ask_for(ListTasks(self.ids), tables.TaskRows).rows if self.ids else []

    def last_end_s(self) -> float | None:
        """Return when (wall clock) the last task has ended, as the last 5,000 of them tell; None: not known."""
        rows = self.client.session.ask_for(ListTasks(self.ids[-ROWS_MAX:]), tables.TaskRows).rows
        return max((row.completed_s for row in rows if row.completed_s), default=None)

    def counts(self) -> StateCounts:
        """Return the number of tasks by state."""
        if self.members is not None and len(self.members) > ROWS_MAX:
            return StateCounts(state_counts(counts(self.client.session, self.id, self.members)))
        return StateCounts(state_counts(Counter(row.state for row in self.rows())))

    def progress(self) -> float:
        """Return the share of the tasks that have ended, 0 to 1, including the reported progress of running tasks."""
        if self.members is not None and len(self.members) > ROWS_MAX:
            return 1.0 - self.members.left(self.client.session.arrivals)[0] / len(self.members)
        rows = self.rows()
        if not rows:
            return 0.0
        ended = sum(1 for row in rows if row.state in ("succeeded", "failed"))
        running = [row.id for row in rows if row.state == State.PENDING]
        reported = progress_of(self.client.session, running) if running else {}
        done = ended + sum(each.fraction or 0.0 for each in reported.values())
        return min(1.0, done / max(len(self), len(rows)))

    def live(self) -> set[int]:
        """Return the ids of the tasks that have not ended; of a map, chunks in the place of items."""
        if self.members is not None:
            return self.client.session.arrivals.live(self.members.held(self.client.session.arrivals))
        return self.client.session.arrivals.live(set(self.ids))


class Member(OldNames):
    """One task of a job: its description, its state and its edges."""

    def __init__(self, job: JobRecord, position: int) -> None:
        self._job = job
        self.position = position

    @property
    def task(self) -> Task | None:
        """Return the task's description; None in a job of another client."""
        tasks = self._job.tasks
        return tasks[self.position] if self.position < len(tasks) else None

    @property
    def id(self) -> int | None:
        """Return the task's id; None before it is submitted."""
        ids = self._job.ids
        return ids[self.position] if self.position < len(ids) else None

    @property
    def farm(self) -> str:
        """Return the name of the task's farm."""
        return self._job.client.farm

    def __index__(self) -> int:
        if self.id is None:
            raise TypeError("this task was not submitted yet: job.submit() first")
        return self.id

    @property
    def dependencies(self) -> list[Member]:
        """Return the tasks of the job that this task waits for."""
        graph = self._job.graph
        found = graph.after[self.position] if self.position < len(graph.after) else []
        return [Member(self._job, position) for position in found]

    @property
    def dependents(self) -> list[Member]:
        """Return the tasks of the job that wait for this task."""
        graph = self._job.graph
        found = graph.dependents(self.position) if self.position < len(graph.after) else []
        return [Member(self._job, position) for position in found]

    @property
    def state(self) -> str:
        """Return the state scheduled, running, succeeded or failed; "" before the task is submitted."""
        if self.id is None:
            return ""
        return self._job.client.status(self.id).state

    @property
    def started(self) -> bool:
        """Return whether a run of the task has begun."""
        return self.id is not None and (self.done or self._job.client.status(self.id).state == RUNNING)

    @property
    def done(self) -> bool:
        """Return whether the task has succeeded or failed."""
        return self.id is not None and not self._job.client.session.arrivals.is_live(self.id)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Task):
            return self.task is other
        return isinstance(other, Member) and (other._job, other.position) == (self._job, self.position)

    def __hash__(self) -> int:
        return hash((self._job.id, self.position))

    def __repr__(self) -> str:
        what = self.task._short() if self.task is not None else "task"
        return f"<{what} of job {self._job.name!r}: {'not submitted' if self.id is None else f'id {self.id}'}>"


@dataclass(slots=True, eq=False)
class _EventListener:
    """A function of the user's that is called at an event of a job, and what it was told."""

    event: str
    function: Callable[..., object]
    told: set[int] = field(default_factory=set)
    """The tasks with whose results it was called."""
    last: object = None
    """The state or the progress with which it was called last."""
    batch: int = 0
    """The number of the last submission of whose end it was told."""

    def call(self, *args: Any) -> None:
        """Call the function; its errors are printed, and the job and its other events go on."""
        try:
            self.function(*args)
        except BaseException:  # `sys.exit()` too: it would end the thread of all events
            traceback.print_exc()


class JobEvents:
    """Calls the user's functions at events of a job, in a thread that runs until the job has ended."""

    def __init__(self, record: JobRecord, job: object) -> None:
        """Store the job's record, and the `Job` itself, which is the argument of the functions."""
        self._record = record
        self._job = job
        self._listeners: list[_EventListener] = []
        self._batch = 1
        self._open: dict[int, None] = {}
        """Tasks whose ends were not noticed."""
        self._has_changed = False
        """Whether there are further tasks or functions since the last look."""
        self._lock = threading.RLock()
        self._thread: threading.Thread | None = None

    def add(self, event: str, function: Callable[..., object]) -> None:
        """Call a function at this event: "task_done", "state" or "progress"."""
        if not callable(function):
            raise TypeError(f"a function is needed, not {type(function).__name__}")
        with self._lock:
            self._listeners.append(_EventListener(event, function))
        if self._record.ids:
            self._begin()

    def submitted(self) -> None:
        """Follow tasks that were just submitted, beside those that are followed already."""
        with self._lock:
            self._batch += 1
        self._begin()

    def _begin(self) -> None:
        with self._lock:
            self._has_changed = True
            if self._listeners and self._thread is None:
                name = f"ipytaskfarm job {self._record.name}"
                self._thread = threading.Thread(target=self._watch, name=name, daemon=True)
                self._thread.start()

    def _watch(self) -> None:
        try:
            while self._look():
                time.sleep(LOOK_EVERY_S)
        except Exception as error:
            with self._lock:
                self._thread = None
            if not isinstance(error, ConnectionError):  # else the client was closed, or its farm was stopped
                raise

    def _look(self) -> bool:
        """Call the functions for what has happened since the last look; return whether there is more to come."""
        with self._lock:
            if not self._open and not self._has_changed:
                self._thread = None
                return False
            if self._has_changed:
                self._open = dict.fromkeys(self._record.ids)
            self._has_changed, batch = False, self._batch
            by_event: dict[str, list[_EventListener]] = {}
            for each in self._listeners:
                by_event.setdefault(each.event, []).append(each)
        is_live = self._record.client.session.arrivals.is_live
        for task_id in [task_id for task_id in self._open if not is_live(task_id)]:
            del self._open[task_id]
            self._tell_end(task_id, by_event.get("task_done", ()))
        self._tell_state(batch, by_event.get("state", ()))
        if listeners := by_event.get("progress", ()):
            progress = self._record.progress()
            for listener in listeners:
                if listener.last != progress:
                    listener.last = progress
                    listener.call(self._job, progress)
        return True

    def _tell_end(self, task_id: int, listeners: Iterable[_EventListener]) -> None:
        untold = [listener for listener in listeners if task_id not in listener.told]
        if not untold:
            return
        try:
            result = self._record.client.get_task_result(task_id, block=False, raw=False)
        except Exception:  # refused, or cleared meanwhile
            result = None
        for listener in untold:
            listener.told.add(task_id)
            if result is not None:
                listener.call(result)

    def _tell_state(self, batch: int, listeners: Iterable[_EventListener]) -> None:
        untold = [listener for listener in listeners if listener.batch != batch]
        if not untold:
            return
        record, is_over = self._record, not self._open
        if is_over or record.progress() > 0 or record.counts()[RUNNING]:
            for listener in untold:
                if listener.last != RUNNING:
                    listener.last = RUNNING
                    listener.call(self._job, RUNNING)
        if is_over:
            state = "failed" if record.counts()["failed"] else "succeeded"
            for listener in untold:
                listener.last, listener.batch = state, batch
                listener.call(self._job, state)
