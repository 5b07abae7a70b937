"""`Executor`: the contract of ``concurrent.futures`` on a real farm."""

from __future__ import annotations

import asyncio
import concurrent.futures
import gc
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ipytaskfarm import Executor, Farm, Pool, Task, TaskClient
from ipytaskfarm.core import errors
from tests.support.polling import DEADLINE_S, eventually

pytestmark = [pytest.mark.farm, pytest.mark.usefixtures("cleared")]


def multiply(x: int, y: int) -> int:
    return x * y


def waits_for(path: Path) -> str:
    end_s = time.monotonic() + DEADLINE_S
    while not path.exists():
        if time.monotonic() > end_s:
            raise TimeoutError(f"{path} did not come")
        time.sleep(0.01)
    return path.name


def kills_its_engine_once(mark: Path) -> str:
    if not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return "done"


def kills_its_engine() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class Thing:
    pass


def thing(_: object) -> Thing:
    return Thing()


def test_calls_have_values_and_errors(ex: Executor) -> None:
    assert ex.submit(multiply, 6, y=7).result(DEADLINE_S) == 42
    failed = ex.submit(divmod, 1, 0)
    assert isinstance(failed.exception(DEADLINE_S), ZeroDivisionError)
    with pytest.raises(ZeroDivisionError):
        failed.result()


def test_results_leave_the_farm_and_failures_stay(ex: Executor, tc: TaskClient) -> None:
    assert list(ex.map(abs, range(-200, 0))) == list(range(200, 0, -1))
    assert isinstance(ex.submit(divmod, 1, 0).exception(DEADLINE_S), ZeroDivisionError)
    ex.shutdown()
    assert tc.queue_status() == {"scheduled": 0, "pending": 0, "succeeded": 0, "failed": 1}


def test_wait_and_as_completed_take_these_futures(ex: Executor) -> None:
    futures = [ex.submit(abs, n) for n in range(20)]
    done, not_done = concurrent.futures.wait(futures, DEADLINE_S)
    assert (len(done), len(not_done)) == (20, 0)
    assert {future.result() for future in concurrent.futures.as_completed(futures)} == set(range(20))


def test_these_futures_mix_with_those_of_threads_and_of_loops(ex: Executor, tc: TaskClient) -> None:
    async def from_loop() -> list[int]:
        loop = asyncio.get_running_loop()
        calls = [loop.run_in_executor(each, multiply, 2, n) for n in range(3) for each in (ex, threads)]
        wrapped = [asyncio.wrap_future(ex.submit(multiply, 3, 4)), asyncio.wrap_future(tc.submit(multiply, 3, 5))]
        return list(await asyncio.gather(*calls, *wrapped))

    with concurrent.futures.ThreadPoolExecutor(2) as threads:
        futures = [each.submit(multiply, 2, n) for n in range(3) for each in (ex, threads)] + [
            tc.submit(multiply, 2, 9)
        ]
        ended = concurrent.futures.as_completed(futures, timeout=DEADLINE_S)
        assert sorted(future.result() for future in ended) == [0, 0, 2, 2, 4, 4, 18]
        assert asyncio.run(from_loop()) == [0, 0, 2, 2, 4, 4, 12, 15]
        slow: concurrent.futures.Future[Any] = threads.submit(time.sleep, 0.2)
        failing: concurrent.futures.Future[Any] = ex.submit(divmod, 1, 0)
        done, _ = concurrent.futures.wait([slow, failing], DEADLINE_S, "FIRST_EXCEPTION")
        assert failing in done


@pytest.mark.parametrize("chunksize", [1, 6, 40, 50])
def test_map_keeps_the_order(ex: Executor, chunksize: int) -> None:
    assert list(ex.map(pow, range(40), range(40), chunksize=chunksize)) == [n**n for n in range(40)]


def test_map_raises_in_its_turn(ex: Executor) -> None:
    values = ex.map(divmod, [1, 1, 1, 1], [2, 3, 0, 5])
    assert (next(values), next(values)) == ((0, 1), (0, 1))
    with pytest.raises(ZeroDivisionError):
        next(values)


