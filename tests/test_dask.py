"""Agents on a Dask cluster, really: workers in processes of their own, with nannies."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psutil
import pytest
from distributed import Client, LocalCluster

from ipytaskfarm import Farm, StringTask
from ipytaskfarm.doors.runtime import connection_path
from ipytaskfarm.launchers import dask
from ipytaskfarm.launchers.agents import AgentSpec, Seat
from tests.conftest import Dirs
from tests.farms import DEADLINE_S, engines, until_engines
from tests.polling import eventually

pytestmark = [pytest.mark.farm, pytest.mark.slow]


@contextmanager
def cluster(dirs: Dirs, workers: int = 2) -> Iterator[Client]:
    with (
        LocalCluster(
            n_workers=workers, threads_per_worker=1, processes=True, dashboard_address=None, host="127.0.0.1",
            local_directory=str(dirs.work), memory_limit=0,
        ) as made,
        Client(made) as client,
    ):  # fmt: skip
        yield client


def seat(farm: Farm, name: str = "dask-1") -> Seat:
    return Seat(name, connection_path(farm.name, "agent"))


def spec(farm: Farm, dirs: Dirs, **settings: Any) -> AgentSpec:
    return AgentSpec(farm=farm.name, group="dask-1", cwd=dirs.work, logs=dirs.work, **{"leave_s": 5.0, **settings})


def agents() -> list[psutil.Process]:
    """Agents that a Dask worker keeps."""
    found = []
    for child in psutil.Process().children(recursive=True):
        try:
            if (
                child.cmdline()[:1]
                and child.cmdline()[0].startswith("ipytaskfarm agent")
                and "dask" in told(child.parent())
            ):
                found.append(child)
        except psutil.NoSuchProcess:
            continue
    return found


def told(process: psutil.Process | None) -> str:
    return " ".join(process.cmdline()) if process is not None else ""


def test_a_killed_worker_costs_nothing(farm_dirs: Dirs) -> None:
    with Farm(n=0) as farm, farm.task_client() as tc:
        with cluster(farm_dirs) as client:
            handle = dask.launch(client, seat(farm), spec(farm, farm_dirs), engines_per_worker=1)
            until_engines(farm, 2)
            ids = [tc.run(StringTask(f"x = {n} ** 2", pull="x")) for n in range(1000)]
            for p in psutil.Process().children(recursive=True):
                print(p.pid, p.ppid(), p.cmdline()[:6])
            tc.barrier(ids, timeout=60)
            print(dask.look(client, handle))
        print("closed")
        eventually(lambda: not engines(farm), DEADLINE_S)
