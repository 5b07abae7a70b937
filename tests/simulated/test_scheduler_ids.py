"""Ids of tasks: blocks that clients are given, what goes back, and the order of acceptance."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from ipytaskfarm.core import messages as m
from ipytaskfarm.core.handlers.tables import last_rows
from ipytaskfarm.core.messages import tables
from ipytaskfarm.core.messages.running_task import Spawn
from ipytaskfarm.core.messages.task_types import Rules, Submission
from ipytaskfarm.core.scheduler.decision import LoadTable
from ipytaskfarm.core.scheduler.events import StoreRoom

from ..support.simulated_farm import SimFarm, farm_with_engines, move, one_engine


def test_the_last_of_a_table_are_those_that_were_accepted_last() -> None:
    sim = farm_with_engines(0)
    sim.join_client("other")
    own, others = sim.ids(), sim.ids("other")
    accepted = [(others.first, "other"), (own.first, "client"), (others.first + 1, "other"), (own.first + 1, "client")]
    for task_id, session in accepted:
        sim.submit(task_id, session=session)

    def last(count: int, **which: object) -> list[int]:
        reply = sim.ask(m.ListTasks(last=count, **which))  # type: ignore[arg-type]
        assert isinstance(reply, tables.TaskRows)
        assert reply.omitted == 4 - len(reply.rows)
        return [row.id for row in reply.rows]

    latest = [task_id for task_id, _ in accepted]
    assert [last(count) for count in (1, 2, 3, 4, 9)] == [sorted(latest[-count:]) for count in (1, 2, 3, 4, 9)]
    sim.crash()
    assert [last(count) for count in (1, 2, 3)] == [sorted(latest[-count:]) for count in (1, 2, 3)]


def test_the_last_of_a_name_are_those_that_were_accepted_last() -> None:
    sim = farm_with_engines(0)
    sim.join_client("other")
    own, others = sim.ids(), sim.ids("other")
    for task_id, session in [(others.first, "other"), (own.first, "client"), (own.first + 1, "client")]:
        sim.submit(task_id, Rules(name="n"), session=session)
    sim.ask(m.AbortTasks([others.first]))
    (load,) = sim.handle(m.AskQuestion(7, m.ListTasks(name="n", last=2)), "client").loads
    assert isinstance(load, LoadTable)
    row = tables.TaskRow(others.first, "failed", "aborted", "n", None, 0, 0.0)
    kept = last_rows([*load.rows, row], [], load.last, load.omitted, load.order)
    assert ([r.id for r in kept.rows], kept.omitted) == ([own.first, own.first + 1], 1)


def block(sim: SimFarm, session: str) -> tuple[int, int]:
    """The ids that a client is given, as it asks for them."""
    sim.handle(m.NeedIds(), session)
    found = next(x for x in reversed(sim.told[session]) if isinstance(x, m.IdBlock))
    return found.first, found.last


def test_blocks_of_ids_begin_small_and_grow() -> None:
    sim = farm_with_engines(0)
    sizes = [last - first + 1 for first, last in (block(sim, "client") for _ in range(8))]
    assert sizes == [16, 256, 4096, 65536, 65536, 65536, 65536, 65536]


def test_what_a_client_did_not_use_is_given_to_the_next() -> None:
    sim = farm_with_engines(0)
    sim.join_client("a")
    first, _ = block(sim, "a")
    for task_id in range(first, first + 3):
        sim.submit(task_id, session="a")
    sim.leave_client("a", said=True)
    sim.join_client("b")
    assert block(sim, "b") == (first + 3, first + 18)
    # It is so after a restart too, and a client that used nothing leaves no trace.
    sim.leave_client("b", said=True)
    sim.crash()
    sim.join_client("c")
    assert block(sim, "c") == (first + 3, first + 18)
    sim.submit(first + 3, session="c")
    assert sim.ask(m.WatchTasks([first, first + 3, first + 4]), "c") == m.Watched([])


def test_ids_below_those_of_others_are_not_given_again() -> None:
    sim = farm_with_engines(0)
    for session in "ab":
        sim.join_client(session)
    first, _ = block(sim, "a")
    (behind, _) = block(sim, "b")
    sim.submit(first, session="a")
    sim.leave_client("a", said=True)
    sim.join_client("c")
    assert block(sim, "c")[0] > behind
    # When those behind them were not used either, all of them go back.
    sim.leave_client("c", said=True)
    sim.leave_client("b", said=True)
    sim.join_client("d")
    assert block(sim, "d")[0] == first + 1


@pytest.mark.parametrize("how", ["silent", "full", "stopping"])
def test_a_client_that_may_have_more_keeps_its_ids(how: str) -> None:
    """A client that was only silent comes back with more submitted tasks; a client that ends now loses some."""
    sim = farm_with_engines(0)
    sim.join_client("a")
    first, last = block(sim, "a")
    if how == "full":
        sim.handle(StoreRoom("no room"))
    elif how == "stopping":
        sim.ask(m.StopFarm(drain_s=60.0))
    sim.leave_client("a", said=how != "silent")
    sim.join_client("b")
    assert block(sim, "b")[0] == last + 1
    if how == "silent":
        sim.join_client("a")
        sim.submit(first, session="a")
        assert first in sim.scheduler.farm.tasks.unfinished


def test_the_ids_of_children_and_retries_are_one_block() -> None:
    """Each child and each retry had a block of its own, in memory and in the store, for ever."""
    sim, agent, engine = one_engine()
    first = sim.ids().first
    sim.submit(first)
    move(sim, agent)
    sim.begin(engine)
    before = len(sim.store.blocks)
    for n in range(1, 11):
        sim.call(agent, engine, Spawn(n, [Submission(-1, b"work", 0.0)]))
        move(sim, agent)
    sim.ask(m.AbortTasks([first]))
    for _ in range(10):
        reply = sim.ask(m.RetryTasks([first]))
        sim.scheduler.farm.clients.retried.clear()  # the same question is asked again
        assert isinstance(reply, m.Retried)
    assert len(sim.store.blocks) == before + 1
    sim.crash()
    children = [task.id for task in sim.store.tasks.values() if task.parent == first]
    retries = [task.id for task in sim.store.tasks.values() if task.rules is not None and task.rules.retry_of == first]
    assert len({*children, *retries}) == 20
    # A client that ends gives none of them back.
    sim.join_client()
    sim.leave_client("client", said=True)
    sim.join_client("next")
    assert block(sim, "next")[0] > max(*children, *retries)


@pytest.mark.parametrize("items", [0, 4])
def test_who_watches_a_task_hears_that_it_is_refused(items: int) -> None:
    """Another client may watch the task before it is submitted; it waited for ever."""
    sim = farm_with_engines(0)
    first = sim.ids().first
    sim.join_client("other")
    watched = list(range(first + 1, first + 2 + items))
    assert sim.ask(m.WatchTasks(watched), "other") == m.Watched([])
    sim.submit(first, Rules(unique="key"))
    sim.submit(first + 1, Rules(unique="key"), items=items)
    told = [final for x in sim.told["other"] if isinstance(x, m.Finals) for final in x.finals]
    assert [(final.id, final.reason) for final in told] == [(task_id, "refused") for task_id in watched]
    assert not sim.scheduler.farm.clients.watchers
    assert not sim.scheduler.farm.clients.watches


def finished_chunk() -> tuple[SimFarm, int]:
    """A farm that has run a chunk of four items, and the chunk's own id, which nobody sees."""
    sim = farm_with_engines(1)
    chunk = sim.ids().first
    sim.submit(chunk, items=4)
    sim.settle()
    assert chunk in sim.scheduler.farm.tasks.finals
    return sim, chunk


