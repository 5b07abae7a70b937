"""How the processes of a farm get onto machines.

Here: controller, supervisor and the agent of this machine, as processes (`local`).  The supervisor
(`ipytaskfarm.deployment.supervisor`) decides *what* runs and how often; a `ProcessSpec` says what to run, `Processes`
starts it, a
`Placed` is what came of it.  Elsewhere: agents alone, by existing systems (`agents`: batch systems, Dask, ssh).
"""

from __future__ import annotations

import signal
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

EXIT_UNKNOWN = -1000
"""It has ended and nobody can say how: it was not our child."""


@dataclass(frozen=True)
class ProcessSpec:
    """One process of the farm, before it runs: ``python -m module *arguments``."""

    kind: str
    """``controller``, ``agent-0``, ``supervisor``: names it in logs and in the farm's list of processes."""
    module: str
    arguments: tuple[str, ...]
    log: Path
    """Where its stdout and stderr go, appended."""
    folder: Path
    """Its working folder."""
    fds: tuple[int, ...] = ()
    """Inherited under the same numbers."""
    environment: dict[str, str] = field(default_factory=dict)
    """Environment variables in addition to ours."""


class Placed(Protocol):
    """Something started, in the manner of `subprocess.Popen`."""

    kind: str

    def poll(self) -> int | None:
        """None while it lives; else its exit code, minus the signal that ended it, or `EXIT_UNKNOWN`."""

    def terminate(self) -> None:
        """Ask it to end.  Nothing happens if it has ended."""

    def kill(self) -> None:
        """End it now.  Nothing happens if it has ended."""

    def wait_fd(self) -> int | None:
        """Return a file descriptor that becomes readable when it ends, where there is such a thing."""

    def said(self, limit_bytes: int = 4000) -> str:
        """Return the last of what it printed since it was started."""

    def record(self) -> dict[str, Any]:
        """Return what `Processes.adopt` needs to find it again from another process, as JSON."""

    def close(self) -> None:
        """Forget it, living or not."""


class Processes(Protocol):
    """What starts parts, and finds them again."""

    def start(self, part: ProcessSpec) -> Placed:
        """Start it, detached from our terminal and signals: it outlives us."""

    def adopt(self, record: dict[str, Any]) -> Placed | None:
        """Return what an earlier process started, if it still lives."""


def describe_exit(status: int) -> str:
    """Return an exit status as people say it."""
    if status == EXIT_UNKNOWN:
        return "is gone"
    if status < 0:
        try:
            return f"was killed by {signal.Signals(-status).name}"
        except ValueError:
            return f"was killed by signal {-status}"
    return f"ended with exit code {status}"
