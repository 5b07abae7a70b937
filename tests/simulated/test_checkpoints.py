"""Checkpoints take the place of what was kept before them; recycled engines save their names before they end."""

from __future__ import annotations

import msgspec
import pytest

from ipytaskfarm.core import messages as m
from ipytaskfarm.core.messages.engine_commands import CHECKPOINT, LOAD_SESSION, SavedCheckpoint
from ipytaskfarm.core.messages.payload import FailureBody
from ipytaskfarm.core.messages.tables import EngineTable
from ipytaskfarm.core.messages.task_types import Rules
from ipytaskfarm.core.requirements import Asks, Recycle
from ipytaskfarm.core.scheduler import kept_commands
from ipytaskfarm.core.scheduler.engine_shutdown import SAVE_S

from ..support.environment_world import env
from ..support.simulated_farm import SimAgent, SimFarm, farm_with_engines, move
from .test_replacements import Hand, again, engine_of, kept, notice, replaced


def saved(body: bytes, left_out: dict[str, str] | None = None, blobs: dict[str, int] | None = None) -> bytes:
    return msgspec.msgpack.encode(SavedCheckpoint(body, blobs or {}, 2, left_out or {}))


@pytest.fixture
def sim() -> SimFarm:
    return farm_with_engines(2)


@pytest.fixture
def agent(sim: SimFarm) -> SimAgent:
    agent = sim.agents["agent"]
    agent.answers[CHECKPOINT] = saved(b"session")
    return agent


@pytest.fixture
def hand(sim: SimFarm, agent: SimAgent) -> Hand:
    return Hand(sim)


def answers(sim: SimFarm) -> list[m.CommandAnswer]:
    return [told for told in sim.told["client"] if isinstance(told, m.CommandAnswer) and told.engine_id >= 0]


def submit(sim: SimFarm, recycle: Recycle) -> int:
    first = sim.ids().first
    sim.submit(first, Rules(targets=(0,), asks=Asks(environment=env("A"), recycle=recycle)))
    return first


def test_it_takes_the_place_of_what_was_kept_before(sim: SimFarm, agent: SimAgent, hand: Hand) -> None:
    hand.do("execute", b"import x", keep=m.Keep(opted_out=True))
    hand.do("push", b"x = 1", keep=m.Keep(("x",)))
    agent.answers[CHECKPOINT] = saved(b"session", {"lock": "a lock"})
    hand.do(CHECKPOINT, b"")
    hand.do("execute", b"y = x")
    sim.crash()
    sim.join_client()
    move(sim, agent)
    for engine_id in (0, 1):
        engine = replaced(sim, agent, engine_id)
        assert again(engine) == [b"session", b"y = x"]
        assert next(c.verb for c in engine.commands) == LOAD_SESSION
        assert notice(engine).splitlines()[1:] == ["not done again: lock: a lock"]
    hand.do(CHECKPOINT, b"")
    assert [text for _, text, _ in kept(sim)] == ["checkpoint of 2 names", "lock"] * 2
    assert len(sim.store.kept) == 2, "one for each engine"


def test_the_client_is_told_the_names_alone(sim: SimFarm, agent: SimAgent, hand: Hand) -> None:
    agent.answers[CHECKPOINT] = saved(b"session", {"lock": "a lock"})
    hand.do(CHECKPOINT, b"", [0])
    (answer,) = answers(sim)
    assert answer.ok
    assert msgspec.msgpack.decode(answer.body) == {"lock": "a lock"}


@pytest.mark.parametrize("body", [b"", b"\xc1", saved(b"", blobs={"d": 2**40})])
def test_one_that_cannot_be_kept_fails_and_changes_nothing(
    sim: SimFarm, agent: SimAgent, hand: Hand, body: bytes
) -> None:
    agent.answers[CHECKPOINT] = body
    hand.do("execute", b"import x", [0])
    hand.do(CHECKPOINT, b"", [0])
    answer = answers(sim)[-1]
    assert not answer.ok
    assert msgspec.msgpack.decode(answer.body, type=FailureBody).etype == "SessionError"
    assert again(replaced(sim, agent, 0)) == [b"import x"]


def test_commands_that_were_sent_before_its_answer_are_done_again(sim: SimFarm, agent: SimAgent, hand: Hand) -> None:
    hand.send(1, "execute", b"before", None, m.Keep())
    hand.send(2, CHECKPOINT, b"", None, None)
    hand.send(3, "execute", b"after", None, m.Keep())
    move(sim, agent)
    assert again(replaced(sim, agent, 1)) == [b"session", b"after"]


def test_one_that_is_asked_for_again_after_the_controllers_death(sim: SimFarm, agent: SimAgent, hand: Hand) -> None:
    hand.do("execute", b"import x")
    hand.do(CHECKPOINT, b"")
    sim.crash()
    sim.join_client()
    move(sim, agent)
    hand.send(2, CHECKPOINT, b"", None, None)  # its answer was lost with the controller
    move(sim, agent)
    assert again(replaced(sim, agent, 0)) == [b"session"]
    assert len(sim.store.kept) == 2


