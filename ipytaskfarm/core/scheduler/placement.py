"""Which engine gets which tasks next, and which runs are recalled because other engines need them.

`dispatch` runs once at the end of each turn. It examines only engines that have room and for which something may have
changed (`Readiness.candidates`), and takes tasks from the heads of the classes that an engine may serve.
"""

from __future__ import annotations

from itertools import islice
from typing import Any, TypeAlias

from ..messages.task_types import RunKey
from ..requirements import Asks
from ..saves import SaveHandOut
from .admission import announce_parked, claim, gate_for, overload, park, release_claim, reserves
from .agent_entry import AgentEntry
from .decision import Assignment, Decision, Now, ToRun, Wants
from .engine_choice import better_engine, first_idle, in_default_order
from .engine_shutdown import recall, recycle
from .entries import AssignedRun, EngineEntry, EngineState, TaskClass, TaskEntry, serves_environment
from .environments import class_for_blank, idle_engine_with, make_room, why_gives_way
from .nested_waits import end_wait
from .queue_keys import SUSPECTS_TOGETHER
from .recall_checks import arm_recall, has_much_behind
from .recycling import note_settings, room_left, set_idle_timer
from .running_tasks import RecordedBatch
from .second_copies import OtherRun
from .slots import slots_to_fill
from .state import SchedulerState
from .task import DEFAULT_RULES, Assigned
from .transitions import assign, begin

_UP = EngineState.UP
"""Access to a member of an enumeration takes long, compared with the code that is run for each task."""
MAX_BATCH = 2048
"""The most tasks in one batch; this keeps a turn short."""

PREFETCH_RUNS = 15
"""The number of tasks that an engine is sent ahead if they take longer than `prefetch_s`, up to `prefetch_max_s`."""
REFILL = 0.75
"""An engine is sent more when it has less than this part of what may be sent ahead."""

# -- room


def _agent_with_room(farm: SchedulerState, engine: EngineEntry, now: Now) -> AgentEntry | None:
    """Return the agent of an engine that may be given tasks now.  None: the engine may not, or has no room."""
    if engine.state != _UP or engine.retiring or engine.withheld_until_s > now.mono_s:
        return None
    agent = farm.agents.by_session.get(engine.agent)
    if agent is None or not agent.present or not agent.reachable or agent.excluded:
        return None
    if agent.ends_s is not None and farm.sweep.sorts_limits:
        return None
    return agent if not engine.assigned or _has_room_behind(farm, engine, now) else None


def _has_room_behind(farm: SchedulerState, engine: EngineEntry, now: Now) -> bool:
    """Return whether more may be sent behind the runs that an engine holds, or beside concurrent ones."""
    if engine.agent in farm.nested_waits.lent_slots and any(
        assigned.nested_wait is not None for assigned in engine.assigned.values()
    ):
        return False
    if engine.concurrent:
        return len(engine.assigned) < _coroutine_places(farm, _runs_suspects(farm, engine))
    if now.mono_s - engine.since_s > farm.settings.recall_after_s:
        return False  # its task takes longer than expected: nothing more is sent behind it
    if engine.not_quick:
        return False
    settings = farm.settings
    if engine.ahead_s < REFILL * settings.prefetch_s:
        return True
    return len(engine.assigned) < REFILL * PREFETCH_RUNS and engine.ahead_s < REFILL * settings.prefetch_max_s


def _coroutine_places(farm: SchedulerState, suspects: bool) -> int:
    """Return how many coroutine tasks an engine may run at once."""
    return min(farm.settings.coroutines, SUSPECTS_TOGETHER) if suspects else farm.settings.coroutines


def _runs_suspects(farm: SchedulerState, engine: EngineEntry) -> bool:
    """Return whether the coroutine tasks that an engine runs are suspects, which share it only with one another."""
    run, assigned = next(iter(engine.assigned.items()))
    if assigned.task_class is not None:
        return assigned.task_class.key.suspect
    task = farm.tasks.unfinished.get(run[0])  # the run is from before the controller's restart
    return task is not None and task.past.suspect


