"""The calls of `TaskClient` that act on tasks, jobs and nodes, exchange messages with tasks, or read their
history.

The first argument of each function is the session; `TaskClient` has a documented method for each function.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime, timedelta
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple

import msgspec

from ..core import errors, messages
from ..core.arguments import INT_MAX, as_bool, check_count, check_int, check_names, check_number, check_text, wrong
from ..core.messages import tables, view
from ..core.messages.payload import Message, ResultBody
from ..core.messages.running_task import TaskMessages
from ..core.states import ABORTS, ACCEPTED_STATES
from ..core.text import Text, text_of
from ..display.text import CELL_MAX, OUTPUT_S, number, output_so_far, safe, with_local_times
from ..serialization.pack import pack, unpack
from ..storage.blobs import BlobWriter
from ..system.user_code import tell_user, with_cells
from .copied_tasks import tell_of_edited_tasks
from .ids import LISTED, Ids, Timeout, id_list, listed, not_registered, seconds, task_id
from .outbox import check_size
from .packing import pack_once
from .results import TaskResult, decode_body
from .rules import flag
from .session import Session
from .tables import JobLine, Listing, TaskTable, event_listing, job_listing
from .wait_notices import raise_users

_encode = msgspec.msgpack.Encoder().encode
SINCE_MAX_S = 1e11
"""Seconds since 1970, later than any event."""
STABLE_S = 1.0
"""Seconds without a change after which the engines count as complete."""


# --------------------------------------------------------------------------------------------------
# Tasks


def mark_done(session: Session, taskid: int, result: Any) -> None:
    """Make a task count as succeeded with this result."""
    names = isinstance(result, dict) and all(isinstance(name, str) for name in result)
    writer = BlobWriter(session.blobs) if session.blobs is not None else None
    body = ResultBody(pack(result, "result", writer), kind="names" if names else "call")
    blobs = writer.taken() if writer is not None else ()
    session.ask_for(messages.MarkTasksDone(task_id(taskid, session.farm), _encode(body), blobs), messages.FlagReply)


def mark_failed(session: Session, taskid: int, reason: str, only_ended: bool = False) -> str:
    """Make a task's run, or its result, count as failed; return the outcome.

    only_ended: leave an unfinished task alone.
    """
    question = messages.MarkTasksFailed(task_id(taskid, session.farm), text_of(reason), only_ended)
    return session.ask_for(question, messages.TextReply).text


def explanation(session: Session, task: int) -> Text:
    """Return what the controller knows of a task, what it has printed unless it succeeded, and of a failed one the
    local variables.
    """
    text = with_local_times(with_cells(session.ask_for(messages.ExplainTasks(task), messages.TextReply).text))
    try:
        final = session.fetch(task)
    except (errors.TaskFarmError, IndexError):  # cleared in the meantime; without a result
        final = None
    failure = TaskResult(final).failure if final is not None and final.reason not in ABORTS else None
    if final is None:
        output = _latest_output(session, task)
    else:
        body = decode_body(final) if final.body and final.reason else ResultBody()
        output = output_so_far((body.stdout, body.stderr))
    return Text("\n".join(filter(None, [text, failure.variables() if failure is not None else "", *output])))


def _latest_output(session: Session, task: int) -> list[str]:
    """Return lines about what a running task has written until now."""
    found: SimpleQueue[tuple[str, str]] = SimpleQueue()

    def take(output: messages.Output) -> None:
        texts = output.texts_of(task)
        if texts is not None:
            found.put(texts)

    session.io.output_listeners.append(take)
    try:
        if not session.ask_for(messages.Outputs.latest(task), messages.NumberReply).value:
            return []
        return output_so_far(found.get(timeout=OUTPUT_S))
    except Empty:
        return output_so_far(None)
    finally:
        session.io.output_listeners.remove(take)


def task_table(session: Session, ids: list[int] | None, name: str | None, state: str | None, most: int) -> TaskTable:
    """Return a table of tasks; a name that no task has and that is the word of a state counts as this state."""
    reply = session.ask_for(messages.ListTasks(ids, name, state, most), tables.TaskRows)
    if not reply.rows and state is None and name in ACCEPTED_STATES:
        reply = session.ask_for(messages.ListTasks(ids, None, name, most), tables.TaskRows)
    return TaskTable(reply.rows, reply.omitted, reply.unknown)


def abort_tasks(
    session: Session, taskid: Ids, interrupt: bool, reason: str, running: bool, chunks: bool = False
) -> list[int]:
    """Abort tasks and return the ids of the aborted ones, see `TaskClient.abort`.

    chunks: ids of chunks stand for all their items."""
    single = not isinstance(taskid, Iterable)
    ids = [task_id(taskid, session.farm)] if single else id_list(taskid, session.farm)
    if not ids:
        return []
    outcomes = abort_known(session, messages.AbortTasks(ids, interrupt, reason, running, chunks))
    unknown = [i for i, outcome in outcomes if outcome == "unknown"]
    if unknown:
        raise not_registered(unknown)
    if single and outcomes[0][1] not in ("aborted", "running"):
        raise IndexError(f"Task {ids[0]} {outcomes[0][1]}")
    return [i for i, outcome in outcomes if outcome == "aborted"]


def abort_known(session: Session, question: messages.AbortTasks) -> list[tuple[int, str]]:
    """Abort those of the tasks that are known, and return (id, outcome) of each; see `messages.Aborted`."""
    return session.ask_for(question, messages.Aborted).outcomes


def set_priority(session: Session, taskid: Ids, priority: int) -> list[int]:
    """Give unfinished tasks another priority and return their ids, see `TaskClient.set_priority`."""
    single = not isinstance(taskid, Iterable)
    ids = list(dict.fromkeys(id_list(taskid, session.farm)))
    question = messages.SetPriority(ids, check_int("priority", priority))
    if not ids:
        return []
    reply = session.ask_for(question, messages.PrioritySet)
    if reply.unknown:
        raise not_registered(reply.unknown)
    if single and reply.ended:
        raise IndexError(f"Task {ids[0]} already completed")
    ended = set(reply.ended)
    return [i for i in ids if i not in ended]


def clear_results(session: Session, ids: Ids | None, chunks: bool = False) -> int:
    """Delete final results (None: all) and return their number.  chunks: ids of chunks stand for all their items."""
    wanted = None if ids is None else id_list(ids, session.farm)
    if wanted is not None and not wanted:
        return 0
    reply = session.ask_for(messages.Clear(wanted, chunks=chunks), messages.Cleared)
    kept = {*reply.missing, *reply.unfinished, *reply.needed}
    session.forget_results(None if wanted is None else [i for i in wanted if i not in kept])
    if reply.needed:
        raise KeyError(f"other tasks still need the result of task {listed(reply.needed)}")
    if reply.missing:
        raise KeyError(f"task ID not registered: {listed(reply.missing)}")
    if wanted is not None and reply.unfinished:
        raise KeyError(f"not ended yet, abort it first: task {listed(reply.unfinished)}")
    return reply.count


def retry_tasks(
    session: Session,
    wanted: list[int],
    failed_only: bool = True,
    tells_of_edited: bool = True,
    function: Callable[..., Any] | None = None,
    settled: dict[int, int] | None = None,
) -> dict[int, int]:
    """Submit ended tasks again as new tasks; return a dict of old and new ids.

    Of several failed tasks, one that was submitted again before counts as its latest retry.

    Args:
        failed_only: refuse tasks that have succeeded.
        tells_of_edited: tell which of their functions have been defined anew since.
        function: called in the place of their functions.
        settled: gets the latest retries, which have not failed, of tasks that are not submitted again.  With it, also
            a single task counts as its latest retry.
    """
    if function is not None and not callable(function):
        raise wrong("function", "a function, or None", function)
    if not wanted:
        return {}
    question = messages.RetryTasks(wanted, failed_only, latest=failed_only and (len(wanted) > 1 or settled is not None))
    if function is not None:
        packed = pack_once(function, session.blobs)
        check_size("the function", len(packed.code.code))
        question = msgspec.structs.replace(question, function=packed.code, blobs=packed.blobs)
    reply = session.ask_for(question, messages.Retried)
    new = dict(reply.ids)
    if settled is not None:
        settled.update(reply.settled)
    if reply.settled:
        some = ", ".join(f"{old} as {again}" for old, again in reply.settled[:LISTED])
        more = ", …" if len(reply.settled) > LISTED else ""
        tell_user(
            f"not submitted again: {number(len(reply.settled), 'task')} with a retry that has not failed ({some}{more})"
        )
    session.adopt(new.values())
    if tells_of_edited and function is None:
        tell_of_edited_tasks(session, new.values())
    done = f"; {listed(list(new))} submitted again as {listed(list(new.values()))}" if new else ""
    if reply.missing:
        raise not_registered(reply.missing, done)
    if reply.not_failed:
        if failed_only:
            what, remedy = "only failed tasks are tried again", "tc.restart submits any ended task again"
        else:
            what, remedy = "only ended tasks are submitted again", "wait for it, or abort it first"
        raise ValueError(f"{what}: task {listed(reply.not_failed)} is not; {remedy}{done}")
    return new


def read_history(
    session: Session,
    ids: Ids | None,
    name: str | None,
    what: str | None,
    since: float | datetime | timedelta | None,
    last: int,
) -> Listing:
    """Return events of tasks in the order of time."""
    wanted = None if ids is None else id_list(ids, session.farm)
    if isinstance(since, timedelta):
        since = time.time() - since.total_seconds()
    elif isinstance(since, datetime):
        since = since.timestamp()
    since_s = 0.0 if since is None else check_number("since", since, "seconds since 1970, a datetime or a timedelta")
    most = check_count("last", last, least=0) or INT_MAX
    finite_s = min(max(since_s, 0.0), SINCE_MAX_S)
    question = messages.ReadHistory(wanted, check_text("name", name), check_text("what", what), finite_s, most)
    return event_listing(session.ask_for(question, tables.EventTable).rows)


# --------------------------------------------------------------------------------------------------
# Jobs and nodes


def list_jobs(session: Session) -> Listing:
    """Return the farm's jobs as a table, the latest last."""
    rows = session.ask_for(messages.FindJobs(), tables.JobTable).rows
    return job_listing(rows, session.ask_for(view.ReadCauses.of_jobs(rows), view.CauseTable).failed(rows))


