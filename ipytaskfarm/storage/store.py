"""The store: one SQLite file with everything that must outlive a controller.

Rules of this file:

- There is one writer: one connection, used by the thread that opened it. `Store.commit` writes one turn's saves as one
  transaction; when it returns they are on the disk (WAL, ``synchronous=FULL``).
- A transaction is written whole or not at all. If there is no room, `StoreFull` is raised, nothing was written, and the
  store stays usable.
- After any other error of the disk the store is *broken*, and every later call raises. A failed fsync is never retried:
  Linux forgets the pages that it could not write, so a second fsync would lie. Start again from the file.
- The promises are checked here once more, independently of the scheduler: one end per task; no end for a missing task
  or for an attempt that is not the current one; no clearing of unfinished tasks; no commit by a controller that another
  one has replaced (`epoch`).

``schema.sql`` describes the tables, `storage.rows` writes and reads them, and `core.saves` lists the possible saves. To
add a column: ``migrations/README.md``.
"""

from __future__ import annotations

import contextlib
import gc
import os
import sqlite3
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import msgspec

from ..core import saves as s
from ..core.errors import StoreError, StoreFull
from ..core.messages import AgentProcess
from ..core.messages.result_cache import CacheKey
from ..core.messages.tables import TaskRow
from ..core.messages.task_types import Final, Function, Submission
from ..system.files import sync_folder
from . import disk, free_room, opening, rows
from .beside import count_file
from .commit_count import CommitCount, Count, Missing, missing, read as read_count
from .free_room import LogRoom
from .inserts import Row
from .opening import APPLICATION_ID, FORMER, REMEDY
from .task_records import RulesReader, part_of, place_in_map, task_records, unfinished_records, with_dependents
from .writing import Fenced, write

CHECKPOINT_BYTES = 4 << 20
"""The write-ahead log is moved into the file after about this much. A longer log makes fewer but longer pauses."""

BUSY_S = 5.0
"""How long a commit waits for another process's lock (a person's sqlite3 shell that writes)."""


