"""What stands in the place of a farm's files and is none: nothing waits for it, and each error names it."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from ipytaskfarm.core import errors
from ipytaskfarm.deployment.home import Home
from ipytaskfarm.launchers import ProcessSpec
from ipytaskfarm.launchers.local import LocalProcesses
from ipytaskfarm.storage import backup
from ipytaskfarm.storage.backup import usable_record
from ipytaskfarm.storage.beside import count_file
from ipytaskfarm.storage.blobs import Blobs
from ipytaskfarm.storage.store import Store
from ipytaskfarm.system import farm_paths, files
from ipytaskfarm.system.farm_paths import FARM_FILE, ConnectionInfo, FarmRecord, Lock
from ipytaskfarm.system.odd_files import set_aside_unless_file, set_aside_unless_folder
from ipytaskfarm.system.private_files import set_aside_lock
from ipytaskfarm.system.supervision import PROCESSES_FILE, lock_holders, read_processes
from ipytaskfarm.transport.keys import (
    AGENTS_FOLDER,
    KEYS_FILE,
    LOCK_FILE,
    farm_keys,
    make_farm_keys,
    with_agents,
    write_agent_files,
)
from tests.support.odd_files import CONTENTS, NO_FILES, put
from tests.support.store_model import final, task

INFO = ConnectionInfo(
    farm="x", incarnation="i", host="127.0.0.1", port=1, server_key="s", public_key="p", secret_key="k", role="client",
    controller_pid=1, controller_started=0.0, version="0", protocol=0,
)  # fmt: skip
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
    remark = set_aside_unless_file(path)
    assert str(path) in remark
    (aside,) = folder.glob("f.spoiled-*")
    assert aside.name in remark
    assert not os.path.lexists(path)
    assert set_aside_unless_file(path) == ""
    path.write_text("a file")
    assert set_aside_unless_file(path) == ""
    assert set_aside_unless_folder(path) != ""
    path.mkdir()
    assert set_aside_unless_folder(path) == ""


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


@every_kind
def test_the_lock_of_the_supervisor(folder: Path, kind: str) -> None:
    home = Home("x", folder)
    put(folder / "supervisor.lock", kind)
    home.lock().release()
    assert (folder / "supervisor.lock").is_file()
    assert list(folder.glob("supervisor.lock.spoiled-*"))


def test_a_lock_whose_file_was_removed_is_still_held(folder: Path) -> None:
    path = folder / "f.lock"
    code = (
        "import pathlib, sys; from ipytaskfarm.system.farm_paths import Lock\n"
        "lock = Lock(pathlib.Path(sys.argv[1])); print(flush=True); input()"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(path)], stdin=-1, stdout=-1) as holder:
        assert holder.stdin is not None
        assert holder.stdout is not None
        holder.stdout.readline()
        put(path, "folder")
        with pytest.raises(errors.FarmExists, match=f"process {holder.pid} holds what was {path}"):
            set_aside_lock(path, "it")
        assert [record["pid"] for record in lock_holders({"controller": path}, folder)] == [holder.pid]
        holder.stdin.close()
    set_aside_lock(path, "it")
    Lock(path).release()
    assert lock_holders({"controller": path}, folder) == []


@every_kind
def test_keys_that_are_lost_are_made_again(folder: Path, kind: str, caplog: pytest.LogCaptureFixture) -> None:
    before = farm_keys(folder)
    put(folder / KEYS_FILE, kind)
    if kind == "link":  # the keys may be where it leads
        with pytest.raises(errors.SecurityError, match=r"keys\.json .* a link .*remove it"):
            farm_keys(folder)
        return
    assert farm_keys(folder) != before
    assert "ipytaskfarm keys add" in caplog.text
    assert farm_keys(folder) == farm_keys(folder)


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


@every_kind
def test_the_folders_of_blobs_and_of_agents_files(folder: Path, kind: str) -> None:
    makers: dict[str, Callable[[], object]] = {
        "blobs": lambda: Blobs.create(folder / "blobs", "farm"),
        AGENTS_FOLDER: lambda: write_agent_files(INFO, with_agents(make_farm_keys(), ["node"]), folder),
    }
    for name, make in makers.items():
        put(folder / name, kind)
        if kind == "folder":
            (folder / name).chmod(0o700)
        if kind == "link":  # what it leads to may be needed
            with pytest.raises(errors.SecurityError, match=f"{name} .*a link is not followed"):
                make()
            continue
        make()
        assert (folder / name).is_dir()
        assert kind == "folder" or list(folder.glob(f"{name}.spoiled-*"))


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
    """The start sets aside what stands in the place of the log, unless a link leads to it; reading changes nothing."""
    odd = path.with_name(path.name + suffix)
    put(odd, kind)
    refused: list[Callable[[Path], object]] = [backup.check, Store.open]
    for use_it in refused if not suffix or kind == "link" else refused[:1]:
        with pytest.raises(errors.StoreError, match=rf"{odd}.* is a .*move it away"):
            use_it(path)
    assert not backup.has_unfinished(path)
    assert backup.incarnation_of(path) == ""
    if suffix and kind != "link":
        with closing(Store.open(path, farm_incarnation="farm")) as store:
            assert len(store.load().finals) == 1
        assert list(path.parent.glob(f"{odd.name}.spoiled-*"))


def test_what_a_lost_log_had_is_told(path: Path) -> None:
    store = Store.open(path, farm_incarnation="farm")
    store.commit([task(1), final(1)])
    log = path.with_name(f"{path.name}-wal")
    for file in (path, count_file(path), log):  # a copy as after a power cut
        shutil.copy(file, file.with_name(f"cut-{file.name}"))
    store.close()
    for file in (path, count_file(path)):
        file.with_name(f"cut-{file.name}").replace(file)
    put(log, "folder")
    with closing(Store.open(path, farm_incarnation="farm")) as store:
        assert store.missing is not None


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
