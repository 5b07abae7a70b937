"""`Pool`: the contract of ``multiprocessing.Pool`` on a real farm."""

from __future__ import annotations

import gc
import itertools
import multiprocessing
import os
import queue
import signal
import threading
import time
import warnings
from collections.abc import Iterator
from multiprocessing.pool import MaybeEncodingError, ThreadPool  # type: ignore[attr-defined]
from pathlib import Path

import pytest

from ipytaskfarm import Pool, TaskClient
from ipytaskfarm.adapters.pool import PoolResult
from ipytaskfarm.core import errors
from tests.support.polling import DEADLINE_S

pytestmark = pytest.mark.farm


@pytest.fixture
def pool(tc: TaskClient) -> Iterator[Pool]:
    with Pool(tc) as pool:
        yield pool
    tc.clear()


def square(x: int) -> int:
    return x * x


def slow_square(x: int) -> int:
    time.sleep(0.01)
    return x * x


def multiply(x: int, y: int = 1) -> int:
    return x * y


def inverse(x: int) -> float:
    return 1 / x


def kills_its_engine_once(x: int, mark: Path) -> int:
    if x == 5 and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return x


def test_apply(pool: Pool) -> None:
    assert pool.apply(square, (5,)) == 25
    assert pool.apply(multiply, (5,), {"y": 3}) == 15


@pytest.mark.parametrize("chunksize", [None, 1, 7, 100])
def test_map_and_starmap_keep_the_order(pool: Pool, chunksize: int | None) -> None:
    assert pool.map(square, range(30), chunksize) == [n * n for n in range(30)]
    assert pool.starmap(multiply, [(n, n) for n in range(30)], chunksize) == [n * n for n in range(30)]
    assert pool.map(square, []) == []


def test_results_are_asked_for_later(pool: Pool) -> None:
    found: queue.SimpleQueue[list[int]] = queue.SimpleQueue()
    result = pool.map_async(square, range(10), callback=found.put)
    assert result.get(DEADLINE_S) == [n * n for n in range(10)]
    assert result.ready()
    assert result.successful()
    assert found.get(timeout=DEADLINE_S) == [n * n for n in range(10)]


def test_errors_are_raised_and_told(pool: Pool) -> None:
    found: queue.SimpleQueue[BaseException] = queue.SimpleQueue()
    result = pool.apply_async(inverse, (0,), error_callback=found.put)
    with pytest.raises(ZeroDivisionError):
        result.get(DEADLINE_S)
    assert not result.successful()
    assert isinstance(found.get(timeout=DEADLINE_S), ZeroDivisionError)
    with pytest.raises(ZeroDivisionError):
        pool.map(inverse, [2, 0, 4])


def test_callbacks_have_run_when_a_waiter_goes_on(pool: Pool) -> None:
    seen: list[object] = []

    def collects(value: object) -> None:
        time.sleep(0.2)  # as long as it takes to write a file
        seen.append(value)

    def fails(value: object) -> None:
        raise LookupError("of the callback")

    pool.map_async(square, range(3), callback=collects).wait(DEADLINE_S)
    pool.apply_async(square, (3,), callback=collects).get(DEADLINE_S)
    pool.apply_async(inverse, (0,), error_callback=collects).wait(DEADLINE_S)
    assert seen[:2] == [[0, 1, 4], 9]
    assert isinstance(seen[2], ZeroDivisionError)
    assert pool.apply_async(square, (3,), callback=fails).get(DEADLINE_S) == 9
    own: queue.SimpleQueue[PoolResult[int]] = queue.SimpleQueue()
    result = pool.apply_async(square, (4,), callback=lambda _: seen.append(own.get().get()))
    own.put(result)
    result.wait(DEADLINE_S)
    assert seen.pop() == 16
    for made in (pool, ThreadPool(1)):
        assert made.map_async(square, [], callback=collects).get(DEADLINE_S) == []
        made.terminate()
    assert len(seen) == 3


def test_a_result_that_is_late_raises_multiprocessings_error(pool: Pool) -> None:
    result = pool.apply_async(time.sleep, (60,))
    with pytest.raises(multiprocessing.TimeoutError):
        result.get(0.1)
    with pytest.raises(ValueError, match="not ready"):
        result.successful()
    values = pool.imap(time.sleep, [60])
    with pytest.raises(multiprocessing.TimeoutError):
        values.next(0.1)


@pytest.mark.parametrize("chunksize", [1, 7])
def test_iterators(pool: Pool, chunksize: int) -> None:
    assert list(pool.imap(square, range(30), chunksize)) == [n * n for n in range(30)]
    assert sorted(pool.imap_unordered(square, iter(range(30)), chunksize)) == [n * n for n in range(30)]


def test_an_iterator_goes_on_behind_an_error(pool: Pool) -> None:
    values = pool.imap(inverse, [1, 0, 2])
    assert next(values) == 1
    with pytest.raises(ZeroDivisionError):
        next(values)
    assert next(values) == 0.5
    with pytest.raises(StopIteration):
        next(values)


class RefusesToTravel:
    def __reduce__(self) -> str:
        raise RuntimeError("I stay")


def test_an_iterator_raises_the_error_of_its_items_in_the_place_of_their_chunk(pool: Pool) -> None:
    def items() -> Iterator[int]:
        yield from range(7)
        raise LookupError("the seventh")

    values = pool.imap(square, items(), chunksize=4)
    assert [next(values) for _ in range(4)] == [0, 1, 4, 9]
    with pytest.raises(LookupError):
        next(values)


