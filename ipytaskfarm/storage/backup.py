"""Backup and check of a store, while its farm runs or is stopped.

Both read through a connection of their own, and see the store as of one moment; the controller goes on writing.
Compaction needs the controller's connection, so it is a question to the controller.

The store knows which farm it belongs to, so nothing of the farm is lost with its record, ``farm.json``
(`usable_record`).
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..core.errors import StoreError
from ..core.messages.task_types import code_of
from ..system.farm_paths import FARM_FILE, FarmRecord, read_farm_record
from ..system.files import sync_folder
from ..system.odd_files import odd_kind, set_aside_unless_file, spoiled_name
from . import disk, rows
from .beside import STORE_NAME, count_file
from .blobs import blobs_folder
from .commit_count import Count, LogPlace, Missing, log_place, missing, read as read_count
from .opening import APPLICATION_ID, SCHEMA
from .task_records import RulesReader

TRIES = 3
"""The number of tries, since a blob may be removed between reading the tables and copying the folder."""


def check(path: Path) -> list[str]:
    """Check the whole file and the blobs that it names. Return one line for each fault."""
    disk.refuse_odd_files(path)
    recorded = read_count(count_file(path))  # before the store: a running controller writes both
    if recorded is not None and _is_empty(path):
        return [f"the store is empty: {Missing(recorded.ends, recorded.tasks)}"]
    with _reading(path) as db:
        found = [row[0] for row in db.execute("PRAGMA integrity_check(20)")]
        (schema,) = db.execute("PRAGMA user_version").fetchone()
        if not 1 <= schema <= SCHEMA:
            found.append(f"its schema has the number {schema}: this ipytaskfarm knows 1 to {SCHEMA}, and refuses it")
        present = {name for (name,) in db.execute("SELECT name FROM sqlite_schema")}
        for table in ("finals", "attempts", "progress", "priority_changes", "blob_uses"):
            if schema < SCHEMA and table not in present:
                continue  # an earlier version has made the store, and the next start adds it
            orphan = f"NOT EXISTS (SELECT 1 FROM tasks AS t WHERE t.id = {table}.task)"
            (lost,) = db.execute(f"SELECT count(*) FROM {table} WHERE {orphan}").fetchone()
            if lost:
                found.append(f"{lost} rows of {table} belong to no task")
        folder = blobs_folder(path)
        uses = []
        if schema == SCHEMA or "blob_uses" in present:
            uses = db.execute("SELECT task, part, digest FROM blob_uses").fetchall()
        for task, part, digest in uses:
            if fault := _fault_of(folder / digest[:2] / digest):
                found.append(f"task {task}: the data of its {part} (blob {digest[:12]}…) is {fault}")
        if (lacking := _missing(path, db, recorded)) is not None:
            found.append(str(lacking))
    return [line for line in found if line != "ok"]


def _fault_of(blob: Path) -> str:
    """Return what is wrong with a blob, whose name is the SHA-256 of its content; "" if nothing is."""
    if odd := odd_kind(blob):
        return f"damaged: {blob} is {odd} and not a file"
    try:
        with open(blob, "rb") as file:
            same = hashlib.file_digest(file, "sha256").hexdigest() == blob.name
    except FileNotFoundError:
        return "missing"
    except OSError as error:
        return f"not readable ({error.strerror})"
    return "" if same else f"damaged: {blob} has another content than was written"


def _is_empty(path: Path) -> bool:
    """Return whether a store has no tables: its log had everything, and was dropped."""
    try:
        with contextlib.closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as db:
            return not db.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]
    except sqlite3.Error:
        return False


def _missing(path: Path, db: sqlite3.Connection, recorded: Count | None) -> Missing | None:
    """Return what the store lacks of what was counted."""
    if recorded is None or db.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
        return None
    (epoch,) = db.execute("SELECT epoch FROM farm").fetchone() or (0,)  # the log had the row, and was dropped
    counts = [db.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in ("tasks", "finals")]
    log, index = (path.with_name(path.name + suffix) for suffix in ("-wal", "-shm"))
    log_bytes = log.stat().st_size if log.exists() else 0
    place = LogPlace()
    if index.exists():
        file = os.open(index, os.O_RDONLY | os.O_CLOEXEC)
        place = log_place(file)
        os.close(file)  # this releases the locks of this process, which asks nothing more
    return missing(recorded, Count(epoch, place, *counts), log_bytes)


def has_unfinished(path: Path) -> bool:
    """Return whether a store has tasks that have not ended; False if it cannot be read."""
    found = "SELECT EXISTS (SELECT 1 FROM tasks AS t WHERE NOT EXISTS (SELECT 1 FROM finals AS f WHERE f.task = t.id))"
    try:
        with _reading(path) as db:
            return bool(db.execute(found).fetchone()[0])
    except StoreError:
        return False


def incarnation_of(path: Path) -> str:
    """Return the farm that a store belongs to; "" if there is no store, or none that can be read."""
    try:
        with _reading(path) as db:
            row = db.execute("SELECT incarnation FROM farm").fetchone()
    except StoreError:
        return ""
    return str(row[0]) if row is not None else ""


def backup(path: Path, target: Path) -> int:
    """Write a copy of the present store, with its blobs in a folder beside it, and return its size in bytes.

    The copy is written under a temporary name first, so a file with the target's name is complete.

    Raises:
        StoreError: the target exists already, or the copy cannot be written.
    """
    folder = blobs_folder(target)
    for name in (target, folder):
        if os.path.lexists(name):
            raise StoreError(f"there is {name} already: choose another name for the backup")
    part = target.with_name(target.name + ".part")
    try:
        for left in range(TRIES - 1, -1, -1):
            _remove(part)
            missing = _copy(path, part)
            if not missing:
                break
            if not left:
                raise StoreError(
                    f"blobs that the store needs are missing, {missing[0][:12]}… for one: see ipytaskfarm check"
                )
        if blobs_folder(part).exists():
            os.rename(blobs_folder(part), folder)
        os.rename(part, target)
        sync_folder(target.parent)
    except (OSError, sqlite3.Error) as error:
        raise StoreError(f"the backup {target} could not be written: {error}") from error
    finally:
        _remove(part)
    return target.stat().st_size + sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _copy(path: Path, part: Path) -> list[str]:
    """Copy the tables, then the blobs that they name. Return the digests of missing blobs."""
    disk.make_or_check_file(part)
    with _reading(path) as db, contextlib.closing(sqlite3.connect(part, isolation_level=None)) as copy:
        try:
            db.backup(copy)
        except sqlite3.Error as error:
            if disk.is_full(part.parent):  # the copy's disk, which is not the store's
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
            raise
        copy.execute("PRAGMA journal_mode = DELETE").fetchall()
        needed = [row[0] for row in copy.execute("SELECT DISTINCT digest FROM blob_uses")]
    _sync(part)
    source, folder = blobs_folder(path), blobs_folder(part)
    missing = []
    for name in [file.name for file in source.iterdir() if file.is_file()] if needed else ():
        folder.mkdir(mode=0o700, exist_ok=True)
        shutil.copy2(source / name, folder / name)  # the file that names the owner, and the lock
    for digest in needed:
        (folder / digest[:2]).mkdir(mode=0o700, exist_ok=True)
        try:
            _link_or_copy(source / digest[:2] / digest, folder / digest[:2] / digest)
        except (FileNotFoundError, NotADirectoryError):
            missing.append(digest)
    if needed:
        for inner in sorted({digest[:2] for digest in needed}):
            sync_folder(folder / inner)
        sync_folder(folder)
    return missing


def _link_or_copy(source: Path, target: Path) -> None:
    """Link a blob, or copy it to another disk.  Blobs are never changed, so a link is safe."""
    try:
        os.link(source, target, follow_symlinks=False)
    except FileNotFoundError:
        raise
    except OSError:
        shutil.copy2(source, target)
        _sync(target)


def _sync(path: Path) -> None:
    with open(path, "rb") as written:
        os.fsync(written.fileno())


def _remove(part: Path) -> None:
    part.unlink(missing_ok=True)
    shutil.rmtree(blobs_folder(part), ignore_errors=True)


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[sqlite3.Connection]:
    if not path.is_file():
        raise StoreError(f"there is no store {path}")
    disk.refuse_odd_files(path)
    uri = f"{path.absolute().as_uri()}?mode=ro"
    try:
        with contextlib.closing(sqlite3.connect(uri, uri=True, isolation_level=None)) as db:
            if db.execute("PRAGMA application_id").fetchone()[0] != APPLICATION_ID:
                raise StoreError(f"{path} is an SQLite file of something else, not a farm's store")
            yield db
    except sqlite3.DatabaseError as error:
        raise StoreError(f"the store {path} cannot be read: {error}") from error


def _reader(path: Path) -> contextlib.closing[sqlite3.Connection]:
    return contextlib.closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True))


def unused_code(path: Path, bytes_max: int) -> set[str]:
    """Return the digests of functions of at most this size that no task needs. Any thread may call this."""
    read_rules = RulesReader()
    with _reader(path) as db:
        db.execute("BEGIN")  # one state of the store for all
        unused = {row[0] for row in db.execute(rows.CODE_UPTO, (bytes_max,))}
        unused.difference_update(row[0] for row in db.execute(rows.CODE_OF_TASKS))
        for (text,) in db.execute(rows.RULES_WITH_CODE) if unused else ():
            unused.difference_update(code_of(None, read_rules(text, None)))
    return unused


def needed_blobs(path: Path, digests: Sequence[str]) -> set[str]:
    """Return the blobs, of those given, that a task, a result or a kept command needs. Any thread may call this."""
    with _reader(path) as db:
        return {row[0] for row in db.execute(rows.NEEDED_BLOBS, (rows.asked(digests),))}


def usable_record(folder: Path) -> tuple[FarmRecord | None, str]:
    """Return ``farm.json`` of a farm's folder, and what people should be told.

    Returns:
        None for the record if there is none: a new one must name the farm of the store in the folder, if that is there.
        A record that cannot be read is set aside then.

    Raises:
        StoreError: the record is damaged, and there is no store in the folder that could replace it.
    """
    path = folder / FARM_FILE
    remark = set_aside_unless_file(path)
    try:
        return read_farm_record(folder), remark
    except StoreError as error:
        if not incarnation_of(folder / STORE_NAME):
            raise
        aside = spoiled_name(path)
        os.rename(path, aside)
        why = str(error).partition(". ")[0]
        return None, f"{why}: it is {aside.name} now"