def test_map_reads_no_further_than_its_buffer(ex: Executor) -> None:
    read: list[int] = []

    def numbers() -> Iterator[int]:
        for n in range(1000):
            read.append(n)
            yield n

    values = ex.map(abs, numbers(), buffersize=4)
    assert len(read) == 4
    assert [next(values) for _ in range(10)] == list(range(10))
    assert len(read) <= 14


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"chunksize": -1}, ValueError, "chunksize must be >= 1."),
        ({"chunksize": 0}, ValueError, "chunksize must be >= 1."),
        ({"buffersize": 0}, ValueError, "buffersize must be None or > 0"),
        ({"buffersize": "4"}, TypeError, "buffersize must be an integer or None"),
    ],
)
def test_wrong_arguments_of_map_are_named(
    ex: Executor, arguments: dict[str, Any], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        ex.map(abs, [1], **arguments)


def test_a_map_that_takes_too_long_raises(ex: Executor, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    values = ex.map(waits_for, [gate], timeout=0.2)
    with pytest.raises(TimeoutError):
        next(values)
    gate.touch()


def test_waiting_calls_can_be_cancelled_and_running_ones_cannot(ex: Executor, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    running = [ex.submit(waits_for, gate) for _ in range(2)]
    eventually(lambda: all(future.running() for future in running), DEADLINE_S)
    waiting = ex.submit(abs, -1)
    assert not any(future.cancel() for future in running)
    assert waiting.cancel()
    assert waiting.cancelled()
    with pytest.raises(concurrent.futures.CancelledError):
        waiting.result()
    gate.touch()
    assert [future.result(DEADLINE_S) for future in running] == ["gate", "gate"]


def marks_and_waits(mark: Path, gate: Path) -> str:
    mark.touch()
    return waits_for(gate)


def test_a_call_that_counts_as_cancelled_never_runs(ex: Executor, tmp_path: Path) -> None:
    cancelled = []
    for n in range(40):
        mark, gate = tmp_path / f"mark-{n}", tmp_path / f"gate-{n}"
        future = ex.submit(marks_and_waits, mark, gate)
        if future.cancel():
            cancelled.append(mark)
        else:
            gate.touch()
            assert future.result(DEADLINE_S) == gate.name
    assert [ex.submit(abs, -1).result(DEADLINE_S) for _ in range(4)] == [1] * 4
    assert not [mark.name for mark in cancelled if mark.exists()]


def test_a_shutdown_may_cancel_what_waits(tc: TaskClient, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    executor = Executor(tc)
    running = [executor.submit(waits_for, gate) for _ in range(2)]
    eventually(lambda: all(future.running() for future in running), DEADLINE_S)
    waiting = [executor.submit(abs, n) for n in range(20)]
    executor.shutdown(wait=False, cancel_futures=True)
    assert all(future.cancelled() for future in waiting)
    gate.touch()
    assert [future.result(DEADLINE_S) for future in running] == ["gate", "gate"]


def test_ctrl_c_ends_a_block_with_its_calls(tc: TaskClient, tmp_path: Path) -> None:
    calls: list[concurrent.futures.Future[str]] = []

    def interrupted() -> None:
        with Executor(tc) as executor:
            calls.extend(executor.submit(waits_for, tmp_path / "gate") for _ in range(4))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert all(call.cancelled() for call in calls)
    executor = Executor(tc)
    call = executor.submit(waits_for, tmp_path / "gate")
    eventually(call.running, DEADLINE_S)
    try:
        raise KeyboardInterrupt
    except KeyboardInterrupt:
        executor.shutdown(wait=False, cancel_futures=True)
    assert concurrent.futures.wait([call], DEADLINE_S).done == {call}
    assert call.cancelled()
    executor.shutdown()


def test_nothing_is_taken_after_a_shutdown(tc: TaskClient, tmp_path: Path) -> None:
    executor = Executor(tc)
    gate = tmp_path / "gate"
    future = executor.submit(waits_for, gate)
    future.set_result("the program's own")
    gate.touch()
    executor.shutdown()  # which waits for the task, though its future has a result already
    assert future.result() == "the program's own"
    executor.shutdown()
    with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
        executor.submit(abs, -1)


@pytest.mark.parametrize("number", [0, -1])
def test_there_must_be_workers(number: int) -> None:
    with pytest.raises(ValueError, match="max_workers must be greater than 0"):
        Executor(number)


@pytest.mark.parametrize("workers", [2.0, "2", object()])
def test_what_is_no_number_of_workers_is_refused(workers: Any) -> None:
    for kind, argument in ((Executor, "max_workers"), (Pool, "processes")):
        with pytest.raises(TypeError, match=f"{argument} must be an integer, None, a TaskClient or a Farm, not a "):
            kind(workers)


def test_a_farm_can_be_given_where_a_client_can(farm: Farm) -> None:
    with Executor(farm) as ex:
        assert ex.submit(abs, -1).result() == 1
    with Pool(farm) as pool:
        assert pool.map(abs, [-2]) == [2]
    assert ex.client.farm == farm.name


def test_a_callback_may_submit(ex: Executor) -> None:
    found: list[int] = []
    done = threading.Event()

    def again(future: concurrent.futures.Future[int]) -> None:
        found.append(future.result())
        if len(found) < 5:
            ex.submit(abs, -len(found)).add_done_callback(again)
        else:
            done.set()

    ex.submit(abs, 0).add_done_callback(again)
    assert done.wait(DEADLINE_S)
    assert found == [0, 1, 2, 3, 4]


def test_no_reference_is_kept(ex: Executor) -> None:
    for value in ex.map(thing, range(10)):
        seen = weakref.ref(value)
        del value
        gc.collect()
        assert seen() is None
    sent = Thing()
    seen = weakref.ref(sent)
    ex.submit(id, sent)
    del sent
    eventually(lambda: gc.collect() >= 0 and seen() is None, DEADLINE_S)


def test_what_cannot_travel_fails_its_future_alone(ex: Executor) -> None:
    error = ex.submit(id, threading.Lock()).exception(DEADLINE_S)
    assert type(error) is TypeError  # as a process pool's
    assert isinstance(error.__cause__, errors.UnpickleableException)
    assert "args[0]" in str(error.__cause__)
    assert error.__notes__ == [str(error.__cause__)]
    assert ex.submit(abs, -1).result(DEADLINE_S) == 1
    unsent = ex.submit(threading.Lock).exception(DEADLINE_S)
    assert type(unsent) is TypeError  # of a value too
    assert "cannot pickle" in str(unsent)
    assert isinstance(unsent.__cause__, errors.UnpickleableException)


def test_a_killed_engine_costs_no_result(ex: Executor, tmp_path: Path) -> None:
    others = [ex.submit(abs, -n) for n in range(50)]
    assert ex.submit(kills_its_engine_once, tmp_path / "mark").result(DEADLINE_S) == "done"
    assert [future.result(DEADLINE_S) for future in others] == list(range(50))


def test_a_call_that_kills_its_engines_fails_alone(tc: TaskClient) -> None:
    with tc.executor(retries=0) as executor:
        error = executor.submit(kills_its_engine).exception(DEADLINE_S)
        assert isinstance(error, errors.EngineLost)
        assert isinstance(error, BrokenProcessPool)
        assert "SIGKILL" in str(error)
        assert isinstance(error.__cause__, errors.EngineLost)
        assert executor.submit(abs, -1).result(DEADLINE_S) == 1


def remember(name: str) -> None:
    os.environ["IPYTASKFARM_EXECUTOR_TEST"] = name


def remembered(_: object) -> str | None:
    return os.environ.get("IPYTASKFARM_EXECUTOR_TEST")


def fails() -> None:
    raise ZeroDivisionError("in the initializer")


def test_each_engine_is_initialized(tc: TaskClient) -> None:
    with tc.executor(initializer=remember, initargs=("here",)) as executor:
        assert set(executor.map(remembered, range(20))) == {"here"}


def test_a_failed_initializer_breaks_the_executor(tc: TaskClient) -> None:
    with tc.executor(initializer=fails) as executor:
        error = executor.submit(abs, -1).exception(DEADLINE_S)
        assert isinstance(error, BrokenProcessPool)
        assert "in the initializer" in str(error.__cause__)
        with pytest.raises(BrokenProcessPool):
            executor.submit(abs, -1)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"initializer": 3}, TypeError),
        ({"max_tasks_per_child": 0}, ValueError),
        ({"max_tasks_per_child": "1"}, TypeError),
        ({"mp_context": abs}, TypeError),
        ({"context": 3}, TypeError),
        ({"retries": -1}, ValueError),
        ({"colour": 2}, TypeError),
    ],
)
def test_wrong_arguments_are_refused(tc: TaskClient, arguments: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        tc.executor(**arguments)


@pytest.mark.parametrize("start_method", ["spawn", "forkserver", "fork"])
def test_contexts_of_multiprocessing_are_taken(tc: TaskClient, start_method: str) -> None:
    context = multiprocessing.get_context(start_method)
    with Executor(tc, context, prepare, (21,)) as executor:
        assert list(executor.map(prepared, range(3))) == [21, 22, 23]
    with tc.executor(mp_context=context, initializer=prepare, initargs=(2,)) as executor:
        assert executor.submit(prepared, 1).result(DEADLINE_S) == 3
    with Pool(tc, prepare, (3,), None, context) as pool:
        assert pool.map(prepared, range(3)) == [3, 4, 5]


def test_the_arguments_of_other_executors_are_taken(tc: TaskClient) -> None:
    given: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
        (("workers",), {}),
        ((None, prepare, (1,)), {}),
        ((), {"thread_name_prefix": "workers"}),
        ((), {"context": "loky"}),
        ((), {"mp_context": multiprocessing}),
    ]
    for arguments, named in given:
        with Executor(tc, *arguments, **named) as executor:
            assert executor.submit(pow, 2, 5).result(DEADLINE_S) == 32
    with pytest.raises(TypeError, match="an initializer is the third argument"):
        Executor(tc, prepare)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="context must be a context of multiprocessing"):
        Pool(tc, context=4)  # type: ignore[arg-type]


