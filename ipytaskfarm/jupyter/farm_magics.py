"""``%taskfarm``: start, inspect, connect to and stop farms from a notebook or an IPython terminal."""

from __future__ import annotations

import html
import sys
import time
from typing import Any

import psutil
from IPython.core.error import UsageError
from IPython.core.magic import Magics, line_magic, magics_class
from IPython.core.magic_arguments import argument, magic_arguments

from ..client.screens import Slot
from ..core import errors
from ..core.messages import FarmStatus
from ..core.messages.tables import FarmState
from ..core.states import state_counts
from ..deployment.daemon import start_detached, stop_farm
from ..deployment.home import Home
from ..deployment.light_client import connect as question
from ..deployment.settings import DEFAULT_NAME
from ..display.farm_tables import engine_table
from ..display.ipython import notebook_shell
from ..display.tables import redraws
from ..display.text import number
from ..system.farm_paths import connection_reader
from . import connection
from .arguments import parse_intermixed_line
from .tracebacks import short_errors


class Notes:
    """Shows messages to the user: in the cell's output of a notebook, or on the last line of a terminal."""

    def __init__(self) -> None:
        shell = notebook_shell()
        self._slot = Slot(shell) if shell is not None else None
        self._lines: list[str] = []

    def progress(self, text: str) -> None:
        """Show what the magic waits for; the next message replaces it."""
        if self._slot is not None:
            self._show([*self._lines, f"{text} …"])
        elif redraws(sys.stderr):
            print(f"\r\033[K{text} …", end="", file=sys.stderr, flush=True)

    def say(self, line: str) -> None:
        """Show what has happened."""
        if self._slot is not None:
            self._lines.append(line)
            self._show(self._lines)
        else:
            self.wipe()
            print(line)

    def wipe(self) -> None:
        """Remove the text of `progress`."""
        if self._slot is None and redraws(sys.stderr):
            print("\r\033[K", end="", file=sys.stderr, flush=True)

    def _show(self, lines: list[str]) -> None:
        assert self._slot is not None
        shown = "".join(f"<div>{html.escape(line)}</div>" for line in lines)
        self._slot.show({"text/plain": "\n".join(lines), "text/html": shown})


class FarmStatusView:
    """The output of ``%taskfarm status``."""

    def __init__(self, state: FarmState, address: str) -> None:
        self.state = state
        self._address = address
        self._at_s = time.time()

    def _lines(self) -> list[str]:
        s = self.state
        counts = ", ".join(f"{count:,} {word}" for word, count in state_counts(s.counts).items())
        how = "stopping" if s.stopping else "paused: %task resume lets tasks start" if s.held else "running"
        return [
            f"farm {s.name!r}: {how}",
            f"controller: pid {s.pid} at {self._address} since {_time(s.started_s)}, {number(s.clients, 'client')}",
            f"store: {s.store_bytes / 2**20:.1f} MiB",
            f"tasks: {counts}",
            *([] if s.stopping or not s.refusing else [f"no task is accepted: {s.refusing}"]),
            *(
                f"agent on {a['node']}: pid {a['pid']}, {a['state']}, {number(a['starting'], 'engine')} starting"
                for a in s.agents
            ),
            f"engines: {sum(e.state in ('idle', 'busy') for e in s.engines)} of {s.wanted} ready",
        ]

    def __repr__(self) -> str:
        lines = self._lines()
        return "\n".join([*lines, repr(engine_table(self.state.engines, self._at_s))] if self.state.engines else lines)

    def _repr_html_(self) -> str:
        shown = "".join(f"<div>{html.escape(line)}</div>" for line in self._lines())
        return shown + (engine_table(self.state.engines, self._at_s).html() if self.state.engines else "")


