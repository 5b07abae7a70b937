"""Test the shares of a turn, and the bounds of what one peer may hold: pure, with any crowd that Hypothesis finds."""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Iterator
from typing import Any

import hypothesis
import msgspec
import pytest
from hypothesis import strategies as st

from ipytaskfarm.core import messages as m
from ipytaskfarm.core.errors import ResultTooLarge
from ipytaskfarm.core.limits import FREE_BYTES, ByteAccounts, PeerLimits
from ipytaskfarm.core.messages.task_types import Submission
from ipytaskfarm.core.turn_shares import DEBT_MAX_S, HEAVY_S, LIGHT_S, NEW_HEAVY_S, TurnShares
from ipytaskfarm.transport import message_parts, wire
from ipytaskfarm.transport.hub_session import HubSession, LazySessions, Peer
from ipytaskfarm.transport.inbox import ALONE_S, ANSWERS_BYTES, LARGE_BYTES, Inbox, Left
from ipytaskfarm.transport.reliable_session import PACKET_COST_BYTES, list_header
from ipytaskfarm.transport.session_places import AGENT_SESSIONS_MAX, SessionPlaces

Crowd = dict[str, tuple[str, list[tuple[bool, float]]]]
"""Session -> (key, messages); a message: (whether it is heavy, its cost in seconds)."""

message = st.tuples(st.booleans(), st.sampled_from([1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1.0]))
crowds: st.SearchStrategy[Crowd] = st.dictionaries(
    st.sampled_from("abcdefgh"),
    st.tuples(st.sampled_from(["client", "reader", "agent"]), st.lists(message, min_size=1, max_size=12)),
    min_size=1,
)


class Room:
    """Sessions with messages, handled turn by turn."""

    def __init__(self, crowd: Crowd) -> None:
        self.shares = TurnShares()
        self.waiting = {name: (key, deque(messages)) for name, (key, messages) in crowd.items()}
        for name in self.waiting:
            self._wait(name)

    def _wait(self, name: str) -> None:
        key, messages = self.waiting[name]
        if messages:
            self.shares.wait(key, name, messages[0][0])

    def turn(self) -> list[tuple[str, bool, float]]:
        """Return the messages handled: (session, whether heavy, cost)."""
        done = []
        self.shares.begin()
        while (name := self.shares.pop()) is not None:
            is_heavy, cost_s = self.waiting[name][1].popleft()
            done.append((name, is_heavy, cost_s))
            self._wait(name)
            if is_heavy:
                self.shares.charge(name, 1e-5)
                self.shares.charge_answer(name, cost_s)
            else:
                self.shares.charge(name, cost_s)
        return done


@hypothesis.given(crowds)
def test_every_message_is_handled_once_and_in_the_order_of_its_session(crowd: Crowd) -> None:
    room = Room(crowd)
    handled: list[tuple[str, bool, float]] = []
    for _ in range(sum(len(messages) for _, messages in crowd.values())):
        done = room.turn()
        assert done or not len(room.shares), "something waits, and nothing was handled"
        handled += done
    for name, (_, messages) in crowd.items():
        assert [(heavy, cost) for who, heavy, cost in handled if who == name] == messages
    assert not len(room.shares)


@hypothesis.given(crowds)
def test_a_turn_is_bounded(crowd: Crowd) -> None:
    room = Room(crowd)
    while len(room.shares):
        done = room.turn()
        light = [cost for _, heavy, cost in done if not heavy]
        assert sum(light[:-1]) <= LIGHT_S + len(done) * 1e-5, "only the last one may exceed the turn"
        heavy = Counter(name for name, heavy, _ in done if heavy)
        assert all(count == 1 for count in heavy.values()), "one heavy message of a session in a turn"


