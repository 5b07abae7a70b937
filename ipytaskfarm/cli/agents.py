"""``ipytaskfarm agents``: lists, adds and removes agents on other machines."""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from textwrap import wrap
from typing import Any, ClassVar

from traitlets import Float, Int, List, Unicode

from ipytaskfarm.cli import printing
from ipytaskfarm.cli.application import OK, JsonCommand, UsageError, flag, switch, unknown_action
from ipytaskfarm.cli.json_output import group_shape, print_json
from ipytaskfarm.cli.start import option_pairs
from ipytaskfarm.core.arguments import check_seconds
from ipytaskfarm.core.messages import FarmStatus, tables
from ipytaskfarm.core.parsing import goes_by
from ipytaskfarm.deployment import agent_groups as grouped
from ipytaskfarm.deployment.light_client import connect
from ipytaskfarm.display.tables import Column
from ipytaskfarm.launchers.interface import ENTRY_POINTS
from ipytaskfarm.settings.checks import Agents

AGENT_COLUMNS = (
    "agent",
    Column("node", 2),
    "state",
    "engines",
    Column("idle", 4, right=True),
    Column("time left", 3, right=True),
    Column("its system says", 1),
)


class RunAgents(JsonCommand):
    """``ipytaskfarm agents``"""

    name = "agents"
    arguments = "list | add LAUNCHER [N] | remove NAME… | launchers"
    description = """
Lists the agents of a farm and their groups; requests N more agents with engines from a launcher (slurm, pbs, lsf, ssh,
dask); or ends some of them after the tasks that run there. `launchers` shows all launchers with their options.
"""
    examples = """
        ipytaskfarm agents add slurm 3 --engines 4 --time-limit 2h --option partition=short
        ipytaskfarm agents add slurm 3 --dry-run
        ipytaskfarm agents add ssh node01:4 me@node02:8
        ipytaskfarm agents list
        ipytaskfarm agents remove slurm-1
    """
    engines = flag(
        "N", Int(None, allow_none=True, help="how many engines each agent starts (default: one per usable core)")
    )
    time_limit = flag(
        "SPAN", Unicode(None, allow_none=True, help="when the batch system ends the agents: 90m, 2h, 1:30:00")
    )
    leave = flag(
        "SECONDS", Float(25.0, help="how long running tasks may continue after an agent was told to end (default: 25)")
    )
    option = flag(
        "KEY=VALUE",
        List(Unicode(), help="an option of the launcher, see `agents launchers`; may be given several times"),
    )
    template = flag(
        "FILE", Unicode(None, allow_none=True, help="your own script instead of the launcher's, see --dry-run")
    )
    python = flag(
        "PATH",
        Unicode(None, allow_none=True, help="the interpreter on the agents' machines (default: this one's path)"),
    )
    drain = flag(
        "SECONDS",
        Float(None, allow_none=True, help="remove: how long running tasks may continue (default: to their end)"),
    )
    dry_run = switch("add: show what would be given to the launcher, and start nothing")

    of_action: ClassVar[dict[str, tuple[str, ...]]] = {
        **dict.fromkeys(("engines", "time_limit", "leave", "option", "template", "python", "dry_run"), ("add",)),
        "drain": ("remove",),
    }

    def carry_out(self) -> int:
        what, *words = self.extra_args or ["list"]
        actions = {"list": self._list, "add": self._add, "remove": self._remove, "launchers": self._launchers}
        if what not in actions:
            raise unknown_action(what, actions)
        self.check_action(what)
        return actions[what](words)

    def _list(self, words: list[str]) -> int:
        if words:
            raise UsageError("`agents list` takes nothing more")
        groups = grouped.read_groups(self.home())
        with connect(self.farm) as questioner:
            state = questioner.answer_for(FarmStatus(), tables.FarmState)
        statuses = grouped.statuses(groups)
        if self.json:
            print_json({"groups": [group_shape(group) for group in groups], "agents": state.agents,
                        "statuses": {name: status._asdict() for name, status in statuses.items()}})  # fmt: skip
            return OK
        printing.table(AGENT_COLUMNS, _rows(state, statuses))
        return OK

    def _add(self, words: list[str]) -> int:
        if not words:
            raise UsageError("which launcher? `ipytaskfarm agents launchers` shows them")
        try:
            agents = self._agents(*words)
            if self.dry_run:
                print(grouped.preview(self.home(), agents))
                return OK
            connect(self.farm).close()  # raises FarmNotRunning before anything else is done
            group = grouped.add(self.home(), agents)
        except (ValueError, TypeError) as error:
            raise UsageError(str(error)) from None
        if self.json:
            print_json(group_shape(group))
            return OK
        asked = printing.number(len(group.names), "agent")
        print(f"{group.name}: {asked} requested; `ipytaskfarm agents list` shows them")
        return OK

    def _agents(self, launcher: str, *words: str) -> Agents:
        options = option_pairs("--option", self.option)
        if self.template is not None:
            options["template"] = str(Path(self.template).expanduser().absolute())
        count = None
        if len(words) == 1 and words[0].isdecimal():
            count = int(words[0])
        elif words:
            known = [entry for entry in entry_points(group=ENTRY_POINTS) if entry.name == launcher]
            if known and "hosts" not in _options_of(known[0]):
                raise ValueError(f"how many agents, {' '.join(words)!r}? `agents add {launcher} N`, with N at least 1")
            options["hosts"] = ",".join(words)
        return Agents(
            launcher, count, self.engines, self.time_limit, self.leave, python=self.python, options=options
        )  # fmt: skip

    def _remove(self, words: list[str]) -> int:
        if not words:
            raise UsageError("which? Give names of agents or groups, as `ipytaskfarm agents list` shows them")
        connect(self.farm).close()
        try:
            names = grouped.remove(self.home(), words, check_seconds("--drain", self.drain))
        except ValueError as error:
            raise UsageError(str(error)) from None
        if self.json:
            print_json({"agents": names})
        else:
            print(f"{printing.number(len(names), 'agent')} removed: {', '.join(names)}")
        return OK

    def _launchers(self, words: list[str]) -> int:
        if words:
            raise UsageError("`agents launchers` takes nothing more")
        found = sorted(entry_points(group=ENTRY_POINTS), key=lambda entry: entry.name)
        kinds = {entry.name: _options_of(entry) for entry in found}
        if self.json:
            print_json(kinds)
            return OK
        for name, options in kinds.items():
            print(name)
            for option, text in options.items():
                begin = f"    {option:<12} " if len(option) <= 12 else f"    {option}\n{'':17}"
                lines = wrap(text, printing.width() - 17, break_on_hyphens=False)
                print("\n".join(f"{begin if at == 0 else ' ' * 17}{line}" for at, line in enumerate(lines)))
        return OK


def _options_of(entry: EntryPoint) -> dict[str, str]:
    try:
        return dict(entry.load().OPTIONS)
    except ImportError as error:
        return {"-": f"cannot be used: {error}"}


def _rows(state: tables.FarmState, statuses: dict[str, Any]) -> list[tuple[object, ...]]:
    rows: list[tuple[object, ...]] = []
    seen: set[str] = set()
    for row in state.agents:
        name = row["name"]
        word = next((status for each, status in statuses.items() if goes_by(name, [each])), None)
        seen.add(name)
        says = "" if word is None else " ".join(filter(None, (word.state, word.where, word.why)))
        idle = printing.span(row["idle"] and round(row["idle"]))
        left = printing.span(row["time_left"] and round(row["time_left"]))
        rows.append((name or "(this machine's own)", row["node"], row["state"], row["engines"], idle, left, says))
    for name, status in statuses.items():
        if not any(goes_by(each, [name]) for each in seen):
            rows.append((name, status.where, status.state, "", "", "", status.why))
    return rows
