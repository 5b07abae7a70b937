"""Test on the simulated farm what is sent ahead to engines, and what is recalled."""

from __future__ import annotations

from ipytaskfarm.core import messages as m
from ipytaskfarm.core.messages.tables import TaskRows
from ipytaskfarm.core.messages.task_types import Ended, Function, Rules, Submission
from ipytaskfarm.core.scheduler.decision import Assignment

from ..support.simulated_farm import (
    SimAgent,
    SimEngine,
    SimFarm,
    farm_with_engines,
    final_of,
    move,
    one_engine,
    run_next,
)

# -- prefetch


def test_nothing_is_sent_ahead_of_an_unmeasured_class() -> None:
    sim, agent, engine = one_engine()
    for task_id in range(10):
        sim.submit(task_id)
    move(sim, agent)
    assert engine.held() == [(0, 1)]


def test_a_task_that_ran_while_a_turn_read_its_messages_is_not_completed_before_it_ran() -> None:
    sim, agent, engine = one_engine()
    sim.submit(0)
    move(sim, agent)
    (run,) = engine.held()
    began_s = sim.now.wall_s + 0.005  # the turn's time is that of its beginning
    sim.handle(m.Results(engine.name, [Ended(*run, "", began_s, 0.002)]), agent.session)
    final = final_of(sim, 0)
    assert final.submitted_s <= final.started_s <= final.completed_s == began_s + 0.002


def test_measured_quick_tasks_are_sent_ahead_up_to_the_wanted_work() -> None:
    sim, agent, engine = one_engine()
    for task_id in range(200):
        sim.submit(task_id)
    move(sim, agent)
    run_next(sim, agent, engine, run_s=0.001)
    assert 44 <= len(engine.held()) <= 51  # 50 ms of 1 ms tasks
    reply = sim.ask(m.ListTasks(state="unfinished"))
    assert isinstance(reply, TaskRows)
    assert {(row.reason, row.attempts) for row in reply.rows} == {("running", 1), ("sent ahead", 0), ("queued", 0)}


def test_large_payloads_are_sent_ahead_up_to_some_bytes() -> None:
    """All that is sent ahead is read from the store at once, and waits for the agent in the controller's memory."""
    sim, agent, engine = one_engine()
    sim.submit(0)
    move(sim, agent)
    run_next(sim, agent, engine, run_s=0.001)
    large = [Submission(task_id, bytes(4 << 20), 1.0, None, None) for task_id in range(1, 11)]
    sim.handle(m.Submit(large), "client")
    for task_id in range(11, 16):
        sim.submit(task_id)
    move(sim, agent)
    assert [run[0] for run in engine.held()] == [1, 2, 3, 4]
    for task_id in range(1, 16):
        assert [run[0] for run in engine.held()][:1] == [task_id]
        run_next(sim, agent, engine, run_s=0.001)
    assert not sim.scheduler.farm.tasks.large.payloads


def test_large_functions_are_sent_ahead_up_to_some_bytes_and_after_a_restart_too() -> None:
    sim, agent, engine = one_engine()
    sim.submit(0)
    move(sim, agent)
    run_next(sim, agent, engine, run_s=0.001)
    for task_id in range(1, 11):
        closure = Function(f"{task_id}", bytes(4 << 20))
        sim.handle(m.Submit([Submission(task_id, b"", 1.0, closure.digest, None)], [closure]), "client")
    sim.handle(m.Submit([Submission(task_id, b"", 1.0, "10", None) for task_id in range(11, 16)]), "client")
    move(sim, agent)
    assert [run[0] for run in engine.held()] == [1, 2, 3, 4]
    for task_id in range(1, 16):
        run_next(sim, agent, engine, run_s=0.001)
        assert task_id < 9 or len(engine.held()) == 15 - task_id, "the function of the last six is sent once"
    assert not sim.scheduler.farm.tasks.large.payloads


def test_payloads_are_known_after_a_restart() -> None:
    sim = one_engine()[0]
    large = [Submission(task_id, bytes(4 << 20), 1.0, None, None) for task_id in range(10)]
    sim.handle(m.Submit(large), "client")
    sim.crash()
    assert sim.scheduler.farm.tasks.large.payloads == dict.fromkeys(range(10), 4 << 20)


def test_of_longer_tasks_several_are_sent_ahead_so_that_their_results_come_together() -> None:
    sim, agent, engine = one_engine()
    for task_id in range(200):
        sim.submit(task_id)
    move(sim, agent)
    run_next(sim, agent, engine, run_s=0.01)
    assert 14 <= len(engine.held()) <= 15
    for _ in range(10):
        run_next(sim, agent, engine, run_s=0.01)
        assert 11 <= len(engine.held()) <= 15, "refilled before much of it has gone"


