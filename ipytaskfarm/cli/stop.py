"""``ipytaskfarm stop``"""

from __future__ import annotations

import time
from typing import Any

from traitlets import Bool, Float

from ipytaskfarm.cli import show
from ipytaskfarm.cli.application import OK, Command, switches, values
from ipytaskfarm.cli.start import Terminal
from ipytaskfarm.core import errors
from ipytaskfarm.core.messages import FarmState, FarmStatus
from ipytaskfarm.core.messages import Stop as StopFarm
from ipytaskfarm.home import OWNER, SUPERVISOR, Home
from ipytaskfarm.launchers import Placed
from ipytaskfarm.launchers.local import LocalLauncher
from ipytaskfarm.questions import connect

ANSWER_S = 15.0
"""Beyond what it was told to wait for, a farm has this long to end."""
KILL_S = 3.0


class Stop(Command):
    """``ipytaskfarm stop``"""

    name = "stop"
    description = """
Stops a farm: no new work is begun, running tasks may go on for ten seconds (--wait; --drain: until they end), then
they are interrupted. Those that may repeat go back to their queue, the others end as failed. What waits, and every
result, stays on disk for the next start. Returns when no process is left.
"""
    examples = """
        ipytaskfarm stop
        ipytaskfarm stop --farm nightly --drain
    """
    wait = Float(10.0, help="how long running tasks may go on").tag(config=True, metavar="SECONDS")
    drain = Bool(False, help="wait for all that runs").tag(config=True)
    aliases: Any = values(("wait", "Stop.wait"))
    flags: Any = switches(("drain", "Stop.drain", True, "wait until all running tasks have ended"))

    def carry_out(self) -> int:
        home = self.home()
        processes = _living(home)
        if not processes:
            # Raises FarmNotRunning, unless somebody runs it without our records.
            connect(home.name).close()
        terminal = Terminal(home.name)
        if self._ask_to_stop(home.name, terminal):
            deadline = None if self.drain else time.monotonic() + self.wait + ANSWER_S
            _wait(processes, deadline)
        elif OWNER in processes:
            raise errors.ConnectionError(
                f"the controller of farm {home.name!r} does not answer; process {home.owner_pid()}, a Python, looks"
                " after the farm: end that one"
            )
        else:
            terminal.say("the controller does not answer: ending its processes")
            _end(processes)
        if OWNER not in processes:
            with home.lock():
                home.tidy(temporary=False)
        terminal.say(f"farm {home.name!r} has stopped")
        return OK

    def _ask_to_stop(self, name: str, terminal: Terminal) -> bool:
        """Tell the controller.  False: there is none that answers."""
        try:
            with connect(name) as questioner:
                state = questioner.answer(FarmStatus())
                assert isinstance(state, FarmState)
                running = state.counts.get("pending", 0)
                questioner.answer(StopFarm(None if self.drain else self.wait))
        except errors.ConnectionError:
            return False
        terminal.progress(f"stopping: {show.number(running, 'task')} running" if running else "stopping")
        return True


def _living(home: Home) -> dict[str, Placed]:
    """What runs of this farm, by the supervisor's record of it; the supervisor itself too."""
    launcher = LocalLauncher()
    found = {str(record["kind"]): launcher.adopt(record) for record in home.read_processes()}
    return {kind: placed for kind, placed in found.items() if placed is not None}


def _wait(processes: dict[str, Placed], deadline: float | None) -> None:
    """Until all have ended; past the deadline they are ended.  The owner, somebody's Python, does not count."""
    ending = {kind: placed for kind, placed in processes.items() if kind != OWNER}
    while any(placed.poll() is None for placed in ending.values()):
        if deadline is not None and time.monotonic() > deadline:
            _end(ending)
        time.sleep(0.02)


def _end(processes: dict[str, Placed]) -> None:
    """End them without the controller's help.  The supervisor first: it would start again what we end."""
    supervisor = processes.get(SUPERVISOR)
    if supervisor is not None:
        supervisor.kill()
    for mercy in (True, False):
        for placed in processes.values():
            placed.terminate() if mercy else placed.kill()
        deadline = time.monotonic() + KILL_S
        while any(placed.poll() is None for placed in processes.values()) and time.monotonic() < deadline:
            time.sleep(0.02)
