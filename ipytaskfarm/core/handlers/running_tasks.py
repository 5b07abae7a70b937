"""Calls of running tasks: submitting children, asking about them, waiting for tasks, messages, progress.

A call counts only while its attempt is the current one on its engine.
"""

from __future__ import annotations

from zlib import crc32

import msgspec

from ..messages import ListRunning, ProgressOf
from ..messages.running_task import (
    Await,
    Children,
    ChildTable,
    Declined,
    Post,
    ProgressReport,
    Receive,
    Spawn,
    Spawned,
    Take,
    TaskCall,
    trial_name,
)
from ..messages.tables import ProgressTable, RunningTable
from ..messages.task_types import RunKey, Submission
from ..scheduler import nested_waits, task_messages
from ..scheduler.decision import Decision, LoadTaken, Now
from ..scheduler.entries import EngineEntry, EngineState, TaskEntry
from ..scheduler.running_tasks import Family
from ..scheduler.state import SchedulerState
from ..scheduler.task import Assigned, Queued
from ..scheduler.transitions import accept, leave_queue, rejoin
from ..states import State
from ..validation import why_not_storable
from .jobs import count_arrival, open_job, save_jobs
from .submit import apply_rules, why_closed, why_refused

RUNNING_SHOWN = 1_000
"""The largest number of running tasks in one answer."""


def on_task_call(farm: SchedulerState, session: str, event: TaskCall, now: Now, out: Decision) -> None:
    """Answer a running task's call."""
    engine = farm.engines.by_name.get(event.engine)
    task = farm.tasks.unfinished.get(event.run[0])
    if engine is None or task is None or not task.is_current(engine.name, event.run):
        return
    question = event.question
    if isinstance(question, Spawn):
        _spawn(farm, engine, task, event, question, now, out)
    elif isinstance(question, Children):
        rows = [(child, state_of(farm, child)) for child in children_of(farm, task.id)]
        out.reply(engine.agent, event, ChildTable(rows))
    elif isinstance(question, Await):
        _put_forward(farm, question.ids, task)
        nested_waits.wait_in_run(farm, engine, event, question, now, out)
    elif isinstance(question, Take):
        out.loads.append(LoadTaken(engine.agent, event))
    elif isinstance(question, Post):
        task_messages.post(farm, engine, task, event, question, now, out)
    elif isinstance(question, Receive):
        task_messages.receive(farm, engine, task, event, question, out)


def _put_forward(farm: SchedulerState, awaited: list[int], waiting: TaskEntry) -> None:
    """Give the tasks for which a running task waits, and those for which these wait, its place in the queue.

    Otherwise each engine that the waiting task lends would begin another task that waits in the same way, until no more
    engines can be lent, and what all of them wait for would never begin.
    """
    unseen = [*map(farm.tasks.holder, awaited)]
    seen = {waiting.id}
    while unseen:
        task = farm.tasks.unfinished.get(unseen.pop())
        if task is None or task.id in seen:
            continue
        seen.add(task.id)
        unseen.extend(map(farm.tasks.holder, task.waits_for or ()))
        if (waiting.key, waiting.queue_seq) >= (task.key, task.queue_seq):
            continue
        queued = task.task_class is not None
        if queued:
            leave_queue(farm, task)
        task.key, task.queue_seq = waiting.key, waiting.queue_seq
        if queued and type(task.place) is Queued:
            rejoin(farm, task, task.place)


def state_of(farm: SchedulerState, task_id: int) -> str:
    """Return a task's state as its parent sees it, or "cleared"."""
    task = farm.tasks.unfinished.get(task_id)
    if task is not None:
        return "running" if task.state is State.PENDING else task.state.value
    reason = farm.tasks.finals.get(task_id)
    if reason is None:
        return "failed" if task_id in farm.tasks.refusals else "cleared"
    return str(State.FAILED if reason else State.SUCCEEDED)


def children_of(farm: SchedulerState, parent: int) -> list[int]:
    """Return a task's children in the order of submission."""
    family = farm.conversations.families.get(parent)
    return [child for _, ids in family.spawned.values() for child in ids] if family is not None else []


def _spawn(
    farm: SchedulerState,
    engine: EngineEntry,
    parent: TaskEntry,
    event: TaskCall,
    question: Spawn,
    now: Now,
    out: Decision,
) -> None:
    if not question.tasks:
        out.reply(engine.agent, event, Spawned([]))
        return
    family = farm.conversations.families.setdefault(parent.id, Family())
    trial = parent.past.trial_state.trial if parent.past.trial_state is not None else 1
    key = f"{trial_name(trial, parent.past.recovery)}.{question.n}"
    check = 0
    for made in question.tasks:
        check = crc32(made.payload, crc32((made.function or "").encode(), check))
    known = family.spawned.get(key)
    if known is not None:
        out.reply(engine.agent, event, _submitted_before(parent.id, trial, question, check, *known))
        return
    closed = why_closed(farm)
    if closed is not None:
        out.reply(engine.agent, event, Declined(*closed))
        return
    fault = why_not_storable(question)
    if fault:
        out.reply(engine.agent, event, Declined("TaskError", f"what task {parent.id} submits cannot be kept: {fault}"))
        return
    farm.functions.save(question.functions, out)
    if question.job is not None:
        open_job(farm, parent.session, question.job)
    keys: set[str] = set()
    for made in question.tasks:
        refusal = why_refused(farm, msgspec.structs.replace(made, needs=None), made.rules)
        unique = made.rules.unique if made.rules is not None else None
        if refusal is None and unique is not None and unique in keys:
            refusal = "DuplicateTask", f"two of the tasks that task {parent.id} submits have the unique key {unique!r}"
        if unique is not None:
            keys.add(unique)
        if refusal is not None:
            out.reply(engine.agent, event, Declined(*refusal))
            return
    ids = _take_in(farm, parent, f"{key}.{check}", question.tasks, now, out)
    if question.job is not None:
        for made in question.tasks:
            count_arrival(farm, made.rules)
        save_jobs(farm, [question.job], out)
    family.spawned[key] = check, ids
    out.reply(engine.agent, event, Spawned(ids))


