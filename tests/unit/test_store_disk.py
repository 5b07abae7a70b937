"""The store and its disk: full, broken, taken away in the middle; and files that it refuses to open."""

from __future__ import annotations

import os
import re
import shutil
import signal
import sqlite3
import struct
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from ipytaskfarm.core import saves as s
from ipytaskfarm.core.errors import StoreError, StoreFull
from ipytaskfarm.core.messages import PROTOCOL
from ipytaskfarm.storage import backup, disk, free_room, opening, store as module
from ipytaskfarm.storage.beside import beside, count_file
from ipytaskfarm.storage.commit_count import read
from ipytaskfarm.storage.store import Store
from tests.support.store_model import sql, task

# --------------------------------------------------------------------------------------------------
# Trouble with the disk


def test_a_full_disk_undoes_the_whole_turn_and_the_store_goes_on(store: Store) -> None:
    store.commit([task(1)])
    store._db.execute("PRAGMA max_page_count = 60")
    with pytest.raises(StoreFull, match="what was accepted is safe") as raised:
        store.commit([task(2), s.SaveSetting("n", 1), task(3, bytes(1 << 20))])
    assert isinstance(raised.value, OSError)
    assert str(store.path) in str(raised.value)
    assert store.commit([task(4)]) == []
    assert [t.id for t in store.load().tasks] == [1, 4]
    store._db.execute("PRAGMA max_page_count = 1000000")
    assert store.commit([task(3, bytes(1 << 20))]) == []


FILL = """
import os, sys
from pathlib import Path
from ipytaskfarm.core import saves as s
from ipytaskfarm.core.errors import StoreError, StoreFull
from ipytaskfarm.core.messages import PROTOCOL
from ipytaskfarm.storage import backup as backup
from ipytaskfarm.storage.store import Store

folder = sys.argv[1]
store = Store.open(folder + "/store.sqlite")
kept = full = 0
ballast = folder + "/ballast"
with open(ballast, "wb") as file:
    file.write(bytes(1 << 20))
for turn in range(3):
    while True:
        try:
            store.commit([s.SaveTask(kept + i, 0, os.urandom(3000), 0.0, None, None, "") for i in range(20)])
            kept += 20
        except StoreFull:
            full += 1
            break
    os.truncate(ballast, (1 << 20) - (turn + 1) * 300_000)
found = len(store.load().tasks)
assert backup.check(store.path) == []
store.close()
store = Store.open(folder + "/store.sqlite")
assert len(store.load().tasks) == found == kept, (found, kept)
print("full", full, kept)
with open(ballast, "ab", buffering=0) as file:
    try:
        while True:
            file.write(bytes(4096))
    except OSError:
        os.truncate(ballast, os.path.getsize(ballast) - 65536)
try:
    backup.backup(store.path, Path(folder, "copy.sqlite"))
except StoreError as error:
    print(error)
"""


def test_a_disk_that_is_really_full(tmp_path: Path) -> None:
    mount = f'mount -t tmpfs -o size=4m none {tmp_path} && exec {sys.executable} -c "$1" {tmp_path}'
    unshare = shutil.which("unshare")
    if unshare is None or subprocess.run([unshare, "-rm", "true"], capture_output=True).returncode:
        pytest.skip("no user namespaces here")
    done = subprocess.run(
        [unshare, "-rm", "sh", "-c", mount, "sh", FILL], capture_output=True, text=True, cwd=Path(__file__).parents[2]
    )
    assert done.stdout.startswith("full 3 "), done.stderr
    assert int(done.stdout.split()[2]) > 300
    assert f"the backup {tmp_path}/copy.sqlite could not be written: [Errno 28] No space left" in done.stdout


def test_the_log_has_room_made_ahead_which_means_nothing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    log = Path(f"{store.path}-wal")
    sizes = []
    for number in range(150):
        store.commit([task(number, bytes(6000))])
        store.settle()
        sizes.append(log.stat().st_size)
    assert len(set(sizes)) < 10, "most commits do not make the log longer"
    copy = store.path.with_name("copy")
    copy.mkdir(mode=0o700)
    for file in beside(store.path):
        if file.exists():
            shutil.copy(file, copy / file.name)
    assert log.read_bytes().endswith(bytes(4120))
    with closing(Store.open(copy / store.path.name, farm_incarnation=store.farm)) as again:
        assert again.missing is None
        assert [t.id for t in again.load().tasks] == list(range(150))


