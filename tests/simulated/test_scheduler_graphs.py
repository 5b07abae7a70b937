"""Graphs, trials, children, messages, pauses: each rule by itself, on paper."""

from __future__ import annotations

import pytest

from ipytaskfarm.core import messages as m
from ipytaskfarm.core.messages import tables
from ipytaskfarm.core.messages.running_task import (
    Await,
    Children,
    ChildTable,
    Counted,
    Declined,
    Post,
    Receive,
    Spawn,
    Spawned,
    TaskMessages,
)
from ipytaskfarm.core.messages.task_types import (
    Deferral,
    Ended,
    JobSpec,
    LostInputs,
    Needs,
    Recovery,
    Rules,
    Submission,
)
from ipytaskfarm.core.requirements import Asks, ResourceAmount
from ipytaskfarm.core.scheduler.kept_engines import KEPT_S
from ipytaskfarm.core.scheduler.nested_waits import MAX_EXTRA_ENGINES
from ipytaskfarm.core.states import DEFERS, LOSES_INPUTS
from ipytaskfarm.core.validation import validated
from tests.support.simulated_farm import SimAgent, SimEngine, SimFarm, final_of, move, one_engine, run_next


def reason(sim: SimFarm, task_id: int) -> str:
    """Return the reason of an unfinished task."""
    reply = sim.ask(m.ListTasks([task_id]))
    assert isinstance(reply, tables.TaskRows)
    return reply.rows[0].reason


def ended_with(sim: SimFarm, task_id: int) -> str:
    return final_of(sim, task_id).reason


def test_an_end_releases_what_waits_for_it_alone() -> None:
    sim, agent, engine = one_engine()
    sim.submit(0)
    sim.submit(1)
    sim.submit(2, needs=Needs(after=(0, 1)))
    move(sim, agent)
    assert reason(sim, 2) == "waiting for tasks"
    assert run_next(sim, agent, engine) == 0
    assert reason(sim, 2) == "waiting for tasks"
    assert run_next(sim, agent, engine) == 1
    assert run_next(sim, agent, engine) == 2


def test_what_was_to_be_told_is_told_after_a_restart() -> None:
    sim, agent, engine = one_engine()
    sim.submit(0)
    sim.submit(1, needs=Needs(after=(0,)))
    sim.submit(2, needs=Needs(after=(1,), join=True))
    sim.submit(3, needs=Needs(after=(2,), if_failed="run"))
    sim.crash()
    sim.join_client()
    move(sim, agent)
    assert run_next(sim, agent, engine, "error") == 0
    assert [ended_with(sim, i) for i in (1, 2)] == ["a needed task failed"] * 2
    sim.crash()
    sim.join_client()
    move(sim, agent)
    assert run_next(sim, agent, engine) == 3
    assert ended_with(sim, 3) == ""


def test_edges_to_what_is_not_there_are_refused() -> None:
    sim, _, _ = one_engine()
    sim.submit(0, needs=Needs(after=(0,)))
    sim.submit(1, needs=Needs(after=(77,)))
    assert "cannot wait for itself" in sim.store.refusals[0][1]
    assert "there is no task 77" in sim.store.refusals[1][1]
    sim.submit(2, needs=Needs(after=(1,), if_failed="skip"))
    assert ended_with(sim, 2) == "skipped", "what was refused counts as failed"


def test_a_result_is_kept_for_those_that_take_it() -> None:
    sim, agent, engine = one_engine()
    sim.submit(0)
    sim.submit(1, needs=Needs(after=(0,), inputs=((0, 0),)))
    sim.submit(2, needs=Needs(after=(0,)))
    move(sim, agent)
    run_next(sim, agent, engine)
    assert sim.ask(m.Clear()) == m.Cleared(0)
    assert sim.ask(m.Clear([0])) == m.Cleared(0, [], [], [0])
    run_next(sim, agent, engine)
    assert sim.ask(m.Clear([0])) == m.Cleared(1)


def test_what_is_kept_is_cleared_by_its_id_alone() -> None:
    sim, _, _ = one_engine()
    sim.submit(0, needs=Needs(after=(), join=True, keep=True))
    assert ended_with(sim, 0) == ""
    assert sim.ask(m.Clear()) == m.Cleared(0)
    assert sim.ask(m.Clear([0])) == m.Cleared(1)


