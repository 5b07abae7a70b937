"""Agents by ssh, really: two hosts, which are this machine behind a private sshd, and a farm that only ssh leads to."""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from ipytaskfarm import Farm, StringTask, TaskClient
from ipytaskfarm.core.errors import LauncherError
from ipytaskfarm.launchers.interface import AgentSpec, Handle
from ipytaskfarm.launchers.ssh import launcher as ssh_module
from ipytaskfarm.launchers.ssh.launcher import Ssh
from ipytaskfarm.settings.checks import Agents
from ipytaskfarm.system.farm_paths import process_started, read_connection_file
from tests.conftest import Dirs
from tests.support import sshd
from tests.support.farms import DEADLINE_S, Gate, engines, enrolled, outcomes, until_engines, until_running
from tests.support.polling import eventually
from tests.support.sshd import Sshd
from tests.support.thorough import by_hand

pytestmark = [pytest.mark.farm, pytest.mark.slow, pytest.mark.skipif(bool(sshd.missing()), reason=sshd.missing())]


@pytest.fixture
def server(farm_dirs: Dirs) -> Iterator[Sshd]:
    """Provide an sshd for sessions in the test's world."""
    with sshd.running(farm_dirs.root / "sshd", farm_dirs.environment()) as server:
        yield server


def launcher(server: Sshd, folder: Path, hosts: str = "node01:1,node02:2", **options: str) -> Ssh:
    return Ssh({"hosts": hosts, "config": str(server.config), "folder": str(folder), **options})


@contextmanager
def placed(farm: Farm, ssh: Ssh, dirs: Dirs, **settings: Any) -> Iterator[Handle]:
    """Provide running agents; end them after the test in any case."""
    seats = enrolled(farm, ssh.names("ssh-1", None))
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
    return process_started(process["pid"]) == float(process["started"])


