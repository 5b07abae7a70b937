"""The control groups around this process, of both versions: how many cores and how much memory they leave to it.

A batch system, systemd and containers confine their processes so. The limit of a group holds for all groups within it,
so every group from the process's own up to the root counts. In a container the kernel may name a path of the host,
while the files of the container's group are at the root of its file system.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

ROOT: Final = Path("/sys/fs/cgroup")
OWN: Final = Path("/proc/self/cgroup")
_NO_LIMIT_BYTES: Final = 1 << 60
"""Version 1 writes the largest number of pages that it can count where there is no limit."""
_RECLAIMABLE: Final = {
    1: {"total_inactive_file", "total_active_file"},
    2: {"inactive_file", "active_file", "slab_reclaimable"},
}
"""Version -> lines of ``memory.stat``: what the kernel takes back before it ends a process."""


class ControlGroup(NamedTuple):
    """The folder of a control group, and the version of the interface (1 or 2) that its files have."""

    folder: Path
    version: int


class MemoryRoom(NamedTuple):
    """Bytes that can still be used, and bytes altogether, of a machine or of a control group."""

    available: int
    total: int


def control_groups(controller: str, root: Path = ROOT, own: Path = OWN) -> Iterator[ControlGroup]:
    """Yield the groups around this process that may limit something, the innermost first.

    Args:
        controller: what they limit: "cpu", "memory", "pids".
        root: where the file systems of control groups are mounted.
        own: the file in which the kernel names the groups of this process.
    """
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            top, version = root, 2
        elif controller in controllers.split(","):
            top, version = root / controller, 1
        else:
            continue
        here = top / path.lstrip("/")
        for folder in (here, *here.parents):
            if folder.is_relative_to(top):
                yield ControlGroup(folder, version)


def core_quotas(root: Path = ROOT, own: Path = OWN) -> Iterator[float]:
    """Yield the number of cores that each group allows which limits them."""
    for group in control_groups("cpu", root, own):
        with contextlib.suppress(OSError, ValueError):
            if group.version == 2:
                quota, period = (group.folder / "cpu.max").read_text().split()
            else:
                quota, period = (_line(group.folder / f"cpu.cfs_{name}_us") for name in ("quota", "period"))
            if int(quota) > 0:  # ValueError: "max"
                yield int(quota) / int(period)


def memory_rooms(root: Path = ROOT, own: Path = OWN) -> Iterator[MemoryRoom]:
    """Yield the room in each group that limits memory.

    Pages of files that the kernel can take back count as available, as they do in its own estimate for a machine.
    """
    for group in control_groups("memory", root, own):
        limit, used = (
            ("memory.max", "memory.current")
            if group.version == 2
            else ("memory.limit_in_bytes", "memory.usage_in_bytes")
        )
        with contextlib.suppress(OSError, ValueError):
            total = int(_line(group.folder / limit))  # ValueError: "max"
            if total < _NO_LIMIT_BYTES:
                left = total - int(_line(group.folder / used)) + _reclaimable(group)
                yield MemoryRoom(min(max(0, left), total), total)


def oom_kills(root: Path = ROOT, own: Path = OWN) -> int:
    """Return how many processes of the innermost group the kernel has ended because memory was short; 0: unknown."""
    for group in control_groups("memory", root, own):
        name = "memory.events" if group.version == 2 else "memory.oom_control"
        with contextlib.suppress(OSError, ValueError, KeyError):
            return int(dict(line.split() for line in (group.folder / name).read_text().splitlines())["oom_kill"])
    return 0


def process_counts(root: Path = ROOT, own: Path = OWN) -> Iterator[tuple[int, int]]:
    """Yield (limit, present number) for each group that limits the number of processes and threads."""
    for group in control_groups("pids", root, own):
        with contextlib.suppress(OSError, ValueError):
            yield int(_line(group.folder / "pids.max")), int(_line(group.folder / "pids.current"))


def _line(path: Path) -> str:
    return path.read_text().strip()


def _reclaimable(group: ControlGroup) -> int:
    lines = (line.partition(" ") for line in (group.folder / "memory.stat").read_text().splitlines())
    return sum(int(count) for name, _, count in lines if name in _RECLAIMABLE[group.version])
