"""Measure programs of other libraries on a farm and on their own workers."""

from __future__ import annotations

import concurrent.futures
import contextlib
import importlib.util
import itertools
import logging
from collections.abc import Callable
from typing import Any

from benchmarks.harness import Options, Row, farm_with_client, in_turn, note, seconds
from benchmarks.peers import installed, nothing
from ipytaskfarm import Farm, TaskClient

ARRAY_CALLS = 40
ARRAY_NUMBERS = 4_000_000
PUSHED_NUMBERS = 1_250_000
VIEW_CALLS = 1_000
VIEW_ITEMS = 10_000
PUSHES = 5


def submit_loop(executor: concurrent.futures.Executor, count: int) -> None:
    """Submit calls one by one, and read their values."""
    futures = [executor.submit(nothing, n) for n in range(count)]
    assert [future.result() for future in futures] == list(range(count))


def chunked_map(executor: concurrent.futures.Executor, count: int) -> None:
    """Map in chunks of a thousand."""
    assert sum(executor.map(nothing, range(count), chunksize=1000)) == count * (count - 1) // 2


def apply_loop(view: Any, count: int) -> None:
    """Call a function on a load-balanced view one by one, and read the values."""
    results = [view.apply_async(nothing, n) for n in range(count)]
    assert [result.get() for result in results] == list(range(count))


def balanced_map(view: Any, count: int) -> None:
    """Map over a load-balanced view, which makes a task of each item."""
    assert sum(view.map_sync(nothing, range(count))) == count * (count - 1) // 2


def push_array(view: Any, count: int) -> None:
    """Push as many different arrays of 10 MB to each engine."""
    import numpy as np

    for _ in range(count):
        view.push({"array": np.full(PUSHED_NUMBERS, float(next(_pushed)))}, block=True)


_pushed = itertools.count()
"""A number for each pushed array: the farm's folder would have an equal one already."""


def has_libraries() -> bool:
    """Return whether joblib and scikit-learn are installed."""
    return all(importlib.util.find_spec(name) is not None for name in ("joblib", "sklearn"))


def measure(options: Options) -> list[Row]:
    """Compare with ``ProcessPoolExecutor``, and joblib's backend with loky if joblib and scikit-learn are installed."""
    rows = []
    calls, items = options.count(20_000), options.count(100_000)
    with contextlib.ExitStack() as stack:
        farm, tc = stack.enter_context(farm_with_client(options.engines))
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
        if installed("ipyparallel"):
            rows += _views(farm, options)
        else:
            note("ipyparallel is not installed: skipped")
    return rows


def _views(farm: Farm, options: Options) -> list[Row]:
    """Run the same calls with the views of `ipytaskfarm.ipyparallel` and with ipyparallel's own."""
    import ipyparallel

    import ipytaskfarm.ipyparallel as ipp

    rows = []
    calls, items = options.count(VIEW_CALLS), options.count(VIEW_ITEMS)
    with ipyparallel.Cluster(n=options.engines, log_level=logging.ERROR) as others:
        own = ipp.Client(farm.connection_file)
        balanced = own.load_balanced_view(), others.load_balanced_view()
        direct = own[:], others[:]
        for question, work, views, count in (
            (f"view.apply_async of {calls:,} calls", apply_loop, balanced, calls),
            (f"view.map of {items:,} items", balanced_map, balanced, items),
            ("view.push of an array of 10 MB to each engine", push_array, direct, PUSHES),
        ):
            work(views[0], max(1, count // 10))
            work(views[1], max(1, count // 10))
            rates = in_turn(  # one round: ipyparallel takes some milliseconds for each call
                {
                    "farm": lambda work=work, view=views[0], n=count: n / seconds(lambda: work(view, n)),  # type: ignore[misc]
                    "peer": lambda work=work, view=views[1], n=count: n / seconds(lambda: work(view, n)),  # type: ignore[misc]
                },
                1,
            )
            ratio = rates["farm"] / rates["peer"]
            rows.append(
                Row(f"{question}, against ipyparallel", f"{rates['farm']:,.0f}/s", f"{rates['peer']:,.0f}/s", ratio)
            )
        own.close()
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
