"""``ipytaskfarm stop``: stops a farm."""

from __future__ import annotations

from typing import Any

from traitlets import Bool, Float

from ipytaskfarm.cli.application import OK, Command, switches, values
from ipytaskfarm.cli.start import Terminal
from ipytaskfarm.deployment.daemon import stop_farm


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
        terminal = Terminal(home.name)
        stop_farm(home, None if self.drain else self.wait, terminal)
        terminal.say(f"farm {home.name!r} has stopped")
        return OK