def test_a_stale_report_of_lost_inputs_makes_nothing_again() -> None:
    sim, agent, engine = one_engine()
    other = add_engine(sim, agent)
    sim.submit(0)
    move(sim, agent)
    run_next(sim, agent, engine if engine.queue else other)
    needs = Needs(after=(0,), inputs=((0, 0),))
    for task_id in (1, 2):
        sim.submit(task_id, needs=needs)
    move(sim, agent)
    for each in (engine, other):
        assert sim.begin(each)
    sim.advance(1.0)
    lost = LostInputs((0,))
    sim.end(agent, engine, LOSES_INPUTS, detail=lost)
    move(sim, agent)
    assert run_next(sim, agent, engine) == 0, "what was lost is made again"
    sim.end(agent, other, LOSES_INPUTS, detail=lost)  # it speaks of what it was given, which is made again already
    move(sim, agent)
    assert len(sim.begun[0]) == 2
    sim.settle()
    assert len(sim.begun[0]) == 2
    assert [ended_with(sim, i) for i in (0, 1, 2)] == ["", "", ""]


def test_what_waits_waits_again_for_a_task_that_is_reopened() -> None:
    sim, agent, engine = one_engine()
    sim.submit(0)
    sim.submit(1)
    sim.submit(2, needs=Needs(after=(0, 1)))
    move(sim, agent)
    assert run_next(sim, agent, engine) == 0
    assert sim.ask(m.MarkTasksFailed(0, "wrong")) == m.TextReply("reopened")
    move(sim, agent)
    assert run_next(sim, agent, engine) == 1
    assert reason(sim, 2) == "waiting for tasks"
    assert [run_next(sim, agent, engine) for _ in range(2)] == [0, 2]
    assert [row.outcome for row in sim.store.history[0]] == ["marked as failed: wrong"]


def test_a_success_whose_input_was_cleared_is_not_reopened() -> None:
    sim, agent, engine = one_engine()
    sim.submit(0)
    sim.submit(1, needs=Needs(after=(0,), inputs=((0, 0),)))
    sim.submit(2, needs=Needs(after=(1,), inputs=((1, 1),)))
    move(sim, agent)
    assert [run_next(sim, agent, engine) for _ in range(2)] == [0, 1]
    assert sim.ask(m.Clear([0])) == m.Cleared(1)
    refusal = sim.ask(m.MarkTasksFailed(1, "wrong"))
    assert isinstance(refusal, m.Refusal)
    assert "cannot be run again: it takes the result of task 0, which was cleared" in refusal.text
    assert sim.begin(engine)
    sim.end(agent, engine, LOSES_INPUTS, detail=LostInputs((1,)))
    sim.settle()
    assert ended_with(sim, 1) == "", "its result stands: a run without its input could only fail"
    failure = final_of(sim, 2).failure
    assert failure is not None
    assert failure.etype == "InputsLost"
    assert "task 1 cannot be run again for it: it takes the result of task 0" in failure.value


def add_engine(sim: SimFarm, agent: SimAgent) -> SimEngine:
    sim.ask(m.SetWanted(2))
    sim.settle()
    return list(agent.engines.values())[-1]


def test_a_retried_graph_waits_for_itself() -> None:
    sim, agent, engine = one_engine()
    sim.submit(0)
    sim.submit(1, needs=Needs(after=(0,), inputs=((0, 0),)))
    move(sim, agent)
    run_next(sim, agent, engine, "error")
    reply = sim.ask(m.RetryTasks([0, 1]))
    assert isinstance(reply, m.Retried)
    new = dict(reply.ids)
    assert sim.store.tasks[new[1]].needs == Needs(after=(new[0],), inputs=((0, new[0]),))
    move(sim, agent)
    assert [run_next(sim, agent, engine) for _ in range(2)] == [new[0], new[1]]


def test_a_deferral_outlives_a_restart_and_a_clock_that_was_set_back() -> None:
    sim, agent, engine = one_engine()
    sim.submit(0)
    move(sim, agent)
    sim.begin(engine)
    sim.end(agent, engine, DEFERS, detail=Deferral(5.0, "later", b"state", 3))
    move(sim, agent)
    assert reason(sim, 0) == "deferred"
    sim.now = type(sim.now)(sim.now.mono_s, sim.now.wall_s - 7200)
    sim.crash()
    sim.join_client()
    move(sim, agent)
    assert reason(sim, 0) == "deferred"
    task = sim.scheduler.farm.tasks.unfinished[0]
    assert task.past.trial_state is not None
    assert (task.past.trial_state.trial, task.past.trial_state.received) == (2, 3)
    sim.advance(5.5)
    move(sim, agent)
    assert run_next(sim, agent, engine) == 0


