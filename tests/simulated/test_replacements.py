"""Test that the replacements of engines repeat the commands of clients."""

from __future__ import annotations

import msgspec
import pytest

from ipytaskfarm.core import messages as m
from ipytaskfarm.core.messages.engine_commands import CLEAR_QUEUE, REPLACES
from ipytaskfarm.core.messages.payload import FailureBody
from ipytaskfarm.core.messages.tables import CommandQueueTable, EngineTable, KeptTable
from ipytaskfarm.core.messages.task_types import Rules
from ipytaskfarm.core.saves import SaveKept
from ipytaskfarm.core.scheduler import kept_commands
from ipytaskfarm.core.scheduler.events import Back, Silent
from ipytaskfarm.core.scheduler.kept_commands import KeptOnEngine
from ipytaskfarm.core.scheduler.requests import HELD_S, HeldCommand

from ..support.simulated_farm import SimAgent, SimEngine, SimFarm, farm_with_engines, move, run_next


class Hand:
    """A client that does things on engines."""

    def __init__(self, sim: SimFarm) -> None:
        self.sim = sim
        self.n = 0

    def do(self, verb: str, body: bytes, engines: list[int] | None = None, keep: m.Keep | None = None) -> None:
        """Send a command, and let it be answered."""
        self.n += 1
        self.send(self.n, verb, body, engines, m.Keep() if keep is None and verb != "reset" else keep)
        for agent in list(self.sim.agents.values()):
            move(self.sim, agent)

    def send(self, n: int, verb: str, body: bytes, engines: list[int] | None, keep: m.Keep | None) -> None:
        text = f"{verb}({body.decode()})"
        self.sim.handle(m.SendCommand(n, engines, verb, body, text, keep), "client")


@pytest.fixture
def sim() -> SimFarm:
    return farm_with_engines(2)


@pytest.fixture
def agent(sim: SimFarm) -> SimAgent:
    return sim.agents["agent"]


@pytest.fixture
def hand(sim: SimFarm) -> Hand:
    return Hand(sim)


def engine_of(agent: SimAgent, engine_id: int) -> SimEngine:
    return next(engine for engine in agent.engines.values() if engine.id == engine_id)


def replaced(sim: SimFarm, agent: SimAgent, engine_id: int) -> SimEngine:
    """Kill an engine, and return the one that has come in its place and is prepared."""
    sim.kill(agent, engine_of(agent, engine_id))
    sim.settle()
    return engine_of(agent, engine_id)


def preparing(sim: SimFarm, agent: SimAgent, engine_id: int) -> SimEngine:
    """Return the engine that comes in a lost one's place, when it has been sent its first commands."""
    for _ in range(200):
        for entry in sim.scheduler.farm.engines.by_id.get(engine_id, ()):
            if entry.state == "preparing" and entry.name in agent.engines:
                return agent.engines[entry.name]
        if agent.inbox:
            sim.deliver(agent)
        elif agent.outbox:
            sim.process(agent)
        else:
            sim.advance(0.1)
    raise AssertionError("no replacement comes")


def answer_one(sim: SimFarm, agent: SimAgent) -> None:
    """Let one command be run and answered."""
    while not any(isinstance(message, m.CommandDone) for message in agent.outbox):
        sim.deliver(agent)
    while not isinstance(agent.outbox[0], m.CommandDone):
        sim.process(agent)
    sim.process(agent)


def again(engine: SimEngine) -> list[bytes]:
    return [command.body for command in engine.commands if command.replays is not None]


def notice(engine: SimEngine) -> str:
    return next(msgspec.msgpack.decode(c.body, type=str) for c in engine.commands if c.verb == REPLACES)


def kept(sim: SimFarm) -> list[tuple[int, str, str]]:
    reply = sim.ask(m.ListKept())
    assert isinstance(reply, KeptTable)
    return reply.rows


def answered(sim: SimFarm, n: int) -> list[int]:
    """Return the engines that have answered a command without an error."""
    return sorted(answer.engine_id for answer in answers(sim, n) if answer.ok and answer.engine_id >= 0)


def refusals(sim: SimFarm, n: int) -> list[str]:
    """Return the errors of a command."""
    return [msgspec.msgpack.decode(each.body, type=FailureBody).etype for each in answers(sim, n) if not each.ok]


