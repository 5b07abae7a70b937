"""Test what may start where at a moment: resources, exclusive tasks, limits of groups, load, conditions."""

from __future__ import annotations

import pytest

from ipytaskfarm.core import messages as m
from ipytaskfarm.core.messages.task_types import Function, Rules
from ipytaskfarm.core.requirements import Allotment, Asks, Condition, Environment, ResourceAmount, unmet
from ipytaskfarm.core.scheduler.settings import SchedulerSettings

from ..support.simulated_farm import SimAgent, SimFarm, move


def cores(least: float, most: float | None = None) -> Rules:
    return Rules(asks=Asks(resources=(ResourceAmount("cores", least, least if most is None else most),)))


def asks(**given: object) -> Rules:
    return Rules(asks=Asks(**given))  # type: ignore[arg-type]


class World:
    """Nodes of 2 cores each by default, and engines that run their tasks on command."""

    def __init__(self, engines: int, nodes: tuple[str, ...] = ("a",), what: object = None, **settings: object) -> None:
        self.sim = SimFarm(SchedulerSettings(**settings))  # type: ignore[arg-type]
        self.sim.join_client()
        given = what if isinstance(what, dict) else {}
        self.agents = {name: self.sim.join_agent(name, node=f"node {name}", **given) for name in nodes}
        self.sim.settle()
        self.sim.ask(m.SetWanted(engines))
        self.move()
        self.next_id = self.sim.ids().first

    def move(self) -> None:
        for _ in range(10):
            for agent in self.agents.values():
                move(self.sim, agent)
            self.sim.advance(0.0)

    def submit(self, rules: Rules | None, count: int = 1) -> list[int]:
        ids = list(range(self.next_id, self.next_id + count))
        for task_id in ids:
            self.sim.submit(task_id, rules)
        self.next_id += count
        self.move()
        self.begin()
        return ids

    def begin(self) -> None:
        for agent in self.agents.values():
            for engine in agent.engines.values():
                self.sim.begin(engine)

    @property
    def running(self) -> set[int]:
        return {e.running[0] for a in self.agents.values() for e in a.engines.values() if e.running}

    def end(self, *task_ids: int) -> None:
        """These end, and what may begin then begins."""
        for agent in self.agents.values():
            for engine in list(agent.engines.values()):
                if engine.running and engine.running[0] in task_ids:
                    self.sim.end(agent, engine, run_s=1.0)
        self.move()
        self.begin()

    def explain(self, task_id: int) -> str:
        reply = self.sim.ask(m.ExplainTasks(task_id))
        assert isinstance(reply, m.TextReply)
        return reply.text

    def allotment(self, task_id: int) -> Allotment:
        for agent in self.agents.values():
            for engine in agent.engines.values():
                if engine.holding is not None and engine.holding[0][0] == task_id:
                    return engine.holding[1]
        raise AssertionError("it holds nothing")


# -- resources


def test_the_sum_on_a_node_never_exceeds_what_it_has() -> None:
    world = World(4)
    a, b, c = world.submit(cores(1), 3)
    assert world.running == {a, b}
    assert "waiting for resources" in world.explain(c)
    assert "it needs 1 core; node a has 0 cores free" in world.explain(c)
    world.end(a)
    assert world.running == {b, c}
    world.end(b, c)
    assert world.sim.scheduler.farm.agents.by_session["a"].used == {}


def test_what_nobody_can_have_is_told() -> None:
    world = World(2)
    (task,) = world.submit(cores(3))
    assert world.running == set()
    assert "it needs 3 cores, and node a has 2 cores in all" in world.explain(task)
    assert "in all" in world.sim.ask(m.Stuck([task])).text  # type: ignore[union-attr]


def test_between_least_and_most_what_is_free_is_allotted() -> None:
    world = World(3, what={"resources": {"cores": 5.0}})
    a, b, c = world.submit(cores(1, 3), 3)
    assert [world.allotment(task).amounts["cores"] for task in (a, b)] == [3.0, 2.0]
    assert world.running == {a, b}
    world.end(b)
    assert world.allotment(c).amounts == {"cores": 2.0}


