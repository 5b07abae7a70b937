"""Converts rows of tasks into records: there may be millions of unfinished ones, when a controller starts.

`place_in_map` finds the place of a task in its map.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from sys import intern
from typing import Any

import msgspec

from ..core.messages.task_types import AttemptRow, Rules
from ..core.saves import MapPlace, TaskRecord
from .inserts import Row
from .rows import decode_cache_key, decode_needs, read_spec

_decode_rules = msgspec.json.Decoder(Rules).decode
_decode_rare = msgspec.json.Decoder(
    tuple[str | None, int | None, str | None, int | None, str | None, int | None, int, int | None]
).decode


class RulesReader:
    """Decodes rules, equal texts once."""

    def __init__(self) -> None:
        self._known: dict[str, Rules] = {}

    def __call__(self, text: str | None, name: str | None) -> Rules | None:
        if text is None:
            return None
        rules = self._known.get(text)
        if rules is None:
            rules = _decode_rules(text)
            if len(self._known) < 4096:
                self._known[text] = rules
        return rules if name is None else msgspec.structs.replace(rules, name=name)


def task_records(found: Iterable[Row], history: dict[int, list[AttemptRow]]) -> list[TaskRecord]:
    """Convert rows of `REQUEUED` or `ENDED`."""
    read_rules = RulesReader()
    none: list[AttemptRow] = []  # shared by all that have no history
    return [
        TaskRecord(
            id, queue_seq, function, None if text is None else read_rules(text, name), submitted_s, session,
            attempt, errors, losses, recovery, history.get(id, none) if history else none,
            None if needs is None else decode_needs(needs), until_s, trial, began_s, received, parent, spawn,
            accepted_seq, items, part_of(chunk, index), None if cache is None else decode_cache_key(cache), size or 0,
        )
        for id, queue_seq, function, name, text, submitted_s, session, attempt, errors, losses, recovery, needs,
        until_s, trial, began_s, received, parent, spawn, accepted_seq, items, chunk, index, cache, size in found
    ]  # fmt: skip


def unfinished_records(
    fresh: Iterable[Row], requeued: Iterable[Row], history: dict[int, list[AttemptRow]], code: dict[str | None, int]
) -> list[TaskRecord]:
    """Convert rows of `FRESH` and `REQUEUED`. There may be millions, so calls per row are avoided.

    code: digest -> bytes of large functions. Each is read for the first task that needs it.
    """
    read_rules = RulesReader()
    none: list[AttemptRow] = []  # shared by all that have no history
    records = []
    for id, queue_seq, function, name, text, submitted_s, session, rare in fresh:
        record = TaskRecord(
            id, queue_seq, function and intern(function), None if text is None else read_rules(text, name),
            submitted_s, intern(session), 0, 0, 0, 0, history.get(id, none) if history else none,
            accepted_seq=queue_seq,
        )  # fmt: skip
        records.append(record if rare is None else _with_rare_columns(record, rare))
    if again := task_records(requeued, history):
        records = sorted([*records, *again], key=lambda record: record.id)
    for place, record in enumerate(records) if code else ():
        if size := code.pop(record.function, 0):
            records[place] = msgspec.structs.replace(record, payload_bytes=record.payload_bytes + size)
    return records


def _with_rare_columns(record: TaskRecord, rare: str) -> TaskRecord:
    needs, parent, spawn, chunk, cache, size, items, index = _decode_rare(rare)
    return msgspec.structs.replace(
        record, needs=None if needs is None else decode_needs(needs), parent=parent, spawn=spawn, items=items,
        part=part_of(chunk, index), cache=None if cache is None else decode_cache_key(cache), payload_bytes=size or 0,
    )  # fmt: skip


def part_of(chunk: int | None, index: int | None) -> tuple[int, int] | None:
    """Convert the two columns of an item of a chunk."""
    return None if chunk is None or index is None else (chunk, index)


def with_dependents(ids: Iterable[int], edges: Iterable[Any]) -> list[int]:
    """Return these tasks and all that use their results, directly or indirectly.  edges: the rows of `rows.EDGES`."""
    users: dict[int, list[int]] = {}
    for task, needs in edges:
        for other in decode_needs(needs).after:
            users.setdefault(other, []).append(task)
    found = dict.fromkeys(ids)
    waiting = list(found)
    while waiting:
        fresh = [task for task in users.get(waiting.pop(), ()) if task not in found]
        found.update(dict.fromkeys(fresh))
        waiting += fresh
    return list(found)


_TASK = "SELECT job, part_of, part, json_extract(rules, '$.retry_of') FROM tasks WHERE id = ?"
_NO_RETRY = "(ifnull(instr(m.rules, '\"retry_of\"'), 0) = 0 OR json_extract(m.rules, '$.retry_of') IS NULL)"
_BEFORE = (
    "SELECT j.spec, sum(max(m.items, 1)), "
    "ifnull(sum(max(m.items, 1)) FILTER (WHERE (m.queue_seq, m.id) < (o.queue_seq, o.id)), 0) "
    "FROM tasks AS o CROSS JOIN jobs AS j ON j.id = o.job CROSS JOIN tasks AS m ON m.job = o.job "
    f"WHERE o.id = ? AND m.part_of IS NULL AND {_NO_RETRY} GROUP BY j.id"
)
"""The job of a chunk, or of a task that is an item; the items of the job, and those that were submitted before."""


def place_in_map(
    select: Callable[[str, Row], Iterable[Row]], task: int, chunk_of: Callable[[int], int | None]
) -> MapPlace | None:
    """Return the place of a task in its map; of a retry, that of the item.  None: it is no item, or was cleared.

    Args:
        select: runs a SELECT with its parameters.
        chunk_of: see `storage.store.Store.chunk_of`.
    """
    first = task
    while True:
        found = next(iter(select(_TASK, (first,))), None)
        if found is None:  # an item without a row of its own
            member = chunk_of(first)
            index = None if member is None else first - member - 1
            break
        job, member, index, retry_of = found
        if job is None:
            return None
        if retry_of is None:
            member, index = (first, 0) if member is None else (member, index)
            break
        first = retry_of
    row = None if member is None else next(iter(select(_BEFORE, (member,))), None)
    if row is None or index is None:
        return None
    spec = read_spec(row[0])
    total = row[1] if spec.total else None
    return MapPlace(row[2] + index, total, spec.name, None if first == task else first) if spec.is_map else None
