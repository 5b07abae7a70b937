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
from tests.support.polling import DEADLINE_S, eventually

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


def worker(executorlib_worker_id: int, k: int = 0) -> tuple[int, int]:
    return executorlib_worker_id, k


def named(**names: Any) -> dict[str, Any]:
    return names


def test_the_id_of_the_worker(farm: Farm, tc: TaskClient) -> None:
    with FarmClusterExecutor(tc) as executor, farm.multiengine_client() as mec:
        assert executor.submit(worker).result(timeout=DEADLINE_S)[0] in mec.get_ids()
        assert executor.submit(worker, executorlib_worker_id=7).result(timeout=DEADLINE_S) == (7, 0)
    with FarmClusterExecutor(tc, init_function=presets) as executor:
        assert executor.submit(worker).result(timeout=DEADLINE_S)[1] == 3
        assert executor.submit(named).result(timeout=DEADLINE_S) == presets()


def test_more_workers(tc: TaskClient) -> None:
    with FarmClusterExecutor(1) as executor:
        executor.max_workers = 2
        assert executor.max_workers == 2
        with pytest.raises(NotImplementedError, match="max_workers is 2, and can only be raised"):
            executor.max_workers = 1
        client = executor.client
        eventually(lambda: client.snapshot().slots == 2, DEADLINE_S)
    assert executor.max_workers is None
    with FarmClusterExecutor(tc) as executor, pytest.raises(NotImplementedError, match="that has started its farm"):
        executor.max_workers = 100


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
        ({"cache_key": "mine"}, "resource_dict has 'cache_key', which a farm does not have: .* `unique=`"),
        ({"slurm_cmd_args": ["--mem=1G"]}, "give it to the launcher"),
        ({"error_log_file": "log"}, "executor.client.failures"),
    ],
)
def test_resources_that_a_farm_does_not_have(
    resources: dict[str, Any], error: str, executor: FarmClusterExecutor
) -> None:
    with pytest.raises(ValueError, match=error):
        executor.submit(sum, [1, 1], resource_dict=resources)


OF_ITS_OWN_PROCESSES: dict[str, Any] = {
    "block_allocation": True, "hostname_localhost": True, "disable_dependencies": False, "refresh_rate": 0.1,
    "plot_dependency_graph": False, "log_obj_size": True, "wait": True, "restart_limit": 1,
    "openmpi_oversubscribe": True, "cache_directory": None, "pysqa_config_directory": None,
}  # fmt: skip


def test_arguments_about_its_own_processes_are_accepted(tc: TaskClient) -> None:
    with FarmClusterExecutor(tc, init_function=presets, **OF_ITS_OWN_PROCESSES) as executor:
        resources = {"openmpi_oversubscribe": False, "slurm_cmd_args": [], "error_log_file": None}
        assert executor.submit(calc, 2, j=4, resource_dict=resources).result(timeout=DEADLINE_S) == [2, 4, 3]
        assert executor._rules["retries"] == 1


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ({"cache_directory": "here"}, "cache_directory='here' has no meaning on a farm: .*`cache=True`"),
        ({"plot_dependency_graph": True}, "leave it out"),
        ({"pysqa_config_directory": "config"}, "a farm with engines of Slurm, PBS or LSF"),
        ({"wait": False}, r"shutdown\(wait=False\)"),
        ({"max_core": 2}, "an Executor has no argument 'max_core'"),
    ],
)
def test_arguments_without_a_meaning_are_refused_with_the_remedy(
    tc: TaskClient, given: dict[str, Any], error: str
) -> None:
    with pytest.raises(TypeError, match=error):
        FarmClusterExecutor(tc, **given)


def test_more_cores_than_there_are() -> None:
    with pytest.raises(ValueError, match="50 cores, which is larger than the executor's number of cores, 1"):
        FarmClusterExecutor(max_cores=1, resource_dict={"cores": 50})
    with FarmClusterExecutor(max_cores=1) as executor:
        with pytest.raises(ValueError, match="give fewer, or max_cores= more"):
            executor.submit(sum, [1, 1], resource_dict={"cores": 2})
        threads = executor.submit(sum, [1, 1], resource_dict={"threads_per_core": 5000})
        assert "needs 5000 cores" in str(threads.exception(timeout=DEADLINE_S))
        assert executor.submit(sum, [1, 1]).result(timeout=DEADLINE_S) == 2


def test_what_is_asked_of_an_executor(tc: TaskClient, tmp_path: Path) -> None:
    executor = FarmClusterExecutor(tc, resource_dict={"priority": 3})
    assert executor.info == {"cores": 1, "priority": 3, "max_workers": tc.snapshot().slots, "max_cores": None}
    assert executor
    assert len(executor) == 0
    executor.submit(add, 1, executor.submit(waits, str(tmp_path / "go")))
    assert len(executor) == 2
    (tmp_path / "go").touch()
    executor.shutdown()
    assert len(executor) == 0
    assert executor.info is None


def test_values_of_futures_come_in_batches(executor: FarmClusterExecutor) -> None:
    batches = executor.batched([executor.submit(add, n, n) for n in range(5)], n=2)
    sums = [executor.submit(sum, batch) for batch in batches]
    assert sum(each.result(timeout=DEADLINE_S) for each in sums) == 20
    assert [len(batch.result()) for batch in batches] == [2, 2, 1]
    some = executor.batched([executor.submit(fails), *(executor.submit(add, n, n) for n in range(2))], n=2)
    assert sorted(some[0].result(timeout=DEADLINE_S)) == [0, 2]
    with pytest.raises(ValueError, match="as planned"):
        some[1].result(timeout=DEADLINE_S)


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
