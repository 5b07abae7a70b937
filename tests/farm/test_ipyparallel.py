"""`ipytaskfarm.ipyparallel`: the contracts of ipyparallel's views and results on a real farm."""

from __future__ import annotations

import concurrent.futures
import functools
import os
import signal
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ipytaskfarm.ipyparallel as ipp
from ipytaskfarm import Farm, errors
from tests.support.farms import DEADLINE_S, Gate, python, until_engines
from tests.support.polling import eventually
from tests.support.shells import Cell, Shell, shell_with_magics

pytestmark = pytest.mark.farm


@pytest.fixture
def rc(farm: Farm) -> Iterator[ipp.Client]:
    until_engines(farm, 2)
    rc = ipp.Client(farm.connection_file)
    rc.clear(block=True)
    yield rc
    rc.close()


@pytest.fixture
def dview(rc: ipp.Client) -> ipp.DirectView:
    return rc[:]


@pytest.fixture
def lview(rc: ipp.Client) -> ipp.LoadBalancedView:
    return rc.load_balanced_view()


def square(x: int) -> int:
    return x * x


def inverse(x: int) -> float:
    return 1 / x


def after_gate(path: Path) -> str:
    for _ in range(3000):
        if path.exists():
            return "open"
        time.sleep(0.01)
    raise TimeoutError("nobody opened the gate")


def kills_its_engine_once(x: int, mark: Path) -> int:
    if x == 5 and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return x


# -- direct views


def test_engines_are_chosen_as_there(rc: ipp.Client) -> None:
    assert rc.ids == [0, 1]
    assert rc[1].targets == rc[-1].targets == 1
    assert rc[:].targets == rc[[0, 1]].targets == [0, 1]
    assert rc[::2].targets == [0]
    assert [view.targets for view in rc] == rc.ids
    assert rc.direct_view().targets == "all"
    with pytest.raises(IndexError, match="No such engine: 7"):
        rc[7]
    with pytest.raises(TypeError, match="key by int/slice/iterable of ints only"):
        rc["all"]


def test_one_engine_gives_a_value_and_several_a_list(rc: ipp.Client, dview: ipp.DirectView) -> None:
    assert (rc[0].apply_sync(square, 3), rc[[0]].apply_sync(square, 3)) == (9, [9])
    assert dview.apply_async(square, x=3).get(DEADLINE_S) == [9, 9]
    assert dview.apply_async(os.getpid).get_dict().keys() == {0, 1}
    with pytest.raises(ValueError, match="2 engines returned 6 items of a map"):
        dview.map_async(abs, range(6)).get_dict()


def test_calls_on_an_engine_keep_their_order_without_waiting(dview: ipp.DirectView) -> None:
    dview.push({"a": 7})
    dview.execute("b = a + 1")
    found = dview.apply(lambda: b)  # type: ignore[name-defined]  # noqa: F821
    dview.push({"a": 0})
    assert found.get(DEADLINE_S) == [8, 8]
    assert dview.pull(("a", "b"), block=True) == [[0, 8], [0, 8]]


def test_a_view_is_a_dict_of_names(rc: ipp.Client, dview: ipp.DirectView) -> None:
    dview["a"] = {"x": 1}
    assert dview["a"] == [{"x": 1}, {"x": 1}]
    view = rc[0]
    view.execute("class A: pass\nobj = A(); obj.b = 128", block=True)
    assert view["obj.b"] == 128
    view["obj.b"] = 0
    assert view["obj.b"] == 0
    with pytest.raises(TypeError, match="keys must be str"):
        view.pull([1])  # type: ignore[list-item]
    with pytest.raises(TypeError, match="Must be a dict"):
        view.push(["a"])  # type: ignore[arg-type]


@pytest.mark.parametrize("dist", ["b", "r"])
def test_scatter_and_gather(dview: ipp.DirectView, dist: str) -> None:
    assert dview.scatter("part", list(range(7)), dist=dist, block=True) is None
    assert sorted(map(len, dview["part"])) == [3, 4]
    assert dview.gather("part", dist=dist, block=True) == list(range(7))
    dview.scatter("rank", [10, 11], flatten=True)
    assert dview["rank"] == [10, 11]
    array = np.arange(9)
    dview.scatter("array", array)
    assert np.array_equal(dview.gather("array", block=True), array)


