"""The file of the result cache: digests, eviction, damage, a full disk."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from ipytaskfarm.core.messages.result_cache import CacheKey, KeyPart, Recipe
from ipytaskfarm.core.messages.task_types import Final
from ipytaskfarm.storage.blobs import Blobs
from ipytaskfarm.storage.result_cache import ROW_BYTES, ResultCache, needed_by_cache


@pytest.fixture
def blobs(tmp_path: Path) -> Blobs:
    return Blobs.create(tmp_path / "blobs", "farm")


@pytest.fixture
def cache(tmp_path: Path, blobs: Blobs) -> Iterator[ResultCache]:
    made = ResultCache.open(tmp_path / "store.cache", blobs, 100_000)
    yield made
    made.close()


def recipe(**parts: str) -> bytes:
    return msgspec.json.encode(Recipe(tuple(KeyPart("global", name, digest) for name, digest in parts.items())))


def key(function: str = "f", of: str = "r", *arguments: str) -> CacheKey:
    return CacheKey("k", function, of, tuple((f"argument {n}", value) for n, value in enumerate(arguments, 1)))


def final(task: int, body: bytes = b"body", run_s: float = 1.0, blobs: tuple[str, ...] = ()) -> Final:
    return Final(task, "", 0, "node", 1, 0.0, 0.0, run_s, 0.0, None, body, [], blobs)


def test_results_survive_a_restart(cache: ResultCache, tmp_path: Path, blobs: Blobs) -> None:
    assert cache.get("a") == (None, "")
    cache.put("a", key(), final(3), recipe(K="3"))
    cache.close()
    again = ResultCache.open(tmp_path / "store.cache", blobs, 100_000)
    kept, note = again.get("a")
    assert kept is not None
    assert (kept.body, kept.blobs, note) == (b"body", (), "")
    table = again.table(None, 10)
    assert (table.count, table.hits, table.saved_s) == (1, 1, 1.0)
    assert again.recipe("r") == recipe(K="3")
    again.close()


def test_the_cheapest_for_its_size_goes_first(cache: ResultCache) -> None:
    body = bytes(20_000)
    cache.put("costly", key(), final(1, body, run_s=100.0), b"")
    cache.put("cheap", key(), final(2, body, run_s=0.1), b"")
    cache.put("small", key(), final(3, b"x", run_s=0.1), b"")
    for number in range(4):
        cache.put(f"more {number}", key(), final(4 + number, body, run_s=1.0 + number), b"")
    kept = {entry.key for entry in cache.table(None, 100).rows}
    assert "cheap" not in kept
    assert {"costly", "small"} <= kept
    assert cache.table(None, 0).size_bytes <= 100_000


def test_unused_entries_grow_old(cache: ResultCache) -> None:
    body = bytes(20_000)
    cache.put("costly once", key(), final(1, body, run_s=3.0), b"")
    cache.put("used", key(), final(2, body, run_s=1.0), b"")
    for number in range(40):
        assert cache.get("used")[0] is not None, f"a result in use was removed after {number} others"
        cache.put(f"more {number}", key(), final(10 + number, body, run_s=1.0), b"")
    assert cache.get("costly once")[0] is None


def test_a_result_larger_than_the_cache_is_not_kept_and_named(cache: ResultCache) -> None:
    cache.put("a", key(), final(1), b"")
    cache.put("b", key(), final(2, bytes(100_000)), b"")
    assert cache.get("b")[0] is None
    assert cache.get("a")[0] is not None
    assert "task 2" in cache.notes[-1]


def test_a_smaller_limit_at_the_next_start(cache: ResultCache, tmp_path: Path, blobs: Blobs) -> None:
    for number in range(10):
        cache.put(str(number), key(), final(number, bytes(5_000), run_s=number), b"")
    cache.close()
    small = ResultCache.open(tmp_path / "store.cache", blobs, 2 * (5_000 + ROW_BYTES))
    assert {entry.key for entry in small.table(None, 100).rows} == {"8", "9"}
    small.close()
    off = ResultCache.open(tmp_path / "store.cache", blobs, 0)
    off.put("x", key(), final(1), b"")
    assert off.get("x")[0] is None
    assert "off" in off.table(None, 1).notes[0]


@pytest.mark.parametrize("column", ["body", "blobs"])
def test_a_damaged_entry_is_removed_and_named(cache: ResultCache, tmp_path: Path, column: str) -> None:
    cache.put("a", key(), final(1), b"")
    damaged = {"body": b"bodx", "blobs": '{"%s":5}' % ("ab" * 32)}[column]
    with contextlib.closing(sqlite3.connect(tmp_path / "store.cache")) as db, db:
        db.execute(f"UPDATE entries SET {column} = ?", (damaged,))
    kept, note = cache.get("a")
    assert kept is None
    assert "digest" in note
    assert cache.get("a") == (None, "")
    assert cache.table(None, 1).size_bytes == 0


def test_large_values(cache: ResultCache, tmp_path: Path, blobs: Blobs) -> None:
    digest = blobs.put(memoryview(bytearray(b"v" * 70_000)))
    name = digest.hex()
    cache.put("a", key(), final(1, blobs=(name,)), b"")
    assert cache.table(None, 1).size_bytes > 70_000
    assert needed_by_cache(tmp_path / "store.cache", [name, "00" * 32]) == {name}
    kept, _ = cache.get("a")
    assert kept is not None
    assert kept.blobs == (name,)
    with open(blobs.path(digest), "ab") as file:
        file.write(b"more")
    kept, note = cache.get("a")
    assert kept is None
    assert "70,004 bytes" in note
    assert needed_by_cache(tmp_path / "store.cache", [name]) == set()
    cache.put("b", key(), final(1, blobs=(name,)), b"")
    blobs.path(digest).unlink()
    assert "is gone" in cache.get("b")[1]


@pytest.mark.parametrize("content", [b"no database at all" * 100, b"", b"SQLite format 3\0" + bytes(4096)])
def test_a_damaged_file_is_put_aside(tmp_path: Path, blobs: Blobs, content: bytes) -> None:
    path = tmp_path / "store.cache"
    path.write_bytes(content)
    cache = ResultCache.open(path, blobs, 1_000)
    cache.put("a", key(), final(1), b"")
    assert cache.get("a")[0] is not None
    assert bool(cache.notes) == bool(content)
    cache.close()


def test_damage_while_it_is_open(cache: ResultCache, tmp_path: Path) -> None:
    cache.put("a", key(), final(1), b"")
    cache._rows("PRAGMA wal_checkpoint(TRUNCATE)")
    with open(tmp_path / "store.cache", "r+b") as file:
        file.write(bytes(64 * 1024))
    for number in range(200):
        cache.put(str(number), key(), final(number, bytes(50)), b"")
        cache.get(str(number))
    cache.put("b", key(), final(1), b"")
    assert cache.get("b")[0] is not None, "the cache does not work again after damage"


def test_a_full_disk_costs_only_the_entry(cache: ResultCache) -> None:
    cache.put("a", key(), final(1), b"")
    pages = cache._rows("PRAGMA page_count")[0][0]
    cache._rows(f"PRAGMA max_page_count = {pages}")
    cache.put("b", key(), final(2, bytes(50_000)), b"")
    assert "full" in cache.notes[-1]
    assert cache.get("b")[0] is None
    assert cache.get("a")[0] is not None
    cache._rows("PRAGMA max_page_count = 100000")
    cache.put("b", key(), final(2, bytes(50_000)), b"")
    assert cache.get("b")[0] is not None


def test_changes_that_are_made_together(cache: ResultCache, tmp_path: Path, blobs: Blobs) -> None:
    with cache.together():
        cache.put("a", key(), final(1), b"")
        cache.put("b", key(), final(2), b"")
    assert cache.table(None, 10).count == 2
    size = cache.table(None, 0).size_bytes
    pages = cache._rows("PRAGMA page_count")[0][0]
    cache._rows(f"PRAGMA max_page_count = {pages}")
    with cache.together():
        cache.put("c", key(), final(3), b"")
        cache.put("large", key(), final(4, bytes(50_000)), b"")
        cache.put("d", key(), final(5), b"")
    assert "full" in cache.notes[-1]
    assert {entry.key for entry in cache.table(None, 10).rows} == {"a", "b", "d"}, "the others are not as if unmade"
    assert cache.table(None, 0).size_bytes == size + ROW_BYTES + len(b"body")
    cache.close()
    again = ResultCache.open(tmp_path / "store.cache", blobs, 100_000)
    assert again.table(None, 0).size_bytes == size + ROW_BYTES + len(b"body")
    again.close()


def test_uses_are_written_later_and_damage_in_between_loses_them_alone(cache: ResultCache, tmp_path: Path) -> None:
    for name in ("a", "b"):
        cache.put(name, key(), final(1), b"")
    for _ in range(3):
        cache.get("a")
    entry = cache.entry("a")
    assert entry is not None
    assert entry.hits == 3
    cache.get("a")
    cache._rows("PRAGMA wal_checkpoint(TRUNCATE)")
    with open(tmp_path / "store.cache", "r+b") as file:
        file.write(bytes(64 * 1024))
    cache.note_uses()
    cache.put("c", key(), final(1), b"")
    cache.put("d", key(), final(1), b"")
    assert cache.get("d")[0] is not None


def test_the_nearest_entry(cache: ResultCache) -> None:
    cache.put("1", key("f", "r1", "a", "b"), final(1), recipe(K="1", L="1"))
    cache.put("2", key("f", "r2", "a", "b"), final(2), recipe(K="2", L="2"))
    cache.put("3", key("f", "r1", "x", "b"), final(3), recipe(K="1", L="1"))
    cache.put("4", key("g", "r1", "a", "c"), final(4), recipe(K="1", L="1"))

    def nearest(wanted: CacheKey, parts: bytes) -> int | None:
        found = cache.nearest(wanted, parts, 1e12, not_task=9)
        return found.task if found is not None else None

    assert nearest(key("f", "r1", "a", "c"), recipe(K="1", L="1")) == 1
    assert nearest(key("f", "r3", "a", "b"), recipe(K="2", L="3")) == 2
    assert nearest(key("f", "r1", "x", "c"), recipe(K="1", L="1")) == 3
    assert nearest(key("h", "r1", "x", "c"), recipe(K="1", L="1")) is None


def test_forgetting(cache: ResultCache) -> None:
    for number in range(6):
        cache.put(f"k{number}", key("f" if number < 3 else "g", f"r{number}"), final(number), recipe(K=str(number)))
    assert cache.forget("f", None, None) == 3
    assert cache.forget(None, "k5", None) == 1
    assert cache.forget(None, None, 1_000.0) == 0
    assert cache.remove_of_task(3) == 1
    assert cache.forget(None, None, None) == 1
    assert cache.recipe("r4") == b""


def _emptied(path: Path) -> None:
    os.truncate(path, 0)


def _overwritten(path: Path) -> None:
    with open(path, "r+b") as file:
        file.write(bytes(path.stat().st_size))


def _cut_in_half(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2 // 4096 * 4096)


def _replaced(path: Path) -> None:
    other = path.with_name("other")
    other.write_bytes(b"no database" * 1000)
    os.replace(other, path)


def _put_back(path: Path) -> None:
    shutil.copy(path, path.with_name("copy"))
    os.replace(path.with_name("copy"), path)


def _a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _of_others(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as db, db:
        db.execute("DROP TABLE entries")
        db.execute("CREATE TABLE entries (other)")


def _nonsense(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as db, db:
        db.execute("UPDATE recipes SET parts = x'ff'")
        db.execute("UPDATE entries SET arguments = '{', blobs = '['")


HARM = [Path.unlink, _emptied, _overwritten, _cut_in_half, _replaced, _put_back, _a_folder, _of_others, _nonsense]
USES: dict[str, Callable[[ResultCache], object]] = {
    "get": lambda cache: cache.get("a"),
    "put": lambda cache: cache.put("b", key(), final(2), b""),
    "table": lambda cache: cache.table(None, 10),
    "entry": lambda cache: cache.entry("a"),
    "nearest": lambda cache: cache.nearest(key("f", "r9", "zz"), recipe(K="9"), 1e12, 99),
    "forget": lambda cache: cache.forget("f", None, None),
    "remove_of_task": lambda cache: cache.remove_of_task(1),
}


@pytest.mark.parametrize("harm", HARM, ids=lambda harm: harm.__name__.strip("_"))
@pytest.mark.parametrize("use", USES)
def test_harm_while_it_is_in_use_costs_entries_alone(
    use: str, harm: Callable[[Path], None], tmp_path: Path, blobs: Blobs
) -> None:
    """Whatever is asked then, nothing is raised, and what comes later is kept, also for the next start."""
    path = tmp_path / "store.cache"
    cache = ResultCache.open(path, blobs, 100_000)
    with cache.together():
        for number in range(20):
            name = "a" if number == 1 else str(number)
            cache.put(name, key("f", f"r{number % 3}", "x"), final(number, bytes(900)), recipe(K=str(number)))
    cache._rows("PRAGMA wal_checkpoint(TRUNCATE)")
    cache._rows("PRAGMA cache_size = 0")  # all is read from the file
    cache.get("a")
    harm(path)
    USES[use](cache)
    for name in ("later", "later still"):
        cache.put(name, key(), final(7), b"")
    kept, _ = cache.get("later still")
    assert kept is not None, cache.notes
    assert cache.notes or harm in (_nonsense, _put_back), "nothing was said"
    cache.close()
    again = ResultCache.open(path, blobs, 100_000)
    kept, _ = again.get("later still")
    assert kept is not None, again.notes
    again.close()


def test_the_clock_goes_back_and_forth(cache: ResultCache, monkeypatch: pytest.MonkeyPatch) -> None:
    moment = [1_790_000_000.0]
    monkeypatch.setattr(time, "time", lambda: moment[0])
    for task, step_s in enumerate((3600.0, -7200.0, 3600.0, -3600.0)):
        moment[0] += step_s
        cache.put(str(task), key("f", "r", str(task)), final(task), recipe(K="1"))
        assert cache.get(str(task))[0] is not None
        found = cache.nearest(key("f", "r", "new"), recipe(K="1"), moment[0], 9)
        assert found is not None, "a later clock hides what is there"
    assert cache.table(None, 10).hits == 4
    assert cache.forget(None, None, 3600.0 * 24) == 0
    assert cache.forget(None, None, -1.0) >= 1
