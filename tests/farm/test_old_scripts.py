"""Test the calls, names and exceptions that scripts for IPython 0.10 use; only their import line changes."""

from __future__ import annotations

import importlib
import io
from typing import Any

import pytest

from ipytaskfarm import Farm, MapTask, MultiEngineClient, StringTask, Task, TaskClient, client, errors
from ipytaskfarm.client import Failure
from ipytaskfarm.core import messages
from tests.support.farms import DEADLINE_S, until_engines
from tests.support.polling import eventually

pytestmark = pytest.mark.farm(n=2, name="old")

ERRORS = [
    "IPythonError", "ControllerError", "ControllerCreationError", "EngineError", "EngineCreationError",
    "KernelError", "NotDefined", "QueueCleared", "IdInUse", "ProtocolError", "ConnectionError", "InvalidEngineID",
    "NoEnginesRegistered", "InvalidClientID", "InvalidDeferredID", "SerializationError", "MessageSizeError",
    "PBMessageSizeError", "ResultNotCompleted", "ResultAlreadyRetrieved", "ClientError", "TaskAborted",
    "TaskTimeout", "NotAPendingResult", "UnpickleableException", "AbortedPendingDeferredError", "InvalidProperty",
    "MissingBlockArgument", "StopLocalExecution", "SecurityError", "FileTimeoutError", "TaskRejectError",
    "CompositeError",
]  # fmt: skip
"""The exceptions of ``IPython.kernel.error`` and ``IPython.kernel.core.error``, 0.10.2."""


@pytest.fixture(autouse=True)
def _clean(mec: MultiEngineClient) -> None:
    mec.reset()


# -- errors


@pytest.mark.parametrize("module", ["ipytaskfarm.errors", "ipytaskfarm.error"])
def test_the_errors_are_a_module_with_all_names(module: str) -> None:
    found = importlib.import_module(module)
    namespace: dict[str, Any] = {}
    exec(f"from {module} import {', '.join(ERRORS)}", namespace)
    star: dict[str, Any] = {}
    exec(f"from {module} import *", star)
    for name in ERRORS:
        assert issubclass(namespace[name], Exception)
        assert namespace[name] is star[name] is getattr(errors, name)
    assert set(found.__all__) >= set(ERRORS)


def test_the_old_family_catches_what_it_caught(tc: TaskClient, mec: MultiEngineClient) -> None:
    others = {"IPythonError", "ProtocolError"}
    assert [name for name in ERRORS if not issubclass(getattr(errors, name), errors.KernelError)] == sorted(others)
    task_id = tc.run(StringTask("import time; time.sleep(60)"))
    tc.abort(task_id)
    with pytest.raises(errors.KernelError):
        tc.get_task_result(task_id, block=True)
    with pytest.raises(errors.IPythonError):
        mec.execute("a = 1", targets=99)
    assert str(errors.NotDefined("a")) == "<NotDefined: a>"


# -- the task client


def test_irun_makes_the_task(tc: TaskClient) -> None:
    assert tc.irun("a = b + 1", pull="a", push={"b": 1}, block=True)["a"] == 2
    assert tc.get_task_result(tc.irun(abs, args=(-3,)), block=True).result == 3


def test_the_controller_behind_a_client_has_the_same_calls(tc: TaskClient, mec: MultiEngineClient) -> None:
    assert tc.task_controller.run(Task("1"), block=True).failure is None
    assert mec.multiengine.pull(("id",)) == [0, 1]


def test_mappers_have_their_attributes(tc: TaskClient, mec: MultiEngineClient) -> None:
    mapper = tc.mapper(clear_before=True, retries=2, block=False)
    assert mapper.task_controller is tc
    assert (mapper.clear_before, mapper.clear_after, mapper.retries, mapper.block) == (True, False, 2, False)
    assert (mapper.recovery_task, mapper.depend) == (None, None)
    mapper.depend = lambda properties: properties["id"] == 1
    ids = mapper.map(abs, [-1, -2, -3])
    tc.barrier(ids)
    assert {tc.get_task_result(i, raw=False).engineid for i in ids} == {1}
    mapper.block, mapper.clear_before = True, False
    assert mapper.map(abs, [-1, -2]) == [1, 2]
    engines = mec.mapper(dist="r", targets=[1])
    assert (engines.multiengine, engines.dist, engines.targets, engines.block) == (mec, "r", [1], None)
    engines.targets = "all"
    assert engines.map(lambda x: 2 * x, range(4)) == [0, 2, 4, 6]
    assert tc.parallel(retries=1).mapper.retries == 1


def test_results_are_attributes_and_items(tc: TaskClient) -> None:
    result = tc.run(StringTask("a = 5", pull=["a"]), block=True)
    assert result.ns.a == result.ns["a"] == result["a"] == 5
    with pytest.raises(KeyError):
        result.ns["b"]


