"""The result cache amid damage, restarts, other clients and a full disk, on real farms: nothing breaks."""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ipytaskfarm import Farm, MultiEngineClient, Ref, Task, TaskClient, TaskResult
from ipytaskfarm.client.tasks import Join
from ipytaskfarm.deployment.home import Home
from tests.conftest import Dirs
from tests.farm.test_farm import background_farm, command, pid_of
from tests.support.farms import DEADLINE_S
from tests.support.polling import eventually
from tests.support.reboot import booted, cut_power
from tests.support.small_disk import said_on_small_disk
from tests.support.thorough import by_hand

pytestmark = pytest.mark.usefixtures("empty_cache")

COUNT = 5
VALUE_BYTES = 200_000


def functions() -> tuple[Callable[[int], int], Callable[[int], bytes]]:
    """Return functions that travel without this module and all that it imports."""

    def small(number: int) -> int:
        return number * number

    def large(number: int) -> bytes:
        return bytes([number]) * 200_000

    return small, large


small, large = functions()


def of_map(tc: TaskClient, function: Callable[[int], Any]) -> list[Any]:
    return list(tc.map(function, range(COUNT), cache=True))


def of_imap(tc: TaskClient, function: Callable[[int], Any]) -> list[Any]:
    return list(tc.imap(function, range(COUNT), cache=True))


def of_job(tc: TaskClient, function: Callable[[int], Any]) -> list[Any]:
    job = tc.create_job(cache=True)
    for number in range(COUNT):
        job.add_task(Task(function, args=(number,)))
    job.submit()
    return job.results()


def of_tasks(tc: TaskClient, function: Callable[[int], Any]) -> list[Any]:
    ids = [tc.run(Task(function, args=(number,), cache=True)) for number in range(COUNT)]
    return [tc.get_task_result(task, block=True).result for task in ids]


def of_futures(tc: TaskClient, function: Callable[[int], Any]) -> list[Any]:
    futures = [tc.submit(Task(function, args=(number,), cache=True)) for number in range(COUNT)]
    return [future.result() for future in futures]


WAYS = [of_map, of_imap, of_job, of_tasks, of_futures]


def blob_files(tc: TaskClient) -> list[Path]:
    assert tc.session.io.folder_of_blobs is not None
    return [path for path in tc.session.io.folder_of_blobs.folder.glob("??/*") if path.stat().st_size >= VALUE_BYTES]


def cache_of(farm: Farm) -> Path:
    (path,) = farm._home.folder.glob("*.cache")
    return path


@pytest.mark.parametrize("way", WAYS, ids=[way.__name__ for way in WAYS])
def test_a_damaged_large_value_is_named_and_computed_again(
    way: Callable[[TaskClient, Callable[[int], Any]], list[Any]], tc: TaskClient
) -> None:
    expected = [large(number) for number in range(COUNT)]
    assert of_map(tc, large) == expected
    tc.clear()
    damage(tc, 1)
    damage(tc, 3)
    with pytest.warns(UserWarning, match="cannot be used, and .* again .*does not have its digest") as told:
        assert way(tc, large) == expected
    assert len(told) == (1 if way in (of_map, of_job) else 2)
    assert told[0].filename == __file__, "the warning does not name the user's line"
    before = tc.cache.size.hits
    assert way(tc, large) == expected
    assert tc.cache.size.hits == before + COUNT, "what was computed again was not kept"


def damage(tc: TaskClient, number: int) -> None:
    """Change a byte in the file of `large(number)`."""
    damaged = 0
    for path in blob_files(tc):
        content = bytearray(path.read_bytes())
        if content[100_000] == number:
            content[1000] = 99
            path.write_bytes(content)
            damaged += 1
    assert damaged == 1


