"""Formatting that Python, the command and the magics have in common."""

from __future__ import annotations

from signal import Signals

from .messages.tables import FarmState, JobRow

UP = ("idle", "busy")
"""The states of an engine that can be given work."""


def last_line(text: str) -> str:
    """Return the last line that is not blank: of a traceback, that is the error."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""


def signal_text(number: int) -> str:
    """Return a signal for people: its number and, unless it is a real-time signal, its name."""
    try:
        return f"signal {number} ({Signals(number).name})"
    except ValueError:
        return f"signal {number} (unknown)"


def job_state(row: JobRow) -> str:
    """Return running, paused or ended, and after a colon why the job is aborted, if it is."""
    over = row.unfinished == 0 and row.arrived >= row.total
    state = "ended" if over else "paused" if row.paused else "running"
    return f"{state}: {row.failed}" if row.failed else state


def ready_engines(state: FarmState) -> int:
    """Return how many engines can be given work."""
    return sum(row.state in UP for row in state.engines)


def changes(before: FarmState | None, after: FarmState) -> list[str]:
    """Return one line for each engine that came, ended or was lost between two states of the farm."""
    old = {row.engine: row for row in before.engines} if before is not None else {}
    new = {row.engine: row for row in after.engines}
    lines = _appended(before.losses if before is not None else [], after.losses)
    lost = " ".join(lines)
    for engine, row in old.items():
        if engine not in new and f"engine {row.id} " not in lost:
            lines.append(f"engine {row.id} ended (pid {row.pid})")
    for engine, row in new.items():
        was = old.get(engine)
        if row.state in UP and (was is None or was.state not in UP):
            lines.append(f"engine {row.id} is ready (pid {row.pid} on {row.node})")
        if row.note and (was is None or was.note != row.note):
            lines.append(f"engine {row.id}: {row.note}")
    return lines


def _appended(before: list[str], after: list[str]) -> list[str]:
    """Return what is new in a list that grows at its end and loses its beginning."""
    for length in range(min(len(before), len(after)), 0, -1):
        if before[-length:] == after[:length]:
            return after[length:]
    return list(after)
