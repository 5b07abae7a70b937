"""The store: what is in it after any saves."""

from __future__ import annotations

import os
import shutil
import sqlite3
import stat
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import example, given, settings

from ipytaskfarm.core import saves as s
from ipytaskfarm.core.errors import StoreError
from ipytaskfarm.core.messages import ReadHistory
from ipytaskfarm.core.messages.result_cache import CacheKey
from ipytaskfarm.core.messages.tables import EventTable
from ipytaskfarm.core.messages.task_types import Final, Function, Needs, Recovery, Rules, Submission
from ipytaskfarm.core.scheduler.task import with_priority
from ipytaskfarm.storage import backup, disk
from ipytaskfarm.storage.backup import needed_blobs
from ipytaskfarm.storage.blobs import Blobs, blobs_folder
from ipytaskfarm.storage.store import Store
from ipytaskfarm.storage.task_tables import TaskTables, read_events
from tests.support.store_model import Model, all_turns, attempt, final, sql, task
from tests.support.thorough import some


def history(path: Path, question: ReadHistory) -> list[Any]:
    with closing(TaskTables(path)) as tables:
        reply = tables.history(question)
    assert isinstance(reply, EventTable)
    return reply.rows


def in_pages(path: Path, question: ReadHistory) -> list[Any]:
    """Read the whole history, `question.last` events at a time."""
    found: list[Any] = []
    with closing(sqlite3.connect(path)) as db:
        while True:
            count = question.last
            page = read_events(db.execute, question, count)
            found = page + found
            if len(page) < count:
                return found
            at_s, task, _, what, *_ = page[0]
            question = msgspec.structs.replace(question, before=(at_s, task, what))


@pytest.mark.parametrize("key", [None, CacheKey("k", "f", "recipe", (("x", "digest"),))])
def test_a_task_that_is_saved_alone_is_saved_like_many(key: CacheKey | None, tmp_path: Path) -> None:
    """`one_task` and `one_final` name the columns again: a new field needs its place there, or in their conditions."""
    rich = s.SaveTask(
        1,
        7,
        b"work",
        2.5,
        "digest",
        Rules(name="n", job="j", priority=3),
        "s",
        (),
        Needs(after=(5,), inputs=()),
        cache=key,
    )
    assert s.SaveTask.__struct_fields__[9:] == ("parent", "spawn", "items", "part", "cache")
    end = final(1, "error")
    others = range(20, 40)
    ways: dict[str, list[list[s.Save]]] = {
        "alone": [[rich], [end]],
        "many": [[rich, *map(task, others)], [end, *map(final, others)]],
    }
    found = []
    for name, turns in ways.items():
        with closing(Store.open(tmp_path / name)) as store:
            store.commit([s.SaveBlock(0, 99, "s")])
            for turn in turns:
                assert store.commit(turn) == []
        rows = ("SELECT * FROM tasks WHERE id = 1", "SELECT * FROM finals WHERE task = 1")
        found.append([sql(tmp_path / name, row) for row in rows])
    assert found[0] == found[1]
    assert all(found[0])


