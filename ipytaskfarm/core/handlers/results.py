"""Engines' answers: runs that ended, runs that came back unrun, and the consequences of an attempt's end
for its task.
"""

from __future__ import annotations

import msgspec

from ..messages import Interrupt, Results, Returned
from ..messages.running_task import ItemsLeft
from ..messages.task_types import AttemptRow, Deferral, Ended, FailureSummary, Final, ItemEnd, ItemsEnded, RunKey
from ..saves import DropHandOut, SaveHandOut
from ..scheduler.decision import Decision, Now
from ..scheduler.eligibility import refresh_class, taking
from ..scheduler.engine_shutdown import end_if_empty
from ..scheduler.entries import EngineEntry, EngineState, TaskEntry
from ..scheduler.graph import inputs_lost
from ..scheduler.placement import begin_oldest, release
from ..scheduler.queue_keys import class_key_of
from ..scheduler.recycling import after_run, count_run
from ..scheduler.running_tasks import RecordedBatch
from ..scheduler.state import SchedulerState
from ..scheduler.task import DEFAULT_RULES, RETRIED, RETURNED, Queued, Rejection
from ..scheduler.task_ends import final_of_answer, row_of
from ..scheduler.transitions import (
    finish,
    note_attempt,
    put_back,
    rejoin as join_again,
    requeue,
    separate,
    unassign,
)
from ..states import ABORTS, CHARGED_AS_ERROR, CONSEQUENCES, DEFERS, FREEZES, LOSES_INPUTS, RECOVERABLE, Reason, Waiting
from . import second_copies
from .clients import grace_of
from .nodes import note_failure, note_successes

AVOID_S = 10.0
"""How long a retry waits for another engine than those on which it has failed."""
_UP = EngineState.UP
"""Access to a member of an enumeration takes long, compared with the code that is run for each task."""
_OUTCOMES = frozenset({"", *(reason.value for reason in Reason)})


def on_results(farm: SchedulerState, session: str, event: Results, now: Now, out: Decision) -> None:
    """Handle attempts that have ended.

    An attempt that is not the current one of its task only frees the engine.
    """
    engine = farm.engines.by_name.get(event.engine)
    if engine is None:
        return
    answered = False
    if farm.agents.failing:
        _note_successes(farm, engine, event)
    for ended in event.ended:
        run = (ended.task, ended.attempt)
        assigned = release(farm, engine, run, out)
        if assigned is None:
            continue
        answered = True
        engine.finished += 1
        if not assigned.batch.unanswered:
            out.saves.append(DropHandOut(assigned.batch.number))
        if assigned.task_class is not None:
            assigned.task_class.durations.add(ended.run_s)
            if assigned.task_class.requirements is not None:
                count_run(engine, assigned)
        if engine.recycling:
            after_run(farm, engine, ended, now, out)
        if ended.frozen is not None:
            farm.frozen.offered[engine.name] = ended.frozen
        task = farm.tasks.unfinished.get(ended.task)
        if task is None:
            continue
        if task.id in farm.second_copies.others and not second_copies.on_end(farm, task, engine, ended, now, out):
            continue
        if not task.is_current(engine.name, run):
            continue
        if isinstance(ended.detail, ItemsEnded) and task.items:
            end_chunk(farm, task, engine, ended, ended.detail, now, out)
        elif ended.outcome == "":
            if task.past.trial_state is not None and task.past.trial_state.again:
                farm.graph.note_remade(task.id, now.mono_s)
            if ended.outdated and farm.cache_uses.keep_nothing(task.id):
                out.notes.append(f"the result of task {task.id} is not kept in the result cache: {ended.outdated}")
            finish(farm, task, final_of_answer(task, engine, ended, now), out)
        else:
            _failed(farm, task, engine, ended, now, out)
    if answered:
        after_answer(farm, engine, now, out)


def end_chunk(
    farm: SchedulerState, chunk: TaskEntry, engine: EngineEntry, ended: Ended, how: ItemsEnded, now: Now, out: Decision
) -> None:
    """End a chunk.  Items of which something is told end, or run again, as tasks of their own; the rest wait again."""
    for told in how.told:
        _end_item(farm, chunk, engine, told, ended.started_s, now, out)
    _put_back_items(farm, chunk, how.done, out)
    own_s = sum(told.run_s for told in how.told)
    silent = msgspec.structs.replace(ended, run_s=max(0.0, ended.run_s - own_s), detail=None)
    finish(farm, chunk, final_of_answer(chunk, engine, silent, now), out)


