"""Commands about the outcome of tasks: result, failures, debug."""

from __future__ import annotations

import sys
import traceback
from math import isfinite
from typing import TYPE_CHECKING, Any

from traitlets import Unicode

from ipytaskfarm.cli import printing
from ipytaskfarm.cli.application import FAILED, OK, Command, JsonCommand, UsageError, flag, switch
from ipytaskfarm.cli.jobs import find_job, ids_given, refuse_unknown, task_rows_of
from ipytaskfarm.cli.json_output import moment, print_json
from ipytaskfarm.core import errors
from ipytaskfarm.core.text import shown
from ipytaskfarm.deployment.light_client import connect
from ipytaskfarm.display.tables import Column, Table
from ipytaskfarm.display.text import ending, summary

if TYPE_CHECKING:
    from ipytaskfarm.client import TaskClient, TaskResult
    from ipytaskfarm.client.tables import FailureGroup

VALUE_MAX = 10_000
"""Largest number of characters of a printed value."""


class Result(JsonCommand):
    """``ipytaskfarm result``"""

    name = "result"
    description = """
Shows the result of a task: the value of a function, or the names that code has pulled. For a failed task it prints the
traceback on standard error. Exit code 1 means that the task has failed, or has not ended.
"""
    arguments = "ID"
    examples = """
        ipytaskfarm result 73
        ipytaskfarm result 73 --wait --output
        ipytaskfarm result 73 --json
    """
    wait = switch("wait for the end of the task")
    output = switch("also show what the task printed")

    def carry_out(self) -> int:
        task = self.single_task()
        connect(self.farm).close()  # without a farm this prints one line, before the client is imported
        from ipytaskfarm.client import TaskClient

        with TaskClient(self.farm) as client:
            client.progress = False
            try:
                found: TaskResult | None = client.get_task_result(task, block=False, raw=False)
                if found is None and self.wait:
                    _wait_for(client, task)
                    found = client.get_task_result(task, block=False, raw=False)
            except errors.TaskAborted as error:
                return self._without_result(task, "failed", str(error))
            if found is None:
                return self._without_result(task, client.status(task).state, "has not ended; --wait waits for it")
            return self._show_json(found) if self.json else self._show(found)

    def _without_result(self, task: int, state: str, why: str) -> int:
        if self.json:
            print_json({"id": task, "state": str(state), "error": why})
        else:
            print(f"task {task} {why}" if why.startswith("has") else why, file=sys.stderr)
        return FAILED

    def _show(self, found: TaskResult) -> int:
        if self.output:
            for stream, text in ((sys.stdout, found.stdout), (sys.stderr, found.stderr)):
                for line in text.splitlines():
                    print(printing.safe(line), file=stream)
        if found.failure is not None:
            for line in found.failure.getTraceback().splitlines():
                print(printing.safe(line), file=sys.stderr)
            return FAILED
        if found.results:
            for name, value in found.results.items():
                print(f"{name} = {_value(value)}")
        elif found.result != {}:
            print(_value(found.result))
        return OK

    def _show_json(self, found: TaskResult) -> int:
        failure = found.failure
        shape: dict[str, Any] = {
            "id": found.taskid,
            "state": found.status,
            "reason": found.reason,
            "engineid": found.engineid,
            "attempts": len(found.attempts),
            "submitted_at": moment(found.submitted_at.timestamp()),
            "started_at": moment(found.started_at.timestamp()),
            "completed_at": moment(found.completed_at.timestamp()),
            "duration": found.duration,
            "stdout": found.stdout,
            "stderr": found.stderr,
        }
        if failure is not None:
            error = {"type": failure.etype, "text": failure.getErrorMessage(), "traceback": failure.getTraceback()}
            print_json({**shape, "error": error})
            return FAILED
        print_json({**shape, "result": _plain(found.result)})
        return OK


def _value(value: object) -> str:
    """Return the repr of a value, line by line."""
    return "\n".join(map(printing.safe, shown(value, VALUE_MAX).splitlines()))


