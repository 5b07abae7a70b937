"""One engine's messages beside those of others: turns on the lane, and bounds of what is on its way."""

from __future__ import annotations

import contextlib
import select
import socket
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest

from ipytaskfarm.agent.engine_messages import NESTED_MAX, EngineMessages
from ipytaskfarm.agent.engines import EnginePhase, ManagedEngine
from ipytaskfarm.agent.relay import BYTES_MAX, MESSAGES_MAX, Account, Relay
from ipytaskfarm.core.errors import FarmNotRunning, ResultTooLarge
from ipytaskfarm.core.limits import PARTS_MAX, PROPERTIES_BYTES
from ipytaskfarm.core.messages import AgentState, CommandDone, PropertiesChanged, Run
from ipytaskfarm.core.messages.running_task import (
    Await,
    Children,
    Counted,
    Declined,
    ProgressReport,
    Spawn,
    Spawned,
    TaskCall,
    TaskReply,
)
from ipytaskfarm.core.messages.task_types import Function, Packed, Recovery, Rules, Submission
from ipytaskfarm.engine.current import IDS_AT_ONCE, SPAWNED_AT_ONCE, SPAWNED_BYTES, CurrentTask
from ipytaskfarm.transport.frame_stream import FrameStream
from ipytaskfarm.transport.lane import SHARE_BYTES, SHARE_MAX, UNREAD_BYTES, AgentLane
from ipytaskfarm.transport.peer import Link
from tests.support.polling import eventually
from tests.unit.test_agent_parts import FakeLink

RUN = (7, 1)


# -- the lane


class Engine:
    """The engine's end of a lane."""

    def __init__(self, path: Path, name: str) -> None:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.connect(str(path))
        self.name = name
        self.stream = FrameStream(sock, 1 << 30, float("inf"))
        self.stream.send(name.encode())

    def say(self, count: int, text: str = "") -> None:
        for _ in range(count):
            self.stream.send(msgspec.msgpack.encode(ProgressReport(self.name, RUN, 1.0, None, text)))


@pytest.fixture
def lane(tmp_path: Path) -> Iterator[AgentLane]:
    lane = AgentLane(tmp_path / "lane.sock")
    yield lane
    lane.close()


@contextlib.contextmanager
def engines(lane: AgentLane, tmp_path: Path, *names: str) -> Iterator[list[Engine]]:
    found = [Engine(tmp_path / "lane.sock", name) for name in names]
    eventually(lambda: lane.receive() == [] and len(lane._by_engine) == len(names))
    yield found
    for each in found:
        each.stream.close()


def taken(lane: AgentLane) -> Counter[str]:
    return Counter(engine for engine, _ in lane.receive())


def test_engines_are_read_in_turns(lane: AgentLane, tmp_path: Path) -> None:
    with engines(lane, tmp_path, "a", "b") as (a, b):
        a.say(SHARE_MAX + 10)
        b.say(3)
        assert taken(lane) == {"a": SHARE_MAX, "b": 3}
        assert lane.pending()
        b.say(1)
        assert taken(lane) == {"a": 10, "b": 1}


