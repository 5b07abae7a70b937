"""The seed's QuickStart on a real farm: connect, submit, wait, fetch, look."""

from __future__ import annotations

import re
import time
from typing import Any

import pytest

from ipytaskfarm import Farm, MultiEngineClient, StringTask, Task, TaskClient, TaskResult, client
from ipytaskfarm.core import errors
from tests.support.farms import DEADLINE_S, Gate, engines, python, until_running, value

pytestmark = pytest.mark.farm(name="default")

SEED_TASKS = 1000


@pytest.fixture(scope="module", autouse=True)
def seed_ids(farm: Farm) -> list[int]:
    """The QuickStart's loop, before anything else is submitted."""
    with TaskClient() as tc:
        ids = [tc.run(Task("a = %i" % n, pull="a")) for n in range(SEED_TASKS)]  # noqa: UP031 - as in the seed
        tc.barrier(ids)
    return ids


# ---------------------------------------------------------------------------------------- connecting


def test_a_client_without_arguments_finds_the_default_farm(farm: Farm) -> None:
    with TaskClient() as tc, client.TaskClient() as other:
        assert tc.farm == other.farm == "default"
        port = client.default_task_address[1]
        assert f"127.0.0.1:{port}" in repr(tc)
    with TaskClient(("127.0.0.1", port)) as tc, TaskClient(str(farm.connection_file)) as other:
        assert tc.queue_status() == other.queue_status()


@pytest.mark.parametrize(
    ("where", "error", "parts"),
    [
        ("nowhere", errors.FarmNotRunning, ["nowhere", "ipytaskfarm start --farm nowhere"]),
        ("/nowhere/farm.json", errors.FarmNotRunning, ["/nowhere/farm.json", "ipytaskfarm start"]),
        (("127.0.0.1", 1), errors.SecurityError, ["127.0.0.1", "key_file"]),
    ],
)
def test_a_farm_that_is_not_there_is_named(where: Any, error: type[Exception], parts: list[str]) -> None:
    began = time.monotonic()
    with pytest.raises(error) as raised:
        TaskClient(where)
    assert time.monotonic() - began < DEADLINE_S
    for part in parts:
        assert part in str(raised.value)


# ---------------------------------------------------------------------------------------- ids and waiting


def test_the_ids_of_a_fresh_farm_count_from_zero(seed_ids: list[int]) -> None:
    assert seed_ids == list(range(SEED_TASKS))


def test_another_process_goes_on_with_larger_ids(tc: TaskClient, seed_ids: list[int]) -> None:
    code = """
from ipytaskfarm import Task, TaskClient
tc = TaskClient()
print(tc.run(Task("b = 2 * 21", pull="b")))
print(tc.run(Task("b = 1", pull="b"), block=True).taskid)
"""
    first, second = map(int, python(code).split())
    assert seed_ids[-1] < first < second
    assert tc.get_task_result(first, block=True)["b"] == 42
    assert tc.run(Task("pass")) not in (first, second)


def test_barrier_takes_an_id_several_or_none(tc: TaskClient, seed_ids: list[int]) -> None:
    assert tc.barrier(seed_ids) is None
    tc.barrier(5)
    tc.barrier([])
    tc.barrier()
    with pytest.raises(IndexError, match="9999999"):
        tc.barrier([5, 9_999_999])


def test_a_barrier_ends_with_its_timeout(tc: TaskClient, gate: Gate) -> None:
    task = tc.run(Task(gate.code))
    with pytest.raises(TimeoutError):
        tc.barrier(task, timeout=0.1)
    gate.open()
    tc.barrier(task, timeout=DEADLINE_S)


# ---------------------------------------------------------------------------------------- results


def test_the_result_shows_what_the_seed_shows(tc: TaskClient, mec: MultiEngineClient, seed_ids: list[int]) -> None:
    tr = tc.get_task_result(73)
    assert repr(tr) == "TaskResult[ID:73]:{'a': 73}"
    assert repr(tr.ns) == "NS{'a': 73}"
    assert tr.results["a"] == tr["a"] == tr.ns.a == 73
    assert tr.keys == ["a"]
    assert tr.taskid == 73
    assert tr.engineid in mec.get_ids()
    assert tr.failure is None
    for stamp in (tr.submitted, tr.completed):
        assert re.fullmatch(r"\d{4}/\d\d/\d\d \d\d:\d\d:\d\d", stamp)
    assert tr.submitted_at <= tr.started_at <= tr.completed_at
    assert 0.0 <= tr.duration < DEADLINE_S
    assert tr.attempts[0].engine == tr.engineid
    with pytest.raises(KeyError):
        tr["z"]
    with pytest.raises(AttributeError):
        _ = tr.ns.z
    with pytest.raises(AttributeError):
        tr.ns = 1


def test_both_engines_have_worked(tc: TaskClient, seed_ids: list[int]) -> None:
    assert {tc.get_task_result(i).engineid for i in seed_ids} == {0, 1}


