"""The tables that `tc.tasks`, `tc.status`, `tc.failures` and similar calls return, and `TaskCalls`, what other
parts need of a `TaskClient`.
"""

from __future__ import annotations

import html
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Literal, NamedTuple, NoReturn, Protocol, TypeVar, overload

from ..core.messages import Checked
from ..core.messages.tables import EventRow, FarmState, JobRow, TaskRow, TaskRows
from ..core.states import RUNNING, State, state_counts
from ..display import farm_tables
from ..display.farm_tables import job_state, node_table
from ..display.tables import TEXT_MAX, Table
from ..display.text import CELL_MAX, local_time, number, safe, summary
from ..system.user_code import with_cells
from .ids import Ids, Timeout, listed
from .old_names import OldNames, no_attribute
from .output_printer import text_html
from .results import TaskResult
from .session import Session


def _when(at_s: float | None) -> datetime | None:
    return None if at_s is None else local_time(at_s)


class StateCounts(dict[str, int]):
    """Numbers of tasks by state: scheduled, running, succeeded, failed."""

    def __missing__(self, state: str) -> int:
        if state != State.PENDING:
            raise KeyError(state)
        _warn_of_pending()
        return self[RUNNING]


class RunningState(str):
    """The word "running", which also equals "pending": old scripts wait until ``tc.status(i).state == "pending"``."""

    __slots__ = ()
    __hash__ = str.__hash__

    def __eq__(self, other: object) -> bool:
        if isinstance(other, str) and str.__eq__(other, State.PENDING.value):
            _warn_of_pending()
            return True
        return str.__eq__(self, other)

    def __ne__(self, other: object) -> bool:
        return not self == other


def _warn_of_pending() -> None:
    warnings.warn("the state 'pending' is called 'running'", DeprecationWarning, stacklevel=3)


class TaskStatus(OldNames):
    """The state of one task: `id, state, reason, name, engineid, attempts, priority, error` and its times."""

    def __init__(self, row: TaskRow) -> None:
        self.id = row.id
        self.state: str = RunningState(RUNNING) if row.state == State.PENDING else row.state
        """scheduled, running, succeeded or failed."""
        self.reason = row.reason
        self.name = row.name
        self.engineid = row.engine_id
        self.attempts = row.attempts
        self.submitted_at = _when(row.submitted_s)
        self.started_at = _when(row.started_s)
        self.completed_at = _when(row.completed_s)
        self.duration = row.run_s
        """Seconds of the last run; None before its end."""
        self.error = farm_tables.error_text(row.failure)
        self.priority = row.priority
        """None after its end."""

    def __index__(self) -> int:
        """Return the id: rows of a table may be given wherever ids are expected."""
        return self.id

    def __repr__(self) -> str:
        why = f" ({self.reason})" if self.reason not in ("", self.state) else ""
        where = "" if self.engineid is None else f", engine {self.engineid}"
        error = f", {summary(self.error)}" if self.error else ""
        return f"<task {self.id}: {self.state}{why}{where}, attempts {self.attempts}{error}>"


_P = TypeVar("_P")


def _checked(position: _P) -> _P:
    if isinstance(position, str):
        raise TypeError(f"the table takes the number of a row, not {position!r}: `to_dataframe()` has columns")
    return position


