"""Clients that come and go, and their questions about tasks: watch, fetch, abort, clear, retry."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice

import msgspec

from .. import messages as m
from ..limits import COUNTS
from ..messages.pages import ROWS_MAX, RetriedTasks
from ..messages.task_types import FailureSummary, Final, Needs, Rules, RunKey, Submission
from ..saves import SaveClear, SaveSeparate, SaveSetting
from ..scheduler import task_messages
from ..scheduler.clients import ClientEntry
from ..scheduler.decision import Decision, LoadFinals, LoadOriginals, LookForJobs, Now
from ..scheduler.engine_shutdown import recall
from ..scheduler.entries import TaskEntry
from ..scheduler.events import Gone, Joined, Originals
from ..scheduler.id_pages import ended_after
from ..scheduler.state import SchedulerState
from ..scheduler.task import DEFAULT_RULES, Assigned
from ..scheduler.task_ends import final_without_answer, tell_watching
from ..scheduler.transitions import accept, finish, forget, forget_items, separate
from ..states import ABORTS, Reason, State
from .jobs import client_is_gone, revive_job
from .submit import apply_rules, refused, why_closed

RETRIED = "retried"
"""The key of the stored setting that holds the answers to retries."""
_RETRIES_KEPT = 64
"""The number of kept answers: a client repeats its question at once, or never."""
_JOBS_LOOKED_AT = 100
"""The number of ended jobs that are looked at after a clear: all have their turn, and a store has thousands."""


def on_client_joined(farm: SchedulerState, session: str, event: Joined, now: Now, out: Decision) -> None:
    """Record that a client is connected: its session begins, or goes on after the controller's restart."""
    client = farm.clients.of(session)
    client.connected = True
    client.name = event.name


def on_client_gone(farm: SchedulerState, session: str, event: Gone, now: Now, out: Decision) -> None:
    """Forget a client.  Its tasks go on.

    Ids that it never used are given to others if it said that it ends; a client that was only silent may come back."""
    client = farm.clients.by_session.pop(session, None)
    if client is None:
        return
    farm.clients.watches -= len(client.watching)
    task_messages.forget_readers(farm, session)
    for task_id in client.watching:
        watchers = farm.clients.watchers.get(task_id, [])
        if session in watchers:
            watchers.remove(session)
            if not watchers:
                del farm.clients.watchers[task_id]
    for task_id in _watched_in_vain(farm, client):
        text = f"task {task_id} was never submitted: its client went away first"
        tell_watching(farm, refused(task_id, "IndexError", text))
    if session in farm.requests.open_commands.by_session:
        for key in [key for key in farm.requests.commands if key[0] == session]:
            farm.requests.end_command(key)
    if event.said and farm.lifecycle.full is None and not farm.lifecycle.stopping:  # else it may have lost tasks
        farm.clients.ids.take_back(session, out)
    farm.functions.held.pop(session, None)
    farm.followers.leave(session)
    client_is_gone(farm, session, out)


def _watched_in_vain(farm: SchedulerState, client: ClientEntry) -> list[int]:
    """Return the watched ids of tasks that a client, which is gone, has not submitted."""
    watchers = farm.clients.watchers
    unused = [block for block in client.blocks if block.next <= block.last] if watchers else []
    if sum(block.last - block.next for block in unused) < len(watchers):
        return [i for block in unused for i in range(block.next, block.last + 1) if i in watchers]
    return [i for i in watchers if any(block.next <= i <= block.last for block in unused)]