@settings(max_examples=some(25, 80))
@given(all_turns)
@example([[*[s.SaveLeft(0, 0)] * 4, s.SaveKept(0, "", 0, "", b"", ""), s.SaveKeptOn(0, 0, "gone"), s.SaveKeptOn(0, 0)]])
def test_any_saves_are_there_after_a_restart(tmp_path_factory: pytest.TempPathFactory, turns: list[Any]) -> None:
    path = tmp_path_factory.mktemp("any") / "store.sqlite"
    model = Model()
    store = Store.open(path)
    try:
        for turn in [[s.SaveBlock(0, 99, "s"), s.SaveBlock(100, 199, "t"), s.SaveBlock(200, 200, "u")], *turns]:
            assert store.commit(turn) == [id for id in map(model.apply, turn) if id is not None]
        for n in (1, 2):
            assert store.load() == model.snapshot(n, store.farm)
            assert backup.check(store.path) == []
            everyone = list(range(29, -1, -1))
            assert store.finals(everyone) == [model.end(id) for id in everyone if id in model.finals]
            assert store.work(everyone) == [model.work(id) for id in everyone if id in model.tasks]
            assert store.original(everyone) == [
                Submission(id, t.payload, 0.0, t.function, t.rules, (), t.needs, t.items, t.part)
                for id in everyone
                if (t := model.tasks.get(id))
            ]
            assert [store.chunk_of(id) for id in everyone] == [model.chunk_of(id) for id in everyone]
            for id in everyone:
                for outgoing in (False, True):
                    assert store.mail(id, outgoing, 0, 99) == [x for x in model.letters(id, outgoing) if x[0] > 0]
            assert [row.id for row in store.task_rows(everyone)] == [id for id in everyone if id in model.finals]
            assert store.functions(["c", "a"]) == [
                Function(d, model.functions[d]) for d in "ca" if d in model.functions
            ]
            assert sorted(row[0] for row in sql(path, "SELECT id FROM task_states")) == sorted(
                id for id, _ in model.seen()
            )
            for asked in (None, set(range(0, 30, 2))):
                every = history(path, ReadHistory(None if asked is None else sorted(asked), last=999))
                assert sorted((row[1], row[3]) for row in every) == model.events(asked)
                assert [row[0] for row in every] == sorted(row[0] for row in every)
                question = ReadHistory(None if asked is None else sorted(asked), last=5)
                assert history(path, question) == every[-5:]
                assert in_pages(path, question) == every
            store.close()
            store = Store.open(path)
    finally:
        store.close()
        shutil.rmtree(path.parent)


def test_a_new_store_is_empty_and_private(path: Path) -> None:
    os.umask(before := os.umask(0))
    try:
        os.umask(0)
        with closing(Store.open(path, farm_incarnation="abc")) as store:
            assert store.load() == Model().snapshot(1, "abc")
            store.commit([task(1)])
            modes = {stat.S_IMODE(p.stat().st_mode) for p in path.parent.iterdir()}
    finally:
        os.umask(before)
    assert modes == {0o600}, "the log too"
    assert not path.with_name("store.sqlite-wal").exists(), "closing moves the log into the file"


def test_every_life_has_a_higher_epoch_and_the_same_farm(path: Path) -> None:
    farms = []
    for epoch in (1, 2, 3):
        with closing(Store.open(path)) as store:
            assert store.epoch == store.load().epoch == epoch
            farms.append(store.farm)
    assert len(set(farms)) == 1


def test_ids_are_never_given_twice(store: Store) -> None:
    store.commit([s.SaveBlock(0, 1023, "s"), task(1023), final(1023)])
    store.commit([s.SaveClear([1023])])
    assert store.load().next_id == 1024


def test_what_a_client_did_not_use_is_given_again(store: Store) -> None:
    store.commit([s.SaveBlock(0, 15, "s"), s.SaveAccepted(0, 2), s.SaveBlock(16, 31, "t")])
    store.commit([s.SaveLeft(16, 15), s.SaveLeft(0, 2)])
    assert store.load().blocks == [(0, 2, 2, "")]
    assert store.load().next_id == 3


def test_a_job_has_tasks_until_all_are_cleared(store: Store) -> None:
    store.commit([task(i, rules=Rules(job=job)) for i, job in ((1, "a"), (2, "a"), (3, "b"), (4, None))])
    store.commit([final(i) for i in (1, 2, 3)])
    assert store.jobs_with_tasks(["a", "b", "never"]) == {"a", "b"}
    store.commit([s.SaveClear([1, 3])])
    assert store.jobs_with_tasks(["a", "b"]) == {"a"}
    assert store.tasks_of_job("a", -1, 10) == [s.TaskOfJob(2, 0, False, None)]


def test_one_end_per_task(store: Store) -> None:
    store.commit([task(1), task(2), task(3)])
    assert store.commit([final(1), final(2), final(1, "error"), final(9)]) == [1, 9]
    assert store.commit([final(2, "aborted")]) == [2]
    assert [(f.id, f.reason) for f in store.finals([1, 2])] == [(1, ""), (2, "")]
    store.commit([s.SaveClear([1])])
    assert store.commit([final(1)]) == [1], "cleared"
    assert store.commit([s.SaveRequeue(2, 5, 1, 1, 0)]) == [2], "ended"