def test_a_map_over_engines(dview: ipp.DirectView) -> None:
    assert dview.map_sync(square, range(11)) == [n * n for n in range(11)]
    assert dview.map_sync(lambda x, y: x * y, {1: "", 2: "", 3: ""}, iter([4, 5])) == [4, 10]
    assert dview.map_sync(square, []) == []
    result = dview.map_async(square, range(5))
    assert (len(result), len(result.msg_ids)) == (5, 2)
    assert list(result) == [0, 1, 4, 9, 16]


def test_references_are_evaluated_on_each_engine(dview: ipp.DirectView) -> None:
    dview.scatter("rank", [3, 4], flatten=True)
    dview.execute("f = lambda x: 10 * x + rank")
    rank = ipp.Reference("rank")
    assert dview.apply_sync(square, rank) == [9, 16]
    assert dview.apply_sync(lambda x: x, {"nested": [rank]}) == [{"nested": [3]}, {"nested": [4]}]
    assert dview.apply_sync(ipp.Reference("f"), 1) == [13, 14]
    assert dview.map_sync(ipp.Reference("f"), [1, 2]) == [13, 24]
    with pytest.raises(ipp.CompositeError, match="NameError"):
        dview.apply_sync(square, ipp.Reference("nothing_of_that_name"))
    with pytest.raises(TypeError, match="illegal name"):
        ipp.Reference(1)  # type: ignore[arg-type]


def test_interactive_functions_use_the_engines_names(rc: ipp.Client) -> None:
    def names() -> int:
        return globals()["only_there"]  # type: ignore[no-any-return]

    rc[0]["only_there"] = 5
    assert rc[0].apply_sync(ipp.interactive(names)) == 5
    with pytest.raises(ipp.RemoteError, match="KeyError"):
        rc[0].apply_sync(names)


def test_imports_run_here_and_there(rc: ipp.Client, capsys: pytest.CaptureFixture[str]) -> None:
    with rc[0].sync_imports():
        import base64 as b64
        from math import pi, tau as full
    assert capsys.readouterr().out.splitlines() == [
        "importing base64 on engine(s)", "importing pi,tau from math on engine(s)"
    ]  # fmt: skip
    assert rc[0].apply_sync(ipp.Reference("b64.b64encode"), b"foo") == b64.b64encode(b"foo")
    assert rc[0]["full"] == 2 * pi == full


def test_code_has_a_value_and_output(rc: ipp.Client) -> None:
    result = rc[0].execute("print('hello'); 6 * 7", silent=False, block=True)
    reply = result.get()
    assert str(reply) == f"<ExecuteReply[{reply.execution_count}]: 42>"
    assert (reply.stdout, result.stdout, result.pyin) == ("hello\n", "hello\n", "print('hello'); 6 * 7")
    assert rc[0].execute("6 * 7", block=True).execute_result is None, "silent is the default"


# -- results


def test_a_result_that_is_not_there_yet(rc: ipp.Client, gate: Gate) -> None:
    result = rc[0].apply_async(after_gate, gate.path)
    with pytest.raises(TimeoutError, match="Result not ready"):
        result.get(0)
    assert not result.ready()
    assert result.wait(0) is False
    assert result.completed is None
    with pytest.raises(RuntimeError, match="if not done"):
        result.successful()
    with pytest.raises(TimeoutError):
        result.wall_time  # noqa: B018
    gate.open()
    assert result.get(DEADLINE_S) == "open"
    assert result.successful()
    assert 0 <= result.serial_time <= result.wall_time <= result.elapsed + 1
    assert result.engine_id == result["engine_id"] == 0
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        result.nothing  # noqa: B018


