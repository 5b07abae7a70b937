"""Large values: one array for ten tasks, and one large result."""

from __future__ import annotations

import contextlib
import logging
import os
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness import Options, Row, farm_with_client, in_turn, note, seconds, store_folder
from benchmarks.peers import installed
from ipytaskfarm import Task

TASKS = 10


def total(array: Any) -> float:
    """The work: touch all of it."""
    return float(array.sum())


def make(count: int, seed: int) -> Any:
    """A result that was never seen before."""
    return np.random.default_rng(seed).integers(0, 2**60, count)


def measure(options: Options) -> list[Row]:
    """Against ipyparallel, which sends the array with each task; and against writing and fsyncing the same bytes."""
    items = options.count(12_500_000, 100_000)  # 100 MB
    with contextlib.ExitStack() as stack:
        _, tc = stack.enter_context(farm_with_client(options.engines))
        seeds = iter(range(10**6))

        def ours() -> float:
            array = make(items, next(seeds))
            taken_s = seconds(lambda: tc.barrier([tc.run(Task(total, args=(array,))) for _ in range(TASKS)]))
            tc.clear()
            return taken_s

        def result() -> float:
            seed = next(seeds)
            tc.run(Task(make, args=(items, seed)), block=True)  # how long it takes to make is not the question

            def fetch() -> None:
                tr = tc.run(Task(make, args=(items, seed + 10**7)), block=True)
                assert tr.result.nbytes == 8 * items

            making_s = seconds(lambda: make(items, seed))
            taken_s = seconds(fetch) - making_s
            tc.clear()
            return taken_s

        folder = store_folder(tc)

        def write() -> float:
            data = make(items, next(seeds)).tobytes()
            path = folder / "written"
            taken_s = seconds(lambda: _write(path, data))
            path.unlink()
            return taken_s

        contestants = {"farm": ours, "result": result, "write": write}
        if installed("ipyparallel"):
            view = stack.enter_context(_cluster(options.engines)).load_balanced_view()
            view.apply_sync(total, np.zeros(10))

            def theirs() -> float:
                array = make(items, next(seeds))
                return seconds(lambda: [r.get() for r in [view.apply_async(total, array) for _ in range(TASKS)]])

            contestants["ipyparallel"] = theirs
        else:
            note("ipyparallel is not installed: skipped")
        found = in_turn(contestants, options.rounds)
    return _rows(found, f"{8 * items / 1e6:.0f} MB")


def _cluster(engines: int) -> Any:
    import ipyparallel

    return ipyparallel.Cluster(n=engines, log_level=logging.ERROR)


def _rows(found: dict[str, float], size: str) -> list[Row]:
    rows = []
    if "ipyparallel" in found:
        ratio = found["ipyparallel"] / found["farm"]
        question = f"an array of {size} pushed to {TASKS} tasks, against ipyparallel"
        rows.append(Row(question, f"{found['farm']:.2f} s", f"{found['ipyparallel']:.2f} s", ratio, 3.0, 5.0))
    ratio = found["result"] / found["write"]
    question = f"a result of {size} to the client, less the time to make it, against writing and fsyncing it"
    rows.append(Row(question, f"{found['result']:.2f} s", f"{found['write']:.2f} s", ratio, 5.0, 3.0, False))
    return rows


def _write(path: Path, data: bytes) -> None:
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
