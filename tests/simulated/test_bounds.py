"""What clients may leave in the controller is bounded, for one client and for all; who goes takes it along."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

import pytest

from ipytaskfarm.core import limits, messages as m
from ipytaskfarm.core.handlers import clients, commands
from ipytaskfarm.core.messages.task_types import (
    LARGE_CODE_SENT,
    SENT_AGAIN_BYTES,
    Function,
    JobSpec,
    Needs,
    Rules,
    Submission,
)
from ipytaskfarm.core.scheduler import clients as client_entries, task_messages
from ipytaskfarm.core.scheduler.events import Gone, UnusedFunctions
from ipytaskfarm.core.states import Reason
from tests.support.simulated_farm import SimFarm, farm_with_engines, move, one_engine

FEW = limits.CountLimits(
    watches=5, watches_in_all=8, own_watches=1, open_questions=3, open_questions_in_all=5, own_questions=1,
    sticky=2, sticky_bytes=100, senders=2, own_senders=1,
)  # fmt: skip


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (clients, commands, client_entries, task_messages):
        monkeypatch.setattr(module, "COUNTS", FEW)


@pytest.fixture
def sim() -> SimFarm:
    """A farm with ten waiting tasks of "client", and two more clients."""
    sim = farm_with_engines(0)
    sim.join_client("b")
    sim.join_client("c")
    first = sim.ids().first
    for task_id in range(first, first + 10):
        sim.submit(task_id)
    return sim


def refused(sim: SimFarm, question: m.Question, session: str) -> bool:
    before = len(sim.told.get(session, []))
    sim.handle(m.AskQuestion(7, question), session)
    new = sim.told.get(session, [])[before:]
    return any(isinstance(x, m.Answer) and isinstance(x.reply, m.Refusal) for x in new)


def test_watches(sim: SimFarm) -> None:
    assert not refused(sim, m.WatchTasks([*range(5)]), "b")
    assert refused(sim, m.WatchTasks([5]), "b")
    assert refused(sim, m.WatchTasks([*range(4)]), "c")
    assert not refused(sim, m.WatchTasks([*range(3)]), "c")
    assert not refused(sim, m.WatchTasks([3]), "client")
    sim.join_client("d")
    assert not refused(sim, m.WatchTasks([9]), "d"), "others cannot shut it out"
    assert refused(sim, m.WatchTasks([8]), "d")
    sim.handle(Gone(False), "d")
    assert sim.scheduler.farm.clients.watches == 8, "one's own tasks are no watches"
    sim.ask(m.AbortTasks([0, 1]))
    assert sim.scheduler.farm.clients.watches == 4
    assert [x for x in sim.told["b"] if isinstance(x, m.Finals)]
    sim.handle(Gone(False), "b")
    assert sim.scheduler.farm.clients.watches == 1
    assert not refused(sim, m.WatchTasks([*range(2, 7)]), "c")


def test_readers_of_messages(sim: SimFarm) -> None:
    reading = sim.scheduler.farm.conversations.reading
    assert [refused(sim, m.ReadTaskMessages(i), "b") for i in range(4)] == [False, False, False, True]
    assert [refused(sim, m.ReadTaskMessages(0), "c") for _ in range(3)] == [False, False, True]
    assert [refused(sim, m.ReadTaskMessages(0), "client") for _ in range(2)] == [False, True], "one is always its own"
    sim.ask(m.AbortTasks([0]))
    assert dict(reading.by_session) == {"b": 2}
    sim.handle(Gone(False), "b")
    assert reading.total == 0
    assert not reading.by_session


def test_senders_of_messages(sim: SimFarm) -> None:
    assert [refused(sim, m.SendToTask(0, [b"x"], f"{who}:1"), "b") for who in "123"] == [False, False, True]
    assert not refused(sim, m.SendToTask(0, [b"x"], "1:2"), "b")
    assert [refused(sim, m.SendToTask(0, [b"x"], f"{who}:1"), "client") for who in "45"] == [False, True]


def test_sticky_commands(sim: SimFarm) -> None:
    set_sticky = [m.SetSticky(key, "execute", b"x" * 40) for key in ("1", "2", "3")]
    assert [refused(sim, each, "b") for each in set_sticky] == [False, False, True]
    assert refused(sim, m.SetSticky("2", "execute", b"x" * 61), "b")
    assert not refused(sim, m.SetSticky("2", "execute", b"x" * 60), "b")
    sim.ask(m.ClearSticky(["1"]))
    assert not refused(sim, set_sticky[2], "b")


def test_checks_that_wait_for_functions() -> None:
    sim = farm_with_engines(1)
    sim.evaluate = lambda question: m.Evaluated(question.n, question.depend, [])  # type: ignore[attr-defined]
    sim.join_client("b")
    farm = sim.scheduler.farm
    farm.functions.open_checks.by_session["b"] = 3
    assert refused(sim, m.CheckTask(None), "b")
    farm.functions.open_checks.by_session.clear()
    assert not refused(sim, m.CheckTask(None), "b")
    assert farm.functions.open_checks.total == 0


def test_stacks_that_agents_do_not_send(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands, "STACKS_KEPT", 2)
    monkeypatch.setattr(commands, "STACKS_KEPT_IN_ALL", 3)
    sim, agent, engine = one_engine()
    sim.submit(sim.scheduler.farm.clients.ids.blocks[0].first)
    move(sim, agent)
    assert sim.begin(engine)
    move(sim, agent)
    requests = sim.scheduler.farm.requests
    for n, session in zip(count(), ("client", "client", "client", "b", "b"), strict=False):
        sim.handle(m.AskQuestion(n, m.Stack(0)), session)
    assert [(session, n) for session, n, _ in requests.stacks.values()] == [("client", 2), ("b", 3), ("b", 4)]
    assert requests.open_stacks.total == 3


def test_a_job_without_tasks_is_not_kept(sim: SimFarm) -> None:
    jobs = [JobSpec(f"empty{i}", "e", 5, unique=f"u{i}") for i in range(100)]
    sim.handle(m.Submit([], [], jobs), "client")
    assert not sim.scheduler.farm.jobs.by_id
    sim.submit(10, Rules(job="j"), jobs=[JobSpec("j", "x" * 100_000, 1, unique="u1")])
    farm = sim.scheduler.farm
    assert list(farm.jobs.by_id) == ["j"]
    assert len(farm.jobs.by_id["j"].spec.name) == 1000
    sim.submit(11, Rules(job="k"), jobs=[JobSpec("k", "k", 1, unique="u1")])
    assert farm.tasks.refusals[11][0] == "DuplicateTask"
    assert list(farm.jobs.of_session) == ["client"]
    sim.ask(m.AbortTasks([10]))
    sim.submit(12, Rules(job="l"), jobs=[JobSpec("l", "l", 1, unique="u1")])
    assert 12 in farm.tasks.unfinished


def test_a_large_job_is_aborted_over_several_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ipytaskfarm.core.scheduler.scheduler.CONSEQUENCES_AT_ONCE", 4)
    sim = farm_with_engines(0)
    first = sim.ids().first
    for task_id in range(first, first + 20):
        sim.submit(task_id, Rules(job="j"), jobs=[JobSpec("j", "j", 20, abort_on_failure=True)])
    sim.ask(m.MarkTasksFailed(first))
    left = len(sim.scheduler.farm.tasks.unfinished)
    assert left == 15
    sim.crash()  # it goes on with what is left
    sim.join_client()
    for _ in range(10):
        sim.advance(0.0)
    assert not sim.scheduler.farm.tasks.unfinished
    assert not sim.scheduler.farm.jobs.to_abort


@pytest.mark.parametrize("fails", [True, False])
@pytest.mark.parametrize("join", [True, False])
@pytest.mark.parametrize("dies", [True, False])
def test_many_dependents_are_told_over_several_turns(
    fails: bool, join: bool, dies: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ipytaskfarm.core.scheduler.scheduler.CONSEQUENCES_AT_ONCE", 4)
    sim = farm_with_engines(0)
    first = sim.ids().first
    sim.submit(first)
    for task_id in range(first + 1, first + 21):
        sim.submit(task_id, needs=Needs(after=(first,), join=join))
    sim.ask(m.MarkTasksFailed(first) if fails else m.MarkTasksDone(first, b""))
    waiting = [task for task in sim.scheduler.farm.tasks.unfinished.values() if task.waits_for]
    assert 15 <= len(waiting) < 20
    cleared = sim.ask(m.Clear([first]))
    assert isinstance(cleared, m.Cleared)
    assert cleared.needed == [first], "the others have to know how it ended"
    if dies:
        sim.crash()
        sim.join_client()
    for _ in range(12):
        sim.advance(0.0)
    tasks = sim.scheduler.farm.tasks
    if fails:
        assert [tasks.finals[task_id] for task_id in range(first + 1, first + 21)] == [Reason.NEEDED] * 20
    elif join:
        assert not tasks.unfinished
    else:
        assert len(tasks.unfinished) == 20
        assert not any(task.waits_for for task in tasks.unfinished.values())
    assert not isinstance(sim.ask(m.Clear([first])), m.Refusal)
    assert first not in sim.scheduler.farm.tasks.finals


def test_clients_that_go_look_through_nothing_of_others(sim: SimFarm) -> None:
    """Of 4,096 clients that go at once, each may not look through all watches and commands."""
    looked_at = 0

    class Looked(dict):  # type: ignore[type-arg]
        def __iter__(self) -> Iterator[object]:
            nonlocal looked_at
            looked_at += 1
            return super().__iter__()

    farm = sim.scheduler.farm
    assert not refused(sim, m.WatchTasks([0, 1, 2]), "b")
    farm.clients.watchers = Looked(farm.clients.watchers)
    farm.requests.commands = Looked(farm.requests.commands)
    for number in range(10):
        sim.join_client(f"x{number}")
        sim.handle(Gone(number % 2 == 0), f"x{number}")
    assert looked_at == 0


def test_a_client_that_goes_takes_its_unused_ids_from_those_who_watch_them(sim: SimFarm) -> None:
    block = sim.ids("c")
    sim.submit(block.first, session="c")
    assert not refused(sim, m.WatchTasks([block.first, block.first + 3]), "b")
    sim.handle(Gone(False), "c")
    (finals,) = [x for x in sim.told["b"] if isinstance(x, m.Finals)]
    assert [(final.id, final.failure.etype if final.failure else "") for final in finals.finals] == [
        (block.first + 3, "IndexError")
    ]
    assert sim.scheduler.farm.clients.watches == 1


def test_code_that_nobody_needs_is_forgotten(sim: SimFarm) -> None:
    """A client sends large code once: it stays as long as the client counts on it."""
    small, large = Function("small", b"code"), Function("large", bytes(SENT_AGAIN_BYTES + 1))
    first = sim.ids("b").first
    sim.handle(m.Submit([Submission(first, b"work", 0.0, "small")], [small, large]), "b")
    sim.ask(m.AbortTasks([first]))
    sim.ask(m.Clear([first]))
    sim.handle(UnusedFunctions(["small", "large", "never there"]))
    assert set(sim.store.functions) == {"large"}
    sim.handle(m.Submit([Submission(first + 1, b"work", 0.0, "large")], []), "b")
    sim.handle(m.Submit([Submission(first + 2, b"work", 0.0, "small")], [small]), "b")
    assert {first + 1, first + 2} <= sim.scheduler.farm.tasks.unfinished.keys()
    sim.handle(Gone(said=True), "b")
    sim.ask(m.AbortTasks([first + 1]))
    sim.ask(m.Clear([first + 1]))
    sim.handle(UnusedFunctions(["large"]))
    assert set(sim.store.functions) == {"small"}


def test_what_a_client_counts_on_is_bounded(sim: SimFarm) -> None:
    for number in range(2 * LARGE_CODE_SENT + 5):
        sim.handle(m.Submit([], [Function(f"{number}", bytes(SENT_AGAIN_BYTES + 1))]), "b")
    sim.handle(UnusedFunctions(list(sim.store.functions)))
    assert list(sim.store.functions) == [f"{number}" for number in range(5, 2 * LARGE_CODE_SENT + 5)]
