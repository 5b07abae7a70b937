"""`TaskClient`: hand in tasks, wait for them, fetch what they left."""

from __future__ import annotations

import asyncio
import html
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from os import PathLike
from typing import Any, Literal, TypeVar

from ..core import errors, messages as m
from ..core.arguments import check_int, check_text
from ..core.messages import tables
from ..core.messages.task_types import Final
from ..core.states import ABORTS, Reason
from ..core.text import text_of
from ..system.farm_paths import Where
from . import futures, operate, sessions, shared_values, task_messages
from .display import Text, html_table
from .ids import Ids, Timeout, id_list, seconds, task_id
from .jobs import Job
from .map_values import Values
from .maps import Mapper, ParallelFunction, imap, map_tasks
from .nodes import CheckResult, Snapshot
from .packing import pack_task
from .profiling import CpuProfiling, MemoryProfiling, ProfiledEngines, Sampling
from .progress import ProgressBar
from .results import TaskResult, decode_body, error_of
from .rules import one_of
from .streams import Stream
from .tables import FailureGroup, FailureGroups, TaskStatus, TaskTable
from .tasks import StringTask, Task, as_task

_F = TypeVar("_F", bound=Callable[..., Any])
_R = TypeVar("_R")

_RAISED = ABORTS | {Reason.REFUSED}
"""Fetching such a task raises: there is no result to be looked at."""
LOOK_S = 1.0
"""How long showing a client may take."""


