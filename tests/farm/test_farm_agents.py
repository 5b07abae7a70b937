"""Groups of agents on a real farm: placed by another package's launcher, lost, sent away, as many as are needed."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil
import pytest

from ipytaskfarm import Agents, Farm, Task, TaskClient, errors
from ipytaskfarm.deployment import agent_groups
from ipytaskfarm.deployment.agent_groups import read_groups
from ipytaskfarm.deployment.home import Home
from ipytaskfarm.transport.keys import load_keys
from tests.conftest import Dirs, assert_nothing_left, isolated
from tests.support.farms import DEADLINE_S, Gate, engines, farm_state, outcomes, until_engines, until_running
from tests.support.launcher_world import Hands, install
from tests.support.polling import eventually

pytestmark = [pytest.mark.farm, pytest.mark.slow]

PROJECT = Path(__file__).parents[2]


@pytest.fixture
def dirs() -> Iterator[Dirs]:
    with isolated("itf-") as dirs:
        yield dirs
        assert_nothing_left(dirs)


@pytest.fixture
def queue(dirs: Dirs, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Provide the folder of the launcher ``hands``, which is installed; afterwards none of its agents is left."""
    folder, site = dirs.work / "queue", dirs.work / "site"
    folder.mkdir()
    site.mkdir()
    install(site)
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(site), str(PROJECT)]))
    yield folder
    hands = Hands({"folder": str(folder)})
    names = [path.stem for path in folder.glob("*.pid")]
    eventually(lambda: not any(hands.pid(name) for name in names), DEADLINE_S, what="no agent is left")


def hands(queue: Path, count: int | None = None, **what: Any) -> Agents:
    return Agents("hands", count, **{"engines": 1, "leave": 5.0, **what}, options={"folder": str(queue)})


@contextmanager
def farm_of(agents: Agents, **settings: Any) -> Iterator[tuple[Farm, TaskClient]]:
    with Farm(agents=agents, **settings) as farm, farm.task_client() as tc:
        yield farm, tc


def nodes(farm: Farm) -> list[str]:
    return sorted(row.node for row in engines(farm))


def placed(farm: Farm) -> list[str]:
    return [name for group in read_groups(farm._home) for name in group.names]


def test_agents_bring_engines_and_leave_nothing(queue: Path) -> None:
    with farm_of(hands(queue, 2, engines=2), n=1) as (farm, tc):
        until_engines(farm, 5)
        assert {row["name"] for row in farm_state(farm).agents if row["brings"]} == {"hands-1.0", "hands-1.1"}
        assert sum(tc.map(lambda x: x, range(200))) == sum(range(200))
        folder = farm._home.folder
        keys = load_keys(folder)
        assert keys is not None
        assert set(keys.agents) == {"hands-1.0", "hands-1.1"}
    assert not folder.exists()


