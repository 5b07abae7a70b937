"""What a process may use, what it uses, and its name in lists of processes."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

_PRIVATE = ("Private_Dirty:", "Swap:")
"""Not Private_Clean: pages of files that only this process maps just now, which go when they are needed elsewhere."""


def usable_cores() -> int:
    """Return how many cores this process may keep busy: affinity and cgroup limits count."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores, _cgroup_cores() or cores))


def _cgroup_cores() -> int | None:
    """Return the tightest cpu quota above us, rounded down; None without one."""
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


def own_bytes(pid: int) -> int:
    """Return bytes that would be free if it ended; 0: it is gone."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(_PRIVATE))


def name_process(title: str) -> None:
    """``ps`` shows the title; ``top`` and the kernel know us by one word.

    Slurm that finds a job's processes by /proc (its plugin proctrack/linuxproc) passes over those whose short name has
    a blank in it, and would never end them.
    """
    import setproctitle  # not for everybody who imports us: engines do so before they are forked

    setproctitle.setproctitle(title)
    setproctitle.setthreadtitle(title.split()[0])
