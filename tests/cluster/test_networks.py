"""Test a farm with agents on separate hosts, and its tasks during failures of the network (FAULTS 25).

The checker of `tests.support.chaos` compares the tasks' ledger, the store and the client's results.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from ipytaskfarm import Farm, Task, TaskClient
from ipytaskfarm.core import messages
from ipytaskfarm.core.messages.tables import EngineRow, EngineTable, FarmState
from ipytaskfarm.deployment.enrolment import enrol
from tests.conftest import Dirs, assert_nothing_left, isolated
from tests.support.chaos import ONCE_EVERY, complaints, gather, submit
from tests.support.farms import DEADLINE_S, Gate, ask, until_engines, until_running
from tests.support.netns import Host, Network, network, why_not
from tests.support.polling import eventually
from tests.support.thorough import by_hand

pytestmark = [
    pytest.mark.farm,
    pytest.mark.slow,
    pytest.mark.skipif(bool(why_not()), reason=why_not() or "there are namespaces"),
]

EAST, WEST = 0, 1
ENGINES = 2
"""Engines of each host."""
COUNT = 600
"""Tasks of 30 ms: five seconds of work for both hosts."""
CUT_S = 5.0
RESETS = 10


class World:
    """A farm that listens on the bridge, and an agent on each of the hosts."""

    def __init__(self, net: Network, farm: Farm, dirs: Dirs) -> None:
        self.net = net
        self.farm = farm
        self._dirs = dirs
        self.agents: list[subprocess.Popen[bytes]] = []

    def start_agent(self, place: int) -> subprocess.Popen[bytes]:
        """Start an agent as a launcher does on that host; a second one there uses the folder of the first."""
        name = f"host{place}"
        file = enrol(self.farm._home, [name])[name]
        folder = self._dirs.work / name
        words = self.host(place).words(
            *(
                sys.executable,
                "-P",
                "-m",
                "ipytaskfarm.agent",
                "--connection-file",
                str(file),
                "--farm",
                self.farm.name,
            ),
            *("--folder", str(folder), "--node", name, "--engines", str(ENGINES)),
            *("--log", str(self._dirs.work / f"{name}.log"), "--startup-cwd", str(self._dirs.work)),
        )
        agent = subprocess.Popen(words, stdin=subprocess.DEVNULL, cwd=self._dirs.work)
        self.agents.append(agent)
        return agent

    def host(self, place: int) -> Host:
        return self.net.hosts[place]

    def rows(self, place: int) -> list[EngineRow]:
        """The engines of a host, as the controller sees them."""
        reply = ask(self.farm, messages.ListEngines())
        assert isinstance(reply, EngineTable)
        return [row for row in reply.rows if row.node == f"host{place}"]

    def losses(self) -> list[str]:
        """Return the losses of engines and agents, one line each."""
        reply = ask(self.farm, messages.FarmStatus())
        assert isinstance(reply, FarmState)
        return reply.losses

    def until(self, place: int, *states: str) -> None:
        """Wait until all engines of a host are in one of these states."""
        eventually(
            lambda: [row.state in states for row in self.rows(place)] == [True] * ENGINES,
            DEADLINE_S, every_s=0.05, what=f"the engines of host {place} are {' or '.join(states)}",
        )  # fmt: skip

    def until_back(self, place: int) -> None:
        """Wait until the engines of a host get tasks again."""
        self.until(place, "idle", "busy")

    def close(self) -> None:
        for agent in self.agents:
            if agent.poll() is None:
                agent.terminate()
        for agent in self.agents:
            try:
                agent.wait(60)
            except subprocess.TimeoutExpired:
                agent.kill()
                agent.wait()


@contextlib.contextmanager
def two_hosts(**settings: float) -> Iterator[World]:
    with isolated("itf-") as dirs, network(2) as net:
        with Farm(n=0, host=net.address, **settings) as farm:  # type: ignore[arg-type]
            world = World(net, farm, dirs)
            try:
                world.start_agent(EAST)
                world.start_agent(WEST)
                until_engines(farm, 2 * ENGINES)
                yield world
            finally:
                world.close()
        assert_nothing_left(dirs)


@pytest.fixture(scope="module")
def module_world() -> Iterator[World]:
    with two_hosts() as world:
        yield world


@pytest.fixture
def world(module_world: World) -> Iterator[World]:
    """Two hosts, all is well."""
    for place in (EAST, WEST):
        module_world.until(place, "idle")
    losses = module_world.losses()
    try:
        yield module_world
        # The agents are the same as before, and so are their engines.
        assert all(agent.poll() is None for agent in module_world.agents)
        assert module_world.losses() == losses
    finally:
        for host in module_world.net.hosts:
            host.mend()


@pytest.fixture
def tc(world: World) -> Iterator[TaskClient]:
    with world.farm.task_client() as tc:
        tc.progress = False
        yield tc


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    return tmp_path / "ledger"


def written(ledger: Path) -> Counter[str]:
    return Counter(ledger.read_text().splitlines()) if ledger.exists() else Counter()


def pass_time(seconds: float) -> None:
    """Wait for this time, during which nothing may happen."""
    until_s = time.monotonic() + seconds
    eventually(lambda: time.monotonic() >= until_s, seconds + 5.0)


def assert_all_right(world: World, tc: TaskClient, ledger: Path, submitted: dict[int, int]) -> None:
    """All have ended, each was recorded once, those that must not be repeated were not."""
    tc.barrier(submitted, timeout=60)
    evidence = gather(tc, world.farm._home, ledger, submitted)
    assert list(complaints(evidence)) == []
    assert {final for _, final in evidence.finals} == {""}, "no engine was lost"
    tc.clear()


def square(x: int) -> int:
    return x * x


async def awaited(tc: TaskClient) -> list[int]:
    """Return squares whose futures were awaited."""
    return list(await asyncio.gather(*[tc.submit(square, n) for n in range(40)]))


def test_adapters_compute_on_both_hosts(world: World, tc: TaskClient) -> None:
    """Each of them finds its functions on engines that share no process with the client's machine."""
    import adaptive
    import dask
    import dask.array as da
    import optuna
    from dask.delayed import delayed as dask_delayed
    from joblib import Parallel, delayed, parallel_config

    import ipytaskfarm.ipyparallel as ipp
    import ipytaskfarm.joblib  # noqa: F401
    from ipytaskfarm import Pool

    expected = [n * n for n in range(40)]
    with tc.executor() as executor:
        assert list(executor.map(square, range(40), chunksize=3)) == expected
        learner = adaptive.Learner1D(square, (-1, 1))
        adaptive.BlockingRunner(learner, npoints_goal=10, executor=executor)
        assert all(value == x * x for x, value in learner.data.items())
    assert asyncio.run(awaited(tc)) == expected
    with Pool(tc) as pool:
        assert pool.map(square, range(40)) == expected
    with parallel_config("ipytaskfarm", client=tc):
        assert Parallel()(delayed(square)(n) for n in range(40)) == expected
    with dask.config.set(scheduler=tc.dask_get):
        assert dask_delayed(sum)([dask_delayed(square)(n) for n in range(40)]).compute() == sum(expected)
        assert (da.arange(40, chunks=5) ** 2).sum().compute() == sum(expected)
    rc = ipp.Client(world.farm.connection_file)
    assert rc.load_balanced_view().map_sync(square, range(40)) == expected
    rc[:].scatter("part", range(40), block=True)
    rc[:].execute("squares = [n * n for n in part]", block=True)
    assert rc[:].gather("squares", block=True) == expected
    assert {row.id for place in (EAST, WEST) for row in world.rows(place)} <= set(rc.ids)
    rc.close()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study()
    tc.optimize(study, lambda trial: float(trial.suggest_float("x", 0, 1)), n_trials=8)
    assert all(trial.value == trial.params["x"] for trial in study.trials)
    tc.clear()  # the ledgers of the other tests know nothing of these tasks


