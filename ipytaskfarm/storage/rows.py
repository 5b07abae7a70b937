"""Converts saves into rows of the store's tables, and rows into values. All SQL for the tables is here.

`storage.store` runs it; nothing here touches a file. ``schema.sql`` explains the columns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import groupby
from typing import Any, NamedTuple

import msgspec

from ..core import saves as s
from ..core.limits import PAYLOAD_BYTES
from ..core.messages.result_cache import CacheKey
from ..core.messages.tables import TaskRow
from ..core.messages.task_types import AttemptRow, FailureSummary, Final, JobSpec, Needs, RunKey
from ..core.states import State
from .inserts import SEPARATE, THERE, Row, Statement, failure_row, finals, tasks

_encode = msgspec.json.Encoder().encode
read_spec = msgspec.json.Decoder(JobSpec).decode
decode_runs = msgspec.json.Decoder(tuple[RunKey, ...]).decode
decode_needs = msgspec.json.Decoder(Needs).decode
decode_cache_key = msgspec.json.Decoder(CacheKey).decode
decode_indexes = msgspec.json.Decoder(tuple[int, ...]).decode
decode_digests = msgspec.json.Decoder(tuple[str, ...]).decode


def asked(keys: Iterable[int] | Iterable[str]) -> str:
    """Return the parameter for the SELECTs below: all keys in one text, so that their number has no limit.

    The statement finds them as ``asked.value``.
    """
    return _encode(list(keys)).decode()


# -- Saves into rows: a statement and its row per kind, or a function that takes consecutive saves of that kind.


def _attempt(save: s.SaveAttempt) -> Row:
    r = save.row
    return (save.task, r.number, r.engine_id, r.node, r.started_s, r.ended_s, r.outcome, *failure_row(r.failure))


def _requeues(group: list[s.SaveRequeue]) -> list[Statement]:
    # A recovery task's payload comes only with the first of its requeues; further ones keep it.
    sql = (
        "INSERT INTO progress (task, queue_seq, attempt, errors, losses, recovery, payload, function, "
        "until_s, trial, began_s, state, received) "
        "SELECT ?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13 "
        f"WHERE {THERE} AND NOT EXISTS (SELECT 1 FROM finals WHERE task = ?1) "
        "ON CONFLICT (task) DO UPDATE SET queue_seq = ?2, attempt = ?3, errors = ?4, losses = ?5, recovery = ?6, "
        "payload = iif(?7 IS NULL AND ?6 = recovery, payload, ?7), "
        "function = iif(?7 IS NULL AND ?6 = recovery, function, ?8), until_s = ?9, trial = ?10, began_s = ?11, "
        "state = ifnull(?12, state), received = ?13 WHERE ?3 >= attempt"
    )
    rows: list[Row] = [
        (
            q.task, q.queue_seq, q.attempt, q.errors, q.losses, q.recovery, q.payload, q.function,
            q.until_s, q.trial, q.began_s, q.state, q.received,
        )
        for q in group
    ]  # fmt: skip
    return [Statement(sql, rows, fences=True)]


_NOT_ENDED = "NOT EXISTS (SELECT 1 FROM finals AS f WHERE f.task = ?1)"
_WITH_PRIORITY = (
    "CASE WHEN json_type(rules, '$.recovery') IS NOT 'object' THEN json_set(ifnull(rules, '{}'), '$.priority', ?2) "
    "ELSE (WITH RECURSIVE chain (path, text) AS ("
    "SELECT '$', json_set(rules, '$.priority', ?2) UNION ALL "
    "SELECT path || '.recovery.rules', json_set(text, path || '.recovery.rules', json_set("
    "ifnull(nullif(text -> (path || '.recovery.rules'), 'null'), '{}'), '$.priority', ?2)) "
    "FROM chain WHERE json_type(text, path || '.recovery') IS 'object') "
    "SELECT text FROM chain ORDER BY length(path) DESC LIMIT 1) END"
)
"""A task's rules with another priority, down the chain of its recovery tasks: `task.with_priority` in SQL."""


def _priorities(group: list[s.SavePriority]) -> list[Statement]:
    rules = f"UPDATE tasks SET rules = {_WITH_PRIORITY} WHERE id = ?1 AND {_NOT_ENDED}"
    changes = (
        "INSERT INTO priority_changes (task, at_s, before, priority) "
        f"SELECT ?1, ?2, ?3, ?4 WHERE {THERE} AND {_NOT_ENDED} ON CONFLICT (task, at_s) DO UPDATE SET priority = ?4"
    )
    return [
        Statement(rules, [(p.task, p.priority) for p in group], fences=True),
        Statement(changes, [(p.task, p.at_s, p.before, p.priority) for p in group]),
    ]


