"""Inserts of the rows that every task has, its own and its end's: many with one statement.

Of what the controller does for a task, SQLite takes the largest part.  So a statement inserts many rows, and a column
that is NULL in all of them is not named: a statement has a price of its own, and each of its parameters has one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache, partial
from itertools import chain
from typing import Any, NamedTuple, TypeAlias

import msgspec

from ..core import saves as s
from ..core.messages.task_types import FailureSummary, Final, Needs, Rules

ROWS_AT_ONCE = (64, 8)
"""How many rows one statement inserts, if there are that many.  Fewer sizes: fewer statements to prepare."""

Row: TypeAlias = tuple[Any, ...]


class Statement(NamedTuple):
    """A SQL statement to run for each of its rows."""

    sql: str
    rows: list[Row]
    fences: bool = False
    """Whether each row begins with a task's id and must change something. A row that changes nothing was fenced off."""
    of_several: Callable[[int], str] | None = None
    """Returns the SQL that does the same for this number of rows at once: a statement has a price of its own."""


def parts(statement: Statement) -> Iterator[tuple[str, list[Row]]]:
    """Yield (SQL, its parameters) which together do what a statement does, with as few runs as possible."""
    rows, at = statement.rows, 0
    if (of_several := statement.of_several) is not None:
        for size in ROWS_AT_ONCE:
            end = at + (len(rows) - at) // size * size
            if at < end:
                yield of_several(size), [tuple(chain.from_iterable(rows[i : i + size])) for i in range(at, end, size)]
                at = end
    if at < len(rows):
        yield statement.sql, rows[at:]


_encode = msgspec.json.Encoder().encode
THERE = "EXISTS (SELECT 1 FROM tasks WHERE id = ?1)"
SEPARATE = "INSERT INTO separate_items (chunk, part) VALUES (?1, ?2) ON CONFLICT DO NOTHING"


def _rules_text(rules: Rules) -> str:
    # Without the name, the texts of many tasks are equal, and loading decodes each text once.
    return _encode(rules if rules.name is None else msgspec.structs.replace(rules, name=None)).decode()


def _texts(parts: list[Rules | None] | list[Needs | None], text_of: Callable[[Any], str]) -> list[str | None]:
    """Return the text of each part.  Tasks that arrived together share their rules and needs."""
    texts: list[str | None] = []
    last, text = None, None
    for part in parts:
        if part is not last:
            last, text = part, None if part is None else text_of(part)
        texts.append(text)
    return texts


def tasks(group: list[s.SaveTask]) -> list[Statement]:
    rules = [t.rules for t in group]
    parts = [t.part for t in group]
    values: dict[str, list[Any]] = {
        "id": [t.id for t in group],
        "queue_seq": [t.queue_seq for t in group],
        "function": [t.function for t in group],
        "session": [t.session for t in group],
        "submitted_s": [t.submitted_s for t in group],
        "payload": [t.payload for t in group],
    }
    if rules.count(None) < len(rules):
        values["name"] = [r and r.name for r in rules]
        values["rules"] = _texts(rules, _rules_text)
        values["job"] = [r and r.job for r in rules]
    needs = [t.needs for t in group]
    if needs.count(None) < len(needs):
        values["needs"] = _texts(needs, lambda needs: _encode(needs).decode())
    values["parent"] = [t.parent for t in group]
    values["spawn"] = [t.spawn for t in group]
    if any(items := [t.items for t in group]):
        values["items"] = items
    keys = [t.cache for t in group]
    if keys.count(None) < len(keys):
        values["cache"] = [None if key is None else _encode(key).decode() for key in keys]
    if parts.count(None) < len(parts):
        values["part_of"] = [p and p[0] for p in parts]
        values["part"] = [p and p[1] for p in parts]
    statements = [_insert(_insert_tasks, values), *_uses("work", group)]
    separate: list[Row] = [t.part for t in group if t.part is not None and t.id == t.part[0] + 1 + t.part[1]]
    return [*statements, Statement(SEPARATE, separate)] if separate else statements


_ONE_TASK = (
    "INSERT INTO tasks (id, queue_seq, name, rules, function, session, submitted_s, payload, needs, job) "
    "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (id) DO NOTHING"
)


_ONE_CACHED_TASK = (
    "INSERT INTO tasks (id, queue_seq, name, rules, function, session, submitted_s, payload, needs, job, cache) "
    "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (id) DO NOTHING"
)