def on_watch(farm: SchedulerState, session: str, n: int, question: m.WatchTasks, now: Now, out: Decision) -> None:
    """Tell this session when these tasks end. For tasks that have ended, tell it at once, without their results."""
    client = farm.clients.of(session)
    unknown, ended = [], []
    new: dict[int, None] = {}
    unfinished = farm.tasks.unfinished
    for task_id in question.ids:
        task = unfinished.get(task_id)
        if task is not None and task.session == session:
            continue  # the client that handed a task in is told of its end in any case; it asks for a million at once
        holder = farm.tasks.holder(task_id)
        if holder in farm.tasks.finals:
            ended.append(_ended_before(farm, task_id, holder))
        elif task_id in farm.tasks.refusals:
            ended.append(refused(task_id, *farm.tasks.refusals[task_id]))
        elif holder in unfinished or farm.clients.will_submit(task_id):
            is_own = holder == task_id and _owner(farm, task_id) == session  # not submitted yet
            if task_id not in client.watching and not is_own:
                new[task_id] = None
        else:
            unknown.append(task_id)
    if new and (refusal := _too_many_watches(farm, len(client.watching) + len(new), len(new))) is not None:
        out.answer(session, n, refusal)
        return
    client.watching.update(new)
    farm.clients.watches += len(new)
    for task_id in new:
        farm.clients.watchers.setdefault(task_id, []).append(session)
    client.finals += ended
    farm.clients.to_tell[session] = client
    out.answer(session, n, m.Watched(unknown))


def _too_many_watches(farm: SchedulerState, own: int, more: int) -> m.Refusal | None:
    is_full = farm.clients.watches + more > COUNTS.watches_in_all
    if own <= (COUNTS.own_watches if is_full else COUNTS.watches):
        return None
    text = f"clients may watch {COUNTS.watches:,} tasks of others, and {COUNTS.watches_in_all:,} in all: wait for some"
    return m.Refusal("TaskError", text)


def _owner(farm: SchedulerState, task_id: int) -> str:
    """Return the session that has handed a task in, or will."""
    task = farm.tasks.unfinished.get(task_id)
    if task is not None:
        return task.session
    block = farm.clients.ids.block_of(task_id)
    return block.session if block is not None else ""


def _ended_before(farm: SchedulerState, task_id: int, holder: int) -> Final:
    chunks = farm.tasks.chunks
    items = chunks.items.get(task_id, 0)
    separate = tuple(sorted(chunks.separate.get(task_id, ())))
    reason = farm.tasks.finals[holder]
    return Final(task_id, reason, -1, "", 0, 0.0, 0.0, 0.0, 0.0, items=items, separate=separate)


def on_fetch(farm: SchedulerState, session: str, n: int, question: m.FetchResults, now: Now, out: Decision) -> None:
    """Read results from the store, as often as asked, for any client.  Silent items come with their whole chunk."""
    ids, unfinished, unknown, refusals = [], [], [], []
    for task_id in dict.fromkeys(question.ids):
        holder = farm.tasks.holder(task_id)
        if holder in farm.tasks.finals:
            ids.append(holder)
        elif task_id in farm.tasks.refusals:
            refusals.append(refused(task_id, *farm.tasks.refusals[task_id]))
        elif holder in farm.tasks.unfinished or farm.clients.will_submit(task_id):
            unfinished.append(task_id)
        else:
            unknown.append(task_id)
    if ids:
        out.loads.append(LoadFinals(session, n, list(dict.fromkeys(ids)), unfinished, unknown, refusals))
    else:
        out.answer(session, n, m.Fetched(refusals, unfinished, unknown))


def on_abort(farm: SchedulerState, session: str, n: int, question: m.AbortTasks, now: Now, out: Decision) -> None:
    """Fail tasks at once.

    Tasks that have not begun never run. Running ones are interrupted, and their answers change nothing.
    """
    outcomes: list[tuple[int, str]] = []
    recalls: dict[str, list[RunKey]] = {}
    why = f": {question.reason}" if question.reason else ""
    items: dict[int, list[int]] = {}
    for task_id in dict.fromkeys(question.ids):
        holder = farm.tasks.holder(task_id)
        task = farm.tasks.unfinished.get(holder)
        if task_id in farm.tasks.chunks.items and not question.chunks:
            outcomes.append((task_id, "unknown"))
        elif task is not None and not question.running and task.state is State.PENDING:
            outcomes.append((task_id, "running"))
        elif task is not None:
            outcomes.append((task_id, "aborted"))
            if holder != task_id:
                items.setdefault(holder, []).append(task_id)
                continue
            text = f"{_named(farm, task)} aborted{why}"
            _abort_one(farm, task, question.interrupt, Reason.ABORTED, text, recalls, now, out)
        elif holder in farm.tasks.finals:
            ended = farm.tasks.finals[holder] in ABORTS
            outcomes.append((task_id, "already aborted" if ended else "already completed"))
        else:
            outcomes.append((task_id, "already completed" if task_id in farm.tasks.refusals else "unknown"))
    for chunk, wanted in items.items():
        if (task := farm.tasks.unfinished.get(chunk)) is not None:
            _abort_items(farm, task, wanted, question.interrupt, why, recalls, now, out)
    _recall_all(farm, recalls, now, out)
    out.answer(session, n, m.Aborted(outcomes))


