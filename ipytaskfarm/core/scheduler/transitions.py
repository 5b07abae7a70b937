"""The only place that moves a task.

Each function makes one kind of move, checks it against `states.MOVES`, keeps the counts, and adds the save that makes
the move permanent. Handlers decide *that* a task moves. Nothing else changes `TaskEntry.place` or the dictionaries of
`state.TaskRegistry`.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from ..limits import PAYLOAD_BYTES
from ..messages.task_types import AttemptRow, Final, Needs, Recovery, Rules, Submission
from ..saves import SaveAttempt, SaveFinal, SaveReopen, SaveRequeue, SaveTask
from ..states import CONSEQUENCES, MOVES, State, Waiting
from .agent_entry import Charge
from .decision import Decision, Now
from .dependencies import FirstFailure
from .eligibility import announce, class_for
from .entries import EngineEntry, TaskClass, TaskEntry
from .nested_waits import note_task_end
from .queue import KnownRules
from .queue_keys import class_key_of, compute_key, compute_keys
from .state import SchedulerState
from .task import (
    FOR_CACHE,
    FOR_TASKS,
    NO_PAST,
    PAUSED,
    QUEUED,
    RETRIED,
    RETURNED,
    Assigned,
    Place,
    Queued,
    TaskPast,
    TrialState,
    job_of,
    recovery_rules,
)
from .task_ends import tell, tell_watchers
from .task_messages import close
from .waits import count_dependencies

_SCHEDULED, _PENDING, _SUCCEEDED, _FAILED = State
"""Access to a member of an enumeration takes long, compared with the code that is run for each task."""


class IllegalMove(AssertionError):
    """A task would make a move that is not in `MOVES`: a bug of ours, and the controller starts again."""


def _count(farm: SchedulerState, task_id: int, before: State | None, after: State) -> None:
    if before is after:
        return
    if (before, after) not in MOVES:
        raise IllegalMove(f"task {task_id}: no move from {before} to {after}")
    if task_id in farm.tasks.chunks.items:
        if before is not None:
            _add_to_count(farm, task_id, before, -1)
        _add_to_count(farm, task_id, after, 1)
        return
    if before is not None:
        farm.tasks.counts[before] -= 1
    farm.tasks.counts[after] += 1


def _add_to_count(farm: SchedulerState, task_id: int, state: State, sign: int) -> None:
    """Count the silent items of a chunk that is in this state, or (sign -1) do not count them any more."""
    size = farm.tasks.chunks.size(task_id)
    if state is _PENDING:
        farm.tasks.counts[_PENDING] += sign * min(1, size)
        farm.tasks.counts[_SCHEDULED] += sign * (size - min(1, size))
    else:
        farm.tasks.counts[state] += sign * size


def _place(farm: SchedulerState, task: TaskEntry, place: Place) -> None:
    before = task.state
    task.place = place
    _count(farm, task.id, before, task.state)


def _enqueue(farm: SchedulerState, task: TaskEntry, why: Queued) -> None:
    """Put a task that no engine has where it waits: for tasks, until a time, until its job goes on, or in its queue."""
    if task.waits_for:
        why = FOR_TASKS
    elif why.until_s is not None:
        farm.timers.set(why.until_s, "rejoin", task.id)
    elif farm.cache_uses.keys and farm.cache_uses.holds(task.id):
        why = FOR_CACHE
    elif task.job in farm.jobs.paused:
        why = PAUSED
        farm.cache_uses.give_way(task.id)
    else:
        if type(task.place) is Queued:
            task.place = why  # scheduled before and after: nothing to count
        else:
            _place(farm, task, why)
        _join_queue(farm, task)
        if task.rules is not None:
            _note_functions(farm, task.rules, task.session)
        return
    _place(farm, task, why)


def _note_functions(farm: SchedulerState, rules: Rules, session: str) -> None:
    """Ask for the verdicts of a task's functions at the end of the turn.

    Engines may have come while no task waited that needed these verdicts."""
    if rules.depend is not None:
        farm.functions.undecided[rules.depend, False] = session
    if rules.asks is not None and rules.asks.locality is not None:
        farm.functions.undecided[rules.asks.locality, True] = session


def _join_queue(farm: SchedulerState, task: TaskEntry, known: KnownRules | None = None) -> None:
    queues = farm.queues
    task_class = (known.task_class if known is not None else None) or _class_of(farm, task)
    if known is not None:
        known.task_class = task_class
    if task_class.push(task):
        announce(farm, task_class, (task.key, task.queue_seq))
    queues.size += 1
    if not task_class.restricted:
        queues.open_size += 1


def _class_of(farm: SchedulerState, task: TaskEntry) -> TaskClass:
    """Return the class of a task.

    That of a fresh task with the same rules as an earlier one is known: a key takes long to make and to hash."""
    rules, queues = task.rules, farm.queues
    if task.past is not NO_PAST:
        return class_for(farm, class_key_of(task, queues.by_time_limit))
    known = queues.of_rules.get(id(rules))
    if known is not None and known[0] is rules:
        return known[1]
    task_class = class_for(farm, class_key_of(task, queues.by_time_limit))
    queues.note_class(rules, task_class)
    return task_class


def has_limited_class(farm: SchedulerState, task: TaskEntry) -> bool:
    """Return whether a waiting task is in a class of its time limit, if it has to be."""
    rules, task_class = task.rules, task.task_class
    if rules is None or rules.time_limit_s is None or not farm.queues.by_time_limit:
        return True
    return task_class is None or task_class.key.limit_s is not None


def leave_queue(farm: SchedulerState, task: TaskEntry) -> None:
    """Take a waiting task out of its class, if it is in one."""
    task_class = task.task_class
    if task_class is not None:
        task_class.leave(task)
        farm.queues.size -= 1
        farm.queues.open_size -= not task_class.restricted


def _move_to_the_end(farm: SchedulerState, task: TaskEntry) -> None:
    """Give a task the last place among those that are as urgent."""
    task.queue_seq = farm.queues.next_seq
    farm.queues.next_seq += 1
    compute_key(farm, task)


def _count_use(farm: SchedulerState, task: TaskEntry) -> None:
    """Count a task among those that need its environment, when it is accepted or becomes another link of its chain."""
    requirements = task.rules.asks if task.rules is not None else None
    if requirements is None or requirements.environment is None:
        return
    use = farm.environments.use_of(requirements.environment)
    use.unfinished += 1
    if requirements.environment.unique is not None:
        farm.environments.by_unique_id.setdefault(requirements.environment.unique, requirements.environment.identity)
    task.environment = requirements.environment.identity


def _end_use(farm: SchedulerState, task: TaskEntry) -> None:
    """Count a task no longer among those that need its environment."""
    use = farm.environments.uses.get(task.environment or "")
    if use is None or task.environment is None:
        return
    use.unfinished -= 1
    if not use.referenced:
        farm.environments.perhaps_unused[task.environment] = None
    task.environment = None


def _count_in_job(farm: SchedulerState, task: TaskEntry) -> None:
    job = farm.jobs.by_id.get(task.job or "")
    if job is None:
        return
    job.unfinished += farm.tasks.chunks.size(task.id) if task.items else 1
    farm.followers.note_job(job.spec.id)
    if job.spec.abort_on_failure or job.spec.abort_on_disconnect:
        job.tasks[task.id] = None
        if job.failed:  # the task came after the job had failed
            farm.jobs.to_abort[job.spec.id] = None
    if task.environment is not None and task.environment not in job.environments:
        job.environments.add(task.environment)
        if not job.ended:
            farm.environments.uses[task.environment].jobs.add(job.spec.id)


def _end_in_job(farm: SchedulerState, task: TaskEntry, final: Final) -> None:
    job = farm.jobs.by_id.get(task.job or "")
    if job is None:
        return
    job.unfinished -= farm.tasks.chunks.size(task.id) if task.items else 1
    farm.followers.note_job(job.spec.id)
    job.tasks.pop(task.id, None)
    if job.spec.abort_on_failure and final.reason and not job.failed and final.reason not in CONSEQUENCES:
        why = FirstFailure(task.id, final.failure).because(task.id) if final.failure is not None else ""
        job.failed = f"task {task.id} of its job failed ({final.reason}){why}"
        farm.jobs.to_abort[job.spec.id] = None
    if job.complete:
        farm.jobs.perhaps_ended[job.spec.id] = None


def accept(
    farm: SchedulerState,
    submission: Submission,
    session: str,
    rules: Rules | None,
    out: Decision,
    parent: int | None = None,
    spawn: str | None = None,
    needs: Needs | None = None,
    known: KnownRules | None = None,
) -> TaskEntry:
    """Make the move None -> scheduled.

    rules, needs, known: the submission's, or equal ones; parent, spawn: see `saves.SaveTask`."""
    tasks, seq = farm.tasks, farm.queues.next_seq
    farm.queues.next_seq = seq + 1
    if rules is not None and farm.jobs.priorities:
        rules, known = farm.jobs.rules_of(rules), None
    job = rules.job if rules is not None else None
    task = TaskEntry(submission.id, seq, submission.submitted_s, session, submission.function, rules, job, NO_PAST)
    compute_key(farm, task)
    tasks.unfinished[task.id] = task
    tasks.order.add(task.id)
    if len(submission.payload) >= PAYLOAD_BYTES:
        tasks.large.note_payload(task.id, len(submission.payload))
    if submission.items:
        task.items = submission.items
        tasks.chunks.add(task.id, task.items)
        tasks.order.add_items(task.items)
        tasks.counts[_SCHEDULED] += task.items
    else:
        tasks.counts[_SCHEDULED] += 1
        if submission.part is not None:
            task.part = submission.part
            tasks.chunks.add_part(task.part[0])
    if rules is not None and (rules.asks or job is not None or rules.unique is not None or rules.idempotent):
        _note_rules(farm, task)
    needs = needs or submission.needs
    out.saves.append(
        SaveTask(
            task.id, seq, submission.payload, task.submitted_s, task.function, rules, session, submission.blobs,
            needs, parent, spawn, task.items, task.part, submission.cache,
        )
    )  # fmt: skip
    task.parent = parent
    if needs is not None:
        count_dependencies(farm, task, needs)
    if submission.cache is not None and not submission.items and not (needs is not None and needs.join):
        farm.cache_uses.add(task.id, submission.cache, needs is not None and bool(needs.inputs))
        _enqueue(farm, task, QUEUED)
    elif needs is None and not farm.jobs.paused:
        _join_queue(farm, task, known)
    elif needs is None or not (needs.join or task.waits_for):
        _enqueue(farm, task, QUEUED)
    else:
        task.place = FOR_TASKS
    return task


