"""Agents on a Dask cluster, really: workers in processes of their own, with nannies."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from distributed import Client, LocalCluster

from ipytaskfarm import Farm, StringTask, TaskClient
from ipytaskfarm.core.errors import LauncherError
from ipytaskfarm.core.messages import RemoveAgents
from ipytaskfarm.deployment import agent_groups
from ipytaskfarm.deployment.enrolment import rotate
from ipytaskfarm.deployment.home import Home
from ipytaskfarm.launchers.dask import launcher as launcher_module
from ipytaskfarm.launchers.interface import AgentSpec, AgentStatus, Handle
from ipytaskfarm.settings.checks import Agents
from ipytaskfarm.system.farm_paths import read_connection_file
from tests.conftest import Dirs
from tests.support.farms import DEADLINE_S, Gate, ask, engines, enrolled, outcomes, until_engines, until_running
from tests.support.polling import eventually
from tests.support.thorough import by_hand

pytestmark = [pytest.mark.farm, pytest.mark.slow]


@pytest.fixture(autouse=True)
def environment() -> Iterator[None]:
    """Restore the variables (OMP_NUM_THREADS …) that nannies set in the process that starts them."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


def address(client: Client) -> str:
    return str(client.scheduler_info()["address"])


@contextmanager
def cluster(dirs: Dirs, workers: int = 2) -> Iterator[Client]:
    with (
        LocalCluster(
            n_workers=workers, threads_per_worker=1, processes=True, host="127.0.0.1", dashboard_address="127.0.0.1:0",
            local_directory=str(dirs.work), memory_limit=0,
        ) as made,
        Client(made) as client,
    ):  # fmt: skip
        yield client


def launched(client: Client, farm: Farm, dirs: Dirs, **settings: Any) -> Handle:
    (seat,) = enrolled(farm, ["dask-1"])
    spec = AgentSpec(
        farm=farm.name,
        group="dask-1",
        cwd=dirs.work,
        logs=dirs.work,
        leave_s=5.0,
        engines=settings.pop("engines", None),
    )
    return launcher_module.launch(client, seat, spec, **settings)


def agent_processes() -> list[psutil.Process]:
    """Return the agents below Dask's workers."""
    return [child for worker in workers() for child in called("ipytaskfarm agent", worker.children(recursive=True))]


def workers() -> list[psutil.Process]:
    return called("dask worker", psutil.Process().children(recursive=True))


