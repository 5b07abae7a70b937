"""TaskResult, NS and Failure, and what is raised for each way of failing."""

from __future__ import annotations

import copy
import pickle
import re
import threading
import traceback
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from IPython.lib.pretty import pretty

from ipytaskfarm.client.arrivals import Arrivals, WakeFlag
from ipytaskfarm.client.results import NS, Failure, TaskResult, decode_body, error_named, error_of, sign
from ipytaskfarm.core import errors
from ipytaskfarm.core.messages.payload import FailureBody, ResultBody
from ipytaskfarm.core.messages.task_types import AttemptRow, FailureSummary as WireFailure, Final
from ipytaskfarm.core.states import Reason
from ipytaskfarm.serialization.pack import pack, pack_error
from tests.support.fake_hub_controller import encode, final


def succeeded(value: Any, kind: str = "names", **body: Any) -> TaskResult:
    return TaskResult(final(73, body=encode(ResultBody(value=pack(value), kind=kind, **body))))


def failed_final(error: BaseException, kind: str = "names", reason: str = Reason.ERROR) -> Final:
    try:
        raise error
    except BaseException as raised:
        body = ResultBody(failure=pack_error(raised), kind=kind)
    return final(73, reason, encode(body), failure=WireFailure(type(error).__name__, str(error), "cell:1 in f"))


def failed(error: BaseException) -> TaskResult:
    return TaskResult(failed_final(error))


def test_a_wait_for_an_item_ends_with_it_and_not_with_its_chunk() -> None:
    arrivals = Arrivals()
    arrivals.chunks.add(10, 4)  # its items are 11 to 14
    arrivals.submitted = {10, 20}
    first, rest, whole = arrivals.wait_for({11}), arrivals.wait_for({12, 14, 20}, eager=True), arrivals.wait_for({10})
    assert 12 in rest.open_ids()
    assert 11 not in rest.open_ids()
    arrivals.take([final(11), final(12)])
    assert first.event.is_set()
    assert not arrivals.is_live(11)
    assert (rest.ended, rest.event.is_set(), rest.remaining) == ([12], True, {10, 20})
    end = msgspec.structs.replace(final(10), items=4, separate=(0, 1, 2))
    arrivals.take([end])  # item 13 has become a task that runs on: nobody but the third waits for it
    assert rest.ended == [12, 14]
    assert rest.remaining == {20}
    assert whole.remaining == {13}
    arrivals.take([final(13)])
    assert whole.event.is_set()
    late = arrivals.wait_for({11, 14})
    assert late.event.is_set()


def test_the_reprs_of_old() -> None:
    result = succeeded({"a": 73})
    assert repr(result) == "TaskResult[ID:73]:{'a': 73}"
    assert repr(result.ns) == "NS{'a': 73}"
    assert repr(succeeded(20, "call")) == "TaskResult[ID:73]:20"
    assert repr(failed(ZeroDivisionError("no"))) == "TaskResult[ID:73]:<Failure ZeroDivisionError: no>"


def test_a_long_value_is_shown_as_ipython_shows_it() -> None:
    assert pretty(succeeded({"a": 73})) == "TaskResult[ID:73]:{'a': 73}"
    assert len(pretty(succeeded(list(range(100_000)), "call"))) < 50_000
    lines = pretty(succeeded([["x" * 60], ["y" * 60]], "call")).splitlines()
    assert lines == ["TaskResult[ID:73]:[['" + "x" * 60 + "'],", " " * 19 + "['" + "y" * 60 + "']]"]


@pytest.mark.parametrize("used", [False, True])
@pytest.mark.parametrize("again", [lambda x: pickle.loads(pickle.dumps(x)), copy.copy, copy.deepcopy])
def test_results_may_be_pickled_and_copied(again: Callable[[TaskResult], TaskResult], used: bool) -> None:
    one, names, wrong = succeeded(20, "call"), succeeded({"a": 73}), failed(ZeroDivisionError("no"))
    if used:
        assert (one.result, names.ns.a, repr(wrong.failure)) == (20, 73, "<Failure ZeroDivisionError: no>")
    assert again(one).result == 20
    assert (again(names).ns.a, again(names)["a"]) == (73, 73)
    with pytest.raises(ZeroDivisionError, match="no"):
        _ = again(wrong).result
    failure = wrong.failure
    assert failure is not None
    kept = pickle.loads(pickle.dumps(failure))
    assert (kept.getTraceback(), kept.place) == (failure.getTraceback(), failure.place)
    with pytest.raises(ZeroDivisionError, match="no"):
        kept.raiseException()


