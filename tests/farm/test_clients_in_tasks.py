"""Clients inside tasks: what they wait for runs, also when every engine has such a task."""

from __future__ import annotations

import importlib
import time
from pathlib import Path
from typing import Any

import pytest

from ipytaskfarm import Executor, MapTask, Pool, Task, TaskClient
from tests.support.farms import DEADLINE_S

pytestmark = pytest.mark.farm(n=1)


def add_one(x: int) -> int:
    return x + 1


def by_map(farm: str, count: int) -> int:
    return sum(TaskClient(farm).map(add_one, range(count)))


def by_barrier(farm: str, count: int) -> int:
    tc = TaskClient(farm)
    ids = [tc.run(MapTask(add_one, (n,))) for n in range(count)]
    tc.barrier(ids)
    return sum(tc.get_task_result(each) for each in ids)


def by_futures(farm: str, count: int) -> int:
    with Executor(TaskClient(farm)) as executor:
        return sum(future.result() for future in [executor.submit(add_one, n) for n in range(count)])


def by_pool(farm: str, count: int) -> int:
    with Pool(TaskClient(farm)) as pool:
        return sum(pool.imap_unordered(add_one, range(count)))


@pytest.mark.parametrize("work", [by_map, by_barrier, by_futures, by_pool])
def test_every_engine_has_a_task_that_waits_for_its_own_tasks(tc: TaskClient, work: Any) -> None:
    job = tc.map(work, [tc.farm] * 4, [1, 2, 3, 4], block=False)
    assert job.results(timeout=DEADLINE_S) == [1, 3, 6, 10]


def fibonacci(farm: str, n: int) -> int:
    return n if n < 2 else sum(TaskClient(farm).map(fibonacci, [farm, farm], [n - 1, n - 2]))


def test_tasks_of_tasks_wait_in_turn(tc: TaskClient) -> None:
    assert tc.map(fibonacci, [tc.farm], [4], block=False).results(timeout=DEADLINE_S) == [3]


def test_a_module_that_submits_work_when_it_is_imported(
    tc: TaskClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "submits_at_import.py").write_text(
        f"from ipytaskfarm import TaskClient\n"
        f"START = list(TaskClient({tc.farm!r}).map(abs, [-3]))\n"
        "def work(x):\n    return x + START[0]\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    module = importlib.import_module("submits_at_import")
    assert tc.map(module.work, [1, 2], block=False).results(timeout=DEADLINE_S) == [4, 5]


def test_explain_tells_for_how_many_tasks_it_waits(tc: TaskClient, tmp_path: Path) -> None:
    gate = tmp_path / "gate"

    def slow(path: str) -> None:
        until_s = time.monotonic() + DEADLINE_S
        while not Path(path).exists() and time.monotonic() < until_s:
            time.sleep(0.01)

    def outer(farm: str, path: str) -> None:
        inner = TaskClient(farm)
        inner.barrier([inner.run(Task(slow, args=(path,)))])

    task = tc.run(Task(outer, args=(tc.farm, str(gate))))
    until_s = time.monotonic() + DEADLINE_S
    while "it waits for 1 task" not in str(tc.explain(task)):
        assert time.monotonic() < until_s, tc.explain(task)
    gate.touch()
    assert tc.get_task_result(task, block=True, timeout=DEADLINE_S).result is None