def _named(farm: SchedulerState, task: TaskEntry) -> str:
    """Return the subject of the sentence that a task, or the silent items of a chunk, were aborted."""
    ids = list(farm.tasks.chunks.ids(task.id)) if task.items else []
    if len(ids) < 2:
        return f"task {ids[0] if ids else task.id} was"
    first, last = ids[0], ids[-1]
    return f"{'tasks' if last - first < len(ids) else f'{len(ids)} tasks from'} {first} to {last} were"


def _abort_items(
    farm: SchedulerState,
    chunk: TaskEntry,
    ids: list[int],
    interrupt: bool,
    why: str,
    recalls: dict[str, list[RunKey]],
    now: Now,
    out: Decision,
) -> None:
    """Abort silent items of a chunk.  A run of the chunk ends when it gets to them: its other items run again later."""
    if len(ids) == farm.tasks.chunks.size(chunk.id):
        _abort_one(farm, chunk, interrupt, Reason.ABORTED, f"{_named(farm, chunk)} aborted{why}", recalls, now, out)
        return
    for task_id in ids:
        task = separate(farm, chunk, task_id - chunk.id - 1, out)
        failure = FailureSummary("TaskAborted", f"task {task_id} was aborted{why}")
        finish(farm, task, final_without_answer(task, None, Reason.ABORTED, failure, now), out)
    place = chunk.place
    engine = farm.engines.by_name.get(place.engine) if type(place) is Assigned else None
    if interrupt and engine is not None and type(place) is Assigned:
        indexes = tuple(task_id - chunk.id - 1 for task_id in ids)
        interrupt_items = m.Interrupt(engine.name, (chunk.id, place.attempt), grace_of(farm, chunk), indexes)
        out.sends.append((engine.agent, interrupt_items))


def abort_with_jobs(farm: SchedulerState, most: int, now: Now, out: Decision) -> int:
    """Abort the tasks of jobs that end with their first failure, and return how many.  Called at the end of a turn.

    A job with more than `most` tasks stays in `to_abort`; it is there again after a restart too, as it has failed."""
    recalls: dict[str, list[RunKey]] = {}
    count = 0
    for job_id in list(farm.jobs.to_abort):
        job = farm.jobs.by_id[job_id]
        aborted = list(islice(job.tasks, most - count)) if job.failed else []
        for task_id in aborted:
            _abort_one(farm, farm.tasks.unfinished[task_id], True, Reason.JOB_ABORTED, job.failed, recalls, now, out)
        count += len(aborted)
        out.saves.append(job.save())
        if job.tasks and job.failed:
            break
        del farm.jobs.to_abort[job_id]
    _recall_all(farm, recalls, now, out)
    return count


def _recall_all(farm: SchedulerState, recalls: dict[str, list[RunKey]], now: Now, out: Decision) -> None:
    for name, runs in recalls.items():
        recall(farm, farm.engines.by_name[name], runs, now, out)