def _reopened(group: list[s.SaveReopen]) -> list[Statement]:
    ids: list[Row] = [(r.task,) for r in group]
    ended = "EXISTS (SELECT 1 FROM finals AS f WHERE f.task = ?1)"
    becomes = (
        "INSERT INTO attempts (task, number, engine_id, node, started_s, ended_s, outcome, etype, value, place) "
        "SELECT task, attempts, engine_id, node, started_s, started_s + run_s, ?2, NULL, NULL, NULL FROM finals "
        "WHERE task = ?1 ON CONFLICT (task, number) DO NOTHING"
    )
    progress = (
        "INSERT INTO progress (task, queue_seq, attempt, errors, losses, recovery) "
        f"SELECT ?1, ?2, ?3, ?4, ?5, ?6 WHERE {ended} "
        "ON CONFLICT (task) DO UPDATE SET queue_seq = ?2, attempt = ?3, until_s = NULL, began_s = NULL"
    )
    return [
        Statement(becomes, [(r.task, r.outcome) for r in group]),
        Statement(progress, [(r.task, r.queue_seq, r.attempt, r.errors, r.losses, r.recovery) for r in group]),
        Statement(f"DELETE FROM blob_uses WHERE task = ?1 AND part = 'result' AND {ended}", ids),
        Statement("DELETE FROM finals WHERE task = ?1", ids, fences=True),
    ]


def _left(group: list[s.SaveLeft]) -> list[Statement]:
    unused = "DELETE FROM blocks WHERE first = ?1 AND ?2 < first"
    ended = "UPDATE blocks SET last = ?2, session = '' WHERE first = ?1"
    ends = [(x.first, x.last) for x in group]
    return [Statement(unused, ends), Statement(ended, ends)]


ACCEPT = "UPDATE blocks SET accepted_upto = max(accepted_upto, ?2) WHERE first = ?1"


HAND_OUT = (
    "INSERT INTO handouts (number, engine, engine_id, runs, at_s) VALUES (?1, ?2, ?3, ?4, ?5) "
    "ON CONFLICT (number) DO UPDATE SET runs = ?4"
)
DROP_HAND_OUT = "DELETE FROM handouts WHERE number = ?"


def handout(save: s.SaveHandOut) -> Row:
    """Return the row of a batch for `HAND_OUT`."""
    return (save.number, save.engine, save.engine_id, _encode(save.runs).decode(), save.at_s)


def _cleared(group: list[s.SaveClear]) -> list[Statement]:
    spans: list[Row] = list(_spans(id for save in group for id in save.ids))
    ended = "EXISTS (SELECT 1 FROM finals AS f WHERE f.task = tasks.id)"
    statements = [Statement(f"DELETE FROM tasks WHERE id BETWEEN ? AND ? AND {ended}", spans)]
    for table in ("finals", "attempts", "progress", "priority_changes", "blob_uses", "mail"):
        gone = f"NOT EXISTS (SELECT 1 FROM tasks AS t WHERE t.id = {table}.task)"
        statements.append(Statement(f"DELETE FROM {table} WHERE task BETWEEN ? AND ? AND {gone}", spans))
    gone = "NOT EXISTS (SELECT 1 FROM tasks AS t WHERE t.id = separate_items.chunk)"
    statements.append(Statement(f"DELETE FROM separate_items WHERE chunk BETWEEN ? AND ? AND {gone}", spans))
    statements.append(Statement("DELETE FROM refusals WHERE task BETWEEN ? AND ?", spans))
    # A job is deleted with the last of its tasks.
    over = "json_extract(spec, '$.total') <= arrived AND NOT EXISTS (SELECT 1 FROM tasks AS t WHERE t.job = jobs.id)"
    statements.append(Statement(f"DELETE FROM jobs WHERE {over}", [()]))
    return statements


def _spans(ids: Iterable[int]) -> Iterator[tuple[int, int]]:
    """Yield the spans of consecutive ids: [4, 1, 2, 9] -> (1, 2), (4, 4), (9, 9).

    Clearing all results of a farm is then one span, not a million statements.
    """
    first = last = None
    for id in sorted(ids):
        if last is not None and first is not None and id > last + 1:
            yield (first, last)
            first = None
        first, last = (id if first is None else first), id
    if last is not None and first is not None:
        yield (first, last)


