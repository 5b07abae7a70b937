"""The command that changes the priority of tasks: priority."""

from __future__ import annotations

from typing import Any

from traitlets import Int

from ipytaskfarm.cli import printing
from ipytaskfarm.cli.application import OK, UsageError, values
from ipytaskfarm.cli.jobs import LONG_S, OnTasks, find_job
from ipytaskfarm.cli.json_output import print_json
from ipytaskfarm.cli.task_actions import NO_TASK, tell_refused
from ipytaskfarm.core import messages
from ipytaskfarm.core.arguments import INT_MAX, INT_MIN
from ipytaskfarm.deployment.light_client import connect


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
    to = Int(None, allow_none=True, min=INT_MIN, max=INT_MAX, help="the new priority").tag(config=True, metavar="N")
    aliases: Any = values(("job", "OnTasks.job"), ("to", "ChangePriority.to"))

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