def _note_rules(farm: SchedulerState, task: TaskEntry) -> None:
    rules = task.rules
    if rules is not None and rules.asks is not None:
        _count_use(farm, task)
    if task.job is not None:
        _count_in_job(farm, task)
    if rules is None:
        return
    if rules.unique is not None:
        farm.tasks.unique.setdefault(rules.unique, task.id)
    if rules.idempotent:
        farm.second_copies.add(task)


def separate(farm: SchedulerState, chunk: TaskEntry, index: int, out: Decision, begun: bool = False) -> TaskEntry:
    """Make a silent item of an unfinished chunk a task of its own.  The caller lets the task end, or wait.

    begun: the item has been called in the chunk's present run."""
    tasks = farm.tasks
    _add_to_count(farm, chunk.id, chunk.state, -1)
    tasks.chunks.separate.setdefault(chunk.id, set()).add(index)
    _add_to_count(farm, chunk.id, chunk.state, 1)
    task_id = chunk.id + 1 + index
    rules = chunk.rules
    task = TaskEntry(
        task_id, chunk.queue_seq, chunk.submitted_s, chunk.session, chunk.function, rules, job_of(rules), NO_PAST,
        key=chunk.key,
    )  # fmt: skip
    task.part = chunk.id, index
    tasks.chunks.add_part(chunk.id)
    tasks.unfinished[task_id] = task
    if begun:
        task.attempt, task.place = chunk.attempt, chunk.place
    tasks.counts[task.state] += 1
    if task.rules is not None:
        _count_use(farm, task)
        job = farm.jobs.by_id.get(task.job or "")
        if job is not None:
            job.unfinished -= 1  # the chunk's share
        _count_in_job(farm, task)
    needs = chunk.dependencies
    if needs is not None and needs.inputs:
        task.dependencies = needs
        farm.graph.add_consumer(needs.takes)
    out.saves.append(
        SaveTask(
            task_id, task.queue_seq, b"", task.submitted_s, task.function, task.rules, task.session, (),
            task.dependencies, None, None, 0, task.part,
        )
    )  # fmt: skip
    return task


