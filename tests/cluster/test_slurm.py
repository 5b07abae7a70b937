"""Test farms with an agent on each of the three nodes of a real Slurm (`tests.support.slurm`)."""

from __future__ import annotations

import contextlib
import sqlite3
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from ipytaskfarm import Farm, Task, TaskClient
from ipytaskfarm.deployment.agent_groups import read_groups
from ipytaskfarm.deployment.home import STORE_NAME
from ipytaskfarm.settings.checks import Agents
from ipytaskfarm.system import farm_paths
from ipytaskfarm.transport.keys import agent_file
from tests.conftest import Dirs
from tests.farm.test_farm import background_farm, command
from tests.support.farms import Gate, engines, farm_state, outcomes, until_engines, until_running
from tests.support.polling import DEADLINE_S, eventually
from tests.support.slurm import NODES, Cluster, slurm_cluster
from tests.support.thorough import by_hand

pytestmark = [pytest.mark.farm, pytest.mark.slow]

WHOLE_NODE = {"cpus": "2"}
TASKS = 1000
CODE = """
import os, time
ledger = os.open({ledger!r}, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
os.write(ledger, b"begin {number}\\n")
time.sleep(0.01)
os.write(ledger, b"end {number}\\n")
os.close(ledger)
a, node = {number}, os.environ["SLURMD_NODENAME"]
"""


@pytest.fixture
def slurm() -> Iterator[Cluster]:
    with slurm_cluster() as cluster:
        yield cluster


