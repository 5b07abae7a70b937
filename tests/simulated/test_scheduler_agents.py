"""Test placed agents: the engines that they bring, when they end, how they leave, and when they are
known to be dead.
"""

from __future__ import annotations

import pytest

from ipytaskfarm.core import messages as m
from ipytaskfarm.core.handlers.explain import explain
from ipytaskfarm.core.messages import tables
from ipytaskfarm.core.messages.task_types import Rules
from ipytaskfarm.core.scheduler.events import Back
from ipytaskfarm.core.scheduler.settings import SchedulerSettings
from ipytaskfarm.core.states import Reason

from ..support.simulated_farm import SimAgent, SimEngine, SimFarm, farm_with_engines, final_of, move, run_next


def farm_of(**agents: dict[str, object]) -> SimFarm:
    """A client, and agents that bring engines, all up."""
    sim = SimFarm(SchedulerSettings())
    sim.join_client()
    for session, what in agents.items():
        sim.join_agent(session, **{"name": session, **what})
    sim.settle()
    sim.ids()
    return sim


def only_engine(agent: SimAgent) -> SimEngine:
    (engine,) = agent.engines.values()
    return engine


def begin_on(sim: SimFarm, agent: SimAgent) -> int:
    """Let the agent's only engine begin a run; return the id of its task."""
    move(sim, agent)
    engine = only_engine(agent)
    assert engine.running or sim.begin(engine)
    assert engine.running is not None
    return engine.running[0]


def state_of(sim: SimFarm) -> tables.FarmState:
    reply = sim.ask(m.FarmStatus())
    assert isinstance(reply, tables.FarmState)
    return reply


def count(sim: SimFarm, question: m.Question) -> int:
    reply = sim.ask(question)
    assert isinstance(reply, m.NumberReply)
    return reply.value


def test_agents_bring_engines_beside_those_that_are_wanted() -> None:
    sim = farm_of(own={"name": ""}, one={"brings": 2}, two={"brings": 3})
    assert {s: len(a.engines) for s, a in sim.agents.items()} == {"own": 0, "one": 2, "two": 3}
    sim.ask(m.SetWanted(2))
    sim.settle()
    assert {s: len(a.engines) for s, a in sim.agents.items()} == {"own": 2, "one": 2, "two": 3}
    assert state_of(sim).wanted == 7
    sim.ask(m.SetWanted(0))
    sim.settle()
    assert {s: len(a.engines) for s, a in sim.agents.items()} == {"own": 0, "one": 2, "two": 3}


def test_of_two_engines_with_one_id_one_stays() -> None:
    sim = farm_of(one={"name": ""}, two={"name": ""})
    sim.ask(m.SetWanted(3))
    sim.settle()
    two = sim.agents.pop("two")
    assert two.engines
    sim.crash()  # the next controller knows of no engine that has never had a task
    sim.join_client()
    sim.settle()
    assert len(sim.agents["one"].engines) == 3
    sim.agents["two"] = two
    sim.restate(two)
    sim.settle()
    assert sorted(engine.id for agent in sim.agents.values() for engine in agent.engines.values()) == [0, 1, 2]


def busy_farm(count: int) -> tuple[SimFarm, SimAgent]:
    """Return a farm whose engines are at a long task each."""
    sim = farm_with_engines(count)
    agent = sim.agents["agent"]
    sim.ids()
    for task_id in range(count):
        sim.submit(task_id)
    move(sim, agent)
    for engine in agent.engines.values():
        sim.begin(engine)
    return sim, agent


def ids_of(agent: SimAgent) -> list[int]:
    return sorted(engine.id for engine in agent.engines.values())


def test_engines_that_are_ending_are_taken_back_if_more_are_wanted_again() -> None:
    sim, agent = busy_farm(3)
    started = agent.started
    sim.ask(m.SetWanted(1))
    move(sim, agent)
    sim.submit(3, Rules(targets=(2,)))
    sim.ask(m.SetWanted(3))
    move(sim, agent)
    assert (ids_of(agent), agent.started) == ([0, 1, 2], started), "nobody could have had ids 1 and 2"
    last = next(engine for engine in agent.engines.values() if engine.id == 2)
    run_next(sim, agent, last)
    move(sim, agent)
    assert run_next(sim, agent, last) == 3


def test_only_as_many_are_taken_back_as_are_wanted() -> None:
    sim, agent = busy_farm(4)
    sim.ask(m.SetWanted(1))
    move(sim, agent)
    sim.ask(m.SetWanted(2))
    move(sim, agent)
    for engine in list(agent.engines.values()):
        run_next(sim, agent, engine)
    sim.settle()
    assert ids_of(agent) == [0, 1]