def _dropped_sticky(group: list[s.DropSticky]) -> list[Statement]:
    return [
        Statement("DELETE FROM sticky", [()])
        if drop.keys is None
        else Statement("DELETE FROM sticky WHERE key = ?", [(key,) for key in drop.keys])
        for drop in group
    ]


def _kept(group: list[s.SaveKept]) -> list[Statement]:
    sql = (
        "INSERT INTO kept_commands (number, session, n, verb, body, text, names, sticky) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING"
    )
    found: list[Row] = [
        (k.number, k.session, k.n, k.verb, k.body, k.text, asked(k.names), asked(k.sticky)) for k in group
    ]
    blobs: list[Row] = [(digest, k.number, size) for k in group for digest, size in k.blobs.items()]
    uses = "INSERT INTO kept_blobs (digest, number, bytes) VALUES (?, ?, ?) ON CONFLICT DO NOTHING"
    return [Statement(sql, found), *([Statement(uses, blobs)] if blobs else [])]


_UNUSED = "NOT EXISTS (SELECT 1 FROM kept_on AS k WHERE k.number = {table}.number AND k.why = '')"
_DROP_UNUSED = [
    Statement(f"DELETE FROM {table} WHERE {_UNUSED.format(table=table)}", [()])
    for table in ("kept_commands", "kept_blobs")
]


def _kept_on(group: list[s.SaveKeptOn]) -> list[Statement]:
    sql = (
        "INSERT INTO kept_on (engine_id, number, why, text) VALUES (?1, ?2, ?3, ?4) "
        "ON CONFLICT (engine_id, number) DO UPDATE SET why = ?3, text = ?4"
    )
    made: list[Statement] = []
    for is_over, some in groupby(group, lambda k: bool(k.why)):
        made.append(Statement(sql, [(k.engine_id, k.number, k.why, k.text) for k in some]))
        made.extend(_DROP_UNUSED if is_over else ())
    return made


def _dropped_kept(group: list[s.DropKept]) -> list[Statement]:
    sql = "DELETE FROM kept_on WHERE engine_id = ?1 AND (?2 IS NULL OR number IN (SELECT value FROM json_each(?2)))"
    found: list[Row] = [(k.engine_id, None if k.numbers is None else asked(k.numbers)) for k in group]
    return [Statement(sql, found), *_DROP_UNUSED]


class _Kind(NamedTuple):
    """Saves of a kind that are written by one statement, with one row for each."""

    sql: str
    row: Callable[[Any], Row]
    fences: bool = False
    """See `Statement.fences`."""


_BY_ONE_STATEMENT: dict[type, _Kind] = {
    s.SaveBlock: _Kind(
        "INSERT INTO blocks (first, last, accepted_upto, session) VALUES (?1, ?2, ?1 - 1, ?3) "
        "ON CONFLICT (first) DO UPDATE SET last = ?2",
        lambda b: (b.first, b.last, b.session),
    ),
    s.SaveAccepted: _Kind(ACCEPT, lambda a: (a.block_first, a.upto)),
    s.SaveFunction: _Kind(
        "INSERT INTO functions (digest, code) VALUES (?, ?) ON CONFLICT (digest) DO NOTHING",
        lambda f: (f.digest, f.code),
    ),
    s.SaveHandOut: _Kind(HAND_OUT, handout),
    s.DropHandOut: _Kind(DROP_HAND_OUT, lambda h: (h.number,)),
    s.SaveAttempt: _Kind(
        "INSERT INTO attempts (task, number, engine_id, node, started_s, ended_s, outcome, etype, value, place) "
        f"SELECT ?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10 WHERE {THERE} ON CONFLICT (task, number) DO NOTHING",
        _attempt,
        fences=True,
    ),
    s.SaveMail: _Kind(
        "INSERT INTO mail (task, outgoing, seq, sender, mark, at_s, body) "
        f"SELECT ?1, ?2, ?3, ?4, ?5, ?6, ?7 WHERE {THERE} ON CONFLICT DO NOTHING",
        lambda x: (x.task, x.outgoing, x.seq, x.sender, x.mark, x.at_s, x.body),
    ),
    s.SaveRefusal: _Kind(
        "INSERT INTO refusals (task, etype, text) VALUES (?, ?, ?) ON CONFLICT (task) DO NOTHING",
        lambda r: (r.task, r.etype, r.text),
        fences=True,
    ),
    s.SaveSetting: _Kind(
        "INSERT INTO settings (key, value) VALUES (?1, ?2) ON CONFLICT (key) DO UPDATE SET value = ?2",
        lambda x: (x.key, x.value),
    ),
    s.SaveJob: _Kind(
        "INSERT INTO jobs (id, spec, session, arrived, failed, paused, priority) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7) "
        "ON CONFLICT (id) DO UPDATE SET spec = ?2, arrived = ?4, failed = ?5, paused = ?6, priority = ?7",
        lambda j: (j.spec.id, _encode(j.spec).decode(), j.session, j.arrived, j.failed, j.paused, j.priority),
    ),
    s.SaveSticky: _Kind(
        "INSERT INTO sticky (key, verb, body, text) VALUES (?1, ?2, ?3, ?4) "
        "ON CONFLICT (key) DO UPDATE SET verb = ?2, body = ?3, text = ?4",
        lambda x: (x.key, x.verb, x.body, x.text),
    ),
    s.SaveAgent: _Kind(
        "INSERT OR REPLACE INTO agents (session, node, host, boot, namespace, pid, started_s) "
        "VALUES (?, ?, ?, ?, ?, ?, ?)",
        lambda a: (a.session, a.node, *msgspec.structs.astuple(a.process)),
    ),
    s.DropAgent: _Kind("DELETE FROM agents WHERE session = ?", lambda a: (a.session,)),
}


