"""When engines are ended and replaced by new ones: by count, time, memory, failure, or because they are not needed.

The settings come with tasks (`core.requirements.Recycle`). They are kept on each engine that was assigned one of these
tasks, under a *scope*: the identity of the tasks' environment or, for the empty environment, their job. They are
applied between tasks and by timers, never within a task.
"""

from __future__ import annotations

from ..messages.task_types import Ended
from ..requirements import Recycle
from .decision import Decision, Now
from .engine_shutdown import recycle
from .entries import AssignedRun, EngineEntry, EngineState, TaskClass
from .jobs import JobEntry
from .state import SchedulerState
from .task import ClassKey

DAY_S = 86400


def scope_of(key: ClassKey) -> str:
    """Return the scope under which runs of a class are counted."""
    return key.environment or key.job or ""


def note_settings(farm: SchedulerState, engine: EngineEntry, task_class: TaskClass, now: Now) -> None:
    """Keep the recycling settings of a class on an engine that is assigned tasks of it."""
    requirements = task_class.key.requirements
    if requirements is None or requirements.recycle is None:
        return
    remember_settings(farm, engine, scope_of(task_class.key), requirements.recycle, now)


def remember_settings(farm: SchedulerState, engine: EngineEntry, scope: str, settings: Recycle, now: Now) -> None:
    """Keep these settings on an engine until it ends."""
    if (scope, settings) in engine.recycling:
        return
    engine.recycling[scope, settings] = None
    due_s = _due_s(farm, engine, settings, now)
    if due_s is not None:
        farm.timers.set(due_s, "recycle", (engine.name, settings))


def _due_s(farm: SchedulerState, engine: EngineEntry, settings: Recycle, now: Now) -> float | None:
    """Return when (monotonic) the engine is recycled by the clock.  None: never."""
    times = []
    if settings.interval_s is not None:
        times.append(settings.interval_s - engine.age_s(now))
    if settings.at_times_s:
        agent = farm.agents.by_session.get(engine.agent)
        offset_s = agent.utc_offset_s if agent is not None else 0
        local_s = (now.wall_s + offset_s) % DAY_S
        times.append(min((at_s - local_s) % DAY_S or DAY_S for at_s in settings.at_times_s))
    return now.mono_s + max(0.0, min(times)) if times else None


def room_left(engine: EngineEntry, task_class: TaskClass) -> int | None:
    """Return how many runs of this class the engine may still be assigned.  None: any number."""
    key = task_class.key
    if key.requirements is None:
        return None
    scope = scope_of(key)
    limits = [r.after_tasks for s, r in engine.recycling if s == scope and r.after_tasks is not None]
    if key.requirements.recycle is not None and key.requirements.recycle.after_tasks is not None:
        limits.append(key.requirements.recycle.after_tasks)
    if not limits:
        return None
    held = sum(1 for assigned in engine.assigned.values() if _scope_of_run(assigned) == scope)
    return max(0, min(limits) - engine.runs.get(scope, 0) - held)


def _scope_of_run(assigned: AssignedRun) -> str:
    return scope_of(assigned.task_class.key) if assigned.task_class is not None else ""


def count_run(engine: EngineEntry, assigned: AssignedRun) -> None:
    """Count a run that has ended on an engine."""
    scope = _scope_of_run(assigned)
    if scope:
        engine.runs[scope] = engine.runs.get(scope, 0) + 1


def after_run(farm: SchedulerState, engine: EngineEntry, ended: Ended, now: Now, out: Decision) -> None:
    """Recycle an engine if its settings say so after the run that has ended."""
    for scope, settings in engine.recycling:
        why = ""
        if settings.after_tasks is not None and engine.runs.get(scope, 0) >= settings.after_tasks:
            why = f"after {settings.after_tasks} tasks"
        elif settings.memory_bytes is not None and ended.memory_bytes >= settings.memory_bytes:
            why = f"{ended.memory_bytes / 2**20:,.0f} MiB in use"
        elif settings.on_failure and ended.outcome:
            why = f"task {ended.task} failed"
        if why:
            recycle(farm, engine, why, now, out)
            return


