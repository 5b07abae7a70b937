"""Launchers: they place the processes of a farm on machines.

On this machine: controller, supervisor and the local agent, as processes (`local`). The supervisor
(`ipytaskfarm.deployment.supervisor`) decides *what* runs and how often. A `ProcessSpec` describes a process,
`Processes` starts it, and a `Placed` represents it. On other machines: only agents, by existing systems (batch systems,
Dask, ssh).
"""

from __future__ import annotations

import signal
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

EXIT_UNKNOWN = -1000
"""The exit code of a process that has ended but was not our child, so that nobody can know its real one."""


@dataclass(frozen=True)
class ProcessSpec:
    """One process of the farm before it runs: ``python -m module *arguments``."""

    kind: str
    """Its name in logs and in the farm's list of processes: ``controller``, ``agent-0``, ``supervisor``."""
    module: str
    arguments: tuple[str, ...]
    log: Path
    """The file to which its stdout and stderr are appended."""
    folder: Path
    """The working folder."""
    fds: tuple[int, ...] = ()
    """Descriptors that it inherits under the same numbers."""
    environment: dict[str, str] = field(default_factory=dict)
    """Environment variables in addition to those of this process."""


class Placed(Protocol):
    """A started process, with methods like `subprocess.Popen`."""

    kind: str

    def poll(self) -> int | None:
        """Return None while it lives; else its exit code, minus the signal that ended it, or `EXIT_UNKNOWN`."""

    def terminate(self) -> None:
        """Ask it to end. Nothing happens if it has ended."""

    def kill(self) -> None:
        """End it now. Nothing happens if it has ended."""

    def wait_fd(self) -> int | None:
        """Return a descriptor that becomes readable when it ends; None if the system has none."""

    def said(self, limit_bytes: int = 4000) -> str:
        """Return the end of its output since its start."""

    def record(self) -> dict[str, Any]:
        """Return a JSON value by which `Processes.adopt` finds it again from another process."""

    def close(self) -> None:
        """Forget it, whether it lives or not."""


class Processes(Protocol):
    """Starts processes, and finds them again."""

    def start(self, part: ProcessSpec) -> Placed:
        """Start a process, detached from our terminal and signals, so that it outlives us."""

    def adopt(self, record: dict[str, Any]) -> Placed | None:
        """Return the process that an earlier process started, if it still lives."""


def describe_exit(status: int) -> str:
    """Return an exit status as text for people."""
    if status == EXIT_UNKNOWN:
        return "is gone"
    if status < 0:
        try:
            return f"was killed by {signal.Signals(-status).name}"
        except ValueError:
            return f"was killed by signal {-status}"
    return f"ended with exit code {status}"
