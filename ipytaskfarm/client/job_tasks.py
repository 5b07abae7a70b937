"""The parts of a `Job`: the graph of its tasks, its record, its tasks as users see them, and its events."""

from __future__ import annotations

import threading
import time
import traceback
import uuid
from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import Any

from ..core.messages import ListTasks, tables
from ..core.messages.task_types import Packed
from ..core.states import RUNNING, State, state_counts
from .map_jobs import ROWS_MAX, MapMembers, counts
from .old_names import OldNames
from .tables import StateCounts
from .task_calls import TaskCalls
from .task_messages import progress_of
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


class JobEvents:
    """Calls the user's functions at events of a job, in a thread that runs until the job has ended."""

    def __init__(self, record: JobRecord, job: object) -> None:
        """Store the job's record, and the `Job` itself, which is the argument of the functions."""
        self._record = record
        self._job = job
        self._functions: dict[str, list[Callable[..., object]]] = {}
        self._thread: threading.Thread | None = None

    def add(self, event: str, function: Callable[..., object]) -> None:
        """Call a function at this event: "task_done", "state" or "progress"."""
        if not callable(function):
            raise TypeError(f"a function is needed, not {type(function).__name__}")
        self._functions.setdefault(event, []).append(function)
        if self._record.ids:
            self.begin()

    def begin(self) -> None:
        """Start the thread, after tasks were submitted."""
        if self._functions and (self._thread is None or not self._thread.is_alive()):
            name = f"ipytaskfarm job {self._record.name}"
            self._thread = threading.Thread(target=self._watch, name=name, daemon=True)
            self._thread.start()

    def _call(self, event: str, *args: Any) -> None:
        for function in self._functions.get(event, ()):
            try:
                function(*args)
            except Exception:  # an error of the user's function: the job and its other events go on
                traceback.print_exc()

    def _watch(self) -> None:
        record, job = self._record, self._job
        client = record.client
        waiting = dict.fromkeys(record.ids)
        reported, failed, began = -1.0, False, False
        while True:
            live = client.session.arrivals.live(set(waiting))
            for task_id in [i for i in waiting if i not in live]:
                del waiting[task_id]
                try:
                    result = client.get_task_result(task_id, raw=False)
                except Exception:  # refused, or cleared meanwhile
                    continue
                failed = failed or result.status == "failed"
                self._call("task_done", result)
            progress = record.progress() if self._functions.get("progress") or not began else reported
            if not began and (progress > 0 or record.counts()[RUNNING]):
                began = True
                self._call("state", job, "running")
            if progress != reported:
                reported = progress
                self._call("progress", job, progress)
            for task_id in record.ids:  # tasks may have been added meanwhile
                if task_id in live:
                    waiting[task_id] = None
            if not waiting:
                self._call("state", job, "failed" if failed else "succeeded")
                return
            time.sleep(LOOK_EVERY_S)
