"""The effect of a task's end on the tasks that wait for it, and the repetition of ended tasks.

The edges are counted where tasks come and go (`core.scheduler.transitions`). All work here uses lists, never recursion,
because a chain may be as long as memory allows. The cost is the number of edges.
"""

from __future__ import annotations

import msgspec

from ..messages import Reopened
from ..messages.task_types import RUN, SKIP, Ended, FailureSummary, Final, LostInputs, Needs
from ..saves import TaskRecord
from ..states import LOSES_INPUTS, Reason, State
from .decision import Decision, LoadEnded, Now
from .dependencies import FirstFailure
from .engine_shutdown import recycle
from .entries import EngineEntry, TaskEntry
from .state import SchedulerState
from .task import FOR_TASKS, Assigned, Queued
from .task_ends import final_of_join, final_without_answer
from .transitions import finish, rejoin, reopen, requeue
from .waits import task_of, wait_for

MAX_INPUT_LOSSES = 10
"""A task that has found its inputs lost this often fails the next time."""


def why_refused(farm: SchedulerState, task_id: int, needs: Needs) -> str:
    """Return the reason why a task with these edges cannot be accepted; "" if it can."""
    for other in needs.after:
        if other == task_id:
            return "the task cannot wait for itself"
        if not farm.tasks.is_known(other):
            return f"there is no task {other} to wait for: it was not submitted before, or has been cleared"
    return ""


def settle(farm: SchedulerState, most: int, now: Now, out: Decision) -> int:
    """Continue or end the tasks that wait for ended ones, and return how many were looked at. Called at the end of a
    turn.

    After `most` of them it stops; the next turn goes on. After a restart the others find out anew what has ended.
    """
    graph, count = farm.graph, 0
    while count < most and (graph.ended or graph.ready_joins):
        count += 1
        if graph.ready_joins:
            task = farm.tasks.unfinished.get(graph.ready_joins.popleft())
            if task is not None and not task.waits_for:
                finish(farm, task, final_of_join(task, now), out)
            continue
        ended = graph.ended[0]
        waiting = graph.dependents.get(ended)
        if not waiting or ended in farm.tasks.unfinished:
            # All were told; or the task was reopened in the same turn, and its dependents go on waiting.
            graph.forget_ended()
            continue
        told, cause = waiting[: most - count + 1], graph.causes.get(ended)
        if len(told) == len(waiting):
            graph.forget_ended()
            del graph.dependents[ended]
        else:
            del waiting[: len(told)]
        _tell_dependents(farm, ended, told, cause, now, out)
        count += len(told)
    return count


def _tell_dependents(
    farm: SchedulerState, ended: int, dependents: list[int], cause: FirstFailure | None, now: Now, out: Decision
) -> None:
    holder = farm.tasks.holder(ended)
    reason = Reason.REFUSED if ended in farm.tasks.refusals else farm.tasks.finals.get(holder, "")
    tasks = farm.tasks.unfinished
    items = farm.tasks.chunks.items.get(ended, 0)
    for task_id in dependents:
        task = tasks.get(task_id)
        left = task.waits_for if task is not None else None
        if task is None or not left or ended not in left:
            continue
        left.discard(ended)
        if left and not reason and not items:
            continue
        needs = task.dependencies
        if items and needs is not None:
            # The task waits for items of this chunk, of which some may have become tasks of their own.
            wait_for(farm, task, [i for i in needs.after if ended < i <= ended + items])
            left = task.waits_for or set()
        if not items and reason and needs is not None and needs.if_failed != RUN and ended in needs.after:
            if cause is not None and task.id in farm.graph.dependents:
                farm.graph.causes[task.id] = cause
            finish(farm, task, _with_its_need(task, ended, reason, needs, cause, now), out)
        elif not left and type(task.place) is Queued:
            if needs is not None and needs.join:
                farm.graph.ready_joins.append(task_id)
            else:
                rejoin(farm, task)


