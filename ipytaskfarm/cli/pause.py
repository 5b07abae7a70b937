"""Commands that hold work back and let it go on: pause, resume, drain."""

from __future__ import annotations

import sys

from traitlets import Unicode

from ipytaskfarm.cli import printing
from ipytaskfarm.cli.application import FAILED, OK, JsonCommand, UsageError, flag, switch
from ipytaskfarm.cli.jobs import find_job
from ipytaskfarm.cli.json_output import print_json
from ipytaskfarm.core import messages
from ipytaskfarm.core.messages import tables
from ipytaskfarm.deployment.light_client import Questioner, connect


class PauseCommand(JsonCommand):
    """The common part of pause and resume, for a job or for the whole farm."""

    job = flag("NAME", Unicode("", help="only this job: its name (the latest of that name), or its id"))
    on = True

    def carry_out(self) -> int:
        with connect(self.farm) as questioner:
            was, scheduled = self._of_job(questioner) if self.job else self._of_farm(questioner)
        if self.json:
            print_json({
                "farm": self.farm, "job": self.job or None, "paused": self.on, "already": was is self.on,
                "scheduled": scheduled,
            })  # fmt: skip
            return OK
        what = f"job {printing.safe(self.job)!r}" if self.job else f"farm {self.farm!r}"
        already = " already" if was is self.on else ""
        print(
            f"{what} is{already} {'paused' if self.on else 'running'}; {printing.number(scheduled, 'task')} scheduled"
        )
        return OK

    def _of_farm(self, questioner: Questioner) -> tuple[bool, int]:
        """Pause or resume the farm; return whether it was held before, and how many tasks wait."""
        reply = questioner.answer_for(messages.HoldFarm(self.on), messages.FlagReply)
        status = questioner.answer_for(messages.QueueStatus(), tables.QueueStatusReply)
        return reply.value, status.counts.get("scheduled", 0)

    def _of_job(self, questioner: Questioner) -> tuple[bool, int]:
        job = find_job(questioner, self.job)
        reply = questioner.answer_for(messages.PauseJobs([job.id], self.on), messages.NumberReply)
        return job.paused, reply.value


class Pause(PauseCommand):
    """``ipytaskfarm pause``"""

    name = "pause"
    description = """
Pauses a farm, or one of its jobs: running tasks continue, but no further task starts until `ipytaskfarm resume`.
"""
    examples = """
        ipytaskfarm pause
        ipytaskfarm pause --job primes
    """


class Resume(PauseCommand):
    """``ipytaskfarm resume``"""

    name = "resume"
    description = """
Resumes a farm that was paused, or started with --hold; or one of its jobs. Nodes that were taken out of use because
all tasks failed on them get tasks again when the farm is resumed.
"""
    examples = """
        ipytaskfarm resume
        ipytaskfarm resume --job primes
    """
    on = False


class Drain(JsonCommand):
    """``ipytaskfarm drain``"""

    name = "drain"
    description = """
Starts no further tasks on the engines of these nodes, while running tasks continue: for example before a machine is
shut down. This survives restarts of controller and agents, until --off.
"""
    arguments = "NODE…"
    examples = """
        ipytaskfarm drain node7
        ipytaskfarm drain node7 --off
    """
    off = switch("start tasks on these nodes again")

    def carry_out(self) -> int:
        nodes = list(dict.fromkeys(self.extra_args))
        if not nodes:
            raise UsageError("which nodes? `ipytaskfarm status` shows their names")
        with connect(self.farm) as questioner:
            questioner.answer(messages.DrainNode(nodes, not self.off))
            state = questioner.answer_for(messages.FarmStatus(), tables.FarmState)
        busy = {node: 0 for node in nodes if any(agent["node"] == node for agent in state.agents)}
        for row in state.engines:
            if row.node in busy and row.task is not None:
                busy[row.node] += 1
        absent = [node for node in nodes if node not in busy]
        if self.json:
            shapes = [{"node": n, "drained": not self.off, "there": n in busy, "busy": busy.get(n, 0)} for n in nodes]
            print_json(shapes)
        else:
            for node in nodes if self.off else busy:
                rest = f"drained; {printing.number(busy.get(node, 0), 'engine')} still running tasks"
                print(f"node {printing.safe(node)}: {'gets tasks again' if self.off else rest}")
        if absent and not self.off:
            there = ", ".join(sorted({printing.safe(agent["node"]) for agent in state.agents})) or "none"
            for node in map(printing.safe, absent):
                told = f"no agent of the farm has this name now (nodes: {there}); a later one gets no tasks"
                print(f"node {node}: {told}. `ipytaskfarm drain {node} --off` takes that back", file=sys.stderr)
            return FAILED
        return OK