def test_a_damaged_value_that_another_task_takes(tc: TaskClient) -> None:
    def is_sound(value: bytes, number: int) -> bool:
        return value == bytes([number]) * len(value)

    def parent(number: int) -> bool:
        from ipytaskfarm import Task
        from ipytaskfarm.engine import current_task

        child = current_task().submit(Task(large, args=(number,), cache=True))
        return is_sound(current_task().results([child])[0], number)

    for number in (21, 22):
        tc.run(Task(large, args=(number,), cache=True), block=True)
    tc.clear()
    damage(tc, 21)
    first = tc.run(Task(large, args=(21,), cache=True))
    second = tc.run(Task(is_sound, args=(Ref(first), 21), cache=True))
    assert tc.get_task_result(second, block=True).result, "a damaged kept result was computed with, and is kept"
    assert not tc.get_task_result(first).from_cache, "it did not run again"
    assert tc.get_task_result(first).result == large(21)
    damage(tc, 22)
    assert tc.run(Task(parent, args=(22,)), block=True).result


@pytest.mark.parametrize("way", [of_map, of_tasks], ids=["map", "tasks"])
def test_a_damaged_entry_is_named_and_the_task_runs(
    way: Callable[[TaskClient, Callable[[int], Any]], list[Any]], tc: TaskClient, farm: Farm
) -> None:
    expected = [small(number) for number in range(COUNT)]
    assert way(tc, small) == expected
    with contextlib.closing(sqlite3.connect(cache_of(farm), timeout=30)) as db, db:
        db.execute("UPDATE entries SET body = zeroblob(20) WHERE task = (SELECT max(task) FROM entries)")
    assert way(tc, small) == expected
    assert tc.cache.size.hits == COUNT - 1
    last = max(row.id for row in tc.tasks(last=COUNT).rows)
    assert "an entry was damaged and is gone: its content does not have its digest" in tc.why_miss(last)
    assert "an entry was damaged" in repr(tc.cache)


def test_a_damaged_file_begins_anew(tc: TaskClient, farm: Farm) -> None:
    expected = [small(number) for number in range(COUNT)]
    assert of_map(tc, small) == expected
    with contextlib.closing(sqlite3.connect(cache_of(farm), timeout=30)) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    with open(cache_of(farm), "r+b") as file:
        file.write(bytes(64 * 1024))
    assert of_map(tc, small) == expected
    assert of_map(tc, small) == expected
    eventually(lambda: of_map(tc, small) == expected and tc.cache.size.hits >= COUNT, DEADLINE_S)
    said = repr(tc.cache)  # the latest of what happened: an entry may have been read before the file was found damaged
    assert "begins anew" in said or "damaged" in said
    assert cache_of(farm).with_name(f"{cache_of(farm).name}.damaged").exists()


