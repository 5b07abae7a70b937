"""Commands that change tasks: abort, retry, restart, remove, mark-done, mark-failed."""

from __future__ import annotations

import json
import sys
from typing import Any

from traitlets import Bool, Int, Unicode

from ipytaskfarm.cli import printing
from ipytaskfarm.cli.application import FAILED, OK, JsonCommand, UsageError, flag, switch
from ipytaskfarm.cli.jobs import LONG_S, OnTasks, find_job
from ipytaskfarm.cli.json_output import print_json
from ipytaskfarm.core import errors, messages
from ipytaskfarm.core.arguments import INT_MAX, INT_MIN
from ipytaskfarm.core.messages import tables
from ipytaskfarm.deployment.light_client import connect

NO_TASK = "there is no such task (never submitted, or removed): `ipytaskfarm tasks` lists all tasks"


class Abort(OnTasks):
    """``ipytaskfarm abort``"""

    name = "abort"
    description = """
Aborts tasks. Tasks that have not begun never run. Running tasks are interrupted, and the engine of a task that ignores
the interrupt is replaced. Ended tasks are skipped. Exit code 1 means that an id does not exist.
"""
    examples = """
        ipytaskfarm abort 12 15-19 --reason "wrong input"
        ipytaskfarm abort --job primes --no-interrupt
    """
    interrupt = switch(
        "let running tasks end, and drop their results", "no-interrupt", Bool(True, help="interrupt running tasks")
    )
    reason = flag("TEXT", Unicode("", help="the reason, which the tasks' error contains"))

    def carry_out(self) -> int:
        with connect(self.farm) as questioner:
            ids = self.chosen(questioner, "unfinished")
            reply = questioner.answer_for(
                messages.AbortTasks(ids, self.interrupt, self.reason), messages.Aborted, timeout_s=LONG_S
            )
        if self.json:
            print_json([{"id": task, "outcome": outcome} for task, outcome in reply.outcomes])
        unknown = [task for task, outcome in reply.outcomes if outcome == "unknown"]
        for task, outcome in reply.outcomes:
            if not self.json and outcome != "unknown":
                print(f"task {task}: {outcome}")
        if not reply.outcomes and not self.json:
            print("there is no unfinished task to abort")
        return tell_refused([(task, NO_TASK) for task in unknown])


class Retry(OnTasks):
    """``ipytaskfarm retry``"""

    name = "retry"
    description = "Submits failed tasks again, with the same inputs, as new tasks that are linked to the old ones."
    examples = """
        ipytaskfarm retry 12 13
        ipytaskfarm retry --job primes
    """

    def carry_out(self) -> int:
        hint = "has not failed; `ipytaskfarm restart` submits any ended task again"
        return _submit_again(self, failed_only=True, why_not=hint)


class Restart(OnTasks):
    """``ipytaskfarm restart``"""

    name = "restart"
    description = """
Submits ended tasks again, failed or not, with the same inputs, as new tasks that are linked to the old ones.
"""
    examples = "ipytaskfarm restart 12-15"

    def carry_out(self) -> int:
        hint = "has not ended: wait for it, or `ipytaskfarm abort` it first"
        return _submit_again(self, failed_only=False, why_not=hint)


def _submit_again(command: OnTasks, *, failed_only: bool, why_not: str) -> int:
    with connect(command.farm) as questioner:
        ids = command.chosen(questioner, "failed" if failed_only else "finished")
        latest = failed_only and bool(command.job or len(ids) > 1)
        question = messages.RetryTasks(ids, failed_only, latest=latest)
        reply = questioner.answer_for(question, messages.Retried, timeout_s=LONG_S)
    settled = [] if command.job else reply.settled
    if command.json:
        print_json({
            "handed_in": [{"id": old, "again": new} for old, new in reply.ids],
            "missing": reply.missing,
            "refused": [*reply.not_failed, *(old for old, _ in settled)],
        })  # fmt: skip
    else:
        for new, old in {new: old for old, new in reply.ids}.items():
            print(f"task {old}: submitted again as task {new}")
        if not (ids if not command.job else reply.ids):
            print(f"nothing of it has {'failed' if failed_only else 'ended'}{' since' if ids else ''}")
    return tell_refused([
        *((i, NO_TASK) for i in reply.missing),
        *((i, why_not) for i in reply.not_failed),
        *((old, f"was submitted again as task {new}, which has not failed") for old, new in settled),
    ])  # fmt: skip


class Remove(OnTasks):
    """``ipytaskfarm remove``"""

    name = "remove"
    description = """
Removes ended tasks with their results and their history. Their ids are not used again. Tasks that have not ended stay,
and so do results that other tasks still need. The command names those of them that were given by id, and then ends
with exit code 1.
"""
    arguments = "ID… | --job NAME | --all"
    examples = """
        ipytaskfarm remove 3-9
        ipytaskfarm remove --all
    """
    everything = switch("all tasks that have ended", "all")

    def named_otherwise(self) -> bool:
        if self.job and self.everything:
            raise UsageError("--job or --all: not both")
        return bool(self.job or self.everything)

    def carry_out(self) -> int:
        with connect(self.farm) as questioner:
            ids = None if self.everything else self.chosen(questioner)
            reply = questioner.answer_for(messages.Clear(ids), messages.Cleared, timeout_s=2 * LONG_S)
            status = questioner.answer(messages.QueueStatus()) if ids is None else None
        if self.json:
            names = {"missing": reply.missing, "unfinished": reply.unfinished, "needed": reply.needed}
            print_json({"removed": reply.count, **names})
        else:
            print(f"removed {printing.number(reply.count, 'task')}")
            if isinstance(status, tables.QueueStatusReply):
                _tell_what_stays(status.counts)
        return tell_refused([
            *((i, NO_TASK) for i in reply.missing),
            *((i, "has not ended: wait for it, or `ipytaskfarm abort` it first") for i in reply.unfinished),
            *((i, "other tasks still need its result: wait for them, or abort them") for i in reply.needed),
        ])  # fmt: skip