UNKNOWN: dict[str, tuple[Callable[[list[int]], m.Question], Callable[[Any], list[int]]]] = {
    "retry": (m.RetryTasks, lambda reply: reply.missing),
    "clear": (m.Clear, lambda reply: reply.missing),
    "abort": (m.AbortTasks, lambda reply: [i for i, outcome in reply.outcomes if outcome == "unknown"]),
}


@pytest.mark.parametrize("what", UNKNOWN)
def test_the_own_id_of_a_chunk_is_unknown_in_a_range(what: str) -> None:
    """Its items are not meant by it: those behind the end of the range would be cleared, aborted or run again."""
    sim, chunk = finished_chunk()
    kind, unknown = UNKNOWN[what]
    before = sim.scheduler.farm.tasks.chunks.size(chunk)
    assert unknown(sim.ask(kind([chunk]))) == [chunk]
    assert sim.scheduler.farm.tasks.chunks.size(chunk) == before
    assert sim.scheduler.farm.tasks.chunks.items == {chunk: 4}


def test_a_chunk_that_waits_is_not_aborted_by_its_own_id() -> None:
    sim = farm_with_engines(0)
    chunk = sim.ids().first
    sim.submit(chunk, items=4)
    sim.ask(m.AbortTasks([chunk]))
    assert chunk in sim.scheduler.farm.tasks.unfinished
    priority = sim.ask(m.SetPriority([chunk], 5))
    assert isinstance(priority, m.PrioritySet)
    assert (priority.count, priority.unknown) == (0, [chunk])
    for question in (m.MarkTasksDone(chunk, b""), m.MarkTasksFailed(chunk)):
        refused = sim.ask(question)
        assert isinstance(refused, m.Refusal)
        assert refused.etype == "IndexError"
    sim.ask(m.AbortTasks([chunk], chunks=True))
    assert chunk in sim.scheduler.farm.tasks.finals
    cleared = sim.ask(m.Clear([chunk], chunks=True))
    assert isinstance(cleared, m.Cleared)
    assert cleared.count == 4