def on_items_left(farm: SchedulerState, session: str, event: ItemsLeft, now: Now, out: Decision) -> None:
    """Let a chunk's run go on with one item alone: those before it have ended, those behind it wait again."""
    engine = farm.engines.by_name.get(event.engine)
    chunk = farm.tasks.unfinished.get(event.run[0])
    if engine is None or chunk is None or not chunk.items or not chunk.is_current(engine.name, event.run):
        return
    for told in event.told:
        if told.index < event.done:
            _end_item(farm, chunk, engine, told, max(0.0, now.wall_s - told.run_s), now, out)
    _put_back_items(farm, chunk, event.done + 1, out)
    if event.done in farm.tasks.chunks.separate.get(chunk.id, ()):  # it was aborted or marked, and runs all the same
        grace_s = grace_of(farm, chunk)
        out.sends.append((engine.agent, Interrupt(engine.name, event.run, grace_s, (event.done,))))


def _end_item(
    farm: SchedulerState, chunk: TaskEntry, engine: EngineEntry, told: ItemEnd, started_s: float, now: Now,
    out: Decision,
) -> None:  # fmt: skip
    """Let an item that was called end, or run again, as a task of its own."""
    task = _separate_item(farm, chunk, told.index, out, begun=True)
    if task is None:
        return
    of_item = Ended(
        task.id, task.attempt, told.outcome, started_s, told.run_s, told.failure, told.body, detail=told.detail
    )
    if told.outcome == "":
        finish(farm, task, final_of_answer(task, engine, of_item, now), out)
    elif told.outcome == Reason.ABORTED:  # another item was to be aborted, and this one ran
        requeue(farm, task, RETURNED, out)
    else:
        _failed(farm, task, engine, of_item, now, out)


def _put_back_items(farm: SchedulerState, chunk: TaskEntry, first: int, out: Decision) -> None:
    """Let the items from this index on wait again, as tasks of their own."""
    for index in range(max(0, first), chunk.items):
        task = _separate_item(farm, chunk, index, out)
        if task is not None:
            put_back(farm, task)


def _separate_item(
    farm: SchedulerState, chunk: TaskEntry, index: int, out: Decision, begun: bool = False
) -> TaskEntry | None:
    """Make an item a task of its own.  None: it is one already, as it was aborted or marked meanwhile, or is none."""
    known = farm.tasks.chunks.separate.get(chunk.id, ())
    return separate(farm, chunk, index, out, begun) if 0 <= index < chunk.items and index not in known else None


def _note_successes(farm: SchedulerState, engine: EngineEntry, event: Results) -> None:
    """Record which tasks have succeeded, while everything fails under some agent."""
    found = [engine.assigned.get((ended.task, ended.attempt)) for ended in event.ended if ended.outcome == ""]
    keys = {assigned.task_class.key for assigned in found if assigned is not None and assigned.task_class is not None}
    if keys:
        note_successes(farm, engine.agent, keys)


def after_answer(farm: SchedulerState, engine: EngineEntry, now: Now, out: Decision) -> None:
    """Look for work for an engine that has fewer runs than before, or end it."""
    begin_oldest(farm, engine, now)
    if engine.state == _UP:
        farm.readiness.wake(engine)
    if engine.retiring:
        end_if_empty(farm, engine, out)


def _failed(farm: SchedulerState, task: TaskEntry, engine: EngineEntry, ended: Ended, now: Now, out: Decision) -> None:
    if ended.outcome == DEFERS:
        _deferred(farm, task, engine, ended, now, out)
        return
    if ended.outcome == LOSES_INPUTS:
        row = row_of(engine, ended)
        why_not = inputs_lost(farm, task, engine, ended, now, out)
        if not why_not:
            note_attempt(farm, task, row, out)
            return
        failure = FailureSummary("InputsLost", f"{ended.failure.value if ended.failure else 'inputs lost'}; {why_not}")
        ended = Ended(ended.task, ended.attempt, Reason.ERROR, ended.started_s, ended.run_s, failure)
    if ended.outcome not in _OUTCOMES or ended.outcome in ABORTS | CONSEQUENCES:
        # A task may raise TaskCancelled itself; for the farm that is an ordinary error.
        ended = Ended(ended.task, ended.attempt, Reason.ERROR, ended.started_s, ended.run_s, ended.failure, ended.body)
    if ended.outcome == Reason.REJECTED:
        _rejected(farm, task, engine, ended, now, out)
        return
    if task.rules is not None and task.rules.freeze:
        _note_unfrozen(farm, task, engine, ended)
    if farm.settings.failure_penalty_s:
        engine.withheld_until_s = now.mono_s + farm.settings.failure_penalty_s
        farm.timers.set(engine.withheld_until_s, "wake", engine.name)
    if ended.outcome in CHARGED_AS_ERROR and task.retries_left > 0 and is_retried_on(task, ended.failure):
        past = task.own_past()
        past.errors += 1
        past.avoid = (past.avoid or frozenset()) | {engine.name}
        past.suspect = False
        note_attempt(farm, task, row_of(engine, ended), out)
        why = after_delay(task, now)
        requeue(farm, task, why, out)
        farm.timers.set((why.until_s or now.mono_s) + AVOID_S, "avoid", task.id)
    else:
        end_or_recover(farm, task, final_of_answer(task, engine, ended, now), row_of(engine, ended), out)
    note_failure(farm, engine.agent, task, "error", now, out)


