"""Clocks that are set while the farm runs: a node's, the controller's, a client's."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from ipytaskfarm.agent import node
from ipytaskfarm.agent.memory import EngineMemory
from ipytaskfarm.agent.node import AGAIN_S, LOOK_S, NodeWatch
from ipytaskfarm.core import messages as m
from ipytaskfarm.core.messages.task_types import Deferral, Ended, Rules, Submission
from ipytaskfarm.core.requirements import Recycle
from ipytaskfarm.core.scheduler.agent_entry import SETTLE_S
from ipytaskfarm.core.states import DEFERS
from tests.simulated.test_scheduler_graphs import ended_with
from tests.simulated.test_scheduler_resources import World as ResourceWorld, cores
from tests.support.environment_world import World as EnvironmentWorld, rules
from tests.support.simulated_farm import SimAgent, SimEngine, SimFarm, final_of, move, one_engine

HOUR_S, DAY_S = 3600.0, 86_400.0
JUMPS_S = [HOUR_S, -HOUR_S, DAY_S, -DAY_S]


def set_clock(sim: SimFarm, by_s: float) -> None:
    """Set the controller's wall clock."""
    sim.now = sim.now._replace(wall_s=sim.now.wall_s + by_s)


def reports(sim: SimFarm, agent: SimAgent, ahead_s: float, late_s: float = 0.0) -> None:
    """Let a node report, by a clock that is so far ahead; the report is late by `late_s`."""
    sim.handle(m.NodeState(0.0, 2**30, 2**30, wall_s=sim.now.wall_s + ahead_s - late_s), agent.session)


def run_by(sim: SimFarm, agent: SimAgent, engine: SimEngine, task: int, ahead_s: float) -> float:
    """Run a task on an engine whose clock is so far ahead, and return how far its recorded start is off."""
    sim.submit(task)
    move(sim, agent)
    sim.begin(engine)
    assert engine.running is not None
    began_s = sim.now.wall_s
    sim.end_with(agent, engine, Ended(*engine.running, "", began_s + ahead_s, 0.5, None, b"body"))
    sim.advance(1.0)
    sim.settle()
    return final_of(sim, task).started_s - began_s


def test_a_nodes_clock_that_is_set_after_the_agent_has_joined_is_corrected() -> None:
    """Only the clock at the join was known."""
    sim, agent, engine = one_engine()
    entry = sim.scheduler.farm.agents.by_session[agent.session]
    reports(sim, agent, 0.5)
    assert entry.skew_s == 0.0
    reports(sim, agent, DAY_S)
    assert entry.clock_ahead_s == entry.skew_s == DAY_S
    assert run_by(sim, agent, engine, 0, DAY_S) == 0.0
    reports(sim, agent, -HOUR_S)
    sim.advance(SETTLE_S)
    reports(sim, agent, -HOUR_S)
    assert entry.skew_s == -HOUR_S
    assert run_by(sim, agent, engine, 1, -HOUR_S) == 0.0
    reports(sim, agent, 0.0)
    assert entry.skew_s == 0.0


def test_reports_that_come_late_after_a_cut_are_no_clock_that_was_set() -> None:
    sim, agent, _ = one_engine()
    entry = sim.scheduler.farm.agents.by_session[agent.session]
    reports(sim, agent, 0.0)
    sim.advance(300.0)
    for late_s in range(300, 0, -10):
        reports(sim, agent, 0.0, late_s)
        assert entry.skew_s == 0.0
    sim.advance(10.0)
    reports(sim, agent, 0.0)
    assert (entry.skew_s, entry.behind_since_s) == (0.0, None)


def test_the_controllers_clock_is_set_under_all_nodes() -> None:
    sim, agent, engine = one_engine()
    entry = sim.scheduler.farm.agents.by_session[agent.session]
    reports(sim, agent, 0.0)
    set_clock(sim, HOUR_S)
    reports(sim, agent, -HOUR_S)
    sim.advance(SETTLE_S)
    reports(sim, agent, -HOUR_S)
    assert entry.skew_s == -HOUR_S
    assert run_by(sim, agent, engine, 0, -HOUR_S) == 0.0


@pytest.mark.parametrize("jump_s", JUMPS_S)
@pytest.mark.parametrize("whose", ["the controller's", "the node's"])
def test_a_deferral_lasts_as_long_as_it_should(jump_s: float, whose: str) -> None:
    """The first deferral after the jump ended the task, or it could be deferred for a day."""
    sim, agent, engine = one_engine()
    sim.submit(0, Rules(defer_s=1.0, defer_max_s=10.0))
    ahead_s = 0.0
    for trial in range(20):
        move(sim, agent)
        if not engine.queue:
            break
        sim.begin(engine)
        if trial == 3 and whose == "the controller's":
            set_clock(sim, jump_s)
            ahead_s -= jump_s
        elif trial == 3:
            ahead_s += jump_s
        assert engine.running is not None
        started_s = sim.now.wall_s + ahead_s
        sim.end_with(agent, engine, Ended(*engine.running, DEFERS, started_s, 0.0, None, b"", (), 0, Deferral()))
        move(sim, agent)
        sim.advance(1.0)
    assert trial == 11
    assert ended_with(sim, 0) == "deferred too long"


@pytest.mark.parametrize("jump_s", JUMPS_S)
def test_an_engine_is_recycled_after_its_time(jump_s: float) -> None:
    world = EnvironmentWorld(1)
    set_clock(world.sim, jump_s)
    world.submit(rules("A", Recycle(interval_s=50.0)))
    world.run_all()
    engine = world.engine_of("A")
    world.sim.advance(30.0)
    world.move()
    assert engine.name in world.has
    world.sim.advance(25.0)
    world.move()
    assert engine.name not in world.has


def test_a_clock_that_is_set_back_takes_nobodys_patience_away() -> None:
    """What waited for room was passed by others for a day."""
    world = ResourceWorld(2, resource_patience_s=10.0)
    first, second = world.submit(cores(1), 2)
    (large,) = world.submit(cores(2))
    world.submit(cores(1), 20)
    set_clock(world.sim, -DAY_S)
    world.sim.advance(11.0)
    world.end(first)
    world.end(second)
    world.move()
    assert world.running == {large}


def test_a_client_whose_clock_is_ahead_waits_no_longer_than_others() -> None:
    sim, agent, _ = one_engine()
    sim.handle(m.Submit([Submission(0, b"work", sim.now.wall_s + DAY_S)], [], []), "client")
    move(sim, agent)
    assert sim.scheduler.farm.tasks.unfinished[0].submitted_s == sim.now.wall_s


def test_an_agent_reports_a_clock_that_was_set_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wall_s = [1e9]
    monkeypatch.setattr(time, "time", lambda: wall_s[0])
    monkeypatch.setattr(node, "_differs", lambda *values: False)
    watch = NodeWatch(tmp_path, EngineMemory(0))
    first = watch.look(0.0)
    assert first is not None
    assert first.wall_s == 1e9
    wall_s[0] += LOOK_S
    assert watch.look(LOOK_S) is None
    wall_s[0] += LOOK_S - HOUR_S
    said = watch.look(2 * LOOK_S)
    assert said is not None
    assert said.wall_s == 1e9 + 2 * LOOK_S - HOUR_S
    wall_s[0] += AGAIN_S
    assert watch.look(2 * LOOK_S + AGAIN_S) is not None, "the controller's clock may have been set"
