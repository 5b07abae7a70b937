"""`TaskClient`: submit tasks, wait for them, fetch their results."""

from __future__ import annotations

import asyncio
import concurrent.futures
import html
import operator
import warnings
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator, Mapping
from datetime import datetime, timedelta
from functools import partial
from inspect import signature
from os import PathLike
from typing import Any, Literal, TypeAlias, TypeVar, Unpack, overload

from ..core import errors, messages as m
from ..core.arguments import check_count, one_of
from ..core.messages import tables
from ..core.messages.payload import Message
from ..core.messages.task_types import FAIL, Final
from ..core.states import ABORTS, ACCEPTED_STATES, Reason, state_counts
from ..core.text import Text, shown, text_of
from ..display.tables import Table
from ..system.deadlines import end_of, left_s
from ..system.farm_paths import Where
from ..system.live_pages import page_link, page_path
from ..system.user_code import with_cells
from . import operate, sessions
from .adapters import adapter, live_view
from .call_checks import check_block, check_call, check_map
from .copied_tasks import task_of
from .debugging import open_frames, run_and_debug
from .frozen import debug_frozen, frozen_engines
from .futures import TaskFuture, future_of
from .ids import Ids, Timeout, id_list, not_registered, seconds, task_id
from .jobs import Job, Values
from .maps import Mapper, ParallelFunction, begin_map, imap, map_tasks, options
from .old_names import ClientNames, old_keywords
from .operate import Progress
from .packing import freezing, pack_task
from .profiling import CpuProfiling, MemoryProfiling, Profilers, Sampling
from .result_cache import CachedFunction, CacheView, kept_result, why_hit, why_miss
from .results import TaskResult, decode_body, error_of
from .rules import ON_FAILURE, JobRules, MapRules, flag, keyword_parameters
from .session import Session
from .shared_values import Accumulator, Broadcast, broadcast
from .tables import CheckResult, FailureGroups, JobLine, Listing, Snapshot, TaskStatus, TaskTable
from .tasks import CallTask, StringTask, Task, as_task
from .waits import ProgressOfTasks, completed_async, ended_async, wait_for_tasks

T = TypeVar("T")

_RAISED = ABORTS | {Reason.REFUSED}
"""Reasons for which reading a failed task raises an error: there is no result."""
OnError: TypeAlias = Literal["raise", "return", "collect"]
LOOK_S = 1.0
"""Seconds that the display of a client may wait for the farm."""


