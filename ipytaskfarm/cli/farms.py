"""Commands about whole farms, running or not: list, clean."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from traitlets import Unicode

from ipytaskfarm.cli import printing
from ipytaskfarm.cli.application import FAILED, OK, Command, JsonCommand, flag, no_such_farm, switch
from ipytaskfarm.cli.json_output import print_json
from ipytaskfarm.cli.status import farm_state
from ipytaskfarm.core import errors
from ipytaskfarm.core.messages import Clear, Cleared
from ipytaskfarm.deployment.home import Home
from ipytaskfarm.deployment.light_client import connect
from ipytaskfarm.display.tables import Column
from ipytaskfarm.system.odd_files import remove_entry

COLUMNS = (
    "farm",
    "state",
    "engines",
    Column("scheduled", 3, least=9),
    Column("running", 4, least=7),
    Column("finished", 5, least=8),
    Column("address", 2, least=21),
    Column("store", 1),
)


class List(JsonCommand):
    """``ipytaskfarm list``"""

    name = "list"
    description = "Lists the farms of this user, running and stopped; with --farm only that one."
    farm = flag("NAME", Unicode("", help="only the farm of this name"))

    def carry_out(self) -> int:
        farms = [_describe(home) for home in Home.all() if self.farm in ("", home.name)]
        if self.farm and not farms:
            raise no_such_farm(self.farm)
        if self.json:
            print_json(farms)
        elif farms:
            printing.table(COLUMNS, [_cells(farm) for farm in farms])
        else:
            print("no farms: `ipytaskfarm start` makes one")
        return OK


def _cells(farm: dict[str, Any]) -> list[object]:
    *known, store_bytes = farm.values()
    return ["" if value is None else value for value in known] + [printing.size(store_bytes)]


def _describe(home: Home) -> dict[str, Any]:
    farm: dict[str, Any] = {"name": home.name, "state": "stopped"}
    farm |= dict.fromkeys(("engines", "scheduled", "running", "finished", "address"))
    farm["store_bytes"] = home.store_bytes()
    try:
        info = home.living_info()
    except errors.SecurityError:
        return {**farm, "state": f"not known: ipytaskfarm doctor --farm {home.name}"}
    if info is None:
        return farm
    farm["address"] = f"{info.host}:{info.port}"
    try:
        with connect(home.name) as questioner:
            state = farm_state(questioner)
    except errors.TaskFarmError as error:
        return {**farm, "state": f"does not answer: {error}"}
    counts = state.counts
    return {
        **farm,
        "state": "stopping" if state.stopping else "paused" if state.held else "running",
        "engines": len(state.engines),
        "scheduled": counts.get("scheduled", 0),
        "running": counts.get("pending", 0),
        "finished": counts.get("succeeded", 0) + counts.get("failed", 0),
    }


class Clean(Command):
    """``ipytaskfarm clean``"""

    name = "clean"
    description = """
Cleans a farm, after asking. Of a running farm it removes the results of all ended tasks, and the stores that --fresh
has set aside. Of a stopped farm it removes stores that were set aside, old logs, and connection files and sockets that
a crash left behind; with --all it removes the whole farm with its store and its keys.
"""
    examples = """
        ipytaskfarm clean
        ipytaskfarm clean --farm old --all --yes
    """
    yes = switch("do not ask", "y yes")
    everything = switch("remove a stopped farm completely: waiting tasks, results, keys", "all")

    def carry_out(self) -> int:
        home = self.home()
        if home.living_info() is not None:
            if self.everything:
                raise errors.FarmExists(f"farm {home.name!r} runs: stop it first (ipytaskfarm stop --farm {home.name})")
            return self._clean_running(home)
        if not home.folder.exists():
            raise no_such_farm(home.name)
        # Its supervisor is about to start what looks stopped now.
        with home.lock():
            return self._clean_stopped(home)

    def _clean_running(self, home: Home) -> int:
        with connect(home.name) as questioner:
            counts = farm_state(questioner).counts
            finished = counts.get("succeeded", 0) + counts.get("failed", 0)
            if finished and printing.confirm(
                f"Forget {printing.number(finished, 'result')} of farm {home.name!r}?", yes=self.yes
            ):
                reply = questioner.answer_for(Clear(None), Cleared, timeout_s=120.0)
                print(f"forgot {printing.number(reply.count, 'result')}")
            elif not finished:
                print("no finished tasks")
        return self._remove(home.set_aside(), "stores set aside")

    def _clean_stopped(self, home: Home) -> int:
        if self.everything:
            question = f"Remove farm {home.name!r} altogether, with the tasks that wait, all results and its keys?"
            if not printing.confirm(question, yes=self.yes):
                return FAILED
            home.remove()
            print(f"farm {home.name!r} is gone")
            return OK
        return self._remove([*home.set_aside(), *home.stale_files()], "files")

    def _remove(self, paths: list[Path], what: str) -> int:
        if not paths:
            print(f"no old {what}")
            return OK
        for path in paths:
            print(f"    {path}")
        if not printing.confirm(f"Remove these {len(paths)} {what}?", yes=self.yes):
            return FAILED
        for path in paths:
            remove_entry(path)
        print(f"removed {len(paths)}")
        return OK
