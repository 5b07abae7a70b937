"""The result cache: results of tasks by their keys, in a SQLite file of its own beside the store.

Nothing in it is ever needed: an entry that is lost or damaged costs a run.  So a transaction may be lost with the
machine's power (``synchronous=NORMAL``), a damaged file is put aside, and an error of the disk turns into a note.

The limit is a size in bytes.  The Greedy-Dual-Size algorithm decides which entry is removed first (P. Cao, S. Irani:
"Cost-aware WWW proxy caching algorithms", 1997): the *rank* of an entry is the seconds that it cost per byte, plus the
rank of the entry that was removed last; each use renews it.  So large, cheap and long unused entries are removed first.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import sqlite3
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from ..core.messages.result_cache import CacheEntry, CacheKey, CacheTable, KeyPart, Recipe
from ..core.messages.task_types import Final
from .blobs import Blobs

SCHEMA = 1
ROW_BYTES = 400
"""The approximate size of an entry in addition to its result."""
NEAREST_AMONG = 200
"""The most entries of a function that are compared with a miss."""
NOTES_KEPT = 20

_TABLES = """
CREATE TABLE entries (
    key          TEXT PRIMARY KEY,
    function     TEXT NOT NULL,         -- its name, for people
    recipe       TEXT NOT NULL,         -- see recipes
    arguments    TEXT NOT NULL,         -- JSON: [[label, digest], ...]
    task         INTEGER NOT NULL,      -- the task that computed it
    made_s       REAL NOT NULL,
    run_s        REAL NOT NULL,
    used_s       REAL NOT NULL,
    hits         INTEGER NOT NULL DEFAULT 0,
    bytes        INTEGER NOT NULL,      -- with its large values
    rank         REAL NOT NULL,         -- the lowest goes first
    blobs        TEXT NOT NULL,         -- JSON: {digest: bytes} of its large values
    digest       BLOB NOT NULL,         -- SHA-256 of body and blobs
    body         BLOB NOT NULL
);
CREATE INDEX entries_by_rank ON entries (rank);
CREATE INDEX entries_by_function ON entries (function, made_s);
CREATE INDEX entries_by_task ON entries (task);
CREATE TABLE entry_blobs (
    digest       TEXT NOT NULL,
    key          TEXT NOT NULL,
    PRIMARY KEY (digest, key)
) WITHOUT ROWID;
CREATE TABLE recipes (
    digest       TEXT PRIMARY KEY,
    parts        BLOB NOT NULL          -- an encoded `Recipe`
);
CREATE TABLE state (only INTEGER PRIMARY KEY CHECK (only = 1), last_rank REAL NOT NULL);
INSERT INTO state VALUES (1, 0.0);
"""
_ENTRY = "key, function, recipe, arguments, task, made_s, run_s, used_s, hits, bytes"

_encode = msgspec.json.Encoder().encode
_decode_arguments = msgspec.json.Decoder(tuple[tuple[str, str], ...]).decode
_decode_sizes = msgspec.json.Decoder(dict[str, int]).decode
_decode_recipe = msgspec.json.Decoder(Recipe).decode


class KeptResult(NamedTuple):
    """A result from the cache."""

    body: bytes
    blobs: tuple[str, ...]


def cache_file(store: Path) -> Path:
    """Return the file of a store's result cache, beside the store."""
    return store.with_name(f"{store.name}.cache")


