"""Answers to the questions that change the priority of tasks."""

from __future__ import annotations

from ..messages import PrioritySet, Refusal, SetJobPriority, SetPriority
from ..saves import SavePriority
from ..scheduler.decision import Decision, Now
from ..scheduler.entries import TaskEntry
from ..scheduler.id_pages import unfinished_after
from ..scheduler.queue_keys import compute_key
from ..scheduler.state import SchedulerState
from ..scheduler.task import DEFAULT_RULES, QUEUED, NewRules, Queued
from ..scheduler.transitions import rejoin

CHANGES_MAX = 2_000
"""The largest number of a job's tasks that are changed for one page."""


def on_set_priority(farm: SchedulerState, session: str, n: int, question: SetPriority, now: Now, out: Decision) -> None:
    """Give unfinished tasks another priority."""
    count, ended, unknown = 0, [], []
    new = NewRules(question.priority)
    for task_id in dict.fromkeys(question.ids):
        holder = farm.tasks.holder(task_id)
        task = farm.tasks.unfinished.get(holder)
        if task_id in farm.tasks.chunks.items:
            unknown.append(task_id)
        elif task is not None:
            count += 1
            change_priority(farm, task, new, now, out)
        elif holder in farm.tasks.finals or task_id in farm.tasks.refusals:
            ended.append(task_id)
        else:
            unknown.append(task_id)
    out.answer(session, n, PrioritySet(count, ended, unknown))


def on_set_job_priority(
    farm: SchedulerState, session: str, n: int, question: SetJobPriority, now: Now, out: Decision
) -> None:
    """Give a job's unfinished tasks another priority, a page of them, and with the first page all later tasks.

    A page that comes when the job has got yet another priority changes nothing: the later question counts."""
    job = farm.jobs.by_id.get(question.job)
    if job is None:
        text = f"there is no job {question.job}: it was never submitted, or is over"
        out.answer(session, n, Refusal("KeyError", text))
        return
    if question.after < 0 and job.priority != question.priority:
        farm.jobs.set_priority(job, question.priority)
        out.saves.append(job.save())
        farm.followers.note_job(question.job)
    if job.priority != question.priority:
        out.answer(session, n, PrioritySet(0))
        return
    count, before = 0, len(out.saves)
    new = NewRules(question.priority)
    tasks, end = unfinished_after(farm, question.after)
    for task in tasks:
        if task.job == question.job:
            count += farm.tasks.chunks.size(task.id) if task.items else 1
            change_priority(farm, task, new, now, out)
            if len(out.saves) - before >= CHANGES_MAX:
                end = task.id
                break
    out.answer(session, n, PrioritySet(count, next=end))


def change_priority(farm: SchedulerState, task: TaskEntry, new: NewRules, now: Now, out: Decision) -> None:
    """Give an unfinished task another priority, and all recovery tasks that may take over under its id.

    A task that waits in a queue gets its place by the new priority: among equals by its acceptance, as before.  Any
    other place stays.  A task that has the priority already is left alone, so a repeated question changes nothing."""
    before = (task.rules or DEFAULT_RULES).priority
    if before == new.priority:
        return
    task.rules = new.of(task.rules)
    out.saves.append(SavePriority(task.id, before, new.priority, now.wall_s))
    compute_key(farm, task)
    if task.task_class is not None:
        place = task.place
        rejoin(farm, task, place if type(place) is Queued and place.until_s is None else QUEUED)
