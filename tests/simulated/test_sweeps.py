"""Work that grows with the number of tasks is done in slices: no turn looks at all tasks, and others are answered."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest

from ipytaskfarm.core import limits, messages as m
from ipytaskfarm.core.handlers import sweeps
from ipytaskfarm.core.messages.task_types import JobSpec, Rules
from ipytaskfarm.core.scheduler import clients, decision, scheduler
from ipytaskfarm.core.scheduler.events import Tick
from ipytaskfarm.core.scheduler.settings import SchedulerSettings
from ipytaskfarm.core.scheduler.task import Queued
from ipytaskfarm.core.states import Waiting

from ..support.simulated_farm import SimFarm, farm_with_engines, move, one_engine, run_next

TASKS = 25
SLICE = 4
JOB = JobSpec("j", "j", TASKS)


@pytest.fixture(autouse=True)
def small_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweeps, "LOOKED_AT_MAX", 2 * SLICE)
    monkeypatch.setattr(scheduler, "CONSEQUENCES_AT_ONCE", SLICE)
    monkeypatch.setattr(decision, "DUE_AT_ONCE", SLICE)


@pytest.fixture
def sim() -> SimFarm:
    """A farm without engines, with 25 tasks of job "j", five of "k", and a second client."""
    sim = farm_with_engines(0)
    sim.join_client("other")
    first = sim.ids().first
    for task_id in range(first, first + TASKS):
        sim.submit(task_id, Rules(job="j"), jobs=[JOB])
    for task_id in range(first + TASKS, first + TASKS + 5):
        sim.submit(task_id, Rules(job="k"), jobs=[JobSpec("k", "k", 5)])
    return sim


def where(sim: SimFarm) -> Counter[Waiting]:
    places = [task.place for task in sim.scheduler.farm.tasks.unfinished.values()]
    return Counter(place.why for place in places if isinstance(place, Queued))


def answers(sim: SimFarm, session: str = "client") -> list[m.Reply]:
    return [x.reply for x in sim.told.get(session, []) if isinstance(x, m.Answer) and x.n >= 100]


def pause(sim: SimFarm, *jobs: str, on: bool = True, n: int = 100) -> None:
    sim.handle(m.AskQuestion(n, m.PauseJobs([*jobs], on)), "client")


def settle(sim: SimFarm) -> int:
    """Make turns until nothing is due.  Return how many it took."""
    turns = 0
    while (due_s := sim.scheduler.next_deadline()) is not None and due_s <= sim.now.mono_s:
        before = where(sim)
        sim.handle(Tick())
        assert (where(sim) - before).total() <= SLICE
        turns += 1
    return turns


def test_a_job_is_paused_and_resumed_in_slices(sim: SimFarm) -> None:
    pause(sim, "j")
    assert where(sim)[Waiting.PAUSED] == SLICE
    assert not answers(sim), "it is not paused as a whole"
    assert isinstance(sim.ask(m.QueueStatus(), "other"), m.tables.QueueStatusReply), "others are answered in between"
    assert settle(sim) >= (TASKS - 2 * SLICE) // SLICE
    assert where(sim)[Waiting.PAUSED] == TASKS
    assert answers(sim) == [m.NumberReply(TASKS)]
    pause(sim, "j", on=False, n=101)
    assert len(answers(sim)) == 1
    settle(sim)
    assert not where(sim)[Waiting.PAUSED]
    assert answers(sim)[1:] == [m.NumberReply(TASKS)]
    assert sim.scheduler.next_deadline() is None or sim.scheduler.next_deadline() > sim.now.mono_s  # type: ignore[operator]


def test_the_later_of_two_questions_wins(sim: SimFarm) -> None:
    pause(sim, "j")
    pause(sim, "j", on=False, n=101)
    pause(sim, "k", n=102)
    settle(sim)
    assert where(sim)[Waiting.PAUSED] == 5
    assert len(answers(sim)) == 3
    assert answers(sim)[-1] == m.NumberReply(5)
    pause(sim, "k", n=103)
    assert answers(sim)[3:] == [m.NumberReply(0)], "nothing changes, so it is answered at once"


def test_tasks_that_come_meanwhile_are_paused(sim: SimFarm) -> None:
    pause(sim, "j")
    sim.submit(sim.ids().first, Rules(job="j"), jobs=[JOB])
    settle(sim)
    assert where(sim)[Waiting.PAUSED] == TASKS + 1


def test_after_a_crash_in_the_middle_the_job_is_paused(sim: SimFarm) -> None:
    pause(sim, "j")
    sim.crash()
    assert where(sim)[Waiting.PAUSED] == TASKS
    sim.join_client()
    assert sim.ask(m.PauseJobs(["j"])) == m.NumberReply(0)
    pause(sim, "j", on=False)
    sim.crash()
    assert not where(sim)[Waiting.PAUSED]


def test_what_was_sent_ahead_is_recalled_when_its_slice_comes() -> None:
    sim, agent, engine = one_engine(SchedulerSettings(prefetch_s=10.0))
    first = sim.ids().first
    for task_id in range(first, first + TASKS):
        sim.submit(task_id, Rules(job="j"), jobs=[JOB])
    move(sim, agent)
    for _ in range(3):  # the class is known as quick, and more is sent ahead
        run_next(sim, agent, engine)
    entry = next(iter(sim.scheduler.farm.engines.by_name.values()))
    assert len(entry.assigned) > SLICE
    pause(sim, "j")
    settle(sim)
    assert len(answers(sim)) == 1
    move(sim, agent)
    assert len(entry.assigned) <= 1, "only the task that runs is left"


def test_a_client_may_not_wait_for_too_many_answers(sim: SimFarm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clients, "COUNTS", limits.CountLimits(open_questions=3))
    for n in range(100, 104):
        pause(sim, "j", on=n % 2 == 0, n=n)
    assert isinstance(answers(sim)[0], m.Refusal)
    settle(sim)
    assert len(answers(sim)) == 4
    pause(sim, "j", on=False, n=105)
    settle(sim)
    assert answers(sim)[-1] == m.NumberReply(TASKS)


def test_timers_of_one_moment_take_several_turns() -> None:
    sim = farm_with_engines(0, SchedulerSettings(unmet_timeout_s=5.0))
    first = sim.ids().first
    for task_id in range(first, first + TASKS):
        sim.submit(task_id, Rules(targets=(77,)))
    sim.now = sim.now._replace(mono_s=sim.now.mono_s + 6.0)
    left = []
    while sim.scheduler.farm.tasks.unfinished:
        left.append(len(sim.scheduler.farm.tasks.unfinished))
        sim.handle(Tick())
    # A Tick lets the timers run once more than a turn with another event.
    assert all(before - after <= 2 * SLICE for before, after in itertools.pairwise(left))


def test_an_agent_of_limited_time_gets_tasks_when_all_limits_are_known() -> None:
    """`SimFarm` checks that no task is handed to an agent that has no time for it."""
    sim = farm_with_engines(0)
    first = sim.ids().first
    for task_id in range(first, first + TASKS):
        sim.submit(task_id, Rules(time_limit_s=1000.0 if task_id % 2 else None))
    agent = sim.join_agent("short", ends_s=sim.now.mono_s + 100.0, brings=1)
    for _ in range(3):
        move(sim, agent)
        settle(sim)
    assert not sim.scheduler.farm.sweep.is_due
    begun = [task for task in sim.scheduler.farm.tasks.unfinished.values() if not isinstance(task.place, Queued)]
    assert begun
    assert all(task.rules is None or task.rules.time_limit_s is None for task in begun)