def test_declared_resources_and_the_names_of_devices() -> None:
    world = World(3, what={"resources": {"gpu": 2.0, "licence": 1.0}, "gpus": ("GPU-x", "GPU-y")})
    gpu = asks(resources=(ResourceAmount("gpu", 1, 1),))
    a, b, c = world.submit(gpu, 3)
    assert {world.allotment(a).gpus, world.allotment(b).gpus} == {("GPU-x",), ("GPU-y",)}
    (licensed,) = world.submit(asks(resources=(ResourceAmount("licence", 1, 1),)))
    assert world.running == {a, b, licensed}
    freed = world.allotment(a).gpus
    world.end(a)
    assert world.allotment(c).gpus == freed


def test_others_pass_a_task_that_waits_for_room_until_its_patience_ends() -> None:
    world = World(2, resource_patience_s=10.0)
    first, second = world.submit(cores(1), 2)
    (large,) = world.submit(cores(2))
    small = world.submit(cores(1), 20)
    world.end(first)
    assert small[0] in world.running, "there is no reason to let a core idle"
    world.sim.advance(11.0)
    world.end(second)
    world.move()
    assert len(world.running) == 1, "what becomes free is kept now"
    assert "kept for a task that has waited longer" in world.explain(small[5])
    world.end(small[0])
    assert world.running == {large}
    world.end(large)
    assert len(world.running) == 2


def test_a_more_urgent_task_goes_before_what_is_kept() -> None:
    world = World(2, resource_patience_s=0.0)
    (first,) = world.submit(cores(1))
    world.submit(cores(2))
    (urgent,) = world.submit(Rules(priority=9))
    assert world.running == {first, urgent}


def test_tasks_with_resources_are_not_sent_ahead() -> None:
    world = World(1)
    for _ in range(30):
        world.submit(cores(1))
        agent = world.agents["a"]
        for engine in agent.engines.values():
            world.sim.end(agent, engine, run_s=0.0001)
        world.move()
    world.submit(cores(1), 5)
    assert all(not engine.queue for engine in world.agents["a"].engines.values())


def test_a_crash_of_the_controller_forgets_no_claim() -> None:
    world = World(3, what={"resources": {"cores": 2.0, "gpu": 2.0}, "gpus": ("0", "1")})
    a, b = world.submit(asks(resources=(ResourceAmount("gpu", 1, 1), ResourceAmount("cores", 1, 1))), 2)
    held = {world.allotment(a).gpus, world.allotment(b).gpus}
    (c,) = world.submit(asks(resources=(ResourceAmount("gpu", 1, 1),)))
    world.sim.crash()
    world.move()
    agent = world.sim.scheduler.farm.agents.by_session["a"]
    assert agent.used == {"cores": 2.0, "gpu": 2.0}
    assert agent.gpus_used == {"0", "1"}
    world.begin()
    assert world.running == {a, b}
    world.end(a)
    assert c in world.running
    assert world.allotment(c).gpus[0] in {name for names in held for name in names}


def test_a_lost_engine_gives_back_what_it_held() -> None:
    world = World(2)
    (task,) = world.submit(cores(2))
    agent = world.agents["a"]
    engine = next(e for e in agent.engines.values() if e.running)
    world.sim.kill(agent, engine)
    world.move()
    assert world.sim.store.finals[task].reason == "engine lost"
    assert world.sim.scheduler.farm.agents.by_session["a"].used == {}


# -- yield and reserve


def demand(world: World, task: int, n: int, **amounts: float) -> m.Granted | None:
    agent = world.agents["a"]
    engine = next(e for e in agent.engines.values() if e.running and e.running[0] == task)
    assert engine.running is not None
    before = len(agent.inbox)
    world.sim.handle(m.ResourceRequest(engine.name, engine.running, n, amounts), "a")
    granted = [message for message in list(agent.inbox)[before:] if isinstance(message, m.Granted)]
    world.move()
    world.begin()
    return granted[0] if granted else None


def test_what_a_running_task_yields_lets_others_start() -> None:
    world = World(3)
    (large,) = world.submit(cores(2))
    (small,) = world.submit(cores(1))
    granted = demand(world, large, 1, cores=1)
    assert granted is not None
    assert granted.allotment.amounts == {"cores": 1}
    assert world.running == {large, small}


