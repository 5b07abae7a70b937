"""Which engine prepares itself for which environment, when engines are recycled, and what jobs have to do with it."""

from __future__ import annotations

import pytest

from ipytaskfarm.core import messages as m
from ipytaskfarm.core.messages.task_types import Recovery, Rules
from ipytaskfarm.core.requirements import Asks, Recycle
from ipytaskfarm.core.scheduler import environments, placement
from ipytaskfarm.core.scheduler.decision import Decision, Now
from ipytaskfarm.core.scheduler.state import SchedulerState
from tests.support.thorough import by_hand

from ..support.environment_world import World, env, rules

# -- the five situations of seed 003


def test_an_idle_engine_that_has_it_is_reused() -> None:
    world = World(2, warm=0)
    world.submit(rules("A"))
    world.run_all()
    first = world.engine_of("A").name
    world.submit(rules("A"))
    world.run_all()
    assert world.ran == [(first, 0), (first, 1)]
    assert world.agent.started == 1


def test_a_free_slot_goes_before_recycling() -> None:
    world = World(2, warm=0)
    world.submit(rules("A"))
    world.run_all()
    world.submit(rules("B"))
    world.run_all()
    assert world.environments == ["A", "B"]
    assert world.agent.started == 2


def test_without_a_free_slot_an_idle_engine_makes_room() -> None:
    world = World(2, warm=0)
    for name in "AB":
        world.submit(rules(name))
        world.run_all()
    world.submit(rules("C"))
    world.run_all()
    assert len(world.has) == 2
    assert "C" in world.environments
    assert "B" in world.environments, "the one that was idle for longest goes"
    assert world.agent.started == 3


@pytest.mark.parametrize("tasks", [1, 31, 32, 33])
def test_an_engine_is_recycled_when_its_count_is_full(tasks: int) -> None:
    world = World(1, warm=0)
    for _ in range(tasks):
        world.submit(rules("A", Recycle(after_tasks=32)))
    world.run_all()
    names = [name for name, _ in world.ran]
    assert [names.count(name) for name in dict.fromkeys(names)] == ([tasks] if tasks <= 32 else [32, tasks - 32])
    assert len(world.agent.engines) == (0 if tasks == 32 else 1)


def test_quick_tasks_are_not_sent_ahead_past_a_count() -> None:
    world = World(1)
    for _ in range(30):
        world.submit(rules("A", Recycle(after_tasks=7)))
    for _ in range(60):
        for engine in list(world.agent.engines.values()):
            held = len(engine.queue) + (engine.running is not None)
            assert engine.finished + held <= 7
        world.run(run_s=0.0001)
    assert len(world.ran) == 30


# -- which one


def test_a_blank_engine_prefers_what_nobody_has() -> None:
    world = World(3)
    for name in "AAABBC":
        world.submit(rules(name))
    assert world.environments == ["A", "A", "A"]  # the first three came alone: nobody knew of the others
    world = World(0)
    for name in "AAABBC":
        world.submit(rules(name))
    world.sim.ask(m.SetWanted(3))
    world.move()
    assert world.environments == ["A", "B", "C"]
    world.run_all()
    assert world.agent.started <= 4


def test_the_engine_that_has_it_goes_before_a_blank_one() -> None:
    world = World(3)
    world.submit(rules("A"))
    world.run_all()
    first = world.engine_of("A").name
    for _ in range(5):
        world.submit(rules("A"))
        world.run_all()
    assert {name for name, _ in world.ran} == {first}


def test_tasks_without_an_environment_take_blank_engines_first() -> None:
    world = World(2)
    world.submit(rules("A"))
    world.run_all()
    prepared = world.engine_of("A").name
    for _ in range(4):
        world.submit(None)
        world.run_all()
    assert prepared not in {name for name, task in world.ran if task > 0}


def test_an_engine_goes_on_with_its_own_environment_among_equals() -> None:
    for patience_s, order in ((None, "own"), (10.0, "own"), (1.0, "passed over")):
        world = World(1, environment_patience_s=patience_s)
        first = world.submit(rules("A"))
        plain = world.submit(None)
        own = world.submit(rules("A"))
        world.sim.advance(5.0)
        world.run_all()
        expected = [first, own, plain] if order == "own" else [first, plain, own]
        assert [task for _, task in world.ran] == expected


def test_tasks_without_an_environment_recycle_nobody() -> None:
    world = World(1)
    world.submit(rules("A"))
    world.run_all()
    for _ in range(3):
        world.submit(None)
    world.run_all()
    assert world.environments == ["A"]
    assert world.agent.started == 1


