"""Jobs on real engines."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from ipytaskfarm import Task, TaskClient, errors
from ipytaskfarm.client.estimate import span
from ipytaskfarm.display.colours import BARS
from tests.support.farms import DEADLINE_S, Gate, module_farm
from tests.support.polling import eventually

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
    assert repr(job) == "<Job 'squares': 6 tasks, not submitted>"
    with pytest.raises(ValueError, match=r"job.submit\(\) submits them"):
        job.wait()
    ids = job.submit()
    assert job.ids == ids
    beats: list[int] = []
    assert job.wait(DEADLINE_S, heartbeat=lambda job: beats.append(len(job)))
    assert job.results() == [0, 1, 4, 9, 16, {"a": 7}]
    assert sorted(map(str, job.results(order=False))) == sorted(map(str, job.results()))
    assert job.counts() == {"scheduled": 0, "running": 0, "succeeded": 6, "failed": 0}
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
        assert counts == {"scheduled": 0, "running": 0, "succeeded": 9, "failed": 1}
        return
    assert counts["failed"] >= 7
    assert one.status(ids[9]).reason == "aborted with its job"
    with pytest.raises(
        errors.TaskAborted, match=rf"task {ids[2]} of its job failed \(error\): ZeroDivisionError: division by zero"
    ):
        one.get_task_result(ids[9])


def test_a_jobs_tasks_as_they_end_and_once_more(one: TaskClient, tmp_path: Path) -> None:
    mended = tmp_path / "mended"
    job = one.create_job()
    for i in range(4):
        job.add_task(Task(f"import os\nif {i} == 1 and not os.path.exists({str(mended)!r}): 1/0\na = {i}", pull="a"))
    ids = job.submit()
    assert sorted(job.as_completed(DEADLINE_S)) == ids
    assert [line.failed for line in one.jobs() if line.id == job.id] == [1]
    mended.touch()
    (again,) = job.retry()
    assert job.ids == [ids[0], again, ids[2], ids[3]]
    assert job.results(timeout=DEADLINE_S) == [{"a": i} for i in range(4)]
    assert job.retry() == []
    assert [line.failed for line in one.jobs() if line.id == job.id] == [0]
    found = one.job(job.id)  # as a kernel that was restarted finds it
    assert found.ids == job.ids
    assert found.results(timeout=DEADLINE_S) == [{"a": i} for i in range(4)]
    assert found.counts() == {"scheduled": 0, "running": 0, "succeeded": 4, "failed": 0}


@pytest.mark.parametrize("is_map", [True, False])
def test_a_job_that_another_kernel_finds_took_as_long_as_it_took(one: TaskClient, is_map: bool) -> None:
    job = one.map(abs, [1, 2], name="before", block=False) if is_map else one.create_job("before")
    if not is_map:
        job.add_task(Task("a = 1"))
        job.submit()
    assert job.wait(DEADLINE_S)
    code = "import sys; from ipytaskfarm import TaskClient; print(TaskClient(sys.argv[1]).job(sys.argv[2])._live())"
    command = [sys.executable, "-c", code, one.farm, job.id]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    ends = [row.completed_at for row in one.tasks(job=job).rows]
    took_s = max(end.timestamp() for end in ends if end is not None) - job._opened_s
    assert re.search(r", in (\S+ \S+)", shown)[1] == span(took_s)  # type: ignore[index]


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


# -- graphs, events, pausing, duplicates, and jobs of clients that have gone


def test_a_jobs_events_and_progress(one: TaskClient) -> None:
    def work(n: int) -> int:
        from ipytaskfarm.engine import current_task

        current_task().progress(n, 10)
        return n

    job = one.create_job("events")
    for n in range(5):
        job.add_task(Task(work, args=(n,)))
    job.add_task(Task("1/0"))
    done: list[int] = []
    states: list[str] = []
    progress: list[float] = []
    job.on_task_done(lambda result: done.append(result.taskid))
    job.on_state(lambda job, state: states.append(state))
    job.on_progress(lambda job, share: progress.append(share))
    job.submit()
    assert job.wait(DEADLINE_S)
    eventually(lambda: states == ["running", "failed"], DEADLINE_S)
    assert sorted(done) == sorted(job.ids)
    eventually(lambda: progress[-1:] == [1.0], DEADLINE_S)  # it is told after the state
    assert progress == sorted(progress)
    assert job.progress == 1.0
    html = job._repr_html_()
    assert "5 succeeded, 1 failed" in html
    assert f"background:{BARS['succeeded']}" in html
    (again,) = job.retry()
    assert job.wait(DEADLINE_S)
    assert again in job.ids
    assert one.jobs()[-1].name == "events"


def test_events_of_tasks_and_functions_that_come_later(one: TaskClient, tmp_path: Path) -> None:
    """Each function is called once for each task, whenever the task was submitted and the function was given."""
    gate = Gate(tmp_path / "gate")
    first: list[int] = []
    later: list[int] = []
    states: list[str] = []
    job = one.create_job("later events")
    job.on_task_done(lambda result: first.append(result.taskid))
    job.on_state(lambda job, state: states.append(state))
    job.add_task(Task(gate.code))
    job.submit()
    eventually(lambda: states == ["running"], DEADLINE_S)
    job.add_task(Task("a = 1"))
    job.submit()
    gate.open()
    eventually(lambda: states == ["running", "succeeded"], DEADLINE_S)
    assert first == job.ids
    job.on_task_done(lambda result: later.append(result.taskid))
    eventually(lambda: later == job.ids, DEADLINE_S)
    job.add_task(Task("1 / 0"))
    (failed,) = job.submit()
    eventually(lambda: states == ["running", "succeeded", "running", "failed"], DEADLINE_S)
    assert first == later == job.ids
    (again,) = job.retry_failed()
    eventually(lambda: again in later, DEADLINE_S)
    assert first.count(failed) == 1


def test_events_of_the_items_of_a_map(one: TaskClient) -> None:
    done: list[int] = []
    states: list[str] = []
    job = one.map(abs, range(20), block=False)
    job.on_task_done(lambda result: done.append(result.result))
    job.on_state(lambda job, state: states.append(state))
    eventually(lambda: states == ["running", "succeeded"], DEADLINE_S)
    assert sorted(done) == list(range(20))


def test_a_paused_job_starts_nothing_and_others_go_on(one: TaskClient, tmp_path: Path) -> None:
    gate = Gate(tmp_path / "gate")
    job = one.create_job("paused")
    for _ in range(3):
        job.add_task(Task(gate.code))
    job.submit()
    eventually(lambda: job.counts()["running"] == 1, DEADLINE_S)
    job.pause()
    other = one.run(Task("a = 1"))
    gate.open()
    one.barrier(other, timeout=DEADLINE_S)
    assert job.counts() == {"scheduled": 2, "running": 0, "succeeded": 1, "failed": 0}
    assert {row.reason for row in one.tasks(ids=job.ids, state="scheduled").rows} == {"paused"}
    assert one.jobs()[-1].state == "paused"
    later = job.add_task(Task("b = 1"))
    one.pause(job)  # of what was submitted
    job.submit()
    assert one.status(job.ids[-1]).reason == "paused"
    one.resume("paused")
    assert job.wait(DEADLINE_S)
    assert later in job.tasks


def test_an_active_duplicate_is_refused_or_returned(one: TaskClient, tmp_path: Path) -> None:
    gate = Gate(tmp_path / "gate")
    first = one.run(Task(gate.code, unique="nightly"))
    with pytest.raises(errors.DuplicateTask, match=f"task {first} of the unique key 'nightly'") as caught:
        one.run(Task("1", unique="nightly"))
    assert caught.value.first == first
    one.run(Task("1", after=10**9))  # another refusal is not this one's
    assert one.run(Task("1", unique="nightly", on_duplicate="return")) == first
    assert one.run(Task(gate.code, unique="weekly")) > first
    with pytest.raises(errors.TaskError, match="no task 1000000000 to wait for"):
        one.flush()
    job = one.create_job("report")
    job.unique = True
    job.add_task(Task(gate.code))
    job.submit()
    twin = one.create_job("report", priority=1)
    twin.unique = True
    twin.add_task(Task("1"))
    with pytest.raises(errors.DuplicateTask, match=f"job {job.id}"):
        twin.submit()
    gate.open()
    one.barrier([first, *job.ids], timeout=DEADLINE_S)
    assert one.run(Task("1", unique="nightly")) > first, "a key is free again when its task has ended"
    third = one.create_job("report")
    third.unique = True
    third.add_task(Task("1"))
    assert third.submit()


CLIENT = """
import sys
from ipytaskfarm import Task, TaskClient
tc = TaskClient(sys.argv[1])
for name, ends in (("stays", False), ("goes", True)):
    job = tc.create_job(name)
    job.abort_on_disconnect = ends
    for _ in range(2):
        job.add_task(Task("import time; time.sleep(%s)" % (30 if ends else 0.2)))
    job.submit()
    tc.flush()
    print(job.id, flush=True)
