"""The wire over real sockets: what crosses it, what is made good, and who is turned away."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import random
import re
import select
import socket
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import msgspec
import pytest
import zmq

from ipytaskfarm.core import errors
from ipytaskfarm.core.messages import (
    PROTOCOL,
    AgentState,
    Answer,
    Ask,
    Flag,
    Hello,
    Hold,
    IdBlock,
    NeedIds,
    QueueStatus,
    Refusal,
    Refuse,
    StartEngine,
    Submission,
    Submit,
    Text,
    Welcome,
    WhoAreYou,
)
from ipytaskfarm.core.session import HEADER, Kind, Session
from ipytaskfarm.doors import wire, wire_hub
from ipytaskfarm.doors.keys import KeyPair, make_keypair
from ipytaskfarm.doors.runtime import ConnectionInfo
from ipytaskfarm.doors.wire_hub import Hub, PeerGone, PeerNewEpoch, PeerSilent, PeerUp
from ipytaskfarm.doors.wire_link import Acked, Link, Lost, NewEpoch, Refused, Resumed
from tests.polling import eventually
from tests.wire_world import World, body, world

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def w() -> Iterator[World]:
    with world() as it:
        yield it


def submit(number: int, size: int = 10) -> Submit:
    return Submit([Submission(number, b"x" * size, 1.0)])


def numbers(messages: list[object]) -> list[int]:
    return [message.tasks[0].id for message in messages if isinstance(message, Submit)]


def answers(messages: list[object]) -> list[int]:
    return [message.n for message in messages if isinstance(message, Answer)]


def refusal(w: World, link: Link) -> Refuse:
    """The refusal with which a link ended."""
    (event,) = w.until(lambda: w.of(link, Refused))
    assert not link.is_up
    assert link.next_deadline() == float("inf")
    return event.refuse


AGENT_STATE = AgentState("node", 1, 2, 3, "linux", "3.11", [])

# ------------------------------------------------------------------------------------------------ what crosses it


def test_a_link_comes_up_and_messages_cross_both_ways(w: World) -> None:
    link = w.link()
    w.until(lambda: link.is_up)
    (anew,) = w.of(link, NewEpoch)
    assert (anew.welcome.farm, anew.welcome.name, anew.welcome.epoch) == ("farm-1", "default", 1)
    assert (link.farm, link.epoch, link.problem) == ("farm-1", 1, "")
    (peer, first), *_ = w.heard
    assert isinstance(first, PeerNewEpoch)
    assert (peer.session, peer.role, peer.name, peer.read_only) == ("s1", "client", "tester", False)
    link.send(NeedIds(), "token")
    assert w.hub.send("s1", IdBlock(1, 1024))
    w.until(lambda: w.told(link))
    assert w.told(link) == [IdBlock(1, 1024)]
    assert w.until(lambda: w.of(link, Acked)) == [Acked("token")]
    assert w.said()[1:] == [NeedIds()]
    assert link.unacked_bytes == 0
    w.pass_time(0.2, step_s=0.05)
    assert w.hub.backlog_bytes("s1") == 0
    assert w.hub.peers() == [(peer, True)]


def test_an_agent_speaks_its_own_language(w: World) -> None:
    link = w.up("a1", "agent")
    link.send(AGENT_STATE)
    w.hub.send("a1", StartEngine(3))
    w.until(lambda: w.told(link) == [StartEngine(3)] and w.said("a1") == [AGENT_STATE])


def test_nothing_is_acknowledged_before_the_commit(w: World) -> None:
    link = w.up()
    w.committing = False
    link.send(NeedIds(), "token")
    w.until(lambda: w.said() == [NeedIds()])
    w.pass_time(3.0)
    assert not w.of(link, Acked)
    w.committing = True
    w.until(lambda: w.of(link, Acked))


def test_messages_of_megabytes_cross_in_pieces(w: World) -> None:
    link = w.up()
    link.send(submit(1, 3 << 20), "large")
    link.send(submit(2))
    w.hub.send("s1", Answer(1, Text("y" * (3 << 20))))
    w.hub.send("s1", Answer(2, Flag(True)))
    w.until(lambda: numbers(w.said()) == [1, 2] and answers(w.told(link)) == [1, 2])
    w.until(lambda: w.of(link, Acked))
    first = w.said()[0]
    assert isinstance(first, Submit)
    assert len(first.tasks[0].payload) == 3 << 20


def test_a_message_too_large_is_refused_to_its_sender(w: World, monkeypatch: pytest.MonkeyPatch) -> None:
    link = w.up()
    monkeypatch.setattr(wire, "MAX_MESSAGE_BYTES", 1000)
    with pytest.raises(errors.ResultTooLarge, match=r"Submit has 1,0\d\d bytes, more than the 1,000"):
        link.send(submit(1, 1000))
    with pytest.raises(errors.ResultTooLarge):
        w.hub.send("s1", Answer(1, Text("y" * 1000)))
    link.send(submit(2))
    w.until(lambda: numbers(w.said()) == [2])


def test_a_slow_client_costs_a_window_and_others_nothing(w: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire_hub, "Session", functools.partial(Session, window_bytes=1 << 20))
    slow = w.up("slow")
    quick = w.up("quick")
    events = w.events.pop(slow)
    for n in range(40):
        w.hub.send("slow", Answer(n, Text("y" * 100_000)))
    w.hub.send("quick", Answer(7, Flag(True)))
    w.until(lambda: answers(w.told(quick)) == [7])
    assert w.hub.backlog_bytes("slow") > 4_000_000
    w.events[slow] = events
    w.until(lambda: len(w.told(slow)) == 40)
    assert answers(w.told(slow)) == list(range(40))


def test_closing_waits_for_acknowledgements_and_says_good_bye(w: World) -> None:
    link = w.up()
    link.send(NeedIds())
    assert link.close(0.05) is False  # nobody turns the hub's loop
    del w.events[link]
    w.until(lambda: PeerGone() in w.said())
    assert w.said()[0] == NeedIds()
    assert w.hub.peers() == []
    assert w.hub.send("s1", IdBlock(1, 2)) is False
    assert w.hub.backlog_bytes("s1") == 0


def test_a_link_that_has_said_all_closes_at_once(w: World) -> None:
    link = w.up()
    began = time.monotonic()
    assert link.close(10.0) is True
    assert time.monotonic() - began < 5.0
    del w.events[link]


# ---------------------------------------------------------------------------------------------- what is made good


def test_a_storm_of_resets_loses_and_doubles_nothing(w: World) -> None:
    chance = random.Random(7)
    link = w.up()
    total = resets = 0
    while resets < 25:
        for _ in range(chance.randrange(12)):
            link.send(submit(total, chance.choice([1, 1000, 50_000, 400_000])), total)
            w.hub.send("s1", Answer(total, Text("y" * chance.choice([1, 1000, 50_000]))))
            total += 1
        w.turn()
        if chance.random() < 0.3:
            resets += 1
            w.proxy.reset()
            w.until(lambda: not link.is_up)
            if chance.random() < 0.8:  # else the next one hits while it dials
                w.until(lambda: link.is_up, pace_s=0.025)
    w.until(lambda: not link.unacked_bytes and len(w.told(link)) == total, 30.0)
    tokens = [event.token for event in w.of(link, Acked) if isinstance(event.token, int)]
    assert numbers(w.said()) == answers(w.told(link)) == tokens == list(range(total))
    assert 10 < len(w.of(link, Lost)) == len(w.of(link, Resumed)) <= resets
    assert not w.of(link, NewEpoch)


def test_a_cut_is_noticed_at_once_and_healed_with_a_resend(w: World) -> None:
    link = w.up()
    w.committing = False
    for number in range(50):
        link.send(submit(number))
    w.until(lambda: len(w.said()) == 50)
    w.proxy.reset()
    began = time.monotonic()
    w.until(lambda: w.of(link, Lost))
    assert "cut" in link.problem
    w.committing = True
    w.until(lambda: w.of(link, Resumed))
    assert time.monotonic() - began < 2.0
    w.until(lambda: not link.unacked_bytes)
    assert numbers(w.said()) == list(range(50))
    assert PeerUp() in w.said()


@pytest.mark.parametrize("way", ["swallow_up", "swallow_down", "both"])
def test_a_half_open_connection_is_replaced(w: World, way: str) -> None:
    link = w.up()
    for swallow in ("swallow_up", "swallow_down") if way == "both" else (way,):
        setattr(w.proxy, swallow, True)
    link.send(submit(1))
    w.hub.send("s1", Answer(1, Flag(True)))
    w.pass_time(12.0)
    assert not link.is_up
    assert w.of(link, Lost)
    if way != "swallow_down":
        assert PeerSilent() in w.said()
    w.proxy.swallow_up = w.proxy.swallow_down = False
    w.until(lambda: link.is_up, pace_s=0.125)
    w.until(lambda: not link.unacked_bytes and w.told(link))
    assert numbers(w.said()) == answers(w.told(link)) == [1]
    assert w.of(link, Resumed)


def test_a_controller_that_is_restarted_begins_a_new_epoch(w: World) -> None:
    link = w.up()
    w.committing = False
    link.send(submit(1), "old")
    w.until(lambda: numbers(w.said()) == [1])
    w.hub.close()
    w.start_hub()
    w.committing = True
    w.until(lambda: w.of(link, NewEpoch))
    assert link.epoch == 2
    assert link.unacked_bytes == 0
    link.send(submit(1), "again")
    assert w.until(lambda: w.of(link, Acked)) == [Acked("again")]
    assert [event for event in w.events[link] if isinstance(event, Lost)]


def test_a_client_silent_for_a_minute_is_forgotten_and_comes_back_anew(w: World) -> None:
    link = w.up()
    events = w.events.pop(link)
    w.pass_time(10.0)
    assert w.said() == [PeerSilent()]
    w.pass_time(60.0)
    assert w.said() == [PeerSilent(), PeerGone()]
    w.events[link] = events
    w.until(lambda: w.of(link, NewEpoch), pace_s=0.125)
    assert link.epoch == 1


def test_an_agent_is_forgotten_only_when_the_controller_says_so(w: World) -> None:
    link = w.up("a1", "agent")
    events = w.events.pop(link)
    w.pass_time(100.0, step_s=2.0)
    assert w.said("a1") == [PeerSilent()]
    w.hub.send("a1", StartEngine(1))
    w.events[link] = events
    w.until(lambda: w.told(link), pace_s=0.125)
    assert PeerUp() in w.said("a1")
    w.hub.forget("a1")
    w.until(lambda: w.of(link, NewEpoch), pace_s=0.125)


def test_beats_keep_an_idle_conversation(w: World) -> None:
    link, agent = w.up("s1"), w.up("a1", "agent")
    w.pass_time(120.0)
    assert not w.events[link]
    assert not w.events[agent]
    assert not w.heard


def test_a_suspended_machine_expires_nobody(w: World) -> None:
    link, agent = w.up("s1"), w.up("a1", "agent")
    for _ in range(3):
        w.stall(30.0)
        w.pass_time(1.0)
    assert not w.events[link]
    assert not w.events[agent]
    assert not w.heard


def test_a_packet_that_is_lost_within_a_connection_is_sent_again(w: World, monkeypatch: pytest.MonkeyPatch) -> None:
    link = w.up()
    put = Link._put
    lost: list[bytes] = []

    def lossy(self: Link, frame: bytes) -> bool:
        if frame[0] == Kind.DATA and not lost:
            lost.append(frame)
            return True
        return put(self, frame)

    monkeypatch.setattr(Link, "_put", lossy)
    link.send(submit(1))
    w.turn()
    link.send(submit(2))
    w.until(lambda: not link.unacked_bytes)
    assert len(lost) == 1
    assert numbers(w.said()) == [1, 2]
    assert w.hub.rejected["gap"] >= 1


def test_reconnecting_leaks_no_descriptors(w: World) -> None:
    link = w.up()

    def descriptors() -> int:
        return len(os.listdir("/proc/self/fd"))

    def reconnect() -> None:
        w.events[link].clear()
        w.proxy.reset()
        w.until(lambda: w.of(link, Resumed), pace_s=0.025)

    for _ in range(3):
        reconnect()
    before = descriptors()
    for _ in range(20):
        reconnect()
    eventually(lambda: descriptors() <= before + 2)


# -------------------------------------------------------------------------------------------- how it is waited on


def readable(link: Link) -> bool:
    (fd,) = link.fds()
    return bool(select.select([fd], [], [], 0)[0])


def test_the_descriptor_tells_of_messages_and_then_is_quiet(w: World) -> None:
    link = w.up()
    (before,) = link.fds()
    w.until(lambda: not readable(link))
    del w.events[link]
    for n in range(3):
        w.hub.send("s1", Answer(n, Flag(True)))
        w.until(lambda: readable(link))
        events = link.step(w.now())
        assert [type(event).__name__ for event in events] == ["Received"]
        assert not readable(link)
        assert link.next_deadline() <= w.now() + wire.ACK_WITHIN_S
        link.step(link.next_deadline())
    w.events[link] = []
    w.proxy.reset()
    w.until(lambda: w.of(link, Resumed))
    assert link.fds() == [before]
    w.until(lambda: not readable(link))
    assert link.next_deadline() > w.now()


def test_an_asyncio_loop_can_wait_on_it(w: World) -> None:
    link = w.up()
    del w.events[link]

    async def wait() -> object:
        loop = asyncio.get_running_loop()
        told: asyncio.Future[object] = loop.create_future()

        def step() -> None:
            for event in link.step(time.monotonic()):
                if not told.done():
                    told.set_result(event)

        loop.add_reader(link.fds()[0], step)
        w.hub.send("s1", Answer(1, Flag(True)))
        w.hub.flush(time.monotonic())
        while not told.done():
            w.turn()
            await asyncio.sleep(0)
        loop.remove_reader(link.fds()[0])
        return told.result()

    assert type(asyncio.run(wait())).__name__ == "Received"
    w.events[link] = []


def test_the_hub_waits_for_other_descriptors_too(w: World) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert w.hub.poll(0.0, [ours.fileno()]) == set()
        theirs.send(b"x")
        assert w.hub.poll(5.0, [ours.fileno()]) == {ours.fileno()}


def test_a_step_takes_a_bounded_number_of_packets(w: World) -> None:
    link = w.up()
    del w.events[link]
    for n in range(300):
        w.hub.send("s1", Answer(n, Flag(True)))
        w.hub.flush(w.now())
    told: list[object] = []
    w.until(lambda: readable(link))

    def step() -> bool:
        told.extend(link.step(w.now()))
        return len(told) == 300

    eventually(step)
    assert link.next_deadline() > 0
    w.events[link] = []


# ------------------------------------------------------------------------------------------- who is turned away


def test_a_link_retries_until_there_is_a_farm(w: World) -> None:
    calls = 0

    def read() -> ConnectionInfo:
        nonlocal calls
        calls += 1
        if calls < 4:
            raise errors.FarmNotRunning("farm 'default' is not running: start it")
        return w.info()

    link = w.link(read=read)
    w.turn()
    assert link.problem == "farm 'default' is not running: start it"
    w.until(lambda: link.is_up, pace_s=0.025)


def test_retries_grow_rarer_and_bear_chance(w: World) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    dials: list[float] = []

    def read() -> ConnectionInfo:
        dials.append(w.now())
        return msgspec.structs.replace(w.info(), port=port)

    link = w.link(read=read)
    w.until(lambda: len(dials) >= 10, pace_s=0.05)
    pauses = [later - earlier for earlier, later in pairwise(dials)]
    assert pauses[0] < 0.3
    assert max(pauses) < 5.6
    assert pauses[-1] > 2.4
    assert "nothing listens there" in link.problem


def test_a_file_that_others_can_read_ends_the_link(w: World) -> None:
    def read() -> ConnectionInfo:
        raise errors.SecurityError("others can read x")

    assert refusal(w, w.link(read=read)) == Refuse("SecurityError", "others can read x")


def test_an_unknown_key_gets_no_handshake(w: World) -> None:
    link = w.link(read=lambda: w.info(pair=make_keypair()))
    w.until(lambda: w.of(link, Refused), pace_s=0.125)
    assert refusal(w, link).etype == "SecurityError"
    assert w.hub.rejected["unknown key"] == 3
    assert not w.heard


@pytest.mark.parametrize("how", ["null", "plain", "wrong server", "no zmq"])
def test_who_does_not_speak_curve_gets_no_handshake(w: World, how: str) -> None:
    if how == "no zmq":
        with socket.create_connection(("127.0.0.1", w.hub.port)) as plain:
            plain.sendall(b"GET / HTTP/1.0\r\n\r\n" * 10)
            plain.settimeout(0.01)
            w.until(lambda: _is_closed(plain))
    else:
        wrong_server = how == "wrong server"
        sock = w.raw(w.keys.client if wrong_server else None, server=make_keypair().public, connect=False)
        if how == "plain":
            sock.plain_username, sock.plain_password = b"u", b"p"
        assert "HANDSHAKE_SUCCEEDED" not in _events_until_closed(w, sock)
        assert not sock.poll(0)
    link = w.up("other")
    assert link.is_up
    assert not [peer for peer, _ in w.hub.peers() if peer.session != "other"]


def _events_until_closed(w: World, sock: zmq.Socket[bytes]) -> set[str]:
    """What ZeroMQ tells of a connection from its beginning to its end."""
    monitor = sock.get_monitor_socket()
    sock.connect(f"tcp://127.0.0.1:{w.hub.port}")
    with contextlib.suppress(zmq.Again):  # it is over already
        sock.send(wire.encode_handshake(hello()), zmq.NOBLOCK)
    seen: set[str] = set()

    def closed() -> bool:
        while monitor.poll(1):
            seen.add(zmq.Event(int.from_bytes(monitor.recv_multipart()[0][:2], "little")).name or "")
        return bool(seen & {"DISCONNECTED", "CLOSED"})

    w.until(closed)
    sock.disable_monitor()
    monitor.close(0)
    return seen


def _is_closed(sock: socket.socket) -> bool:
    try:
        return sock.recv(1000) == b""
    except TimeoutError:
        return False
    except OSError:
        return True


def hello(role: str = "client", session: str = "raw", **changes: object) -> Hello:
    greeting = Hello(PROTOCOL, "0.1.0", "3.11", role, session, None, 0, 0)
    return msgspec.structs.replace(greeting, **changes)


def greeted(w: World, pair: KeyPair, greeting: Hello | None = None) -> zmq.Socket[bytes]:
    sock = w.raw(pair)
    sock.send(wire.encode_handshake(greeting or hello()))
    assert isinstance(wire.decode_handshake(w.answer(sock)), Welcome)
    return sock


def data(number: int, content: bytes, ack: int = 0) -> bytes:
    return HEADER.pack(Kind.DATA, number, ack) + content


@pytest.mark.parametrize(
    ("key", "greeting", "etype", "text"),
    [
        ("client", hello("agent"), "SecurityError", "a client's key does not allow to be 'agent'"),
        ("reader", hello("agent"), "SecurityError", "a reader's key"),
        ("agent", hello("client"), "SecurityError", "a agent's key"),
        ("client", hello(farm="another"), "FarmReplaced", "farm 'default' is another one"),
        ("client", hello(protocol=99, version="9.9"), "VersionMismatch", "0.1.0 .protocol 1.*9.9 .protocol 99"),
        ("client", hello(session=""), "SecurityError", "no greeting"),
        ("client", hello(session="x" * 65), "SecurityError", "no greeting"),
    ],
)
def test_a_greeting_that_does_not_fit_is_refused(w: World, key: str, greeting: Hello, etype: str, text: str) -> None:
    sock = w.raw(w.keys.peers()[key])
    sock.send(wire.encode_handshake(greeting))
    refuse = wire.decode_handshake(w.answer(sock))
    assert isinstance(refuse, Refuse)
    assert refuse.etype == etype
    assert re.search(text, refuse.text), refuse.text
    assert not w.hub.peers()
    assert sum(w.hub.rejected.values()) == 1


def test_a_hello_of_a_far_future_is_understood_as_such(w: World) -> None:
    sock = w.raw(w.keys.client)
    future = {"type": "Hello", "protocol": 7, "version": "5.0", "role": ["x"], "more": {"a": 1}}
    sock.send(HEADER.pack(Kind.HANDSHAKE, 0, 0) + msgspec.msgpack.encode(future))
    refuse = wire.decode_handshake(w.answer(sock))
    assert isinstance(refuse, Refuse)
    assert "5.0 (protocol 7)" in refuse.text
    assert wire.own_version() in refuse.text


def test_a_link_to_a_controller_of_another_version_ends_with_both_named(w: World) -> None:
    link = w.link(read=lambda: msgspec.structs.replace(w.info(), protocol=2, version="2.0"))
    refuse = refusal(w, link)
    assert refuse.etype == "VersionMismatch"
    assert "2.0 (protocol 2)" in refuse.text
    assert wire.own_version() in refuse.text


def test_a_farm_that_was_replaced_ends_the_link(w: World) -> None:
    link = w.up()
    w.hub.close()
    w.incarnation = "farm-2"
    w.start_hub()
    assert refusal(w, link).etype == "FarmReplaced"


def test_a_farm_that_was_replaced_behind_an_old_file_ends_the_link(w: World) -> None:
    link = w.link(read=lambda: msgspec.structs.replace(w.info(), incarnation="farm-0"), farm="farm-0")
    assert refusal(w, link).etype == "FarmReplaced"


def test_a_client_key_cannot_say_what_agents_say(w: World) -> None:
    sock = greeted(w, w.keys.client)
    w.heard.clear()
    sock.send(data(1, body(AGENT_STATE)))
    refuse = wire.decode_handshake(w.answer(sock))
    assert refuse == Refuse("SecurityError", "a key for the role client does not allow to send AgentState")
    assert not w.heard
    sock.send(data(2, body(NeedIds())))
    assert wire.decode_handshake(w.answer(sock)) == WhoAreYou()


def test_a_session_cannot_be_taken_over_by_another_key(w: World) -> None:
    link = w.up("s1")
    sock = w.raw(w.keys.reader)
    sock.send(wire.encode_handshake(hello(session="s1")))
    refuse = wire.decode_handshake(w.answer(sock))
    assert isinstance(refuse, Refuse)
    assert "another key" in refuse.text
    link.send(NeedIds())
    w.until(lambda: w.said() == [NeedIds()])


def test_a_read_only_key_may_ask_and_nothing_else(w: World) -> None:
    link = w.up("s1", key="reader")
    link.send(Ask(1, QueueStatus()))
    link.send(Ask(2, Hold()))
    w.until(lambda: w.told(link))
    assert w.said() == [Ask(1, QueueStatus())]
    ((peer, _),) = w.hub.peers()
    assert peer.read_only
    text = "this connection's key is read-only: it does not allow Hold"
    assert w.told(link) == [Answer(2, Refusal("SecurityError", text))]
    link.send(submit(1))
    assert refusal(w, link).etype == "SecurityError"
    assert numbers(w.said()) == []


def test_an_unknown_connection_is_asked_who_it_is(w: World) -> None:
    sock = w.raw(w.keys.client)
    sock.send(data(1, body(NeedIds())))
    assert wire.decode_handshake(w.answer(sock)) == WhoAreYou()
    assert not w.heard


BAD = {
    "an empty frame": [b""],
    "a short frame": [b"abc"],
    "an unknown kind": [HEADER.pack(200, 1, 0)],
    "an unreadable body": [data(1, b"\xc1\xff")],
    "no list": [data(1, msgspec.msgpack.encode({"a": 1}))],
    "a list that ends early": [data(1, b"\xdd\xff\xff\xff\xff")],
    "a deep one": [data(1, b"\x91" * 200_000)],
    "an unknown message": [data(1, msgspec.msgpack.encode([{"type": "Nonsense"}]))],
    "wrong types": [data(1, msgspec.msgpack.encode([{"type": "Ask", "n": "x"}]))],
    "an ack of what was never sent": [data(1, body(NeedIds()), ack=77)],
    "the far future": [data(1 << 60, body(NeedIds()))],
    "no greeting": [HEADER.pack(Kind.HANDSHAKE, 0, 0) + b"\xc1"],
    "a welcome": [wire.encode_handshake(Welcome("f", "n", 1, 0, "v"))],
    "pieces without an end": [HEADER.pack(Kind.PART, 1, 0) + b"\xdd" * 100_000],
    "many parts": [b"x"] * 100_000,
    "huge": [b"x" * (8 << 20)],
}


@pytest.mark.parametrize("name", BAD)
def test_nonsense_is_turned_away_and_the_hub_goes_on(w: World, name: str) -> None:
    link = w.up("good")
    sock = greeted(w, w.keys.client)
    w.heard.clear()
    sock.send_multipart(BAD[name])
    link.send(NeedIds())
    w.until(lambda: w.said("good") == [NeedIds()])
    if name not in (
        "huge",
        "pieces without an end",
    ):  # libzmq cut the first off; the second is waited for, within bounds
        w.until(lambda: sum(w.hub.rejected.values()) == 1)
    w.pass_time(0.2)
    assert not w.said("raw")
    link.send(NeedIds())
    w.until(lambda: w.said("good") == [NeedIds()] * 2)


def test_a_link_that_hears_nonsense_of_its_controller_ends(w: World) -> None:
    link = w.up()
    state = w.hub._states["s1"]
    state.session.say(msgspec.msgpack.encode({"type": "FromTheFuture"}))
    w.hub.send("s1", Answer(1, Flag(True)))
    refuse = refusal(w, link)
    assert refuse.etype == "VersionMismatch"
    assert "FromTheFuture" in refuse.text


def test_a_taken_port_is_named(w: World) -> None:
    with pytest.raises(errors.ConnectionError, match=rf"cannot listen on 127\.0\.0\.1:{w.hub.port}: Address .* in use"):
        Hub("127.0.0.1", w.hub.port, w.keys, "f", "default", 1)
    with pytest.raises(errors.ConnectionError, match="cannot listen on 192"):
        Hub("192.0.2.1", 0, w.keys, "f", "default", 1)


def test_only_the_address_asked_for_is_listened_on(w: World) -> None:
    with socket.socket() as other, pytest.raises(OSError, match="refused"):
        other.connect(("127.0.0.2", w.hub.port))
    assert f":{w.hub.port:04X} " in Path("/proc/net/tcp").read_text()
