"""Test the scheduler after a restart and with lost agents, case by case on the simulated farm."""

from __future__ import annotations

import pytest

from ipytaskfarm.controller.loop import ControllerLoop
from ipytaskfarm.core import messages as m
from ipytaskfarm.core.handlers.lifecycle import SHUT_WITHIN_S
from ipytaskfarm.core.handlers.losses import SUCCESSOR_S, lease_margin_s
from ipytaskfarm.core.messages import tables
from ipytaskfarm.core.messages.task_types import Rules, Submission
from ipytaskfarm.core.scheduler import restore
from ipytaskfarm.core.scheduler.decision import Now
from ipytaskfarm.core.scheduler.events import Back, Joined, ProcessGone, Silent, Tick
from ipytaskfarm.core.scheduler.running_tasks import WITHDRAWN
from ipytaskfarm.core.scheduler.settings import SchedulerSettings
from ipytaskfarm.testing.stepped_farm import SteppedEngine, SteppedFarm

from ..support.simulated_farm import farm_with_engines, final_of, move, one_engine


def test_what_runs_while_the_controller_is_away_is_adopted() -> None:
    sim, agent, engine = one_engine()
    sim.submit(0)
    move(sim, agent)
    sim.begin(engine)
    sim.crash()
    sim.join_client()
    move(sim, agent)
    sim.end(agent, engine)
    move(sim, agent)
    assert final_of(sim, 0).reason == ""
    assert sim.begun == {0: [(0, 1)]}


def test_a_hand_out_that_never_arrived_goes_back_uncharged() -> None:
    sim, _agent, _ = one_engine()
    sim.submit(0)
    sim.crash()  # the hand-out is saved and was never delivered
    sim.join_client()
    sim.settle()
    assert final_of(sim, 0).reason == ""
    assert sim.begun == {0: [(0, 1)]}


def test_after_a_restart_tasks_like_those_that_run_are_announced() -> None:
    """Entries of the running tasks are first in the heap of their class, and were not looked at since the restart."""
    sim, agent, engine = one_engine()
    rules = Rules(targets=(engine.id,))
    sim.submit(0, rules)
    move(sim, agent)
    sim.begin(engine)
    sim.crash()
    sim.join_client()
    move(sim, agent)
    sim.submit(1, rules)
    sim.submit(2, rules)
    sim.end(agent, engine)
    sim.settle()
    assert [final_of(sim, i).reason for i in range(3)] == [""] * 3


def test_a_returned_run_is_not_charged_to_an_engine_that_is_lost_later() -> None:
    sim, agent, engine = one_engine(SchedulerSettings(lease_s=10.0, lease_margin_s=1.0))
    sim.submit(0)
    sim.settle()
    sim.submit(1)
    sim.submit(2)
    move(sim, agent)
    sim.begin(engine)
    sim.ask(m.HoldFarm(True))
    agent.outbox.append(m.Returned(engine.name, [(2, 1)]))
    engine.queue.clear()
    move(sim, agent)
    sim.crash()
    sim.join_client()
    sim.agents.clear()  # the node is lost with all that it knew
    sim.advance(12.0)
    assert final_of(sim, 1).reason == "engine lost"
    assert 2 in sim.scheduler.farm.tasks.unfinished
    assert 2 not in sim.store.finals


def test_after_a_restart_nothing_waits_for_an_engine_that_was_lost_before() -> None:
    sim, agent, engine = one_engine()
    sim.submit(0)
    sim.settle()
    for task_id in range(1, 5):
        sim.submit(task_id)
    move(sim, agent)
    sim.begin(engine)
    sim.ask(m.HoldFarm(True))
    sim.kill(agent, engine)
    move(sim, agent)
    sim.crash()
    sim.join_client()
    assert not [e for e in sim.scheduler.farm.engines.by_name.values() if e.assigned]
    sim.ask(m.HoldFarm(False))
    sim.settle()
    assert all(final_of(sim, i).reason == "" for i in range(2, 5))