def one_task(t: s.SaveTask) -> tuple[str, Row] | None:
    """Return the statement and the row of a single task; None for a task with a rarer column."""
    if t.blobs or t.items or t.part is not None:
        return None
    if t.parent is not None or t.spawn is not None:
        return None
    rules, needs = t.rules, t.needs
    name = text = job = None
    if rules is not None:
        name, text, job = rules.name, _rules_text(rules), rules.job
    edges = None if needs is None else _encode(needs).decode()
    row = (t.id, t.queue_seq, name, text, t.function, t.session, t.submitted_s, t.payload, edges, job)
    return (_ONE_TASK, row) if t.cache is None else (_ONE_CACHED_TASK, (*row, _encode(t.cache).decode()))


def _insert(sql: Callable[[tuple[str, ...], int], str], values: dict[str, list[Any]]) -> Statement:
    """Return the statement that inserts these values of columns.  A column of NULLs is left out: it costs time."""
    used = {column: of_rows for column, of_rows in values.items() if of_rows.count(None) < len(of_rows)}
    columns = tuple(used)
    return Statement(sql(columns, 1), list(zip(*used.values(), strict=True)), True, partial(sql, columns))


def _parameters(columns: tuple[str, ...], rows: int) -> str:
    return ", ".join([f"({', '.join('?' * len(columns))})"] * rows)


@lru_cache
def _insert_tasks(columns: tuple[str, ...], rows: int) -> str:
    places = _parameters(columns, rows)
    return f"INSERT INTO tasks ({', '.join(columns)}) VALUES {places} ON CONFLICT (id) DO NOTHING"


@lru_cache
def _insert_finals(columns: tuple[str, ...], rows: int) -> str:
    # An end of an attempt that is not the current one comes too late: a requeue has raised the number.
    names = ", ".join(columns)
    return (
        f"INSERT INTO finals ({names}) WITH ends ({names}) AS (VALUES {_parameters(columns, rows)}) "
        f"SELECT {names} FROM ends AS e "
        "WHERE EXISTS (SELECT 1 FROM tasks AS t WHERE t.id = e.task) "
        "AND NOT EXISTS (SELECT 1 FROM progress AS p WHERE p.task = e.task AND p.attempt > e.attempts) "
        "ON CONFLICT (task) DO NOTHING"
    )


def _uses(part: str, needing: Iterable[s.SaveTask] | Iterable[Final]) -> list[Statement]:
    """Return the statement for the blobs that tasks need; no statement if no task needs any."""
    rows: list[Row] = [(task.id, part, digest) for task in needing if task.blobs for digest in task.blobs]
    if not rows:
        return []
    sql = f"INSERT INTO blob_uses (task, part, digest) SELECT ?1, ?2, ?3 WHERE {THERE} ON CONFLICT DO NOTHING"
    return [Statement(sql, rows)]


def failure_row(failure: FailureSummary | None) -> tuple[str | None, str | None, str | None]:
    return (None, None, None) if failure is None else (failure.etype, failure.value, failure.place)


_ONE_FINAL = (
    "INSERT INTO finals (task, reason, engine_id, node, attempts, started_s, run_s, completed_s, body, etype, value, "
    "place) SELECT ?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12 WHERE EXISTS (SELECT 1 FROM tasks WHERE id = ?1) "
    "AND NOT EXISTS (SELECT 1 FROM progress WHERE task = ?1 AND attempt > ?5) ON CONFLICT (task) DO NOTHING"
)
"""The same as `_insert_finals` for one row."""


def one_final(save: s.SaveFinal) -> tuple[str, Row] | None:
    """Return the statement and the row of a single end; None for a result that needs blobs."""
    f = save.final
    if f.blobs:
        return None
    return _ONE_FINAL, (
        f.id, f.reason, f.engine_id, f.node, f.attempts, f.started_s, f.run_s, f.completed_s, f.body,
        *failure_row(f.failure),
    )  # fmt: skip


def finals(group: list[s.SaveFinal]) -> list[Statement]:
    finals = [save.final for save in group]
    values: dict[str, list[Any]] = {
        "task": [f.id for f in finals],
        "reason": [f.reason for f in finals],
        "engine_id": [f.engine_id for f in finals],
        "node": [f.node for f in finals],
        "attempts": [f.attempts for f in finals],
        "started_s": [f.started_s for f in finals],
        "run_s": [f.run_s for f in finals],
        "completed_s": [f.completed_s for f in finals],
        "body": [f.body for f in finals],
    }
    failures = [f.failure for f in finals]
    if failures.count(None) < len(failures):
        columns = zip(*map(failure_row, failures), strict=True)
        values.update(zip(("etype", "value", "place"), map(list, columns), strict=True))
    return [_insert(_insert_finals, values), *_uses("result", finals)]
