"""Tasks that clients submit, and the ids for them."""

from __future__ import annotations

import msgspec

from ..message_bounds import why_submission_too_large
from ..messages import Full, IdBlock, NeedIds, Submit
from ..messages.task_types import FailureSummary, Final, Needs, Rules, Submission, code_of
from ..saves import SaveAccepted, SaveRefusal
from ..scheduler import graph
from ..scheduler.clients import Block, ClientEntry
from ..scheduler.decision import NEAR_S, Decision, Now
from ..scheduler.eligibility import watch_unmet
from ..scheduler.entries import TaskEntry
from ..scheduler.queue import KnownRules
from ..scheduler.state import SchedulerState
from ..scheduler.task_ends import tell_watching
from ..scheduler.transitions import accept
from ..states import Reason
from ..validation import known_rules, why_not_storable
from .depends import ask_for_verdicts
from .jobs import count_arrival, open_job, save_jobs
from .requirements import apply_requirements

GROWTH = 16
"""The factor by which blocks grow: 16, 256, 4,096, 65,536 ids."""
UNUSED_BLOCKS_MAX = 16
SHOWN = 200
"""How much of a name a refusal shows: it is kept in memory for each refused task."""
MAX_BLOCK = 65536
"""The largest number of ids in one block."""


def on_need_ids(farm: SchedulerState, session: str, event: NeedIds, now: Now, out: Decision) -> None:
    """Give a client its next block of ids.  Blocks grow with what the client uses.

    A client with several blocks that it has not touched gets no further one: it has not asked for what it needs."""
    client = farm.clients.of(session)
    if sum(block.next == block.first for block in client.blocks) >= UNUSED_BLOCKS_MAX:
        return
    block = farm.clients.ids.take(session, client.next_block, out)
    client.next_block = min(MAX_BLOCK, client.next_block * GROWTH)
    client.blocks.append(block)
    out.sends.append((session, IdBlock(block.first, block.last)))


def on_submit(farm: SchedulerState, session: str, event: Submit, now: Now, out: Decision) -> None:
    """Accept new tasks.

    Ids of a block arrive in order: an earlier id is a resend, a later one has come too early.
    """
    client = farm.clients.of(session)
    full = refusing(farm) or why_submission_too_large(event)
    if full:
        if event.tasks:
            out.sends.append((session, Full(event.tasks[0].id, full)))
        return
    code_bytes = farm.functions.save(event.functions, out, session)
    jobs = [spec for spec in event.jobs if not why_not_storable(spec)]
    for spec in jobs:
        open_job(farm, session, spec)
    block: Block | None = None
    fresh = False
    last: KnownRules | None = None
    fault = edge_fault = ""
    rules_bytes = 0
    edges: Needs | None = None
    latest_s = now.wall_s + NEAR_S
    for submission in event.tasks:
        if block is None or not block.first <= submission.id <= block.last:
            _acknowledge(farm, client, block, fresh, out)
            block, fresh = client.block_of(submission.id), False
            if block is None:
                continue  # the id was not given to this client
        if submission.id > block.next:
            out.sends.append((session, Full(block.next, "an earlier task has not arrived yet")))
            break
        if submission.id == block.next:
            rules, known = submission.rules, None
            if rules is not None:
                # Most tasks of a message have the same rules: they share one object, which is checked once, and their
                # class is found at once.
                if last is None or rules != last.rules:
                    last, fault, rules_bytes = known_rules(rules, farm.queues.storable_rules)
                known, rules = last, last.rules
            if submission.needs is not None and submission.needs != edges:
                # The tasks of a layer have the same edges.
                edges, edge_fault = submission.needs, why_not_storable(submission.needs)
            needs = edges if submission.needs is not None else None
            own_bytes = rules_bytes if rules is not None else 0
            no_room = farm.tasks.large.why_not(session, rules, own_bytes, needs)
            if no_room:
                out.sends.append((session, Full(block.next, no_room)))
                break
            if submission.items or submission.part is not None:
                submission = _with_sound_items(submission, block)
            block.next += 1 + submission.items
            fresh = True
            if not 0.0 <= submission.submitted_s <= latest_s:  # the client's clock is wrong
                submission = msgspec.structs.replace(submission, submitted_s=now.wall_s)
            why = (fault if rules is not None else "") or (edge_fault if needs is not None else "")
            _take_in(farm, client, submission, known, needs, now, out, why)
            task = farm.tasks.unfinished.get(submission.id)
            farm.tasks.large.hold(session, task, rules, own_bytes, needs, code_bytes)
    _acknowledge(farm, client, block, fresh, out)
    save_jobs(farm, jobs, out)


def why_closed(farm: SchedulerState) -> tuple[str, str] | None:
    """Return (error, text) if no task is accepted now."""
    if farm.lifecycle.full is not None:
        return "StoreFull", farm.lifecycle.full
    if farm.lifecycle.stopping:
        return "ConnectionError", "the farm is stopping"
    if len(farm.tasks.unfinished) >= farm.settings.max_tasks:
        text = (
            f"{len(farm.tasks.unfinished):,} tasks have not ended, and {farm.settings.max_tasks:,} are the most "
            "of this farm (max_tasks): wait until some have ended, or abort some"
        )
        return "StoreFull", text
    if len(farm.tasks.refusals) >= farm.settings.max_tasks:
        text = (
            f"{len(farm.tasks.refusals):,} tasks were refused, and {farm.settings.max_tasks:,} are the most "
            "that this farm remembers (max_tasks): clear them"
        )
        return "StoreFull", text
    return None


