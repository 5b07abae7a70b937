"""`Executor.map`: its items share tasks, and each of them still has a value, an error and a text of its own."""

from __future__ import annotations

import functools
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ipytaskfarm import Executor, Pool, TaskClient
from ipytaskfarm.core import errors
from tests.support.only_here import OnlyHere

pytestmark = [pytest.mark.farm, pytest.mark.usefixtures("cleared")]
DEADLINE_S = 60
ITEMS = 3000
SIZES = pytest.mark.parametrize("chunksize", [1, 100], ids=["single", "chunks"])


def quick(x: int, y: int = 0) -> int:
    return x + y


def adding(n: int) -> Callable[[int], int]:
    return lambda x: n + x


def fails_at_700(x: int) -> int:
    if x == 700:
        raise KeyError(x)
    return x


def speaks_at_700(x: int) -> int:
    if x in (700, 701):
        print(f"I am {x}")
    return x


def dies_once_at_700(x: int, mark: str) -> int:
    if x == 700 and not os.path.exists(mark):
        Path(mark).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return x


def dies_at_700(x: int) -> int:
    if x == 700:
        os.kill(os.getpid(), signal.SIGKILL)
    return x


def made_at_700(x: int) -> Any:
    return OnlyHere() if x == 700 else x


async def awaited(x: int) -> int:
    return x


def before(values: Iterator[Any]) -> tuple[list[Any], BaseException | None]:
    """Return the values before an error, and the error."""
    found: list[Any] = []
    try:
        found.extend(values)
    except Exception as error:
        return found, error
    return found, None


@SIZES
def test_quick_items_are_few_tasks(ex: Executor, tc: TaskClient, chunksize: int) -> None:
    for _ in range(2):  # the second time the executor knows that the function is quick
        first = ex.submit(quick, 0).id  # type: ignore[attr-defined]
        assert list(ex.map(quick, range(ITEMS), range(ITEMS), chunksize=chunksize)) == list(range(0, 2 * ITEMS, 2))
        shared = [chunk for chunk in tc.session.arrivals.chunks.items if chunk > first]
    assert 0 < len(shared) <= ITEMS // 10  # fewer where engines are not held up


@SIZES
@pytest.mark.parametrize("make", [list, tuple, iter, range], ids=["list", "tuple", "iterator", "range"])
def test_items_come_from_any_iterable(ex: Executor, make: Callable[[Any], Any], chunksize: int) -> None:
    given = range(ITEMS) if make is range else make(range(ITEMS))
    assert list(ex.map(quick, given, chunksize=chunksize)) == list(range(ITEMS))


def test_the_shortest_iterable_ends_a_map(ex: Executor) -> None:
    assert list(ex.map(quick, range(10), range(7), chunksize=3)) == list(range(0, 14, 2))
    assert list(ex.map(quick, [], chunksize=3)) == []
    assert list(ex.map(quick)) == []


@SIZES
def test_the_values_before_an_error_come(ex: Executor, chunksize: int) -> None:
    list(ex.map(fails_at_700, range(500), chunksize=chunksize))
    found, error = before(ex.map(fails_at_700, range(ITEMS), chunksize=chunksize))
    assert found == list(range(700))
    assert isinstance(error, KeyError)


