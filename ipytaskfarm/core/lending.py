"""Tasks that wait for other tasks, inside their run: their place is lent to those meanwhile.

What the waiting run holds of its node is given back, one more engine is started on its node, and what was sent ahead
behind it is called back.  When all that it waits for has ended it takes its share again (as soon as there is room), is
answered, and the additional engine ends when it is empty.
"""

from __future__ import annotations

from .answers import reply
from .calls import Await, Counted, TaskCall
from .decision import Decision
from .ending import recall
from .farm import Engine, Farm, Handing, Now
from .gates import claim, gate, release_claim
from .inside import Lending
from .task import DEFAULT_RULES

MAX_EXTRA_ENGINES = 32
"""On one node; a task that waits beyond that lends nothing, and `explain` says so."""


def wait_for_tasks(farm: Farm, engine: Engine, call: TaskCall, question: Await, now: Now, out: Decision) -> None:
    """A running task waits until these have ended; the empty list: it waits no longer."""
    handing = engine.handed.get(call.run)
    if handing is None:
        return
    left = {i for i in question.ids if i in farm.tasks and i != call.run[0]}
    if handing.waiting is None:
        handing.waiting = Lending(call, question.ids)
    waiting = handing.waiting
    waiting.call = call
    waiting.ids = question.ids
    waiting.left = left
    for task_id in left:
        farm.awaited.setdefault(task_id, set()).add((engine.name, call.run))
    if left:
        _lend(farm, engine, handing, waiting, now, out)
    else:
        farm.returning[engine.name, call.run] = None


def _lend(farm: Farm, engine: Engine, handing: Handing, waiting: Lending, now: Now, out: Decision) -> None:
    if waiting.lends:
        return
    recall(farm, engine, [run for run in engine.handed if run != waiting.call.run], now, out)
    if farm.lent.get(engine.agent, 0) >= MAX_EXTRA_ENGINES:
        return
    waiting.lends = True
    farm.lent[engine.agent] = farm.lent.get(engine.agent, 0) + 1
    if handing.claim is not None:
        release_claim(farm, farm.agents.get(engine.agent), engine.agent, handing.claim, waiting.call.run)
        handing.claim = None
    farm.set_timer(now.mono_s, "balance")


def stop_lending(farm: Farm, engine: Engine, handing: Handing, now_s: float | None) -> None:
    """It has its place again, or needs it no more.  now_s: when engines are to be counted anew."""
    waiting = handing.waiting
    if waiting is None:
        return
    for task_id in waiting.left:
        watched = farm.awaited.get(task_id)
        if watched is not None:
            watched.discard((engine.name, waiting.call.run))
            if not watched:
                del farm.awaited[task_id]
    farm.returning.pop((engine.name, waiting.call.run), None)
    handing.waiting = None
    if waiting.lends:
        farm.lent[engine.agent] -= 1
        if not farm.lent[engine.agent]:
            del farm.lent[engine.agent]
        farm.set_timer(now_s if now_s is not None else 0.0, "balance")


def note_end(farm: Farm, task_id: int) -> None:
    """A task has ended that others wait for inside their runs."""
    for name, run in farm.awaited.pop(task_id, ()):
        engine = farm.engines.get(name)
        handing = engine.handed.get(run) if engine is not None else None
        if handing is not None and handing.waiting is not None:
            handing.waiting.left.discard(task_id)
            if not handing.waiting.left:
                farm.returning[name, run] = None


def settle_returning(farm: Farm, now: Now, out: Decision) -> None:
    """At the end of a turn: those whose waiting is over go on, where there is room for what they hold."""
    for name, run in list(farm.returning):
        engine = farm.engines.get(name)
        handing = engine.handed.get(run) if engine is not None else None
        task = farm.tasks.get(run[0])
        if engine is None or handing is None or handing.waiting is None or task is None:
            del farm.returning[name, run]
            continue
        waiting = handing.waiting
        agent = farm.agents.get(engine.agent)
        if waiting.lends and agent is not None:
            asks = (task.rules or DEFAULT_RULES).asks
            if asks is not None and asks.gated:
                if gate(farm, agent, asks) is not None:
                    continue  # others have its share still
                handing.claim = claim(farm, agent, task, run)
        failed = sum(1 for i in waiting.ids if farm.finals.get(i) or i in farm.refusals)
        reply(engine, waiting.call, Counted(failed), out)
        stop_lending(farm, engine, handing, now.mono_s)


def check_lending(farm: Farm) -> None:
    """What must hold of it between two turns.  Raises AssertionError."""
    lent: dict[str, int] = {}
    for engine in farm.engines.values():
        for run, handing in engine.handed.items():
            waiting = handing.waiting
            if waiting is None:
                continue
            lent[engine.agent] = lent.get(engine.agent, 0) + waiting.lends
            over = not waiting.left
            assert over == ((engine.name, run) in farm.returning), f"run {run} waits for nothing, or is forgotten"
            for task_id in waiting.left:
                assert task_id in farm.tasks, f"run {run} waits for task {task_id}, which has ended"
                assert (engine.name, run) in farm.awaited.get(task_id, ()), f"run {run} is not told of {task_id}"
    found = {agent: count for agent, count in lent.items() if count}
    assert found == farm.lent, f"lent places are miscounted: {farm.lent} should be {found}"