def own_address() -> str:
    """Return an address of this machine other than loopback, found by a datagram socket that sends nothing."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            pytest.skip("this machine has no address but loopback")
        return str(probe.getsockname()[0])


def squares(tc: TaskClient, count: int, **rules: Any) -> list[int]:
    return [tc.run(StringTask(f"x = {n} ** 2", pull="x", **rules)) for n in range(count)]


def tended(ssh: Ssh, handle: Handle) -> None:
    """Tend the agents as the supervisor does, with a handle that went through JSON; update the given handle."""
    handle.update(ssh.tend(json.loads(json.dumps(handle))))


def test_agents_on_two_hosts_work_and_leave_nothing(farm_dirs: Dirs, server: Sshd) -> None:
    ssh = launcher(server, farm_dirs.root / "far")
    with Farm(n=0) as farm, farm.task_client() as tc:
        with placed(farm, ssh, farm_dirs) as handle:
            until_engines(farm, 3)
            assert sorted(row.node for row in engines(farm)) == ["node01", "node02", "node02"]
            states = ssh.status(handle)
            assert {name: found.state for name, found in states.items()} == {"ssh-1.0": "running", "ssh-1.1": "running"}
            ids = squares(tc, 200)
            tc.barrier(ids, timeout=60)
            assert [tc.get_task_result(i)["x"] for i in ids[:4]] == [0, 1, 4, 9]
            unread_secrets(handle, farm_dirs)
        eventually(lambda: ssh.status(handle)["ssh-1.0"].state == "ended", DEADLINE_S)
        assert engines(farm) == []
        eventually(lambda: not server.sessions(), DEADLINE_S, what="nobody is logged in")


def unread_secrets(handle: Handle, dirs: Dirs) -> None:
    """Assert that the agents' keys are in no command line or environment variable of any process, and only in private
    files.
    """
    infos = [read_connection_file(Path(agent["connection_file"])) for agent in handle["agents"].values()]
    assert len({info.secret_key for info in infos}) == 2
    for secret in [info.secret_key.encode() for info in infos]:
        assert secret.decode() not in json.dumps(handle)
        for process in Path("/proc").glob("[0-9]*"):
            for name in ("cmdline", "environ"):
                try:
                    assert secret not in (process / name).read_bytes(), (process / "comm").read_text()
                except OSError:
                    continue
        holders = [path for path in (dirs.root / "far").rglob("*") if path.is_file() and secret in path.read_bytes()]
        assert [path.name for path in holders] == ["connection.json"]
        (path,) = holders
        assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o600, 0o700)


def test_a_broken_tunnel_is_made_anew_while_tasks_go_on(farm_dirs: Dirs, server: Sshd) -> None:
    ssh = launcher(server, farm_dirs.root / "far", "node01:2")
    with Farm(n=0) as farm, farm.task_client() as tc, placed(farm, ssh, farm_dirs) as handle:
        until_engines(farm, 2)
        before = {row.engine for row in engines(farm)}
        gate = Gate(farm_dirs.work / "gate")
        held = tc.run(StringTask(gate.code))
        ids = squares(tc, 500)
        tunnel = dict(handle["agents"]["ssh-1.0"]["tunnel"])
        os.kill(tunnel["pid"], signal.SIGKILL)
        eventually(lambda: not lives(tunnel), DEADLINE_S)
        ids += squares(tc, 500)
        gate.open()
        tended(ssh, handle)
        assert handle["agents"]["ssh-1.0"]["tunnel"]["pid"] != tunnel["pid"]
        tc.barrier([held, *ids], timeout=60)
        assert outcomes(tc, [held, *ids]) == {"succeeded"}
        assert {row.engine for row in engines(farm)} == before


def test_an_agent_that_was_killed_is_started_again(farm_dirs: Dirs, server: Sshd) -> None:
    """Of the killed agent's runs, only the one that its engine was running is charged: it has no retries, and fails."""
    ssh = launcher(server, farm_dirs.root / "far", "node01:1,node02:1")
    with Farm(n=0) as farm, farm.task_client() as tc, placed(farm, ssh, farm_dirs) as handle:
        until_engines(farm, 2)
        gate = Gate(farm_dirs.work / "gate")
        held = {node: tc.run(StringTask(gate.code, requires={"node": node})) for node in ("node01", "node02")}
        for task_id in held.values():
            until_running(tc, task_id)
        ids = squares(tc, 300)
        tc.flush()
        killed = handle["agents"]["ssh-1.0"]
        os.kill(killed["pid"], signal.SIGKILL)
        eventually(lambda: ssh.status(handle)["ssh-1.0"].state == "waiting", DEADLINE_S)
        assert "killed by SIGKILL" in ssh.status(handle)["ssh-1.0"].why
        tended(ssh, handle)
        assert handle["agents"]["ssh-1.0"]["pid"] != killed["pid"]
        assert handle["agents"]["ssh-1.1"]["restarts"] == []
        until_engines(farm, 2)
        gate.open()
        tc.barrier([*held.values(), *ids], timeout=60)
        assert outcomes(tc, [held["node02"], *ids]) == {"succeeded"}
        assert tc.get_task_result(held["node01"]).reason == "engine lost"


@by_hand
def test_one_that_was_cancelled_or_crashes_each_time_is_left(
    farm_dirs: Dirs, server: Sshd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ssh_module, "LOOK_S", 0.0)
    ssh = launcher(server, farm_dirs.root / "far", "node01:1,node02:1")
    with Farm(n=0) as farm, placed(farm, ssh, farm_dirs) as handle:
        until_engines(farm, 2)
        ssh.cancel(handle, ["ssh-1.0"])
        eventually(lambda: ssh.status(handle)["ssh-1.0"].state == "ended", DEADLINE_S)
        until_engines(farm, 1)
        for _ in range(ssh_module.RESTARTS + 1):
            agent = handle["agents"]["ssh-1.1"]
            os.kill(agent["pid"], signal.SIGKILL)
            eventually(lambda agent=agent: not lives(agent), DEADLINE_S)  # type: ignore[misc]
            tended(ssh, handle)
        assert {found.state for found in ssh.status(handle).values()} == {"ended"}
        assert handle["agents"]["ssh-1.0"]["over"]
        assert len(handle["agents"]["ssh-1.1"]["restarts"]) == ssh_module.RESTARTS