def test_parts_of_a_result(rc: ipp.Client, dview: ipp.DirectView, gate: Gate) -> None:
    def fails_on(rank: int, failing: int, path: Path) -> int:
        if rank == failing:
            raise ValueError(f"{rank} is bad")
        while not path.exists():
            time.sleep(0.01)
        return rank

    dview.scatter("rank", [0, 1], flatten=True)
    result = dview.apply_async(fails_on, ipp.Reference("rank"), 0, gate.path)
    done, pending = result.wait(DEADLINE_S, return_when=ipp.FIRST_EXCEPTION)
    assert [part.msg_ids for part in done] == [result.msg_ids[:1]]
    assert [part.msg_ids for part in pending] == [result.msg_ids[1:]]
    with pytest.raises(ipp.RemoteError, match="ValueError: 0 is bad"):
        result.get(DEADLINE_S, return_when=ipp.FIRST_EXCEPTION)
    gate.open()
    found = result.get(DEADLINE_S, return_exceptions=True)
    assert isinstance(found[0], ipp.RemoteError)
    assert found[1] == 1
    parts = dview.apply_async(square, 3).split()
    assert ipp.AsyncResult.join(*parts).get(DEADLINE_S) == [part.get(DEADLINE_S) for part in parts] == [9, 9]


def test_a_result_is_a_future(dview: ipp.DirectView, lview: ipp.LoadBalancedView) -> None:
    results = [lview.apply_async(square, n) for n in range(5)]
    ended = concurrent.futures.as_completed([*results, dview.apply_async(square, 5)], DEADLINE_S)
    values: list[Any] = [result.result() for result in ended]
    assert sorted(value for value in values if isinstance(value, int)) == [0, 1, 4, 9, 16]
    assert [25, 25] in values


def test_errors_are_ipyparallels_with_ours_as_their_cause(rc: ipp.Client, dview: ipp.DirectView) -> None:
    with pytest.raises(ipp.RemoteError, match=r"^\[1:apply\] ZeroDivisionError: division by zero$") as one:
        rc[1].apply_sync(inverse, 0)
    assert (one.value.ename, one.value.evalue) == ("ZeroDivisionError", "division by zero")
    assert isinstance(one.value.__cause__, ZeroDivisionError)
    assert "inverse" in "\n".join(one.value.render_traceback())
    with pytest.raises(ipp.CompositeError, match="one or more exceptions raised in: inverse") as many:
        dview.apply_sync(inverse, 0)
    assert [info["engine_id"] for _, _, _, info in many.value.elist] == [0, 1]
    assert isinstance(many.value.__cause__, ZeroDivisionError)
    with pytest.raises(ipp.RemoteError):
        many.value.raise_exception()
    with pytest.raises(IndexError, match="index 2 does not exist"):
        many.value.raise_exception(2)
    assert ipp.error.CompositeError is ipp.CompositeError
    assert issubclass(ipp.CompositeError, ipp.RemoteError)


def test_a_failed_call_does_not_touch_those_behind_it(rc: ipp.Client) -> None:
    failing = rc[0].apply_async(inverse, 0)
    behind = [rc[0].apply_async(square, n) for n in range(5)]
    assert [result.get(DEADLINE_S) for result in behind] == [0, 1, 4, 9, 16]
    assert not failing.successful()


def test_waiting_calls_are_aborted(rc: ipp.Client, gate: Gate) -> None:
    running = rc[0].apply_async(after_gate, gate.path)
    waiting, other = rc[0].apply_async(square, 2), rc[0].apply_async(square, 3)
    waiting.abort()
    with pytest.raises(ipp.TaskAborted):
        waiting.get(DEADLINE_S)
    gate.open()
    assert running.get(DEADLINE_S) == "open"
    assert other.get(DEADLINE_S) == 9, "the call of another result is not aborted"
    with pytest.raises(RuntimeError, match="already done"):
        running.abort()