def _with_its_need(
    task: TaskEntry, ended: int, reason: str, needs: Needs, cause: FirstFailure | None, now: Now
) -> Final:
    """Return the end of a task that waited for a failed one.  cause: None if it had failed in an earlier turn."""
    why = f"failed ({reason}){cause.because(ended) if cause is not None else ''}"
    place = cause.failure.place if cause is not None else ""
    if needs.if_failed == SKIP:
        text = f"task {task.id} was skipped: task {ended}, which it waits for, {why}"
        return final_without_answer(task, None, Reason.SKIPPED, FailureSummary("TaskSkipped", text, place), now)
    text = f"task {ended}, which task {task.id} waits for, {why}"
    return final_without_answer(task, None, Reason.NEEDED, FailureSummary("DependencyFailed", text, place), now)


# -- repetition


def inputs_lost(
    farm: SchedulerState, task: TaskEntry, engine: EngineEntry, ended: Ended, now: Now, out: Decision
) -> str:
    """Requeue a run, uncharged, that has reported that some of its inputs are lost.

    The lost results, and all that depend on them, are made again first. A report about a result that was made again
    since the run began is out of date: then only the run is repeated. Return the reason why the run cannot be repeated,
    or "".
    """
    detail = ended.detail if isinstance(ended.detail, LostInputs) else LostInputs(())
    place = task.place
    since_s = place.since_s if type(place) is Assigned and place.since_s is not None else now.mono_s
    trial_state = task.own_trial_state()
    trial_state.input_losses += 1
    if trial_state.input_losses > MAX_INPUT_LOSSES:
        return f"it has found its inputs lost {trial_state.input_losses} times"
    ended_ids = [i for i in detail.ids if farm.tasks.holder(i) not in farm.tasks.unfinished]
    gone = [i for i in ended_ids if farm.tasks.finals.get(i) != ""]
    if gone:
        return f"task {gone[0]} cannot be run again for it: {_why_gone(farm, gone[0])}"
    lost = [i for i in ended_ids if farm.graph.remade.get(i, -1.0) < since_s]
    wait_for(farm, task, detail.ids)
    requeue(farm, task, Queued(FOR_TASKS.why), out)
    if lost:
        # The lost tasks are read from the store and come with a later event.  Until then this task waits for them.
        task.waits_for = {*(task.waits_for or ()), *lost}
        for other in lost:
            farm.graph.add_dependent(other, task.id)
        rejoin(farm, task)
        out.loads.append(LoadEnded(lost, LOSES_INPUTS, True))
    for engine_id in detail.engines:
        for each in list(farm.engines.by_id.get(engine_id, ())):
            recycle(farm, each, f"task {task.id} says that its results are lost", now, out)
    return ""


def _why_gone(farm: SchedulerState, task_id: int) -> str:
    holder = farm.tasks.holder(task_id)
    if holder != task_id and holder in farm.tasks.finals:
        others = farm.tasks.chunks.size(holder) - 1
        return f"it is an item of a map that shared its run with {others} others; tc.restart({task_id}) repeats it"
    return "it was cleared, or has failed"


def why_not_again(farm: SchedulerState, record: TaskRecord) -> str:
    """Return why a task that has succeeded cannot run again, or "": a result that it takes was cleared.

    It stays succeeded then: a run without its inputs could only replace its result with a failure.
    """
    for source in record.needs.takes if record.needs is not None else ():
        if farm.tasks.holder(source) not in farm.tasks.unfinished and not farm.tasks.has_ended(source):
            return f"it takes the result of task {source}, which was cleared"
    return ""


def to_run_again(farm: SchedulerState, records: list[TaskRecord], asked: list[int]) -> list[TaskRecord]:
    """Return those of the records that can run again: the asked ones, and what takes a result that is made again."""
    able = [record for record in records if not why_not_again(farm, record)]
    again = {record.id for record in able}.intersection(asked)
    found = -1
    while found != len(again):
        found = len(again)
        again.update(r.id for r in able if r.needs is not None and not again.isdisjoint(r.needs.takes))
    return [record for record in able if record.id in again]


