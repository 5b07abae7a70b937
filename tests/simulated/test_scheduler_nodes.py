"""Test a node on which everything fails: it is set aside, and the retries that it has used are restored."""

from __future__ import annotations

import pytest

from ipytaskfarm.core import messages as m
from ipytaskfarm.core.handlers.nodes import TASKS_LEAST, _is_bad, set_aside
from ipytaskfarm.core.handlers.results import AVOID_S
from ipytaskfarm.core.messages import tables
from ipytaskfarm.core.messages.task_types import Rules
from ipytaskfarm.core.scheduler.agent_entry import FailedAttempt, TaskKind
from ipytaskfarm.core.scheduler.decision import Decision
from ipytaskfarm.core.scheduler.events import Silent, Tick
from ipytaskfarm.core.scheduler.settings import SchedulerSettings

from ..support.simulated_farm import SimAgent, SimEngine, SimFarm, final_of, move


class World:
    """Two nodes of one engine each, and tasks that are handed to both."""

    def __init__(self, tasks: int, rules: Rules | None, **settings: int) -> None:
        self.sim = SimFarm(SchedulerSettings(**settings))  # type: ignore[arg-type]
        self.sim.join_client()
        self.bad, self.good = (self.sim.join_agent(name, brings=1) for name in ("bad", "good"))
        self.sim.settle()
        assert len(self.bad.engines) == len(self.good.engines) == 1
        first = self.sim.ids().first
        for task_id in range(first, first + tasks):
            self.sim.submit(task_id, rules)

    def step(self, agent: SimAgent, outcome: str) -> bool:
        """The agent's engine runs one task, if it has one."""
        engine: SimEngine = next(iter(agent.engines.values()))
        move(self.sim, agent)
        ran = engine.running is not None or self.sim.begin(engine)
        self.sim.end(agent, engine, outcome)
        move(self.sim, agent)
        return ran

    def run(self, steps: int, good: str = "") -> int:
        """Both run a task each, so often; on the bad node it fails.  How many the bad one ran."""
        ran = 0
        for _ in range(steps):
            self.step(self.good, good)
            ran += self.step(self.bad, "error")
        return ran

    def run_until_aside(self) -> None:
        for _ in range(60):
            self.run(1)
            if self.aside:
                return
        raise AssertionError("the node was not set aside")

    @property
    def aside(self) -> str:
        return self.sim.scheduler.farm.agents.by_session["bad"].excluded


def test_a_node_where_everything_fails_gets_no_more() -> None:
    world = World(200, Rules(retries=3))
    assert world.run(40) < 30
    assert "10 attempts in a row failed on node" in world.aside
    assert "resume" in world.aside
    farm = world.sim.scheduler.farm
    assert world.aside in farm.diagnostics.losses
    for _ in range(100):
        world.step(world.good, "")
        assert not world.step(world.bad, "error")
    assert not next(iter(world.bad.engines.values())).queue


def test_what_it_cost_is_given_back_and_that_is_saved() -> None:
    world = World(200, Rules(retries=3))
    world.run_until_aside()
    farm = world.sim.scheduler.farm
    assert {task.past.errors for task in farm.tasks.unfinished.values()} == {0}
    world.sim.crash()
    assert {task.past.errors for task in world.sim.scheduler.farm.tasks.unfinished.values()} == {0}
    world.sim.settle()
    assert all(final.reason == "" for final in world.sim.store.finals.values())


def test_what_failed_for_good_is_counted_and_the_remedy_named() -> None:
    world = World(200, None)
    world.run_until_aside()
    failed = [final for final in world.sim.store.finals.values() if final.reason]
    assert len(failed) >= 10
    assert f"{len(failed)} tasks have failed there for good" in world.aside
    assert "tc.retry" in world.aside


def test_lost_engines_count_and_their_losses_are_given_back() -> None:
    world = World(200, Rules(retries=3))
    for _ in range(60):
        world.step(world.good, "")
        move(world.sim, world.bad)
        if world.aside:
            break
        engine = next(iter(world.bad.engines.values()))
        assert world.sim.begin(engine)
        world.sim.kill(world.bad, engine)
        move(world.sim, world.bad)
        world.sim.advance(10.0)
        move(world.sim, world.bad)
    assert world.aside
    assert {(task.past.errors, task.past.losses) for task in world.sim.scheduler.farm.tasks.unfinished.values()} == {
        (0, 0)
    }