def test_a_controller_that_is_reached_needs_no_tunnel(farm_dirs: Dirs, server: Sshd) -> None:
    with Farm(n=0, host=own_address()) as farm:
        ssh = launcher(server, farm_dirs.root / "far", "node01:1")
        with placed(farm, ssh, farm_dirs) as handle:
            until_engines(farm, 1)
            assert handle["agents"]["ssh-1.0"]["tunnel"] is None


def test_tunnel_no_is_refused_where_only_loopback_is_listened_on(farm_dirs: Dirs, server: Sshd) -> None:
    ssh = launcher(server, farm_dirs.root / "far", "node01:1", tunnel="no")
    with Farm(n=0) as farm, pytest.raises(LauncherError, match="start --host"), placed(farm, ssh, farm_dirs):
        pass
    assert not list(farm_dirs.root.glob("far/*"))


def test_what_is_wrong_is_said_with_a_remedy_and_nothing_stays(farm_dirs: Dirs, server: Sshd) -> None:
    far = farm_dirs.root / "far"
    with Farm(n=0) as farm:
        # One host is well, the other is unknown: neither has an agent afterwards.
        ssh = launcher(server, far, "node01:1,nowhere.invalid:1")
        with (
            pytest.raises(LauncherError, match=r"(?s)nowhere\.invalid.*Try: ssh -F .* nowhere\.invalid true") as caught,
            placed(farm, ssh, farm_dirs),
        ):
            pass
        assert "node01" not in str(caught.value)
        eventually(lambda: not list(far.glob("*")), DEADLINE_S)
        ssh = launcher(server, far, "node01:1", python="/nowhere/python")
        with pytest.raises(LauncherError, match=r"no such Python.*python=PATH"), placed(farm, ssh, farm_dirs):
            pass
        bare = farm_dirs.work / "python"
        bare.write_text(f'#!/bin/sh\nunset PYTHONPATH\nexec {os.path.realpath("/usr/bin/python3")} -S "$@"\n')
        bare.chmod(0o755)
        ssh = launcher(server, far, "node01:1", python=str(bare))
        with (
            pytest.raises(LauncherError, match=r"lacks ipytaskfarm.*install ipytaskfarm=="),
            placed(farm, ssh, farm_dirs),
        ):
            pass
        (server.folder / "authorized").write_text("")
        ssh = launcher(server, far, "node01:1")
        denied = r"cannot log in to node01.*Permission denied.*Try: ssh"
        with pytest.raises(LauncherError, match=denied), placed(farm, ssh, farm_dirs):
            pass


def test_a_farm_brings_its_own_agents_and_takes_them_along(farm_dirs: Dirs, server: Sshd) -> None:
    options = {"hosts": "node01:1,node02:1", "config": str(server.config), "folder": str(farm_dirs.root / "far")}
    with Farm(agents=Agents("ssh", options=options)) as farm, farm.task_client() as tc:
        until_engines(farm, 2)
        ids = squares(tc, 100, retries=1)  # one of them may be running when its agent is killed
        (agent,) = (psutil.Process(p) for p in agent_pids(farm_dirs, "ssh-1.0"))
        agent.kill()
        ids += squares(tc, 100)
        tc.barrier(ids, timeout=60)
        assert outcomes(tc, ids) == {"succeeded"}
        until_engines(farm, 2)
        assert agent.pid not in agent_pids(farm_dirs, "ssh-1.0")
    eventually(lambda: not list(farm_dirs.root.glob("far/*")) and not server.sessions(), DEADLINE_S)


def agent_pids(dirs: Dirs, name: str) -> list[int]:
    return [int(path.read_text()) for path in (dirs.root / "far").glob(f"*-{name}/pid")]
