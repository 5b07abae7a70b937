"""The processes of a farm as their locks tell, for a folder whose records of them are lost."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

from ipytaskfarm.core import errors
from ipytaskfarm.system.farm_paths import Lock, process_started
from ipytaskfarm.system.private_files import holder_of_removed
from ipytaskfarm.system.supervision import OWNER, SUPERVISOR


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
