"""The graph of tasks: what waits for what, what the end of one means for those that wait for it, and running again.

Edges are counted where tasks come and go (`core.transition`); here is what follows from an end.  All of it works
through lists, never by recursion: a chain may be as long as memory allows.  The cost is the number of edges.
"""

from __future__ import annotations

import msgspec

from .decision import Decision, LoadEnded
from .ending import recycle
from .farm import Engine, Farm, Now
from .messages import Reopened
from .needs import RUN, SKIP, Needs
from .parcels import Ended, Failure, Final, LostInputs
from .saves import TaskRecord
from .states import LOSES_INPUTS, Reason, State
from .task import FOR_TASKS, Handed, Queued, Task
from .transition import (
    final_without_answer,
    finish,
    joined,
    rejoin,
    reopen,
    requeue,
    task_of,
    wait_for,
)

MAX_INPUT_LOSSES = 10
"""A task that has found its inputs lost so often, and finds it once more, has failed."""
REMADE_KEPT = 10_000


def why_refused(farm: Farm, task_id: int, needs: Needs) -> str:
    """Why a task with these edges cannot be accepted; "" if it can."""
    for other in needs.after:
        if other == task_id:
            return f"task {task_id} cannot wait for itself"
        if other not in farm.tasks and other not in farm.finals and other not in farm.refusals:
            return f"there is no task {other} to wait for: it was not handed in before, or has been cleared"
    return ""


def settle(farm: Farm, now: Now, out: Decision) -> None:
    """At the end of a turn: whoever waits for tasks that have ended goes on, or ends with them."""
    while farm.ended_needs or farm.ready_joins:
        while farm.ready_joins:
            task = farm.tasks.get(farm.ready_joins.popleft())
            if task is not None and not task.left:
                finish(farm, task, joined(task, now), out)
        if farm.ended_needs:
            _tell_dependents(farm, farm.ended_needs.popleft(), now, out)


def _tell_dependents(farm: Farm, ended: int, now: Now, out: Decision) -> None:
    if ended in farm.tasks:  # it was reopened in the same turn: they wait on
        return
    reason = Reason.REFUSED if ended in farm.refusals else farm.finals.get(ended, "")
    tasks = farm.tasks
    for task_id in farm.dependents.pop(ended, ()):
        task = tasks.get(task_id)
        left = task.left if task is not None else None
        if task is None or not left or ended not in left:
            continue
        left.discard(ended)
        needs = task.needs
        if reason and needs is not None and needs.if_failed != RUN and ended in needs.after:
            finish(farm, task, _with_its_need(task, ended, reason, needs, now), out)
        elif not left and type(task.place) is Queued:
            if needs is not None and needs.join:
                farm.ready_joins.append(task_id)
            else:
                rejoin(farm, task)


def _with_its_need(task: Task, ended: int, reason: str, needs: Needs, now: Now) -> Final:
    if needs.if_failed == SKIP:
        text = f"task {task.id} was skipped: task {ended}, which it waits for, failed ({reason})"
        return final_without_answer(task, None, Reason.SKIPPED, Failure("TaskSkipped", text), now)
    text = f"task {ended}, which task {task.id} waits for, failed ({reason})"
    return final_without_answer(task, None, Reason.NEEDED, Failure("DependencyFailed", text), now)


# -- once more


