"""``ipytaskfarm engines``: lists, adds and removes engines."""

from __future__ import annotations

from ipytaskfarm.cli import printing
from ipytaskfarm.cli.application import OK, JsonCommand, UsageError, unknown_action
from ipytaskfarm.cli.json_output import engine_shape, print_json
from ipytaskfarm.core import messages
from ipytaskfarm.core.arguments import INT_MAX
from ipytaskfarm.core.messages import tables
from ipytaskfarm.deployment.light_client import connect
from ipytaskfarm.display.farm_tables import engine_table, frozen_table


class Engines(JsonCommand):
    """``ipytaskfarm engines``"""

    name = "engines"
    arguments = "list | add [N] | remove ID… | release [TASK…]"
    description = """
Lists the engines of a farm, starts N more (default: 1), or ends the named ones after the tasks that they run. A
changed number of engines survives crashes and restarts of the controller. `release` ends the engines that are
frozen for these failed tasks, or for all.
"""
    examples = """
        ipytaskfarm engines list
        ipytaskfarm engines add 2
        ipytaskfarm engines remove 3
        ipytaskfarm engines release 73
    """

    def carry_out(self) -> int:
        what, *words = self.extra_args or ["list"]
        self.extra_args = words
        actions = {"list": self._list, "add": self._add, "remove": self._remove, "release": self._release}
        if what not in actions:
            raise unknown_action(what, actions)
        return actions[what]()

    def _list(self) -> int:
        if self.extra_args:
            raise UsageError("`engines list` takes nothing more")
        with connect(self.farm) as questioner:
            reply = questioner.answer_for(messages.ListEngines(), tables.EngineTable)
        if self.json:
            print_json([engine_shape(row) for row in reply.rows])
        elif reply.rows:
            printing.print_table(engine_table(reply.rows))
        else:
            print("no engines")
        if reply.frozen and not self.json:
            print("frozen for a debugger (`ipytaskfarm debug ID` opens one):")
            printing.print_table(frozen_table(reply.frozen))
        return OK

    def _release(self) -> int:
        tasks = self.number_arguments("task") if self.extra_args else None
        with connect(self.farm) as questioner:
            reply = questioner.answer_for(messages.ReleaseFrozen(tasks), messages.NumberReply)
        if self.json:
            print_json({"released": reply.value})
        else:
            print(f"{printing.number(reply.value, 'frozen engine')} released")
        return OK

    def _add(self) -> int:
        word, *more = self.extra_args or ["1"]
        if more or not word.isdecimal() or int(word) < 1:
            raise UsageError(f"how many, {' '.join(self.extra_args)!r}? `engines add N`, with N at least 1")
        with connect(self.farm) as questioner:
            reply = questioner.answer_for(messages.SetWanted(more=min(int(word), INT_MAX)), messages.NumberReply)
        return self._say(reply.value, "they come up within a second or two")

    def _remove(self) -> int:
        ids = self.number_arguments("engine")
        with connect(self.farm) as questioner:
            reply = questioner.answer_for(messages.RemoveEngines(ids), messages.NumberReply)
        return self._say(reply.value, "a running task is finished first")

    def _say(self, wanted: int, when: str) -> int:
        if self.json:
            print_json({"wanted": wanted})
        else:
            print(f"{printing.number(wanted, 'engine')} wanted now; {when}")
        return OK
