"""What a `Job` is made of: the edges between its tasks, its tasks as they are shown, and its events."""

from __future__ import annotations

import builtins
import contextvars
import threading
import time
import traceback
import uuid
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ..core.messages.task_types import Packed
from .tasks import Task

if TYPE_CHECKING:
    from .jobs import Job

LOOK_EVERY_S = 0.15


class Graph:
    """The edges between the tasks of a job, by their positions."""

    def __init__(self) -> None:
        self.after: list[list[int]] = []
        """Position -> positions that it waits for, within the job."""
        self.outside: list[list[int]] = []
        """Position -> ids of other tasks that it waits for."""
        self._before: list[list[int]] | None = None

    def known(self, ids: Sequence[int]) -> None:
        """A job that was found: its edges are not known here."""
        self.after = [[] for _ in ids]
        self.outside = [[] for _ in ids]

    def place_of(self, tasks: list[Task]) -> Callable[[Task], int]:
        """How another task of the job is named while it is packed: -1 - position."""
        positions = {id(task): position for position, task in enumerate(tasks)}

        def place(task: Task) -> int:
            try:
                return -1 - positions[id(task)]
            except KeyError:
                raise ValueError(f"{task!r:.80} is waited for, and was not added to this job: add_task() it") from None

        return place

    def add(self, tasks: list[Task], packed: list[Packed]) -> list[int]:
        """Take up the edges of the tasks packed last; their positions, each after those that it waits for.
        ValueError that names a circle."""
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
        """Positions that wait for this one."""
        if self._before is None:
            self._before = [[] for _ in self.after]
            for waiting, edges in enumerate(self.after):
                for other in edges:
                    self._before[other].append(waiting)
        return self._before[position]


def _in_order(after: list[list[int]], first: int, tasks: list[Task]) -> list[int]:
    """Kahn's way: the cost is the number of edges, and no recursion."""
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


class Member:
    """One task of a job: its description, where it stands, and its edges."""

    def __init__(self, job: Job, position: int) -> None:
        self._job = job
        self.position = position

    @property
    def task(self) -> Task | None:
        """As it was described; None for a job that was found again."""
        tasks = self._job._tasks
        return tasks[self.position] if self.position < len(tasks) else None

    @property
    def id(self) -> int | None:
        """Its id; None: it was not handed in yet."""
        ids = self._job._ids
        return ids[self.position] if self.position < len(ids) else None

    def __index__(self) -> int:
        if self.id is None:
            raise TypeError("this task was not handed in yet: job.submit() first")
        return self.id

    @property
    def dependencies(self) -> list[Member]:
        """The tasks of the job that it waits for."""
        graph = self._job._graph
        found = graph.after[self.position] if self.position < len(graph.after) else []
        return [Member(self._job, position) for position in found]

    @property
    def dependents(self) -> list[Member]:
        """The tasks of the job that wait for it."""
        if self.position >= len(self._job._graph.after):
            return []
        return [Member(self._job, position) for position in self._job._graph.dependents(self.position)]

    @property
    def state(self) -> str:
        """scheduled, running, succeeded or failed; "" before it was handed in."""
        if self.id is None:
            return ""
        state = self._job._client.status(self.id).state
        return "running" if state == "pending" else state

    @property
    def started(self) -> bool:
        """Whether a run of it has begun."""
        return self.id is not None and (self.done or self._job._client.status(self.id).state == "pending")

    @property
    def done(self) -> bool:
        """Whether it has ended, well or not."""
        return self.id is not None and not self._job._client._session.arrivals.is_live(self.id)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Task):
            return self.task is other
        return isinstance(other, Member) and (other._job, other.position) == (self._job, self.position)

    def __hash__(self) -> int:
        return hash((self._job.id, self.position))

    def __repr__(self) -> str:
        what = self.task._short() if self.task is not None else "task"
        return f"<{what} of job {self._job.name!r}: {'not handed in' if self.id is None else f'id {self.id}'}>"


class JobEvents:
    """Calls the functions that were hung onto a job, in a thread of its own, as long as there are any."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._functions: dict[str, list[Callable[..., object]]] = {}
        self._thread: threading.Thread | None = None

    def add(self, event: str, function: Callable[..., object]) -> None:
        """From now on, or from `begin` on."""
        if not callable(function):
            raise TypeError(f"a function is needed, not {type(function).__name__}")
        self._functions.setdefault(event, []).append(function)
        if self._job._ids:
            self.begin()

    def begin(self) -> None:
        """The job was handed in."""
        if self._functions and (self._thread is None or not self._thread.is_alive()):
            name = f"ipytaskfarm job {self._job.name}"
            self._thread = threading.Thread(target=self._watch, name=name, daemon=True)
            self._thread.start()

    def _call(self, event: str, *args: Any) -> None:
        for function in self._functions.get(event, ()):
            try:
                function(*args)
            except Exception:  # the user's own: the job goes on, and so do its other events
                traceback.print_exc()

    def _watch(self) -> None:
        job = self._job
        client = job._client
        waiting = dict.fromkeys(job._ids)
        told, failed, began = -1.0, False, False
        while True:
            live = client._session.arrivals.live(set(waiting))
            for task_id in [i for i in waiting if i not in live]:
                del waiting[task_id]
                try:
                    result = client.get_task_result(task_id, raw=False)
                except Exception:  # refused, or cleared meanwhile
                    continue
                failed = failed or result.status == "failed"
                self._call("task_done", result)
            progress = job.progress if self._functions.get("progress") or not began else told
            if not began and (progress > 0 or job.counts()["pending"]):
                began = True
                self._call("state", job, "running")
            if progress != told:
                told = progress
                self._call("progress", job, progress)
            for task_id in job._ids:  # it may have become larger
                if task_id in live:
                    waiting[task_id] = None
            if not waiting:
                self._call("state", job, "failed" if failed else "succeeded")
                return
            time.sleep(LOOK_EVERY_S)


def show_live(job: Job) -> None:
    """Show a job in an interactive session: a bar that follows it as long as it runs, where there is a notebook.

    IPython is not imported: if it is there, it is among the builtins."""
    find_shell = getattr(builtins, "get_ipython", None)
    shell = find_shell() if find_shell is not None else None
    if shell is None or getattr(shell, "kernel", None) is None:
        print(repr(job))
        return
    transient = {"display_id": uuid.uuid4().hex}

    def publish(update: bool) -> None:
        data = {"text/plain": repr(job), "text/html": job._repr_html_()}
        shell.display_pub.publish(data, transient=transient, update=update)

    def follow() -> None:
        try:
            while job._client._session.arrivals.live(set(job._ids)):
                time.sleep(LOOK_EVERY_S)
                publish(True)
            publish(True)
        except Exception:  # the farm or the client is gone: what is shown stays as it is
            return

    publish(False)
    if job._ids and job._client._session.arrivals.live(set(job._ids)):
        # What is published belongs to the cell that is known by this context.
        run = contextvars.copy_context().run
        threading.Thread(target=run, args=(follow,), name="ipytaskfarm job display", daemon=True).start()