def best_class(
    farm: SchedulerState, engine: EngineEntry, agent: AgentEntry, now: Now
) -> tuple[TaskClass, tuple[object, int] | None] | None:
    """Return the class with the head that an engine of this agent takes next, and the runner-up's head as the limit."""
    if agent.exclusive is not None:
        return None
    own, kept_free = engine.heads.first(engine), False
    if own is not None and (farm.limits.load_guard or own[2].gated or own[2].environment is not None):
        own, kept_free = _first_restricted(farm, agent, engine, now)
    shared = farm.queues.open_heads.first() if farm.queues.open_size and not _is_overloaded(farm, agent) else None
    if kept_free and own is not None:
        return (shared[2], own[:2]) if shared is not None and shared[:2] < own[:2] else None
    if own is None:
        return (shared[2], None) if shared is not None else None
    if shared is not None and _goes_before(farm, engine, shared, own, now):
        return shared[2], own[:2]
    behind = _next_restricted(engine, own[2]) if len(engine.heads.heap) > 1 else None
    if shared is not None and (behind is None or shared[:2] < behind):
        behind = shared[:2]
    # A head that was passed over for tasks of the engine's own environment is no limit.
    return own[2], behind if behind is not None and own[:2] <= behind else None


def _next_restricted(engine: EngineEntry, first: TaskClass) -> tuple[Any, int] | None:
    """Return the earliest head behind that of the first restricted class that an engine may serve."""
    found = engine.heads.preferred(engine, lambda task_class: task_class is not first, as_urgent=False)
    return found.head() if found is not None else None


_Head: TypeAlias = tuple[Any, int, TaskClass]


def _first_restricted(
    farm: SchedulerState, agent: AgentEntry, engine: EngineEntry, now: Now
) -> tuple[_Head | None, bool]:
    """Return the first restricted class that the engine may serve and that may start now, and False.

    With True the class waits for resources of the node, and nothing later may start there."""
    while (own := engine.heads.first(engine)) is not None:
        task_class = own[2]
        closed = gate_for(farm, agent, task_class.key) if task_class.gated or farm.limits.load_guard else None
        if closed is None:
            if task_class.environment is None or engine.environment is not None:
                return own, False
            chosen = class_for_blank(farm, engine, task_class)
            head = chosen.head()
            return (own if head is None else (*head, chosen)), False
        if reserves(farm, agent, task_class, closed, now):
            return own, True
        engine.heads.drop_first()
        park(farm, agent, task_class, closed)
    return None, False


def _goes_before(farm: SchedulerState, engine: EngineEntry, shared: _Head, own: _Head, now: Now) -> bool:
    """Return whether an unrestricted head goes before one of the engine's restricted classes.

    Among equals, tasks of the engine's own environment go first, as long as no task is passed over for too long.
    """
    if engine.environment is None or own[2].environment is None or shared[0] != own[0]:
        return shared[:2] <= own[:2]
    patience_s = farm.settings.environment_patience_s
    first = shared[2].first()
    waited_s = now.since_s(first.submitted_s) if first is not None else 0.0
    return patience_s is not None and waited_s > patience_s and shared[:2] <= own[:2]


# -- assigning


def dispatch(farm: SchedulerState, now: Now, out: Decision) -> None:
    """Give work to every engine that has room for it."""
    readiness = farm.readiness
    if farm.lifecycle.held or farm.lifecycle.stopping:
        return
    if farm.agents.changed:
        announce_parked(farm)
    if farm.queues.open_size:
        _wake_for_open_tasks(farm)
    queues = farm.queues
    # A restricted task wakes all engines that may serve it, in no order; an open one the longest idle of them.
    if len(readiness.candidates) > 1 and (
        queues.size > queues.open_size or (queues.size and (len(farm.agents.by_session) > 1 or farm.environments.uses))
    ):
        _order_candidates(farm)
    _look_at_candidates(farm, now, out)
    if not queues.open_size:
        queues.open_heads.heap.clear()  # of classes without tasks
    if farm.environments.uses:
        make_room(farm, now, out)
        _look_at_candidates(farm, now, out)  # an engine that tasks avoid may serve them now: another one ends
    if farm.settings.warm is not None and slots_to_fill(farm):
        farm.timers.set(now.mono_s, "balance")
    arm_recall(farm, now)