_BY_KIND: dict[type, Callable[[list[Any]], list[Statement]]] = {
    s.DropFunctions: lambda group: [
        Statement("DELETE FROM functions WHERE digest = ?", [(digest,) for drop in group for digest in drop.digests])
    ],
    s.SaveSeparate: lambda group: [
        Statement(SEPARATE, [(save.chunk, index) for save in group for index in save.indexes])
    ],
    s.SaveLeft: _left,
    s.SaveTask: tasks,
    s.SaveRequeue: _requeues,
    s.SavePriority: _priorities,
    s.SaveReopen: _reopened,
    s.SaveFinal: finals,
    s.SaveClear: _cleared,
    s.DropSticky: _dropped_sticky,
    s.SaveKept: _kept,
    s.SaveKeptOn: _kept_on,
    s.DropKept: _dropped_kept,
}


def statements(kind: type[s.Save], group: list[Any]) -> list[Statement]:
    """Return the statements for consecutive saves of one type."""
    simple = _BY_ONE_STATEMENT.get(kind)
    if simple is None:
        return _BY_KIND[kind](group)
    return [Statement(simple.sql, list(map(simple.row, group)), simple.fences)]


# -- Rows into values: each SELECT with the function for its rows.
#
# The CROSS JOINs fix the order of the loops (SQLite's extension): each requested key is looked up, nothing is scanned.

BLOCKS = "SELECT first, last, accepted_upto, session FROM blocks ORDER BY first"
_NOT_KEPT = "(t.needs IS NULL OR json_extract(t.needs, '$.keep') IS NOT 1)"
FINAL_IDS = (
    "SELECT f.task, f.completed_s FROM finals AS f JOIN tasks AS t ON t.id = f.task "
    f"WHERE f.task > ?1 AND {_NOT_KEPT} ORDER BY f.task LIMIT ?2"
)
OLDEST_FINALS = (
    "SELECT f.task, ifnull(length(f.body), 0) + length(t.payload), "
    "(SELECT group_concat(digest) FROM blob_uses AS u WHERE u.task = f.task) "
    f"FROM finals AS f JOIN tasks AS t ON t.id = f.task WHERE {_NOT_KEPT} ORDER BY f.task LIMIT ?1"
)
FINAL_RECORDS = (
    "SELECT f.task, f.reason, t.name, t.needs IS NOT NULL AND json_extract(t.needs, '$.keep') IS 1, t.queue_seq, "
    "t.items, t.part_of, t.part FROM finals AS f JOIN tasks AS t ON t.id = f.task ORDER BY f.task"
)
NEXT_QUEUE_SEQ = (
    "SELECT max(ifnull((SELECT max(queue_seq) FROM tasks), -1), ifnull((SELECT max(queue_seq) FROM progress), -1)) + 1"
)
AGENTS = "SELECT session, node, host, boot, namespace, pid, started_s FROM agents ORDER BY session"

