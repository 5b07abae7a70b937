"""The invariants between any two turns. Tests check them after each event."""

from __future__ import annotations

from ..states import State, Waiting
from .entries import EngineState, TaskEntry, serves_environment
from .graph import check_graph
from .nested_waits import check_nested_waits
from .state import SchedulerState
from .task import Assigned, Queued


def check(farm: SchedulerState) -> None:
    """Check the invariants.

    Raises:
        AssertionError: one is broken.
    """
    counted = dict.fromkeys(State, 0)
    size = farm.tasks.chunks.size
    for task in farm.tasks.unfinished.values():
        runs = min(1, size(task.id))
        counted[task.state] += runs
        counted[State.SCHEDULED] += size(task.id) - runs
    for task_id, reason in farm.tasks.finals.items():
        counted[State.FAILED if reason else State.SUCCEEDED] += size(task_id)
    assert counted == farm.tasks.counts, f"states are miscounted: {farm.tasks.counts} should be {counted}"
    assert not farm.tasks.unfinished.keys() & farm.tasks.finals.keys(), "a task is both alive and final"
    large = farm.tasks.large
    assert large.tasks | large.payloads.keys() <= farm.tasks.unfinished.keys(), "what an ended task has is counted"
    running: dict[str, int] = {}
    needed: dict[str | None, int] = {}
    of_jobs: dict[str | None, int] = {}
    for task_id, task in farm.tasks.unfinished.items():
        assert task.id == task_id
        needed[task.environment] = needed.get(task.environment, 0) + 1
        of_jobs[task.job] = of_jobs.get(task.job, 0) + size(task_id)
        place = task.place
        if type(place) is Assigned:
            assert task.task_class is None, f"task {task_id} is assigned and queued"
            engine = farm.engines.by_name.get(place.engine)
            assert engine is not None, f"task {task_id} is on an engine that is gone"
            assert (task_id, place.attempt) in engine.assigned, f"task {task_id} is not held by its engine"
            if place.since_s is not None:
                running[place.engine] = running.get(place.engine, 0) + 1
        elif task.task_class is None and not task.waits_for and not _is_paused(farm, task):
            if task_id in farm.graph.ready_joins:
                continue
            of_cache = type(place) is Queued and place.why is Waiting.CACHE and _is_looked_after(farm, task_id)
            assert of_cache or any(t[2] == "rejoin" and t[3] == task_id for t in farm.timers.heap), (
                f"task {task_id} waits for nothing"
            )
    several = {name: count for name, count in running.items() if count > 1}
    assert all(farm.engines.by_name[name].concurrent for name in several), f"engines run several tasks: {several}"
    _check_chunks(farm)
    _check_queues(farm)
    _check_announced(farm)
    _check_engines(farm)
    _check_frozen(farm)
    _check_claims(farm)
    _check_environments(farm, needed, of_jobs)
    _check_copies(farm)
    check_graph(farm)
    check_nested_waits(farm)


def _is_paused(farm: SchedulerState, task: TaskEntry) -> bool:
    """Return whether a task waits for its job to be resumed, or for its turn after that."""
    was_paused = type(task.place) is Queued and task.place.why is Waiting.PAUSED
    return task.job in farm.jobs.paused or (was_paused and farm.sweep.has_job([task.job or ""]))


def _is_looked_after(farm: SchedulerState, task_id: int) -> bool:
    """Return whether a task that is looked up in the result cache is in somebody's hands."""
    uses = farm.cache_uses
    owner = uses.owner_of(task_id)
    if task_id in uses.asked or task_id in uses.to_look or task_id in uses.released:
        return True
    return owner is not None and owner in farm.tasks.unfinished


def _check_chunks(farm: SchedulerState) -> None:
    tasks, chunks = farm.tasks, farm.tasks.chunks
    parts: dict[int, int] = {}
    for chunk in [*(t.part[0] for t in tasks.unfinished.values() if t.part is not None), *tasks.of_parts.values()]:
        parts[chunk] = parts.get(chunk, 0) + 1
    assert parts == chunks.parts, f"parts are miscounted: {chunks.parts} should be {parts}"
    assert parts.keys() <= chunks.items.keys(), "a chunk was cleared whose payload a task needs"
    for chunk in chunks.items:
        assert chunk in tasks.unfinished or chunk in tasks.finals, f"chunk {chunk} is gone"
        held = [i for i in chunks.ids(chunk) if i in tasks.unfinished or i in tasks.finals]
        assert not held, f"items {held} are both silent and tasks of their own"