def test_a_replacement_has_the_lost_engines_id_while_a_surplus_one_is_ending() -> None:
    sim, agent = busy_farm(2)
    sim.ask(m.SetWanted(1))
    move(sim, agent)
    first, surplus = agent.engines.values()
    sim.kill(agent, first)
    move(sim, agent)
    run_next(sim, agent, surplus)
    sim.settle()
    assert ids_of(agent) == [0]


def test_a_removed_engine_is_not_taken_back() -> None:
    sim, agent = busy_farm(2)
    started = agent.started
    sim.ask(m.RemoveEngines([1], drain=True))
    move(sim, agent)
    sim.ask(m.SetWanted(2))
    move(sim, agent)
    assert agent.started == started + 1
    for engine in [engine for engine in agent.engines.values() if engine.running is not None]:
        run_next(sim, agent, engine)
    sim.settle()
    assert len(agent.engines) == 2
    assert 1 not in ids_of(agent), "its id was taken while it finished its task"


def test_a_lost_engine_is_replaced_where_it_was_brought() -> None:
    sim = farm_of(one={"brings": 1}, two={"brings": 1})
    sim.kill(sim.agents["one"], only_engine(sim.agents["one"]))
    sim.settle()
    assert [len(a.engines) for a in sim.agents.values()] == [1, 1]


def test_a_node_where_nothing_starts_keeps_no_other_from_starting() -> None:
    sim = SimFarm(SchedulerSettings())
    sim.join_client()
    bad = sim.join_agent("bad", name="bad", brings=1)
    for _ in range(6):
        move(sim, bad)
        sim.advance(0.01)
        for engine in list(bad.engines.values()):
            sim.kill(bad, engine)
    move(sim, bad)
    assert sim.scheduler.farm.agents.by_session["bad"].backoff_s > 0
    started = bad.started
    good = sim.join_agent("good", name="good", brings=1)
    move(sim, good)
    assert len(good.engines) == 1
    move(sim, bad)
    assert bad.started == started
    sim.advance(6.0)
    move(sim, bad)
    assert bad.started == started + 1


def test_an_engine_that_is_removed_does_not_come_again() -> None:
    sim = farm_of(one={"brings": 2})
    sim.ask(m.RemoveEngines([0]))
    sim.settle()
    assert len(sim.agents["one"].engines) == 1
    assert state_of(sim).wanted == 1


def test_a_task_is_not_started_where_it_has_no_time() -> None:
    sim = farm_of(short={"brings": 1, "ends_s": 1030.0})
    sim.submit(0, Rules(time_limit_s=100.0))
    sim.submit(1, Rules(time_limit_s=5.0))
    assert begin_on(sim, sim.agents["short"]) == 1
    run_next(sim, sim.agents["short"], only_engine(sim.agents["short"]))
    answer = sim.ask(m.ExplainTasks(0))
    assert isinstance(answer, m.TextReply)
    assert "its time limit is 100 s, and the agent on node has 30 s left" in answer.text
    sim.join_agent("long", brings=1, ends_s=2000.0)
    sim.settle()
    assert not final_of(sim, 0).reason


def test_time_runs_out_while_tasks_wait() -> None:
    """The class could be served when it was made, and cannot any more."""
    sim = farm_of(short={"brings": 1, "ends_s": 1030.0})
    agent = sim.agents["short"]
    sim.submit(0, Rules())
    assert begin_on(sim, agent) == 0
    sim.submit(1, Rules(time_limit_s=20.0))
    sim.advance(15.0)
    sim.end(agent, only_engine(agent))
    move(sim, agent)
    assert not sim.begin(only_engine(agent))
    sim.join_agent("other", brings=1)
    sim.settle()
    assert not final_of(sim, 1).reason


def test_tasks_that_wait_already_learn_that_time_is_limited() -> None:
    sim = farm_of()
    sim.submit(0, Rules(time_limit_s=100.0))
    sim.submit(1, Rules())
    sim.join_agent("short", brings=1, ends_s=1030.0)
    sim.settle()
    assert not final_of(sim, 1).reason
    assert 0 not in sim.store.finals


def test_a_restarted_controller_knows_that_time_is_limited() -> None:
    sim = farm_of(short={"brings": 1, "ends_s": 1030.0})
    sim.submit(0, Rules(time_limit_s=100.0))
    sim.crash()
    sim.join_client()
    assert sim.scheduler.farm.queues.by_time_limit
    sim.settle()
    assert 0 not in sim.store.finals


def test_conditions_on_the_time_left() -> None:
    from ipytaskfarm.core.requirements import Asks, Condition

    sim = farm_of(short={"brings": 1, "ends_s": 1030.0})
    sim.submit(0, Rules(asks=Asks(requires=(Condition("time_left", ">", 600.0),))))
    sim.settle()
    assert 0 not in sim.store.finals
    sim.join_agent("endless", brings=1)
    sim.settle()
    assert not final_of(sim, 0).reason