def refusing(farm: SchedulerState) -> str:
    """Return why no task is accepted now; "" if tasks are."""
    return (why_closed(farm) or ("", ""))[1]


def _with_sound_items(submission: Submission, block: Block) -> Submission:
    """Return a submission of which all items have ids of its block.

    Only the controller makes tasks that run one item of a chunk: a client's `part` is dropped.
    """
    items = min(max(0, submission.items), block.last - submission.id)
    if items == submission.items and submission.part is None:
        return submission
    return msgspec.structs.replace(submission, items=items, part=None)


def _take_in(
    farm: SchedulerState,
    client: ClientEntry,
    submission: Submission,
    known: KnownRules | None,
    needs: Needs | None,
    now: Now,
    out: Decision,
    fault: str,
) -> None:
    """Accept a new task, or refuse it. `fault`: why its rules or edges cannot be stored, see `why_not_storable`."""
    rules = known.rules if known is not None else None
    refers = rules is not None and (
        rules.depend is not None
        or rules.asks is not None
        or rules.recovery is not None
        or rules.job is not None
        or rules.unique is not None
    )
    if not (fault or refers or submission.function is not None or needs is not None or submission.cache is not None):
        # Nothing is missing to which the task does not refer: no question is asked.
        task = accept(farm, submission, client.session, rules, out, known=known)
        if rules is not None and farm.settings.unmet_timeout_s is not None:
            apply_rules(farm, task, now, out)
        return
    refusal = why_refused(farm, submission, rules, fault)
    if refusal is not None:
        farm.tasks.refusals[submission.id] = refusal
        out.saves.append(SaveRefusal(submission.id, *refusal))
        client.finals.append(refused(submission.id, *refusal))
        farm.clients.to_tell[client.session] = client
        for task_id in range(submission.id, submission.id + submission.items + 1) if farm.clients.watchers else ():
            tell_watching(farm, refused(task_id, *refusal))
        count_arrival(farm, rules, submission.items)
        return
    task = accept(farm, submission, client.session, rules, out, needs=needs, known=known)
    if rules is None:
        return
    if rules.depend is not None or rules.asks is not None or farm.settings.unmet_timeout_s is not None:
        apply_rules(farm, task, now, out)
    if rules.job is not None:
        count_arrival(farm, rules, submission.items)


def apply_rules(farm: SchedulerState, task: TaskEntry, now: Now, out: Decision) -> None:
    """Apply the consequences of a task's rules after its acceptance."""
    rules = task.rules
    if rules is not None:
        if rules.depend is not None:
            ask_for_verdicts(farm, rules.depend, task.session, out)
        if rules.asks is not None:
            apply_requirements(farm, task, rules.asks, now, out)
    watch_unmet(farm, task, now)


def why_refused(
    farm: SchedulerState, submission: Submission, rules: Rules | None, fault: str = ""
) -> tuple[str, str] | None:
    """Return (error, text) for a submission that can never be accepted.

    fault: why its rules or edges cannot be stored, see `why_not_storable`."""
    missing = _missing_function(farm, submission, rules)
    if missing is not None:
        text = f"the task needs the function {missing[:SHOWN]}, which never arrived: submit the task again"
        return "TaskError", text
    if not fault and submission.cache is not None:
        fault = why_not_storable(submission.cache)
    if fault:
        return "TaskError", f"the task cannot be kept: {fault} (in its rules)"
    if submission.needs is not None and (why := graph.why_refused(farm, submission.id, submission.needs)):
        return "TaskError", why
    if rules is not None and rules.job in farm.jobs.refused:
        other = farm.jobs.refused[rules.job or ""][:SHOWN]
        return "DuplicateTask", f"job {other} of the same unique key has not ended"
    unique = rules.unique if rules is not None else None
    if unique is not None and unique in farm.tasks.unique:
        return "DuplicateTask", f"task {farm.tasks.unique[unique]} of the unique key {unique[:SHOWN]!r} has not ended"
    return None


def _missing_function(farm: SchedulerState, submission: Submission, rules: Rules | None) -> str | None:
    function, stored = submission.function, farm.functions.stored
    if function is not None and function not in stored:
        return function
    if rules is None or (rules.depend is None and rules.asks is None and rules.recovery is None):
        return None  # these name no functions
    return next((digest for digest in code_of(None, rules) if digest not in stored), None)


def refused(task_id: int, etype: str, text: str) -> Final:
    """Return a refusal as a client sees it when it fetches the task."""
    return Final(task_id, Reason.REFUSED, -1, "", 0, 0.0, 0.0, 0.0, 0.0, FailureSummary(etype, text), b"")


def _acknowledge(farm: SchedulerState, client: ClientEntry, block: Block | None, fresh: bool, out: Decision) -> None:
    if block is None or block.next == block.first:
        return
    if fresh:
        out.saves.append(SaveAccepted(block.first, block.next - 1))
    client.accepted[block.first] = block.next - 1
    farm.clients.to_tell[client.session] = client