def _abort_one(
    farm: SchedulerState,
    task: TaskEntry,
    interrupt: bool,
    reason: Reason,
    text: str,
    recalls: dict[str, list[RunKey]],
    now: Now,
    out: Decision,
) -> None:
    place = task.place
    engine = farm.engines.by_name.get(place.engine) if type(place) is Assigned else None
    if engine is not None and type(place) is Assigned:
        run = (task.id, place.attempt)
        if place.since_s is None:
            recalls.setdefault(engine.name, []).append(run)
        if interrupt:
            # An interrupt is also sent for a run that had not begun by the last report: the recall may come too late.
            out.sends.append((engine.agent, m.Interrupt(engine.name, run, grace_of(farm, task))))
    finish(farm, task, final_without_answer(task, engine, reason, FailureSummary("TaskAborted", text), now), out)


def grace_of(farm: SchedulerState, task: TaskEntry) -> float:
    """Return the time between a task's interrupt and the signals that end its engine."""
    grace_s = task.rules.grace_s if task.rules is not None else None
    return farm.settings.grace_s if grace_s is None else grace_s


def on_clear(farm: SchedulerState, session: str, n: int, question: m.Clear, now: Now, out: Decision) -> None:
    """Forget ended tasks.  Their ids are not given again."""
    tasks, chunks, is_needed = farm.tasks, farm.tasks.chunks, farm.graph.is_needed
    items: dict[int, list[int]] = {}
    end: int | None = None
    if question.ids is None:
        ended, end = ended_after(farm, question.after)
        if len(ended) > ROWS_MAX:
            ended, end = ended[:ROWS_MAX], ended[ROWS_MAX - 1]
        needed_chunks = _needed_chunks(farm) if chunks.items else set()
        ids = [i for i in ended if not is_needed(i) and i not in tasks.kept and i not in needed_chunks]
        items = {c: [i for i in chunks.ids(c) if not is_needed(i)] for c in ended if c in needed_chunks}
        refusals = [*farm.tasks.refusals] if question.after < 0 else []
        missing: list[int] = []
        unfinished: list[int] = []
        needed: list[int] = []
    else:
        named = list(dict.fromkeys(question.ids))
        asked = named if question.chunks else [i for i in named if i not in chunks.items]
        ids = [
            i for i in asked if i in tasks.finals and (_is_whole(farm, i) if i in chunks.items else not is_needed(i))
        ]
        whole = {i for i in ids if i in chunks.items}
        for task_id in asked:
            holder = tasks.holder(task_id)
            if holder in tasks.finals and holder in chunks.items and holder not in whole:
                of_chunk = [*chunks.ids(holder)] if holder == task_id else [task_id]
                items.setdefault(holder, []).extend(i for i in of_chunk if not is_needed(i))
        refusals = [i for i in asked if i in farm.tasks.refusals]
        unfinished = [i for i in asked if tasks.holder(i) in farm.tasks.unfinished]
        needed = [i for i in asked if is_needed(i) and tasks.holder(i) in tasks.finals]
        missing = [i for i in named if not farm.tasks.is_known(i) or (i in chunks.items and not question.chunks)]
    count = len(refusals) + sum(map(chunks.size, ids)) + sum(map(len, items.values()))
    parents = {tasks.of_parts[i] for i in ids if i in tasks.of_parts}
    for task_id in ids:
        forget(farm, task_id)
    for task_id in refusals:
        del farm.tasks.refusals[task_id]
    for chunk, cleared in items.items():
        indexes = [task_id - chunk - 1 for task_id in cleared]
        forget_items(farm, chunk, indexes)
        out.saves.append(SaveSeparate(chunk, indexes))
    # A chunk is forgotten with the last of its items.
    for chunk in sorted({*items, *parents}):
        if chunk in tasks.finals and not chunks.size(chunk) and chunk not in chunks.parts:
            forget(farm, chunk)
            ids.append(chunk)
    chunks.forget(ids)
    gone = [*ids, *refusals]
    if gone:
        out.saves.append(SaveClear(gone))
        if jobs := farm.jobs.next_ended(_JOBS_LOOKED_AT):
            out.loads.append(LookForJobs(jobs))
    out.answer(session, n, m.Cleared(count, missing, unfinished, needed, end))