def test_of_tasks_of_25_ms_less_than_a_third_of_a_second_is_sent_ahead() -> None:
    sim, agent, engine = one_engine()
    for task_id in range(200):
        sim.submit(task_id)
    move(sim, agent)
    run_next(sim, agent, engine, run_s=0.025)
    assert 11 <= len(engine.held()) <= 12


def test_tasks_of_60_ms_are_sent_ahead_too() -> None:
    sim, agent, engine = one_engine()
    for task_id in range(200):
        sim.submit(task_id)
    move(sim, agent)
    for _ in range(10):
        run_next(sim, agent, engine, run_s=0.06)
        assert 4 <= len(engine.held()) <= 5


def test_nothing_is_sent_ahead_of_a_class_of_which_one_in_ten_takes_long() -> None:
    sim, agent, engine = one_engine()
    for task_id in range(200):
        sim.submit(task_id)
    move(sim, agent)
    for n in range(30):
        run_next(sim, agent, engine, run_s=0.001 if n % 10 else 0.15)
        assert len(engine.held()) == 1


def test_one_long_task_in_twenty_does_not_matter() -> None:
    sim, agent, engine = one_engine()
    for task_id in range(200):
        sim.submit(task_id)
    move(sim, agent)
    run_next(sim, agent, engine, run_s=0.15)
    for _ in range(18):
        run_next(sim, agent, engine, run_s=0.001)
        assert len(engine.held()) == 1
    run_next(sim, agent, engine, run_s=0.001)
    assert len(engine.held()) > 1


def test_slow_tasks_bind_late() -> None:
    sim, agent, engine = one_engine()
    for task_id in range(10):
        sim.submit(task_id)
    move(sim, agent)
    run_next(sim, agent, engine, run_s=0.5)
    assert len(engine.held()) == 1


def test_a_burst_is_shared_by_idle_engines() -> None:
    sim = farm_with_engines(2)
    agent = sim.agents["agent"]
    sim.ids()
    for task_id in range(2):
        sim.submit(task_id)
    sim.settle()
    sim.handle(m.Submit([Submission(i, b"", 1.0) for i in range(2, 22)]), "client")
    move(sim, agent)
    assert [len(e.queue) for e in agent.engines.values()] == [10, 10]


# -- recall


def test_what_stands_behind_a_long_task_goes_to_an_idle_engine() -> None:
    sim = farm_with_engines(2)
    agent = sim.agents["agent"]
    sim.ids()
    for task_id in range(4):
        sim.submit(task_id)
    sim.settle()
    sim.handle(m.Submit([Submission(i, b"", 1.0) for i in range(4, 24)]), "client")
    move(sim, agent)
    slow, quick = agent.engines.values()
    sim.begin(slow)  # and does not end
    while quick.queue:
        run_next(sim, agent, quick)
    sim.advance(0.1)
    move(sim, agent)
    assert slow.running is not None
    assert not slow.queue
    while quick.queue:
        run_next(sim, agent, quick)
    assert sim.ask(m.QueueStatus()).counts == {"scheduled": 0, "pending": 1, "succeeded": 23, "failed": 0}  # type: ignore[union-attr]


def two_with_ten_each(run_s: float) -> tuple[SimFarm, SimAgent, SimEngine, SimEngine]:
    """Return a farm with two engines that hold ten tasks each, of a class whose tasks take `run_s`; the first one has
    begun.
    """
    sim = farm_with_engines(2)
    agent = sim.agents["agent"]
    sim.ids()
    for task_id in range(2):
        sim.submit(task_id)
    move(sim, agent)
    first, second = agent.engines.values()
    run_next(sim, agent, first, run_s=run_s)
    run_next(sim, agent, second, run_s=run_s)
    sim.handle(m.Submit([Submission(i, b"", 1.0) for i in range(2, 22)]), "client")
    move(sim, agent)
    assert [len(e.queue) for e in (first, second)] == [10, 10]
    sim.begin(first)
    return sim, agent, first, second


def test_an_idle_engine_gets_half_of_much_that_stands_behind_a_run_at_once() -> None:
    sim, agent, full, empty = two_with_ten_each(0.02)
    while empty.queue:
        run_next(sim, agent, empty, run_s=0.0)
    sim.advance(0.001)  # the run of the full one is not older than usual
    move(sim, agent)
    assert sorted(len(e.queue) for e in (full, empty)) == [4, 5]