FORGET_AGENTS = (
    "DELETE FROM agents WHERE NOT EXISTS "
    "(SELECT 1 FROM handouts WHERE substr(engine, 1, length(session) + 1) = session || '.')"
)
"""Forget agents without runs: those that live report again."""

HANDOUTS = "SELECT number, engine, engine_id, runs, at_s FROM handouts ORDER BY number"
JOBS = "SELECT spec, session, arrived, failed, paused, priority FROM jobs"
OF_JOB = (
    "SELECT id, items, part_of IS NOT NULL, json_extract(rules, '$.retry_of') FROM tasks "
    "WHERE job = ? AND id > ? ORDER BY id LIMIT ?"
)
LATEST_RETRIES = (
    "WITH RECURSIVE chain (first, id) AS (SELECT value, value FROM json_each(?) UNION ALL "
    "SELECT c.first, t.id FROM chain AS c JOIN tasks AS t ON json_extract(t.rules, '$.retry_of') = c.id) "
    "SELECT first, max(id) FROM chain GROUP BY first HAVING max(id) > first"
)
WITH_TASKS = "SELECT a.value FROM json_each(?) AS a WHERE EXISTS (SELECT 1 FROM tasks AS t WHERE t.job = a.value)"
CHILDREN = (
    "SELECT parent, spawn, id FROM tasks AS t WHERE parent IS NOT NULL AND spawn IS NOT NULL "
    "AND EXISTS (SELECT 1 FROM tasks AS p WHERE p.id = t.parent) "
    "AND NOT EXISTS (SELECT 1 FROM finals AS f WHERE f.task = t.parent) ORDER BY id"
)
EDGES = "SELECT id, needs FROM tasks WHERE needs IS NOT NULL"
MAIL = "SELECT seq, sender, at_s, body FROM mail WHERE task = ? AND outgoing = ? AND seq > ? ORDER BY seq LIMIT ?"
CHILDREN_OF = (
    "SELECT t.parent, t.spawn, t.id FROM json_each(?) AS asked CROSS JOIN tasks AS t ON t.parent = asked.value "
    "WHERE t.spawn IS NOT NULL ORDER BY t.id"
)
_MAIL_COUNTS = "SELECT m.task, m.outgoing, max(m.seq), json_group_array(m.mark) FROM "
MAIL_COUNTS = (
    f"{_MAIL_COUNTS} mail AS m "
    "WHERE NOT EXISTS (SELECT 1 FROM finals AS f WHERE f.task = m.task) GROUP BY m.task, m.outgoing"
)
MAIL_COUNTS_OF = (
    f"{_MAIL_COUNTS} json_each(?) AS asked CROSS JOIN mail AS m ON m.task = asked.value GROUP BY m.task, m.outgoing"
)
STATES = (
    "SELECT p.task, p.state FROM json_each(?) AS asked CROSS JOIN progress AS p ON p.task = asked.value "
    "WHERE p.state IS NOT NULL"
)
KEPT = "SELECT number, session, n, verb, body, text, names, sticky FROM kept_commands ORDER BY number"
KEPT_BLOBS = "SELECT number, digest, bytes FROM kept_blobs ORDER BY number, digest"
KEPT_ON = "SELECT engine_id, number, why, text FROM kept_on ORDER BY engine_id, number"
BLOBS_IN_USE = "SELECT digest FROM blob_uses UNION SELECT digest FROM kept_blobs"
STICKY = "SELECT key, verb, body, text FROM sticky ORDER BY place"
FUNCTIONS = (
    "SELECT f.digest, f.code FROM json_each(?) AS asked CROSS JOIN functions AS f ON f.digest = asked.value "
    "ORDER BY asked.key"
)