# -- children


def heard(engine: SimEngine, number: int) -> object:
    return next(reply.reply for reply in engine.heard if reply.n == number)


def test_the_same_submission_gets_the_same_children_also_after_a_restart() -> None:
    sim, agent, engine = one_engine()
    sim.submit(0)
    move(sim, agent)
    sim.begin(engine)
    join = Submission(-3, b"", 0.0, needs=Needs(after=(-1, -2), join=True))
    made = [Submission(-1, b"work", 0.0), Submission(-2, b"work", 0.0), join]
    first = sim.call(agent, engine, Spawn(1, made))
    move(sim, agent)
    sim.crash()
    sim.join_client()
    move(sim, agent)
    again, other, second = (sim.call(agent, engine, Spawn(n, x)) for n, x in ((1, made), (1, made[:1]), (2, made[:1])))
    table = sim.call(agent, engine, Children())
    move(sim, agent)
    ids = heard(engine, first)
    assert isinstance(ids, Spawned)
    assert heard(engine, again) == ids
    refused = heard(engine, other)
    assert isinstance(refused, Declined)
    assert refused.etype == "RuntimeError"
    more = heard(engine, second)
    assert isinstance(more, Spawned)
    rows = heard(engine, table)
    assert isinstance(rows, ChildTable)
    assert [child for child, _ in rows.rows] == ids.ids + more.ids
    assert sim.store.tasks[ids.ids[2]].needs == Needs(after=tuple(ids.ids[:2]), join=True)


def test_a_repeated_submission_of_which_children_were_cleared_is_declined() -> None:
    """After a restart a task got fewer ids than it had submitted tasks, and took the results of others for theirs."""
    sim, agent, engine = one_engine()
    sim.submit(0)
    move(sim, agent)
    sim.begin(engine)
    made = [Submission(-1, b"work", 0.0), Submission(-2, b"work", 0.0)]
    first = sim.call(agent, engine, Spawn(1, made))
    move(sim, agent)
    ids = heard(engine, first)
    assert isinstance(ids, Spawned)
    sim.ask(m.AbortTasks(ids.ids))
    assert sim.ask(m.Clear(ids.ids[:1])) == m.Cleared(1, [], [], [])
    sim.crash()
    sim.join_client()
    move(sim, agent)
    again = sim.call(agent, engine, Spawn(1, made))
    move(sim, agent)
    declined = heard(engine, again)
    assert isinstance(declined, Declined)
    assert "were cleared" in declined.text


def test_calls_of_an_attempt_that_is_not_the_current_one_are_not_heard() -> None:
    sim, agent, engine = one_engine()
    sim.submit(0)
    move(sim, agent)
    sim.begin(engine)
    sim.ask(m.AbortTasks([0], False))
    number = sim.call(agent, engine, Spawn(1, [Submission(-1, b"work", 0.0)]))
    move(sim, agent)
    assert not [reply for reply in engine.heard if reply.n == number]
    assert not [task for task in sim.store.tasks.values() if task.parent == 0]