def test_little_behind_a_run_is_not_recalled_at_once() -> None:
    sim, agent, _, empty = two_with_ten_each(0.0005)
    while empty.queue:
        run_next(sim, agent, empty, run_s=0.0005)
    sim.advance(0.001)
    move(sim, agent)
    assert not empty.queue, "the engine does it sooner than a recall"
    sim.advance(0.1)
    move(sim, agent)
    assert empty.queue, "but this run takes long"


def test_a_check_that_an_earlier_one_has_overtaken_sets_no_further_one() -> None:
    sim, agent, engine = one_engine()
    for task_id in range(400):
        sim.submit(task_id)
    move(sim, agent)
    run_next(sim, agent, engine, run_s=0.002)
    for n in range(12):  # each one brings the next check forward
        sim.submit(400 + n, Rules(priority=5))
        sim.begin(engine)
        sim.advance(0.03)
        move(sim, agent)  # what stands behind the run is recalled
        while run_next(sim, agent, engine, run_s=0.002) != 400 + n:
            pass
    assert sim.scheduler.farm.readiness.with_runs_ahead
    assert sum(what == "recall" for _, _, what, _ in sim.scheduler.farm.timers.heap) == 1


def test_recalls_are_checked_less_often_while_nobody_can_want_the_runs() -> None:
    sim, agent, engine = one_engine()
    for task_id in range(300):
        sim.submit(task_id)
    move(sim, agent)
    run_next(sim, agent, engine, run_s=0.002)
    readiness, after_s = sim.scheduler.farm.readiness, sim.scheduler.farm.settings.recall_after_s
    assert readiness.recall_check_s is not None
    assert readiness.recall_check_s - sim.now.mono_s > 2 * after_s, "all that wait are as urgent"
    sim.submit(300, Rules(priority=5))
    assert readiness.recall_check_s - sim.now.mono_s <= after_s


def test_an_unanswered_recall_lets_only_repeatable_tasks_go_elsewhere() -> None:
    sim, agent, engine = one_engine()
    sim.submit(0)
    sim.settle()
    sim.submit(1)
    sim.submit(2, Rules(retries=1))
    sim.submit(3)
    move(sim, agent)
    assert engine.held() == [(1, 1), (2, 1), (3, 1)]
    sim.begin(engine)
    sim.ask(m.SetWanted(2))
    for _ in range(3):  # the new engine comes up; the recall is never delivered
        message = agent.inbox[0] if agent.inbox else None
        if isinstance(message, m.StartEngine):
            sim.deliver(agent)
        sim.process(agent)
    sim.advance(3.0)
    assignments = [x for x in agent.inbox if isinstance(x, Assignment)]
    assert [task[:2] for a in assignments for task in a.tasks] == [(2, 2)]
    assert sim.store.progress[2].errors == 0, "it was charged for a recall"


def test_a_late_answer_of_an_attempt_that_was_given_up_changes_nothing() -> None:
    sim, agent, engine = one_engine()
    sim.submit(0)
    sim.settle()
    sim.submit(1)
    sim.submit(2, Rules(retries=1))
    move(sim, agent)
    sim.begin(engine)
    sim.ask(m.SetWanted(2))
    for _ in range(3):
        if agent.inbox and isinstance(agent.inbox[0], m.StartEngine):
            sim.deliver(agent)
        sim.process(agent)
    sim.advance(3.0)
    assert sim.scheduler.farm.tasks.unfinished[2].attempt == 2  # on its way to the new engine
    ended = Ended(2, 1, "", sim.now.wall_s, 0.001, None, b"of the first attempt")
    sim.handle(m.Results(engine.name, [ended]), "agent")
    assert 2 not in sim.store.finals


def test_a_more_urgent_task_does_not_wait_behind_what_was_sent_ahead_of_a_long_one() -> None:
    sim, agent, engine = one_engine()
    sim.submit(0)
    sim.settle()
    for task_id in range(1, 11):
        sim.submit(task_id)
    move(sim, agent)
    sim.begin(engine)
    sim.submit(11, Rules(priority=5))
    sim.advance(0.1)
    move(sim, agent)
    run_next(sim, agent, engine)
    assert run_next(sim, agent, engine) == 11


def test_an_urgent_task_for_one_engine_is_recalled_for_too() -> None:
    sim, agent, engine = one_engine()
    sim.submit(0)
    sim.settle()
    for task_id in range(1, 6):
        sim.submit(task_id)
    move(sim, agent)
    sim.begin(engine)
    sim.submit(6, Rules(priority=5, targets=(0,)))
    sim.advance(0.1)
    move(sim, agent)
    run_next(sim, agent, engine)
    assert run_next(sim, agent, engine) == 6