def answers(sim: SimFarm, n: int) -> list[m.CommandAnswer]:
    return [told for told in sim.told["client"] if isinstance(told, m.CommandAnswer) and told.n == n]


def commanded(sim: SimFarm) -> list[int]:
    """Return the engines that a command to all engines goes to."""
    table = sim.ask(m.ListEngines())
    assert isinstance(table, EngineTable)
    return table.commanded


def test_in_order_and_each_engine_its_own(sim: SimFarm, agent: SimAgent, hand: Hand) -> None:
    hand.do("execute", b"import x")
    hand.do("push", b"part 0", [0], m.Keep(("part",)))
    hand.do("push", b"part 1", [1], m.Keep(("part",)))
    hand.do("execute", b"y = x.f(part)")
    engine = replaced(sim, agent, 1)
    assert again(engine) == [b"import x", b"part 1", b"y = x.f(part)"]
    assert engine.prepared
    assert "signal 9" in notice(engine)
    assert again(replaced(sim, agent, 1)) == again(engine), "and so is the replacement's replacement"
    assert again(engine_of(agent, 0)) == []


def test_nothing_is_sent_where_nothing_was_done(sim: SimFarm, agent: SimAgent) -> None:
    assert replaced(sim, agent, 1).commands == []


def test_after_a_restart_of_the_controller(sim: SimFarm, agent: SimAgent, hand: Hand) -> None:
    hand.do("execute", b"import x")
    hand.do("execute", b"i += 1")
    sim.crash()
    sim.join_client()
    move(sim, agent)
    assert again(replaced(sim, agent, 0)) == [b"import x", b"i += 1"]


def test_a_command_that_is_answered_again_is_kept_once(sim: SimFarm, agent: SimAgent, hand: Hand) -> None:
    hand.do("execute", b"i += 1")
    sim.crash()
    sim.join_client()
    move(sim, agent)
    hand.send(1, "execute", b"i += 1", None, m.Keep())  # its answer was lost with the controller
    move(sim, agent)
    assert again(replaced(sim, agent, 0)) == [b"i += 1"]


def test_a_controller_that_dies_while_a_replacement_is_prepared(sim: SimFarm, agent: SimAgent, hand: Hand) -> None:
    hand.do("execute", b"i += 1")
    sim.kill(agent, engine_of(agent, 0))
    sim.settle_start(agent)
    sim.crash()
    sim.join_client()
    sim.settle()
    engine = engine_of(agent, 0)
    assert again(engine) == [b"i += 1"]
    assert engine.prepared


def test_a_later_push_replaces_an_earlier_one(sim: SimFarm, agent: SimAgent, hand: Hand) -> None:
    hand.do("push", b"x = 1", keep=m.Keep(("x",)))
    hand.do("push", b"x = 2, y = 1", keep=m.Keep(("x", "y")))
    hand.do("push", b"x = 3", keep=m.Keep(("x",)))
    hand.do("execute", b"z = x + y")
    hand.do("push", b"x = 4, y = 4", keep=m.Keep(("x", "y")))
    assert again(replaced(sim, agent, 0)) == [b"x = 2, y = 1", b"x = 3", b"z = x + y", b"x = 4, y = 4"]
    assert len(sim.store.kept) == 4


def test_a_push_that_opted_out_leaves_no_earlier_value(sim: SimFarm, agent: SimAgent, hand: Hand) -> None:
    hand.do("push", b"x = 1", keep=m.Keep(("x",)))
    hand.do("push", b"y = 1", keep=m.Keep(("y",)))
    hand.do("push", b"x = 2", keep=m.Keep(("x",), opted_out=True))
    engine = replaced(sim, agent, 1)
    assert again(engine) == [b"y = 1"], "an earlier value would be used without a word"
    assert "push(x = 2): it was sent with sticky=False" in notice(engine)
    sim.crash()
    sim.settle()
    assert again(replaced(sim, agent, 1)) == [b"y = 1"]


def test_reset_and_kill_forget(sim: SimFarm, agent: SimAgent, hand: Hand) -> None:
    hand.do("execute", b"import x")
    hand.do("reset", b"", [0])
    assert [row[0] for row in kept(sim)] == [1]
    sim.ask(m.RemoveEngines([1]))
    sim.settle()
    assert kept(sim) == []
    assert not sim.store.kept
    assert not sim.store.kept_on
    sim.ask(m.SetWanted(2))
    sim.settle()
    assert again(engine_of(agent, 1)) == []