def _check_copies(farm: SchedulerState) -> None:
    copies = farm.second_copies
    assert not copies.to_stop, "a run that nobody needs was not stopped"
    for task_id, other in copies.others.items():
        task = farm.tasks.unfinished.get(task_id)
        assert task is not None, f"task {task_id} has ended, and has a second run"
        assert type(task.place) is Assigned, f"task {task_id} has a second run, and no first one"
        assert task.place.attempt != other.place.attempt, f"task {task_id} has one run twice"
        engine = farm.engines.by_name.get(other.place.engine)
        assert engine is not None, f"{other} is on an engine that is gone"
        assert (task_id, other.place.attempt) in engine.assigned, f"no engine has {other}"
    assert copies.group_of.keys() <= farm.tasks.unfinished.keys(), "an ended task is compared with others"


def _check_queues(farm: SchedulerState) -> None:
    sizes: dict[int, int] = {}
    for task in farm.tasks.unfinished.values():
        if task.task_class is not None:
            sizes[id(task.task_class)] = sizes.get(id(task.task_class), 0) + 1
    open_size = 0
    for key, task_class in farm.queues.classes.items():
        assert task_class.size == sizes.pop(id(task_class), 0), f"class {key} is miscounted"
        # Not by `head`, which drops outdated entries: a check must not hide what it looks for.
        assert task_class.holds() == task_class.size, f"class {key} lost a task"
        open_size += 0 if task_class.restricted else task_class.size
        for engine in task_class.eligible:
            assert engine.name in farm.engines.by_name, f"class {key} counts on engine {engine.id}, which is gone"
    assert not sizes, "a task waits in a class that was dropped"
    assert open_size == farm.queues.open_size, "open_size is miscounted"
    assert sum(c.size for c in farm.queues.classes.values()) == farm.queues.size, "queued is miscounted"


def _check_engines(farm: SchedulerState) -> None:
    readiness = farm.readiness
    for engine in readiness.idle:
        noted = [
            entry
            for entry in readiness.idle_heaps.get(engine.agent, ())
            if entry[-1] is engine and entry[1] == engine.last_batch
        ]
        assert noted or engine in readiness.newly_idle, f"idle engine {engine.id} is not noted where it is looked for"
    assert not readiness.candidates or farm.lifecycle.held or farm.lifecycle.stopping, "an engine was not looked at"
    for engine in farm.engines.by_name.values():
        assert engine.not_quick == sum(not h.quick for h in engine.assigned.values()), (
            "runs that are not quick are miscounted"
        )
        assert engine.concurrent == sum(h.concurrent for h in engine.assigned.values()), "coroutines are miscounted"
        if engine.state == EngineState.UP:
            assert engine.concurrent in (0, len(engine.assigned)), f"engine {engine.id} runs coroutines beside others"
            assert engine.concurrent <= farm.settings.coroutines, f"engine {engine.id} runs too many coroutines"
        for batch in {id(each.batch): each.batch for each in engine.assigned.values()}.values():
            held = sum(each.batch is batch for each in engine.assigned.values())
            assert batch.unanswered == held, f"the runs of batch {batch.number} are miscounted"
        assert engine.retiring or not engine.surplus, f"engine {engine.id} is surplus and works"
        for waits_in in (readiness.idle, readiness.blocked, readiness.with_room):
            assert (engine in waits_in) == (engine.waits_in is waits_in), f"engine {engine.id} waits elsewhere"
        assert engine.is_newly_idle == (engine in readiness.newly_idle), f"engine {engine.id} is not newly idle"
        done = (
            engine.retiring
            and not engine.kept
            and not engine.assigned
            and engine.state == EngineState.UP
            and not engine.saving
        )
        assert not done, f"engine {engine.id} was to end and was forgotten"
        agent = farm.agents.by_session.get(engine.agent)
        able = engine.state == EngineState.UP and agent is not None and agent.accepts_tasks
        able = able and not (farm.sweep.sorts_limits and agent is not None and agent.ends_s is not None)
        if able and not engine.assigned and engine not in readiness.idle and engine not in readiness.blocked:
            assert farm.lifecycle.held or farm.lifecycle.stopping or engine.retiring or engine.withheld_until_s, (
                f"idle engine {engine.id} is forgotten"
            )


