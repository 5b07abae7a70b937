"""What a process has of its own in memory, by the kernel's account in ``/proc``."""

from __future__ import annotations

from pathlib import Path

_PRIVATE = ("Private_Dirty:", "Swap:")
"""Not Private_Clean: pages of files that only this process maps just now, which go when they are needed elsewhere."""


def own_bytes(pid: int) -> int:
    """Bytes that would be free if it ended; 0: it is gone."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(_PRIVATE))