def test_fewer_engines_wanted_forgets_those_that_go(sim: SimFarm, hand: Hand) -> None:
    hand.do("execute", b"import x")
    sim.ask(m.SetWanted(1))
    sim.settle()
    assert [row[0] for row in kept(sim)] == [0]


def test_clear_kept(sim: SimFarm, hand: Hand) -> None:
    hand.do("execute", b"import x")
    assert sim.ask(m.ClearKept([1, 7])) == m.NumberReply(1)
    assert [row[0] for row in kept(sim)] == [0]


def test_what_failed_and_what_opted_out_is_named(sim: SimFarm, agent: SimAgent, hand: Hand) -> None:
    agent.failing = frozenset({b"typo"})
    hand.do("execute", b"typo")
    hand.do("execute", b"train()", keep=m.Keep(opted_out=True))
    hand.do("execute", b"import x")
    sim.crash()
    sim.join_client()
    move(sim, agent)
    engine = replaced(sim, agent, 0)
    assert again(engine) == [b"import x"]
    assert "not done again: execute(typo): it failed" in notice(engine)
    assert "not done again: execute(train()): it was sent with sticky=False" in notice(engine)


def test_what_fails_on_the_replacement_is_told_and_the_rest_goes_on(sim: SimFarm, agent: SimAgent, hand: Hand) -> None:
    hand.do("execute", b"read a file that is gone")
    hand.do("execute", b"import x")
    agent.failing = frozenset({b"read a file that is gone"})
    engine = replaced(sim, agent, 0)
    assert again(engine) == [b"read a file that is gone", b"import x"]
    assert engine.prepared
    assert "not done again: execute(read a file that is gone)" in notice(engine)
    table = sim.ask(m.ListEngines())
    assert isinstance(table, EngineTable)
    row = next(row for row in table.rows if row.id == 0)
    assert "not done again: execute(read a file that is gone)" in row.note


def test_a_command_that_ends_replacements_is_given_up(sim: SimFarm, agent: SimAgent, hand: Hand) -> None:
    hand.do("execute", b"import x", [0])
    hand.do("execute", b"segfault here", [0])
    sim.kill(agent, engine_of(agent, 0))
    for _ in range(2):
        engine = preparing(sim, agent, 0)
        answer_one(sim, agent)
        sim.kill(agent, engine)
        agent.inbox.clear()
    sim.settle()
    engine = engine_of(agent, 0)
    assert again(engine) == [b"import x"]
    assert "2 replacements ended while they did it" in notice(engine)


def test_explain_and_the_table_of_engines_say_how_far_it_is(sim: SimFarm, agent: SimAgent, hand: Hand) -> None:
    for code in (b"import x", b"import y", b"z = 1"):
        hand.do("execute", code)
    sim.submit(sim.ids().first, Rules(targets=(0,), lost_retries=1))
    sim.kill(agent, engine_of(agent, 0))
    preparing(sim, agent, 0)
    answer_one(sim, agent)
    sim.advance(4.0)
    text = sim.ask(m.ExplainTasks(0))
    assert isinstance(text, m.TextReply)
    assert "being prepared: 2 of 3, execute(import y), 4 s" in text.text
    rows = sim.ask(m.ListEngines())
    assert isinstance(rows, EngineTable)
    assert any("being prepared: 2 of 3, execute(import y), 4 s" in row.note for row in rows.rows)


def test_an_engine_that_ends_while_it_is_prepared_is_told_with_the_step_and_its_last_line(
    sim: SimFarm, agent: SimAgent, hand: Hand
) -> None:
    hand.do("execute", b"import x")
    sim.kill(agent, engine_of(agent, 0))
    engine = preparing(sim, agent, 0)
    crash = m.Crash(exit_code=3, output="begun\nno key\n")
    sim.handle(m.EngineDown(engine.name, 0, None, True, crash), agent.session)
    lost = "exited with code 3, while it was being prepared: 1 of 1, execute(import x), 0 s; its last output: no key"
    assert sim.scheduler.farm.diagnostics.losses[-1] == f"engine 0 on node {lost}"


