"""Measure a long queue: the memory of a waiting task, a `run` call during the wait, and how fast the queue is
processed.
"""

from __future__ import annotations

import gc
import statistics
import time

import psutil

from benchmarks.harness import Options, Row, farm_with_client, processes
from ipytaskfarm import StringTask, TaskClient
from ipytaskfarm.core import messages


def run_call_s(tc: TaskClient, calls: int = 2_000) -> float:
    """Return the median duration of a `run` call."""
    taken = []
    for n in range(calls):
        began_s = time.perf_counter()
        tc.run(StringTask(f"a = {n}", pull="a"))
        taken.append(time.perf_counter() - began_s)
    return statistics.median(taken)


def hold(tc: TaskClient, on: bool) -> None:
    """Start no more tasks, or start them again."""
    tc._session.ask(messages.HoldFarm(on))


def drain_rate(tc: TaskClient, tasks: int) -> float:
    """Return the tasks per second while this number of waiting tasks is processed."""
    before: int = tc.queue_status()["succeeded"]
    began_s = time.perf_counter()
    hold(tc, False)
    done = 0
    while done < tasks:
        time.sleep(0.02)
        done = int(tc.queue_status()["succeeded"]) - before
    return done / (time.perf_counter() - began_s)


def restart_s(tc: TaskClient, controller: psutil.Process, queued: int) -> float:
    """Return the seconds from the controller's death to the first answer of its successor, which knows all waiting
    tasks.
    """
    began_s = time.perf_counter()
    controller.kill()  # no wait here: the controller is the supervisor's child, and the first to wait gets its status
    counts = tc.queue_status()
    taken_s = time.perf_counter() - began_s
    assert counts["scheduled"] + counts["pending"] + counts["succeeded"] >= queued, counts
    return taken_s


def measure(options: Options) -> list[Row]:
    """Measure on a farm that is held until all tasks are submitted."""
    count, few = options.count(1_000_000, 5_000), options.count(10_000, 500)
    with farm_with_client(options.engines) as (farm, tc):
        controller = processes(farm)["controller"]
        hold(tc, True)
        for _ in range(few):
            tc.run(StringTask("a = 1", pull="a"))
        tc.flush()
        few_rate = drain_rate(tc, few)
        tc.barrier()
        tc.clear()
        hold(tc, True)
        alone_s = run_call_s(tc)
        tc.flush()
        gc.collect()
        rss = (controller.memory_info().rss, psutil.Process().memory_info().rss)
        for n in range(count):
            tc.run(StringTask(f"a = {n}", pull="a"))
        tc.flush()
        gc.collect()
        grown = (controller.memory_info().rss - rss[0], psutil.Process().memory_info().rss - rss[1])
        crowded_s = run_call_s(tc)
        many_rate = drain_rate(tc, min(count, options.count(60_000, 2_000)))
        hold(tc, True)
        left = tc.queue_status()["scheduled"]
        restarted_s = restart_s(tc, controller, left)
    each = [max(0, size) / count for size in grown]
    ratio = many_rate / few_rate
    again = f"… the controller is killed: its successor answers, having read {left:,} that wait"
    alone, crowded = alone_s * 1e6, crowded_s * 1e6
    return [
        Row("one run call", f"{alone:.1f} us", "", alone, 15.0, 10.0, False, "us"),
        Row(f"… with {count:,} outstanding", f"{crowded:.1f} us", "", crowded, 15.0, 10.0, False, "us"),
        Row(
            f"{count:,} queued: controller's growth per task", f"{each[0]:.0f} B", "", each[0], 500.0, 300.0, False, "B"
        ),
        Row("… client's growth per task", f"{each[1]:.0f} B", "", each[1], 300.0, 200.0, False, "B"),
        Row(again, f"{restarted_s:.1f} s", "", restarted_s, 8.0, 4.0, False, "s"),
        Row(f"… worked off, against {few:,} queued", f"{many_rate:,.0f}/s", f"{few_rate:,.0f}/s", ratio, 0.7, 0.8),
    ]