def called(title: str, processes: list[psutil.Process]) -> list[psutil.Process]:
    found = []
    for process in processes:
        try:
            if "".join(process.cmdline()[:1]).startswith(title):
                found.append(process)
        except (psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
    return found


def squares(tc: TaskClient, count: int) -> list[int]:
    return [tc.run(StringTask(f"x = {n} ** 2", pull="x")) for n in range(count)]


def test_a_killed_worker_costs_no_task_and_its_agent_is_back(farm_dirs: Dirs) -> None:
    with Farm(n=0) as farm, farm.task_client() as tc:
        with cluster(farm_dirs) as client:
            handle = launched(client, farm, farm_dirs, engines=2)
            until_engines(farm, 2)
            (agent,) = agent_processes()
            (worker,) = [each for each in workers() if agent in each.children(recursive=True)]
            gate = Gate(farm_dirs.work / "gate")
            # It has its time to end, for which the other worker waits; then it goes back and is run again.
            ids = [tc.run(StringTask(gate.code, retries=1)), *squares(tc, 500)]
            until_running(tc, ids[0])
            worker.kill()
            ids += squares(tc, 500)
            eventually(lambda: [found for found in agent_processes() if found.pid != agent.pid], DEADLINE_S)
            gate.open()
            tc.barrier(ids, timeout=60)
            assert outcomes(tc, ids) == {"succeeded"}
            assert not agent.is_running()
            until_engines(farm, 2)
            assert {row.node for row in engines(farm)} == {socket.gethostname()}
            unread_secret(handle)
        # Its engines are gone as soon as the cluster has closed.
        eventually(lambda: not engines(farm), DEADLINE_S)
        eventually(lambda: not list(farm_dirs.sockets.glob("**/keep-*")), DEADLINE_S)


def unread_secret(handle: Handle) -> None:
    """Assert that no command line and no environment variable contains the agents' key."""
    secret = read_connection_file(Path(handle["connection_file"])).secret_key
    assert secret not in json.dumps(handle)
    for process in Path("/proc").glob("[0-9]*"):
        for name in ("cmdline", "environ"):
            try:
                assert secret.encode() not in (process / name).read_bytes(), (process / "comm").read_text()
            except OSError:
                continue


@by_hand
def test_workers_of_one_machine_share_an_agent_that_grows_with_them(farm_dirs: Dirs) -> None:
    with Farm(n=0) as farm, cluster(farm_dirs, workers=1) as client:
        handle = launched(client, farm, farm_dirs, engines_per_worker=2)
        until_engines(farm, 2)
        assert client.cluster is not None
        client.cluster.scale(2)
        until_engines(farm, 4)
        assert len(agent_processes()) == 1
        running = AgentStatus("running", "127.0.0.1")
        eventually(lambda: launcher_module.look(client, handle)["dask-1"] == running, DEADLINE_S)


@by_hand
def test_cancelled_agents_end_and_the_workers_go_on(farm_dirs: Dirs) -> None:
    with Farm(n=0) as farm, cluster(farm_dirs) as client:
        handle = launched(client, farm, farm_dirs, engines=1)
        until_engines(farm, 1)
        (agent,) = agent_processes()
        launcher_module.end(client, handle)
        eventually(lambda: not agent.is_running(), DEADLINE_S)
        assert launcher_module.look(client, handle)["dask-1"].state == "ended"
        eventually(lambda: not list(farm_dirs.sockets.glob("**/keep-*")), DEADLINE_S)
        assert client.submit(lambda: 6 * 7).result(timeout=DEADLINE_S) == 42
        launcher_module.end(client, handle)  # nothing happens


@by_hand
def test_a_cluster_that_closes_waits_little_for_what_runs(farm_dirs: Dirs) -> None:
    with Farm(n=0) as farm, farm.task_client() as tc:
        gate = Gate(farm_dirs.work / "gate")
        with cluster(farm_dirs, workers=1) as client:
            launched(client, farm, farm_dirs, engines=1)
            until_engines(farm, 1)
            held = tc.run(StringTask(gate.code, retries=1))
            until_running(tc, held)
            (agent,) = agent_processes()
        eventually(lambda: not agent.is_running(), DEADLINE_S)
        eventually(lambda: tc.status(held).state == "scheduled", DEADLINE_S)
        gate.open()
        eventually(lambda: not list(farm_dirs.sockets.glob("**/keep-*")), DEADLINE_S)


@by_hand
def test_an_agent_that_crashes_is_started_again_by_its_worker_and_new_keys_are_passed_on(farm_dirs: Dirs) -> None:
    with Farm(n=0) as farm, cluster(farm_dirs, workers=1) as client:
        launcher = launcher_module.Dask.of_client(client)
        handle = launched(client, farm, farm_dirs, engines=1)
        until_engines(farm, 1)
        (agent,) = agent_processes()
        os.kill(agent.pid, signal.SIGKILL)
        eventually(lambda: [found for found in agent_processes() if found.pid != agent.pid], DEADLINE_S)
        until_engines(farm, 1)
        assert launcher.tend(handle) is handle
        rotate(farm._home, ["dask-1"])
        eventually(lambda: not engines(farm), DEADLINE_S)
        after = json.loads(json.dumps(launcher.tend(json.loads(json.dumps(handle)))))
        until_engines(farm, 1)
        assert {**after, "sent": ""} == {**handle, "sent": ""}
        assert after["sent"] != handle["sent"]


def test_a_farm_brings_its_own_agents_and_takes_them_along(farm_dirs: Dirs) -> None:
    with cluster(farm_dirs) as client:
        options = {"scheduler": address(client), "engines_per_worker": "1"}
        with Farm(agents=Agents("dask", options=options)) as farm, farm.task_client() as tc:
            until_engines(farm, 2)
            ids = squares(tc, 100)
            tc.barrier(ids, timeout=60)
            assert outcomes(tc, ids) == {"succeeded"}
        eventually(lambda: not agent_processes(), DEADLINE_S)
        assert len(workers()) == 2
        assert not client.run_on_scheduler(
            lambda dask_scheduler: [p for p in dask_scheduler.worker_plugins if "farm" in p]
        )


@by_hand
def test_agents_that_were_sent_away_have_ended_and_stay_so(farm_dirs: Dirs) -> None:
    with Farm(n=0) as farm, cluster(farm_dirs) as client:
        handle = launched(client, farm, farm_dirs, engines=1)
        until_engines(farm, 1)
        ask(farm, RemoveAgents(["dask-1"]))
        ended = AgentStatus("ended", "127.0.0.1", "ended as told")
        eventually(lambda: launcher_module.look(client, handle)["dask-1"] == ended, DEADLINE_S)
        before = workers()
        for worker in before:
            worker.kill()
        eventually(lambda: len(workers()) == 2 and not set(before) & set(workers()), DEADLINE_S)
        eventually(lambda: launcher_module.look(client, handle)["dask-1"] == ended, DEADLINE_S)
        assert not agent_processes()


@pytest.mark.parametrize(
    ("said", "status"),
    [
        (None, launcher_module.ENDED),
        ({}, ("waiting", "", "the cluster has no workers")),
        ({"a": [("", "")]}, ("waiting", "", "its workers have not said yet")),
        ({"a": [("", ""), ("running", "")], "b": [("ended", "x")]}, ("running", "a", "")),
        (
            {"a": [("ended", "x"), ("", "")], "b": [("waiting", "it is being started")]},
            ("waiting", "b", "it is being started"),
        ),
        ({"a": [("ended", "the controller refuses it")]}, ("ended", "a", "the controller refuses it")),
    ],
)
def test_how_all_do(said: Any, status: tuple[str, str, str]) -> None:
    assert launcher_module._status(said) == status


def test_a_worker_is_refused_that_cannot_reach_the_controller_or_has_another_version(farm_dirs: Dirs) -> None:
    with Farm(n=0) as farm, cluster(farm_dirs, workers=1) as client:
        with pytest.MonkeyPatch.context() as elsewhere:
            elsewhere.setattr(socket, "gethostname", lambda: "head")
            alone = r"controller listens on 127\.0\.0\.1, for this machine alone.*--host"
            with pytest.raises(LauncherError, match=alone):
                launched(client, farm, farm_dirs)
        with pytest.MonkeyPatch.context() as later:
            later.setattr(launcher_module, "__version__", "9.9")
            with pytest.raises(LauncherError, match=r"has 0\..*install ipytaskfarm==9\.9 where Dask's workers run"):
                launched(client, farm, farm_dirs)


def test_a_cluster_that_is_gone_has_ended(farm_dirs: Dirs, monkeypatch: pytest.MonkeyPatch) -> None:
    with cluster(farm_dirs, workers=1) as client:
        gone = address(client)
    monkeypatch.setattr(launcher_module, "ANSWER_S", 1.0)
    launcher = launcher_module.Dask({"scheduler": gone})
    handle = {"name": "dask-1", "plugin": "x"}
    status = launcher.status(handle)["dask-1"]
    assert status.state == "ended"
    assert f"no Dask scheduler answers at {gone}" in status.why
    launcher.cancel(handle)  # nothing happens


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({}, "the option scheduler is needed"),
        ({"scheduler": "tcp://h:1", "engines_per_worker": "0"}, "at least 1"),
        ({"scheduler": "tcp://h:1", "engines_per_worker": "two"}, "at least 1"),
    ],
)
def test_options_that_cannot_be(options: dict[str, str], error: str) -> None:
    with pytest.raises(ValueError, match=error):
        launcher_module.Dask(options)


