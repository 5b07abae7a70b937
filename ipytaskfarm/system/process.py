"""Cores that a process may use, memory that it uses, its name in lists of processes, and variables that it inherits."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

UMASK_BEFORE: Final = "IPYTASKFARM_UMASK"
"""The user's umask in octal digits, if a launcher had to change it before it could start an agent."""
PYTHONPATH_BEFORE: Final = "IPYTASKFARM_PYTHONPATH"
"""The user's PYTHONPATH, where it was made longer so that children find this package."""

_PRIVATE = ("Private_Dirty:", "Swap:")
"""Without Private_Clean: pages of files that only this process maps at present are dropped when memory is needed."""


def usable_cores() -> int:
    """Return how many cores this process may keep busy, within its affinity and the limits of its cgroups."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores, _cgroup_cores() or cores))


def _cgroup_cores() -> int | None:
    """Return the smallest cpu quota of the cgroups around this process, rounded down; None without a quota."""
    limits: list[int] = []
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            limits.extend(_quotas(Path("/sys/fs/cgroup"), path, _read_v2))
        elif "cpu" in controllers.split(","):
            limits.extend(_quotas(Path("/sys/fs/cgroup/cpu"), path, _read_v1))
    return min(limits, default=None)


def _quotas(root: Path, path: str, read: Callable[[Path], float | None]) -> list[int]:
    # In a container the path may be the host's while the files are at the root. A parent's limit applies to its
    # children.
    here = root / path.lstrip("/")
    folders = {root, *(folder for folder in (here, *here.parents) if folder.is_relative_to(root))}
    found = [read(folder) for folder in folders]
    return [max(1, int(cores)) for cores in found if cores is not None]


def _read_v2(folder: Path) -> float | None:
    try:
        quota, period = (folder / "cpu.max").read_text().split()
    except (OSError, ValueError):
        return None
    return None if quota == "max" else int(quota) / int(period)


def _read_v1(folder: Path) -> float | None:
    try:
        quota = int((folder / "cpu.cfs_quota_us").read_text())
        period = int((folder / "cpu.cfs_period_us").read_text())
    except (OSError, ValueError):
        return None
    return None if quota <= 0 else quota / period


def own_bytes(pid: int) -> int:
    """Return the number of bytes that the process's end would free; 0 if the process does not exist."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(_PRIVATE))


def name_process(title: str) -> None:
    """Set the process's title for ``ps``, and its first word as the short name for ``top`` and the kernel.

    Slurm's plugin proctrack/linuxproc finds a job's processes in /proc. It overlooks those with a blank in their short
    name, and would never end them.
    """
    # imported late: importers of this module do not pay for it, and engines are named before the fork
    import setproctitle

    setproctitle.setproctitle(title)
    setproctitle.setthreadtitle(title.split()[0])
