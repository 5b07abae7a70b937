"""Questions of the live view that are answered from memory, and the changes that followers are told.

Nothing here walks through all tasks: each answer is bounded, whatever the farm holds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from heapq import nlargest
from itertools import islice

from ..messages import (
    FollowFarm,
    NumberReply,
    ReadEngines,
    ReadHistory,
    ReadJobs,
    ReadTaskPage,
    Refusal,
    WhyWaiting,
    view,
)
from ..messages.tables import EventRow, EventTable
from ..scheduler.decision import Decision, Now
from ..scheduler.entries import EngineEntry, TaskClass, TaskEntry
from ..scheduler.followers import JOBS_AT_ONCE, QUIET_EVERY_S, TOLD_EVERY_S
from ..scheduler.jobs import JobEntry
from ..scheduler.state import SchedulerState
from ..scheduler.task import Assigned, Queued
from ..states import State, Waiting
from .explain import explain
from .submit import refusing
from .tables import (
    CLASSES_LOOKED_AT,
    SHOWN_STATES,
    agent_row,
    engine_state,
    frozen_rows,
    name_of,
    reason_of,
    task_row,
    wanted_engines,
)

LOOKED_AT = 20_000
"""The largest number of tasks or engines that one answer looks at."""
JOBS_MAX = 500
SENTENCES_MAX = 600
"""The largest number of characters of an explanation."""


# -- followers


def on_follow(farm: SchedulerState, session: str, n: int, question: FollowFarm, now: Now, out: Decision) -> None:
    """Let a session follow the farm, or no longer."""
    followers = farm.followers
    if question.on:
        followers.sessions[session] = None
        if not followers.timer:
            followers.timer = True
            farm.timers.set(now.mono_s + TOLD_EVERY_S, "changes")
    else:
        followers.leave(session)
    out.answer(session, n, NumberReply(followers.number))


def tell_followers(farm: SchedulerState, now: Now, out: Decision) -> None:
    """Send the changes to all followers, and set the timer of the next ones."""
    followers = farm.followers
    if not followers.sessions:
        followers.timer = False
        return
    followers.number += 1
    busy = bool(followers.succeeded or followers.failed or followers.jobs or followers.stale)
    changes = view.FarmChanges(
        followers.number,
        now.wall_s,
        {state.value: farm.tasks.counts[state] for state in SHOWN_STATES},
        followers.succeeded,
        followers.failed,
        followers.taken_stretches(),
        followers.left_out,
        followers.taken_causes(),
        list(_changed_jobs(farm)),
        followers.stale,
        farm.lifecycle.held,
        farm.lifecycle.stopping,
        refusing(farm),
    )
    followers.succeeded = followers.failed = followers.left_out = 0
    followers.stale = False
    for session in followers.sessions:
        out.sends.append((session, changes))
    farm.timers.set(now.mono_s + (TOLD_EVERY_S if busy else QUIET_EVERY_S), "changes")


def _changed_jobs(farm: SchedulerState) -> Iterator[view.JobProgress]:
    """Yield the progress of the jobs that have changed; those beyond the bound are told next time."""
    followers = farm.followers
    for job_id in list(islice(followers.jobs, JOBS_AT_ONCE)):
        del followers.jobs[job_id]
        failed = followers.job_failures.pop(job_id, 0)
        job = farm.jobs.by_id.get(job_id)
        if job is not None:
            yield _progress(job, failed)


def _progress(job: JobEntry, failed: int) -> view.JobProgress:
    spec = job.spec
    return view.JobProgress(
        spec.id, spec.name, spec.total, job.arrived, job.unfinished, failed, job.paused, job.failed, spec.opened_s,
        job.priority,
    )  # fmt: skip


def on_read_jobs(farm: SchedulerState, session: str, n: int, question: ReadJobs, now: Now, out: Decision) -> None:
    """Answer with the unfinished jobs, then the others, the latest first."""
    count = _bounded(question.count, JOBS_MAX)
    jobs = farm.jobs.by_id
    wanted = jobs.values() if question.job is None else [jobs[question.job]] if question.job in jobs else []
    rows = nlargest(count, wanted, key=lambda job: (job.unfinished > 0, job.spec.opened_s))
    out.answer(session, n, view.JobPage([_progress(job, 0) for job in rows], len(jobs) - len(rows)))


def _bounded(count: int, most: int) -> int:
    return max(1, min(count, most))


# -- engines


def on_read_engines(farm: SchedulerState, session: str, n: int, question: ReadEngines, now: Now, out: Decision) -> None:
    """Answer with a page of engines, and with the number of engines in each state."""
    states: dict[str, int] = {}
    found = []
    for engine in farm.engines.in_order():
        state = engine_state(engine)
        states[state] = states.get(state, 0) + 1
        if question.state in (None, state) and question.node in (None, engine.node):
            found.append((engine, state))
    first = max(0, question.first)
    shown = found[first : first + _bounded(question.count, view.PAGE_MAX)]
    rows = [_engine_line(farm, engine, state, now) for engine, state in shown]
    agents = farm.agents.by_session
    page = view.EnginePage(
        rows,
        len(found),
        states,
        wanted_engines(farm),
        [agent_row(farm, agent) for agent in islice(agents.values(), view.AGENTS_MAX)],
        len(agents),
        list(farm.diagnostics.losses),
        sum(1 for client in farm.clients.by_session.values() if client.connected),
        farm.epoch,
        frozen_rows(farm, now)[: view.FROZEN_MAX],
    )
    out.answer(session, n, page)


def _engine_line(farm: SchedulerState, engine: EngineEntry, state: str, now: Now) -> view.EngineLine:
    run = engine.oldest()
    task = farm.tasks.unfinished.get(run[0]) if run is not None else None
    agent = farm.agents.by_session.get(engine.agent)
    node = agent.state if agent is not None else None
    since_s = engine.since_s if run is not None and engine.current == run else now.mono_s
    return view.EngineLine(
        engine.id,
        engine.node,
        state,
        run[0] if run is not None else -1,
        (name_of(task) if task is not None else None) or "",
        now.wall_s - (now.mono_s - since_s) if run is not None else 0.0,
        max(0, len(engine.assigned) - 1),
        engine.finished,
        engine.started_s,
        engine.pid,
        engine.preparation(farm.mono_s) or engine.note,
        engine.environment.name if engine.environment is not None else "",
        node.engine_bytes.get(engine.name, -1) if node is not None else -1,
        node.engine_limit if node is not None else 0,
    )


# -- why tasks wait


def on_why_waiting(farm: SchedulerState, session: str, n: int, question: WhyWaiting, now: Now, out: Decision) -> None:
    """Answer why tasks wait: reasons, with counts and an example.

    Tasks of a class wait for the same reason.  Of the tasks outside the queues, the latest are looked at."""
    found: dict[str, tuple[int, TaskEntry]] = {}
    for task_class in islice(farm.queues.classes.values(), CLASSES_LOOKED_AT):
        first = task_class.first() if task_class.size else None
        if first is not None:
            _note_waiting(found, reason_of(farm, first), first, _tasks_in(farm, task_class))
    _note_sent_ahead(farm, found)
    outside = farm.tasks.counts[State.SCHEDULED] - sum(count for count, _ in found.values())
    if outside > 0:
        for task in islice(reversed(farm.tasks.unfinished.values()), LOOKED_AT):
            if type(task.place) is Queued and task.task_class is None:
                outside -= _note_waiting(found, reason_of(farm, task), task, farm.tasks.chunks.size(task.id))
    rows = []
    for reason, (count, task) in found.items():
        sentences = "\n".join(explain(farm, task, now))
        if len(sentences) > SENTENCES_MAX:
            sentences = sentences[: SENTENCES_MAX - 1] + "…"
        example = farm.tasks.chunks.first(task.id) if task.items else task.id
        rows.append((str(reason), count, example, sentences))
    rows.sort(key=lambda row: -row[1])
    out.answer(session, n, view.WaitingTable(rows, max(0, outside)))


def _tasks_in(farm: SchedulerState, task_class: TaskClass) -> int:
    """Return how many tasks wait in a class.  A chunk stands for its items; of many chunks some are looked at."""
    sizes = [farm.tasks.chunks.size(task.id) for task in islice(task_class.waiting(), LOOKED_AT)]
    return sum(sizes) * task_class.size // len(sizes) if sizes else 0


def _note_waiting(found: dict[str, tuple[int, TaskEntry]], reason: str, task: TaskEntry, count: int) -> int:
    before, example = found.get(reason, (0, task))
    found[reason] = before + count, example
    return count


def _note_sent_ahead(farm: SchedulerState, found: dict[str, tuple[int, TaskEntry]]) -> None:
    """Note the tasks on engines that do not run yet: those behind the first, and further items of a running chunk."""
    for engine in islice(farm.engines.by_name.values(), LOOKED_AT):
        for place, run in enumerate(engine.assigned):
            task = farm.tasks.unfinished.get(run[0])
            size = farm.tasks.chunks.size(run[0]) - (place == 0)
            if task is not None and size > 0:
                _note_waiting(found, Waiting.SENT_AHEAD, task, size)


# -- pages of unfinished tasks


UNFINISHED = frozenset({"scheduled", "pending", "running", "unfinished"})
"""The states of `ReadTaskPage` that are answered from memory."""


def unfinished_page(farm: SchedulerState, question: ReadTaskPage) -> view.TaskPage | Refusal:
    """Return a page of unfinished tasks: for running ones the engines are looked through, else the latest tasks."""
    count = _bounded(question.count, view.PAGE_MAX)
    running = question.state in ("pending", "running")
    wanted = _wanted(farm, question)
    rows: list[view.PageRow] = []
    for looked, task in enumerate(_running(farm, question) if running else _unfinished(farm, question), 1):
        if wanted(task):
            rows.append(page_row(farm, task))
        if len(rows) >= count or looked >= LOOKED_AT:
            return view.TaskPage(rows, task.id, len(rows) >= count)
    return view.TaskPage(rows)


def _running(farm: SchedulerState, question: ReadTaskPage) -> list[TaskEntry]:
    """Return the running tasks beyond `before`, in the order asked for."""
    ids = [run[0] for engine in farm.engines.by_name.values() if (run := engine.oldest()) is not None]
    before, sign = question.before, 1 if question.oldest_first else -1
    ids = sorted((i for i in ids if before is None or (i - before) * sign > 0), reverse=not question.oldest_first)
    return [farm.tasks.unfinished[i] for i in ids if i in farm.tasks.unfinished]


def _unfinished(farm: SchedulerState, question: ReadTaskPage) -> Iterator[TaskEntry]:
    """Yield unfinished tasks beyond `before`; they stand in the order of their acceptance, as far as it is known."""
    tasks = farm.tasks.unfinished
    if question.before is None or question.before not in tasks:
        before, sign = question.before, 1 if question.oldest_first else -1
        for task in tasks.values() if question.oldest_first else reversed(tasks.values()):
            if before is None or (task.id - before) * sign > 0:
                yield task
        return
    passed = False
    for task in tasks.values() if question.oldest_first else reversed(tasks.values()):
        if passed:
            yield task
        passed = passed or task.id == question.before


def _wanted(farm: SchedulerState, question: ReadTaskPage) -> Callable[[TaskEntry], bool]:
    """Return the test of a filter."""
    text = question.text.lower()
    state = State.SCHEDULED if question.state == "scheduled" else None

    def wanted(task: TaskEntry) -> bool:
        if state is not None and task.state is not state:
            return False
        if question.job is not None and task.job != question.job:
            return False
        if question.engine_id is not None:
            engine = farm.engines.by_name.get(task.place.engine) if type(task.place) is Assigned else None
            if engine is None or engine.id != question.engine_id:
                return False
        return not text or text in (name_of(task) or "").lower()

    return wanted


def page_row(farm: SchedulerState, task: TaskEntry) -> view.PageRow:
    """Return the line of an unfinished task."""
    row = task_row(farm, task)
    first = farm.tasks.chunks.first(task.id) if task.items else task.id
    return view.PageRow(
        first,
        row.state,
        str(row.reason),
        row.name or "",
        task.job or "",
        row.engine_id if row.engine_id is not None else -1,
        row.attempts,
        row.submitted_s,
        row.started_s,
        None,
        None,
        "",
        "",
        "",
        farm.tasks.chunks.size(task.id),
        row.priority,
    )


def with_unfinished(farm: SchedulerState, page: view.TaskPage, holders: list[int]) -> view.TaskPage:
    """Return a page from the store with the lines of tasks that have not ended, as they are now.

    holders: the ids under which the tasks of the lines are kept."""
    rows = []
    for row, holder in zip(page.rows, holders, strict=True):
        task = farm.tasks.unfinished.get(holder)
        rows.append(row if task is None else page_row(farm, task))
    return view.TaskPage(rows, page.next, page.full)


def with_started(farm: SchedulerState, table: EventTable, question: ReadHistory) -> EventTable:
    """Return a page of the history with the begin of each run that goes on, which the store has only after its end."""
    if question.ids is None:
        tasks = {run[0] for engine in farm.engines.by_name.values() for run in engine.running()}
    else:
        tasks = set(question.ids)
    rows = [row for task in tasks if (row := _started(farm, task)) is not None and _matches(row, question, table)]
    if not rows:
        return table
    return EventTable(sorted([*table.rows, *rows], key=_moment_of)[-question.last :], table.next)


def _started(farm: SchedulerState, task_id: int) -> EventRow | None:
    task = farm.tasks.unfinished.get(task_id)
    if task is None or task.items or type(task.place) is not Assigned or task.place.since_s is None:
        return None
    engine = farm.engines.by_name.get(task.place.engine)
    if engine is None or task.place.wall_s is None:
        return None
    return task.place.wall_s, task.id, name_of(task), "started", engine.id, f"attempt {task.attempt}"


def _matches(row: EventRow, question: ReadHistory, table: EventTable) -> bool:
    at_s, _, name, what, _, _ = row
    asked = question.name in (None, name) and at_s >= question.since_s
    on_page = (question.before is None or _moment_of(row) < question.before) and (
        table.next is None or _moment_of(row) > table.next
    )
    return asked and on_page and (question.what or "").lower() in what


def _moment_of(row: EventRow) -> tuple[float, int, str]:
    return row[0], row[1], row[3]
