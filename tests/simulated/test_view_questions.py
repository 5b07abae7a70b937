"""The live view's questions that the scheduler answers, and the changes that its followers are told."""

from __future__ import annotations

from typing import Any

from ipytaskfarm.core import messages as m
from ipytaskfarm.core.handlers import view
from ipytaskfarm.core.handlers.view import unfinished_page
from ipytaskfarm.core.messages.tables import FarmState
from ipytaskfarm.core.messages.task_types import JobSpec, Rules
from ipytaskfarm.core.messages.view import EnginePage, JobPage, TaskPage, WaitingTable
from ipytaskfarm.core.scheduler.events import Gone, Silent
from ipytaskfarm.core.scheduler.followers import QUIET_EVERY_S, STRETCHES_AT_ONCE, TOLD_EVERY_S
from ipytaskfarm.core.states import State, Waiting
from tests.support.simulated_farm import SimFarm, farm_with_engines, move, one_engine, run_next


def told(sim: SimFarm, seconds: float = TOLD_EVERY_S) -> list[m.FarmChanges]:
    """The changes that the follower "client" is told within this time."""
    before = len(sim.told["client"])
    sim.advance(seconds)
    return [message for message in sim.told["client"][before:] if isinstance(message, m.FarmChanges)]


def test_a_follower_is_told_why_no_task_is_accepted() -> None:
    sim, _, _ = one_engine()
    sim.ask(m.FollowFarm())
    assert told(sim, QUIET_EVERY_S)[-1].refusing == ""
    sim.scheduler.farm.lifecycle.full = "the disk is full"
    assert told(sim, QUIET_EVERY_S)[-1].refusing == "the disk is full"


def test_a_follower_is_told_what_happens_in_sums() -> None:
    sim, agent, engine = one_engine()
    ids = sim.ids()
    sim.ask(m.FollowFarm())
    for number in range(4):
        sim.submit(ids.first + number, Rules(name="fit", job="j"), jobs=[JobSpec("j", "the job", 4)])
    move(sim, agent)
    for outcome in ("", "", "error"):
        run_next(sim, agent, engine, outcome)
    (changes,) = told(sim)
    assert (changes.number, changes.succeeded, changes.failed) == (1, 2, 1)
    assert changes.counts == {"scheduled": 0, "pending": 1, "succeeded": 2, "failed": 1}
    assert [(s.engine_id, s.name, s.outcome, s.count) for s in changes.stretches] == [
        (engine.id, "fit", "", 2),
        (engine.id, "fit", "error", 1),
    ]
    (cause,) = changes.causes
    assert (cause.reason, cause.count, cause.ids) == ("error", 1, [ids.first + 2])
    (job,) = changes.jobs
    assert (job.name, job.total, job.unfinished, job.failed) == ("the job", 4, 1, 1)
    (quiet,) = told(sim, QUIET_EVERY_S)
    assert (quiet.number, quiet.succeeded, quiet.stretches, quiet.jobs) == (2, 0, [], [])


def test_nothing_is_kept_for_nobody() -> None:
    sim, agent, engine = one_engine()
    ids = sim.ids()
    sim.submit(ids.first)
    move(sim, agent)
    run_next(sim, agent, engine)
    assert sim.scheduler.farm.followers.stretches == {}
    sim.ask(m.FollowFarm())
    sim.submit(ids.first + 1)
    move(sim, agent)
    run_next(sim, agent, engine)
    assert sim.scheduler.farm.followers.succeeded == 1
    sim.ask(m.FollowFarm(False))
    assert (sim.scheduler.farm.followers.succeeded, sim.scheduler.farm.followers.stretches) == (0, {})
    assert told(sim, 5.0) == []
    assert not sim.scheduler.farm.followers.timer


def test_a_follower_that_goes_or_is_silent_is_told_no_more() -> None:
    for event in (Gone(True), Silent()):
        sim, _, _ = one_engine()
        sim.ask(m.FollowFarm())
        sim.handle(event, "client")
        assert sim.scheduler.farm.followers.sessions == {}
        assert told(sim, 5.0) == []


def test_what_is_told_is_bounded() -> None:
    sim, _, _ = one_engine()
    sim.ask(m.FollowFarm())
    followers = sim.scheduler.farm.followers
    for number in range(5 * STRETCHES_AT_ONCE):
        followers.note_run(number % 1000, f"n{number}", "", number, number + 1.0, 1, number)
    assert followers.stretches_count == STRETCHES_AT_ONCE
    assert followers.left_out > 0
    (changes,) = told(sim)
    assert len(changes.stretches) == STRETCHES_AT_ONCE
    assert sum(s.count for s in changes.stretches) + changes.left_out == 5 * STRETCHES_AT_ONCE


