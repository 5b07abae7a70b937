"""Run other systems that are installed: each runs a number of calls that do nothing, submitted one by one."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from typing import Any


def nothing(n: int) -> int:
    """Do nothing; the function of the calls."""
    return n


Run = Callable[[int], None]


@contextlib.contextmanager
def pool(workers: int) -> Iterator[Run]:
    # Spawned, not forked, because the farm's client has threads.
    with multiprocessing.get_context("spawn").Pool(workers) as started:

        def run(count: int) -> None:
            pending = [started.apply_async(nothing, (n,)) for n in range(count)]
            assert [result.get() for result in pending] == list(range(count))

        yield run


@contextlib.contextmanager
def ipyparallel(workers: int) -> Iterator[Run]:
    import ipyparallel

    with ipyparallel.Cluster(n=workers, log_level=logging.ERROR) as client:
        view = client.load_balanced_view()

        def run(count: int) -> None:
            pending = [view.apply_async(nothing, n) for n in range(count)]
            assert [result.get() for result in pending] == list(range(count))

        yield run


@contextlib.contextmanager
def ray(workers: int) -> Iterator[Run]:
    import ray

    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    ray.init(num_cpus=workers, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    remote: Any = ray.remote(nothing)

    def run(count: int) -> None:
        assert ray.get([remote.remote(n) for n in range(count)]) == list(range(count))

    try:
        yield run
    finally:
        ray.shutdown()


@contextlib.contextmanager
def dask(workers: int) -> Iterator[Run]:
    from distributed import Client, LocalCluster

    options = {"n_workers": workers, "threads_per_worker": 1, "dashboard_address": None, "silence_logs": logging.ERROR}
    with LocalCluster(**options) as cluster, Client(cluster) as client:

        def run(count: int) -> None:
            pending = [client.submit(nothing, n, pure=False) for n in range(count)]
            assert client.gather(pending) == list(range(count))

        yield run


@contextlib.contextmanager
def loky(workers: int) -> Iterator[Run]:
    from loky import get_reusable_executor

    executor = get_reusable_executor(max_workers=workers, timeout=300)

    def run(count: int) -> None:
        pending = [executor.submit(nothing, n) for n in range(count)]
        assert [result.result() for result in pending] == list(range(count))

    try:
        yield run
    finally:
        executor.shutdown(wait=True, kill_workers=True)


@contextlib.contextmanager
def parsl(workers: int) -> Iterator[Run]:
    import parsl
    from parsl.config import Config
    from parsl.executors import HighThroughputExecutor

    # It starts its own scripts by name, and its workers import this module.
    os.environ["PYTHONPATH"] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    os.environ["PATH"] = f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}"
    with tempfile.TemporaryDirectory() as folder:
        executor = HighThroughputExecutor(max_workers_per_node=workers, address="127.0.0.1")
        with parsl.load(Config(executors=[executor], run_dir=folder)):
            app = parsl.python_app(nothing)

            def run(count: int) -> None:
                pending = [app(n) for n in range(count)]
                assert [result.result() for result in pending] == list(range(count))

            yield run
        parsl.clear()


PEERS: dict[str, tuple[str | None, Callable[[int], contextlib.AbstractContextManager[Run]], int]] = {
    "multiprocessing.Pool": (None, pool, 20_000),
    "ipyparallel": ("ipyparallel", ipyparallel, 500),
    "Ray": ("ray", ray, 1_500),
    "Dask": ("distributed", dask, 700),
    "loky": ("loky", loky, 3_000),
    "Parsl": ("parsl", parsl, 1_000),
}
"""Name -> (the module that it needs, the function that runs it, tasks per round: a round takes a second or two)."""


def installed(name: str) -> bool:
    """Return whether this system is installed."""
    module = PEERS[name][0]
    return module is None or importlib.util.find_spec(module) is not None