def _end_what_asked(farm: SchedulerState, record: TaskRecord, why: str, now: Now, out: Decision) -> None:
    """Let the tasks fail that have found this result lost, because it cannot be made again."""
    text = f"task {record.id} cannot be run again for it: {why}"
    for task_id in farm.graph.dependents.pop(record.id, []):
        task = farm.tasks.unfinished.get(task_id)
        if task is not None and task.waits_for and record.id in task.waits_for:
            task.waits_for.discard(record.id)
            finish(
                farm, task, final_without_answer(task, None, Reason.ERROR, FailureSummary("InputsLost", text), now), out
            )


def on_ended_loaded(
    farm: SchedulerState, records: list[TaskRecord], asked: list[int], outcome: str, now: Now, out: Decision
) -> list[TaskEntry]:
    """Reopen ended tasks that were read back from the store, and return them."""
    fresh = []
    for record in records:
        if record.id in asked and farm.tasks.finals.get(record.id) == "" and (why := why_not_again(farm, record)):
            _end_what_asked(farm, record, why, now, out)
    for record in to_run_again(farm, records, asked):
        if farm.tasks.finals.get(record.id) == "":
            task = task_of(record)
            if history := task.past.history:
                history[-1] = msgspec.structs.replace(history[-1], outcome=outcome)
            reopen(farm, task, outcome, out)
            farm.tasks.large.note_payload(task.id, record.payload_bytes)
            if record.cache is not None:  # its entry is forgotten, so it runs, and leaves its new result
                farm.cache_uses.add(task.id, record.cache, record.needs is not None and bool(record.needs.inputs))
            fresh.append((task, record.needs))
    again = {task.id for task, _ in fresh}
    for task, needs in fresh:
        task.dependencies = needs
        if needs is not None:
            farm.graph.add_consumer(needs.takes)
            wait_for(farm, task, needs.after)
            if needs.join and not task.waits_for:
                farm.graph.ready_joins.append(task.id)
    _hold_back(farm, again)
    for task, needs in fresh:
        if needs is None or not needs.join:
            rejoin(farm, task, task.place if type(task.place) is Queued else FOR_TASKS)
        client = farm.clients.by_session.get(task.session)
        if client is not None and client.connected:
            out.sends.append((task.session, Reopened([task.id])))
    # Tasks that were cleared in the meantime: those that wait for them are told that they are gone.
    farm.graph.ended.extend(i for i in asked if i not in farm.tasks.unfinished)
    return [task for task, _ in fresh]


def _hold_back(farm: SchedulerState, again: set[int]) -> None:
    """Make tasks wait that use a result which is made again, unless they have begun."""
    if not again:  # thousands of tasks may find the same input lost, and the first of them has reopened it
        return
    for task in farm.tasks.unfinished.values():
        needs = task.dependencies
        if needs is None or task.id in again or type(task.place) is Assigned or again.isdisjoint(needs.after):
            continue
        wait_for(farm, task, again.intersection(needs.after))
        rejoin(farm, task)


def check_graph(farm: SchedulerState) -> None:
    """Check the invariants of the graph between two turns.

    Raises:
        AssertionError: one is broken.
    """
    consumers: dict[int, int] = {}
    for task in farm.tasks.unfinished.values():
        for source in task.dependencies.takes if task.dependencies is not None else ():
            consumers[source] = consumers.get(source, 0) + 1
        for other in task.waits_for or ():
            told = other in farm.tasks.unfinished or farm.tasks.finals.get(other) == "" or other in farm.graph.ended
            assert told, f"task {task.id} waits for {other}, which is gone"
            assert task.id in farm.graph.dependents.get(other, ()), f"task {task.id} waits for {other} and is not told"
        if task.dependencies is not None and task.dependencies.join and not task.waits_for:
            assert task.id in farm.graph.ready_joins, f"join {task.id} was forgotten"
        if task.waits_for:
            assert type(task.place) is Queued, f"task {task.id} was begun before what it waits for"
            assert task.task_class is None, f"task {task.id} is queued before what it waits for"
            assert task.state is State.SCHEDULED
    assert consumers == farm.graph.consumers, (
        f"who takes whose result is miscounted: {farm.graph.consumers} should be {consumers}"
    )