def test_names_three_ways() -> None:
    result = succeeded({"a": 73})
    assert result.results == {"a": 73}
    assert result.results["a"] == result["a"] == result.ns.a == 73
    assert result.keys == ["a"]
    assert (result.taskid, result.engineid, result.status, result.reason) == (73, 1, "succeeded", "")
    assert result.failure is None
    assert result.raise_exception() is None  # type: ignore[func-returns-value]
    with pytest.raises(KeyError):
        result["z"]
    with pytest.raises(AttributeError):
        _ = result.ns.z
    with pytest.raises(AttributeError):
        result.ns = 1  # type: ignore[misc, assignment]


def test_a_task_without_pull_has_no_results() -> None:
    result = TaskResult(final(1, body=encode(ResultBody())))
    assert (result.results, result.result) == ({}, {})
    assert TaskResult(final(1, body=b"")).results == {}


def test_a_function_result_is_not_taken_for_names() -> None:
    result = succeeded({"a": 1}, "call")
    assert result.result == {"a": 1}
    assert result.results == {}


def test_failure_raises_its_own_exception_again_and_again() -> None:
    result = failed(ZeroDivisionError("division by zero"))
    assert result.results == {}
    failure = result.failure
    assert failure is not None
    assert (failure.type, failure.getErrorMessage()) == (ZeroDivisionError, "division by zero")
    head, *frames = failure.getBriefTraceback().splitlines()
    assert head == "Traceback: ZeroDivisionError: division by zero"
    assert frames[-1].endswith(":failed_final")
    assert "Traceback" in failure.getTraceback()
    raisers: list[Any] = [
        lambda: result.ns,
        lambda: result["a"],
        lambda: result.result,
        result.raise_exception,
        result.raiseException,
        failure.raiseException,
    ]
    for raiser in raisers:
        with pytest.raises(ZeroDivisionError) as caught:
            raiser()
        assert caught.value.engine_id == 1  # type: ignore[attr-defined]
        assert "Traceback" in caught.value.remote_traceback  # type: ignore[attr-defined]
        assert len(caught.traceback) < 6
    (note,) = failure.value.__notes__
    assert note.startswith("raised on engine 1:")


def test_what_would_end_the_caller_comes_as_a_remote_error() -> None:
    with pytest.raises(errors.RemoteError, match="SystemExit: 3"):
        failed(SystemExit(3)).raise_exception()


@pytest.mark.parametrize(
    ("reason", "error"),
    [
        (Reason.ABORTED, errors.TaskAborted),
        (Reason.TIME_LIMIT, errors.TimeLimitExceeded),
        (Reason.ENGINE_LOST, errors.EngineLost),
        (Reason.MEMORY, errors.MemoryLimitExceeded),
        (Reason.QUARANTINED, errors.Quarantined),
        (Reason.REJECTED, errors.TaskRejectError),
        (Reason.UNMET, errors.TaskTimeout),
        (Reason.TOO_LARGE, errors.ResultTooLarge),
    ],
)
def test_every_reason_without_a_body_has_its_error(reason: str, error: type[Exception]) -> None:
    told = final(5, reason, None, failure=WireFailure("x", "engine 1 was killed by signal 9"))
    with pytest.raises(error, match="signal 9"):
        TaskResult(told).raise_exception()
    with pytest.raises(error, match="task 5"):
        TaskResult(final(5, reason, b"")).raise_exception()


def test_an_abort_is_an_abort_whatever_the_task_saw() -> None:
    told = failed_final(errors.TaskCancelled("now"), reason=Reason.ABORTED)
    assert isinstance(error_of(told, decode_body(told)), errors.TaskAborted)


def test_a_refusal_is_raised_by_its_name() -> None:
    told = final(5, Reason.REFUSED, b"", failure=WireFailure("StoreFull", "no room"))
    with pytest.raises(errors.StoreFull, match="no room"):
        TaskResult(told).raise_exception()


def test_errors_by_name() -> None:
    assert isinstance(error_named("IndexError", "x"), IndexError)
    assert isinstance(error_named("TaskAborted", "x"), errors.TaskAborted)
    for hostile in ("KeyboardInterrupt", "SystemExit", "CompositeError", "print", "os.system", "UnicodeDecodeError"):
        assert isinstance(error_named(hostile, "x"), errors.RemoteError)


