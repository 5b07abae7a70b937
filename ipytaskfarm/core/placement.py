"""Who gets what next, and what comes back when it is needed elsewhere.

`dispatch` runs once at the end of each turn.  It looks only at engines that have room and for which something may
have changed (`Farm.hungry`), and takes tasks from the heads of the classes that the engine may serve.
"""

from __future__ import annotations

from itertools import islice
from typing import Any, TypeAlias

from .choice import better, first_idle, in_turns, note_idle
from .decision import Assignment, Decision, ToRun, Wants
from .demands import Asks
from .eligibility import wake
from .ending import recall, recycle
from .environments import for_blank, gives_way, idle_mate, make_room, take_on
from .farm import Agent, Batch, Engine, EngineState, Farm, Handing, Now
from .gates import claim, gate, look_again, overload, park, release_claim, reserves
from .lending import stop_lending
from .parcels import RunKey
from .queue import TaskClass, serves_environment
from .recycling import note_settings, rest, room_left
from .saves import SaveHandOut
from .slots import slots_to_fill
from .task import DEFAULT_RULES, Handed, Task
from .transition import begin, hand

MAX_BATCH = 2048
"""Most tasks in one hand-out; keeps one turn short."""

# -- room


def _has_room(farm: Farm, engine: Engine, now: Now) -> bool:
    if engine.state != EngineState.UP or engine.retiring or engine.withheld_until_s > now.mono_s:
        return False
    agent = farm.agents.get(engine.agent)
    if agent is None or not agent.able:
        return False
    if not engine.handed:
        return True
    if engine.agent in farm.lent and any(handing.waiting is not None for handing in engine.handed.values()):
        return False
    if now.mono_s - engine.since_s > farm.settings.recall_after_s:
        return False  # what it runs lasts longer than was expected: nothing more behind it
    return engine.closed == 0 and engine.ahead_s < 0.75 * farm.settings.prefetch_s


def best_class(farm: Farm, engine: Engine, now: Now) -> tuple[TaskClass, tuple[object, int] | None] | None:
    """The class whose head this engine takes next, and the head of the runner-up (take no further than that)."""
    agent = farm.agents[engine.agent]
    if agent.exclusive is not None:
        return None
    own, kept_free = engine.heads.first(engine), False
    if own is not None and (farm.guarded or own[2].gated or own[2].environment is not None):
        own, kept_free = _own_first(farm, agent, engine, now)
    shared = None if farm.guarded and overload(farm, agent) else farm.open_heads.first()
    if kept_free and own is not None:
        return (shared[2], own[:2]) if shared is not None and shared[:2] < own[:2] else None
    if own is None:
        return (shared[2], None) if shared is not None else None
    if shared is not None and _before(farm, engine, shared, own, now):
        return shared[2], own[:2]
    behind = _next_own(engine, own[2]) if len(engine.heads) > 1 else None
    if shared is not None and (behind is None or shared[:2] < behind):
        behind = shared[:2]
    # What was passed over, for tasks of the engine's own environment, is no limit.
    return own[2], behind if behind is not None and own[:2] <= behind else None


def _next_own(engine: Engine, first: TaskClass) -> tuple[Any, int] | None:
    """The earliest head behind that of the first of the restricted classes which it may serve."""
    found = engine.heads.preferred(engine, lambda task_class: task_class is not first, as_urgent=False)
    return found.head() if found is not None else None


_Head: TypeAlias = tuple[Any, int, TaskClass]


def _own_first(farm: Farm, agent: Agent, engine: Engine, now: Now) -> tuple[_Head | None, bool]:
    """The first of the restricted classes that the engine may serve, and that may start now; or (…, True) one that
    waits for room on its node, and before which nothing later may start there."""
    while (own := engine.heads.first(engine)) is not None:
        task_class = own[2]
        closed = (
            gate(farm, agent, task_class.key.asks, task_class.key.limit_s) if task_class.gated or farm.guarded else None
        )
        if closed is None:
            if task_class.environment is None or engine.environment is not None:
                return own, False
            chosen = for_blank(farm, engine, task_class)
            head = chosen.head()
            return (own if head is None else (*head, chosen)), False
        if reserves(farm, agent, task_class, closed, now):
            return own, True
        engine.heads.drop_first()
        park(farm, agent, task_class, closed)
    return None, False