class Ledger:
    """Where tasks themselves write that they begin and end."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def counts(self) -> tuple[Counter[int], Counter[int]]:
        """Return how often each task began, and how often it ended."""
        found: dict[str, Counter[int]] = {"begin": Counter(), "end": Counter()}
        for line in self.path.read_text().splitlines() if self.path.exists() else ():
            what, _, number = line.partition(" ")
            found[what][int(number)] += 1
        return found["begin"], found["end"]

    def until(self, count: int) -> None:
        """Wait until this number of tasks has ended."""
        eventually(lambda: len(self.counts()[1]) >= count, DEADLINE_S, every_s=0.05, what=f"{count} tasks")


def nodes(farm: Farm) -> list[str]:
    """Where there are engines that can be given work."""
    return sorted({row.node for row in engines(farm)})


def node_of(slurm: Cluster, element: str) -> str:
    """Where Slurm runs it; "": nowhere."""
    lines = (line.split(" ") for line in slurm.queue())
    return next((node for name, state, node in lines if (name, state) == (element, "RUNNING")), "")


def until_gone(slurm: Cluster, element: str) -> None:
    """Wait until Slurm reports that an element has ended."""
    eventually(lambda: not any(line.startswith(f"{element} ") for line in slurm.queue()), DEADLINE_S, what=element)


def recorded(store: Path) -> Counter[int]:
    """Task id -> how often the store has an end of it."""
    with contextlib.closing(sqlite3.connect(f"file:{store}?mode=ro", uri=True)) as db:
        return Counter(task for (task,) in db.execute("SELECT task FROM finals"))


@by_hand
def test_a_thousand_tasks_while_agents_come_and_go(slurm: Cluster, farm_dirs: Dirs, tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger")
    with Farm(agents=Agents("slurm", 3, engines=1, time_limit=600.0, options=WHOLE_NODE)) as farm:
        until_engines(farm, 3)
        assert nodes(farm) == list(NODES)
        job = read_groups(farm._home)[0].handle["job"]
        elements = [f"{job}_{index}" for index in range(3)]
        with farm.task_client() as tc:
            tc.progress = False
            codes = [CODE.format(ledger=str(ledger.path), number=number) for number in range(TASKS)]
            ids = [tc.run(Task(code, pull=("a", "node"), retries=9)) for code in codes]

            ledger.until(150)
            # What Slurm does before the time limit: the agent is told, and what runs there is finished.
            slurm.run("scancel", "--batch", "--signal=TERM", elements[0])
            until_gone(slurm, elements[0])
            assert max(ledger.counts()[0].values()) == 1

            ledger.until(300)
            slurm.run("scancel", elements[1])
            until_gone(slurm, elements[1])

            ledger.until(450)
            drained = node_of(slurm, elements[2])
            slurm.drain(drained)
            slurm.run("scontrol", "requeue", elements[2])
            eventually(lambda: f"{elements[2]} PENDING " in slurm.queue(), DEADLINE_S, what="the requeued element")
            # Slurm would let it wait for two minutes.
            slurm.run("scontrol", "update", f"jobid={elements[2]}", "StartTime=now")
            eventually(lambda: node_of(slurm, elements[2]) not in ("", drained), DEADLINE_S, what="another node")

            # Another group, sent away again while it works.
            group = farm.add_agents(Agents("slurm", 1, engines=1, options=WHOLE_NODE))
            until_engines(farm, 2)
            before = len(ledger.counts()[1])
            ledger.until(before + 50)
            farm.remove_agents(group)
            eventually(lambda: len(slurm.queue()) == 1, DEADLINE_S, what="one element")

            tc.barrier(ids, timeout=DEADLINE_S)
            results = [tc.get_task_result(task, raw=False) for task in ids]
            assert [result["a"] for result in results if result is not None] == list(range(TASKS))
            assert {result["node"] for result in results if result is not None} == set(NODES)
        store = farm._home.folder / STORE_NAME
        assert recorded(store) == Counter(ids)
    begun, ended = ledger.counts()
    assert set(ended) == set(range(TASKS))
    # Each of the two that were ended hard cost one attempt at most.
    assert sum(begun.values()) <= TASKS + 2
    assert slurm.queue() == []
    eventually(lambda: slurm.processes() == [], DEADLINE_S, what="nothing runs below Slurm")


def test_what_runs_in_a_cancelled_job_comes_to_its_end(slurm: Cluster, farm_dirs: Dirs, tmp_path: Path) -> None:
    """A plain scancel signals all processes of a job; these tasks may not repeat."""
    gate = Gate(tmp_path / "gate")
    with Farm(agents=Agents("slurm", 2, engines=1, leave=4.0)) as farm, farm.task_client() as tc:
        until_engines(farm, 2)
        ids = [tc.run(Task(gate.code, retries=0)) for _ in range(2)]
        for task_id in ids:
            until_running(tc, task_id)
        (element, *_) = slurm.queue()[0].split()
        slurm.run("scancel", element)
        eventually(
            lambda: "leaving" in [row["state"] for row in farm_state(farm).agents], DEADLINE_S, what="its agent leaves"
        )
        gate.open()
        tc.barrier(ids, timeout=DEADLINE_S)
        assert outcomes(tc, ids) == {"succeeded"}
        eventually(lambda: element not in " ".join(slurm.queue()), DEADLINE_S, what="the job has ended")


def test_the_command_adds_shows_and_removes_agents(slurm: Cluster, farm_dirs: Dirs) -> None:
    more = ("--engines", "1", "--time-limit", "10m", "--option", "cpus=2")
    with background_farm("-n", "0", farm="slurmy") as home:
        shown = said("agents", "add", "slurm", "2", *more, "--dry-run")
        assert "#SBATCH --array=0-1\n" in shown
        assert "#SBATCH --time=0:10:00\n" in shown
        assert slurm.queue() == []

        assert "slurm-1: 2 agents requested" in said("agents", "add", "slurm", "2", *more)
        eventually(lambda: said("agents").count("running node0") == 2, DEADLINE_S, every_s=0.2, what="two agents")
        with TaskClient(home.name) as tc:
            tc.progress = False
            inside = tc.run(Task("import os; found = dict(os.environ)", pull="found"), block=True)["found"]
        assert inside["SLURMD_NODENAME"] in NODES

        job = read_groups(home)[0].handle["job"]
        key = farm_paths.read_connection_file(agent_file(home.folder, "slurm-1.0")).secret_key
        script = slurm.run("scontrol", "write", "batch_script", f"{job}_0", "-")
        assert "connection_file=" in script
        assert key not in script + str(inside) + " ".join(word for p in slurm.processes() for word in p.cmdline())

        assert "2 agents removed" in said("agents", "remove", "slurm-1")
        eventually(lambda: slurm.queue() == [], DEADLINE_S, what="an empty queue")

        refused = command("agents", "add", "slurm", "--option", "partition=nowhere", "--farm", "slurmy")
        assert refused.returncode != 0
        assert "invalid partition specified: nowhere" in refused.stderr
        assert read_groups(home) == []


def said(*words: str) -> str:
    """Run a command on the farm; return its output."""
    ended = command(*words, "--farm", "slurmy")
    assert ended.returncode == 0, ended.stderr
    return ended.stdout