def test_no_task_comes_before_the_engine_is_prepared(sim: SimFarm, agent: SimAgent, hand: Hand) -> None:
    hand.do("execute", b"import x")
    for n in range(6):
        sim.submit(sim.ids().first + n if n == 0 else n)
    engine = replaced(sim, agent, 0)
    assert again(engine) == [b"import x"]
    assert all(final.reason in ("", "engine lost") for final in sim.store.finals.values())


def test_what_an_engine_was_sent_before_it_is_reported_anew_is_not_waited_for(
    sim: SimFarm, agent: SimAgent, hand: Hand
) -> None:
    for code in (b"import x", b"import y"):
        hand.do("execute", code)
    sim.kill(agent, engine_of(agent, 0))
    preparing(sim, agent, 0)
    agent.inbox.clear()  # it was lost with the session
    sim.ask(m.SetSticky("a", "execute", b"z = 1"))
    agent.inbox.clear()
    sim.restate(agent)
    sim.settle()
    assert commanded(sim) == [0, 1]
    assert not [e for e in sim.scheduler.farm.engines.by_name.values() if e.preparing or e.state == "preparing"]


def test_a_command_to_all_while_one_is_being_replaced(sim: SimFarm, agent: SimAgent, hand: Hand) -> None:
    hand.do("push", b"x = 1", keep=m.Keep(("x",)))
    sim.kill(agent, engine_of(agent, 1))
    sim.process(agent)
    hand.send(2, "push", b"x = 2", None, m.Keep(("x",)))
    hand.send(3, "pull", b"x", [1], None)
    sim.settle()
    engine = engine_of(agent, 1)
    assert [c.body for c in engine.commands if c.verb != REPLACES] == [b"x = 1", b"x = 2", b"x"], "in their order"
    assert answered(sim, 2) == [0, 1]
    assert answered(sim, 3) == [1]
    assert again(replaced(sim, agent, 1)) == [b"x = 2"]


def test_commands_wait_for_a_replacement_of_which_nothing_is_kept(sim: SimFarm, agent: SimAgent, hand: Hand) -> None:
    sim.kill(agent, engine_of(agent, 1))
    sim.process(agent)
    assert commanded(sim) == [0, 1]
    hand.send(1, "push", b"x = 1", None, m.Keep(("x",)))
    hand.send(2, "push", b"x = 2", [1], m.Keep(("x",)))
    queues = sim.ask(m.ListCommandQueues())
    assert isinstance(queues, CommandQueueTable)
    assert queues.rows[1] == (1, None, ["it is being replaced", "push(x = 1)", "push(x = 2)"])
    sim.settle()
    assert [command.body for command in engine_of(agent, 1).commands] == [b"x = 1", b"x = 2"]
    assert (answered(sim, 1), answered(sim, 2)) == ([0, 1], [1])


def test_commands_wait_while_all_engines_are_recycled(sim: SimFarm, agent: SimAgent, hand: Hand) -> None:
    for name in list(agent.engines):
        sim.handle(m.SetUp(name, "", "a task has spoiled it"), "agent")
    hand.send(1, "push", b"x = 1", None, m.Keep(("x",)))
    sim.settle()
    assert answered(sim, 1) == [0, 1]
    assert all([c.body for c in engine.commands] == [b"x = 1"] for engine in agent.engines.values())


def test_a_cleared_queue_has_no_held_commands(sim: SimFarm, agent: SimAgent, hand: Hand) -> None:
    sim.kill(agent, engine_of(agent, 1))
    sim.process(agent)
    hand.send(1, "execute", b"a", [1], m.Keep())
    hand.send(2, "execute", b"b", [1], m.Keep())
    sim.handle(m.SendCommand(3, None, "clear_queue", msgspec.msgpack.encode([1])), "client")
    assert refusals(sim, 1) == ["QueueCleared"]
    sim.settle()
    assert [command.body for command in engine_of(agent, 1).commands] == [b"b"]


def test_a_client_that_goes_leaves_no_held_commands(sim: SimFarm, agent: SimAgent, hand: Hand) -> None:
    sim.kill(agent, engine_of(agent, 1))
    sim.process(agent)
    hand.send(1, "execute", b"a", [1], m.Keep())
    sim.leave_client()
    sim.settle()
    assert not engine_of(agent, 1).commands
    assert not sim.scheduler.farm.requests.commands