def _check_frozen(farm: SchedulerState) -> None:
    assert not farm.frozen.offered, "an engine that has frozen itself was not decided about"
    on_node: dict[str, int] = {}
    for engine in farm.frozen.by_name.values():
        assert engine.name not in farm.engines.by_name, f"engine {engine.name} is frozen and in the pool"
        assert engine.agent in farm.agents.by_session, f"frozen engine {engine.name} has no agent"
        timers = any(entry[2] == "thaw" and entry[3] == engine.name for entry in farm.timers.heap)
        assert timers or engine.ending, f"frozen engine {engine.name} never ends"
        on_node[engine.node] = on_node.get(engine.node, 0) + 1
    assert on_node == farm.frozen.on_node, f"frozen engines are miscounted: {farm.frozen.on_node}"
    assert all(count <= farm.settings.frozen_engines for count in on_node.values()), "too many engines are frozen"


def _check_announced(farm: SchedulerState) -> None:
    for task_class in farm.queues.classes.values():
        if not task_class.restricted or not task_class.size:
            continue
        parked = any(task_class in group.parked for group in farm.limits.groups.values())
        for engine in task_class.eligible.keys() & farm.readiness.idle.keys():
            if not parked and serves_environment(engine, task_class.environment):
                agent = farm.agents.by_session[engine.agent]
                assert task_class in engine.heads or task_class in agent.parked, (
                    f"idle engine {engine.id} does not know that class {task_class.key} waits"
                )


def _check_claims(farm: SchedulerState) -> None:
    groups: dict[str, int] = {}
    for agent in farm.agents.by_session.values():
        used: dict[str, float] = {}
        held = [(run, h) for engine in agent.engines.values() for run, h in engine.assigned.items()]
        for _, assigned in held:
            claim = assigned.claim
            for name, value in claim.amounts.items() if claim is not None else ():
                used[name] = used.get(name, 0.0) + value
            if claim is not None and claim.group is not None:
                groups[claim.group] = groups.get(claim.group, 0) + 1
        for name in used.keys() | agent.used.keys():
            off = abs(used.get(name, 0.0) - agent.used.get(name, 0.0))
            assert off < 1e-6, f"{name} in use on {agent.node} is miscounted"
            assert not agent.capacity or used.get(name, 0.0) <= agent.capacity.get(name, 0.0) + 1e-6, (
                f"more of {name} is in use on {agent.node} than there is"
            )
        if agent.exclusive is not None:
            # Runs of tasks that have ended are only answers on their way.
            alive = [run for run, assigned in held if assigned.batch.number >= 0]
            assert alive == [agent.exclusive], f"{agent.node} is not its exclusive task's alone"
    running = {name: group.running for name, group in farm.limits.groups.items() if group.running}
    assert running == groups, f"groups are miscounted: {running} should be {groups}"


def _check_environments(farm: SchedulerState, needed: dict[str | None, int], of_jobs: dict[str | None, int]) -> None:
    for identity, use in farm.environments.uses.items():
        assert use.unfinished == needed.get(identity, 0), f"tasks of environment {identity} are miscounted"
        assert all(engine.name in farm.engines.by_name for engine in use.engines), (
            f"environment {identity} keeps a lost engine"
        )
    assert needed.keys() - {None} <= farm.environments.uses.keys(), "an environment that tasks need was forgotten"
    for engine in farm.engines.by_name.values():
        environment = engine.environment
        known = environment is None or engine in farm.environments.uses[environment.identity].engines
        assert known, f"engine {engine.id} is not counted where its environment is"
    for job_id, job in farm.jobs.by_id.items():
        assert job.unfinished == of_jobs.get(job_id, 0), f"tasks of job {job_id} are miscounted"