class TaskTable(OldNames):
    """A table of tasks in order of their ids.  It iterates over the ids, so it can be passed wherever ids are expected.

    The repr shows the last hundred tasks, and the number of tasks in each state.
    """

    def __init__(self, rows: list[TaskRow], omitted: int = 0, unknown: Sequence[int] = ()) -> None:
        self.rows = [TaskStatus(row) for row in rows]
        self.omitted = omitted
        """Number of older tasks that match too; -1: they were not counted."""
        self.unknown = unknown
        """Ids that were given, and that the farm does not know."""
        self._rows = rows

    @property
    def ids(self) -> list[int]:
        """Return the ids of the tasks."""
        return [row.id for row in self.rows]

    def __iter__(self) -> Iterator[int]:
        return iter(self.ids)

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, position: int) -> TaskStatus: ...

    @overload
    def __getitem__(self, position: slice) -> list[TaskStatus]: ...

    def __getitem__(self, position: int | slice) -> TaskStatus | list[TaskStatus]:
        return self.rows[_checked(position)]

    def _table(self) -> Table:
        more = "last=0 (%tasks --last 0) lists all" if self.omitted else "`rows` and `to_dataframe()` have them"
        return farm_tables.task_table(
            self._rows, omitted=self.omitted, page=farm_tables.PAGE, more=more, notes=_notes(self.unknown)
        )

    def __repr__(self) -> str:
        return repr(self._table())

    def _repr_html_(self) -> str:
        return self._table().html()

    def to_dataframe(self) -> Any:
        """Return the table as a pandas DataFrame, indexed by id."""
        import pandas

        return pandas.DataFrame([vars(row) for row in self.rows]).set_index("id")


class Listing(OldNames):
    """A list of named tuples of one kind, shown as a table."""

    def __init__(self, names: Sequence[str], rows: Sequence[Any], table: Table) -> None:
        self._names = names
        self.rows = list(rows)
        self._table = table

    def __iter__(self) -> Iterator[Any]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, position: int) -> Any:
        return self.rows[_checked(position)]

    def __repr__(self) -> str:
        return repr(self._table)

    def _repr_html_(self) -> str:
        return self._table.html()

    def to_dataframe(self) -> Any:
        """Return the rows as a pandas DataFrame."""
        import pandas

        return pandas.DataFrame(self.rows, columns=list(self._names))


class Event(NamedTuple):
    """Something that happened to a task."""

    at: datetime | None
    task: int
    name: str | None
    what: str
    engine: int | None
    more: str

    def __repr__(self) -> str:
        at = f" at {self.at:%Y-%m-%d %H:%M:%S}" if self.at else ""
        where = "" if self.engine is None else f" on engine {self.engine}"
        return f"<task {self.task}: {self.what}{where}{at}{f', {self.more}' if self.more else ''}>"


def event_listing(rows: Sequence[EventRow]) -> Listing:
    """Return the events of `tc.history` as a table."""
    events = [
        Event(_when(at_s), task, name, what, engine if engine >= 0 else None, more)
        for at_s, task, name, what, engine, more in rows
    ]
    left_out = len(rows) - farm_tables.PAGE
    older = f"; {number(left_out, 'older event')} not shown: `rows` has them" if left_out > 0 else ""
    above = [f"{number(len(rows), 'event')}, the newest last{older}"] if len(rows) > 1 else []
    return Listing(Event._fields, events, farm_tables.event_table(rows, page=farm_tables.PAGE, above=above))


class JobLine(NamedTuple):
    """One job in the table of `tc.jobs`."""

    name: str
    id: str
    tasks: int
    unfinished: int
    state: str
    opened: datetime | None
    priority: int | None = None
    """What was set for all its tasks; None: each has its own."""
    failed: int | None = None
    """Tasks that have failed and were not submitted again; None: not counted, as of jobs before the latest 500."""

    def __repr__(self) -> str:
        opened = f", opened {self.opened:%Y-%m-%d %H:%M:%S}" if self.opened else ""
        failed = f"{self.failed} failed, " if self.failed else ""
        tasks = f"{number(self.tasks, 'task')}, {self.unfinished:,} unfinished, {failed}{self.state}"
        return f"<job {self.name!r}: {tasks}{opened}>"


def _of_a_job(line: JobLine, name: str) -> NoReturn:
    raise no_attribute(line, "JobLine", name)


JobLine.__getattr__ = _of_a_job  # type: ignore[attr-defined]  # in the class it would hide mistakes from type checkers


def job_listing(rows: Sequence[JobRow], failed: Mapping[str, int]) -> Listing:
    """Return the jobs of `tc.jobs` as a table.  failed: as for `farm_tables.job_table`."""
    lines = [
        JobLine(
            row.name, row.id, row.total, row.unfinished, job_state(row), _when(row.opened_s or None), row.priority,
            failed.get(row.id),
        )
        for row in rows
    ]  # fmt: skip
    return Listing(JobLine._fields, lines, farm_tables.job_table(rows, failed))


