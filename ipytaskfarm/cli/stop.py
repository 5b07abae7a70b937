"""``ipytaskfarm stop``: stops a farm."""

from __future__ import annotations

from typing import Any

from traitlets import Bool, Float

from ipytaskfarm.cli.application import OK, Command, UsageError, switches, values
from ipytaskfarm.cli.start import Terminal, farm_flag
from ipytaskfarm.deployment.daemon import stop_farm


class Stop(Command):
    """``ipytaskfarm stop``"""

    name = "stop"
    description = """
Stops a farm. No further task is started. Running tasks may continue for ten seconds (--wait SECONDS, or --drain for
any time), and are then interrupted: tasks that may repeat go back to their queue, the others fail. Waiting tasks and
all results stay on disk for the next start. The command returns when all processes of the farm have ended.
"""
    examples = """
        ipytaskfarm stop
        ipytaskfarm stop --farm nightly --drain
    """
    wait = Float(10.0, help="how long running tasks may continue (default: 10)").tag(config=True, metavar="SECONDS")
    drain = Bool(False, help="wait until all running tasks have ended").tag(config=True)
    aliases: Any = values(("wait", "Stop.wait"))
    flags: Any = switches(("drain", "Stop.drain", True, "wait until all running tasks have ended"))

    def carry_out(self) -> int:
        if not self.wait >= 0:
            raise UsageError(f"--wait must be 0 seconds or more, not {self.wait:g}")
        home = self.home()
        terminal = Terminal(home.name)
        try:
            stop_farm(home, None if self.drain else self.wait, terminal)
        except KeyboardInterrupt:
            at_once = f"`ipytaskfarm stop{farm_flag(home.name)} --wait 0`"
            terminal.say(f"farm {home.name!r} goes on stopping; {at_once} does not wait for running tasks")
            raise
        terminal.say(f"farm {home.name!r} has stopped")
        return OK