def _tell_what_stays(counts: dict[str, int]) -> None:
    unfinished = counts.get("scheduled", 0) + counts.get("pending", 0)
    needed = counts.get("succeeded", 0) + counts.get("failed", 0)
    if unfinished:
        print(f"kept {printing.number(unfinished, 'task')}: not ended")
    if needed:
        print(f"kept {printing.number(needed, 'task')}: other tasks still need the result")


class Verbatim(Unicode[str, str]):
    """Text as it was typed: traitlets would remove quotes around it, which JSON needs."""

    def from_string(self, s: str) -> str:
        return s


class MarkDone(JsonCommand):
    """``ipytaskfarm mark-done``"""

    name = "mark-done"
    description = """
Marks tasks that have not ended as succeeded, with a given result. They do not run, their runs are interrupted, and
tasks that wait for them continue.
"""
    arguments = "ID…"
    examples = """
        ipytaskfarm mark-done 12
        ipytaskfarm mark-done 12 --result '{"total": 42}'
    """
    result = flag(
        "JSON", Verbatim("null", help="the result as JSON; for a task of code, an object with the pulled names")
    )

    def carry_out(self) -> int:
        ids = self.number_arguments("task")
        try:
            result = json.loads(self.result)
        except ValueError as error:
            raise UsageError(f"--result {self.result!r} is not JSON ({error}); text needs quotes: '\"text\"'") from None
        connect(self.farm).close()  # says in one line that there is no farm, before the client is imported
        from ipytaskfarm.client import TaskClient

        with TaskClient(self.farm) as client:

            def mark(task: int) -> str:
                client.mark_done(task, result)
                return "succeeded"

            return _mark(self, ids, mark)


class MarkFailed(JsonCommand):
    """``ipytaskfarm mark-failed``"""

    name = "mark-failed"
    description = """
Marks the run of a task, or its result, as failed. A running task is interrupted, and runs again if it has retries
left. A waiting task fails. A task that has succeeded is reopened: it runs again under its id.
"""
    arguments = "ID…"
    examples = 'ipytaskfarm mark-failed 12 --reason "the input was incomplete"'
    reason = flag("TEXT", Unicode("", help="the reason, which the error contains"))

    def carry_out(self) -> int:
        ids = self.number_arguments("task")
        with connect(self.farm) as questioner:

            def mark(task: int) -> str:
                reply = questioner.answer_for(
                    messages.MarkTasksFailed(task, self.reason), messages.TextReply, timeout_s=LONG_S
                )
                return reply.text

            return _mark(self, ids, mark)


def _mark(command: JsonCommand, ids: list[int], mark: Any) -> int:
    outcomes: list[tuple[int, str]] = []
    refused: list[tuple[int, str]] = []
    for task in ids:
        try:
            outcomes.append((task, mark(task)))
        except IndexError:
            refused.append((task, NO_TASK))
        except errors.TaskError:
            refused.append((task, "has ended already; `ipytaskfarm restart` runs it again, as a new task"))
    if command.json:
        print_json([{"id": task, "outcome": outcome} for task, outcome in outcomes])
    else:
        for task, outcome in outcomes:
            print(f"task {task}: {printing.safe(outcome)}")
    return tell_refused(refused)


def tell_refused(tasks: list[tuple[int, str]]) -> int:
    """Return a line for each refused task, and the exit code."""
    for task, why in tasks:
        print(f"task {task}: {why}", file=sys.stderr)
    return FAILED if tasks else OK


class ChangePriority(OnTasks):
    """``ipytaskfarm priority``"""

    name = "priority"
    description = """
Changes the priority of tasks: tasks with a higher priority start first, and the usual priority is 0. Waiting tasks get
their new place at once. Running tasks continue, and their retries have the new priority. With --job, tasks that
are submitted to the job later get it too. Ended tasks are skipped. Exit code 1 means that an id does not exist.
"""
    examples = """
        ipytaskfarm priority 12 15-19 --to 5
        ipytaskfarm priority --job primes --to -1
    """
    to = flag("N", Int(None, allow_none=True, min=INT_MIN, max=INT_MAX, help="the new priority"))

    def read(self, argv: list[str]) -> None:
        """Read the command line, and check that it has a priority."""
        super().read(argv)
        if self.to is None:
            raise UsageError("which priority? Give it as --to N; tasks with a higher one start first, 0 is usual")

    def carry_out(self) -> int:
        assert self.to is not None
        with connect(self.farm) as questioner:
            question: messages.SetJobPriority | messages.SetPriority
            if self.job:
                question = messages.SetJobPriority(find_job(questioner, self.job).id, self.to)
            else:
                question = messages.SetPriority(self.number_arguments("task"), self.to)
            reply = questioner.answer_for(question, messages.PrioritySet, timeout_s=LONG_S)
        if self.json:
            print_json({"priority": self.to, "tasks": reply.count, "ended": reply.ended, "missing": reply.unknown})
        else:
            what = f"job {printing.safe(self.job)!r}: " if self.job else ""
            print(f"{what}{printing.number(reply.count, 'task')} of priority {self.to}")
            for task in reply.ended:
                print(f"task {task}: has ended")
        return tell_refused([(task, NO_TASK) for task in reply.unknown]) if reply.unknown else OK