def find_job(session: Session, name_or_id: str | JobLine) -> tables.JobRow:
    """Return a job by its id, by its line in the table of jobs, or the latest of that name."""
    wanted = name_or_id.id if isinstance(name_or_id, JobLine) else check_text("name_or_id", name_or_id)
    if wanted is None:
        raise TypeError("name_or_id must be a job's name or id, not None")
    rows = session.ask_for(messages.FindJobs(wanted, True), tables.JobTable).rows
    rows = [row for row in rows if row.ids]
    if not rows:
        raise KeyError(
            f"farm {session.farm!r} has no job {wanted!r}: it was never submitted, had no tasks, or was cleared"
        )
    return rows[-1]


def hold(session: Session, job_id: str | None, on: bool) -> None:
    """Start no more tasks of a job (None: of the whole farm); on=False: start tasks again."""
    if job_id is None:
        session.ask_for(messages.HoldFarm(on), messages.FlagReply)
    else:
        session.ask_for(messages.PauseJobs([job_id], on), messages.NumberReply)


def set_job_priority(session: Session, job_id: str, priority: int) -> int:
    """Give a job's unfinished and later tasks another priority; return how many of them are unfinished now."""
    question = messages.SetJobPriority(job_id, check_int("priority", priority))
    return session.ask_for(question, messages.PrioritySet).count