class Store:
    """A farm's store, open for writing. `Store.open` makes one."""

    def __init__(self, path: Path, db: sqlite3.Connection) -> None:
        self.path = path
        self.farm = ""
        """The farm's incarnation."""
        self.epoch = 0
        """This life's number."""
        self.notes: list[str] = []
        """What a person who starts the farm should be told."""
        self._db = db
        self.missing: Missing | None = None
        """What was acknowledged and is missing since the last life."""
        self.renewed = ""
        """Why the store has drawn another incarnation; "" if it has not."""
        self.is_another = False
        """Whether the farm has another incarnation than before: agents of before never come back."""
        self._agents: list[Row] = []
        self._broken: str | None = None
        self._log_bytes = 0
        self._count: CommitCount | None = None
        self._log_room = LogRoom(path, CHECKPOINT_BYTES)
        self._file = (0, 0)
        """Tells the open file from another one of its name."""

    # ---------------------------------------------------------------------------------- opening and closing

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, farm_incarnation: str | None = None, former: str = "") -> Store:
        """Open the store at this path. Make it if there is none, and migrate an older schema.

        The epoch is one higher than the last time, and is on disk when this returns.

        Args:
            path: the path of the file.
            farm_incarnation: the farm that it must belong to. None: any farm (a new store draws an incarnation).
            former: the incarnation that the farm had until it was copied; the store is given the new one.

        Raises:
            StoreError: the file cannot be used: damaged, newer schema, another farm's, on a network file system,
                readable by others, or not a store. The message names the file and the remedy.
        """
        path = Path(os.path.abspath(path))
        disk.refuse_network_file_system(path)
        try:
            fresh = disk.make_or_check_file(path)
            opening.drop_foreign_log(path)
            db = sqlite3.connect(path, timeout=BUSY_S, isolation_level=None)
        except (OSError, sqlite3.Error) as error:
            raise opening.not_opened(path, error) from error
        store = cls(path, db)
        try:
            with store._reading():
                store._prepare(fresh, farm_incarnation, former)
        except BaseException as error:
            db.close()
            if store._count is not None:
                store._count.close()
            if isinstance(error, sqlite3.Error | OSError):
                raise opening.refusal(path, error) from error
            raise
        return store

    def _prepare(self, fresh: bool, farm_incarnation: str | None, former: str) -> None:
        self.notes += opening.sqlite_notes(self.path)
        opening.refuse_strangers(self._one, self.path, self.size_bytes())
        copied = not fresh and self._one("PRAGMA journal_mode") != "wal"
        self._set_pragmas(fresh)
        self._migrate()
        opening.refuse_incomplete(self._db, self.path)
        if copied and self._one("SELECT count(*) FROM farm"):
            self.renewed = "a backup was put in the place of its store"
        self._begin_life(farm_incarnation, former)
        self._file = disk.file_number(self.path)
        if fresh:
            sync_folder(self.path.parent)

    def _set_pragmas(self, fresh: bool) -> None:
        self._db.executescript(free_room.IN_STEPS if fresh else "")  # in an older file this would write into the log
        if self._one("PRAGMA journal_mode = WAL") != "wal":
            raise StoreError(
                f"the store {self.path} is on a file system that SQLite cannot share memory on: "
                "set store_dir to a folder on a local disk"
            )
        for pragma in (
            "synchronous = FULL",
            # The store makes its own checkpoints, because SQLite's ignore errors of the disk.
            "wal_autocheckpoint = 0",
            "journal_size_limit = 67108864",
            "secure_delete = FAST",  # in some builds it is on: a clear would write all cleared pages, 160 MB in a turn
            "cache_size = -65536",
            "temp_store = MEMORY",
        ):
            self._db.execute(f"PRAGMA {pragma}")

    def _migrate(self) -> None:
        schema = self._one("PRAGMA user_version")
        if not self._one("SELECT count(*) FROM sqlite_schema"):
            steps = [(opening.SCHEMA, disk.schema_text())]
        else:
            steps = [(n, text) for n, text in disk.migrations() if n > schema]
        for number, text in steps:
            mark = f"PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {number};"
            view = disk.view_text() if number == opening.SCHEMA else ""
            # Without the view a migration may drop any column.
            script = ("BEGIN IMMEDIATE;", "DROP VIEW IF EXISTS task_states;", text, view, mark, "COMMIT;")
            self._db.executescript("\n".join(script))
        reached = steps[-1][0] if steps else schema
        if reached != opening.SCHEMA:
            raise StoreError(
                f"the store {self.path} has schema {reached} and nothing leads from it to {opening.SCHEMA}: {REMEDY}"
            )

    def _begin_life(self, farm_incarnation: str | None, former: str) -> None:
        """Raise the epoch: a controller with a lower one cannot commit from now on."""
        self._db.execute("BEGIN IMMEDIATE")
        row = self._db.execute("SELECT incarnation, epoch FROM farm").fetchone()
        if row is None:
            row = (farm_incarnation or uuid.uuid4().hex, 0)
            self._db.execute("INSERT INTO farm VALUES (1, ?, 0, 1, ?)", (row[0], time.time()))
        incarnation, epoch = opening.checked_farm(row, self.path)
        if farm_incarnation not in (None, incarnation):
            if incarnation == former:
                incarnation = farm_incarnation
            elif farm_incarnation != self._one(f"SELECT value FROM settings WHERE key = '{FORMER}'"):
                raise StoreError(
                    f"the store {self.path} belongs to the farm {incarnation}, not to {farm_incarnation}: "
                    "move it away, or give this farm a store_dir of its own; or write that name into a lost farm.json"
                )
            self.is_another = True
        epoch = max(epoch, self._look_for_missing(epoch))
        if self.renewed:
            # Clients of the farm before know tasks, and ids of tasks, that this one has not.
            self._db.execute("INSERT OR REPLACE INTO settings VALUES (?, ?)", (FORMER, incarnation))
            incarnation, self.is_another = uuid.uuid4().hex, True
        self._take_agents()
        self._db.execute("UPDATE farm SET incarnation = ?, epoch = ?, clean = 0", (incarnation, epoch + 1))
        self._db.execute("COMMIT")
        self.farm, self.epoch = incarnation, epoch + 1
        assert self._count is not None
        self._count.write(self.epoch, sync=True)

    def _take_agents(self) -> object:
        self._agents = self._db.execute(rows.AGENTS).fetchall()
        return self._db.execute(rows.FORGET_AGENTS)

    def begin_epoch(self) -> None:
        """Raise the epoch within the life of one controller, which has thrown its state away."""
        self._usable()
        self._transact(lambda: (self._take_agents(), self._db.execute("UPDATE farm SET epoch = epoch + 1")))
        self.epoch += 1
        assert self._count is not None
        self._count.write(self.epoch, sync=True)

    def _look_for_missing(self, epoch: int) -> int:
        """Compare the store with the count of its commits. Return the highest epoch that any of them knows."""
        recorded = read_count(count_file(self.path))
        count = self._count = CommitCount(count_file(self.path), Path(f"{self.path}-shm"))
        place = count.place()
        if recorded is not None and (recorded.epoch, recorded.log) == (epoch, place):
            count.tasks, count.ends = recorded.tasks, recorded.ends
        else:
            count.tasks, count.ends = self._one("SELECT count(*) FROM tasks"), self._one("SELECT count(*) FROM finals")
        found = Count(epoch, place, count.tasks, count.ends)
        lacking = missing(recorded, found, self.size_bytes() - self.path.stat().st_size)
        if lacking is not None and not self.renewed:
            self.missing = lacking
            self.renewed = f"its store is damaged, or an older one was put in its place: {lacking}"
        return recorded.epoch if recorded is not None else epoch

    def close(self) -> None:
        """Move the log into the file and close it. A second call does nothing.

        It does not raise for a broken store or a full disk: the next start finds the log and continues from it.
        """
        try:
            if self._broken is None:
                with contextlib.suppress(StoreFull), self._reading():
                    if self._owns():
                        self._db.execute("UPDATE farm SET clean = 1")
                        self._checkpoint("TRUNCATE")
                        if self._count is not None:
                            self._count.write(self.epoch, sync=True)
        finally:
            self._db.close()
            if self._count is not None:
                self._count.close()
                self._count = None
            self._broken = self._broken or f"the store {self.path} is closed"

    # ---------------------------------------------------------------------------------- writing

    def commit(self, saves: Sequence[s.Save]) -> list[int]:
        """Write the saves in their order, as one transaction, which is on disk when this returns. `settle` follows.

        Returns:
            The ids of tasks with rows that were fenced off (already there, ended before, cleared, or of an attempt that
            is not the current one), which changed nothing. It is empty unless the scheduler has a bug.

        Raises:
            StoreFull: there is no room. Nothing was written, and the store stays usable.
            StoreError: another error of the disk. The store is broken.
            Exception: a save is invalid, which is a bug in the farm. Nothing was written.
        """
        self._usable()
        fenced: list[int] = []
        if not saves:
            return fenced
        try:
            self._commit(saves, fenced)
        except StoreFull:
            # The log cannot grow. If it can be moved into the file, the next turn has room in it.
            self._log_bytes += 1
            self.checkpoint()
            raise
        return fenced

    def settle(self) -> None:
        """Do what commits leave for later: write the count, and move the log into the file if it has become long.

        Nobody has to wait for it, so the controller sends first.
        """
        if self._count is not None and self._count.is_behind:
            self._end_write()

    def _end_write(self, last: bool = False) -> None:
        """Write the count, and move the log into the file if it has become long, or nothing follows soon (`last`)."""
        assert self._count is not None
        self._count.write(self.epoch)
        self._log_bytes = self._count.new_pages * free_room.PAGE_BYTES + last
        if last or self._log_bytes > CHECKPOINT_BYTES:
            self.checkpoint()

    def _commit(self, saves: Sequence[s.Save], fenced: list[int]) -> None:
        assert self._count is not None
        count = self._count
        try:
            self._transact(lambda: self._write(saves, None, count))
        except Fenced:
            # A bug in the farm. Repeat it row by row, to name the tasks.
            self._transact(lambda: self._write(saves, fenced, count))
        count.keep()

    def _write(self, saves: Sequence[s.Save], fenced: list[int] | None, count: CommitCount) -> None:
        if count.frames > self._log_room.enough_for:
            self._log_room.make(count.frames)
        write(self._db, saves, fenced, count)
        count.lower(self.epoch)

    def checkpoint(self) -> None:
        """Move the log into the file as far as readers allow.  `settle` does this in time."""
        self._usable()
        if not self._log_bytes:
            return
        # Lack of room does no harm yet: everything is in the log, and there will be another try.
        with contextlib.suppress(StoreFull), self._reading():
            self._checkpoint("PASSIVE")
            if self._count is not None:
                self._count.write(self.epoch, sync=True)
        self._log_bytes = 0

    def _checkpoint(self, mode: str) -> None:
        self._db.execute(f"PRAGMA wal_checkpoint({mode})").fetchall()

    def _transact(self, work: Callable[[], object]) -> None:
        try:
            self._db.execute("BEGIN IMMEDIATE")
            if not self._owns():
                self._break("another controller has taken it over; this one must end")
            work()
            self._db.execute("COMMIT")
        except BaseException as error:
            self._roll_back()
            if isinstance(error, sqlite3.Error):
                self._raise_for(error)
            raise

    def _owns(self) -> bool:
        return bool(self._one("SELECT epoch FROM farm") == self.epoch)

    def _roll_back(self) -> None:
        try:
            if self._db.in_transaction:  # SQLite has rolled back by itself after most errors
                self._db.execute("ROLLBACK")
        except sqlite3.Error as error:
            self._break(f"a transaction could not be undone: {error}; start the farm again")

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except BaseException as error:
            self._roll_back()
            if isinstance(error, sqlite3.Error):
                self._raise_for(error)
            raise

    def _raise_for(self, error: sqlite3.Error) -> NoReturn:
        """Raise the error that a SQLite error means: full, broken, or a bug in the farm."""
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
        name = getattr(error, "sqlite_errorname", "")
        # For SQLite, a full quota and lack of room for the shared memory are IO errors. A failed fsync never means
        # "full".
        io_full = code == sqlite3.SQLITE_IOERR and "FSYNC" not in name and disk.is_full(self.path.parent)
        if code == sqlite3.SQLITE_FULL or io_full:
            raise StoreFull(
                f"no room for the store {self.path} ({self.free_bytes() >> 20} MiB free, or a quota is used up): make "
                "room on that disk; what was accepted is safe"
            ) from error
        if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            self._break(f"it is damaged ({error}): {REMEDY}", error)
        if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            self._break(f"another program keeps it locked ({error}): end it, then start the farm again", error)
        if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_AUTH):
            self._break(
                f"it cannot be written ({error}): check permissions, and whether the disk is read-only or failing",
                error,
            )
        if code == sqlite3.SQLITE_IOERR:
            self._break(f"the disk failed ({error}, {name}): check the disk (dmesg), then start the farm again", error)
        raise error

    def _break(self, what: str, cause: BaseException | None = None) -> NoReturn:
        self._broken = f"the store {self.path} cannot be used: {what}"
        raise StoreError(self._broken) from cause

    def _usable(self) -> None:
        if self._broken is not None:
            raise StoreError(self._broken)

    # ---------------------------------------------------------------------------------- reading

    def _one(self, sql: str) -> Any:
        row = self._db.execute(sql).fetchone()
        return None if row is None else row[0]

    def _select(self, sql: str, parameters: Row = ()) -> list[Row]:
        self._usable()
        with self._reading():
            return self._db.execute(sql, parameters).fetchall()

    def _rows(self, sql: str, keys: Sequence[int] | Sequence[str]) -> list[Row]:
        return self._select(sql, (rows.asked(keys),))

    def load(self) -> s.StoredState:
        """Return the state that earlier controllers have stored. A million waiting tasks take some seconds."""
        self._usable()
        collecting = gc.isenabled()
        gc.disable()  # there are a million new objects and no garbage, and it would examine them again and again
        try:
            with self._reading():
                return self._load()
        except (msgspec.MsgspecError, OverflowError, TypeError, ValueError) as error:
            raise StoreError(f"the store {self.path} is damaged (a row cannot be read: {error}): {REMEDY}") from error
        finally:
            if collecting:
                gc.enable()

    def _load(self) -> s.StoredState:
        db = self._db
        history = rows.histories(db.execute(rows.HISTORY_OF_UNFINISHED))
        return s.StoredState(
            epoch=self.epoch,
            farm=self.farm,
            next_id=self._one("SELECT ifnull(max(last), -1) + 1 FROM blocks"),
            next_queue_seq=self._one(rows.NEXT_QUEUE_SEQ),
            # Engines compare the numbers: they only grow, although answered batches are forgotten.
            next_handout=max(self._one("SELECT ifnull(max(number), 0) + 1 FROM handouts"), self.epoch << 32),
            blocks=db.execute(rows.BLOCKS).fetchall(),
            tasks=unfinished_records(
                db.execute(rows.FRESH), db.execute(rows.REQUEUED), history, dict(db.execute(rows.LARGE_CODE))
            ),
            children=db.execute(rows.CHILDREN).fetchall(),
            mail=db.execute(rows.MAIL_COUNTS).fetchall(),
            finals=[
                s.FinalRecord(task, reason, name, bool(kept), accepted_seq, items, part_of(chunk, index))
                for task, reason, name, kept, accepted_seq, items, chunk, index in db.execute(rows.FINAL_RECORDS)
            ],
            refusals=db.execute("SELECT task, etype, text FROM refusals ORDER BY task").fetchall(),
            handouts=[
                s.SaveHandOut(n, e, i, rows.decode_runs(runs), at_s)
                for n, e, i, runs, at_s in db.execute(rows.HANDOUTS)
            ],
            functions=[row[0] for row in db.execute("SELECT digest FROM functions ORDER BY digest")],
            settings=dict(db.execute("SELECT key, value FROM settings ORDER BY key").fetchall()),
            sticky=[s.SaveSticky(*row) for row in db.execute(rows.STICKY)],
            kept=rows.kept_commands(db.execute(rows.KEPT), db.execute(rows.KEPT_BLOBS)),
            kept_on=[s.SaveKeptOn(*row) for row in db.execute(rows.KEPT_ON)],
            agents=[s.SaveAgent(a, n, AgentProcess(*process)) for a, n, *process in self._agents],
            jobs=[rows.read_job(row) for row in db.execute(rows.JOBS)],
            separate=db.execute("SELECT chunk, part FROM separate_items ORDER BY chunk, part").fetchall(),
        )

    def work(self, ids: Sequence[int]) -> list[tuple[int, bytes, str | None]]:
        """Return (id, payload, function's digest) of these tasks for a run; a recovery task's own if it is its turn.

        Here and below, the order is that of the argument, and missing ids are left out.
        """
        return [(id, payload, function) for id, payload, function in rows.in_order(ids, self._rows(rows.WORK, ids))]

    def original(self, ids: Sequence[int]) -> list[Submission]:
        """Return these tasks, ended ones too, as they were submitted, but without the time."""
        read_rules = RulesReader()
        found = rows.in_order(ids, self._rows(rows.ORIGINALS, ids))
        return [
            Submission(
                id, payload, 0.0, function, read_rules(text, name), rows.decode_digests(blobs), needs and
                rows.decode_needs(needs), items, part_of(chunk, index), cache and rows.decode_cache_key(cache),
            )
            for id, payload, function, name, text, blobs, needs, items, chunk, index, cache in found
        ]  # fmt: skip

    def cache_key(self, task: int) -> tuple[CacheKey, list[int]] | None:
        """Return (the key of a task's result in the result cache, the tasks whose results it takes), or None."""
        return next((rows.cache_key(*row) for row in self._rows(rows.CACHE_KEYS, [task])), None)

    def chunk_of(self, task: int) -> int | None:
        """Return the chunk among whose ids this one is; None: it is no item of a chunk."""
        return next((chunk for chunk, items in self._select(rows.CHUNK_OF, (task,)) if task <= chunk + items), None)

    def place_in_map(self, task: int) -> s.MapPlace | None:
        """Return the place of a task in its map.  None: it belongs to none."""
        self._usable()
        with self._reading():
            return place_in_map(self._db.execute, task, self.chunk_of)

    def states(self, ids: Sequence[int]) -> dict[int, bytes]:
        """Return the states that tasks have left for their next trial."""
        return dict(self._rows(rows.STATES, ids))

    def ended(self, ids: Sequence[int], dependents: bool) -> list[s.TaskRecord]:
        """Return records of the given tasks that have ended, for another run.

        Their last attempt is in their history.

        With `dependents`, also all tasks that use their results, directly or indirectly.
        """
        wanted = list(ids)
        if dependents:
            with self._reading():
                wanted = with_dependents(ids, self._db.execute(rows.EDGES))
        records = task_records(self._rows(rows.ENDED, wanted), rows.histories(self._rows(rows.HISTORY, wanted)))
        return [
            msgspec.structs.replace(record, history=[*record.history, rows.attempt_of(final)])
            for record, final in zip(records, self.finals([record.id for record in records]), strict=True)
        ]

    def conversations(self, ids: Sequence[int]) -> tuple[list[Row], list[Row]]:
        """Return the children of these tasks and the counts of their messages, as `core.saves.StoredState` has them."""
        return self._rows(rows.CHILDREN_OF, ids), self._rows(rows.MAIL_COUNTS_OF, ids)

    def tasks_of_job(self, job: str, after: int, count: int) -> list[s.TaskOfJob]:
        """Return at most `count` of a job's tasks that were not cleared, with ids higher than `after`, in order."""
        return [s.TaskOfJob(*row) for row in self._select(rows.OF_JOB, (job, after, count))]

    def latest_retries(self, ids: Sequence[int]) -> dict[int, int]:
        """Return the latest retry, if it was not cleared, of each given task that was submitted again."""
        return dict(self._rows(rows.LATEST_RETRIES, ids))

    def jobs_with_tasks(self, jobs: Sequence[str]) -> set[str]:
        """Return the given jobs that still have tasks."""
        return {row[0] for row in self._rows(rows.WITH_TASKS, jobs)}

    def mail(self, task: int, outgoing: bool, after: int, count: int) -> list[tuple[int, str, float, bytes]]:
        """Return (number, sender, time, body) of at most `count` messages to a task after a number; `outgoing`: from
        the task.
        """
        return self._select(rows.MAIL, (task, outgoing, after, count))

    def functions(self, digests: Sequence[str]) -> list[Function]:
        """Return the code of these functions, in the given order."""
        return [Function(digest, code) for digest, code in self._rows(rows.FUNCTIONS, digests)]

    def finals(self, ids: Sequence[int]) -> list[Final]:
        """Return the complete ends of these tasks, with body and history, in the given order."""
        history = rows.histories(self._rows(rows.HISTORY, list(dict.fromkeys(ids))))
        return [rows.final(row, history.get(row[0], [])) for row in rows.in_order(ids, self._rows(rows.FINALS, ids))]

    def within(self, ids: Sequence[int], size_bytes: int) -> tuple[list[int], list[int]]:
        """Divide ids of ended tasks into the first ones, with ends of at most `size_bytes` bytes, and the others.

        The first one is among the first ones whatever its size."""
        sizes: dict[int, int] = dict(self._rows(rows.SIZES, ids))
        total = 0
        for place, task in enumerate(ids):
            total += sizes.get(task, 0)
            if total > size_bytes and place:
                return list(ids[:place]), list(ids[place:])
        return list(ids), []

    def task_rows(self, ids: Sequence[int]) -> list[TaskRow]:
        """Return table rows of the given tasks that have ended, in the given order."""
        return [rows.table_row(row) for row in rows.in_order(ids, self._rows(rows.TABLE, ids))]

    # ---------------------------------------------------------------------------------- care

    def harm(self) -> str:
        """Return what somebody has done to the file while it is open, such as "was replaced"; "" if nothing."""
        return disk.harm(self.path, self._file)

    def free_bytes(self) -> int:
        """Return the free bytes of the store's disk for an ordinary user."""
        return free_room.free_bytes(self.path.parent)

    def size_bytes(self) -> int:
        """Return the bytes of the file and its log on the disk."""
        return free_room.size_bytes(self.path)

    def compact(self) -> None:
        """Give room left by cleared tasks back to the disk.  It needs as much room again meanwhile, and time."""
        self._usable()
        with self._reading():
            self._db.executescript(f"{free_room.IN_STEPS} VACUUM")
            self._checkpoint("TRUNCATE")

    def give_back(self, pages: int) -> bool | None:
        """Give up to this many free pages back, and return whether any are left; None: this file cannot do that."""
        self._usable()
        with self._reading():
            left = free_room.give_back(self._one, self._db.executescript, pages)
        self._end_write(last=not left)
        return left

    def final_ids(self, after: int, count: int) -> list[tuple[int, float]]:
        """Return (id, time of end) of at most `count` ended tasks, in order of their ids."""
        return self._select(rows.FINAL_IDS, (after, count))

    def oldest_finals(self, count: int) -> list[tuple[int, int, tuple[str, ...]]]:
        """Return (id, bytes of payload and result, digests of its blobs) of `count` ended tasks, in order of ids."""
        found = self._select(rows.OLDEST_FINALS, (count,))
        return [(task, size, tuple(digests.split(",")) if digests else ()) for task, size, digests in found]

    def blobs_in_use(self) -> list[str]:
        """Return the digests of all blobs that tasks, results and kept commands need."""
        return [row[0] for row in self._select(rows.BLOBS_IN_USE)]

    def used_bytes(self) -> int:
        """Return the bytes used in the file, without its free pages."""
        self._usable()
        with self._reading():
            return free_room.used_bytes(self._one)
