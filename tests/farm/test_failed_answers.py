"""A bug in an answer that changes the state is that question's error: the controller goes on with the saved state."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ipytaskfarm import Farm, Task, TaskClient, errors
from ipytaskfarm.core import messages
from ipytaskfarm.core.messages.tables import FarmState
from tests.support.farms import DEADLINE_S, Gate, ask, module_farm, until_running

pytestmark = [pytest.mark.farm, pytest.mark.timeout(120)]

BROKEN = '''
import sys

from ipytaskfarm.core import messages
from ipytaskfarm.core.scheduler import scheduler
from ipytaskfarm.policies import QueuePolicy


def fails_half_way(farm, session, n, question, now, out):
    """Forget every second task, and the engines, without a save; then fail."""
    for task in list(farm.tasks.unfinished)[::2]:
        del farm.tasks.unfinished[task]
    farm.tasks.finals.clear()
    farm.engines.by_name.clear()
    raise ZeroDivisionError("half way")


class InOrder(QueuePolicy):
    def key(self, task):
        return task.queue_seq


# Tests import this too, to see whether it can be loaded.
if sys.modules["__main__"].__spec__.name == "ipytaskfarm.controller.__main__":
    scheduler.QUESTIONS[messages.MarkTasksFailed] = fails_half_way
'''


@pytest.fixture(scope="module")
def farm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Farm]:
    folder: Path = tmp_path_factory.mktemp("policy")
    (folder / "broken_answers.py").write_text(BROKEN)
    with module_farm(1, queue_policy="broken_answers:InOrder", policy_path=[folder]) as farm:
        yield farm


def state(farm: Farm) -> FarmState:
    found = ask(farm, messages.FarmStatus())
    assert isinstance(found, FarmState)
    return found


def test_an_answer_that_fails_half_way_changes_nothing(farm: Farm, gate: Gate) -> None:
    with farm.task_client() as tc, farm.task_client() as other:
        done = [tc.run(Task(f"a = {i}", pull="a")) for i in range(20)]
        tc.barrier(done, timeout=DEADLINE_S)
        running = other.run(Task(gate.code + "a = 'through'", pull="a"))
        until_running(other, running)
        waiting = [other.run(Task(f"a = {i}", pull="a")) for i in range(20)]
        other.flush()
        before = state(farm)

        began_s = time.monotonic()
        with pytest.raises(errors.KernelError, match="half way"):
            tc.mark_failed(waiting[0])
        assert sum(other.queue_status().values()) == 41
        print(f"answered, and another client served, after {time.monotonic() - began_s:.2f} s")
        after = state(farm)
        assert after.pid == before.pid
        assert after.epoch == before.epoch + 1

        # It is not tried again for a while: each time costs all clients a new epoch.
        with pytest.raises(errors.KernelError, match="tried again in"):
            tc.mark_failed(waiting[1])
        assert state(farm).epoch == after.epoch

        assert [tc.get_task_result(i).ns.a for i in done] == list(range(20))
        gate.open()
        other.barrier([running, *waiting], timeout=DEADLINE_S)
        assert other.get_task_result(running).ns.a == "through"
        assert [other.get_task_result(i).ns.a for i in waiting] == list(range(20))
        assert other.tasks(ids=[running]).rows[0].attempts == 1, "its run went on"
        assert tc.queue_status() == {"scheduled": 0, "pending": 0, "succeeded": 41, "failed": 0}


def test_the_farm_stops_as_usual_after_it(farm: Farm) -> None:
    with TaskClient(str(farm.connection_file)) as tc:
        assert tc.run(Task("a = 2", pull="a"), block=True)["a"] == 2
