"""Graphs on real engines: order, overlap, results as arguments, failed dependencies, lost inputs, marks, retries."""

from __future__ import annotations

import asyncio
import concurrent.futures
import gc
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ipytaskfarm import Farm, Join, Ref, Task, TaskClient, errors
from ipytaskfarm.client.operate import wait_for_engines
from ipytaskfarm.core import messages as m
from ipytaskfarm.core.messages import tables
from tests.support.farms import DEADLINE_S, Gate, ask
from tests.support.polling import eventually

pytestmark = pytest.mark.farm


def add(*values: Any) -> Any:
    return sum(values)


def value(tc: TaskClient, task: Any) -> Any:
    return tc.get_task_result(int(task), block=True, timeout=DEADLINE_S, raw=False).result


# -- SEEDS 17


def test_edges_hold_and_what_is_independent_overlaps(tc: TaskClient, gate: Gate) -> None:
    first = tc.run(Task(gate.code + "\na = 1"))
    second = tc.run(Task("b = 2", after=first))
    other = tc.run(Task("c = 3"))
    tc.barrier(other, timeout=DEADLINE_S)
    assert tc.status(second).reason == "waiting for tasks"
    assert f"it waits for task {first} (running)" in str(tc.explain(second))
    gate.open()
    tc.barrier(second, timeout=DEADLINE_S)
    results = [tc.get_task_result(i) for i in (first, second)]
    assert results[0].completed_at <= results[1].started_at


def test_a_failed_dependency_means_what_was_asked_for(tc: TaskClient) -> None:
    bad = tc.run(Task("1/0"))
    fails, skips = tc.run(Task("1", after=bad)), tc.run(Task("1", after=bad, if_failed="skip"))
    runs = tc.run(Task(repr, args=(Ref(bad),), if_failed="run"))
    behind = tc.run(Task("1", after=fails))
    tc.barrier([fails, skips, runs, behind], timeout=DEADLINE_S)
    reasons = [tc.status(i).reason for i in (fails, skips, behind)]
    assert reasons == ["a needed task failed", "skipped", "a needed task failed"]
    assert value(tc, runs) == "ZeroDivisionError('division by zero')"
    with pytest.raises(errors.DependencyFailed, match=f"task {bad}, which task {fails} waits for, failed"):
        tc.get_task_result(fails).raise_exception()
    with pytest.raises(errors.TaskSkipped):
        tc.get_task_result(skips).raise_exception()
    assert not tc.get_task_result(behind).attempts


def refuse(text: str) -> None:
    raise ConnectionRefusedError(text)


def test_all_that_fails_for_one_task_names_its_error_and_its_place(tc: TaskClient, gate: Gate) -> None:
    first = tc.run(Task(gate.code))
    bad = tc.run(Task(refuse, args=("service is down\nsecond line",), after=first))
    chain = [bad]
    for _ in range(3):
        chain.append(tc.run(Task(repr, args=(Ref(chain[-1]),))))
    join = tc.run(Join(after=chain))
    last = tc.run(Task("1", after=join, if_failed="skip"))
    gate.open()
    tc.barrier([*chain, join, last], timeout=DEADLINE_S)
    place = f"{__file__}:{refuse.__code__.co_firstlineno + 1} in refuse"
    assert tc.status(chain[1]).error == (
        f"DependencyFailed: task {bad}, which task {chain[1]} waits for, failed (error): "
        "ConnectionRefusedError: service is down"
    )
    for task in (*chain[1:], join, last):
        assert tc.status(task).error.endswith(": ConnectionRefusedError: service is down")
        assert place in tc.explain(task)
    assert f", because task {bad} failed: " in tc.status(chain[2]).error
    groups = {group.etype: group for group in tc.failures([*chain, join, last])}
    assert {group.place for group in groups.values()} == {place}
    assert groups["DependencyFailed"].ids == [*chain[1:], join]


def test_results_are_arguments_and_do_not_pass_through_the_client(tc: TaskClient) -> None:
    large = tc.submit(np.ones, 500_000)
    named = tc.run(Task("x = 20; y = 22", pull=("x", "y")))
    total = tc.submit(lambda array, more: float(array.sum()) + more["one"][0], large, {"one": [Ref(named, "x")]})
    pushed = tc.run(Task("z = x['y'] + 1", push={"x": Ref(named)}, pull="z"))
    assert total.result(DEADLINE_S) == 500_020.0
    assert value(tc, pushed) == {"z": 23}
    body = tc._session.arrivals.finals[large.id].body
    assert body is not None
    assert len(body) < 10_000, "4 MB have come to a client that did not ask for them"
    assert tc.get_task_result(large.id).result.shape == (500_000,)


