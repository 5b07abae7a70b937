"""Who gets what next, and what comes back when it is needed elsewhere.

`dispatch` runs once at the end of each turn.  It looks only at engines that have room and for which something may
have changed (`Farm.hungry`), and takes tasks from the heads of the classes that the engine may serve.
"""

from __future__ import annotations

from .eligibility import wake
from .farm import Assignment, Batch, Decision, Engine, EngineState, Farm, Handing, Now
from .messages import Recall, RunKey
from .queue import TaskClass
from .saves import SaveHandOut
from .task import DEFAULT_RULES, Handed
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
    if now.mono_s - engine.since_s > farm.settings.recall_after_s:
        return False  # what it runs lasts longer than was expected: nothing more behind it
    return engine.closed == 0 and engine.ahead_s < 0.75 * farm.settings.prefetch_s


def best_class(farm: Farm, engine: Engine) -> tuple[TaskClass, tuple[object, int] | None] | None:
    """The class whose head this engine takes next, and the head of the runner-up (take no further than that)."""
    shared = farm.open_heads.first()
    own = engine.heads.first(engine)
    if shared is None or own is None:
        chosen = shared or own
        return (chosen[2], None) if chosen else None
    first, second = (shared, own) if shared[:2] <= own[:2] else (own, shared)
    return first[2], second[:2]


# -- handing out


def dispatch(farm: Farm, now: Now, out: Decision) -> None:
    """Give work to every engine that has room for it."""
    if farm.held or farm.stopping:
        return
    if farm.open_size:
        _wake_some(farm)
    while farm.hungry:
        share = max(1, farm.queued // len(farm.hungry))
        engine = next(iter(farm.hungry))
        del farm.hungry[engine]
        if _has_room(farm, engine, now):
            _fill(farm, engine, share, now, out)
            if not engine.handed:
                farm.waiting[engine] = None
            elif _has_room(farm, engine, now):
                farm.roomy[engine] = None
    _arm_recall(farm, now)


def _wake_some(farm: Farm) -> None:
    """As many engines as there are open tasks: the idle first, longest idle before others."""
    spare = farm.open_size
    idle = list(farm.waiting)[:spare] if farm.waiting else ()
    busy = list(farm.roomy)[: spare - len(idle)] if farm.roomy and spare > len(idle) else ()
    for engine in idle:
        wake(farm, engine)
    for engine in busy:
        wake(farm, engine)


def _fill(farm: Farm, engine: Engine, share: int, now: Now, out: Decision) -> None:
    """Hand tasks to one engine until it has no room: one record, one message."""
    batch = Batch(farm.next_handout, {}, now.wall_s)
    tasks: list[tuple[int, int, str | None, float | None, int | None]] = []
    while len(tasks) < MAX_BATCH:
        found = best_class(farm, engine)
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
        if took == 0 or share <= 0:
            break
    if not tasks:
        return
    farm.next_handout += 1
    out.saves.append(SaveHandOut(batch.number, engine.name, engine.id, list(batch.runs), now.wall_s))
    out.assignments.append(Assignment(engine.agent, engine.name, tasks))
    if len(engine.handed) == len(tasks):
        engine.current, engine.since_s = engine.oldest(), now.mono_s
    if len(engine.handed) > 1:
        farm.laden[engine] = None


def _may_follow(engine: Engine, task_class: TaskClass) -> bool:
    """Whether this class's head may be sent behind what the engine holds.

    A more urgent one may not: it would wait for all of that, where from its queue it is the first as soon as the
    engine is empty or what it holds is recalled.
    """
    head = task_class.head()
    urgent = head is not None and head[0] < engine.last_key
    return task_class.quick and engine.closed == 0 and not urgent


def _room_for(farm: Farm, engine: Engine, task_class: TaskClass) -> int:
    """How many of this class the engine may be given now."""
    if not engine.handed and not task_class.quick:
        return 1
    return int((farm.settings.prefetch_s - engine.ahead_s) / task_class.durations.mean_s) or (not engine.handed)


def _take(
    farm: Farm,
    engine: Engine,
    task_class: TaskClass,
    limit: tuple[object, int] | None,
    count: int,
    batch: Batch,
    tasks: list[tuple[int, int, str | None, float | None, int | None]],
    now: Now,
) -> int:
    """Pop up to `count` tasks, none later than the runner-up's head."""
    cost = task_class.durations.mean_s
    quick = task_class.quick
    took = 0
    while took < count:
        task = task_class.pop(limit if took else None)
        if task is None:
            break
        hand(farm, task, engine, not engine.handed, now)
        run = (task.id, task.attempt)
        engine.handed[run] = Handing(batch, cost, quick, task_class)
        batch.runs[run] = None
        engine.ahead_s += cost
        engine.last_key = task.key
        engine.closed += not quick
        rules = task.rules or DEFAULT_RULES
        version = engine.version if rules.depend is not None else None
        tasks.append((task.id, task.attempt, task.function, rules.time_limit_s, version))
        took += 1
    farm.queued -= took
    if not task_class.restricted:
        farm.open_size -= took
    return took


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
            found = best_class(farm, engine)
            head = found[0].head() if found else None
            behind = [run for run in behind if head is not None and _less_urgent(farm, run, head[0])]
        if behind:
            recall(farm, engine, behind, now, out)
    _arm_recall(farm, now)


def _wanted_elsewhere(farm: Farm, task_class: TaskClass | None) -> bool:
    if task_class is None or not task_class.restricted or not farm.waiting:
        return True
    few, many = sorted((farm.waiting, task_class.eligible), key=len)
    return any(engine in many for engine in few)


def _less_urgent(farm: Farm, run: RunKey, key: object) -> bool:
    task = farm.tasks.get(run[0])
    return task is not None and task.key > key


def recall(farm: Farm, engine: Engine, runs: list[RunKey], now: Now, out: Decision) -> None:
    """Ask an engine for runs that it may not have begun."""
    asked = []
    for run in runs:
        handing = engine.handed.get(run)
        if handing is not None and handing.recalled_s is None:
            handing.recalled_s = now.mono_s
            asked.append(run)
    if asked:
        out.sends.append((engine.agent, Recall(engine.name, asked)))
        farm.set_timer(now.mono_s + farm.settings.recall_patience_s, "recall_patience", (engine.name, asked))
