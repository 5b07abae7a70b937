"""Calls of `TaskClient` by which people act on tasks, jobs and nodes from outside, and look back.

Functions with the client as their first argument: `taskclient` has them as methods.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import msgspec

from ..core import errors, messages
from ..core.arguments import check_count, check_names, check_number, check_text
from ..core.messages import tables
from ..core.messages.payload import ResultBody
from ..core.text import text_of
from ..serialization.pack import pack
from ..storage.blobs import BlobWriter
from .ids import Ids, id_list, seconds, task_id
from .jobs import Job, found_job
from .tables import Listing, event_table, job_table

if TYPE_CHECKING:
    from .session import Session
    from .taskclient import TaskClient

_encode = msgspec.msgpack.Encoder().encode
SINCE_MAX_S = 1e11
"""Later than anything that has happened."""
STABLE_S = 1.0
"""So long no engine comes or goes, and those that are there are all."""


def mark_done(self: TaskClient, taskid: int, result: Any = None) -> None:
    """Let a task that has not ended have succeeded, with this result; what waits for it goes on.

    It does not run; what runs of it is interrupted, and its answer changes nothing.  A dict with names for keys is what
    a StringTask pulls, anything else a function's return value.
    Raises TaskError for a task that has ended, IndexError for one that is not there.  From bndl.
    """
    names = isinstance(result, dict) and all(isinstance(name, str) for name in result)
    keeper = BlobWriter(self._session.blobs) if self._session.blobs is not None else None
    body = ResultBody(pack(result, "result", keeper), kind="names" if names else "call")
    blobs = keeper.taken() if keeper is not None else ()
    self._ask(messages.MarkTasksDone(task_id(taskid), _encode(body), blobs), messages.FlagReply)


def mark_failed(self: TaskClient, taskid: int, reason: str = "") -> str:
    """Let a task's run, or its result, count as failed; returns what became of it: runs again, failed, reopened.

    One that runs is interrupted: it runs again if it has retries left, else it has failed.  One that waits has failed.
    One that has succeeded is *reopened*: it runs again under its id, its earlier result stays in its history, and what
    waits for it and has not begun waits again.  Raises TaskError for a task that has failed.  From bndl.
    """
    return self._ask(messages.MarkTasksFailed(task_id(taskid), text_of(reason)), messages.TextReply).text


def restart(self: TaskClient, ids: Ids) -> list[int]:
    """Hand in ended tasks again, whatever became of them, as new tasks linked to the old; returns the new ids.

    `retry` is the same for failed ones alone.  Raises IndexError for ids that are not there, ValueError for tasks that
    have not ended, after the rest.  From core4.
    """
    return list(self._retry(id_list(ids), failed_only=False).values())


def jobs(self: TaskClient) -> Listing:
    """The farm's jobs, of every client, as a table; the latest last."""
    return job_table(self._ask(messages.FindJobs(), tables.JobTable).rows)


def job(self: TaskClient, name_or_id: str) -> Job:
    """A job that was handed in here or elsewhere, by its id, or the latest of that name.

    It can be waited for, looked at, paused, aborted; its tasks' own descriptions stayed with who made them.  A job is
    gone when all its tasks were cleared.  Raises KeyError when there is none.
    """
    wanted = check_text("name_or_id", name_or_id)
    if wanted is None:
        raise TypeError("name_or_id must be a job's name or id, not None")
    rows = self._ask(messages.FindJobs(wanted, True), tables.JobTable).rows
    rows = [row for row in rows if row.ids]
    if not rows:
        raise KeyError(f"farm {self.farm!r} has no job {wanted!r}: it was never handed in, or was cleared")
    return found_job(self, rows[-1])


def pause(self: TaskClient, job: Job | str | None = None) -> None:
    """Start nothing more of a job (None: of the whole farm); what runs comes to its end.  `resume` lets it go on."""
    _hold(self, job, True)


def resume(self: TaskClient, job: Job | str | None = None) -> None:
    """Let a paused job (None: the whole farm) go on."""
    _hold(self, job, False)


