"""The resources of a node (cores, memory, GPUs, declared ones), its load, and the threads that an engine may have."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

import psutil

from ..core.messages import NodeState
from ..core.messages.task_types import Incarnation
from ..core.requirements import CORES, DEVICES, GPU, MEMORY, THREADS
from ..system.process import usable_cores
from .memory import EngineMemory, node_memory

LOOK_S = 2.0
"""Seconds between two checks of load, memory and disk."""
LOAD_STEP, ROOM_STEP = 0.05, 0.02
"""A report is sent only when the load, or a free share, has changed by this much."""
MEMORY_STEP = 16 << 20
"""A report is sent also when the memory of an engine has changed by so many bytes, and by a tenth."""
AGAIN_S = 10.0
"""Smaller changes are reported this often, because the threshold of a condition may lie between the two values, and
the controller's clock may be set."""
CLOCK_STEP_S = 1.0
"""A clock that was set by so much is reported at once."""
_OPENMP = "OMP_NUM_THREADS"
_FOLLOW_OPENMP = frozenset({
    "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS", "NUMEXPR_NUM_THREADS", "VECLIB_MAXIMUM_THREADS",
})  # fmt: skip
"""Libraries that read these variables read OMP_NUM_THREADS if they are not set."""


def resources(declared: Mapping[str, float]) -> tuple[dict[str, float], tuple[str, ...]]:
    """Return (resource -> amount, names of the GPUs): what is found on the node, replaced by what was declared."""
    gpus = _gpus(declared.get(GPU))
    found = {CORES: float(usable_cores()), MEMORY: float(min(room.total for room in node_memory()))}
    if gpus:
        found[GPU] = float(len(gpus))
    return {**found, **declared}, gpus


def _gpus(declared: float | None) -> tuple[str, ...]:
    """Return the GPUs in CUDA_VISIBLE_DEVICES; if that is not set, those with a device file."""
    visible = os.environ.get(DEVICES)
    if visible is not None:
        names = [name.strip() for name in visible.split(",") if name.strip() and name.strip() != "-1"]
    else:
        names = [path.name[6:] for path in sorted(Path("/dev").glob("nvidia[0-9]*"))]
    if declared is None:
        return tuple(names)
    count = int(declared)
    return tuple([*names, *(str(i) for i in range(count) if str(i) not in names)][:count])


def thread_limits(engines: int) -> dict[str, str]:
    """Return environment variables that limit the threads of numeric libraries, except those that the user has set.

    `engines` is the number of engines that share the cores.
    """
    count = str(max(1, usable_cores() // max(1, engines)))
    openmp_is_set = bool(os.environ.get(_OPENMP))
    return {
        name: count for name in THREADS if not os.environ.get(name) and not (openmp_is_set and name in _FOLLOW_OPENMP)
    }


class NodeWatch:
    """Reports load, free memory and free disk, and the memory of engines, when they have changed."""

    def __init__(self, folder: Path, memory: EngineMemory) -> None:
        """Create it; `folder` has the engines' files, and the free space of its disk is reported."""
        self._folder = folder
        self._memory = memory
        self._said: NodeState | None = None
        self._said_s = 0.0
        self._next_s = 0.0
        self._counts = False
        psutil.cpu_percent()  # the first call only starts the counting

    def restate(self) -> None:
        """Report everything at the next check, to a restarted controller."""
        self._said = None
        self._next_s = 0.0

    def look(
        self,
        now_s: float,
        engines: Iterable[tuple[Incarnation, int]] = (),
        fetched_blobs: int = 0,
        fetched_bytes: int = 0,
    ) -> NodeState | None:
        """Return a report; None if nothing has changed.

        `engines` are the names and pids of the engines that live. `fetched_blobs` and `fetched_bytes` count what was
        fetched to this node so far.
        """
        if now_s < self._next_s:
            return None
        self._next_s = now_s + LOOK_S
        try:
            rooms, disk, load = node_memory(), shutil.disk_usage(self._folder), min(1.0, self._load())
        except OSError:
            return None  # no descriptor is left for the look, or a task has removed the folder
        free, total = min(room.available for room in rooms), min(room.total for room in rooms)
        state = NodeState(
            load,
            free,
            disk.free,
            time.localtime().tm_gmtoff,
            fetched_blobs,
            fetched_bytes,
            self._memory.measure(engines),
            self._memory.limit_bytes,
            time.time(),
        )
        if self._said is not None and not self._is_news(state, self._said, now_s, total, disk.total):
            return None
        self._said, self._said_s = state, now_s
        return state

    def _is_news(self, state: NodeState, said: NodeState, now_s: float, memory: int, disk: int) -> bool:
        since_s = now_s - self._said_s
        clock_was_set = abs(state.wall_s - said.wall_s - since_s) >= CLOCK_STEP_S
        return clock_was_set or since_s >= AGAIN_S or _differs(state, said, memory, disk)

    def _load(self) -> float:
        if self._counts:
            return psutil.cpu_percent() / 100
        self._counts = True
        return os.getloadavg()[0] / (os.cpu_count() or 1)  # nothing has been counted yet


def _differs(state: NodeState, said: NodeState, memory: int, disk: int) -> bool:
    return (
        abs(state.load - said.load) >= LOAD_STEP
        or abs(state.free_memory - said.free_memory) >= ROOM_STEP * memory
        or abs(state.free_disk - said.free_disk) >= ROOM_STEP * disk
        or state.utc_offset_s != said.utc_offset_s
        or state.fetched_blobs != said.fetched_blobs
        or any(
            abs(size - said.engine_bytes.get(name, 0)) >= max(MEMORY_STEP, size // 10)
            for name, size in state.engine_bytes.items()
        )
    )