def drain(session: Session, nodes: str | Iterable[str], on: bool) -> int:
    """Give the engines of these nodes no more tasks; on=False: give them tasks again.

    Returns the number of agents on the nodes.  A line on standard error names nodes that have none now.
    """
    names = check_names("nodes", nodes)
    if not all(map(str.strip, names)):
        raise ValueError("nodes: an empty text names no node; tc.snapshot() has their names")
    count = session.ask_for(messages.DrainNode(names, flag("on", on)), messages.NumberReply).value
    there = {agent["node"] for agent in session.ask_for(messages.FarmStatus(), tables.FarmState).agents}
    if on and (absent := [safe(name, CELL_MAX) for name in names if name not in there]):
        known = ", ".join(sorted(safe(node, CELL_MAX) for node in there))
        tell_user(
            f"no agent of the farm is on node {', '.join(absent)} now (nodes: {known}); a later one gets no tasks,"
            " until the drain is ended (on=False, --off)"
        )
    return count


# --------------------------------------------------------------------------------------------------
# Engines


def ends_farm(controller: object) -> bool:
    """Return whether `kill` is to end the whole farm.  Raises TypeError for all but bools: 1 may mean an engine."""
    found = as_bool(controller)
    if found is None:
        expected = "True, which ends the whole farm, or False"
        raise TypeError(f"{wrong('controller', expected, controller)}; mec.kill(targets=…) ends engines")
    return found


