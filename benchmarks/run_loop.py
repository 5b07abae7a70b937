"""Measure how many different expressions run per second: submitted one by one, waited for, and every result fetched.

The other systems run a function call that does nothing, which is less work, and none of them writes tasks to disk.
"""

from __future__ import annotations

import contextlib
from functools import partial

from benchmarks.harness import Options, Row, cpu_s, farm_with_client, in_turn, note, processes, seconds
from benchmarks.peers import PEERS, Run, installed
from ipytaskfarm import StringTask, TaskClient

BOUNDS = {"multiprocessing.Pool": (1.5, 2.0), "ipyparallel": (40.0, 60.0), "Ray": (10.0, 15.0)}


def run_expressions(tc: TaskClient, count: int) -> None:
    """Run the loop of the quick start."""
    ids = [tc.run(StringTask(f"a = {n}", pull="a")) for n in range(count)]
    tc.barrier(ids)
    assert [tc.get_task_result(task_id)["a"] for task_id in ids] == list(range(count))


def measure(options: Options) -> list[Row]:
    """Compare with all installed systems in one run."""
    count = options.count(20_000)
    shares: dict[str, float] = {}
    rates: dict[str, tuple[float, float]] = {}
    with contextlib.ExitStack() as stack:
        farm, tc = stack.enter_context(farm_with_client(options.engines))
        found = processes(farm)

        def ours() -> float:
            before = cpu_s(found)
            rate = count / seconds(lambda: run_expressions(tc, count))
            for name, spent in cpu_s(found).items():
                shares.setdefault(name, (spent - before[name]) / count)
            tc.clear()
            return rate

        run_expressions(tc, min(count, 2_000))
        tc.clear()
        for name, (_, start, full) in PEERS.items():
            if not installed(name):
                note(f"{name} is not installed: skipped")
                continue
            tasks = options.count(full)
            try:
                with start(options.engines) as run:  # one after the other: their threads slow one another
                    run(min(tasks, 50))
                    theirs = partial(_rate, run, tasks)
                    found_rates = in_turn({"farm": ours, name: theirs}, options.rounds)
            except Exception as error:  # the other measurements still run
                note(f"{name} does not run here: skipped ({error})")
                continue
            rates[name] = found_rates["farm"], found_rates[name]
    note("CPU per task of the run loop: " + ", ".join(f"{name} {s * 1e6:.1f} us" for name, s in shares.items()))
    rows = []
    for name, (rate, theirs_rate) in rates.items():
        floor, target = BOUNDS.get(name, (None, None))
        question = f"{count:,} distinct expressions, run + barrier + fetch, against {name}"
        rows.append(Row(question, f"{rate:,.0f}/s", f"{theirs_rate:,.0f}/s", rate / theirs_rate, floor, target))
    return rows


def _rate(run: Run, tasks: int) -> float:
    return tasks / seconds(lambda: run(tasks))