def stop_avoiding(farm: SchedulerState, task_id: int) -> None:
    """Let a retry run where it has failed, because no other engine has begun it for a while: the others are busy."""
    task = farm.tasks.unfinished.get(task_id)
    if task is not None and task.past.avoid and type(task.place) is Queued:
        task.own_past().avoid = None
        if task.task_class is not None:
            join_again(farm, task, task.place)


def _note_unfrozen(farm: SchedulerState, task: TaskEntry, engine: EngineEntry, ended: Ended) -> None:
    """Note why the engine of a failed attempt has not frozen itself, although the task asks for it."""
    offered = farm.frozen.offered.get(engine.name)
    if (offered is not None and offered.task == task.id) or farm.frozen.of_task(task.id) is not None:
        return
    if ended.outcome not in FREEZES:
        why = f"a failure of the kind {ended.outcome!r} leaves no frames"
    elif not farm.frozen.has_room(engine.node, farm.settings):
        why = farm.frozen.full(engine.node, farm.settings)
    elif ended.failure is None or not ended.failure.place:
        why = "the error came from outside of your code, which has no frames in it"
    else:
        why = "when it began, its node had as many frozen engines as it may have (`--frozen-engines`)"
    farm.frozen.note_missed(task.id, ended.attempt, engine.node, why)


def is_retried_on(task: TaskEntry, failure: FailureSummary | None) -> bool:
    """Return whether a task is run again after this failure."""
    wanted = (task.rules or DEFAULT_RULES).retry_on
    if not wanted or failure is None:
        return not wanted
    return not {*failure.kinds, f"ipytaskfarm.core.errors.{failure.etype}"}.isdisjoint(wanted)


def after_delay(task: TaskEntry, now: Now) -> Queued:
    """Return where a task waits for its run after an error."""
    delays_s = (task.rules or DEFAULT_RULES).retry_delays_s
    delay_s = delays_s[min(max(task.past.errors, 1), len(delays_s)) - 1] if delays_s else 0.0
    return Queued(Waiting.RETRY, now.mono_s + delay_s, now.wall_s + delay_s) if delay_s else RETRIED


def _deferred(
    farm: SchedulerState, task: TaskEntry, engine: EngineEntry, ended: Ended, now: Now, out: Decision
) -> None:
    """Run a deferred task again later, uncharged, or end it if its first trial began too long ago."""
    detail = ended.detail if isinstance(ended.detail, Deferral) else Deferral()
    rules = task.rules or DEFAULT_RULES
    trial_state = task.own_trial_state()
    if trial_state.began_s is None:
        trial_state.began_s = ended.started_s
        trial_state.deferred_since_s = now.mono_s - ended.run_s
    elif trial_state.deferred_since_s is None:
        trial_state.deferred_since_s = now.mono_s - max(0.0, now.wall_s - trial_state.began_s)
    assert trial_state.deferred_since_s is not None
    delay_s = rules.defer_s if detail.after_s is None else detail.after_s
    if now.mono_s + delay_s - trial_state.deferred_since_s > rules.defer_max_s:
        trial, message = trial_state.trial, f": {detail.message}" if detail.message else ""
        text = f"task {task.id} was deferred at trial {trial}, {rules.defer_max_s:g} s after its first{message}"
        last = Ended(
            ended.task, ended.attempt, Reason.DEFERRED, ended.started_s, ended.run_s,
            FailureSummary("DeferredTooLong", text), ended.body,
        )  # fmt: skip
        finish(farm, task, final_of_answer(task, engine, last, now), out)
        return
    trial_state.trial += 1
    trial_state.received = detail.received
    task.own_past().suspect = False
    note_attempt(farm, task, row_of(engine, ended), out)
    why = Queued(Waiting.DEFERRED, now.mono_s + delay_s, now.wall_s + delay_s)
    requeue(farm, task, why, out, state=detail.state)