def test_held_commands_do_not_fill_the_memory(sim: SimFarm, agent: SimAgent, hand: Hand) -> None:
    sim.kill(agent, engine_of(agent, 1))
    sim.process(agent)
    body = bytes(1 << 20)
    for n in range(1, 101):
        hand.send(n, "push", body, [1], m.Keep())
    refused = [n for n in range(1, 101) if refusals(sim, n) == ["EngineLost"]]
    assert refused == [*range(65, 101)]
    sim.settle()
    assert len(engine_of(agent, 1).commands) == 64
    assert sim.scheduler.farm.requests.held_bytes == 0


def test_commands_are_not_held_for_ever(sim: SimFarm, agent: SimAgent, hand: Hand) -> None:
    agent.leaving = True  # it starts no engine
    sim.kill(agent, engine_of(agent, 1))
    sim.process(agent)
    hand.send(1, "execute", b"a", None, m.Keep())
    for _ in range(80):
        move(sim, agent)
        sim.advance(0.5)
    assert answered(sim, 1) == [0]
    assert refusals(sim, 1) == ["EngineLost"]
    assert commanded(sim) == [0]


def test_commands_wait_for_engines_after_a_restart_of_the_controller(sim: SimFarm, agent: SimAgent, hand: Hand) -> None:
    hand.do("push", b"x = 1", keep=m.Keep(("x",)))
    sim.crash()
    sim.join_client()
    hand.send(2, "pull", b"x", None, None)
    sim.settle()
    assert answered(sim, 2) == [0, 1]


def test_commands_wait_for_engines_that_are_unreachable_for_a_moment(sim: SimFarm, agent: SimAgent, hand: Hand) -> None:
    sim.handle(Silent(), "agent")
    hand.send(1, "push", b"x = 1", None, m.Keep(("x",)))
    assert commanded(sim) == [0, 1]
    sim.handle(Back(), "agent")
    sim.settle()
    assert answered(sim, 1) == [0, 1]
    sim.handle(Silent(), "agent")
    hand.send(2, "push", b"x = 2", None, m.Keep(("x",)))
    sim.advance(HELD_S + 1)
    assert refusals(sim, 2) == ["EngineLost", "EngineLost"]
    assert commanded(sim) == []


def test_an_engine_that_is_being_replaced_can_be_removed(sim: SimFarm, agent: SimAgent, hand: Hand) -> None:
    hand.do("push", b"x = 1", keep=m.Keep(("x",)))
    sim.kill(agent, engine_of(agent, 0))
    sim.process(agent)
    sim.ask(m.RemoveEngines([0], drain=False))
    sim.settle()
    assert commanded(sim) == [1]
    assert [command.body for command in engine_of(agent, 1).commands] == [b"x = 1"]


def test_a_command_that_is_sent_again_to_an_engine_that_has_replayed_it(
    sim: SimFarm, agent: SimAgent, hand: Hand
) -> None:
    hand.do("execute", b"import x")
    sim.kill(agent, engine_of(agent, 1))
    sim.process(agent)
    hand.send(2, "execute", b"i += 1", None, m.Keep())
    sim.settle()
    sim.crash()
    sim.join_client()
    move(sim, agent)
    hand.send(2, "execute", b"i += 1", None, m.Keep())  # its answer was lost with the controller
    move(sim, agent)
    for engine in agent.engines.values():
        assert [command.body for command in engine.commands].count(b"i += 1") == 1
    assert again(replaced(sim, agent, 0)) == [b"import x", b"i += 1"]


def test_sticky_commands_stand_at_their_place(sim: SimFarm, agent: SimAgent, hand: Hand) -> None:
    hand.do("push", b"x = 1", keep=m.Keep(("x",)))
    sim.ask(m.SetSticky("push:x", "push", b"sticky x"))
    hand.do("push", b"sticky x", keep=m.Keep(sticky=("push:x",)))
    hand.do("execute", b"y = x")
    engine = replaced(sim, agent, 0)
    bodies = [command.body for command in engine.commands if command.verb != REPLACES]
    assert bodies == [b"x = 1", b"sticky x", b"y = x"]
    sim.ask(m.ClearSticky())
    assert again(replaced(sim, agent, 0)) == [b"x = 1", b"y = x"]