@by_hand
@pytest.mark.filterwarnings("ignore:.*modules under computed names")
def test_a_class_that_is_gone(tc: TaskClient, farm: Farm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The class was renamed in an installed module that the function imports by a computed name."""
    folder = tmp_path / "site-packages"
    folder.mkdir()
    module = folder / "renamed_of_cache.py"
    monkeypatch.syspath_prepend(folder)

    def install(name: str) -> None:
        module.write_text(f"class {name}:\n    def __init__(self, n): self.n = n\nMADE = {name}\n")
        os.utime(module, ns=(len(name), len(name)))
        sys.modules.pop("renamed_of_cache", None)
        importlib.invalidate_caches()

    def make(n: int, path: str) -> Any:
        import importlib
        import sys

        sys.dont_write_bytecode = True
        sys.path[:] = [path, *[each for each in sys.path if each != path]]
        name = "ehcac_fo_demaner"[::-1]  # so that the key knows nothing of it
        sys.modules.pop(name, None)
        importlib.invalidate_caches()
        return importlib.import_module(name).MADE(n)

    def run() -> list[Any]:
        return list(tc.map(make, range(3), [str(folder)] * 3, cache=True))

    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    install("Before")
    assert [(type(each).__name__, each.n) for each in run()] == [("Before", n) for n in range(3)]
    install("Renamed")
    with pytest.warns(UserWarning, match="3 kept results cannot be used.*AttributeError.*Before") as told:
        assert [(type(each).__name__, each.n) for each in run()] == [("Renamed", n) for n in range(3)]
    assert len(told) == 1
    before = tc.cache.size.hits
    assert [each.n for each in run()] == [0, 1, 2]
    assert tc.cache.size.hits == before + 3
    module.unlink()
    sys.modules.pop("renamed_of_cache", None)
    with (
        pytest.warns(UserWarning, match="3 kept results cannot be used.*'renamed_of_cache' cannot be imported"),
        pytest.raises(ModuleNotFoundError),
    ):
        run()


def test_only_what_came_from_the_cache_says_so(tc: TaskClient) -> None:
    waits = tc.run(Task(small, args=(3,), requires={"property:nobody": True}))
    tc.mark_done(waits, 9)
    join = tc.run(Join(after=[waits]))
    tc.barrier([join], timeout=DEADLINE_S)
    assert tc.get_task_result(waits).result == 9
    assert not tc.get_task_result(waits).from_cache
    assert not tc.get_task_result(join).from_cache


# -- restarts


def test_restarts_of_controller_and_farm(farm_dirs: Dirs, tmp_path: Path) -> None:
    def values(tc: TaskClient) -> list[Any]:
        return [*of_map(tc, small), *of_map(tc, large)]

    expected = [*[small(n) for n in range(COUNT)], *[large(n) for n in range(COUNT)]]

    def hits_again(home: Home, tc: TaskClient) -> None:
        before = tc.cache.size.hits
        assert values(tc) == expected
        assert tc.cache.size.hits == before + 2 * COUNT

    with background_farm("-n", "1") as home:
        with TaskClient() as tc:
            assert values(tc) == expected
            os.kill(pid_of(home, "controller"), signal.SIGKILL)
            hits_again(home, tc)
            tc.clear()
        said = command("backup", str(tmp_path / "copy.sqlite")).stdout
        assert "10 results of the result cache are not in it" in said
        assert command("stop", "--wait", "0").returncode == 0
        assert command("start", "--daemonize", "-n", "0").returncode == 0
        with TaskClient() as tc:
            hits_again(home, tc)  # without any engine
        for kind in ("supervisor", "controller"):
            os.kill(pid_of(home, kind), signal.SIGKILL)
        assert command("start", "--daemonize", "-n", "0").returncode == 0
        with TaskClient() as tc:
            hits_again(home, tc)


@by_hand
def test_a_reboot_of_the_machine(farm_dirs: Dirs, tmp_path: Path) -> None:
    """The results of tasks, a map and a graph are all taken afterwards, by a farm without engines."""
    ran = tmp_path / "ran"
    ran.mkdir()

    def noted(number: int, folder: str) -> bytes:
        import tempfile

        tempfile.mkstemp(prefix=f"{number}-", dir=folder)
        return bytes([number]) * 200_000

    def length(value: bytes, folder: str) -> int:
        import tempfile

        tempfile.mkstemp(prefix="length-", dir=folder)
        return len(value)

    def results(tc: TaskClient) -> list[TaskResult]:
        alone = tc.run(Task(noted, args=(41, str(ran)), cache=True))
        tc.map(noted, [42, 43, 44], [str(ran)] * 3, cache=True, name=(job := f"map-{alone}"))
        below = tc.run(Task(noted, args=(45, str(ran)), cache=True))
        above = tc.run(Task(length, args=(Ref(below), str(ran)), cache=True))
        ids = [alone, *tc.job(job).ids, below, above]
        tc.barrier(ids, timeout=DEADLINE_S)
        return [tc.get_task_result(task) for task in ids]

    expected = [*(bytes([number]) * VALUE_BYTES for number in range(41, 46)), VALUE_BYTES]
    with booted("before", tmp_path), background_farm("-n", "1"):
        with TaskClient() as tc:
            assert [each.result for each in results(tc)] == expected
            assert len(list(ran.iterdir())) == len(expected)
            cut_power(farm_dirs)
        with booted("after", tmp_path):
            assert command("start", "--daemonize", "-n", "0").returncode == 0
            with TaskClient() as tc:
                again = results(tc)
                assert [each.result for each in again] == expected
                assert all(each.from_cache for each in again)
                assert len(list(ran.iterdir())) == len(expected), "something has run"
                damage(tc, 43)  # no other farm of this process has such a value, and could lend it
                tc.clear()
                with MultiEngineClient() as mec:
                    mec.add_engines(1)
                with pytest.warns(UserWarning, match="does not have its digest"):
                    assert [each.result for each in results(tc)] == expected
    assert len(list(ran.iterdir())) == len(expected) + 1


# -- two clients at once

CLIENT = """
import sys
from ipytaskfarm import TaskClient
def note(number, folder):
    import os, tempfile, time
    tempfile.mkstemp(prefix=f"{number}-", dir=folder)
    time.sleep(0.02)
    return number + 1
tc = TaskClient(sys.argv[1])
sys.stdin.readline()
print(tc.map(note, range(40), [sys.argv[2]] * 40, cache=True) == list(range(1, 41)))
"""


def test_two_programs_at_once_run_each_item_once(farm: Farm, tc: TaskClient, tmp_path: Path) -> None:
    command = [sys.executable, "-c", CLIENT, str(farm.connection_file), str(tmp_path)]
    both = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    for each in both:
        assert each.stdin is not None
        each.stdin.write("go\n")
        each.stdin.flush()
    assert [each.communicate(timeout=DEADLINE_S)[0] for each in both] == ["True\n"] * 2
    assert len(list(tmp_path.iterdir())) == 40
    assert tc.cache.size.entries == 40


# -- a full disk

FULL_DISK = """
import os, sys, tempfile, time
from ipytaskfarm import Farm, Task, errors
disk = sys.argv[1]
def work(n):
    return bytes([n]) * 30_000
expected = [work(n) for n in range(40)]
with Farm(n=1, name="full", store_dir=disk) as farm, farm.task_client() as tc, farm.task_client() as other:
    print("before:", tc.map(work, range(20), cache=True) == expected[:20])
    is_full = os.path.join(tempfile.mkdtemp(), "full")
    ids = [tc.run(Task(f"import os, time\\nwhile not os.path.exists({is_full!r}): time.sleep(0.02)"))]
    ids += [tc.run(Task(work, args=(n,), cache=True, targets=0)) for n in range(20, 40)]
    ids += [other.run(Task(work, args=(n,), cache=True, targets=0)) for n in range(20, 40)]  # the same
    tc.flush(timeout=30), other.flush(timeout=30)
    filler = os.path.join(disk, "filler")
    fd = os.open(filler, os.O_WRONLY | os.O_CREAT)
    spare = 8
    while True:  # the farm takes room at the same time
        room = os.statvfs(disk)
        try:
            os.posix_fallocate(fd, 0, (room.f_bavail - spare) * room.f_frsize)
            break
        except OSError:
            assert spare < 10_000
            spare *= 2
    os.close(fd)
    os.close(os.open(is_full, os.O_CREAT))
    try:
        tc.barrier(ids, timeout=2)
        print("ended")
    except (TimeoutError, errors.StoreFull) as error:
        print("full:", type(error).__name__)
    os.unlink(filler)
    deadline = time.monotonic() + 60
    def when_there_is_room(call):
        while True:
            try:
                return call()
            except errors.StoreFull:  # the farm looks at the disk now and then
                assert time.monotonic() < deadline
                time.sleep(0.05)
    when_there_is_room(lambda: tc.barrier(ids, timeout=60))
    print("after:", [tc.get_task_result(i).result for i in ids[1:]] == expected[20:] * 2)
    print("again:", when_there_is_room(lambda: other.map(work, range(40), cache=True)) == expected)
    print("hits:", tc.cache.size.hits >= 20)
"""


def test_a_full_disk_costs_no_result(farm_dirs: Dirs, tmp_path: Path) -> None:
    said = said_on_small_disk(FULL_DISK, tmp_path)
    assert said[0] == "before: True"
    assert said[1].startswith("full: ")
    assert said[2:] == ["after: True", "again: True", "hits: True"]
