"""Tables of tasks for the live view, read over a connection of their own that cannot write.

A thread beside the controller's turns uses it, so a look at a million tasks delays nobody. Each answer has a time; what
could not be looked at in time is left to the next question, which begins where this one ended.

Of events (`read_events`), the items of a chunk that are no tasks of their own have the chunk's, under their own ids.
SQL finds the events of chunks, and only as many as are asked for become events of items: a map may have millions.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Callable, Container, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from ..core.messages import ReadHistory, Refusal, view
from ..core.messages.pages import EVENTS_MAX
from ..core.messages.tables import EventRow, EventTable
from ..core.states import ABORTS, FINAL
from ..core.stretches import merged
from .inserts import Row
from .rows import asked, decode_indexes

ANSWER_S = 0.15
"""How long one answer may take; it is looked at after each range of ids."""
RANGE = 20_000
"""How many ids are looked at between two looks at the clock."""
HISTORY_S = 20.0
"""How long one page of the history may take: it is sorted by time, so all tasks are looked at."""
RARE = 50_000
"""The number of failed tasks up to which their index is faster than a look at all tasks."""
IDS_SHOWN = 8
CAUSES_MAX = 500
INPUT_BYTES = 64 * 1024
PICTURE_WIDTH = 2000
"""The width, in stretches, of the picture that a window is drawn in."""
_EXTENT = "SELECT ifnull((SELECT min(id) FROM tasks), 0), ifnull((SELECT max(id) FROM tasks), -1)"
"""The lowest and the highest id.  In one SELECT of both, SQLite would look at all rows."""

_COLUMNS = """t.id, t.items, t.name, t.job, f.task IS NOT NULL, f.reason, f.engine_id, f.attempts, t.submitted_s,
    f.started_s, f.run_s, f.completed_s, f.etype, f.value, f.place,
    iif(t.items, (SELECT json_group_array(x.part) FROM separate_items AS x WHERE x.chunk = t.id), NULL)"""


_UNRETRIED = "NOT EXISTS (SELECT 1 FROM tasks AS again WHERE json_extract(again.rules, '$.retry_of') = +f.task)"
"""A failed task that was submitted again is not a failure any more; if its retry has failed, that one is.