def _look_at_candidates(farm: SchedulerState, now: Now, out: Decision) -> None:
    """Give work to the engines for which something has changed, as far as they have room."""
    readiness, queues = farm.readiness, farm.queues
    may_choose = _may_choose(farm)
    candidates = readiness.candidates
    while candidates:
        for engine in list(candidates):
            if engine not in candidates:
                continue
            share = queues.size // len(candidates) or 1
            del candidates[engine]
            agent = _agent_with_room(farm, engine, now)
            if agent is None:
                continue
            if not queues.size:
                if engine.heads.heap:
                    engine.heads.heap.clear()  # of classes without tasks
            elif engine.assigned or not may_choose or not _serve_chosen(farm, engine, agent, share, now, out):
                _fill(farm, engine, agent, share, now, out)
            else:
                continue
            if engine.assigned and not engine.retiring:  # its agent was looked at by `_agent_with_room`
                if _has_room_behind(farm, engine, now):
                    readiness.put(engine, readiness.with_room)
            else:
                _note_standing(farm, engine, agent, now)


def _order_candidates(farm: SchedulerState) -> None:
    """Move the free engines to the front of the candidates, in the order of the default placement.

    An engine to which one class is left that no other may serve waits for nobody: it keeps its place."""
    readiness = farm.readiness
    has_open = farm.queues.open_size > 0
    free = [
        engine
        for engine in readiness.candidates
        if not engine.assigned and (has_open or len(heap := engine.heads.heap) != 1 or len(heap[0][3].eligible) != 1)
    ]
    if len(free) > 1:
        first = in_default_order(farm, free)
        readiness.candidates = dict.fromkeys((*first, *readiness.candidates))


def _may_choose(farm: SchedulerState) -> bool:
    """Return whether it may matter which of several free engines takes a task, beyond their turns."""
    return bool(farm.environments.uses) or farm.queues.has_preferences or farm.settings.placement != "default"


def _serve_chosen(
    farm: SchedulerState, engine: EngineEntry, agent: AgentEntry, share: int, now: Now, out: Decision
) -> bool:
    """Fill another engine that suits an idle engine's task better, and return whether there is one."""
    readiness = farm.readiness
    found = best_class(farm, engine, agent, now)
    if found is None:
        return False
    chosen = idle_engine_with(farm, engine, found[0]) or better_engine(farm, engine, found[0])
    if chosen is engine:
        return False
    # The engine has a turn of its own, after the one to which it left the task.
    readiness.candidates[engine] = None
    readiness.wake(chosen)
    del readiness.candidates[chosen]
    other = farm.agents.by_session[chosen.agent]
    if not _fill(farm, chosen, other, 1, now, out, found[0]):
        del readiness.candidates[engine]
        _fill(farm, engine, agent, share, now, out)
        _note_standing(farm, engine, agent, now)
    _note_standing(farm, chosen, other, now)
    return True


def _note_standing(farm: SchedulerState, engine: EngineEntry, agent: AgentEntry, now: Now) -> None:
    """Note where an engine is found after its turn: idle, blocked, or with room for more."""
    readiness = farm.readiness
    if engine.retiring or engine.state != _UP:
        return
    if not engine.assigned:
        if agent.exclusive is not None or agent.reserving or (farm.limits.load_guard and overload(farm, agent)):
            readiness.put(engine, readiness.blocked)
        else:
            readiness.put_idle(engine)
        if not engine.idle_s:
            engine.idle_s = now.mono_s
            if engine.recycling or farm.settings.warm is not None:
                set_idle_timer(farm, engine, now)
    elif _agent_with_room(farm, engine, now) is not None:
        readiness.put(engine, readiness.with_room)


def _is_overloaded(farm: SchedulerState, agent: AgentEntry) -> bool:
    return farm.limits.load_guard and bool(overload(farm, agent))


def _wake_for_open_tasks(farm: SchedulerState) -> None:
    """Wake as many engines as there are open tasks: idle ones first, blank before others, then those with room."""
    readiness = farm.readiness
    spare = farm.queues.open_size
    if spare < len(readiness.idle) and (len(farm.agents.by_session) > 1 or farm.environments.uses):
        idle = first_idle(farm, spare)
    else:
        idle = list(islice(readiness.idle, spare))
    busy = list(readiness.with_room)[: spare - len(idle)] if readiness.with_room and spare > len(idle) else ()
    for engine in (*idle, *busy, *readiness.blocked):  # a more urgent task may start where others may not
        readiness.wake(engine)