def test_an_argument_is_kept_until_it_was_taken(tc: TaskClient, gate: Gate) -> None:
    made = tc.run(Task(add, args=(1, 2)))
    held = tc.run(Task(gate.code))
    taker = tc.run(Task(add, args=(Ref(made), 10), after=held))
    tc.barrier(made, timeout=DEADLINE_S)
    tc.flush()
    with pytest.raises(KeyError, match=f"still need the result of task {made}"):
        tc.clear(made)
    gate.open()
    assert value(tc, taker) == 13
    tc.clear(made)


def test_a_circle_is_refused_and_named(tc: TaskClient) -> None:
    job = tc.create_job("circle")
    one, two, three = (job.add_task(Task("1", name=name)) for name in ("one", "two", "three"))
    one.after, two.after, three.after = three, one, two
    with pytest.raises(ValueError, match=r"circle: .*(one.*waits for.*three|three.*waits for.*two)") as caught:
        job.submit()
    assert all(name in str(caught.value) for name in ("one", "two", "three"))
    assert not job.ids
    tc.run(Task("1", after=99999999))
    with pytest.raises(errors.TaskError, match="no task 99999999 to wait for"):
        tc.flush()
    with pytest.raises(TypeError, match="has no id yet"):
        tc.run(Task("1", after=one))
    future = tc.submit(add, 1)
    with pytest.raises(errors.UnpickleableException, match="a TaskFuture cannot travel; give it as an argument"):
        tc.submit(lambda: future.result())


def test_a_join_makes_edges_grow_as_n_plus_m(tc: TaskClient) -> None:
    job = tc.create_job("bipartite")
    first = [job.add_task(Task(add, args=(n,))) for n in range(100)]
    join = job.add_task(Join(after=first))
    for n in range(100):
        job.add_task(Task(add, args=(n, 1), after=join))
    job.submit()
    assert job.wait(DEADLINE_S)
    members = job.tasks
    assert sum(len(member.dependencies) for member in members) == 200
    assert members[100].dependents == members[101:]
    assert all(member.done and member.state == "succeeded" for member in members)
    joined = tc.get_task_result(job.ids[100])
    assert joined.result is None
    assert not joined.attempts
    started = min(tc.get_task_result(i).started_at for i in job.ids[101:])
    assert started >= max(tc.get_task_result(i).completed_at for i in job.ids[:100])
    more = job.add_task(Task(sum, args=([Ref(task) for task in first],), after=join))
    assert job.submit() == [job.ids[-1]]
    assert list(job.results())[-1] == sum(range(100))
    assert more in job.tasks


def test_a_chain_of_thousands_ends_and_fails_without_recursion(tc: TaskClient) -> None:
    last = tc.run(Task(add, args=(0,)))
    for _ in range(1500):
        last = tc.run(Task(add, args=(Ref(last), 1)))
    assert value(tc, last) == 1500
    first = last = tc.run(Task("raise ValueError('first')"))
    for _ in range(3000):
        last = tc.run(Task("1", after=last))
    tc.barrier(last, timeout=DEADLINE_S)
    assert tc.status(last).reason == "a needed task failed"
    assert first < last


def test_a_graph_outlives_the_controller(tc: TaskClient, farm: Farm, tmp_path: Path) -> None:
    def step(path: str, number: int, *before: int) -> int:
        with open(path, "a") as ledger:
            ledger.write(f"{number}\n")
        time.sleep(0.005)
        return number + sum(before)

    path = str(tmp_path / "ledger")
    job = tc.create_job("through a crash", retries=2)
    layer = [job.add_task(Task(step, args=(path, 1))) for _ in range(10)]
    for _ in range(9):
        join = job.add_task(Join(after=layer))
        layer = [job.add_task(Task(step, args=(path, 1, Ref(other)), after=join)) for other in layer]
    job.submit()
    eventually(lambda: Path(path).exists() and len(Path(path).read_text().split()) > 20, DEADLINE_S)
    state = ask(farm, m.FarmStatus())
    assert isinstance(state, tables.FarmState)
    os.kill(state.pid, 9)
    assert job.wait(DEADLINE_S)
    assert job.counts()["succeeded"] == len(job)
    assert [value(tc, i) for i in job.ids[-10:]] == [10] * 10
    assert len(Path(path).read_text().split()) == 100, "a task ran twice, or not at all"


# -- SEEDS 18