def test_times() -> None:
    result = succeeded({})
    assert re.fullmatch(r"\d{4}/\d\d/\d\d \d\d:\d\d:\d\d", result.submitted)
    assert re.fullmatch(r"\d{4}/\d\d/\d\d \d\d:\d\d:\d\d", result.completed)
    assert result.duration == 0.25
    assert result.submitted_at.tzinfo is not None
    assert result.submitted_at.timestamp() == 1000.5
    assert (result.completed_at - result.started_at).total_seconds() == 0.25


def test_attempts() -> None:
    row = AttemptRow(1, 0, "there", 900.0, 901.0, Reason.ERROR)
    result = TaskResult(final(3, body=b"", attempts=2, history=[row]))
    assert [(a.number, a.engine, a.outcome) for a in result.attempts] == [(1, 0, "error"), (2, 1, "")]
    # One that never ran has none.
    assert TaskResult(final(3, Reason.ABORTED, b"", attempts=0)).attempts == []


def test_output_and_html_are_harmless() -> None:
    result = succeeded({"a": "<script>"}, stdout="out", stderr="err", outputs=[{"data": {"text/plain": "1"}}])
    assert (result.stdout, result.stderr, result.outputs) == ("out", "err", [{"data": {"text/plain": "1"}}])
    assert "<script>" not in result._repr_html_()
    bad = TaskResult(final(1, Reason.ERROR, encode(ResultBody(failure=FailureBody("E", "<b>", "<i>")))))
    assert "<i>" not in bad._repr_html_()


def test_failure_and_ns_stand_alone() -> None:
    failure = Failure(errors.RemoteError("their.Error", "what"))
    assert (failure.etype, failure.getErrorMessage(), failure.getTraceback()) == (
        "their.Error",
        "what",
        "their.Error: what",
    )
    wrong = Failure(SyntaxError("invalid syntax", ("<cell 1-fd257a40>", 2, 1, "=2", 2, 2)))
    assert wrong.getErrorMessage() == "invalid syntax (<task>, line 2)", "as the table of tasks has it"
    assert NS({"b": 1}).b == 1


class NamelessError(NameError):
    @property
    def name(self) -> Any:  # type: ignore[override]
        return ["no", "name"]


class TextlessError(AttributeError):
    def __str__(self) -> str:
        raise RuntimeError("no text")


@pytest.mark.parametrize("kind", [NamelessError, TextlessError])
def test_an_exception_that_does_not_answer_is_signed_too(kind: type[Exception]) -> None:
    error = kind("x")
    sign(error, 3, "its traceback")
    assert error.__notes__ == ["raised on engine 3:\nits traceback"]


def test_an_error_without_a_place_is_said_once() -> None:
    for text, note in (("ValueError: x", ""), ("ValueError: x\n", ""), ("ValueError: other", ":\nValueError: other")):
        error = ValueError("x")
        sign(error, 3, text)
        assert error.__notes__ == [f"raised on engine 3{note}"]
    error.__cause__, error.__notes__ = TypeError("y"), []
    sign(error, 3, "".join(traceback.format_exception(error)))
    assert error.__notes__ == ["raised on engine 3"], "IPython shows the cause too"


def test_an_attribute_error_of_a_property_is_not_that_of_a_missing_name() -> None:
    class Result(TaskResult):
        @property
        def result(self) -> Any:
            raise AttributeError("the task's own")

    with pytest.raises(AttributeError, match="the task's own"):
        _ = object.__new__(Result).result


def test_displays_stand_between_the_lines_in_html_too() -> None:
    outputs = [{"data": {"text/html": html}, "after_chars": n} for n, html in ((2, "<b>x</b>"), (4, "<i>y</i>"))]
    shown = succeeded({}, stdout="a\nb\n", stderr="", outputs=outputs).html()
    assert shown.index("<pre>a") < shown.index("<b>x</b>") < shown.index("<pre>b") < shown.index("<i>y</i>")


def test_a_flag_wakes_all_that_wait_and_is_taken_back() -> None:
    flag, woken = WakeFlag(), []
    assert (flag.is_set(), flag.wait(0.0)) == (False, False)
    threads = [threading.Thread(target=lambda: woken.append(flag.wait(30.0))) for _ in range(5)]
    for thread in threads:
        thread.start()
    flag.set()
    flag.set()
    for thread in threads:
        thread.join()
    assert woken == [True] * 5
    assert (flag.is_set(), flag.wait(0.0)) == (True, True)
    for _ in range(2):
        flag.clear()
        flag.clear()
        assert (flag.is_set(), flag.wait(0.001)) == (False, False)
        flag.set()
        assert flag.wait(0.0)