class TaskClient:
    """Your connection to a farm's tasks.  All clients of a process share one session per farm.

    Args:
        where: None for the farm "default", a farm's name, the path of a connection file (it has a
            separator or ends in ``.json``), or ``(host, port)``, whose keys come from the connection
            file with that address or from `key_file`.
        key_file: a connection file with the keys for ``(host, port)``.
        timeout: seconds to wait for the farm's answer (5).

    Raises FarmNotRunning (it names the farm, and the command that starts one), SecurityError, VersionMismatch.
    Use it as a context manager, or call `close`, or neither: what was handed in is flushed at exit.
    """

    def __init__(
        self, where: Where = None, *, key_file: str | PathLike[str] | None = None, timeout: Timeout = None
    ) -> None:
        self._session = sessions.connect(where, key_file, seconds(timeout))
        self._closed = False
        self.farm = self._session.farm
        """The farm's name."""
        self.progress = True
        """Whether long waits show a progress bar."""

    # ----------------------------------------------------------------------------------------------
    # Life

    def close(self) -> None:
        """End this client; waits up to 10 s until all that was handed in is accepted.  Tasks run on."""
        if not self._closed:
            self._closed = True
            sessions.release(self._session)

    def __enter__(self) -> TaskClient:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __repr__(self) -> str:
        info = self._session.info
        return f"<TaskClient of farm {self.farm!r} at {info.host}:{info.port}{', closed' if self._closed else ''}>"

    def _repr_html_(self) -> str:
        head = html.escape(repr(self)[1:-1])
        try:
            reply = self._session.ask(m.QueueStatus(), timeout_s=LOOK_S)
        except Exception as error:  # a farm that is away, a closed client: what is shown says so
            return f"<div>{head}<br>{html.escape(f'{type(error).__name__}: {error}')}</div>"
        counts = reply.counts if isinstance(reply, tables.QueueStatusReply) else {}
        return f"<div>{head}</div>{html_table(tuple(counts), [tuple(counts.values())])}"

    def _ask(self, question: m.Question, expected: type[_R]) -> _R:
        reply = self._session.ask(question)
        if not isinstance(reply, expected):
            raise TypeError(f"the controller answered {type(question).__name__} with {type(reply).__name__}")
        return reply

    # ----------------------------------------------------------------------------------------------
    # Handing in

    def run(self, task: Any, block: bool = False) -> Any:
        """Hand in a task and return its id, at once; the farm gives out 0, 1, 2 … and never one twice.

        Args:
            task: a `Task` of any kind, a plain callable, or an object with ``execute()``.
            block: wait for the end, and return what ``get_task_result`` does.

        Returned is not yet accepted (on disk): see `flush`.  ``map(f, seq)`` runs a function over many
        values.  Raises TypeError for what is no task, UnpickleableException for what cannot travel; no id is
        used then.  From IPython 0.10's TaskClient.
        """
        if task.__class__ is not StringTask and not isinstance(task, Task):
            task = as_task(task)
        new_id = self._session.hand_in(pack_task(task, self._session.blobs))
        if task.unique is not None:
            new_id = self._only_one(new_id, task.on_duplicate)
        return self.get_task_result(new_id, block=True) if block else new_id

    def _only_one(self, new_id: int, on_duplicate: str) -> int:
        """A task with a unique key: its id, or that of the one which is there already."""
        final = self._session.accepted(new_id)
        if final is None or final.reason != Reason.REFUSED:
            return new_id
        error = error_of(final, decode_body(final))
        if on_duplicate == "return" and isinstance(error, errors.DuplicateTask) and isinstance(error.first, int):
            return error.first
        raise error

    submit = futures.submit
    broadcast = shared_values.broadcast
    accumulator = shared_values.accumulator

    def create_job(self, name: str | None = None, **shared: Any) -> Job:
        """A `Job`: tasks that belong together; `shared` are rules that all of them have, as of a `Task`.

            job = tc.create_job("primes", environment=Sieve(10**7), retries=1)
            for n in range(100): job.add_task(Task(f, args=(n,)))
            job.submit(); job.results()

        Raises TypeError, ValueError or AttributeError that names the rule.  From STK Parallel Computing.
        """
        return Job(self, name, **shared)

    def flush(self, timeout: Timeout = None) -> None:
        """Wait until all that was handed in is accepted, which means on disk.

        Raises what was refused, StoreFull while the farm's disk is full (what was handed in is kept and sent
        again), TimeoutError when `timeout` seconds are over.
        """
        self._session.flush(seconds(timeout))

    # ----------------------------------------------------------------------------------------------
    # Fetching and waiting

    def get_task_result(self, taskid: int, block: bool = False, timeout: Timeout = None, raw: bool = True) -> Any:
        """The result of a task: a `TaskResult`; of a MapTask its bare return value.

        Args:
            taskid: an id, from this client or another one.
            block: wait for the end; without it an unfinished task gives None.
            timeout: seconds to wait at most, then TimeoutError.
            raw: False gives a TaskResult in every case.

        Raises IndexError for an id never issued or cleared, TaskAborted for an aborted task, what a failed MapTask
        raised, and the refusal of a task that was refused.  From IPython 0.10's TaskClient.
        """
        final = self._session.arrivals.finals.get(taskid) if taskid.__class__ is int else None
        if final is None or final.body is None:
            final = self._find(task_id(taskid), block, seconds(timeout))
            if final is None:
                return None
        body = decode_body(final)
        if raw:
            if final.reason:
                if final.reason in _RAISED or body.kind == "raw" or self._is_raw(final):
                    raise error_of(final, body)
            elif body.kind == "raw":
                return TaskResult(final, body).result
        return TaskResult(final, body)

    def _is_raw(self, final: Final) -> bool:
        return not final.body and final.id in self._session.raw_ids

    def _find(self, wanted: int, block: bool, timeout_s: float | None) -> Final | None:
        """The final state of a task that is not in the cache in full; None: not final, and not to be waited for."""
        session = self._session
        if session.arrivals.is_live(wanted):
            if not block:
                session.check()
                return None
        else:
            final = session.fetch(wanted)
            if final is not None or not block:
                return final
            session.watch([wanted])
        if not session.wait({wanted}, timeout_s):
            raise TimeoutError(f"task {wanted} has not ended within {timeout_s:g} s")
        return session.fetch(wanted)

    async def result(self, taskid: int, raw: bool = True) -> Any:
        """``await tc.result(id)``: what ``get_task_result(id, block=True)`` gives, in any asyncio loop.

        Cancelling the waiting leaves the task alone.
        """
        wanted = task_id(taskid)
        session = self._session
        loop = asyncio.get_running_loop()
        if not session.arrivals.is_live(wanted):
            await loop.run_in_executor(None, session.watch, [wanted])
        await session.ended(wanted)
        # Another thread, because it may have to be fetched.
        return await loop.run_in_executor(None, partial(self.get_task_result, wanted, raw=raw))

    def barrier(self, ids: Ids | None = None, timeout: Timeout = None, stream: bool = False) -> None:
        """Wait until tasks have ended, well or not; one that failed raises nothing here.

        Args:
            ids: an id, any sequence of ids, a table from `tasks`; None: all that this process handed in.
            timeout: seconds, then TimeoutError.
            stream: show what the tasks print while they do, each line with its task's id.

        A progress bar appears when it lasts longer than a second (``tc.progress = False``: none).  When nothing of it
        can run, it says why, once.  Ctrl-C ends the waiting, not the tasks.
        Raises IndexError for an id never issued, StoreFull while these tasks cannot be accepted.
        From IPython 0.10's TaskClient.
        """
        if ids is None:
            wanted = self._session.unfinished()
        else:
            wanted = set(id_list(ids))
            self._session.watch(wanted)
        timeout_s = seconds(timeout)
        with ProgressBar(len(wanted), show=self.progress) as progress:
            waited = (
                self._wait_streaming(wanted, timeout_s, progress)
                if stream
                else self._session.wait(wanted, timeout_s, progress.left)
            )
            if not waited:
                raise TimeoutError(f"not all of {len(wanted)} tasks have ended within {timeout_s:g} s")

    def _wait_streaming(self, wanted: set[int], timeout_s: float | None, progress: ProgressBar) -> bool:
        session = self._session
        shown = Stream(session, session.arrivals.live(wanted), progress)
        session.streams.append(shown)

        def tick(left: int, failed: int) -> None:
            shown.tick()
            progress.left(left, failed)

        try:
            shown.tick()
            return session.wait(wanted, timeout_s, tick)
        finally:
            session.streams.remove(shown)
            shown.close()

    def wait(
        self, ids: Ids, timeout: Timeout = None, return_when: Literal["all", "first"] = "all"
    ) -> tuple[list[int], list[int]]:
        """Wait for tasks; returns (ended, not ended) as lists of ids, in the order given.

        Args:
            ids: an id, or any sequence of ids.
            timeout: seconds; when they are over it returns what has ended until then.
            return_when: "all", or "first": when any one has ended.
        """
        return_when = one_of("return_when", ("all", "first"), return_when)  # type: ignore[assignment]
        wanted = id_list(ids)
        session = self._session
        session.watch(wanted)
        session.wait(set(wanted), seconds(timeout), first=return_when == "first")
        done: list[int] = []
        not_done: list[int] = []
        for i in wanted:
            (not_done if session.arrivals.is_live(i) else done).append(i)
        return done, not_done

    def as_completed(self, ids: Ids, timeout: Timeout = None) -> Iterator[int]:
        """The ids, each as soon as its task has ended.  TimeoutError when `timeout` seconds are over."""
        wanted = list(dict.fromkeys(id_list(ids)))
        self._session.watch(wanted)
        return self._session.as_completed(wanted, seconds(timeout))

    # ----------------------------------------------------------------------------------------------
    # Acting on tasks

    def abort(self, taskid: Ids, interrupt: bool = True, reason: str = "") -> None:
        """Abort a task, or several.  Returns after the controller's answer; never waits for the task.

        Args:
            taskid: one id: IndexError if it was aborted or has ended already, or is unknown.  Several: all that
                can be are aborted, ended ones passed over, and IndexError raised for unknown ones after the rest.
            interrupt: whether `errors.TaskCancelled` is raised in a running one (and its engine killed if that
                does not end it); False lets it run to its end, and its result is dropped.
            reason: for people; it stands in the `TaskAborted` that who fetches the task gets.
        """
        single = not isinstance(taskid, Iterable)
        ids = [task_id(taskid)] if single else id_list(taskid)
        if not ids:
            return
        reply = self._ask(m.AbortTasks(ids, bool(interrupt), text_of(reason)), m.Aborted)
        unknown = [i for i, outcome in reply.outcomes if outcome == "unknown"]
        if unknown:
            raise IndexError(f"task ID not registered: {', '.join(map(str, unknown))} (never issued, or cleared)")
        outcome = reply.outcomes[0][1]
        if single and outcome != "aborted":
            raise IndexError(f"Task {ids[0]} {outcome}")

    def clear(self, ids: Ids | None = None) -> int:
        """Forget final results (None: all); returns how many.  Ids go on counting.

        Raises KeyError for an id that is not there, or has not ended, after clearing the rest.
        """
        wanted = None if ids is None else id_list(ids)
        if wanted is not None and not wanted:
            return 0
        reply = self._ask(m.Clear(wanted), m.Cleared)
        left = {*reply.missing, *reply.unfinished, *reply.needed}
        self._session.forget_results(None if wanted is None else [i for i in wanted if i not in left])
        if reply.needed:
            raise KeyError(f"other tasks have yet to take the result of task {', '.join(map(str, reply.needed))}")
        if reply.missing:
            raise KeyError(f"task ID not registered: {', '.join(map(str, reply.missing))}")
        if wanted is not None and reply.unfinished:
            raise KeyError(f"not ended yet, abort it first: task {', '.join(map(str, reply.unfinished))}")
        return reply.count

    def retry(self, ids: Ids) -> list[int]:
        """Hand failed tasks in again with the same inputs, as new tasks linked to the old; returns the new ids.

        Raises IndexError for ids that are not there and ValueError for tasks that did not fail, after the rest.
        """
        return list(self._retry(id_list(ids)).values())

    def _retry(self, wanted: list[int], failed_only: bool = True) -> dict[int, int]:
        """Old id -> new id."""
        if not wanted:
            return {}
        reply = self._ask(m.RetryTasks(wanted, failed_only), m.Retried)
        new = dict(reply.ids)
        self._session.adopt(new.values())
        if reply.missing:
            raise IndexError(f"task ID not registered: {', '.join(map(str, reply.missing))}")
        if reply.not_failed:
            what = "only failed tasks are tried again" if failed_only else "only ended tasks are handed in again"
            raise ValueError(f"{what}: task {', '.join(map(str, reply.not_failed))} is not")
        return new

    mark_done = operate.mark_done
    mark_failed = operate.mark_failed
    restart = operate.restart
    job = operate.job
    jobs = operate.jobs
    pause = operate.pause
    resume = operate.resume
    drain = operate.drain
    send = task_messages.send
    messages = task_messages.read_messages

    def spin(self) -> bool:
        """Drop cached answers of `depend` functions and look again; True if that started something."""
        return self._ask(m.ReadQueueStatus(), m.FlagReply).value

    # ----------------------------------------------------------------------------------------------
    # Looking

    def queue_status(self, verbose: bool = False) -> dict[str, Any]:
        """``{'scheduled', 'pending', 'succeeded', 'failed'}``: numbers of tasks, or lists of their ids if verbose."""
        reply = self._ask(m.QueueStatus(bool(verbose)), tables.QueueStatusReply)
        found: dict[str, Any] = dict(reply.counts) if not verbose or reply.ids is None else dict(reply.ids)
        empty: Any = [] if verbose else 0
        return {state: found.get(state, empty) for state in ("scheduled", "pending", "succeeded", "failed")}

    def status(self, taskid: int) -> TaskStatus:
        """State, reason, engine, attempts and times of one task.  IndexError if it is not there."""
        wanted = task_id(taskid)
        rows = self._ask(m.ListTasks([wanted]), tables.TaskRows).rows
        if not rows:
            raise IndexError(f"task ID not registered: {wanted} (never issued, or cleared)")
        return TaskStatus(rows[0])

    def tasks(
        self, name: str | None = None, state: str | None = None, ids: Ids | None = None, last: int = 0
    ) -> TaskTable:
        """A table of tasks, in order of their ids; it iterates over the ids, so every other call takes it.

        Args:
            name: only tasks of that name.
            state: scheduled, pending (or running), succeeded, failed, "unfinished" or "finished".
            ids: only these.
            last: no more than so many, those with the highest ids; 0: all.
        """
        wanted = None if ids is None else id_list(ids)
        states = ("scheduled", "pending", "running", "succeeded", "failed", "unfinished", "finished")
        state = None if state is None else one_of("state", states, state)
        asked = "pending" if state == "running" else state
        most = max(0, check_int("last", last))
        reply = self._ask(m.ListTasks(wanted, check_text("name", name), asked, most), tables.TaskRows)
        return TaskTable(reply.rows, reply.omitted)

    progress_of = task_messages.progress_of
    history = operate.history
    await_engines = operate.await_engines

    def explain(self, taskid: int) -> Text:
        """For people: where the task is and why, its attempts, and for a waiting one what each engine lacks."""
        return Text(self._ask(m.ExplainTasks(task_id(taskid)), m.TextReply).text)

    def check(self, task: Any) -> CheckResult:
        """Which engines could serve a task that is not handed in, and why not the others; true if one could."""
        made = task if isinstance(task, Task) else as_task(task)
        packed = pack_task(made, None)
        return CheckResult(self._ask(m.CheckTask(packed.rules, list(packed.functions)), m.Checked))

    def snapshot(self) -> Snapshot:
        """The farm's nodes now: platform, cores, load, memory, disk, what is reserved, engines and environments."""
        return Snapshot(self._ask(m.FarmStatus(), tables.FarmState))

    def stack(self, taskid: int) -> Text:
        """Where a running task is now: its Python stack."""
        return Text(self._ask(m.Stack(task_id(taskid)), m.TextReply).text)

    def failures(self, ids: Ids | None = None) -> FailureGroups:
        """Failed tasks grouped by error type and place, the largest group first, with one traceback each."""
        wanted = None if ids is None else id_list(ids)
        rows = self._ask(m.ListTasks(wanted, None, "failed"), tables.TaskRows).rows
        groups: dict[tuple[str, str], list[int]] = {}
        for row in rows:
            key = (row.failure.etype, row.failure.place) if row.failure else (row.reason, "")
            groups.setdefault(key, []).append(row.id)
        found = FailureGroups()
        for (etype, place), members in groups.items():
            try:
                result = self.get_task_result(members[0], raw=False) if members else None
            except Exception as error:  # an aborted or refused one: the error is all there is
                text, message = f"{type(error).__name__}: {error}", str(error)
            else:
                failure = result.failure if result is not None else None
                text, message = (failure.getTraceback(), failure.getErrorMessage()) if failure else ("", "")
            found.append(FailureGroup(etype, place, members, message, text))
        found.sort(key=lambda group: -len(group.ids))
        return found

    @property
    def cpu_profiling(self) -> CpuProfiling:
        """CPU time by function on all engines, with yappi: see `CpuProfiling`."""
        return CpuProfiling(ProfiledEngines(self._session))

    @property
    def memory_profiling(self) -> MemoryProfiling:
        """Memory by line on all engines, with tracemalloc: see `MemoryProfiling`."""
        return MemoryProfiling(ProfiledEngines(self._session))

    @property
    def sampling(self) -> Sampling:
        """Where tasks spend their time on all engines, cheap enough to stay on: see `Sampling`."""
        return Sampling(ProfiledEngines(self._session))

    # ----------------------------------------------------------------------------------------------
    # Maps

    def map(
        self,
        function: Callable[..., Any],
        *sequences: Iterable[Any],
        return_exceptions: bool = False,
        stream: bool = False,
    ) -> Values:
        """``[function(a, b) for a, b in zip(*sequences)]``; the list is in order.

        Args:
            sequences: any iterables of equal length.  Of those without a length (generators, ``itertools.repeat``)
                as many items are taken as the shortest has, as by the builtin `map`.
            return_exceptions: put exceptions into the list; otherwise the one of the lowest index is raised.
            stream: show what the items print, when they have ended, each line with the item's number.

        What the items print is kept with the list in any case: ``values.stdout[7]``, ``values.stderr[7]``.

        Quick calls share tasks: each task calls the function with as many items as take some milliseconds.  An error
        is its item's own; an engine that is lost fails every item of the task it had (`mapper` has retries).

        ``run(task)`` hands in one task and returns its id.  Raises ValueError for unequal lengths, or none at all.
        After Ctrl-C what was handed in goes on, under the ids that are told.
        """
        return map_tasks(self, function, sequences, {}, return_exceptions, stream)

    def imap(self, function: Callable[..., Any], *iterables: Iterable[Any], stream: bool = False) -> Iterator[Any]:
        """As `map`, but a generator: values come in order as soon as they are there, iterables are read only a little
        ahead (they may be endless), and an error is raised when its turn comes.  After an error, or when it is left
        early, what has not begun never runs, what runs ends unheard, and nothing of it is kept.
        With stream=True what the items print is shown, each line with the item's number.
        """
        return imap(self, function, iterables, True, stream)

    def imap_unordered(
        self, function: Callable[..., Any], *iterables: Iterable[Any], stream: bool = False
    ) -> Iterator[Any]:
        """As `imap`, in the order in which they are done."""
        return imap(self, function, iterables, False, stream)

    def mapper(
        self,
        clear_before: bool = False,
        clear_after: bool = False,
        retries: int = 0,
        recovery_task: Task | None = None,
        depend: Any = None,
        block: bool = True,
    ) -> Mapper:
        """An object whose ``.map`` gives its tasks these attributes; block=False: it returns ids."""
        return Mapper(self, _attributes(clear_before, clear_after, retries, recovery_task, depend), block)

    def parallel(
        self,
        clear_before: bool = False,
        clear_after: bool = False,
        retries: int = 0,
        recovery_task: Task | None = None,
        depend: Any = None,
        block: bool = True,
    ) -> ParallelFunction:
        """A decorator: the function then takes sequences and returns the list of its results; it keeps its name."""
        return ParallelFunction(self.mapper(clear_before, clear_after, retries, recovery_task, depend, block))


def _attributes(
    clear_before: bool, clear_after: bool, retries: int, recovery_task: Task | None, depend: Any
) -> dict[str, Any]:
    return {
        "clear_before": clear_before,
        "clear_after": clear_after,
        "retries": retries,
        "recovery_task": recovery_task,
        "depend": depend,
    }
