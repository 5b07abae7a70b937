"""`Job`: tasks that belong together, with what they share."""

from __future__ import annotations

import itertools
import time
import uuid
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from ..core import messages
from ..core.arguments import check_text
from ..core.messages import tables
from ..core.messages.task_types import Function, JobSpec
from ..core.states import Reason
from ..environment import TaskEnvironment
from .display import job_html
from .environments import pack_environment_of
from .ids import seconds
from .job_tasks import Graph, JobEvents, Member, show_live
from .packing import Shared, pack_task
from .results import TaskResult, decode_body, error_of
from .rules import CHECKS, DEFAULTS, flag, pack_rules
from .tasks import Task, as_task

if TYPE_CHECKING:
    from .taskclient import TaskClient

_SHARED = frozenset(DEFAULTS) - {"name", "recovery_task", "after", "unique", "on_duplicate"}
_OWN = {
    "abort_on_failure": "abort_on_failure",
    "cancel_on_task_failure": "abort_on_failure",
    "abort_on_disconnect": "abort_on_disconnect",
    "cancel_on_client_disconnection": "abort_on_disconnect",
}
"""Attributes of the job itself, by the names under which they may be set."""
_numbers = itertools.count(1)

HEARTBEAT_S = 1.0


class Job:
    """Tasks that belong together.  Made by ``tc.create_job``; nothing runs before `submit`.

    Attributes that hold for each of its tasks that does not say otherwise, and may be assigned until `submit`:
    everything that a `Task` has as a rule (`environment`, `priority`, `retries`, `time_limit`, `depend`, `targets`,
    `requires`, `resources`, `exclusive`, `group`, `max_parallel`, `placement` …).  `environment` is never None: of an
    empty one the recycle settings can be set in place, ``job.environment.recycle.on_job_end = True``.

    `abort_on_failure`: the first of its tasks that fails for good ends the others, reason "aborted with its job".
    `abort_on_disconnect`: so does the end of this client (closed, or not heard of for some seconds).
    `unique`: a key (True: its name): refused while another job of this key has not ended.

    Its tasks may wait for one another, ``Task(…, after=[first, second])``, and take each other's results,
    ``Task(f, args=(Ref(first),))``; `Join` ends when others have.  Once handed in, each task of it has ``id``,
    ``dependencies`` and ``dependents`` (`Member`).

    Functions given to `on_task_done`, `on_state` and `on_progress` are called in a thread of the job's.

    From STK Parallel Computing's Job.
    """

    def __init__(self, client: TaskClient, name: str | None = None, **shared: Any) -> None:
        d = self.__dict__
        d["_client"] = client
        d["_shared"] = {"environment": TaskEnvironment()}
        d["_tasks"] = []
        d["_ids"] = []
        d["abort_on_failure"] = False
        d["abort_on_disconnect"] = False
        d["unique"] = None
        d["_opened_s"] = 0.0
        d["_graph"] = Graph()
        d["_events"] = JobEvents(self)
        d["id"] = uuid.uuid4().hex
        name = check_text("name", name)
        d["name"] = name if name is not None else f"job {next(_numbers)}"
        for attribute, value in shared.items():
            setattr(self, attribute, value)

    # -- what its tasks share

    def __setattr__(self, attribute: str, value: Any) -> None:
        attribute = {"task_environment": "environment"}.get(attribute, attribute)
        if attribute in _OWN:
            self.__dict__[_OWN[attribute]] = flag(attribute, value)
            return
        if attribute == "unique":
            given = None if value is False else self.name if value is True else check_text("unique", value)
            self.__dict__["unique"] = given or None
            return
        if attribute not in _SHARED:
            known = ", ".join(sorted(_SHARED | _OWN.keys() | {"unique"}))
            raise AttributeError(f"a Job has no attribute {attribute!r} to be set; it has {known}")
        if attribute == "environment" and value is None:
            value = TaskEnvironment()
        self._shared[attribute] = CHECKS[attribute](value)

    if not TYPE_CHECKING:

        def __getattr__(self, attribute: str) -> Any:
            attribute = {"task_environment": "environment"}.get(attribute, attribute)
            if attribute not in _SHARED:
                raise AttributeError(f"a Job has no attribute {attribute!r}")
            return self._shared.get(attribute, DEFAULTS[attribute])

    environment: TaskEnvironment
    _client: TaskClient
    _shared: dict[str, Any]
    _tasks: list[Task]
    _ids: list[int]
    _opened_s: float
    _graph: Graph
    _events: JobEvents
    id: str
    """Its own, for ever."""
    abort_on_failure: bool
    abort_on_disconnect: bool
    unique: Any
    """A key, or None; assigning True makes it the job's name."""
    name: str

    def set_task_environment(self, environment: TaskEnvironment) -> None:
        """STK's name for assigning `environment`."""
        self.environment = environment

    # -- handing in

    def add_task(self, task: Any) -> Task:
        """A task more: a `Task` of any kind, a callable, or an object with ``execute()``.  It is handed in by `submit`;
        added later, by the next `submit`."""
        made = task if isinstance(task, Task) else as_task(task)
        self._tasks.append(made)
        return made

    def submit(self) -> list[int]:
        """Hand in the tasks added since the last time, each after those that it waits for; their ids, in the order of
        adding.

        Raises ValueError when there are none, or when they wait for one another in a circle, which it names;
        DuplicateTask for a job whose unique key another one has; then nothing is handed in.
        """
        fresh = self._tasks[len(self._ids) :]
        if not fresh:
            raise ValueError(f"job {self.name!r} has no tasks to hand in: add_task() first")
        session = self._client._session
        # All are packed before the first is handed in: one that cannot travel must not leave half a job behind.
        functions: dict[str, Function] = {}
        common = pack_rules({}, self._shared, self.id, None, functions)
        shared = Shared(self._shared, self.id, common, tuple(functions.values()), self._graph.place_of(self._tasks))
        packed = [pack_task(task, session.blobs, shared) for task in fresh]
        order = self._graph.add(self._tasks, packed)
        self.__dict__["_opened_s"] = self._opened_s or time.time()
        spec = self._spec()
        ids = [*self._ids, *[-1] * len(fresh)]
        for position in order:
            ids[position] = session.hand_in(packed[position - len(self._ids)], spec, ids)
        if self.unique is not None:  # a duplicate is refused as a whole
            for task_id in ids[-len(fresh) :]:
                final = session.accepted(task_id)
                if final is not None and final.reason == Reason.REFUSED:
                    raise error_of(final, decode_body(final))
        self._ids[:] = ids
        self._events.begin()
        return self._ids[-len(fresh) :]

    def _spec(self) -> JobSpec:
        environment, recycle = pack_environment_of(self.environment, {})
        identity = environment.identity if environment is not None else None
        return JobSpec(
            self.id, self.name, len(self._tasks), identity, recycle, self.abort_on_failure, self.abort_on_disconnect,
            self.unique, self._opened_s,
        )  # fmt: skip

    @property
    def ids(self) -> list[int]:
        """The ids of its tasks, in the order of adding; those that have been handed in."""
        return list(self._ids)

    @property
    def tasks(self) -> list[Member]:
        """Its tasks, as they were added, each with its id, state, and what it waits for and what waits for it."""
        return [Member(self, position) for position in range(len(self))]

    def __len__(self) -> int:
        return max(len(self._tasks), len(self._ids))

    # -- waiting and fetching

    def wait(self, timeout: float | timedelta | None = None, heartbeat: Callable[[Job], object] | None = None) -> bool:
        """Wait until all its tasks have ended, well or not; False when `timeout` seconds are over.

        heartbeat: called with the job about once a second meanwhile, in this thread; what it raises ends the waiting.
        """
        self._handed_in()
        limit_s = seconds(timeout)
        deadline = None if limit_s is None else time.monotonic() + limit_s
        while True:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            if heartbeat is None:
                return self._wait(left)
            if self._wait(HEARTBEAT_S if left is None else min(HEARTBEAT_S, left)):
                return True
            if left is not None and left <= HEARTBEAT_S:
                return False
            heartbeat(self)

    wait_until_done = wait

    def _wait(self, timeout_s: float | None) -> bool:
        try:
            self._client.barrier(self._ids, timeout=timeout_s)
        except TimeoutError:
            return False
        return True

    def results(
        self, order: bool = True, timeout: float | timedelta | None = None, return_exceptions: bool = False
    ) -> list[Any] | Iterator[Any]:
        """What its tasks gave: return values, and dicts of the pulled names; waits for them.

        Args:
            order: a list in the order of adding; False: an iterator, each as soon as it is there.
            timeout: seconds, then TimeoutError.
            return_exceptions: exceptions stand among the values; otherwise the first is raised.
        """
        self._handed_in()
        if not order:
            done = self._client.as_completed(self._ids, timeout)
            return (self._value(task_id, return_exceptions) for task_id in done)
        self._client.barrier(self._ids, timeout=timeout)
        return [self._value(task_id, return_exceptions) for task_id in self._ids]

    def as_completed(self, timeout: float | timedelta | None = None) -> Iterator[int]:
        """The ids of its tasks, each as soon as it has ended.  TimeoutError when `timeout` seconds are over."""
        self._handed_in()
        return self._client.as_completed(self._ids, timeout)

    def _value(self, task_id: int, return_exceptions: bool) -> Any:
        try:
            result = self._client.get_task_result(task_id, raw=False)
            result.raise_exception()
        except Exception as error:
            if return_exceptions:
                return error
            raise
        return result.result

    def _handed_in(self) -> None:
        if len(self._ids) < len(self._tasks):
            raise ValueError(f"job {self.name!r} has tasks that were not handed in: submit() first")

    # -- acting and looking

    def abort(self, reason: str = "", interrupt: bool = True) -> None:
        """Abort what has not ended; tasks that were not handed in never are.  See ``tc.abort``."""
        del self._tasks[len(self._ids) :]
        if self._ids:
            self._client.abort(self._ids, interrupt, reason)

    def pause(self) -> None:
        """Start nothing more of it; what runs comes to its end."""
        self._handed_in()
        self._client.pause(self)

    def resume(self) -> None:
        """Let it go on."""
        self._client.resume(self)

    def retry(self, failed: bool = True) -> list[int]:
        """Hand in those of its tasks that failed once more, as new ones that take the place of the old; their ids.
        failed=False: all that have ended."""
        ended = ("failed",) if failed else ("failed", "succeeded")
        again = self._client._retry([row.id for row in self._rows() if row.state in ended], failed_only=failed)
        self._ids[:] = [again.get(task_id, task_id) for task_id in self._ids]
        return list(again.values())

    # -- how far it has come

    @property
    def progress(self) -> float:
        """From 0 to 1: the share of its tasks that have ended, with what running ones say of themselves."""
        rows = self._rows()
        if not rows:
            return 0.0
        ended = sum(1 for row in rows if row.state in ("succeeded", "failed"))
        running = [row.id for row in rows if row.state == "pending"]
        said = self._client.progress_of(running) if running else {}
        return min(1.0, (ended + sum(each.fraction or 0.0 for each in said.values())) / max(len(self), len(rows)))

    def on_task_done(self, function: Callable[[TaskResult], object]) -> None:
        """Call ``function(result)`` for each of its tasks as soon as it has ended, well or not."""
        self._events.add("task_done", function)

    def on_state(self, function: Callable[[Job, str], object]) -> None:
        """Call ``function(job, state)`` when it begins to run, and when it has "succeeded" or "failed"."""
        self._events.add("state", function)

    def on_progress(self, function: Callable[[Job, float], object]) -> None:
        """Call ``function(job, progress)`` when its progress has changed, some times a second; at last with 1.0."""
        self._events.add("progress", function)

    def _rows(self) -> list[tables.TaskRow]:
        return self._client._ask(messages.ListTasks(self._ids), tables.TaskRows).rows if self._ids else []

    def counts(self) -> dict[str, int]:
        """How many of its tasks are scheduled, pending, succeeded, failed."""
        found = dict.fromkeys(("scheduled", "pending", "succeeded", "failed"), 0)
        for row in self._rows():
            found[row.state] += 1
        return found

    def __repr__(self) -> str:
        if not self._ids:
            return f"<Job {self.name!r}: {len(self._tasks)} tasks, not handed in>"
        return (
            f"<Job {self.name!r}: {', '.join(f'{count} {state}' for state, count in self.counts().items() if count)}>"
        )

    def _ipython_display_(self) -> None:
        show_live(self)

    def _repr_html_(self) -> str:
        return job_html(self.name, self.counts(), self.progress if self._ids else 0.0)


def found_job(client: TaskClient, row: tables.JobRow) -> Job:
    """A job that somebody handed in: without the descriptions of its tasks."""
    job = Job(client, row.name)
    job.__dict__["id"] = row.id
    job.__dict__["_opened_s"] = row.opened_s
    job._ids[:] = row.ids
    job._graph.known(row.ids)
    client._session.watch(row.ids)
    return job
