"""`Job`: tasks that belong together and share rules."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Generic, Literal, Never, NoReturn, TypeVar, Unpack, overload

from ..core.arguments import check_text, wrong
from ..core.messages import tables
from ..core.messages.task_types import Function, JobSpec
from ..core.states import Reason
from ..core.text import did_you_mean
from ..display.ipython import users_frames
from ..display.text import counts_text, number
from ..environment import TaskEnvironment
from ..system.deadlines import end_of, left_s
from ..system.live_pages import page_path
from .adapters import live_view
from .copied_tasks import note_functions, tell_of_edited
from .environments import pack_environment_of
from .ids import seconds
from .job_tasks import JobEvents, JobRecord, Member
from .map_items import Printed
from .map_jobs import Gathered, MapMembers, collect
from .old_names import ARGUMENTS, no_attribute, remedy
from .operate import abort_tasks, hold, retry_tasks, set_job_priority
from .packing import Shared, pack_task
from .progress import LiveProgress
from .result_cache import kept_results
from .results import TaskResult, decode_body, error_of
from .rules import CHECKS, DEFAULTS, JobRules, flag, pack_rules
from .tables import TaskCalls
from .task_arguments import misplaced_arguments
from .task_work import MapWork, TaskWork
from .tasks import Task, as_task
from .waits import wait_for_map, wait_for_tasks

T = TypeVar("T")

_SHARED = frozenset(DEFAULTS) - {"name", "recovery_task", "after", "unique", "on_duplicate"}
_OWN = {
    "abort_on_failure": "abort_on_failure",
    "cancel_on_task_failure": "abort_on_failure",
    "abort_on_disconnect": "abort_on_disconnect",
    "cancel_on_client_disconnection": "abort_on_disconnect",
}
"""Names that the user may assign -> private attributes of the job."""
_RENAMED = {"task_environment": "environment", "second_copies": "idempotent"}
"""Other names of shared rules."""
_SETTABLE = _SHARED | _OWN.keys() | {"unique"}
_numbers = itertools.count(1)

HEARTBEAT_S = 1.0
"""Seconds between two heartbeats of `Job.wait`."""


class Job:
    """Tasks that belong together.  Made by ``tc.create_job``; nothing runs before `submit`.

    A job has the rules of a `Task` as attributes (`environment`, `priority`, `retries`, `time_limit`, `depend`,
    `targets`, `requires`, `resources`, `exclusive`, `group`, `max_parallel`, `placement` …).  They may be assigned
    until `submit` and apply to every task of the job that does not set the rule itself.  `environment` is never None:
    the recycle settings of an empty one can be set in place, ``job.environment.recycle.on_job_end = True``.

    Attributes of the job itself:
        abort_on_failure: the first task that fails for good ends the others, with the reason "aborted with its job".
        abort_on_disconnect: the end of this client ends the tasks (it is closed, or silent for some seconds).
        second_copies: whether slow tasks are begun a second time elsewhere: all tasks of the job are idempotent.
        unique: a key (True: the job's name): the job is refused while another job with this key has not ended.

    The tasks of a job may wait for one another, ``Task(…, after=[first, second])``, and take each other's results,
    ``Task(f, args=(Ref(first),))``; a `Join` ends when other tasks have ended.  `tasks` has the id, the dependencies
    and the dependents of each task (`Member`).

    Functions given to `on_task_done`, `on_state` and `on_progress` are called in a thread of the job.

    From STK Parallel Computing's Job.
    """

    def __init__(self, client: TaskCalls, name: str | None = None, **shared: Unpack[JobRules]) -> None:
        d = self.__dict__
        name = check_text("name", name)
        d["_record"] = JobRecord(client, name if name is not None else f"job {next(_numbers)}")
        d["_shared"] = {"environment": TaskEnvironment(), **client.defaults}
        d["abort_on_failure"] = False
        d["abort_on_disconnect"] = False
        d["unique"] = None
        d["_opened_s"] = 0.0
        d["_events"] = JobEvents(self._record, self)
        for attribute, value in shared.items():
            if attribute not in _SETTABLE and attribute not in _RENAMED:
                near = f"; instead: {ARGUMENTS[attribute]}" if attribute in ARGUMENTS else ""
                near = (
                    near
                    or did_you_mean(attribute, _SETTABLE)
                    or "; tasks of the job get theirs: job.add_task(Task(f, …))"
                )
                raise TypeError(f"create_job() has no argument {attribute!r}{near}")
            setattr(self, attribute, value)

    # -- rules that the tasks share

    def _assign(self, attribute: str, value: Any) -> None:
        said, attribute = attribute, _RENAMED.get(attribute, attribute)
        if attribute in _OWN:
            self.__dict__[_OWN[attribute]] = flag(attribute, value)
            return
        if attribute == "unique":
            given = None if value is False else self.name if value is True else check_text("unique", value)
            self.__dict__["unique"] = given or None
            return
        if attribute not in _SHARED:
            known = remedy("Job", attribute) or did_you_mean(attribute, _SETTABLE)
            known = known or f"; it has {', '.join(sorted(_SETTABLE))}"
            raise AttributeError(f"a Job has no attribute {attribute!r} to be set{known}")
        if attribute == "environment" and value is None:
            value = TaskEnvironment()
        self._shared[attribute] = flag(said, value) if said == "second_copies" else CHECKS[attribute](value)

    if not TYPE_CHECKING:  # with this method type checkers would allow any attribute
        __setattr__ = _assign

        def __getattr__(self, attribute: str) -> Any:
            attribute = _RENAMED.get(attribute, attribute)
            if attribute not in _SHARED:
                raise no_attribute(self, "Job", attribute)
            return self._shared.get(attribute, DEFAULTS[attribute])

    environment: TaskEnvironment
    task_environment: TaskEnvironment
    retries: int
    depend: Any
    priority: int
    time_limit: float | timedelta | None
    targets: Any
    requires: Any
    resources: Any
    exclusive: bool
    group: str | None
    max_parallel: int | None
    max_parallel_per_node: int | None
    force: bool
    fail_if_unmet: bool
    placement: str | None
    locality: Callable[[dict[str, Any]], int] | None
    grace: float | timedelta | None
    lost_retries: int | None
    if_failed: str
    retry_delay: Any
    retry_on: Any
    defer_time: float | timedelta
    defer_max: float | timedelta
    warn_after: float | timedelta | None
    on_failure: str
    cache: bool | str
    idempotent: bool
    second_copies: bool
    cancel_on_task_failure: bool
    cancel_on_client_disconnection: bool
    _record: JobRecord
    _shared: dict[str, Any]
    _opened_s: float
    _events: JobEvents
    abort_on_failure: bool
    abort_on_disconnect: bool
    unique: Any
    """A key, or None; True becomes the job's name."""

    @property
    def id(self) -> str:
        """Return the job's id, which never changes."""
        return self._record.id

    @property
    def name(self) -> str:
        """Return the job's name."""
        return self._record.name

    def set_task_environment(self, environment: TaskEnvironment) -> None:
        """Assign `environment`, under STK's name for it."""
        self.environment = environment

    # -- submitting

    def add_task(self, task: Any, *misplaced: Never) -> Task:
        """Add a task: a `Task` of any kind, a callable, or an object with ``execute()``.

        The next `submit` submits the task.  Returns the `Task`.
        """
        if misplaced:
            raise misplaced_arguments("job.add_task(Task", task, misplaced)
        made = task if isinstance(task, Task) else as_task(task)
        self._record.tasks.append(made)
        return made

    def submit(self) -> list[int]:
        """Submit the tasks added since the last time, each after the tasks that it waits for.

        Returns their ids in the order of adding.  Nothing is submitted when it raises: ValueError when there is no new
        task, or when tasks wait for one another in a circle, which is named; DuplicateTask when an unfinished job has
        the same unique key.
        """
        record = self._record
        fresh = record.tasks[len(record.ids) :]
        if not fresh:
            raise ValueError(f"job {self.name!r} has no tasks to submit: job.add_task(task) adds one")
        session = record.client.session
        # All tasks are packed before the first is submitted: if one cannot be pickled, no part of the job may be left
        # behind.
        functions: dict[str, Function] = {}
        common = pack_rules({}, self._shared, record.id, None, functions)
        place = record.graph.place_of(record.tasks)
        shared = Shared(self._shared, record.id, common, tuple(functions.values()), place)
        packed = [pack_task(task, session.blobs, shared, session.farm) for task in fresh]
        order = record.graph.add(record.tasks, packed)
        self.__dict__["_opened_s"] = self._opened_s or time.time()
        spec = self._spec()
        first = len(record.ids)
        ids = [*record.ids, *[-1] * len(fresh)]
        for position in order:
            ids[position] = session.submit(packed[position - first], spec, ids)
        if self.unique is not None:  # a duplicate is refused as a whole
            for task_id in ids[first:]:
                final = session.accepted(task_id)
                if final is not None and final.reason == Reason.REFUSED:
                    raise error_of(final, decode_body(final))
        record.ids[:] = ids
        note_functions(self.id, (getattr(task, "function", None) for task in fresh))
        self._events.submitted()
        return ids[first:]

    def spec_of_map(self, total: int, unique: str | None) -> JobSpec:
        """Return the job of a map as it travels."""
        self.__dict__["_opened_s"] = time.time()
        return JobSpec(self.id, self.name, total, unique=unique, opened_s=self._opened_s, is_map=True)

    def begin_map(self, members: MapMembers) -> None:
        """Take the tasks of a map that was submitted."""
        self._record.members = members

    def text_of_going_on(self) -> str:
        """Return what to tell the user who has interrupted the wait for this job."""
        name = repr(self.name)
        return f"job {name} continues: tc.job({name}).results() waits for it again, tc.job({name}).abort() ends it"

    def _spec(self) -> JobSpec:
        environment, recycle = pack_environment_of(self.environment, {})
        identity = environment.identity if environment is not None else None
        total = len(self._record.tasks)
        return JobSpec(
            self.id, self.name, total, identity, recycle, self.abort_on_failure, self.abort_on_disconnect,
            self.unique, self._opened_s,
        )  # fmt: skip

    @property
    def ids(self) -> list[int]:
        """Return the ids of the tasks that were submitted, in the order of adding."""
        return list(self._record.ids)

    @property
    def tasks(self) -> list[Member]:
        """Return the tasks in the order of adding, each with its id, its state, its dependencies and its dependents."""
        return [Member(self._record, position) for position in range(len(self))]

    def __len__(self) -> int:
        return len(self._record)

    # -- waiting and fetching

    def wait(
        self,
        timeout: float | timedelta | None = None,
        heartbeat: Callable[[Job], object] | None = None,
        stream: bool = False,
    ) -> bool:
        """Wait until all tasks of the job have ended; return False after `timeout` seconds.

        Args:
            timeout: seconds, or a timedelta.
            heartbeat: called with the job about once a second during the wait, in this thread; an exception that it
                raises ends the wait.
            stream: show what the tasks print and display while they run.
        """
        self._check_submitted()
        if heartbeat is not None and not callable(heartbeat):
            raise wrong("heartbeat", "a function of the job, or None", heartbeat)
        end_s = end_of(seconds(timeout))
        while True:
            left = left_s(end_s)
            if heartbeat is None:
                return self._wait(left, stream)
            if self._wait(HEARTBEAT_S if left is None else min(HEARTBEAT_S, left), stream, show=False):
                return True
            if left is not None and left <= HEARTBEAT_S:
                return False
            heartbeat(self)

    wait_until_done = wait

    def _wait(self, timeout_s: float | None, stream: bool = False, show: bool = True) -> bool:
        record = self._record
        session = record.client.session
        show = show and bool(record.client.progress)
        if record.members is not None:
            name, go_on_text = f"job {record.name}", self.text_of_going_on()
            return wait_for_map(session, record.members, timeout_s, show, stream, name, go_on_text)
        ids, end_s = set(record.ids), end_of(timeout_s)
        session.watch(ids, end_s=end_s)
        return wait_for_tasks(session, ids, left_s(end_s), show, stream, f"job {record.name}")

    @overload
    def results(
        self, order: Literal[True] = True, timeout: float | timedelta | None = None, return_exceptions: bool = False,
        stream: bool = False,
    ) -> list[Any]: ...  # fmt: skip

    @overload
    def results(
        self, order: Literal[False], timeout: float | timedelta | None = None, return_exceptions: bool = False,
        stream: bool = False,
    ) -> Iterator[Any]: ...  # fmt: skip

    def results(
        self,
        order: bool = True,
        timeout: float | timedelta | None = None,
        return_exceptions: bool = False,
        stream: bool = False,
    ) -> list[Any] | Iterator[Any]:
        """Wait for the tasks and return their results: return values, and dicts of the pulled names.

        Args:
            order: return a list in the order of adding; False: an iterator that yields each result as soon as it comes.
            timeout: seconds, or a timedelta; then TimeoutError is raised.
            return_exceptions: return exceptions among the results; otherwise the first one is raised.
            stream: show what the tasks print and display while they run (order=True).
        """
        self._check_submitted()
        record = self._record
        if not flag("order", order):
            done = record.client.as_completed(record.ids, timeout)
            return (self._value(task_id, return_exceptions) for task_id in done)
        limit_s = seconds(timeout)
        if not self._wait(limit_s, stream):
            raise TimeoutError(f"not all tasks of job {self.name!r} have ended within {limit_s:g} s")
        if record.members is not None:
            return outcome(self, collect(record.client, record.members), "return" if return_exceptions else "raise")
        kept = kept_results(record.client.session, record.ids)
        return [self._value(task_id, return_exceptions, kept.get(task_id)) for task_id in record.ids]

    def as_completed(self, timeout: float | timedelta | None = None) -> Iterator[int]:
        """Yield the id of each task as soon as it has ended.  Raises TimeoutError when `timeout` seconds are over."""
        self._check_submitted()
        return self._record.client.as_completed(self._record.ids, timeout)

    def _value(self, task_id: int, return_exceptions: bool, result: TaskResult | None = None) -> Any:
        try:
            result = result or self._record.client.get_task_result(task_id, raw=False)
            result.raise_exception()
        except Exception as error:
            if return_exceptions:
                return error
            raise
        return result.result

    def _check_submitted(self) -> None:
        if self._record.members is not None:
            return
        if len(self._record.ids) < len(self._record.tasks):
            raise ValueError(f"job {self.name!r} has tasks that were not submitted: job.submit() submits them")
        if not self._record.tasks and not self._record.ids:
            raise ValueError(
                f"job {self.name!r} has no tasks: job.add_task(task) adds one, then job.submit() submits them"
            )

    def _submitted_id(self) -> str:
        """Return the id.  Raises ValueError if nothing of the job was submitted."""
        if not self._record.ids:
            self._check_submitted()
        return self.id

    # -- acting

    def abort(self, reason: str = "", interrupt: bool = True) -> None:
        """Abort the tasks that have not ended, and drop those that were not submitted.  See ``tc.abort``."""
        record = self._record
        if record.members is not None:
            abort_tasks(record.client.session, record.live(), interrupt, reason, running=True, chunks=True)
            return
        del record.tasks[len(record.ids) :]
        if record.ids:
            record.client.abort(record.ids, interrupt, reason)

    def pause(self) -> None:
        """Start no more tasks of the job; running ones go on.  `resume` starts tasks again."""
        hold(self._record.client.session, self._submitted_id(), True)

    def resume(self) -> None:
        """Start tasks again after `pause`."""
        hold(self._record.client.session, self._submitted_id(), False)

    def set_priority(self, priority: int) -> int:
        """Change the priority of the job's tasks, also of those that are submitted later; return how many wait or run.

        See ``tc.set_priority``.  Tasks that are submitted later have the new priority whatever they say themselves,
        such as the items of a generator that a map has yet to take, and the failed ones that are submitted again.
        Children of its tasks keep theirs unless they belong to the job.
        """
        changed = set_job_priority(self._record.client.session, self._submitted_id(), priority)
        self.priority = priority
        return changed

    def retry(self, failed: bool = True, function: Callable[..., Any] | None = None) -> list[int]:
        """Submit the failed tasks (failed=False: all ended ones) again, as new tasks in the place of the old.

        function: as for `retry_failed`.  Returns the new ids.
        """
        record = self._record
        ended = ("failed",) if flag("failed", failed) else ("failed", "succeeded")
        wanted = [row.id for row in record.rows() if row.state in ended]
        known_here = function is not None or tell_of_edited(self.id)
        others: dict[int, int] = {}
        again = retry_tasks(record.client.session, wanted, failed, not known_here, function, others)
        if function is not None:
            note_functions(self.id, [function])
        latest = others | again
        record.ids[:] = [latest.get(task_id, task_id) for task_id in record.ids]
        if record.members is not None:
            record.members.retried.update(latest)
        if latest:
            self._events.submitted()
        return list(again.values())

    def retry_failed(self, function: Callable[..., Any] | None = None) -> list[int]:
        """Submit the failed tasks again, and only these; return their new ids.

        `results` has their results then, in their places, beside those of the tasks that had succeeded.

        Args:
            function: called with the arguments that the tasks had, in the place of their function: the mended one.
                None: the one that they had, as it was; a note says so if it has been defined anew since.

        Raises TypeError, and submits nothing, if a function is given and one of the tasks calls none.
        """
        return self.retry(function=function)

    # -- progress

    @property
    def progress(self) -> float:
        """Return the share of the tasks that have ended, 0 to 1, including the progress that running tasks report."""
        return self._record.progress()

    def on_task_done(self, function: Callable[[TaskResult], object]) -> None:
        """Call ``function(result)`` for each task as soon as it has succeeded or failed."""
        self._events.add("task_done", function)

    def on_state(self, function: Callable[[Job, str], object]) -> None:
        """Call ``function(job, state)`` when the job is "running", and when it has "succeeded" or "failed"."""
        self._events.add("state", function)

    def on_progress(self, function: Callable[[Job, float], object]) -> None:
        """Call ``function(job, progress)`` when the progress has changed, a few times a second, and at the end with
        1.0.
        """
        self._events.add("progress", function)

    def view(self) -> Any:
        """Return the live view of the farm, beginning with the tasks of this job; see `TaskClient.view`."""
        return live_view(self._record.client.session.io.read_info, self._record.id or "")

    def counts(self) -> dict[str, int]:
        """Return the number of tasks by state: scheduled, running, succeeded, failed."""
        return self._record.counts()

    def __repr__(self) -> str:
        if not self._record.is_submitted:
            return f"<Job {self.name!r}: {number(len(self._record.tasks), 'task')}, not submitted>"
        return f"<Job {self.name!r}: {counts_text(self.counts())}>"

    def _ipython_display_(self) -> None:
        if self._record.ids:
            self._live()._ipython_display_()
        else:
            print(repr(self))

    def _repr_html_(self) -> str:
        return self._live()._repr_html_()

    def _live(self) -> LiveProgress:
        session, members = self._record.client.session, self._record.members
        name, opened_s = f"job {self.name}", self._opened_s
        page = page_path(session.farm, self._record.id or "")
        if members is not None:
            return LiveProgress(MapWork(session, members), "items", name, opened_s, page, self._record.last_end_s)
        work = TaskWork(session, set(self._record.ids))
        return LiveProgress(work, "tasks", name, opened_s, page, self._record.last_end_s)

    @classmethod
    def of_row(cls, client: TaskCalls, row: tables.JobRow) -> Job:
        """Return a job of any client, without the descriptions of its tasks."""
        job = cls(client, row.name)
        record = job._record
        record.id = row.id
        job.__dict__["_opened_s"] = row.opened_s
        if row.is_map:
            record.members = MapMembers([(i, row.items.get(i, 0)) for i in row.ids], dict(row.retries))
        else:
            record.ids[:] = row.latest_ids()
            record.graph.known(record.ids)
        client.session.watch(row.ids, row.items)
        return job


class Values(list[T], Generic[T]):
    """The list of a map's values, with the output of its items.

    ``values.stdout[7]`` and ``values.stderr[7]`` are the output of item 7, "" if there is none.  ``values.job`` is the
    map's `Job`.
    """

    def __init__(self, values: Iterable[T], printed: Printed, job: Job) -> None:
        super().__init__(values)
        self._printed = printed
        self.job = job

    def __reduce__(self) -> tuple[type[list[T]], tuple[list[T]]]:
        """Travel as a plain list: the job belongs to this process's client."""
        return list, (list(self),)

    @property
    def stdout(self) -> list[str]:
        """Return what each item has printed to stdout."""
        return self._stream(0)

    @property
    def stderr(self) -> list[str]:
        """Return what each item has printed to stderr."""
        return self._stream(1)

    def _stream(self, number: int) -> list[str]:
        printed = self._printed
        return [printed[item][number] if item in printed else "" for item in range(len(self))]


def outcome(job: Job, found: Gathered, on_error: str) -> Values[Any]:
    """Return the values of a map that has ended, or raise what its caller wants raised."""
    values: Values[Any] = Values(found.values, found.printed, job)
    _name_items(found)
    if found.errors and on_error != "return":
        _raise(job, found, on_error)
    for place, error in found.errors.items():
        values[place] = error
    return values


def _name_items(found: Gathered) -> None:
    """Add the items to an error that no engine could name them in, such as the loss of the engine."""
    places: dict[int, list[int]] = {}
    for place, error in found.errors.items():
        places.setdefault(id(error), []).append(place)
    for place, error in found.errors.items():
        together = places.pop(id(error), None)
        if together is None:
            continue
        with suppress(Exception):  # an exception's own class may do anything
            if not any(str(note).startswith("item") for note in getattr(error, "__notes__", ())):
                which = f"item {place}" if len(together) == 1 else f"items {min(together)} to {max(together)}"
                error.add_note(f"{which} of {len(found.values)}")


def _raise(job: Job, found: Gathered, on_error: str) -> NoReturn:
    failed = len(found.errors)
    text = f"{failed} of {len(found.values)} items of {job.name!r} failed"
    again = f"tc.job({job.name!r}).retry_failed() runs them again"
    places = sorted(found.errors)
    if on_error == "collect":
        # IPython shows groups as Python does, with all frames: those of this module's reading would be in each.
        errors = [found.errors[place] for place in places]
        for error in errors:
            BaseException.with_traceback(error, users_frames(error.__traceback__, is_interrupt=False))
        raise BaseExceptionGroup(f"{text}; {again}", errors)
    error = found.errors[places[0]]
    if failed > 1:
        with suppress(Exception):  # an exception's own class may do anything
            note = f"{text}, this is the first; {again}"
            if note not in getattr(error, "__notes__", ()):
                error.add_note(note)
    raise error