def test_an_end_by_an_attempt_that_is_not_current_is_fenced(store: Store) -> None:
    store.commit([task(1), s.SaveRequeue(1, 2, attempt=2, errors=2, losses=0)])
    assert store.commit([final(1, attempts=1)]) == [1]
    assert store.commit([final(1, attempts=2)]) == []


def test_clearing_forgets_only_what_has_ended(store: Store) -> None:
    store.commit([task(n) for n in range(6)])
    store.commit([final(n) for n in (0, 1, 4)])
    store.commit([s.SaveAttempt(n, attempt(1)) for n in (0, 3)])
    store.commit([s.SaveRefusal(70, "TypeError", "no")])
    store.commit([s.SaveClear([4, 0, 1, 2, 3, 70, 1000])])
    loaded = store.load()
    assert [t.id for t in loaded.tasks] == [2, 3, 5]
    assert [len(t.history) for t in loaded.tasks] == [0, 1, 0]
    assert loaded.finals == []
    assert loaded.refusals == []
    assert backup.check(store.path) == []


def test_saves_of_one_turn_happen_in_their_order(store: Store) -> None:
    store.commit([task(1), final(1), s.SaveClear([1]), task(1, b"again"), s.SaveSetting("n", 1), s.SaveSetting("n", 2)])
    assert store.work([1]) == [(1, b"again", None)]
    assert store.load().settings == {"n": 2}


def test_a_recovery_task_runs_its_own_payload(store: Store) -> None:
    store.commit([task(1, b"first", function="f")])
    store.commit([s.SaveRequeue(1, 2, 1, 1, 0, recovery=1, payload=b"second", function=None)])
    assert store.work([1]) == [(1, b"second", None)]
    store.commit([s.SaveRequeue(1, 3, 2, 0, 0, recovery=1)])
    assert store.work([1]) == [(1, b"second", None)], "its own retry"
    assert store.original([1]) == [Submission(1, b"first", 0.0, "f")]


def test_the_sizes_of_large_payloads_and_functions_are_known(store: Store) -> None:
    store.commit([s.SaveFunction("f", bytes(300_000)), s.SaveFunction("g", b"small")])
    store.commit([task(1, bytes(100_000), function="f"), task(2, bytes(200_000), function="f")])
    store.commit([task(3, b"small", function="g"), task(4, bytes(100_000)), task(5, bytes(100_000))])
    store.commit([s.SaveRequeue(4, 9, 1, 1, 0, recovery=1, payload=b"small", function=None), final(5)])
    sizes = {record.id: record.payload_bytes for record in store.load().tasks}
    assert sizes == {1: 400_000, 2: 200_000, 3: 0, 4: 0}
    assert [record.payload_bytes for record in store.ended([5], False)] == [100_000]


def test_blobs_are_needed_as_long_as_the_task_is_there(store: Store) -> None:
    needy = msgspec.structs.replace(task(1), blobs=("a", "b"))
    ended = final(1)
    ended = s.SaveFinal(msgspec.structs.replace(ended.final, blobs=("b", "c")))
    store.commit([needy, task(2), ended])
    assert needed_blobs(store.path, ["a", "b", "c", "d"]) == {"a", "b", "c"}
    assert store.original([1])[0].blobs == ("a", "b")
    store.commit([s.SaveClear([1])])
    assert needed_blobs(store.path, ["a", "b", "c", "d"]) == set()
    assert backup.check(store.path) == []


def test_blobs_are_needed_as_long_as_a_kept_command_is(store: Store) -> None:
    kept = [s.SaveKept(n, "c", n, "push", b"", "", ("x",), {digest: 9}) for n, digest in ((1, "a"), (2, "b"))]
    store.commit([*kept, s.SaveKeptOn(0, 1), s.SaveKeptOn(1, 1), s.SaveKeptOn(0, 2)])
    assert needed_blobs(store.path, ["a", "b", "c"]) == {"a", "b"}
    assert sorted(store.blobs_in_use()) == ["a", "b"]
    store.commit([s.DropKept(0, [1]), s.SaveKeptOn(0, 2, "dropped", "push(x)")])
    assert needed_blobs(store.path, ["a", "b"]) == {"a"}, "another engine's replacement needs it"
    store.commit([s.DropKept(1, None)])
    assert store.blobs_in_use() == []
    assert store.load().kept_on == [s.SaveKeptOn(0, 2, "dropped", "push(x)")]


