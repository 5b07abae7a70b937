"""``ipytaskfarm stop``"""

from __future__ import annotations

import time
from typing import Any

from traitlets import Bool, Float

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
        name = home.name
        processes = _living(home)
        if not processes:
            # Raises FarmNotRunning, unless somebody runs it without our records.
            connect(name).close()
        terminal = Terminal(name)
        drain_s = None if self.drain else self.wait
        asked = _ask_to_stop(name, drain_s, terminal)
        deadline = None if asked and self.drain else time.monotonic() + (self.wait if asked else 0.0) + ANSWER_S
        _wait_for_end(processes, deadline, asked, terminal)
        terminal.say(f"farm {name!r} has stopped")
        return OK


def _living(home: Home) -> dict[str, Placed]:
    """What runs of this farm, by the supervisor's record of it; the supervisor itself too."""
    launcher = LocalLauncher()
    # Not its "owner": that is somebody's Python, which stops looking after a farm that has stopped.
    records = [record for record in home.read_processes() if record["kind"] != OWNER]
    found = {str(record["kind"]): launcher.adopt(record) for record in records}
    return {kind: placed for kind, placed in found.items() if placed is not None}


def _ask_to_stop(name: str, drain_s: float | None, terminal: Terminal) -> bool:
    """Tell the controller.  False: there is none that answers."""
    try:
        with connect(name) as questioner:
            state = questioner.answer(FarmStatus())
            assert isinstance(state, FarmState)
            running = state.counts.get("pending", 0)
            questioner.answer(StopFarm(drain_s))
    except errors.ConnectionError:
        return False
    terminal.progress(f"stopping: {running} tasks are running" if running else "stopping")
    return True


def _wait_for_end(processes: dict[str, Placed], deadline: float | None, asked: bool, terminal: Terminal) -> None:
    # The supervisor first: left alive, it would start again what we end.
    order = sorted(processes, key=lambda kind: [SUPERVISOR, "controller"].index(kind) if kind[0] in "sc" else 2)
    stage = 0
    if not asked:
        terminal.say("the controller does not answer: ending its processes")
        deadline = 0.0
    while living := [kind for kind in order if processes[kind].poll() is None]:
        if deadline is not None and time.monotonic() > deadline:
            stage += 1
            deadline = time.monotonic() + KILL_S
            for kind in living:
                processes[kind].terminate() if stage == 1 else processes[kind].kill()
        time.sleep(0.02)