def test_lost_inputs_are_made_again_and_what_stands_on_them(tc: TaskClient, tmp_path: Path) -> None:
    def make(folder: str, name: str, *inputs: object) -> str:
        from pathlib import Path

        with open(f"{folder}/log", "a") as log:
            log.write(name + "\n")
        Path(folder, name).touch()
        return name

    def use(folder: str, name: str, lost: list[int]) -> str:
        from pathlib import Path

        from ipytaskfarm import errors

        with open(f"{folder}/log", "a") as log:
            log.write("use\n")
        if not Path(folder, "was lost").exists():
            Path(folder, "was lost").touch()
            raise errors.InputsLost({0: lost})
        return name

    folder = str(tmp_path)
    a = tc.run(Task(make, args=(folder, "a")))
    b = tc.run(Task(make, args=(folder, "b", Ref(a))))
    untouched = tc.run(Task(make, args=(folder, "c")))
    c = tc.run(Task(use, args=(folder, Ref(b), [a]), after=untouched))
    assert value(tc, c) == "b"
    lines = (tmp_path / "log").read_text().split()
    assert sorted(lines) == ["a", "a", "b", "b", "c", "use", "use"]
    assert lines[-1] == "use"
    assert [row.outcome for row in tc.get_task_result(c).attempts] == ["inputs lost", ""]
    assert [row.outcome for row in tc.get_task_result(a).attempts] == ["inputs lost", ""]


def test_inputs_that_are_lost_for_ever_end_the_task(tc: TaskClient) -> None:
    def never(which: int) -> None:
        from ipytaskfarm import errors

        raise errors.InputsLost([which])

    good = tc.run(Task("1"))
    bad = tc.run(Task(never, args=(good,)))
    with pytest.raises(errors.InputsLost, match="lost 11 times"):
        value(tc, bad)


def test_marks_from_outside(tc: TaskClient, gate: Gate) -> None:
    runs = tc.run(Task("import time; time.sleep(60)"))
    waits = tc.run(Task(add, args=(Ref(runs), 1)))
    eventually(lambda: tc.status(runs).state == "running", DEADLINE_S)
    tc.mark_done(runs, 41)
    assert value(tc, waits) == 42
    assert value(tc, runs) == 41
    never = tc.run(Task(gate.code, after=tc.run(Task(gate.code))))
    tc.mark_done(never, {"a": 1})
    assert tc.get_task_result(never).ns.a == 1
    assert tc.get_task_result(never).attempts == []
    with pytest.raises(errors.TaskError, match="has ended already"):
        tc.mark_done(never)
    gate.open()
    good = tc.run(Task(add, args=(2, 3)))
    assert value(tc, good) == 5
    assert tc.mark_failed(good, "it looks wrong") == "reopened"
    assert value(tc, good) == 5
    assert [row.outcome for row in tc.get_task_result(good).attempts] == ["marked as failed: it looks wrong", ""]
    again = tc.run(Task("import time; time.sleep(60)", retries=0))
    eventually(lambda: tc.status(again).state == "running", DEADLINE_S)
    assert tc.mark_failed(again) == "failed"
    assert tc.status(again).reason == "error"


# -- SEEDS 10


@pytest.mark.parametrize("delay", [0.4, lambda attempt: 0.2 * 2**attempt])
def test_a_delayed_retry_avoids_the_engine_that_failed(tc: TaskClient, delay: float | Callable[[int], float]) -> None:
    failing = tc.run(Task("1/0", retries=2, retry_delay=delay))
    eventually(lambda: tc.status(failing).reason == "retried", DEADLINE_S)
    tc.barrier(failing, timeout=DEADLINE_S)
    attempts = tc.get_task_result(failing).attempts
    starts = [attempt.started.timestamp() for attempt in attempts]
    wanted = [delay(n) if callable(delay) else delay for n in (1, 2)]
    assert all(later - earlier >= d - 0.01 for earlier, later, d in zip(starts, starts[1:], wanted, strict=False))
    assert attempts[0].engine != attempts[1].engine, "it went to the engine that had failed it"
    assert len(attempts) == 3


def test_a_delayed_retry_runs_where_there_is_only_one_engine(tc: TaskClient) -> None:
    failing = tc.run(Task("1/0", retries=1, retry_delay=0.1, targets=[0]))
    tc.barrier(failing, timeout=DEADLINE_S)
    assert [attempt.engine for attempt in tc.get_task_result(failing).attempts] == [0, 0]