_LARGE = f"iif(length({{payload}}) >= {PAYLOAD_BYTES}, length({{payload}}), NULL)"
_RECORD = (
    "SELECT t.id, ifnull(p.queue_seq, t.queue_seq), iif(p.payload IS NULL, t.function, p.function), t.name, t.rules, "
    "ifnull(t.submitted_s, 0.0), t.session, {attempts}, ifnull(p.errors, 0), ifnull(p.losses, 0), "
    "ifnull(p.recovery, 0), t.needs, p.until_s, ifnull(p.trial, 1), p.began_s, "
    "ifnull(p.received, 0), t.parent, t.spawn, t.queue_seq, t.items, t.part_of, t.part, t.cache, "
    f"{_LARGE.format(payload='ifnull(p.payload, t.payload)')} "
)
REQUEUED = _RECORD.format(attempts="p.attempt") + (
    "FROM progress AS p CROSS JOIN tasks AS t ON t.id = p.task "
    "WHERE NOT EXISTS (SELECT 1 FROM finals AS f WHERE f.task = t.id)"
)
"""The unfinished tasks that went back to their queues."""
_RARE = "t.needs, t.parent, t.spawn, t.part_of, t.cache, " + _LARGE.format(payload="t.payload")
FRESH = (
    "SELECT t.id, t.queue_seq, t.function, t.name, t.rules, ifnull(t.submitted_s, 0.0), t.session, "
    f"iif(t.items OR coalesce({_RARE}) IS NOT NULL, json_array({_RARE}, t.items, t.part), NULL) "
    "FROM tasks AS t WHERE NOT EXISTS (SELECT 1 FROM finals AS f WHERE f.task = t.id) "
    "AND NOT EXISTS (SELECT 1 FROM progress AS p WHERE p.task = t.id) ORDER BY t.id"
)
"""All other unfinished tasks: there may be millions, and each column has a price, so those that most tasks lack are
one."""
ENDED = _RECORD.format(attempts="f.attempts") + (
    "FROM json_each(?) AS asked CROSS JOIN finals AS f ON f.task = asked.value CROSS JOIN tasks AS t ON t.id = f.task "
    "LEFT JOIN progress AS p ON p.task = t.id WHERE f.reason = '' ORDER BY t.id"
)
WORK = (
    "SELECT t.id, iif(p.payload IS NULL, ifnull(c.payload, t.payload), p.payload), "
    "iif(p.payload IS NULL, t.function, p.function) "
    "FROM json_each(?) AS asked CROSS JOIN tasks AS t ON t.id = asked.value "
    "LEFT JOIN progress AS p ON p.task = t.id LEFT JOIN tasks AS c ON c.id = t.part_of"
)
ORIGINALS = (
    "SELECT t.id, t.payload, t.function, t.name, t.rules, "
    "(SELECT json_group_array(u.digest) FROM blob_uses AS u WHERE u.task = t.id AND u.part = 'work'), t.needs, "
    "t.items, t.part_of, t.part, t.cache "
    "FROM json_each(?) AS asked CROSS JOIN tasks AS t ON t.id = asked.value"
)

CACHE_KEYS = (
    "SELECT t.cache, t.needs FROM json_each(?) AS asked CROSS JOIN tasks AS t ON t.id = asked.value "
    "WHERE t.cache IS NOT NULL"
)

LARGE_CODE = f"SELECT digest, length(code) FROM functions WHERE length(code) >= {PAYLOAD_BYTES}"

CHUNK_OF = "SELECT id, items FROM tasks INDEXED BY tasks_with_items WHERE id < ? AND items > 0 ORDER BY id DESC LIMIT 1"
"""The last chunk that was submitted before an id."""

NEEDED_BLOBS = (
    "SELECT asked.value FROM json_each(?) AS asked "
    "WHERE EXISTS (SELECT 1 FROM blob_uses AS u WHERE u.digest = asked.value) "
    "OR EXISTS (SELECT 1 FROM kept_blobs AS k WHERE k.digest = asked.value)"
)

CODE_UPTO = "SELECT digest FROM functions WHERE length(code) <= ?"
CODE_OF_TASKS = "SELECT DISTINCT function FROM tasks UNION SELECT json_extract(cache, '$[2]') FROM tasks"
"""The functions of tasks, and the recipes of their keys in the result cache."""
RULES_WITH_CODE = (
    "SELECT DISTINCT rules FROM tasks "
    """WHERE instr(rules, '"depend"') OR instr(rules, '"asks"') OR instr(rules, '"recovery"')"""
)

_HISTORY = (
    "SELECT a.task, a.number, a.engine_id, a.node, ifnull(a.started_s, 0.0), ifnull(a.ended_s, 0.0), a.outcome, "
    "a.etype, a.value, a.place FROM "
)
HISTORY_OF_UNFINISHED = (
    f"{_HISTORY} attempts AS a WHERE NOT EXISTS (SELECT 1 FROM finals AS f WHERE f.task = a.task) "
    "ORDER BY a.task, a.number"
)
HISTORY = f"{_HISTORY} json_each(?) AS asked CROSS JOIN attempts AS a ON a.task = asked.value ORDER BY a.task, a.number"