def slow_square(x: int) -> int:
    time.sleep(0.05)
    return x * x


def test_submitit_and_executorlib_compute_on_both_hosts(world: World, tc: TaskClient, tmp_path: Path) -> None:
    import submitit

    from ipytaskfarm import FarmClusterExecutor
    from ipytaskfarm.adapters import submitit_executor

    hosts = [{row.node for row in world.rows(place)} for place in (EAST, WEST)]
    farm = str(world.farm.connection_file)
    jobs = submitit.AutoExecutor(folder=tmp_path, cluster="ipytaskfarm", ipytaskfarm_farm=farm).map_array(
        slow_square, range(40)
    )
    assert [job.result() for job in jobs] == [n * n for n in range(40)]
    assert {tc.get_task_result(int(job.job_id)).attempts[-1].node for job in jobs} == hosts[EAST] | hosts[WEST]
    submitit_executor._clients.pop(farm).close()
    for place in (EAST, WEST):
        with FarmClusterExecutor(tc, requires={"node": next(iter(hosts[place]))}) as executor:
            first = [executor.submit(square, n) for n in range(8)]
            assert executor.submit(sum, first).result(timeout=DEADLINE_S) == sum(n * n for n in range(8))
            found = {executor.submit(os.getpid).result(timeout=DEADLINE_S) for _ in range(4)}
        assert found <= {row.pid for row in world.rows(place)}
    tc.clear()


def at_gate(tc: TaskClient, ledger: Path, gate: Gate, engines: list[int], number: int, retries: int = 0) -> int:
    """A task for one of these engines that writes that it has begun, and waits."""
    note = f"import os\nfd = os.open({str(ledger)!r}, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)\n"
    code = f"{note}os.write(fd, b'begin {number}\\n')\n{gate.code}os.write(fd, b'end {number}\\n')\na = {number}"
    task_id: int = tc.run(Task(code, pull="a", targets=engines, retries=retries))
    return task_id


