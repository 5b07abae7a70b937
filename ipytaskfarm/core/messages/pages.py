"""Questions about many tasks, in pages: the controller works on a bounded number of tasks for one question.

A question that names more ids than `IDS_MAX` allows is refused, so whoever asks divides it (`parts`). An answer that
does not have everything says where the next one begins; `following` is the question for it. `ask_in_pages` does both,
and returns one reply.

Each page is answered for itself. What happens to tasks in between is in the later pages only.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from msgspec.structs import replace

from .client import (
    Aborted,
    AbortTasks,
    Clear,
    Cleared,
    Fetched,
    FetchResults,
    FindJobs,
    ListRunning,
    ListTasks,
    NumberReply,
    ProgressOf,
    Question,
    QueueStatus,
    ReadHistory,
    Refusal,
    Reply,
    Retried,
    RetryTasks,
    Stuck,
    TextReply,
    Watched,
    WatchTasks,
)
from .outputs import Outputs
from .priorities import PrioritySet, SetJobPriority, SetPriority
from .tables import EventTable, JobRow, JobTable, ProgressTable, QueueStatusReply, RunningTable, TaskRows

IDS_MAX: dict[type, int] = {
    WatchTasks: 4_000,
    FetchResults: 1_000,
    AbortTasks: 2_000,
    RetryTasks: 2_000,
    SetPriority: 2_000,
    Clear: 2_000,
    ListTasks: 2_000,
    Stuck: 1_000,
    Outputs: 10_000,
    ProgressOf: 10_000,
    ListRunning: 10_000,
    ReadHistory: 10_000,
}
"""The largest number of ids in one question of each type: its answer takes some hundredths of a second."""
ROWS_MAX = 2_000
"""The largest number of tasks in one table, and of ended tasks that are cleared by one question."""
LOOKED_AT_MAX = 10_000
"""The number of ids that are looked at for one answer."""
JOBS_MAX = 2_000
"""The largest number of jobs in one table."""
EVENTS_MAX = 20_000
"""The largest number of events in one table."""
FETCHED_BYTES = 8 << 20
"""No further result is added to an answer with this number of bytes of results."""
EARLIER_MAX = 100_000
"""The largest number of runs of ids in `RetryTasks.earlier`."""

Q = TypeVar("Q", bound=Question)
R = TypeVar("R")


def why_too_many(question: object) -> str:
    """Return why a question names too many tasks; "" if it does not."""
    most = IDS_MAX.get(type(question))
    ids = getattr(question, "ids", None) if most is not None else None
    if isinstance(question, RetryTasks) and len(question.earlier) > EARLIER_MAX:
        return f"it has more than {EARLIER_MAX:,} runs of earlier tasks"
    if most is None or ids is None or len(ids) <= most:
        return ""
    return f"it names {len(ids):,} tasks, and {most:,} are the most of one question: ask in parts"


def ask_in_pages(question: Question, ask: Callable[[Question], Reply]) -> Reply:
    """Ask a question, in as many pages as it takes, and return the whole reply, or the first refusal."""
    replies: list[Any] = []
    for part in parts(question):
        page: Question | None = part if not replies else _with_earlier(part, replies)
        while page is not None:
            reply = ask(page)
            if isinstance(reply, Refusal):
                return reply
            replies.append(reply)
            page = following(page, reply)
    return replies[0] if len(replies) == 1 else _JOINED[type(replies[0])](question, replies)


def of_kind(reply: Reply, kind: type[R], question: Question) -> R:
    """Return the reply to a question, which must be of this kind.  Raises TypeError if it is of another one."""
    if not isinstance(reply, kind):
        raise TypeError(f"the controller answered {type(question).__name__} with {type(reply).__name__}")
    return reply


def parts(question: Q) -> Iterator[Q]:
    """Yield questions with at most `IDS_MAX` ids each; mostly the question itself."""
    most = IDS_MAX.get(type(question))
    ids = getattr(question, "ids", None) if most is not None else None
    if most is None or ids is None or len(ids) <= most:
        yield question
        return
    for at in range(0, len(ids), most):
        yield replace(question, ids=list(ids[at : at + most]))


def following(question: Question, reply: Reply) -> Question | None:
    """Return the question for the next page of an answer; None: there is none, or it is not wanted."""
    match question, reply:
        case FetchResults(), Fetched(left=left) if left:
            return replace(question, ids=left)
        case ListTasks(last=0), TaskRows(next=int(after)):
            return replace(question, after=after)
        case ListTasks(last=last), TaskRows(rows=rows, next=int(after)) if last > len(rows):
            return replace(question, after=after, last=last - len(rows))
        case (FindJobs(), JobTable(next=after)) if after is not None:
            return replace(question, after=after)
        case (QueueStatus(), QueueStatusReply(next=int(after))) | (Clear(), Cleared(next=int(after))):
            return replace(question, after=after)
        case SetJobPriority(), PrioritySet(next=int(after)):
            return replace(question, after=after)
        case ReadHistory(last=last), EventTable(rows=rows, next=before) if before is not None and last > len(rows):
            return replace(question, before=before, last=last - len(rows))
    return None


def _with_earlier(question: Question, replies: list[Any]) -> Question:
    """Return a question for tasks to be retried that knows which ones are retried already: others may need them."""
    if not isinstance(question, RetryTasks):
        return question
    return replace(question, earlier=runs_of([pair for reply in replies for pair in reply.ids])[-EARLIER_MAX:])


def runs_of(pairs: list[tuple[int, int]]) -> list[tuple[int, int, int]]:
    """Return pairs of ids as runs: (first id, its other id, how many pairs in which both ids are one higher)."""
    runs: list[tuple[int, int, int]] = []
    for old, new in pairs:
        if runs:
            first, to, count = runs[-1]
            if (old, new) == (first + count, to + count):
                runs[-1] = first, to, count + 1
                continue
        runs.append((old, new, 1))
    return runs


class RetriedTasks:
    """Looks ids up in the runs of `RetryTasks.earlier`."""

    def __init__(self, runs: Sequence[tuple[int, int, int]]) -> None:
        self._runs = sorted(runs)

    def new_of(self, task_id: int) -> int:
        """Return the id of the task that retries this one; the id itself if none does."""
        at = bisect_right(self._runs, task_id, key=lambda run: run[0]) - 1
        if at < 0:
            return task_id
        first, new, count = self._runs[at]
        return new + task_id - first if task_id - first < count else task_id


def _all(replies: list[Any], name: str) -> list[Any]:
    return [each for reply in replies for each in getattr(reply, name)]


def _tasks(question: Any, replies: list[TaskRows]) -> TaskRows:
    rows = sorted({row.id: row for row in _all(replies, "rows")}.values(), key=lambda row: row.id)
    omitted = replies[-1].omitted
    if question.ids is not None:
        omitted = sum(reply.omitted for reply in replies)
        if 0 < question.last < len(rows):
            omitted += len(rows) - question.last
            rows = rows[-question.last :]
    elif replies[0].omitted > 0:
        omitted = max(0, replies[0].omitted + len(replies[0].rows) - len(rows))
    return TaskRows(rows, _all(replies, "unknown"), omitted)


def _jobs(question: Any, replies: list[JobTable]) -> JobTable:
    rows: dict[str, JobRow] = {}
    for row in _all(replies, "rows"):
        known = rows.get(row.id)
        if known is not None:
            items = {**known.items, **row.items}
            row = replace(row, ids=[*known.ids, *row.ids], items=items, retries=[*known.retries, *row.retries])
        rows[row.id] = row
    return JobTable(list(rows.values()))


def _queue_status(question: Any, replies: list[QueueStatusReply]) -> QueueStatusReply:
    ids: dict[str, list[int]] = {}
    for reply in replies:
        for state, found in (reply.ids or {}).items():
            ids.setdefault(state, []).extend(found)
    return QueueStatusReply({state: len(found) for state, found in ids.items()}, ids)


def _cleared(question: Any, replies: list[Cleared]) -> Cleared:
    missing, unfinished, needed = (_all(replies, name) for name in ("missing", "unfinished", "needed"))
    return Cleared(sum(reply.count for reply in replies), missing, unfinished, needed)


def _priorities(question: Any, replies: list[PrioritySet]) -> PrioritySet:
    return PrioritySet(sum(reply.count for reply in replies), _all(replies, "ended"), _all(replies, "unknown"))


def _running(question: Any, replies: list[RunningTable]) -> RunningTable:
    rows = sorted(_all(replies, "rows"), key=lambda row: -row[2])
    return RunningTable(rows, sum(reply.count for reply in replies), replies[-1].idle)


def _stuck(question: Any, replies: list[TextReply]) -> TextReply:
    return replies[0] if all(reply.text for reply in replies) else TextReply("")


_JOINED: dict[type, Callable[[Any, list[Any]], Reply]] = {
    Watched: lambda _, replies: Watched(_all(replies, "unknown")),
    Fetched: lambda _, replies: Fetched(*(_all(replies, name) for name in ("finals", "unfinished", "unknown"))),
    Aborted: lambda _, replies: Aborted(_all(replies, "outcomes")),
    Retried: lambda _, replies: Retried(*(_all(replies, name) for name in ("ids", "missing", "not_failed", "settled"))),
    Cleared: _cleared,
    PrioritySet: _priorities,
    TaskRows: _tasks,
    JobTable: _jobs,
    QueueStatusReply: _queue_status,
    EventTable: lambda _, replies: EventTable([row for reply in reversed(replies) for row in reply.rows]),
    ProgressTable: lambda _, replies: ProgressTable(_all(replies, "rows")),
    RunningTable: _running,
    TextReply: _stuck,
    NumberReply: lambda _, replies: NumberReply(sum(reply.value for reply in replies)),
}
"""How the pages of a reply are put together."""