def test_a_disk_that_is_nearly_full_has_no_room_made_ahead(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(free_room, "free_bytes", lambda folder: free_room.FREE_BYTES)
    for number in range(150):
        store.commit([task(number, bytes(6000))])
        store.settle()
    recorded = read(count_file(store.path))
    assert recorded is not None
    assert Path(f"{store.path}-wal").stat().st_size == free_room.log_bytes(recorded.log.frames)


class Failing:
    """A connection on which the next statement with a certain word fails."""

    def __init__(self, db: sqlite3.Connection, word: str, code: int) -> None:
        self._db, self._word, self._code = db, word, code

    def __getattr__(self, name: str) -> Any:
        return getattr(self._db, name)

    def execute(self, text: str, *values: Any) -> sqlite3.Cursor:
        if self._word in text:
            self._word = "\x00"
            error = sqlite3.OperationalError("disk I/O error")
            error.sqlite_errorcode = self._code
            error.sqlite_errorname = "SQLITE_IOERR_FSYNC"
            raise error
        return self._db.execute(text, *values)


def fail(store: Store, word: str, code: int = sqlite3.SQLITE_IOERR_FSYNC) -> None:
    store._db = Failing(store._db, word, code)  # type: ignore[assignment]


def test_a_failed_fsync_is_not_retried(store: Store, path: Path) -> None:
    store.commit([task(1)])
    fail(store, "COMMIT")
    for _ in range(3):
        with pytest.raises(StoreError, match="the disk failed") as raised:
            store.commit([task(2)])
        assert not isinstance(raised.value, StoreFull)
        assert str(path) in str(raised.value)
    with pytest.raises(StoreError):
        store.load()
    store.close()
    with closing(Store.open(path)) as again:
        assert [t.id for t in again.load().tasks] == [1]


def test_a_checkpoint_that_fails_is_said(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHECKPOINT_BYTES", 0)
    store.commit([task(1)])
    fail(store, "wal_checkpoint")
    with pytest.raises(StoreError, match="the disk failed"):
        store.settle()


def test_no_room_for_a_checkpoint_waits_for_the_next(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHECKPOINT_BYTES", 0)
    fail(store, "wal_checkpoint", sqlite3.SQLITE_FULL)
    for number in (1, 2):
        store.commit([task(number)])
        store.settle()
    assert len(store.load().tasks) == 2


def test_another_writer_is_waited_for_and_then_named(store: Store, path: Path) -> None:
    store._db.execute("PRAGMA busy_timeout = 20")
    with closing(sqlite3.connect(path, isolation_level=None)) as shell:
        shell.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreError, match="another program keeps it locked"):
            store.commit([task(1)])


def test_a_second_controller_fences_the_first(store: Store, path: Path) -> None:
    store.commit([task(1)])
    with closing(Store.open(path)) as second:
        with pytest.raises(StoreError, match="another controller has taken it over"):
            store.commit([task(2)])
        assert [t.id for t in second.load().tasks] == [1]
        store.close()
        assert second.commit([task(2)]) == []


# --------------------------------------------------------------------------------------------------
# What it refuses to open


def refused(path: Path, words: str, **arguments: Any) -> None:
    with pytest.raises(StoreError, match=words) as raised:
        Store.open(path, **arguments)
    assert str(path) in str(raised.value)


def test_a_newer_schema_is_refused_and_left_alone(path: Path) -> None:
    Store.open(path).close()
    sql(path, "PRAGMA user_version = 99")
    before = path.read_bytes()
    refused(path, "schema 99.*newer ipytaskfarm")
    assert path.read_bytes() == before


def test_another_farms_store_is_refused(path: Path) -> None:
    Store.open(path, farm_incarnation="a").close()
    refused(path, "belongs to the farm a, not to b", farm_incarnation="b")
    with closing(Store.open(path, farm_incarnation="a")) as store:
        assert store.epoch == 2, "the refused one has not lived here"


def test_somebody_elses_file_is_refused(path: Path) -> None:
    sql(path, "CREATE TABLE recipes (name)")
    path.chmod(0o600)
    refused(path, "something else")
    path.unlink()
    path.write_bytes(b"Dear diary, " * 1000)
    path.chmod(0o600)
    refused(path, "damaged.*--fresh")


def test_a_file_that_others_can_read_is_refused(path: Path) -> None:
    Store.open(path).close()
    path.chmod(0o644)
    refused(path, "chmod 600")


def test_a_store_with_two_names_is_refused(path: Path) -> None:
    """The two have a log each: what one farm moved into the file, the other one did not know."""
    Store.open(path).close()
    other = path.with_name("copied by cp -al")
    os.link(path, other)
    with pytest.raises(StoreError, match=rf"has 2 names \(hard links\).*cp -p {re.escape(str(path))}"):
        Store.open(path)
    other.unlink()
    Store.open(path).close()


def test_a_link_is_refused(path: Path) -> None:
    path.symlink_to(path.with_name("elsewhere"))
    refused(path, "link")
    assert not path.with_name("elsewhere").exists()


def test_a_damaged_file_is_refused(path: Path) -> None:
    with closing(Store.open(path)) as store:
        store.commit([task(n, bytes(100)) for n in range(1000)])
    size = path.stat().st_size
    with open(path, "r+b") as file:
        file.seek(size // 2)
        file.write(b"\xff" * 8192)
    refused(path, "damaged.*--fresh")
    with open(path, "r+b") as file:
        file.truncate(size // 3)
    refused(path, "damaged.*--fresh")


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    refused(tmp_path / "none" / "store.sqlite", "cannot be opened")


def test_a_read_only_store_is_refused(path: Path) -> None:
    Store.open(path).close()
    if os.geteuid() == 0:
        unshare = shutil.which("unshare")
        if unshare is None or subprocess.run([unshare, "-m", "true"], capture_output=True).returncode:
            pytest.skip("root writes everywhere, and there is no read-only mount")
        script = f"""
from ipytaskfarm.storage import backup as backup
from ipytaskfarm.storage.store import Store
Store.open({str(path)!r})
"""
        mount = f"mount --bind {path.parent} {path.parent} && mount -o remount,bind,ro {path.parent} && exec "
        command = [unshare, "-m", "sh", "-c", mount + f'{sys.executable} -c "$1"', "sh", script]
        done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
        assert "StoreError" in done.stderr
        assert str(path) in done.stderr
        assert "read-only" in done.stderr
    else:
        path.chmod(0o400)
        refused(path, "permissions")


MOUNTS = """\
/dev/vda / ext4 rw 0 0
tmpfs /tmp tmpfs rw 0 0
server:/home /home nfs4 rw 0 0
/dev/vdb /home/local\\040disk xfs rw 0 0
me@host: /home/me/far fuse.sshfs rw 0 0
none / overlay rw 0 0
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/var/tmp", "overlay"),
        ("/tmp/x", "tmpfs"),
        ("/home/me", "nfs4"),
        ("/homeless", "overlay"),
        ("/home/local disk/farm", "xfs"),
        ("/home/me/far/away", "fuse.sshfs"),
    ],
)
def test_the_file_system_of_a_path(path: str, kind: str) -> None:
    assert disk._kind_of_mount(path, MOUNTS) == kind


def test_a_network_file_system_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "NETWORK_FILE_SYSTEMS", {disk._kind_of_mount(os.path.realpath(path), _mounts())})
    refused(path, "network file system.*store_dir")
    assert not path.exists()


def _mounts() -> str:
    return Path("/proc/self/mounts").read_text()


def test_an_old_sqlite_is_refused_and_a_doubtful_one_is_named(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite3, "sqlite_version", "3.51.2")
    with closing(Store.open(path)) as store:
        assert "older than 3.51.3" in store.notes[0]
    monkeypatch.setattr(sqlite3, "sqlite_version", "3.51.3")
    with closing(Store.open(path)) as store:
        assert store.notes == []
    monkeypatch.setattr(sqlite3, "sqlite_version", "3.37.9")
    refused(path, "needs SQLite 3.38.0")


# --------------------------------------------------------------------------------------------------
# Migrations


def shape(path: Path) -> list[tuple[Any, ...]]:
    return sql(path, "SELECT type, name, tbl_name FROM sqlite_schema ORDER BY name") + sql(
        path, "SELECT m.name, p.name, p.type FROM sqlite_schema AS m, pragma_table_info(m.name) AS p ORDER BY 1, 2"
    )


def test_an_older_store_is_brought_to_the_schema_of_a_new_one(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(Store.open(path)) as store:
        store.commit([task(1)])
    now = opening.SCHEMA
    steps = [
        (now + 1, "ALTER TABLE tasks ADD COLUMN color TEXT;"),
        (now + 2, "CREATE TABLE colors (name TEXT); INSERT INTO colors VALUES ('red');"),
    ]
    monkeypatch.setattr(disk, "migrations", lambda: steps)
    monkeypatch.setattr(opening, "SCHEMA", now + 2)
    with closing(Store.open(path)) as store:
        assert [t.id for t in store.load().tasks] == [1]
    assert sql(path, "PRAGMA user_version") == [(now + 2,)]
    assert sql(path, "SELECT t.color, c.name FROM tasks AS t, colors AS c") == [(None, "red")]


def test_a_migration_that_fails_changes_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Store.open(path).close()
    before = shape(path)
    now = opening.SCHEMA
    monkeypatch.setattr(
        disk, "migrations", lambda: [(now + 1, "CREATE TABLE colors (name); INSERT INTO nowhere VALUES (1);")]
    )
    monkeypatch.setattr(opening, "SCHEMA", now + 1)
    with pytest.raises(StoreError, match="nowhere"):
        Store.open(path)
    assert shape(path) == before
    assert sql(path, "PRAGMA user_version") == [(now,)]
    monkeypatch.setattr(disk, "migrations", list)
    refused(path, f"nothing leads from it to {now + 1}")


def test_a_store_of_the_first_schema_becomes_what_a_new_one_is(path: Path) -> None:
    Store.open(path).close()
    new = shape(path)
    with closing(sqlite3.connect(path)) as db:
        db.executescript("DROP TABLE jobs; DROP TABLE blob_uses; DROP TABLE mail; PRAGMA user_version = 1;")
        db.executescript("DROP TABLE kept_commands; DROP TABLE kept_on; DROP TABLE kept_blobs;")
        db.executescript("DROP VIEW task_states; CREATE VIEW task_states AS SELECT id FROM tasks;")
        db.executescript(
            "DROP TABLE separate_items; DROP TABLE agents; DROP TABLE priority_changes; DROP INDEX tasks_with_items;"
        )
        db.executescript("DROP INDEX tasks_by_job; DROP INDEX tasks_by_parent; DROP INDEX finals_by_cause;")
        db.executescript("DROP INDEX tasks_by_retried;")
        later = {
            "tasks": ("needs", "job", "parent", "spawn", "items", "part_of", "part", "cache"),
            "progress": ("until_s", "trial", "began_s", "state", "received"),
        }
        for table, columns in later.items():
            for column in columns:
                db.execute(f"ALTER TABLE {table} DROP COLUMN {column}")
    assert shape(path) != new
    assert backup.check(path) == [], "a check changes nothing, and looks for no tables that came later"
    with closing(Store.open(path)) as store:
        store.commit([task(1)])
    assert shape(path) == new


def test_a_protocol_that_changes_payloads_has_a_schema_that_earlier_versions_refuse() -> None:
    assert (PROTOCOL, opening.SCHEMA) == (12, 13), (
        "PROTOCOL keeps versions apart while both run. An earlier one that is started on this one's store reads its "
        "payloads: raise SCHEMA too if it would misread them (see migrations/README.md), and change this test."
    )


def test_migrations_lead_to_the_schema() -> None:
    assert [number for number, _ in disk.migrations()] == list(range(2, opening.SCHEMA + 1))


# --------------------------------------------------------------------------------------------------
# Kills

WRITE = """
import os, struct, sys
from ipytaskfarm.core import saves as s
from ipytaskfarm.core.messages.task_types import Final
from ipytaskfarm.storage import store as module
from ipytaskfarm.storage import backup as backup
from ipytaskfarm.storage.store import Store

module.CHECKPOINT_BYTES = 200_000
store = Store.open(sys.argv[1])
n = store.load().next_queue_seq
while True:
    turn = [s.SaveTask(i, i, os.urandom(200), 0.0, None, None, "") for i in range(n, n + 40)]
    turn += [s.SaveFinal(Final(i, "", 0, "", 1, 0.0, 0.0, 0.0, 0.0, None, b"x")) for i in range(n, n + 40, 2)]
    turn.append(s.SaveSetting("n", n + 40))
    assert store.commit(turn) == []
    n += 40
    os.write(1, struct.pack("<Q", n))
"""


def test_what_was_acknowledged_is_there_after_a_kill(path: Path) -> None:
    acknowledged = 0
    for turn in range(6):
        child = subprocess.Popen(
            [sys.executable, "-c", WRITE, str(path)], stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]
        )
        assert child.stdout is not None
        with child.stdout as answers:
            for _ in range(turn * 17 + 1):
                (acknowledged,) = struct.unpack("<Q", answers.read(8))
            os.kill(child.pid, signal.SIGKILL)
            child.wait()
            rest = answers.read()
        if rest:
            (acknowledged,) = struct.unpack("<Q", rest[-8:])
        with closing(Store.open(path)) as store:
            loaded = store.load()
            assert backup.check(store.path) == []
        total = loaded.settings["n"]
        assert isinstance(total, int)
        assert total - acknowledged in (0, 40), "all that was told, and at most the turn that was not told yet"
        assert [t.id for t in loaded.tasks] == list(range(1, total, 2)), "turns are there whole"
        assert [f.id for f in loaded.finals] == list(range(0, total, 2))
