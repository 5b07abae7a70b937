"""What a farm's supervisor says to other processes: whether it starts the controller again, and when.

A client that finds no controller waits for it as long as the supervisor says so. For a folder whose records of the
processes are lost, their locks tell which ones run (`lock_holders`).
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from ..core import errors
from .farm_paths import ConnectionInfo, Lock, is_stale, process_started, read_private
from .odd_files import odd_kind
from .private_files import holder_of_removed

PROCESSES_FILE = "processes.json"
"""In the farm's folder: the supervisor's records of itself and of the processes that it started."""
SUPERVISOR = "supervisor"
OWNER = "owner"
"""The supervisor's own kind among the processes: `SUPERVISOR` is a command, which may be ended; `OWNER` is a `Farm`'s
Python process, which may not."""
CONTROLLER = "controller"
START_S = 60.0
"""Seconds after which a controller has certainly read its store and written its connection files."""


class _ProcessRecord(msgspec.Struct):
    """What must be true of a record before its process is looked for."""

    kind: str
    pid: int
    started: float
    log: str = ""
    again_s: float | None = None
    ends: bool = False


def own_record(kind: str, log: str) -> dict[str, Any]:
    """Return this process's record as the supervisor of a farm."""
    return {"kind": kind, "pid": os.getpid(), "started": process_started(), "log": log}


def with_intent(record: dict[str, Any], again_s: float | None, ends: bool) -> dict[str, Any]:
    """Return a supervisor's record with what it is about to do.

    again_s: monotonic time at which it starts the controller again; None: the controller runs, or is being started.
    ends: whether the farm is being stopped, so that nothing is started any more.
    """
    return {**record, "again_s": again_s, "ends": ends}


def read_processes(folder: Path) -> list[dict[str, Any]]:
    """Return the last supervisor's records of itself and of the processes that it started.

    What is no such record is left out: whoever looks for processes finds them by their locks too.

    Raises:
        SecurityError: others can use the file.
    """
    path = folder / PROCESSES_FILE
    if odd_kind(path):
        return []
    try:
        records = msgspec.json.decode(read_private(path))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return []
    return [{"log": "", **record} for record in records if _is_record(record)] if isinstance(records, list) else []


def _is_record(record: object) -> bool:
    try:
        msgspec.convert(record, _ProcessRecord)
    except msgspec.ValidationError:
        return False
    return True


def is_alive(record: dict[str, Any]) -> bool:
    """Return whether a recorded process lives."""
    return process_started(int(record["pid"])) == float(record["started"])


def _has_started(record: dict[str, Any]) -> bool:
    """Return whether a recorded process lives, and for longer than a start takes."""
    started = record.get("started")
    if not isinstance(started, float) or not is_alive(record):
        return False
    return time.clock_gettime(time.CLOCK_BOOTTIME) - started > START_S


_ended_here: set[Path] = set()
"""The folders of farms whose supervisor ended in this process, which lives on."""


def note_supervised(folder: Path, runs: bool) -> None:
    """Note that a supervisor in this process begins, or that it has ended.

    Its records in the folder may say otherwise: a supervisor that ends because its folder was moved cannot write them.
    """
    if runs:
        _ended_here.discard(folder)
    else:
        _ended_here.add(folder)


def _why_not_written(folder: Path | None) -> str:
    """Return why nothing can be written into a farm's folder, if its disk is at fault; else ""."""
    try:
        os.close(os.open(folder or "", os.O_TMPFILE | os.O_WRONLY, 0o600))
    except OSError as error:
        return str(error.strerror) if error.errno in (errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EIO) else ""
    return ""


def comes_back(folder: Path | None, read_info: Callable[[], ConnectionInfo]) -> str:
    """Return how a farm whose controller has ended comes back, for people.

    Args:
        folder: the farm's folder; None: it is not known.
        read_info: reads the farm's connection file.

    Returns:
        "" if nobody starts the controller again, or if it lives, as far as this process can tell. A controller that
        lives and has no connection file is about to write it.
    """
    try:
        if not is_stale(read_info()):
            return ""
    except (errors.ConnectionError, OSError):
        pass  # there is no connection file, or none that can be read
    try:
        records = read_processes(folder) if folder is not None else []
    except (errors.TaskFarmError, OSError):
        return ""  # the folder is another user's
    if any(record.get("kind") == CONTROLLER and _has_started(record) for record in records):
        return ""
    for record in records:
        if int(record["pid"]) == os.getpid() and folder in _ended_here:
            continue
        if record.get("kind") in (SUPERVISOR, OWNER) and is_alive(record) and not record.get("ends"):
            left_s = (record.get("again_s") or 0.0) - time.monotonic()
            when = f"in {left_s:.0f} s" if left_s >= 1.0 else "now"
            if why := _why_not_written(folder):
                when = f"when it can write into {folder} again ({why})"
            return f"its supervisor (pid {record['pid']}) starts its controller again {when}"
    return ""


def lock_holders(locks: dict[str, Path], logs: Path) -> list[dict[str, Any]]:
    """Return a record of each process that holds a lock.

    Args:
        locks: the kinds of the processes and their locks, none of which this process may hold.
        logs: the folder of the processes' output.
    """
    found = []
    for kind, path in locks.items():
        pid = _holder(path, (logs / f"{kind}.out").exists())
        started = process_started(pid) if pid is not None else None
        if pid is not None and started is not None:
            own = OWNER if kind == SUPERVISOR and not _is_command(pid) else kind
            found.append({"kind": own, "pid": pid, "started": started, "log": str(logs / f"{kind}.out")})
    return found


def _holder(path: Path, was_there: bool) -> int | None:
    """Return the process that holds a lock; None if none does.

    was_there: whether there was one, so that its file was removed if it is missing."""
    if not os.path.lexists(path):
        return holder_of_removed(path) if was_there else None
    try:
        Lock(path).release()
    except errors.FarmExists:
        with contextlib.suppress(OSError, ValueError):
            return int(path.read_text())
    except errors.SecurityError:
        return holder_of_removed(path)
    return None


def _is_command(pid: int) -> bool:
    """Return whether a supervisor is the command ``ipytaskfarm start``, which may be ended, or a user's Python."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_text(errors="replace").split("\0")
    except OSError:
        return False
    return words[0].startswith("ipytaskfarm ") or "ipytaskfarm" in [Path(word).name for word in words[1:4]]