def test_what_a_running_task_wants_back_it_waits_for_and_gets_before_others() -> None:
    world = World(3)
    (large,) = world.submit(cores(2))
    demand(world, large, 1)
    a, b = world.submit(cores(1), 2)
    (later,) = world.submit(cores(1))
    assert demand(world, large, 2, cores=1) is None
    assert demand(world, large, 2, cores=1) is None, "asked again, it still waits"
    agent = world.agents["a"]
    before = len(agent.inbox)
    engine = next(e for e in agent.engines.values() if e.running and e.running[0] == a)
    world.sim.end(agent, engine)
    world.sim.process(agent)
    granted = [message for message in list(agent.inbox)[before:] if isinstance(message, m.Granted)]
    assert [g.n for g in granted] == [2]
    world.move()
    world.begin()
    assert world.running == {large, b}
    assert later not in world.running


def test_more_than_the_node_has_is_refused() -> None:
    world = World(1)
    (task,) = world.submit(cores(1))
    granted = demand(world, task, 1, cores=99)
    assert granted is not None
    assert "99 cores were asked for" in granted.error


# -- exclusive


def test_an_exclusive_task_is_never_beside_another() -> None:
    world = World(3)
    a, b = world.submit(None, 2)
    (alone,) = world.submit(asks(exclusive=True))
    later = world.submit(None, 2)
    assert world.running == {a, b}, "nothing is started that stands after it"
    assert "to itself" in world.explain(alone)
    world.end(a)
    assert world.running == {b}
    world.end(b)
    assert world.running == {alone}
    assert f"task {alone} has node a to itself" in world.explain(later[0])
    world.end(alone)
    assert world.running == set(later)


def test_an_exclusive_task_empties_one_node_alone() -> None:
    world = World(4, nodes=("a", "b"))
    first = world.submit(None, 4)
    (alone,) = world.submit(asks(exclusive=True))
    world.submit(None, 40)
    for _ in range(3):
        world.end(*world.running)
        if alone in world.running:
            break
    assert alone in world.running
    assert len(world.running) == 3, "the other node works on"
    assert first


def test_a_prepared_engine_beside_an_exclusive_task_is_left_alone() -> None:
    """Found by the simulation: it was given a task of its environment although nothing may start there."""
    world = World(4, nodes=("a", "b"))
    environment = Rules(asks=Asks(environment=Environment(identity="E", name="E")))
    (first,) = world.submit(environment)
    node = next(name for name, agent in world.agents.items() for e in agent.engines.values() if e.environment)
    world.end(first)
    engines = tuple(e.id for e in world.agents[node].engines.values())
    (alone,) = world.submit(Rules(targets=engines, asks=Asks(exclusive=True)))
    (task,) = world.submit(environment)
    assert world.running == {alone, task}
    assert not any(e.running == (task, 1) for e in world.agents[node].engines.values())


def test_an_exclusive_task_of_an_idle_engine_begins_when_the_others_have_ended() -> None:
    world = World(2)
    engines = list(world.agents["a"].engines.values())
    (other,) = world.submit(Rules(targets=(engines[1].id,)))
    (alone,) = world.submit(Rules(targets=(engines[0].id,), asks=Asks(exclusive=True)))
    assert world.running == {other}
    world.end(other)
    assert world.running == {alone}


def test_limits_and_exclusive_tasks_outlive_the_controller() -> None:
    world = World(4, nodes=("a", "b"))
    limited = world.submit(asks(group="g", max_parallel=1), 2)
    assert len(world.running) == 1
    world.sim.crash()
    world.move()
    world.begin()
    assert len(world.running) == 1
    world.end(*world.running)
    world.end(*world.running)
    assert {world.sim.store.finals[i].reason for i in limited} == {""}
    (alone,) = world.submit(asks(exclusive=True))
    world.sim.crash()
    world.sim.join_client()
    world.move()
    others = world.submit(None, 4)
    node = next(name for name, a in world.agents.items() if any(e.running == (alone, 1) for e in a.engines.values()))
    assert sum(1 for e in world.agents[node].engines.values() if e.running) == 1
    world.end(alone)
    assert len(world.running) == len(others)