def test_an_interrupt_ends_the_running_call(rc: ipp.Client, gate: Gate) -> None:
    running = rc[0].execute(f"open({str(gate.path) + '.begun'!r}, 'w').close()\n{gate.code}", block=False)
    eventually(lambda: Path(f"{gate.path}.begun").exists(), DEADLINE_S)
    behind = rc[0].apply_async(square, 3)
    rc.send_signal("SIGINT", 0)
    with pytest.raises(ipp.RemoteError, match="KeyboardInterrupt"):
        running.get(DEADLINE_S)
    with pytest.raises(ipp.TaskAborted):
        behind.get(DEADLINE_S)
    assert rc[0].apply_sync(square, 3) == 9


# -- load-balanced views


def test_a_balanced_map(lview: ipp.LoadBalancedView) -> None:
    result = lview.map_async(square, range(100))
    assert len(result) == 100
    assert result.get(DEADLINE_S) == [n * n for n in range(100)]
    assert result.progress == 100
    assert list(lview.map_async(square, deque(range(20)), chunksize=7)) == [n * n for n in range(20)]
    assert sorted(lview.map_async(square, range(20), ordered=False)) == [n * n for n in range(20)]
    assert lview.map_sync(ipp.Reference("abs"), [-1, -2]) == [1, 2]
    with pytest.raises(ipp.CompositeError, match="ZeroDivisionError"):
        lview.map_sync(inverse, [1, 0, 2])
    found = lview.map_sync(inverse, [1, 0, 2], return_exceptions=True)
    assert [found[0], found[2]] == [1, 0.5]
    assert found[1].ename == "ZeroDivisionError"


def test_a_lazy_map_reads_as_far_as_it_may(lview: ipp.LoadBalancedView) -> None:
    read: list[int] = []

    def numbers() -> Iterator[int]:
        for n in range(10**9):
            read.append(n)
            yield n

    values = lview.imap(square, numbers(), max_outstanding=3)
    assert [next(values) for _ in range(4)] == [0, 1, 4, 9]
    assert len(read) <= 8
    values.cancel()
    assert len(list(values)) <= 3


def test_dependencies(rc: ipp.Client, lview: ipp.LoadBalancedView, gate: Gate) -> None:
    first = lview.apply_async(after_gate, gate.path)
    with lview.temp_flags(after=first):
        second = lview.apply_async(square, 3)
    assert not second.wait(0.05)
    gate.open()
    assert second.get(DEADLINE_S) == 9
    assert second.started >= first.completed
    with lview.temp_flags(follow=first):
        assert {lview.apply_async(square, n).get_dict(DEADLINE_S).popitem()[0] for n in range(5)} == {first.engine_id}
    failing = lview.apply_async(inverse, 0)
    with lview.temp_flags(after=failing), pytest.raises(ipp.RemoteError) as impossible:
        lview.apply_sync(square, 3)
    assert impossible.value.ename == "ImpossibleDependency"
    with lview.temp_flags(after=ipp.Dependency(failing, failure=True)):
        assert lview.apply_sync(square, 3) == 9
    with lview.temp_flags(after="123456789"), pytest.raises(ipp.RemoteError) as invalid:
        lview.apply_sync(square, 3)
    assert invalid.value.ename == "InvalidDependency"
    either = ipp.Dependency([first, failing], all=False)
    with lview.temp_flags(after=ipp.Dependency(failing, success=False, failure=True), follow=either):
        assert lview.apply_async(square, 3).get_dict(DEADLINE_S) == {first.engine_id: 9}
    with lview.temp_flags(after=ipp.Dependency([second, failing], success=False, failure=True)):
        assert "has not failed" in str(lview.apply_async(square, 3).exception(DEADLINE_S))
    with pytest.raises(ValueError, match="Invalid dependency: 5"):
        lview.set_flags(after=5)


def test_a_call_waits_no_longer_for_its_dependencies_than_its_timeout(lview: ipp.LoadBalancedView, gate: Gate) -> None:
    first = lview.apply_async(after_gate, gate.path)
    with lview.temp_flags(after=first, timeout=0.1), pytest.raises(ipp.RemoteError) as late:
        lview.apply_sync(square, 3)
    assert late.value.ename == "DependencyTimeout"
    gate.open()
    assert first.get(DEADLINE_S) == "open"