def test_quick_items_share_tasks_and_fail_one_by_one(pool: Pool) -> None:
    """More of them share a task than `chunksize` says, and the values around an error come all the same."""
    given = [*range(1, 3001)]
    assert pool.map(inverse, given) == [1 / n for n in given]
    tasks = pool.client.session.arrivals.chunks
    given[1000] = given[2000] = 0
    before = len(tasks.items)
    result = pool.map_async(inverse, given, chunksize=1)
    with pytest.raises(ZeroDivisionError):
        result.get(DEADLINE_S)
    assert len(tasks.items) - before < 300
    for found in (pool.imap(inverse, given), pool.imap_unordered(inverse, given)):
        values, failed = [], 0
        while True:
            try:
                values.append(found.next(DEADLINE_S))
            except ZeroDivisionError:
                failed += 1
            except StopIteration:
                break
        assert failed == 2
        assert sorted(values) == sorted(1 / n for n in given if n)


def holds_a_lock() -> object:
    return threading.Lock()


def test_what_cannot_travel_raises_the_errors_of_multiprocessing(pool: Pool) -> None:
    with pytest.raises(RuntimeError, match="I stay") as argument:
        pool.map(id, [RefusesToTravel()] * 3)
    assert isinstance(argument.value.__cause__, errors.UnpickleableException)
    told: list[BaseException] = []
    result = pool.apply_async(holds_a_lock, error_callback=told.append)
    with pytest.raises(MaybeEncodingError) as value:
        result.get(DEADLINE_S)
    assert told == [value.value]
    assert isinstance(value.value.__cause__, errors.UnpickleableException)
    assert pool.map(abs, [-1, -2]) == [1, 2]


def test_a_pool_that_is_not_closed_warns(tc: TaskClient) -> None:
    pool = Pool(tc)
    assert pool.map(abs, [-1]) == [1]
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        del pool
        gc.collect()
    assert "unclosed running multiprocessing pool" in "".join(
        str(each.message) for each in told if each.category is ResourceWarning
    )
    closed = Pool(tc)
    closed.close()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        del closed
        gc.collect()
    assert "unclosed running" not in "".join(str(each.message) for each in told)


def test_a_killed_engine_costs_no_result(pool: Pool, tmp_path: Path) -> None:
    mark = tmp_path / "killed"
    assert pool.starmap(kills_its_engine_once, [(n, mark) for n in range(20)]) == list(range(20))
    assert mark.exists()


def test_a_pool_ends_as_multiprocessings_does(tc: TaskClient) -> None:
    pool = Pool(tc)
    with pytest.raises(ValueError, match="Pool is still running"):
        pool.join()
    result = pool.map_async(square, range(10))
    pool.close()
    with pytest.raises(ValueError, match="Pool not running"):
        pool.map(square, [1])
    pool.join()
    assert result.get(0) == [n * n for n in range(10)]


def test_terminate_ends_what_runs(tc: TaskClient) -> None:
    pool = Pool(tc)
    result = pool.apply_async(time.sleep, (600,))
    pool.terminate()
    pool.join()
    assert result.ready()
    assert not result.successful()
    tc.clear()


def test_an_iterator_reads_an_endless_iterable_as_far_as_it_must(pool: Pool) -> None:
    read: list[int] = []

    def numbers() -> Iterator[int]:
        for n in itertools.count():
            read.append(n)
            yield n

    values = pool.imap(slow_square, numbers())
    assert [next(values) for _ in range(3)] == [0, 1, 4]
    assert len(read) < 1000


@pytest.mark.parametrize("ordered", [True, False])
def test_values_come_while_the_iterable_is_read(pool: Pool, ordered: bool) -> None:
    arrived: queue.SimpleQueue[int] = queue.SimpleQueue()

    def numbers() -> Iterator[int]:
        yield 2
        yield arrived.get(timeout=DEADLINE_S)

    values = (pool.imap if ordered else pool.imap_unordered)(square, numbers())
    assert values.next(DEADLINE_S) == 4
    with pytest.raises(multiprocessing.TimeoutError):
        values.next(0.01)
    arrived.put(4)
    assert list(values) == [16]


def test_a_closed_pool_ends_with_what_its_iterators_still_read(tc: TaskClient) -> None:
    goes_on = threading.Event()

    def numbers() -> Iterator[int]:
        yield 2
        goes_on.wait(DEADLINE_S)
        yield 3

    pool = Pool(tc)
    values = pool.imap(square, numbers())
    pool.close()
    goes_on.set()
    pool.join()
    assert list(values) == [4, 9]


@pytest.mark.parametrize("processes", [0, -1])
def test_there_must_be_processes(processes: int) -> None:
    with pytest.raises(ValueError, match="Number of processes must be at least 1"):
        Pool(processes)


@pytest.mark.parametrize("tasks", [0, -1, "5"])
def test_a_wrong_number_of_tasks_per_child_is_refused(tc: TaskClient, tasks: object) -> None:
    with pytest.raises(ValueError, match="maxtasksperchild must be a positive int or None"):
        Pool(tc, maxtasksperchild=tasks)  # type: ignore[arg-type]


def test_a_pool_does_not_travel(pool: Pool) -> None:
    with pytest.raises(errors.UnpickleableException, match="current_task"):
        pool.apply(id, (pool,))