def test_a_cut_of_five_seconds(world: World, tc: TaskClient, ledger: Path, tmp_path: Path) -> None:
    gate = Gate(tmp_path / "gate")
    waiting = at_gate(tc, ledger, gate, [world.rows(WEST)[0].id], 10_000)
    until_running(tc, waiting)
    submitted = {**submit(tc, ledger, range(COUNT), 0.03), waiting: 10_000}
    eventually(lambda: len(written(ledger)) > 50)
    world.host(WEST).cut()
    before = len(written(ledger))
    gate.open()  # it ends while nobody can hear of it
    pass_time(CUT_S)
    eventually(lambda: written(ledger)["end 10000"] == 1, what="what ran there goes on")
    eventually(lambda: len(written(ledger)) > before + 100, what="the other host goes on working")
    assert tc.status(waiting).state == "running"
    world.host(WEST).mend()
    world.until_back(WEST)
    assert_all_right(world, tc, ledger, submitted)
    assert written(ledger)["begin 10000"] == 1


@pytest.mark.parametrize("chain", ["OUTPUT", "INPUT"])
def test_a_cut_of_one_direction(chain: str, world: World, tc: TaskClient, ledger: Path) -> None:
    """OUTPUT: the controller does not hear the agent; INPUT: the agent does not hear the controller."""
    submitted = submit(tc, ledger, range(COUNT), 0.03)
    eventually(lambda: len(written(ledger)) > 50)
    world.host(WEST).filter((chain, "-j", "DROP"))
    before = len(written(ledger))
    world.until(WEST, "unreachable")
    eventually(lambda: len(written(ledger)) > before + 50, what="the other host goes on working")
    world.host(WEST).mend()
    world.until_back(WEST)
    assert_all_right(world, tc, ledger, submitted)


def test_five_per_cent_of_all_packets_are_lost(world: World, tc: TaskClient, ledger: Path) -> None:
    some = ("-m", "statistic", "--mode", "random", "--probability", "0.05", "-j", "DROP")
    for host in world.net.hosts:
        host.filter(("INPUT", *some), ("OUTPUT", *some))
    submitted = submit(tc, ledger, range(1000))
    assert_all_right(world, tc, ledger, submitted)
    dropped = world.host(WEST).run("iptables", "-L", "-n", "-v", "-x").splitlines()
    assert sum(int(line.split()[0]) for line in dropped if "DROP" in line) > 0


def test_a_storm_of_resets(world: World, tc: TaskClient, ledger: Path) -> None:
    submitted = submit(tc, ledger, range(COUNT), 0.03)
    resets = 0
    while resets < RESETS:
        resets += eventually(world.host(WEST).reset_connections, DEADLINE_S, what="a connection to be reset")
    assert_all_right(world, tc, ledger, submitted)


def test_an_agent_loses_its_address_and_comes_back_under_another(world: World, tc: TaskClient, ledger: Path) -> None:
    """Its connections stay half open: neither end learns that the other is gone."""
    before = {row.engine: row.pid for row in world.rows(WEST)}
    submitted = submit(tc, ledger, range(COUNT), 0.03)
    eventually(lambda: len(written(ledger)) > 50)
    world.host(WEST).lose_address()
    world.until(WEST, "unreachable")
    world.host(WEST).take_address(77)
    world.until_back(WEST)
    assert {row.engine: row.pid for row in world.rows(WEST)} == before
    assert_all_right(world, tc, ledger, submitted)


@by_hand
def test_a_cut_that_is_longer_than_the_lease(tmp_path: Path) -> None:
    ledger, gate, blocked = tmp_path / "ledger", Gate(tmp_path / "gate"), Gate(tmp_path / "blocked")
    with two_hosts(lease=5.0) as world, world.farm.task_client() as tc:
        west, east = world.rows(WEST), world.rows(EAST)
        elsewhere = at_gate(tc, ledger, blocked, [east[0].id], 1)
        until_running(tc, elsewhere)
        again = at_gate(tc, ledger, gate, [west[0].id, east[0].id], 2, retries=1)
        once = at_gate(tc, ledger, gate, [west[1].id], ONCE_EVERY)
        eventually(lambda: len(written(ledger)) == 3, DEADLINE_S)
        world.host(WEST).cut()
        blocked.open()
        eventually(lambda: not any(psutil.pid_exists(row.pid) for row in west), DEADLINE_S, what="its engines end")
        assert written(ledger)["begin 2"] == 1, "not before what ran there has ended"
        assert world.agents[WEST].wait(DEADLINE_S) == 0
        eventually(lambda: written(ledger)["begin 2"] == 2, DEADLINE_S, what="it runs elsewhere")
        gate.open()
        tc.barrier([elsewhere, again, once], timeout=DEADLINE_S)
        world.host(WEST).mend()
        world.start_agent(WEST)  # it finds what its predecessor has left, and says so
        world.until_back(WEST)
        evidence = gather(tc, world.farm._home, ledger, {elsewhere: 1, again: 2, once: ONCE_EVERY})
        assert list(complaints(evidence)) == []
        assert evidence.told == {elsewhere: "", again: "", once: "engine lost"}
