"""How agents get onto other machines: what every launcher can do, and what it is told.

Existing systems place and end our agents; this says what we want of such a system.  An agent dials out to the
controller, brings its engines, holds a lease and leaves nothing behind, so a launcher does no more than start so many
agents, say how they do, and end them.  It keeps nothing in memory that matters: what `Launcher.submit` returns is JSON,
stands in the farm's folder, and any process of the same user can go on with it.

To add one: a class that satisfies `Launcher`, made from its options (`Launcher.OPTIONS`), and an entry point of the
group `ENTRY_POINTS` in your package.  ``ipytaskfarm agents add NAME`` and ``Farm(agents="NAME:3")`` find it by that.
"""

from __future__ import annotations

import ipaddress
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, TypeAlias, cast

from ipytaskfarm.core.errors import LauncherError
from ipytaskfarm.system.farm_paths import ConnectionInfo

ENTRY_POINTS = "ipytaskfarm.launchers"

Handle: TypeAlias = dict[str, Any]
"""What a launcher needs to find again what it submitted: JSON, of its own making."""


@dataclass(frozen=True)
class Seat:
    """One agent to be: its name, unique on the farm, and the file by which it connects."""

    name: str
    """``slurm-1.0``.  An agent may also call itself ``NAME.anything`` under the key of ``NAME``."""
    connection_file: Path
    """0600, in the farm's folder.  Its text is a secret: it may be copied to where the agent runs, over what encrypts,
    into a file of 0600; it never stands in a command line, an environment variable or a script."""


@dataclass(frozen=True, kw_only=True)
class AgentSpec:
    """What the agents of one submission are to be, wherever they run."""

    farm: str
    group: str
    """Names the submission: ``slurm-1``."""
    engines: int | None = None
    """How many each brings; None: as many as it has cores."""
    python: str = sys.executable
    """The interpreter there."""
    cwd: Path = field(default_factory=Path.cwd)
    """Where engines start, if it is there."""
    logs: Path = field(default_factory=Path.cwd)
    """A folder for what is printed, if the agents' machines see it."""
    time_limit_s: float | None = None
    """After so long the system ends the agent; None: it has no such limit."""
    leave_s: float = 25.0
    """How long running tasks may go on once the agent was told to end."""
    flags: tuple[str, ...] = ()
    """More flags of ``ipytaskfarm agent``."""


class AgentStatus(NamedTuple):
    """How one agent does, as its system sees it."""

    state: Literal["waiting", "running", "ended"]
    where: str = ""
    """A machine's name, if it is known."""
    why: str = ""
    """What it waits for, or how it ended."""


class Launcher(Protocol):
    """One system that places agents.  Every call may take seconds, and raises LauncherError with a remedy."""

    OPTIONS: ClassVar[Mapping[str, str]]
    """option -> one line of help; ``Launcher(options)`` raises ValueError for any other."""

    def names(self, group: str, count: int | None) -> list[str]:
        """Return the agents that are to be enrolled for a submission of so many.  ValueError: count does not fit."""

    def preview(self, seats: Sequence[Seat], spec: AgentSpec) -> str:
        """Return the text that `submit` would hand over, for people (``--dry-run``)."""

    def submit(self, seats: Sequence[Seat], spec: AgentSpec) -> Handle:
        """Have these agents run, soon."""

    def status(self, handle: Handle) -> dict[str, AgentStatus]:
        """Agent's name -> how it does; one that the system has forgotten has ended."""

    def cancel(self, handle: Handle, names: Sequence[str] | None = None) -> None:
        """End these (None: all): SIGTERM, and later what the system does then.  What has ended is passed over."""

    def tend(self, handle: Handle) -> Handle:
        """Called every few seconds while the farm runs: start again what the launcher keeps running here.  Returns the
        handle, changed or as it was."""


def find_launcher(name: str, options: Mapping[str, str]) -> Launcher:
    """Return the launcher of that name, with these options.  ValueError: there is none, or it has no such option."""
    found = {entry.name: entry for entry in entry_points(group=ENTRY_POINTS)}
    if name not in found:
        raise ValueError(f"there is no launcher {name!r}: there are {', '.join(sorted(found)) or 'none'}")
    try:
        kind = found[name].load()
    except ImportError as error:
        raise LauncherError(f"the launcher {name!r} cannot be imported: {error}") from error
    unknown = [option for option in options if option not in kind.OPTIONS]
    if unknown:
        raise ValueError(f"{name} has no option {unknown[0]!r}: it has {', '.join(sorted(kind.OPTIONS)) or 'none'}")
    return cast(Launcher, kind(options))


def agent_words(spec: AgentSpec, name: str, connection_file: str, *, node: str | None = None) -> list[str]:
    """Return the command line of one agent after the interpreter, as words to be quoted by whoever puts them into a
    shell.

    node: this machine's name for people; None: its host name.
    """
    words = ["-P", "-m", "ipytaskfarm.agent", "--connection-file", connection_file, "--farm", spec.farm]
    words += ["--name", name, "--startup-cwd", str(spec.cwd), "--leave", f"{spec.leave_s:g}"]
    words += ["--node", node] if node is not None else []
    words += ["--engines", str(spec.engines)] if spec.engines is not None else ["--engines", "cores"]
    return [*words, *spec.flags]


def shell_line(words: Sequence[str]) -> str:
    """Words as one line of sh."""
    return " ".join(map(shlex.quote, words))


def elsewhere(info: ConnectionInfo) -> str | None:
    """Return the address at which other machines may find the controller; None: it listens for its own alone."""
    host = info.location or info.host
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return None if host == "localhost" else host
    return None if address.is_loopback or address.is_unspecified else host
