"""Priorities that are changed while tasks wait, run or have yet to come."""

from __future__ import annotations

import random

import pytest

from ipytaskfarm.core import messages as m
from ipytaskfarm.core.handlers import priorities
from ipytaskfarm.core.messages import pages
from ipytaskfarm.core.messages.task_types import JobSpec, Needs, Recovery, Rules
from ipytaskfarm.core.scheduler import id_pages
from ipytaskfarm.core.scheduler.task import NEW_RULES_MAX, NewRules, with_priority

from ..support.simulated_farm import SimFarm, move, one_engine, run_next


def priority_of(sim: SimFarm, task_id: int) -> int:
    rules = sim.scheduler.farm.tasks.unfinished[task_id].rules
    return rules.priority if rules is not None else 0


def test_tasks_that_wait_run_in_the_order_of_their_new_priorities() -> None:
    sim, agent, engine = one_engine()
    chance = random.Random(4)
    priorities = dict.fromkeys(range(30), 0)
    for task_id in priorities:
        sim.submit(task_id)
    move(sim, agent)
    done = [run_next(sim, agent, engine, run_s=1.0)]  # so that none is sent ahead
    while priorities.keys() - done:
        for _ in range(4):  # up, down and to and fro: entries of all ages lie in the queue
            ids = chance.choices(sorted(priorities), k=3)
            priority = chance.randint(-3, 3)
            running = engine.running[0] if engine.running else None
            reply = sim.ask(m.SetPriority(ids, priority))
            assert isinstance(reply, m.PrioritySet)
            assert reply.count == len(set(ids) - set(done))
            priorities.update(dict.fromkeys(ids, priority))
        move(sim, agent)
        held = {task_id for task_id, _ in engine.held()}
        waiting = sorted(priorities.keys() - done - held, key=lambda i: (-priorities[i], i))
        done.append(run_next(sim, agent, engine, run_s=1.0))
        move(sim, agent)
        following = [i for i, _ in engine.held()]
        assert following == waiting[:1], f"after task {done[-1]}, {running}"


def test_only_the_named_tasks_change_and_it_is_there_after_a_restart() -> None:
    sim, agent, _ = one_engine()
    shared = Rules(retries=1, priority=1)
    for task_id in range(4):
        sim.submit(task_id, shared)
    move(sim, agent)
    reply = sim.ask(m.SetPriority([2, 2, 99], 7))
    assert reply == m.PrioritySet(1, [], [99])
    for _ in range(2):
        assert [priority_of(sim, i) for i in range(4)] == [1, 1, 7, 1]
        sim.crash()
        sim.join_client()
    assert [(save.task, save.before, save.priority) for save in sim.store.priorities] == [(2, 1, 7)]
    told = sim.ask(m.ExplainTasks(2))
    assert isinstance(told, m.TextReply)
    assert "its priority is 7" in told.text


def test_a_task_that_runs_goes_on_and_its_recovery_has_the_new_priority() -> None:
    sim, agent, engine = one_engine()
    sim.submit(0, Rules(recovery=Recovery(b"second", None, Rules(priority=3, recovery=Recovery(b"third")))))
    move(sim, agent)
    sim.begin(engine)
    sim.submit(1, Rules(priority=4))
    assert sim.ask(m.SetPriority([0], 5)) == m.PrioritySet(1)
    assert engine.running == (0, 1)
    for _ in range(2):  # both before task 1
        assert run_next(sim, agent, engine, "error", 1.0) == 0
        sim.crash()
        sim.join_client()
        move(sim, agent)
        assert priority_of(sim, 0) == 5
    sim.settle()
    assert sim.ask(m.SetPriority([0, 1], 1)) == m.PrioritySet(0, [0, 1])


