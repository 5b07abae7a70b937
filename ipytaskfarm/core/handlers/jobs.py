"""Jobs: tasks that belong together, and when a job has ended."""

from __future__ import annotations

import msgspec

from ..messages.task_types import JobSpec, Rules
from ..scheduler.decision import Decision, Now
from ..scheduler.events import JobsCleared
from ..scheduler.jobs import JobEntry
from ..scheduler.state import SchedulerState
from ..validation import SECONDS_MAX

REFUSED_KEPT = 100_000
"""How many jobs are remembered that were refused for their unique keys."""
FORGOTTEN_KEPT = 10_000
"""How many jobs are remembered that were forgotten while their clients were there."""
NAME_MAX = 1000
"""Names of jobs are cut to this length: they are kept in memory."""


def open_job(farm: SchedulerState, session: str, spec: JobSpec) -> None:
    """Register a job, or record that more tasks follow. Each message that has tasks of a job names the job."""
    if not 0.0 <= spec.opened_s <= SECONDS_MAX:
        spec = msgspec.structs.replace(spec, opened_s=0.0)  # the store cannot hold such a number
    if len(spec.name) > NAME_MAX:
        spec = msgspec.structs.replace(spec, name=spec.name[:NAME_MAX])
    job = farm.jobs.by_id.get(spec.id)
    if job is None:
        other = farm.jobs.unended(spec.unique) if spec.unique is not None else None
        if other is not None:
            farm.jobs.refused[spec.id] = other.spec.id
            while len(farm.jobs.refused) > REFUSED_KEPT:
                del farm.jobs.refused[next(iter(farm.jobs.refused))]
            return
        job = JobEntry(spec, session, farm.jobs.arrived_before.pop(spec.id, 0))
        farm.jobs.add(job)
    elif spec.total > job.spec.total:
        job.spec, job.ended = spec, False
    if spec.environment is not None:
        job.environments.add(spec.environment)
    if not job.ended:
        keep_referenced(farm, job)


def keep_referenced(farm: SchedulerState, job: JobEntry) -> None:
    """Count a job among the users of its environments."""
    for identity in job.environments:
        use = farm.environments.uses.get(identity)
        if use is not None:
            use.jobs.add(job.spec.id)


def count_arrival(farm: SchedulerState, rules: Rules | None, items: int = 0) -> None:
    """Count one more task of a job, or the items of a chunk, as submitted, whether accepted or refused."""
    job = farm.jobs.by_id.get(rules.job) if rules is not None and rules.job is not None else None
    if job is not None:
        job.arrived += items or 1
        farm.jobs.perhaps_ended[job.spec.id] = None


def save_jobs(farm: SchedulerState, specs: list[JobSpec], out: Decision) -> None:
    """Save how many tasks of these jobs have been submitted. A job that has none yet is named again with its tasks."""
    for spec in specs:
        job = farm.jobs.by_id.get(spec.id)
        if job is None:
            continue
        if not job.arrived:
            farm.jobs.forget(job)
            continue
        if not job.ended:
            keep_referenced(farm, job)
        out.saves.append(job.save())


def on_jobs_cleared(farm: SchedulerState, session: str, event: JobsCleared, now: Now, out: Decision) -> None:
    """Forget ended jobs of which all tasks were cleared, as the store has, unless more tasks have come since."""
    for job_id, arrived in event.jobs:
        job = farm.jobs.by_id.get(job_id)
        if job is None or not job.ended or job.arrived != arrived:
            continue
        client = farm.clients.by_session.get(job.session)
        if client is not None and client.connected:  # it may have more tasks for the job
            if job.failed or job.paused or job.priority is not None:
                continue
            farm.jobs.arrived_before[job_id] = arrived
            while len(farm.jobs.arrived_before) > FORGOTTEN_KEPT:
                del farm.jobs.arrived_before[next(iter(farm.jobs.arrived_before))]
        farm.jobs.forget(job)
        farm.followers.stale = True


def revive_job(farm: SchedulerState, job_id: str, out: Decision) -> None:
    """Forget a job's failure, because one of its tasks is retried."""
    job = farm.jobs.by_id.get(job_id)
    if job is not None and job.failed:
        job.failed = ""
        out.saves.append(job.save())


def end_orphans(farm: SchedulerState, out: Decision) -> None:
    """Treat clients as gone that have not come back some time after a start."""
    for session in list(farm.jobs.of_session):
        client = farm.clients.by_session.get(session)
        if client is None or not client.connected:
            client_is_gone(farm, session, out)


def client_is_gone(farm: SchedulerState, session: str, out: Decision) -> None:
    """Count the jobs of a client that is gone as complete, without the tasks that were not submitted."""
    for job in farm.jobs.of_session.get(session, {}).values():
        if job.arrived < job.spec.total:
            spec = job.spec
            job.spec = msgspec.structs.replace(spec, total=job.arrived)
            out.saves.append(job.save())
            farm.jobs.perhaps_ended[spec.id] = None
    abort_disconnected(farm, session)


def abort_disconnected(farm: SchedulerState, session: str) -> None:
    """Abort the jobs that must end with their client, which is gone or seems to be gone."""
    for job in farm.jobs.of_session.get(session, {}).values():
        if job.spec.abort_on_disconnect and not job.ended and not job.failed:
            job.failed = "its client has gone (abort_on_disconnect)"
            farm.jobs.to_abort[job.spec.id] = None
