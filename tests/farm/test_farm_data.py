"""Large values on a real farm: files that reach the node once, mapped by engines and clients, gone when forgotten."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ipytaskfarm import Farm, MapTask, Task, TaskClient
from ipytaskfarm.client.results import TaskResult
from ipytaskfarm.engine import current_task
from ipytaskfarm.storage.backup import needed_blobs
from ipytaskfarm.storage.blobs import Blobs

pytestmark = pytest.mark.farm

ITEMS = 200_000
"""Of 8 bytes: well above the size of a blob."""


@pytest.fixture
def needed(blobs: Blobs) -> Callable[[set[str]], set[str]]:
    """Which of these blobs the store says are needed."""
    store = blobs.folder.with_suffix("")
    return lambda digests: needed_blobs(store, sorted(digests))


def names(blobs: Blobs) -> set[str]:
    return {path.name for path in blobs.folder.glob("??/*")}


def outcome(tc: TaskClient, task: Task) -> TaskResult:
    result = tc.get_task_result(tc.run(task), block=True, timeout=60, raw=False)
    assert isinstance(result, TaskResult)
    return result


def test_an_array_pushed_to_many_tasks_is_written_once(tc: TaskClient, blobs: Blobs) -> None:
    before = names(blobs)
    array = np.arange(ITEMS) + 1_000_003
    ids = [tc.run(Task("s = int(x.sum())", push={"x": array}, pull="s")) for _ in range(10)]
    tc.barrier(ids, timeout=60)
    results = [tc.get_task_result(each) for each in ids]
    assert {result["s"] for result in results} == {int(array.sum())}
    assert len(names(blobs) - before) == 1


def test_engines_map_the_very_file(tc: TaskClient, blobs: Blobs) -> None:
    before = names(blobs)
    array = np.arange(ITEMS) + 2_000_003
    maps = outcome(tc, Task("maps = open('/proc/self/maps').read()", push={"kept": array}, pull="maps"))["maps"]
    (name,) = names(blobs) - before
    assert name in maps


def test_what_a_task_writes_into_its_array_stays_its_own(tc: TaskClient) -> None:
    array = np.zeros(ITEMS)
    change = Task("x[:] = 1.0; s = float(x.sum())", push={"x": array}, pull="s")
    assert outcome(tc, change)["s"] == ITEMS
    assert outcome(tc, Task("s = float(x.sum())", push={"x": array}, pull="s"))["s"] == 0.0
    assert array.sum() == 0.0


def test_what_the_caller_changes_later_does_not_reach_the_task(tc: TaskClient) -> None:
    array = np.zeros(ITEMS)
    first = tc.run(Task("import time; time.sleep(0.3); s = float(x.sum())", push={"x": array}, pull="s"))
    array[:] = 1.0
    second = tc.run(Task("s = float(x.sum())", push={"x": array}, pull="s"))
    assert tc.get_task_result(first, block=True, timeout=60)["s"] == 0.0
    assert tc.get_task_result(second, block=True, timeout=60)["s"] == ITEMS


def fill(array: Any, value: int) -> int:
    array[value] = value
    return os.getpid()


@pytest.mark.parametrize("way", ["task", "map", "pushed", "executor", "child"])
def test_what_tasks_write_into_the_map_of_a_file_is_in_the_file(tc: TaskClient, tmp_path: Path, way: str) -> None:
    array = np.memmap(tmp_path / "file", int, "w+", shape=(3, 7))
    if way == "task":
        tc.barrier([tc.run(Task(fill, args=(array,), kwargs={"value": i})) for i in range(3)], timeout=60)
    elif way == "map":
        tc.map(fill, [array] * 3, range(3))
    elif way == "pushed":
        outcome(tc, Task("for i in range(3): x[i] = i", push={"x": array})).raise_exception()
    elif way == "executor":
        with tc.executor() as executor:
            list(executor.map(fill, [array] * 3, range(3)))
    else:
        outcome(tc, Task(fill_by_children, args=(array,))).raise_exception()
    assert array[:, 6].tolist() == [0, 1, 2]


def fill_by_children(array: Any) -> None:
    me = current_task()
    me.results([me.submit(fill, array, i) for i in range(3)])


def test_a_kept_result_of_a_map_depends_on_the_content_of_the_file(tc: TaskClient, tmp_path: Path) -> None:
    np.arange(20_000).tofile(tmp_path / "file")
    array = np.memmap(tmp_path / "file", int, "r+")
    sums = []
    for change in (0, 0, 1):
        array[0] += change
        sums.append(outcome(tc, Task(pid_and_sum, args=(array,), cache=True)).result)
    assert sums[0] == sums[1]
    assert sums[2][1] == sums[0][1] + 1


def pid_and_sum(array: Any) -> tuple[float, int]:
    return time.monotonic(), int(array.sum())


def make_rows(count: int) -> Any:
    return np.arange(count, dtype=float)


def test_large_results_come_back_as_files(tc: TaskClient, blobs: Blobs) -> None:
    before = names(blobs)
    result = outcome(tc, Task(make_rows, args=(ITEMS,)))
    assert isinstance(result, TaskResult)
    assert len(result._final.body or b"") < 1_000
    assert (result.result == make_rows(ITEMS)).all()
    result.result[0] = 7.0  # ours alone
    assert len(names(blobs) - before) == 1
    raw = tc.get_task_result(tc.run(MapTask(make_rows, (ITEMS,))), block=True, timeout=60)
    assert raw[0] == 0.0


@pytest.mark.parametrize("expression", ["a = 'x' * 300_000", "a = list(range(100_000))", "a = {'k': b'y' * 300_000}"])
def test_large_text_and_lists_too(tc: TaskClient, expression: str) -> None:
    names_here: dict[str, object] = {}
    exec(expression, names_here)
    result = outcome(tc, Task(expression, pull="a"))
    assert result["a"] == names_here["a"]
    again = outcome(tc, Task("b = a", push={"a": names_here["a"]}, pull="b"))
    assert again["b"] == names_here["a"]
    assert len(again._final.body or b"") < 1_000


def test_a_recovery_task_has_its_own_data(tc: TaskClient) -> None:
    array = np.arange(ITEMS)
    recovery = Task("s = int(y.sum())", push={"y": array}, pull="s")
    failing = Task("assert len(x) == 0", push={"x": array + 1}, retries=1, recovery_task=recovery)
    assert outcome(tc, failing)["s"] == array.sum()


def test_a_task_handed_in_again_keeps_its_data(
    tc: TaskClient, blobs: Blobs, needed: Callable[[set[str]], set[str]]
) -> None:
    before = names(blobs)
    failed = outcome(tc, Task("assert x.sum() < 0", push={"x": np.arange(ITEMS) + 3_000_003}))
    made = names(blobs) - before
    (again,) = tc.retry(failed.taskid)
    tc.clear(failed.taskid)  # what the new task needs is its own
    tc.barrier(again, timeout=60)
    result = tc.get_task_result(again, raw=False)
    assert result.failure.etype == "AssertionError"
    assert needed(made) == made
    tc.clear(again)
    assert needed(made) == set()


def test_cleared_results_free_their_files(tc: TaskClient, blobs: Blobs, needed: Callable[[set[str]], set[str]]) -> None:
    before = names(blobs)
    result = outcome(tc, Task("a = list(range(5, 100_005))", pull="a"))
    made = names(blobs) - before
    assert len(made) == 1
    assert needed(made) == made
    tc.clear(result.taskid)
    blobs.sweep(lambda old: needed(set(old)), older_than_s=-1.0)
    assert not made & names(blobs)


def test_a_client_that_does_not_see_the_folder_sends_data_along(farm: Farm, monkeypatch: pytest.MonkeyPatch) -> None:
    with farm.task_client() as tc:
        monkeypatch.setattr(tc._session, "blobs", None)
        array = np.arange(ITEMS) + 4_000_003
        assert outcome(tc, Task("s = int(x.sum())", push={"x": array}, pull="s"))["s"] == array.sum()