@hypothesis.given(st.integers(1, 200), st.sampled_from([1e-4, 1e-3, 1e-2]), st.booleans())
def test_one_light_message_waits_for_a_bounded_time_in_any_crowd(sessions: int, cost_s: float, heavy: bool) -> None:
    """However much the others send, and however many they are: whoever has used little comes soon."""
    room = Room({f"hostile{n}": ("client", [(heavy, cost_s)] * 50) for n in range(sessions)})
    room.waiting["honest"] = ("client", deque())
    for _ in range(20):
        room.turn()
    room.waiting["honest"][1].append((False, 1e-4))
    room._wait("honest")
    spent_s = 0.0
    while room.waiting["honest"][1]:
        done = room.turn()
        mine = next((at for at, (name, _, _) in enumerate(done) if name == "honest"), len(done))
        spent_s += sum(cost for _, _, cost in done[:mine])
    # Each of the others at most once, and at most the answers of one turn.
    assert (
        spent_s <= (0 if heavy else sessions * cost_s) + LIGHT_S + HEAVY_S + DEBT_MAX_S + cost_s * HEAVY_S / NEW_HEAVY_S
    )


def test_keys_have_equal_shares_however_many_sessions_they_have() -> None:
    crowd: Crowd = {f"c{n}": ("client", [(False, 1e-3)] * 1000) for n in range(50)}
    crowd["agent"] = ("agent", [(False, 1e-3)] * 1000)
    room = Room(crowd)
    used: Counter[str] = Counter()
    for _ in range(10):
        for name, _, cost_s in room.turn():
            used[crowd[name][0]] += round(cost_s * 1000)
    assert abs(used["agent"] - used["client"]) <= 2


def test_a_costly_message_is_paid_for_by_its_session_alone() -> None:
    room = Room(
        {"costly": ("client", [(False, 1.0), *[(False, 1e-3)] * 500]), "light": ("client", [(False, 1e-3)] * 400)}
    )
    order = [name for _ in range(30) for name, _, _ in room.turn()]
    after = order[order.index("costly") + 1 :]
    assert after.index("costly") >= DEBT_MAX_S / 1e-3 * 0.4, "it waits while the other one catches up"


def test_sessions_that_come_and_go_do_not_hold_back_one_that_has_used_more() -> None:
    room = Room({"debtor": ("client", [(False, 1.0), (False, 1e-3)])})
    room.turn()
    for n in range(10_000):
        room.waiting[f"new{n}"] = ("client", deque([(False, 1e-3)]))
        room._wait(f"new{n}")
        if any(name == "debtor" for name, _, _ in room.turn()):
            break
        room.shares.forget(f"new{n}")
    assert n < 1000


def test_cheap_answers_make_room_for_more_questions_in_a_turn() -> None:
    room = Room({f"q{n}": ("client", [(True, 1e-4)] * 5) for n in range(40)})
    assert len(room.turn()) == HEAVY_S / NEW_HEAVY_S
    while any(name not in room.shares._expected_s for name in room.waiting):
        room.turn()
    assert len(room.turn()) > 20


def test_a_session_that_ended_leaves_nothing_behind() -> None:
    shares = TurnShares()
    for n in range(1000):
        shares.wait("client", f"s{n}", n % 2 == 0)
        shares.begin()
        assert shares.pop() == f"s{n}"
        shares.charge(f"s{n}", 0.01)
        shares.charge_answer(f"s{n}", 0.01)
        shares.forget(f"s{n}")
    assert not len(shares)
    assert not shares._expected_s
    for order in (shares._light, shares._heavy):
        assert not order._group_of
        assert all(not each._used_s and len(each._heap) <= 64 for each in order._sessions.values())


# -- bytes and places


def test_bytes_are_bounded_per_session_per_key_and_in_all() -> None:
    accounts = ByteAccounts(per_session=300_000, per_key=500_000, in_all=700_000)
    assert not accounts.why_not("client", "a", 300_000)
    assert "the most of one session" in accounts.why_not("client", "a", 300_001)
    accounts.hold("client", "a", 300_000)
    assert "the most of one key" in accounts.why_not("client", "b", 200_001)
    accounts.hold("client", "b", 200_000)
    assert not accounts.why_not("agent", "x", 200_000)
    assert "and 700,000 are the most" in accounts.why_not("agent", "x", 200_001)
    assert not accounts.why_not("client", "c", FREE_BYTES), "questions always get in"
    accounts.hold("client", "a", 0)
    assert not accounts.why_not("client", "c", 300_000)
    assert (accounts.total, accounts.of("a"), accounts.of("b")) == (200_000, 0, 200_000)