_END = (
    "ifnull(t.submitted_s, 0.0), ifnull(f.started_s, 0.0), ifnull(f.run_s, 0.0), ifnull(f.completed_s, 0.0), "
    "f.etype, f.value, f.place"
)
_ENDED = (
    "FROM json_each(?) AS asked CROSS JOIN finals AS f ON f.task = asked.value CROSS JOIN tasks AS t ON t.id = f.task"
)
SEPARATES = "iif(t.items, (SELECT json_group_array(x.part) FROM separate_items AS x WHERE x.chunk = f.task), NULL)"
FINALS = f"SELECT f.task, f.reason, f.engine_id, f.node, f.attempts, f.body, {SEPARATES}, t.items, {_END} {_ENDED}"
SIZES = (
    "SELECT asked.value, ifnull(length(f.body), 0) + ifnull(length(f.value), 0) "
    "+ ifnull((SELECT sum(length(a.value)) FROM attempts AS a WHERE a.task = f.task), 0) "
    "FROM json_each(?) AS asked CROSS JOIN finals AS f ON f.task = asked.value"
)
TABLE = f"SELECT f.task, f.reason, t.name, f.engine_id, f.attempts, {_END} {_ENDED}"


def read_job(row: Row) -> s.SaveJob:
    """Convert a row of `JOBS`."""
    spec, session, arrived, failed, paused, priority = row
    return s.SaveJob(read_spec(spec), session, arrived, failed, bool(paused), priority)


def kept_commands(found: Iterable[Row], blobs: Iterable[Row]) -> list[s.SaveKept]:
    """Convert rows of `KEPT` and `KEPT_BLOBS`."""
    needed: dict[int, dict[str, int]] = {}
    for number, digest, size in blobs:
        needed.setdefault(number, {})[digest] = size
    return [
        s.SaveKept(
            number, session, n, verb, body, text, decode_digests(names), needed.get(number, {}), decode_digests(sticky)
        )
        for number, session, n, verb, body, text, names, sticky in found
    ]


def cache_key(key: str, needs: str | None) -> tuple[CacheKey, list[int]]:
    """Convert a row of `CACHE_KEYS`: the key, and the tasks whose results belong to it."""
    inputs = decode_needs(needs).inputs if needs is not None else ()
    return decode_cache_key(key), [source for _, source in inputs]


def failure(etype: str | None, value: str | None, place: str | None) -> FailureSummary | None:
    """Convert the three columns of a failure."""
    return None if etype is None else FailureSummary(etype, value or "", place or "")


def histories(found: Iterable[Row]) -> dict[int, list[AttemptRow]]:
    """Return task -> its attempts."""
    history: dict[int, list[AttemptRow]] = {}
    for task, number, engine_id, node, started_s, ended_s, outcome, *failed in found:
        row = AttemptRow(number, engine_id, node, started_s, ended_s, outcome, failure(*failed))
        history.setdefault(task, []).append(row)
    return history


def attempt_of(final: Final) -> AttemptRow:
    """Return the last attempt of an ended task."""
    ended_s = final.started_s + final.run_s
    return AttemptRow(final.attempts, final.engine_id, final.node, final.started_s, ended_s, final.reason)


def final(row: Row, history: list[AttemptRow]) -> Final:
    """Convert a row of `FINALS`."""
    id, reason, engine_id, node, attempts, body, parts, items, submitted_s, started_s, run_s, completed_s, *failed = row
    times = (submitted_s, started_s, run_s, completed_s)
    separate = () if parts is None else decode_indexes(parts)
    return Final(
        id, reason, engine_id, node, attempts, *times, failure(*failed), body, history, items=items, separate=separate
    )


def table_row(row: Row) -> TaskRow:
    """Convert a row of `TABLE`."""
    id, reason, name, engine_id, attempts, submitted_s, started_s, run_s, completed_s, *failed = row
    state = State.FAILED if reason else State.SUCCEEDED
    times = (submitted_s, started_s, run_s, completed_s)
    return TaskRow(id, state.value, reason, name, engine_id, attempts, *times, failure(*failed))


def in_order(ids: Iterable[int], found: list[Row]) -> list[Row]:
    """Return the rows in the order of `ids`, without ids that have no row. (SQL would sort copies of payloads.)"""
    by_id = {row[0]: row for row in found}
    return [by_id[id] for id in ids if id in by_id]
