"""Commands that become another program, and ``version``."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

from ipytaskfarm.cli.application import OK, Command, UsageError
from ipytaskfarm.core.messages import PROTOCOL
from ipytaskfarm.version import __version__


class RunController(Command):
    """``ipytaskfarm controller``.

    This class only prints the help; otherwise `ipytaskfarm.cli.main` runs the controller.
    """

    name = "controller"
    arguments = "[flags of the controller]"
    description = """
Runs only a controller, like `python -m ipytaskfarm.controller`, for other supervisors such as systemd. Most users need
`ipytaskfarm start`. The controller's own flags: python -m ipytaskfarm.controller --help
"""

    def carry_out(self) -> int:
        raise UsageError("its flags go directly after the word controller")


class RunAgent(Command):
    """``ipytaskfarm agent``. This class only prints the help; otherwise `ipytaskfarm.cli.main` runs the agent."""

    name = "agent"
    arguments = "[flags of the agent]"
    description = """
Runs only an agent, like `python -m ipytaskfarm.agent`: it connects to the farm of the given connection file, and runs
engines on this machine. The agent's own flags: python -m ipytaskfarm.agent --help
"""

    def carry_out(self) -> int:
        raise UsageError("its flags go directly after the word agent")


class Version(Command):
    """``ipytaskfarm version``"""

    name = "version"
    description = "Shows the versions that a bug report needs."
    concerns_a_farm = False

    def carry_out(self) -> int:
        print(f"ipytaskfarm {__version__} (protocol {PROTOCOL})")
        print(f"Python {platform.python_version()} on {platform.platform()}")
        for package in ("ipython", "ipykernel", "jupyter_client", "pyzmq", "msgspec", "traitlets"):
            try:
                print(f"{package} {version(package)}")
            except PackageNotFoundError:
                print(f"{package} is missing")
        return OK
