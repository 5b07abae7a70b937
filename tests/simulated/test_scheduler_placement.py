"""Which of several free engines a task takes."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from ipytaskfarm.core import messages as m
from ipytaskfarm.core.messages.task_types import Rules
from ipytaskfarm.core.requirements import Asks, Condition, Environment
from ipytaskfarm.core.scheduler.agent_entry import AgentEntry
from ipytaskfarm.core.scheduler.engine_choice import first_idle, in_default_order
from ipytaskfarm.core.scheduler.entries import EngineEntry
from ipytaskfarm.core.scheduler.settings import SchedulerSettings
from ipytaskfarm.core.scheduler.state import SchedulerState

from ..support.simulated_farm import SimFarm, move


class World:
    """Two nodes, a and b, with engines 0, 1 … in turns; tasks come one by one, and each ends before the next."""

    def __init__(self, engines: int = 4, priorities: tuple[int, int] = (0, 0), **settings: object) -> None:
        self.sim = SimFarm(SchedulerSettings(**settings))  # type: ignore[arg-type]
        self.sim.join_client()
        self.agents = [
            self.sim.join_agent(name, node=name, priority=priority)
            for name, priority in zip("ab", priorities, strict=True)
        ]
        self.sim.settle()
        self.sim.ask(m.SetWanted(engines))
        self.move()
        self.next_id = self.sim.ids().first

    def move(self) -> None:
        for _ in range(5):
            for agent in self.agents:
                move(self.sim, agent)
            self.sim.advance(0.0)

    def run(self, rules: Rules | None = None, outstanding: bool = False) -> str:
        """Submit a task; return the node and the engine that got it.  outstanding: the task goes on running."""
        self.sim.submit(self.next_id, rules)
        self.next_id += 1
        for agent in self.agents:
            move(self.sim, agent)
        for agent in self.agents:
            for engine in agent.engines.values():
                if self.sim.begin(engine):
                    if not outstanding:
                        self.sim.end(agent, engine, run_s=1.0)
                        self.move()
                    return f"{agent.session}{engine.id}"
        raise AssertionError("nobody took it")

    def engine(self, name: str) -> str:
        """The incarnation of what `run` calls so."""
        agent = next(a for a in self.agents if a.session == name[0])
        return next(e.name for e in agent.engines.values() if e.id == int(name[1:]))


def placed(how: str, **more: object) -> Rules:
    return Rules(asks=Asks(placement=how, **more))  # type: ignore[arg-type]


def test_the_default_goes_from_node_to_node_and_rests_each_engine_as_long() -> None:
    world = World()
    taken = [world.run() for _ in range(8)]
    assert [name[0] for name in taken] == ["a", "b"] * 4
    assert taken[:4] == taken[4:]
    assert len(set(taken)) == 4


def test_several_at_once_are_spread_the_same_way() -> None:
    world = World()
    taken = [world.run(outstanding=True) for _ in range(4)]
    assert [name[0] for name in taken] == ["a", "b", "a", "b"]


@pytest.mark.parametrize("rules", [None, placed("default"), Rules(targets=(0, 1, 2, 3))])
def test_the_node_of_a_higher_priority_is_filled_first(rules: Rules | None) -> None:
    world = World(priorities=(0, 5))
    taken = [world.run(rules, outstanding=True) for _ in range(4)]
    assert [name[0] for name in taken] == ["b", "b", "a", "a"]


def test_by_priority_the_lowest_engine_goes_first() -> None:
    world = World(priorities=(0, 5))
    taken = [world.run(placed("priority")) for _ in range(3)]
    assert len(set(taken)) == 1
    assert taken[0][0] == "b"


def test_least_recent() -> None:
    world = World()
    taken = [world.run(placed("least_recent")) for _ in range(8)]
    assert taken[:4] == taken[4:]
    assert len(set(taken)) == 4


def test_most_recent() -> None:
    world = World()
    taken = [world.run(placed("most_recent")) for _ in range(8)]
    assert len(set(taken)) == 1


def test_random_is_even_and_repeatable() -> None:
    def sequence(seed: int) -> list[str]:
        world = World(seed=seed)
        return [world.run(placed("random")) for _ in range(80)]

    taken = sequence(7)
    assert taken == sequence(7)
    assert taken != sequence(8)
    assert all(8 <= taken.count(name) <= 32 for name in set(taken))
    assert len(set(taken)) == 4


def test_the_farms_own_way_holds_where_a_task_says_nothing() -> None:
    world = World(placement="most_recent")
    assert len({world.run() for _ in range(5)}) == 1


def test_nearest_environment_stays_on_the_node_that_has_it() -> None:
    environment = Environment(identity="E", name="E")
    nearest = placed("nearest_environment", environment=environment)
    world = World(6)
    first = world.run(nearest, outstanding=True)
    second = world.run(nearest, outstanding=True)
    third = world.run(nearest, outstanding=True)
    assert {first[0], second[0], third[0]} == {first[0]}
    usual = World(6)
    default = Rules(asks=Asks(environment=environment))
    assert len({usual.run(default, outstanding=True)[0] for _ in range(3)}) == 2


def test_locality_forbids_prefers_and_is_indifferent() -> None:
    world = World()
    names = [f"a{e.id}" for e in world.agents[0].engines.values()]
    names += [f"b{e.id}" for e in world.agents[1].engines.values()]
    scores = dict(zip(names, (-1, 0, 2, 1), strict=True))
    world.sim.scores = {world.engine(name): score for name, score in scores.items()}
    local = Rules(asks=Asks(locality="f"))
    taken = [world.run(local, outstanding=True) for _ in range(3)]
    assert taken == [names[2], names[3], names[1]]
    world.sim.submit(world.next_id, local)
    reply = world.sim.ask(m.ExplainTasks(world.next_id))
    assert isinstance(reply, m.TextReply)
    assert "its locality function forbids it" in reply.text


def test_a_locality_function_that_raises_is_indifferent() -> None:
    world = World()
    world.sim.verdict = None
    assert len({world.run(Rules(asks=Asks(locality="f"))) for _ in range(4)}) == 4


@pytest.mark.parametrize("make", [lambda: placed("random"), lambda: placed("most_recent"), lambda: None])
def test_everything_runs_whatever_the_placement(make: Callable[[], Rules | None]) -> None:
    world = World()
    first = world.next_id
    for task_id in range(first, first + 200):
        world.sim.submit(task_id, make())
    world.sim.settle()
    assert len(world.sim.store.finals) == 200


@pytest.mark.parametrize("seed", range(30))
def test_the_first_that_wait_are_found_without_a_look_at_all(seed: int) -> None:
    """While engines come and go, work and wait, the order equals that of sorting all of them."""
    chance = random.Random(seed)
    farm = SchedulerState("name", "incarnation")
    numbers = iter(range(1, 10_000))
    for a in range(5):
        agent = farm.agents.by_session[f"a{a}"] = AgentEntry(
            f"a{a}", "node", priority=chance.randrange(2), last_batch=next(numbers)
        )
        for e in range(20):
            engine = EngineEntry(f"a{a}.{e}", 20 * a + e, agent.session, agent.node)
            agent.engines[engine.name] = engine
            farm.readiness.put_idle(engine)
    engines = [engine for agent in farm.agents.by_session.values() for engine in agent.engines.values()]
    for _ in range(200):
        expected = in_default_order(farm, farm.readiness.idle)[: chance.randrange(1, 5)]
        assert first_idle(farm, len(expected)) == expected
        for engine in expected:
            farm.readiness.wake(engine)
            if chance.random() < 0.9:
                engine.last_batch = farm.agents.by_session[engine.agent].last_batch = next(numbers)
            if chance.random() < 0.02:
                engine.environment = Environment(identity="E", name="E")
        for engine in chance.sample(engines, 3):
            farm.readiness.put_idle(engine)
    assert all(len(heap) <= 60 for heap in farm.readiness.idle_heaps.values()), "what has worked since is forgotten"


@pytest.mark.parametrize(
    "rules",
    [
        Rules(asks=Asks(placement="default")),
        Rules(asks=Asks(requires=(Condition("cores", ">=", 1),))),
        Rules(depend="dep"),
        Rules(targets=(0, 1, 2)),
    ],
    ids=["placement", "requires", "depend", "targets"],
)
def test_restricted_tasks_one_by_one_take_the_engines_of_a_node_in_turns(rules: Rules) -> None:
    sim = SimFarm()
    sim.join_client()
    agent = sim.join_agent("a", node="a", facts={"cores": 4})
    sim.ask(m.SetWanted(3))
    sim.settle()
    taken = []
    first = sim.ids().first
    for task_id in range(first, first + 9):
        sim.submit(task_id, rules)
        while agent.inbox or agent.outbox:
            move(sim, agent)
        for engine in agent.engines.values():
            if sim.begin(engine):
                taken.append(engine.id)
                sim.end(agent, engine, run_s=1.0)
        sim.settle()
    assert taken[:3] == taken[3:6] == taken[6:]
    assert sorted(taken[:3]) == [0, 1, 2]
