"""`ipytaskfarm.testing` as users meet it: policies, depend functions, retries, limits and losses of engines."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ipytaskfarm import MapTask, Ref, StringTask, Task, errors
from ipytaskfarm.core.scheduler.settings import SchedulerSettings
from ipytaskfarm.policies import LIFO, FairShare, FairShareJobs, QueuePolicy
from ipytaskfarm.testing import Call, Fail, Hang, LoseEngine, Outcome, SimulatedFarm, Succeed

PAGE = Path(__file__).parents[2] / "docs" / "testing.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("block", BLOCKS)
def test_the_examples_of_the_page_pass(block: str) -> None:
    names: dict[str, Any] = {"__name__": "example"}
    exec(compile(block, str(PAGE), "exec"), names)
    tests = [value for name, value in names.items() if name.startswith("test_")]
    assert tests
    for test in tests:
        test()


# -- the order of the queue


@pytest.mark.parametrize(
    ("policy", "order"),
    [(None, [2, 3, 0, 1]), (LIFO, [3, 2, 1, 0]), (LIFO(), [3, 2, 1, 0])],
    ids=["the default", "a class", "an object"],
)
def test_a_policy_decides_the_order(policy: QueuePolicy | type[QueuePolicy] | None, order: list[int]) -> None:
    farm = SimulatedFarm(engines=1, policy=policy, hold=True)
    ids = [farm.submit(Task("x", priority=n // 2)) for n in range(4)]
    assert farm.started == []
    farm.resume()
    assert farm.run_until_idle() == []
    assert farm.started == [ids[n] for n in order]
    assert farm.now_s == 4.0


@pytest.mark.parametrize(("policy", "word"), [(FairShare, "client"), (FairShareJobs, "job")])
def test_clients_and_jobs_take_turns(policy: type[QueuePolicy], word: str) -> None:
    farm = SimulatedFarm(policy=policy, hold=True)
    first: dict[str, Any] = {word: "a"}
    second: dict[str, Any] = {word: "b"}
    many = [farm.submit(Task("x"), **first) for _ in range(3)]
    one = farm.submit(Task("x"), **second)
    farm.resume()
    farm.run_until_idle()
    assert farm.started == [many[0], one, *many[1:]]


def test_what_a_policy_raises_is_raised() -> None:
    class Broken(QueuePolicy):
        def key(self, task: Any) -> Any:
            raise LookupError("no key")

    with pytest.raises(LookupError, match="no key"):
        SimulatedFarm(policy=Broken).submit(Task("x"))
    with pytest.raises(TypeError, match="QueuePolicy"):
        SimulatedFarm(policy=len)  # type: ignore[arg-type]


def test_the_same_seed_gives_the_same_runs() -> None:
    def runs(seed: int) -> list[Any]:
        settings = SchedulerSettings(placement="random")
        farm = SimulatedFarm(engines=4, seed=seed, settings=settings, run=lambda task, attempt: Succeed(seconds=0.7))
        for n in range(20):
            farm.submit(Task("x", priority=n % 3))
            farm.advance(0.3)
        farm.run_until_idle()
        return farm.runs

    assert runs(1) == runs(1)
    assert runs(1) != runs(2)


# -- what runs do


def test_values_come_back_by_the_kind_of_task() -> None:
    farm = SimulatedFarm(engines=3)
    code = farm.submit(StringTask("a = 1", pull="a"), Succeed({"a": 7}))
    call = farm.submit(Task(len, args=("ab",)), Succeed(3))
    item = farm.submit(MapTask(len, ("ab",)), Succeed(4))
    assert farm.get_task_result(code) is None
    farm.advance(1)
    results = [farm.get_task_result(each) for each in (code, call, item)]
    assert [result.result for result in results if result is not None] == [{"a": 7}, 3, 4]
    assert [result.duration for result in results if result is not None] == [1.0] * 3


def test_tasks_are_really_called_with_the_results_of_others() -> None:
    farm = SimulatedFarm(run=Call(seconds=2))
    first = farm.submit(StringTask("b = base + 1", pull="b", push={"base": 6}))
    second = farm.submit(Task(lambda x: 6 * x, args=(Ref(first, "b"),)))
    third = farm.submit(StringTask("c = b", pull="c"))
    fourth = farm.submit(StringTask("c = b", pull="c", clear_before=True))
    assert farm.run_until_idle() == []
    result = farm.get_task_result(second)
    assert result is not None
    assert result.result == 42
    assert farm.status(third).state == "succeeded"
    assert farm.status(fourth).error == "NameError: name 'b' is not defined"


def test_retries_wait_and_count() -> None:
    def run(task: Task, attempt: int) -> Outcome:
        return Succeed(attempt) if attempt == 3 else Fail(ValueError(f"no {attempt}"), seconds=2)

    farm = SimulatedFarm(run=run)
    task = farm.submit(Task(len, args=("",), retries=2, retry_delay=lambda failed: 10.0 * failed))
    farm.run_until_idle()
    assert [(run.began_s, run.ended_s, run.outcome) for run in farm.runs] == [
        (0, 2, "error"), (12, 14, "error"), (34, 35, ""),
    ]  # fmt: skip
    result = farm.get_task_result(task)
    assert result is not None
    assert result.result == 3
    assert [attempt.outcome for attempt in result.attempts] == ["error", "error", ""]


def test_the_recovery_task_runs_at_last() -> None:
    seen = []

    def run(task: Task, attempt: int) -> Outcome:
        seen.append((task.name, attempt))
        return Fail(ValueError("no")) if task.name == "first" else Call()

    farm = SimulatedFarm(run=run)
    last = Task(lambda: "saved", name="last")
    task = farm.submit(Task(len, args=("",), name="first", recovery_task=last))
    farm.run_until_idle()
    assert seen == [("first", 1), ("last", 2)]
    result = farm.get_task_result(task)
    assert result is not None
    assert result.result == "saved"


def test_a_time_limit_ends_what_takes_longer() -> None:
    farm = SimulatedFarm(engines=3)
    hangs, slow, quick = (
        farm.submit(Task("x", time_limit=5), outcome) for outcome in (Hang(), Succeed(seconds=6), Succeed(seconds=4))
    )
    assert farm.run_until_idle() == []
    assert farm.now_s == 5
    assert [farm.status(each).reason for each in (hangs, slow, quick)] == ["time limit", "time limit", ""]
    result = farm.get_task_result(hangs)
    assert result is not None
    with pytest.raises(errors.TimeLimitExceeded, match="5 s"):
        result.raise_exception()


def test_a_rejected_engine_is_not_tried_at_once() -> None:
    farm = SimulatedFarm(engines=2)
    task = farm.submit(Task("x"), [Fail(errors.TaskRejectError("not here")), Succeed()])
    farm.run_until_idle()
    assert [run.outcome for run in farm.runs] == ["rejected", ""]
    assert len({run.engine for run in farm.runs}) == 2
    assert farm.status(task).state == "succeeded"


# -- engines


def test_a_lost_engine_is_replaced_and_its_task_runs_again() -> None:
    farm = SimulatedFarm(engines=1)
    once = farm.submit(Task("x"), LoseEngine(2))
    twice = farm.submit(Task("x", retries=1), [LoseEngine(2), Succeed()])
    farm.run_until_idle()
    assert (farm.status(once).state, farm.status(once).reason) == ("failed", "engine lost")
    assert farm.status(twice).state == "succeeded"
    assert [run.outcome for run in farm.runs] == ["engine lost", "engine lost", ""]
    assert farm.engines == [0]


def test_engines_come_die_and_go() -> None:
    farm = SimulatedFarm(engines=0)
    task = farm.submit(Task("x", lost_retries=1))
    assert "no engines" in farm.explain(task)
    assert farm.add_node(2) == [0, 1]
    place = farm.status(task).engineid
    assert place is not None
    farm.kill_engine(place)
    farm.advance(60)
    assert [run.outcome for run in farm.runs] == ["engine lost", ""]
    assert farm.engines == [0, 1]
    farm.remove_engine(0)
    farm.advance(60)
    assert farm.engines == [1]


def test_resources_limit_what_runs_at_once() -> None:
    farm = SimulatedFarm(engines=4, resources={"licence": 2, "memory": "2 GiB"})
    ids = [farm.submit(Task("x", resources={"licence": 1})) for _ in range(3)]
    big = farm.submit(Task("x", resources={"memory": "3 GiB"}))
    assert farm.status(ids[2]).reason == "waiting for resources"
    assert "licence" in farm.explain(ids[2])
    assert farm.run_until_idle(at_most=100) == [big]
    assert farm.status(big).reason == "no suitable engine"
    assert [run.began_s for run in farm.runs] == [0, 0, 1]
    farm.add_node(1, resources={"memory": "4 GiB"})
    assert farm.status(big).engineid == 4


def test_requirements_and_explanations_name_the_engine() -> None:
    farm = SimulatedFarm(engines=1, properties={"gpu": "T4"})
    task = farm.submit(Task("x", requires={"property:gpu": "A100"}))
    assert "gpu == A100: it is T4" in farm.explain(task)
    (new,) = farm.add_node(1, properties={"gpu": "A100"})
    assert farm.status(task).engineid == new


def test_a_depend_function_that_raises_is_explained_and_asked_again() -> None:
    farm = SimulatedFarm(engines=1)
    task = farm.submit(Task("x", depend=lambda properties: properties["size"] > 3))
    assert "KeyError" in farm.explain(task)
    assert farm.run_until_idle(at_most=60) == [task]
    farm.set_properties(0, {"size": 2})
    assert farm.status(task).state == "scheduled"
    farm.set_properties(0, {"size": 4})
    farm.run_until_idle()
    assert farm.started == [task]


# -- time, and what is asked wrongly


def test_time_passes_only_when_it_is_told_to() -> None:
    farm = SimulatedFarm()
    task = farm.submit(Task("x"), Succeed(seconds=3))
    farm.advance(2.5)
    assert (farm.status(task).state, farm.now_s) == ("running", 2.5)
    while farm.status(task).state == "running":
        assert farm.advance_to_next()
    assert farm.now_s == 3
    assert farm.queue_status() == {"scheduled": 0, "pending": 0, "succeeded": 1, "failed": 0}


def test_running_tasks_are_finished_and_aborted_by_hand() -> None:
    farm = SimulatedFarm(engines=2, run=Hang())
    done, broken, aborted, gone = (farm.submit(Task("x")) for _ in range(4))
    farm.advance(5)
    farm.finish(done)
    farm.finish(broken, Fail(ValueError("by hand")))
    assert farm.status(broken).error == "ValueError: by hand"
    assert farm.status(done).duration == 5
    farm.abort([aborted, gone])
    with pytest.raises(errors.TaskAborted):
        farm.get_task_result(aborted)
    assert farm.run_until_idle() == []
    assert [run.outcome for run in farm.runs] == ["", "error", "aborted", "aborted"]


def test_a_unique_task_is_refused_or_found() -> None:
    farm = SimulatedFarm()
    first = farm.submit(Task("x", unique="k"))
    with pytest.raises(errors.DuplicateTask, match="k"):
        farm.submit(Task("x", unique="k"))
    assert farm.submit(Task("x", unique="k", on_duplicate="return")) == first


WRONG: dict[str, tuple[Callable[[SimulatedFarm, int], object], type[Exception], str]] = {
    "an unknown task": (lambda farm, waits: farm.status(99), IndexError, "99"),
    "an unknown explanation": (lambda farm, waits: farm.explain(99), IndexError, "99"),
    "an unknown result": (lambda farm, waits: farm.get_task_result(99), IndexError, "99"),
    "an unknown abort": (lambda farm, waits: farm.abort([99]), IndexError, "99"),
    "a task that was never begun": (lambda farm, waits: farm.finish(waits), ValueError, "does not run .scheduled"),
    "no end": (lambda farm, waits: farm.finish(0, Hang()), ValueError, "no end"),
    "time backwards": (lambda farm, waits: farm.advance(-1), ValueError, "seconds"),
    "no time": (lambda farm, waits: farm.advance(None), TypeError, "seconds"),  # type: ignore[arg-type]
    "no outcome": (lambda farm, waits: farm.submit(Task("x"), 3), TypeError, "Succeed, Fail"),  # type: ignore[arg-type]
    "no outcomes": (lambda farm, waits: farm.submit(Task("x"), []), ValueError, "empty"),
    "no error": (lambda farm, waits: Fail("no"), TypeError, "exception"),  # type: ignore[arg-type]
    "a negative duration": (lambda farm, waits: Succeed(seconds=-1), ValueError, "seconds"),
    "a value that is no dict": (lambda farm, waits: farm.finish(0, Succeed(3)), TypeError, "dict of the names"),
    "an unknown engine": (lambda farm, waits: farm.kill_engine(7), errors.InvalidEngineID, "7"),
    "a node twice": (lambda farm, waits: farm.add_node(name="node1"), ValueError, "node1"),
    "what cannot travel": (
        lambda farm, waits: farm.submit(Task(len, args=(threading.Lock(),))), errors.UnpickleableException, "args",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_mistakes_are_named(name: str) -> None:
    call, kind, text = WRONG[name]
    farm = SimulatedFarm()
    farm.submit(Task("x"), Hang())
    waits = farm.submit(Task("x"))
    with pytest.raises(kind, match=text):
        call(farm, waits)
    assert farm.status(waits).state == "scheduled"