def _is_whole(farm: SchedulerState, chunk: int) -> bool:
    """Return whether an ended chunk can be cleared with one entry: nobody needs it, or an item of it."""
    chunks, is_needed = farm.tasks.chunks, farm.graph.is_needed
    if chunk in chunks.parts or is_needed(chunk):
        return False
    return not (farm.graph.consumers or farm.graph.dependents) or not any(map(is_needed, chunks.ids(chunk)))


def _needed_chunks(farm: SchedulerState) -> set[int]:
    """Return the chunks of which an item runs again, or has a result that another task has yet to take."""
    needed = {task.part[0] for task in farm.tasks.unfinished.values() if task.part is not None}
    needed.update(chunk for source in farm.graph.consumers if (chunk := farm.tasks.chunks.of(source)) is not None)
    return needed


def on_retry(farm: SchedulerState, session: str, n: int, question: m.RetryTasks, now: Now, out: Decision) -> None:
    """Run failed tasks once more, as they were submitted, from the store.

    A client repeats its question, under the same number, when the controller died before it could answer."""
    known = farm.clients.retried.get(f"{session} {n}")
    if known is not None:
        out.answer(session, n, known)
        return
    ids, missing, not_failed = [], [], []
    chunks: dict[int, int] = {}
    for task_id in dict.fromkeys(question.ids):
        holder = farm.tasks.holder(task_id)
        if task_id in farm.tasks.chunks.items:
            missing.append(task_id)
        elif farm.tasks.finals.get(holder) or (holder in farm.tasks.finals and not question.failed_only):
            ids.append(task_id)
            if holder != task_id:
                chunks[task_id] = holder
        elif holder in farm.tasks.finals or holder in farm.tasks.unfinished:
            not_failed.append(task_id)
        else:
            missing.append(task_id)
    closed = why_closed(farm)
    if closed is not None:
        out.answer(session, n, m.Refusal(*closed))
    elif ids:
        if question.once:
            coming = {i for others in farm.clients.retrying.values() for i in others}
            ids = [i for i in ids if i not in coming]
        farm.clients.retrying[session, n] = ids
        function = question.function
        if function is not None:
            farm.functions.save([function], out)
        out.loads.append(
            LoadOriginals(
                session, n, ids, missing, not_failed, chunks, question.earlier, question.once, question.latest,
                function.digest if function is not None else None, question.blobs,
            )
        )  # fmt: skip
    else:
        out.answer(session, n, m.Retried([], missing, not_failed))


def on_originals(farm: SchedulerState, session: str, event: Originals, now: Now, out: Decision) -> None:
    """Accept the tasks to be retried under new ids, linked to the old ones."""
    farm.clients.retrying.pop((session, event.n), None)
    if event.fault:
        out.answer(session, event.n, m.Refusal("TypeError", event.fault))
        return
    tasks, settled = _to_be_retried(farm, event)
    if not tasks:
        out.answer(session, event.n, m.Retried([], event.missing, event.not_failed, settled))
        return
    duplicate = _why_duplicate(farm, tasks)
    if duplicate:
        out.answer(session, event.n, m.Refusal("DuplicateTask", duplicate))
        return
    ids = farm.clients.ids.give(len(tasks), out)
    earlier = RetriedTasks(event.earlier)
    new_ids = {original.id: new for original, new in zip(tasks, ids, strict=True)}
    skipped = dict(settled)
    pairs = {
        original.id: new_ids[_latest(event, original.id)] for original in event.tasks if original.id not in skipped
    }

    def new_of(task_id: int) -> int:
        """Return the task to take in the place of one that is needed: its retry, unless it has succeeded itself."""
        latest = event.newest.get(task_id, task_id)
        again = new_ids.get(latest, pairs.get(task_id, earlier.new_of(task_id)))
        if again != task_id or farm.tasks.finals.get(farm.tasks.holder(task_id)) == "":
            return again
        return latest

    farm.followers.stale = True  # a cause has fewer tasks now, and a job more
    for original in tasks:
        rules = original.rules or DEFAULT_RULES
        if rules.job is not None:
            revive_job(farm, rules.job, out)
        linked = Rules(**{**{f: getattr(rules, f) for f in rules.__struct_fields__}, "retry_of": original.id})
        needs = _needs_again(farm, original.needs, new_of) if original.needs is not None else None
        again = msgspec.structs.replace(
            original, id=new_ids[original.id], submitted_s=now.wall_s, rules=linked, needs=needs
        )
        task = accept(farm, again, session, linked, out)
        apply_rules(farm, task, now, out)
    reply = m.Retried([*pairs.items()], event.missing, event.not_failed, settled)
    farm.clients.retried[f"{session} {event.n}"] = reply
    while len(farm.clients.retried) > _RETRIES_KEPT:
        del farm.clients.retried[next(iter(farm.clients.retried))]
    out.saves.append(SaveSetting(RETRIED, msgspec.json.encode(farm.clients.retried).decode()))
    out.answer(session, event.n, reply)


