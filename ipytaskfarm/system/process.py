"""What a process may use and uses: cores, memory, files; its garbage collection, its title, variables it inherits.

A process that was stopped (SIGSTOP, ^Z) is found too: nothing ends it, and everything waits for it.
"""

from __future__ import annotations

import gc
import os
from pathlib import Path
from typing import Final

from .control_groups import core_quotas

UMASK_BEFORE: Final = "IPYTASKFARM_UMASK"
"""The user's umask in octal digits, if a launcher had to change it before it could start an agent."""
PYTHONPATH_BEFORE: Final = "IPYTASKFARM_PYTHONPATH"
"""The user's PYTHONPATH, where it was made longer so that children find this package."""

farm_began_with: dict[str, str] | None = None
"""The variables with which this process has started a farm, whose tasks have them; None if it has started none."""

importing: list[str] = []
"""The by-value modules that are being imported in this process, if it is an engine, the innermost last."""

_PAGE = os.sysconf("SC_PAGE_SIZE")
_PRIVATE = ("Private_Dirty:", "Swap:")
"""Without Private_Clean: pages of files that only this process maps at present are dropped when memory is needed."""


def usable_cores() -> int:
    """Return how many cores this process may keep busy, within its affinity and the limits of its cgroups."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, int(min([cores, *core_quotas()])))


def own_bytes(pid: int) -> int:
    """Return the number of bytes that the process's end would free; 0 if the process does not exist."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(_PRIVATE))


def resident_bytes(pid: int) -> int:
    """Return the process's resident size in bytes; 0 if the process does not exist."""
    try:
        file = os.open(f"/proc/{pid}/statm", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return 0
    try:
        return int(os.read(file, 128).split()[1]) * _PAGE
    except (OSError, IndexError):
        return 0
    finally:
        os.close(file)


def require_files(count: int) -> None:
    """Raise OSError unless this process can open so many further files."""
    opened: list[int] = []
    try:
        for _ in range(count):
            opened.append(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
    except OSError as error:
        raise OSError(error.errno, error.strerror) from None  # it is not about /dev/null
    finally:
        for file in opened:
            os.close(file)


def name_process(title: str) -> None:
    """Set the process's title for ``ps``, and its first word as the short name for ``top`` and the kernel.

    Slurm's plugin proctrack/linuxproc finds a job's processes in /proc. It overlooks those with a blank in their short
    name, and would never end them.
    """
    # imported late: importers of this module do not pay for it, and engines are named before the fork
    import setproctitle

    setproctitle.setproctitle(title)
    setproctitle.setthreadtitle(title.split()[0])


def spare_the_collector() -> None:
    """Limit garbage collection in a process that holds the scheduler's state.

    The state consists of long-lived containers without cycles: full collections would only examine a million tasks
    again and again.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 50, 100)
    gc.enable()


STOPPED_S = 30.0
"""A process that was stopped for this time is killed: its tasks would wait for ever."""


class StoppedWatch:
    """Measures how long one process has been in state T, from checks that may come late.

    Each gap counts for at most `gap_max_s`. If the machine or the agent's loop was suspended, nobody could check, and
    that time must not count against the process.
    """

    def __init__(self, gap_max_s: float = 5.0) -> None:
        self._gap_max_s = gap_max_s
        self._stopped_s = 0.0
        self._last_s: float | None = None

    def too_long(self, stopped: bool, now_s: float, limit_s: float = STOPPED_S) -> bool:
        """Note the present state, and return whether the process has been stopped for `limit_s` seconds."""
        if not stopped:
            self._stopped_s, self._last_s = 0.0, None
            return False
        if self._last_s is not None:
            self._stopped_s += min(now_s - self._last_s, self._gap_max_s)
        self._last_s = now_s
        return self._stopped_s >= limit_s


def is_stopped(pid: int) -> bool:
    """Return whether a process is in state T.  State t (traced by a debugger) does not count: a person is at work."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[0] == b"T"
    except (OSError, IndexError):
        return False