def _fill(
    farm: SchedulerState, engine: EngineEntry, agent: AgentEntry, share: int, now: Now, out: Decision,
    only: TaskClass | None = None,
) -> bool:  # fmt: skip
    """Assign tasks to one engine until it has no room, as one record and one message.

    only: tasks of this class alone.  Returns whether any task was assigned."""
    batch: RecordedBatch | None = None
    tasks: list[ToRun] = []
    while True:
        found = best_class(farm, engine, agent, now) if only is None else (only, None)
        if engine.environment is not None and _recycle_for_other(farm, engine, found, now, out):
            break
        if found is None:
            break
        task_class, limit = found
        if engine.assigned and not _may_be_sent_behind(farm, engine, task_class):
            break
        if share == 1 and not engine.assigned and task_class.requirements is None:
            room = 1
        else:
            room = _room_for(farm, engine, task_class)
        if room <= 0:
            break
        if batch is None:
            batch = RecordedBatch(farm.readiness.next_batch, now.wall_s)
        count = min(room, share, MAX_BATCH - len(tasks)) if share > 1 else 1
        took = _take(farm, engine, task_class, limit, count, batch, tasks, now)
        share -= took
        if share <= 0 or took == 0 or only is not None or len(tasks) >= MAX_BATCH:
            break
    if batch is None or not tasks:
        return False
    _send_batch(farm, engine, agent, batch, tasks, now, out)
    return True


def _recycle_for_other(
    farm: SchedulerState, engine: EngineEntry, found: tuple[TaskClass, object] | None, now: Now, out: Decision
) -> bool:
    why = why_gives_way(farm, engine, found[0].head() if found is not None else None, now)
    if why:
        recycle(farm, engine, why, now, out)
    return bool(why)


def _send_batch(
    farm: SchedulerState, engine: EngineEntry, agent: AgentEntry, batch: RecordedBatch, tasks: list[ToRun],
    now: Now, out: Decision,
) -> None:  # fmt: skip
    readiness = farm.readiness
    engine.last_batch = agent.last_batch = number = batch.number
    readiness.next_batch = number + 1
    engine.idle_s = 0.0
    assigned = engine.assigned
    count, held = len(tasks), len(assigned)
    latest = reversed(assigned)
    batch.sent = sent = (next(latest),) if count == 1 else tuple(islice(latest, count))[::-1]
    out.saves.append(SaveHandOut(number, engine.name, engine.id, sent, now.wall_s))
    claim = assigned[sent[0]].claim
    concurrent = engine.concurrent > 0
    allotment = claim.allotment if claim is not None and not concurrent else None
    recycling = tuple(engine.recycling) if engine.recycling else ()
    graces = _graces(farm, tasks) if count > 1 or tasks[0][3] is not None else None
    out.assignments.append(
        Assignment(
            engine.agent, engine.name, tasks, engine.environment, allotment, recycling, graces, concurrent, number,
            batch.newest_s,
        )
    )  # fmt: skip
    if held == count:
        engine.current, engine.since_s = sent[0], now.mono_s
    if held > 1 and not concurrent:
        readiness.with_runs_ahead[engine] = None


def _graces(farm: SchedulerState, tasks: list[ToRun]) -> dict[int, float] | None:
    graces = None
    for task in tasks:
        if task[3] is not None:
            grace_s = (farm.tasks.unfinished[task[0]].rules or DEFAULT_RULES).grace_s
            if grace_s is not None:
                graces = graces or {}
                graces[task[0]] = grace_s
    return graces


def _may_be_sent_behind(farm: SchedulerState, engine: EngineEntry, task_class: TaskClass) -> bool:
    """Return whether this class's head may be sent behind the runs that the engine holds, or beside concurrent ones.

    A more urgent head may not: it would wait for all of them, while in its queue it is the first as soon as the engine
    is empty or its runs are recalled."""
    if engine.concurrent:
        return task_class.concurrent and _runs_suspects(farm, engine) == task_class.key.suspect
    head = task_class.head()
    urgent = head is not None and head[0] < engine.last_key
    return task_class.quick and engine.not_quick == 0 and not urgent and not _separates_jobs(engine, task_class)


def _separates_jobs(engine: EngineEntry, task_class: TaskClass) -> bool:
    """Return whether the engine may have to be recycled between the runs that it holds and this class's tasks."""
    last = engine.assigned[next(reversed(engine.assigned))].task_class
    return last is not None and last is not task_class and (task_class.ends_with_job or last.ends_with_job)


