"""Actions of people on tasks and jobs: marking, pausing, and finding jobs again."""

from __future__ import annotations

from heapq import nsmallest

from .. import messages as m
from ..messages.pages import JOBS_MAX
from ..messages.tables import JobRow
from ..messages.task_types import AttemptRow, FailureSummary, Final
from ..scheduler.decision import Decision, LoadEnded, LoadJobs, Now
from ..scheduler.engine_shutdown import recall
from ..scheduler.entries import TaskEntry
from ..scheduler.jobs import JobEntry
from ..scheduler.state import SchedulerState
from ..scheduler.task import RETRIED, Assigned
from ..scheduler.task_ends import final_without_answer
from ..scheduler.transitions import finish, note_attempt, requeue, separate
from ..states import Reason
from .clients import grace_of
from .results import end_or_recover

MARKED_FAILED = "marked as failed"
GOES_ON = "has not ended, and goes on"
JOB_TOLD = 2**63 - 1
"""In the place of a task's id at the end of a page of jobs: the next page begins after this job."""


def on_mark_done(
    farm: SchedulerState, session: str, n: int, question: m.MarkTasksDone, now: Now, out: Decision
) -> None:
    """End a task as succeeded with a result from outside.

    A running one is interrupted, and its answer changes nothing.
    """
    task = None if question.id in farm.tasks.chunks.items else _own_task(farm, question.id, out)
    if task is None:
        out.answer(session, n, _not_unfinished(farm, question.id))
        return
    _stop_run(farm, task, now, out)
    times = (task.submitted_s, now.wall_s, 0.0, now.wall_s)
    final = Final(
        task.id, "", -1, "", task.attempt, *times, None, question.body, task.past.history or [], question.blobs
    )  # fmt: skip
    finish(farm, task, final, out)
    out.answer(session, n, m.FlagReply(True))


def on_mark_failed(
    farm: SchedulerState, session: str, n: int, question: m.MarkTasksFailed, now: Now, out: Decision
) -> None:
    """Count a task's run as failed.  A task that has succeeded runs again."""
    if question.id in farm.tasks.chunks.items:
        out.answer(session, n, _not_unfinished(farm, question.id))
        return
    if question.only_ended and farm.tasks.holder(question.id) in farm.tasks.unfinished:
        out.answer(session, n, m.TextReply(GOES_ON))
        return
    task = _own_task(farm, question.id, out)
    if task is not None:
        out.answer(session, n, m.TextReply(_fail(farm, task, question.why, now, out)))
    elif farm.tasks.finals.get(question.id) is None and farm.tasks.chunks.of(question.id) is not None:
        text = f"task {question.id} shared its run with other items of its map; tc.restart({question.id}) repeats it"
        out.answer(session, n, m.Refusal("TaskError", text))
    elif farm.tasks.finals.get(question.id) == "":
        outcome = f"{MARKED_FAILED}{f': {question.why}' if question.why else ''}"
        out.loads.append(LoadEnded([question.id], outcome, asker=(session, n)))
    else:
        out.answer(session, n, _not_unfinished(farm, question.id))


def _own_task(farm: SchedulerState, task_id: int, out: Decision) -> TaskEntry | None:
    """Return an unfinished task that is about to be ended; a silent item of a chunk becomes one."""
    holder = farm.tasks.holder(task_id)
    task = farm.tasks.unfinished.get(holder)
    return task if task is None or holder == task_id else separate(farm, task, task_id - holder - 1, out)


def _not_unfinished(farm: SchedulerState, task_id: int) -> m.Refusal:
    if farm.tasks.has_ended(task_id) and task_id not in farm.tasks.chunks.items:
        return m.Refusal("TaskError", f"task {task_id} has ended already")
    return m.Refusal("IndexError", f"task ID not registered: {task_id} (never issued, or cleared)")


def _fail(farm: SchedulerState, task: TaskEntry, why: str, now: Now, out: Decision) -> str:
    """Treat a mark on an unfinished task like any other error, and return the consequence for the task."""
    text = f"it was {MARKED_FAILED}" + (f": {why}" if why else "")
    failure = FailureSummary("TaskError", text)
    place = task.place
    engine = farm.engines.by_name.get(place.engine) if type(place) is Assigned else None
    final = final_without_answer(task, engine, Reason.ERROR, failure, now)
    began = type(place) is Assigned and place.since_s is not None
    _stop_run(farm, task, now, out)
    if not began:
        finish(farm, task, final, out)
        return "failed"
    engine_id, node = (engine.id, engine.node) if engine is not None else (-1, "")
    attempt = place.attempt if type(place) is Assigned else task.attempt  # a second copy has a later number
    row = AttemptRow(attempt, engine_id, node, final.started_s, now.wall_s, Reason.ERROR, failure)
    if task.retries_left > 0:
        task.own_past().errors += 1
        note_attempt(farm, task, row, out)
        requeue(farm, task, RETRIED, out)
        return "runs again"
    end_or_recover(farm, task, final, row, out)
    return "failed"


def _stop_run(farm: SchedulerState, task: TaskEntry, now: Now, out: Decision) -> None:
    place = task.place
    engine = farm.engines.by_name.get(place.engine) if type(place) is Assigned else None
    if engine is None or type(place) is not Assigned:
        return
    run = (task.id, place.attempt)
    if place.since_s is None:
        recall(farm, engine, [run], now, out)
    else:
        out.sends.append((engine.agent, m.Interrupt(engine.name, run, grace_of(farm, task))))


# -- jobs


def on_find_jobs(farm: SchedulerState, session: str, n: int, question: m.FindJobs, now: Now, out: Decision) -> None:
    """Answer with the jobs of this id or name, of any client."""
    begin = question.after[:2] if question.after is not None else (-1.0, "")
    found = (
        (job.spec.opened_s, job.spec.id)
        for job in farm.jobs.by_id.values()
        if question.wanted is None or question.wanted in (job.spec.id, job.spec.name)
    )
    chosen = nsmallest(JOBS_MAX, (place for place in found if place >= begin))
    rows = [_job_row(farm.jobs.by_id[job_id]) for _, job_id in chosen]
    # The job with which the last page ended is there again, unless all of its tasks were told.
    after = question.after[2] if question.after is not None and chosen[:1] == [begin] else -1
    if after == JOB_TOLD:
        rows, after = rows[1:], -1
    end = (*chosen[-1], JOB_TOLD) if len(chosen) == JOBS_MAX else None
    out.loads.append(LoadJobs(session, n, rows, question.tasks, after, end))


def _job_row(job: JobEntry) -> JobRow:
    spec = job.spec
    return JobRow(
        spec.id, spec.name, spec.total, job.arrived, job.unfinished, job.paused, job.failed, spec.opened_s,
        is_map=spec.is_map, priority=job.priority,
    )  # fmt: skip


def warn_late(farm: SchedulerState, task_id: int, attempt: int, now: Now, out: Decision) -> None:
    """Tell the client and the log that a run takes longer than its `warn_after`."""
    task = farm.tasks.in_run(task_id, attempt)
    if task is None or task.rules is None:
        return
    task.own_trial_state().late = True
    name = f" ({task.rules.name})" if task.rules.name else ""
    text = f"task {task_id}{name} has run for more than {task.rules.warn_after_s:g} s (warn_after)"
    out.notes.append(text)
    out.sends.append((task.session, m.Notice(text)))