class FailureGroup(OldNames):
    """Failed tasks with the same error type and place: `etype`, `place`, `ids`, and the `traceback` of the first."""

    def __init__(self, etype: str, place: str, ids: list[int], message: str, traceback: str) -> None:
        self.etype = etype
        self.place = with_cells(place)
        self.ids = ids
        self.message = message
        self.traceback = with_cells(traceback)

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        at = f" at {self.place}" if self.place else ""
        return f"{len(self.ids)} × {self.etype}{at}: {_some(self.ids)}\n{self.traceback.rstrip()}"


class FailureGroups(list[FailureGroup]):
    """Groups of failed tasks, the largest first."""

    unknown: Sequence[int] = ()
    """Ids that were given, and that the farm does not know."""

    @classmethod
    def of_rows(cls, found: TaskRows, result_of: Callable[[int], TaskResult | None]) -> FailureGroups:
        """Group the rows of failed tasks by error type and place.

        result_of: returns the result of a task, or raises its error."""
        groups: dict[tuple[str, str], list[int]] = {}
        for row in found.rows:
            key = (row.failure.etype, row.failure.place) if row.failure else (row.reason, "")
            groups.setdefault(key, []).append(row.id)
        made = cls(FailureGroup(*key, ids, *_error_of(ids[0], result_of)) for key, ids in groups.items())
        made.sort(key=lambda group: -len(group.ids))
        made.unknown = found.unknown
        return made

    def to_dataframe(self) -> Any:
        """Return the groups as a pandas DataFrame, a row for each."""
        import pandas

        rows = [(len(each), each.etype, each.message, each.place, each.ids) for each in self]
        return pandas.DataFrame(rows, columns=["count", "etype", "message", "place", "ids"])

    def _repr_html_(self) -> str:
        notes = "".join(f"<div>{note}</div>" for note in _notes(self.unknown))
        return notes + ("".join(_group_html(group) for group in self) if self else "no failed tasks")

    def __repr__(self) -> str:
        return "\n\n".join([*_notes(self.unknown), *(map(repr, self) if self else ["no failed tasks"])])


def _notes(unknown: Sequence[int]) -> list[str]:
    """Return the line of a table about ids that the farm does not know."""
    return [f"not known: task {listed(unknown)} (never submitted, or cleared)"] if unknown else []


def _error_of(task: int, result_of: Callable[[int], TaskResult | None]) -> tuple[str, str]:
    """Return the message and the traceback of a failed task."""
    try:
        result = result_of(task)
    except Exception as error:  # an aborted or refused task has only an error
        return str(error), f"{type(error).__name__}: {error}"
    failure = result.failure if result is not None else None
    return (failure.getErrorMessage(), failure.getTraceback()) if failure else ("", "")


def _some(ids: list[int]) -> str:
    shown = ", ".join(map(str, ids[:8])) + (", …" if len(ids) > 8 else "")
    return f"task{'' if len(ids) == 1 else 's'} {shown}"


def _group_html(group: FailureGroup) -> str:
    at = f" at {html.escape(safe(group.place))}" if group.place else ""
    head = f"{len(group.ids):,} × <b>{html.escape(safe(group.etype, CELL_MAX))}</b>{at}"
    what = html.escape(summary(group.message, TEXT_MAX))
    return (
        f'<details><summary style="overflow-wrap:anywhere">{head}: {what} <small>{_some(group.ids)}</small></summary>'
        f"{text_html(group.traceback, error=True)}</details>"
    )