def test_a_clearing_lets_followers_ask_again() -> None:
    sim, agent, engine = one_engine()
    ids = sim.ids()
    sim.submit(ids.first)
    move(sim, agent)
    run_next(sim, agent, engine, "error")
    sim.ask(m.FollowFarm())
    sim.ask(m.Clear([ids.first]))
    (changes,) = told(sim)
    assert changes.stale
    (changes,) = told(sim)
    assert not changes.stale


def test_why_tasks_wait_is_counted_by_reason() -> None:
    sim, agent, _ = one_engine()
    ids = sim.ids()
    for number in range(3):
        sim.submit(ids.first + number, Rules(targets=(99,)))
    sim.submit(ids.first + 3)
    sim.submit(ids.first + 4, Rules(retries=1))
    move(sim, agent)
    table = sim.ask(m.WhyWaiting())
    assert isinstance(table, WaitingTable)
    found = {reason: count for reason, count, _, _ in table.rows}
    assert found.get(str(Waiting.NO_ENGINE)) == 3
    assert sum(found.values()) == sim.scheduler.farm.tasks.counts[State.SCHEDULED]
    assert table.unknown == 0
    reason, _, example, sentences = table.rows[0]
    assert reason == Waiting.NO_ENGINE
    assert example in (ids.first, ids.first + 1, ids.first + 2)
    assert "engine" in sentences


def test_unfinished_tasks_come_in_pages() -> None:
    sim, agent, engine = one_engine()
    ids = sim.ids()
    for number in range(10):
        sim.submit(ids.first + number, Rules(name=f"n{number % 2}", targets=(99,)))
    sim.submit(ids.first + 10)
    move(sim, agent)
    sim.begin(engine)
    move(sim, agent)
    found: list[int] = []
    before = None
    while True:
        page = unfinished_page(sim.scheduler.farm, m.ReadTaskPage("scheduled", before=before, count=3))
        assert isinstance(page, TaskPage)
        found += [row.id for row in page.rows]
        if page.next is None:
            break
        before = page.next
    assert found == [ids.first + n for n in range(9, -1, -1)]
    by_name = unfinished_page(sim.scheduler.farm, m.ReadTaskPage("unfinished", text="N1", oldest_first=True))
    assert isinstance(by_name, TaskPage)
    assert [row.id for row in by_name.rows] == [ids.first + n for n in range(1, 10, 2)]
    running = unfinished_page(sim.scheduler.farm, m.ReadTaskPage("running", engine_id=engine.id))
    assert isinstance(running, TaskPage)
    assert [(row.id, row.state, row.engine_id) for row in running.rows] == [(ids.first + 10, "pending", engine.id)]
    sim.ask(m.SetPriority([ids.first + 3], 5))
    page = unfinished_page(sim.scheduler.farm, m.ReadTaskPage("scheduled", before=ids.first + 4, count=1))
    assert isinstance(page, TaskPage)
    (row,) = page.rows
    assert (row.id, row.priority, running.rows[0].priority) == (ids.first + 3, 5, 0)


def test_a_look_at_many_tasks_stops_and_says_where(monkeypatch: Any) -> None:
    monkeypatch.setattr(view, "LOOKED_AT", 4)
    sim, agent, _ = one_engine()
    ids = sim.ids()
    for number in range(10):
        sim.submit(ids.first + number, Rules(name=str(number), targets=(99,)))
    move(sim, agent)
    page = unfinished_page(sim.scheduler.farm, m.ReadTaskPage("scheduled", text="0"))
    assert isinstance(page, TaskPage)
    assert (page.rows, page.full, page.next) == ([], False, ids.first + 6)


def test_engines_come_in_pages_with_the_nodes() -> None:
    sim = farm_with_engines(5)
    page = sim.ask(m.ReadEngines(first=1, count=2))
    assert isinstance(page, EnginePage)
    assert [row.id for row in page.rows] == [1, 2]
    assert (page.total, page.states, page.wanted, page.clients) == (5, {"idle": 5}, 5, 1)
    assert [agent["engines"] for agent in page.agents] == [5]
    none = sim.ask(m.ReadEngines(node="elsewhere"))
    assert isinstance(none, EnginePage)
    assert (none.rows, none.total, none.states) == ([], 0, {"idle": 5})
    whole, short = sim.ask(m.FarmStatus()), sim.ask(m.FarmStatus(engines=False))
    assert isinstance(whole, FarmState)
    assert isinstance(short, FarmState)
    assert (len(whole.engines), len(whole.agents), short.engines, short.agents) == (5, 1, [], [])


def test_jobs_that_run_come_first() -> None:
    sim, agent, engine = one_engine()
    ids = sim.ids()
    for number, name in enumerate(("a", "b", "c")):
        spec = JobSpec(name, name, 1, opened_s=float(number))
        sim.submit(ids.first + number, Rules(job=name), jobs=[spec])
    move(sim, agent)
    for _ in range(2):
        run_next(sim, agent, engine)
    page = sim.ask(m.ReadJobs(count=2))
    assert isinstance(page, JobPage)
    assert [job.name for job in page.rows] == ["c", "b"]
    assert page.more == 1
