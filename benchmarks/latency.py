"""Measure one task at a time, from the submission to the result, and one call whose result is kept."""

from __future__ import annotations

import multiprocessing
import statistics
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor

from benchmarks.harness import Options, Row, commit_s, farm_with_client, in_turn, note, seconds, store_folder
from benchmarks.peers import nothing
from ipytaskfarm import MapTask


def measure(options: Options) -> list[Row]:
    """Compare the farm's median with twice a ProcessPoolExecutor's and twice a commit.

    A task makes two more hops than a call of the executor, and is written to disk twice.
    """
    times = options.count(300, 50)
    tails: list[float] = []

    def p50(call: Callable[[int], object], keep_tail: bool = False) -> float:
        taken = sorted(seconds(lambda n=n: call(n)) for n in range(times))  # type: ignore[misc]
        if keep_tail:
            tails.append(taken[int(0.99 * len(taken))] / taken[len(taken) // 2])
        return taken[len(taken) // 2]

    spawn = multiprocessing.get_context("spawn")
    with (
        ProcessPoolExecutor(options.engines, mp_context=spawn) as executor,
        farm_with_client(options.engines) as (_, tc),
    ):

        def ours(n: int) -> object:
            return tc.get_task_result(tc.run(MapTask(nothing, (n,))), block=True)

        cached = tc.cached(nothing)

        def kept(n: int) -> object:
            return cached(0)

        def theirs(n: int) -> object:
            return executor.submit(nothing, n).result()

        for n in range(50):
            ours(n), kept(n), theirs(n)
        folder = store_folder(tc)
        found = in_turn(
            {
                "farm": lambda: p50(ours, keep_tail=True),
                "kept": lambda: p50(kept),
                "executor": lambda: p50(theirs),
                "commit": lambda: commit_s(folder, 50),
            },
            options.rounds,
        )
    bound = 2 * found["executor"] + 2 * found["commit"]
    tail = statistics.median(tails)
    executor_ms, commit_ms = found["executor"] * 1e3, found["commit"] * 1e3
    note(f"beside one task at a time: an executor's p50 {executor_ms:.2f} ms, a one-row commit {commit_ms:.2f} ms")
    shown, kept_ms = f"{found['farm'] * 1e3:.2f} ms", found["kept"] * 1e3
    return [
        Row("one task at a time, p50", shown, f"{bound * 1e3:.2f} ms", found["farm"] / bound, 1.5, 1.0, False),
        Row("… p99 against p50", f"{tail:.1f} ×", "", tail, 6.0, 6.0, False),
        Row("… a call of a cached function, its result kept", f"{kept_ms:.2f} ms", "", kept_ms, 1.0, None, False, "ms"),
    ]