def test_places_are_kept_for_agents_and_unused_sessions_give_theirs() -> None:
    places = SessionPlaces(PeerLimits(sessions=6, sessions_in_all=10, sessions_kept=4))
    for n in range(6):
        assert not places.why_full("client")
        places.take("client", f"c{n}")
    assert "the most of one key (max_sessions)" in places.why_full("client")
    assert "kept for agents" in places.why_full("reader")
    assert places.replaceable("client") == "c0"
    places.is_used("client", "c0")
    assert places.replaceable("client") == "c1"
    for n in range(6):
        places.is_used("client", f"c{n}")
    assert places.replaceable("client") is None
    places.is_unused("client", "c4")
    assert places.replaceable("client") == "c4"
    for n in range(4):
        assert not places.why_full("agent")
        places.take("agent", f"a{n}")
    assert places.why_full("agent")
    assert places.replaceable("agent") is None
    places.free("client", "c4")
    assert not places.why_full("client")
    assert PeerLimits().sessions > AGENT_SESSIONS_MAX


# -- messages in parts


def packet(*messages: object) -> bytes:
    bodies = [wire.encode_message(message) for message in messages]
    return list_header(len(bodies)) + b"".join(bodies)


def values(n: int) -> bytes:
    return msgspec.msgpack.encode([list(range(n))])


