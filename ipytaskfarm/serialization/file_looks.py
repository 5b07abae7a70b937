"""What tells that a file is unchanged, and for how long a look at files is good: a loop of calls does not look at them
for each call.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic
from typing import Any, TypeAlias

Stamp: TypeAlias = tuple[int, int, int, int]


def stamp_of(status: os.stat_result) -> Stamp:
    """Return what differs once a file is another one, or was written, even if it was given its old time."""
    return status.st_mtime_ns, status.st_size, status.st_ino, status.st_ctime_ns


def stamp_at(path: str) -> Stamp | None:
    """Return the stamp of a file or folder; None if there is none."""
    try:
        return stamp_of(os.stat(path))
    except (OSError, ValueError):
        return None


_PAUSE_S = 20e-6
_PAUSE_STATS = 6
"""A thread that calls again within this time, or that of this many stats of a file, has edited no file in between: to
open one, write to it and close it takes longer."""
_FIRST_LOOKS = 20
"""The first looks read folders that nothing has read before: they do not tell how long a stat takes."""
_LOOK_AGAIN_S = 0.001, 0.05
"""The shortest and the longest time until files are looked at again anyway, as other threads and programs edit too."""
_LOOKING_PART = 0.05
"""The part of the time that looking may take: a program of 1,000 modules is looked at more rarely than one of two."""


class PackLooks(threading.local):
    """What a thread has found in files for the function that it packs now.

    The pack and its digest are of one moment: a file that is edited between them would give a new name to old code."""

    found: dict[str, Any] | None = None
    """None: nothing is packed."""

    @contextmanager
    def of_one_pack(self) -> Iterator[None]:
        """Look at files once until this ends."""
        before, self.found = self.found, {}
        try:
            yield
        finally:
            self.found = before


pack_looks = PackLooks()


class FileLook:
    """When a thread has looked at some files, and until when that look is good."""

    __slots__ = ("again_s", "called_s", "pause_s", "thread")
    fastest_stat_s = _LOOK_AGAIN_S[0]
    """The fastest stat that any look has seen: the others were interrupted."""
    looks = 0
    """How many looks there were."""

    def __init__(self, thread: int, began_s: float, files: int) -> None:
        ended_s = monotonic()
        took_s = ended_s - began_s
        shortest_s, longest_s = _LOOK_AGAIN_S
        self.thread = thread
        self.called_s = ended_s
        FileLook.fastest_stat_s = min(FileLook.fastest_stat_s, took_s / max(files, 1))
        FileLook.looks += 1
        stats_s = _PAUSE_STATS * FileLook.fastest_stat_s if FileLook.looks > _FIRST_LOOKS else 0.0
        self.pause_s = max(_PAUSE_S, min(stats_s, shortest_s))
        self.again_s = ended_s + min(max(shortest_s, took_s / _LOOKING_PART), longest_s)

    def is_good(self, thread: int, now_s: float) -> bool:
        """Return whether this call of the thread follows so closely on its last one that no file can have changed."""
        paused_s, self.called_s = now_s - self.called_s, now_s
        return paused_s < self.pause_s and now_s < self.again_s and thread == self.thread
