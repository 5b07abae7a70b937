"""Test the scheduler's decisions case by case on the simulated farm."""

from __future__ import annotations

import itertools

import pytest

from ipytaskfarm.core import messages as m
from ipytaskfarm.core.handlers.tables import last_rows
from ipytaskfarm.core.messages import tables
from ipytaskfarm.core.messages.task_types import FailureSummary, JobSpec, Needs, Recovery, Rules, Submission
from ipytaskfarm.core.requirements import Asks, ResourceAmount
from ipytaskfarm.core.scheduler.decision import LoadTable
from ipytaskfarm.core.scheduler.events import Originals, StoreRoom, Tick
from ipytaskfarm.core.scheduler.queue_policy import TaskInfo
from ipytaskfarm.core.scheduler.requests import HELD_S
from ipytaskfarm.core.scheduler.settings import SchedulerSettings
from ipytaskfarm.policies import LIFO, FairShare, FairShareJobs

from ..support.simulated_farm import farm_with_engines, final_of, move, one_engine, run_next

# -- what ends an attempt


def test_a_retry_goes_to_the_end_of_the_queue_and_to_another_engine() -> None:
    sim = farm_with_engines(2)
    agent = sim.agents["agent"]
    sim.ids()
    sim.submit(0, Rules(retries=1))
    move(sim, agent)
    first = next(e for e in agent.engines.values() if e.queue)
    other = next(e for e in agent.engines.values() if e is not first)
    run_next(sim, agent, first, "error")
    move(sim, agent)
    assert list(other.queue) == [(0, 2)]
    assert not first.queue


def test_a_retry_runs_on_the_only_engine() -> None:
    sim, agent, engine = one_engine()
    sim.submit(0, Rules(retries=2))
    move(sim, agent)
    for _ in range(3):
        run_next(sim, agent, engine, "error")
    assert final_of(sim, 0).reason == "error"
    assert len(sim.store.history[0]) == 2
    assert final_of(sim, 0).attempts == 3


def test_recovery_runs_under_the_same_id_with_its_own_budget() -> None:
    recovery = Recovery(b"second", None, Rules(retries=1, recovery=Recovery(b"third")))
    sim, agent, engine = one_engine()
    sim.submit(0, Rules(recovery=recovery))
    move(sim, agent)
    run_next(sim, agent, engine, "error")
    assert sim.store.progress[0].payload == b"second"
    run_next(sim, agent, engine, "error")
    run_next(sim, agent, engine, "error")
    assert sim.store.progress[0].payload == b"third"
    run_next(sim, agent, engine)
    assert final_of(sim, 0).reason == ""
    assert [row.number for row in sim.store.history[0]] == [1, 2, 3]


def test_only_what_ran_is_charged_for_a_lost_engine() -> None:
    sim, agent, engine = one_engine()
    sim.submit(0)
    sim.settle()
    for task_id in range(1, 6):
        sim.submit(task_id)
    move(sim, agent)
    sim.begin(engine)
    sim.kill(agent, engine)
    sim.settle()
    assert final_of(sim, 1).reason == "engine lost"
    assert "SIGKILL" in (final_of(sim, 1).failure or FailureSummary("", "")).value
    assert all(final_of(sim, i).reason == "" for i in range(2, 6))


def test_without_its_recorder_all_that_an_engine_held_may_have_run() -> None:
    sim, agent, engine = one_engine()
    sim.submit(0)
    sim.settle()
    for task_id in range(1, 4):
        sim.submit(task_id)
    move(sim, agent)
    sim.kill(agent, engine, known=False)
    sim.settle()
    assert all("may have run" in (final_of(sim, i).failure or FailureSummary("", "")).value for i in range(1, 4))


def test_a_task_that_kills_every_engine_is_quarantined() -> None:
    sim, agent, _ = one_engine()
    sim.submit(0, Rules(retries=99))
    for _ in range(3):
        sim.settle_start(agent)
        engine = next(e for e in agent.engines.values() if e.queue)
        sim.begin(engine)
        sim.kill(agent, engine)
        move(sim, agent)
        sim.advance(6.0)
        move(sim, agent)
    assert final_of(sim, 0).reason == "quarantined"


def test_a_suspect_runs_without_neighbours() -> None:
    sim, agent, engine = one_engine()
    sim.submit(0)
    sim.settle()
    sim.submit(1, Rules(retries=1))
    move(sim, agent)
    sim.begin(engine)
    for task_id in range(2, 6):
        sim.submit(task_id)
    sim.kill(agent, engine)
    sim.settle_start(agent)
    (fresh,) = agent.engines.values()
    while fresh.queue and fresh.queue[0][0] != 1:
        run_next(sim, agent, fresh)
    assert fresh.held() == [(1, 2)]


