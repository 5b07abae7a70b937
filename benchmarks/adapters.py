"""Measure programs of other libraries on a farm and on their own workers."""

from __future__ import annotations

import concurrent.futures
import contextlib
import importlib.util
from collections.abc import Callable
from typing import Any

from benchmarks.harness import Options, Row, farm_with_client, in_turn, note, seconds
from benchmarks.peers import nothing
from ipytaskfarm import TaskClient

ARRAY_CALLS = 40
ARRAY_NUMBERS = 4_000_000


def submit_loop(executor: concurrent.futures.Executor, count: int) -> None:
    """Submit calls one by one, and read their values."""
    futures = [executor.submit(nothing, n) for n in range(count)]
    assert [future.result() for future in futures] == list(range(count))


def chunked_map(executor: concurrent.futures.Executor, count: int) -> None:
    """Map in chunks of a thousand."""
    assert sum(executor.map(nothing, range(count), chunksize=1000)) == count * (count - 1) // 2


def has_libraries() -> bool:
    """Return whether joblib and scikit-learn are installed."""
    return all(importlib.util.find_spec(name) is not None for name in ("joblib", "sklearn"))


def measure(options: Options) -> list[Row]:
    """Compare with ``ProcessPoolExecutor``, and joblib's backend with loky if joblib and scikit-learn are installed."""
    rows = []
    calls, items = options.count(20_000), options.count(100_000)
    with contextlib.ExitStack() as stack:
        _, tc = stack.enter_context(farm_with_client(options.engines))
        ours = stack.enter_context(tc.executor())
        theirs = stack.enter_context(concurrent.futures.ProcessPoolExecutor(options.engines))
        for question, work, count, floor in (
            (f"Executor.submit of {calls:,} calls, against ProcessPoolExecutor", submit_loop, calls, 3.0),
            (f"Executor.map of {items:,} in chunks of 1,000, against ProcessPoolExecutor", chunked_map, items, 1.0),
        ):
            rows.append(_beside(question, work, (ours, theirs), count, floor, options.rounds))
        if has_libraries():
            rows += _joblib(tc, options)
        else:
            note("joblib or scikit-learn is not installed: skipped")
    return rows


def _beside(
    question: str,
    work: Callable[[Any, int], None],
    executors: tuple[concurrent.futures.Executor, concurrent.futures.Executor],
    count: int,
    floor: float,
    rounds: int,
) -> Row:
    ours, theirs = executors
    work(ours, 1000)
    work(theirs, 1000)
    rates = in_turn(
        {
            "farm": lambda: count / seconds(lambda: work(ours, count)),
            "peer": lambda: count / seconds(lambda: work(theirs, count)),
        },
        rounds,
    )
    ratio = rates["farm"] / rates["peer"]
    return Row(question, f"{rates['farm']:,.0f}/s", f"{rates['peer']:,.0f}/s", ratio, floor)


def _joblib(tc: TaskClient, options: Options) -> list[Row]:
    """Run the same calls with joblib's backend and with loky; measure how many times as long ours takes."""
    import numpy as np
    from joblib import Parallel, delayed, parallel_config
    from sklearn.datasets import load_iris
    from sklearn.model_selection import GridSearchCV
    from sklearn.svm import SVC

    import ipytaskfarm.joblib  # noqa: F401

    data, target = load_iris(return_X_y=True)
    grid = {"C": [0.1, 0.3, 1.0, 3.0, 10.0, 30.0], "gamma": [0.01, 0.03, 0.1, 0.3, 1.0]}
    array = np.ones(ARRAY_NUMBERS)
    calls = options.count(20_000)
    programs: dict[str, tuple[Callable[[], object], float | None]] = {
        "GridSearchCV of 150 small fits": (lambda: GridSearchCV(SVC(), grid, cv=5).fit(data, target), 1.5),
        f"joblib.Parallel of {calls:,} no-ops": (lambda: Parallel()(delayed(nothing)(n) for n in range(calls)), 2.0),
        f"joblib.Parallel of {ARRAY_CALLS} calls with one array of {array.nbytes / 1e6:.0f} MB": (
            lambda: Parallel()(delayed(np.sum)(array) for _ in range(ARRAY_CALLS)),
            None,
        ),
    }

    def taken_s(backend: str, program: Callable[[], object], **more: Any) -> float:
        with parallel_config(backend, n_jobs=options.engines, **more):
            return seconds(program)

    rows = []
    for name, (program, floor) in programs.items():
        taken_s("ipytaskfarm", program, client=tc)
        taken_s("loky", program)
        times = in_turn(
            {
                "farm": lambda program=program: taken_s("ipytaskfarm", program, client=tc),  # type: ignore[misc]
                "loky": lambda program=program: taken_s("loky", program),  # type: ignore[misc]
            },
            options.rounds,
        )
        ours, theirs = times["farm"], times["loky"]
        question = f"{name}, time against loky"
        rows.append(Row(question, f"{ours:.2f} s", f"{theirs:.2f} s", ours / theirs, floor, more_is_better=False))
    return rows