def _room_for(farm: SchedulerState, engine: EngineEntry, task_class: TaskClass) -> int:
    """Return how many tasks of this class the engine may be assigned now."""
    if task_class.concurrent:
        places = _coroutine_places(farm, task_class.key.suspect) - len(engine.assigned)
        room = min(places, 1) if task_class.gated else places
    elif not engine.assigned and not task_class.quick:
        return 1
    else:
        settings, mean_s = farm.settings, task_class.durations.mean_s
        ahead_s = max(settings.prefetch_s, min(settings.prefetch_max_s, PREFETCH_RUNS * mean_s))
        room = int((ahead_s - engine.ahead_s) / mean_s) or (not engine.assigned)
    left = room_left(engine, task_class) if task_class.requirements is not None else None
    return room if left is None else min(room, left)


def _take(
    farm: SchedulerState,
    engine: EngineEntry,
    task_class: TaskClass,
    limit: tuple[object, int] | None,
    count: int,
    batch: RecordedBatch,
    tasks: list[ToRun],
    now: Now,
) -> int:
    """Pop up to `count` tasks that are not later than `limit`, and assign them."""
    durations = task_class.durations
    cost_s, quick = durations.mean_s, not task_class.alone and durations.quick
    requirements = task_class.requirements
    environment, concurrent = task_class.environment, task_class.concurrent
    measured = (
        requirements is not None and requirements.recycle is not None and requirements.recycle.memory_bytes is not None
    )
    took, large = 0, farm.tasks.large
    while took < count and (not large.payloads or large.fits(task_class.first(), engine.assigned)):
        task = task_class.pop(limit if took else None)
        if task is None:
            break
        assign(farm, task, engine, not engine.assigned or concurrent, now)
        if task.submitted_s > batch.newest_s:
            batch.newest_s = task.submitted_s
        run = (task.id, task.attempt)
        assigned = AssignedRun(batch, cost_s, quick, task_class, concurrent=concurrent)
        engine.add_run(run, assigned)
        if task_class.gated:
            assigned.claim = claim(farm, farm.agents.by_session[engine.agent], task, run)
        engine.last_key = task.key
        rules = task.rules or DEFAULT_RULES
        version = engine.version if rules.depend is not None else None
        wants = _special_wants(farm, task, engine, task_class)
        tasks.append((*run, task.function, rules.time_limit_s, version, environment, measured, wants))
        took += 1
    if took and requirements is not None:
        _note_requirements(farm, engine, task_class, requirements, now)
    farm.queues.size -= took
    if not task_class.restricted:
        farm.queues.open_size -= took
    return took


def _special_wants(farm: SchedulerState, task: TaskEntry, engine: EngineEntry, task_class: TaskClass) -> Wants | None:
    inputs = task.dependencies.inputs if task.dependencies is not None else ()
    concurrent = task_class.concurrent
    freeze = task.rules is not None and task.rules.freeze and farm.frozen.wants(task.id, engine.node, farm.settings)
    is_plain = not inputs and task.past.trial_state is None and task.parent is None and task.part is None
    recovery = task.past.recovery
    if is_plain and not concurrent and not freeze and not recovery:
        return None
    trial, received = (
        (task.past.trial_state.trial, task.past.trial_state.received) if task.past.trial_state is not None else (1, 0)
    )
    found = [(source, farm.tasks.chunks.of(source)) for _, source in inputs]
    chunks = tuple((source, chunk) for source, chunk in found if chunk is not None)
    part = task.part[1] if task.part is not None else None
    return Wants(inputs, chunks, trial, received, task.parent, part, concurrent, freeze, recovery)


def _note_requirements(
    farm: SchedulerState, engine: EngineEntry, task_class: TaskClass, requirements: Asks, now: Now
) -> None:
    task_class.reserved_by = None
    if requirements.environment is not None and engine.environment is None:
        farm.environments.assign(engine, requirements.environment)
    note_settings(farm, engine, task_class, now)


def begin_copy(
    farm: SchedulerState, task: TaskEntry, engine: EngineEntry, first: AssignedRun, now: Now, out: Decision
) -> None:
    """Begin a second copy of a running task on an idle engine, whose run does not decide as long as the first one runs.

    first: the first run."""
    task_class = first.task_class
    assert task_class is not None, "a run from before the controller's restart has no second copy"
    farm.readiness.wake(engine)
    del farm.readiness.candidates[engine]
    task.attempt += 1
    run = (task.id, task.attempt)
    copies = farm.second_copies
    copies.begun[task.id] = copies.begun.get(task.id, 0) + 1
    copies.others[task.id] = OtherRun(Assigned(engine.name, task.attempt, now.mono_s, now.wall_s), True)
    batch = RecordedBatch(farm.readiness.next_batch, now.wall_s)
    engine.add_run(run, AssignedRun(batch, task_class.durations.mean_s, task_class.quick, task_class))
    rules = task.rules or DEFAULT_RULES
    version = engine.version if rules.depend is not None else None
    wants = _special_wants(farm, task, engine, task_class)
    to_run: ToRun = (*run, task.function, rules.time_limit_s, version, task_class.environment, False, wants)
    agent = farm.agents.by_session[engine.agent]
    _send_batch(farm, engine, agent, batch, [to_run], now, out)
    out.notes.append(f"task {task.id} is slow: a second copy begins on engine {engine.id} ({engine.node})")
    _note_standing(farm, engine, agent, now)