def _before(farm: Farm, engine: Engine, shared: _Head, own: _Head, now: Now) -> bool:
    """Whether an unrestricted head goes before one of the engine's own: those of its own environment go first among
    equals, as long as nobody is passed over for too long."""
    if engine.environment is None or own[2].environment is None or shared[0] != own[0]:
        return shared[:2] <= own[:2]
    patience_s = farm.settings.environment_patience_s
    first = shared[2].first()
    waited_s = now.wall_s - first.submitted_s if first is not None else 0.0
    return patience_s is not None and waited_s > patience_s and shared[:2] <= own[:2]


# -- handing out


def dispatch(farm: Farm, now: Now, out: Decision) -> None:
    """Give work to every engine that has room for it."""
    if farm.held or farm.stopping:
        return
    if farm.freed:
        look_again(farm)
    if farm.open_size:
        _wake_some(farm)
    if len(farm.hungry) > 1 and (len(farm.agents) > 1 or farm.environments):
        _order(farm)
    while farm.hungry:
        share = max(1, farm.queued // len(farm.hungry))
        engine = next(iter(farm.hungry))
        del farm.hungry[engine]
        if _has_room(farm, engine, now):
            _serve(farm, engine, share, now, out)
    if farm.environments:
        make_room(farm, now, out)
    if farm.settings.warm is not None and slots_to_fill(farm):
        farm.set_timer(now.mono_s, "balance")
    _arm_recall(farm, now)


def _order(farm: Farm) -> None:
    """Those that are to run something at once stand in the order of the default placement, before all others."""
    free = [engine for engine in farm.hungry if not engine.handed]
    if len(free) > 1:
        busy = [engine for engine in farm.hungry if engine.handed]
        farm.hungry = dict.fromkeys([*in_turns(farm, free), *busy])


def _serve(farm: Farm, engine: Engine, share: int, now: Now, out: Decision) -> None:
    """Fill one engine, or the one that suits its task better, and note where it stands then."""
    if not engine.handed and farm.chooses and (found := best_class(farm, engine, now)) is not None:
        chosen = idle_mate(farm, engine, found[0]) or better(farm, engine, found[0])
        if chosen is not engine:
            # It has a turn of its own, after the one that it left the task to.
            farm.hungry[engine] = None
            wake(farm, chosen)
            del farm.hungry[chosen]
            if not _fill(farm, chosen, 1, now, out, found[0]):
                del farm.hungry[engine]
                _fill(farm, engine, share, now, out)
                _settle(farm, engine, now)
            _settle(farm, chosen, now)
            return
    _fill(farm, engine, share, now, out)
    _settle(farm, engine, now)


def _settle(farm: Farm, engine: Engine, now: Now) -> None:
    """Where an engine stands after its turn."""
    if engine.retiring or engine.state != EngineState.UP:
        return
    if not engine.handed:
        agent = farm.agents[engine.agent]
        barred = agent.exclusive is not None or agent.reserving or bool(overload(farm, agent))
        (farm.barred if barred else farm.waiting)[engine] = None
        if not barred:
            note_idle(farm, engine)
        rest(farm, engine, now)
    elif _has_room(farm, engine, now):
        farm.roomy[engine] = None


def _wake_some(farm: Farm) -> None:
    """As many engines as there are open tasks: the idle first, blank ones before others, then those with room."""
    spare = farm.open_size
    if spare < len(farm.waiting) and (len(farm.agents) > 1 or farm.environments):
        idle = first_idle(farm, spare)
    else:
        idle = list(islice(farm.waiting, spare))
    busy = list(farm.roomy)[: spare - len(idle)] if farm.roomy and spare > len(idle) else ()
    for engine in (*idle, *busy, *farm.barred):  # a more urgent one may start where others may not
        wake(farm, engine)


def _fill(farm: Farm, engine: Engine, share: int, now: Now, out: Decision, only: TaskClass | None = None) -> bool:
    """Hand tasks to one engine until it has no room: one record, one message.  only: of this class alone."""
    batch = Batch(farm.next_handout, {}, now.wall_s)
    tasks: list[ToRun] = []
    while len(tasks) < MAX_BATCH:
        found = best_class(farm, engine, now) if only is None else (only, None)
        if engine.environment is not None and _gives_way(farm, engine, found, now, out):
            break
        if found is None:
            break
        task_class, limit = found
        if engine.handed and not _may_follow(engine, task_class):
            break
        room = _room_for(farm, engine, task_class)
        if room <= 0:
            break
        took = _take(farm, engine, task_class, limit, min(room, share, MAX_BATCH - len(tasks)), batch, tasks, now)
        share -= took
        if took == 0 or share <= 0 or only is not None:
            break
    if not tasks:
        return False
    _hand_out(farm, engine, batch, tasks, now, out)
    return True


def _gives_way(farm: Farm, engine: Engine, found: tuple[TaskClass, object] | None, now: Now, out: Decision) -> bool:
    why = gives_way(farm, engine, found[0].head() if found is not None else None, now)
    if why:
        recycle(farm, engine, why, now, out)
    return bool(why)


def _hand_out(farm: Farm, engine: Engine, batch: Batch, tasks: list[ToRun], now: Now, out: Decision) -> None:
    engine.given = farm.agents[engine.agent].given = farm.next_handout
    engine.idle_s = 0.0
    farm.next_handout += 1
    out.saves.append(SaveHandOut(batch.number, engine.name, engine.id, list(batch.runs), now.wall_s))
    handing = engine.handed[tasks[0][:2]]
    allotment = handing.claim.allotment if handing.claim is not None else None
    recycling = tuple(engine.recycling) if engine.recycling else ()
    out.assignments.append(
        Assignment(engine.agent, engine.name, tasks, engine.environment, allotment, recycling, _graces(farm, tasks))
    )
    if len(engine.handed) == len(tasks):
        engine.current, engine.since_s = engine.oldest(), now.mono_s
    if len(engine.handed) > 1:
        farm.laden[engine] = None


def _graces(farm: Farm, tasks: list[ToRun]) -> dict[int, float] | None:
    limited = [task[0] for task in tasks if task[3] is not None]
    if not limited:
        return None
    graces = {task_id: (farm.tasks[task_id].rules or DEFAULT_RULES).grace_s for task_id in limited}
    return {task_id: grace_s for task_id, grace_s in graces.items() if grace_s is not None} or None


def _may_follow(engine: Engine, task_class: TaskClass) -> bool:
    """Whether this class's head may be sent behind what the engine holds.

    A more urgent one may not: it would wait for all of that, where from its queue it is the first as soon as the
    engine is empty or what it holds is recalled.
    """
    head = task_class.head()
    urgent = head is not None and head[0] < engine.last_key
    return task_class.quick and engine.closed == 0 and not urgent and not _parts_jobs(engine, task_class)


def _parts_jobs(engine: Engine, task_class: TaskClass) -> bool:
    """Whether the engine may have to be recycled between what it holds and this class's tasks."""
    last = engine.handed[next(reversed(engine.handed))].task_class
    return last is not None and last is not task_class and (task_class.ends_with_job or last.ends_with_job)


def _room_for(farm: Farm, engine: Engine, task_class: TaskClass) -> int:
    """How many of this class the engine may be given now."""
    if not engine.handed and not task_class.quick:
        return 1
    room = int((farm.settings.prefetch_s - engine.ahead_s) / task_class.durations.mean_s) or (not engine.handed)
    left = room_left(engine, task_class) if task_class.key.asks is not None else None
    return room if left is None else min(room, left)


def _take(
    farm: Farm,
    engine: Engine,
    task_class: TaskClass,
    limit: tuple[object, int] | None,
    count: int,
    batch: Batch,
    tasks: list[ToRun],
    now: Now,
) -> int:
    """Pop up to `count` tasks, none later than the runner-up's head."""
    cost = task_class.durations.mean_s
    quick = task_class.quick
    asks = task_class.key.asks
    environment = task_class.environment
    measured = asks is not None and asks.recycle is not None and asks.recycle.memory_bytes is not None
    took = 0
    while took < count:
        task = task_class.pop(limit if took else None)
        if task is None:
            break
        hand(farm, task, engine, not engine.handed, now)
        run = (task.id, task.attempt)
        engine.handed[run] = handing = Handing(batch, cost, quick, task_class)
        if task_class.gated:
            handing.claim = claim(farm, farm.agents[engine.agent], task, run)
        batch.runs[run] = None
        engine.ahead_s += cost
        engine.last_key = task.key
        engine.closed += not quick
        rules = task.rules or DEFAULT_RULES
        version = engine.version if rules.depend is not None else None
        tasks.append(
            (task.id, task.attempt, task.function, rules.time_limit_s, version, environment, measured, _wants(task))
        )
        took += 1
    if took and asks is not None:
        _note_asks(farm, engine, task_class, asks, now)
    farm.queued -= took
    if not task_class.restricted:
        farm.open_size -= took
    return took


def _wants(task: Task) -> Wants | None:
    inputs = task.needs.inputs if task.needs is not None else ()
    if not inputs and task.course is None and task.parent is None:
        return None
    trial, received = (task.course.trial, task.course.received) if task.course is not None else (1, 0)
    return Wants(inputs, trial, received, task.parent)


def _note_asks(farm: Farm, engine: Engine, task_class: TaskClass, asks: Asks, now: Now) -> None:
    task_class.reserved_by = None
    if asks.environment is not None and engine.environment is None:
        take_on(farm, engine, asks.environment)
    note_settings(farm, engine, task_class, now)


# -- what an engine holds


def release(farm: Farm, engine: Engine, run: RunKey, out: Decision) -> Handing | None:
    """The engine has answered for a run, or is gone: it holds it no more.  None: it did not hold it."""
    handing = engine.handed.pop(run, None)
    if handing is None:
        return None
    engine.ahead_s = engine.ahead_s - handing.cost_s if engine.handed else 0.0
    engine.closed -= not handing.quick
    runs = handing.batch.runs
    del runs[run]
    if handing.waiting is not None:
        stop_lending(farm, engine, handing, None)
    agent = farm.agents.get(engine.agent)
    if handing.claim is not None:
        release_claim(farm, agent, engine.agent, handing.claim, run)
    elif agent is not None and (agent.parked or agent.reserving):
        farm.freed[agent.session] = None
    return handing


def begin_oldest(farm: Farm, engine: Engine, now: Now) -> None:
    """The oldest run that an engine holds is the one it runs."""
    run = engine.oldest()
    if run != engine.current:
        engine.current, engine.since_s = run, now.mono_s
    if run is not None:
        task = farm.tasks.get(run[0])
        if task is not None and task.is_current(engine.name, run):
            begin(farm, task, now)
    if len(engine.handed) < 2:
        farm.laden.pop(engine, None)


# -- recall: what was sent ahead of need comes back when it is needed elsewhere


def _arm_recall(farm: Farm, now: Now) -> None:
    if farm.laden and farm.recall_check_s is None and (farm.waiting or farm.queued):
        farm.recall_check_s = now.mono_s + farm.settings.recall_after_s
        farm.set_timer(farm.recall_check_s, "recall")


def recall_for_others(farm: Farm, now: Now, out: Decision) -> None:
    """Call back what stands behind a task that lasts, if another engine waits or something more urgent does."""
    farm.recall_check_s = None
    for engine in list(farm.laden):
        oldest = engine.oldest()
        task = farm.tasks.get(oldest[0]) if oldest else None
        place = task.place if task else None
        if type(place) is not Handed or place.since_s is None:
            continue
        if now.mono_s - place.since_s < farm.settings.recall_after_s - 1e-9:
            continue
        behind = [
            run
            for run, handing in engine.handed.items()
            if run != oldest and handing.recalled_s is None and _wanted_elsewhere(farm, handing.task_class)
        ]
        if not farm.waiting:
            found = best_class(farm, engine, now)
            head = found[0].head() if found else None
            behind = [run for run in behind if head is not None and _less_urgent(farm, run, head[0])]
        if behind:
            recall(farm, engine, behind, now, out)
    _arm_recall(farm, now)


def _wanted_elsewhere(farm: Farm, task_class: TaskClass | None) -> bool:
    if task_class is None or not task_class.restricted or not farm.waiting:
        return True
    few, many = sorted((farm.waiting, task_class.eligible), key=len)
    return any(engine in many and serves_environment(engine, task_class.environment) for engine in few)


def _less_urgent(farm: Farm, run: RunKey, key: object) -> bool:
    task = farm.tasks.get(run[0])
    return task is not None and task.key > key