def test_large_messages_have_fewer_turns(lane: AgentLane, tmp_path: Path) -> None:
    with engines(lane, tmp_path, "a", "b") as (a, b):
        a.say(6, "x" * (SHARE_BYTES // 2))
        b.say(2)
        found: Counter[str] = Counter()
        largest = 0
        while found != {"a": 6, "b": 2}:
            a.stream.flush()
            now = taken(lane)
            largest = max(largest, now["a"])
            found += now
        assert largest <= 2


def test_an_engine_that_is_held_is_not_read_and_wakes_nobody(lane: AgentLane, tmp_path: Path) -> None:
    with engines(lane, tmp_path, "a", "b") as (a, b):
        lane.hold({"a"})
        a.say(3)
        assert not select.select([lane], [], [], 0.05)[0]
        assert taken(lane) == {}
        b.say(1)
        assert taken(lane) == {"b": 1}
        lane.hold(set())
        assert taken(lane) == {"a": 3}


def test_what_was_read_into_a_buffer_comes_when_the_engine_is_released(lane: AgentLane, tmp_path: Path) -> None:
    with engines(lane, tmp_path, "a") as (a,):
        a.say(SHARE_MAX + 5)
        assert taken(lane) == {"a": SHARE_MAX}
        lane.hold({"a"})
        assert not lane.pending()
        assert taken(lane) == {}
        lane.hold(set())
        assert lane.pending()
        assert taken(lane) == {"a": 5}


def test_an_engine_that_has_ended_is_read_to_its_end_although_it_is_held(lane: AgentLane, tmp_path: Path) -> None:
    with engines(lane, tmp_path, "a") as (a,):
        a.say(3)
        lane.hold({"a"})
    assert taken(lane) == {"a": 3}
    eventually(lambda: lane.receive() == [] and not lane._by_engine)


def test_an_engine_that_does_not_read_is_not_read(lane: AgentLane, tmp_path: Path) -> None:
    with engines(lane, tmp_path, "a", "b") as (a, _b):
        assert lane.forward("a", bytes(UNREAD_BYTES + (8 << 20)))
        lane.hold(set())
        a.say(1)
        assert taken(lane) == {}
        while a.stream.receive() is None:
            lane.receive()
        lane.hold(set())
        eventually(lambda: taken(lane) == {"a": 1})


def test_an_engine_has_one_connection(lane: AgentLane, tmp_path: Path) -> None:
    """With a second one it could not be held."""
    with engines(lane, tmp_path, "a") as (a,), contextlib.closing(Engine(tmp_path / "lane.sock", "a").stream) as other:
        taken(lane)
        with contextlib.suppress(Exception):
            other.send(msgspec.msgpack.encode(ProgressReport("a", RUN, 1.0)))
        a.say(2)
        assert taken(lane) == {"a": 2}


# -- the relay


class Desk:
    """An engine's messages on their way through a relay over a fake link."""

    def __init__(self) -> None:
        self.link = FakeLink()
        self.relay = Relay(cast(Link, self.link))
        self.state = AgentState("here", 1, 1, 1, "", "", [])
        self.relay.restate(self.state, [])
        self.answers: list[Any] = []
        self.messages = EngineMessages(self.relay, cast(AgentLane, self), lambda engine, message: None)
        self.engine = ManagedEngine.__new__(ManagedEngine)
        self.engine.id, self.engine.incarnation, self.engine.phase = 3, "s.1", EnginePhase.UP
        self.engine.account = Account("s.1", cast(Any, None))
        self.engine.properties = None

    def send(self, engine: str, message: Any) -> bool:
        self.answers.append((engine, message))
        return True

    def hear(self, message: Any) -> None:
        self.messages.handle(self.engine, message)

    def forwarded(self) -> list[Any]:
        return [message for message in self.link.sent if message is not self.state]


@pytest.fixture
def desk() -> Desk:
    return Desk()


def test_an_engine_with_many_messages_on_their_way_is_full_until_they_have_arrived(desk: Desk) -> None:
    for n in range(MESSAGES_MAX):
        assert not desk.relay.full_engines
        desk.hear(TaskCall("s.1", RUN, n, Children()))
    assert desk.relay.full_engines == {"s.1"}
    desk.link.ack(desk.relay)
    assert not desk.relay.full_engines


def test_an_engine_with_many_bytes_on_their_way_is_full(desk: Desk) -> None:
    desk.hear(CommandDone("s.1", "alice", 1, True, bytes(BYTES_MAX)))
    assert desk.relay.full_engines == {"s.1"}
    desk.link.ack(desk.relay)
    assert not desk.relay.full_engines


def test_in_a_new_epoch_only_what_is_sent_again_is_on_its_way(desk: Desk) -> None:
    desk.hear(CommandDone("s.1", "alice", 1, True, bytes(BYTES_MAX)))
    desk.hear(ProgressReport("s.1", RUN, 1.0))
    desk.link.forget()
    desk.relay.restate(desk.state, [])
    assert desk.relay.full_engines == {"s.1"}
    desk.link.ack(desk.relay)
    assert not desk.relay.full_engines


def test_an_engine_speaks_only_for_itself(desk: Desk) -> None:
    desk.hear(ProgressReport("s.2", RUN, 1.0))
    desk.hear(CommandDone("s.2", "alice", 1, True))
    desk.hear(TaskCall("s.2", RUN, 1, Children()))
    assert desk.forwarded() == []


def test_a_call_that_cannot_be_sent_is_answered(desk: Desk) -> None:
    desk.link.largest = 1000
    desk.hear(TaskCall("s.1", RUN, 5, Await(list(range(10_000)))))
    ((engine, reply),) = desk.answers
    assert engine == "s.1"
    assert isinstance(reply, TaskReply)
    assert (reply.n, reply.reply) == (5, Declined("ResultTooLarge", reply.reply.text))  # type: ignore[union-attr]


def test_children_with_recovery_tasks_nested_too_deeply_are_refused(desk: Desk) -> None:
    rules: Rules | None = None
    for _ in range(NESTED_MAX):
        rules = Rules(recovery=Recovery(b"", None, rules))
    desk.hear(TaskCall("s.1", RUN, 5, Spawn(1, [Submission(-1, b"", 0.0, None, rules)])))
    ((_, reply),) = desk.answers
    assert "nested more than 50 deep" in reply.reply.text
    assert rules is not None
    assert rules.recovery is not None
    desk.hear(TaskCall("s.1", RUN, 6, Spawn(2, [Submission(-1, b"", 0.0, None, rules.recovery.rules)])))
    assert len(desk.forwarded()) == 1


def test_properties_that_are_too_large_go_no_further(desk: Desk) -> None:
    desk.hear(PropertiesChanged("s.1", 1, b"small"))
    desk.hear(PropertiesChanged("s.1", 2, bytes(PROPERTIES_BYTES + 1)))
    assert desk.forwarded() == [PropertiesChanged("s.1", 1, b"small")]
    assert desk.engine.properties == PropertiesChanged("s.1", 1, b"small")


def test_large_properties_are_told_beside_the_agents_state(desk: Desk) -> None:
    """All engines' together would be more than one message may have."""
    desk.engine.properties = PropertiesChanged("s.1", 1, b"small")
    assert desk.engine.unreported is None
    desk.engine.properties = large = PropertiesChanged("s.1", 2, bytes(1 << 20))
    assert desk.engine.unreported is large


def test_an_agents_message_with_too_many_values_is_refused_before_it_is_sent() -> None:
    def nowhere() -> Any:
        raise FarmNotRunning("not here")

    link = Link(nowhere, "agent", "a:1", "here")
    with pytest.raises(ResultTooLarge, match="more than 999,999 values"):
        link.send(TaskCall("s.1", RUN, 1, Await([0] * (PARTS_MAX + 100_000))))
    link.send(TaskCall("s.1", RUN, 1, Await([0] * (PARTS_MAX - 100))))
    link.close()


# -- calls of a running task


class Asked:
    """A running task whose questions are answered at once."""

    def __init__(self) -> None:
        self.questions: list[Any] = []
        self.task = CurrentTask("s.1", Run(7, 1, b""), lambda message: None, {}, None, cast(Any, self))
        self.task.calls.ask = self._ask  # type: ignore[method-assign]

    def _ask(self, question: Any, timeout: float | None = None) -> Any:
        self.questions.append(question)
        if isinstance(question, Spawn):
            first = 100 + sum(len(each.tasks) for each in self.questions[:-1])
            return Spawned(list(range(first, first + len(question.tasks))))
        return Counted(sum(1 for each in question.ids if each % 2))


def test_many_children_are_submitted_in_parts_of_one_job() -> None:
    asked = Asked()
    made = Packed(b"payload", "digest", functions=(Function("digest", b"code"),))
    assert asked.task.spawn([made] * (2 * SPAWNED_AT_ONCE + 1), "job") == list(range(100, 101 + 2 * SPAWNED_AT_ONCE))
    assert [len(each.tasks) for each in asked.questions] == [SPAWNED_AT_ONCE, SPAWNED_AT_ONCE, 1]
    assert [each.n for each in asked.questions] == [1, 2, 3]
    assert {(each.job.id, each.job.total) for each in asked.questions} == {("7.1.1", 2 * SPAWNED_AT_ONCE + 1)}
    assert all(len(each.functions) == 1 for each in asked.questions)
    asked.task.spawn([made], "another")
    assert (asked.questions[-1].n, asked.questions[-1].job.id) == (4, "7.1.4")


def test_large_children_are_submitted_in_parts() -> None:
    asked = Asked()
    asked.task.spawn([Packed(bytes(SPAWNED_BYTES // 2))] * 5)
    assert [len(each.tasks) for each in asked.questions] == [2, 2, 1]


def test_children_with_large_functions_are_submitted_in_parts() -> None:
    asked = Asked()
    made = [Packed(b"", functions=(Function(name, bytes(SPAWNED_BYTES // 2)),)) for name in "aaabcd"]
    asked.task.spawn(made)
    assert [len(each.tasks) for each in asked.questions] == [4, 2]
    assert [[each.digest for each in question.functions] for question in asked.questions] == [["a", "b"], ["c", "d"]]


def test_a_task_waits_for_many_tasks_in_parts() -> None:
    asked = Asked()
    assert asked.task.wait(range(2 * IDS_AT_ONCE + 4)) == IDS_AT_ONCE + 2
    assert [len(each.ids) for each in asked.questions] == [IDS_AT_ONCE, IDS_AT_ONCE, 4]
    assert asked.task.wait([]) == 0
    assert len(asked.questions) == 4
