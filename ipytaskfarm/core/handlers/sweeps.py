"""Pausing and resuming jobs, and the pass over the waiting tasks that follows, a slice in each turn."""

from __future__ import annotations

from ..messages import NumberReply, PauseJobs, Refusal
from ..messages.pages import LOOKED_AT_MAX
from ..messages.task_types import RunKey
from ..scheduler.decision import Decision, Now
from ..scheduler.engine_shutdown import recall
from ..scheduler.entries import EngineState, TaskEntry
from ..scheduler.state import SchedulerState
from ..scheduler.task import Assigned
from ..scheduler.transitions import has_limited_class, rejoin
from ..states import Waiting


def on_pause_jobs(farm: SchedulerState, session: str, n: int, question: PauseJobs, now: Now, out: Decision) -> None:
    """Start no more tasks of these jobs, or resume them.  Running tasks go on.

    The answer comes when all their tasks have left their queues, or are back.  Until then some of them may start.  What
    is saved is the jobs' state alone: after a crash in the middle the tasks are where it says, and a repeated question
    is answered at once."""
    unknown = [job_id for job_id in question.ids if job_id not in farm.jobs.by_id]
    if unknown:
        out.answer(session, n, Refusal("KeyError", f"there is no job {unknown[0]}: it was never submitted, or is over"))
        return
    refusal = farm.sweep.why_not(session)
    if refusal is not None:
        out.answer(session, n, refusal)
        return
    chosen = set(question.ids)
    changed = [job for job_id in chosen if (job := farm.jobs.by_id[job_id]).paused is not question.on]
    for job in changed:
        job.paused = question.on
        farm.followers.note_job(job.spec.id)
        out.saves.append(job.save())
    (farm.jobs.paused.update if question.on else farm.jobs.paused.difference_update)(chosen)
    if changed or farm.sweep.has_job(chosen):
        farm.sweep.ask(session, n, chosen)
    else:
        out.answer(session, n, NumberReply(0))


def go_on(farm: SchedulerState, most: int, now: Now, out: Decision) -> int:
    """Look at the next tasks until this number of them has moved, and return how many have; answer at the end.

    Called at the end of a turn, before tasks are assigned."""
    sweep, unfinished = farm.sweep, farm.tasks.unfinished
    if not sweep.under_way:
        sweep.begin(unfinished)
    recalls: dict[str, list[RunKey]] = {}
    left, jobs, by_time_limit = sweep.left, sweep.jobs, sweep.by_time_limit
    count = looked_at = 0
    while left and count < most and looked_at < LOOKED_AT_MAX:
        looked_at += 1
        task = unfinished.get(left.pop())
        if task is None or not (task.job in jobs or by_time_limit):
            continue
        if _move(farm, task, recalls):
            count += 1
            sweep.moved[task.job or ""] += 1
    for name, runs in recalls.items():
        recall(farm, farm.engines.by_name[name], runs, now, out)
    if not left:
        for asker, moved in sweep.end():
            out.answer(asker.session, asker.n, NumberReply(moved))
        if by_time_limit:
            _wake_limited(farm)
    return count


def _move(farm: SchedulerState, task: TaskEntry, recalls: dict[str, list[RunKey]]) -> bool:
    """Put a task where it belongs by now, and return whether it was elsewhere."""
    place = task.place
    paused = task.job in farm.jobs.paused
    if isinstance(place, Assigned):
        if not paused or place.since_s is not None:
            return False
        recalls.setdefault(place.engine, []).append((task.id, place.attempt))
        return True
    if task.task_class is None:
        moves = place.why is Waiting.PAUSED and not paused
    else:
        moves = paused or not has_limited_class(farm, task)
    if moves:
        rejoin(farm, task)
    return moves


def _wake_limited(farm: SchedulerState) -> None:
    """Give tasks to the agents of limited time: those with a time limit wait in classes of their own now."""
    for agent in farm.agents.by_session.values():
        for engine in agent.engines.values() if agent.ends_s is not None else ():
            if engine.state == EngineState.UP:
                farm.readiness.wake(engine)
