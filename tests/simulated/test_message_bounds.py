"""Long texts, long lists and heavy rules of clients are refused, or cut: the controller keeps and repeats them."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from ipytaskfarm.controller.payloads import parts_of
from ipytaskfarm.core import message_bounds as bounds, messages as m
from ipytaskfarm.core.messages.result_cache import CacheKey
from ipytaskfarm.core.messages.task_types import FailureSummary, Final, Function, JobSpec, Needs, Rules, Submission
from ipytaskfarm.core.requirements import Asks, Condition
from ipytaskfarm.core.scheduler import large_rules
from ipytaskfarm.core.scheduler.large_rules import LargeRules
from ipytaskfarm.core.validation import why_not_storable, why_refused
from tests.support.simulated_farm import SimFarm, farm_with_engines

LONG = "x" * (bounds.TEXT_MAX + 1)


@pytest.mark.parametrize(
    "value",
    [
        Rules(name=LONG),
        Rules(job=LONG),
        Rules(unique=LONG),
        Rules(retry_on=("ValueError", LONG)),
        Rules(asks=Asks(group=LONG)),
        Rules(asks=Asks(requires=(Condition("hostname", "==", LONG),))),
        Rules(asks=Asks(requires=(Condition("hostname", "in", ("a",) * (bounds.WORDS_MAX + 1)),))),
        Rules(retry_delays_s=(1.0,) * (bounds.LIST_MAX + 1)),
        JobSpec(LONG, "name", 1),
        m.SendToTask(1, [b""] * (bounds.LIST_MAX + 1), "me:1"),
        m.PauseJobs([LONG]),
        m.ListTasks(name=LONG),
    ],
)
def test_what_is_too_long_is_refused(value: object) -> None:
    assert why_not_storable(value)


@pytest.mark.parametrize(
    "value",
    [
        Rules(name=LONG[1:], targets=tuple(range(30_000))),
        Rules(asks=Asks(requires=(Condition("hostname", "in", ("a",) * bounds.WORDS_MAX),))),
        JobSpec("id", LONG, 1),
        m.AbortTasks([1], reason=LONG),
        m.SendCommand(1, None, "execute", b"", LONG),
        CacheKey("k", "f", "r", (("argument 1", "2"),) * (bounds.LIST_MAX + 1)),
    ],
)
def test_what_may_be_long(value: object) -> None:
    assert not why_not_storable(value)


@pytest.mark.parametrize("nodes", [["a\nb"], [""], ["n" * 201], ["n"] * (bounds.NODES_MAX + 1)])
def test_names_of_nodes(nodes: list[str]) -> None:
    """They are stored one in a line: one with a line break would drain another node after a restart."""
    assert why_refused(m.DrainNode(nodes))
    assert not why_refused(m.DrainNode(["node-1", "Knoten ä"]))


def test_drained_nodes_are_bounded_in_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ipytaskfarm.core.handlers.nodes.DRAINED_MAX", 3)
    sim = farm_with_engines(1)
    assert isinstance(sim.ask(m.DrainNode(["a", "b", "c"])), m.NumberReply)
    assert isinstance(sim.ask(m.DrainNode(["d"])), m.Refusal)
    assert isinstance(sim.ask(m.DrainNode(["a"], on=False)), m.NumberReply)
    assert sim.scheduler.farm.agents.drained_nodes == {"b", "c"}


def failure_of(sim: SimFarm, task_id: int) -> FailureSummary:
    (final,) = (
        final for message in sim.told["client"] if isinstance(message, m.Finals) for final in message.finals
        if final.id == task_id
    )  # fmt: skip
    assert final.failure is not None
    return final.failure


def test_reasons_are_cut() -> None:
    sim = farm_with_engines(0)
    first = sim.ids().first
    for task_id in (first, first + 1):
        sim.submit(task_id)
    sim.ask(m.AbortTasks([first], reason="y" * 100_000))
    sim.ask(m.MarkTasksFailed(first + 1, "z" * 100_000))
    for task_id, sign in ((first, "y"), (first + 1, "z")):
        assert failure_of(sim, task_id).value.count(sign) == bounds.REASON_MAX - 1


@pytest.mark.parametrize(
    ("tasks", "functions", "jobs"),
    [(bounds.TASKS_MAX + 1, 0, 0), (1, bounds.TASKS_MAX + 1, 0), (1, 0, bounds.TASKS_MAX + 1)],
)
def test_a_submission_with_too_many_parts_is_not_taken(tasks: int, functions: int, jobs: int) -> None:
    sim = farm_with_engines(0)
    first = sim.ids().first
    made = [Submission(first + n, b"", 0.0, None) for n in range(tasks)]
    codes = [Function(str(n), b"") for n in range(functions)]
    sim.handle(m.Submit(made, codes, [JobSpec(str(n), "", 1) for n in range(jobs)]), "client")
    assert [type(message) for message in sim.told["client"]][-1] is m.Full
    farm = sim.scheduler.farm
    assert (farm.tasks.unfinished, farm.functions.stored, farm.jobs.by_id) == ({}, set(), {})


def test_large_rules_and_edges_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(large_rules, "LARGE_BYTES", 40_000)
    sim = farm_with_engines(0)
    sim.ids()
    before = sim.ids().first  # of a block that is large enough
    for task_id in range(before, before + 100):
        sim.submit(task_id)
    first = before + 100
    words = tuple(f"word {n}" for n in range(1000))
    wanted: list[dict[str, Any]] = [
        {"rules": Rules(asks=Asks(requires=(Condition("hostname", "in", words),)))},
        {"needs": Needs(after=tuple(range(before, before + 50)))},
        {"needs": Needs(after=tuple(range(before, first)))},
    ]
    tasks = [Submission(first + n, b"", 0.0, None, **each) for n, each in enumerate(wanted)]
    sim.handle(m.Submit(tasks), "client")
    farm = sim.scheduler.farm
    assert list(farm.tasks.unfinished) == [*range(before, first + 2)]
    assert list(farm.tasks.large.tasks) == [first, first + 1]
    (full,) = (message for message in sim.told["client"] if isinstance(message, m.Full))
    assert full.first_id == first + 2
    assert "fewer edges" in full.why
    sim.ask(m.AbortTasks([first]))
    assert list(farm.tasks.large.tasks) == [first + 1]
    sim.handle(m.Submit(tasks[2:]), "client")
    assert list(farm.tasks.unfinished) == [*range(before, first), first + 1, first + 2]
    sim.ask(m.AbortTasks([first + 1, first + 2]))
    assert (farm.tasks.large.total, farm.tasks.large.of_session, farm.tasks.large._rules) == (0, {}, {})


def test_rules_that_tasks_share_are_counted_once() -> None:
    sim = farm_with_engines(0)
    first = sim.ids().first
    rules = Rules(asks=Asks(requires=(Condition("hostname", "in", tuple(f"word {n}" for n in range(1000))),)))
    sim.handle(m.Submit([Submission(first + n, b"", 0.0, None, rules) for n in range(10)]), "client")
    large = sim.scheduler.farm.tasks.large
    size = large.total
    assert (len(large.tasks), size < 20_000) == (10, True)
    sim.ask(m.AbortTasks([*range(first, first + 9)]))
    assert large.total == size
    sim.ask(m.AbortTasks([first + 9]))
    assert large.total == 0


def test_a_client_may_have_half_of_the_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(large_rules, "LARGE_BYTES", 10_000)
    large = LargeRules()
    rules = Rules(name="a")
    assert not large.why_not("a", rules, 5000, None)
    large.hold("a", None, rules, 5000, None, {})
    assert not large.tasks, "the task was refused"
    assert large.why_not("a", rules, 5001, None)
    assert not large.why_not("a", rules, 100, None), "small rules are not counted"


def test_ends_that_are_too_large_are_divided() -> None:
    def final(number: int) -> Final:
        failure = FailureSummary("E" * 20_000, "v" * 20_000, "p" * 20_000)
        return Final(number, "error", 0, "n", 1, 0.0, 0.0, 0.0, 0.0, failure, b"body")

    three = m.Finals([final(n) for n in range(3)])
    assert [[each.id for each in part.finals] for part in parts_of(three)] == [[0], [1, 2]]
    (alone,) = parts_of(m.Finals([final(7)]))
    assert len(msgspec.msgpack.encode(alone)) < 31_000
    assert list(parts_of(alone)) == [alone], "it gets no smaller"