def test_only_the_named_exceptions_are_worth_a_retry(tc: TaskClient) -> None:
    other = tc.run(Task("1/0", retries=3, retry_on=OSError))
    base = tc.run(Task("open('/no/such/file')", retries=2, retry_on=(OSError, KeyError)))
    tc.barrier([other, base], timeout=DEADLINE_S)
    assert len(tc.get_task_result(other).attempts) == 1
    assert len(tc.get_task_result(base).attempts) == 3, "FileNotFoundError is an OSError"


# -- futures


def test_futures_are_those_of_concurrent_futures(tc: TaskClient, gate: Gate) -> None:
    futures = [tc.submit(add, n, 1) for n in range(50)]
    found = sorted(f.result() for f in concurrent.futures.as_completed(futures, timeout=DEADLINE_S))
    assert found == list(range(1, 51))
    bad = tc.submit(lambda: {"a": 1}["key"])
    behind = tc.submit(add, bad)
    assert isinstance(bad.exception(DEADLINE_S), KeyError)
    with pytest.raises(KeyError):
        bad.result()
    with pytest.raises(errors.DependencyFailed):
        behind.result(DEADLINE_S)
    called: list[object] = []
    bad.add_done_callback(called.append)
    eventually(lambda: called == [bad])
    blocking = [tc.submit(exec, gate.code) for _ in range(2)]
    waiting = tc.submit(add, blocking[0])
    eventually(lambda: all(f.running() for f in blocking), DEADLINE_S)
    with pytest.raises(concurrent.futures.TimeoutError):
        waiting.result(0.05)
    assert not blocking[0].cancel()
    assert waiting.cancel()
    assert waiting.cancelled()
    with pytest.raises(concurrent.futures.CancelledError):
        waiting.result()
    gate.open()
    assert concurrent.futures.wait(blocking, DEADLINE_S).not_done == set()

    async def both() -> list[int]:
        return list(await asyncio.gather(tc.submit(add, 1, 2), tc.submit(add, futures[0], 5)))

    assert asyncio.run(both()) == [3, 6]
    tc.barrier(futures)


# -- SEEDS 27


def test_a_broadcast_value_and_an_accumulator(tc: TaskClient) -> None:
    table = np.arange(300_000)
    shared = tc.broadcast(table)
    total = tc.accumulator()
    words = tc.accumulator([], op=lambda a, b: a + b)

    def look(n: int) -> tuple[int, int]:
        total.add(n)
        if n == 3:
            words.add(["three"])
        return int(shared.value[n]), id(shared.value)

    ids = [tc.run(Task(look, args=(n,), retries=1)) for n in range(20)]
    found = [value(tc, i) for i in ids]
    assert [n for n, _ in found] == list(range(20))
    assert len({place for _, place in found}) <= 2, "a broadcast value was unpacked more than once per engine"
    assert total.value == sum(range(20))
    assert words.value == ["three"]

    def twice(first: list[int]) -> None:
        total.add(1000)
        raise ValueError

    failed = tc.run(Task(twice, args=([],), retries=2))
    tc.barrier(failed, timeout=DEADLINE_S)
    assert total.value == sum(range(20)), "what failed attempts add does not count"
    tc.map(look, range(5))
    assert total.value == sum(range(20)) + 10
    tc.clear()
    assert tc.map(look, [7])[0][0] == 7, "tc.clear() took a broadcast value away"
    shared.unpersist()
    with pytest.raises(IndexError):
        tc.get_task_result(shared.id)


def test_no_addition_is_lost_to_an_error(tc: TaskClient) -> None:
    failures = [ZeroDivisionError("once")]

    def plus(one: int, other: int) -> int:
        if failures:
            raise failures.pop()
        return one + other

    totals = [tc.accumulator(0, op=plus)]

    def look(n: int) -> None:
        totals[0].add(n)

    tc.map(look, range(6), chunksize=1)
    with pytest.raises(ZeroDivisionError):
        _ = totals[0].value
    assert totals[0].value == 15
    followers = tc.session.arrivals.followers
    before = len(followers)
    totals.clear()
    gc.collect()
    assert len(followers) == before - 1


def test_waiting_for_engines(tc: TaskClient, farm: Farm) -> None:
    assert tc.await_engines(2) == [0, 1]
    assert farm.multiengine_client().await_engines(2) == [0, 1]
    assert tc.await_engines(1) == [0, 1], "at least one"
    assert tc.await_engines(5, stable_timeout=0.2) == [0, 1]
    assert tc.await_engines() == [0, 1]
    assert issubclass(errors.NoEnginesRegistered, RuntimeError)
    with pytest.raises(errors.NoEnginesRegistered, match="no engine of here within 0 s"):
        wait_for_engines(list, "here", 1, 0.0, 1.0)
