"""How items of a map fail on a real farm: each for itself, with a name on one line, and whatever it raises."""

from __future__ import annotations

import _thread
import asyncio
import ctypes
import functools
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ipytaskfarm import Task, TaskClient, errors
from tests.support.farms import DEADLINE_S
from tests.support.polling import eventually

pytestmark = pytest.mark.farm


class OutcomeError(BaseException):
    """Like the outcomes of pytest and trio's Cancelled: no Exception."""


RAISED: dict[int, BaseException] = {
    10: KeyboardInterrupt(),
    20: GeneratorExit(),
    30: asyncio.CancelledError("by a library"),
    35: OutcomeError("no outcome"),
}


def raise_some(x: int) -> int:
    if x in RAISED:
        raise RAISED[x]
    return x


def notes(error: Any) -> list[str]:
    return list(getattr(error, "__notes__", ()))


@pytest.mark.parametrize("chunksize", [1, 40, 2000])
def test_an_item_that_raises_no_exception_fails_alone(tc: TaskClient, chunksize: int) -> None:
    """A library's KeyboardInterrupt, a CancelledError, a GeneratorExit, outcomes of pytest."""
    found = tc.map(raise_some, range(2000), chunksize=chunksize, on_error="return")
    assert [x for x, value in enumerate(found) if value != x] == list(RAISED)
    assert [notes(found[x])[0] for x in RAISED] == [f"item {x} of 2000: raise_some(x={x})" for x in RAISED]
    assert str(found[10]) == "KeyboardInterrupt"
    assert str(found[30]) == "asyncio.exceptions.CancelledError: by a library"


FACTOR = 2


def scaled(x: int, by: int) -> float:
    return FACTOR * x / by


class Scaled:
    def __call__(self, by: int) -> float:
        return scaled(1, by)


@pytest.mark.parametrize(
    ("function", "named"),
    [
        (functools.partial(scaled, 1), "scaled(by=0)"),
        (functools.partial(pow, 0), "pow(exp=-1)"),
        (Scaled(), "Scaled(by=0)"),
    ],
)
def test_items_of_partials_and_objects_have_their_names(
    tc: TaskClient, function: Callable[[int], float], named: str
) -> None:
    item = -1 if "pow" in named else 0
    (error,) = tc.map(function, [item], on_error="return")
    assert notes(error)[0] == f"item 0 of 1: {named}"
    assert named.partition("(")[0] in repr(tc.fetch_task(max(tc.tasks(last=5))))


def limited(x: int, way: str) -> str:
    """Limit a call by a timer that interrupts the main thread, as programs do without a farm."""
    ways: dict[str, Callable[[], None]] = {
        "interrupt_main": _thread.interrupt_main,
        "kill": lambda: os.kill(os.getpid(), signal.SIGINT),
        "raise_signal": lambda: signal.raise_signal(signal.SIGINT),
    }
    timer = threading.Timer(0.05, ways[way])
    try:
        if way == "raise_signal":
            ways[way]()
        timer.start()
        for _ in range(6000 * x):  # `interrupt_main` does not wake a sleep
            time.sleep(0.01)
    except KeyboardInterrupt:
        return "interrupted"
    finally:
        timer.cancel()
    return "ended"


@pytest.mark.parametrize("way", ["interrupt_main", "kill", "raise_signal"])
def test_a_task_that_interrupts_itself_gets_a_keyboard_interrupt(tc: TaskClient, way: str) -> None:
    assert tc.submit(limited, 1, way).result(DEADLINE_S) == "interrupted"
    expected = ["interrupted", "interrupted" if way == "raise_signal" else "ended", "interrupted"]
    assert tc.map(limited, [1, 0, 1], [way] * 3) == expected


def test_an_idle_engine_ignores_an_interrupt(tc: TaskClient) -> None:
    first = tc.run(Task(os.getpid), block=True)
    os.kill(first.result, signal.SIGINT)
    assert tc.run(Task(os.getpid, targets=first.engineid), block=True).result == first.result


def test_an_abort_still_ends_the_run_of_several_items(tc: TaskClient, tmp_path: Path) -> None:
    def wait(x: int, folder: str) -> int:
        if x == 3:
            Path(folder, "begun").touch()
            while not Path(folder, "never").exists():
                time.sleep(0.01)
        return x

    job = tc.map(wait, range(40), [str(tmp_path)] * 40, chunksize=40, block=False)
    eventually(lambda: Path(tmp_path, "begun").exists(), DEADLINE_S, what="an item waits")
    eventually(
        lambda: tc.status(job.ids[4]).state == "succeeded", DEADLINE_S, what="other engines take its other items"
    )
    tc.abort(job.ids[3])
    found = job.results(return_exceptions=True)
    assert isinstance(found[3], errors.TaskAborted)
    assert str(found[3]) == f"task {job.ids[3]} was aborted"
    assert [x for x in range(40) if found[x] != x] == [3]