sys.stdin.read()
"""


@pytest.mark.alone
@pytest.mark.parametrize("end", ["kill", "exit"])
def test_a_job_outlives_its_client_unless_it_is_to_end_with_it(tmp_path: Path, end: str) -> None:
    with module_farm(2) as farm, farm.task_client() as tc:
        tc.progress = False
        client = subprocess.Popen(
            [sys.executable, "-c", CLIENT, str(farm.connection_file)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        )  # fmt: skip
        assert client.stdout is not None
        assert client.stdin is not None
        with client:
            stays, goes = (client.stdout.readline().strip() for _ in range(2))
            began_s = time.monotonic()
            if end == "kill":
                client.kill()
            else:
                client.stdin.close()
            client.wait(DEADLINE_S)
        found = tc.job(goes)
        assert found.wait(DEADLINE_S)
        assert time.monotonic() - began_s < 5.0 + 2.0, "it was to end within 5 s"
        assert {row.reason for row in tc.tasks(ids=found.ids).rows} == {"aborted with its job"}
        with pytest.raises(errors.TaskAborted, match="its client has gone"):
            tc.get_task_result(found.ids[0])
        attached = tc.job("stays")
        assert attached.id == stays
        assert attached.wait(DEADLINE_S)
        assert attached.counts()["succeeded"] == 2
        assert attached.results() == [{}, {}]
        tc.clear(attached.ids)
        with pytest.raises(KeyError, match="was never submitted, had no tasks, or was cleared"):
            tc.job("stays")


def test_what_happened_can_be_looked_up(one: TaskClient) -> None:
    one.clear()
    good = one.run(Task("a = 1", name="good"))
    bad = one.run(Task("1/0", name="bad", retries=1))
    one.barrier([good, bad], timeout=DEADLINE_S)
    whole = one.history()
    assert [event.what for event in one.history(ids=good)] == ["accepted", "started", "succeeded"]
    assert [event.what for event in one.history(name="bad")] == [
        "accepted", "started", "error", "started", "failed: error",
    ]  # fmt: skip
    assert {event.task for event in one.history(what="fail")} == {bad}
    assert "ZeroDivisionError" in one.history(what="fail")[0].more
    assert len(one.history(last=2)) == 2
    assert list(one.history(since=timedelta(minutes=5))) == list(whole)
    assert "ZeroDivisionError" in repr(whole)
    again = one.restart(good)
    one.barrier(again, timeout=DEADLINE_S)
    assert again[0] > bad


def test_the_history_of_a_running_task_has_its_start(one: TaskClient, tmp_path: Path) -> None:
    gate = Gate(tmp_path / "gate")
    task = one.run(Task(gate.code, name="at work"))
    eventually(lambda: one.status(task).started_at is not None, DEADLINE_S)
    (started,) = (row for row in one.history(task).rows if row.what == "started")
    assert (started.at, started.engine, started.more) == (one.status(task).started_at, 0, "attempt 1")
    assert [row.what for row in one.history(name="at work")] == ["accepted", "started"]
    assert [row.what for row in one.history(name="at work", last=1)] == ["started"]
    assert not one.history(task, what="succeeded").rows
    assert not one.history(task, since=time.time()).rows
    gate.open()
    one.barrier(task, timeout=DEADLINE_S)
    assert [row.what for row in one.history(task)] == ["accepted", "started", "succeeded"]


def test_what_is_aborted_one_by_one_does_not_hold_its_engine(one: TaskClient) -> None:
    """The engine begins the next task as the one before is interrupted: a recall would come too late."""
    for _ in range(3):
        ids = [one.run(Task("import time; time.sleep(300)")) for _ in range(4)]
        eventually(lambda ids=ids: one.status(ids[0]).state == "running", what="the first runs")  # type: ignore[misc]
        for task_id in ids:
            one.abort(task_id)
        assert one.run(Task("a = 1", pull="a"), block=True)["a"] == 1
