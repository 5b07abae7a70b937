"""Commands that show a running farm: status, tasks, explain."""

from __future__ import annotations

import msgspec
from traitlets import Enum, Int, Unicode

from ipytaskfarm.cli import printing
from ipytaskfarm.cli.application import OK, JsonCommand, flag
from ipytaskfarm.cli.jobs import LONG_S, ids_given, ids_of_job, refuse_unknown, task_rows
from ipytaskfarm.cli.json_output import farm_shape, print_json, task_shape
from ipytaskfarm.core import messages
from ipytaskfarm.core.messages import tables
from ipytaskfarm.core.messages.payload import ResultBody
from ipytaskfarm.core.states import ACCEPTED_STATES, ASKED_STATES, state_counts
from ipytaskfarm.deployment.light_client import Questioner, connect
from ipytaskfarm.display.farm_tables import engine_table, frozen_table, node_table, task_table
from ipytaskfarm.display.text import output_so_far, with_local_times
from ipytaskfarm.system.user_code import with_cells


def farm_state(questioner: Questioner) -> tables.FarmState:
    """Return the controller's report about itself."""
    return questioner.answer_for(messages.FarmStatus(), tables.FarmState)


def head_lines(state: tables.FarmState) -> list[str]:
    """Return what a farm does, how many tasks are in which state, and why it accepts no task, in two or three lines."""
    word = "stopping" if state.stopping else "paused: no task is started" if state.held else "running"
    counts = ", ".join(f"{count:,} {name}" for name, count in state_counts(state.counts).items())
    return [
        f"farm {state.name!r}: {word}, up {printing.ago(state.started_s)}, controller pid {state.pid}",
        f"tasks: {counts}",
        *([] if state.stopping or not state.refusing else [f"no task is accepted: {printing.safe(state.refusing)}"]),
    ]


class Status(JsonCommand):
    """``ipytaskfarm status``"""

    name = "status"
    description = "Shows one farm: its controller, its tasks by state, its nodes and its engines."
    examples = """
        ipytaskfarm status
        ipytaskfarm status --farm nightly --json
    """

    def carry_out(self) -> int:
        with connect(self.farm) as questioner:
            state = farm_state(questioner)
        if self.json:
            print_json(farm_shape(state))
            return OK
        print("\n".join(head_lines(state)))
        clients = printing.number(state.clients, "client")
        print(f"store: {printing.size(state.store_bytes)}; {clients}; {printing.number(state.wanted, 'engine')} wanted")
        if state.agents:
            printing.print_table(node_table(state.agents))
        if state.engines:
            printing.print_table(engine_table(state.engines))
        if state.frozen:
            print("frozen for a debugger (`ipytaskfarm debug ID` opens one):")
            printing.print_table(frozen_table(state.frozen))
        for line in state.losses[-5:]:
            print(f"lost: {printing.safe(line)}")
        return OK


class Tasks(JsonCommand):
    """``ipytaskfarm tasks``"""

    name = "tasks"
    description = "Shows a table of tasks, ordered by id: the last 100, or more with --last."
    arguments = "[ID…|STATE]"
    examples = """
        ipytaskfarm tasks failed
        ipytaskfarm tasks --job primes --state unfinished
        ipytaskfarm tasks 12 15-19 --json
    """

    state = Enum(
        [None, *ACCEPTED_STATES], default_value=None, allow_none=True, help=f"one of {', '.join(ASKED_STATES)}"
    ).tag(config=True, metavar="STATE", flag="")
    named = flag("NAME", Unicode("", help="only tasks of this name"), "name")
    job = flag("NAME", Unicode("", help="only tasks of this job: its name (the latest of that name), or its id"))
    last = flag("N", Int(100, min=0, max=2**63 - 1, help="the last N tasks; 0: all (default: 100)"))

    def carry_out(self) -> int:
        if self.state is None and len(self.extra_args) == 1 and self.extra_args[0] in ACCEPTED_STATES:
            self.state, self.extra_args = self.extra_args[0], []
        given = ids_given(self, self.job)
        with connect(self.farm) as questioner:
            ids = ids_of_job(questioner, self.job) if self.job else given
            asked = messages.ListTasks(ids, self.named or None, self.state, self.last)
            reply = questioner.answer_for(asked, tables.TaskRows, timeout_s=LONG_S)
        if self.json:
            print_json([task_shape(row) for row in reply.rows])
        else:
            printing.print_table(task_table(reply.rows, omitted=reply.omitted, more="--last 0 shows all"))
        refuse_unknown(reply.unknown)
        return OK


class Explain(JsonCommand):
    """``ipytaskfarm explain``"""

    name = "explain"
    description = "Explains the state of a task: its attempts and, if it waits, why no engine runs it."
    arguments = "ID"
    examples = "ipytaskfarm explain 73"

    def carry_out(self) -> int:
        task = self.single_task()
        with connect(self.farm) as questioner:
            reply = questioner.answer_for(messages.ExplainTasks(task), messages.TextReply)
            rows = task_rows(questioner, [task]) if self.json else []
            has_failed = reply.text.startswith(f"task {task} failed")
            output = _output_of_failed(questioner, task) if has_failed else questioner.latest_output(task)
        text = "\n".join([with_local_times(reply.text), *output])
        if self.json:
            print_json({**(task_shape(rows[0]) if rows else {"id": task}), "explanation": text})
            return OK
        for line in with_cells(text).splitlines():
            print(printing.safe(line))
        return OK


def _output_of_failed(questioner: Questioner, task: int) -> list[str]:
    """Return the last lines that a failed task has printed."""
    ends = questioner.answer_for(messages.FetchResults([task]), messages.Fetched).finals  # none: cleared since
    body = msgspec.msgpack.decode(ends[0].body, type=ResultBody) if ends and ends[0].body else ResultBody()
    return output_so_far((body.stdout, body.stderr))