def test_numbers_that_make_no_sense_do_not_stop_the_farm(store: Store) -> None:
    nan = float("nan")
    store.commit([s.SaveTask(1, 1, b"", nan, None, None, "s")])
    store.commit([s.SaveFinal(Final(1, "", 0, "", 1, nan, nan, float("inf"), nan))])
    (end,) = store.finals([1])
    assert (end.submitted_s, end.started_s, end.run_s, end.completed_s) == (0.0, 0.0, float("inf"), 0.0)


def test_reads_have_no_limit_on_ids(store: Store) -> None:
    many = list(range(70_000))
    store.commit([task(n) for n in many])
    store.commit([final(n) for n in many])
    assert [t[0] for t in store.work(many)] == many
    assert [f.id for f in store.finals(many[::-1])] == many[::-1]
    assert [f.id for f in store.finals([3, 3, 5])] == [3, 3, 5]


def test_a_save_that_makes_no_sense_is_rolled_back_and_the_store_goes_on(store: Store) -> None:
    with pytest.raises(OverflowError):
        store.commit([task(1), s.SaveSetting("n", 1 << 70)])
    assert store.load().tasks == []
    assert store.commit([task(1)]) == []


def test_only_the_thread_that_opened_it_may_use_it(store: Store) -> None:
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as pool, pytest.raises(sqlite3.ProgrammingError):
        pool.submit(store.load).result()
    assert store.commit([task(1)]) == []


def test_people_can_read_it(store: Store, path: Path) -> None:
    store.commit([task(1, rules=Rules(name="sum", retries=2)), task(2), task(3), task(4), task(5)])
    store.commit([s.SaveRequeue(2, 7, 1, 1, 0), s.SaveHandOut(1, "s.1", 4, ((3, 1),), 0.0)])
    store.commit([final(1), final(4, "error")])
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as db:
        found = db.execute("SELECT id, state, reason, name, attempts, error FROM task_states ORDER BY id").fetchall()
        (submitted,) = db.execute("SELECT submitted FROM task_states WHERE id = 1").fetchone()
        (text,) = db.execute("SELECT rules FROM tasks WHERE id = 1").fetchone()
    assert found == [
        (1, "succeeded", "", "sum", 1, None),
        (2, "scheduled", "waiting for attempt 2", None, 1, None),
        (3, "scheduled", "handed to engine 4", None, 0, None),
        (4, "failed", "error", None, 1, "ValueError: no\x00such 'thing'"),
        (5, "scheduled", "queued", None, 0, None),
    ]
    assert submitted == time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(1_700_000_001))
    assert text == '{"retries":2}'


def test_people_read_of_items_and_not_of_chunks(store: Store, path: Path) -> None:
    """Of a map in two chunks, one item has printed, another was cleared, and one chunk has not ended."""
    store.commit([msgspec.structs.replace(task(first), items=items) for first, items in ((10, 4), (20, 2))])
    ended = final(10)
    printed = msgspec.structs.replace(task(12, b""), part=(10, 1))
    store.commit([printed, final(12), s.SaveSeparate(10, [3]), ended, s.SaveHandOut(1, "s.1", 4, ((20, 1),), 0.0)])
    found = sql(path, "SELECT id, state, reason, run_s FROM task_states ORDER BY id")
    assert found == [
        (11, "succeeded", "", 0.125),
        (12, "succeeded", "", 0.25),
        (13, "succeeded", "", 0.125),
        (21, "scheduled", "handed to engine 4", None),
        (22, "scheduled", "handed to engine 4", None),
    ]
    assert sql(path, "SELECT state FROM task_states WHERE id IN (10, 14, 20)") == []
    every = history(path, ReadHistory(last=99))
    assert {row[1] for row in every} == {11, 12, 13, 21, 22}
    assert {row[3] for row in history(path, ReadHistory([13], last=99))} == {"accepted", "started", "succeeded"}
    assert history(path, ReadHistory([10, 14, 20, 23], last=99)) == [], "chunks, and what was cleared"