class TaskClient(ClientNames, settable=("farm", "block")):
    """Your connection to the tasks of `farm` (its name).  All clients of a process share one session per farm and role.

    Args:
        where: None for the farm "default", a farm's name, the path of a connection file (with a ``/`` or ``.json``),
            or ``(host, port)``, whose keys come from the connection file with that address or from `key_file`.
        key_file: a connection file with the keys for ``(host, port)``.
        timeout: seconds to wait for the farm's answer; None: 5, and while its supervisor starts the farm again.

    Raises FarmNotRunning (it names the farm, and the command that starts one), SecurityError, VersionMismatch.
    Use it as a context manager, or call `close`, or neither: submitted tasks are flushed at exit.
    """

    def __init__(
        self, where: Where = None, *, key_file: str | PathLike[str] | None = None, timeout: Timeout = None
    ) -> None:
        self._session = sessions.connect(where, key_file, seconds(timeout))
        self._closed = False
        self.farm = self._session.farm
        self._shows_progress, self.block = True, True  # `block` is IPython 0.10's, which did not read it either
        self._defaults: dict[str, Any] = {}

    # ----------------------------------------------------------------------------------------------
    # Life

    def close(self) -> None:
        """End this client, after waiting up to 10 s until all submitted tasks are accepted.  Tasks go on."""
        if not self._closed:
            self._closed = True
            sessions.release(self._session)

    def __enter__(self) -> TaskClient:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __repr__(self) -> str:
        info, closed = self._session.info, ", closed" if self._closed else ""
        return f"<TaskClient of farm {self.farm!r} at {info.host}:{info.port}{closed}>"

    def _repr_html_(self) -> str:
        link = page_link(page_path(self.farm))
        head = html.escape(repr(self)[1:-1]) + (f" · {link}" if link else "")
        try:
            counts = state_counts(self._session.ask_for(m.QueueStatus(), tables.QueueStatusReply, LOOK_S).counts)
        except Exception as error:  # the farm is away or the client is closed: show the error
            return f"<div>{head}<br>{html.escape(f'{type(error).__name__}: {error}')}</div>"
        return f"<div>{head}</div>{Table(tuple(counts), [tuple(counts.values())]).html()}"

    @property
    def session(self) -> Session:
        """Return the connection, shared by all clients of this process."""
        return self._session

    @property
    def task_controller(self) -> TaskClient:
        """Return this client.  In IPython 0.10 this was another object with the same calls."""
        return self

    # ----------------------------------------------------------------------------------------------
    # Submitting

    def run(self, task: Any, block: bool = False) -> Any:
        """Submit a task and return its id at once; the farm issues 0, 1, 2 … and never an id twice.

        Args:
            task: a `Task` of any kind, a plain callable, or an object with ``execute()``.
            block: wait for the end of the task, and return what ``get_task_result`` returns.

        The task is not yet accepted (on disk) when this returns: see `flush`.  ``map(f, seq)`` runs a function over
        many values.  Raises TypeError for an object that is no task, UnpickleableException for one that cannot travel,
        ConnectionError if this client was closed; then no id is used.  From IPython 0.10's TaskClient.
        """
        if self._closed:
            raise errors.ConnectionError(
                f"this client of farm {self.farm!r} was closed: make a new one, TaskClient({self.farm!r})"
            )
        if block is not False and block is not True:
            block = check_block(task, block)
        if task.__class__ is not StringTask and not isinstance(task, Task):
            task = as_task(task)
        packed = pack_task(task, self._session.blobs, farm=self.farm)
        if self._defaults and "on_failure" not in task.__dict__:
            packed = freezing(packed)
        new_id = self._session.submit(packed)
        if task.unique is not None:
            new_id = self._only_one(new_id, task.on_duplicate)
        return self.get_task_result(new_id, block=True) if block else new_id

    def irun(self, *args: Any, block: bool = False, **kwargs: Any) -> Any:
        """Make a `Task` of these arguments and `run` it: ``tc.irun("a = 1", pull="a")``.  From IPython 0.9."""
        return self.run(Task(*args, **kwargs), block)

    def _only_one(self, new_id: int, on_duplicate: str) -> int:
        """Return the id of a task with a unique key, or the id of the unfinished task that already has this key."""
        final = self._session.accepted(new_id)
        if final is None or final.reason != Reason.REFUSED:
            return new_id
        error = error_of(final, decode_body(final))
        if on_duplicate == "return" and isinstance(error, errors.DuplicateTask) and isinstance(error.first, int):
            return error.first
        raise error

    # Any argument may be a future or a reference, so arguments cannot have the types of the function's parameters.
    @overload
    def submit(self, function: Task, /) -> TaskFuture[Any]: ...

    @overload
    def submit(
        self, function: Callable[..., Coroutine[Any, Any, T]], /, *args: Any, **kwargs: Any
    ) -> TaskFuture[T]: ...

    @overload
    def submit(self, function: Callable[..., T], /, *args: Any, **kwargs: Any) -> TaskFuture[T]: ...

    def submit(self, function: Callable[..., Any] | Task, /, *args: Any, **kwargs: Any) -> TaskFuture[Any]:
        """Submit ``function(*args, **kwargs)``, or a `Task`, and return its `TaskFuture` at once.

        Futures of other tasks (and `Ref`) may stand anywhere among the arguments: the task waits for their values.
        Raises TypeError, UnpickleableException for arguments that do not fit, or travel.  From ``concurrent.futures``.
        """
        if callable(function) and not isinstance(function, Task):
            check_call(function, args, kwargs)
            task: Task = CallTask(function, args=args, kwargs=kwargs)
        else:
            task = as_task(function)
            if args or kwargs:
                raise TypeError(f"a Task has its arguments already: submit(Task(f, args={shown(args, 40)}))")
        return future_of(self, self.run(task))

    def broadcast(self, value: Any) -> Broadcast:
        """Send a value to the farm once, for many tasks; return its `Broadcast` once it is on the farm's disk.

        Raises UnpickleableException for a value that cannot travel.
        """
        return broadcast(self._session, value)

    def accumulator(self, initial: Any = 0, op: Callable[[Any, Any], Any] = operator.add) -> Accumulator:
        """Return a sum that tasks add to.  `op` adds two values and has to be associative and commutative."""
        return Accumulator(self._session, initial, op)

    def create_job(self, name: str | None = None, **shared: Unpack[JobRules]) -> Job:
        """Return a new `Job`: tasks that belong together; `shared` are rules of a `Task` that all of them get.

            job = tc.create_job("primes", environment=Sieve(10**7), retries=1)
            for n in range(100): job.add_task(Task(f, args=(n,)))
            job.submit(); job.results()

        Raises TypeError, ValueError or AttributeError that names the rule.  From STK Parallel Computing.
        """
        return Job(self, name, **shared)

    def flush(self, timeout: Timeout = None) -> None:
        """Wait until all submitted tasks are accepted, which means on disk.

        Raises the refusal of a task, StoreFull while the farm's disk is full (the tasks are kept and sent again),
        TimeoutError when `timeout` seconds are over.
        """
        self._session.flush(seconds(timeout))

    # ----------------------------------------------------------------------------------------------
    # Fetching and waiting

    def get_task_result(self, taskid: int, block: bool | None = None, timeout: Timeout = None, raw: bool = True) -> Any:
        """Return the result of a task: a `TaskResult`, or the bare return value of a MapTask.

        Args:
            taskid: an id, from this client or another one.
            block: wait for the end of the task; False: return None for an unfinished task.  Without it None is
                returned too, with a warning that the task has not ended.
            timeout: seconds to wait at most, then TimeoutError.
            raw: False: return a TaskResult in every case.

        Raises IndexError for an id that was never issued or was cleared, TaskAborted for an aborted task, the exception
        of a failed MapTask, and the refusal of a task that was refused.  From IPython 0.10's TaskClient.
        """
        final = self._session.arrivals.finals.get(taskid) if taskid.__class__ is int else None
        if final is None or final.body is None:
            final = self._find(task_id(taskid, self.farm), bool(block), seconds(timeout))
            if final is None:
                if block is None:
                    text = f"task {taskid} has not ended, and None is returned: block=True waits for its result"
                    warnings.warn(text, stacklevel=2)
                return None
        kept = kept_result(self._session, final) if final.engine_id < 0 and final.from_cache else None
        body = decode_body(final)
        if raw:
            if final.reason:
                if final.reason in _RAISED or body.kind == "raw" or self._is_raw(final):
                    raise error_of(final, body)
            elif body.kind == "raw":
                return (kept or TaskResult(final, body)).result
        return kept or TaskResult(final, body)

    def _is_raw(self, final: Final) -> bool:
        return not final.body and final.id in self._session.raw_ids

    def _find(self, wanted: int, block: bool, timeout_s: float | None) -> Final | None:
        """Ask the controller for the final state of a task; None: it has not ended (block=False)."""
        session, end_s = self._session, end_of(timeout_s)
        if session.arrivals.is_live(wanted):
            if not block:
                session.io.check()
                return None
        else:
            final = session.fetch(wanted, end_s)
            if final is not None or not block:
                return final
            session.watch([wanted], end_s=end_s)
        if not session.wait({wanted}, left_s(end_s)):
            raise TimeoutError(f"task {wanted} has not ended within {timeout_s:g} s")
        return session.fetch(wanted, end_s)

    async def result(self, taskid: int, raw: bool = True) -> Any:
        """Wait in any asyncio loop: ``await tc.result(id)`` returns what ``get_task_result(id, block=True)`` does.

        Cancelling the wait does not touch the task.
        """
        wanted = task_id(taskid, self.farm)
        session = self._session
        loop = asyncio.get_running_loop()
        if not session.arrivals.is_live(wanted):
            await loop.run_in_executor(None, session.watch, [wanted])
        await ended_async(session, wanted)
        # Fetching the result may block, so it runs in another thread.
        return await loop.run_in_executor(None, partial(self.get_task_result, wanted, raw=raw))

    @old_keywords(taskids="ids")
    def barrier(self, ids: Ids | None = None, timeout: Timeout = None, stream: bool = False) -> None:
        """Wait until tasks have succeeded or failed; a failed task raises nothing here.

        Args:
            ids: an id, any sequence of ids, a table from `tasks`; None: all tasks that this process submitted.
            timeout: seconds, then TimeoutError.
            stream: show what the tasks print as they run, each line with its task's id.

        A progress display appears after half a second (``tc.progress = False``: none).  When none of the tasks can run,
        it, or a notice, tells why.  Ctrl-C ends the wait, not the tasks.  Raises IndexError for an id that was never
        issued, StoreFull while these tasks cannot be accepted.  From IPython 0.10's TaskClient.
        """
        timeout_s = seconds(timeout)
        end_s = end_of(timeout_s)
        if ids is None:
            wanted = self._session.unfinished()
        else:
            wanted = set(id_list(ids, self.farm))
            self._session.watch(wanted, end_s=end_s)
        if not wait_for_tasks(self._session, wanted, left_s(end_s), bool(self.progress), stream):
            raise TimeoutError(f"not all of {len(wanted)} tasks have ended within {timeout_s:g} s")

    def wait(
        self, ids: Ids, timeout: Timeout = None, return_when: Literal["all", "first"] = "all"
    ) -> tuple[list[int], list[int]]:
        """Wait for tasks; return (ended, not ended) as lists of ids, in the order given.

        Args:
            ids: an id, or any sequence of ids.
            timeout: seconds, after which this returns without an error.
            return_when: "all"; or "first": return when any task has ended.
        """
        return_when = one_of("return_when", ("all", "first"), return_when)  # type: ignore[assignment]
        wanted = id_list(ids, self.farm)
        session, end_s = self._session, end_of(seconds(timeout))
        try:
            session.watch(wanted, end_s=end_s)
        except TimeoutError:  # the farm is away; or the user's own code has raised it, before the end
            if left_s(end_s):
                raise
        session.wait(set(wanted), left_s(end_s), first=return_when == "first")
        done: list[int] = []
        not_done: list[int] = []
        for i in wanted:
            (not_done if session.arrivals.is_live(i) else done).append(i)
        return done, not_done

    def as_completed(self, ids: Ids, timeout: Timeout = None) -> Iterator[int]:
        """Yield each id as soon as its task has ended.  Raises TimeoutError when `timeout` seconds are over."""
        wanted, timeout_s = list(dict.fromkeys(id_list(ids, self.farm))), seconds(timeout)
        self._session.watch(wanted, end_s=end_of(timeout_s))
        return self._session.as_completed(wanted, timeout_s)

    async def as_completed_async(self, ids: Ids, timeout: Timeout = None) -> AsyncIterator[int]:
        """Yield what `as_completed` yields, in any asyncio loop: ``async for id in tc.as_completed_async(ids)``.

        Leaving the loop early does not touch the tasks.  Raises TimeoutError when `timeout` seconds are over.
        """
        wanted, end_s = list(dict.fromkeys(id_list(ids, self.farm))), end_of(seconds(timeout))
        watch = partial(self._session.watch, wanted, end_s=end_s)
        await asyncio.get_running_loop().run_in_executor(None, watch)
        async for ended in completed_async(self._session, wanted, end_s):
            yield ended

    # ----------------------------------------------------------------------------------------------
    # Acting on tasks

    def abort(self, taskid: Ids, interrupt: bool = True, reason: str = "", running: bool = True) -> list[int]:
        """Abort a task, or several, and return the ids of the aborted ones, without waiting for their engines.

        Args:
            taskid: one id: IndexError is raised if the task was aborted, has ended, or is unknown.  Several ids: those
                that can be aborted are, ended tasks are left alone, and then IndexError is raised for unknown ids.
            interrupt: raise `errors.TaskCancelled` in a running task (and kill its engine if that does not end it);
                False: let the task run to its end and drop its result.
            reason: a text for people, in the `TaskAborted` that fetching the task raises.
            running: False: abort only tasks that have not begun (of a map: items whose chunk has not begun).
        """
        rules = flag("interrupt", interrupt), text_of(reason), flag("running", running)
        return operate.abort_tasks(self._session, taskid, *rules)

    def set_priority(self, taskid: Ids, priority: int) -> list[int]:
        """Change the priority of a task, or several, and return the ids of those that have not ended.

        Waiting tasks get their new place at once.  Running ones go on; their retries and recovery tasks have the new
        priority.  Items of a map that share a run change together.  Children of the tasks keep their priorities.

        Raises IndexError as `abort` does.  ``job.set_priority`` does the same for a job.
        """
        return operate.set_priority(self._session, taskid, priority)

    @old_keywords(taskids="ids")
    def clear(self, ids: Ids | None = None) -> int:
        """Delete final results (None: all) and return their number.  Their ids are not issued again.

        Raises KeyError for an id that is unknown or has not ended, after clearing the rest.
        """
        return operate.clear_results(self._session, ids)

    def retry(self, ids: Ids, function: Callable[..., Any] | None = None) -> list[int]:
        """Submit failed tasks again with the same inputs, as new tasks linked to the old; return the new ids.

        function: called in the place of theirs.  Of several tasks, those with retries count as their latest ones.
        Raises IndexError for unknown ids, ValueError for tasks that did not fail, after the rest; DuplicateTask before.
        """
        return [*dict.fromkeys(operate.retry_tasks(self._session, id_list(ids, self.farm), function=function).values())]

    def restart(self, ids: Ids) -> list[int]:
        """Submit ended tasks again, failed or not, as new tasks linked to the old; return the new ids.

        Raises IndexError for unknown ids, ValueError for tasks that have not ended, after the rest.  From core4.
        """
        return list(operate.retry_tasks(self._session, id_list(ids, self.farm), failed_only=False).values())

    def mark_done(self, taskid: int, result: Any = None) -> None:
        """Make an unfinished task count as succeeded with this result; tasks that wait for it go on.

        Args:
            taskid: an id.  The task does not run; a run that has begun is interrupted, and its answer is dropped.
            result: a dict whose keys are names counts as the pulled names of a StringTask; any other object counts as a
                function's return value.

        Raises TaskError for a task that has ended, IndexError for an unknown id.  From bndl.
        """
        operate.mark_done(self._session, taskid, result)

    def mark_failed(self, taskid: int, reason: str = "") -> str:
        """Make a task's run, or its result, count as failed; return the outcome: runs again, failed, reopened.

        A running task is interrupted: it runs again if it has retries left, else it has failed.  A waiting task has
        failed.  A task that has succeeded is *reopened*: it runs again under its id, its earlier result stays in its
        history, and tasks that wait for it and have not begun wait again.

        Raises TaskError for a task that has failed.  From bndl.
        """
        return operate.mark_failed(self._session, taskid, reason)

    def send(self, taskid: int, *objects: Any, quiet: bool = False) -> None:
        """Send a task one message, or several in this order; ``current_task().receive()`` gets them.

        The messages are on disk when this returns.  They wait for a task that has not begun, and each attempt reads
        each message once.  Raises TaskError for a task that has ended, IndexError for an unknown id (quiet=True: none
        of these), UnpickleableException for an object that cannot travel.
        """
        operate.send(self._session, taskid, objects, quiet)

    def messages(self, taskid: int, timeout: Timeout = None) -> Iterator[Message]:
        """Yield the messages of a task (``current_task().send(obj)``) as soon as they come, until the task has ended.

        Each is a `Message`: value, sender, at_s.  Each call starts at the first message, as messages are kept with the
        result.  Raises TimeoutError when no message has come for `timeout` seconds.
        """
        return operate.read_messages(self._session, taskid, timeout)

    # ----------------------------------------------------------------------------------------------
    # Jobs, nodes and the farm

    def jobs(self) -> Listing:
        """Return the jobs of all clients of the farm as a table, the latest last."""
        return operate.list_jobs(self._session)

    def job(self, name_or_id: str | JobLine) -> Job:
        """Return a job that any client submitted, by its id or its line in `jobs`, or the latest job of that name.

        The job can be waited for, paused and aborted; only the client that made it has the descriptions of its tasks.
        A job is forgotten when all its tasks were cleared.  Raises KeyError for an unknown job.
        """
        return Job.of_row(self, operate.find_job(self._session, name_or_id))

    def pause(self, job: Job | str | None = None) -> None:
        """Start no more tasks of a job (None: of the whole farm); running ones go on.  `resume` starts tasks again."""
        self._hold(job, True)

    def resume(self, job: Job | str | None = None) -> None:
        """Start tasks of a paused job (None: of the whole farm) again."""
        self._hold(job, False)

    def _hold(self, which: Job | str | None, on: bool) -> None:
        found = which if which is None or isinstance(which, Job) else self.job(which)
        operate.hold(self._session, None if found is None else found._submitted_id(), on)

    def drain(self, nodes: str | Iterable[str], on: bool = True) -> int:
        """Give the engines of these nodes no more tasks, while running ones go on; return the number of their agents.

        Args:
            nodes: one name, or several.
            on: False: give the engines tasks again.

        The setting outlives controller and agents.
        """
        return operate.drain(self._session, nodes, on)

    def await_engines(
        self, count: int | None = None, connect_timeout: float = 5, stable_timeout: float = 60
    ) -> list[int]:
        """Wait until there are at least `count` engines, or (None) until no more arrive; return their ids.

        Args:
            count: the least number of engines.
            connect_timeout: seconds until the first engine must be ready, else NoEnginesRegistered (a RuntimeError).
            stable_timeout: seconds after the first engine; then the engines that are ready are returned.

        From bndl's ``await_workers``, which waits with more than `count` workers too.
        """
        return operate.await_engines(self._session, count, connect_timeout, stable_timeout)

    def spin(self) -> bool:
        """Drop cached results of `depend` functions and schedule again; return whether that started a task."""
        return self._session.ask_for(m.SpinFarm(), m.FlagReply).value

    # ----------------------------------------------------------------------------------------------
    # Looking

    def queue_status(self, verbose: bool = False) -> dict[str, Any]:
        """Return a dict of scheduled, pending, succeeded and failed: numbers of tasks, or with verbose lists of ids."""
        reply = self._session.ask_for(m.QueueStatus(bool(verbose)), tables.QueueStatusReply)
        found: dict[str, Any] = dict(reply.counts) if not verbose or reply.ids is None else dict(reply.ids)
        empty: Any = [] if verbose else 0
        return {state: found.get(state, empty) for state in ("scheduled", "pending", "succeeded", "failed")}

    def status(self, taskid: int) -> TaskStatus:
        """Return state, reason, engine, attempts and times of one task.  Raises IndexError for an unknown id."""
        wanted = task_id(taskid, self.farm)
        rows = self._session.ask_for(m.ListTasks([wanted]), tables.TaskRows).rows
        if not rows:
            raise not_registered([wanted])
        return TaskStatus(rows[0])

    def tasks(
        self,
        name: str | None = None,
        state: str | None = None,
        ids: Ids | None = None,
        last: int = 0,
        job: Job | JobLine | str | None = None,
    ) -> TaskTable:
        """Return a table of tasks in order of their ids; it iterates over the ids, so other calls accept it.

        Args:
            name: only tasks of that name.  The word of a state is taken as the state if no task has that name.
            state: scheduled, running (or pending), succeeded, failed; aborted (some failed), unfinished, finished.
            ids: only these tasks.
            last: at most this number of tasks, the latest accepted; 0: all.
            job: only the tasks of this job, and their retries: a job, a line of `jobs`, a name (the latest), or an id.

        Raises KeyError for an unknown job, ValueError for another state, TypeError for `ids` beside `job`.
        """
        if name is not None and not isinstance(name, str):
            raise TypeError(f"the first argument is a name, not {shown(name)}: tc.tasks(ids=…) takes ids")
        wanted = self._ids_of(ids, job)
        asked = None if state is None else one_of("state", ACCEPTED_STATES, state)
        return operate.task_table(self._session, wanted, name, asked, check_count("last", last, least=0) or 0)

    def _ids_of(self, ids: Ids | None, job: Job | JobLine | str | None) -> list[int] | None:
        if job is None:
            return None if ids is None else id_list(ids, self.farm)
        if ids is not None:
            raise TypeError("ids or job, not both: the tasks of a job are all of them")
        return operate.find_job(self._session, job._submitted_id() if isinstance(job, Job) else job).task_ids()

    def view(self) -> Any:
        """Return the live view of the farm; as the last line of a cell it is a page that follows the farm.

        The page shows failures by cause, jobs, why tasks wait, engines, the task stream and all tasks. It needs
        ``pip install "ipytaskfarm[widget]"``; without it, the cell shows the present state as a table.
        """
        return live_view(self._session.io.read_info)

    @property
    def progress(self) -> ProgressOfTasks:
        """Return an object for the progress of tasks: ``tc.progress(ids)`` returns a display and does not wait.

        ``tc.progress = False``: waits of this client show no progress display.  The truth value is what was set.
        """
        return ProgressOfTasks(self._session, self._shows_progress)

    @progress.setter
    def progress(self, shows: bool) -> None:
        self._shows_progress = bool(shows)

    @property
    def defaults(self) -> Mapping[str, Any]:
        """Return the rules of tasks, jobs and maps that do not set these rules themselves; see `on_failure`."""
        return self._defaults

    @property
    def on_failure(self) -> str:
        """Return what an engine does when a task of this client fails: "fail" or "hold", see `rules.Requirements`."""
        return self._defaults.get("on_failure", FAIL)  # type: ignore[no-any-return]

    @on_failure.setter
    def on_failure(self, word: str) -> None:
        self._defaults = {} if one_of("on_failure", ON_FAILURE, word) == FAIL else {"on_failure": word}

    def progress_of(self, ids: Ids) -> dict[int, Progress]:
        """Return the latest progress of the tasks that have reported any, by id.

        The progress of a running task is its last report, or the share of its child tasks that have ended.
        """
        return operate.progress_of(self._session, ids)

    def history(
        self,
        ids: Ids | None = None,
        name: str | None = None,
        what: str | None = None,
        since: float | datetime | timedelta | None = None,
        last: int = 1000,
    ) -> Listing:
        """Return the events of tasks in the order of time: accepted, started, succeeded, failed and why, deferred …

        Args:
            ids, name: only of these tasks, only of tasks of that name.
            what: only events that contain this text.
            since: seconds since 1970, a datetime, or a timedelta back from now.
            last: at most this number of events, the latest; 0: all.
        """
        return operate.read_history(self._session, ids, name, what, since, last)

    def explain(self, taskid: int) -> Text:
        """Return a text about a task: state and why, attempts, what each engine lacks, a failure's local variables."""
        return operate.explanation(self._session, task_id(taskid, self.farm))

    def check(self, task: Any) -> CheckResult:
        """Return which engines could run a task that is not submitted, and why others could not; true if any could."""
        made = task if isinstance(task, Task) else as_task(task)
        packed = pack_task(made, None)
        return CheckResult(self._session.ask_for(m.CheckTask(packed.rules, list(packed.functions)), m.Checked))

    def snapshot(self) -> Snapshot:
        """Return the present nodes: platform, cores, load, memory, disk, resources, engines and environments."""
        return Snapshot(self._session.ask_for(m.FarmStatus(), tables.FarmState))

    def stack(self, taskid: int) -> Text:
        """Return the Python stack of a running task."""
        return Text(with_cells(self._session.ask_for(m.Stack(task_id(taskid, self.farm)), m.TextReply).text))

    def fetch_task(self, taskid: int) -> Task:
        """Return a task as it was submitted, also by another client or an earlier session: edit it, run it again.

        Results of other tasks among its arguments stay `Ref` objects.  Of an item of a map, it is a task for this item.

        Raises IndexError for a task that was never submitted, or has been cleared.
        """
        return task_of(self._copy(taskid))

    def debug(self, taskid: int, *, run: bool | None = None) -> None:
        """Debug a failed task: on the engine that was frozen for it (on_failure="hold"), or else in this process.

        In this process the task runs with the inputs that it had, and stops where it fails.  All of them come from the
        farm, so it may be a task of another client, session or machine.  In IPython its debugger opens, elsewhere pdb.
        If the task succeeds here, its value is printed: then the difference lies in the engine.

        Args:
            taskid: the task.
            run: True: run it in this process, although an engine was frozen for it.  False: run nothing; open the
                frames that came with the failure, with their variables as text.

        Raises:
            IndexError: there is no such task, or a result that it takes has been cleared.
            ValueError: it has not failed, or no frames came with its failure (run=False).
            EnvironmentSetupError: its environment cannot be set up here.
            Exception: the task's own error, where there is no terminal for a debugger.
        """
        number = task_id(taskid, self.farm)
        name = f"task {number}"
        if run is None and debug_frozen(self._session, number):
            return
        if run is not False:
            run_and_debug(task_of(self._copy(number), with_values=True), name)
        else:
            open_frames(self.get_task_result(number, block=False, raw=False), name)

    def frozen(self) -> Listing:
        """Return the engines that were frozen for failed tasks, with the time until which each of them is kept."""
        return frozen_engines(self._session)

    def release(self, ids: Ids | None = None) -> int:
        """End the engines that were frozen for these tasks, None: for all; return how many.  Raises IndexError."""
        tasks = None if ids is None else id_list(ids, self.farm)
        return self._session.ask_for(m.ReleaseFrozen(tasks), m.NumberReply).value

    def _copy(self, taskid: int) -> m.TaskCopy:
        return self._session.ask_for(m.ReadTask(task_id(taskid, self.farm)), m.TaskCopy)

    def cached(self, function: Any = None, /, **rules: Unpack[MapRules]) -> Any:
        """Return a function whose calls run once for equal arguments: ``@tc.cached`` or ``@tc.cached(retries=2)``."""
        return partial(self.cached, **rules) if function is None else CachedFunction(self, function, {**rules})

    def why_miss(self, taskid: int) -> Text:
        """Return why a task did not take its result from the cache: what differs from the nearest entry."""
        return why_miss(self._session, taskid)

    def why_hit(self, taskid: int) -> Text:
        """Return why a task took its result from the cache: which task computed it when, and what is the same."""
        return why_hit(self._session, taskid)

    @property
    def cache(self) -> CacheView:
        """Return the results that are kept for equal tasks: `list`, `size`, `forget`."""
        return CacheView(self._session)

    def failures(self, ids: Ids | None = None, job: Job | JobLine | str | None = None) -> FailureGroups:
        """Return failed tasks grouped by error type and place, the largest group first, with one traceback each.

        Of a task that was submitted again, only the retry is listed, if that has failed.
        ids, job: only these tasks, also those that were submitted again, or those of a job, as for `tasks`."""
        question = m.ListTasks(self._ids_of(ids, job), None, "failed", unretried=ids is None)
        found = self._session.ask_for(question, tables.TaskRows)
        return FailureGroups.of_rows(found, partial(self.get_task_result, raw=False))

    @property
    def profile(self) -> Profilers:
        """Return the profilers on all engines: ``tc.profile.cpu``, ``tc.profile.memory``, ``tc.profile.sampling``."""
        return Profilers(self._session)

    @property
    def cpu_profiling(self) -> CpuProfiling:
        """Return the same as ``profile.cpu``."""
        return self.profile.cpu

    @property
    def memory_profiling(self) -> MemoryProfiling:
        """Return the same as ``profile.memory``."""
        return self.profile.memory

    @property
    def sampling(self) -> Sampling:
        """Return the same as ``profile.sampling``."""
        return self.profile.sampling

    # ----------------------------------------------------------------------------------------------
    # Maps and graphs

    def dask_get(self, graph: Any, keys: Any, **options: Any) -> Any:
        """Compute keys of a dask graph: ``dask.config.set(scheduler=tc.dask_get)`` runs dask's collections here.

        Args:
            graph: a dask graph.
            keys: a key, or nested lists of keys.
            options: settings for dask's own schedulers; all but `callbacks` are ignored (``num_workers`` …).

        Values go from engine to engine.  A node runs again if its engine was lost.  Raises what a node raised.
        """
        return adapter("dask_graph").dask_get(self, graph, keys, options.get("callbacks"))

    def optimize(
        self, study: Any, objective: Callable[[Any], Any], n_trials: int | None = None, **options: Any
    ) -> None:
        """Run trials of an optuna study on the farm; the study and its storage stay in this process.

        Args:
            study: an ``optuna.Study``.
            objective: a function of a trial.
            n_trials: the number of trials.
            options: `timeout`, `n_jobs`, `catch` and `callbacks` as for ``study.optimize``, and rules of a `Task`.

        Raises the error of a trial that failed with an exception that is not in `catch`.
        """
        adapter("optuna_study").optimize(self, study, objective, n_trials, **options)

    def executor(self, **options: Any) -> concurrent.futures.Executor:
        """Return a ``concurrent.futures.Executor`` that submits with this client; see `ipytaskfarm.Executor`.

        Args:
            options: `initializer`, `initargs`, `max_tasks_per_child`, and rules of a `Task`: retries, environment …
        """
        made: concurrent.futures.Executor = adapter("executor").Executor(self, **options)
        return made

    @overload
    def map(
        self, function: Callable[..., Any], *sequences: Iterable[Any], name: str | None = None,
        on_error: OnError = "raise", chunksize: int | Literal["auto"] = "auto", stream: bool = False,
        return_exceptions: bool = False, block: Literal[False], **rules: Unpack[MapRules],
    ) -> Job: ...  # fmt: skip

    @overload
    def map(
        self, function: Callable[..., Any], *sequences: Iterable[Any], name: str | None = None,
        on_error: OnError = "raise", chunksize: int | Literal["auto"] = "auto", stream: bool = False,
        return_exceptions: Literal[True], block: Literal[True] = True, **rules: Unpack[MapRules],
    ) -> Values[Any]: ...  # fmt: skip

    @overload
    def map(
        self, function: Callable[..., Any], *sequences: Iterable[Any], name: str | None = None,
        on_error: Literal["return"], chunksize: int | Literal["auto"] = "auto", stream: bool = False,
        return_exceptions: bool = False, block: Literal[True] = True, **rules: Unpack[MapRules],
    ) -> Values[Any]: ...  # fmt: skip

    @overload
    def map(
        self, function: Callable[..., Coroutine[Any, Any, T]], *sequences: Iterable[Any], name: str | None = None,
        on_error: OnError = "raise", chunksize: int | Literal["auto"] = "auto", stream: bool = False,
        return_exceptions: bool = False, block: Literal[True] = True, **rules: Unpack[MapRules],
    ) -> Values[T]: ...  # fmt: skip

    @overload
    def map(
        self, function: Callable[..., T], *sequences: Iterable[Any], name: str | None = None,
        on_error: OnError = "raise", chunksize: int | Literal["auto"] = "auto", stream: bool = False,
        return_exceptions: bool = False, block: Literal[True] = True, **rules: Unpack[MapRules],
    ) -> Values[T]: ...  # fmt: skip

    def map(
        self,
        function: Callable[..., Any],
        *sequences: Iterable[Any],
        name: str | None = None,
        on_error: OnError = "raise",
        chunksize: int | Literal["auto"] = "auto",
        stream: bool = False,
        return_exceptions: bool = False,
        block: bool = True,
        **rules: Unpack[MapRules],
    ) -> Values[Any] | Job:
        """Return ``[function(a, b) for a, b in zip(*sequences)]``, computed by tasks; the list is in order.

        A map is a job, and each item is a task of that job with an id of its own: `jobs`, `tasks`, `failures`,
        `explain`, `retry` and `abort` know it.

        Args:
            function: any callable.
            sequences: any iterables of equal length.  Iterables without a length (generators, ``itertools.repeat``) are
                read as far as the shortest goes, as by the builtin `map`, before the first task is submitted.
            name: of the job and of its tasks; ``tc.job(name)`` finds the map again, in another kernel too.
            on_error: what is done when all items have ended and some have failed.  "raise": the error of the lowest
                item is raised; "return": errors stand among the values; "collect": all errors are raised as one
                ExceptionGroup.
            chunksize: how many quick items share one run on an engine; "auto": as many as take some milliseconds.
            stream: show what the items print and display while they run, each line with the item's number.
            return_exceptions: the same as on_error="return".
            block: False: return the `Job` at once.
            rules: the rules of a `Task`, for each item: retries, time_limit, priority, environment, resources …

        The list keeps what the items print in any case: ``values.stdout[7]``, ``values.stderr[7]``.  Items are counted
        from 0.  An item's error has a note, ``item 37 of 60: f(x=0.3)``.  ``tc.job(name).retry_failed()`` runs the
        failed items again, and ``tc.job(name).results()`` returns the values then.

        All items are submitted at once.  Ctrl-C (the stop button) ends the wait, not the map.  The values stay on the
        farm until they are cleared.  Raises ValueError for unequal lengths, or none at all.
        """
        check_map(function, sequences, rules)
        asked = options(name, on_error, return_exceptions, chunksize, stream)
        if not flag("block", block):
            return begin_map(self, function, sequences, rules, asked)[0]
        return map_tasks(self, function, sequences, rules, asked)

    def imap(
        self, function: Callable[..., T], *iterables: Iterable[Any], name: str | None = None,
        on_error: Literal["raise", "return"] = "raise", chunksize: int | Literal["auto"] = "auto",
        stream: bool = False, **rules: Unpack[MapRules],
    ) -> Iterator[T]:  # fmt: skip
        """Yield the values of `map` in order, each as soon as it has come.  Arguments: see `map`.

        Iterables are read only a little ahead (they may be endless): as many items are submitted as keep the engines
        busy, some tens of milliseconds of work for each.  An error is raised in its turn.  What was yielded is cleared
        on the farm.  After an error, or when the caller leaves early, waiting tasks never run, running ones end, and no
        result is kept.
        """
        check_map(function, iterables, rules)
        return imap(self, function, iterables, True, rules, options(name, on_error, False, chunksize, stream))

    def imap_unordered(
        self, function: Callable[..., T], *iterables: Iterable[Any], name: str | None = None,
        on_error: Literal["raise", "return"] = "raise", chunksize: int | Literal["auto"] = "auto",
        stream: bool = False, **rules: Unpack[MapRules],
    ) -> Iterator[T]:  # fmt: skip
        """Yield the values of `imap` in the order in which they come."""
        check_map(function, iterables, rules)
        return imap(self, function, iterables, False, rules, options(name, on_error, False, chunksize, stream))

    def mapper(
        self,
        clear_before: bool = False,
        clear_after: bool = False,
        retries: int = 0,
        recovery_task: Task | None = None,
        depend: Any = None,
        block: bool = True,
    ) -> Mapper:
        """Return an object with a `map` method that gives its tasks these rules; block=False: `map` returns ids."""
        return Mapper(self, clear_before, clear_after, retries, recovery_task, depend, block)

    def parallel(
        self,
        clear_before: bool = False,
        clear_after: bool = False,
        retries: int = 0,
        recovery_task: Task | None = None,
        depend: Any = None,
        block: bool = True,
    ) -> ParallelFunction:
        """Return a decorator for functions that then take sequences and return the list of results."""
        return ParallelFunction(self.mapper(clear_before, clear_after, retries, recovery_task, depend, block))


def _show_signature() -> None:
    """Make ``tc.create_job?`` show each keyword."""
    own = signature(TaskClient.create_job)
    named = [each for name, each in own.parameters.items() if name != "shared"]
    shown_by: Any = TaskClient.create_job
    shown_by.__signature__ = own.replace(parameters=[*named, *keyword_parameters(JobRules).values()])


_show_signature()