def change_place(farm: SchedulerState, task: TaskEntry, place: Assigned) -> None:
    """Let another run of a task decide, which has begun already."""
    _place(farm, task, place)


def put_back(farm: SchedulerState, task: TaskEntry) -> None:
    """Let a separate item wait in its chunk's old place in the queue."""
    _enqueue(farm, task, RETURNED)


def restore(farm: SchedulerState, task: TaskEntry, why: Queued) -> None:
    """Add a task from the store to the waiting ones, without a save.

    It is among the unfinished ones already, and what it waits for was counted before."""
    compute_key(farm, task)
    farm.tasks.counts[_SCHEDULED] += farm.tasks.chunks.size(task.id) if task.items else 1
    _note_rules(farm, task)
    if task.dependencies is None and why is QUEUED and not farm.cache_uses.keys and not farm.jobs.paused:
        _join_queue(farm, task)
        if task.rules is not None:
            _note_functions(farm, task.rules, task.session)
    elif task.dependencies is not None and task.dependencies.join:
        task.place = FOR_TASKS
    else:
        _enqueue(farm, task, why)


def restore_line(farm: SchedulerState, tasks: list[TaskEntry]) -> None:
    """Do as `restore` for fresh tasks with the same rules, which ask for nothing, in the order of their turns.

    A million tasks wait in such lines: calls per task would take seconds."""
    compute_keys(farm, tasks)
    task_class = _class_of(farm, tasks[0])
    farm.tasks.counts[_SCHEDULED] += len(tasks)
    if task_class.push_line(tasks):
        announce(farm, task_class)
    farm.queues.size += len(tasks)
    farm.queues.open_size += 0 if task_class.restricted else len(tasks)


