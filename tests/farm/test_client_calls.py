"""Test how TaskClient and MultiEngineClient handle answers: kinds of results, maps, tables, commands, refusals."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from ipytaskfarm.client import MapTask, MultiEngineClient, Task, TaskClient, TaskResult, commands
from ipytaskfarm.core import errors, messages as m
from ipytaskfarm.core.messages import tables
from ipytaskfarm.core.messages.engine_commands import ExecuteReply
from ipytaskfarm.core.messages.payload import CallWork, FailureBody, ResultBody, Work
from ipytaskfarm.core.messages.task_types import FailureSummary, Final, Submission
from ipytaskfarm.core.states import Reason, state_word
from ipytaskfarm.serialization.pack import pack, pack_error, unpack
from tests.support.fake_hub_controller import FakeController, encode, final, in_thread
from tests.support.polling import eventually


@pytest.fixture
def tc(fake: FakeController) -> TaskClient:
    return TaskClient(str(fake.connection_file))


@pytest.fixture
def mec(fake: FakeController) -> MultiEngineClient:
    return MultiEngineClient(str(fake.connection_file))


# Kinds of results


def test_map_tasks_give_the_bare_value(fake: FakeController, tc: TaskClient) -> None:
    fake.respond = lambda task: final(task.id, body=encode(ResultBody(value=pack(20), kind="raw")))
    task_id = tc.run(MapTask(lambda x: 2 * x, (10,)))
    assert tc.get_task_result(task_id, block=True) == 20
    result = tc.get_task_result(task_id, raw=False)
    assert isinstance(result, TaskResult)
    assert result.result == 20
    assert tc.run(MapTask(int), block=True) == 20


def test_a_failed_map_task_raises(fake: FakeController, tc: TaskClient) -> None:
    error = pack_error(ZeroDivisionError("no"))
    answers = [
        final(0, Reason.ERROR, encode(ResultBody(failure=error, kind="raw"))),
        final(1, Reason.ENGINE_LOST, b"", failure=FailureSummary("EngineLost", "signal 9")),
        final(2, Reason.ERROR, encode(ResultBody(failure=error))),
    ]
    fake.respond = lambda task: answers[task.id]
    lost, dead, plain = tc.run(MapTask(int)), tc.run(MapTask(int)), tc.run(Task("1/0"))
    with pytest.raises(ZeroDivisionError):
        tc.get_task_result(lost, block=True)
    with pytest.raises(errors.EngineLost, match="signal 9"):
        tc.get_task_result(dead, block=True)
    assert isinstance(tc.get_task_result(dead, raw=False).failure.value, errors.EngineLost)
    assert tc.get_task_result(plain, block=True).failure.type is ZeroDivisionError


def test_aborted_and_refused_are_raised(fake: FakeController, tc: TaskClient) -> None:
    answers = [
        final(0, Reason.ABORTED, None, failure=FailureSummary("TaskAborted", "task 0 was aborted")),
        final(1, Reason.REFUSED, b"", failure=FailureSummary("ResultTooLarge", "too much")),
    ]
    fake.respond = lambda task: answers[task.id]
    tc.run(Task("a"))
    tc.run(Task("a"))
    tc.barrier()
    with pytest.raises(errors.TaskAborted):
        tc.get_task_result(0)
    assert isinstance(tc.get_task_result(0, raw=False).failure.value, errors.TaskAborted)
    with pytest.raises(errors.ResultTooLarge, match="too much"):
        tc.get_task_result(1)
    with pytest.raises(errors.ResultTooLarge, match="task 1: too much"):
        tc.flush()
    tc.flush()


# Maps


def run_chunk(task: Submission) -> Final:
    """What an engine makes of a chunk of `half`, or of one item: an odd one fails."""
    work = msgspec.msgpack.decode(task.payload, type=Work)
    assert isinstance(work, CallWork)
    assert work.each
    assert work.arguments is not None
    (items, star, *_), _ = unpack(work.arguments)
    assert not star
    assert task.items == (len(items) if len(items) > 1 else 0)
    if len(items) == 1 and items[0] % 2:
        return final(task.id, Reason.ERROR, encode(ResultBody(failure=pack_error(KeyError(items[0])), kind="call")))
    values = [item // 2 for item in items]
    value = values if task.items else values[0]
    ended = final(task.id, body=encode(ResultBody(value=pack(value), kind="call")))
    return msgspec.structs.replace(ended, run_s=1e-4, items=task.items)


@pytest.fixture
def chunks(fake: FakeController) -> FakeController:
    fake.answers[m.ListEngines] = lambda q: tables.EngineTable([])
    fake.answers[m.Clear] = lambda q: m.Cleared(len(q.ids))
    fake.respond = run_chunk
    return fake


def half(x: int) -> int:
    if x % 2:
        raise KeyError(x)
    return x // 2


def test_map(chunks: FakeController, tc: TaskClient) -> None:
    assert tc.map(half, range(0, 200, 2)) == list(range(100))
    assert 0 < len(chunks.submitted) < 100
    assert tc.map(half, []) == []
    with pytest.raises(ValueError, match="equal"):
        tc.map(pow, [1], [1, 2])
    with pytest.raises(ValueError, match="at least one"):
        tc.map(half)
    with pytest.raises(TypeError, match="function"):
        tc.map(5, [1])  # type: ignore[call-overload]


def test_map_raises_the_lowest_failure(chunks: FakeController, tc: TaskClient) -> None:
    with pytest.raises(KeyError, match="1"):
        tc.map(half, range(40), chunksize=1)
    found = tc.map(half, range(40), return_exceptions=True, chunksize=1)
    assert found[::2] == list(range(20))
    assert [error.args for error in found[1::2]] == [(n,) for n in range(1, 40, 2)]


def test_a_map_with_attributes_is_a_task_for_each_item(fake: FakeController, tc: TaskClient) -> None:
    fake.answers[m.ListEngines] = lambda q: tables.EngineTable([])
    fake.respond = lambda task: final(task.id, body=encode(ResultBody(value=pack(task.id), kind="raw")))
    ids = tc.mapper(retries=2, block=False).map(half, [1, 2])
    assert ids == [0, 1]
    tc.flush()
    assert [fake.submitted[i].rules.retries for i in ids] == [2, 2]  # type: ignore[union-attr]
    decorate = tc.parallel(clear_after=True)
    assert decorate(half).__name__ == "half"
    assert decorate(half)([1, 2, 3]) == [2, 3, 4]
    assert decorate(abs)([1]) == [5]


# Questions


def test_abort(fake: FakeController, tc: TaskClient) -> None:
    outcomes = {1: "aborted", 2: "already aborted", 3: "already completed", 4: "unknown"}
    fake.answers[m.AbortTasks] = lambda q: m.Aborted([(i, outcomes[i]) for i in q.ids])
    tc.abort(1)
    with pytest.raises(IndexError, match="already aborted"):
        tc.abort(2)
    with pytest.raises(IndexError, match="already completed"):
        tc.abort(3)
    with pytest.raises(IndexError, match="4"):
        tc.abort(4)
    with pytest.raises(TypeError):
        tc.abort("1")
    tc.abort([1, 2, 3])
    tc.abort([])
    with pytest.raises(IndexError, match="4"):
        tc.abort([1, 4])


def test_clear(fake: FakeController, tc: TaskClient) -> None:
    tc.barrier([tc.run(Task("a")), tc.run(Task("b"))])

    def clear(question: m.Clear) -> m.Cleared:
        ids = list(fake.finals) if question.ids is None else question.ids
        missing = [i for i in ids if i not in fake.finals]
        for i in ids:
            fake.finals.pop(i, None)
            fake.submitted.pop(i, None)
        return m.Cleared(len(ids) - len(missing), missing)

    fake.answers[m.Clear] = clear
    with pytest.raises(KeyError, match="77"):
        tc.clear([0, 77])
    with pytest.raises(IndexError, match="0"):
        tc.get_task_result(0)
    tc.barrier(0)
    assert tc.clear() == 1
    assert tc.clear([]) == 0
    with pytest.raises(IndexError):
        tc.get_task_result(1)


def test_retry_counts_as_submitted(fake: FakeController, tc: TaskClient) -> None:
    fake.respond = lambda task: final(task.id, Reason.ERROR, b"")
    tc.barrier(tc.run(Task("1/0")))
    fake.submitted[9000] = Submission(9000, b"", 0.0)
    fake.answers[m.RetryTasks] = lambda q: m.Retried([(0, 9000)], [i for i in q.ids if i > 50], [])
    assert tc.retry(0) == [9000]
    with pytest.raises(TimeoutError):
        tc.barrier(timeout=0.05)
    fake.finals[9000] = final(9000)
    fake.say(m.Finals([final(9000)]))
    tc.barrier()
    with pytest.raises(IndexError, match="51"):
        tc.retry([0, 51])


def test_tables(fake: FakeController, tc: TaskClient) -> None:
    rows = [
        tables.TaskRow(0, "pending", "running", "first", 1, 1, 1000.0),
        tables.TaskRow(
            3, "failed", "error", None, 0, 2, 1000.0, 1.0, 2.0, 3.0, FailureSummary("E", "bad\nvalue", "cell:1")
        ),
        tables.TaskRow(4, "failed", "error", None, 0, 2, 1000.0, 1.0, 2.0, 3.0, FailureSummary("E", "worse", "cell:1")),
    ]
    fake.answers[m.ListTasks] = lambda q: tables.TaskRows(
        [r for r in rows if (q.ids is None or r.id in q.ids) and q.state in (None, state_word(r.state))]
    )
    for i in (3, 4):
        fake.finals[i] = final(i, Reason.ERROR, encode(ResultBody(failure=FailureBody("E", "bad", "Traceback …"))))
    table = tc.tasks()
    assert (list(table), len(table), table[0].state) == ([0, 3, 4], 3, "running")
    assert "running" in repr(table)
    assert "bad … value" in repr(table)
    assert "<table>" in table._repr_html_()
    assert list(table.to_dataframe().index) == [0, 3, 4]
    assert list(tc.tasks(state="running")) == [0]
    with pytest.raises(ValueError, match="state"):
        tc.tasks(state="nowhere")
    assert (tc.status(3).reason, tc.status(3).engineid) == ("error", 0)
    assert "task 0: running" in repr(tc.status(0))
    with pytest.raises(IndexError):
        tc.status(99)
    (group,) = groups = tc.failures()
    assert groups.to_dataframe()[["count", "etype"]].values.tolist() == [[2, "E"]]
    assert (group.etype, group.place, group.ids, group.traceback) == ("E", "cell:1", [3, 4], "Traceback …")
    assert "2 × E" in repr(tc.failures())


def test_small_questions(fake: FakeController, tc: TaskClient) -> None:
    fake.answers[m.SpinFarm] = lambda q: m.FlagReply(True)
    fake.answers[m.ExplainTasks] = lambda q: m.TextReply(f"task {q.id}\nwaits")
    fake.answers[m.Outputs] = lambda q: m.NumberReply(0)
    fake.answers[m.Stack] = lambda q: m.Refusal("ValueError", "task 1 is not running")
    assert tc.spin() is True
    assert repr(tc.explain(5)) == "task 5\nwaits"
    with pytest.raises(ValueError, match="not running"):
        tc.stack(1)
    assert tc.queue_status() == {"scheduled": 0, "pending": 0, "succeeded": 0, "failed": 0}
    assert tc.queue_status(verbose=True) == {"scheduled": [], "pending": [], "succeeded": [], "failed": []}


# Engines


def test_execute(fake: FakeController, mec: MultiEngineClient) -> None:
    def answer(command: m.SendCommand, engine_id: int) -> m.CommandAnswer:
        display = [{"data": {"text/plain": "5"}}]
        reply = ExecuteReply(engine_id, 1, "a=5", "a=5\n", "hello\n", "", display)
        return m.CommandAnswer(command.n, engine_id, True, encode(reply))

    fake.command = answer
    found = mec.execute("a=5", targets=[1, 0])
    assert [entry["id"] for entry in found] == [1, 0]
    assert found[0]["input"] == {"raw": "a=5", "translated": "a=5\n"}
    assert repr(found) == "[1] In [1]: a=5\n[1] Out[1]: hello\n5\n[0] In [1]: a=5\n[0] Out[1]: hello\n5"
    pending = mec.execute("a=5", targets=0, block=False)
    called: list[Any] = []
    pending.add_done_callback(called.append)
    assert pending.r[0]["id"] == 0
    eventually(lambda: called == [pending])
    assert pending.done()
    pending.invalidate()
    with pytest.raises(errors.InvalidDeferredID):
        _ = pending.r


def test_pull_all_and_errors(fake: FakeController, mec: MultiEngineClient) -> None:
    fake.engines = [0, 2]
    fake.command = lambda c, i: m.CommandAnswer(c.n, i, True, pack([i * 10, "b"]))
    assert mec.pull("a") == [0, 20]
    assert mec["a"] == [0, 20]
    assert mec.pull(["a", "b"]) == [[0, "b"], [20, "b"]]
    assert mec.zip_pull(["a", "b"]) == [(0, 20), ("b", "b")]
    assert mec.zip_pull(["a", "b"], targets=2) == [20, "b"]

    def one_fails(command: m.SendCommand, engine_id: int) -> m.CommandAnswer:
        if engine_id == 0:
            return m.CommandAnswer(command.n, 0, True, pack([1]))
        body = encode(pack_error(NameError("name 'a' is not defined")))
        return m.CommandAnswer(command.n, engine_id, False, body)

    fake.command = one_fails
    with pytest.raises(errors.CompositeError) as caught:
        mec.pull("a")
    assert str(caught.value).endswith("[2:pull]: NameError: name 'a' is not defined")
    with pytest.raises(NameError):
        caught.value.raise_exception()
    # The same error, raised as often as asked.
    pending = mec.pull("a", block=False)
    for _ in range(2):
        with pytest.raises(errors.CompositeError):
            _ = pending.r


def test_a_long_wait_names_the_task_it_waits_for(
    fake: FakeController, mec: MultiEngineClient, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(commands, "TELL_AFTER_S", 0.05)
    rows = [tables.EngineRow(i, f"x.{i}", "here", 1, "busy", 17 if i else None, 0, 0.0, {}) for i in (0, 1)]
    fake.answers[m.ListEngines] = lambda q: tables.EngineTable(rows)
    held: list[m.CommandAnswer] = []

    def hold(command: m.SendCommand, engine_id: int) -> m.CommandAnswer:
        held.append(m.CommandAnswer(command.n, engine_id, True, encode([])))
        return m.CommandAnswer(0, engine_id, True)

    fake.command = hold
    _, found = in_thread(lambda: mec.keys(targets=[0, 1]))
    eventually(lambda: "task 17 on engine 1" in capsys.readouterr().err)
    for answer in held:
        fake.say(answer)
    eventually(lambda: found == [[[], []]])
    assert mec.get_ids() == [0, 1]
    assert len(mec) == 2
    assert mec
    with pytest.raises(TimeoutError):
        mec.keys(targets=[0], block=False).get_result(timeout=0.01)


def test_refused_commands_are_raised_bare(fake: FakeController, mec: MultiEngineClient) -> None:
    def refuse(etype: str, engine_id: int) -> Callable[[m.SendCommand, int], m.CommandAnswer]:
        body = encode(FailureBody(etype, "no"))
        return lambda c, i: m.CommandAnswer(c.n, engine_id, False, body)

    fake.command = refuse("InvalidEngineID", 7)
    with pytest.raises(errors.InvalidEngineID):
        mec.pull("a", targets=[7, 0])
    fake.command = refuse("NoEnginesRegistered", -1)
    with pytest.raises(errors.NoEnginesRegistered):
        mec.pull("a", targets=[0])
    # A task of that name raised on an engine is an engine's error like any other.
    fake.command = lambda c, i: m.CommandAnswer(c.n, i, False, encode(pack_error(errors.InvalidEngineID("mine"))))
    with pytest.raises(errors.CompositeError):
        mec.pull("a", targets=[0, 1])
    wrongs: list[Any] = ["some", 1.5, {}, [True]]
    for wrong in wrongs:
        with pytest.raises(errors.InvalidEngineID, match="targets"):
            mec.pull("a", targets=wrong)
    with pytest.raises(ValueError, match="targets"):
        mec.pull("a", targets=[])


def test_properties_and_sticky(fake: FakeController, mec: MultiEngineClient) -> None:
    stored: list[m.SetSticky] = []

    def store(question: m.SetSticky) -> m.FlagReply:
        stored.append(question)
        return m.FlagReply(True)

    fake.answers[m.SetSticky] = store
    fake.answers[m.ListSticky] = lambda q: tables.StickyTable([(s.key, s.verb, s.text) for s in stored])
    fake.answers[m.ClearSticky] = lambda q: m.NumberReply(len(stored))
    assert mec.push({"a": 1, "b": 2}, sticky=True) == []
    assert mec.execute("import os", sticky=True) == []
    assert mec.set_properties({"RAM": 5}, sticky=True) == []
    assert [s.key.split(":")[0] for s in stored] == ["push", "push", "execute", "property"]
    assert [row[0] for row in mec.sticky()[:2]] == ["push:a", "push:b"]
    assert "import os" in repr(mec.sticky())
    assert mec.clear_sticky() == 4
    with pytest.raises(ValueError, match="sticky"):
        mec.push({"a": 1}, targets=0, sticky=True)
    with pytest.raises(errors.InvalidProperty):
        mec.set_properties({"g": threading.Lock()}, targets=0)
    fake.command = lambda c, i: m.CommandAnswer(c.n, i, True, pack({"RAM": 5}))
    assert mec.get_properties(targets=0) == [{"RAM": 5}]