def test_failures_are_checked_trapped_and_printed(tc: TaskClient) -> None:
    code = "def f(x):\n    return 1 / x\n\nf(0)"
    failure = tc.run(StringTask(code), block=True).failure
    assert isinstance(failure, Failure)
    assert failure.check(KeyError, ZeroDivisionError) is ZeroDivisionError
    assert failure.check(ArithmeticError) is ArithmeticError
    assert failure.check("KeyError", "builtins.ZeroDivisionError") == "builtins.ZeroDivisionError"
    assert failure.check(KeyError, "KeyError") is None
    assert failure.trap(ZeroDivisionError) is ZeroDivisionError
    with pytest.raises(ZeroDivisionError):
        failure.trap(KeyError)
    brief = failure.getBriefTraceback().splitlines()
    assert brief[0] == "Traceback: ZeroDivisionError: division by zero"
    assert len(brief) == 3
    assert brief[-1].endswith(":2:f")
    printed = io.StringIO()
    failure.printTraceback(printed)
    assert printed.getvalue().rstrip() == failure.getTraceback().rstrip()


@pytest.mark.parametrize("retries", [1.0, 1])
def test_whole_numbers_of_retries(tc: TaskClient, retries: Any) -> None:
    task = MapTask(divmod, (1, 0), retries=retries)
    assert (task.retries, type(task.retries)) == (1, int)
    task_id = tc.run(task)
    tc.barrier(task_id)
    assert tc.status(task_id).attempts == 2


@pytest.mark.parametrize("retries", [1.5, float("nan"), float("inf"), "1", True])
def test_other_retries_are_refused(retries: Any) -> None:
    with pytest.raises(TypeError, match="retries"):
        MapTask(abs, (1,), retries=retries)


def test_the_word_of_a_state_is_taken_as_the_state(tc: TaskClient) -> None:
    failed, named = tc.run(StringTask("1/0")), tc.run(StringTask("1", name="succeeded"))
    tc.barrier([failed, named])
    assert failed in tc.tasks("failed").ids
    assert named not in tc.tasks("failed").ids
    assert tc.tasks("pending").ids == []
    assert tc.tasks("succeeded").ids == [named], "it is a task's name"


# -- the multi-engine client


def test_one_name_is_pulled_flat(mec: MultiEngineClient) -> None:
    mec.push({"a": 1, "b": 2})
    assert mec.pull("a") == mec.pull(("a",)) == mec.pull(["a"]) == [1, 1]
    assert mec.pull(("a", "b")) == [[1, 2], [1, 2]]
    assert mec.zip_pull("a") == mec.zip_pull(("a",)) == [1, 1]
    assert mec.zip_pull(("a", "b")) == [(1, 1), (2, 2)]
    assert mec.zip_pull(("a", "b"), targets=[1]) == [1, 2]
    assert mec.zip_pull("a", targets=1) == 1


def test_a_reset_empties_the_history(mec: MultiEngineClient) -> None:
    for _ in range(3):
        mec.execute("a = 1")
    assert [entry["number"] for entry in mec.get_result(2)] == [2, 2]
    mec.reset()
    for number in (2, None):
        with pytest.raises(errors.CompositeError) as raised:
            mec.get_result(number)
        assert [type(error) for _, _, error in raised.value.elist] == [IndexError, IndexError]
    mec.execute("b = 2")
    assert [entry["input"]["raw"] for entry in mec.get_result(1)] == ["b = 2", "b = 2"]


@pytest.mark.parametrize("targets", ["some", 1.5, {}, ["a"], -1, [0, 7]])
def test_wrong_targets_are_no_engines(mec: MultiEngineClient, targets: Any) -> None:
    with pytest.raises(errors.InvalidEngineID):
        mec.execute("a = 1", targets=targets)


def test_an_engine_named_twice_runs_twice(mec: MultiEngineClient) -> None:
    mec.push({"n": 0})
    first, second, other = mec.execute("n += 1; print(n)", targets=[0, 0, 1])
    assert [(entry["id"], entry["stdout"]) for entry in (first, second, other)] == [(0, "1\n"), (0, "2\n"), (1, "1\n")]
    assert mec.pull("n", targets=[1, 0, 0]) == [1, 2, 2]
    with pytest.raises(errors.CompositeError) as raised:
        mec.execute("1 / 0", targets=(1, 1))
    assert len(raised.value.elist) in (1, 2)


def test_pending_results_say_where_they_are(mec: MultiEngineClient) -> None:
    first = mec.execute("a = 1", block=False)
    second = mec.pull("a", block=False)
    assert first.result_id < second.result_id
    assert second.called is False
    assert second.r == [1, 1]
    assert second.called is True


def test_queue_status_may_not_block(mec: MultiEngineClient) -> None:
    pending = mec.queue_status(block=False)
    mec.barrier(pending)
    assert pending.r == mec.queue_status() == [(i, {"queue": [], "pending": None}) for i in (0, 1)]
    assert mec.queue_status(targets=[1], block=True) == [(1, {"queue": [], "pending": None})]


