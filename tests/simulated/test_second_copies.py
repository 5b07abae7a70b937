"""Second copies of idempotent tasks, on the simulated farm: when they begin, who wins, what is told."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from ipytaskfarm.core import messages as m
from ipytaskfarm.core.messages.task_types import JobSpec, Recovery, Rules
from ipytaskfarm.core.scheduler.settings import SchedulerSettings
from ipytaskfarm.testing.stepped_farm import SteppedAgent, SteppedEngine, SteppedFarm

from ..support.simulated_farm import final_of

RULES = Rules(job="j", idempotent=True)


class World:
    """Nodes with engines whose runs end after given times."""

    def __init__(self, nodes: int, engines: int, settings: SchedulerSettings | None = None) -> None:
        self.sim = SteppedFarm(settings)
        self.sim.join_client()
        self.sim.ids()
        self.agents = [
            self.sim.join_agent(f"n{number}:1", node=f"node{number}", brings=engines) for number in range(nodes)
        ]
        self.move()
        self.next_id = 0

    def move(self) -> None:
        for _ in range(4):
            for agent in self.agents:
                while agent.outbox:
                    self.sim.process(agent)
                while agent.inbox:
                    self.sim.deliver(agent)

    def submit(self, count: int, rules: Rules = RULES) -> list[int]:
        ids = list(range(self.next_id, self.next_id + count))
        self.next_id += count
        for task in ids:
            self.sim.submit(task, rules, jobs=[JobSpec("j", "j", 1_000_000)])
        self.move()
        return ids

    def engines(self) -> list[tuple[SteppedAgent, SteppedEngine]]:
        return [(agent, engine) for agent in self.agents for engine in agent.engines.values()]

    def begin_all(self) -> None:
        for _, engine in self.engines():
            self.sim.begin(engine)

    def end(self, task: int, outcome: str = "", attempt: int | None = None) -> None:
        """Let the run of a task end, the first one or the one with this number."""
        for agent, engine in self.engines():
            run = engine.running
            if run is not None and run[0] == task and attempt in (None, run[1]):
                self.sim.end(agent, engine, outcome, run_s=1.0)
                self.move()
                return
        raise AssertionError(f"task {task} does not run")

    def attempts(self, task: int) -> list[int]:
        return sorted(engine.running[1] for _, engine in self.engines() if engine.running and engine.running[0] == task)

    def warm_up(self, count: int = 12) -> None:
        """Let tasks of about a second end, so that the group can be compared."""
        for _ in range(count):
            (task,) = self.submit(1)
            self.begin_all()
            self.sim.advance(1.0)
            self.end(task)

    def slow_one(self) -> int:
        """Return a task that runs for so long that a second copy has begun."""
        (task,) = self.submit(1)
        self.begin_all()
        self.sim.advance(5.0)
        self.move()
        self.begin_all()
        return task


@pytest.fixture
def world() -> World:
    made = World(2, 2)
    made.warm_up()
    return made


def node_of(world: World, task: int, attempt: int) -> str:
    return next(agent.node for agent, engine in world.engines() if engine.running == (task, attempt))


def history(world: World, task: int) -> list[tuple[int, str, str]]:
    rows = world.sim.store.history.get(task, [])
    return [(row.number, row.outcome, row.failure.value if row.failure else "") for row in rows]


def test_a_copy_begins_on_another_node_and_the_first_end_counts(world: World) -> None:
    task = world.slow_one()
    assert world.attempts(task) == [1, 2]
    assert node_of(world, task, 1) != node_of(world, task, 2)
    explained = world.sim.ask(m.ExplainTasks(task))
    assert isinstance(explained, m.TextReply)
    assert "and a second copy on engine" in explained.text
    world.sim.advance(1.0)
    world.end(task, attempt=2)
    final = final_of(world.sim, task)
    assert final.reason == ""
    ((number, outcome, text),) = history(world, task)
    assert (number, outcome) == (1, "overtaken")
    assert "took" in text
    assert "was not done after 6" in text
    assert world.attempts(task) == [], "the slow run was not interrupted"


def test_the_first_run_may_win(world: World) -> None:
    task = world.slow_one()
    world.end(task, attempt=1)
    assert final_of(world.sim, task).reason == ""
    assert history(world, task)[0][:2] == (2, "overtaken")
    assert "was not needed" in history(world, task)[0][2]
    assert world.attempts(task) == []


@pytest.mark.parametrize("fails", [1, 2])
def test_a_failure_of_one_run_leaves_the_other(world: World, fails: int) -> None:
    task = world.slow_one()
    world.end(task, "error", attempt=fails)
    assert world.attempts(task) == [3 - fails]
    assert history(world, task)[0][:2] == (fails, "error")
    world.end(task, attempt=3 - fails)
    assert final_of(world.sim, task).reason == ""


def test_the_second_failure_is_the_tasks(world: World) -> None:
    task = world.slow_one()
    world.end(task, "error", attempt=2)
    world.end(task, "error", attempt=1)
    assert final_of(world.sim, task).reason == "error"


@pytest.mark.parametrize("loses", [1, 2])
def test_the_loss_of_one_engine_leaves_the_other_run(world: World, loses: int) -> None:
    task = world.slow_one()
    agent, engine = next((a, e) for a, e in world.engines() if e.running == (task, loses))
    world.sim.kill(agent, engine)
    world.move()
    assert world.attempts(task) == [3 - loses]
    world.end(task, attempt=3 - loses)
    assert final_of(world.sim, task).reason == ""


def test_an_abort_stops_both(world: World) -> None:
    task = world.slow_one()
    world.sim.ask(m.AbortTasks([task]))
    world.move()
    assert final_of(world.sim, task).reason == "aborted"
    assert world.attempts(task) == []


def test_a_restart_of_the_controller_keeps_both(world: World) -> None:
    task = world.slow_one()
    world.sim.crash()
    world.sim.join_client()
    world.move()
    assert world.attempts(task) == [1, 2]
    world.end(task, attempt=2)
    assert final_of(world.sim, task).reason == ""
    assert world.attempts(task) == []


@pytest.mark.parametrize(
    ("nodes", "rules", "settings"),
    [
        (2, Rules(job="j"), SchedulerSettings()),
        (1, RULES, SchedulerSettings()),
        (2, RULES, SchedulerSettings(second_copy_after=50.0)),
        (2, RULES, SchedulerSettings(second_copy_least=100)),
    ],
    ids=["not idempotent", "one node", "not slow enough", "too few have ended"],
)
def test_no_copy(nodes: int, rules: Rules, settings: SchedulerSettings) -> None:
    world = World(nodes, 2, settings)
    for _ in range(12):
        (task,) = world.submit(1, rules)
        world.begin_all()
        world.sim.advance(1.0)
        world.end(task)
    (task,) = world.submit(1, rules)
    world.begin_all()
    world.sim.advance(30.0)
    world.move()
    world.begin_all()
    assert world.attempts(task) == [1]


def test_on_one_node_if_that_is_set() -> None:
    world = World(1, 2, SchedulerSettings(second_copies_on="any engine"))
    world.warm_up()
    assert world.attempts(world.slow_one()) == [1, 2]


def test_waiting_tasks_go_before_copies_and_no_engine_is_asked_for(world: World) -> None:
    slow = world.submit(1)[0]
    world.begin_all()
    world.submit(8, Rules(priority=-1))
    world.begin_all()
    before = world.sim.scheduler.farm.lifecycle.wanted
    world.sim.advance(30.0)
    world.move()
    assert world.attempts(slow) == [1]
    assert world.sim.scheduler.farm.lifecycle.wanted == before


def test_a_node_that_loses_races_is_set_aside_and_named() -> None:
    world = World(3, 2)
    world.warm_up()
    for _ in range(3):
        first = world.agents[0]
        for agent in world.agents[1:]:
            world.sim.ask(m.DrainNode([agent.node]))
        (task,) = world.submit(1)
        world.begin_all()
        world.sim.ask(m.DrainNode([agent.node for agent in world.agents[1:]], on=False))
        world.sim.advance(5.0)
        world.move()
        world.begin_all()
        assert world.attempts(task) == [1, 2]
        world.end(task, attempt=2)
    farm = world.sim.scheduler.farm
    excluded = farm.agents.by_session[first.session].excluded
    assert "3 runs in a row on node0 were overtaken" in excluded
    assert any("node0" in line for line in farm.diagnostics.losses)


class Chance:
    """A job of tasks with stragglers by chance, run to its end in simulated time."""

    def __init__(self, seed: int, copies: bool) -> None:
        self.random = random.Random(seed)
        self.world = World(self.random.randint(2, 4), self.random.randint(1, 6))
        self.copies = copies
        self.most = 0

    def duration(self, node: str, slow: str) -> float:
        base = self.random.uniform(0.8, 1.2)
        return base * (20.0 if node == slow and self.random.random() < 0.3 else 1.0)

    def run(self, tasks: int) -> float:
        """Return how long the job took."""
        world, sim = self.world, self.world.sim
        ids = world.submit(tasks, Rules(job="j", idempotent=self.copies, lost_retries=2))
        began_s = sim.now.mono_s
        slow = self.random.choice(world.agents).node
        ends: dict[str, tuple[tuple[int, int], float]] = {}
        takes: dict[str, float] = {}
        while not all(i in sim.store.finals for i in ids):
            for agent, engine in world.engines():
                sim.begin(engine)
                run = engine.running
                if run is None:
                    ends.pop(engine.name, None)
                elif ends.get(engine.name, ((-1, -1), 0.0))[0] != run:
                    takes[engine.name] = self.duration(agent.node, slow)
                    ends[engine.name] = run, sim.now.mono_s + takes[engine.name]
            farm = sim.scheduler.farm
            up = len(farm.engines.by_name)
            self.most = max(self.most, len(farm.second_copies.others))
            assert len(farm.second_copies.others) <= max(1, int(up * 0.05)), "more copies than the budget"
            next_s = min((at for _, at in ends.values()), default=sim.now.mono_s)
            sim.advance_to(max(sim.now.mono_s, min(next_s, sim.now.mono_s + 0.5)))
            for agent, engine in world.engines():
                due = ends.get(engine.name)
                if due is not None and engine.running == due[0] and due[1] <= sim.now.mono_s + 1e-9:
                    outcome = "error" if self.random.random() < 0.01 else ""
                    sim.end(agent, engine, outcome, run_s=takes[engine.name])
                    del ends[engine.name]
            world.move()
        return sim.now.mono_s - began_s


def chances(seeds: Sequence[int], copies: bool) -> tuple[float, int]:
    """Return (the time that all these jobs took together, how many of them had second copies)."""
    total_s, with_copies = 0.0, 0
    for seed in seeds:
        job = Chance(seed, copies)
        total_s += job.run(16)
        with_copies += job.most > 0
    return total_s, with_copies


def test_jobs_with_stragglers_by_chance() -> None:
    """The simulated store asserts that no task ends twice.  `SECOND_COPY_JOBS` sets another number of jobs."""
    import os

    seeds = range(int(os.environ.get("SECOND_COPY_JOBS", "40")))
    with_s, copied = chances(seeds, copies=True)
    assert copied > len(seeds) / 4
    without_s, none = chances(seeds, copies=False)
    assert none == 0
    assert with_s < without_s


@pytest.mark.parametrize("idempotent", [False, True])
def test_a_recovery_task_has_a_second_copy_only_if_it_is_idempotent_itself(idempotent: bool) -> None:
    world = World(2, 2, SchedulerSettings(second_copy_least=3))
    world.warm_up()
    recovery = Recovery(b"recovery", None, Rules(job="j", idempotent=idempotent))
    rules = Rules(job="j", idempotent=True, recovery=recovery)
    for n in range(5):
        (task,) = world.submit(1, rules)
        world.begin_all()
        world.end(task, "error")
        world.begin_all()
        world.sim.advance(1.0 if n < 4 else 30.0)
        world.move()
        world.begin_all()
        assert len(world.attempts(task)) == (2 if n == 4 and idempotent else 1)
        world.end(task, attempt=2)
    assert not world.sim.scheduler.farm.second_copies.group_of


def test_a_mark_on_a_task_with_two_runs_names_the_run_that_decides(world: World) -> None:
    """It took the number of the copy, of which the history has a row already if it failed before."""
    (task,) = world.submit(1, Rules(job="j", idempotent=True, retries=1))
    world.begin_all()
    world.sim.advance(5.0)
    world.move()
    world.begin_all()
    world.end(task, "error", attempt=2)
    world.sim.ask(m.MarkTasksFailed(task, "wrong"))
    assert [row[:2] for row in history(world, task)] == [(2, "error"), (1, "error")]