def test_a_client_is_told_which_ids_are_not_there(tc: TaskClient) -> None:
    with pytest.raises(IndexError, match="9999999"):
        tc.get_task_result(9_999_999)
    with pytest.raises(TypeError, match="integer task id"):
        tc.get_task_result("73")  # type: ignore[arg-type]


def test_id_on_an_engine_is_its_id(tc: TaskClient) -> None:
    tr = tc.run(Task("a = str(id); b = id(a) == id(a)", pull=["a", "b", "id"]), block=True)
    assert tr["a"] == str(tr.engineid) == str(tr["id"])
    assert tr["b"] is True


def test_the_duration_is_of_the_run_alone(tc: TaskClient) -> None:
    first = tc.run(Task("import time; time.sleep(2)", targets=0))
    second = tc.run(Task("a = 1", targets=0))
    tc.barrier([first, second], timeout=DEADLINE_S)
    slept, waited = tc.get_task_result(first), tc.get_task_result(second)
    assert 2.0 <= slept.duration < DEADLINE_S
    assert waited.duration < 1.5
    assert (waited.started_at - waited.submitted_at).total_seconds() > 0.5


def test_a_running_task_has_no_result_yet(tc: TaskClient, gate: Gate) -> None:
    task = tc.run(Task(gate.code + "a = 5", pull="a"))
    assert tc.get_task_result(task, block=False) is None
    until_running(tc, task)
    assert tc.get_task_result(task, block=False) is None
    with pytest.raises(TimeoutError, match=f"task {task}"):
        tc.get_task_result(task, block=True, timeout=0.05)
    gate.open()
    assert tc.get_task_result(task, block=True, timeout=DEADLINE_S)["a"] == 5
    assert tc.get_task_result(task)["a"] == 5


def test_another_process_waits_for_a_task_of_ours(tc: TaskClient, gate: Gate) -> None:
    task = tc.run(Task(gate.code + "a = 5", pull="a"))
    until_running(tc, task)
    code = """
import sys, pathlib
from ipytaskfarm import TaskClient
task, gate = int(sys.argv[1]), pathlib.Path(sys.argv[2])
tc = TaskClient()
print(tc.get_task_result(task, block=False))
gate.touch()
print(tc.get_task_result(task, block=True))
"""
    shown = python(code, str(task), str(gate.path))
    assert shown.splitlines() == ["None", f"TaskResult[ID:{task}]:{{'a': 5}}"]


# ---------------------------------------------------------------------------------------- push and pull


@pytest.mark.parametrize(
    ("pull", "expected"),
    [(None, {}), ("a", {"a": 1}), (["a"], {"a": 1}), (("a", "b"), {"a": 1, "b": 2}), ([], {})],
)
def test_what_is_pulled(pull: Any, expected: dict[str, int], tc: TaskClient) -> None:
    assert tc.run(Task("a = 1; b = 2", pull=pull), block=True).results == expected


def test_pushed_names_come_before_what_is_there(tc: TaskClient, mec: MultiEngineClient) -> None:
    mec.push({"shade": "engine's", "other": "engine's"})
    task = StringTask("both = (shade, other)", push={"shade": "task's"}, pull="both")
    assert tc.run(task, block=True)["both"] == ("task's", "engine's")
    assert task.push == {"shade": "task's"}


def test_names_of_the_multiengine_client_and_of_tasks_are_the_same(tc: TaskClient, mec: MultiEngineClient) -> None:
    mec.push({"from_mec": [1, 2]})
    assert value(tc, "a = from_mec + [3]", "a") == [1, 2, 3]
    mec.execute("import math as from_execute")
    assert value(tc, "a = from_execute.pi > 3", "a") is True
    value(tc, "left_by_task = 'here'", "left_by_task", targets=1)
    assert mec.pull("left_by_task", targets=1) == ["here"]
    assert value(tc, "a = left_by_task", "a", targets=1) == "here"


def test_clearing_empties_the_namespace(tc: TaskClient, mec: MultiEngineClient) -> None:
    mec.push({"kept": 1, "gone": 2}, targets=0)
    assert tc.run(Task("a = 'gone' in globals()", pull="a", targets=0, clear_before=True), block=True)["a"] is False
    mec.push({"gone": 2}, targets=0)
    failed = tc.run(Task("gone; 1/0", targets=0, clear_after=True), block=True)
    assert failed.failure.type is ZeroDivisionError
    after = tc.run(Task("a = 'gone' in globals(), int(id)", pull="a", targets=0), block=True)
    assert after["a"] == (False, 0)


def test_the_same_task_may_be_run_often(tc: TaskClient) -> None:
    task = Task("a = n * 2", pull="a", push={"n": 4})
    ids = [tc.run(task) for _ in range(5)]
    tc.barrier(ids)
    assert len(set(ids)) == 5
    assert {tc.get_task_result(i)["a"] for i in ids} == {8}


