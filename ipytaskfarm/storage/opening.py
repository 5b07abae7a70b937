"""Checks of a store's file when it is opened: before anything is written, a store is one of ours and whole."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..core.errors import StoreError
from . import disk

SCHEMA = 13
"""The number of ``schema.sql``."""

APPLICATION_ID = 0x69707466
"""Marks a SQLite file as ours ("iptf")."""

FORMER = "former incarnation"
"""The key of the stored setting that names the farm's incarnation before the present one."""

CHECK_BYTES_MAX = 1 << 30
"""A larger file is not checked when it is opened after a crash: the farm's return would take minutes."""

REMEDY = (
    "restore a backup in its place, or set it aside and start with an empty store by `ipytaskfarm start --fresh`; "
    "`sqlite3 FILE .recover` shows what can still be read"
)

EPOCHS_MAX = 1 << 31
"""The farm does not reach this epoch: the numbers of its batches, which begin with it, have 64 bits."""

OLDEST_SQLITE = "3.38.0"
"""The first version with JSON built in."""

SOUND_SQLITE = "3.51.3"
"""Earlier versions can damage a file in WAL mode if two connections write or checkpoint at the same moment."""

_VERSION_AT = 18
"""The place in SQLite's file header where 2 says that the file has a write-ahead log, and 1 that it has none."""


def sqlite_version() -> str:
    """Return the version of this Python's SQLite."""
    return sqlite3.sqlite_version


def sqlite_notes(path: Path) -> list[str]:
    """Return what a person who starts a farm should know of this Python's SQLite.

    Raises:
        StoreError: it is too old.
    """
    if _version(sqlite3.sqlite_version) < _version(OLDEST_SQLITE):
        raise StoreError(
            f"the store {path} needs SQLite {OLDEST_SQLITE}, this Python has {sqlite3.sqlite_version}: "
            "use a newer Python or SQLite"
        )
    if _version(sqlite3.sqlite_version) < _version(SOUND_SQLITE):
        return [
            f"SQLite {sqlite3.sqlite_version} is older than {SOUND_SQLITE}: it can damage a store that several "
            "programs write at once; only read this one while the farm runs"
        ]
    return []


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split("."))


def not_opened(path: Path, error: Exception) -> StoreError:
    """Return the error for a file that cannot be opened."""
    return StoreError(f"the store {path} cannot be opened ({error}): check its folder and permissions")


def refusal(path: Path, error: sqlite3.Error | OSError) -> StoreError:
    """Return the error for a store that has failed while it was opened."""
    if isinstance(error, OSError):
        return not_opened(path, error)
    return StoreError(f"the store {path} is damaged ({error}): {REMEDY}")


def is_copy(path: Path) -> bool:
    """Return whether a file was put in the place of a store: copies have no write-ahead log, stores always have one."""
    with open(path, "rb") as file:
        head = file.read(100)
    return len(head) == 100 and head[_VERSION_AT] == 1


def drop_foreign_log(path: Path) -> None:
    """Remove the log that another store has left beside a copy: SQLite would write its pages into the copy."""
    if Path(f"{path}-wal").exists() and is_copy(path):
        for suffix in ("-wal", "-shm"):
            Path(f"{path}{suffix}").unlink(missing_ok=True)


def refuse_strangers(one: Callable[[str], Any], path: Path, size: int) -> None:
    """Check that the file is a farm's store of a known schema, and undamaged.

    Args:
        one: returns the first value of a SELECT.
        path: the path of the file.
        size: the bytes of the file and its log.

    Raises:
        StoreError: it is not. The message names the file and the remedy.
    """
    if not one("SELECT count(*) FROM sqlite_schema"):
        return
    if one("PRAGMA application_id") != APPLICATION_ID:
        raise StoreError(f"{path} is an SQLite file of something else, not a farm's store: move it away")
    schema = one("PRAGMA user_version")
    if schema > SCHEMA:
        raise StoreError(
            f"the store {path} has schema {schema}, this ipytaskfarm knows up to {SCHEMA}: "
            "use the newer ipytaskfarm that wrote it, or start with an empty store by `ipytaskfarm start --fresh`"
        )
    if schema < 1:
        raise StoreError(f"the store {path} is damaged (its schema has the number {schema}): {REMEDY}")
    if not one("SELECT count(*) FROM sqlite_schema WHERE name = 'farm'"):
        raise StoreError(f"the store {path} is damaged (it has no table farm): {REMEDY}")
    if size > CHECK_BYTES_MAX or (one("SELECT clean FROM farm") and size > CHECK_BYTES_MAX // 32):
        return
    found = one("PRAGMA quick_check(1)")
    if found != "ok":
        raise StoreError(f"the store {path} is damaged ({' '.join(found.split())}): {REMEDY}")


def checked_farm(row: tuple[Any, Any], path: Path) -> tuple[str, int]:
    """Return (incarnation, epoch) of a store's farm.

    Raises:
        StoreError: they are no such values.
    """
    incarnation, epoch = row
    if not isinstance(incarnation, str) or not isinstance(epoch, int) or not 0 <= epoch < EPOCHS_MAX:
        raise StoreError(
            f"the store {path} is damaged (its farm is {incarnation!r:.50}, epoch {epoch!r:.50}): {REMEDY}"
        )
    return incarnation, epoch


def refuse_incomplete(db: sqlite3.Connection, path: Path) -> None:
    """Check that a store of the present schema has all its tables and columns. Make lost indexes and views again.

    Raises:
        StoreError: it has not. The message names the first that is missing.
    """
    with contextlib.closing(sqlite3.connect(":memory:")) as model:
        model.executescript(disk.schema_text() + disk.view_text())
        wanted = _columns(model)
        again = model.execute("SELECT name, sql FROM sqlite_schema WHERE type IN ('index', 'view') AND sql NOT NULL")
        whole = dict(again.fetchall())
    for name in whole.keys() - {row[0] for row in db.execute("SELECT name FROM sqlite_schema")}:
        with contextlib.suppress(sqlite3.OperationalError):  # a lost column is named below
            db.execute(whole[name])
    found = _columns(db)
    for table, columns in wanted.items():
        if table not in found:
            raise StoreError(f"the store {path} is damaged (it has no table {table}): {REMEDY}")
        if lacking := columns - found[table]:
            raise StoreError(f"the store {path} is damaged ({table} has no column {min(lacking)}): {REMEDY}")


def _columns(db: sqlite3.Connection) -> dict[str, set[str]]:
    names = [row[0] for row in db.execute("SELECT name FROM sqlite_schema WHERE type IN ('table', 'view')")]
    return {name: {row[1] for row in db.execute(f'PRAGMA table_info("{name}")')} for name in names}
