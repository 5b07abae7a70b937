"""Damaged stores: what was acknowledged is there, or the next start says how much of it is not."""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from ipytaskfarm.core import saves as s
from ipytaskfarm.core.errors import StoreError
from ipytaskfarm.storage import backup
from ipytaskfarm.storage.beside import beside, count_file
from ipytaskfarm.storage.commit_count import CommitCount, Count, LogPlace, Missing, missing, read
from ipytaskfarm.storage.store import Store
from tests.support.store_model import final, task
from tests.support.thorough import some

PLACES = some(20, 200)
ENDED = 150


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store.sqlite"


def killed(path: Path, ended: int = ENDED, checkpoints: bool = False) -> None:
    """Leave a store as a controller leaves it that was killed after this number of ends, each acknowledged."""
    scratch = path.with_name("scratch")
    scratch.mkdir(mode=0o700)
    with closing(Store.open(scratch / path.name, farm_incarnation="farm")) as store:
        store.load()
        for number in range(ended):
            store.commit([task(number, bytes(300))])
            store.commit([final(number), s.SaveSetting("n", number)])
            store.settle()
            if checkpoints and number == ended // 2:
                store._log_bytes = 1
                store.checkpoint()
        for file in beside(store.path):
            if file.exists():
                shutil.copy(file, path.with_name(file.name))
    shutil.rmtree(scratch)


def log_of(path: Path) -> Path:
    return path.with_name(path.name + "-wal")


def valid_bytes(path: Path) -> int:
    """Return the size of the log without what an earlier one has left behind it."""
    recorded = read(count_file(path))
    assert recorded is not None
    return 32 + recorded.log.frames * (24 + 4096)


def cut(log: Path, at: int, chance: random.Random) -> None:
    os.truncate(log, at)


def turn_a_bit(log: Path, at: int, chance: random.Random) -> None:
    data = bytearray(log.read_bytes())
    data[at] ^= 1 << chance.randrange(8)
    log.write_bytes(data)


@pytest.mark.parametrize("checkpoints", [False, True])
@pytest.mark.parametrize("damage", [cut, turn_a_bit])
def test_a_damaged_log_is_noticed_and_what_it_took_is_counted(
    path: Path, tmp_path: Path, damage: Callable[[Path, int, random.Random], None], checkpoints: bool
) -> None:
    killed(path, checkpoints=checkpoints)
    whole = {file: file.read_bytes() for file in path.parent.iterdir()}
    chance = random.Random(damage.__name__)
    noticed = 0
    for _ in range(PLACES):
        for file, data in whole.items():
            file.write_bytes(data)
        size = valid_bytes(path) if chance.random() < 0.8 else len(whole[log_of(path)])
        damage(log_of(path), chance.randrange(size), chance)
        path.with_name(path.name + "-shm").unlink(missing_ok=True)
        said = backup.check(path)
        with closing(Store.open(path, farm_incarnation="farm")) as store:
            found = len(store.load().finals)
            if store.missing is None:
                assert found == ENDED, f"{ENDED - found} results are missing, and nothing was said"
                assert store.farm == "farm"
            else:
                noticed += 1
                assert store.missing.results == ENDED - found
                assert store.farm != "farm", "its clients know results that are missing"
                assert any(str(store.missing) in line for line in said), said
    assert noticed > PLACES // 2
    with closing(Store.open(path)) as again:
        assert again.missing is None, "what was said once is not said again"
    assert backup.check(path) == []


@pytest.mark.parametrize("checkpoints", [False, True])
def test_a_log_that_is_whole_lacks_nothing(path: Path, checkpoints: bool) -> None:
    killed(path, checkpoints=checkpoints)
    assert backup.check(path) == []
    for _ in range(2):
        with closing(Store.open(path, farm_incarnation="farm")) as store:
            assert (store.missing, store.renewed, store.farm) == (None, "", "farm")
            assert len(store.load().finals) == ENDED


def test_a_log_that_was_deleted(path: Path) -> None:
    killed(path, checkpoints=True)
    log_of(path).unlink()
    with closing(Store.open(path)) as store:
        found = len(store.load().finals)
        assert 0 < found < ENDED
        assert store.missing == Missing(ENDED - found, ENDED - found)
        assert f"{ENDED - found} results and {ENDED - found} tasks" in store.renewed