def test_a_task_that_waits_lends_its_place_and_its_share() -> None:
    sim, agent, engine = one_engine()
    cores = Rules(asks=Asks(resources=(ResourceAmount("cores", 2, 2),)))
    sim.submit(0, cores)
    move(sim, agent)
    sim.begin(engine)
    spawn = sim.call(agent, engine, Spawn(1, [Submission(-1, b"work", 0.0, None, cores)]))
    move(sim, agent)
    spawned = heard(engine, spawn)
    assert isinstance(spawned, Spawned)
    waits = sim.call(agent, engine, Await(spawned.ids))
    move(sim, agent)
    assert reason(sim, 0) == "waiting for its children"
    sim.advance(0.5)
    move(sim, agent)
    assert len(agent.engines) == 2, "one more engine while it waits"
    child = next(e for e in agent.engines.values() if e is not engine)
    assert run_next(sim, agent, child) == spawned.ids[0]
    assert heard(engine, waits) == Counted(0)
    assert sim.scheduler.farm.agents.by_session["agent"].used == {"cores": 2.0}, "it has its share again"
    sim.submit(1)
    sim.advance(0.5)
    move(sim, agent)
    assert len(agent.engines) == 2, "the other one is kept"
    assert (list(child.queue), child.running) == ([], None), "it gets no tasks"
    sim.ask(m.AbortTasks([1], False))
    for again in (2, 3):  # and helps with the next wait
        spawn = sim.call(agent, engine, Spawn(again, [Submission(-1, b"work", 0.0, None, Rules(priority=1))]))
        move(sim, agent)
        spawned = heard(engine, spawn)
        assert isinstance(spawned, Spawned)
        sim.call(agent, engine, Await(spawned.ids))
        move(sim, agent)
        assert list(agent.engines.values()) == [engine, child]
        assert not sim.scheduler.farm.agents.by_session["agent"].starting
        assert run_next(sim, agent, child) == spawned.ids[0]
    sim.advance(KEPT_S + 0.5)
    move(sim, agent)
    assert len(agent.engines) == 1, "and goes when nothing has waited for some seconds"
    sim.end(agent, engine)
    move(sim, agent)
    assert ended_with(sim, 0) == ""


def test_a_task_that_goes_on_without_asking_lends_its_place_and_keeps_its_share() -> None:
    sim, agent, engine = one_engine()
    sim.submit(0, Rules(asks=Asks(resources=(ResourceAmount("cores", 2, 2),))))
    sim.submit(1)
    move(sim, agent)
    sim.begin(engine)
    waits = sim.call(agent, engine, Await([1], keeps=True))
    move(sim, agent)
    sim.advance(0.5)
    move(sim, agent)
    used = sim.scheduler.farm.agents.by_session["agent"].used
    assert used == {"cores": 2.0}
    other = next(e for e in agent.engines.values() if e is not engine)
    assert run_next(sim, agent, other) == 1
    assert heard(engine, waits) == Counted(0)
    assert used == {"cores": 2.0}, "it has them once"
    sim.end(agent, engine)
    move(sim, agent)
    assert ended_with(sim, 0) == ""
    assert not used


@pytest.mark.parametrize("needs", [False, True], ids=["queued", "behind another task"])
@pytest.mark.parametrize("priority", [0, -5])
def test_what_a_running_task_waits_for_goes_before_what_came_later(needs: bool, priority: int) -> None:
    """Otherwise the lent engines begin other tasks that wait in the same way, and no child ever begins."""
    sim, agent, engine = one_engine()
    sim.submit(0)
    move(sim, agent)
    sim.begin(engine)
    for task_id in range(1, 6):
        sim.submit(task_id)
    sim.submit(6, Rules(priority=priority))
    sim.submit(7, Rules(priority=priority), needs=Needs(after=(6,)) if needs else None)
    sim.call(agent, engine, Await([7]))
    sim.advance(0.5)
    move(sim, agent)
    other = next(e for e in agent.engines.values() if e is not engine)
    for task_id in [6, 7] if needs else [7]:
        assert run_next(sim, agent, other) == task_id


def test_a_kept_engine_is_no_replacement_and_goes_when_fewer_are_wanted() -> None:
    sim, agent, engine = one_engine()
    for task_id in (0, 1):
        sim.submit(task_id, Rules(retries=3))
    move(sim, agent)
    sim.begin(engine)
    sim.call(agent, engine, Await([1]))
    sim.advance(0.5)
    move(sim, agent)
    (child,) = (e for e in agent.engines.values() if e is not engine)
    assert run_next(sim, agent, child) == 1
    sim.kill(agent, engine)
    sim.advance(0.5)
    move(sim, agent)
    farm = sim.scheduler.farm
    assert {e.id: (e.kept, len(e.assigned)) for e in farm.engines.by_name.values()} == {0: (False, 1), 1: (True, 0)}
    assert [e.id for e in farm.engines.visible()] == [0], "no command goes to it"
    sim.ask(m.SetSticky("key", "execute", b"x"))
    sim.settle()
    assert not farm.nested_waits.kept_places, "an engine that lacks a sticky command is not used again"
    assert child.name not in agent.engines
    (engine,) = agent.engines.values()
    sim.submit(2)
    move(sim, agent)
    assert sim.begin(engine)
    sim.submit(3)
    sim.call(agent, engine, Await([3]))
    sim.advance(0.5)
    move(sim, agent)
    (child,) = (e for e in agent.engines.values() if e is not engine)
    assert run_next(sim, agent, child) == 3
    assert farm.engines.by_name[child.name].kept
    sim.ask(m.SetWanted(0))
    sim.settle()
    assert child.name not in agent.engines, "fewer engines are wanted"