def test_lost_retries_are_a_budget_of_their_own() -> None:
    sim, agent, engine = one_engine()
    sim.submit(0, Rules(retries=5, lost_retries=0))
    move(sim, agent)
    sim.begin(engine)
    sim.kill(agent, engine)
    move(sim, agent)
    assert final_of(sim, 0).reason == "engine lost"


def test_rejected_everywhere_ends() -> None:
    sim, agent, engine = one_engine(SchedulerSettings(max_rejections=3))
    sim.submit(0)
    move(sim, agent)
    for _ in range(3):
        run_next(sim, agent, engine, "rejected")
        assert not engine.queue, "it was given to the engine that has just rejected it"
        sim.advance(1.1)
        move(sim, agent)
    assert final_of(sim, 0).reason == "rejected"


def test_rejected_by_all_engines_that_may_run_it_ends() -> None:
    """A task with targets, or a depend function, that rejected all of its engines came back every second for ever."""
    sim = farm_with_engines(2, SchedulerSettings(max_rejections=3))
    (agent,) = sim.agents.values()
    engine = next(engine for engine in agent.engines.values() if engine.id == 1)
    task_id = sim.ids().first
    sim.submit(task_id, Rules(targets=(1,)))
    for _ in range(3):
        move(sim, agent)
        run_next(sim, agent, engine, "rejected")
        sim.advance(1.0)
    assert final_of(sim, task_id).reason == "rejected"


def test_a_rejection_is_lifted_by_new_properties() -> None:
    sim, agent, engine = one_engine()
    sim.submit(0)
    move(sim, agent)
    run_next(sim, agent, engine, "rejected")
    agent.outbox.append(m.PropertiesChanged(engine.name, 1, b"p"))
    move(sim, agent)
    assert [run[0] for run in engine.queue] == [0]


# -- where


def test_targets_wait_for_their_engine_and_delay_nobody() -> None:
    sim, agent, engine = one_engine()
    sim.submit(0, Rules(targets=(7,)))
    sim.submit(1)
    move(sim, agent)
    assert [run[0] for run in engine.queue] == [1]
    text = sim.ask(m.ExplainTasks(0))
    assert isinstance(text, m.TextReply)
    assert "not among the task's targets [7]" in text.text


def test_a_blocked_task_runs_when_its_depend_function_says_yes() -> None:
    sim, agent, engine = one_engine()
    sim.verdict = None
    sim.submit(0, Rules(depend="d"))
    move(sim, agent)
    assert not engine.queue
    assert "raised" in sim.ask(m.ExplainTasks(0)).text  # type: ignore[union-attr]
    sim.verdict = True
    sim.advance(5.1)
    move(sim, agent)
    assert [run[0] for run in engine.queue] == [0]


@pytest.mark.parametrize(
    "rules", [Rules(targets=(7,)), Rules(asks=Asks(resources=(ResourceAmount("cores", 999, 999),), fail_if_unmet=True))]
)
def test_what_nobody_can_run_ends_after_a_restart_too(rules: Rules) -> None:
    """Its timer was gone with the controller, and it waited for ever."""
    sim = farm_with_engines(0, SchedulerSettings(unmet_timeout_s=None if rules.asks else 5.0))
    first = sim.ids().first
    sim.submit(first, rules)
    sim.crash()
    sim.ask(m.SetWanted(1))
    sim.settle()
    sim.advance(HELD_S)
    assert final_of(sim, first).reason == "unmet"


@pytest.mark.parametrize("why", ["later", "needs"])
def test_unmet_timeout_ends_what_nobody_can_run_any_more(why: str) -> None:
    """Only the first moments of a task were looked at, and not those of a task that waited for others."""
    sim = farm_with_engines(2, SchedulerSettings(unmet_timeout_s=30.0))
    first = sim.ids().first
    sim.ask(m.HoldFarm(True))
    sim.submit(first)
    sim.submit(first + 1, Rules(targets=(1,)), needs=Needs(after=(first,)) if why == "needs" else None)
    sim.advance(100.0)
    sim.ask(m.RemoveEngines([1]))
    sim.ask(m.HoldFarm(False))
    sim.settle()
    assert first + 1 in sim.scheduler.farm.tasks.unfinished
    sim.advance(60.0)
    assert final_of(sim, first + 1).reason == "unmet"


def test_unmet_timeout_ends_what_nobody_can_run() -> None:
    sim, _, _ = one_engine(SchedulerSettings(unmet_timeout_s=30.0))
    sim.verdict = False
    sim.submit(0, Rules(depend="d"))
    sim.advance(29.0)
    assert 0 in sim.scheduler.farm.tasks.unfinished
    sim.advance(2.0)
    assert final_of(sim, 0).reason == "unmet"
    assert final_of(sim, 0).failure.etype == "TaskTimeout"  # type: ignore[union-attr]


