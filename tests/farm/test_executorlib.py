"""executorlib's interface on a farm: resources for each call, futures as arguments, an engine that is killed, two
machines.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

import pytest

from ipytaskfarm import Farm, FarmClusterExecutor, TaskClient
from tests.support.far import NODE, far_engines
from tests.support.polling import DEADLINE_S

pytestmark = pytest.mark.farm


@pytest.fixture
def executor(tc: TaskClient) -> Iterator[FarmClusterExecutor]:
    with FarmClusterExecutor(tc) as executor:
        yield executor


def add(a: int, b: int) -> int:
    return a + b


def test_the_examples_of_its_documentation(executor: FarmClusterExecutor) -> None:
    future = executor.submit(sum, [1, 1])
    assert future.result(timeout=DEADLINE_S) == 2
    futures = [executor.submit(sum, [i, i]) for i in range(2, 5)]
    assert [future.result(timeout=DEADLINE_S) for future in futures] == [4, 6, 8]
    assert list(executor.map(sum, [[2, 2], [3, 3], [4, 4]])) == [4, 6, 8]
    reserved = executor.submit(sum, [1, 1], resource_dict={"cores": 1, "threads_per_core": 1, "run_time_max": 60})
    assert reserved.result(timeout=DEADLINE_S) == 2


def test_futures_among_the_arguments(executor: FarmClusterExecutor) -> None:
    future: Any = 0
    for i in range(1, 4):
        future = executor.submit(add, i, future)
    assert future.result(timeout=DEADLINE_S) == 6
    parts = [executor.submit(add, n, n) for n in range(5)]
    assert executor.submit(sum, parts).result(timeout=DEADLINE_S) == 20
    assert executor.submit(dict, a={"deep": [parts[1]]}).result(timeout=DEADLINE_S) == {"a": {"deep": [2]}}


def fails() -> int:
    raise ValueError("as planned")


def test_a_failure_of_an_argument_is_that_of_the_call(executor: FarmClusterExecutor) -> None:
    with pytest.raises(ValueError, match="as planned"):
        executor.submit(add, 1, executor.submit(fails)).result(timeout=DEADLINE_S)


def test_a_call_that_waits_is_cancelled(executor: FarmClusterExecutor, tmp_path: Path) -> None:
    first = executor.submit(waits, str(tmp_path / "go"))
    second = executor.submit(add, 1, first)
    assert second.cancel()
    (tmp_path / "go").touch()
    assert first.result(timeout=DEADLINE_S) == 1
    with pytest.raises(CancelledError):
        second.result(timeout=DEADLINE_S)


def waits(path: str) -> int:
    import time

    while not os.path.exists(path):
        time.sleep(0.01)
    return 1


def where() -> str:
    return os.getcwd()


def test_a_folder_of_its_own(executor: FarmClusterExecutor, tmp_path: Path) -> None:
    before = executor.submit(where).result(timeout=DEADLINE_S)
    folder = tmp_path / "new" / "folder"
    assert executor.submit(where, resource_dict={"cwd": folder}).result(timeout=DEADLINE_S) == str(folder)
    assert {executor.submit(where).result(timeout=DEADLINE_S) for _ in range(4)} == {before}


def presets() -> dict[str, int]:
    return {"k": 3, "unused": 4}


def calc(i: int, j: int, k: int) -> list[int]:
    return [i, j, k]


def test_preset_arguments(tc: TaskClient) -> None:
    with FarmClusterExecutor(tc, init_function=presets) as executor:
        assert executor.submit(calc, 2, j=4).result(timeout=DEADLINE_S) == [2, 4, 3]
        assert executor.submit(calc, 2, j=4, k=5).result(timeout=DEADLINE_S) == [2, 4, 5]
        assert list(executor.map(calc, [1, executor.submit(sum, [1, 1])], [4, 4])) == [[1, 4, 3], [2, 4, 3]]


def late(x: int) -> int:
    time.sleep(0.2)
    return x


def test_a_shutdown_waits_for_calls_that_wait_for_others(tc: TaskClient) -> None:
    with FarmClusterExecutor(tc) as executor:
        total = executor.submit(sum, [executor.submit(late, 1), executor.submit(late, 2)])
    assert total.result(timeout=0) == 3


@pytest.mark.parametrize(
    ("resources", "error"),
    [
        ({"core": 1}, "resource_dict has 'core', which a farm does not have; it has cores, threads_per_core"),
        ({"num_nodes": 2}, "num_nodes must be 1"),
    ],
)
def test_resources_that_a_farm_does_not_have(
    resources: dict[str, Any], error: str, executor: FarmClusterExecutor
) -> None:
    with pytest.raises(ValueError, match=error):
        executor.submit(sum, [1, 1], resource_dict=resources)


def dies_once(path: str) -> str:
    if not os.path.exists(path):
        open(path, "w").close()
        os.kill(os.getpid(), signal.SIGKILL)
    return "second time"


def test_an_engine_that_is_killed(executor: FarmClusterExecutor, tmp_path: Path) -> None:
    first = executor.submit(dies_once, str(tmp_path / "died"))
    assert executor.submit(len, first).result(timeout=DEADLINE_S) == len("second time")


def test_calls_run_on_two_machines(farm: Farm, executor: FarmClusterExecutor, tmp_path: Path) -> None:
    with far_engines(farm, tmp_path):
        first = [executor.submit(add, n, n) for n in range(20)]
        second = [executor.submit(add, future, 1) for future in first]
        assert [future.result(timeout=DEADLINE_S) for future in second] == [2 * n + 1 for n in range(20)]
        there = FarmClusterExecutor(executor.client, requires={"node": NODE})
        assert there.submit(add, executor.submit(add, 1, 1), 1).result(timeout=DEADLINE_S) == 3
        there.shutdown()
