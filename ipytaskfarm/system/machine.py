"""The machine, its present boot, and whether a process of it is gone.

A controller asks this about its agents: one that ended with an earlier boot, or was killed, will never be heard again,
and there is no need to wait until its lease is over.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path

from ..core.messages import AgentProcess
from .farm_paths import process_started

REBOOTED = "its machine was started again"
"""Why a process of an earlier boot is gone."""


def boot_id() -> str:
    """Return the name of the machine's present boot; "" if the system does not tell."""
    return _read("/proc/sys/kernel/random/boot_id")


def host() -> str:
    """Return a name of this machine that stays the same over reboots."""
    return f"{socket.gethostname()} {_read('/etc/machine-id')}"


def own_process() -> AgentProcess:
    """Return the identity of this process."""
    return AgentProcess(host(), boot_id(), _namespace(), os.getpid(), process_started() or 0.0)


def why_gone(process: AgentProcess) -> str:
    """Return why a process cannot be alive any more; "" if it lives, or if this process cannot tell."""
    if process.host != host():
        return ""
    if process.boot != boot_id():
        return REBOOTED
    if process.namespace == _namespace() and process_started(process.pid) != process.started_s:
        return f"its process {process.pid} has ended"
    return ""


def _namespace() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _read(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""