def rejoin(farm: SchedulerState, task: TaskEntry, why: Queued = QUEUED) -> None:
    """Put a task where it waits now: its wait outside the queue is over, or has begun."""
    leave_queue(farm, task)
    _enqueue(farm, task, why)


def reopen(farm: SchedulerState, task: TaskEntry, outcome: str, out: Decision) -> None:
    """Make the move succeeded -> scheduled.

    The task was read from the store.  What it waits for is counted later, by `graph.on_ended_loaded`."""
    out.cache_mistakes.append(task.id)
    del farm.tasks.finals[task.id]
    farm.tasks.of_parts.pop(task.id, None)
    farm.tasks.unfinished[task.id] = task
    _count(farm, task.id, _SUCCEEDED, _SCHEDULED)
    _note_rules(farm, task)
    _move_to_the_end(farm, task)
    out.saves.append(
        SaveReopen(
            task.id, outcome, task.queue_seq, task.attempt, task.past.errors, task.past.losses, task.past.recovery
        )
    )
    task.place = Queued(Waiting.REOPENED)
    trial_state = task.own_trial_state()
    trial_state.again = True
    trial_state.began_s = None  # its time to be deferred begins anew


def assign(farm: SchedulerState, task: TaskEntry, engine: EngineEntry, running: bool, now: Now) -> None:
    """Make the move scheduled -> assigned to an engine.

    The task has been popped from its class.  The caller records the batch."""
    task.attempt += 1
    if running:
        task.place = Assigned(engine.name, task.attempt, now.mono_s, now.wall_s)
        if task.items:
            _count(farm, task.id, _SCHEDULED, _PENDING)
        else:
            counts = farm.tasks.counts
            counts[_SCHEDULED] -= 1
            counts[_PENDING] += 1
        if task.rules is not None and task.rules.warn_after_s is not None:
            _watch(farm, task, task.rules.warn_after_s, now)
    else:
        task.place = Assigned(engine.name, task.attempt)  # scheduled before and after: nothing to count
    farm.queues.last_key = task.key
    client = farm.clients.by_session.get(task.session)
    if client is not None:
        client.started += 1


