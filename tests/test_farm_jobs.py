"""Jobs on real engines."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ipytaskfarm import Task, TaskClient, errors
from tests.farms import DEADLINE_S, Gate, module_farm

pytestmark = pytest.mark.farm


@pytest.fixture(scope="module")
def one() -> Iterator[TaskClient]:
    """A farm of one slot."""
    with module_farm(1) as farm, farm.task_client() as tc:
        yield tc


def test_a_job_shares_rules_and_tells_of_its_tasks(one: TaskClient) -> None:
    job = one.create_job("squares", retries=1, priority=5)
    job.time_limit = 10

    class Square:
        def __init__(self, n: int) -> None:
            self.n = n

        def execute(self) -> int:
            return self.n**2

    for n in range(5):
        job.add_task(Square(n))
    job.add_task(Task("a = 7", pull="a", name="code"))
    assert repr(job) == "<Job 'squares': 6 tasks, not handed in>"
    with pytest.raises(ValueError, match="submit\\(\\) first"):
        job.wait()
    ids = job.submit()
    assert job.ids == ids
    beats: list[int] = []
    assert job.wait(DEADLINE_S, heartbeat=lambda job: beats.append(len(job)))
    assert job.results() == [0, 1, 4, 9, 16, {"a": 7}]
    assert sorted(map(str, job.results(order=False))) == sorted(map(str, job.results()))
    assert job.counts() == {"scheduled": 0, "pending": 0, "succeeded": 6, "failed": 0}
    assert "6 succeeded" in repr(job)
    more = job.add_task(Square(9))
    assert more in job.tasks
    assert len(job.submit()) == 1
    assert list(job.results())[-1] == 81


def test_a_jobs_failures_are_raised_or_stand_among_its_results(one: TaskClient) -> None:
    job = one.create_job()
    for code in ("a = 1", "1/0"):
        job.add_task(Task(code, pull="a"))
    job.submit()
    with pytest.raises(ZeroDivisionError):
        job.results(timeout=DEADLINE_S)
    good, bad = job.results(return_exceptions=True)
    assert good == {"a": 1}
    assert isinstance(bad, ZeroDivisionError)


def test_a_job_is_waited_for_and_aborted(one: TaskClient, tmp_path: Path) -> None:
    gate = Gate(tmp_path / "gate")
    job = one.create_job()
    for _ in range(3):
        job.add_task(Task(gate.code))
    job.submit()
    beats: list[int] = []
    assert job.wait(1.5, heartbeat=lambda job: beats.append(1)) is False
    assert beats
    job.abort()
    assert job.wait(DEADLINE_S)
    assert job.counts()["failed"] == 3


@pytest.mark.parametrize("abort_on_failure", [False, True])
def test_the_first_failure_of_a_job_ends_it_only_if_it_asks_for_that(one: TaskClient, abort_on_failure: bool) -> None:
    job = one.create_job(abort_on_failure=abort_on_failure)
    for i in range(10):
        job.add_task(Task("import time; time.sleep(0.05)" + ("; 1/0" if i == 2 else "")))
    ids = job.submit()
    assert job.wait(DEADLINE_S)
    counts = job.counts()
    if not abort_on_failure:
        assert counts == {"scheduled": 0, "pending": 0, "succeeded": 9, "failed": 1}
        return
    assert counts["failed"] >= 7
    assert one.status(ids[9]).reason == "aborted with its job"
    with pytest.raises(errors.TaskAborted, match=rf"task {ids[2]} of its job failed \(error\): division by zero"):
        one.get_task_result(ids[9])


def test_a_jobs_tasks_as_they_end_and_once_more(one: TaskClient, tmp_path: Path) -> None:
    mended = tmp_path / "mended"
    job = one.create_job()
    for i in range(4):
        job.add_task(Task(f"import os\nif {i} == 1 and not os.path.exists({str(mended)!r}): 1/0\na = {i}", pull="a"))
    ids = job.submit()
    assert sorted(job.as_completed(DEADLINE_S)) == ids
    mended.touch()
    (again,) = job.retry()
    assert job.ids == [ids[0], again, ids[2], ids[3]]
    assert job.results(timeout=DEADLINE_S) == [{"a": i} for i in range(4)]
    assert job.retry() == []


def test_an_abort_of_a_job_says_why(one: TaskClient, tmp_path: Path) -> None:
    gate = Gate(tmp_path / "gate")
    job = one.create_job()
    for _ in range(3):
        job.add_task(Task(gate.code))
    ids = job.submit()
    job.abort("the data is wrong")
    with pytest.raises(errors.TaskAborted, match="the data is wrong"):
        one.get_task_result(ids[2], block=True, timeout=DEADLINE_S)


def test_retries_after_the_loss_of_an_engine_are_counted_apart(one: TaskClient, tmp_path: Path) -> None:
    marker = tmp_path / "died"
    code = (
        f"import os\nif not os.path.exists({str(marker)!r}):\n    open({str(marker)!r}, 'w').close()\n    os._exit(3)"
    )
    tr = one.run(Task(code, lost_retries=1), block=True)
    assert tr.reason == ""
    assert [attempt.outcome for attempt in tr.attempts] == ["engine lost", ""]
    failing = one.run(Task("1/0", lost_retries=5), block=True)
    assert len(failing.attempts) == 1, "an error is not the loss of an engine"