def _why_duplicate(farm: SchedulerState, originals: list[Submission]) -> str:
    """Return why tasks may not be retried now: one has the unique key of another that has not ended. "": they may."""
    taken = dict(farm.tasks.unique)
    for original in originals:
        job = farm.jobs.by_id.get(original.rules.job or "") if original.rules is not None else None
        other = farm.jobs.unended(job.spec.unique) if job is not None and job.spec.unique is not None else None
        if job is not None and other is not None and other is not job:
            return f"the job of task {original.id} has the unique key of job {other.spec.id}, which would run beside it"
        key = original.rules.unique if original.rules is not None else None
        if key is None:
            continue
        if key in taken:
            return f"task {original.id} has the unique key {key!r} of task {taken[key]}, which would run beside it"
        taken[key] = original.id
    return ""


def _latest(event: Originals, task_id: int) -> int:
    """Return the task that is submitted again for this one."""
    return event.newest.get(task_id, task_id) if event.latest else task_id


def _to_be_retried(farm: SchedulerState, event: Originals) -> tuple[list[Submission], list[tuple[int, int]]]:
    """Return the tasks to be submitted again, each once, and pairs (task, its latest retry) of those that are not."""
    found: dict[int, Submission] = {}
    settled = []
    for original in event.tasks:
        latest = _latest(event, original.id)
        if latest != original.id and not farm.tasks.finals.get(latest):
            settled.append((original.id, latest))
        else:
            found.setdefault(latest, msgspec.structs.replace(original, id=latest))
    return [*found.values()], settled


def _needs_again(farm: SchedulerState, needs: Needs, new_of: Callable[[int], int]) -> Needs:
    """Return the needs of a retried task: tasks that are retried with it are replaced by their new ids."""
    inputs = tuple((name, new_of(source)) for name, source in needs.inputs)
    known = [new_of(i) for i in needs.after]
    after = tuple(i for i in known if i in farm.tasks.unfinished or i in farm.tasks.finals)  # a cleared task had ended
    return msgspec.structs.replace(needs, after=after, inputs=inputs)


def fail_unmet(farm: SchedulerState, task_id: int, was_unmet: bool, now: Now, out: Decision) -> None:
    """Fail a task that no engine could take within `unmet_timeout`.  was_unmet: none could when the timer was set."""
    task, seconds = farm.tasks.unfinished.get(task_id), farm.settings.unmet_timeout_s
    if task is None or seconds is None:
        return
    is_unmet = task.task_class is not None and task.task_class.restricted and not task.task_class.eligible
    if not (is_unmet and was_unmet):
        farm.timers.set(now.mono_s + seconds, "unmet", (task_id, is_unmet))
        return
    text = f"no engine could take task {task_id} within {seconds} s (unmet_timeout): `explain` says why not"
    finish(farm, task, final_without_answer(task, None, Reason.UNMET, FailureSummary("TaskTimeout", text), now), out)


def end_withholding(farm: SchedulerState, engine_name: str) -> None:
    """Give an engine tasks again after its penalty."""
    engine = farm.engines.by_name.get(engine_name)
    if engine is not None and engine.state == "up":
        farm.readiness.wake(engine)