def restore_assignment(farm: SchedulerState, task: TaskEntry, engine: EngineEntry, attempt: int) -> None:
    """Assign a task as it was in the controller's life before, according to the store."""
    farm.cache_uses.note_running(task.id)
    leave_queue(farm, task)
    task.waits_for = None  # it was begun, so what it waited for had ended
    task.attempt = attempt
    _place(farm, task, Assigned(engine.name, attempt))


def begin(farm: SchedulerState, task: TaskEntry, now: Now) -> None:
    """Make the move sent ahead -> running: the run has become the oldest one that its engine holds."""
    place = task.place
    if type(place) is not Assigned:
        raise IllegalMove(f"task {task.id} begins without an engine")
    if place.since_s is None:
        _place(farm, task, Assigned(place.engine, place.attempt, now.mono_s, now.wall_s))
        if task.rules is not None and task.rules.warn_after_s is not None:
            _watch(farm, task, task.rules.warn_after_s, now)


def _watch(farm: SchedulerState, task: TaskEntry, warn_after_s: float, now: Now) -> None:
    """Set the timer of `warn_after` for a run that has begun."""
    farm.timers.set(now.mono_s + warn_after_s, "late", (task.id, task.attempt))
    farm.timers.clean("late", lambda data: farm.tasks.in_run(*data) is not None)


def unassign(farm: SchedulerState, task: TaskEntry, why: Queued) -> None:
    """Make the move assigned -> scheduled for a run that never began.

    The task keeps its old place in the queue.  The engine has said that it will not run it, so the number of the
    attempt is free again."""
    farm.second_copies.stop_other(task.id)
    if type(task.place) is Assigned and task.place.attempt == task.attempt:
        task.attempt -= 1  # otherwise a second copy had a later number
    _enqueue(farm, task, why)


def requeue(
    farm: SchedulerState,
    task: TaskEntry,
    why: Queued,
    out: Decision,
    recovery: Recovery | None = None,
    state: bytes | None = None,
) -> None:
    """Make the move assigned -> scheduled, to the end of the queue, and record the used part of the task's budget.

    Args:
        recovery: the next recovery task, which takes over under the same id.
        state: the state that a deferred run leaves for the next one.
    """
    farm.second_copies.stop_other(task.id)
    if recovery is not None:
        before = task.past
        again = before.trial_state is not None and before.trial_state.again
        first_trial = TrialState(again=True) if again else None  # of the recovery task, which has trials of its own
        task.past = TaskPast(recovery=before.recovery + 1, history=before.history, trial_state=first_trial)
        _end_use(farm, task)
        farm.second_copies.end(task.id, None)  # the recovery task may not run twice because the first one might
        task.rules = recovery_rules(task.rules, recovery)
        task.function = recovery.function
        _count_use(farm, task)
        if task.rules is not None and task.rules.idempotent:
            farm.second_copies.add(task)
    _move_to_the_end(farm, task)
    farm.conversations.progress.pop(task.id, None)
    out.saves.append(_requeued(task, task.attempt, why, recovery, state))
    _enqueue(farm, task, why)


def _requeued(
    task: TaskEntry, attempt: int, why: Queued, recovery: Recovery | None = None, state: bytes | None = None
) -> SaveRequeue:
    past = task.past
    trial_state = past.trial_state or _FIRST_TRIAL
    return SaveRequeue(
        task.id, task.queue_seq, attempt, past.errors, past.losses, past.recovery,
        recovery.payload if recovery else None, recovery.function if recovery else None,
        why.until_wall_s, trial_state.trial, trial_state.began_s, state, trial_state.received,
    )  # fmt: skip


_FIRST_TRIAL = TrialState()


def refund(task: TaskEntry, charge: Charge, out: Decision) -> None:
    """Give back to an unfinished task what an attempt has cost it.  The task stays where it is."""
    past = task.own_past()
    if charge != "loss":
        past.errors = max(0, past.errors - 1)
    if charge != "error":
        past.losses = max(0, past.losses - 1)
    # The row of an assigned task says what it did when it was queued: its present run is in the row of the batch.
    attempt = task.attempt - (type(task.place) is Assigned)
    out.saves.append(_requeued(task, attempt, task.place if type(task.place) is Queued else RETRIED))


