"""Checks whether an agent's files are as the agent made them: tasks run as the same user, and may spoil them."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from .engines import ManagedEngine

LOOK_S = 0.02
"""How often (seconds) the files of living engines are looked at."""


class Spoiled(NamedTuple):
    """What happened to an engine's files."""

    why: str
    readable: bool
    """Whether the flight recorder can still be read: reading a file that was cut would end the agent (SIGBUS)."""


class OwnFiles:
    """The files of one agent and of its engines."""

    def __init__(self, paths: Iterable[Path]) -> None:
        """Create it; `paths` are the folders, sockets and the lock that the agent cannot do without."""
        self._numbers = {path: os.lstat(path).st_ino for path in paths}
        self._look_s = 0.0

    def lost(self) -> str:
        """Return what happened to a folder or socket of the agent; "" if they are there."""
        for path, number in self._numbers.items():
            try:
                found = os.lstat(path)
            except OSError:
                return f"its agent's {path} was removed"
            if found.st_ino != number:
                return f"its agent's {path} was replaced"
            if found.st_mode & 0o600 != 0o600:
                return f"its agent's {path} was closed to its owner"
        return ""

    def condemn(self, engines: Iterable[ManagedEngine], now_s: float) -> None:
        """Kill the engines whose files were spoiled, before anything of them is read."""
        is_due = now_s >= self._look_s
        if is_due:
            self._look_s = now_s + LOOK_S
        for engine in engines:
            if (is_due or engine.child is None or engine.child.exit.done()) and not engine.loss_told:
                found = spoiled(engine)
                if found is not None:
                    engine.account.damaged = engine.account.damaged or not found.readable
                    engine.kill(found.why)


def spoiled(engine: ManagedEngine) -> Spoiled | None:
    """Return what happened to an engine's flight recorder, without which its results would be lost; None: nothing."""
    recorder = engine.account.recorder
    if engine.account.damaged:
        return Spoiled("its flight recorder was overwritten", False)
    if engine.account.spoiled:
        return Spoiled(engine.account.spoiled, True)
    try:
        found = os.lstat(recorder.path)
    except OSError:
        return Spoiled("its flight recorder was deleted", True)
    if found.st_ino != recorder.file_number:
        return Spoiled("its flight recorder was replaced by another file", True)
    if found.st_size != recorder.size:
        return Spoiled(f"its flight recorder was cut to {found.st_size:,} bytes", False)
    if not recorder.is_intact():
        return Spoiled("its flight recorder was overwritten", False)
    return None