def test_failure_penalty_withholds_the_engine() -> None:
    sim, agent, engine = one_engine(SchedulerSettings(failure_penalty_s=1.0))
    sim.submit(0)
    sim.submit(1)
    move(sim, agent)
    run_next(sim, agent, engine, "error")
    assert not engine.queue
    sim.advance(1.1)
    move(sim, agent)
    assert [run[0] for run in engine.queue] == [1]


# -- order


@pytest.mark.parametrize(("priorities", "order"), [((0, 1, 0, 2), (3, 1, 0, 2)), ((0, 0, 0), (0, 1, 2))])
def test_higher_priority_first_then_order_of_acceptance(priorities: tuple[int, ...], order: tuple[int, ...]) -> None:
    sim, agent, engine = one_engine()
    sim.ask(m.HoldFarm(True))
    for task_id, priority in enumerate(priorities):
        sim.submit(task_id, Rules(priority=priority))
    sim.ask(m.HoldFarm(False))
    move(sim, agent)
    assert tuple(run_next(sim, agent, engine, run_s=1.0) for _ in order) == order


def test_lifo() -> None:
    sim, agent, engine = one_engine(SchedulerSettings(policy=LIFO().key))
    sim.ask(m.HoldFarm(True))
    for task_id in range(3):
        sim.submit(task_id)
    sim.ask(m.HoldFarm(False))
    move(sim, agent)
    assert [run_next(sim, agent, engine, run_s=1.0) for _ in range(3)] == [2, 1, 0]


def test_tasks_of_several_classes_keep_their_order_when_they_are_sent_ahead() -> None:
    sim, agent, engine = one_engine()
    kinds = [Rules(targets=(0,)), Rules(targets=(0, 1))]
    for task_id in range(6):  # so that all are known to be quick
        sim.submit(task_id, kinds[task_id % 2])
    move(sim, agent)
    for _ in range(6):
        run_next(sim, agent, engine, run_s=0.0001)
    sim.ask(m.HoldFarm(True))
    for task_id in range(6, 66):
        sim.submit(task_id, kinds[task_id % 2])
    sim.ask(m.HoldFarm(False))
    move(sim, agent)
    assert len(engine.queue) > 10
    assert [task for task, _ in engine.queue] == list(range(6, 6 + len(engine.queue)))


def test_fair_share_lets_a_late_client_in_without_giving_it_the_farm() -> None:
    sim, agent, engine = one_engine(SchedulerSettings(policy=FairShare().key))
    sim.join_client("late")
    for task_id in range(20):
        sim.submit(task_id)
    late = sim.ids("late")
    move(sim, agent)
    for _ in range(10):
        run_next(sim, agent, engine, run_s=1.0)
    for task_id in range(late.first, late.first + 5):
        sim.submit(task_id, session="late")
    order = [run_next(sim, agent, engine, run_s=1.0) >= late.first for _ in range(11)]
    assert sum(order) == 5
    assert not any(a and b for a, b in itertools.pairwise(order)), "they did not take turns"


def test_fair_share_of_jobs_lets_jobs_take_turns() -> None:
    sim, agent, engine = one_engine(SchedulerSettings(policy=FairShareJobs().key))
    running = sim.ids().first
    sim.submit(running)
    first = running + 1
    for task_id in range(first, first + 9):
        job = "small" if task_id >= first + 7 else "large"
        sim.submit(task_id, Rules(job=job), jobs=[JobSpec(job, job, 9)])
    move(sim, agent)
    ran = [run_next(sim, agent, engine, run_s=1.0) for _ in range(6)]
    assert {first + 7, first + 8} <= set(ran), "the small one does not wait for all of the large one"
    assert ran.index(first + 1) < ran.index(first + 8), "nor the other way round"


def test_fair_share_tags_are_per_priority() -> None:
    policy = FairShare()
    keys = [policy.key(TaskInfo(i, 0, "a", i, 0)) for i in range(3)]
    urgent = policy.key(TaskInfo(9, 1, "a", 9, 0, keys[-1]))
    assert urgent < keys[0]


# -- acceptance


def test_ids_arrive_in_order_and_a_gap_is_not_accepted() -> None:
    sim, _, _ = one_engine()
    sim.submit(0)
    sim.handle(m.Submit([Submission(2, b"", 1.0)]), "client")
    assert 2 not in sim.scheduler.farm.tasks.unfinished
    assert sim.told["client"][-1] == m.Accepted([(0, 0)])
    assert any(isinstance(x, m.Full) and x.first_id == 1 for x in sim.told["client"])


def test_a_late_resend_of_a_cleared_task_is_a_duplicate() -> None:
    sim, _, _ = one_engine()
    sim.submit(0)
    sim.settle()
    sim.ask(m.Clear([0]))
    sim.submit(0)
    assert 0 not in sim.scheduler.farm.tasks.unfinished
    sim.crash()
    sim.join_client()
    sim.submit(0)
    assert 0 not in sim.scheduler.farm.tasks.unfinished
    assert sim.told["client"][-1] == m.Accepted([(0, 0)])


