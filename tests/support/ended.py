"""Whether a process has ended, asked in a way that its end in the midst of the question does not disturb."""

from __future__ import annotations

import psutil


def has_ended(process: psutil.Process | int) -> bool:
    """Return whether this process is gone, or is a zombie that nobody has waited for."""
    try:
        found = psutil.Process(process) if isinstance(process, int) else process
        return not found.is_running() or bool(found.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True
