"""Answers in pages: put together, they are the whole answer, and none of them is about too many tasks."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from ipytaskfarm.controller import replies
from ipytaskfarm.core import messages as m
from ipytaskfarm.core.handlers import clients, operate, tables as table_handlers
from ipytaskfarm.core.messages import pages, tables
from ipytaskfarm.core.messages.task_types import Ended, JobSpec, Needs, Rules
from ipytaskfarm.core.scheduler import id_pages

from ..support.simulated_farm import SimFarm, farm_with_engines, move, one_engine

SMALL = 4
TASKS = 25


@pytest.fixture
def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every page so small that twenty tasks take several."""
    monkeypatch.setattr(pages, "IDS_MAX", dict.fromkeys(pages.IDS_MAX, SMALL))
    for module in (table_handlers, clients):
        monkeypatch.setattr(module, "ROWS_MAX", SMALL)
    for module in (table_handlers, id_pages, replies):
        monkeypatch.setattr(module, "LOOKED_AT_MAX", 2 * SMALL)
    monkeypatch.setattr(operate, "JOBS_MAX", 2)
    monkeypatch.setattr(replies, "FETCHED_BYTES", 3)


@pytest.fixture
def sim() -> SimFarm:
    """A farm with 25 tasks: every third one was aborted, every fifth one is named."""
    sim = farm_with_engines(0)
    first = sim.ids().first
    for task_id in range(first, first + TASKS):
        sim.submit(task_id, Rules(name="n") if task_id % 5 == 0 else None)
    pages.ask_in_pages(m.AbortTasks([i for i in range(first, first + TASKS) if i % 3 == 0]), sim.ask)
    return sim


class Asked:
    """Asks a farm in pages, and counts them."""

    def __init__(self, sim: SimFarm) -> None:
        self._sim = sim
        self.count = 0
        self.replies: list[m.Reply] = []

    def __call__(self, question: m.Question) -> m.Reply:
        self.replies = []

        def ask(page: m.Question) -> m.Reply:
            self.count += 1
            self._sim.handle(m.AskQuestion(100 + self.count, page), "client")
            self.replies += [x.reply for x in self._sim.told["client"] if isinstance(x, m.Answer) and x.n > 100][-1:]
            return self.replies[-1]

        return pages.ask_in_pages(question, ask)


def ids_of(reply: m.Reply) -> list[int]:
    assert isinstance(reply, tables.TaskRows)
    return [row.id for row in reply.rows]


EVERYTHING: dict[str, Callable[[int], bool]] = {
    "": lambda i: True,
    "failed": lambda i: i % 3 == 0,
    "aborted": lambda i: i % 3 == 0,
    "unfinished": lambda i: i % 3 != 0,
}


@pytest.mark.usefixtures("small_pages")
@pytest.mark.parametrize("state", EVERYTHING)
@pytest.mark.parametrize("name", [None, "n"])
@pytest.mark.parametrize("last", [0, 1, 3, 7, 100])
def test_a_table_in_pages_is_the_whole_table(sim: SimFarm, state: str, name: str | None, last: int) -> None:
    ask = Asked(sim)
    first = sim.scheduler.farm.clients.ids.blocks[0].first
    expected = [i for i in range(first, first + TASKS) if EVERYTHING[state](i) and (name is None or i % 5 == 0)]
    wanted = expected[-last:] if last else expected
    reply = ask(m.ListTasks(None, name, state or None, last))
    assert ids_of(reply) == wanted
    assert isinstance(reply, tables.TaskRows)
    assert reply.omitted in (-1, len(expected) - len(wanted))
    assert reply.omitted >= 0 or name is not None or state == "aborted", "how many there are is known"
    assert all(len(ids_of(page)) <= SMALL for page in ask.replies)
    assert last or len(ask.replies) > 1


@pytest.mark.usefixtures("small_pages")
def test_a_table_of_many_ids_is_asked_for_in_parts(sim: SimFarm) -> None:
    ask = Asked(sim)
    first = sim.scheduler.farm.clients.ids.blocks[0].first
    reply = ask(m.ListTasks([*range(first, first + TASKS), 10**9]))
    assert ids_of(reply) == list(range(first, first + TASKS))
    assert isinstance(reply, tables.TaskRows)
    assert reply.unknown == [10**9]
    assert len(ask.replies) == 7
    assert ids_of(ask(m.ListTasks([*range(first, first + TASKS)], last=3))) == list(range(first + 22, first + 25))


@pytest.mark.usefixtures("small_pages")
def test_the_ids_of_all_states_come_in_pages(sim: SimFarm) -> None:
    ask = Asked(sim)
    reply = ask(m.QueueStatus(True))
    assert isinstance(reply, tables.QueueStatusReply)
    assert reply.ids is not None
    assert {state: len(ids) for state, ids in reply.ids.items()} == reply.counts
    assert reply.counts == sim_counts(sim)
    assert reply.ids["failed"] == [i for i in sorted(reply.ids["failed"] + reply.ids["scheduled"]) if i % 3 == 0]
    assert len(ask.replies) > 2