def await_engines(session: Session, count: int | None, connect_timeout: float, stable_timeout: float) -> list[int]:
    """Wait until there are at least `count` engines, or (None) until no more arrive; return their ids."""

    ready: list[int] = []

    def look() -> list[int]:
        try:
            rows = session.ask_for(messages.ListEngines(), tables.EngineTable, STABLE_S).rows
            ready[:] = [row.id for row in rows if row.state in ("idle", "busy")]
        except TimeoutError as error:  # the farm is away: what it said last counts, and the timeouts go on
            raise_users(error)
        return ready

    return wait_for_engines(look, f"farm {session.farm!r}", count, connect_timeout, stable_timeout)


def wait_for_engines(
    look: Callable[[], list[int]],
    whose: str,
    count: int | None,
    connect_timeout: float,
    stable_timeout: float,
    stable_s: float = STABLE_S,
) -> list[int]:
    """Wait for engines, see ``TaskClient.await_engines``.

    Args:
        look: returns the ids of the engines that are ready now.
        whose: the farm, for the error.
        count: the least number of engines; None: until their number has not changed for `stable_s`.
        connect_timeout: seconds until the first engine must be ready, else NoEnginesRegistered.
        stable_timeout: seconds after the first engine; then the engines that are ready are returned.
    """
    count = check_count("count", count, least=0)
    connect_s, settled_s = seconds(connect_timeout, "connect_timeout"), seconds(stable_timeout, "stable_timeout")
    began = changed = time.monotonic()
    first: float | None = None
    ids: list[int] = []
    while True:
        there = sorted(look())
        now = time.monotonic()
        if there != ids:
            ids, changed = there, now
        first = now if ids and first is None else first
        if count is not None and len(ids) >= count:
            return ids
        if first is None and connect_s is not None and now - began > connect_s:
            raise errors.NoEnginesRegistered(f"no engine of {whose} within {connect_s:g} s")
        settled = count is None and now - changed > stable_s
        if first is not None and (settled or (settled_s is not None and now - first > settled_s)):
            return ids
        time.sleep(0.05)


_marks = itertools.count(1)
CHUNK = 500
"""Number of messages in one packet."""


class Progress(NamedTuple):
    """The progress that a task has reported."""

    value: float
    total: float | None
    message: str = ""

    @property
    def fraction(self) -> float | None:
        """Return the share that is done, 0 to 1; None if the task has not reported a total."""
        return min(1.0, self.value / self.total) if self.total else None


def send(session: Session, taskid: int, objects: tuple[Any, ...], quiet: bool) -> None:
    """Send messages to a task; see ``TaskClient.send``."""
    wanted = task_id(taskid, session.farm)
    if session.arrivals.is_live(wanted):
        session.accepted(wanted)  # the controller must know the task before its messages arrive
    bodies = [pack(each, "message") for each in objects]
    try:
        for first in range(0, len(bodies), CHUNK):
            mark = f"{session.session_id}:{next(_marks)}"
            session.ask_for(messages.SendToTask(wanted, bodies[first : first + CHUNK], mark), messages.NumberReply)
    except (errors.TaskError, IndexError):
        if not quiet:
            raise


def read_messages(session: Session, taskid: int, timeout: Timeout) -> Iterator[Message]:
    """Yield the messages of a task; see ``TaskClient.messages``."""
    wanted = task_id(taskid, session.farm)
    timeout_s = seconds(timeout)
    after = 0
    while True:
        began_s = time.monotonic()
        try:
            found = session.ask_for(messages.ReadTaskMessages(wanted, after), TaskMessages, timeout_s)
        except TimeoutError as error:
            raise_users(error)
            if timeout_s is None or time.monotonic() - began_s < timeout_s:
                raise
            raise TimeoutError(f"task {wanted} has sent no message within {timeout_s:g} s") from None
        for letter in found.letters:
            after = letter.seq
            yield Message(unpack(letter.body), letter.sender, letter.at_s)
        if found.over:
            return


def progress_of(session: Session, ids: Ids) -> dict[int, Progress]:
    """Return the latest progress of tasks by id; see ``TaskClient.progress_of``."""
    wanted = id_list(ids, session.farm)
    rows = session.ask_for(messages.ProgressOf(wanted), tables.ProgressTable).rows
    found = {row[0]: Progress(*row[1:]) for row in rows}
    for each in wanted:
        final = session.arrivals.finals.get(each) if each not in found else None
        if final is not None and final.body and (reported := decode_body(final).progress) is not None:
            found[each] = Progress(*reported)
    return found