_prepared = 0


def prepare(n: int) -> None:
    global _prepared
    _prepared = n


def prepared(n: int) -> int:
    return _prepared + n


def test_engines_are_replaced_after_so_many_calls(tc: TaskClient) -> None:
    with tc.executor(max_tasks_per_child=2, mp_context=None) as executor:
        found = [executor.submit(os.getpid).result(DEADLINE_S) for _ in range(8)]
    assert max(map(found.count, found)) <= 2


def test_rules_of_a_task_are_those_of_a_call(tc: TaskClient) -> None:
    with tc.executor(time_limit=2, retries=0) as executor:
        error = executor.submit(time.sleep, 60).exception(DEADLINE_S)
    assert isinstance(error, errors.TimeLimitExceeded)


def test_large_values_outlive_the_farm() -> None:
    with Executor(1) as executor:
        future = executor.submit(np.arange, 1_000_000)
    assert future.result().sum() == 499_999_500_000
    assert executor._max_workers == 1


def test_an_executor_that_nobody_holds_ends_with_its_calls() -> None:
    """As in CPython, a program that never calls shutdown leaves no processes behind."""
    executor = Executor(1)
    future = executor.submit(multiply, 6, 7)
    farm = executor._farm
    assert farm is not None
    del executor
    assert future.result(DEADLINE_S) == 42
    del future
    gc.collect()
    eventually(farm._ended.is_set, DEADLINE_S, what="the end of its farm")