def set_idle_timer(farm: SchedulerState, engine: EngineEntry, now: Now) -> None:
    """Set the timer that ends an engine if it holds nothing for too long from now on."""
    limits = engine.recycling and [settings.idle_s for _, settings in engine.recycling if settings.idle_s is not None]
    if limits:
        farm.timers.set(now.mono_s + min(limits), "idle", (engine.name, now.mono_s))
    elif farm.settings.warm is not None and engine.environment is None:
        farm.timers.set(now.mono_s + farm.settings.warm_s, "surplus", (engine.name, now.mono_s))


def is_idle_since(farm: SchedulerState, name: str, since_s: float) -> EngineEntry | None:
    """Return the engine if it has held nothing since then."""
    engine = farm.engines.by_name.get(name)
    if engine is None or engine.assigned or engine.idle_s != since_s or engine.state != EngineState.UP:
        return None
    return engine


def idle_too_long(farm: SchedulerState, name: str, since_s: float, now: Now, out: Decision) -> None:
    """Recycle an engine that was idle for too long; the timer of `set_idle_timer`."""
    engine = is_idle_since(farm, name, since_s)
    if engine is not None:
        recycle(farm, engine, f"idle for {now.mono_s - since_s:.1f} s", now, out)


def end_surplus(farm: SchedulerState, name: str, since_s: float, now: Now, out: Decision) -> None:
    """End a blank engine that was idle for long enough, if more than `warm` blank ones are idle."""
    engine = is_idle_since(farm, name, since_s)
    if engine is None or engine.environment is not None or farm.settings.warm is None:
        return
    blank = [e for e in farm.engines.by_name.values() if e.environment is None and not e.assigned and not e.retiring]
    if len(blank) > farm.settings.warm:
        recycle(farm, engine, "more blank engines than are kept warm", now, out)


def recycle_at_time(farm: SchedulerState, name: str, settings: Recycle, now: Now, out: Decision) -> None:
    """Recycle an engine by the clock, after the task that it runs."""
    engine = farm.engines.by_name.get(name)
    if engine is None:
        return
    due_s = _due_s(farm, engine, settings, now)
    if engine.state == EngineState.UP:
        recycle(farm, engine, "its time is up", now, out)
    elif due_s is not None:  # its agent is away: it is recycled at the next time of day
        farm.timers.set(max(due_s, now.mono_s + 1.0), "recycle", (name, settings))


# -- jobs and environments that have ended


def settle_jobs(farm: SchedulerState, now: Now, out: Decision) -> None:
    """Deal with jobs that may have ended and environments that may be unused.  Called at the end of a turn."""
    for job_id in farm.jobs.perhaps_ended:
        job = farm.jobs.by_id.get(job_id)
        if job is not None and job.complete and not job.ended:
            _end_job(farm, job, now, out)
    farm.jobs.perhaps_ended.clear()
    for identity in farm.environments.perhaps_unused:
        use = farm.environments.uses.get(identity)
        if use is not None and not use.referenced:
            for engine in list(use.engines):
                _recycle_if(farm, engine, {identity}, "no job uses its environment any more", now, out, unused=True)
        farm.environments.forget_if_unused(identity)
    farm.environments.perhaps_unused.clear()


def _end_job(farm: SchedulerState, job: JobEntry, now: Now, out: Decision) -> None:
    job.ended = True
    farm.jobs.ended[job.spec.id] = None
    scopes = {*job.environments, job.spec.id}
    why = f"job {job.spec.name} has ended"
    for engine in list(farm.engines.by_name.values()):
        if any(scope in scopes for scope, _ in engine.recycling):
            _recycle_if(farm, engine, scopes, why, now, out)
            # For the empty environment the scope is the job, so its settings hold for its own engines.
            _recycle_if(farm, engine, {job.spec.id}, why, now, out, unused=True)
    for identity in job.environments:
        use = farm.environments.uses.get(identity)
        if use is not None:
            use.jobs.discard(job.spec.id)
            farm.environments.perhaps_unused[identity] = None


def _recycle_if(
    farm: SchedulerState, engine: EngineEntry, scopes: set[str], why: str, now: Now, out: Decision, unused: bool = False
) -> None:
    for scope, settings in engine.recycling:
        if scope in scopes and (settings.when_unreferenced if unused else settings.on_job_end):
            recycle(farm, engine, why, now, out)
            return