def end_or_recover(farm: SchedulerState, task: TaskEntry, final: Final, row: AttemptRow, out: Decision) -> None:
    """Start the task's recovery task under the same id, or fail the task."""
    recovery = task.next_recovery
    if recovery is not None and final.reason in RECOVERABLE:
        note_attempt(farm, task, row, out)
        requeue(farm, task, RETRIED, out, recovery)
        return
    finish(farm, task, final, out)


def _rejected(
    farm: SchedulerState, task: TaskEntry, engine: EngineEntry, ended: Ended, now: Now, out: Decision
) -> None:
    """Requeue a task that rejected an engine, uncharged, or fail it if it rejected every engine often enough."""
    past = task.own_past()
    rejections = past.rejections = past.rejections or {}
    earlier = rejections.get(engine.name)
    until_s = now.mono_s + farm.settings.reject_again_s
    rejections[engine.name] = Rejection(earlier.count + 1 if earlier else 1, until_s, engine.version)
    present = [e.name for e in taking(farm, class_key_of(task, farm.queues.by_time_limit))]
    worn_out = farm.settings.max_rejections
    if present and all(name in rejections and rejections[name].count >= worn_out for name in present):
        text = f"the task has rejected each engine that may run it {worn_out} times"
        value = f"{text}: {ended.failure.value}" if ended.failure and ended.failure.value else text
        last = Ended(
            ended.task, ended.attempt, Reason.REJECTED, ended.started_s, ended.run_s,
            FailureSummary("TaskRejectError", value), ended.body,
        )  # fmt: skip
        finish(farm, task, final_of_answer(task, engine, last, now), out)
        return
    requeue(farm, task, Queued(Waiting.REJECTED), out)
    farm.timers.set(until_s, "reject", (task.id, engine.name))


def on_returned(farm: SchedulerState, session: str, event: Returned, now: Now, out: Decision) -> None:
    """Put runs that came back unrun at their old places in their queues, uncharged."""
    engine = farm.engines.by_name.get(event.engine)
    if engine is None:
        return
    for _, task in release_runs(farm, engine, event.runs, out):
        unassign(farm, task, RETURNED)
    after_answer(farm, engine, now, out)


def release_runs(
    farm: SchedulerState, engine: EngineEntry, runs: list[RunKey], out: Decision
) -> list[tuple[RunKey, TaskEntry]]:
    """Remove runs from an engine that will not answer them. Return those that are current, with their tasks.

    The rest of their batches is saved, so that the store does not say that the engine still has them.
    """
    current: list[tuple[RunKey, TaskEntry]] = []
    batches: dict[int, RecordedBatch] = {}
    for run in runs:
        assigned = release(farm, engine, run, out)
        if assigned is None:
            continue
        batches[assigned.batch.number] = assigned.batch
        assigned.batch.withdraw(run)
        task = farm.tasks.unfinished.get(run[0])
        if task is not None and second_copies.leave(farm, task, engine, run):
            continue
        if task is not None and task.is_current(engine.name, run):
            current.append((run, task))
    for batch in batches.values():
        if batch.unanswered:
            out.saves.append(SaveHandOut(batch.number, engine.name, engine.id, batch.sent, batch.at_s))
        else:
            out.saves.append(DropHandOut(batch.number))
    return current


def lift_rejection(farm: SchedulerState, task_id: int, engine: str) -> None:
    """Allow a task to try an engine again that it had rejected."""
    task = farm.tasks.unfinished.get(task_id)
    rejections = task.past.rejections if task is not None else None
    if task is None or not rejections or engine not in rejections:
        return
    rejections[engine].until_s = 0.0
    if task.task_class is not None:
        refresh_class(farm, task.task_class)


def rejoin(farm: SchedulerState, task_id: int, now: Now) -> None:
    """Put a delayed task back to its queue."""
    task = farm.tasks.unfinished.get(task_id)
    place = task.place if task is not None else None
    if task is not None and type(place) is Queued and place.until_s is not None and place.until_s <= now.mono_s:
        join_again(farm, task)
