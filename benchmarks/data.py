"""Large values: one array for ten tasks, and one large result."""

from __future__ import annotations

import contextlib
import logging
import os
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks.harness import Options, Row, farm_with_client, in_turn, note, seconds, store_folder
from benchmarks.peers import installed
from ipytaskfarm import Farm, Task, TaskClient

TASKS = 10


def total(array: Any) -> float:
    """Sum up the whole array; the function of a task."""
    return float(array.sum())


def make(count: int, seed: int) -> Any:
    """Make a result that was never sent before."""
    return np.random.default_rng(seed).integers(0, 2**60, count)


def make_timed(count: int, seed: int) -> tuple[Any, float]:
    """Make such a result, and say how many seconds that took."""
    began_s = time.perf_counter()
    return make(count, seed), time.perf_counter() - began_s


def measure(options: Options) -> list[Row]:
    """Compare with ipyparallel, which sends the array with each task, and with writing and fsyncing the same bytes."""
    items = options.count(12_500_000, 100_000)  # 100 MB
    with contextlib.ExitStack() as stack:
        farm, tc = stack.enter_context(farm_with_client(options.engines))
        seeds = iter(range(10**6))
        slowest: list[float] = []
        _note_shared_pages(farm, make(items, next(seeds)))

        def ours() -> float:
            array = make(items, next(seeds))
            taken_s = seconds(lambda: tc.barrier([tc.run(Task(total, args=(array,))) for _ in range(TASKS)]))
            tc.clear()
            return taken_s

        def result() -> float:
            seed = next(seeds)
            making: list[float] = []  # the time for making the result does not count

            def fetch() -> None:
                array, making_s = tc.run(Task(make_timed, args=(items, seed)), block=True).result
                assert array.nbytes == 8 * items
                making.append(making_s)

            with _asking(farm) as answers:
                fetched_s = seconds(fetch)
            slowest.append(max(answers))
            tc.clear()
            return fetched_s - making[0]

        folder = store_folder(tc)

        def write() -> float:
            data = make(items, next(seeds)).tobytes()
            path = folder / "written"
            taken_s = seconds(lambda: _write(path, data))
            path.unlink()
            return taken_s

        contestants = {"farm": ours, "result": result, "write": write, **_ways_to_hand_in(tc, items, seeds)}
        if installed("ipyparallel"):
            view = stack.enter_context(_cluster(options.engines)).load_balanced_view()
            view.apply_sync(total, np.zeros(10))

            def theirs() -> float:
                array = make(items, next(seeds))
                return seconds(lambda: [r.get() for r in [view.apply_async(total, array) for _ in range(TASKS)]])

            contestants["ipyparallel"] = theirs
        else:
            note("ipyparallel is not installed: skipped")
        prepared = {name: _with_memory_at_hand(folder, 4 * 8 * items, each) for name, each in contestants.items()}
        found = in_turn(prepared, options.rounds)
    note(
        f"while a result of {8 * items / 1e6:.0f} MB travels, the slowest answer to another client's question takes "
        f"{statistics.median(slowest) * 1e3:.0f} ms"
    )
    return _rows(found, f"{8 * items / 1e6:.0f} MB")


def _with_memory_at_hand(folder: Path, size: int, measure: Callable[[], float]) -> Callable[[], float]:
    """Write a file of this many bytes and delete it before each measurement.

    A virtual machine gets its memory from its host when a page is first touched, which makes the write of 100 MB take
    four times as long (0.21 s and 0.05 s on one machine).  Without this step, a figure would tell whether another
    contestant had just deleted a file.  The size has room for the array, its file and its copies in other processes.
    """

    def measured() -> float:
        path = folder / "written"
        _write(path, os.urandom(size))
        path.unlink()
        return measure()

    return measured


def _ways_to_hand_in(tc: TaskClient, items: int, seeds: Iterator[int]) -> dict[str, Callable[[], float]]:
    """Return what measures how long a new array takes to be submitted: as an argument, and within a closure."""

    def argument() -> float:
        array = make(items, next(seeds))
        return _handed_in(tc, lambda: Task(total, args=(array,)))

    def within() -> float:
        array = make(items, next(seeds))
        return _handed_in(tc, lambda: Task(lambda: total(array)))

    return {"argument": argument, "closure": within}


def _handed_in(tc: TaskClient, make_task: Callable[[], Task]) -> float:
    """Return the seconds of `run` alone; then let the task end."""

    def hand_in() -> None:
        ids.append(tc.run(make_task()))

    ids: list[int] = []
    taken_s = seconds(hand_in)
    tc.barrier(ids)
    tc.clear()
    return taken_s


@contextlib.contextmanager
def _asking(farm: Farm) -> Iterator[list[float]]:
    """Ask the controller one question after the other in a thread; record the duration of each answer."""
    taken: list[float] = []
    ending = threading.Event()
    with farm.task_client() as other:

        def ask() -> None:
            while not ending.wait(0.005):
                taken.append(seconds(other.queue_status))

        asking = threading.Thread(target=ask, name="asking", daemon=True)
        asking.start()
        try:
            yield taken
        finally:
            ending.set()
            asking.join()
            taken.append(0.0)


def _note_shared_pages(farm: Farm, array: Any) -> None:
    with farm.multiengine_client() as mec:
        mec.push({"array": array})
        mec.execute("total = array.sum()")
        maps = [m for row in mec.engines() for m in psutil.Process(row.pid).memory_maps(grouped=False)]
        mapped = [m for m in maps if ".blobs/" in m.path]
        resident, own = sum(m.rss for m in mapped), sum(m.pss for m in mapped)
        note(
            f"an array of {array.nbytes / 1e6:.0f} MB pushed to {len(mec)} engines: {resident / 1e6:.0f} MB of it are "
            f"mapped in them, in {own / 1e6:.0f} MB of memory"
        )
        mec.reset()


def _cluster(engines: int) -> Any:
    import ipyparallel

    return ipyparallel.Cluster(n=engines, log_level=logging.ERROR)


def _rows(found: dict[str, float], size: str) -> list[Row]:
    rows = []
    if "ipyparallel" in found:
        ratio = found["ipyparallel"] / found["farm"]
        question = f"an array of {size} pushed to {TASKS} tasks, against ipyparallel"
        rows.append(Row(question, f"{found['farm']:.2f} s", f"{found['ipyparallel']:.2f} s", ratio, 5.0, 8.0))
    ratio = found["result"] / found["write"]
    question = f"a result of {size} to the client, less the time to make it, against writing and fsyncing it"
    rows.append(Row(question, f"{found['result']:.2f} s", f"{found['write']:.2f} s", ratio, 3.0, 1.5, False))
    ratio = found["closure"] / found["argument"]
    question = f"an array of {size} within a closure: until it is submitted, against an argument"
    rows.append(Row(question, f"{found['closure']:.2f} s", f"{found['argument']:.2f} s", ratio, 2.0, 1.0, False))
    return rows


def _write(path: Path, data: bytes) -> None:
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
