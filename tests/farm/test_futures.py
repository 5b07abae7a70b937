"""Futures of tasks: what cancelling them does, and whose TimeoutError they raise."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

import pytest

from ipytaskfarm import Task, TaskClient
from ipytaskfarm.core.messages import ListEngines, tables
from tests.support.farms import Gate
from tests.support.polling import DEADLINE_S, eventually

pytestmark = pytest.mark.farm


def waits(started: Path) -> None:
    started.touch()
    time.sleep(600)


def no_task_runs(tc: TaskClient) -> bool:
    table = tc.session.ask_for(ListEngines(), tables.EngineTable)
    return all(row.task is None for row in table.rows)


def until_free(tc: TaskClient) -> None:
    """Wait until the engines are free: a task that nobody aborts there would hold one for ten minutes."""
    eventually(lambda: no_task_runs(tc), DEADLINE_S, what="the engines to be free")


def test_what_was_cancelled_never_runs(tc: TaskClient, tmp_path: Path) -> None:
    """An engine begins a task within a millisecond, so each round is a race between both."""
    for number in range(20):
        started = tmp_path / str(number)
        future = tc.submit(waits, started)
        if future.cancel():
            assert future.cancelled()
            assert tc.submit(pow, 2, 2).result(DEADLINE_S) == 4
            assert tc.submit(pow, 2, 3).result(DEADLINE_S) == 8
            assert not started.exists()
        else:
            assert not future.done()
            tc.abort(future)
        until_free(tc)
        assert future.cancel() is future.cancelled() is True


def test_a_running_task_is_not_cancelled_and_an_ended_one_neither(tc: TaskClient, tmp_path: Path) -> None:
    future = tc.submit(waits, tmp_path / "started")
    eventually((tmp_path / "started").exists, DEADLINE_S)
    assert not future.cancel()
    assert not future.done()
    tc.abort(future)
    ended = tc.submit(pow, 2, 5)
    assert ended.result() == 32
    assert not ended.cancel()


@pytest.mark.parametrize("round_", range(5))
def test_the_failure_of_a_sibling_frees_the_engine(tc: TaskClient, tmp_path: Path, round_: int) -> None:
    async def call() -> None:
        await tc.submit(waits, tmp_path / "started")

    async def fail() -> None:
        raise ValueError("at once")

    async def group() -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(call())
            tasks.create_task(fail())

    with pytest.raises(ExceptionGroup, match="TaskGroup"):
        asyncio.run(group())
    until_free(tc)


class DeadlineError(TimeoutError):
    """What a program raises when its own time is over."""


@contextlib.contextmanager
def deadline(error: BaseException) -> Iterator[None]:
    """Raise an error in a moment, from a handler of SIGALRM."""

    def over(signum: int, frame: FrameType | None) -> None:
        raise error

    before = signal.signal(signal.SIGALRM, over)
    signal.setitimer(signal.ITIMER_REAL, 0.1)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("error", [DeadlineError("of the batch"), TimeoutError("mine")], ids=["own class", "plain"])
@pytest.mark.parametrize("timeout", [None, 60.0])
def test_a_deadline_of_the_program_is_raised_as_it_is(
    tc: TaskClient, tmp_path: Path, error: TimeoutError, timeout: float | None
) -> None:
    future = tc.submit(waits, tmp_path / "started")
    waiting: list[Callable[[], object]] = [
        lambda: future.result(timeout),
        lambda: future.exception(timeout),
        lambda: next(tc.messages(future.id, timeout=timeout)),
    ]
    for wait in waiting:
        with pytest.raises(type(error)) as raised, deadline(error):
            wait()
        assert raised.value is error
    tc.abort(future)


def test_a_limit_of_the_wait_names_the_task(tc: TaskClient, tmp_path: Path) -> None:
    future = tc.submit(waits, tmp_path / "started")
    with pytest.raises(TimeoutError, match=f"task {future.id} has not ended within 0 s"):
        future.result(0)
    with pytest.raises(TimeoutError, match=f"task {future.id} has sent no message within 0.05 s"):
        next(tc.messages(future.id, timeout=0.05))
    tc.abort(future)


def test_explain_says_that_an_aborted_task_still_runs(tc: TaskClient, tmp_path: Path) -> None:
    gate = Gate(tmp_path / "gate")
    holders = [tc.run(Task(gate.code)) for _ in range(2)]
    eventually(lambda: all(tc.status(each).state == "running" for each in holders), DEADLINE_S)
    tc.abort(holders, interrupt=False)
    behind = tc.submit(pow, 2, 7)
    text = tc.explain(behind.id)
    assert any(f"it runs task {each}, which was aborted and has not stopped yet" in text for each in holders)
    gate.open()
    assert behind.result(DEADLINE_S) == 128


def test_the_value_of_a_task_that_runs_again_is_waited_for(tc: TaskClient, gate: Gate) -> None:
    """After `mark_failed` its future was done, and had an AttributeError."""
    future = tc.submit(exec, gate.code)
    gate.open()
    assert future.result(DEADLINE_S) is None
    gate.path.unlink()
    assert tc.mark_failed(future.id) == "reopened"
    with pytest.raises(TimeoutError, match=f"task {future.id} has not ended within"):
        future.result(0.05)
    gate.open()
    assert future.exception(DEADLINE_S) is None
