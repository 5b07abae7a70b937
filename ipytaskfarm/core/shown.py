"""What Python, the command and the magics show alike: it is said once, here."""

from __future__ import annotations

from .tables import JobRow


def job_state(row: JobRow) -> str:
    """running, paused or ended; behind a colon why it is aborted, if it is."""
    over = row.unfinished == 0 and row.arrived >= row.total
    state = "ended" if over else "paused" if row.paused else "running"
    return f"{state}: {row.failed}" if row.failed else state
