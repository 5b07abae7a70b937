"""The interface of launchers, which place agents on other machines.

An existing system places and ends the agents. This module defines what the farm needs of such a system. An agent
connects to the controller, brings its engines, holds a lease and leaves nothing behind. So a launcher only starts
agents, reports their state, and ends them. It keeps no state in memory that matters: the result of `Launcher.submit` is
JSON in the farm's folder, with which any process of the same user can go on.

To add a launcher, write a class that implements `Launcher` and is made from its options (`Launcher.OPTIONS`), and
declare an entry point of the group `ENTRY_POINTS` in your package. ``ipytaskfarm agents add NAME`` and
``Farm(agents="NAME:3")`` then find it.
"""

from __future__ import annotations

import ipaddress
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, TypeAlias, cast

from ipytaskfarm.core.errors import LauncherError
from ipytaskfarm.core.text import did_you_mean
from ipytaskfarm.system.farm_paths import ConnectionInfo

ENTRY_POINTS = "ipytaskfarm.launchers"

Handle: TypeAlias = dict[str, Any]
"""The data, as JSON, with which a launcher finds again what it has submitted."""


@dataclass(frozen=True)
class Seat:
    """An agent to be started: its name, unique on the farm, and its connection file."""

    name: str
    """For example ``slurm-1.0``. An agent may also call itself ``NAME.anything`` under the key of ``NAME``."""
    connection_file: Path
    """0600, in the farm's folder. Its text is a secret. It may be copied to where the agent runs, over an encrypted
    connection, into a file of 0600. It is never in a command line, an environment variable or a script."""


@dataclass(frozen=True, kw_only=True)
class AgentSpec:
    """The settings of the agents of one submission, wherever they run."""

    farm: str
    group: str
    """The name of the submission: ``slurm-1``."""
    engines: int | None = None
    """Engines per agent; None for as many as it has cores."""
    python: str = sys.executable
    """The interpreter on the agents' machines."""
    cwd: Path = field(default_factory=Path.cwd)
    """The folder in which engines start, if it exists there."""
    logs: Path = field(default_factory=Path.cwd)
    """A folder for the agents' output, if their machines see it."""
    time_limit_s: float | None = None
    """The time after which the system ends the agent; None for no limit."""
    leave_s: float = 25.0
    """How long running tasks may go on after the agent was told to end."""
    flags: tuple[str, ...] = ()
    """More flags of ``ipytaskfarm agent``."""


class AgentStatus(NamedTuple):
    """The state of one agent, as its system sees it."""

    state: Literal["waiting", "running", "ended"]
    where: str = ""
    """The name of its machine, if known."""
    why: str = ""
    """The reason for waiting, or the kind of its end."""


class Launcher(Protocol):
    """A system that places agents. Every call may take seconds, and raises LauncherError with a remedy."""

    OPTIONS: ClassVar[Mapping[str, str]]
    """option -> one line of help. ``Launcher(options)`` raises ValueError for any other option."""

    def names(self, group: str, count: int | None) -> list[str]:
        """Return the names of the agents to enrol for a submission of `count` agents.

        Raises:
            ValueError: the launcher cannot start this number.
        """

    def preview(self, seats: Sequence[Seat], spec: AgentSpec) -> str:
        """Return the text that `submit` would hand over, for people (``--dry-run``)."""

    def submit(self, seats: Sequence[Seat], spec: AgentSpec) -> Handle:
        """Start these agents, now or when the system has room."""

    def status(self, handle: Handle) -> dict[str, AgentStatus]:
        """Return agent's name -> its status. An agent that the system has forgotten has ended."""

    def cancel(self, handle: Handle, names: Sequence[str] | None = None) -> None:
        """End these agents (None: all): first SIGTERM, later the system's own means.

        Agents that have ended are skipped.
        """

    def tend(self, handle: Handle) -> Handle:
        """Start again what the launcher keeps running on this machine. Called every few seconds while the farm runs.

        Returns:
            The handle, changed or not.
        """


def find_launcher(name: str, options: Mapping[str, str]) -> Launcher:
    """Return the launcher of this name with these options.

    Raises:
        ValueError: there is no such launcher, or it has no such option.
    """
    from importlib.metadata import entry_points  # imported late: only farms with other machines pay for it

    found = {entry.name: entry for entry in entry_points(group=ENTRY_POINTS)}
    if name not in found:
        raise ValueError(
            f"there is no launcher {name!r}: there are {', '.join(sorted(found)) or 'none'}{did_you_mean(name, found)}"
        )
    try:
        kind = found[name].load()
    except ImportError as error:
        raise LauncherError(f"the launcher {name!r} cannot be imported: {error}") from error
    unknown = [option for option in options if option not in kind.OPTIONS]
    if unknown:
        raise ValueError(
            f"{name} has no option {unknown[0]!r}: it has {', '.join(sorted(kind.OPTIONS)) or 'none'}"
            f"{did_you_mean(unknown[0], kind.OPTIONS)}"
        )
    return cast(Launcher, kind(options))


def agent_words(spec: AgentSpec, name: str, connection_file: str, *, node: str | None = None) -> list[str]:
    """Return the command line of one agent after the interpreter, as words for the caller to quote for a shell.

    `node` is the machine's name for people; None for its host name.
    """
    words = ["-P", "-m", "ipytaskfarm.agent", "--connection-file", connection_file, "--farm", spec.farm]
    words += ["--name", name, "--startup-cwd", str(spec.cwd), "--leave", f"{spec.leave_s:g}"]
    words += ["--node", node] if node is not None else []
    words += ["--engines", str(spec.engines)] if spec.engines is not None else ["--engines", "cores"]
    return [*words, *spec.flags]


def shell_line(words: Sequence[str]) -> str:
    """Return words as one line of sh."""
    return " ".join(map(shlex.quote, words))


def elsewhere(info: ConnectionInfo) -> str | None:
    """Return the address at which other machines may find the controller; None if it listens only for
    its own machine.
    """
    host = info.location or info.host
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return None if host == "localhost" else host
    return None if address.is_loopback or address.is_unspecified else host