def test_after_a_restart_a_retried_run_is_not_handed_out_still() -> None:
    sim, agent, engine = one_engine()
    sim.submit(0)
    sim.settle()
    sim.handle(m.Submit([Submission(i, b"", 1.0, None, Rules(retries=1)) for i in (1, 2)]), "client")
    move(sim, agent)
    sim.ask(m.HoldFarm(True))
    sim.begin(engine)
    sim.end(agent, engine, "error")
    move(sim, agent)  # 2 is still out, in the same batch
    sim.crash()
    sim.join_client()
    assert sim.scheduler.farm.tasks.unfinished[1].attempt == 1
    sim.ask(m.HoldFarm(False))
    sim.settle()
    assert sim.begun[1] == [(1, 1), (1, 2)]
    assert final_of(sim, 1).attempts == 2


def test_a_lost_engine_spends_a_retry() -> None:
    sim, agent, _ = one_engine()
    sim.submit(0, Rules(retries=1))
    for _ in range(2):
        sim.settle_start(agent)
        engine = next(e for e in agent.engines.values() if e.queue)
        sim.begin(engine)
        sim.kill(agent, engine)
        move(sim, agent)
    assert final_of(sim, 0).reason == "engine lost"


def test_an_agent_that_never_comes_back_is_given_up_after_its_lease() -> None:
    sim, agent, engine = one_engine(SchedulerSettings(lease_s=10.0, lease_margin_s=1.0))
    sim.submit(0)
    sim.submit(1, Rules(retries=1))
    move(sim, agent)
    sim.begin(engine)
    sim.handle(Silent(), "agent")
    sim.advance(10.5)
    assert 0 in sim.scheduler.farm.tasks.unfinished
    sim.advance(1.0)
    assert final_of(sim, 0).reason == "engine lost"
    assert 1 in sim.scheduler.farm.tasks.unfinished


def test_an_agent_that_was_given_up_begins_anew_when_it_is_heard_again() -> None:
    sim, agent, engine = one_engine(SchedulerSettings(lease_s=10.0, lease_margin_s=1.0))
    sim.submit(0)
    sim.submit(1, Rules(retries=1))
    move(sim, agent)
    sim.begin(engine)
    sim.handle(Silent(), "agent")
    sim.now = Now(sim.now.mono_s + 11.1, sim.now.wall_s + 11.1)
    assert sim.handle(Tick()).given_up == ["agent"]
    sim.restate(agent)  # its own clock stood still
    sim.end(agent, engine)
    sim.settle()
    assert final_of(sim, 0).reason == "engine lost", "what it did meanwhile changes nothing"
    assert final_of(sim, 1).reason == "", "its engine works again"


def test_agents_are_told_the_lease() -> None:
    sim, agent, _ = one_engine(SchedulerSettings(lease_s=10.0))
    agent.inbox.clear()
    sim.restate(agent)
    sim.process(agent)
    assert m.Lease(10.0) in agent.inbox


def test_who_is_silent_is_waited_for_longer_than_its_lease() -> None:
    assert [lease_margin_s(lease_s) for lease_s in (900.0, 300.0, 60.0, 5.0)] == [30.0, 10.0, 5.0, 5.0]


def test_start_up_code_comes_first_whenever_it_was_set() -> None:
    sim, _, _ = one_engine()
    sim.ask(m.SetSticky("x", "push", b"x"))
    sim.ask(m.SetSticky("startup", "execute", b"first"))
    expected = tables.StickyTable([("startup", "execute", ""), ("x", "push", "")])
    assert sim.ask(m.ListSticky()) == expected
    sim.crash()
    sim.join_client()
    assert sim.ask(m.ListSticky()) == expected


def test_engines_that_were_lost_while_nobody_could_start_others_are_replaced() -> None:
    sim = farm_with_engines(2)
    agent = sim.agents["agent"]
    sim.handle(Silent(), "agent")
    for engine in list(agent.engines.values()):
        sim.kill(agent, engine)
    while agent.outbox:
        sim.process(agent)
    sim.advance(20.0)
    assert not sim.scheduler.farm.engines.by_name
    sim.handle(Back(), "agent")
    sim.advance(0.1)
    sim.settle_start(agent)
    assert len(agent.engines) == 2


# -- agents whose process is gone

BEFORE = m.AgentProcess("host", "first boot", "pid:[1]", 100, 5.0)
AFTER = m.AgentProcess("host", "second boot", "pid:[1]", 90, 3.0)