def note_attempt(farm: SchedulerState, task: TaskEntry, row: AttemptRow, out: Decision) -> None:
    """Add a row to a task's history."""
    past = task.own_past()
    past.history = past.history or []
    past.history.append(row)
    out.saves.append(SaveAttempt(task.id, row))
    farm.followers.note_attempt(row, task, farm.tasks.chunks.size(task.id))


def finish(farm: SchedulerState, task: TaskEntry, final: Final, out: Decision) -> None:
    """Make the move to succeeded or failed; the client and the watchers are told at the end of the turn."""
    tasks, talks = farm.tasks, farm.conversations
    if task.items and task.id in tasks.chunks.separate:
        final = msgspec.structs.replace(final, separate=tuple(sorted(tasks.chunks.separate[task.id])))
    _count(farm, task.id, task.state, _FAILED if final.reason else _SUCCEEDED)
    if type(task.place) is Queued:
        leave_queue(farm, task)
    del tasks.unfinished[task.id]
    if tasks.large.payloads or tasks.large.tasks:
        tasks.large.release(task.id)
    tasks.finals[task.id] = final.reason
    if task.part is not None:
        tasks.of_parts[task.id] = task.part[0]
    if task.environment is not None:
        _end_use(farm, task)
    if task.job is not None:
        _end_in_job(farm, task, final)
    if task.dependencies is not None:
        if task.dependencies.inputs:
            farm.graph.remove_consumer(task.dependencies.takes)
        if task.dependencies.keep:
            tasks.kept.add(task.id)
    if farm.graph.dependents and task.id in farm.graph.dependents:
        farm.graph.note_end(final)
    if task.rules is not None and task.rules.idempotent:
        farm.second_copies.end(task.id, None if final.reason or not final.attempts else final.run_s)
        farm.second_copies.stop_other(task.id)
    if farm.cache_uses.keys and task.id in farm.cache_uses.keys:
        farm.cache_uses.ended.append((final, not task.past.recovery))
    if farm.nested_waits.by_task or talks.mailboxes or talks.progress or talks.families:
        _forget_conversations(farm, task, out)
    if tasks.unique and task.rules is not None and tasks.unique.get(task.rules.unique or "") == task.id:
        del tasks.unique[task.rules.unique or ""]
    out.saves.append(SaveFinal(final))
    tell(farm, task.session, final)
    if farm.followers.sessions:
        farm.followers.note_end(final, task, tasks.chunks.size(task.id))
    if farm.clients.watchers:
        tell_watchers(farm, task, final)


def _forget_conversations(farm: SchedulerState, task: TaskEntry, out: Decision) -> None:
    """Close the records that are kept only while a task is unfinished: its mailbox, progress and children."""
    note_task_end(farm, task.id)
    close(farm, task.id, out)
    farm.conversations.progress.pop(task.id, None)
    farm.conversations.families.pop(task.id, None)


def forget(farm: SchedulerState, task_id: int) -> None:
    """Forget an ended task that was cleared.  The caller forgets a chunk among the chunks."""
    reason = farm.tasks.finals.pop(task_id)
    farm.followers.stale = True
    farm.tasks.kept.discard(task_id)
    farm.tasks.counts[_FAILED if reason else _SUCCEEDED] -= farm.tasks.chunks.size(task_id)
    chunk = farm.tasks.of_parts.pop(task_id, None)
    if chunk is not None:
        farm.tasks.chunks.remove_part(chunk)


def forget_items(farm: SchedulerState, chunk: int, indexes: Iterable[int]) -> None:
    """Forget silent items of an ended chunk that were cleared."""
    state = _FAILED if farm.tasks.finals[chunk] else _SUCCEEDED
    separate = farm.tasks.chunks.separate.setdefault(chunk, set())
    before = len(separate)
    separate.update(indexes)
    farm.tasks.counts[state] -= len(separate) - before
