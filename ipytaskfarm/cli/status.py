"""Commands that look at a running farm: status, tasks, explain."""

from __future__ import annotations

from typing import Any

from traitlets import Enum, Int, Unicode

from ipytaskfarm.cli import printing
from ipytaskfarm.cli.application import OK, JsonCommand, UsageError, values
from ipytaskfarm.cli.jobs import LONG_S, find_job, task_rows, task_table
from ipytaskfarm.cli.json_output import farm_shape, print_json, task_shape
from ipytaskfarm.core import messages
from ipytaskfarm.core.messages import tables
from ipytaskfarm.core.requirements import amount
from ipytaskfarm.deployment.light_client import Questioner, connect

STATES = ("scheduled", "pending", "succeeded", "failed", "unfinished", "finished")


def farm_state(questioner: Questioner) -> tables.FarmState:
    """Return what the controller says of itself."""
    state = questioner.answer(messages.FarmStatus())
    assert isinstance(state, tables.FarmState)
    return state


def engine_table(rows: list[tables.EngineRow]) -> None:
    """The engines, one a line."""
    shown = [
        (
            row.id,
            row.state,
            "" if row.task is None else row.task,
            row.ahead or "",
            row.node,
            row.pid,
            printing.ago(row.started_s),
            printing.safe(row.environment, 30),
            row.note,
        )
        for row in rows
    ]
    headings = ("engine", "state", "task", "sent ahead", "node", "pid", "up", "environment", "")
    printing.table(headings, shown, right=(0, 2, 3, 5))


def node_table(agents: list[dict[str, Any]]) -> None:
    """What each node has, how it does, and what is reserved there."""
    shown = [
        (
            printing.safe(a["node"], 40),
            printing.safe(a["guard"] or a["state"], 60),
            a["engines"],
            "" if a["slots"] is None else a["slots"],
            a["cores"],
            "" if a["load"] is None else f"{a['load']:.0%}",
            printing.size(a["memory"]),
            "" if a["free_memory"] is None else printing.size(a["free_memory"]),
            "" if a["free_disk"] is None else printing.size(a["free_disk"]),
            ", ".join(amount(name, value) for name, value in a["used"].items()),
        )
        for a in agents
    ]
    headings = ("node", "state", "engines", "slots", "cores", "load", "memory", "free", "disk free", "reserved")
    printing.table(headings, shown, right=(2, 3, 4, 5, 6, 7, 8))


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
        words = ["stopping" if state.stopping else "held: no task is started" if state.held else "running"]
        print(f"farm {state.name!r}: {words[0]}, up {printing.ago(state.started_s)}, controller pid {state.pid}")
        counts = state.counts
        print(
            f"tasks: {counts.get('scheduled', 0)} waiting, {counts.get('pending', 0)} running,"
            f" {counts.get('succeeded', 0)} succeeded, {counts.get('failed', 0)} failed"
        )
        clients = printing.number(state.clients, "client")
        print(f"store: {printing.size(state.store_bytes)}; {clients}; {printing.number(state.wanted, 'engine')} wanted")
        if state.agents:
            node_table(state.agents)
        if state.engines:
            engine_table(state.engines)
        for line in state.losses[-5:]:
            print(f"lost: {printing.safe(line)}")
        return OK


class Tasks(JsonCommand):
    """``ipytaskfarm tasks``"""

    name = "tasks"
    description = "Shows a table of tasks, in order of their ids: the last 100 unless asked for more."
    arguments = "[ID…]"
    examples = """
        ipytaskfarm tasks --state failed
        ipytaskfarm tasks --job primes --state unfinished
        ipytaskfarm tasks 12 15-19 --json
    """

    state = Enum([None, *STATES], default_value=None, allow_none=True, help=f"one of {', '.join(STATES)}").tag(
        config=True, metavar="STATE"
    )
    named = Unicode("", help="only tasks of this name").tag(config=True, metavar="NAME")
    job = Unicode("", help="only tasks of this job: its name (the latest of that name), or its id").tag(
        config=True, metavar="NAME"
    )
    last = Int(100, max=2**63 - 1, help="how many of the last ones to show; 0: all").tag(config=True, metavar="N")

    aliases: Any = values(
        ("state", "Tasks.state"), ("name", "Tasks.named"), ("job", "Tasks.job"), ("last", "Tasks.last")
    )

    def carry_out(self) -> int:
        ids = self.number_arguments("task") if self.extra_args else None
        if ids is not None and self.job:
            raise UsageError("ids or --job: not both")
        with connect(self.farm) as questioner:
            if self.job:
                ids = find_job(questioner, self.job).ids
            asked = messages.ListTasks(ids, self.named or None, self.state, max(0, self.last))
            reply = questioner.answer(asked, timeout_s=LONG_S)
        assert isinstance(reply, tables.TaskRows)
        if self.json:
            print_json([task_shape(row) for row in reply.rows])
        else:
            task_table(reply.rows)
            if reply.omitted:
                print(f"… and {reply.omitted:,} before these; --last 0 shows all")
        if reply.unknown:
            raise IndexError(
                f"there is no task {', '.join(map(str, reply.unknown))} (never handed in, or removed):"
                " `ipytaskfarm tasks` shows what there is"
            )
        return OK


class Explain(JsonCommand):
    """``ipytaskfarm explain``"""

    name = "explain"
    description = "Says where a task is and why: its attempts, and for a waiting one what each engine lacks."
    arguments = "ID"
    examples = "ipytaskfarm explain 73"

    def carry_out(self) -> int:
        ids = self.number_arguments("task")
        if len(ids) != 1:
            raise UsageError("one task at a time")
        with connect(self.farm) as questioner:
            reply = questioner.answer(messages.ExplainTasks(ids[0]))
            rows = task_rows(questioner, ids) if self.json else []
        assert isinstance(reply, messages.TextReply)
        if self.json:
            print_json({**(task_shape(rows[0]) if rows else {"id": ids[0]}), "explanation": reply.text})
            return OK
        for line in reply.text.splitlines():
            print(printing.safe(line))
        return OK