@magics_class
class FarmMagics(Magics):
    """The magic ``%taskfarm``."""

    shell: Any

    @magic_arguments()
    @argument("action", nargs="?", default="status", choices=["start", "stop", "status", "connect"], help="what to do")
    @argument(
        "farm",
        nargs="?",
        help="the farm's name, or (connect) its connection file; default: the one in use (start: the farm 'default')",
    )
    @argument("--farm", dest="farm_option", metavar="NAME", help="the same as the word NAME")
    @argument("-n", type=int, help="start: the number of engines (default: the usable cores)")
    @argument("--startup", metavar="FILE", help="start: a file with code that every fresh engine runs first")
    @argument(
        "--fresh", action="store_true", help="start: start with an empty store, and keep the old one under another name"
    )
    @argument("--hold", action="store_true", help="start: start no task until `ipytaskfarm resume`")
    @argument(
        "--take-over", action="store_true", help="start: start with an empty store, if the store is on another host"
    )
    @argument("--queue-policy", metavar="P", help="start: the order of the queue: FIFO, LIFO, FairShare, module:Class")
    @argument("--drain", action="store_true", help="stop: wait until all running tasks have ended")
    @argument("--wait", type=float, default=10.0, metavar="S", help="stop: how long running tasks may continue")
    @argument("--force", action="store_true", help="stop: also a farm that was not started here")
    @line_magic
    def taskfarm(self, line: str) -> Any:
        """Start, stop, inspect or connect to a farm on this machine.

        A farm that is started here continues when this kernel ends.  The magics use it from then on.
        """
        # not parse_line: argparse fills both optional words from the first one, and refuses `start -n 2 NAME`
        given = parse_intermixed_line(self.taskfarm, "%taskfarm", line)
        if not given.wait >= 0:
            raise UsageError(f"%taskfarm: --wait must be 0 seconds or more, not {given.wait:g}")
        if given.farm and given.farm_option:
            raise UsageError(f"%taskfarm: which farm, {given.farm} or {given.farm_option}?")
        if given.action == "start" and (given.farm or "").isdecimal():
            n = given.farm
            raise UsageError(f"%taskfarm start {n}: -n {n} starts {n} engines, --farm {n} a farm {n!r}")
        farm = given.farm or given.farm_option
        with short_errors():
            if given.action == "connect":
                client = connection.connect(self.shell, farm)
                print(f"connected to farm {client.farm!r}")
                return None
            stops = given.action == "stop"
            name = farm or (connection.farm_to_stop(self.shell) if stops else connection.farm_name(self.shell))
            if given.action == "status":
                return FarmStatusView(*_look(name))
            if given.action == "start":
                self._start(farm or DEFAULT_NAME, given)
            else:
                self._stop(name, given)
        return None

    def _start(self, name: str, given: Any) -> None:
        home, notes = Home.of(name), Notes()
        try:
            started = start_detached(home, ["--farm", name, *_words(given)], notes)
        finally:
            notes.wipe()
        if started.code:
            lives = home.living_info() is not None
            raise UsageError(started.text + (f". %taskfarm connect {name} uses the running farm" if lives else ""))
        connection.connect(self.shell, name)
        connection.note_start(self.shell, home)
        notes.say(f"{started.text.partition(' Connect: ')[0]} Stop: %taskfarm stop")

    def _stop(self, name: str, given: Any) -> None:
        try:
            state, _ = _look(name)
        except errors.ConnectionError:
            # --force also ends what is left of a farm that does not answer.
            if not given.force:
                raise
            home = Home.of(name)
        else:
            home = Home.of(state.name)
            if not connection.has_started(self.shell, home) and not given.force:
                raise UsageError(
                    f"farm {state.name!r} was not started here: {_whose(home, state)}. "
                    f"To stop it all the same: %taskfarm stop {state.name} --force"
                )
        notes = Notes()
        try:
            stop_farm(home, None if given.drain else given.wait, notes)
        finally:
            notes.wipe()
        notes.say(f"farm {home.name!r} has stopped; waiting tasks and all results are kept for the next start")


def _words(given: Any) -> list[str]:
    """Return the options of a start as words of a command line."""
    words = []
    for flag, value in (("-n", given.n), ("--startup", given.startup), ("--queue-policy", given.queue_policy)):
        words += [flag, str(value)] if value is not None else []
    for flag, is_set in (("--fresh", given.fresh), ("--hold", given.hold), ("--take-over", given.take_over)):
        words += [flag] if is_set else []
    return words


def _look(name: str) -> tuple[FarmState, str]:
    """Return the controller's state and address."""
    info = connection_reader(name)()
    with question(name) as questioner:
        state = questioner.answer_for(FarmStatus(), FarmState)
    return state, f"{info.host}:{info.port}"


def _whose(home: Home, state: FarmState) -> str:
    """Return in words who runs a farm, as far as that is known."""
    run, owner = home.present_run(), home.owner_pid()
    try:
        user = psutil.Process(state.pid).username()
    except psutil.Error:
        user = "somebody"
    if owner is not None:
        after = f"process {owner}, a Python of {user}, supervises it"
    elif run is not None:
        after = f"supervisor {run.pid} of {user} supervises it"
    else:
        after = f"it belongs to {user}, and no process supervises it"
    return (
        f"{after}; its controller, {state.pid}, has run since {_time(state.started_s)} and has"
        f" {number(state.clients, 'client')} and {number(state.counts.get('pending', 0), 'running task')}"
    )


def _time(wall_s: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(wall_s))