def test_require_and_depend(rc: ipp.Client, lview: ipp.LoadBalancedView) -> None:
    @ipp.require("base64", square, two=2)
    @ipp.interactive
    def encoded(x: int) -> tuple[bytes, int]:
        return base64.b64encode(b"foo"), square(x) + two  # type: ignore[name-defined]  # noqa: F821

    assert lview.apply_sync(encoded, 3) == (b"Zm9v", 11)

    def is_one() -> bool:
        return globals()["one"]  # type: ignore[no-any-return]

    rc[:].scatter("one", [False, True], flatten=True, block=True)
    where = ipp.depend(ipp.interactive(is_one))(os.getpid)
    assert {lview.apply_sync(where) for _ in range(4)} == {rc[1].apply_sync(os.getpid)}
    with pytest.raises(TypeError, match="must be passed by kwarg"):
        ipp.require(5)


def test_retries_labels_and_targets(rc: ipp.Client, lview: ipp.LoadBalancedView, tmp_path: Path) -> None:
    def fails_once(mark: Path) -> str:
        if not mark.exists():
            mark.touch()
            raise ValueError("not yet")
        return "done"

    with lview.temp_flags(retries=1, label="twice"):
        result = lview.apply_async(fails_once, tmp_path / "mark")
    assert result.get(DEADLINE_S) == "done"
    assert [record["msg_id"] for record in rc.db_query({"label": "twice"}, keys="label")] == result.msg_ids
    assert "attempt" in rc.tasks.explain(int(result.msg_ids[0]))
    only = rc.load_balanced_view([1])
    assert {only.apply_async(square, n).get_dict().popitem()[0] for n in range(3)} == {1}
    with pytest.raises(KeyError, match="Invalid name: 'nothing'"):
        lview.set_flags(nothing=1)
    with pytest.raises(ValueError, match="Invalid timeout: -1"):
        lview.set_flags(timeout=-1)


def test_executors(rc: ipp.Client, lview: ipp.LoadBalancedView) -> None:
    with lview.executor as executor:
        future = executor.submit(square, 3)
        values = executor.map(square, range(10))
    assert future.done()
    assert list(values) == [n * n for n in range(10)]
    assert rc.executor().submit(square, 4).result(DEADLINE_S) == 16


def test_joblib_runs_on_a_view(lview: ipp.LoadBalancedView) -> None:
    from joblib import Parallel, delayed

    lview.register_joblib_backend("ipp-view")
    assert Parallel(backend="ipp-view")(delayed(square)(n) for n in range(30)) == [n * n for n in range(30)]


def test_decorators(dview: ipp.DirectView, lview: ipp.LoadBalancedView) -> None:
    @ipp.remote(dview, block=True)
    def triple(x: int) -> int:
        """Return three times x."""
        return 3 * x

    assert triple(2) == [6, 6]
    assert triple.__name__ == "triple"
    assert triple.__doc__ == "RemoteFunction wrapping:\nReturn three times x."

    @ipp.parallel(dview, block=True)
    def total(part: list[int]) -> list[int]:
        return [sum(part)]

    assert total([1, 2, 3, 4]) == [3, 7]
    with pytest.raises(ValueError, match="must have equal length, but have"):
        total([1, 2], [1])
    assert lview.parallel(block=True)(square).map([1, 2]) == [1, 4]


# -- the client


def test_results_are_found_by_their_ids(farm: Farm, rc: ipp.Client, dview: ipp.DirectView) -> None:
    lview = rc.load_balanced_view()
    task, command = lview.apply_async(square, 3), dview.apply_async(square, 4)
    rc.wait([task, command], DEADLINE_S)
    other = ipp.Client(farm.connection_file)
    try:
        found = other.get_result(task.msg_ids[0])
        assert isinstance(found, ipp.AsyncHubResult)
        assert found.get(DEADLINE_S) == 9
        assert other.get_result(command.msg_ids).get(DEADLINE_S) == [16, 16]
        assert type(rc.get_result(-1)) is ipp.AsyncResult
        with pytest.raises(KeyError):
            other.get_result("nothing")
    finally:
        other.close()
    code = (
        "import sys, ipytaskfarm.ipyparallel as ipp\n"
        "print(ipp.Client(sys.argv[1]).get_result(sys.argv[2]).get(), 'ipyparallel' in sys.modules)"
    )
    assert python(code, str(farm.connection_file), task.msg_ids[0]) == "9 False\n", "a task is found in any process"