def test_told_to_end_an_agent_finishes_what_runs_and_gets_nothing_more() -> None:
    sim = farm_of(one={"brings": 1}, two={"brings": 1})
    one, two = sim.agents["one"], sim.agents["two"]
    for i in range(4):
        sim.submit(i)
    running = begin_on(sim, one)
    sim.tell_to_end(one, 30.0)
    move(sim, one)
    assert "one" in sim.agents, "its engine still runs something"
    sim.end(one, only_engine(one))
    move(sim, one)
    assert "one" not in sim.agents
    assert not final_of(sim, running).reason
    sim.settle()
    assert len(sim.store.finals) == 4
    assert all(len(runs) == 1 for runs in sim.begun.values())
    assert two.engines


def test_what_was_sent_ahead_to_a_leaving_agent_is_called_back() -> None:
    sim = farm_of(one={"brings": 1})
    one = sim.agents["one"]
    sim.submit(0)
    begin_on(sim, one)
    run_next(sim, one, only_engine(one))
    for i in range(1, 6):
        sim.submit(i)
    begin_on(sim, one)
    assert len(only_engine(one).queue) == 4, "quick ones are sent ahead"
    sim.tell_to_end(one, 30.0)
    move(sim, one)
    assert not only_engine(one).queue
    sim.end(one, only_engine(one))
    move(sim, one)
    assert not sim.agents
    assert len(sim.store.finals) == 2


def test_what_runs_longer_than_an_agent_may_stay_goes_elsewhere_uncharged() -> None:
    sim = farm_of(one={"brings": 1})
    one = sim.agents["one"]
    sim.submit(0, Rules(retries=1))
    begin_on(sim, one)
    sim.tell_to_end(one, 5.0)
    move(sim, one)
    sim.advance(6.0)
    move(sim, one)
    task = sim.scheduler.farm.tasks.unfinished[0]
    assert (task.past.errors, task.past.losses) == (0, 0)
    sim.join_agent("two", brings=1)
    sim.settle()
    assert not final_of(sim, 0).reason


def test_what_may_not_repeat_fails_when_its_agent_has_to_go() -> None:
    sim = farm_of(one={"brings": 1})
    sim.submit(0)
    begin_on(sim, sim.agents["one"])
    sim.tell_to_end(sim.agents["one"], 5.0)
    move(sim, sim.agents["one"])
    sim.advance(6.0)
    final = final_of(sim, 0)
    assert final.reason == Reason.ENGINE_LOST
    assert final.failure is not None
    assert "the agent on node left" in final.failure.value


@pytest.mark.parametrize(("after_s", "why"), [(60.0, "its time is over"), (10.0, "it was told to end")])
def test_what_waits_is_told_that_an_agent_has_left(after_s: float, why: str) -> None:
    sim = farm_of(one={"name": "slurm-1.0", "brings": 1, "ends_s": 1060.0})
    sim.advance(after_s)
    sim.tell_to_end(sim.agents["one"], 5.0)
    sim.settle()
    sim.submit(0)
    (loss,) = sim.scheduler.farm.diagnostics.losses
    assert loss == f"agent slurm-1.0 on node left: {why}; `ipytaskfarm agents add` brings others"
    assert loss in "\n".join(explain(sim.scheduler.farm, sim.scheduler.farm.tasks.unfinished[0], sim.now))


def test_agents_are_sent_away_by_name() -> None:
    sim = farm_of(one={"name": "dask-1.a", "brings": 1}, two={"name": "dask-1.b", "brings": 1}, three={"brings": 1})
    sim.submit(0)
    sim.submit(1)
    assert count(sim, m.RemoveAgents(["dask-1"])) == 2
    sim.settle()
    assert list(sim.agents) == ["three"]
    assert len(sim.store.finals) == 2
    assert count(sim, m.RemoveAgents(["dask-1"])) == 0


@pytest.mark.parametrize("question", [m.RemoveAgents([""]), m.RemoveAgents(["one", ""]), m.AgentsEnded([""], "gone")])
def test_an_empty_name_means_no_agent(question: m.Question) -> None:
    sim = farm_of(one={"name": "one", "brings": 1}, nameless={"brings": 1})
    reply = sim.ask(question)
    assert isinstance(reply, m.Refusal)
    assert "an agent's name in it is empty" in reply.text
    assert not any(agent.leaving for agent in sim.scheduler.farm.agents.by_session.values())