def test_keywords_and_orders_of_0_10(tc: TaskClient, mec: MultiEngineClient) -> None:
    old: Any = mec
    pending = [mec.execute(f"a = {i}", block=False) for i in range(3)]
    assert sorted([pending[2], pending[0], pending[1]]) == pending
    old.barrier(pendingResults=pending)
    assert [(each.called, each.raised) for each in pending] == [(True, False)] * 3
    assert old.raw_map(lambda x: 2 * x, seq=[range(4)]) == [0, 2, 4, 6]
    ids = [tc.run(Task("1")) for _ in range(2)]
    old = tc
    old.barrier(taskids=ids)
    assert old.clear(taskids=ids) == 2
    with pytest.raises(TypeError, match="block"):
        mec.execute("a = 1", block="no")  # type: ignore[arg-type]
    with pytest.raises(errors.NotAPendingResult):
        mec.barrier(5)  # type: ignore[arg-type]


def test_lists_of_python_2_are_gathered_as_lists(mec: MultiEngineClient) -> None:
    mec.scatter("x", range(6))
    mec.execute("y = map(lambda v: v ** 2, x); k = dict.fromkeys(x).keys()")
    assert mec.gather("y") == [0, 1, 4, 9, 16, 25]
    assert mec.gather("y") == [0, 1, 4, 9, 16, 25], "as often as asked"
    assert mec.gather("k") == [*range(6)]


def test_code_of_python_2_fails_with_its_form_in_python_3(tc: TaskClient, mec: MultiEngineClient) -> None:
    with pytest.raises(errors.CompositeError) as raised:
        mec.execute("print 'a'")
    assert [str(note) for note in raised.value.__notes__ if "print(a)" in note] == raised.value.__notes__
    failure = tc.run(StringTask("d = {}; d.has_key(1)"), block=True).failure
    assert "key in d" in failure.value.__notes__[-1]
    assert failure.value.__notes__[0].startswith("raised on engine")
    with pytest.raises(errors.CompositeError) as raised:
        mec.execute("from IPython.kernel import TaskRejectError")
    assert "from ipytaskfarm.errors import TaskRejectError" in raised.value.__notes__[0]
    mec.execute("from ipytaskfarm import TaskRejectError")
    mec.execute("from ipytaskfarm.engineservice import get_engine; get_engine(id)")


# -- ids


def test_ids_go_on_where_the_last_client_ended(farm: Farm) -> None:
    """In processes of their own: the clients of one process share their ids."""
    from tests.support.farms import python

    code = (
        "import sys; from ipytaskfarm import Task, TaskClient\n"
        "with TaskClient(sys.argv[1]) as tc: print(tc.run(Task('1')), tc.run(Task('2')))"
    )

    def submit_two() -> list[int]:
        return [int(word) for word in python(code, str(farm.connection_file)).split()]

    last = submit_two()

    def goes_on() -> bool:
        # A good-bye may be overtaken by the end of its process: the ids of that client stay a gap then.
        nonlocal last
        before, last = last, submit_two()
        assert last == [last[0], last[0] + 1]
        return last[0] == before[1] + 1

    eventually(goes_on, 60.0, what="a client begins with the id after the last one's")


def test_the_last_tasks_are_those_that_came_last(tc: TaskClient) -> None:
    tc.run(Task("1"), block=True)  # ids are taken from the block that this client has already
    failed = tc.run(StringTask("1 / 0"))
    tc.barrier(failed)
    (again,) = tc.retry(failed)
    tc.barrier(again)
    later = [tc.run(Task("2")), tc.run(Task("3"))]
    tc.barrier(later)
    assert later[-1] < again
    assert list(tc.tasks(last=2)) == later
    assert sorted(tc.tasks(last=3)) == sorted([*later, again])


# -- engines in turns


@pytest.mark.parametrize(
    "rules",
    [{"placement": "default"}, {"requires": {"cores": ">= 1"}}, {"depend": lambda properties: True}, {}],
    ids=["placement", "requires", "depend", "none"],
)
def test_tasks_one_by_one_take_engines_in_turns(tc: TaskClient, rules: dict[str, Any]) -> None:
    tc.run(client.Task("1", **rules), block=True)
    taken = [tc.run(client.Task("1", **rules), block=True).engineid for _ in range(6)]
    assert taken in ([0, 1] * 3, [1, 0] * 3)


# -- last, because its engines are others


def test_queue_status_without_engines(farm: Farm, mec: MultiEngineClient) -> None:
    mec.session.ask(messages.SetWanted(0))
    try:
        eventually(lambda: mec.get_ids() == [], DEADLINE_S)
        with pytest.raises(errors.NoEnginesRegistered):
            mec.queue_status()
    finally:
        mec.session.ask(messages.SetWanted(2))
        until_engines(farm, 2)