def test_agents_that_cannot_be_recorded_are_ended(
    queue: Path, farm_dirs: Dirs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody would find them again: neither `remove_agents` nor the farm's end."""

    def full(home: Home, groups: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with Farm(n=0, name="full") as farm:
        monkeypatch.setattr(agent_groups, "_write_groups", full)
        with pytest.raises(OSError, match="No space left"):
            farm.add_agents(hands(queue, 1))
        monkeypatch.undo()
        names = [path.stem for path in queue.glob("*.pid")]
        eventually(lambda: not any(Hands({"folder": str(queue)}).pid(each) for each in names), DEADLINE_S)
        keys = load_keys(farm._home.folder)
        assert keys is not None
        assert not keys.agents


def test_more_are_added_and_sent_away(queue: Path, tmp_path: Path) -> None:
    gate = Gate(tmp_path / "gate")
    with farm_of(hands(queue, 1)) as (farm, tc):
        assert farm.add_agents(hands(queue, 1, engines=2)) == "hands-2"
        until_engines(farm, 3)
        ids = [tc.run(Task(gate.code, retries=0)) for _ in range(3)]
        for task_id in ids:
            until_running(tc, task_id)
        gate.open()
        farm.remove_agents("hands-1")
        assert outcomes(tc, ids) <= {"succeeded", "running"}
        tc.barrier(ids, timeout=DEADLINE_S)
        assert outcomes(tc, ids) == {"succeeded"}
        assert nodes(farm) == ["hands-2.0", "hands-2.0"]
        assert [group.name for group in read_groups(farm._home)] == ["hands-2"]
        with pytest.raises(ValueError, match="there is no agent and no group 'hands-1'"):
            farm.remove_agents("hands-1")


def test_a_dead_agents_work_is_done_elsewhere_long_before_its_lease(queue: Path, tmp_path: Path) -> None:
    gate = Gate(tmp_path / "gate")
    with farm_of(hands(queue, 2)) as (farm, tc):
        until_engines(farm, 2)
        ids = [tc.run(Task(gate.code, retries=1)) for _ in range(2)]
        for task_id in ids:
            until_running(tc, task_id)
        pid = Hands({"folder": str(queue)}).pid("hands-1.0")
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        eventually(lambda: nodes(farm) == ["hands-1.1"], DEADLINE_S, what="it is given up")
        why = "its process"  # the controller sees by itself that it has ended, or its launcher says so
        eventually(lambda: any(why in line for line in farm_state(farm).losses), DEADLINE_S, what=why)
        gate.open()
        tc.barrier(ids, timeout=DEADLINE_S)
        assert outcomes(tc, ids) == {"succeeded"}
        eventually(lambda: placed(farm) == ["hands-1.1"], DEADLINE_S, what="its key and its place are gone")
        keys = load_keys(farm._home.folder)
        assert keys is not None
        assert set(keys.agents) == {"hands-1.1"}


def test_a_signal_to_a_whole_job_lets_what_runs_finish(queue: Path, tmp_path: Path) -> None:
    """The signal is sent like scancel's: to the agent, the zygote, the engines and the processes that they started."""
    gate = Gate(tmp_path / "gate")
    with farm_of(hands(queue, 2, leave=20.0)) as (farm, tc):
        until_engines(farm, 2)
        ids = [tc.run(Task(gate.code, retries=0)) for _ in range(2)]
        for task_id in ids:
            until_running(tc, task_id)
        pid = Hands({"folder": str(queue)}).pid("hands-1.0")
        assert pid is not None
        agent = psutil.Process(pid)
        for process in [agent, *agent.children(recursive=True)]:
            process.send_signal(signal.SIGTERM)
        eventually(lambda: "leaving" in [r["state"] for r in farm_state(farm).agents], DEADLINE_S)
        gate.open()
        tc.barrier(ids, timeout=DEADLINE_S)
        assert outcomes(tc, ids) == {"succeeded"}
        eventually(lambda: nodes(farm) == ["hands-1.1"], DEADLINE_S, what="the agent has ended")
        assert not [line for line in farm_state(farm).losses if "signal" in line]


def test_what_a_task_starts_there_ends_by_sigterm_as_ever(queue: Path) -> None:
    code = """
import multiprocessing, subprocess, time
child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
child.start()
child.terminate()
child.join(20)
program = subprocess.Popen(["sleep", "60"])
program.terminate()
codes = child.exitcode, program.wait(20)
"""
    with farm_of(hands(queue, 1)) as (_, tc):
        assert tc.run(Task(code, pull="codes"), block=True).ns.codes == (-signal.SIGTERM, -signal.SIGTERM)


def test_what_waits_in_a_queue_goes_with_the_farm(queue: Path) -> None:
    (queue / "closed").touch()
    # On a busy machine its own engine may need longer, too.
    with pytest.warns(UserWarning, match="[23] of 3 engines of .* have not come up"):
        waiting = Farm(n=1, agents=hands(queue, 2), start_timeout=1.0)
    with waiting as farm, farm.task_client() as tc:
        assert tc.run(Task("a = 7", pull="a"), block=True).ns.a == 7
        eventually(lambda: len(list(queue.glob("*.job"))) == 2, DEADLINE_S, what="two wait")
        assert nodes(farm) == [farm_state(farm).agents[0]["node"]]
    assert not list(queue.glob("*.job"))


def test_agents_come_with_the_work_and_go_when_idle(queue: Path, tmp_path: Path) -> None:
    first, second = Gate(tmp_path / "first"), Gate(tmp_path / "second")
    with farm_of(hands(queue, min=0, max=2, idle=1.0)) as (farm, tc):
        assert not read_groups(farm._home)
        stays = tc.run(Task(first.code))
        until_running(tc, stays)
        goes = tc.run(Task(second.code))
        until_running(tc, goes)
        second.open()
        tc.barrier([goes], timeout=DEADLINE_S)
        eventually(lambda: len(engines(farm)) == 1, DEADLINE_S, what="the idle one is sent away")
        assert engines(farm)[0].id == tc.status(stays).engineid, "never one where something runs"
        first.open()
        tc.barrier([stays], timeout=DEADLINE_S)
        assert outcomes(tc, [stays, goes]) == {"succeeded"}
        eventually(lambda: not read_groups(farm._home), DEADLINE_S, what="none is left")
        assert tc.run(Task("a = 8", pull="a"), block=True).ns.a == 8


def test_engines_of_this_machine_follow_the_work(dirs: Dirs, tmp_path: Path) -> None:
    gate = Gate(tmp_path / "gate")
    with Farm(min=0, max=2, idle=1.0) as farm, farm.task_client() as tc:
        assert engines(farm) == []
        ids = [tc.run(Task(gate.code)) for _ in range(5)]
        until_engines(farm, 2)
        gate.open()
        tc.barrier(ids, timeout=DEADLINE_S)
        assert outcomes(tc, ids) == {"succeeded"}
        until_engines(farm, 0)
        assert tc.run(Task("a = 9", pull="a"), block=True).ns.a == 9


def test_a_system_that_refuses_says_why_and_nothing_is_left(queue: Path) -> None:
    with pytest.raises(errors.LauncherError, match="the queue is closed for the night; try again tomorrow"):
        Farm(agents=Agents("refusing", 1, options={"folder": str(queue)}))
    with pytest.raises(ValueError, match=r"there is no launcher 'nonsense': there are .*hands.*slurm"):
        Farm(agents="nonsense:2")
    with pytest.raises(ValueError, match="hands has no option 'partition'"):
        Farm(agents=Agents("hands", 1, options={"partition": "x"}))
    with Farm(n=1) as farm:
        with pytest.raises(errors.LauncherError, match="try again tomorrow"):
            farm.add_agents(Agents("refusing", 1, options={"folder": str(queue)}))
        keys = load_keys(farm._home.folder)
        assert keys is not None
        assert not keys.agents
        assert not read_groups(farm._home)


def command(*words: str) -> str:
    ended = subprocess.run(
        [sys.executable, "-m", "ipytaskfarm", *words], capture_output=True, text=True, check=False, timeout=60
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_the_next_supervisor_finds_the_agents(queue: Path, dirs: Dirs) -> None:
    """The supervisor is killed; its successor adopts the living agents and places no new ones."""
    farm = ("--farm", "placed")
    place = ("--agents", "hands:2", "--agent-engines", "1", "--agent-option", f"folder={queue}")
    command("start", *farm, *place, "--daemonize")
    home = Home.of("placed")
    try:
        (supervisor,) = [r["pid"] for r in home.read_processes() if r["kind"] == "supervisor"]
        os.kill(supervisor, signal.SIGKILL)
        eventually(lambda: not home.is_supervised(), DEADLINE_S)
        command("start", *farm, *place, "--daemonize")
        assert home.is_supervised()
        listed = json.loads(command("agents", *farm, "list", "--json"))
        assert [group["agents"] for group in listed["groups"]] == [["hands-1.0", "hands-1.1"]]
        assert datetime.fromisoformat(listed["groups"][0]["submitted_at"]).utcoffset() is not None
        assert {row["name"]: row["state"] for row in listed["agents"] if row["name"]} == {
            "hands-1.0": "up",
            "hands-1.1": "up",
        }
        assert "hands-1.0 -P -m ipytaskfarm.agent" not in command("agents", *farm, "list")
        assert "--name hands-2.0" in command(
            "agents", *farm, "add", "hands", "1", "--option", f"folder={queue}", "--dry-run"
        )
        added = json.loads(command("agents", *farm, "add", "hands", "1", "--option", f"folder={queue}", "--json"))
        assert added["agents"] == ["hands-2.0"]
        removed = json.loads(command("agents", *farm, "remove", "hands-2", "--json"))
        assert removed == {"agents": ["hands-2.0"]}
        assert "2 agents removed" in command("agents", *farm, "remove", "hands-1")
    finally:
        command("stop", *farm)
