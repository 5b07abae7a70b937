"""``ipytaskfarm jupyter``: lets Jupyter's server and JupyterLab find ipytaskfarm."""

from __future__ import annotations

from typing import ClassVar

from ipytaskfarm.cli.application import FAILED, OK, Command, unknown_action
from ipytaskfarm.system.jupyter_extension import ExtensionState, JupyterFiles, this_environment
from ipytaskfarm.version import __version__

ACTIONS = ("enable", "disable", "status")


class Jupyter(Command):
    """``ipytaskfarm jupyter``"""

    name = "jupyter"
    description = """
Puts the farms into JupyterLab and Notebook 7 of this environment: the panel of the farms, the live view in a tab, the
numbers in the status bar, and the button that runs a cell on the farm. An installed wheel does it by itself; an
editable install needs `enable`. Jupyter's server must be started again afterwards. `status`, or no word, shows the
present state, with exit code 1 if something is missing.
"""
    examples = """
        ipytaskfarm jupyter enable
        ipytaskfarm jupyter status
    """
    concerns_a_farm = False
    arguments: ClassVar[str] = "[enable|disable|status]"

    def carry_out(self) -> int:
        words = self.extra_args or ["status"]
        if len(words) > 1 or words[0] not in ACTIONS:
            raise unknown_action(" ".join(words), ACTIONS)
        files = this_environment()
        if words[0] == "enable":
            files.enable()
        elif words[0] == "disable":
            files.disable()
        state = files.state()
        print("\n".join(_lines(state, files)))
        if words[0] != "status" and state.jupyter:
            print("a server of Jupyter that runs has to be started again")
        wanted = not state.works if words[0] == "disable" else state.works
        return OK if wanted else FAILED


def _lines(state: ExtensionState, files: JupyterFiles) -> list[str]:
    """Return the state for people."""
    if state.jupyter:
        there = ", ".join(f"{name} {number}" for name, number in state.jupyter.items())
    else:
        there = "not here: install ipytaskfarm where Jupyter's server is; `ipytaskfarm web` works without it"
    lab = state.lab
    if state.lab != "absent":
        lab += f", version {state.lab_version}, {'the package itself' if state.linked else str(files.lab_folder)}"
    found = [
        f"environment       {state.prefix}",
        f"jupyter           {there}",
        f"server extension  {state.server}",
        f"lab extension     {lab}",
    ]
    if state.lab_version not in ("", __version__):
        found.append(
            f"the lab extension is of version {state.lab_version}, the package of {__version__}: install it anew"
        )
    return found
