"""Tasks with an ``async def`` function: many at once on one engine, each of them a task like any other."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ipytaskfarm import Farm, MultiEngineClient, Ref, Task, TaskClient, errors
from ipytaskfarm.engine import current_task
from tests.conftest import Dirs
from tests.farm.test_farm import background_farm, pid_of
from tests.support.farms import engines, until_engines, until_running
from tests.support.polling import DEADLINE_S, eventually
from tests.support.thorough import by_hand

pytestmark = pytest.mark.farm(n=1, grace=5)


async def nap(number: int, seconds: float = 1.0) -> int:
    await asyncio.sleep(seconds)
    return number


async def until(path: str, value: Any = None) -> Any:
    """Wait until a file exists."""
    for _ in range(3000):
        if os.path.exists(path):
            return value
        await asyncio.sleep(0.01)
    raise TimeoutError("nobody made the file")


def plain(x: int) -> int:
    return x + 1


def running(tc: TaskClient, ids: list[int]) -> None:
    for task_id in ids:
        until_running(tc, task_id)


def test_five_hundred_sleep_at_once(tc: TaskClient) -> None:
    began_s = time.monotonic()
    ids = [tc.run(Task(nap, args=(n,))) for n in range(500)]
    tc.barrier(ids, timeout=DEADLINE_S)
    # One after the other they would take 500 s.
    assert time.monotonic() - began_s < DEADLINE_S
    assert [tc.get_task_result(i).result for i in ids] == list(range(500))


def test_submit_map_and_executor_take_coroutine_functions(tc: TaskClient) -> None:
    began_s = time.monotonic()
    assert tc.map(partial(nap, seconds=0.5), range(60)) == list(range(60))
    futures = [tc.submit(nap, n, seconds=0.5) for n in range(60)]
    assert [future.result(timeout=DEADLINE_S) for future in futures] == list(range(60))
    with tc.executor() as executor:
        values: list[Any] = list(executor.map(nap, range(60), [0.5] * 60))
    assert values == list(range(60))
    # One after the other they would take 90 s.
    assert time.monotonic() - began_s < DEADLINE_S


async def speak(number: int) -> int:
    for word in ("one", "two", "three"):
        print(number, word)
        print(number, word, file=sys.stderr)
        await asyncio.sleep(0.01)
    await asyncio.gather(*(say(f"{number} inner {n}") for n in range(3)))
    await asyncio.to_thread(print, f"{number} thread")
    return number


async def say(text: str) -> None:
    await asyncio.sleep(0.001)
    print(text)


def test_each_line_is_printed_by_its_own_task(tc: TaskClient) -> None:
    ids = [tc.run(Task(speak, args=(n,))) for n in range(100)]
    for number, result in enumerate([tc.get_task_result(i, block=True, timeout=DEADLINE_S) for i in ids]):
        words = [f"{number} {word}" for word in ("one", "two", "three")]
        assert result.stderr.splitlines() == words
        assert result.stdout.splitlines() == [*words, *(f"{number} inner {n}" for n in range(3)), f"{number} thread"]


async def fails(number: int) -> int:
    await asyncio.sleep(0.01)
    if number % 2:
        raise ValueError(f"odd: {number}")
    return number


def test_errors_are_those_of_their_tasks(tc: TaskClient) -> None:
    futures = [tc.submit(fails, n) for n in range(50)]
    for number, future in enumerate(futures):
        if number % 2:
            with pytest.raises(ValueError, match=f"odd: {number}"):
                future.result(timeout=DEADLINE_S)
        else:
            assert future.result(timeout=DEADLINE_S) == number


async def unpicklable() -> Any:
    await asyncio.sleep(0)
    return (each for each in range(3))


async def exits() -> None:
    raise SystemExit(3)


def test_what_cannot_travel_and_what_exits_fails_alone(tc: TaskClient) -> None:
    beside = tc.submit(nap, 7, 0.3)
    with pytest.raises(errors.UnpickleableException, match="generator"):
        tc.submit(unpicklable).result(timeout=DEADLINE_S)
    with pytest.raises(errors.RemoteError, match="SystemExit: 3"):
        tc.submit(exits).result(timeout=DEADLINE_S)
    assert beside.result(timeout=DEADLINE_S) == 7


def test_a_time_limit_ends_one_of_many(tc: TaskClient, farm: Farm) -> None:
    (engine,) = engines(farm)
    beside = [tc.run(Task(nap, args=(n, 1.5))) for n in range(20)]
    late = tc.run(Task(nap, args=(1, 600), time_limit=0.2))
    result = tc.get_task_result(late, block=True, timeout=DEADLINE_S)
    assert result.reason == "time limit"
    with pytest.raises(errors.TimeLimitExceeded, match=r"0\.2 s"):
        result.raise_exception()
    tc.barrier(beside, timeout=DEADLINE_S)
    assert [tc.get_task_result(i).result for i in beside] == list(range(20))
    assert [row.pid for row in engines(farm)] == [engine.pid]


async def second_time(path: str) -> int:
    await asyncio.sleep(0.01)
    if not os.path.exists(path):
        open(path, "w").close()
        raise RuntimeError("not yet")
    return current_task().attempt


def test_retries(tc: TaskClient, tmp_path: Path) -> None:
    ids = [tc.run(Task(second_time, args=(str(tmp_path / str(n)),), retries=1)) for n in range(30)]
    assert [tc.get_task_result(i, block=True, timeout=DEADLINE_S).result for i in ids] == [2] * 30


async def cleans_up(started: str, cleaned: str) -> None:
    open(started, "w").close()
    try:
        await asyncio.sleep(600)
    except asyncio.CancelledError:
        open(cleaned, "w").close()
        raise


def test_aborting_one_of_many_reaches_it_alone(tc: TaskClient, farm: Farm, tmp_path: Path) -> None:
    (engine,) = engines(farm)
    go = tmp_path / "go"
    ids = [tc.run(Task(until, args=(str(go), n))) for n in range(50)]
    one = tc.run(Task(cleans_up, args=(str(tmp_path / "started"), str(tmp_path / "cleaned"))))
    eventually((tmp_path / "started").exists, DEADLINE_S)
    tc.abort([one, *ids[10:20]])
    eventually((tmp_path / "cleaned").exists, DEADLINE_S)
    eventually(lambda: engines(farm)[0].coroutines == 40, DEADLINE_S, what="40 coroutines are left")
    go.touch()
    left = ids[:10] + ids[20:]
    tc.barrier(left, timeout=DEADLINE_S)
    assert [tc.get_task_result(i).result for i in left] == [*range(10), *range(20, 50)]
    assert {tc.get_task_result(i, raw=False).reason for i in (one, *ids[10:20])} == {"aborted"}
    assert [row.pid for row in engines(farm)] == [engine.pid]


def test_cancelling_in_asyncio_reaches_the_tasks(tc: TaskClient, farm: Farm) -> None:
    (engine,) = engines(farm)

    async def first_wins() -> int:
        waits = [asyncio.ensure_future(_of(tc, n, 0.2 if n == 7 else 600)) for n in range(100)]
        done, pending = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for each in pending:
            each.cancel()
        await asyncio.wait(pending)
        assert all(each.cancelled() for each in pending)
        return done.pop().result()

    assert asyncio.run(first_wins()) == 7
    eventually(lambda: engines(farm)[0].coroutines == 0, DEADLINE_S, what="no coroutine is left")
    assert [row.pid for row in engines(farm)] == [engine.pid]


async def _of(tc: TaskClient, number: int, seconds: float) -> int:
    return int(await tc.submit(nap, number, seconds))


async def spins(started: str) -> None:
    open(started, "w").close()
    while True:
        pass


async def blocks_within(started: str) -> None:
    """Block the loop in an asyncio task of its own."""
    await asyncio.gather(asyncio.create_task(_blocks(started)))


async def _blocks(started: str) -> None:
    open(started, "w").close()
    time.sleep(600)


@pytest.mark.parametrize("function", [spins, blocks_within])
def test_one_that_holds_the_loop_is_interrupted(function: Any, tc: TaskClient, farm: Farm, tmp_path: Path) -> None:
    (engine,) = engines(farm)
    beside = [tc.run(Task(nap, args=(n, 0.5))) for n in range(10)]
    held = tc.run(Task(function, args=(str(tmp_path / "started"),)))
    eventually((tmp_path / "started").exists, DEADLINE_S)
    tc.abort(held)
    tc.barrier(beside, timeout=DEADLINE_S)
    assert [tc.get_task_result(i).result for i in beside] == list(range(10))
    assert [row.pid for row in engines(farm)] == [engine.pid]


async def deaf(started: str, go: str) -> str:
    """Go on although it was cancelled."""
    open(started, "w").close()
    while not os.path.exists(go):
        try:
            await asyncio.sleep(0.01)
        except asyncio.CancelledError:
            open(f"{started}.heard", "w").close()
    return "went on"


def test_one_that_ignores_its_end_costs_its_neighbours_nothing(tc: TaskClient, farm: Farm, tmp_path: Path) -> None:
    (engine,) = engines(farm)
    started, go = tmp_path / "started", tmp_path / "go"
    beside = tc.submit(until, str(go), 5)
    late = tc.run(Task(deaf, args=(str(started), str(tmp_path / "never")), time_limit=0.2, grace=0.3))
    eventually(Path(f"{started}.heard").exists, DEADLINE_S)
    # longer than the grace, after which a task that runs alone would have cost its engine
    with pytest.raises(TimeoutError):
        tc.barrier(late, timeout=1.0)
    assert tc.status(late).state == "running"
    go.touch()
    assert beside.result(timeout=DEADLINE_S) == 5
    # Now it is alone.
    assert tc.get_task_result(late, block=True, timeout=DEADLINE_S).reason == "time limit"
    eventually(lambda: [row.pid for row in engines(farm)] not in ([engine.pid], []), DEADLINE_S, what="another engine")


async def begins(folder: str, number: int) -> Any:
    """Note in a file that it has begun, and wait until there is a file named go."""
    Path(folder, str(number)).touch()
    return await until(f"{folder}/go", number)


async def kills(go: str) -> None:
    await until(go)
    os.kill(os.getpid(), signal.SIGKILL)


def test_an_engine_that_is_killed_with_many(tc: TaskClient, farm: Farm, tmp_path: Path) -> None:
    """Those that ran are charged each: with retries they run again, without they have failed. The waiting ones wait."""
    (engine,) = engines(farm)
    once = [tc.run(Task(begins, args=(str(tmp_path), n))) for n in range(30)]
    again = [tc.run(Task(begins, args=(str(tmp_path), n), retries=1)) for n in range(30, 60)]
    waits = tc.run(Task(plain, args=(1,)))
    eventually(lambda: len(list(tmp_path.iterdir())) == 60, DEADLINE_S, what="60 have begun")
    text = tc.explain(once[0])
    assert "beside 59 other coroutine tasks" in text
    assert "it runs 60 coroutine tasks: this task runs alone" in tc.explain(waits)
    os.kill(engine.pid, signal.SIGKILL)
    tc.barrier(once, timeout=DEADLINE_S)
    failed = [tc.get_task_result(i) for i in once]
    assert {result.reason for result in failed} == {"engine lost"}
    with pytest.raises(errors.EngineLost, match=r"(?s)SIGKILL.*it ran 60 coroutine tasks at once"):
        failed[0].raise_exception()
    (tmp_path / "go").touch()
    tc.barrier([*again, waits], timeout=DEADLINE_S)
    results = [tc.get_task_result(i) for i in again]
    assert [result.result for result in results] == list(range(30, 60))
    assert {len(result.attempts) for result in results} == {2}
    assert tc.get_task_result(waits).result == 2
    assert len(tc.get_task_result(waits).attempts) == 1


def test_a_poisonous_one_is_quarantined_and_the_others_succeed(tc: TaskClient, farm: Farm, tmp_path: Path) -> None:
    until_engines(farm, 1)
    go = tmp_path / "go"
    go.touch()
    poison = tc.run(Task(kills, args=(str(go),), retries=9))
    others = [tc.run(Task(nap, args=(n, 0.3), retries=9)) for n in range(40)]
    tc.barrier([poison, *others], timeout=60)
    assert tc.get_task_result(poison).reason == "quarantined"
    assert [tc.get_task_result(i).result for i in others] == list(range(40))


def test_plain_tasks_and_commands_run_between(tc: TaskClient, mec: MultiEngineClient) -> None:
    until_engines_ready(tc)
    before = [tc.run(Task(nap, args=(n, 0.5))) for n in range(5)]
    running(tc, before)
    command = mec.execute("between = 17", block=False)
    middle = tc.run(Task(plain, args=(1,)))
    after = [tc.run(Task(nap, args=(n, 0.1))) for n in range(5)]
    command.get_result()
    tc.barrier([*before, middle, *after], timeout=DEADLINE_S)
    assert tc.get_task_result(middle).result == 2
    assert [tc.get_task_result(i).result for i in [*before, *after]] == [*range(5), *range(5)]
    assert mec.pull("between", block=True) == [17]
    starts = {i: tc.get_task_result(i).started_at for i in [*before, middle]}
    assert all(starts[i] < starts[middle] for i in before)


def until_engines_ready(tc: TaskClient) -> None:
    assert tc.submit(plain, 0).result(timeout=DEADLINE_S) == 1


async def talks(number: int) -> tuple[int, Any]:
    task = current_task()
    task.progress(number, 100)
    task.send(f"from {number}")
    await asyncio.sleep(0.05)
    assert current_task() is task
    await asyncio.gather(_same(task.id), _same(task.id))
    return task.id, await asyncio.to_thread(lambda: current_task().id)


async def _same(task_id: int) -> None:
    await asyncio.sleep(0.001)
    assert current_task().id == task_id


def test_current_task_is_ones_own(tc: TaskClient) -> None:
    ids = [tc.run(Task(talks, args=(n,))) for n in range(20)]
    for number, task_id in enumerate(ids):
        assert tc.get_task_result(task_id, block=True, timeout=DEADLINE_S).result == (task_id, task_id)
        assert [message.value for message in tc.messages(task_id)] == [f"from {number}"]


async def add(x: Any, y: Any) -> Any:
    await asyncio.sleep(0.01)
    return x + y


def test_results_of_others_and_large_values(tc: TaskClient) -> None:
    large = np.arange(100_000)
    first = [tc.run(Task(add, args=(large, n))) for n in range(20)]
    second = [tc.run(Task(add, args=(Ref(i), Ref(i)))) for i in first]
    for number, task_id in enumerate(second):
        found = tc.get_task_result(task_id, block=True, timeout=DEADLINE_S).result
        assert np.array_equal(found, 2 * (large + number))


async def counts(adder: Any, number: int) -> None:
    for _ in range(10):
        adder.add(number)
        await asyncio.sleep(0.001)
    if number == 3:
        raise ValueError("not counted")


def test_accumulators_count_what_succeeded(tc: TaskClient) -> None:
    total = tc.accumulator(0)
    ids = [tc.run(Task(counts, args=(total, n))) for n in range(6)]
    tc.barrier(ids, timeout=DEADLINE_S)
    assert total.value == 10 * (0 + 1 + 2 + 4 + 5)


async def here() -> tuple[str, int]:
    await asyncio.sleep(0.05)
    return os.getcwd(), current_task().id


async def leaves_a_trace() -> None:
    os.chdir("/")
    os.environ["TRACE"] = "1"
    await asyncio.sleep(0.05)


def test_what_they_changed_is_put_back_when_the_last_has_ended(tc: TaskClient) -> None:
    def surroundings() -> tuple[str, str | None]:
        return os.getcwd(), os.environ.get("TRACE")

    before = tc.submit(surroundings).result(timeout=DEADLINE_S)
    assert before[0] != "/"
    tc.barrier([tc.run(Task(leaves_a_trace)), tc.run(Task(here))], timeout=DEADLINE_S)
    assert tc.submit(surroundings).result(timeout=DEADLINE_S) == before


async def seen(folder: str, number: int) -> int:
    """Return how many of the same kind are in progress at once."""
    path = Path(folder, str(number))
    path.touch()
    await asyncio.sleep(0.2)
    count = len(list(Path(folder).iterdir()))
    path.unlink()
    return count


def test_one_that_reserves_resources_runs_alone_and_groups_keep_their_limit(tc: TaskClient, tmp_path: Path) -> None:
    for name, rules, most in (
        ("cores", {"resources": {"cores": 1}}, 1),
        ("group", {"group": "g", "max_parallel": 4}, 4),
        ("free", {}, 12),
    ):
        folder = tmp_path / name
        folder.mkdir()
        ids = [tc.run(Task(seen, args=(str(folder), n), **rules)) for n in range(12 if name != "cores" else 3)]
        tc.barrier(ids, timeout=DEADLINE_S)
        counts = [tc.get_task_result(i).result for i in ids]
        assert max(counts) <= most
        assert max(counts) > 1 or most == 1


def test_an_engine_has_so_many_places(farm_dirs: Dirs, tmp_path: Path) -> None:
    with Farm(n=1, coroutines=5) as farm, farm.task_client() as tc:
        go = tmp_path / "go"
        ids = [tc.run(Task(until, args=(str(go), n))) for n in range(12)]
        running(tc, ids[:5])
        assert engines(farm)[0].coroutines == 5
        assert "it runs 5 coroutine tasks, of 5 that it may run at once (coroutines)" in tc.explain(ids[5])
        assert tc.status(ids[5]).state == "scheduled"
        go.touch()
        tc.barrier(ids, timeout=DEADLINE_S)
        assert [tc.get_task_result(i).result for i in ids] == list(range(12))


@by_hand
def test_a_killed_controller_finds_them_all_again(farm_dirs: Dirs, tmp_path: Path) -> None:
    with background_farm("-n", "1") as home, TaskClient() as tc:
        go = tmp_path / "go"
        ids = [tc.run(Task(until, args=(str(go), n))) for n in range(50)]
        running(tc, ids)
        os.kill(pid_of(home, "controller"), signal.SIGKILL)
        eventually(lambda: [tc.status(i).state for i in ids] == ["running"] * 50, DEADLINE_S)
        more = [tc.run(Task(until, args=(str(go), n))) for n in range(50, 60)]
        tc.abort(ids[0])
        running(tc, more)
        go.touch()
        tc.barrier([*ids, *more], timeout=DEADLINE_S)
        assert [tc.get_task_result(i).result for i in [*ids[1:], *more]] == list(range(1, 60))
        assert {len(tc.get_task_result(i).attempts) for i in ids[1:]} == {1}


def test_they_are_aborted_by_name_in_their_own_exception(tc: TaskClient, tmp_path: Path) -> None:
    """Code that blocks is interrupted with TaskCancelled, as in a plain task."""

    async def notes(path: str) -> None:
        open(f"{path}.started", "w").close()
        try:
            time.sleep(600)
        except errors.TaskCancelled as error:
            with open(path, "w") as file:
                file.write(str(error))
            raise

    path = tmp_path / "noted"
    task = tc.run(Task(notes, args=(str(path),)))
    eventually(Path(f"{path}.started").exists, DEADLINE_S)
    tc.abort(task)
    eventually(lambda: path.exists() and path.read_text() == "the task was aborted", DEADLINE_S)