class Node:
    """One node of the farm.

    Attributes:
        name, state, platform, python, cores: what it is.
        load: the load as a share of the cores; None: not known.
        memory, free_memory, free_disk: bytes; None: not known.
        capacity, used: dicts of resources, in total and reserved by running tasks.
        engines: the number of its engines.
        environments: a dict of engine ids and the environments that the engines have prepared.
        priority: nodes with a higher number get tasks first.
        slots: the largest number of engines there; None: no limit.
        guard: why the load guard starts nothing there, or "".
        fetched_blobs, fetched_bytes: large values that were copied there, because the node does not see the farm's
            folder.
    """

    def __init__(self, row: dict[str, Any]) -> None:
        self.name: str = row["node"]
        self.state: str = row["state"]
        self.platform: str = row["platform"]
        self.python: str = row["python"]
        self.cores: int = row["cores"]
        self.load: float | None = row["load"]
        self.memory: int = row["memory"]
        self.free_memory: int | None = row["free_memory"]
        self.free_disk: int | None = row["free_disk"]
        self.capacity: dict[str, float] = row["capacity"]
        self.used: dict[str, float] = row["used"]
        self.engines: int = row["engines"]
        self.environments: dict[int, str] = {int(i): name for i, name in row["environments"].items()}
        self.priority: int = row["priority"]
        self.slots: int | None = row["slots"]
        self.guard: str = row["guard"]
        self.fetched_blobs: int = row["fetched_blobs"]
        self.fetched_bytes: int = row["fetched_bytes"]

    def __repr__(self) -> str:
        return f"<node {self.name}: {self.state}, {number(self.engines, 'engine')}>"


class Snapshot:
    """The farm at one moment.

    `nodes` are `Node` objects, `counts` the numbers of tasks by state, `slots` the wanted number of engines in total.
    """

    def __init__(self, state: FarmState) -> None:
        self.nodes = [Node(row) for row in state.agents]
        self._table = node_table(state.agents)
        self.counts = state_counts(state.counts)
        self.slots = state.wanted
        self.farm = state.name

    def __iter__(self) -> Iterator[Node]:
        return iter(self.nodes)

    def __len__(self) -> int:
        return len(self.nodes)

    def __getitem__(self, position: int) -> Node:
        return self.nodes[position]

    def __repr__(self) -> str:
        return repr(self._table)

    def _repr_html_(self) -> str:
        return self._table.html()


class CheckResult:
    """Which engines could run a task; its truth value is whether any engine could.

    Attributes:
        engines: ids of the engines that could run the task.
        why: a dict of the other engine ids, each with the reason.
        unmet: why no engine ever could, as the farm is now; or "".
    """

    def __init__(self, reply: Checked) -> None:
        self.engines = [engine_id for engine_id, _, why in reply.rows if not why]
        self.why = {engine_id: why for engine_id, _, why in reply.rows if why}
        self.unmet = reply.unmet
        self._rows = reply.rows

    def __bool__(self) -> bool:
        return bool(self.engines)

    def _table(self) -> Table:
        lines = [(engine_id, node, why or "it can") for engine_id, node, why in self._rows]
        return Table(("engine", "node", "can it run there?"), lines, nothing="the farm has no engines now")

    def __repr__(self) -> str:
        return repr(self._table())

    def _repr_html_(self) -> str:
        return self._table().html()


class TaskCalls(Protocol):
    """The methods of `TaskClient` that jobs, maps and futures call; they are documented there."""

    farm: str

    @property
    def session(self) -> Session: ...
    @property
    def progress(self) -> object: ...
    @property
    def defaults(self) -> Mapping[str, Any]: ...
    def run(self, task: Any, block: bool = False) -> Any: ...
    def get_task_result(
        self, taskid: int, block: bool | None = None, timeout: Timeout = None, raw: bool = True
    ) -> Any: ...
    def status(self, taskid: int) -> TaskStatus: ...
    def barrier(self, ids: Ids | None = None, timeout: Timeout = None, stream: bool = False) -> None: ...
    def wait(
        self, ids: Ids, timeout: Timeout = None, return_when: Literal["all", "first"] = "all"
    ) -> tuple[list[int], list[int]]: ...
    def as_completed(self, ids: Ids, timeout: Timeout = None) -> Iterator[int]: ...
    def abort(self, taskid: Ids, interrupt: bool = True, reason: str = "", running: bool = True) -> list[int]: ...
    def clear(self, ids: Ids | None = None) -> int: ...