def _submitted_before(
    parent: int, trial: int, question: Spawn, check: int, known_check: int, ids: list[int]
) -> Spawned | Declined:
    """Return the answer to a submission that an earlier run has made: its children, unless it was another one."""
    if known_check == check and len(ids) == len(question.tasks):
        return Spawned(ids)
    if known_check == check:
        return Declined("RuntimeError", f"children that task {parent} submitted when it ran before were cleared")
    text = (
        f"task {parent} submitted something else as its submission {question.n} of trial {trial} when it "
        "ran before: a task that may run again must submit the same in the same order"
    )
    return Declined("RuntimeError", text)


def _take_in(
    farm: SchedulerState, parent: TaskEntry, spawn: str, made: list[Submission], now: Now, out: Decision
) -> list[int]:
    ids = list(farm.clients.ids.give(len(made), out))
    of_number = {submission.id: task_id for submission, task_id in zip(made, ids, strict=True)}
    for submission, task_id in zip(made, ids, strict=True):
        needs = submission.needs
        if needs is not None:
            # Tasks of the same call are named by negative numbers.
            after = tuple(of_number.get(i, i) for i in needs.after)
            inputs = tuple((name, of_number.get(source, source)) for name, source in needs.inputs)
            known = tuple(i for i in after if farm.tasks.is_known(i))
            needs = msgspec.structs.replace(needs, after=known, inputs=inputs)
        # Only clients submit chunks, whose items have ids of their own; only the controller submits items of chunks.
        child = msgspec.structs.replace(submission, id=task_id, submitted_s=now.wall_s, needs=needs, items=0, part=None)
        apply_rules(farm, accept(farm, child, parent.session, submission.rules, out, parent.id, spawn), now, out)
    return ids


# -- progress


def on_progress(farm: SchedulerState, session: str, event: ProgressReport, now: Now, out: Decision) -> None:
    """Take over a running task's report of progress."""
    task = farm.tasks.unfinished.get(event.run[0])
    if task is not None and task.is_current(event.engine, event.run):
        farm.conversations.progress[task.id] = event.value, event.total, event.message


def on_progress_of(farm: SchedulerState, session: str, n: int, question: ProgressOf, now: Now, out: Decision) -> None:
    """Answer with the progress of these tasks.

    Clients ask a few times a second, so a thousand updates cost no more than the last one.
    """
    rows = []
    for task_id in question.ids:
        if task_id in farm.tasks.unfinished and (found := progress_of(farm, task_id)) is not None:
            rows.append((task_id, *found))
    out.answer(session, n, ProgressTable(rows))


def on_list_running(farm: SchedulerState, session: str, n: int, question: ListRunning, now: Now, out: Decision) -> None:
    """Answer which of these tasks run now, on which engines, and for how long.

    The engines are looked through and not the tasks, which may be many more."""
    wanted = None if question.ids is None else set(question.ids)
    rows = []
    idle = 0
    for engine in farm.engines.by_name.values():
        running = engine.running()
        if not running:
            idle += engine.state == EngineState.UP
        for run in running:
            if is_wanted(farm, session, run[0], wanted):
                rows.append((run[0], engine.id, max(0.0, now.mono_s - _since_s(farm, engine, run, now))))
    rows.sort(key=lambda row: -row[2])
    out.answer(session, n, RunningTable(rows[:RUNNING_SHOWN], len(rows), idle))


def _since_s(farm: SchedulerState, engine: EngineEntry, run: RunKey, now: Now) -> float:
    """Return since when (monotonic) an engine has been running a run."""
    if not engine.concurrent:
        return engine.since_s if engine.current == run else now.mono_s
    task = farm.tasks.unfinished.get(run[0])
    since_s = task.place.since_s if task is not None and type(task.place) is Assigned else None
    return now.mono_s if since_s is None else since_s


def is_wanted(farm: SchedulerState, session: str, task_id: int, wanted: set[int] | None) -> bool:
    """Return whether a client asks for this task: by its id, or for all of its session (None)."""
    if wanted is not None:
        return task_id in wanted
    task = farm.tasks.unfinished.get(task_id)
    return task is not None and task.session == session


def progress_of(farm: SchedulerState, task_id: int) -> tuple[float, float | None, str] | None:
    """Return a task's reported progress, or else how many of its children have ended."""
    own = farm.conversations.progress.get(task_id)
    if own is not None:
        return own
    children = children_of(farm, task_id)
    if not children:
        return None
    done = 0.0
    for child in children:
        reported = farm.conversations.progress.get(child)
        if child not in farm.tasks.unfinished:
            done += 1
        elif reported is not None and reported[1]:
            done += min(1.0, reported[0] / reported[1])
    return done, float(len(children)), f"{len(children)} children"