def test_an_exclusive_task_that_is_aborted_holds_nothing_up() -> None:
    world = World(2)
    (a,) = world.submit(None)
    (alone,) = world.submit(asks(exclusive=True))
    (later,) = world.submit(None)
    world.sim.ask(m.AbortTasks([alone]))
    world.end()
    world.end(a)
    assert later in world.running or world.sim.store.finals.get(later) is not None


# -- groups


def test_no_more_of_a_group_run_than_its_limit() -> None:
    world = World(4, nodes=("a", "b"))
    limited = asks(group="g", max_parallel=2)
    ids = world.submit(limited, 6)
    assert len(world.running) == 2
    assert "limit reached" in world.explain(ids[5])
    assert "max_parallel is 2" in world.explain(ids[5])
    (other,) = world.submit(None)
    assert other in world.running
    while world.running:
        assert len(world.running - {other}) <= 2
        world.end(*world.running)
    assert all(world.sim.store.finals[i].reason == "" for i in ids)


def test_a_limit_per_node() -> None:
    world = World(4, nodes=("a", "b"))
    ids = world.submit(asks(group="g", max_parallel_per_node=1), 5)
    assert len(world.running) == 2
    assert "max_parallel_per_node is 1" in world.explain(ids[4])
    while world.running:
        for agent in world.agents.values():
            assert sum(1 for e in agent.engines.values() if e.running) <= 1
        world.end(*world.running)
    assert len(world.sim.store.finals) == 5


# -- the load guard


def say_load(world: World, load: float, free_memory: int = 2**30) -> None:
    world.agents["a"].outbox.append(m.NodeState(load, free_memory, 2**40))
    world.move()
    world.begin()


def test_nothing_starts_above_the_load_limit_but_what_is_forced() -> None:
    world = World(3, load_limit=0.8)
    say_load(world, 0.9)
    (task,) = world.submit(None)
    (target,) = world.submit(Rules(targets=(0, 1, 2)))
    (forced,) = world.submit(asks(force=True))
    assert world.running == {forced}
    assert "load guard" in world.explain(task)
    assert "load guard" in world.explain(target)
    say_load(world, 0.5)
    assert world.running == {task, target, forced}


def test_nothing_starts_with_too_little_memory_free() -> None:
    world = World(1, free_memory_limit=2**29)
    say_load(world, 0.0, 2**28)
    (task,) = world.submit(None)
    assert world.running == set()
    assert "256 MiB of memory are free" in world.explain(task)
    say_load(world, 0.0, 2**30)
    assert world.running == {task}


# -- conditions


@pytest.mark.parametrize(
    ("name", "op", "value", "known", "holds"),
    [
        ("memory", ">=", 4, {"memory": 4}, True),
        ("memory", ">", 4, {"memory": 4}, False),
        ("hostname", "in", ("a", "b"), {"hostname": "b"}, True),
        ("hostname", "in", ("a", "b"), {"hostname": "c"}, False),
        ("hostname", "not in", ("a", "b"), {"hostname": "c"}, True),
        ("python", ">=", "3.9", {"python": "3.11.2"}, True),
        ("python", "<", "3.9", {"python": "3.11.2"}, False),
        ("python", "==", "3.11", {"python": "3.11.2"}, True),
        ("python", "!=", "3.11", {"python": "3.11.2"}, False),
        ("python", "in", ("3.11", "3.12"), {"python": "3.12.0"}, True),
        ("model", "==", "A100", {}, False),
        ("ram", ">", 3, {"ram": "much"}, False),
        ("bits", "==", 64, {"bits": 64}, True),
    ],
)
def test_conditions(name: str, op: str, value: object, known: dict[str, object], holds: bool) -> None:
    why = unmet(Condition(name, op, value), known)  # type: ignore[arg-type]
    assert (why == "") is holds
    assert holds or name in why