def rebooted(count: int) -> tuple[SteppedFarm, SteppedEngine, str]:
    """A farm after a reboot, with the session of its dead agent, on whose engine there are so many runs."""
    sim, agent, engine = one_engine(SchedulerSettings(lease_s=900.0, lease_margin_s=30.0))
    report = m.EngineReport(engine.name, engine.id, 1, True, sim.now.wall_s, prepared=True)
    state = m.AgentState(agent.node, 1, 2, 2**30, "linux", "3", [report], process=BEFORE)
    sim.handle(state, agent.session)
    sim.submit(0)  # its duration is known afterwards
    sim.settle()
    for task in range(1, count + 1):
        sim.submit(task)
    sim.handle(Tick())
    assert len(sim.scheduler.farm.engines.by_name[engine.name].assigned) == count
    sim.agents.clear()
    sim.crash()
    return sim, engine, agent.session


def successor(former: str, left: list[str]) -> m.AgentState:
    return m.AgentState("node", 2, 2, 2**30, "linux", "3", [], None, [former], process=AFTER, left=left)


def attempts(sim: SteppedFarm, count: int) -> list[str]:
    """The reasons of the tasks' ends, "waits" for those that have not ended."""
    return [sim.store.finals[i].reason if i in sim.store.finals else "waits" for i in range(1, count + 1)]


def test_an_agent_that_is_gone_is_not_waited_for_until_its_lease_is_over() -> None:
    sim, _, session = rebooted(2)
    sim.handle(ProcessGone("its machine was started again"), session)
    assert session in sim.scheduler.farm.agents.by_session, "its successor may report"
    sim.advance(SUCCESSOR_S + 1.0)
    assert session not in sim.scheduler.farm.agents.by_session
    assert attempts(sim, 2) == ["engine lost"] * 2
    assert session not in sim.store.agents


def test_a_successor_reports_how_far_the_disk_knew_an_engine() -> None:
    sim, engine, session = rebooted(4)
    sim.handle(ProcessGone("its machine was started again"), session)
    sim.handle(Joined("agent", "new"), "new")
    sim.handle(successor(session, [engine.name]), "new")
    upto = sorted((number, place) for number, h in sim.store.handouts.items() for place in range(len(h.runs)))[1]
    sim.handle(m.EngineDown(engine.name, engine.id, None, False, m.Crash(), begun_upto=upto), "new")
    assert attempts(sim, 4) == ["engine lost", "engine lost", "waits", "waits"]
    assert session not in sim.scheduler.farm.agents.by_session


def test_without_a_mark_the_first_run_may_have_begun() -> None:
    sim, engine, session = rebooted(3)
    sim.handle(successor(session, [engine.name]), "new")
    sim.handle(m.EngineDown(engine.name, engine.id, None, False, m.Crash(), begun_upto=(0, 0)), "new")
    assert attempts(sim, 3) == ["engine lost", "waits", "waits"]


def test_places_stay_when_runs_come_back() -> None:
    """A run that came back unbegun leaves its place empty, in the store too."""
    sim, engine, _ = rebooted(1)
    assigned = next(iter(sim.scheduler.farm.engines.by_name[engine.name].assigned.values()))
    batch = assigned.batch
    batch.sent = ((7, 1), (1, 1), (8, 1))
    batch.withdraw((7, 1))
    assert batch.sent == (WITHDRAWN, (1, 1), (8, 1))
    assert batch.place((1, 1)) == (batch.number, 1)


def test_engines_of_which_nothing_is_left_are_lost_when_the_successor_comes() -> None:
    sim, _, session = rebooted(2)
    sim.handle(successor(session, []), "new")
    assert attempts(sim, 2) == ["engine lost"] * 2
    failure = sim.store.finals[1].failure
    assert failure is not None
    assert "its flight recorder is lost" in failure.value
    assert session not in sim.scheduler.farm.agents.by_session


def test_an_agent_of_another_boot_ends_the_silent_ones_of_the_same_key_only() -> None:
    sim, _, session = rebooted(1)
    sim.handle(m.AgentState("node", 2, 2, 2**30, "linux", "3", [], process=AFTER), "slurm-1:77")
    assert not sim.scheduler.farm.agents.by_session[session].gone
    sim.handle(m.AgentState("node", 2, 2, 2**30, "linux", "3", [], process=AFTER), "other")
    assert sim.scheduler.farm.agents.by_session[session].gone


