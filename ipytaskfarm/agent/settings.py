"""The settings of an agent."""

from __future__ import annotations

from pathlib import Path

import msgspec

from ..system.process import STOPPED_S
from .zygote_process import OUTPUT, ZygoteProcess, spawn_zygote

LOCK = "agent.lock"
"""The file, in the agent's folder, that an agent locks."""
EXIT_REFUSED = 4
"""The exit code of an agent that the controller refuses, or whose folder another agent has."""


class AgentSettings(msgspec.Struct, frozen=True, kw_only=True):
    """The settings of an agent, from its command line."""

    connection_file: Path
    folder: Path
    """The folder of sockets and of other files that end with the agent."""
    farm: str
    node: str
    startup_cwd: Path
    slots: int | None = None
    lease_s: float = 900.0
    """The lease until the controller sends the farm's own."""
    grace_s: float = 1.0
    stopped_s: float = STOPPED_S
    memory_limit_bytes: int | None = None
    resources: dict[str, float] = {}
    """Resources that the owner declares, in addition to those found on the node."""
    priority: int = 0
    preload: tuple[str, ...] = ()
    failure_values: str = "masked"
    """One of `core.failure_values.FAILURE_VALUES`."""
    name: str = ""
    """The name by which the launcher knows the agent.  "": the name in its connection file."""
    brings: int | None = None
    ends_at_s: float | None = None
    """The wall-clock time at which the launcher's system ends the agent."""
    leave_s: float = 0.0
    """How long running tasks may go on when the agent is told to end."""
    owner_fd: int | None = None
    """A pipe at whose end of file the farm's owner has ended. None: the farm has no owner."""
    recorders: Path | None = None
    """The folder of the flight recorders, where a reboot leaves them. None: the agent's folder."""
    umask: int | None = None
    """The user's umask, for files that tasks make."""
    places_itself: bool = False
    """Whether this agent, at the end of the farm, also removes the folders of its dead siblings on this machine."""

    def spawn_zygote(self) -> ZygoteProcess:
        """Start a zygote for this agent's engines."""
        return spawn_zygote(
            self.farm, self.folder / OUTPUT, failure_values=self.failure_values, preload=self.preload,
            stays=self.leave_s > 0,
        )  # fmt: skip