def test_only_engines_of_which_the_conditions_hold_are_used() -> None:
    sim = SimFarm()
    sim.join_client()
    small = sim.join_agent("small", facts={"memory": 2**30}, node="small")
    large = sim.join_agent("large", facts={"memory": 2**33}, node="large")
    sim.settle()
    sim.ask(m.SetWanted(2))
    for agent in (small, large):
        move(sim, agent)
    first = sim.ids().first
    for task_id in range(first, first + 6):
        sim.submit(task_id, asks(requires=(Condition("memory", ">=", 2**32),)))
    sim.settle()
    assert {final.node for final in sim.store.finals.values()} == {"large"}


def test_properties_are_conditions_too_and_change() -> None:
    world = World(2)
    (task,) = world.submit(asks(requires=(Condition("model", "==", "A100"),)))
    assert world.running == set()
    assert "this engine has no model" in world.explain(task)
    agent = world.agents["a"]
    engine = list(agent.engines.values())[1]
    agent.outbox.append(m.PropertiesChanged(engine.name, 1, b"", {"model": "A100"}))
    world.move()
    world.begin()
    assert engine.running == (task, 1)


def test_a_changing_condition_is_weighed_at_the_start() -> None:
    world = World(1)
    say_load(world, 0.9)
    (task,) = world.submit(asks(requires=(Condition("load", "<", 0.5),)))
    assert world.running == set()
    assert "load < 50%: it is 90%" in world.explain(task)
    (other,) = world.submit(None)
    assert world.running == {other}, "it delays nobody"
    world.end(other)
    say_load(world, 0.2)
    assert world.running == {task}


@pytest.mark.parametrize(
    ("rules", "named"),
    [
        (asks(requires=(Condition("model", "==", "A100"),), fail_if_unmet=True), "model == A100"),
        (asks(resources=(ResourceAmount("gpu", 1, 1),), fail_if_unmet=True), "it needs 1 gpu"),
        (
            asks(resources=(ResourceAmount("bus", 1, 1),), fail_if_unmet=True),
            "it needs 1 bus, and node a has 0 bus in all",
        ),
        (asks(requires=(Condition("load", "<", 0.1),), fail_if_unmet=True), "load < 10%"),
        (Rules(targets=(7,), asks=Asks(fail_if_unmet=True)), "targets"),
        (Rules(depend="d", asks=Asks(fail_if_unmet=True)), "depend function said no"),
    ],
)
def test_a_task_that_is_not_to_wait_fails_at_once_and_says_why(rules: Rules, named: str) -> None:
    world = World(2)
    say_load(world, 0.5)
    world.sim.verdict = False
    (task,) = world.submit(rules)
    world.sim.advance(0.5)
    final = world.sim.store.finals[task]
    assert final.reason == "unmet"
    assert final.failure is not None
    assert named in final.failure.value


def test_a_task_that_could_run_is_not_failed_for_waiting() -> None:
    world = World(1)
    (first,) = world.submit(None)
    (task,) = world.submit(asks(resources=(ResourceAmount("cores", 2, 2),), fail_if_unmet=True))
    world.sim.advance(5.0)
    assert task not in world.sim.store.finals
    world.end(first)
    assert world.running == {task}


def test_check_says_it_beforehand() -> None:
    world = World(2)
    found = world.sim.ask(m.CheckTask(Rules(targets=(1,), depend="d"), [Function("d", b"code")]))
    assert isinstance(found, m.Checked)
    assert [why for _, _, why in found.rows] == ["it is not among the task's targets [1]", ""]
    assert found.unmet == ""
    never = world.sim.ask(m.CheckTask(asks(requires=(Condition("model", "==", "A100"),))))
    assert isinstance(never, m.Checked)
    assert "model == A100" in never.unmet


def test_an_environment_waits_for_resources_without_costing_anybody_theirs() -> None:
    """A task that may not start now must not have an engine recycled for it."""
    world = World(1)
    environment = Environment(identity="A", name="A")
    (a,) = world.submit(Rules(asks=Asks(environment=environment)))
    world.end(a)
    other = Environment(identity="B", name="B")
    world.submit(Rules(asks=Asks(environment=other, resources=(ResourceAmount("cores", 3, 3),))))
    world.sim.advance(30.0)
    world.move()
    agent: SimAgent = world.agents["a"]
    assert agent.started == 1
