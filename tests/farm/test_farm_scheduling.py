"""Where and when tasks run on a real farm: depend functions, targets, priorities, rejections, policies."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ipytaskfarm import Farm, MultiEngineClient, Task, TaskClient, errors
from ipytaskfarm.core import messages
from tests.support.farms import DEADLINE_S, Gate, ask, module_farm, until_running
from tests.support.polling import eventually

pytestmark = pytest.mark.farm


@pytest.fixture
def mec(farm: Farm) -> Iterator[MultiEngineClient]:
    mec = farm.multiengine_client()
    mec.clear_properties()
    yield mec
    mec.clear_properties()


def where(tc: TaskClient, ids: list[int]) -> list[int]:
    tc.barrier(ids, timeout=DEADLINE_S)
    return [tc.get_task_result(i, raw=False).engineid for i in ids]


def blocked(tc: TaskClient, task: int) -> bool:
    return tc.status(task).reason == "no suitable engine"


# -- depend


def test_depend_chooses_the_engine(tc: TaskClient) -> None:
    ids = [tc.run(Task("a = 1", depend=lambda properties: properties["id"] == 1)) for _ in range(20)]
    assert where(tc, ids) == [1] * 20


def test_depend_closes_over_what_it_uses(tc: TaskClient) -> None:
    chosen = 0

    def suits(properties: dict[str, Any], wanted: int = chosen) -> bool:
        return bool(properties["id"] == wanted == chosen)

    assert where(tc, [tc.run(Task("a = 1", depend=suits))]) == [0]


def test_a_blocked_task_runs_when_properties_change_and_delays_nobody(tc: TaskClient, mec: MultiEngineClient) -> None:
    task = tc.run(Task("a = 1", depend=lambda properties: properties["RAM"] > 2**32))
    eventually(lambda: blocked(tc, task), DEADLINE_S)
    others = [tc.run(Task("a = 2")) for _ in range(20)]
    tc.barrier(others, timeout=DEADLINE_S)
    assert "KeyError" in tc.explain(task)
    mec.set_properties({"RAM": 2**33}, targets=1)
    assert where(tc, [task]) == [1]


def test_a_depend_function_that_says_no_can_be_aborted(tc: TaskClient) -> None:
    task = tc.run(Task("a = 1", depend=lambda properties: False))
    eventually(lambda: "said no" in tc.explain(task), DEADLINE_S)
    tc.abort(task)


def test_properties_set_on_the_engine_are_seen(tc: TaskClient, mec: MultiEngineClient) -> None:
    mec.execute("from ipytaskfarm.engine import get_engine\nget_engine(id).properties['mark'] = id", targets=0)
    task = tc.run(Task("a = 1", depend=lambda properties: properties.get("mark") == 0))
    assert where(tc, [task]) == [0]


def test_something_that_is_no_function_never_says_yes(tc: TaskClient) -> None:
    task = tc.run(Task("a = 1", depend=5))
    eventually(lambda: "its depend function failed" in tc.explain(task), DEADLINE_S)
    tc.abort(task)


# -- targets, rejections, priorities


def test_targets(tc: TaskClient) -> None:
    assert where(tc, [tc.run(Task("a = 1", targets=[n % 2])) for n in range(10)]) == [0, 1] * 5
    nowhere = tc.run(Task("a = 1", targets=[7]))
    eventually(lambda: blocked(tc, nowhere), DEADLINE_S)
    assert "targets [7]" in tc.explain(nowhere)
    tc.abort(nowhere)


def test_a_task_may_reject_engines(tc: TaskClient) -> None:
    code = "from ipytaskfarm import errors\nif id != 1: raise errors.TaskRejectError('not here')\na = id"
    ids = [tc.run(Task(code, pull="a")) for _ in range(5)]
    assert where(tc, ids) == [1] * 5


def test_higher_priority_goes_first(tc: TaskClient, gate: Gate) -> None:
    blockers = [tc.run(Task(gate.code, targets=[i])) for i in (0, 1)]
    for task in blockers:
        until_running(tc, task)
    stamp = "import time; a = time.monotonic(); time.sleep(0.05)"
    low = [tc.run(Task(stamp, pull="a", targets=[0])) for _ in range(5)]
    high = tc.run(Task(stamp, pull="a", targets=[0], priority=5))
    tc.flush()
    # What was sent ahead before the urgent one came is called back, as long as the one before it lasts.
    eventually(lambda: all(tc.status(i).reason != "sent ahead" for i in low), DEADLINE_S)
    gate.open()
    tc.barrier([*low, high], timeout=DEADLINE_S)
    began = [tc.get_task_result(i).ns.a for i in [*low, high]]
    assert not any(began[-1] > b for b in began[:-1]), "tasks of low priority went first"


@pytest.mark.alone
@pytest.mark.parametrize(("low_s", "work_s"), [(0.05, 0.05), (0.001, 0.1)])
def test_ten_thousand_low_ones_hardly_delay_a_high_one(low_s: float, work_s: float) -> None:
    with module_farm(1) as farm, farm.task_client() as tc:
        code = f"import time; time.sleep({low_s})"
        low = [tc.run(Task(code, priority=-10)) for _ in range(10_000)]
        tc.wait(low[: int(0.5 / low_s)][-1], timeout=DEADLINE_S)
        high = tc.run(Task("a = 1", pull="a", priority=10))
        tr = tc.get_task_result(high, block=True, timeout=DEADLINE_S)
        tc.abort(low)
        between = [
            row
            for row in tc.tasks(ids=low, state="succeeded").rows
            if row.started_at is not None and tr.submitted_at < row.started_at < tr.started_at
        ]
        # The one that ran when it came is none of these; one more may begin while it is on its way.
        assert sum(row.duration or 0.0 for row in between) <= work_s + low_s + 0.05


def test_a_held_farm_starts_nothing(tc: TaskClient, farm: Farm) -> None:
    ask(farm, messages.HoldFarm(True))
    try:
        task = tc.run(Task("a = 1"))
        eventually(lambda: tc.status(task).reason == "paused", DEADLINE_S)
    finally:
        ask(farm, messages.HoldFarm(False))
    tc.barrier(task, timeout=DEADLINE_S)


# -- four engines, none, and other settings


def test_no_more_tasks_run_than_there_are_engines() -> None:
    with module_farm(4) as farm, farm.task_client() as tc:
        ids = [tc.run(Task("import time; time.sleep(0.05)")) for _ in range(60)]
        seen = []

        def done() -> bool:
            counts = tc.queue_status()
            seen.append(counts)
            return bool(counts["succeeded"] == 60)

        eventually(done, 60.0)
        assert max(counts["pending"] for counts in seen) <= 4
        assert {sum(counts.values()) for counts in seen[1:]} <= {60, sum(seen[0].values())}
        assert len(tc.queue_status(verbose=True)["succeeded"]) == 60
        assert {tc.get_task_result(i).engineid for i in ids} == {0, 1, 2, 3}


def test_without_engines_tasks_wait_and_run_when_one_joins() -> None:
    with module_farm(0) as farm, farm.task_client() as tc:
        task = tc.run(Task("a = 1", pull="a"))
        tc.flush(timeout=DEADLINE_S)
        assert tc.get_task_result(task, block=False) is None
        assert "no engines" in tc.explain(task)
        ask(farm, messages.SetWanted(1))
        tc.barrier(task, timeout=DEADLINE_S)
        assert tc.get_task_result(task).ns.a == 1


def test_unmet_tasks_end_and_failing_engines_rest_where_that_is_set() -> None:
    with module_farm(1, unmet_timeout=0.5, failure_penalty=0.5) as farm, farm.task_client() as tc:
        with pytest.raises(errors.TaskTimeout):
            tc.run(Task("a = 1", targets=[9]), block=True).raise_exception()
        failed = tc.run(Task("1/0"))
        tc.barrier(failed, timeout=DEADLINE_S)
        began = time.monotonic()
        tc.run(Task("a = 1"), block=True)
        assert time.monotonic() - began > 0.25, "the engine was not withheld"


POLICY = """
from ipytaskfarm.policies import QueuePolicy

class Backwards(QueuePolicy):
    def key(self, task):
        return -task.queue_seq
"""


def test_a_queue_policy_of_the_users_own(tmp_path: Path, gate: Gate) -> None:
    (tmp_path / "my_policy_module.py").write_text(POLICY)
    with (
        module_farm(1, queue_policy="my_policy_module:Backwards", policy_path=[tmp_path]) as farm,
        farm.task_client() as tc,
    ):
        blocker = tc.run(Task(gate.code))
        until_running(tc, blocker)
        ids = [tc.run(Task("import time; a = time.monotonic(); time.sleep(0.03)", pull="a")) for _ in range(5)]
        tc.flush()
        gate.open()
        tc.barrier(ids, timeout=DEADLINE_S)
        began = [tc.get_task_result(i).ns.a for i in ids]
        assert began == sorted(began, reverse=True)