def test_an_own_task_goes_first_among_equals_but_not_before_a_more_urgent_one() -> None:
    world = World(1, environment_patience_s=None)
    first = world.submit(rules("A"))
    b = world.submit(rules("B"))
    a = world.submit(rules("A"))
    urgent = world.submit(rules("C", priority=5))
    late = world.submit(rules("A"))
    world.run_all()
    assert [task for _, task in world.ran] == [first, urgent, b, a, late]


def test_who_was_passed_over_for_too_long_gets_an_engine() -> None:
    world = World(1, environment_patience_s=10.0)
    world.submit(rules("A"))
    b = world.submit(rules("B"))
    for _ in range(30):
        world.submit(rules("A"))
    done = []
    for _ in range(40):
        world.sim.advance(1.0)
        done += world.run()
    assert 8 <= done.index(b) <= 13


def test_without_patience_who_came_later_goes_on() -> None:
    world = World(1, environment_patience_s=None)
    world.submit(rules("A"))
    b = world.submit(rules("B"))
    for _ in range(30):
        world.submit(rules("A"))
    done = []
    for _ in range(40):
        world.sim.advance(1.0)
        done += world.run()
    assert done[-1] == b


@by_hand
def test_a_thousand_tasks_of_fifty_environments_on_four_slots() -> None:
    """The simulated optimum: each environment is set up once, so 46 engines are recycled."""
    world = World(0, environment_patience_s=None)
    for i in range(1000):
        world.sim.submit(world.next_id + i, rules(f"E{i % 50}"))
    world.sim.ask(m.SetWanted(4))
    world.move()
    world.run_all()
    assert len(world.ran) == 1000
    assert world.agent.started - 4 <= 1.2 * 46


def test_edited_environments_make_room_first() -> None:
    world = World(2)
    old = Rules(asks=Asks(environment=env("old", unique="db|None")))
    world.submit(old)
    world.submit(rules("A"))
    world.run_all()
    world.sim.told.clear()
    world.submit(Rules(asks=Asks(environment=env("new", unique="db|None"))))
    notices = [message for message in world.sim.told["client"] if isinstance(message, m.Notice)]
    assert "has changed" in notices[0].text
    world.run_all()
    assert world.environments == ["A", "new"]


def test_the_first_variant_wins_and_the_user_is_told() -> None:
    world = World(1)
    world.submit(Rules(asks=Asks(environment=env("db", unique="db|None", variant="1"))))
    world.sim.told.clear()
    world.submit(Rules(asks=Asks(environment=env("db", unique="db|None", variant="2"))))
    notices = [message.text for message in world.sim.told["client"] if isinstance(message, m.Notice)]
    assert len(notices) == 1
    assert "other attributes" in notices[0]


# -- recycling by time, memory, failure


def test_an_idle_engine_is_recycled_after_its_time() -> None:
    world = World(1)
    world.submit(rules("A", Recycle(idle_s=1.0)))
    world.run_all()
    world.sim.advance(0.9)
    world.move()
    assert world.environments == ["A"]
    world.sim.advance(0.2)
    world.move()
    assert world.environments == [None]


def test_a_look_at_an_idle_engine_does_not_make_it_busy() -> None:
    world = World(1)
    world.submit(rules("A", Recycle(idle_s=1.0)))
    world.run_all()
    for _ in range(3):
        world.sim.advance(0.35)
        world.sim.ask(m.SpinFarm())
    world.move()
    assert world.environments == [None]


def test_an_engine_that_works_is_not_idle() -> None:
    world = World(1)
    for _ in range(5):
        world.submit(rules("A", Recycle(idle_s=1.0)))
        world.sim.advance(0.8)
        world.run_all()
    assert world.agent.started == 1


def test_an_interval_counts_from_the_start_and_waits_for_the_task() -> None:
    world = World(1)
    world.submit(rules("A", Recycle(interval_s=5.0)))
    engine = world.engine_of("A")
    world.sim.begin(engine)
    world.sim.advance(8.0)
    world.move()
    assert engine.name in world.has, "never within a task"
    world.sim.ask(m.SetWanted(1))
    world.move()
    assert world.agent.started == 1, "its slot is not free before it has ended"
    world.sim.end(world.agent, engine)
    world.move()
    assert engine.name not in world.has


def test_a_time_of_day_is_the_nodes_own() -> None:
    world = World(1)
    offset_s = 3600
    world.agent.outbox.append(m.NodeState(0.0, 2**30, 2**30, offset_s))
    world.move()
    local_s = int(world.sim.now.wall_s + offset_s) % 86400
    world.submit(rules("A", Recycle(at_times_s=((local_s + 100) % 86400, (local_s + 5000) % 86400))))
    world.run_all()
    world.sim.advance(98)
    world.move()
    assert world.environments == ["A"]
    world.sim.advance(3)
    world.move()
    assert world.environments == [None]


