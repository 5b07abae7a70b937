"""``ipytaskfarm jobs``, and the common part of commands with ``--job NAME``."""

from __future__ import annotations

from collections.abc import Sequence

from traitlets import Unicode

from ipytaskfarm.cli import printing
from ipytaskfarm.cli.application import OK, Command, JsonCommand, UsageError, flag
from ipytaskfarm.cli.json_output import job_shape, print_json, task_shape
from ipytaskfarm.core import messages
from ipytaskfarm.core.messages import tables, view
from ipytaskfarm.deployment.light_client import Questioner, connect
from ipytaskfarm.display.farm_tables import PAGE, job_table, task_table

NAMED = 10
"""Largest number of ids in an error."""
LONG_S = 60.0
"""The time limit for questions about very many tasks."""


def jobs_of(questioner: Questioner, wanted: str | None, *, tasks: bool = False) -> list[tables.JobRow]:
    """Return the jobs of this name or id (None: all), the latest last."""
    return questioner.answer_for(messages.FindJobs(wanted, tasks), tables.JobTable, timeout_s=LONG_S).rows


def failed_in(questioner: Questioner, rows: Sequence[tables.JobRow]) -> dict[str, int]:
    """Return how many tasks of jobs have failed and were not submitted again, as far as the farm has counted them."""
    return questioner.answer_for(view.ReadCauses.of_jobs(rows), view.CauseTable, timeout_s=LONG_S).failed(rows)


def find_job(questioner: Questioner, wanted: str) -> tables.JobRow:
    """Return the latest job of this name, or the job of this id, with the ids of its tasks.

    Raises:
        IndexError: there is none.
    """
    rows = jobs_of(questioner, wanted, tasks=True)
    if not rows:
        raise IndexError(f"there is no job {wanted!r} (never submitted, or removed): `ipytaskfarm jobs` lists all jobs")
    return rows[-1]


def ids_given(command: Command, job: str = "") -> list[int] | None:
    """Return the ids on the command line; None: there are none.

    Raises:
        UsageError: ids are given and a job too.
    """
    if not command.extra_args:
        return None
    if job:
        raise UsageError("ids or --job: not both")
    return command.number_arguments("task")


def ids_of_job(questioner: Questioner, job: str, state: str | None = None) -> list[int]:
    """Return the ids of a job's tasks, or of those in `state`."""
    ids = find_job(questioner, job).task_ids()
    return ids if state is None else [row.id for row in task_rows(questioner, ids, state)]


def task_rows(questioner: Questioner, ids: list[int], state: str | None = None) -> list[tables.TaskRow]:
    """Return the given tasks that are in the given state, as lines of a table."""
    return task_rows_of(questioner, ids, state).rows


def task_rows_of(questioner: Questioner, ids: list[int], state: str | None = None) -> tables.TaskRows:
    """Return lines of a table as `task_rows` does, with the ids that the farm does not know."""
    return questioner.answer_for(messages.ListTasks(ids, None, state), tables.TaskRows, timeout_s=LONG_S)


def refuse_unknown(ids: Sequence[int]) -> None:
    """Raise IndexError, which names the tasks, if there are any."""
    if ids:
        named = ", ".join(map(str, ids[:NAMED])) + (f" and {len(ids) - NAMED:,} more" if len(ids) > NAMED else "")
        raise IndexError(f"there is no task {named} (never submitted, or removed): `ipytaskfarm tasks` lists all tasks")


class OnTasks(JsonCommand):
    """A command about tasks: ids, or those of a job."""

    arguments = "ID… | --job NAME"
    job = flag("NAME", Unicode("", help="the tasks of this job: its name (the latest of that name), or its id"))

    def read(self, argv: list[str]) -> None:
        """Read the command line, and check that it names the tasks, before any question is asked."""
        super().read(argv)
        if not self.named_otherwise():
            self.number_arguments("task")
        elif self.extra_args:
            raise UsageError("ids, or all of a kind: not both")

    def named_otherwise(self) -> bool:
        """Return whether the tasks are named by something other than their ids."""
        return bool(self.job)

    def chosen(self, questioner: Questioner, state: str | None = None) -> list[int]:
        """Return the ids of the tasks; for a job, of those in `state` (None: all)."""
        return ids_of_job(questioner, self.job, state) if self.job else self.number_arguments("task")


class Jobs(JsonCommand):
    """``ipytaskfarm jobs``"""

    name = "jobs"
    description = """
Lists the jobs of all clients of a farm, the latest last; or shows one job, by name or id, with its tasks. A job
disappears when all its tasks have been removed.
"""
    arguments = "[NAME]"
    examples = """
        ipytaskfarm jobs
        ipytaskfarm jobs primes --json
    """

    def carry_out(self) -> int:
        if len(self.extra_args) > 1:
            raise UsageError("one job at a time")
        with connect(self.farm) as questioner:
            if self.extra_args:
                job = find_job(questioner, self.extra_args[0])
                return self._show_one(job, failed_in(questioner, [job]), task_rows(questioner, job.task_ids()))
            rows = jobs_of(questioner, None)
            failed = failed_in(questioner, rows)
        if self.json:
            print_json([job_shape(row, failed) for row in rows])
        elif rows:
            printing.print_table(job_table(rows, failed))
        else:
            print("no jobs")
        return OK

    def _show_one(self, job: tables.JobRow, failed: dict[str, int], tasks: list[tables.TaskRow]) -> int:
        if self.json:
            print_json({**job_shape(job, failed), "members": [task_shape(row) for row in tasks]})
        else:
            printing.print_table(job_table([job], failed))
            print()
            more = f"`ipytaskfarm tasks --job {job.id} --last 0` shows all"
            printing.print_table(task_table(tasks, page=PAGE, more=more))
        return OK