def inputs_lost(farm: Farm, task: Task, engine: Engine, ended: Ended, now: Now, out: Decision) -> str:
    """A run says that results which it was given are gone: they are made again, and what was made of them, then it
    runs again, uncharged.  Returns why that cannot be, or "".

    A report about a result that has been made again since the run began is stale: the run is simply repeated."""
    word = ended.word if isinstance(ended.word, LostInputs) else LostInputs(())
    place = task.place
    since_s = place.since_s if type(place) is Handed and place.since_s is not None else now.mono_s
    course = task.own_course()
    course.input_losses += 1
    if course.input_losses > MAX_INPUT_LOSSES:
        return f"it has found its inputs lost {course.input_losses} times"
    gone = [i for i in word.ids if i not in farm.tasks and farm.finals.get(i) != ""]
    if gone:
        return f"task {gone[0]} cannot be run again for it: it was cleared, or has failed"
    lost = [i for i in word.ids if i not in farm.tasks and farm.remade.get(i, -1.0) < since_s]
    wait_for(farm, task, word.ids)
    requeue(farm, task, Queued(FOR_TASKS.why), out)
    if lost:
        # What is read from the store comes with the next event: it stays where it is until then.
        task.left = {*(task.left or ()), *lost}
        for other in lost:
            farm.dependents.setdefault(other, []).append(task.id)
        rejoin(farm, task)
        out.loads.append(LoadEnded(lost, LOSES_INPUTS, True))
    for engine_id in word.engines:
        for each in list(farm.numbered.get(engine_id, ())):
            recycle(farm, each, f"task {task.id} says that its results are lost", now, out)
    return ""


def on_ended_loaded(farm: Farm, records: list[TaskRecord], asked: list[int], outcome: str, out: Decision) -> list[Task]:
    """Ended tasks, read back from the store, are to run again; gives them back."""
    fresh = []
    for record in records:
        if farm.finals.get(record.id) == "":
            task = task_of(farm, record)
            if task.history:
                task.history[-1] = msgspec.structs.replace(task.history[-1], outcome=outcome)
            reopen(farm, task, outcome, out)
            fresh.append((task, record.needs))
    again = {task.id for task, _ in fresh}
    for task, needs in fresh:
        task.needs = needs
        if needs is not None:
            for source in needs.takes:
                farm.takers[source] = farm.takers.get(source, 0) + 1
            wait_for(farm, task, needs.after)
            if needs.join and not task.left:
                farm.ready_joins.append(task.id)
    _hold_back(farm, again)
    for task, needs in fresh:
        if needs is None or not needs.join:
            rejoin(farm, task, task.place if type(task.place) is Queued else FOR_TASKS)
        client = farm.clients.get(task.session)
        if client is not None and client.here:
            out.sends.append((task.session, Reopened([task.id])))
    # Cleared in the meantime: who waits for it learns that it is gone.
    farm.ended_needs.extend(i for i in asked if i not in farm.tasks)
    return [task for task, _ in fresh]


def _hold_back(farm: Farm, again: set[int]) -> None:
    """What has not begun and takes a result that is to be made again waits for it."""
    for task in farm.tasks.values():
        needs = task.needs
        if needs is None or task.id in again or type(task.place) is Handed or again.isdisjoint(needs.after):
            continue
        wait_for(farm, task, again.intersection(needs.after))
        rejoin(farm, task)


def note_remade(farm: Farm, task: Task, now: Now) -> None:
    """A reopened task has ended well again."""
    farm.remade[task.id] = now.mono_s
    while len(farm.remade) > REMADE_KEPT:
        del farm.remade[next(iter(farm.remade))]


def check_graph(farm: Farm) -> None:
    """What must hold of it between two turns.  Raises AssertionError."""
    takers: dict[int, int] = {}
    for task in farm.tasks.values():
        for source in task.needs.takes if task.needs is not None else ():
            takers[source] = takers.get(source, 0) + 1
        for other in task.left or ():
            told = other in farm.tasks or farm.finals.get(other) == "" or other in farm.ended_needs
            assert told, f"task {task.id} waits for {other}, which is gone"
            assert task.id in farm.dependents.get(other, ()), f"task {task.id} waits for {other} and is not told"
        if task.needs is not None and task.needs.join and not task.left:
            assert task.id in farm.ready_joins, f"join {task.id} was forgotten"
        if task.left:
            assert type(task.place) is Queued, f"task {task.id} was begun before what it waits for"
            assert task.task_class is None, f"task {task.id} is queued before what it waits for"
            assert task.state is State.SCHEDULED
    assert takers == farm.takers, f"who takes whose result is miscounted: {farm.takers} should be {takers}"