def test_another_program_that_moved_the_log_into_the_file_is_no_damage(path: Path) -> None:
    killed(path)
    with closing(sqlite3.connect(path)) as other:
        other.execute("SELECT count(*) FROM farm").fetchone()
    assert not log_of(path).exists()
    with closing(Store.open(path, farm_incarnation="farm")) as store:
        assert (store.missing, store.farm) == (None, "farm")


def test_results_that_were_cleared_right_before_a_kill_are_not_missing(path: Path) -> None:
    """The count follows a commit. Nobody may take what the commit removed for lost, whatever has moved the log."""
    scratch = path.with_name("scratch")
    scratch.mkdir(mode=0o700)
    with closing(Store.open(scratch / path.name, farm_incarnation="farm")) as store:
        store.load()
        for number in range(3):
            store.commit([task(number), final(number)])
            store.settle()
        store.commit([s.SaveClear([0, 1])])
        for file in beside(store.path):
            if file.exists():
                shutil.copy(file, path.with_name(file.name))
    shutil.rmtree(scratch)
    with closing(sqlite3.connect(path)) as other:
        other.execute("SELECT count(*) FROM farm").fetchone()
    with closing(Store.open(path, farm_incarnation="farm")) as store:
        assert (store.missing, store.farm) == (None, "farm")


def test_a_count_that_is_older_after_a_power_cut_is_no_damage(path: Path) -> None:
    """The count is not synced with each commit: the disk has any earlier one of this life."""
    scratch = path.with_name("scratch")
    scratch.mkdir(mode=0o700)
    counts: list[bytes] = []
    with closing(Store.open(scratch / path.name)) as store:
        store.load()
        for number in range(40):
            counts.append(count_file(store.path).read_bytes())
            store.commit([task(number)])
            if number % 3:
                store.commit([final(number - 1)] if number % 3 == 1 else [s.SaveClear([number - 2])])
            if number % 10 == 9:
                store._log_bytes = 1
                store.checkpoint()
        for file in beside(store.path):
            if file.exists():
                shutil.copy(file, path.with_name(file.name))
    for count in counts:
        copy = path.with_name("copy")
        copy.mkdir(mode=0o700)
        for file in beside(path):
            if file.exists():
                shutil.copy(file, copy / file.name)
        count_file(copy / path.name).write_bytes(count)
        with closing(Store.open(copy / path.name)) as store:
            assert store.missing is None
        shutil.rmtree(copy)


def test_a_torn_count_is_the_one_before(path: Path) -> None:
    killed(path)
    before = read(count_file(path))
    data = bytearray(count_file(path).read_bytes())
    data[10] ^= 1
    count_file(path).write_bytes(data)
    assert read(count_file(path)) != before or before is not None
    count_file(path).write_bytes(b"nonsense")
    assert read(count_file(path)) is None
    with closing(Store.open(path)) as store:
        assert store.missing is None


WHOLE = Count(3, LogPlace(100, 50, (1, 2)), 20, 10)


@pytest.mark.parametrize(
    ("found", "log_bytes", "lacks"),
    [
        (WHOLE, 1000, None),
        (WHOLE._replace(log=LogPlace(100, 51, (7, 7))), 1000, None),  # killed between commit and count
        (WHOLE._replace(log=LogPlace(100, 49, (7, 7)), ends=9), 1000, Missing(1, 0)),
        (WHOLE._replace(log=LogPlace(100, 50, (1, 3))), 1000, Missing(0, 0)),
        (WHOLE._replace(log=LogPlace(101, 3, (7, 7)), ends=0), 1000, None),  # an old count, after a power cut
        (WHOLE._replace(log=LogPlace(99, 80, (7, 7)), ends=8), 1000, Missing(2, 0)),
        (WHOLE._replace(log=LogPlace()), 1000, Missing(0, 0)),  # its head is damaged
        (WHOLE._replace(log=LogPlace()), 0, None),
        (WHOLE._replace(log=LogPlace(), tasks=1, ends=0), 0, Missing(10, 19)),
        (WHOLE._replace(epoch=2, ends=4), 0, Missing(6, 0)),
        (WHOLE._replace(epoch=4, ends=4), 0, None),
    ],
)
def test_what_is_missing(found: Count, log_bytes: int, lacks: Missing | None) -> None:
    assert missing(WHOLE, found, log_bytes) == lacks
    assert missing(None, found, log_bytes) is None


def test_what_is_missing_is_said() -> None:
    assert str(Missing(2999, 0)) == "2,999 results that had been acknowledged are missing"
    assert str(Missing(1, 0)) == "1 result that had been acknowledged is missing"
    assert "2 results and 1 task that had been acknowledged are missing" in str(Missing(2, 1))
    assert "the last commits are missing" in str(Missing(0, 0))


