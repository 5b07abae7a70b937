"""``%taskfarm``: start, look at, connect to and stop farms from where one works."""

from __future__ import annotations

import html
import sys
import time
from typing import Any

import psutil
from IPython.core.error import UsageError
from IPython.core.magic import Magics, line_magic, magics_class
from IPython.core.magic_arguments import argument, magic_arguments, parse_argstring

from ..client.display import html_table, table
from ..core.messages import FarmState, FarmStatus
from ..detached import start_detached, stop_farm
from ..home import Home
from ..questions import connect as question
from ..settings import DEFAULT_NAME
from . import connection
from .tracebacks import short_errors


class Notes:
    """Tells whoever sits in front of the cell."""

    def progress(self, text: str) -> None:
        """What is waited for: overwritten by what follows."""
        print(f"\r\033[K{text} …", end="", file=sys.stderr, flush=True)

    def say(self, line: str) -> None:
        """What has happened."""
        self.wipe()
        print(line)

    def wipe(self) -> None:
        """Take away what is waited for."""
        print("\r\033[K", end="", file=sys.stderr, flush=True)


class FarmStatusView:
    """What ``%taskfarm status`` shows."""

    def __init__(self, state: FarmState) -> None:
        self.state = state

    def _head(self) -> str:
        s = self.state
        counts = ", ".join(f"{s.counts.get(key, 0)} {word}" for key, word in _WORDS)
        held = "; held: `ipytaskfarm resume` lets tasks start" if s.held else ""
        since = time.strftime("%Y-%m-%d %H:%M", time.localtime(s.started_s))
        return f"farm {s.name!r}: controller {s.pid} since {since}, {s.wanted} engines wanted; tasks: {counts}{held}"

    def _rows(self) -> list[tuple[object, ...]]:
        return [(e.id, e.node, e.pid, e.state, "" if e.task is None else e.task, e.note) for e in self.state.engines]

    def __repr__(self) -> str:
        return f"{self._head()}\n{table(_HEADINGS, self._rows())}"

    def _repr_html_(self) -> str:
        return f"<div>{html.escape(self._head())}</div>{html_table(_HEADINGS, self._rows())}"


_WORDS = (("scheduled", "waiting"), ("pending", "running"), ("succeeded", "succeeded"), ("failed", "failed"))
_HEADINGS = ("engine", "node", "pid", "state", "task", "note")


@magics_class
class FarmMagics(Magics):
    """``%taskfarm``"""

    shell: Any

    @magic_arguments()
    @argument("action", nargs="?", default="status", choices=["start", "stop", "status", "connect"], help="what to do")
    @argument("farm", nargs="?", help="the farm's name, or (connect) its connection file; default: the one in use")
    @argument("-n", type=int, help="start: how many engines (default: the usable cores)")
    @argument("--startup", metavar="FILE", help="start: code that every fresh engine runs first")
    @argument("--fresh", action="store_true", help="start: begin anew, and set the old store aside")
    @argument("--drain", action="store_true", help="stop: wait until all running tasks have ended")
    @argument("--wait", type=float, default=10.0, metavar="S", help="stop: how long running tasks may go on")
    @argument("--force", action="store_true", help="stop: also a farm that was not started here")
    @line_magic
    def taskfarm(self, line: str) -> Any:
        """Start, stop, look at or connect to a farm on this machine.

        A farm that is started here goes on when this kernel ends, and the magics talk to it from then on.
        """
        given = parse_argstring(self.taskfarm, line)
        with short_errors():
            if given.action == "connect":
                client = connection.connect(self.shell, given.farm)
                print(f"connected to farm {client.farm!r}")
                return None
            name = given.farm or connection.farm_name(self.shell)
            if given.action == "status":
                return FarmStatusView(_state(name))
            if given.action == "start":
                self._start(given.farm or DEFAULT_NAME, given)
            else:
                self._stop(name, given)
        return None

    def _start(self, name: str, given: Any) -> None:
        words = ["--farm", name]
        if given.n is not None:
            words += ["-n", str(given.n)]
        if given.startup is not None:
            words += ["--startup", given.startup]
        if given.fresh:
            words.append("--fresh")
        notes = Notes()
        started = start_detached(Home.of(name), words, notes)
        notes.wipe()
        if started.code:
            raise UsageError(started.text)
        connection.connect(self.shell, name)
        connection.connection(self.shell).started.add(_state(name).incarnation)
        print(f"{started.text.partition(' Connect: ')[0]} Stop: %taskfarm stop")

    def _stop(self, name: str, given: Any) -> None:
        state = _state(name)
        home = Home.of(state.name)
        if state.incarnation not in connection.connection(self.shell).started and not given.force:
            raise UsageError(
                f"farm {name!r} was not started here: {_whose(home, state)}. "
                f"To stop it all the same: %taskfarm stop {name} --force"
            )
        notes = Notes()
        stop_farm(home, None if given.drain else given.wait, notes)
        notes.say(f"farm {name!r} has stopped; what waited and all results are kept for the next start")


def _state(name: str) -> FarmState:
    with question(name) as questioner:
        state = questioner.answer(FarmStatus())
    assert isinstance(state, FarmState)
    return state


def _whose(home: Home, state: FarmState) -> str:
    """Whose farm it is, as far as that can be known."""
    since = time.strftime("%Y-%m-%d %H:%M", time.localtime(state.started_s))
    owner = home.owner_pid()
    try:
        process = psutil.Process(owner if owner is not None else state.pid)
        user = process.username()
    except psutil.Error:
        user = "somebody"
    by = f", looked after by process {owner}" if owner is not None else f", controller {state.pid}"
    busy = state.counts.get("pending", 0)
    return f"it belongs to {user}{by}, runs since {since}, has {state.clients} clients and {busy} running tasks"
