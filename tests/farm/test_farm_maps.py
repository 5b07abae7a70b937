"""Maps on a real farm: chunks, with order, errors, retries and losses of single items as if each were a task."""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ipytaskfarm import Farm, TaskClient, errors
from ipytaskfarm.client.jobs import Values
from tests.support.farms import DEADLINE_S
from tests.support.polling import eventually

pytestmark = pytest.mark.farm


def runs_of(tc: TaskClient, values: Values[Any]) -> int:
    """Return how many runs on engines a map took: items that shared one have its times in common."""
    return len({(row.engineid, row.started_at) for row in tc.tasks(ids=values.job.ids).rows})


def test_quick_calls_share_runs(tc: TaskClient) -> None:
    values = tc.map(lambda x: x * x, range(50_000))
    assert values == [x * x for x in range(50_000)]
    assert runs_of(tc, values) < 600


def test_slow_calls_have_a_run_each(tc: TaskClient) -> None:
    def nap(x: int) -> int:
        time.sleep(0.05)
        return x

    values = tc.map(nap, range(12))
    assert values == list(range(12))
    assert runs_of(tc, values) == 12


def test_the_items_of_a_map_count_as_tasks_until_they_are_cleared(tc: TaskClient) -> None:
    eventually(lambda: tc.queue_status()["pending"] == 0, DEADLINE_S, what="what earlier tests left has ended")
    before = tc.queue_status()
    values = tc.map(abs, range(1_000))
    assert tc.queue_status() == before | {"succeeded": before["succeeded"] + 1_000}
    assert tc.clear(values.job.ids) == 1_000
    assert tc.queue_status() == before
    assert list(tc.imap(abs, range(1_000))) == list(range(1_000))
    eventually(lambda: tc.queue_status() == before, DEADLINE_S, what="what imap has yielded is cleared")


@pytest.mark.parametrize(
    "sequences",
    [
        (range(1000),),
        ([1, 2, 3],),
        ((4, 5),),
        ({"a": 1, "b": 2},),
        (iter("abc"),),
        (range(5), "abcde"),
        ([],),
        ([], []),
    ],
    ids=["range", "list", "tuple", "dict", "iterator", "two", "none", "none twice"],
)
def test_any_iterables(tc: TaskClient, sequences: Any) -> None:
    def together(*items: Any) -> tuple[Any, ...]:
        return items

    kept = [list(each) for each in sequences]
    assert tc.map(together, *kept) == list(zip(*kept, strict=True))
    assert list(tc.imap(together, *map(iter, kept))) == list(zip(*kept, strict=True))
    assert sorted(map(repr, tc.imap_unordered(together, *kept))) == sorted(map(repr, zip(*kept, strict=True)))


def test_an_error_is_its_items_own(tc: TaskClient) -> None:
    def invert(x: int) -> int:
        if x % 100 == 99:
            raise ZeroDivisionError(f"item {x}")
        if x == 150:
            raise StopIteration
        if x == 151:
            raise SystemExit(3)
        return -x

    with pytest.raises(ZeroDivisionError, match="item 99") as raised:
        tc.map(invert, range(1_000))
    assert "in invert" in "".join(raised.value.__notes__)
    assert "each.py" not in "".join(raised.value.__notes__)
    found = tc.map(invert, range(1_000), return_exceptions=True)
    bad = {x for x in range(1_000) if isinstance(found[x], Exception)}
    assert bad == {*range(99, 1_000, 100), 150, 151}
    assert all(found[x] == -x for x in range(1_000) if x not in bad)


def test_a_value_that_cannot_travel_is_an_error_of_its_item(tc: TaskClient) -> None:
    found = tc.map(lambda x: threading.Lock() if x == 700 else x, range(1_000), return_exceptions=True)
    assert isinstance(found[700], errors.UnpickleableException)
    assert found[:700] + found[701:] == [x for x in range(1_000) if x != 700]


def test_only_failed_items_are_tried_again(tc: TaskClient, tmp_path: Path) -> None:
    def count(x: int, folder: str = str(tmp_path)) -> int:
        with open(f"{folder}/{x}", "a") as file:
            file.write("x")
        if x == 123 and os.path.getsize(f"{folder}/{x}") < 3:
            raise ValueError("not yet")
        return x

    assert tc.mapper(retries=2).map(count, range(300)) == list(range(300))
    sizes = {int(path.name): path.stat().st_size for path in tmp_path.iterdir()}
    assert sizes.pop(123) == 3
    assert set(sizes.values()) == {1}
    (tmp_path / "123").unlink()
    with pytest.raises(ValueError, match="not yet"):
        tc.mapper(retries=1).map(count, range(300))


def test_an_engine_that_is_lost_fails_its_items_or_is_made_up_for(tc: TaskClient, tmp_path: Path) -> None:
    def die(x: int, mark: str = str(tmp_path / "mark")) -> int:
        if x == 500 and not os.path.exists(mark):
            open(mark, "w").close()
            os.kill(os.getpid(), 9)
        return x

    assert tc.mapper(retries=1).map(die, range(1_000)) == list(range(1_000))
    (tmp_path / "mark").unlink()
    found = tc.map(die, range(1_000), return_exceptions=True)
    lost = [x for x in range(1_000) if isinstance(found[x], errors.EngineLost)]
    assert 500 in lost
    assert all(found[x] == x for x in range(1_000) if x not in lost)


def test_an_item_that_rejects_its_engine_goes_to_another(tc: TaskClient, farm: Farm) -> None:
    with farm.multiengine_client() as mec:
        mec.push({"choosy": True}, targets=mec.get_ids()[0])

        def choose(x: int) -> int:
            if x == 700 and globals().get("choosy", False):
                raise errors.TaskRejectError("not here")
            return x

        try:
            assert tc.map(choose, range(1_000)) == list(range(1_000))
        finally:
            mec.reset()


def test_large_values_are_spread_over_chunks(tc: TaskClient) -> None:
    found = tc.map(lambda x: bytes([x % 256]) * 10_000, range(500))
    assert [value[0] for value in found] == [x % 256 for x in range(500)]
    assert all(len(value) == 10_000 for value in found)


def test_imap_reads_little_ahead_and_may_be_endless(tc: TaskClient) -> None:
    read = 0

    def numbers() -> Iterator[int]:
        nonlocal read
        for number in itertools.count():
            read = number
            yield number

    values = tc.imap(lambda x: 2 * x, numbers())
    assert [next(values) for _ in range(1_000)] == [2 * x for x in range(1_000)]
    assert read < 5_000_000
    values.close()  # type: ignore[attr-defined]


def test_imap_raises_in_its_turn(tc: TaskClient) -> None:
    values = tc.imap(lambda x: 10 // (5 - x), range(10))
    assert [next(values) for _ in range(5)] == [2, 2, 3, 5, 10]
    with pytest.raises(ZeroDivisionError):
        next(values)


def test_imap_of_unequal_iterables(tc: TaskClient) -> None:
    with pytest.raises(ValueError, match="shorter"):
        list(tc.imap(lambda x, y: x, iter([1, 2]), iter([1])))


def test_coroutine_functions_run_in_the_engines_loop(tc: TaskClient) -> None:
    async def later(x: int) -> int:
        import asyncio

        await asyncio.sleep(0)
        return x + 1

    assert tc.map(later, range(5)) == [1, 2, 3, 4, 5]
