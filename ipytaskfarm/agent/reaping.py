"""Killing of all processes that an engine left behind: children, daemons, the rest of a fork bomb.

A descendant may have left the engine's session and been adopted by init, so the family tree does not find it. Three
marks are looked for. Every descendant keeps at least one of them, unless it deliberately removes all:

- its session is the engine's (engines lead a session of their own);
- its environment holds the engine's cookie (a program that was started: environments are handed on);
- it maps the engine's flight recorder (a fork without a new program: mappings are inherited, while /proc still shows
  the zygote's environment for it).

Two other ways were rejected: PR_SET_CHILD_SUBREAPER on the zygote (the orphans of all its engines would look alike),
and a cgroup for each engine (this needs a delegated tree, which batch systems and containers seldom give).
"""

from __future__ import annotations

import logging
import os
import signal
import time
from pathlib import Path
from typing import NamedTuple

log = logging.getLogger(__name__)

COOKIE = "IPYTASKFARM_ENGINE"
"""The environment variable that names a process's engine."""
ROUNDS_MAX = 200
"""A fork bomb makes new processes while the old ones are killed: the sweep is repeated this often before giving up."""


class Marks(NamedTuple):
    """The marks by which an engine's descendants are recognised."""

    engine: str
    recorder: Path
    pid: int | None = None
    """The pid of the engine, which is its session id too.  None: unknown."""


def reap(marks: Marks) -> int:
    """Kill all processes with these marks, the engine included, until none is left; return how many there were.

    Blocks, so it is called in a thread."""
    _kill_group(marks)
    killed: set[int] = set()
    for round_number in range(ROUNDS_MAX):
        found = [pid for pid in _own_processes() if _kill_if_marked(pid, marks)]
        if not found:
            return len(killed)
        killed.update(found)
        if round_number > 3:
            time.sleep(0.01)  # killed processes take a moment to end; a bomb's survivors are caught in the next round
    log.warning("engine %s: what it left behind is still there after %d rounds of killing", marks.engine, ROUNDS_MAX)
    return len(killed)


def _kill_group(marks: Marks) -> None:
    # One signal to a group is atomic: processes that fork and exit faster than they can be examined do not escape it.
    # The group of that number is the engine's, unless the number belongs to another process by now.
    if marks.pid is None or (os.path.exists(f"/proc/{marks.pid}") and not is_marked(marks.pid, marks)):
        return
    try:
        os.killpg(marks.pid, signal.SIGKILL)
    except OSError:
        pass  # there is no such group: the engine left nothing in it


def _own_processes() -> list[int]:
    uid = os.getuid()
    mine: list[int] = []
    for entry in os.scandir("/proc"):
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                if entry.stat().st_uid == uid:
                    mine.append(int(entry.name))
            except OSError:
                continue
    return mine


def _kill_if_marked(pid: int, marks: Marks) -> bool:
    # The pidfd is opened before the marks are read, so that the process with the marks is the one that is killed.
    try:
        pidfd = os.pidfd_open(pid)
    except OSError:
        return False
    try:
        if not is_marked(pid, marks):
            return False
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        return True
    except OSError:
        return False
    finally:
        os.close(pidfd)


def is_marked(pid: int, marks: Marks) -> bool:
    """Return whether a living process is the engine or one of its descendants."""
    folder = f"/proc/{pid}"
    try:
        with open(f"{folder}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
        if fields[0] in (b"Z", b"X"):
            return False
        if marks.pid is not None and int(fields[3]) == marks.pid:
            return True
        with open(f"{folder}/environ", "rb") as file:
            if f"{COOKIE}={marks.engine}\0".encode() in file.read() + b"\0":
                return True
        with open(f"{folder}/maps", "rb") as file:
            return os.fsencode(marks.recorder) in file.read()
    except (OSError, IndexError):
        return False