def test_an_executor_on_a_farm_of_others_that_nobody_holds_leaves_the_farm(tc: TaskClient) -> None:
    executor = tc.executor()
    number = executor.submit(multiply, 6, 7).id  # type: ignore[attr-defined]
    eventually(lambda: tc.status(number).state == "succeeded", DEADLINE_S)
    del executor
    gc.collect()
    eventually(lambda: number not in tc.tasks().ids, DEADLINE_S, what="its result is cleared")
    assert tc.run(Task("a = 1", pull="a"), block=True).ns.a == 1


def test_an_executor_does_not_travel(ex: Executor) -> None:
    with pytest.raises(errors.UnpickleableException, match="current_task"):
        pickle.dumps(ex)


SCRIPT = """
import time
from ipytaskfarm import Executor
from pathlib import Path

def late(path):
    time.sleep(0.5)
    Path(path).write_text("written")

if __name__ == "__main__":
    executor = Executor(1)
    executor.submit(late, {path!r})
"""


def test_what_was_submitted_is_done_before_the_interpreter_ends(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(path=str(tmp_path / "late")))
    subprocess.run([sys.executable, script], check=True, timeout=60)
    assert (tmp_path / "late").read_text() == "written"


INTERRUPTED = """
import os, signal, threading, time
from ipytaskfarm import Executor, Farm, Pool

if __name__ == "__main__":
    tc = Farm(n=2).task_client()
    pool, block, other = Pool(tc), Executor(tc), Executor(tc)
    call = pool.apply_async(time.sleep, (600,))  # a pool's calls end with the program anyhow
    other.submit(time.sleep, 600)
    with block:
        block.submit(time.sleep, 600)
        threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
"""


def test_ctrl_c_ends_a_program_with_its_calls(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(INTERRUPTED)
    ended = subprocess.run([sys.executable, script], timeout=DEADLINE_S, capture_output=True, text=True, check=False)
    assert ended.returncode == -signal.SIGINT
    assert "shutdown" in ended.stderr  # the block's end waited when it came


def test_its_text_names_the_farm_and_says_when_it_is_shut_down(tc: TaskClient) -> None:
    with tc.executor() as executor:
        assert repr(executor) == f"<Executor of farm {tc.farm!r}>"
    assert repr(executor) == f"<Executor of farm {tc.farm!r}, shut down>"
