"""What stands in the place of a farm's files and is none: nothing waits for it, and each error names it."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from ipytaskfarm.core import errors
from ipytaskfarm.deployment.home import Home
from ipytaskfarm.launchers import ProcessSpec
from ipytaskfarm.launchers.local import LocalProcesses
from ipytaskfarm.storage import backup
from ipytaskfarm.storage.beside import count_file
from ipytaskfarm.storage.blobs import Blobs
from ipytaskfarm.storage.lost_record import usable_record
from ipytaskfarm.storage.store import Store
from ipytaskfarm.system import farm_paths, files, private_files
from ipytaskfarm.system.farm_paths import FARM_FILE, FarmRecord, Lock
from ipytaskfarm.system.supervision import PROCESSES_FILE, read_processes
from ipytaskfarm.transport.keys import KEYS_FILE, LOCK_FILE, farm_keys
from tests.support.odd_files import CONTENTS, NO_FILES, put
from tests.support.store_model import final, task

every_kind = pytest.mark.parametrize("kind", NO_FILES)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return farm_paths.private_folder(tmp_path / "farm")


@every_kind
def test_what_is_no_file_is_refused_by_its_name(folder: Path, kind: str) -> None:
    path = folder / "f"
    put(path, kind)
    for use_it in (
        lambda: farm_paths.read_private(path),
        lambda: farm_paths.write_private(path, b"x"),
        lambda: Lock(path),
    ):
        with pytest.raises(errors.SecurityError, match=rf"{path} .*remove it"):
            use_it()
    assert files.tail(path) == ("precious" if kind == "link" else "")


@every_kind
def test_what_is_no_file_is_set_aside(folder: Path, kind: str) -> None:
    path = folder / "f"
    put(path, kind)
    remark = private_files.set_aside(path)
    assert str(path) in remark
    (aside,) = folder.glob("f.spoiled-*")
    assert aside.name in remark
    assert not os.path.lexists(path)
    assert private_files.set_aside(path) == ""
    path.write_text("a file")
    assert private_files.set_aside(path) == ""
    assert private_files.set_aside_unless_folder(path) != ""
    path.mkdir()
    assert private_files.set_aside_unless_folder(path) == ""


@every_kind
def test_the_locks_the_records_and_the_output_of_processes(folder: Path, kind: str) -> None:
    put(folder / LOCK_FILE, kind)
    keys = farm_keys(folder)
    assert farm_keys(folder) == keys
    home = Home("x", folder)
    put(folder / PROCESSES_FILE, kind)
    assert home.read_processes() == []
    record = {"kind": "owner", "pid": 1, "started": 1.0, "log": ""}
    home.write_processes([record])
    assert home.read_processes() == [record]
    put(folder / PROCESSES_FILE, kind)
    home.tidy(temporary=False)
    put(folder / "out", kind)
    process = LocalProcesses().start(ProcessSpec("x", "sys", (), folder / "out", folder))
    os.waitpid(process.pid, 0)
    process.close()
    assert (folder / "out").is_file()


@pytest.mark.parametrize("content", CONTENTS)
def test_records_of_processes_that_are_none(folder: Path, content: str) -> None:
    put(folder / PROCESSES_FILE, content)
    assert read_processes(folder) == []
    home = Home("x", folder)
    assert home.present_run() is None
    assert not home.is_supervised()


@pytest.mark.parametrize(
    ("good", "bad"), [(b'"server":{"public":"', b'"server":{"public":"1'), (b'"agents":{}', b'"agents":{"../x":%s}')]
)
def test_keys_that_are_none(folder: Path, good: bytes, bad: bytes) -> None:
    farm_keys(folder)
    text = (folder / KEYS_FILE).read_bytes()
    pair = text.partition(b'"client":')[2].partition(b"}")[0] + b"}"
    farm_paths.write_private(folder / KEYS_FILE, text.replace(good, bad.replace(b"%s", pair)))
    with pytest.raises(errors.SecurityError, match=r"keys\.json is damaged.*put it back from a backup, or remove it"):
        farm_keys(folder)


# -- the store and the files beside it


@pytest.fixture
def path(folder: Path) -> Path:
    with closing(Store.open(folder / "store.sqlite", farm_incarnation="farm")) as store:
        store.commit([task(0), final(0)])
    return folder / "store.sqlite"


@every_kind
def test_the_count(path: Path, kind: str) -> None:
    put(count_file(path), kind)
    assert backup.check(path) == []
    with closing(Store.open(path, farm_incarnation="farm")) as store:
        assert len(store.load().finals) == 1
    assert count_file(path).is_file()


@pytest.mark.parametrize("suffix", ["", "-wal", "-shm"])
@every_kind
def test_the_store_and_its_log(path: Path, suffix: str, kind: str) -> None:
    odd = path.with_name(path.name + suffix)
    put(odd, kind)
    for use_it in (lambda: Store.open(path), lambda: backup.check(path)):
        with pytest.raises(errors.StoreError, match=rf"{odd}.* is a .*move it away"):
            use_it()
    assert not backup.has_unfinished(path)
    assert backup.incarnation_of(path) == ""


@pytest.mark.parametrize("number", [0, 99])
def test_a_schema_that_the_start_refuses_is_found_by_the_check(path: Path, number: int) -> None:
    with closing(sqlite3.connect(path)) as db:
        db.execute(f"PRAGMA user_version = {number}")
    assert any(f"number {number}" in line for line in backup.check(path))


def test_lost_indexes_are_made_again(path: Path) -> None:
    with closing(sqlite3.connect(path)) as db:
        db.execute("DROP INDEX tasks_by_job")
    Store.open(path).close()
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("SELECT 1 FROM sqlite_schema WHERE name = 'tasks_by_job'").fetchone()


@every_kind
def test_blobs(folder: Path, kind: str) -> None:
    place = folder / "blobs"
    blobs = Blobs.create(place, "farm")
    data = memoryview(b"x" * 100_000)
    digest = blobs.put(data)
    put(blobs.path(digest), kind)
    with pytest.raises(errors.BlobMissing, match=str(blobs.path(digest))):
        blobs.map(digest)
    for odd in (blobs.path(digest), blobs.path(digest).parent):
        put(odd, kind)
        assert blobs.put(data) == digest
        assert blobs.map(digest) == data
    for name in ("farm", "lock"):
        put(place / name, kind)
    assert Blobs.find(str(place), "farm") is None
    Blobs.create(place, "farm")
    assert Blobs.find(str(place), "farm") is not None
    assert blobs.put(data) == digest


# -- the farm's record


@pytest.mark.parametrize("kind", [*NO_FILES, *CONTENTS])
def test_a_lost_record_is_made_again_where_the_store_is(path: Path, kind: str) -> None:
    folder = path.parent
    put(folder / FARM_FILE, kind)
    record, remark = usable_record(folder)
    assert record is None
    assert FARM_FILE in remark
    assert usable_record(folder) == (None, "")


def test_a_record_with_impossible_values_is_damaged(folder: Path) -> None:
    good = FarmRecord(name="x", incarnation="i", host="127.0.0.1", port=1, store="/s", node="n")
    for port, store in ((-1, "/s"), (1 << 16, "/s"), (1, "s")):
        text = (
            farm_paths._json(good)
            .replace(b'"port": 1', b'"port": %d' % port)
            .replace(b'"/s"', b'"%s"' % store.encode())
        )
        farm_paths.write_private(folder / FARM_FILE, text)
        with pytest.raises(errors.StoreError, match=r"farm\.json is damaged.*--fresh"):
            usable_record(folder)
