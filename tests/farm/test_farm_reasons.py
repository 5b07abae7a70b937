"""Every reason for which a task fails, on real engines, with the history of its attempts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from ipytaskfarm import Task, TaskClient, TaskEnvironment, errors
from ipytaskfarm.core.states import Reason
from ipytaskfarm.engine import current_task
from tests.support.farms import DEADLINE_S

pytestmark = pytest.mark.farm(memory_limit="400 MiB", max_engine_losses=2, unmet_timeout=0.3, grace=0.3)


class Broken(TaskEnvironment):
    def setup(self) -> None:
        raise OSError("no such model")


def die() -> None:
    import os

    os.kill(os.getpid(), 9)


def reject() -> None:
    from ipytaskfarm import errors

    raise errors.TaskRejectError("not here")


def _aborted(tc: TaskClient) -> int:
    task = int(tc.run(Task("import time; time.sleep(60)")))
    tc.abort(task, reason="a test")
    return task


def _with_its_job(tc: TaskClient) -> int:
    job = tc.create_job("ends", abort_on_failure=True)
    job.add_task(Task("1/0"))
    last = job.add_task(Task("import time; time.sleep(60)", targets=[0]))
    assert last is not None
    return int(job.submit()[-1])


def _refused(tc: TaskClient) -> int:
    return int(tc.run(Task("1", after=10**8)))


HOW: dict[Reason, Callable[[TaskClient], int]] = {
    Reason.ERROR: lambda tc: tc.run(Task("1/0")),
    Reason.ABORTED: _aborted,
    Reason.TIME_LIMIT: lambda tc: tc.run(Task("import time; time.sleep(60)", time_limit=0.2)),
    Reason.ENGINE_LOST: lambda tc: tc.run(Task(die)),
    Reason.MEMORY: lambda tc: tc.run(Task("x = bytearray(600_000_000)\nimport time; time.sleep(60)")),
    Reason.QUARANTINED: lambda tc: tc.run(Task(die, lost_retries=5)),
    Reason.REJECTED: lambda tc: tc.run(Task(reject)),
    Reason.UNMET: lambda tc: tc.run(Task("1", targets=[7])),
    Reason.ENVIRONMENT: lambda tc: tc.run(Task("1", environment=Broken())),
    Reason.JOB_ABORTED: _with_its_job,
    Reason.NEEDED: lambda tc: tc.run(Task("1", after=tc.run(Task("1/0")))),
    Reason.SKIPPED: lambda tc: tc.run(Task("1", after=tc.run(Task("1/0")), if_failed="skip")),
    Reason.DEFERRED: lambda tc: tc.run(Task(lambda: current_task().defer(after=60), defer_max=1)),
    Reason.REFUSED: _refused,
}
RUN_NEVER = {Reason.REFUSED, Reason.UNMET, Reason.NEEDED, Reason.SKIPPED}
ELSEWHERE = {Reason.TOO_LARGE: "a result of 4 GiB: tests/unit/test_agent_parts.py plays it"}


def test_no_reason_is_forgotten() -> None:
    assert HOW.keys() | ELSEWHERE.keys() == set(Reason)


@pytest.mark.parametrize("reason", HOW, ids=str)
def test_a_reason_and_its_history(tc: TaskClient, reason: Reason, tmp_path: Path) -> None:
    task = HOW[reason](tc)
    tc.barrier(task, timeout=DEADLINE_S)
    if reason is Reason.REFUSED:
        with pytest.raises(errors.TaskError, match="to wait for"):
            tc.get_task_result(task)
        return
    row = tc.status(task)
    assert (row.state, row.reason) == ("failed", reason)
    events = list(tc.history(ids=task))
    assert events[0].what == "accepted"
    assert events[-1].what == f"failed: {reason}"
    times = [event.at for event in events]
    assert times == sorted(times)
    runs = [event for event in events if event.what == "started"]
    if reason in RUN_NEVER:
        assert not runs
    elif reason not in (Reason.ABORTED, Reason.JOB_ABORTED):  # these may have begun, or not
        assert runs
        assert all(event.engine is not None for event in runs)