@pytest.mark.parametrize(
    "value",
    [None, True, 5, -3, 200, 2**40, 1.5, "x", "x" * 40, "x" * 300, "x" * 70_000, b"x", b"x" * 300, b"x" * 70_000,
     [], [1] * 20, [1] * 70_000, {}, {"a": [1, {"b": 2}]}, {str(n): n for n in range(20)},
     msgspec.msgpack.Ext(5, b"xy"), {str(n): [n] for n in range(70_000)}, -(2**40), -200, -40_000],
)  # fmt: skip
def test_values_are_counted_as_they_are(value: object) -> None:
    def count(it: object) -> int:
        if isinstance(it, dict):
            return 1 + sum(count(key) + count(each) for key, each in it.items())
        return 1 + (sum(map(count, it)) if isinstance(it, list) else 0)

    body = msgspec.msgpack.encode(value)
    message_parts.check_parts(body, count(value))
    with pytest.raises(ResultTooLarge):
        message_parts.check_parts(body, count(value) - 1)
    for cut in {1, len(body) // 2, len(body) - 1} - {0}:
        with pytest.raises((ValueError, ResultTooLarge)):
            message_parts.check_parts(body[:-cut], 10**6)


@hypothesis.given(st.binary(max_size=200))
def test_any_bytes_are_counted_or_refused(body: bytes) -> None:
    try:
        message_parts.check_parts(body, 50)
    except (ValueError, ResultTooLarge):
        pass


def test_a_message_of_too_many_values_is_refused_before_it_is_decoded() -> None:
    body = b"\x91\xdd" + (40_000_000).to_bytes(4, "big") + b"\x01" * 2_000_000
    with pytest.raises(ResultTooLarge, match=r"more than 1,000,000 values.*in pieces"):
        message_parts.split("client", body)


def test_heavy_messages_are_known_without_decoding_them() -> None:
    large = [
        (m.AskQuestion(1, m.AbortTasks(list(range(70_000, 80_000)))), True),
        (m.Submit([Submission(n, b"x" * 100, 1.0) for n in range(100)]), False),
        (m.SendCommand(1, None, "push", b"x" * 10_000), False),
    ]
    small = [
        (m.AskQuestion(1, m.ListTasks()), True),
        (m.AskQuestion(1, m.QueueStatus()), False),
        (m.AskQuestion(1, m.QueueStatus(True)), True),
        (m.AskQuestion(1, m.FetchResults([1])), True),
        (m.AskQuestion(1, m.AbortTasks([1])), False),
        (m.NeedIds(), False),
    ]
    both = [*large, *small]
    found = message_parts.split("client", packet(*(each for each, _ in both)))
    assert [message_parts.is_heavy(message_parts.opened(raw)) for raw in found] == [heavy for _, heavy in both]
    assert [message_parts.decoded(raw) for raw in found] == [each for each, _ in both]
    for each, heavy in both:
        (alone,) = message_parts.split("client", packet(each))
        assert message_parts.is_heavy(message_parts.opened(alone)) is heavy
        assert message_parts.decoded(alone) == each


# -- the inbox


class Desk:
    """In the place of the hub: time passes with each message, answers pile up."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.backlog: Counter[str] = Counter()
        self.refused: list[str] = []
        self.inbox = Inbox(lambda: self.now_s, self, self.backlog.__getitem__)

    def read(self, session: str, raw: Any) -> Any:
        return message_parts.decoded(raw)

    def unreadable(self, session: str, body: Any, error: Exception) -> None:
        self.refused.append(session)

    def turn(self, cost_s: float = 0.0) -> Iterator[tuple[str, Any]]:
        for taken in self.inbox.take():
            yield taken
            self.now_s += cost_s


def test_who_is_alone_owes_nothing_for_what_is_cheap_and_its_time_for_the_rest() -> None:
    for cost_s, order in ((ALONE_S / 2, ["first", "second"]), (ALONE_S * 2, ["second", "first"])):
        desk = Desk()
        desk.inbox.put("first", "key", "client", 1, packet(m.NeedIds()))
        assert desk.inbox.has_work
        assert [session for session, _ in desk.turn(cost_s)] == ["first"]
        assert not desk.inbox.has_work
        for session in ("first", "second"):
            desk.inbox.put(session, "key", "client", 2, packet(m.NeedIds()))
        assert [session for session, _ in desk.turn()] == order
        assert not desk.inbox.has_work


def numbers(taken: list[tuple[str, Any]]) -> list[tuple[str, int]]:
    return [(session, message.n) for session, message in taken]


def test_2000_questions_of_one_packet_are_handled_one_in_a_turn_and_others_between_them() -> None:
    desk = Desk()
    desk.inbox.put("hostile", "client", "client", 1, packet(*(m.AskQuestion(n, m.ListTasks()) for n in range(2000))))
    assert numbers(list(desk.turn(1.0))) == [("hostile", 0)]
    desk.inbox.put("honest", "client", "client", 1, packet(m.AskQuestion(7, m.QueueStatus())))
    assert numbers(list(desk.turn(1.0))) == [("honest", 7), ("hostile", 1)]
    assert desk.inbox.handled("hostile") == 0, "a packet is acknowledged after its last message"
    assert desk.inbox.handled("honest") is None, "nothing of it waits"
    assert numbers(list(desk.turn(1.0))) == [("hostile", 2)]


def test_questions_wait_until_earlier_answers_were_taken() -> None:
    desk = Desk()
    desk.backlog["slow"] = ANSWERS_BYTES + 1
    body = packet(m.NeedIds(), m.AskQuestion(1, m.QueueStatus()), m.NeedIds())
    desk.inbox.put("slow", "client", "client", 1, body)
    desk.inbox.put("slow", "client", "client", 2, packet(m.NeedIds()))
    assert [type(message) for _, message in desk.turn()] == [m.NeedIds]
    assert list(desk.turn()) == []
    assert not desk.inbox.has_work, "the controller does not spin over it"
    assert desk.inbox.leave("slow")
    desk.backlog["slow"] = 0
    assert [message if message is Left.LEFT else type(message) for _, message in desk.turn()] == [
        m.AskQuestion, m.NeedIds, m.NeedIds, Left.LEFT,
    ]  # fmt: skip
    assert desk.inbox.handled("slow") is None
    assert not desk.inbox.leave("slow")


def test_what_cannot_be_read_ends_its_session_alone() -> None:
    desk = Desk()
    desk.inbox.put("bad", "client", "client", 1, packet(m.NeedIds()) + b"rest")
    desk.inbox.put("bad", "client", "client", 2, packet(m.NeedIds()))
    desk.inbox.put("good", "client", "client", 1, packet(m.NeedIds()))
    assert list(desk.turn()) == [("good", m.NeedIds())]
    assert desk.refused == ["bad"]
    assert desk.inbox.bytes_of("bad") == 0


def test_waiting_bytes_are_counted_until_their_packet_is_begun() -> None:
    desk = Desk()
    bodies = [packet(m.AskQuestion(n, m.ListTasks())) for n in range(3)]
    for number, body in enumerate(bodies, 1):
        desk.inbox.put("c", "client", "client", number, body)
    assert desk.inbox.bytes_of("c") == sum(map(len, bodies)) + 3 * PACKET_COST_BYTES
    list(desk.turn())
    assert desk.inbox.bytes_of("c") == sum(map(len, bodies[1:])) + 2 * PACKET_COST_BYTES
    assert desk.inbox.handled("c") == 1
    desk.inbox.drop("c")
    assert list(desk.turn()) == []
    assert desk.inbox.handled("c") is None


def test_a_costly_question_leaves_less_of_the_turn_for_others() -> None:
    """Whether its cost is in the question itself or in its answer after the turn."""
    shares = TurnShares()
    for name in ("a", "b", "c"):
        shares.wait(name, name, True)
    shares.begin()
    first = shares.pop()
    assert first is not None
    shares.charge(first, HEAVY_S)
    assert shares.pop() is None, "what it cost was not expected, and has used the turn up"
    shares.wait(first, first, True)
    shares.begin()
    served = []
    while (session := shares.pop()) is not None:
        shares.charge(session, 0.001)
        served.append(session)
    assert len(served) == 2, f"after the others, {first} is expected to cost as much again"


def test_no_turn_is_made_for_a_session_that_does_not_wait_any_more() -> None:
    lazy = LazySessions()
    slow, quick = (HubSession(Peer(name, "client", name), "client") for name in ("slow", "quick"))
    lazy.add(slow, 2.0)
    assert lazy.until_s == math.inf, "there is nothing for it"
    for state in (slow, quick):
        state.session.say(b"message")
    lazy.add(slow, 5.0)
    lazy.add(quick, 3.0)
    lazy.add(quick, 4.0)
    assert lazy.until_s == 3.0, "who waits already waits no longer"
    lazy.drop("quick")
    assert lazy.until_s == 5.0
    assert lazy.take(4.9) == {}
    assert lazy.take(5.0) == {"slow": slow}
    assert lazy.until_s == math.inf
    assert slow.lazy_until_s == math.inf


def test_large_packets_of_clients_come_after_everything_else() -> None:
    """To read one may take half a second, and whoever sends them may do so from many sessions."""
    desk = Desk()
    large = packet(m.Submit([Submission(1, bytes(LARGE_BYTES), 0.0, None)]))
    for session in ("a", "b", "c"):
        desk.inbox.put(session, "client", "client", 1, large)
    desk.inbox.put("honest", "client", "client", 1, packet(m.AskQuestion(7, m.QueueStatus())))
    assert [session for session, _ in desk.turn(1.0)] == ["honest", "a"]
    desk.inbox.put("honest", "client", "client", 2, packet(m.AskQuestion(8, m.QueueStatus())))
    assert [session for session, _ in desk.turn(1.0)] == ["honest", "b"]
    assert [session for session, _ in desk.turn(1.0)] == ["c"]
    assert not desk.inbox.has_work
