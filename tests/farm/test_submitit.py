"""submitit's executor on a farm: its public examples, parameters, failures, an engine that is killed, two machines."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import submitit

from ipytaskfarm import Farm, errors
from ipytaskfarm.adapters import submitit_executor
from tests.support.far import far_engines

pytestmark = pytest.mark.farm


@pytest.fixture
def executor(farm: Farm, tmp_path: Path) -> Iterator[submitit.AutoExecutor]:
    name = str(farm.connection_file)
    yield submitit.AutoExecutor(folder=tmp_path, cluster="ipytaskfarm", ipytaskfarm_farm=name)
    client = submitit_executor._clients.pop(name, None)
    if client is not None:
        client.close()


def add(a: int, b: int) -> int:
    return a + b


def test_the_example_of_its_readme(executor: submitit.AutoExecutor) -> None:
    executor.update_parameters(timeout_min=1, ipytaskfarm_retries=2)
    job = executor.submit(add, 5, 7)
    assert int(job.job_id) >= 0
    assert job.result() == 12
    assert job.done()
    assert job.state == "COMPLETED"


def test_arrays_and_batches(executor: submitit.AutoExecutor) -> None:
    jobs = executor.map_array(add, [1, 2, 3], [10, 20, 30])
    assert [job.result() for job in jobs] == [11, 22, 33]
    batched = []
    with executor.batch():
        for number in range(12):
            batched.append(executor.submit(add, number, 1))
    assert [job.result() for job in batched] == list(range(1, 13))


def test_asyncio(executor: submitit.AutoExecutor) -> None:
    import asyncio

    job = executor.submit(add, 5, 7)
    assert asyncio.run(job.awaitable().result(poll_interval=0.05)) == 12


def speaks() -> tuple[str, int]:
    print("said")
    environment = submitit.JobEnvironment()
    return environment.job_id, environment.num_tasks


def test_output_and_the_environment_of_a_job(executor: submitit.AutoExecutor) -> None:
    job = executor.submit(speaks)
    assert job.result() == (job.job_id, 1)
    assert job.stdout() == "said\n"
    assert job.stderr() == ""
    assert job.paths.stdout.read_text() == "said\n"
    assert job.paths.stderr.read_text() == ""


def test_the_paths_of_a_job_are_files_once_it_has_ended(executor: submitit.AutoExecutor) -> None:
    job = executor.submit(fails)
    job.wait()
    assert job.paths.stdout.read_text() == ""
    text = job.paths.stderr.read_text()
    assert text.startswith("before\n")
    assert text == job.stderr()
    assert text.endswith("ValueError: as planned\n")


def fails() -> None:
    print("before", file=sys.stderr)
    raise ValueError("as planned")


def test_a_failure_is_submitits_with_ours_as_its_cause(executor: submitit.AutoExecutor) -> None:
    job = executor.submit(fails)
    with pytest.raises(submitit.core.utils.FailedJobError, match="as planned") as caught:
        job.result()
    assert isinstance(caught.value.__cause__, ValueError)
    assert "in fails\n" in str(caught.value)
    assert job.state == "FAILED"
    stderr = job.stderr()
    assert stderr is not None
    assert stderr.startswith("before\nTraceback (most recent call last):\n")
    assert stderr.endswith("ValueError: as planned\n")
    assert isinstance(job.exception(), submitit.core.utils.FailedJobError)


def test_the_error_stream_of_a_failed_job_is_as_with_submitits_own_executor(tmp_path: Path) -> None:
    executor = submitit.AutoExecutor(folder=tmp_path, cluster="local")
    executor.update_parameters(timeout_min=1)
    job = executor.submit(fails)
    job.wait()
    stderr = job.stderr()
    assert stderr is not None
    assert "before\n" in stderr
    assert stderr.endswith("ValueError: as planned\n")


def waits(path: str) -> str:
    import time

    while not os.path.exists(path):
        time.sleep(0.01)
    return "waited"


def test_a_job_is_cancelled(executor: submitit.AutoExecutor, tmp_path: Path) -> None:
    job = executor.submit(waits, str(tmp_path / "never"))
    assert job.state in ("PENDING", "RUNNING")
    job.cancel()
    assert job.state == "CANCELLED"
    with pytest.raises(submitit.core.utils.UncompletedJobError, match="aborted"):
        job.result()


def test_parameters(executor: submitit.AutoExecutor, farm: Farm) -> None:
    executor.update_parameters(name="mine", mem_gb=0.1, cpus_per_task=1, timeout_min=2, ipytaskfarm_priority=3)
    assert executor._executor.parameters == {
        "name": "mine", "time_limit": 120, "resources": {"cores": 1, "memory": "0.1 GiB"}, "priority": 3,
    }  # fmt: skip
    assert executor.submit(add, 1, 2).result() == 3
    with pytest.raises(ValueError, match="nodes must be 1"):
        executor.update_parameters(nodes=2)
    with pytest.raises(NameError, match="Unknown argument 'nonsense'"):
        executor.update_parameters(ipytaskfarm_nonsense=1)


def dies_once(path: str) -> str:
    if not os.path.exists(path):
        open(path, "w").close()
        os.kill(os.getpid(), signal.SIGKILL)
    return "second time"


def test_an_engine_that_is_killed(executor: submitit.AutoExecutor, tmp_path: Path) -> None:
    lost = executor.submit(dies_once, str(tmp_path / "one"))
    with pytest.raises(submitit.core.utils.UncompletedJobError, match="SIGKILL") as caught:
        lost.result()
    assert isinstance(caught.value.__cause__, errors.EngineLost)
    assert lost.state == "NODE_FAIL"
    executor.update_parameters(ipytaskfarm_retries=1)
    assert executor.submit(dies_once, str(tmp_path / "two")).result() == "second time"


def test_jobs_run_on_two_machines(farm: Farm, executor: submitit.AutoExecutor, tmp_path: Path) -> None:
    with far_engines(farm, tmp_path):
        jobs = executor.map_array(add, range(40), range(40))
        assert [job.result() for job in jobs] == [2 * n for n in range(40)]
        with farm.task_client() as tc:
            nodes = {tc.get_task_result(int(job.job_id)).attempts[-1].node for job in jobs}
        assert len(nodes) == 2
