"""The farm from asyncio: futures are awaited, tasks come as they end, cancelling reaches what runs."""

from __future__ import annotations

import asyncio
import concurrent.futures
import copy
import os
import pickle
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from ipytaskfarm import TaskClient
from tests.support.polling import DEADLINE_S, eventually

pytestmark = pytest.mark.farm


def square(x: int) -> int:
    return x * x


def late_square(x: int) -> int:
    time.sleep(0.2)
    return x * x


def waits(started: Path) -> None:
    started.touch()
    time.sleep(600)


def test_tasks_come_as_they_end(tc: TaskClient) -> None:
    async def all_of(ids: list[int]) -> list[int]:
        return [task_id async for task_id in tc.as_completed_async(ids)]

    ids = [tc.submit(square, n).id for n in range(50)]
    assert sorted(asyncio.run(all_of(ids))) == ids
    assert asyncio.run(all_of([])) == []


def test_asyncio_waits_for_futures(tc: TaskClient, tmp_path: Path) -> None:
    wait: Any = asyncio.wait  # its types ask for futures of asyncio

    async def ended() -> list[tuple[int, int]]:
        fast = [tc.submit(square, n) for n in range(3)]
        done, left = await wait(fast, timeout=DEADLINE_S)
        assert sorted(future.result() for future in done) == [0, 1, 4]
        found = [(len(done), len(left))]
        late = tc.submit(waits, tmp_path / "started")
        done, left = await wait([late, tc.submit(square, 5)], return_when=asyncio.FIRST_COMPLETED)
        found.append((len(done), len(left)))
        done, left = await wait([late, *fast], timeout=0.05)
        tc.abort(late.id)
        return [*found, (len(done), len(left))]

    assert asyncio.run(ended()) == [(3, 0), (1, 1), (3, 1)]


def test_the_time_of_a_wait_ends_where_it_waits(tc: TaskClient, tmp_path: Path) -> None:
    """What the caller awaits between two tasks is not cancelled."""

    ids = [tc.submit(square, 3).id, tc.submit(waits, tmp_path / "started").id]
    found: list[int] = []

    async def consume() -> None:
        async for task_id in tc.as_completed_async(ids, timeout=0.2):
            await asyncio.sleep(0.4)
            found.append(task_id)

    with pytest.raises(TimeoutError):
        asyncio.run(consume())
    assert found == ids[:1]
    tc.abort(ids[1])


def test_tasks_that_are_late_raise(tc: TaskClient, tmp_path: Path) -> None:
    async def first(task_id: int) -> None:
        async for _ in tc.as_completed_async([task_id], timeout=0.1):
            raise AssertionError("it has not ended")

    future = tc.submit(waits, tmp_path / "started")
    with pytest.raises(TimeoutError):
        asyncio.run(first(future.id))
    with pytest.raises(TimeoutError, match=f"task {future.id} has not ended within 0.01 s"):
        future.result(0.01)
    for keep in (pickle.dumps, copy.deepcopy):
        with pytest.raises(TypeError, match=r"a client of farm .* cannot be pickled.*Keep names and ids"):
            keep(tc)
    with pytest.raises(TypeError, match="can keep the task's id"):
        pickle.dumps(future)
    tc.abort(future.id)


def test_an_executor_runs_in_a_loop(tc: TaskClient) -> None:
    async def squares() -> list[int]:
        loop = asyncio.get_running_loop()
        return list(await asyncio.gather(*(loop.run_in_executor(executor, square, n) for n in range(20))))

    with tc.executor() as executor:
        assert asyncio.run(squares()) == [n * n for n in range(20)]


def test_cancelling_the_wait_aborts_the_task(tc: TaskClient, tmp_path: Path) -> None:
    started = tmp_path / "started"

    async def impatient() -> int:
        future = tc.submit(waits, started)
        waiting = asyncio.ensure_future(asyncio.wait_for(future, DEADLINE_S))
        await asyncio.sleep(
            0.01
        )  # the task may have started already, but a wait that has not begun cannot be cancelled
        while not started.exists():
            await asyncio.sleep(0.01)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        return future.id

    task_id = asyncio.run(impatient())
    eventually(lambda: tc.status(task_id).reason == "aborted", DEADLINE_S)


async def at_once(future: Any) -> None:
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(future, 0)


async def cancelled_unbegun(future: Any) -> None:
    asyncio.ensure_future(future).cancel()
    await asyncio.sleep(0)


async def gathered(future: Any) -> None:
    together = asyncio.gather(future, asyncio.sleep(0))
    together.cancel()
    with pytest.raises(asyncio.CancelledError):
        await together


@pytest.mark.parametrize("cancel", [at_once, cancelled_unbegun, gathered])
def test_cancelling_a_wait_that_has_not_begun_aborts_the_task(tc: TaskClient, tmp_path: Path, cancel: Any) -> None:
    """asyncio drops such a wait without a call of anything of the future."""
    running = tc.submit(waits, tmp_path / "started")
    eventually((tmp_path / "started").exists)
    asyncio.run(cancel(running))
    with pytest.raises(concurrent.futures.CancelledError):
        running.result(DEADLINE_S)


def test_a_question_whether_it_is_a_future_aborts_nothing(tc: TaskClient) -> None:
    async def ask() -> int:
        future: Any = tc.submit(late_square, 5)
        assert not asyncio.isfuture(future)
        for _ in range(3):
            await asyncio.sleep(0)
        first, second = asyncio.ensure_future(future), asyncio.ensure_future(future)
        return int(await first + await asyncio.shield(future) + await second)

    assert asyncio.run(ask()) == 75


def test_cancelling_the_wait_for_a_task_that_waits_ends_it_before_it_runs(tc: TaskClient, tmp_path: Path) -> None:
    async def impatient() -> None:
        blockers = [tc.submit(waits, tmp_path / str(n)) for n in range(2)]
        behind = tc.submit(square, 3)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(behind, 0.2)
        assert behind.cancelled()
        tc.abort(blockers)

    asyncio.run(impatient())


def dies_once(x: int, mark: Path) -> int:
    if x == 3 and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return x * x


def test_a_killed_engine_costs_no_value(tc: TaskClient, tmp_path: Path) -> None:
    mark = tmp_path / "killed"

    async def values(executor: concurrent.futures.Executor) -> list[int]:
        loop = asyncio.get_running_loop()
        return await asyncio.gather(*[loop.run_in_executor(executor, dies_once, n, mark) for n in range(10)])

    with tc.executor() as executor:
        assert asyncio.run(values(executor)) == [n * n for n in range(10)]
    assert mark.exists()
