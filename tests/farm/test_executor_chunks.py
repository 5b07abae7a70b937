"""`Executor`: quick calls share tasks, and each of them still has a value, an error, a text and an id of its own."""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import random
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest

from ipytaskfarm import Executor, Pool, TaskClient
from ipytaskfarm.adapters import executor as executor_module
from ipytaskfarm.core import errors
from ipytaskfarm.engine import current_task
from tests.support.only_here import OnlyHere
from tests.support.polling import eventually
from tests.support.thorough import some

pytestmark = [pytest.mark.farm, pytest.mark.usefixtures("cleared")]
DEADLINE_S = 60
CALLS = 1000
T = TypeVar("T")


def submitted(ex: Executor, function: Callable[..., T], *calls: tuple[Any, ...]) -> list[concurrent.futures.Future[T]]:
    """Submit many calls of a function that the executor knows as quick; the given ones are in the middle."""
    warm = [ex.submit(function, 1) for _ in range(CALLS)]
    assert not concurrent.futures.wait(warm, DEADLINE_S).not_done
    around = [(1,)] * (CALLS // 2)
    futures = [ex.submit(function, *call) for call in [*around, *calls, *around]]
    return futures[CALLS // 2 : -(CALLS // 2)]


def tasks_of(futures: list[concurrent.futures.Future[Any]], tc: TaskClient) -> set[int]:
    """Return the tasks that calls share."""
    chunks = tc.session.arrivals.chunks
    return {found for future in futures if (found := chunks.of(future.id)) is not None}  # type: ignore[attr-defined]


def inverse(x: int, offset: int = 0, gate: Path | None = None) -> float:
    if gate is not None:
        end_s = time.monotonic() + DEADLINE_S
        while not gate.exists() and time.monotonic() < end_s:
            time.sleep(0.01)
    return 1 / x + offset


def speaks(x: int) -> int:
    if x < 0:
        print(f"I am {x}")
    return x


def dies(x: int, mark: str = "") -> int:
    if x < 0 and not os.path.exists(mark):
        if mark:
            Path(mark).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return x


def gives_back(x: Any) -> Any:
    return threading.Lock() if x == "lock" else x


def made(x: int) -> Any:
    return OnlyHere() if x < 0 else x


def test_quick_calls_share_tasks_and_have_ids(ex: Executor, tc: TaskClient) -> None:
    given = submitted(ex, inverse, *[(n, n) for n in range(1, 301)])
    assert len({future.id for future in given}) == 300  # type: ignore[attr-defined]
    assert [future.result(DEADLINE_S) for future in given] == [1 / n + n for n in range(1, 301)]
    assert len(given) == 300


def test_they_are_few_tasks(ex: Executor, tc: TaskClient, tmp_path: Path) -> None:
    for future in [ex.submit(inverse, 1) for _ in range(CALLS)]:
        future.result(DEADLINE_S)
    gate = tmp_path / "gate"
    with tc.executor() as other:  # both engines wait, so that nothing ends
        held = [other.submit(inverse, 1, gate=gate) for _ in range(2)]
        futures = [ex.submit(inverse, n + 1) for n in range(CALLS)]
        ids = {future.id for future in futures}  # type: ignore[attr-defined]
        assert len(ids) == CALLS
        assert len(tasks_of(futures, tc)) < CALLS / 10
        gate.touch()
        assert [future.result(DEADLINE_S) for future in futures] == [1 / (n + 1) for n in range(CALLS)]
        assert [future.result(DEADLINE_S) for future in held] == [1, 1]


def test_arguments_by_keyword_share_tasks_too(ex: Executor) -> None:
    for future in [ex.submit(inverse, 1, offset=n) for n in range(CALLS)]:
        future.result(DEADLINE_S)
    futures = [ex.submit(inverse, 1, offset=n) for n in range(CALLS)]
    assert [future.result(DEADLINE_S) for future in futures] == [1.0 + n for n in range(CALLS)]


def test_one_fails_alone(ex: Executor, tc: TaskClient) -> None:
    before, fails, after = submitted(ex, inverse, (2,), (0,), (4,))
    error = fails.exception(DEADLINE_S)
    assert isinstance(error, ZeroDivisionError)
    assert (before.result(DEADLINE_S), after.result(DEADLINE_S)) == (0.5, 0.25)
    assert "item" not in "".join(getattr(error, "__notes__", ()))
    ex.shutdown()
    assert tc.queue_status()["failed"] == 1
    assert "ZeroDivisionError" in str(tc.explain(fails.id))  # type: ignore[attr-defined]


def test_one_prints(ex: Executor, capsys: pytest.CaptureFixture[str]) -> None:
    given = submitted(ex, speaks, (1,), (-7,), (1,))
    assert [future.result(DEADLINE_S) for future in given] == [1, -7, 1]
    assert capsys.readouterr().out == "I am -7\n"


def test_one_loses_its_engine_once(ex: Executor, tmp_path: Path) -> None:
    given = submitted(ex, dies, (1,), (-1, str(tmp_path / "mark")), (2,))
    assert [future.result(DEADLINE_S) for future in given] == [1, -1, 2]


def test_one_that_always_loses_its_engine_fails_alone(ex: Executor) -> None:
    given = submitted(ex, dies, (1,), (-1,), (2,))
    assert isinstance(given[1].exception(DEADLINE_S), errors.EngineLost)
    assert (given[0].result(DEADLINE_S), given[2].result(DEADLINE_S)) == (1, 2)


@pytest.mark.parametrize("value", [threading.Lock(), "lock"], ids=["argument", "value"])
def test_what_cannot_travel_fails_alone(ex: Executor, value: Any) -> None:
    given = submitted(ex, gives_back, ("a",), (value,), ("b",))
    assert isinstance(given[1].exception(DEADLINE_S), TypeError)
    assert (given[0].result(DEADLINE_S), given[2].result(DEADLINE_S)) == ("a", "b")


def test_a_value_that_cannot_be_unpickled_fails_alone(ex: Executor) -> None:
    given = submitted(ex, made, (1,), (-1,), (2,))
    assert isinstance(given[1].exception(DEADLINE_S), Exception)
    assert (given[0].result(DEADLINE_S), given[2].result(DEADLINE_S)) == (1, 2)


def test_large_arguments_and_values_come_whole(ex: Executor) -> None:
    given = submitted(ex, gives_back, *[(bytes([n]) * 100_000,) for n in range(40)], (b"x" * 5_000_000,))
    assert [future.result(DEADLINE_S) for future in given] == [
        *[bytes([n]) * 100_000 for n in range(40)], b"x" * 5_000_000
    ]  # fmt: skip


def test_functions_in_turn_have_their_own_values(ex: Executor) -> None:
    for future in [ex.submit(f, 1) for _ in range(CALLS) for f in (inverse, speaks)]:
        future.result(DEADLINE_S)
    futures = [ex.submit(f, n) for n in range(1, 500) for f in (inverse, speaks)]
    assert [future.result(DEADLINE_S) for future in futures] == [
        value for n in range(1, 500) for value in (1 / n, n)
    ]  # fmt: skip


def test_what_waits_can_be_cancelled(ex: Executor, tc: TaskClient, tmp_path: Path) -> None:
    for future in [ex.submit(inverse, 1) for _ in range(CALLS)]:
        future.result(DEADLINE_S)
    gate = tmp_path / "gate"
    with tc.executor() as other:
        held = [other.submit(inverse, 1, gate=gate) for _ in range(2)]
        eventually(lambda: all(future.running() for future in held), DEADLINE_S)
        futures = [ex.submit(inverse, n + 1) for n in range(CALLS)]
        ex.shutdown(wait=False, cancel_futures=True)
        gate.touch()
        assert all(future.cancelled() for future in futures)
        assert [future.result(DEADLINE_S) for future in held] == [1, 1]


def test_a_call_that_shares_a_task_is_not_cancelled_alone(ex: Executor, tc: TaskClient, tmp_path: Path) -> None:
    for future in [ex.submit(inverse, 1) for _ in range(CALLS)]:
        future.result(DEADLINE_S)
    gate = tmp_path / "gate"
    with tc.executor() as other:
        held = [other.submit(inverse, 1, gate=gate) for _ in range(2)]
        futures = [ex.submit(inverse, n + 1) for n in range(CALLS)]
        shared = next(future for future in futures if tasks_of([future], tc))
        assert not shared.cancel()
        gate.touch()
        assert [future.result(DEADLINE_S) for future in [*held, *futures][:3]] == [1, 1, 1]


def test_calls_that_wait_for_one_another_are_not_gathered(tc: TaskClient, tmp_path: Path) -> None:
    with tc.executor(gathers=False) as executor:
        futures = [executor.submit(inverse, 1) for _ in range(200)]
        assert not concurrent.futures.wait(futures, DEADLINE_S).not_done
        assert not tasks_of(futures, tc)
    with tc.executor(retries=0) as executor:  # nothing may run twice
        futures = [executor.submit(inverse, 1) for _ in range(200)]
        assert not concurrent.futures.wait(futures, DEADLINE_S).not_done
        assert not tasks_of(futures, tc)


def meets(own: Path | None, other: Path | None = None) -> int:
    """Wait until the other call of a pair runs too; without a pair, return at once."""
    if own is None or other is None:
        return 1
    own.touch()
    end_s = time.monotonic() + DEADLINE_S
    while not other.exists():
        if time.monotonic() > end_s:
            raise TimeoutError(f"{other} did not come")
        time.sleep(0.01)
    return 1


def test_calls_that_wait_for_each_other_from_the_beginning_meet(ex: Executor, tmp_path: Path) -> None:
    """Nothing says that their function is quick, so they share no task, although others do."""
    futures: list[concurrent.futures.Future[Any]] = [ex.submit(inverse, 1) for _ in range(CALLS)]
    a, b = tmp_path / "a", tmp_path / "b"
    pair = [ex.submit(meets, a, b), ex.submit(meets, b, a)]
    futures += [ex.submit(inverse, 1) for _ in range(CALLS)]
    assert [future.result(DEADLINE_S) for future in [*pair, *futures]] == [1] * (2 * CALLS + 2)
    in_map = [(tmp_path / "c", tmp_path / "d"), (tmp_path / "d", tmp_path / "c")]
    assert list(ex.map(meets, *zip(*in_map, strict=True))) == [1, 1]


def quick(ex: Executor) -> None:
    """Let the executor know `meets` as quick."""
    assert list(ex.map(meets, [None] * 2 * CALLS)) == [1] * 2 * CALLS


def test_quick_calls_that_wait_for_each_other_meet_although_they_share_a_task(
    ex: Executor, tc: TaskClient, tmp_path: Path
) -> None:
    quick(ex)
    a, b = tmp_path / "a", tmp_path / "b"
    around = [ex.submit(meets, None) for _ in range(CALLS // 2)]
    pair = [ex.submit(meets, a, b), ex.submit(meets, b, a)]
    around += [ex.submit(meets, None) for _ in range(CALLS // 2)]
    assert len(tasks_of([*pair], tc)) == 1
    assert [future.result(DEADLINE_S) for future in [*pair, *around]] == [1] * (CALLS + 2)
    again = [ex.submit(meets, None) for _ in range(CALLS)]
    assert not tasks_of(again, tc), "calls of a function that has waited share no tasks any more"
    assert not concurrent.futures.wait(again, DEADLINE_S).not_done


def test_a_value_arrives_while_a_later_item_of_its_task_waits(ex: Executor, tmp_path: Path) -> None:
    """A map's consumer lets the later item go when it has the earlier one."""
    quick(ex)
    a, b = tmp_path / "a", tmp_path / "b"
    own, other = [None] * CALLS + [a] + [None] * CALLS, [None] * CALLS + [b] + [None] * CALLS
    total = 0
    for index, value in enumerate(ex.map(meets, own, other), 1):
        total += value
        if index == CALLS:
            b.touch()
    assert total == 2 * CALLS + 1


def test_the_value_of_a_call_is_found_by_its_id_while_another_one_of_its_task_waits(
    ex: Executor, tc: TaskClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(executor_module, "CLEARED_AT_ONCE", 100 * CALLS)  # else what has arrived is cleared meanwhile
    quick(ex)
    a, b = tmp_path / "a", tmp_path / "b"
    calls = [ex.submit(meets, None) for _ in range(CALLS // 2)]
    waiting = ex.submit(meets, a, b)
    calls += [ex.submit(meets, None) for _ in range(CALLS // 2)]
    shared = tasks_of([waiting], tc)
    beside = [call.id for call in calls if tasks_of([call], tc) == shared]  # type: ignore[attr-defined]
    assert shared
    assert beside

    async def both() -> list[Any]:
        return [await asyncio.wait_for(tc.result(task_id, raw=False), DEADLINE_S) for task_id in beside[-2:]]

    assert [tc.get_task_result(i, block=True, timeout=DEADLINE_S, raw=False).result for i in beside[:2]] == [1, 1]
    assert [each.result for each in asyncio.run(both())] == [1, 1]
    assert not waiting.done()
    b.touch()
    assert waiting.result(DEADLINE_S) == 1


def test_items_of_a_clients_map_meet_too(tc: TaskClient, tmp_path: Path) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    own, other = [None] * CALLS + [a, b] + [None] * CALLS, [None] * CALLS + [b, a] + [None] * CALLS
    assert tc.map(meets, own, other, chunksize=CALLS) == [1] * (2 * CALLS + 2)


def inner(x: int) -> int:
    return x + 1


def outer(x: int) -> int:
    return sum(current_task().results([current_task().submit(inner, x) for _ in range(3)]))


def test_calls_may_submit_and_wait(ex: Executor) -> None:
    """They lend their engines: many more of them wait than there are engines, and each needs one more process."""
    calls = some(8, 60)
    futures = [ex.submit(outer, n) for n in range(calls)]
    assert [future.result(DEADLINE_S) for future in futures] == [3 * n + 3 for n in range(calls)]


class Counting:
    def __init__(self) -> None:
        self.n = 0

    def step(self) -> int:
        self.n += 1
        return self.n


def appends(numbers: list[int]) -> int:
    numbers.append(1)
    return len(numbers)


def extends(*, numbers: list[int]) -> int:
    numbers += [1]
    return len(numbers)


def passes_on(numbers: list[int], others: list[int]) -> int:
    appends(others)
    return len(numbers)


def steps(counting: Counting) -> int:
    return counting.step()


def sets(counting: Counting) -> int:
    counting.n += 1
    return counting.n


def adds_one(numbers: Any) -> int:
    numbers += 1
    return int(numbers[0])


def draws(numbers: random.Random) -> float:
    return numbers.random()


SHARED: list[int] = []
COUNTING, ARRAY, RANDOM = Counting(), np.zeros(3, int), random.Random(1)


@pytest.mark.parametrize(
    ("call", "value"),
    [
        ((appends, (SHARED,), {}), 1),
        ((extends, (), {"numbers": SHARED}), 1),
        ((passes_on, (SHARED, SHARED), {}), 1),
        ((list.append, (SHARED, 1), {}), None),
        ((steps, (COUNTING,), {}), 1),
        ((sets, (COUNTING,), {}), 1),
        ((adds_one, (ARRAY,), {}), 1),
        ((draws, (RANDOM,), {}), random.Random(1).random()),
        ((next, (iter(range(9)),), {}), 0),
    ],
    ids=lambda value: getattr(value[0], "__name__", "") if isinstance(value, tuple) else None,
)
def test_each_call_has_the_arguments_that_were_sent(tc: TaskClient, call: Any, value: Any) -> None:
    function, args, kwargs = call
    with tc.executor() as executor:
        for _ in range(2):  # at first it is not known that the calls are quick
            futures = [executor.submit(function, *args, **kwargs) for _ in range(300)]
            assert {future.result() for future in futures} == {value}


def builds(settings: dict[str, int], n: int) -> list[int]:
    found = []
    total = 0
    total += settings["a"]
    found.append(total)
    found.append(n)
    return found


def test_a_function_that_changes_what_it_has_made_shares_tasks(tc: TaskClient) -> None:
    settings = {"a": 1}
    with Executor(tc) as executor:
        for _ in range(3):
            futures = submitted(executor, builds, *[(settings, n) for n in range(CALLS)])
            assert [future.result() for future in futures] == [[1, n] for n in range(CALLS)]

        def is_shared() -> bool:  # a future whose call has ended does not tell any more
            futures = submitted(executor, builds, *[(settings, n) for n in range(CALLS)])
            return any(getattr(future, "chunk", None) is not None for future in futures)

        eventually(is_shared)


def test_items_share_what_they_may_change_only_within_a_given_chunk(tc: TaskClient) -> None:
    with tc.executor() as executor, Pool(tc) as pool:
        assert set(executor.map(appends, [SHARED] * 400)) == {1}
        assert max(executor.map(appends, [SHARED] * 400, chunksize=10)) == 10
        assert set(pool.imap(appends, [SHARED] * 400)) == {1}
        assert max(pool.map(appends, [SHARED] * 400, chunksize=8)) == 8
