"""Answers that are read from the store: results, tables of ended tasks, explanations, tasks to be retried."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Protocol

import msgspec

from ..core.handlers.tables import item_rows, last_rows
from ..core.messages import Answer, Fetched, Refusal, TextReply
from ..core.messages.pages import FETCHED_BYTES, LOOKED_AT_MAX
from ..core.messages.running_task import Declined, Letter, Take, Taken, TaskMessages, TaskReply
from ..core.messages.tables import JobRow, JobTable, TaskRow
from ..core.messages.task_types import Final, Submission
from ..core.saves import MapPlace, TaskOfJob, TaskRecord
from ..core.scheduler import decision
from ..core.scheduler.events import EndedLoaded, Event, JobsCleared, Originals
from ..core.states import FREEZES
from ..core.text import error_line, place_beside

MAIL_AT_ONCE = 1000
"""The number of messages of a task that are read at a time."""
TAKEN_MAX = 1000
"""The number of results that a running task gets at a time."""


class StoreReader(Protocol):
    """The methods of `storage.store.Store` that this module uses."""

    def finals(self, ids: Sequence[int]) -> list[Final]: ...

    def task_rows(self, ids: Sequence[int]) -> list[TaskRow]: ...

    def original(self, ids: Sequence[int]) -> list[Submission]: ...

    def ended(self, ids: Sequence[int], dependents: bool) -> list[TaskRecord]: ...

    def conversations(
        self, ids: Sequence[int]
    ) -> tuple[list[tuple[int, str, int]], list[tuple[int, int, int, str]]]: ...

    def mail(self, task: int, outgoing: bool, after: int, count: int) -> list[tuple[int, str, float, bytes]]: ...

    def jobs_with_tasks(self, jobs: Sequence[str]) -> set[str]: ...

    def tasks_of_job(self, job: str, after: int, count: int) -> list[TaskOfJob]: ...

    def within(self, ids: Sequence[int], size_bytes: int) -> tuple[list[int], list[int]]: ...

    def place_in_map(self, task: int) -> MapPlace | None: ...

    def latest_retries(self, ids: Sequence[int]) -> dict[int, int]: ...


def answer(store: StoreReader, load: decision.Load) -> tuple[str, Answer | TaskReply] | tuple[str, Event]:
    """Return (session, message to send); for `LoadOriginals` and `LoadEnded` the event that the scheduler waits for."""
    if isinstance(load, decision.LoadFinals):
        ids, left = store.within(load.ids, FETCHED_BYTES)
        finals = [*store.finals(ids), *load.refusals]
        return load.session, Answer(load.n, Fetched(finals, load.unfinished, load.unknown, left))
    if isinstance(load, decision.LoadTable):
        found = [row for row in store.task_rows(load.ids) if load.name is None or row.name == load.name]
        rows = [row for each in found for row in item_rows(each, load.items.get(each.id))]
        if load.unretried:
            retried = store.latest_retries([row.id for row in rows])
            rows = [row for row in rows if row.id not in retried]
        table = last_rows([*load.rows, *rows], load.unknown, load.last, load.omitted, load.order, load.end)
        return load.session, Answer(load.n, table)
    if isinstance(load, decision.LoadOriginals):
        tasks = _originals(store, load)
        # Cleared since the question was asked, perhaps in the same turn.
        gone = sorted(set(load.ids) - {task.id for task in tasks})
        needed = {i for task in tasks if task.needs is not None for i in task.needs.after}
        newest = store.latest_retries([*load.ids, *needed])
        if load.once:
            tasks = [task for task in tasks if task.id not in newest]
        if load.latest:
            tasks = _with_latest_work(store, tasks, newest)
        tasks, fault = _calling(load, tasks)
        missing = [*load.missing, *gone]
        earlier, not_failed = [*load.earlier], load.not_failed
        return load.session, Originals(load.n, tasks, missing, not_failed, earlier, newest, load.latest, fault)
    if isinstance(load, decision.LoadEnded):
        records = store.ended(load.ids, load.dependents)
        children, mail = store.conversations([record.id for record in records])
        return "", EndedLoaded(records, load.ids, load.outcome, load.asker, children, mail)
    if isinstance(load, decision.LoadMail):
        return _mail(store, load)
    if isinstance(load, decision.LoadTaken):
        asked = load.call.question.ids if isinstance(load.call.question, Take) else []
        ids, left = store.within(asked[:TAKEN_MAX], FETCHED_BYTES)
        taken = Taken(store.finals(ids), [*left, *asked[TAKEN_MAX:]])
        return load.agent, TaskReply(load.call.engine, load.call.run, load.call.n, taken)
    if isinstance(load, decision.LoadJobs):
        return load.session, Answer(load.n, _jobs(store, load))
    if isinstance(load, decision.LookForJobs):
        there = store.jobs_with_tasks([job for job, _ in load.jobs])
        return "", JobsCleared([job for job in load.jobs if job[0] not in there])
    return load.session, Answer(load.n, _explanation(store, load))


def _originals(store: StoreReader, load: decision.LoadOriginals) -> list[Submission]:
    """Return tasks as they were submitted; silent items as tasks that run one item of their chunk."""
    found = {task.id: task for task in store.original([load.chunks.get(i, i) for i in load.ids])}
    tasks = []
    for task_id in load.ids:
        chunk = load.chunks.get(task_id)
        task = found.get(task_id if chunk is None else chunk)
        if task is not None and chunk is not None:
            part = (chunk, task_id - chunk - 1)
            task = msgspec.structs.replace(task, id=task_id, payload=b"", blobs=(), items=0, part=part)
        if task is not None:
            tasks.append(task)
    return tasks


def _with_latest_work(store: StoreReader, tasks: list[Submission], newest: dict[int, int]) -> list[Submission]:
    """Give tasks what their latest retries were submitted with: that may be another function."""
    found = {task.id: task for task in store.original([newest[task.id] for task in tasks if task.id in newest])}
    return [
        msgspec.structs.replace(found[newest[task.id]], id=task.id) if newest.get(task.id) in found else task
        for task in tasks
    ]


def _calling(load: decision.LoadOriginals, tasks: list[Submission]) -> tuple[list[Submission], str]:
    """Let tasks call the function that is to take the place of theirs; return why they cannot, too.

    They do not use the result cache: a key is that of a function."""
    if load.function is None:
        return tasks, ""
    for task in tasks:
        if task.function is None:
            text = f"task {task.id} calls no function that another could take the place of"
            return [], f"{text}: tc.fetch_task({task.id}) returns the task, to be changed and run"
    given = {"function": load.function, "cache": None}
    return [
        msgspec.structs.replace(task, **given, blobs=tuple(dict.fromkeys((*task.blobs, *load.blobs)))) for task in tasks
    ], ""


def unanswered(load: decision.Load, why: str) -> tuple[str, Answer | TaskReply] | tuple[str, Event]:
    """Return the refusal to send, or the event to handle, in place of an answer that the store cannot give."""
    refusal = Refusal("KernelError", why)
    if isinstance(load, decision.LoadEnded):
        if load.asker is None:
            return "", EndedLoaded([], load.ids, load.outcome, None)
        return load.asker[0], Answer(load.asker[1], refusal)
    if isinstance(load, decision.LookForJobs):
        return "", JobsCleared([])
    call = load.call if isinstance(load, decision.LoadTaken | decision.LoadMail) else None
    if call is not None:
        agent = load.agent if isinstance(load, decision.LoadTaken) else load.session
        return agent, TaskReply(call.engine, call.run, call.n, Declined(refusal.etype, why))
    return load.session, Answer(load.n, refusal)  # type: ignore[union-attr]


def _jobs(store: StoreReader, load: decision.LoadJobs) -> JobTable:
    """Return a page of jobs: with the ids of their tasks, it ends with the task that is one too many."""
    kept = store.jobs_with_tasks([row.id for row in load.rows])
    rows = [row for row in load.rows if row.id in kept]
    if not load.tasks:
        return JobTable(rows, load.end)
    full: list[JobRow] = []
    room, after = LOOKED_AT_MAX, load.after
    for row in rows:
        found = store.tasks_of_job(row.id, after, room)
        full.append(_with_tasks(row, found))
        room -= len(found)
        if room <= 0:
            return JobTable(full, (row.opened_s, row.id, found[-1].id))
        after = -1
    return JobTable(full, load.end)


def _with_tasks(row: JobRow, found: list[TaskOfJob]) -> JobRow:
    retries = [(task.retry_of, task.id) for task in found if task.retry_of is not None]
    if not row.is_map:
        return msgspec.structs.replace(row, ids=[task.id for task in found], retries=retries)
    members = [task for task in found if task.retry_of is None and not task.is_part]
    chunks = {task.id: task.items for task in members if task.items}
    return msgspec.structs.replace(row, ids=[task.id for task in members], items=chunks, retries=retries)


def _mail(store: StoreReader, load: decision.LoadMail) -> tuple[str, Answer | TaskReply]:
    found = [Letter(*row) for row in store.mail(load.task, load.outgoing, load.after, MAIL_AT_ONCE)]
    letters = TaskMessages(found, load.over and len(found) < MAIL_AT_ONCE)
    if load.call is not None:
        return load.session, TaskReply(load.call.engine, load.call.run, load.call.n, letters)
    return load.session, Answer(load.n, letters)


def _explanation(store: StoreReader, load: decision.LoadExplanation) -> TextReply | Refusal:
    lines = load.lines
    if lines is None:
        finals = store.finals([load.id])
        if not finals:
            return Refusal("IndexError", f"there is no task {load.id}: it has been cleared")
        lines = explain_final(finals[0]) if load.item is None else explain_item(finals[0], load.item)
        if load.unfrozen and finals[0].reason in FREEZES and _asks_to_freeze(store, load.id):
            lines.append(load.unfrozen)
    place = store.place_in_map(load.id if load.item is None else load.item)
    if place is not None:
        lines = [lines[0], in_map(place), *lines[1:]]
    return TextReply("\n".join([*lines, *load.more]))


def _asks_to_freeze(store: StoreReader, task: int) -> bool:
    """Return whether a failure of a task was to freeze its engine."""
    return any(each.rules is not None and each.rules.freeze for each in store.original([task]))


def in_map(place: MapPlace) -> str:
    """Return a line for people about a task's place in its map."""
    of = "" if place.total is None else f" of {place.total}"
    again = "" if place.first is None else f", which task {place.first} ran first"
    return f"item {place.index}{of} of map {place.name!r}{again}"


