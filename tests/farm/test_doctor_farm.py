"""The doctor at real farms: all is well; and what each thing that is wrong with a farm looks like."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import signal
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest

from ipytaskfarm import Farm
from ipytaskfarm.cli import main
from ipytaskfarm.core import messages
from ipytaskfarm.core.messages.tables import FarmState
from ipytaskfarm.deployment.agent_groups import AgentGroup
from ipytaskfarm.deployment.enrolment import connection_info, enrol, revoke, write_copy
from ipytaskfarm.deployment.home import Home
from ipytaskfarm.doctor import Finding, Level, farm, rounds
from ipytaskfarm.doctor.rounds import trial
from ipytaskfarm.launchers.interface import AgentStatus
from ipytaskfarm.settings.checks import Agents
from ipytaskfarm.system.jupyter_extension import JupyterFiles, this_environment
from ipytaskfarm.version import __version__
from tests.conftest import Dirs
from tests.farm.test_farm import background_farm, pid_of
from tests.support.farms import DEADLINE_S, ask, until_engines
from tests.support.polling import eventually
from tests.support.slurm import slurm_cluster
from tests.unit.test_doctor import told, wrongs

NAME = "patient"
PYTHON = platform.python_version()


@pytest.fixture(scope="module")
def farm_here(dirs: Dirs) -> Iterator[Farm]:
    """A farm of two engines, with a name."""
    with Farm(n=2, name=NAME, port=0) as running:
        yield running


@pytest.fixture
def home(farm_here: Farm) -> Home:
    return Home.of(NAME)


@pytest.fixture
def state(farm_here: Farm) -> FarmState:
    reply = ask(farm_here, messages.FarmStatus())
    assert isinstance(reply, FarmState)
    return reply


@pytest.fixture
def no_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide the batch systems that this machine may have."""
    monkeypatch.setenv("PATH", str(tmp_path))


def test_a_supervisor_that_is_stopped(farm_dirs: Dirs) -> None:
    with background_farm("-n", "0", farm="halted") as home:
        assert farm.supervisor(home) is None
        pid = pid_of(home, "supervisor")
        os.kill(pid, signal.SIGSTOP)
        try:
            found = eventually(lambda: farm.supervisor(home), DEADLINE_S)
            assert found is not None
            told(found, Level.WRONG, f"process {pid} is stopped", f"kill -CONT {pid}")
            assert found in list(rounds.of_farm(home, 1))
        finally:
            os.kill(pid, signal.SIGCONT)
        eventually(lambda: farm.supervisor(home) is None, DEADLINE_S)


