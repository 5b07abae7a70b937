"""Nested waits: tasks that wait inside their run for other tasks, and lend their slot to those in the meantime.

The resources of the waiting run are given back, one more engine is started on its node, and runs that were sent ahead
behind it are recalled. When all awaited tasks have ended, the run takes its resources again as soon as they are free,
and is answered. The additional engine is kept for some seconds for the next wait, see `core.scheduler.kept_engines`.
"""

from __future__ import annotations

from ..messages.running_task import Await, Counted, TaskCall
from .admission import claim, gate, release_claim
from .decision import Decision, Now
from .engine_shutdown import recall
from .entries import AssignedRun, EngineEntry
from .kept_engines import add_place, check_kept_engines, retire_surplus, take_place
from .running_tasks import NestedWait
from .state import SchedulerState
from .task import DEFAULT_RULES

MAX_EXTRA_ENGINES = 32
"""The most additional engines on one node.  A task that waits beyond that lends no slot, and `explain` says so."""


def wait_in_run(
    farm: SchedulerState, engine: EngineEntry, call: TaskCall, question: Await, now: Now, out: Decision
) -> None:
    """Make a running task wait until these tasks have ended. An empty list ends its wait."""
    assigned = engine.assigned.get(call.run)
    if assigned is None:
        return
    held = map(farm.tasks.holder, question.ids)
    left = {i for i in held if i in farm.tasks.unfinished and i != call.run[0]}
    if assigned.nested_wait is None:
        assigned.nested_wait = NestedWait(call, question.ids)
    waiting = assigned.nested_wait
    waiting.call = call
    waiting.ids = question.ids
    waiting.unfinished = left
    for task_id in left:
        farm.nested_waits.by_task.setdefault(task_id, set()).add((engine.name, call.run))
    if left:
        _lend_slot(farm, engine, assigned, waiting, question.keeps, now, out)
    else:
        farm.nested_waits.over[engine.name, call.run] = None


def _lend_slot(
    farm: SchedulerState, engine: EngineEntry, assigned: AssignedRun, waiting: NestedWait, keeps: bool, now: Now,
    out: Decision,
) -> None:  # fmt: skip
    """Let one more engine run on the node of a waiting run, and give back its resources, unless it keeps them."""
    if waiting.slot_lent:
        return
    recall(farm, engine, [run for run in engine.assigned if run != waiting.call.run], now, out)
    if farm.nested_waits.lent_slots.get(engine.agent, 0) >= MAX_EXTRA_ENGINES:
        return
    waiting.slot_lent = True
    farm.nested_waits.lent_slots[engine.agent] = farm.nested_waits.lent_slots.get(engine.agent, 0) + 1
    if assigned.claim is not None and not keeps:
        release_claim(farm, farm.agents.by_session.get(engine.agent), engine.agent, assigned.claim, waiting.call.run)
        assigned.claim = None
    if not take_place(farm, engine.agent):
        farm.timers.set(now.mono_s, "balance")


def end_wait(farm: SchedulerState, engine: EngineEntry, assigned: AssignedRun) -> bool:
    """Forget a run's wait, because it continues or is over.

    Returns whether the engines are to be counted again, because the run's slot was lent.
    """
    waiting = assigned.nested_wait
    if waiting is None:
        return False
    for task_id in waiting.unfinished:
        watched = farm.nested_waits.by_task.get(task_id)
        if watched is not None:
            watched.discard((engine.name, waiting.call.run))
            if not watched:
                del farm.nested_waits.by_task[task_id]
    farm.nested_waits.over.pop((engine.name, waiting.call.run), None)
    assigned.nested_wait = None
    if waiting.slot_lent:
        farm.nested_waits.lent_slots[engine.agent] -= 1
        if not farm.nested_waits.lent_slots[engine.agent]:
            del farm.nested_waits.lent_slots[engine.agent]
        add_place(farm, engine.agent)
    return waiting.slot_lent


def note_task_end(farm: SchedulerState, task_id: int) -> None:
    """Tell the runs that wait for a task that it has ended."""
    for name, run in farm.nested_waits.by_task.pop(task_id, ()):
        engine = farm.engines.by_name.get(name)
        assigned = engine.assigned.get(run) if engine is not None else None
        if assigned is not None and assigned.nested_wait is not None:
            assigned.nested_wait.unfinished.discard(task_id)
            if not assigned.nested_wait.unfinished:
                farm.nested_waits.over[name, run] = None


def resume_runs(farm: SchedulerState, now: Now, out: Decision) -> None:
    """Continue the runs that have nothing left to wait for, if their resources are free.

    Called at the end of a turn.
    """
    returned = False
    for name, run in list(farm.nested_waits.over):
        engine = farm.engines.by_name.get(name)
        assigned = engine.assigned.get(run) if engine is not None else None
        task = farm.tasks.unfinished.get(run[0])
        if engine is None or assigned is None or assigned.nested_wait is None or task is None:
            del farm.nested_waits.over[name, run]
            continue
        waiting = assigned.nested_wait
        agent = farm.agents.by_session.get(engine.agent)
        if waiting.slot_lent and agent is not None and assigned.claim is None:
            requirements = (task.rules or DEFAULT_RULES).asks
            if requirements is not None and requirements.gated:
                if gate(farm, agent, requirements) is not None:
                    continue  # others still have its resources
                assigned.claim = claim(farm, agent, task, run)
        failed = sum(map(farm.tasks.has_failed, waiting.ids))
        out.reply(engine.agent, waiting.call, Counted(failed))
        returned |= end_wait(farm, engine, assigned)
    if returned:  # at once: the additional engines must begin nothing more in this turn
        retire_surplus(farm, out)


def check_nested_waits(farm: SchedulerState) -> None:
    """Check the invariants of nested waits between two turns.

    Raises:
        AssertionError: one is broken.
    """
    lent: dict[str, int] = {}
    for engine in farm.engines.by_name.values():
        for run, assigned in engine.assigned.items():
            waiting = assigned.nested_wait
            if waiting is None:
                continue
            lent[engine.agent] = lent.get(engine.agent, 0) + waiting.slot_lent
            over = not waiting.unfinished
            assert over == ((engine.name, run) in farm.nested_waits.over), (
                f"run {run} waits for nothing, or is forgotten"
            )
            for task_id in waiting.unfinished:
                assert task_id in farm.tasks.unfinished, f"run {run} waits for task {task_id}, which has ended"
                assert (engine.name, run) in farm.nested_waits.by_task.get(task_id, ()), (
                    f"run {run} is not told of {task_id}"
                )
    found = {agent: count for agent, count in lent.items() if count}
    assert found == farm.nested_waits.lent_slots, (
        f"lent places are miscounted: {farm.nested_waits.lent_slots} should be {found}"
    )
    check_kept_engines(farm)