def _plain(value: Any) -> Any:
    """Return a value for JSON; a value that JSON cannot represent becomes its repr."""
    if isinstance(value, dict):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    is_json = value is None or isinstance(value, bool | int | str) or (isinstance(value, float) and isfinite(value))
    return value if is_json else shown(value, VALUE_MAX)


def _wait_for(client: TaskClient, task: int) -> None:
    again = f"`ipytaskfarm result {task} --wait` waits for it again, `ipytaskfarm abort {task}` ends it"
    client.session.watch([task])
    client.session.wait({task}, go_on_text=f"task {task} continues: {again}")


class Failures(JsonCommand):
    """``ipytaskfarm failures``"""

    name = "failures"
    description = """
Shows the failed tasks, grouped by error and place, the largest group last. Of a task that was submitted again it shows
the retry, if that has failed. With --traceback it shows one traceback per
group. The exit code is 0 whether or not tasks have failed.
"""
    arguments = "[ID…]"
    examples = """
        ipytaskfarm failures
        ipytaskfarm failures --job primes --traceback
    """
    job = flag("NAME", Unicode("", help="only tasks of this job: its name (the latest of that name), or its id"))
    traceback = switch("show the traceback of one task of each group", "t traceback")

    def carry_out(self) -> int:
        given = ids_given(self, self.job)
        with connect(self.farm) as questioner:
            job = find_job(questioner, self.job).id if self.job else None
            unknown = [] if given is None else task_rows_of(questioner, given).unknown
        from ipytaskfarm.client import TaskClient

        with TaskClient(self.farm) as client:
            groups = client.failures(given, job)
        if self.json:
            print_json([
                {"type": g.etype, "place": g.place, "ids": g.ids, "text": g.message, "traceback": g.traceback}
                for g in groups
            ])  # fmt: skip
            refuse_unknown(unknown)
            return OK
        if groups or not unknown:
            printing.print_table(failure_table(groups[::-1]))
        for group in groups[::-1] if self.traceback else ():
            print(f"\ntask {group.ids[0]}:")
            for line in group.traceback.rstrip().splitlines():
                print(printing.safe(line))
        refuse_unknown(unknown)
        return OK


def failure_table(groups: list[FailureGroup]) -> Table:
    """Return a table of groups of failed tasks, in the order given."""
    columns = (
        Column("count"),
        Column("error"),
        Column("text", least=20, cut=summary),
        Column("place", 1, least=20, cut=ending),
        Column("tasks", 2),
    )
    rows = [(len(g), g.etype, g.message, g.place, _some(g.ids)) for g in groups]
    return Table(columns, rows, nothing="no failed tasks")


def _some(ids: list[int]) -> str:
    return ", ".join(map(str, ids[:4])) + (", …" if len(ids) > 4 else "")


class Debug(Command):
    """``ipytaskfarm debug``"""

    name = "debug"
    description = """
Opens the debugger where a task has failed: on the engine that is frozen for it (tasks with on_failure="hold"), or else
in this terminal, where it runs the task again with its function, arguments and environment. Modules are imported as
Python finds them here, so start the command where your code can be imported.
"""
    arguments = "ID"
    examples = """
        ipytaskfarm debug 73
        ipytaskfarm debug 73 --here
        ipytaskfarm debug 73 --frames
    """
    here = switch("run the task here, although an engine is frozen for it")
    frames = switch("do not run the task; open the frames that came with its failure")

    def carry_out(self) -> int:
        task = self.single_task()
        if self.here and self.frames:
            raise UsageError("--here runs the task, --frames does not: not both")
        connect(self.farm).close()  # without a farm this prints one line, before the client is imported
        from ipytaskfarm.client import TaskClient, debugging

        with TaskClient(self.farm) as client:
            try:
                client.debug(task, run=False if self.frames else self.here or None)
            except BaseException as error:
                if debugging.raised_by_task(error):
                    own = debugging.users_part(error.__traceback__)
                    traceback.print_exception(type(error), error, own)
                    print(f"task {task} raised this; there is no terminal for a debugger", file=sys.stderr)
                    return FAILED
                if isinstance(error, errors.TaskFarmError | ValueError):
                    raise UsageError(f"task {task}: {error}") from None
                raise
        return OK