def test_what_is_done_to_its_file_while_it_is_open(store: Store, path: Path) -> None:
    store.commit([task(1)])
    assert store.harm() == ""
    away = path.with_name("away")
    os.rename(path, away)
    assert store.harm() == "was removed"
    path.write_bytes(b"another")
    assert store.harm() == "was replaced"
    os.rename(away, path)
    assert store.harm() == ""
    store.compact()
    assert store.harm() == "", "compacting writes into the same file"
    empty = path.with_name("empty")
    empty.touch()
    assert disk.harm(empty, disk.file_number(empty)) == "was emptied"


def test_backup_check_compact(store: Store, path: Path) -> None:
    store.commit([task(n, os.urandom(3000)) for n in range(500)])
    backup.backup(path, path.with_name("copy"))
    with pytest.raises(StoreError, match="choose another name"):
        backup.backup(path, path.with_name("copy"))
    with pytest.raises(StoreError, match="could not be written"):
        backup.backup(path, path.parent / "no such folder" / "copy")
    store.commit([final(n) for n in range(500)])
    store.commit([s.SaveClear(list(range(500)))])
    before = store.size_bytes()
    store.compact()
    assert store.size_bytes() < before / 5
    assert backup.check(store.path) == []
    assert store.free_bytes() > 0
    with closing(Store.open(path.with_name("copy"))) as copy:
        assert len(copy.load().tasks) == 500
        assert copy.farm != store.farm, "clients of one have no part in the other"
    assert not list(path.parent.glob("*.part"))


def test_room_is_given_back_in_steps(store: Store, path: Path) -> None:
    store.commit([task(n, os.urandom(3000)) for n in range(500)])
    store.commit([final(n) for n in range(500)])
    store.commit([s.SaveClear(list(range(0, 500, 2)))])
    store.settle()
    store.checkpoint()
    before, steps = path.stat().st_size, 0
    while store.give_back(20):
        steps += 1
    assert steps > 5
    assert path.stat().st_size < 0.7 * before
    assert backup.check(store.path) == []
    assert [each.id for each in store.finals(range(500))] == [*range(1, 500, 2)]
    store.close()
    with closing(Store.open(path)) as again:
        assert again.missing is None


