"""``ipytaskfarm logs``"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

from traitlets import Bool, Int

from ipytaskfarm.cli.application import OK, Command, UsageError, switches, values
from ipytaskfarm.core.messages import Engines as EngineTableQuestion
from ipytaskfarm.core.messages import EngineTable
from ipytaskfarm.home import Home
from ipytaskfarm.questions import connect

FOLLOW_S = 0.2


class Logs(Command):
    """``ipytaskfarm logs``"""

    name = "logs"
    arguments = "[controller | agent | supervisor | engine N]"
    description = "Shows the end of a log (default: the controller's), of a stopped farm too."
    examples = """
        ipytaskfarm logs
        ipytaskfarm logs agent -f
        ipytaskfarm logs engine 3 --lines 500
    """
    follow = Bool(False, help="go on showing what is added").tag(config=True)
    lines = Int(100, help="how many of the last lines").tag(config=True, metavar="N")
    aliases: Any = values(("lines", "Logs.lines"))
    flags: Any = switches(("f follow", "Logs.follow", True, "go on showing what is added; Ctrl-C ends"))

    def carry_out(self) -> int:
        home = self.home()
        paths = [path for path in self._candidates(home) if path.exists() and path.stat().st_size]
        if not paths:
            raise FileNotFoundError(f"farm {self.farm!r} has no such log yet; its logs are in {home.logs}")
        for path in paths:
            if len(paths) > 1:
                print(f"==> {path} <==")
            end = _tail(path, self.lines)
        if self.follow:
            _follow(paths[-1], end)
        return OK

    def _candidates(self, home: Home) -> list[Path]:
        what, *rest = self.extra_args or ["controller"]
        if what == "engine" and len(rest) == 1 and rest[0].isdigit():
            return [self._engine_output(home, int(rest[0]))]
        if rest or what not in ("controller", "agent", "supervisor"):
            raise UsageError("which log? One of controller, agent, supervisor, or engine and its id")
        kind = "agent-0" if what == "agent" else what
        # What a process prints beside its log: the traceback of a crash, most of all.
        return [home.output(kind), home.log(kind)]

    def _engine_output(self, home: Home, engine: int) -> Path:
        """What an engine prints outside of tasks.  It goes with the engine; the agent's log keeps the last lines."""
        with connect(self.farm) as questioner:
            table = questioner.answer(EngineTableQuestion())
        assert isinstance(table, EngineTable)
        row = next((row for row in table.rows if row.id == engine), None)
        if row is None:
            raise IndexError(
                f"farm {home.name!r} has no engine {engine} now; `ipytaskfarm logs agent` tells of lost ones"
            )
        counter = row.engine.rpartition(".")[2]
        return home.agent_folder(0) / f"engine-{counter}.out"


def _tail(path: Path, lines: int) -> int:
    """Print the last lines; where the file ended."""
    with open(path, "rb") as file:
        end = file.seek(0, os.SEEK_END)
        file.seek(max(0, end - lines * 400))
        text = file.read(end - file.tell()).decode(errors="replace")
    for line in text.splitlines()[-lines:]:
        print(_visible(line))
    return end


def _follow(path: Path, end: int) -> None:
    while True:
        sys.stdout.flush()
        time.sleep(FOLLOW_S)
        try:
            size = path.stat().st_size
            if size == end:
                continue
            with open(path, "rb") as file:
                file.seek(end if size > end else 0)  # shorter than before: it was rotated
                text = file.read()
                end = file.tell()
        except FileNotFoundError:
            continue
        sys.stdout.write("\n".join(_visible(line) for line in text.decode(errors="replace").split("\n")))


def _visible(line: str) -> str:
    return "".join(char if char.isprintable() or char == "\t" else "·" for char in line)