def test_an_item_with_tables_and_secrets_is_named_on_one_line(tc: TaskClient) -> None:
    pandas = pytest.importorskip("pandas")

    def fail(frame: Any, options: dict[str, str], api_key: str, x: int) -> None:
        raise ValueError("bad")

    table = pandas.DataFrame({"a": [1.0, 2.0, 3.0], "b": 5})
    arguments = [[table], [{"password": "hunter2"}], ["abc"], [7]]
    (error,) = tc.map(fail, *arguments, on_error="return")
    shown = "frame=<DataFrame 3 × 2: a, b>, options={'password': <masked>}, api_key=<masked>, x=7"
    assert notes(error)[0] == f"item 0 of 1: fail({shown})"
    said = tc.explain(error_id(tc))
    assert "\n    frame =\n             a  b\n" in said, "a table keeps its columns in line"


def error_id(tc: TaskClient) -> int:
    """Return the id of the latest failed task."""
    found: int = tc.tasks(state="failed").rows[-1].id
    return found


def test_a_note_names_the_users_line_and_not_the_library_s(tc: TaskClient) -> None:
    def parse(text: str) -> Any:
        try:
            return json.loads(text)
        except ValueError as error:
            error.add_note("of the user")
            raise

    (error,) = tc.map(parse, ["{x"], on_error="return")
    assert notes(error)[:2] == ["of the user", "item 0 of 1: parse(text='{x')"]
    place = f"{__file__}:{parse.__code__.co_firstlineno + 2} in parse"
    assert notes(error)[2] == f"raised on engine {error.engine_id}: {place}"
    assert place in {group.place for group in tc.failures()}


def crash_at_nine(x: int, folder: str, way: str) -> int:
    time.sleep(0.004)
    if x == 9 and not Path(folder, way).exists():
        Path(folder, way).touch()
        if way == "signal":
            ctypes.string_at(0)
        os._exit(7)
    return x


@pytest.mark.parametrize("way", ["signal", "exit"])
def test_of_a_lost_run_the_items_that_had_ended_are_told_from_the_one_that_ran(
    tc: TaskClient, tmp_path: Path, way: str
) -> None:
    """Items of some milliseconds run one by one, so it is known which of them was running."""
    found = tc.map(crash_at_nine, range(40), [str(tmp_path)] * 40, [way] * 40, chunksize=40, on_error="return")
    lost = {x: str(value) for x, value in enumerate(found) if isinstance(value, errors.EngineLost)}
    ended = [x for x, text in lost.items() if "this item had ended before, and its value was lost" in text]
    assert sorted(lost) == list(range(10))
    assert ended == list(range(9))
    stack = f"{__file__}:{crash_at_nine.__code__.co_firstlineno + 5} in crash_at_nine"
    assert {group.place for group in tc.failures(job=found.job.name)} == {stack if way == "signal" else ""}


def lower_the_limit(more: int) -> bytes:
    """Set the lowest recursion limit that Python accepts at the present depth, or a few more; return a large value."""
    for limit in range(1, 1000):
        try:
            sys.setrecursionlimit(limit)
            break
        except RecursionError:
            pass
    sys.setrecursionlimit(limit + more)
    return b"x" * 3_000_000


def recurse_without_end(more: int) -> None:
    lower_the_limit(more)

    def again() -> None:
        again()

    again()


@pytest.mark.parametrize("more", [0, 5])
def test_a_low_recursion_limit_loses_no_engine_and_ends_with_its_task(tc: TaskClient, more: int) -> None:
    limits: dict[str, Any] = {"lost_retries": 0, "time_limit": 60}
    code = f"from tests.farm.test_item_failures import lower_the_limit\nlower_the_limit({more})\nprint('ended')"
    for _ in range(2):
        assert tc.run(Task(code, **limits), block=True).stdout == "ended\n"
        assert len(tc.run(Task(lower_the_limit, args=(more,), **limits), block=True).result) == 3_000_000
        failure = tc.run(Task(recurse_without_end, args=(more,), **limits), block=True).failure
        assert failure is not None
        assert "maximum recursion depth exceeded" in failure.getErrorMessage()
        assert tc.map(lambda _: sys.getrecursionlimit(), range(4), chunksize=1) == [1000] * 4
