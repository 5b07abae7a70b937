"""Frozen engines: which are kept, how they leave the pool, and how they end."""

from __future__ import annotations

import pytest

from ipytaskfarm.core import messages as m
from ipytaskfarm.core.messages.tables import EngineTable, FrozenRow
from ipytaskfarm.core.messages.task_types import FailureSummary, ItemEnd, ItemsEnded, Rules
from ipytaskfarm.core.scheduler.frozen_engines import NOTES_KEPT
from ipytaskfarm.core.scheduler.settings import SchedulerSettings
from ipytaskfarm.core.states import State

from ..support.simulated_farm import SimAgent, SimEngine, SimFarm, farm_with_engines, final_of, move

FREEZES = Rules(freeze=True)
FAILURE = FailureSummary("ValueError", "planted")


def engines_of(agent: SimAgent) -> list[SimEngine]:
    """Return the engines of the pool."""
    return [engine for engine in agent.engines.values() if engine.frozen is None]


def rows(sim: SimFarm) -> list[FrozenRow]:
    reply = sim.ask(m.ListEngines())
    assert isinstance(reply, EngineTable)
    return reply.frozen


def fail(sim: SimFarm, rules: Rules = FREEZES, outcome: str = "error") -> int:
    """Hand in a task, and let it fail on the first engine that has got it."""
    task_id = sim.ids().first
    sim.submit(task_id, rules)
    agent = sim.agents["agent"]
    move(sim, agent)
    engine = next(e for e in engines_of(agent) if any(run[0] == task_id for run in e.queue))
    sim.begin(engine)
    sim.end(agent, engine, outcome)
    move(sim, agent)
    return task_id


@pytest.fixture
def sim() -> SimFarm:
    return farm_with_engines(2)


def test_the_engine_leaves_the_pool_and_its_slot_is_filled_in_the_same_turn(sim: SimFarm) -> None:
    agent = sim.agents["agent"]
    task_id = sim.ids().first
    sim.submit(task_id, FREEZES)
    move(sim, agent)
    engine = next(e for e in agent.engines.values() if e.queue)
    sim.begin(engine)
    sim.end(agent, engine, "error")
    sim.process(agent)  # the result alone
    assert [message.id for message in agent.inbox if isinstance(message, m.StartEngine)] == [engine.id]
    assert engine.name not in sim.scheduler.farm.engines.by_name
    move(sim, agent)
    (row,) = rows(sim)
    assert (row.engine, row.id, row.task, row.attempt, row.error) == (
        engine.name,
        engine.id,
        task_id,
        1,
        "ValueError: planted",
    )
    assert sorted(e.id for e in engines_of(agent)) == [0, 1]
    assert final_of(sim, task_id).reason == "error"


def test_a_task_that_succeeds_or_asks_for_nothing_keeps_its_engine(sim: SimFarm) -> None:
    for rules, outcome in ((FREEZES, ""), (Rules(), "error"), (FREEZES, "rejected")):
        fail(sim, rules, outcome)
    assert not rows(sim)
    assert sim.agents["agent"].started == 2


def test_a_retry_goes_on_elsewhere_and_keeps_no_second_engine(sim: SimFarm) -> None:
    agent = sim.agents["agent"]
    task_id = fail(sim, Rules(freeze=True, retries=2))
    (row,) = rows(sim)
    reply = sim.ask(m.ExplainTasks(task_id))
    assert isinstance(reply, m.TextReply)
    assert (
        f"the engine of attempt 1 on node is frozen for 600 s more: tc.debug({task_id}) opens its frames" in reply.text
    )
    engine = next(e for e in agent.engines.values() if e.queue)
    assert engine.name != row.engine
    sim.begin(engine)
    sim.end(agent, engine, "error")
    move(sim, agent)
    assert [row.attempt for row in rows(sim)] == [1]


def test_so_many_are_kept_on_a_node_and_no_more() -> None:
    sim = farm_with_engines(3, SchedulerSettings(frozen_engines=2))
    kept = [fail(sim) for _ in range(4)]
    assert [row.task for row in rows(sim)] == kept[:2]
    sim.ask(m.ReleaseFrozen([kept[0]]))
    move(sim, sim.agents["agent"])
    assert [row.task for row in rows(sim)] == kept[1:2]
    assert [row.task for row in rows(sim)] + [fail(sim)] == [row.task for row in rows(sim)]