# -- what an engine holds


def release(farm: SchedulerState, engine: EngineEntry, run: RunKey, out: Decision) -> AssignedRun | None:
    """Remove a run from an engine that has answered it or is gone.  None: the engine did not hold the run."""
    assigned = engine.remove_run(run)
    if assigned is None:
        return None
    if assigned.nested_wait is not None and end_wait(farm, engine, assigned):
        farm.timers.set(0.0, "balance")
    agent = farm.agents.by_session.get(engine.agent)
    if assigned.claim is not None:
        release_claim(farm, agent, engine.agent, assigned.claim, run)
    elif agent is not None and (agent.parked or agent.reserving):
        farm.agents.changed[agent.session] = None
    return assigned


def begin_oldest(farm: SchedulerState, engine: EngineEntry, now: Now) -> None:
    """Begin the oldest run that an engine holds: that is the one which it runs."""
    if not engine.assigned:
        engine.current, engine.since_s = None, now.mono_s
        if farm.readiness.with_runs_ahead:
            farm.readiness.with_runs_ahead.pop(engine, None)
        return
    run = engine.oldest()
    if run != engine.current:
        engine.current, engine.since_s = run, now.mono_s
    if engine.concurrent:  # they have begun when they were assigned
        return
    if run is not None:
        task = farm.tasks.unfinished.get(run[0])
        if task is not None and task.is_current(engine.name, run):
            begin(farm, task, now)
    if len(engine.assigned) < 2:
        farm.readiness.with_runs_ahead.pop(engine, None)


def begin_all(farm: SchedulerState, engine: EngineEntry, now: Now) -> None:
    """Begin the concurrent runs of an engine that are known from before the controller's restart."""
    for run in engine.assigned:
        task = farm.tasks.unfinished.get(run[0])
        if task is not None and task.is_current(engine.name, run):
            begin(farm, task, now)


# -- recall: runs that were sent ahead come back if another engine could run them


def recall_for_others(farm: SchedulerState, now: Now, out: Decision) -> None:
    """Recall the runs behind a task that takes long, if another engine is idle or a more urgent task waits."""
    readiness = farm.readiness
    if readiness.recall_check_s is None or now.mono_s < readiness.recall_check_s:
        return  # an earlier check has overtaken this one, and has set the next
    readiness.recall_check_s = None
    for engine in list(readiness.with_runs_ahead):
        oldest = engine.oldest()
        task = farm.tasks.unfinished.get(oldest[0]) if oldest else None
        place = task.place if task else None
        if type(place) is not Assigned or place.since_s is None:
            continue
        is_young = now.mono_s - place.since_s < farm.settings.recall_after_s - 1e-9
        if is_young and not (readiness.idle and has_much_behind(engine)):
            continue
        behind = [
            run
            for run, assigned in engine.assigned.items()
            if run != oldest and assigned.recalled_s is None and _wanted_elsewhere(farm, assigned.task_class)
        ]
        if not readiness.idle:
            found = best_class(farm, engine, farm.agents.by_session[engine.agent], now)
            head = found[0].head() if found else None
            behind = [run for run in behind if head is not None and _less_urgent(farm, run, head[0])]
        if behind:
            recall(farm, engine, behind, now, out)
    arm_recall(farm, now)


def _wanted_elsewhere(farm: SchedulerState, task_class: TaskClass | None) -> bool:
    if task_class is None or not task_class.restricted or not farm.readiness.idle:
        return True
    few, many = sorted((farm.readiness.idle, task_class.eligible), key=len)
    return any(engine in many and serves_environment(engine, task_class.environment) for engine in few)


def _less_urgent(farm: SchedulerState, run: RunKey, key: object) -> bool:
    task = farm.tasks.unfinished.get(run[0])
    return task is not None and task.key > key
