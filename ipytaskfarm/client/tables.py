"""What `tc.tasks`, `tc.status` and `tc.failures` give out."""

from __future__ import annotations

import html
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

from ..core.formatting import job_state
from ..core.messages.tables import JobRow, TaskRow
from .display import harmless, html_table, table, text_html
from .results import failure_text

_HEADINGS = ("id", "state", "reason", "name", "engine", "attempts", "submitted", "duration", "error")


def _when(at_s: float | None) -> datetime | None:
    return None if at_s is None else datetime.fromtimestamp(at_s, UTC).astimezone()


class TaskStatus:
    """Where one task is: `id, state, reason, name, engineid, attempts, error` and its times."""

    def __init__(self, row: TaskRow) -> None:
        self.id = row.id
        self.state = row.state
        self.reason = row.reason
        self.name = row.name
        self.engineid = row.engine_id
        self.attempts = row.attempts
        self.submitted_at = _when(row.submitted_s)
        self.started_at = _when(row.started_s)
        self.completed_at = _when(row.completed_s)
        self.duration = row.run_s
        """Seconds of the last run; None before its end."""
        self.error = failure_text(row.failure)

    def __repr__(self) -> str:
        shown = "running" if self.state == "pending" else self.state
        why = f" ({self.reason})" if self.reason else ""
        where = "" if self.engineid is None else f", engine {self.engineid}"
        error = f", {harmless(self.error)}" if self.error else ""
        return f"<task {self.id}: {shown}{why}{where}, attempts {self.attempts}{error}>"


class TaskTable:
    """A table of tasks, in order of their ids.  Iterates over the ids, so every call that takes ids takes it."""

    def __init__(self, rows: list[TaskRow], omitted: int = 0) -> None:
        self.rows = [TaskStatus(row) for row in rows]
        self.omitted = omitted
        """So many before these match too."""

    @property
    def ids(self) -> list[int]:
        """Return the ids alone."""
        return [row.id for row in self.rows]

    def __iter__(self) -> Iterator[int]:
        return iter(self.ids)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, position: int) -> TaskStatus:
        return self.rows[position]

    def _cells(self) -> Iterator[Sequence[object]]:
        for r in self.rows:
            shown = "running" if r.state == "pending" else r.state
            submitted = time.strftime("%H:%M:%S", r.submitted_at.timetuple()) if r.submitted_at else ""
            duration = "" if r.duration is None else f"{r.duration:.3f}"
            yield r.id, shown, r.reason, r.name, r.engineid, r.attempts, submitted, duration, r.error

    def __repr__(self) -> str:
        if not self.rows:
            return "no tasks"
        return table(_HEADINGS, self._cells()) + (f"\n{self._more()}" if self.omitted else "")

    def _repr_html_(self) -> str:
        return html_table(_HEADINGS, self._cells()) + (f"<div>{self._more()}</div>" if self.omitted else "")

    def _more(self) -> str:
        return f"… and {self.omitted:,} before these"

    def to_dataframe(self) -> Any:
        """Return the table as a pandas DataFrame, indexed by id."""
        import pandas

        return pandas.DataFrame([vars(row) for row in self.rows]).set_index("id")


class Listing:
    """Lines of one kind: a list of named tuples that shows itself as a table."""

    def __init__(self, headings: Sequence[str], rows: Sequence[Any], nothing: str) -> None:
        self._headings = headings
        self.rows = list(rows)
        self._nothing = nothing

    def __iter__(self) -> Iterator[Any]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, position: int) -> Any:
        return self.rows[position]

    def __repr__(self) -> str:
        return table(self._headings, self._cells()) if self.rows else self._nothing

    def _repr_html_(self) -> str:
        return html_table(self._headings, self._cells()) if self.rows else self._nothing

    def _cells(self) -> Iterator[Sequence[object]]:
        for row in self.rows:
            yield [each.strftime("%Y/%m/%d %H:%M:%S") if isinstance(each, datetime) else each for each in row]

    def to_dataframe(self) -> Any:
        """As a pandas DataFrame."""
        import pandas

        return pandas.DataFrame(self.rows, columns=list(self._headings))


class Event(NamedTuple):
    """Something that happened to a task."""

    at: datetime | None
    task: int
    name: str | None
    what: str
    engine: int | None
    more: str


def event_table(rows: Sequence[tuple[float, int, str | None, str, int, str]]) -> Listing:
    """Return what `tc.history` gives out."""
    events = [
        Event(_when(at_s), task, name, what, engine if engine >= 0 else None, more)
        for at_s, task, name, what, engine, more in rows
    ]
    return Listing(Event._fields, events, "nothing happened")


class JobLine(NamedTuple):
    """One job, as `tc.jobs` shows it."""

    name: str
    id: str
    tasks: int
    unfinished: int
    state: str
    opened: datetime | None


def job_table(rows: Sequence[JobRow]) -> Listing:
    """Return what `tc.jobs` gives out."""
    lines = [JobLine(row.name, row.id, row.total, row.unfinished, job_state(row), _when(row.opened_s)) for row in rows]
    return Listing(JobLine._fields, lines, "no jobs")


class FailureGroup:
    """Failed tasks of one error type at one place: `etype`, `place`, `ids`, and the `traceback` of the first."""

    def __init__(self, etype: str, place: str, ids: list[int], message: str, traceback: str) -> None:
        self.etype = etype
        self.place = place
        self.ids = ids
        self.message = message
        self.traceback = traceback

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        some = ", ".join(map(str, self.ids[:8])) + (", …" if len(self.ids) > 8 else "")
        at = f" at {self.place}" if self.place else ""
        return f"{len(self.ids)} × {self.etype}{at}: tasks {some}\n{self.traceback.rstrip()}"


class FailureGroups(list[FailureGroup]):
    """Groups of failed tasks, the largest first."""

    def _repr_html_(self) -> str:
        if not self:
            return "no failed tasks"
        return "".join(
            f"<details><summary>{len(g.ids)} × <b>{html.escape(harmless(g.etype))}</b>: "
            f"{html.escape(harmless(g.message))} <small>tasks {', '.join(map(str, g.ids[:8]))}"
            f"{', …' if len(g.ids) > 8 else ''}</small></summary>{text_html(g.traceback, error=True)}</details>"
            for g in self
        )

    def __repr__(self) -> str:
        return "\n\n".join(map(repr, self)) if self else "no failed tasks"