def test_an_agent_that_is_heard_is_not_gone() -> None:
    sim, agent, engine = one_engine()
    sim.submit(0)
    sim.settle()
    sim.handle(ProcessGone("nonsense"), agent.session)
    assert engine.name in sim.scheduler.farm.engines.by_name


def test_agents_that_are_gone_are_removed_while_they_are_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """One without engines is forgotten with the event itself, while the controller goes on to the next one."""
    sim = SteppedFarm()
    for session in ("first", "second"):
        sim.handle(Joined("agent", session), session)
        sim.handle(m.AgentState("node", 1, 2, 2**30, "linux", "3", [], process=AFTER), session)
        sim.handle(Silent(), session)
    monkeypatch.setattr("ipytaskfarm.controller.loop.why_gone", lambda process: "its process is gone")
    loop = object.__new__(ControllerLoop)
    loop._scheduler = sim.scheduler
    for session, event in loop._gone_agents():
        sim.handle(event, session)
        sim.advance(SUCCESSOR_S + 1.0)
    assert not sim.scheduler.farm.agents.by_session


@pytest.mark.parametrize("retries", [0, 1])
def test_a_stop_that_does_not_wait_runs_nothing_twice_that_may_not_repeat(retries: int) -> None:
    """What was sent ahead went to others at once, and its engine began it before it heard of the stop."""
    sim, agent, engine = one_engine()
    first = sim.ids().first
    sim.submit(first)
    sim.settle()  # tasks of this kind are quick, so more of them are sent ahead
    for task_id in range(first + 1, first + 5):
        sim.submit(task_id, Rules(retries=retries) if retries else None)
    move(sim, agent)
    sim.begin(engine)
    sim.end(agent, engine)
    assert sim.begin(engine)
    sim.ask(m.StopFarm(0.0))
    sim.end(agent, engine)
    assert sim.begin(engine), "it has not heard of it"
    sim.end(agent, engine)
    move(sim, agent)
    sim.advance(SHUT_WITHIN_S)
    assert sim.finished
    sim.crash()
    sim.join_client()
    sim.agents.clear()
    sim.join_agent("next")
    sim.ask(m.SetWanted(1))
    sim.settle()
    begun = [len(sim.begun[task_id]) for task_id in range(first + 1, first + 5)]
    assert max(begun) <= 1 + retries, begun
    assert not sim.scheduler.farm.tasks.unfinished


def two_nodes() -> SteppedFarm:
    """A farm with two engines on each of two nodes, whose agents are on record."""
    sim = SteppedFarm()
    sim.join_client()
    for name in ("near", "far"):
        sim.join_agent(name)
        sim.handle(m.AgentState(name, 1, 2, 2**30, "linux", "3", [], process=BEFORE), name)
    sim.ask(m.SetWanted(4))
    sim.settle()
    assert engines_of(sim) == [2, 2]
    return sim


def engines_of(sim: SteppedFarm) -> list[int]:
    return [len(sim.agents[name].engines) for name in ("near", "far")]


def test_engines_of_a_node_that_comes_back_late_are_not_started_elsewhere() -> None:
    """Their places were taken at once, they were ended, and what only that node could run waited for ever."""
    sim = two_nodes()
    names = [*sim.agents["far"].engines]
    sim.start()  # a new controller, which the far agent does not reach at once
    sim.restate(sim.agents["near"])
    for _ in range(5):
        move(sim, sim.agents["near"])
        sim.advance(0.5)
    assert engines_of(sim) == [2, 2]
    sim.restate(sim.agents["far"])
    sim.settle()
    sim.advance(restore.REJOINS_S)
    sim.settle()
    assert engines_of(sim) == [2, 2]
    assert [*sim.agents["far"].engines] == names


def test_engines_of_a_node_that_does_not_come_back_are_started_elsewhere_soon() -> None:
    sim = two_nodes()
    sim.start()
    sim.restate(sim.agents["near"])
    sim.settle()
    sim.advance(restore.REJOINS_S + 0.1)
    sim.settle()
    assert len(sim.agents["near"].engines) == 4