def test_one_beyond_the_limit_is_replaced() -> None:
    """Three begin while there is room for one."""
    sim = farm_with_engines(3, SchedulerSettings(frozen_engines=1))
    agent = sim.agents["agent"]
    for _ in range(3):
        sim.submit(sim.ids().first, FREEZES)
    move(sim, agent)
    for engine in engines_of(agent):
        sim.begin(engine)
        sim.end(agent, engine, "error")
    sim.settle()
    assert len(rows(sim)) == 1
    assert sorted(e.id for e in engines_of(agent)) == [0, 1, 2]
    assert len(agent.engines) == 4


def test_none_is_kept_where_none_may_be() -> None:
    sim = farm_with_engines(1, SchedulerSettings(frozen_engines=0))
    fail(sim)
    assert not rows(sim)
    assert sim.agents["agent"].started == 1


def explained(sim: SimFarm, task_id: int) -> str:
    reply = sim.ask(m.ExplainTasks(task_id))
    assert isinstance(reply, m.TextReply)
    return reply.text


def test_why_none_is_kept_is_explained() -> None:
    """Where the limit was reached, before the run or during it, and where nothing could be kept."""
    sim = farm_with_engines(3, SchedulerSettings(frozen_engines=1))
    agent = sim.agents["agent"]
    first, second = (fail(sim, Rules(freeze=True, retries=1)) for _ in range(2))
    why = "node has one frozen engine already, as many as it may have: tc.release() ends them"
    assert f"the engine of attempt 1 on node was not frozen: {why}" in explained(sim, second)
    assert "was not frozen" not in explained(sim, first)
    assert why in sim.ask(m.ListEngines()).thawed[second]  # type: ignore[union-attr]
    sim.settle()
    sim.ask(m.ReleaseFrozen([first]))
    sim.settle()
    begun = [sim.ids().first]
    sim.submit(begun[0], FREEZES)
    begun.append(sim.ids().first)
    sim.submit(begun[1], FREEZES)
    move(sim, agent)
    for engine in engines_of(agent):
        if engine.queue:
            sim.begin(engine)
            sim.end(agent, engine, "error")
    sim.settle()
    (row,) = rows(sim)
    (missed,) = set(begun) - {row.task}
    assert why in explained(sim, missed)
    lost = sim.ids().first
    sim.submit(lost, FREEZES)
    move(sim, agent)
    engine = next(e for e in engines_of(agent) if e.queue)
    sim.begin(engine)
    sim.kill(agent, engine)
    sim.settle()
    assert "was not frozen: it has ended, and its frames with it" in explained(sim, lost)
    none = farm_with_engines(1, SchedulerSettings(frozen_engines=0))
    assert "this farm freezes no engines: `--frozen-engines` allows some" in explained(none, fail(none))


def test_of_an_old_failure_the_limits_are_explained() -> None:
    """Notes are bounded, and a restarted controller has none."""
    sim = farm_with_engines(1, SchedulerSettings(frozen_engines=1))
    fail(sim)
    failed = fail(sim)
    plain = fail(sim, Rules())
    sim.crash()
    sim.join_client()
    sim.settle()
    assert f"no engine is frozen for task {failed}: a node keeps at most 1 (`--frozen-engines`)" in explained(
        sim, failed
    )
    assert "frozen" not in explained(sim, plain)
    for _ in range(NOTES_KEPT + 5):
        fail(sim)
    assert len(sim.scheduler.farm.frozen.missed) == NOTES_KEPT
    off = farm_with_engines(1, SchedulerSettings(frozen_engines=0))
    failed = fail(off)
    off.scheduler.farm.frozen.missed.clear()
    assert f"no engine is frozen for task {failed}: this farm freezes no engines" in explained(off, failed)


def test_runs_behind_the_failed_one_go_elsewhere_uncharged() -> None:
    sim = farm_with_engines(1)
    agent = sim.agents["agent"]
    for _ in range(20):  # the class is known to be quick
        sim.submit(sim.ids().first, FREEZES)
        sim.settle()
    first = sim.ids().first
    ids = list(range(first, first + 5))
    for task_id in ids:
        sim.submit(task_id, FREEZES)
    move(sim, agent)
    (engine,) = engines_of(agent)
    assert len(engine.queue) > 1
    sim.begin(engine)
    sim.end(agent, engine, "error")
    sim.settle()
    assert [final_of(sim, task_id).reason for task_id in ids] == ["error", "", "", "", ""]
    assert all(len(sim.begun[task_id]) == 1 and not final_of(sim, task_id).history for task_id in ids)


