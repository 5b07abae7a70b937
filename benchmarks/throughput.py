"""How many tasks that do nothing pass per second: handed in one by one, waited for, every result fetched.

`multiprocessing.Pool.apply_async` is measured in the same run, its rounds between ours, because a shared machine is
fast at one moment and slow at the next: only the two numbers together say anything. The pool keeps nothing on disk,
encrypts nothing and forgets all when it dies; the farm does as it always does.
"""

from __future__ import annotations

import multiprocessing
import os
import platform
import statistics
import time
from collections.abc import Callable
from multiprocessing.pool import Pool

from ipytaskfarm import Farm, StringTask, Task, TaskClient


def nothing(n: int) -> int:
    """The work."""
    return n


def run_expressions(tc: TaskClient, count: int) -> None:
    """Distinct expressions with one pulled name: the quick start's loop."""
    ids = [tc.run(StringTask(f"a = {n}", pull="a")) for n in range(count)]
    tc.barrier(ids)
    values = [tc.get_task_result(task_id)["a"] for task_id in ids]
    assert values == list(range(count))
    tc.clear(ids)


def run_calls(tc: TaskClient, count: int) -> None:
    """One function, called with distinct arguments."""
    ids = [tc.run(Task(nothing, args=(n,))) for n in range(count)]
    tc.barrier(ids)
    values = [tc.get_task_result(task_id).result for task_id in ids]
    assert values == list(range(count))
    tc.clear(ids)


def run_pool(pool: Pool, count: int) -> None:
    """The same with a pool of processes."""
    pending = [pool.apply_async(nothing, (n,)) for n in range(count)]
    assert [result.get() for result in pending] == list(range(count))


def tasks_per_s(count: int, work: Callable[[int], None]) -> float:
    """One round."""
    began_s = time.perf_counter()
    work(count)
    return count / (time.perf_counter() - began_s)


def main(tasks: int, rounds: int, engines: int) -> None:
    """Measure and print the table."""
    rates: dict[str, list[float]] = {}
    # Spawned, not forked: the farm's client has threads.
    with multiprocessing.get_context("spawn").Pool(engines) as pool, Farm(n=engines) as farm, farm.task_client() as tc:
        contestants: dict[str, Callable[[int], None]] = {
            "farm, expressions": lambda count: run_expressions(tc, count),
            "farm, function calls": lambda count: run_calls(tc, count),
            "multiprocessing.Pool.apply_async": lambda count: run_pool(pool, count),
        }
        for work in contestants.values():
            work(max(1, tasks // 10))  # everything imported, every connection warm
        for _ in range(rounds):
            for name, work in contestants.items():
                rates.setdefault(name, []).append(tasks_per_s(tasks, work))
    print(
        f"{tasks} tasks, {rounds} rounds, {engines} engines or processes; "
        f"Python {platform.python_version()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
    )
    print(f"{'tasks/s':34}{'median':>10}{'least':>10}{'most':>10}")
    for name, values in rates.items():
        print(f"{name:34}{statistics.median(values):>10,.0f}{min(values):>10,.0f}{max(values):>10,.0f}")