@SIZES
def test_an_item_prints(ex: Executor, chunksize: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert list(ex.map(speaks_at_700, range(ITEMS), chunksize=chunksize)) == list(range(ITEMS))
    assert sorted(capsys.readouterr().out.splitlines()) == ["I am 700", "I am 701"]


@SIZES
def test_a_killed_engine_costs_no_value(ex: Executor, tmp_path: Path, chunksize: int) -> None:
    values = ex.map(dies_once_at_700, range(ITEMS), [str(tmp_path / "mark")] * ITEMS, chunksize=chunksize)
    assert list(values) == list(range(ITEMS))


def test_an_item_that_kills_its_engines_fails_alone(ex: Executor) -> None:
    found, error = before(ex.map(dies_at_700, range(ITEMS), chunksize=100))
    assert found == list(range(700))
    assert isinstance(error, errors.EngineLost)


@SIZES
def test_an_item_that_cannot_travel_fails_alone(ex: Executor, chunksize: int) -> None:
    found, error = before(ex.map(quick, [*range(700), threading.Lock(), 1], chunksize=chunksize))
    assert found == list(range(700))
    assert type(error) is TypeError


@SIZES
def test_a_value_that_cannot_be_unpickled_fails_alone(ex: Executor, chunksize: int) -> None:
    found, error = before(ex.map(made_at_700, range(ITEMS), chunksize=chunksize))
    assert found == list(range(700))
    assert "from another process" in str(error)


@SIZES
def test_large_items_come_whole(ex: Executor, chunksize: int) -> None:
    given = [bytes([n]) * 50_000 for n in range(200)]
    assert list(ex.map(bytes.upper, given, chunksize=chunksize)) == [each.upper() for each in given]


def test_coroutines_are_awaited(ex: Executor) -> None:
    values: list[Any] = list(ex.map(awaited, range(100), chunksize=10))
    assert values == list(range(100))


def test_nothing_of_a_map_stays_on_the_farm(tc: TaskClient) -> None:
    with tc.executor() as executor:
        assert sum(executor.map(quick, range(ITEMS), chunksize=100)) == sum(range(ITEMS))
    assert tc.queue_status() == {"scheduled": 0, "pending": 0, "succeeded": 0, "failed": 0}


def test_an_iterator_that_is_dropped_cancels_the_rest(ex: Executor, tc: TaskClient) -> None:
    values = ex.map(quick, range(ITEMS), chunksize=10)
    assert next(values) == 0
    values.close()  # type: ignore[attr-defined]
    ex.shutdown()
    assert tc.queue_status()["scheduled"] == 0


def test_an_iterable_that_raises_ends_the_call(ex: Executor) -> None:
    def numbers() -> Iterator[int]:
        yield from range(250)
        raise ZeroDivisionError("in the iterable")

    with pytest.raises(ZeroDivisionError, match="in the iterable"):
        ex.map(quick, numbers(), chunksize=100)


class Counting(Executor):
    """An executor whose `submit` sees each call, as that of a ``ProcessPoolExecutor`` does."""

    seen = 0

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Count the call, and submit it."""
        self.seen += 1
        return super().submit(fn, *args, **kwargs)


def test_a_subclass_sees_the_calls_of_a_map(tc: TaskClient) -> None:
    with Counting(tc) as executor:
        assert list(executor.map(abs, [-1, -2, -3])) == [1, 2, 3]
        assert executor.seen == 3
        assert list(executor.map(pow, range(4), range(4), chunksize=2)) == [1, 1, 4, 27]
        assert executor.seen == 5


@pytest.mark.parametrize(
    "function",
    [adding(2), lambda x, n=2: x + n, functools.partial(int.__add__, 2), functools.partial(pow, exp=1, mod=10**9)],
    ids=["closure", "default", "partial", "keywords"],
)
def test_functions_with_values_of_their_own_are_mapped(tc: TaskClient, function: Callable[[int], int]) -> None:
    with Executor(tc) as executor, Pool(tc) as pool:
        for count in (1, 5):
            wanted = [function(x) for x in range(count)]
            assert list(executor.map(function, range(count))) == wanted
            assert list(executor.map(function, range(count), buffersize=1)) == wanted
            assert pool.map(function, range(count), chunksize=1) == wanted
            assert list(pool.imap(function, range(count))) == wanted
            assert pool.starmap(function, [(x,) for x in range(count)]) == wanted


def test_process_map_of_tqdm_takes_the_executor(monkeypatch: pytest.MonkeyPatch) -> None:
    concurrent = pytest.importorskip("tqdm.contrib.concurrent")
    monkeypatch.setattr("concurrent.futures.ProcessPoolExecutor", Executor)
    assert concurrent.process_map(quick, range(5), [1] * 5, max_workers=1, disable=True) == [1, 2, 3, 4, 5]


class Packed:
    """A callable that counts how often it is pickled."""

    def __init__(self) -> None:
        self.packs = 0

    def __getstate__(self) -> dict[str, Any]:
        self.packs += 1
        return {}

    def __call__(self, x: int) -> int:
        return -x


def test_a_function_is_packed_once_for_all_items_that_are_there(tc: TaskClient) -> None:
    few, many, coming = Packed(), Packed(), Packed()
    with Pool(tc) as pool:
        pool.map(few, [1])
        assert pool.map(many, range(20), chunksize=1) == [-x for x in range(20)]
        assert pool.map(coming, (x for x in range(20)), chunksize=1) == [-x for x in range(20)]
    assert many.packs == coming.packs == few.packs
    with Executor(tc) as ex:
        assert list(ex.map(coming, (x for x in range(20)))) == [-x for x in range(20)]
    assert coming.packs > 2 * few.packs  # the generator may change it