def test_there_is_a_most_of_additional_engines() -> None:
    sim, agent, _ = one_engine()
    sim.ask(m.SetWanted(MAX_EXTRA_ENGINES + 3))
    sim.settle()
    sim.submit(0, Rules(targets=(99,)))
    for task_id in range(1, MAX_EXTRA_ENGINES + 4):
        sim.submit(task_id)
    move(sim, agent)
    for engine in list(agent.engines.values()):
        assert sim.begin(engine)
        sim.call(agent, engine, Await([0]))
    move(sim, agent)
    assert sim.scheduler.farm.nested_waits.lent_slots == {"agent": MAX_EXTRA_ENGINES}
    for engine in list(agent.engines.values())[:5]:
        sim.kill(agent, engine)
    move(sim, agent)
    assert MAX_EXTRA_ENGINES - 5 <= sim.scheduler.farm.nested_waits.lent_slots["agent"] <= MAX_EXTRA_ENGINES


# -- messages


def test_a_message_that_is_sent_again_is_taken_once() -> None:
    sim, agent, engine = one_engine()
    sim.submit(0)
    move(sim, agent)
    sim.begin(engine)
    assert sim.ask(m.SendToTask(0, [b"a", b"b"], "me:1")) == m.NumberReply(2)
    sim.crash()
    sim.join_client()
    move(sim, agent)
    assert sim.ask(m.SendToTask(0, [b"a", b"b"], "me:1")) == m.NumberReply(2)
    assert sim.ask(m.SendToTask(0, [b"c"], "me:2")) == m.NumberReply(3)
    number = sim.call(agent, engine, Receive(1))
    move(sim, agent)
    letters = heard(engine, number)
    assert isinstance(letters, TaskMessages)
    assert [(x.seq, x.body) for x in letters.letters] == [(2, b"b"), (3, b"c")]


def test_what_a_task_sends_is_taken_once_and_read_in_order() -> None:
    sim, agent, engine = one_engine()
    sim.submit(0)
    move(sim, agent)
    sim.begin(engine)
    sim.handle(m.AskQuestion(50, m.ReadTaskMessages(0)), "client")
    post = Post(1, [b"a", b"b"])
    sim.call(agent, engine, post)
    move(sim, agent)
    sim.crash()
    sim.join_client()
    move(sim, agent)
    number = sim.call(agent, engine, Post(1, [b"a", b"b", b"c"]))
    move(sim, agent)
    assert heard(engine, number) == Counted(3)
    sim.handle(m.AskQuestion(51, m.ReadTaskMessages(0, 3)), "client")  # it waits for what never comes
    sim.end(agent, engine)
    move(sim, agent)
    last = sim.told["client"][-1] if isinstance(sim.told["client"][-1], m.Answer) else None
    over = [x.reply for x in sim.told["client"] if isinstance(x, m.Answer) and x.n == 51]
    assert over == [TaskMessages([], True)], last
    found = sim.ask(m.ReadTaskMessages(0))
    assert isinstance(found, TaskMessages)
    assert [x.body for x in found.letters] == [b"a", b"b", b"c"]


# -- pauses


def test_a_paused_job_is_called_back_and_new_tasks_of_it_wait() -> None:
    sim, agent, engine = one_engine()
    sim.submit(0)
    move(sim, agent)
    for _ in range(20):
        run_next(sim, agent, engine, run_s=0.0001) if engine.queue else None
    spec = JobSpec("j", "j", 9)
    for task_id in range(1, 6):
        sim.submit(task_id, Rules(job="j"), jobs=[spec])
    move(sim, agent)
    sim.ask(m.PauseJobs(["j"]))
    move(sim, agent)
    sim.submit(6, Rules(job="j"), jobs=[spec])
    sim.submit(7)
    sim.crash()
    sim.join_client()
    move(sim, agent)
    while engine.queue or engine.running:
        run_next(sim, agent, engine)
    done = {i for i, final in sim.store.finals.items() if not final.reason}
    assert 7 in done
    assert 6 not in done
    assert len(done & set(range(1, 6))) <= 1, "what had not begun was called back"
    sim.ask(m.PauseJobs(["j"], False))
    sim.settle()
    assert not sim.scheduler.farm.tasks.unfinished
    assert isinstance(sim.ask(m.PauseJobs(["k"])), m.Refusal)