def _run_time(run_s: float) -> str:
    return f"{run_s:.3f} s" if run_s >= 0.01 else f"{run_s * 1000:.3g} ms"


def explain_item(chunk: Final, item: int) -> list[str]:
    """Return lines for people about a silent item of an ended chunk."""
    others = max(0, chunk.items - len(chunk.separate) - 1)
    share = f"it shared a run of {_run_time(chunk.run_s)} with {others} other item{'' if others == 1 else 's'}"
    times = {"id": item, "run_s": chunk.run_s / max(1, chunk.items - len(chunk.separate))}
    first, *rest = explain_final(msgspec.structs.replace(chunk, **times))
    return [f"{first}; {share}", *rest]


def explain_final(final: Final) -> list[str]:
    """Return lines for people about an ended task."""
    state = f"failed: {final.reason}" if final.reason else "succeeded"
    # In UTC: the reader's time zone is another than the controller's, and `with_local_times` shows it there.
    when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(final.completed_s))
    where = f" on engine {final.engine_id} ({final.node})" if final.engine_id >= 0 else ""
    took = f"run time {_run_time(final.run_s)}"
    if final.from_cache:
        where, took = f" with a result from {final.node}", f"nothing ran; tc.why_hit({final.id}) says why"
    elif final.engine_id < 0 and not final.reason:
        took = "its result was given by mark_done"
    elif final.engine_id < 0 and not final.history:
        took = "it never ran"
    lines = [f"task {final.id} {state}{where} at {when}, {took}"]
    for row in final.history:
        what = f": {error_line(row.failure.etype, row.failure.value)}" if row.failure else ""
        who = f"attempt {row.number} on engine {row.engine_id} ({row.node})" if row.engine_id >= 0 else "without a run"
        lines.append(f"{who}: {row.outcome}{what}")
    if final.failure is not None:
        place = place_beside(final.failure.value, final.failure.place)
        lines.append(f"{error_line(final.failure.etype, final.failure.value)}{place}")
    return lines