def test_records(rc: ipp.Client, dview: ipp.DirectView) -> None:
    before = rc.hub_history()
    result = rc.load_balanced_view().apply_async(square, 3)
    called = dview.apply_async(square, 3)
    rc.wait(timeout=DEADLINE_S)
    eventually(lambda: rc.hub_history() == [*before, *result.msg_ids, *called.msg_ids], DEADLINE_S)
    times = {record["msg_id"]: record["submitted"] for record in rc.db_query({"msg_id": {"$in": result.msg_ids}})}
    assert rc.db_query({"submitted": {"$lt": times[result.msg_ids[0]]}}, keys="msg_id") == [
        {"msg_id": msg_id} for msg_id in before
    ]
    (record,) = rc.db_query({"msg_id": {"$glob": called.msg_ids[0]}})
    assert (record["header"]["msg_type"], record["result_content"]) == ("execute_request", {"status": "ok"})
    assert record["received"] >= record["completed"] >= record["started"]
    printed = rc.load_balanced_view().apply_async(print, "printed")
    printed.get(DEADLINE_S)
    assert [each["msg_id"] for each in rc.db_query({"stdout": "printed\n"}, "label")] == printed.msg_ids
    with pytest.raises(ValueError, match="no condition '\\$near'"):
        rc.db_query({"msg_id": {"$near": 1}})
    again = rc.resubmit(result.msg_ids)
    assert again.get(DEADLINE_S) == [9]
    with pytest.raises(ipp.RemoteError, match="KeyError"):
        rc.resubmit(["invalid"])
    rc.purge_results("all")
    assert rc.hub_history() == []


def test_the_state_of_queues(rc: ipp.Client, gate: Gate) -> None:
    rc[0].apply_async(after_gate, gate.path)
    rc[0].apply_async(square, 3)
    assert rc.queue_status(0)["queue"] == 2
    ended = rc[1].apply_async(square, 3)
    assert ended.get(DEADLINE_S) == 9
    lists = rc.queue_status(verbose=True)
    assert (list(lists), lists[1]["completed"][-1:]) == (["unassigned", 0, 1], ended.msg_ids)
    assert rc.queue_status(1) == {"queue": 0, "completed": len(lists[1]["completed"]), "tasks": 0}
    task = rc.load_balanced_view([1]).apply_async(after_gate, gate.path)
    eventually(lambda: rc.queue_status(verbose=True)[1]["tasks"] == task.msg_ids, DEADLINE_S)
    assert not rc.wait(timeout=0)
    assert rc.outstanding
    gate.open()
    assert rc.wait(timeout=DEADLINE_S)
    assert not rc.outstanding


def test_engines_are_waited_for(rc: ipp.Client) -> None:
    rc.wait_for_engines(2)
    future = rc.wait_for_engines(2, block=False)
    assert future is not None
    assert future.done()
    with pytest.raises(TimeoutError, match="2 of 3 engines were ready"):
        rc.wait_for_engines(3, timeout=0.01)


def test_a_farm_that_does_not_run_is_an_oserror() -> None:
    with pytest.raises(OSError, match="farm 'nobody' is not running"):
        ipp.Client(profile="nobody")


def test_calls_of_some_engines_are_aborted(rc: Any) -> None:
    view = rc[:]
    held = view.apply_async(time.sleep, 1)
    waiting = rc[0].apply_async(square, 3)
    others = rc[1].apply_async(square, 4)
    task = rc.load_balanced_view().apply_async(square, 5)
    later = rc.abort(targets=[0], block=False)
    assert later.result(DEADLINE_S) is None
    with pytest.raises(ipp.error.TaskAborted):
        waiting.get(DEADLINE_S)
    assert (others.get(DEADLINE_S), task.get(DEADLINE_S)) == (16, 25)
    held.wait(DEADLINE_S)


