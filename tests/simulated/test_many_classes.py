"""Classes and conditions by the thousand, long values, and engines whose properties change all the time."""

from __future__ import annotations

from typing import Any

import pytest

from ipytaskfarm.core import messages as m
from ipytaskfarm.core.messages.task_types import Function, JobSpec, Rules
from ipytaskfarm.core.requirements import Condition
from ipytaskfarm.core.scheduler import eligibility
from ipytaskfarm.core.scheduler.entries import EngineEntry
from ipytaskfarm.core.scheduler.state import SchedulerState
from ipytaskfarm.core.scheduler.task import ClassKey
from tests.simulated.test_scheduler_resources import World, asks


def world_with(engines: int, **settings: Any) -> World:
    """Engines, and ids for thousands of tasks."""
    world = World(engines, what={"resources": {"cores": 100.0}}, **settings)
    while (ids := world.sim.ids()).last - ids.first < 4000:
        pass
    world.next_id = ids.first
    return world


def test_a_property_is_weighed_for_the_classes_that_ask_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A task may change one many times a second, and classes come by the ten thousand."""
    world = world_with(1)
    tasks = [world.submit(asks(requires=(Condition(f"p{n}", "==", "A100"),)))[0] for n in range(20)]
    agent = world.agents["a"]
    (engine,) = agent.engines.values()
    weighed: list[ClassKey] = []
    serves = eligibility.may_serve

    def weigh(farm: SchedulerState, engine: EngineEntry, key: ClassKey) -> bool:
        weighed.append(key)
        return serves(farm, engine, key)

    monkeypatch.setattr(eligibility, "may_serve", weigh)
    changes: list[dict[str, str | float | bool]] = [{"other": 1}, {"other": 2}, {"other": 2, "p7": "A100"}]
    for version, properties in enumerate(changes, 1):
        agent.outbox.append(m.PropertiesChanged(engine.name, version, b"", properties))
        world.move()
    world.begin()
    assert len(weighed) == 1
    assert world.running == {tasks[7]}


def test_empty_classes_are_not_looked_for_with_each_new_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(eligibility, "_KEPT_CLASSES", 10)
    looks: list[int] = []
    drop = eligibility._drop_empty_classes

    def look(farm: SchedulerState, kept: int) -> None:
        looks.append(kept)
        drop(farm, kept)

    monkeypatch.setattr(eligibility, "_drop_empty_classes", look)
    world = world_with(1)
    tasks = [world.submit(asks(requires=(Condition("model", "==", f"{n}"),)))[0] for n in range(200)]
    assert len(looks) < 20
    classes = world.sim.scheduler.farm.queues.classes
    assert len(classes) >= 200
    world.sim.ask(m.AbortTasks(tasks))
    for n in range(100):
        world.submit(asks(requires=(Condition("model", "==", f"new {n}"),)))
    assert len(classes) < 150, "those of tasks that have ended are dropped all the same"


def test_little_is_said_of_many_engines_and_long_values() -> None:
    world = world_with(30)
    long = Condition("model", "in", tuple(f"{n}" + "x" * 5000 for n in range(100)))
    (task,) = world.submit(asks(requires=(long,), fail_if_unmet=True))
    world.move()
    failure = world.sim.store.finals[task].failure
    assert failure is not None
    assert "engine 0: model in" in failure.value
    assert len(failure.value) <= 1000
    assert len(str(long)) < 10_000


def test_functions_with_long_digests_are_not_kept() -> None:
    world = world_with(0)
    long = Function("d" * 201, b"1")
    world.sim.handle(m.Submit([], [long]), "client")
    world.sim.handle(m.AskQuestion(1, m.CheckTask(None, [long, Function("d", b"2")])), "client")
    assert world.sim.scheduler.farm.functions.stored == {"d"}


def test_refusals_show_little_of_a_long_name_and_are_counted() -> None:
    world = world_with(0, max_tasks=3)
    farm = world.sim.scheduler.farm
    first, long = world.next_id, "j" * 9000
    world.sim.submit(first, Rules(job=long), jobs=[JobSpec(long, "n", 10, unique="u")])
    for task_id in range(first + 1, first + 4):
        world.sim.submit(task_id, Rules(job="other"), jobs=[JobSpec("other", "n", 10, unique="u")])
    assert len(farm.tasks.refusals) == 3
    assert all(len(text) < 400 for _, text in farm.tasks.refusals.values())
    world.sim.submit(first + 4)
    full = [each for each in world.sim.told["client"] if isinstance(each, m.Full)]
    assert "clear them" in full[-1].why
    world.sim.ask(m.Clear([first + 1]))
    world.sim.submit(first + 4)
    assert first + 4 in farm.tasks.unfinished
