"""Private memory of engines, and which engine is ended when memory runs short.

An engine shares memory with the zygote as long as neither has written to it, and mapped blobs with other engines. Pages
of files that it only reads can be dropped at any time. So the memory that counts is what it has written
(``smaps_rollup``: Private_Dirty, Swap), and that of its children. Reading this walks the page tables, a few ms per GiB.
It is therefore read only if the resident size, which costs two small files, already exceeds the limit.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from ..core.messages.task_types import Incarnation
from ..system.control_groups import MemoryRoom, memory_rooms, oom_kills
from ..system.process import own_bytes, resident_bytes

LOOK_S = 0.2
"""The time between two checks while an engine has something to run."""
LEAST_SHARE = 0.05
"""If less of the node's memory than this is available, the largest engine is ended before the kernel ends a process."""
RESIDENT_STEP = 4 << 20
"""If an engine's resident size has changed by less, its private memory is not measured again."""
OOM_S = 5.0
"""How long after the kernel has ended a process for lack of memory the SIGKILL of an engine is taken for that one."""
LIMIT_CAUSE = "memory"
"""The beginning of the cause, in `Crash.cause`, of an engine that was ended for its memory."""


class MemoryVerdict(NamedTuple):
    """An engine that must be ended for its memory, and the reason."""

    place: int
    """The index of the engine among those that were checked."""
    cause: str


class MemoryWatch:
    """Checks the memory of engines that run tasks, and of frozen ones."""

    def __init__(self, limit_bytes: int | None) -> None:
        """Create it; `limit_bytes` applies to one engine and its children. None: the node's memory is the limit."""
        self._limit = limit_bytes
        self._next_s = 0.0
        self._oom_kills = oom_kills()
        self._oom_s = -math.inf

    def oom_cause(self, now_s: float) -> str:
        """Return the cause of an engine that has got SIGKILL if the kernel has just been short of memory, or ""."""
        self._count_oom_kills(now_s)
        return f"{LIMIT_CAUSE}: the kernel had none left (OOM killer)" if now_s - self._oom_s < OOM_S else ""

    def _count_oom_kills(self, now_s: float) -> None:
        if (count := oom_kills()) > self._oom_kills:
            self._oom_kills, self._oom_s = count, now_s

    def look(
        self, engines: Sequence[tuple[int, bool]], now_s: float, idle_from: int | None = None
    ) -> MemoryVerdict | None:
        """Return the engine that must be ended; None if there is none, or if the last check was less than `LOOK_S` ago.

        Once one is being ended, the node is given time to get its memory back.

        Args:
            engines: (pid, whether it is being ended already).
            now_s: the time (monotonic).
            idle_from: the index of the first engine that runs nothing, behind all others. Such engines are ended
                first. None: all run something.
        """
        if now_s < self._next_s:
            return None
        self._next_s = now_s + LOOK_S
        self._count_oom_kills(now_s)
        if self._limit is not None:
            for index, (pid, ending) in enumerate(engines):
                if not ending and (used := _used_beyond(pid, self._limit)):
                    text = f"{_mib(used)} in use, the limit is {_mib(self._limit)}"
                    return MemoryVerdict(index, f"{LIMIT_CAUSE}: {text}")
        try:
            rooms = node_memory()
        except OSError:
            return None  # no descriptor is left for the look
        available, total = min(rooms, key=lambda room: room.available / room.total)
        if available >= LEAST_SHARE * total or any(ending for _, ending in engines):
            return None
        is_idle = idle_from is not None and idle_from < len(engines)
        first = idle_from if is_idle and idle_from is not None else 0
        used, index = max((private_bytes(engines[index][0]), index) for index in range(first, len(engines)))
        why = f"is frozen and has {_mib(used)}" if is_idle else f"had the most, {_mib(used)}"
        text = f"the node had {_mib(available)} of {_mib(total)} left, and this engine {why}"
        return MemoryVerdict(index, f"{LIMIT_CAUSE}: {text}")


class EngineMemory:
    """Measures the private memory of engines for reports; only where the resident size, which costs less, has changed.

    Args:
        limit_bytes: the limit of one engine, which is reported too; None: there is none.
    """

    def __init__(self, limit_bytes: int | None) -> None:
        self.limit_bytes = limit_bytes or 0
        self._known: dict[int, tuple[int, int]] = {}
        """Pid -> resident and private bytes at the last measurement."""

    def measure(self, engines: Iterable[tuple[Incarnation, int]]) -> dict[Incarnation, int]:
        """Return the private memory in bytes, in steps of a MiB, of these engines (name, pid) with their children."""
        found: dict[Incarnation, int] = {}
        known: dict[int, tuple[int, int]] = {}
        for name, pid in engines:
            resident = sum(resident_bytes(member) for member in (pid, *descendants(pid)))
            seen = self._known.get(pid)
            if seen is None or abs(resident - seen[0]) >= RESIDENT_STEP:
                seen = resident, private_bytes(pid) >> 20 << 20
            known[pid] = seen
            found[name] = seen[1]
        self._known = known
        return found


def _used_beyond(pid: int, limit: int) -> int:
    """Return the private memory of a process and its descendants if it exceeds the limit, else 0."""
    resident = sum(resident_bytes(member) for member in (pid, *descendants(pid)))
    used = private_bytes(pid) if resident > limit else 0
    return used if used > limit else 0


def private_bytes(pid: int) -> int:
    """Return the private memory (bytes) of a process and its descendants."""
    return sum(own_bytes(member) for member in (pid, *descendants(pid)))


def descendants(pid: int) -> Iterator[int]:
    """Yield the pids of all descendants that were not adopted by another process."""
    with contextlib.suppress(OSError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            with contextlib.suppress(OSError):
                for child in Path(f"/proc/{pid}/task/{thread}/children").read_text().split():
                    yield int(child)
                    yield from descendants(int(child))


def node_memory() -> list[MemoryRoom]:
    """Return the room on this machine, and in each control group that confines the memory of this process."""
    lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines() if ":" in line)
    machine = MemoryRoom(*(int(lines[name].split()[0]) * 1024 for name in ("MemAvailable", "MemTotal")))
    return [machine, *memory_rooms()]


def _mib(size: int) -> str:
    return f"{size / 2**20:,.0f} MiB"