def test_bounds(sim: SimFarm, agent: SimAgent, hand: Hand, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_commands, "COMMANDS_MAX", 3)
    for n in range(5):
        hand.do("execute", b"%d" % n, [0])
    assert [row[1] for row in kept(sim) if not row[2]] == ["execute(2)", "execute(3)", "execute(4)"]
    assert [row[1:] for row in kept(sim) if row[2]] == [
        ("execute(0)", "more was done than is kept for a replacement"),
        ("execute(1)", "more was done than is kept for a replacement"),
    ]
    assert len(sim.store.kept) == 3
    assert "not done again: execute(0): more was done" in notice(replaced(sim, agent, 0))


def command(number: int, size: int, blobs: int = 0) -> SaveKept:
    return SaveKept(number, "client", number, "execute", bytes(size), "", (), {"d": blobs} if blobs else {})


def test_bounds_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_commands, "BYTES_MAX", 10)
    monkeypatch.setattr(kept_commands, "BLOB_BYTES_MAX", 100)
    kept = KeptOnEngine()
    for each in (command(1, 6), command(2, 4, 60)):
        kept.add(each)
        assert kept.excess() == []
    kept.add(command(3, 1))
    assert kept.excess() == [1]
    kept.remove(1)
    kept.add(command(4, 0, 50))
    assert kept.excess() == [2]
    assert kept_commands.is_too_large(command(5, 11))
    assert kept_commands.is_too_large(command(5, 0, 101))


def test_what_is_too_large_by_itself_drops_nothing_else(
    sim: SimFarm, hand: Hand, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept_commands, "BYTES_MAX", 10)
    hand.do("execute", b"small", [0])
    hand.do("execute", b"larger than that", [0])
    assert [row[1] for row in kept(sim) if not row[2]] == ["execute(small)"]


def test_recycled_engines_are_replaced_in_the_same_way(sim: SimFarm, agent: SimAgent, hand: Hand) -> None:
    hand.do("execute", b"import x")
    engine = sim.scheduler.farm.engines.by_name[engine_of(agent, 0).name]
    sim.handle(m.SetUp(engine.name, "", "a task has spoiled it"), "agent")
    sim.settle()
    assert again(engine_of(agent, 0)) == [b"import x"]
    assert "recycled" in notice(engine_of(agent, 0))


def test_tasks_run_on_a_replacement(sim: SimFarm, agent: SimAgent, hand: Hand) -> None:
    hand.do("execute", b"import x")
    engine = replaced(sim, agent, 0)
    sim.kill(agent, engine_of(agent, 1))
    sim.submit(sim.ids().first)
    move(sim, agent)
    assert run_next(sim, agent, engine) == 0


def test_what_an_engine_has_is_kept_when_a_second_one_of_its_id_ends(sim: SimFarm, agent: SimAgent, hand: Hand) -> None:
    """A controller that did not know of the first one had its place filled, as after a crash amid a start."""
    hand.do("push", b"a = 1")
    agent.outbox.append(m.EngineUp(m.EngineReport("agent.90", 0, 1, True, sim.now.wall_s)))
    agent.engines["agent.90"] = SimEngine("agent.90", 0)
    sim.settle()
    assert len(agent.engines) == 2
    assert [row[:2] for row in kept(sim)] == [(0, "push(a = 1)"), (1, "push(a = 1)")]
    assert again(replaced(sim, agent, 0)) == [b"a = 1"]


def test_many_held_commands_are_ended_in_one_look(sim: SimFarm, agent: SimAgent, hand: Hand) -> None:
    """One look for each number, or for each client, would take the controller minutes."""
    hand.do("push", b"a = 1")
    sim.kill(agent, engine_of(agent, 0))
    while agent.outbox:
        sim.process(agent)
    for n in range(2_000):
        sim.handle(m.SendCommand(n, [0], "push", b"x"), "client")
    looked = 0

    class Number(int):
        def __eq__(self, other: object) -> bool:
            nonlocal looked
            looked += 1
            return int(self) == other

        def __hash__(self) -> int:
            return hash(int(self))

    held = sim.scheduler.farm.requests.held[0]
    held[:] = [HeldCommand((each.key[0], Number(each.key[1]), each.key[2]), each.body) for each in held]
    unknown = msgspec.msgpack.encode([*range(10_000, 12_000), 1_999])
    sim.handle(m.SendCommand(5_000, [0], CLEAR_QUEUE, unknown), "client")
    assert refusals(sim, 1_999)
    assert not refusals(sim, 1_998)
    assert looked < 20_000