def test_all_is_cleared_away_when_all_are_killed(farm_dirs: Dirs) -> None:
    code = (
        "import sys\n"
        "from distributed import LocalCluster\n"
        "if __name__ == '__main__':\n"
        "    with LocalCluster(n_workers=1, threads_per_worker=1, host='127.0.0.1', dashboard_address='127.0.0.1:0',\n"
        "                      local_directory=sys.argv[1], memory_limit=0) as cluster:\n"
        "        print(cluster.scheduler_address, flush=True)\n"
        "        sys.stdin.read()\n"
    )
    script = farm_dirs.work / "cluster.py"
    script.write_text(code)
    words = [sys.executable, str(script), str(farm_dirs.work)]
    with Farm(n=0) as farm, subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        with Client(other.stdout.readline().strip()) as client:
            launched(client, farm, farm_dirs, engines=1)
            until_engines(farm, 1)
        # The worker first: its nanny would end it in good order.
        victims = [*workers(), psutil.Process(other.pid)]
        for victim in victims:
            victim.suspend()
        for victim in victims:
            victim.kill()
        eventually(lambda: not engines(farm), DEADLINE_S)
        eventually(lambda: not list(farm_dirs.sockets.glob("**/keep-*")), DEADLINE_S)


def test_the_preview_is_in_words(farm_dirs: Dirs) -> None:
    home = Home.of("preview")
    text = agent_groups.preview(home, Agents("dask", options={"scheduler": "tcp://h:1", "engines_per_worker": "3"}))
    assert text.startswith(
        "register a worker plugin for dask-1 with Dask's scheduler tcp://h:1: one agent on each machine"
    )
    assert text.endswith("with 3 engines for each worker\n")
    assert "with as many engines as it has cores" in agent_groups.preview(
        home, Agents("dask", options={"scheduler": "tcp://h:1"})
    )


def test_one_agent_stands_for_all() -> None:
    launcher = launcher_module.Dask({"scheduler": "tcp://h:1"})
    assert launcher.names("dask-1", None) == launcher.names("dask-1", 1) == ["dask-1"]
    with pytest.raises(ValueError, match="3 agents were requested"):
        launcher.names("dask-1", 3)


def test_a_farm_beside_a_clusters_workers(farm_dirs: Dirs) -> None:
    """`Farm.from_dask`: engines for each worker, ready when it returns; stopped, it leaves the cluster as it was."""
    with cluster(farm_dirs) as client:
        with Farm.from_dask(client, engines_per_worker=2) as farm, farm.task_client() as tc:
            assert len(engines(farm)) == 4
            assert list(tc.map(abs, range(-50, 0))) == list(range(50, 0, -1))
        eventually(lambda: not agent_processes(), DEADLINE_S, what="no agent is left")
        assert client.submit(abs, -3).result(timeout=DEADLINE_S) == 3