class ResultCache:
    """A farm's result cache.  `open` makes one; one process uses it at a time."""

    def __init__(self, path: Path, blobs: Blobs, limit_bytes: int) -> None:
        self.path = path
        self.limit_bytes = limit_bytes
        self.notes: list[str] = []
        """What people should know, the latest last."""
        self._blobs = blobs
        self._db: sqlite3.Connection | None = None
        self._file: tuple[int, int] | None = None
        """Device and inode of the open file."""
        self._bytes = 0
        self._bytes_before: int | None = None
        """Their number before the present transaction; None: there is none."""
        self._uses: dict[str, tuple[int, float]] = {}
        """Key -> (times that it was taken, when last), not in the file yet: a hit does not wait for that."""

    @classmethod
    def open(cls, path: Path, blobs: Blobs, limit_bytes: int) -> ResultCache:
        """Open the cache at this path, make it if there is none, and put a damaged one aside.

        Args:
            path: its file.
            blobs: the farm's large values.
            limit_bytes: the most bytes of all entries; 0: nothing is kept.

        It raises nothing: a cache that cannot be opened keeps nothing, and its notes say why.
        """
        made = cls(path, blobs, limit_bytes)
        if limit_bytes <= 0:
            made.notes.append("the result cache is off (cache_size=0)")
            return made
        try:
            made._connect()
        except (sqlite3.Error, OSError) as error:
            made._put_aside(error)
        with made._guarded("evict from"):
            made._evict(0)
        return made

    @classmethod
    def off(cls) -> ResultCache:
        """Return a cache that keeps nothing, and has no file."""
        return cls(Path(os.devnull), Blobs(os.devnull), 0)

    def close(self) -> None:
        """Close the file."""
        self.note_uses()
        self._disconnect()

    def _disconnect(self) -> None:
        if self._db is not None:
            with contextlib.suppress(sqlite3.Error):
                self._db.close()
            self._db = None

    def _connect(self) -> None:
        os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
        db = sqlite3.connect(self.path, timeout=1.0, isolation_level=None, check_same_thread=False)
        try:
            for pragma in ("journal_mode = WAL", "synchronous = NORMAL", "journal_size_limit = 16777216"):
                db.execute(f"PRAGMA {pragma}")
            version = db.execute("PRAGMA user_version").fetchone()[0]
            if version == 0:
                db.executescript(f"BEGIN IMMEDIATE;\n{_TABLES}\nPRAGMA user_version = {SCHEMA};\nCOMMIT;")
            elif version != SCHEMA:
                raise sqlite3.DatabaseError(f"it has schema {version}, and {SCHEMA} is known")
            db.execute("SELECT key, digest, rank FROM entries LIMIT 1")
            self._bytes = db.execute("SELECT ifnull(sum(bytes), 0) FROM entries").fetchone()[0]
        except BaseException:
            db.close()
            raise
        self._db = db
        status = os.stat(self.path)
        self._file = status.st_dev, status.st_ino

    def _look_at_file(self) -> None:
        """Begin anew if the file was removed, replaced or emptied: what is written into the old one would be lost."""
        if self._db is None:
            return
        try:
            status = os.lstat(self.path)
            if (status.st_dev, status.st_ino) == self._file and status.st_size:
                return
            how = "replaced or emptied"
        except OSError:
            how = "removed"
        self.note(f"the file of the result cache {self.path} was {how} while it was in use: it begins anew")
        self._uses.clear()
        self._disconnect()
        try:
            self._connect()
        except (sqlite3.Error, OSError) as error:
            self._put_aside(error)

    def _put_aside(self, error: Exception) -> None:
        """Begin a new file in the place of one that cannot be used."""
        aside = self.path.with_name(f"{self.path.name}.damaged")
        self.note(f"the result cache {self.path} cannot be read ({error}): it begins anew (old: {aside.name})")
        try:
            os.replace(self.path, aside)
            for suffix in ("-wal", "-shm"):
                self.path.with_name(self.path.name + suffix).unlink(missing_ok=True)
            self._connect()
        except (sqlite3.Error, OSError) as again:
            self.note(f"nothing is kept: {again}")

    def note(self, text: str) -> None:
        """Add a note for people."""
        if text not in self.notes:
            self.notes.append(text)
            del self.notes[:-NOTES_KEPT]

    @contextlib.contextmanager
    def _guarded(self, what: str) -> Iterator[None]:
        """Turn an error of the file into a note."""
        try:
            yield
        except (sqlite3.Error, OSError, msgspec.DecodeError) as error:
            if self._bytes_before is not None:
                self._bytes, self._bytes_before = self._bytes_before, None
            if self._db is not None and self._db.in_transaction:  # SQLite has ended it itself after some errors
                with contextlib.suppress(sqlite3.Error):
                    self._db.execute("ROLLBACK")
            self.note(f"could not {what} the result cache: {error}")
            if _is_damage(error):
                self._uses.clear()
                self._disconnect()
                self._put_aside(error)

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Make the changes of this block in one transaction, which is several times as fast."""
        if self._db is None or self._db.in_transaction:
            yield
            return
        with self._guarded("write into"):
            self._bytes_before = self._bytes
            self._rows("BEGIN IMMEDIATE")
        with self._guarded("write into"):  # the block runs in any case
            yield
            if self._db is not None and self._db.in_transaction:  # an error inside has ended it
                self._rows("COMMIT")
            self._bytes_before = None

    def _rows(self, sql: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        return self._db.execute(sql, parameters).fetchall() if self._db is not None else []

    # ------------------------------------------------------------------------------------ results

    def get(self, key: str) -> tuple[KeptResult | None, str]:
        """Return (the result with this key or None, why an entry of this key could not be used).

        The digest of the result is checked, and that its large values exist.  An entry that fails is removed.
        """
        with self._guarded("read"):
            found = self._rows("SELECT body, blobs, digest FROM entries WHERE key = ?", (key,))
            if not found:
                return None, ""
            body, blobs, digest = found[0]
            fault = self._fault(body, blobs, digest)
            if fault:
                self.remove([key])
                note = f"an entry was damaged and is gone: {fault}"
                self.note(note)
                return None, note
            self._uses[key] = self._uses.get(key, (0, 0.0))[0] + 1, time.time()
            return KeptResult(body, tuple(_decode_sizes(blobs)) if blobs != "{}" else ()), ""
        return None, self.notes[-1] if self.notes else ""

    def note_uses(self) -> None:
        """Write into the file which entries were taken."""
        self._look_at_file()
        uses, self._uses = self._uses, {}
        if uses:
            with self.together():
                for key, (times, last_s) in uses.items():
                    self._rows(
                        "UPDATE entries SET used_s = ?2, hits = hits + ?3, "
                        "rank = (SELECT last_rank FROM state) + run_s / bytes WHERE key = ?1",
                        (key, last_s, times),
                    )

    def _fault(self, body: bytes, blobs: str, digest: bytes) -> str:
        """Return why an entry cannot be used; "" if it can."""
        if _digest(body, blobs) != digest:
            return "its content does not have its digest"
        if blobs == "{}":
            return ""
        for name, size in _decode_sizes(blobs).items():
            path = self._blobs.path(bytes.fromhex(name))
            try:
                there = path.stat().st_size
            except OSError:
                return f"its large value {name[:12]}… is gone"
            if there != size:
                return f"its large value {name[:12]}… has {there:,} bytes, and {size:,} were written"
        self._blobs.touch(map(bytes.fromhex, _decode_sizes(blobs)))
        return ""

    def put(self, full_key: str, key: CacheKey, final: Final, recipe: bytes) -> None:
        """Keep the result of a task.  An entry of the same key is replaced."""
        if self._db is None or final.body is None:
            return
        self.note_uses()
        with self._guarded("write into"), self.together():
            sizes = {name: self._blobs.path(bytes.fromhex(name)).stat().st_size for name in final.blobs}
            size = ROW_BYTES + len(final.body) + sum(sizes.values())
            if size > self.limit_bytes:
                self.note(
                    f"the result of task {final.id} has {size:,} bytes, more than the whole cache may have "
                    f"({self.limit_bytes:,}, cache_size): it is not kept"
                )
                return
            self._evict(size)
            blobs = _encode(sizes).decode()
            now_s = time.time()
            self._remove_rows([full_key])
            self._rows(
                f"INSERT INTO entries ({_ENTRY}, rank, blobs, digest, body) "
                "VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?6, 0, ?8, (SELECT last_rank FROM state) + ?7 / ?8, ?9, ?10, ?11)",
                (
                    full_key, key.function, key.recipe, _encode(key.arguments).decode(), final.id, now_s,
                    max(final.run_s, 0.0), size, blobs, _digest(final.body, blobs), final.body,
                ),
            )  # fmt: skip
            for name in sizes:
                self._rows("INSERT OR IGNORE INTO entry_blobs (digest, key) VALUES (?, ?)", (name, full_key))
            self._rows("INSERT OR IGNORE INTO recipes (digest, parts) VALUES (?, ?)", (key.recipe, recipe))
            self._bytes += size

    def _evict(self, room: int) -> None:
        """Remove entries until there is room for this number of bytes."""
        while self._bytes + room > self.limit_bytes:
            found = self._rows("SELECT key, rank FROM entries ORDER BY rank, used_s LIMIT 1")
            if not found:
                return
            self._rows("UPDATE state SET last_rank = max(last_rank, ?)", (found[0][1],))
            self.remove([found[0][0]])

    def remove(self, keys: Iterable[str]) -> int:
        """Remove these entries, and return their number."""
        gone = 0
        if self._db is not None:
            with self._guarded("remove from"), self.together():
                gone = self._remove_rows(keys)
        return gone

    def _remove_rows(self, keys: Iterable[str]) -> int:
        gone = 0
        for key in keys:
            for blobs, size in self._rows("SELECT blobs, bytes FROM entries WHERE key = ?", (key,)):
                for name in _decode_sizes(blobs):
                    self._rows("DELETE FROM entry_blobs WHERE digest = ? AND key = ?", (name, key))
                self._rows("DELETE FROM entries WHERE key = ?", (key,))
                self._bytes -= size
                gone += 1
        return gone

    def remove_of_task(self, task: int) -> int:
        """Remove what a task has computed: its result is wrong or lost."""
        with self._guarded("read"):
            return self.remove([row[0] for row in self._rows("SELECT key FROM entries WHERE task = ?", (task,))])
        return 0

    # ------------------------------------------------------------------------------------ questions

    def table(self, function: str | None, last: int) -> CacheTable:
        """Return entries, the most recently used first, with the totals of all."""
        self.note_uses()
        with self._guarded("read"):
            rows = self._rows(
                f"SELECT {_ENTRY} FROM entries WHERE ?1 IS NULL OR function = ?1 ORDER BY used_s DESC LIMIT ?2",
                (function, last),
            )
            totals = self._rows("SELECT count(*), ifnull(sum(hits), 0), ifnull(sum(hits * run_s), 0.0) FROM entries")
            count, hits, saved_s = totals[0] if totals else (0, 0, 0.0)
            return CacheTable(
                [_entry(row) for row in rows], count, self._bytes, self.limit_bytes, hits, saved_s, self.notes
            )
        return CacheTable([], 0, 0, self.limit_bytes, notes=self.notes)

    def forget(self, function: str | None, key: str | None, older_s: float | None) -> int:
        """Remove entries of this function, of a key that begins so, not used for this time; return their number."""
        self.note_uses()
        with self._guarded("remove from"):
            found = self._rows(
                "SELECT key FROM entries WHERE (?1 IS NULL OR function = ?1) "
                "AND (?2 IS NULL OR substr(key, 1, ?3) = ?2) AND (?4 IS NULL OR used_s < ?4)",
                (function, key, len(key or ""), None if older_s is None else time.time() - older_s),
            )
            gone = self.remove([row[0] for row in found])
            self._rows("DELETE FROM recipes WHERE digest NOT IN (SELECT recipe FROM entries)")
            return gone
        return 0

    def entry(self, key: str) -> CacheEntry | None:
        self.note_uses()
        with self._guarded("read"):
            rows = self._rows(f"SELECT {_ENTRY} FROM entries WHERE key = ?", (key,))
            return _entry(rows[0]) if rows else None
        return None

    def recipe(self, digest: str) -> bytes:
        """Return an encoded recipe; b"" if no entry has it."""
        with self._guarded("read"):
            rows = self._rows("SELECT parts FROM recipes WHERE digest = ?", (digest,))
            return rows[0][0] if rows else b""
        return b""

    def nearest(self, key: CacheKey, recipe: bytes, before_s: float, not_task: int) -> CacheEntry | None:
        """Return the entry of the same function that has most in common with a key.

        Args:
            key: the key of a task.
            recipe: the encoded recipe of its function; b"": only arguments are compared.
            before_s: only entries that were made before (wall clock), or by earlier tasks.
            not_task: not the entry that this task has made.
        """
        with self._guarded("read"):
            return self._nearest(key, recipe, before_s, not_task)
        return None

    def _nearest(self, key: CacheKey, recipe: bytes, before_s: float, not_task: int) -> CacheEntry | None:
        rows = self._rows(
            # If the clock was set back, earlier tasks seem to have ended later.
            f"SELECT {_ENTRY} FROM entries WHERE function = ?1 AND (made_s < ?2 OR task < ?3) AND task <> ?3 "
            "ORDER BY made_s DESC LIMIT ?4",
            (key.function, before_s, not_task, NEAREST_AMONG),
        )
        parts = _parts(recipe)
        known: dict[str, frozenset[KeyPart]] = {}
        best, least = None, (0, 0)
        for found in map(_entry, rows):
            if found.recipe not in known:
                known[found.recipe] = _parts(self.recipe(found.recipe)) if found.recipe != key.recipe else parts
            distance = (
                len(known[found.recipe] ^ parts) if found.recipe != key.recipe else 0,
                len(set(found.arguments) ^ set(key.arguments)),
            )
            if best is None or sum(distance) < sum(least):
                best, least = found, distance
        return best


_NOT_OURS = re.compile(r"no such (table|column)|has no column")


def _is_damage(error: Exception) -> bool:
    """Return whether a file that has this error cannot be used any more."""
    if isinstance(error, sqlite3.OperationalError):  # a full disk, a lock: it may work again
        return bool(_NOT_OURS.search(str(error)))
    return isinstance(error, sqlite3.DatabaseError)


def _parts(recipe: bytes) -> frozenset[KeyPart]:
    """Return the parts of an encoded recipe, without what is no part of the key."""
    if not recipe:
        return frozenset()
    return frozenset(KeyPart(part.kind, part.name, part.digest) for part in _decode_recipe(recipe).parts)


def _entry(row: tuple[Any, ...]) -> CacheEntry:
    key, function, recipe, arguments, *rest = row
    return CacheEntry(key, function, recipe, _decode_arguments(arguments), *rest)


def _digest(body: bytes, blobs: str) -> bytes:
    return hashlib.sha256(body + blobs.encode()).digest()


def entries_in(path: Path) -> int:
    """Return the number of entries in a cache's file; 0 if there is none, or it cannot be read."""
    try:
        with contextlib.closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as db:
            count: int = db.execute("SELECT count(*) FROM entries").fetchone()[0]
            return count
    except sqlite3.Error:
        return 0


def needed_by_cache(path: Path, digests: Sequence[str]) -> set[str]:
    """Return the blobs, of those given, that entries need.  Any thread may call this."""
    if not path.exists():
        return set()
    with contextlib.closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as db:
        asked = _encode(list(digests)).decode()
        sql = (
            "SELECT asked.value FROM json_each(?) AS asked "
            "WHERE EXISTS (SELECT 1 FROM entry_blobs AS e WHERE e.digest = asked.value)"
        )
        return {row[0] for row in db.execute(sql, (asked,))}