def test_tasks_that_fail_everywhere_say_nothing_of_a_node() -> None:
    world = World(200, Rules(retries=3))
    world.run(60, good="error")
    assert world.aside == ""


def test_one_success_ends_the_streak() -> None:
    world = World(300, Rules(retries=3))
    for _ in range(10):
        world.run(9)
        world.step(world.bad, "")
    assert world.aside == ""


@pytest.mark.parametrize(("tasks", "bad"), [(TASKS_LEAST - 1, False), (TASKS_LEAST, True)])
def test_few_tasks_say_nothing_of_a_node(tasks: int, bad: bool) -> None:
    """However often they failed there, and their like succeeded elsewhere."""
    world = World(2, Rules(retries=3))
    farm = world.sim.scheduler.farm
    agent = farm.agents.by_session["bad"]
    kind: TaskKind = (None, None)
    agent.succeeded_elsewhere.add(kind)
    agent.failures += [FailedAttempt(1000 + n % tasks, 0, kind, "error") for n in range(5 * tasks)]
    assert _is_bad(farm, agent) is bad


def test_the_last_node_goes_on() -> None:
    world = World(200, Rules(retries=3))
    world.run(5)
    world.sim.handle(Silent(), "good")
    for _ in range(30):
        world.step(world.bad, "error")
    assert world.aside == ""


def test_explain_says_that_a_node_is_set_aside() -> None:
    world = World(300, Rules(retries=3))
    world.run_until_aside()
    waiting = next(task for task in world.sim.scheduler.farm.tasks.unfinished.values() if task.task_class is not None)
    told = world.sim.ask(m.ExplainTasks(waiting.id))
    assert isinstance(told, m.TextReply)
    assert "its node is set aside: 10 attempts in a row failed" in told.text


def test_resume_takes_it_back() -> None:
    world = World(300, Rules(retries=3))
    world.run_until_aside()
    world.sim.ask(m.HoldFarm(False))
    assert world.aside == ""
    assert world.step(world.bad, "")


def test_a_drained_node_says_so() -> None:
    world = World(1, None)
    for on, shown in ((True, "drained"), (False, "up")):
        assert world.sim.ask(m.DrainNode(["node"], on)) == m.NumberReply(2)
        state = world.sim.ask(m.FarmStatus())
        assert isinstance(state, tables.FarmState)
        assert [agent["state"] for agent in state.agents] == [shown, shown]


@pytest.mark.parametrize("how", ["drained", "set aside", "about to end"])
def test_a_retry_does_not_wait_for_an_engine_that_gets_no_tasks(how: str) -> None:
    """It prefers another engine, and the only other one was on a node that gets no more: it waited for ever."""
    world = World(0, None)
    sim, (other,) = world.sim, world.bad.engines.values()
    first, second = range(sim.ids().first, sim.ids().last)[:2]
    sim.submit(first, Rules(targets=(other.id,)))
    move(sim, world.bad)
    sim.begin(other)
    for agent in (world.good, world.bad):
        sim.scheduler.farm.agents.by_session[agent.session].node = agent.session
    if how == "drained":
        sim.ask(m.DrainNode(["bad"]))
    elif how == "about to end":
        sim.ask(m.RemoveEngines([other.id], drain=True))
    sim.submit(second, Rules(retries=1))
    assert world.step(world.good, "error")
    if how == "set aside":
        set_aside(sim.scheduler.farm, "bad", "it is slow", sim.now, Decision())
        sim.handle(Tick())
    assert world.step(world.good, ""), sim.ask(m.ExplainTasks(second))


def test_a_retry_does_not_wait_long_for_an_engine_that_is_busy() -> None:
    """It prefers another engine; while that ran a task of ten hours, it waited beside a free one."""
    world = World(0, None)
    sim, (other,), (here,) = world.sim, world.bad.engines.values(), world.good.engines.values()
    long = sim.ids().first
    sim.submit(long, Rules(targets=(other.id,)))
    move(sim, world.bad)
    sim.begin(other)
    sim.submit(long + 1, Rules(retries=1, retry_delays_s=(5.0,)))
    assert world.step(world.good, "error")
    sim.advance(5.0 + AVOID_S - 0.1)
    move(sim, world.good)
    assert not here.queue
    sim.advance(0.1)
    assert world.step(world.good, "")
    assert final_of(sim, long + 1).reason == ""