# ---------------------------------------------------------------------------------------- several clients, the rest


def test_one_truth_for_all_clients(tc: TaskClient, seed_ids: list[int]) -> None:
    tc.barrier()
    status = tc.queue_status()
    assert list(status) == ["scheduled", "pending", "succeeded", "failed"]
    shown = python("from ipytaskfarm import TaskClient; print(TaskClient().queue_status())")
    assert shown.strip() == str(status)
    verbose = tc.queue_status(verbose=True)
    assert {name: len(ids) for name, ids in verbose.items()} == status
    assert set(seed_ids) <= set(verbose["succeeded"])


def test_a_client_that_goes_leaves_its_tasks(tc: TaskClient) -> None:
    code = """
from ipytaskfarm import Task, TaskClient
tc = TaskClient()
print([tc.run(Task(f"a = {n}", pull="a")) for n in range(50)])
"""
    ids = [int(word) for word in re.findall(r"\d+", python(code))]
    tc.barrier(ids, timeout=DEADLINE_S)
    assert [tc.get_task_result(i)["a"] for i in ids] == list(range(50))


def test_plain_callables_and_objects_with_execute(tc: TaskClient) -> None:
    class Job:
        def __init__(self) -> None:
            self.result = 0

        def execute(self) -> None:
            self.result = 42

    assert tc.run(lambda: 6 * 7, block=True).result == 42
    assert tc.run(Job(), block=True).result == 42
    before = tc.run(Task("pass"))
    with pytest.raises(TypeError, match="Task"):
        tc.run(5)
    with pytest.raises(TypeError, match=r"Task\('a = 5'\)"):
        tc.run("a = 5")
    assert tc.run(Task("pass")) == before + 1


def test_status_and_tables(tc: TaskClient) -> None:
    ids = [tc.run(Task("1/0", name="doomed")), tc.run(Task("pass", name="fine"))]
    tc.barrier(ids)
    assert tc.status(ids[0]).state == "failed"
    assert list(tc.tasks(name="doomed")) == ids[:1]
    assert tc.status(ids[1]).engineid in [row.id for row in engines_of(tc)]
    assert "ZeroDivisionError" in repr(tc.tasks(ids=ids))
    assert list(tc.tasks(ids=ids, state="failed")) == ids[:1]
    assert "succeeded" in tc.explain(ids[1])
    assert "ZeroDivisionError" in tc.explain(ids[0])
    with pytest.raises(IndexError):
        tc.status(9_999_999)
    with pytest.raises(IndexError):
        tc.explain(9_999_999)


def engines_of(tc: TaskClient) -> list[Any]:
    with MultiEngineClient() as mec:
        return mec.engines()


def test_wait_and_as_completed(tc: TaskClient, gate: Gate) -> None:
    slow = tc.run(Task(gate.code))
    quick = [tc.run(Task(f"a = {n}", pull="a")) for n in range(3)]
    done, left = tc.wait([slow, *quick], timeout=DEADLINE_S, return_when="first")
    assert slow in left
    assert done
    order = []
    for task in tc.as_completed([slow, *quick], timeout=DEADLINE_S):
        order.append(task)
        if len(order) == 3:
            gate.open()
    assert sorted(order[:3]) == quick
    assert order[3] == slow
    assert tc.wait([slow, *quick]) == ([slow, *quick], [])


def test_clear_forgets_results_and_ids_go_on(tc: TaskClient) -> None:
    ids = [tc.run(Task("a = 1", pull="a")) for _ in range(3)]
    tc.barrier(ids)
    assert tc.clear(ids[:2]) == 2
    for call in (tc.get_task_result, tc.status):
        with pytest.raises(IndexError):
            call(ids[0])
    with pytest.raises(KeyError, match=str(ids[0])):
        tc.clear([ids[0], ids[2]])
    with pytest.raises(IndexError):
        tc.get_task_result(ids[2])
    assert tc.run(Task("pass")) > ids[-1]


def test_a_result_is_a_task_result(tc: TaskClient) -> None:
    tr = tc.run(Task("print('out'); import sys; print('err', file=sys.stderr)"), block=True)
    assert isinstance(tr, TaskResult)
    assert (tr.stdout, tr.stderr) == ("out\n", "err\n")
    assert tr.status == "succeeded"


def test_flush_says_that_all_is_on_disk(tc: TaskClient, farm: Farm) -> None:
    ids = [tc.run(Task("pass")) for _ in range(100)]
    tc.flush(timeout=DEADLINE_S)
    code = (
        "import sys; from ipytaskfarm import TaskClient\n"
        "print(len(TaskClient().tasks(ids=range(*map(int, sys.argv[1:])))))"
    )
    assert int(python(code, str(ids[0]), str(ids[-1] + 1))) == 100
    assert len(engines(farm)) == 2