def test_the_log_stays_short_whatever_is_written(store: Store, path: Path) -> None:
    """Payloads, and the pages of cleared rows, count by what they take, as far as readers allow."""
    assert store._count is not None
    longest = 0
    for first in range(0, 1000, 100):
        store.commit([task(n, os.urandom(60_000)) for n in range(first, first + 100)])
        store.settle()
        longest = max(longest, store._count.place().frames)
        store.commit([final(n) for n in range(first, first + 100)])
        store.settle()
    assert longest < (12 << 20) // 4096
    with closing(sqlite3.connect(path)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM tasks").fetchall()
        for first in range(2000, 2300, 100):
            store.commit([task(n, os.urandom(60_000)) for n in range(first, first + 100)])
            store.settle()
        pages = store._count.place().frames
        assert pages > (12 << 20) // 4096
    store.commit([task(n, os.urandom(60_000)) for n in range(3000, 3100)])
    store.settle()
    store.commit([s.SaveClear(list(range(1000)))])
    store.settle()
    assert store._count.place().frames < pages / 2
    assert len(store.load().tasks) == 400


def test_a_store_of_an_earlier_version_gives_room_back_once_it_was_compacted(store: Store, path: Path) -> None:
    store.close()
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("PRAGMA journal_mode = DELETE").fetchall()
        db.execute("PRAGMA auto_vacuum = NONE")
        db.execute("VACUUM")
        db.execute("PRAGMA journal_mode = WAL").fetchall()
    with closing(Store.open(path)) as old:
        assert old.give_back(20) is None
        old.compact()
        assert old.give_back(20) is False


def test_a_closed_store_says_so(store: Store) -> None:
    store.close()
    store.close()
    with pytest.raises(StoreError, match="is closed"):
        store.commit([task(1)])
    with pytest.raises(StoreError, match="is closed"):
        store.load()


def test_the_names_in_a_backup_are_on_the_disk_before_its_own(
    store: Store, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blobs = Blobs.create(blobs_folder(path), "farm")
    digest = blobs.put(memoryview(os.urandom(100_000))).hex()
    store.commit([msgspec.structs.replace(task(1), blobs=(digest,))])
    synced: list[str] = []
    monkeypatch.setattr(backup, "sync_folder", lambda folder: synced.append(str(folder.relative_to(tmp_path))))
    backup.backup(path, tmp_path / "copy")
    assert synced == [f"copy.part.blobs/{digest[:2]}", "copy.part.blobs", "."]


def test_a_backup_takes_large_values_along(store: Store, path: Path, tmp_path: Path) -> None:
    blobs = Blobs.create(blobs_folder(path), "farm")
    needed, cleared = (blobs.put(memoryview(os.urandom(100_000))) for _ in range(2))
    store.commit([msgspec.structs.replace(task(1), blobs=(needed.hex(),))])
    target = tmp_path / "elsewhere" / "copy.sqlite"
    target.parent.mkdir()
    size = backup.backup(path, target)
    copies = Blobs(blobs_folder(target))
    assert copies.path(needed).read_bytes() == blobs.path(needed).read_bytes()
    assert not copies.path(cleared).exists()
    assert size > 100_000
    assert sorted(p.name for p in target.parent.iterdir()) == ["copy.sqlite", "copy.sqlite.blobs"]
    assert backup.check(target) == []
    copies.path(needed).unlink()
    (missing,) = backup.check(target)
    assert "task 1" in missing
    assert "is missing" in missing
    blobs.path(needed).unlink()
    with pytest.raises(StoreError, match="blobs that the store needs are missing"):
        backup.backup(path, target.with_name("another"))
    assert sorted(p.name for p in target.parent.iterdir()) == ["copy.sqlite", "copy.sqlite.blobs"]


def test_what_is_no_store_is_not_looked_after(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="there is no store"):
        backup.check(tmp_path / "none")
    with closing(sqlite3.connect(tmp_path / "other")) as db:
        db.execute("CREATE TABLE t (x)")
    with pytest.raises(StoreError, match="something else"):
        backup.check(tmp_path / "other")
    (tmp_path / "text").write_text("no database" * 100)
    with pytest.raises(StoreError, match="cannot be read"):
        backup.backup(tmp_path / "text", tmp_path / "copy")


def test_many_rows_of_many_shapes_are_one_commit(store: Store) -> None:
    shapes = [
        task(0),
        msgspec.structs.replace(task(0, rules=Rules(name="n", job="j", priority=3)), needs=Needs(after=(7,))),
        msgspec.structs.replace(task(0, function="f"), parent=1, spawn="1.1", blobs=("a" * 64,)),
        msgspec.structs.replace(task(0), items=5),
        msgspec.structs.replace(task(0), part=(10, 2)),
    ]
    tasks = [msgspec.structs.replace(shapes[n % 5], id=10 * n, queue_seq=n) for n in range(151)]
    assert store.commit(tasks) == []
    records = store.load().tasks
    read = [(r.id, r.rules, r.needs, r.function, r.parent, r.spawn, r.items, r.part) for r in records]
    assert read == [(t.id, t.rules, t.needs, t.function, t.parent, t.spawn, t.items, t.part) for t in tasks]
    ends = [final(t.id, "error" if n % 7 == 3 else "", body=None if n % 11 == 5 else b"b") for n, t in enumerate(tasks)]
    store.commit([ends[100]])
    assert store.commit([*ends, final(5)]) == [1000, 5], "one that was there and one without a task are told by name"
    kept = [(f.id, f.reason, f.failure, f.body, f.items) for f in store.finals([t.id for t in tasks])]
    told = [(e.final.id, e.final.reason, e.final.failure, e.final.body) for e in ends]
    assert kept == [(*end, t.items) for end, t in zip(told, tasks, strict=True)]


def test_a_recovery_task_without_rules_takes_the_new_priority(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite"
    rules = Rules(recovery=Recovery(b"", None, None))
    with closing(Store.open(path)) as store:
        store.commit([s.SaveTask(1, 1, b"", 0.0, None, rules, "")])
        store.commit([s.SavePriority(1, 0, 5, 1.5)])
    with closing(Store.open(path)) as store:
        (loaded,) = store.load().tasks
    assert loaded.rules == with_priority(rules, 5)
    assert "priority=5" in repr(loaded.rules.recovery), "the recovery task has it too"