# -- backups that are put back


@pytest.fixture
def copied(path: Path, tmp_path: Path) -> Path:
    """A backup of an earlier time."""
    with closing(Store.open(path, farm_incarnation="farm")) as store:
        store.load()
        store.commit([task(0)])
        target = tmp_path / "backup.sqlite"
        backup.backup(path, target)
        store.commit([final(0), task(1)])
    return target


@pytest.mark.parametrize("left", ["clean", "killed"])
def test_a_backup_that_is_put_back_is_a_new_incarnation(path: Path, copied: Path, left: str) -> None:
    if left == "killed":
        shutil.rmtree(path.parent / "killed", ignore_errors=True)
        for file in beside(path):
            if file.is_file():
                file.unlink()
        killed(path)
    shutil.copyfile(copied, path)
    with closing(Store.open(path, farm_incarnation="farm")) as store:
        assert "a backup was put in the place" in store.renewed
        assert store.farm != "farm"
        assert [record.id for record in store.load().tasks] == [0]
        renewed, epoch = store.farm, store.epoch
    # The farm's record may still have the old name, if the controller was killed before it wrote the new one.
    with closing(Store.open(path, farm_incarnation="farm")) as again:
        assert (again.farm, again.renewed, again.epoch) == (renewed, "", epoch + 1)
    with pytest.raises(StoreError, match="belongs to the farm"):
        Store.open(path, farm_incarnation="another")


def test_an_earlier_store_that_is_put_back(path: Path) -> None:
    with closing(Store.open(path, farm_incarnation="farm")) as store:
        store.load()
        store.commit([task(0)])
    earlier = path.read_bytes()
    with closing(Store.open(path, farm_incarnation="farm")) as store:
        store.load()
        store.commit([final(0)])
    path.write_bytes(earlier)
    with closing(Store.open(path, farm_incarnation="farm")) as store:
        assert store.missing == Missing(1, 0)
        assert store.farm != "farm"
        assert store.epoch == 3


# -- files that are no whole store


@pytest.mark.parametrize(
    ("sql", "what"),
    [
        ("PRAGMA user_version = 0", "its schema has the number 0"),
        ("DROP TABLE finals", "finals"),
        ("DROP TABLE farm", "no table farm"),
        ("DROP VIEW task_states", None),
        ("DROP INDEX blob_uses_by_digest", None),
        ("UPDATE farm SET epoch = 9223372036854775807", "epoch 9223372036854775807"),
        ("UPDATE farm SET incarnation = x'00'", "its farm is b"),
        ("ALTER TABLE attempts DROP COLUMN place", "attempts has no column place"),
        ("DELETE FROM farm", None),
    ],
)
def test_a_store_that_is_not_whole(path: Path, sql: str, what: str | None) -> None:
    Store.open(path).close()
    with closing(sqlite3.connect(path)) as db:
        if "attempts" in sql:
            db.execute("DROP VIEW task_states")
        db.execute(sql)
        db.commit()
    if what is None:
        Store.open(path).close()
        return
    with pytest.raises(StoreError, match=what if "attempts" not in sql else "damaged") as raised:
        Store.open(path)
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)
    assert "--fresh" in str(raised.value)


def test_a_store_of_an_older_schema_that_is_not_whole(path: Path) -> None:
    Store.open(path).close()
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA user_version = 3")
    with pytest.raises(StoreError, match="is damaged"):
        Store.open(path)


def test_a_row_that_cannot_be_read(path: Path) -> None:
    with closing(Store.open(path)) as store:
        store.commit([task(0)])
        store._db.execute("UPDATE tasks SET needs = 'nonsense'")
        with pytest.raises(StoreError, match="a row cannot be read"):
            store.load()


def test_a_file_that_is_no_sqlite_file(path: Path) -> None:
    path.write_text("a" * 5000)
    path.chmod(0o600)
    with pytest.raises(StoreError, match="not a database") as raised:
        Store.open(path)
    assert "\n" not in str(raised.value)


def test_a_count_that_cannot_be_opened_leaves_no_descriptor(tmp_path: Path) -> None:
    before = sorted(os.listdir("/proc/self/fd"))
    with pytest.raises(FileNotFoundError):
        CommitCount(tmp_path / "store.count", tmp_path / "no index")
    assert sorted(os.listdir("/proc/self/fd")) == before