The plus sign takes the affinity of the column away; with it, SQLite would not search the index of the expression."""
_RUNS = "iif(t.items, t.items - (SELECT count(*) FROM separate_items AS x WHERE x.chunk = t.id), 1)"
"""How many runs the end of a task stands for: items that became tasks of their own have ends of their own."""


class _Filter(NamedTuple):
    """The WHERE clause of a page, with its parameters."""

    conditions: list[str]
    values: list[Any]
    rare: bool
    """Whether only failed tasks are wanted."""


class TaskTables:
    """Reads tables of tasks. Used by one thread."""

    def __init__(self, path: Path, is_over: Callable[[], bool] = lambda: False) -> None:
        """Open the store; long answers are given up when `is_over` returns True."""
        self._is_over = is_over
        self._db = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)
        self._db.execute("PRAGMA query_only = 1")
        self._db.create_function("holds", 2, _holds, deterministic=True)

    def close(self) -> None:
        """Close the connection."""
        self._db.close()

    # ---------------------------------------------------------------------------------- causes

    def causes(self, question: view.ReadCauses) -> view.CauseTable:
        """Return the failed tasks that were not submitted again, by cause, the largest group first."""
        count = max(1, min(question.count, CAUSES_MAX))
        self._bound(1.0)
        try:
            if question.job is None:
                groups = self._db.execute(
                    "SELECT reason, etype, place, count(*) AS n FROM finals AS f INDEXED BY finals_by_cause "
                    f"WHERE reason <> '' AND {_UNRETRIED} GROUP BY 1, 2, 3 ORDER BY n DESC"
                ).fetchall()
            else:
                groups = self._db.execute(
                    "SELECT f.reason, f.etype, f.place, count(*) AS n FROM tasks AS t "
                    f"JOIN finals AS f ON f.task = t.id WHERE t.job = ? AND f.reason <> '' AND {_UNRETRIED} "
                    "GROUP BY 1, 2, 3 ORDER BY n DESC",
                    (question.job,),
                ).fetchall()
            rows = [self._cause(question.job, *group) for group in groups[:count]]
            of_jobs, jobs = "t.job IS NOT NULL", []
            if question.jobs is not None:
                of_jobs = "t.job IN (SELECT value FROM json_each(?))"
                jobs = [json.dumps(question.jobs[: view.JOBS_COUNTED])]
            by_job = self._db.execute(
                "SELECT t.job, count(*) AS n FROM finals AS f INDEXED BY finals_by_cause CROSS JOIN tasks AS t "
                f"ON t.id = f.task WHERE f.reason <> '' AND {of_jobs} AND {_UNRETRIED} "
                "GROUP BY 1 ORDER BY n DESC LIMIT ?",
                (*jobs, view.JOBS_COUNTED),
            ).fetchall()
        except sqlite3.OperationalError as error:
            if "interrupted" not in str(error):
                raise
            return view.CauseTable([], complete=False)
        finally:
            self._db.set_progress_handler(None, 0)
        return view.CauseTable(rows, max(0, len(groups) - count), by_job)

    def _cause(
        self, job: str | None, reason: str, etype: str | None, place: str | None, count: int
    ) -> view.FailureCause:
        """Return a group with its latest tasks."""
        of_job, values = ("", []) if job is None else ("AND (SELECT job FROM tasks WHERE id = task) = ?", [job])
        found = self._db.execute(
            "SELECT task, value, completed_s FROM finals AS f INDEXED BY finals_by_cause WHERE reason <> '' "
            f"AND reason = ? AND etype IS ? AND place IS ? {of_job} AND {_UNRETRIED} ORDER BY task DESC LIMIT ?",
            (reason, etype, place, *values, IDS_SHOWN),
        ).fetchall()
        text, last_s = (found[0][1] or "", found[0][2] or 0.0) if found else ("", 0.0)
        return view.FailureCause(reason, etype or "", place or "", text, count, [row[0] for row in found], last_s)

    def _bound(self, seconds: float) -> None:
        """Let the following statements be interrupted after this time."""
        until_s = time.monotonic() + seconds
        self._db.set_progress_handler(lambda: time.monotonic() > until_s or self._is_over(), 100_000)

    # ---------------------------------------------------------------------------------- pages

    def page(self, question: view.ReadTaskPage, failed: int) -> tuple[view.TaskPage, list[int]] | Refusal:
        """Return a page of tasks, and the ids under which the tasks of its lines are kept.

        Tasks that have not ended have the state "unfinished". `failed` is how many tasks have failed."""
        wanted = _filter(question)
        if wanted is None:
            return Refusal("ValueError", f"there is no state {question.state!r} of ended tasks")
        count = max(1, min(question.count, view.PAGE_MAX))
        if wanted.rare and failed <= RARE:
            rows = self._at_once(question, wanted, count)
            return _page(rows, rows[-1][0] if len(rows) >= count else None, True)
        if question.job is not None and not question.text:
            rows = self._at_once(question, wanted, count)
            return _page(rows, rows[-1][0] if len(rows) >= count else None, True)
        return self._by_ranges(question, wanted, count)

    def _at_once(self, question: view.ReadTaskPage, wanted: _Filter, count: int) -> list[tuple[Any, ...]]:
        """Look for the rows by an index."""
        sign, order = (">", "ASC") if question.oldest_first else ("<", "DESC")
        conditions, values = list(wanted.conditions), list(wanted.values)
        if question.before is not None:
            conditions.append(f"t.id {sign} ?")
            values.append(question.before)
        if wanted.rare:
            tables = "finals AS f INDEXED BY finals_by_cause CROSS JOIN tasks AS t ON t.id = f.task"
        else:
            tables = "tasks AS t LEFT JOIN finals AS f ON f.task = t.id"
        where = " AND ".join(conditions) or "1"
        sql = f"SELECT {_COLUMNS} FROM {tables} WHERE {where} ORDER BY t.id {order} LIMIT ?"
        return self._db.execute(sql, (*values, count)).fetchall()

    def _by_ranges(self, question: view.ReadTaskPage, wanted: _Filter, count: int) -> tuple[view.TaskPage, list[int]]:
        """Look at all tasks, a range of ids after the other, until the page is full or the time is over."""
        lowest, highest = self._db.execute(_EXTENT).fetchone()
        ended = len(wanted.conditions) > 1 and question.state in _ENDED  # the first one is about chunks
        join = "JOIN" if ended else "LEFT JOIN"
        where = " AND ".join([*wanted.conditions, "t.id BETWEEN ? AND ?"])
        order = "ASC" if question.oldest_first else "DESC"
        sql = (
            f"SELECT {_COLUMNS} FROM tasks AS t {join} finals AS f ON f.task = t.id WHERE {where} "
            f"ORDER BY t.id {order} LIMIT ?"
        )
        until_s = time.monotonic() + ANSWER_S
        rows: list[tuple[Any, ...]] = []
        if question.oldest_first:
            at = max(lowest, question.before + 1) if question.before is not None else lowest
        else:
            at = min(highest, question.before - 1) if question.before is not None else highest
        while lowest <= at <= highest:
            first, last = (at, at + RANGE - 1) if question.oldest_first else (at - RANGE + 1, at)
            rows += self._db.execute(sql, (*wanted.values, first, last, count - len(rows))).fetchall()
            if len(rows) >= count:
                return _page(rows, rows[-1][0], True)
            at = last + 1 if question.oldest_first else first - 1
            if time.monotonic() > until_s and lowest <= at <= highest:
                return _page(rows, at - 1 if question.oldest_first else at + 1, False)
        return _page(rows, None, True)

    # ---------------------------------------------------------------------------------- history

    def history(self, question: ReadHistory) -> EventTable | Refusal:
        """Return the last matching events of tasks, in the order of time."""
        count = max(0, min(question.last, EVENTS_MAX))
        self._bound(HISTORY_S)
        try:
            found = read_events(self._db.execute, question, count)
        except sqlite3.OperationalError as error:
            if "interrupted" not in str(error):
                raise
            text = f"the history of so many tasks takes more than {HISTORY_S:g} s: name the tasks (ids)"
            return Refusal("TaskTimeout", text)
        finally:
            self._db.set_progress_handler(None, 0)
        at_s, task, _, what, *_ = found[0] if found else (0.0, 0, "", "")
        end = (at_s, task, what) if len(found) == count < question.last else None
        return EventTable(found, end)

    # ---------------------------------------------------------------------------------- stretches

    def stretches(self, question: view.ReadStretches) -> view.StretchTable:
        """Return the runs between two moments, the latest tasks first as far as the time allows."""
        lowest, highest, first_s = self._db.execute(
            f"{_EXTENT}, (SELECT submitted_s FROM tasks ORDER BY id LIMIT 1)"
        ).fetchone()
        of_job, values = ("", []) if question.job is None else ("AND t.job = ?", [question.job])
        sql = (
            f"SELECT f.engine_id, ifnull(t.name, ''), f.reason, f.started_s, f.started_s + f.run_s, {_RUNS}, "
            "f.task, f.run_s FROM finals AS f JOIN tasks AS t ON t.id = f.task "
            "WHERE f.task BETWEEN ? AND ? AND f.completed_s >= ? AND f.started_s > 0 AND f.started_s <= ? "
            f"AND f.engine_id >= 0 AND {_RUNS} > 0 {of_job}"
        )
        resolution_s = max(1e-6, (question.until_s - question.since_s) / PICTURE_WIDTH)
        at = highest if question.before is None else min(highest, question.before - 1)
        until_s = time.monotonic() + ANSWER_S
        found: list[view.Stretch] = []
        while at >= lowest:
            window = (at - RANGE + 1, at, question.since_s, question.until_s, *values)
            found += [view.Stretch(*row) for row in self._db.execute(sql, window)]
            if len(found) > view.STRETCHES_MAX:
                found = merged(found, resolution_s, view.STRETCHES_MAX)
            at -= RANGE
            if time.monotonic() > until_s:
                break
        return view.StretchTable(
            merged(found, resolution_s, view.STRETCHES_MAX), at + 1 if at >= lowest else None, first_s
        )

    # ---------------------------------------------------------------------------------- one task

    def task_input(self, question: view.ReadTaskInput) -> view.TaskInput | Refusal:
        """Return a task as it was submitted; of an item of a map, its chunk."""
        row = self._db.execute(
            "SELECT id, iif(length(payload) <= ?, payload, x''), length(payload), function, rules, submitted_s "
            # The nearest one below, which has the item if it is a chunk: no other row is looked at.
            "FROM tasks WHERE id = (SELECT max(id) FROM tasks WHERE id <= ?) AND id + items >= ?",
            (INPUT_BYTES, question.id, question.id),
        ).fetchone()
        if row is None:
            return Refusal("IndexError", f"there is no task {question.id}: it was never submitted, or has been cleared")
        task, payload, size, function, rules, submitted_s = row
        return view.TaskInput(task, bytes(payload), size, function, rules or "", submitted_s or 0.0)


_ENDED = {*(state.value for state in FINAL), "finished", "aborted"}


def _holds(text: str | None, part: str) -> bool:
    return text is not None and part in text.lower()


def _filter(question: view.ReadTaskPage) -> _Filter | None:
    """Return the conditions of a page.  None: the state is unknown."""
    conditions = [f"{_RUNS} > 0"]  # a chunk whose items all became tasks of their own stands for none
    values: list[Any] = []
    match question.state:
        case None | "finished":
            pass
        case "succeeded":
            conditions.append("f.reason = ''")
        case "failed":
            conditions.append("f.reason <> ''")
        case "aborted":
            conditions.append(f"f.reason <> '' AND f.reason IN ({', '.join('?' for _ in ABORTS)})")
            values += sorted(ABORTS)
        case _:
            return None
    if question.cause is not None:
        reason, etype, place = question.cause
        conditions.append("f.reason <> '' AND f.reason = ? AND ifnull(f.etype, '') = ? AND ifnull(f.place, '') = ?")
        values += [reason, etype, place]
    if question.job is not None:
        conditions.append("t.job = ?")
        values.append(question.job)
    if question.cause is not None or (question.state == "failed" and question.job is not None):
        conditions.append(_UNRETRIED)
    if question.engine_id is not None:
        conditions.append("f.engine_id = ?")
        values.append(question.engine_id)
    if question.text:
        columns = ("t.name", "f.etype", "f.value", "f.place")
        if question.text.isascii():
            wanted = "%" + question.text.replace("!", "!!").replace("%", "!%").replace("_", "!_") + "%"
            holds = "{} LIKE ? ESCAPE '!'"
        else:  # LIKE ignores the case of ASCII letters alone
            wanted, holds = question.text.lower(), "holds({}, ?)"
        conditions.append("(" + " OR ".join(map(holds.format, columns)) + ")")
        values += [wanted] * len(columns)
    rare = question.state in ("failed", "aborted") or question.cause is not None
    return _Filter(conditions, values, rare)


def _page(rows: list[tuple[Any, ...]], at: int | None, full: bool) -> tuple[view.TaskPage, list[int]]:
    return view.TaskPage([_page_row(row) for row in rows], at, full), [row[0] for row in rows]


def _page_row(row: tuple[Any, ...]) -> view.PageRow:
    (
        task, items, name, job, ended, reason, engine_id, attempts, submitted_s, started_s, run_s, completed_s, etype,
        value, place, separate,
    ) = row  # fmt: skip
    state = "unfinished" if not ended else "failed" if reason else "succeeded"
    if items:
        gone = set(_indexes(separate))
        shown = next((index for index in range(items) if index not in gone), -1)
        task, items = task + 1 + shown, items - len(gone)
    return view.PageRow(
        task, state, reason or "", name or "", job or "", engine_id if engine_id is not None else -1, attempts or 0,
        submitted_s or 0.0, started_s, run_s, completed_s, etype or "", value or "", place or "", max(1, items),
    )  # fmt: skip


def _indexes(text: str | None) -> list[int]:
    return [int(word) for word in (text or "[]").strip("[]").split(",") if word]


_KEYS = (
    "WITH asked (id, chunk) AS (SELECT a.value, (SELECT c.id FROM tasks AS c INDEXED BY tasks_with_items "
    "WHERE c.items > 0 AND c.id < a.value ORDER BY c.id DESC LIMIT 1) FROM json_each(?) AS a) "
    "SELECT t.id FROM asked AS a CROSS JOIN tasks AS t ON t.id = a.id WHERE NOT t.items UNION "
    "SELECT c.id FROM asked AS a CROSS JOIN tasks AS c ON c.id = a.chunk WHERE a.id <= c.id + c.items "
    "AND NOT EXISTS (SELECT 1 FROM separate_items AS x WHERE x.chunk = c.id AND x.part = a.id - c.id - 1)"
)
"""Ids of tasks -> the ids under which their events are kept: that of its chunk for an item that is no task."""


def _events(among: str) -> str:
    """Return the SELECT of events.  among: a condition of the column `task` that each of the tables is read with."""
    return (
        "WITH events (at_s, task, what, engine_id, more) AS ("
        f"SELECT submitted_s, id AS task, 'accepted', -1, '' FROM tasks WHERE {among.replace('task', 'id')} UNION ALL "
        "SELECT started_s, task, 'started', engine_id, 'attempt ' || number FROM attempts "
        f"WHERE engine_id >= 0 AND {among} UNION ALL "
        "SELECT ended_s, task, iif(outcome = '', 'succeeded', outcome), engine_id, ifnull(etype || ': ' || value, '') "
        f"FROM attempts WHERE {among} UNION ALL "
        "SELECT at_s, task, 'priority ' || before || ' → ' || priority, -1, '' "
        f"FROM priority_changes WHERE {among} UNION ALL "
        "SELECT started_s, task, 'started', engine_id, 'attempt ' || attempts FROM finals "
        f"WHERE engine_id >= 0 AND {among} UNION ALL "
        "SELECT completed_s, task, iif(reason = '', 'succeeded', 'failed: ' || reason), engine_id, "
        f"ifnull(etype || ': ' || value, '') FROM finals WHERE {among}) "
        "SELECT e.at_s, e.task, t.name, e.what, e.engine_id, e.more, t.items, "
        "iif(t.items, (SELECT json_group_array(x.part) FROM separate_items AS x WHERE x.chunk = t.id), NULL) "
        "FROM events AS e CROSS JOIN tasks AS t ON t.id = e.task "
        "WHERE (?2 IS NULL OR t.name = ?2) AND (?3 IS NULL OR instr(lower(e.what), lower(?3))) AND e.at_s >= ?4 "
        "AND (NOT t.items OR t.items > (SELECT count(*) FROM separate_items AS x WHERE x.chunk = t.id)) "
        "AND (?6 IS NULL OR (e.at_s, e.task, e.what) <= (?6, ?7, ?8)) "
        "ORDER BY e.at_s DESC, e.task DESC, e.what DESC LIMIT ?5"
    )


_EVENTS_OF_ALL = _events("?1 IS NULL")
_EVENTS_OF_SOME = _events("task IN (SELECT value FROM json_each(?1))")


def read_events(select: Callable[[str, Row], Iterable[Row]], question: ReadHistory, count: int) -> list[EventRow]:
    """Return the last `count` events that match, in order of time.  select: runs a SELECT with its parameters."""
    wanted = None if question.ids is None else frozenset(question.ids)
    keys = None if wanted is None else asked(row[0] for row in select(_KEYS, (asked(wanted),)))
    before = _row_of(select, question.before) if question.before is not None else (None, None, None)
    found: list[EventRow] = []
    # Each row is at least one event, so the last rows have the last events.  The row at which the page before ended may
    # have none that is left.
    rows = select(
        _EVENTS_OF_ALL if keys is None else _EVENTS_OF_SOME,
        (keys, question.name, question.what, question.since_s, count + 1, *before),
    )
    for at_s, task, name, what, engine_id, more, items, separate in rows:
        left = count - len(found)
        if left <= 0:
            break
        ids: Iterable[int] = _silent(task, items, separate, wanted) if items else (task,)
        if question.before is not None and (at_s, task, what) == before:
            ids = (id for id in ids if id < question.before[1])
        found += [(at_s, id, name, what, engine_id, more) for id in islice(ids, left)]
    return found[::-1]


def _row_of(select: Callable[[str, Row], Iterable[Row]], event: tuple[float, int, str]) -> tuple[float, int, str]:
    """Return (time, task, what) of the row that an event was made of: an item's is its chunk's."""
    at_s, task, what = event
    return at_s, next((row[0] for row in select(_KEYS, (asked([task]),))), task), what


def _silent(chunk: int, items: int, separate: str, wanted: Container[int] | None) -> Iterator[int]:
    """Yield the ids of a chunk's items that are no tasks of their own, the last first.  wanted: only of these."""
    gone = frozenset(decode_indexes(separate))
    for index in range(items - 1, -1, -1):
        id = chunk + 1 + index
        if index not in gone and (wanted is None or id in wanted):
            yield id