def test_without_room_nothing_is_accepted_and_results_still_are() -> None:
    sim, agent, engine = one_engine()
    sim.submit(0)
    move(sim, agent)
    sim.handle(StoreRoom("no room"))
    sim.submit(1)
    assert sim.told["client"][-1] == m.Full(1, "no room")
    run_next(sim, agent, engine)
    assert final_of(sim, 0).reason == ""
    sim.handle(StoreRoom(None))
    sim.submit(1)
    sim.settle()
    assert final_of(sim, 1).reason == ""


def test_a_function_that_never_arrived_is_a_refusal() -> None:
    sim, _, _ = one_engine()
    sim.handle(m.Submit([Submission(0, b"", 1.0, "digest")]), "client")
    (finals,) = [x for x in sim.told["client"] if isinstance(x, m.Finals)]
    assert finals.finals[0].reason == "refused"
    fetched = sim.ask(m.FetchResults([0]))
    assert isinstance(fetched, m.Fetched)
    assert fetched.finals[0].reason == "refused"


def test_a_client_that_was_forgotten_goes_on_with_its_ids() -> None:
    sim, _, _ = one_engine()
    sim.submit(0)
    sim.leave_client()
    sim.join_client()
    sim.submit(1)
    sim.settle()
    assert final_of(sim, 1).reason == ""


# -- the end


def test_a_stop_returns_what_may_repeat_and_ends_the_rest() -> None:
    sim = farm_with_engines(2)
    agent = sim.agents["agent"]
    sim.ids()
    sim.submit(0)
    sim.submit(1, Rules(retries=1))
    move(sim, agent)
    for engine in agent.engines.values():
        sim.begin(engine)
    sim.ask(m.StopFarm(1.0))
    sim.advance(1.1)
    move(sim, agent)
    assert final_of(sim, 0).reason == "engine lost"
    assert "farm stopped" in (final_of(sim, 0).failure or FailureSummary("", "")).value
    assert 1 not in sim.store.finals
    assert sim.store.progress[1].errors == 0
    assert agent.shut


def test_a_turn_without_events_says_nothing() -> None:
    sim, _, _ = one_engine()
    out = sim.handle(Tick())
    assert not (out.saves)
    assert not (out.sends)
    assert not (out.assignments)


def test_of_a_long_table_only_the_end_is_made() -> None:
    sim = farm_with_engines(0)
    first = sim.ids().first
    for task_id in range(first, first + 10):
        sim.submit(task_id)
    sim.ask(m.AbortTasks([first + 8, first + 1]))
    out = sim.handle(m.AskQuestion(7, m.ListTasks(last=4)), "client")
    (load,) = out.loads
    assert isinstance(load, LoadTable)
    assert (load.ids, [row.id for row in load.rows], load.omitted) == (
        [first + 8],
        [first + 6, first + 7, first + 9],
        6,
    )
    reply = sim.ask(m.ListTasks(state="unfinished", last=3))
    assert isinstance(reply, tables.TaskRows)
    assert ([row.id - first for row in reply.rows], reply.omitted) == ([6, 7, 9], 5)
    assert last_rows(load.rows, [], 2, 1, load.order) == tables.TaskRows(load.rows[-2:], [], 2)
    everything = sim.ask(m.ListTasks(state="unfinished"))
    assert isinstance(everything, tables.TaskRows)
    assert (len(everything.rows), everything.omitted) == (8, 0)


def test_a_retry_of_what_was_cleared_meanwhile_makes_nothing() -> None:
    sim = farm_with_engines(0)
    before = sim.scheduler.farm.clients.ids.next
    out = sim.handle(Originals(7, [], [3], []), "client")
    assert sim.scheduler.farm.clients.ids.next == before
    assert out.saves == []
    assert out.sends == [("client", m.Answer(7, m.Retried([], [3], [])))]


def test_runs_that_have_ended_leave_few_timers_of_warn_after() -> None:
    """Each kept its timer until its time: a million short ones an hour long."""
    sim, agent, engine = one_engine()
    timers = sim.scheduler.farm.timers
    timers.clean_at = 50
    first = sim.ids().first
    for task in range(first, first + 100):
        sim.submit(task, Rules(warn_after_s=3600.0))
    move(sim, agent)
    for task in range(first, first + 99):
        assert run_next(sim, agent, engine) == task
    assert sum(what == "late" for _, _, what, _ in timers.heap) <= 60
    assert engine.running or sim.begin(engine)
    sim.advance(3601)
    assert "running, longer than warn_after" in str(sim.ask(m.ListTasks(ids=[first + 99])))