def test_a_job_takes_its_tasks_along_later_ones_and_chunks_too() -> None:
    sim, agent, _ = one_engine()
    block = sim.ids()
    jobs = [JobSpec("j", "primes", 9), JobSpec("k", "other", 1)]
    mine = Rules(job="j")
    sim.submit(0, Rules(job="k"), jobs=jobs)
    sim.submit(1, mine, jobs=jobs)
    sim.submit(2, mine, jobs=jobs, items=3)
    move(sim, agent)
    assert sim.ask(m.SetJobPriority("j", 5)) == m.PrioritySet(4)
    sim.submit(6, mine, jobs=jobs)
    assert [priority_of(sim, i) for i in (0, 1, 2, 6)] == [0, 5, 5, 5]
    sim.ask(m.SetPriority([4], 8))
    assert priority_of(sim, 2) == 8, "an item takes the run along that it shares"
    sim.crash()
    sim.join_client()
    sim.submit(7, mine, jobs=jobs)
    sim.submit(8, Rules(job="k"), jobs=jobs)
    assert [priority_of(sim, i) for i in (0, 1, 2, 6, 7, 8)] == [0, 5, 8, 5, 5, 0]
    refusal = sim.ask(m.SetJobPriority("nobody", 1))
    assert isinstance(refusal, m.Refusal)
    assert refusal.etype == "KeyError"
    assert block.last >= 8


def test_a_job_is_asked_in_pages_and_the_later_question_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(id_pages, "LOOKED_AT_MAX", 4)
    monkeypatch.setattr(priorities, "CHANGES_MAX", 3)
    sim, _, _ = one_engine()
    count = 10
    sim.ask(m.HoldFarm(True))
    ids = range(count)
    for task_id in ids:
        sim.submit(task_id, Rules(job="j"), jobs=[JobSpec("j", "j", count)])
    first = m.SetJobPriority("j", 2)
    reply = sim.ask(first)
    assert isinstance(reply, m.PrioritySet)
    second = pages.following(first, reply)
    assert second is not None
    whole = pages.ask_in_pages(m.SetJobPriority("j", 3), sim.ask)
    assert whole == m.PrioritySet(count)
    assert sim.ask(second) == m.PrioritySet(0), "another question has come between"
    assert {priority_of(sim, i) for i in ids} == {3}


@pytest.mark.parametrize("place", ["paused", "for tasks", "for a time"])
def test_a_task_that_waits_elsewhere_stays_there(place: str) -> None:
    sim, agent, engine = one_engine()
    jobs = [JobSpec("j", "j", 9)]
    sim.submit(0)
    move(sim, agent)
    needs = Needs(after=(0,)) if place == "for tasks" else None
    sim.submit(1, Rules(job="j", retries=1, retry_delays_s=(5.0,)), jobs=jobs, needs=needs)
    if place == "paused":
        sim.ask(m.PauseJobs(["j"]))
    if place == "for a time":
        run_next(sim, agent, engine, run_s=1.0)
        run_next(sim, agent, engine, "error", run_s=1.0)
    before = sim.scheduler.farm.tasks.unfinished[1].place
    assert sim.ask(m.SetPriority([1], 4)) == m.PrioritySet(1)
    assert sim.scheduler.farm.tasks.unfinished[1].place == before
    sim.ask(m.PauseJobs(["j"], on=False))
    sim.settle()
    sim.advance(6.0)
    sim.settle()
    assert sim.store.finals.keys() == {0, 1}


def test_rules_get_a_priority_down_their_whole_chain_and_are_shared() -> None:
    deep = Rules(name="last")
    for _ in range(400):
        deep = Rules(recovery=Recovery(b"", None, deep))
    changed: Rules | None = with_priority(deep, 9)
    for _ in range(401):
        assert changed is not None
        assert changed.priority == 9
        changed = changed.recovery.rules if changed.recovery is not None else None
    new = NewRules(2)
    many = [Rules(retries=i) for i in range(2 * NEW_RULES_MAX)]
    assert [new.of(rules).retries for rules in many] == list(range(2 * NEW_RULES_MAX))
    assert new.of(many[-1]) is new.of(many[-1])
    assert new.of(None) is new.of(None)
    assert new.of(None) == Rules(priority=2)
