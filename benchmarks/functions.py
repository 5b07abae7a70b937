"""Function calls: one function used again and again, and a new closure each time."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from benchmarks.harness import Options, Row, farm_with_client, in_turn, note, seconds
from benchmarks.peers import installed, nothing, pool
from ipytaskfarm import MapTask, TaskClient


def run_calls(tc: TaskClient, count: int) -> None:
    """Submit calls of one function."""
    ids = [tc.run(MapTask(nothing, (n,))) for n in range(count)]
    tc.barrier(ids)
    assert [tc.get_task_result(task_id) for task_id in ids] == list(range(count))


def closure(n: int) -> Callable[[], int]:
    """Return another function for each n."""
    return lambda: n


def run_closures(tc: TaskClient, count: int) -> None:
    """Submit a new function for each task."""
    ids = [tc.run(MapTask(closure(n))) for n in range(count)]
    tc.barrier(ids)
    assert [tc.get_task_result(task_id) for task_id in ids] == list(range(count))


def measure(options: Options) -> list[Row]:
    """Compare with `Pool.apply_async`, and with loky if it is installed."""
    calls, closures = options.count(20_000), options.count(2_000)
    rows = []
    with contextlib.ExitStack() as stack:
        _, tc = stack.enter_context(farm_with_client(options.engines))
        run = stack.enter_context(pool(options.engines))
        run_calls(tc, 500)
        run(500)
        rates = in_turn(
            {
                "farm": lambda: calls / seconds(lambda: run_calls(tc, calls)),
                "Pool": lambda: calls / seconds(lambda: run(calls)),
            },
            options.rounds,
        )
        ours, theirs = rates["farm"], rates["Pool"]
        question = f"{calls:,} calls of one function, against Pool.apply_async"
        rows.append(Row(question, f"{ours:,.0f}/s", f"{theirs:,.0f}/s", ours / theirs, 1.0, 1.2))
        if not installed("loky"):
            note("loky is not installed: skipped")
            return rows
        from loky import get_reusable_executor

        executor = get_reusable_executor(max_workers=options.engines, timeout=300)

        def run_loky() -> None:
            pending = [executor.submit(closure(n)) for n in range(closures)]
            assert [result.result() for result in pending] == list(range(closures))

        run_closures(tc, 100)
        run_loky()
        rates = in_turn(
            {
                "farm": lambda: closures / seconds(lambda: run_closures(tc, closures)),
                "loky": lambda: closures / seconds(run_loky),
            },
            options.rounds,
        )
        executor.shutdown(wait=True, kill_workers=True)
        ours, theirs = rates["farm"], rates["loky"]
        question = f"{closures:,} closures, a new one each time, against loky"
        rows.append(Row(question, f"{ours:,.0f}/s", f"{theirs:,.0f}/s", ours / theirs, 1.5, 2.0))
    return rows