def _hold(client: TaskClient, which: Job | str | None, on: bool) -> None:
    if which is None:
        client._ask(messages.HoldFarm(on), messages.FlagReply)
        return
    found = which if isinstance(which, Job) else job(client, which)
    client._ask(messages.PauseJobs([found.id], on), messages.NumberReply)


def drain(self: TaskClient, nodes: str | Iterable[str], on: bool = True) -> int:
    """Give the engines of these nodes (by their names) nothing more, while what runs there comes to its end; on=False:
    let them go on.  It outlives controller and agents.  Returns how many agents there are on them."""
    return self._ask(messages.DrainNode(check_names("nodes", nodes), bool(on)), messages.NumberReply).value


def history(
    self: TaskClient,
    ids: Ids | None = None,
    name: str | None = None,
    what: str | None = None,
    since: float | datetime | timedelta | None = None,
    last: int = 1000,
) -> Listing:
    """What happened to tasks, in order of time: accepted, started, succeeded, failed and why, deferred …

    Args:
        ids: of these tasks alone.  name: of tasks of that name.
        what: only events with this text in them.
        since: seconds since 1970, a datetime, or a timedelta back from now.
        last: no more than so many, the latest.
    """
    wanted = None if ids is None else id_list(ids)
    if isinstance(since, timedelta):
        since = time.time() - since.total_seconds()
    elif isinstance(since, datetime):
        since = since.timestamp()
    since_s = 0.0 if since is None else check_number("since", since, "seconds since 1970, a datetime or a timedelta")
    most = check_count("last", last, least=0) or 1
    question = messages.ReadHistory(wanted, check_text("name", name), check_text("what", what), _finite(since_s), most)
    return event_table(self._ask(question, tables.EventTable).rows)


def _finite(since_s: float) -> float:
    return min(max(since_s, 0.0), SINCE_MAX_S)


def await_engines(
    self: TaskClient, count: int | None = None, connect_timeout: float = 5, stable_timeout: float = 60
) -> list[int]:
    """Wait until there are exactly `count` engines, or (None) until no more come; their ids.

    connect_timeout: seconds until the first engine must be there, else NoEnginesRegistered (a RuntimeError).
    stable_timeout: seconds after which whatever is there is enough.  From bndl's ``await_workers``.
    """
    return await_engines_of(self._session, count, connect_timeout, stable_timeout)


def await_engines_of(session: Session, count: int | None, connect_timeout: float, stable_timeout: float) -> list[int]:
    """The same, for clients of any kind."""

    def look() -> list[int]:
        reply = session.ask(messages.ListEngines())
        rows = reply.rows if isinstance(reply, tables.EngineTable) else []
        return [row.id for row in rows if row.state in ("idle", "busy")]

    return wait_for_engines(look, f"farm {session.farm!r}", count, connect_timeout, stable_timeout)


def wait_for_engines(
    look: Callable[[], list[int]],
    whose: str,
    count: int | None,
    connect_timeout: float,
    stable_timeout: float,
    stable_s: float = STABLE_S,
) -> list[int]:
    """`await_engines` for whoever can look: `look()` gives the ids that are there."""
    count = check_count("count", count, least=0)
    patience_s, settled_s = seconds(connect_timeout, "connect_timeout"), seconds(stable_timeout, "stable_timeout")
    began = changed = time.monotonic()
    first: float | None = None
    ids: list[int] = []
    while True:
        there = sorted(look())
        now = time.monotonic()
        if there != ids:
            ids, changed = there, now
        first = now if ids and first is None else first
        if count is not None and len(ids) == count:
            return ids
        if first is None and patience_s is not None and now - began > patience_s:
            raise errors.NoEnginesRegistered(f"no engine of {whose} within {patience_s:g} s")
        settled = count is None and now - changed > stable_s
        if first is not None and (settled or (settled_s is not None and now - first > settled_s)):
            return ids
        time.sleep(0.05)