def test_an_item_of_a_chunk(sim: SimFarm) -> None:
    agent = sim.agents["agent"]
    chunk = sim.ids().first
    sim.submit(chunk, FREEZES, items=4)
    move(sim, agent)
    engine = next(e for e in agent.engines.values() if e.queue)
    sim.begin(engine)
    sim.end(agent, engine, detail=ItemsEnded(2, [ItemEnd(1, "error", 0.001, FAILURE, b"body")]))
    move(sim, agent)
    assert [row.task for row in rows(sim)] == [chunk + 2]
    sim.settle()
    assert sim.scheduler.farm.tasks.counts[State.SUCCEEDED] == 3


def test_it_ends_when_nobody_has_used_it_for_its_time() -> None:
    sim = farm_with_engines(1, SchedulerSettings(frozen_s=100.0))
    agent = sim.agents["agent"]
    fail(sim)
    (engine,) = [e for e in agent.engines.values() if e.frozen is not None]
    sim.advance(90.0)
    sim.use(agent, engine)
    move(sim, agent)
    sim.advance(90.0)
    assert [round(row.ends_s - sim.now.wall_s) for row in rows(sim)] == [10]
    sim.advance(20.0)
    assert [row.state for row in rows(sim)] == ["ending"]
    move(sim, agent)
    assert not rows(sim)
    assert not sim.scheduler.farm.diagnostics.losses
    assert len(agent.engines) == 1


def test_it_is_known_again_after_a_restart_of_the_controller_with_the_time_that_it_had_left() -> None:
    sim = farm_with_engines(1, SchedulerSettings(frozen_s=100.0))
    agent = sim.agents["agent"]
    task_id = fail(sim)
    sim.advance(60.0)
    sim.crash()
    sim.join_client()
    move(sim, agent)
    (row,) = rows(sim)
    assert row.task == task_id
    assert round(row.ends_s - sim.now.wall_s) == 40
    assert len(engines_of(agent)) == 1
    sim.advance(41.0)
    move(sim, agent)
    assert not rows(sim)


@pytest.mark.parametrize("processed", [0, 1, 2])
def test_a_controller_that_dies_around_the_failure_keeps_the_engine(processed: int) -> None:
    sim = farm_with_engines(1)
    agent = sim.agents["agent"]
    task_id = sim.ids().first
    sim.submit(task_id, FREEZES)
    move(sim, agent)
    (engine,) = agent.engines.values()
    sim.begin(engine)
    sim.end(agent, engine, "error")
    for _ in range(processed):
        sim.process(agent)
    sim.crash()
    sim.join_client()
    sim.settle()
    assert [row.task for row in rows(sim)] == [task_id]
    assert (final_of(sim, task_id).reason, final_of(sim, task_id).attempts) == ("error", 1)
    assert len(engines_of(agent)) == 1


def test_the_death_of_a_frozen_engine_is_told_and_charges_nobody(sim: SimFarm) -> None:
    agent = sim.agents["agent"]
    task_id = fail(sim, Rules(freeze=True, retries=1))
    (engine,) = [e for e in agent.engines.values() if e.frozen is not None]
    sim.kill(agent, engine)
    sim.settle()
    assert not rows(sim)
    assert list(sim.scheduler.farm.diagnostics.losses) == [
        f"the frozen engine of task {task_id} on node was ended by signal 9 (SIGKILL)"
    ]
    assert final_of(sim, task_id).reason == ""
    assert [row.outcome for row in final_of(sim, task_id).history] == ["error"]


def test_it_ends_with_its_agent(sim: SimFarm) -> None:
    agent = sim.join_agent("placed", name="slurm-1.1", brings=1, node="other")
    sim.settle()
    task_id = sim.ids().first
    placed = next(e for e in agent.engines.values())
    sim.submit(task_id, Rules(freeze=True, targets=(placed.id,)))
    move(sim, agent)
    sim.begin(placed)
    sim.end(agent, placed, "error")
    move(sim, agent)
    assert [row.node for row in rows(sim)] == ["other"]
    sim.ask(m.RemoveAgents(["slurm-1"], 1.0))
    sim.settle()
    assert not rows(sim)
    assert "placed" not in sim.agents


def test_what_cannot_be_released_is_named(sim: SimFarm) -> None:
    task_id = fail(sim)
    reply = sim.ask(m.ReleaseFrozen([task_id, 9999]))
    assert isinstance(reply, m.Refusal)
    assert reply.text.startswith("no engine is frozen for task 9999")
    assert len(rows(sim)) == 1
    assert sim.ask(m.ReleaseFrozen()) == m.NumberReply(1)
    assert sim.ask(m.ReleaseFrozen()) == m.NumberReply(0)