@pytest.fixture(autouse=True)
def extensions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let Jupyter find the extensions as after the installation of a wheel: that of the tests is editable."""
    state = dataclasses.replace(this_environment().state(), server="enabled", lab="enabled", lab_version=__version__)
    monkeypatch.setattr(JupyterFiles, "state", lambda self: state)


def troubles(home: Home) -> dict[str, Finding]:
    return wrongs(rounds.of_farm(home, None))


# ------------------------------------------------------------------------------------------------ all is well


def test_a_farm_that_is_well(home: Home, no_commands: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--farm", NAME]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert all(line.startswith("ok ") for line in shown), shown
    assert any("handshake: ipytaskfarm" in line and "lets us in as client" in line for line in shown)
    assert any("engines: 2 of 2 are ready" in line for line in shown)
    assert any(f"agents: {socket.gethostname()}: reachable" in line for line in shown)


def test_for_programs(home: Home, no_commands: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--farm", NAME, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {tuple(entry) for entry in found} == {("check", "level", "found", "remedy")}
    assert {entry["level"] for entry in found} == {"ok"}


def test_a_temporary_farm_that_is_well(dirs: Dirs, no_commands: None) -> None:
    with Farm(n=1) as temporary:
        assert not wrongs(rounds.of_farm(Home.of(temporary.name), None))


def test_the_exit_code_says_that_something_is_wrong(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    home.agent_file.chmod(0o644)
    try:
        assert main(["doctor", "--farm", NAME]) == 1
    finally:
        home.agent_file.chmod(0o600)
    lines = capsys.readouterr().out.splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith("wrong "))
    assert f"others can use {home.agent_file}" in lines[at]
    assert lines[at + 1].split("do: ")[1] == f"chmod 600 {home.agent_file}"


def test_a_farm_is_tried(farm_dirs: Dirs, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--farm", "none", "--try", "-n", "1"]) == 0
    assert "a farm of one engine: ready after" in capsys.readouterr().out.splitlines()[-1]


def test_a_farm_that_does_not_start_is_told_of(farm_dirs: Dirs) -> None:
    farm_dirs.runtime.chmod(0o755)
    told(trial(), Level.WRONG, "runtime")


# ------------------------------------------------------------------------------------------------ another machine


def test_an_agents_file_opens_the_door_and_leaves_no_trace(
    home: Home, state: FarmState, dirs: Dirs, capsys: pytest.CaptureFixture[str]
) -> None:
    enrol(home, ["node7"])
    path = dirs.work / "node7.json"
    write_copy(connection_info(home, "agent:node7"), path)
    assert main(["doctor", "--agent-file", str(path)]) == 0
    shown = capsys.readouterr().out
    assert "lets us in as node7" in shown
    assert f"for agent 'node7' of farm '{NAME}'" in shown
    after = troubles(home)
    assert "agents" not in after
    revoke(home, ["node7"])
    assert main(["doctor", "--agent-file", str(path)]) == 1
    assert "does not know the key" in capsys.readouterr().out


# ------------------------------------------------------------------------------------------------ what is wrong


def test_a_farm_that_is_paused(home: Home, farm_here: Farm) -> None:
    ask(farm_here, messages.HoldFarm(True))
    try:
        told(troubles(home)["farm"], Level.WARNING, "is paused", f"ipytaskfarm resume --farm {NAME}")
    finally:
        ask(farm_here, messages.HoldFarm(False))


def test_an_agent_that_is_stopped(home: Home, farm_here: Farm, state: FarmState) -> None:
    (row,) = state.agents
    agent = psutil.Process(row["pid"])
    agent.suspend()
    try:
        found = eventually(lambda: troubles(home).get("agents"), DEADLINE_S, every_s=0.5, what="it is not heard")
    finally:
        agent.resume()
    assert found is not None
    told(found, Level.WARNING, "is not heard", "doctor --agent-file")
    until_engines(farm_here, 2)


def test_a_controller_that_is_stopped(home: Home, state: FarmState, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(farm, "ANSWER_S", 0.5)
    os.kill(state.pid, signal.SIGSTOP)
    try:
        found, nothing = farm.ask(home)
    finally:
        os.kill(state.pid, signal.SIGCONT)
    assert nothing is None
    told(found, Level.WRONG, "does not answer within 0.5 s", f"ipytaskfarm logs --farm {NAME}")


def test_a_farm_that_nobody_looks_after(home: Home) -> None:
    records = home.read_processes()
    home.write_processes([])
    try:
        told(troubles(home)["supervisor"], Level.WARNING, "no process supervises", f"ipytaskfarm start --farm {NAME}")
    finally:
        home.write_processes(records)


def test_a_clock_that_was_set(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = time.time
    monkeypatch.setattr(time, "time", lambda: now_s() + 7200)
    told(troubles(home)["clock"], Level.WARNING, "since the controller began")


def test_agents_say_their_clock(state: FarmState) -> None:
    (row,) = state.agents
    assert abs(row["clock_ahead"]) < DEADLINE_S


def changed(state: FarmState, changes: dict[str, Any]) -> FarmState:
    return msgspec.structs.replace(state, agents=[{**row, **changes} for row in state.agents])


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"python": "3.99.1"}, ("has Python 3.99.1", PYTHON, "--python PATH")),
        ({"clock_ahead": -70.0}, ("-70 s off", "chrony")),
        ({"free_disk": 1 << 20}, ("1 MiB left", "make room")),
        ({"state": "set aside"}, ("gets no tasks: set aside", "explain")),
        ({"state": "drained"}, ("gets no tasks: drained", "--off")),
        ({"guard": "its load is 99 %"}, ("gets no tasks now: its load is 99 %", "guard")),
    ],
)
def test_agents_with_something(state: FarmState, changes: dict[str, Any], parts: tuple[str, ...]) -> None:
    (found,) = farm.agents(changed(state, changes), PYTHON)
    told(found, Level.WARNING, *parts)


def test_agents_with_nothing(state: FarmState) -> None:
    (found,) = farm.agents(state, PYTHON)
    told(found, Level.OK, socket.gethostname())
    (found,) = farm.agents(msgspec.structs.replace(state, agents=[]), PYTHON)
    told(found, Level.WARNING, "there is none", "logs agent")


def test_engines_that_do_not_come(state: FarmState) -> None:
    told(farm.engines(msgspec.structs.replace(state, engines=[])), Level.WARNING, "none of 2", "doctor --try")
    lost = ["engine 0 did not start: exit code 1\nTraceback\n  a line\nFileNotFoundError: /nowhere"]
    found = farm.engines(msgspec.structs.replace(state, engines=[], losses=lost))
    told(found, Level.WARNING, "did not start: exit code 1 … FileNotFoundError: /nowhere")
    noted = [msgspec.structs.replace(row, note="the start-up code raised NameError") for row in state.engines]
    found = farm.engines(msgspec.structs.replace(state, engines=noted))
    told(found, Level.WARNING, "NameError", "ipytaskfarm logs engine")


def test_another_version_of_the_controller(home: Home) -> None:
    info = home.read_info()
    assert farm.version(info) is None
    other = farm.version(msgspec.structs.replace(info, version="0.0.7"))
    assert other is not None
    told(other, Level.WARNING, "0.0.7", "install the same version")


def test_a_controller_short_of_files(state: FarmState) -> None:
    assert farm.controller_files(state.pid) is None
    controller = psutil.Process(state.pid)
    before = controller.rlimit(psutil.RLIMIT_NOFILE)
    controller.rlimit(psutil.RLIMIT_NOFILE, (controller.num_fds() + 1, before[1]))
    try:
        found = farm.controller_files(state.pid)
    finally:
        controller.rlimit(psutil.RLIMIT_NOFILE, before)
    assert found is not None
    told(found, Level.WRONG, "files that it may have", "ulimit -n")


# ------------------------------------------------------------------------------------------------ groups


GROUP = AgentGroup(name="slurm-1", agents=Agents("slurm", 1), names=("slurm-1.0",), handle={}, submitted_s=0.0)


@pytest.mark.parametrize(
    ("status", "level", "parts"),
    [
        (AgentStatus("waiting", "", "Resources"), Level.OK, ("slurm-1.0 waits: Resources",)),
        (AgentStatus("ended", "n1", "failed: exit code 127"), Level.WRONG, ("code 127", "slurm-1.0.out", "remove")),
        (AgentStatus("running", "n1"), Level.WRONG, ("on n1", "does not hear it", "--agent-file", "slurm-1.0.json")),
        (None, Level.WARNING, ("slurm does not answer",)),
    ],
)  # fmt: skip
def test_agents_that_have_not_come(
    home: Home, state: FarmState, status: AgentStatus | None, level: Level, parts: tuple[str, ...]
) -> None:
    statuses = {} if status is None else {"slurm-1.0": status}
    (found,) = farm.groups(home, [GROUP], statuses, state)
    told(found, level, *parts)


@pytest.mark.parametrize(
    ("launcher", "place"),
    [
        ("ssh", "patient-*-g.0/connection.json"),
        ("dask", "keep-g.0/connection.json"),
        ("pbs", "logs/g.0.out"),
        ("cloud", "the logs of cloud"),
    ],
)
def test_where_agents_leave_their_files(home: Home, state: FarmState, launcher: str, place: str) -> None:
    group = AgentGroup(name="g", agents=Agents(launcher), names=("g.0",), handle={}, submitted_s=0.0)
    (found,) = farm.groups(home, [group], {"g.0": AgentStatus("running")}, state)
    told(found, Level.WRONG, place)


def test_agents_elsewhere_of_a_farm_that_listens_here_alone(home: Home, state: FarmState) -> None:
    info = home.read_info()
    told(farm.listening(info, [], state), Level.OK, "this machine alone")
    told(farm.listening(info, [GROUP], state), Level.WARNING, "agents were asked of slurm", "--host ADDRESS")
    open_to_all = msgspec.structs.replace(info, location="192.0.2.7")
    told(farm.listening(open_to_all, [GROUP], state), Level.OK, "192.0.2.7")
    come = changed(state, {"name": "slurm-1.0"})
    told(farm.listening(info, [GROUP], come), Level.OK)


@pytest.mark.slow
@pytest.mark.farm
def test_agents_of_a_real_slurm_and_the_view_from_a_node(farm_dirs: Dirs) -> None:
    with slurm_cluster() as cluster, Farm(n=0, name="onslurm", port=0, agents=Agents("slurm", 2, engines=1)) as running:
        until_engines(running, 2)
        home = Home.of("onslurm")
        found = list(rounds.of_farm(home, None))
        assert not [each for each in found if each.level is not Level.OK], found
        assert any(each.check == "slurm" and "it answers" in each.found for each in found)
        assert any("slurm-1: all of 2 are here" in each.found for each in found)
        file = home.folder / "agents" / "slurm-1.0.json"
        words = ["-P", "-m", "ipytaskfarm", "doctor", "--agent-file", str(file)]
        shown = cluster.run("srun", "--overlap", "--nodes=1", sys.executable, *words)
        assert "lets us in as slurm-1.0" in shown
        assert "wrong" not in shown
        running.stop()
    assert not cluster.folder.exists()
