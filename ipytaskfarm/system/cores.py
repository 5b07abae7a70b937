"""How many cores there are to use: not always as many as the machine has."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path


def usable_cores() -> int:
    """How many cores this process may keep busy: affinity and cgroup limits count."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores, _cgroup_cores() or cores))


def _cgroup_cores() -> int | None:
    """The tightest cpu quota above us, rounded down; None without one."""
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
    # In a container the path may be the host's and the files stand at the root; a parent's limit holds for us too.
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