# -- the loss of an engine


def test_a_balanced_program_loses_an_engine_and_no_result(
    farm: Farm, lview: ipp.LoadBalancedView, tmp_path: Path
) -> None:
    call = functools.partial(kills_its_engine_once, mark=tmp_path / "killed")
    assert lview.map_async(call, range(20)).get(DEADLINE_S) == list(range(20))
    assert (tmp_path / "killed").exists()
    until_engines(farm, 2)


def test_a_direct_call_names_the_engine_that_is_lost(farm: Farm, rc: ipp.Client, tmp_path: Path) -> None:
    result = rc[:].apply_async(kills_its_engine_once, ipp.Reference("5 if id == 1 else 0"), tmp_path / "killed")
    with pytest.raises(ipp.CompositeError) as lost:
        result.get(DEADLINE_S)
    assert [(name, info["engine_id"]) for name, _, _, info in lost.value.elist] == [("EngineError", 1)]
    with pytest.raises(ipp.EngineError, match=r"\[1:apply\] EngineError: engine 1 .*SIGKILL") as one:
        lost.value.raise_exception()
    assert isinstance(one.value, ipp.RemoteError)
    assert isinstance(one.value.__cause__, errors.EngineLost)
    until_engines(farm, 2)
    assert rc[:].apply_sync(square, 3) == [9, 9], "the engine was replaced under its id"


# -- magics


@pytest.fixture
def shell(rc: ipp.Client) -> Iterator[Shell]:
    with shell_with_magics() as shell:
        shell["rc"] = rc
        shell.ok("view = rc.activate()")
        yield shell


def texts(cell: Cell) -> list[str]:
    """Return the values that a cell has shown, without the engines' names."""
    return [output.data["text/plain"].partition("]: ")[2] for output in cell.outputs]


def test_px(shell: Shell, rc: ipp.Client) -> None:
    shell.ok("%px a = 5")
    assert rc[:]["a"] == [5, 5]
    lines = shell.ok("%px print(a)").out.split("\n")
    assert sorted(line for line in lines if line) == ["5", "5", "[stdout:0] ", "[stdout:1] "]
    assert texts(shell.ok("%%px --no-stream\n6 * 7")) == ["42", "42"]
    assert shell.ok("%%px --targets [1] --no-stream -o found\nprint(a)").out == "[stdout:1] \n5\n"
    assert isinstance(shell["found"], ipp.AsyncResult)
    assert rc.ids == [0, 1]
    assert shell["view"].targets == "all", "--targets is for one cell"


def test_px_options(shell: Shell) -> None:
    cell = shell.ok("%pxconfig --noblock --verbose -t ::2\nresult = %px 6 * 7")
    assert cell.out == "Async parallel execution on engine(s): [0]\n"
    assert shell["view"].targets == [0]
    assert texts(shell.ok("%pxresult")) == ["42"]
    shell.ok("%%px --local --block\nlocal = 3")
    assert shell["local"] == 3
    shell.fails("%%px --targets one,two\n1", Exception, "engine ids, like 0")


def test_px_shows_an_error_once(shell: Shell) -> None:
    cell = shell.fails("%px 1 / 0", ipp.error.AlreadyDisplayedError, "2 errors")
    assert cell.err.count("ZeroDivisionError: division by zero") == 2
    cell = shell.fails("%%px --no-stream\n1 / 0", ipp.CompositeError)
    assert cell.err == ""


def test_autopx(shell: Shell, rc: ipp.Client) -> None:
    assert shell.ok("%autopx").out == "%autopx enabled\n"
    shell.ok("b = 11")
    assert shell.ok("%autopx").out == "%autopx disabled\n"
    assert rc[:]["b"] == [11, 11]
    assert "b" not in shell.shell.user_ns
