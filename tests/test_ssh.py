"""Agents by ssh, really: two hosts, which are this machine behind a private sshd, and a farm that only ssh leads to."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from ipytaskfarm import Farm, StringTask, TaskClient
from ipytaskfarm.core.errors import LauncherError
from ipytaskfarm.doors.runtime import connection_path, process_started, read_connection_file
from ipytaskfarm.launchers.agents import AgentSpec, Handle, Seat
from ipytaskfarm.launchers.ssh import Ssh
from tests import sshd
from tests.conftest import Dirs
from tests.farms import DEADLINE_S, engines, until_engines
from tests.polling import eventually
from tests.sshd import Sshd

pytestmark = [pytest.mark.farm, pytest.mark.slow, pytest.mark.skipif(bool(sshd.missing()), reason=sshd.missing())]


@pytest.fixture
def server(farm_dirs: Dirs) -> Iterator[Sshd]:
    """An sshd whose sessions live in the test's world."""
    with sshd.running(farm_dirs.root / "sshd", farm_dirs.environment()) as server:
        yield server


def launcher(server: Sshd, folder: Path, hosts: str = "node01:1,node02:2", **options: str) -> Ssh:
    return Ssh({"hosts": hosts, "config": str(server.config), "folder": str(folder), **options})


@contextmanager
def placed(farm: Farm, ssh: Ssh, dirs: Dirs, **settings: Any) -> Iterator[Handle]:
    """Its agents run; afterwards they are ended, whatever the test did."""
    seats = [Seat(name, connection_path(farm.name, "agent")) for name in ssh.names("ssh-1", None)]
    spec = AgentSpec(farm=farm.name, group="ssh-1", cwd=dirs.work, logs=dirs.work, **{"leave_s": 5.0, **settings})
    handle = ssh.submit(seats, spec)
    try:
        yield handle
    finally:
        ssh.cancel(handle)
        eventually(lambda: not list(dirs.root.glob("far/*")), DEADLINE_S, every_s=0.1, what="folders on the hosts go")
        tunnels = [agent["tunnel"] for agent in handle["agents"].values() if agent["tunnel"]]
        eventually(lambda: not any(map(lives, tunnels)), DEADLINE_S, every_s=0.1, what="tunnels end")


def lives(process: dict[str, Any]) -> bool:
    return process_started(process["pid"]) == process["started"]


def squares(tc: TaskClient, count: int) -> list[int]:
    return [tc.run(StringTask(f"x = {n} ** 2", pull="x")) for n in range(count)]


def test_agents_on_two_hosts_work_and_leave_nothing(farm_dirs: Dirs, server: Sshd) -> None:
    ssh = launcher(server, farm_dirs.root / "far")
    with Farm(n=0) as farm, farm.task_client() as tc:
        with placed(farm, ssh, farm_dirs) as handle:
            until_engines(farm, 3)
            assert sorted(row.node for row in engines(farm)) == ["node01", "node02", "node02"]
            states = ssh.status(handle)
            assert {name: status.state for name, status in states.items()} == {"ssh-1.0": "running", "ssh-1.1": "running"}
            ids = squares(tc, 200)
            tc.barrier(ids, timeout=60)
            assert [tc.get_task_result(i)["x"] for i in ids[:4]] == [0, 1, 4, 9]
        eventually(lambda: ssh.status(handle)["ssh-1.0"].state == "ended", DEADLINE_S)
        assert engines(farm) == []
