"""Writes the saves of one turn: those of many tasks with few statements, those of a single task with little ado."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

from ..core import saves as s
from . import rows
from .commit_count import CommitCount
from .inserts import Row, one_final, one_task, parts


class Statements(Protocol):
    """The part of the store's connection that is used here, within the store's transaction."""

    def execute(self, sql: str, parameters: Row, /) -> Any: ...
    def executemany(self, sql: str, parameters: list[Row], /) -> Any: ...


class Fenced(Exception):
    """A row changed nothing."""


FEW = 6
"""Up to so many saves are written one by one. To group them and to leave columns out costs more than SQLite takes."""


class _Single(NamedTuple):
    """How a save becomes a statement of its own."""

    make: Callable[[Any], tuple[str, Row] | None]
    """Returns the statement and its row; None if this save needs more."""
    fences: bool = False
    """Whether the row must change something."""
    tasks: int = 0
    ends: int = 0
    """The number of tasks, and of ends, that it adds."""


_SINGLE: dict[type, _Single] = {
    s.SaveTask: _Single(one_task, fences=True, tasks=1),
    s.SaveFinal: _Single(one_final, fences=True, ends=1),
    s.SaveAccepted: _Single(lambda save: (rows.ACCEPT, (save.block_first, save.upto))),
    s.SaveHandOut: _Single(lambda save: (rows.HAND_OUT, rows.handout(save))),
    s.DropHandOut: _Single(lambda save: (rows.DROP_HAND_OUT, (save.number,))),
}
"""What a turn saves for one task at a time."""


def write(db: Statements, saves: Sequence[s.Save], fenced: list[int] | None, count: CommitCount) -> None:
    """Write saves within a transaction, in their order.

    Args:
        db: the store.
        saves: the saves.
        fenced: takes the ids of tasks with rows that were fenced off; None: such a row raises.
        count: is told of the rows.

    Raises:
        Fenced: a row changed nothing.
    """
    count.begin()
    if len(saves) <= FEW and fenced is None:
        for save in saves:
            _write_one(db, save, count)
        return
    # No other save touches the table of hand-outs. Ends of tasks between them would make a statement for each.
    handouts = [save for save in saves if type(save) in (s.SaveHandOut, s.DropHandOut)]
    others = [save for save in saves if type(save) not in (s.SaveHandOut, s.DropHandOut)] if handouts else saves
    for kind, group in itertools.groupby([*others, *handouts], type):
        _write_group(db, kind, list(group), fenced, count)


def _write_one(db: Statements, save: s.Save, count: CommitCount) -> None:
    kind = type(save)
    single = _SINGLE.get(kind)
    statement = single.make(save) if single is not None else None
    if single is None or statement is None:
        _write_group(db, kind, [save], None, count)
        return
    changed = db.execute(*statement).rowcount
    if single.fences:
        if changed != 1:
            raise Fenced
        count.add(single.tasks, single.ends)


def _write_group(
    db: Statements, kind: type[s.Save], found: list[Any], fenced: list[int] | None, count: CommitCount
) -> None:
    for statement in rows.statements(kind, found):
        if statement.fences and fenced is not None:
            refused = [row[0] for row in statement.rows if not db.execute(statement.sql, row).rowcount]
            fenced.extend(refused)
            count.note(statement.sql, len(statement.rows) - len(refused))
            continue
        changed = sum([db.executemany(*part).rowcount for part in parts(statement)])
        count.note(statement.sql, changed)
        if statement.fences and changed != len(statement.rows):
            raise Fenced