def test_memory_recycles_after_the_task_that_reached_it() -> None:
    world = World(1)
    for _ in range(4):
        world.submit(rules("A", Recycle(memory_bytes=100)))
    for memory in (40, 99, 100, 10):
        world.run(memory=memory)
    names = [name for name, _ in world.ran]
    assert [names.count(name) for name in dict.fromkeys(names)] == [3, 1]


def test_a_failure_recycles_only_where_that_was_asked_for() -> None:
    for on_failure, started in ((True, 2), (False, 1)):
        world = World(1)
        world.submit(rules("A", Recycle(on_failure=on_failure, after_tasks=100)))
        world.run("error")
        assert world.agent.started == started


def test_settings_of_the_empty_environment_count_its_own_job_alone() -> None:
    world = World(1)
    for _ in range(5):
        world.submit(None)
    world.submit(rules(None, Recycle(after_tasks=2), job="j"))
    world.submit(None)
    world.submit(rules(None, Recycle(after_tasks=2), job="j"))
    world.submit(None)
    world.run_all()
    names = [name for name, _ in world.ran]
    assert [names.count(name) for name in dict.fromkeys(names)] == [8, 1]


def test_a_recovery_task_needs_no_more_what_the_first_one_did() -> None:
    world = World(1)
    world.submit(rules("B"))  # its code comes with it
    world.run_all()
    recovery = Recovery(b"recovery", None, rules("B"))
    task = world.submit(rules("A", Recycle(when_unreferenced=True), recovery=recovery))
    world.run("error")
    world.run_all()
    assert world.sim.store.finals[task].reason == ""
    assert world.environments == ["B"], "its environment went with the first of its links"


# -- what a crash of the controller leaves


def test_engines_keep_their_environments_over_a_restart() -> None:
    world = World(1)
    for _ in range(3):
        world.submit(rules("A", Recycle(after_tasks=5)))
    world.run_all()
    kept = world.engine_of("A").name
    world.sim.crash()
    world.move()
    farm = world.sim.scheduler.farm
    assert farm.engines.by_name[kept].environment == env("A")
    world.sim.join_client("other")
    world.next_id = world.sim.ids("other").first
    for _ in range(3):
        world.sim.submit(world.next_id, rules("A", Recycle(after_tasks=5)), "other")
        world.next_id += 1
        world.move()
    world.run_all()
    names = [name for name, _ in world.ran]
    assert names.count(kept) == 5, "its count goes on"


# -- setup errors


def test_an_engine_that_cannot_be_set_up_is_replaced() -> None:
    world = World(1)
    task = world.submit(rules("A"))
    other = world.submit(rules("B"))
    engine = world.engine_of("A")
    world.sim.begin(engine)
    world.sim.end(world.agent, engine, "environment setup")
    world.agent.outbox.append(m.SetUp(engine.name, "A", "ValueError: no"))
    world.move()
    assert world.sim.store.finals[task].reason == "environment setup"
    world.run_all()
    assert world.sim.store.finals[other].reason == ""
    assert world.agent.started == 2
    assert engine.name not in world.has


# -- warm


def test_free_slots_hold_as_many_blank_engines_as_are_kept_warm() -> None:
    world = World(4, warm=1)
    assert world.environments == [None]
    for name in "ABC":
        world.submit(rules(name))
        world.run_all()
    world.sim.advance(0.1)
    world.move()
    assert world.environments == ["A", "B", "C", None]
    world.submit(rules("D"))
    world.run_all()
    world.sim.advance(0.1)
    world.move()
    assert world.environments == ["A", "B", "C", "D"]


def test_blank_engines_that_are_too_many_end() -> None:
    world = World(3, warm=0, warm_s=10.0)
    for _ in range(3):
        world.submit(None)
    world.sim.advance(0.0)
    world.move()
    world.run_all()
    assert len(world.has) >= 1
    world.sim.advance(11.0)
    world.move()
    assert world.has == {}


def test_what_changes_when_room_is_made_is_looked_at_in_the_same_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine that tasks avoid is the only one for them from the moment when the other one is recycled.

    Such a turn needs two environments, a failure and runs sent ahead; life 7,876 of the simulation had one.
    """
    world = World(2, warm=0)
    world.submit(rules("A"))
    engine = world.sim.scheduler.farm.engines.by_name[world.engine_of("A").name]

    def make_room(farm: SchedulerState, now: Now, out: Decision) -> None:
        usual(farm, now, out)
        farm.readiness.wake(engine)

    usual = environments.make_room
    monkeypatch.setattr(placement, "make_room", make_room)
    world.sim.advance(0.0)
    world.sim.scheduler.check()
    assert not world.sim.scheduler.farm.readiness.candidates
