"""Coroutine tasks in the scheduler: which engine runs how many of them, and what the loss of an engine costs them."""

from __future__ import annotations

from ipytaskfarm.core import messages as m
from ipytaskfarm.core.messages.task_types import Rules
from ipytaskfarm.core.requirements import Asks, ResourceAmount
from ipytaskfarm.core.scheduler.queue_keys import SUSPECTS_TOGETHER
from ipytaskfarm.core.scheduler.settings import SchedulerSettings
from tests.support.simulated_farm import SimAgent, SimEngine, SimFarm, final_of, move, one_engine

COROUTINE = Rules(coroutine=True)
AGAIN = Rules(coroutine=True, retries=5)


def submitted(sim: SimFarm, first: int, count: int, rules: Rules | None = COROUTINE) -> list[int]:
    ids = list(range(first, first + count))
    for task_id in ids:
        sim.submit(task_id, rules)
    return ids


def begun(sim: SimFarm, agent: SimAgent, engine: SimEngine) -> set[int]:
    """Let the engine begin all that it can; return the tasks that it runs."""
    move(sim, agent)
    while sim.begin(engine):
        pass
    return {run[0] for run in [*([engine.running] if engine.running else []), *engine.beside]}


def end(sim: SimFarm, agent: SimAgent, engine: SimEngine, task_id: int, outcome: str = "") -> None:
    run = next(run for run in [*([engine.running] if engine.running else []), *engine.beside] if run[0] == task_id)
    engine.turn_to(run)
    sim.end(agent, engine, outcome)
    move(sim, agent)


def replaced(sim: SimFarm, agent: SimAgent) -> SimEngine:
    for _ in range(100):
        move(sim, agent)
        if agent.engines:
            return next(iter(agent.engines.values()))
        sim.advance(0.1)
    raise AssertionError("no engine comes")


def test_an_engine_is_given_as_many_as_it_has_places() -> None:
    sim, agent, engine = one_engine(SchedulerSettings(coroutines=5))
    ids = submitted(sim, 0, 8)
    assert begun(sim, agent, engine) == set(ids[:5])
    assert all(sim.scheduler.farm.tasks.unfinished[i].state == "pending" for i in ids[:5])
    end(sim, agent, engine, ids[3])
    assert begun(sim, agent, engine) == {0, 1, 2, 4, 5}


def test_a_plain_task_waits_until_those_before_it_have_ended_and_those_behind_it_wait_for_it() -> None:
    sim, agent, engine = one_engine()
    before = submitted(sim, 0, 3)
    assert begun(sim, agent, engine) == set(before)
    sim.submit(3)
    after = submitted(sim, 4, 2)
    assert begun(sim, agent, engine) == set(before)
    for task_id in before:
        end(sim, agent, engine, task_id)
    assert begun(sim, agent, engine) == {3}
    end(sim, agent, engine, 3)
    assert begun(sim, agent, engine) == set(after)


def test_one_that_reserves_resources_runs_alone() -> None:
    sim, agent, engine = one_engine()
    reserves = Rules(coroutine=True, asks=Asks(resources=(ResourceAmount("cores", 1, 1),)))
    (alone,) = submitted(sim, 0, 1, reserves)
    submitted(sim, 1, 3)
    assert begun(sim, agent, engine) == {alone}


def test_a_loss_charges_those_that_had_begun_and_those_alone() -> None:
    sim, agent, engine = one_engine()
    ids = submitted(sim, 0, 6)
    move(sim, agent)
    for _ in range(4):
        sim.begin(engine)
    sim.kill(agent, engine)
    move(sim, agent)
    assert {final_of(sim, i).reason for i in ids[:4]} == {"engine lost"}
    assert "it ran 4 coroutine tasks at once" in final_of(sim, 0).failure.value  # type: ignore[union-attr]
    assert begun(sim, agent, replaced(sim, agent)) == set(ids[4:])


def test_those_that_lost_an_engine_share_one_with_few_others_like_them() -> None:
    sim, agent, engine = one_engine()
    ids = submitted(sim, 0, 3 * SUSPECTS_TOGETHER, AGAIN)
    assert begun(sim, agent, engine) == set(ids)
    sim.kill(agent, engine)
    engine = replaced(sim, agent)
    (later,) = submitted(sim, len(ids), 1)
    assert begun(sim, agent, engine) == set(ids[:SUSPECTS_TOGETHER])
    sim.kill(agent, engine)
    move(sim, agent)
    # Twice is enough: these run alone now, behind the others.
    engine = replaced(sim, agent)
    assert begun(sim, agent, engine) <= set(ids[SUSPECTS_TOGETHER:])
    for _ in range(200):
        here = begun(sim, agent, engine)
        if not here:
            break
        assert len(here) == 1 or not here & set(ids[:SUSPECTS_TOGETHER]), "one that lost two engines is in company"
        end(sim, agent, engine, min(here))
    assert {final_of(sim, i).reason for i in [*ids, later]} == {""}


def test_a_restarted_controller_goes_on_with_those_that_run() -> None:
    sim, agent, engine = one_engine()
    ids = submitted(sim, 0, 40)
    assert begun(sim, agent, engine) == set(ids)
    sim.ask(m.AbortTasks([0], False))
    sim.crash()
    sim.join_client()
    move(sim, agent)
    states = {sim.scheduler.farm.tasks.unfinished[i].state for i in ids[1:]}
    assert states == {"pending"}
    more = submitted(sim, 40, 20)
    assert begun(sim, agent, engine) == {*ids, *more}
    sim.submit(60)
    assert 60 not in begun(sim, agent, engine)
    sim.settle()
    assert {final_of(sim, i).reason for i in [*ids[1:], *more, 60]} == {""}


def test_a_status_names_how_many_run() -> None:
    sim, agent, engine = one_engine()
    submitted(sim, 0, 3)
    begun(sim, agent, engine)
    table = sim.ask(m.ListEngines())
    assert isinstance(table, m.tables.EngineTable)
    (row,) = table.rows
    assert (row.state, row.coroutines, row.ahead) == ("busy", 3, 0)
    running = sim.ask(m.ListRunning(None))
    assert isinstance(running, m.tables.RunningTable)
    assert sorted(task for task, *_ in running.rows) == [0, 1, 2]
