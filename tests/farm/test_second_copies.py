"""Second copies on a real farm: an engine is slowed down by SIGSTOP and SIGCONT in turns."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ipytaskfarm import Farm, Task, TaskClient
from tests.support.far import NODE, far_engines
from tests.support.farms import DEADLINE_S, engines, module_farm
from tests.support.polling import eventually
from tests.support.thorough import by_hand

ENGINES = 8
STEPS, STEP_S = 20, 0.01
TASKS = 80


@pytest.fixture(scope="module")
def farm() -> Iterator[Farm]:
    with module_farm(ENGINES, second_copies_on="any engine") as made:
        yield made


@contextmanager
def slowed(pid: int, runs_s: float = 0.002, stops_s: float = 0.5) -> Iterator[None]:
    """Let a process run for a moment twice a second."""
    over = threading.Event()

    def slow() -> None:
        while not over.is_set():
            try:
                os.kill(pid, signal.SIGSTOP)
                over.wait(stops_s)
                os.kill(pid, signal.SIGCONT)
            except ProcessLookupError:
                return
            time.sleep(runs_s)

    thread = threading.Thread(target=slow)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        try:
            os.kill(pid, signal.SIGCONT)
        except ProcessLookupError:
            pass


def work(steps: int, step_s: float) -> int:
    """Wait in steps, so that other processes of the machine do not matter, and that a process that stands is slow."""
    import time

    for _ in range(steps):
        time.sleep(step_s)
    return steps


def job_s(tc: TaskClient, second_copies: bool) -> tuple[float, list[int]]:
    """Return how long a job takes, and the ids of its tasks."""
    job = tc.create_job(second_copies=second_copies, lost_retries=3)
    for _ in range(TASKS):
        job.add_task(Task(work, args=(STEPS, STEP_S)))
    began_s = time.monotonic()
    ids = job.submit()
    tc.barrier(ids, timeout=10 * DEADLINE_S)
    return time.monotonic() - began_s, ids


def test_a_slowed_engine(farm: Farm) -> None:
    with farm.task_client() as tc:
        tc.barrier([tc.run(Task(work, args=(1, 0.1))) for _ in range(2 * ENGINES)], timeout=DEADLINE_S)
        undisturbed_s, _ = job_s(tc, second_copies=True)
        slow = engines(farm)[0]
        with slowed(slow.pid):
            with_s, ids = job_s(tc, second_copies=True)
        states = [tc.get_task_result(i).status for i in ids]
        assert states == ["succeeded"] * TASKS
        events = tc.history(ids, what="overtaken")
        assert len(events) >= 1, "no second copy has won"
        assert "a second copy on engine" in events[0].more
        assert len({event.task for event in tc.history(ids, what="succeeded")}) == TASKS
        eventually(lambda: len(engines(farm)) == ENGINES, DEADLINE_S)
        slow = engines(farm)[0]
        with slowed(slow.pid):
            without_s, ids = job_s(tc, second_copies=False)
        print(f"{undisturbed_s:.2f} s undisturbed; slowed {with_s:.2f} s, without second copies {without_s:.2f} s")
        assert not tc.history(ids, what="overtaken")
        assert with_s < without_s / 2


@by_hand
def test_a_slow_node_is_helped_by_another_one(tmp_path: Path) -> None:
    """The far agent is a node of its own, with another name and folder; copies run on other nodes by default."""
    with module_farm(3) as farm, farm.task_client() as tc, far_engines(farm, tmp_path, engines=3):
        nodes = {row.id: row.node for row in engines(farm)}
        slow = next(row for row in engines(farm) if row.node == NODE)
        with slowed(slow.pid):
            _, ids = job_s(tc, second_copies=True)
        assert {tc.get_task_result(i).status for i in ids} == {"succeeded"}
        overtaken = tc.history(ids, what="overtaken")
        assert {event.engine for event in overtaken} == {slow.id}
        for event in overtaken:
            ended = tc.get_task_result(event.task)
            assert nodes[ended.engineid] != NODE, "the copy ran on the slow node"
            assert f"a second copy on engine {ended.engineid}" in event.more


def test_the_rules_of_second_copies(farm: Farm) -> None:
    with farm.task_client() as tc:
        job = tc.create_job()
        job.second_copies = True
        assert job.idempotent
        with pytest.raises(TypeError, match="idempotent must be True or False"):
            Task(work, args=(1,), idempotent="yes")  # type: ignore[arg-type]