def sim_counts(sim: SimFarm) -> dict[str, int]:
    reply = sim.ask(m.QueueStatus())
    assert isinstance(reply, tables.QueueStatusReply)
    return reply.counts


@pytest.mark.usefixtures("small_pages")
@pytest.mark.parametrize("cleared_before", [0, 20])
def test_all_results_are_cleared_in_pages(sim: SimFarm, cleared_before: int) -> None:
    ask = Asked(sim)
    for _ in range(cleared_before):  # ids that nobody has any more
        block = sim.ids()
        sim.submit(block.first)
        sim.ask(m.AbortTasks([block.first]))
        sim.ask(m.Clear([block.first]))
    reply = ask(m.Clear())
    assert isinstance(reply, m.Cleared)
    assert reply.count == 9
    assert sim_counts(sim) == {"scheduled": 16, "pending": 0, "succeeded": 0, "failed": 0}
    assert len(ask.replies) > 1


@pytest.mark.usefixtures("small_pages")
def test_jobs_come_in_pages_with_their_tasks(sim: SimFarm) -> None:
    ask = Asked(sim)
    first = sim.scheduler.farm.clients.ids.blocks[0].first + TASKS
    ids: dict[str, list[int]] = {"a": [], "b": [], "c": [], "d": []}
    for number, task_id in enumerate(range(first, first + 40)):
        job = "abcd"[min(3, number // 2)]
        name = "same" if job > "b" else job
        sim.submit(task_id, Rules(job=job), jobs=[JobSpec(job, name, 40, opened_s=ord(job))])
        ids[job].append(task_id)
    reply = ask(m.FindJobs(None, True))
    assert isinstance(reply, tables.JobTable)
    assert {row.id: row.ids for row in reply.rows} == ids
    assert [row.id for row in reply.rows] == list("abcd")
    assert len(ask.replies) > 4
    reply = ask(m.FindJobs())
    assert isinstance(reply, tables.JobTable)
    assert [row.id for row in reply.rows] == list("abcd")
    assert len(ask.replies) > 1
    reply = ask(m.FindJobs("same", True))
    assert isinstance(reply, tables.JobTable)
    assert {row.id: row.ids for row in reply.rows} == {job: ids[job] for job in "cd"}


@pytest.mark.usefixtures("small_pages")
def test_results_come_as_far_as_there_is_room() -> None:
    sim, agent, engine = one_engine()
    first = sim.scheduler.farm.clients.ids.blocks[0].first
    for task_id in range(first, first + 6):
        sim.submit(task_id)
        move(sim, agent)
        assert sim.begin(engine)
        assert engine.running is not None
        run = engine.running
        sim.end(agent, engine)
        agent.outbox[-1] = m.Results(engine.name, [Ended(*run, "", 1.0, 0.1, body=b"xx")])
        move(sim, agent)
    ask = Asked(sim)
    reply = ask(m.FetchResults(list(range(first, first + 6))))
    assert isinstance(reply, m.Fetched)
    assert [final.id for final in reply.finals] == list(range(first, first + 6))
    assert all(len(page.finals) == 1 for page in ask.replies if isinstance(page, m.Fetched))


@pytest.mark.usefixtures("small_pages")
def test_tasks_that_are_retried_in_parts_need_one_another_as_before() -> None:
    sim = farm_with_engines(0)
    first = sim.ids().first
    for task_id in range(first, first + 10):
        sim.submit(task_id, needs=Needs(after=(task_id - 1,)) if task_id > first else None)
    ask = Asked(sim)
    ask(m.AbortTasks(list(range(first, first + 10))))
    reply = ask(m.RetryTasks(list(range(first, first + 10))))
    assert isinstance(reply, m.Retried)
    new = dict(reply.ids)
    assert list(new) == list(range(first, first + 10))
    assert len(ask.replies) == 3
    for old in range(first + 1, first + 10):
        needs = sim.store.tasks[new[old]].needs
        assert needs is not None
        assert needs.after == (new[old - 1],)


@pytest.mark.parametrize("kind", pages.IDS_MAX)
def test_a_question_about_too_many_tasks_is_refused(kind: type) -> None:
    sim = farm_with_engines(0)
    ids = list(range(pages.IDS_MAX[kind] + 1))
    question = m.SetPriority(ids, 1) if kind is m.SetPriority else kind(ids)
    if kind is m.ReadHistory:
        assert pages.why_too_many(question)
        return
    reply = sim.ask(question)
    assert isinstance(reply, m.Refusal)
    assert f"{len(ids):,}" in reply.text
    reply = pages.ask_in_pages(question, sim.ask)
    assert not isinstance(reply, m.Refusal)


def test_runs_of_pairs() -> None:
    pairs = [(1, 101), (2, 102), (3, 104), (7, 105), (8, 106)]
    earlier = pages.RetriedTasks(pages.runs_of(pairs))
    assert pages.runs_of(pairs) == [(1, 101, 2), (3, 104, 1), (7, 105, 2)]
    assert [earlier.new_of(i) for i in range(10)] == [0, 101, 102, 104, 4, 5, 6, 105, 106, 9]