def test_reset_forgets_it(sim: SimFarm, hand: Hand) -> None:
    hand.do(CHECKPOINT, b"")
    hand.do("reset", b"")
    assert kept(sim) == []
    assert not sim.store.kept


def test_more_commands_than_are_kept(
    sim: SimFarm, agent: SimAgent, hand: Hand, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept_commands, "COMMANDS_MAX", 2)
    hand.do(CHECKPOINT, b"", [0])
    for n in range(2):
        hand.do("execute", b"%d" % n, [0])
    assert "not done again: checkpoint of 2 names: more was done" in notice(replaced(sim, agent, 0))


def test_properties(sim: SimFarm, agent: SimAgent, hand: Hand) -> None:
    """A change replaces the changes that it covers, whatever came in between; a deletion of all properties covers all
    changes.
    """
    for body, names in ((b"a=1,b=1", ("a", "b")), (b"c=1", ("c",)), (b"a=2", ("a",)), (b"del c", ("c",))):
        hand.do("properties", body, [0], m.Keep(names))
        hand.do("execute", b"between", [0])
    assert [body for body in again(replaced(sim, agent, 0)) if body != b"between"] == [b"a=1,b=1", b"a=2", b"del c"]
    hand.do("properties", b"clear", [0], m.Keep())
    hand.do("properties", b"a=3", [0], m.Keep(("a",)))
    assert [body for body in again(replaced(sim, agent, 0)) if body != b"between"] == [b"clear", b"a=3"]


# -- recycled engines


def test_a_recycled_engine_saves_its_names(sim: SimFarm, agent: SimAgent, hand: Hand) -> None:
    hand.do("execute", b"import x", [0])
    before = engine_of(agent, 0)
    submit(sim, Recycle(after_tasks=1, keep_session=True))
    sim.settle()
    engine = engine_of(agent, 0)
    assert engine is not before
    assert again(engine) == [b"session"]
    assert [text for _, text, _ in kept(sim)] == ["the 2 names that it had when it was recycled"]
    assert "was recycled: after 1 tasks" in notice(engine)


def test_without_that_setting_it_does_not(sim: SimFarm, agent: SimAgent) -> None:
    before = engine_of(agent, 0)
    submit(sim, Recycle(after_tasks=1))
    sim.settle()
    assert engine_of(agent, 0) is not before
    assert before.commands == []


@pytest.mark.parametrize("answer", [b"", saved(b"", blobs={"d": 2**40})])
def test_it_ends_too_where_that_is_not_possible(sim: SimFarm, agent: SimAgent, hand: Hand, answer: bytes) -> None:
    agent.answers[CHECKPOINT] = answer
    hand.do("execute", b"import x", [0])
    submit(sim, Recycle(after_tasks=1, keep_session=True))
    sim.settle()
    engine = engine_of(agent, 0)
    assert again(engine) == [b"import x"]
    assert "not done again: the names that it had when it was recycled" in notice(engine)
    table = sim.ask(m.ListEngines())
    assert isinstance(table, EngineTable)
    assert "not done again: the names that it had" in next(row.note for row in table.rows if row.id == 0)


def saving(sim: SimFarm, agent: SimAgent) -> None:
    """Engine 0 has been asked for its names, and has not answered."""
    submit(sim, Recycle(after_tasks=1, keep_session=True))
    engine = engine_of(agent, 0)
    for _ in range(100):
        if any(isinstance(each, m.EngineCommand) and each.verb == CHECKPOINT for each in agent.inbox):
            return
        if engine.running or sim.begin(engine):
            sim.end(agent, engine)
        if agent.outbox:
            sim.process(agent)
        else:
            sim.deliver(agent)
    raise AssertionError("the engine is not asked")


def test_one_that_does_not_answer_is_ended_in_the_end(sim: SimFarm, agent: SimAgent) -> None:
    saving(sim, agent)
    agent.inbox.clear()
    table = sim.ask(m.ListEngines())
    assert isinstance(table, EngineTable)
    assert next(row for row in table.rows if row.id == 0).note == "its names are saved: it is recycled"
    sim.advance(SAVE_S - 1)
    assert not agent.inbox
    sim.advance(1)
    sim.settle()
    assert "they were not saved within 60 s" in notice(engine_of(agent, 0))


def test_the_loss_of_an_engine_that_saves_its_names(sim: SimFarm, agent: SimAgent) -> None:
    saving(sim, agent)
    agent.inbox.clear()
    assert "while it saved them it was ended by signal 9" in notice(replaced(sim, agent, 0))


def test_the_death_of_the_controller_meanwhile(sim: SimFarm, agent: SimAgent) -> None:
    """The engine is not recycled yet: it continues, and its later report about its names has no effect."""
    saving(sim, agent)
    while agent.inbox:
        sim.deliver(agent)
    late = list(agent.outbox)
    sim.crash()
    sim.join_client()
    agent.outbox.extend(late)
    sim.settle()
    assert kept(sim) == []


def test_an_engine_that_is_not_wanted_any_more_saves_nothing(sim: SimFarm, agent: SimAgent) -> None:
    saving(sim, agent)
    sim.ask(m.RemoveEngines([0, 1], drain=False))
    sim.settle()
    assert kept(sim) == []
    assert agent.engines == {}