def test_a_drained_node_gets_nothing_more_until_it_goes_on() -> None:
    sim, agent, engine = one_engine()
    assert sim.ask(m.DrainNode(["node"])) == m.NumberReply(1)
    sim.submit(0)
    move(sim, agent)
    assert not engine.queue
    sim.crash()
    sim.join_client()
    move(sim, agent)
    assert not engine.queue, "it outlives the controller"
    sim.ask(m.DrainNode(["node"], False))
    move(sim, agent)
    assert run_next(sim, agent, engine) == 0


def test_a_task_that_runs_again_may_be_deferred_again() -> None:
    """Its first trial was so long ago that the first deferral ended it."""
    sim, agent, engine = one_engine()
    sim.submit(0, Rules(defer_s=1.0, defer_max_s=10.0))
    move(sim, agent)
    sim.begin(engine)
    sim.end(agent, engine, DEFERS, detail=Deferral())
    move(sim, agent)
    sim.advance(1.0)
    sim.settle()
    assert final_of(sim, 0).reason == ""
    sim.advance(3600.0)
    assert sim.ask(m.MarkTasksFailed(0)) == m.TextReply("reopened")
    move(sim, agent)
    sim.begin(engine)
    sim.end(agent, engine, DEFERS, detail=Deferral())
    move(sim, agent)
    sim.advance(1.0)
    sim.settle()
    assert final_of(sim, 0).reason == ""


@pytest.mark.parametrize("ahead_s", [3600.0, -3600.0])
def test_times_of_a_node_whose_clock_is_wrong_are_told_by_the_controllers_clock(ahead_s: float) -> None:
    """The first deferral ended the task if the node's clock was an hour behind."""
    sim, agent, engine = one_engine()

    def node_s() -> float:
        return sim.now.wall_s + ahead_s

    report = m.EngineReport(engine.name, engine.id, 1, True, node_s() - 5.0)
    state = m.AgentState(agent.node, 1, 2, 2**30, "linux", "3.11", [report], wall_s=node_s())
    sim.handle(state, agent.session)
    assert sim.scheduler.farm.engines.by_name[engine.name].started_s == sim.now.wall_s - 5.0
    sim.submit(0, Rules(defer_s=1.0, defer_max_s=10.0))
    move(sim, agent)
    sim.begin(engine)
    assert engine.running is not None
    sim.end_with(agent, engine, Ended(*engine.running, DEFERS, node_s(), 0.0, None, b"", (), 0, Deferral()))
    move(sim, agent)
    assert reason(sim, 0) == "deferred"
    sim.advance(1.0)
    move(sim, agent)
    sim.begin(engine)
    assert engine.running is not None
    began_s = sim.now.wall_s
    sim.end_with(agent, engine, Ended(*engine.running, "", node_s(), 0.5, None, b"body"))
    sim.advance(1.0)
    sim.settle()
    final = final_of(sim, 0)
    assert (final.reason, final.started_s) == ("", began_s)
    answer = m.CommandDone(engine.name, "client", 1, True, b"", node_s() - 2.0, node_s() - 1.0)
    assert validated(sim.scheduler.farm, agent.session, answer, sim.now) == m.CommandDone(
        engine.name, "client", 1, True, b"", sim.now.wall_s - 2.0, sim.now.wall_s - 1.0
    )


def test_a_recovery_task_has_trials_of_its_own() -> None:
    """It had the state of the task before it, and the time of that one's first trial."""
    sim, agent, engine = one_engine()
    sim.submit(
        0, Rules(defer_s=8.0, defer_max_s=10.0, recovery=Recovery(b"", None, Rules(defer_s=8.0, defer_max_s=10.0)))
    )
    for outcome in (DEFERS, "error", DEFERS):
        move(sim, agent)
        sim.begin(engine)
        assert engine.running is not None
        wants = engine.given[engine.running][7]
        sim.end(agent, engine, outcome, detail=Deferral(state=b"state") if outcome == DEFERS else None)
        move(sim, agent)
        sim.advance(8.0)
    assert wants is not None
    assert (wants.trial, wants.recovery) == (1, 1)
    sim.settle()
    assert final_of(sim, 0).reason == ""