def test_an_engine_that_comes_up_on_a_leaving_agent_ends() -> None:
    sim = SimFarm(SchedulerSettings())
    sim.join_client()
    agent = sim.join_agent("one", name="one", brings=1)
    sim.process(agent)
    sim.deliver(agent)  # it starts an engine, which nobody knows of yet
    assert count(sim, m.RemoveAgents(["one"])) == 1
    sim.settle()
    assert not sim.agents


def test_who_resumes_a_farm_does_not_call_back_agents_that_leave() -> None:
    sim = farm_of(one={"brings": 1})
    sim.submit(0)
    begin_on(sim, sim.agents["one"])
    sim.tell_to_end(sim.agents["one"], 30.0)
    move(sim, sim.agents["one"])
    sim.ask(m.HoldFarm(True))
    sim.ask(m.HoldFarm(False))
    sim.submit(1)
    move(sim, sim.agents["one"])
    assert sim.scheduler.farm.agents.by_session["one"].leaving
    assert not sim.agents["one"].engines or not only_engine(sim.agents["one"]).queue


def test_a_node_that_is_drained_and_resumed_does_not_call_back_agents_that_leave() -> None:
    sim = farm_of(one={"brings": 1})
    sim.submit(0)
    begin_on(sim, sim.agents["one"])
    sim.tell_to_end(sim.agents["one"], 30.0)
    move(sim, sim.agents["one"])
    for on in (True, False):
        sim.ask(m.DrainNode(["node"], on))
    entry = sim.scheduler.farm.agents.by_session["one"]
    assert entry.leaving
    assert not entry.accepts_tasks


def test_an_engine_that_comes_up_when_its_agent_leaves_ends() -> None:
    sim = SimFarm(SchedulerSettings())
    sim.join_client()
    agent = sim.join_agent("one", name="one", brings=1)
    while not agent.engines:
        sim.process(agent)
        sim.advance(0.1)
        sim.deliver(agent)
    assert isinstance(agent.outbox[-1], m.EngineUp)
    assert count(sim, m.RemoveAgents(["one"])) == 1
    sim.settle()
    assert not sim.agents


def test_a_leaving_agent_says_so_to_the_next_controller() -> None:
    sim = farm_of(one={"brings": 1})
    sim.submit(0)
    begin_on(sim, sim.agents["one"])
    sim.tell_to_end(sim.agents["one"], 30.0)
    sim.crash()
    sim.join_client()
    move(sim, sim.agents["one"])
    assert state_of(sim).agents[0]["state"] == "leaving"


def test_of_a_dead_agent_nobody_waits_for_the_lease() -> None:
    sim = farm_of(one={"brings": 1}, two={"brings": 1})
    one = sim.agents["one"]
    sim.submit(0, Rules(retries=1))
    sim.submit(1, Rules(retries=1))
    begin_on(sim, one)
    assert count(sim, m.AgentsEnded(["one"], "cancelled")) == 0, "who is heard is believed more"
    sim.die(one)
    assert len(sim.store.finals) == 0
    assert count(sim, m.AgentsEnded(["one"], "the node failed")) == 1
    assert count(sim, m.AgentsEnded(["three"], "another version")) == 0
    assert state_of(sim).losses[-1] == "agent three ended before it was heard: another version"
    sim.settle()
    assert {final.reason for final in sim.store.finals.values()} == {""}
    assert len(sim.store.finals) == 2


def test_status_says_what_waits_and_since_when_agents_are_idle() -> None:
    sim = farm_of(one={"brings": 1})
    state = state_of(sim)
    assert (state.waiting, state.waiting_s) == (0, 0.0)
    sim.submit(0)
    begin_on(sim, sim.agents["one"])
    run_next(sim, sim.agents["one"], only_engine(sim.agents["one"]), run_s=3.0)
    sim.advance(20.0)
    idle = state_of(sim).agents[0]["idle"]
    assert 20.0 <= idle < 30.0
    for i in range(1, 6):
        sim.submit(i)
    move(sim, sim.agents["one"])
    state = state_of(sim)
    assert state.waiting == 4
    assert state.waiting_s is not None
    assert 12.0 <= state.waiting_s < 12.1
    assert state.agents[0]["idle"] is None


def test_an_agent_whose_session_begins_anew_gets_no_work_before_its_report() -> None:
    """Its report was written before it could hold that work: what it lacks would be handed out once more."""
    sim = farm_of(one={"brings": 1})
    agent = sim.agents["one"]
    farm = sim.scheduler.farm
    task_id = sim.ids().first
    sim.restate(agent)
    sim.handle(Back(), "one")
    sim.submit(task_id)
    assert not farm.engines.by_name[only_engine(agent).name].assigned
    sim.process(agent)
    assert [*farm.engines.by_name[only_engine(agent).name].assigned] == [(task_id, 1)]
