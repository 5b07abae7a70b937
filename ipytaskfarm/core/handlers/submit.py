"""Tasks coming in, and the ids they come under."""

from __future__ import annotations

from bisect import bisect_right

import msgspec

from .. import graph
from ..decision import Decision
from ..farm import Block, Client, Farm, Now
from ..messages import Full, IdBlock, NeedIds, Submit
from ..needs import Needs
from ..parcels import Failure, Final, Rules, Submission
from ..plausible import SECONDS_MAX, unbearable
from ..saves import SaveAccepted, SaveBlock, SaveRefusal
from ..states import Reason
from ..task import Task
from ..transition import accept
from .asking import weigh_asks
from .code import save_functions
from .depends import need_verdicts
from .jobs import has_arrived, open_job, save_jobs

MAX_BLOCK = 65536


def on_need_ids(farm: Farm, session: str, event: NeedIds, now: Now, out: Decision) -> None:
    """Give the client its next block; blocks grow with what it uses."""
    client = farm.client(session)
    block = take_ids(farm, session, client.next_block, out)
    client.next_block = min(MAX_BLOCK, client.next_block * 4)
    client.blocks.append(block)
    out.sends.append((session, IdBlock(block.first, block.last)))


def take_ids(farm: Farm, session: str, count: int, out: Decision) -> Block:
    """Draw ids that were never given before."""
    block = Block(farm.next_id, farm.next_id + count - 1, farm.next_id, session)
    farm.next_id += count
    farm.blocks.append(block)
    out.saves.append(SaveBlock(block.first, block.last, session))
    return block


def on_submit(farm: Farm, session: str, event: Submit, now: Now, out: Decision) -> None:
    """Accept what is new.  Ids of a block arrive in order: an earlier one is a resend, a later one comes too early."""
    client = farm.client(session)
    if farm.full is not None or farm.stopping:
        if event.tasks:
            out.sends.append((session, Full(event.tasks[0].id, farm.full or "the farm is stopping")))
        return
    save_functions(farm, event.functions, out)
    jobs = [spec for spec in event.jobs if not unbearable(spec)]
    for spec in jobs:
        open_job(farm, session, spec)
    block: Block | None = None
    fresh = False
    last: Rules | None = None
    edges: Needs | None = None
    for submission in event.tasks:
        if block is None or not block.first <= submission.id <= block.last:
            _acknowledge(farm, client, block, fresh, out)
            block, fresh = _block_of(client, submission.id), False
            if block is None:
                continue  # not an id of this client's
        if submission.id > block.next:
            out.sends.append((session, Full(block.next, "an earlier task has not arrived yet")))
            break
        if submission.id == block.next:
            block.next += 1
            fresh = True
            if not 0.0 <= submission.submitted_s <= SECONDS_MAX:
                submission = msgspec.structs.replace(submission, submitted_s=now.wall_s)
            rules, known = submission.rules, False
            if rules is not None:
                # Most tasks of a message have the same rules: one object for all of them, of which all is known.
                known = rules == last
                rules = last = last if known else rules
            if submission.needs is not None:
                edges = submission.needs if submission.needs != edges else edges
            needs = edges if submission.needs is not None else None
            _take_in(farm, client, submission, rules, needs, now, out, known)
    _acknowledge(farm, client, block, fresh, out)
    save_jobs(farm, jobs, out)


def _take_in(
    farm: Farm,
    client: Client,
    submission: Submission,
    rules: Rules | None,
    needs: Needs | None,
    now: Now,
    out: Decision,
    known: bool,
) -> None:
    """known: its rules are those of the task before."""
    if submission.function is None and rules is None and needs is None:
        accept(farm, submission, client.session, rules, out)
        return
    refusal = why_refused(farm, submission, rules, known)
    if refusal is not None:
        farm.refusals[submission.id] = refusal
        out.saves.append(SaveRefusal(submission.id, *refusal))
        client.finals.append(refused(submission.id, *refusal))
        farm.touched[client.session] = client
        has_arrived(farm, rules)
        return
    task = accept(farm, submission, client.session, rules, out, needs=needs)
    if rules is not None:
        weigh(farm, task, now, out)
    if rules is not None and rules.job is not None:
        has_arrived(farm, rules)


def weigh(farm: Farm, task: Task, now: Now, out: Decision) -> None:
    """A task was accepted: what its rules bring with them."""
    rules = task.rules
    if rules is not None:
        if rules.depend is not None:
            need_verdicts(farm, rules.depend, out)
        if rules.asks is not None:
            weigh_asks(farm, task, rules.asks, now, out)
    if farm.settings.unmet_timeout_s is not None and task.task_class is not None and task.task_class.restricted:
        farm.set_timer(now.mono_s + farm.settings.unmet_timeout_s, "unmet", task.id)


def why_refused(farm: Farm, submission: Submission, rules: Rules | None, known: bool = False) -> tuple[str, str] | None:
    """(error, text) for a submission that can never be accepted.  known: its rules can be kept, as was seen before."""
    missing = _missing_function(farm, submission, rules)
    if missing is not None:
        text = f"task {submission.id} needs the function {missing}, which never arrived: hand it in again"
        return "TaskError", text
    if (not known and (why := unbearable(rules))) or (why := unbearable(submission.needs)):
        return "TaskError", f"task {submission.id} cannot be kept: {why} (in its rules)"
    if submission.needs is not None and (why := graph.why_refused(farm, submission.id, submission.needs)):
        return "TaskError", why
    if rules is not None and rules.job in farm.refused_jobs:
        return "DuplicateTask", f"job {farm.refused_jobs[rules.job or '']} of the same unique key has not ended"
    unique = rules.unique if rules is not None else None
    if unique is not None and unique in farm.unique:
        return "DuplicateTask", f"task {farm.unique[unique]} of the unique key {unique!r} has not ended"
    return None


def _missing_function(farm: Farm, submission: Submission, rules: Rules | None) -> str | None:
    function = submission.function
    while True:
        if function is not None and function not in farm.functions:
            return function
        if rules is None:
            return None
        asks = rules.asks
        for digest in (rules.depend, asks.identity if asks else None, asks.locality if asks else None):
            if digest is not None and digest not in farm.functions:
                return digest
        if rules.recovery is None:
            return None
        function, rules = rules.recovery.function, rules.recovery.rules


def refused(task_id: int, etype: str, text: str) -> Final:
    """A refusal, as fetching its id shows it."""
    return Final(task_id, Reason.REFUSED, -1, "", 0, 0.0, 0.0, 0.0, 0.0, Failure(etype, text), b"")


def _acknowledge(farm: Farm, client: Client, block: Block | None, fresh: bool, out: Decision) -> None:
    if block is None or block.next == block.first:
        return
    if fresh:
        out.saves.append(SaveAccepted(block.first, block.next - 1))
    client.accepted[block.first] = block.next - 1
    farm.touched[client.session] = client


def _block_of(client: Client, task_id: int) -> Block | None:
    for block in reversed(client.blocks):
        if block.first <= task_id <= block.last:
            return block
    return None


def is_on_its_way(farm: Farm, task_id: int) -> bool:
    """Issued to a client that is here, and not handed in yet."""
    index = bisect_right(farm.blocks, task_id, key=lambda block: block.first) - 1
    if index < 0:
        return False
    block = farm.blocks[index]
    client = farm.clients.get(block.session)
    return block.next <= task_id <= block.last and client is not None and client.here
