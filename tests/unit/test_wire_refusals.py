"""Test refused connections: wrong keys, roles, versions and farms, and all kinds of nonsense."""

from __future__ import annotations

import contextlib
import errno
import re
import socket
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import zmq

from ipytaskfarm.core import errors
from ipytaskfarm.core.messages import (
    PROTOCOL,
    Answer,
    AskQuestion,
    FlagReply,
    HoldFarm,
    NeedIds,
    Outputs,
    QueueStatus,
    Refusal,
)
from ipytaskfarm.core.scheduler import scheduler
from ipytaskfarm.deployment.start_errors import EXIT_ADDRESS, refusal_of
from ipytaskfarm.system.farm_paths import ConnectionInfo
from ipytaskfarm.transport import curve_listener, read_only, wire
from ipytaskfarm.transport.curve_listener import CurveListener, why_not_listening
from ipytaskfarm.transport.handshake import Hello, Refuse, Welcome, WhoAreYou
from ipytaskfarm.transport.hub import Hub
from ipytaskfarm.transport.keys import KeyPair, make_keypair
from ipytaskfarm.transport.peer import Link, Refused
from ipytaskfarm.transport.reliable_session import CLIENT_MESSAGE_BYTES, HEADER, PACKET_BYTES, PacketKind
from tests.support.wire_world import AGENT_STATE, World, body, hello, numbers, submit, world


@pytest.fixture
def w() -> Iterator[World]:
    with world() as it:
        yield it


def refusal(w: World, link: Link) -> Refuse:
    """The refusal with which a link ended."""
    (event,) = w.until(lambda: w.of(link, Refused))
    assert not link.is_up
    assert link.next_deadline() == float("inf")
    return event.refuse


def test_a_file_that_others_can_read_ends_the_link(w: World) -> None:
    def read() -> ConnectionInfo:
        raise errors.SecurityError("others can read x")

    assert refusal(w, w.link(read=read)) == Refuse("SecurityError", "others can read x")


GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x01" + b"CURVE".ljust(20, b"\0") + bytes(32)
"""ZMTP's first 64 bytes."""


def test_connections_that_say_no_hello_make_room_for_newer_ones(w: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that has no key announces a large frame: ZeroMQ takes the memory for it."""
    monkeypatch.setattr(curve_listener, "SILENT_MAX", 3)
    before = w.up("before")
    with contextlib.ExitStack() as stack:
        silent = [stack.enter_context(socket.create_connection(("127.0.0.1", w.hub.port))) for _ in range(6)]
        for each in silent:
            each.setblocking(False)
            each.send(GREETING + b"\x06" + (200_000).to_bytes(8, "big") + bytes(1000))
        assert w.until(lambda: w.hub.rejected["silent connection"] >= 3)
        w.until(lambda: [is_cut(each) for each in silent] == [True] * 3 + [False] * 3)
        after = w.up("after")
        assert before.is_up
        assert after.is_up
    w.until(lambda: not listener_of(w.hub)._silent._fds)


def is_cut(connection: socket.socket) -> bool:
    try:
        while connection.recv(4096):
            pass
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True


def listener_of(hub: Hub) -> CurveListener:
    return hub._curve


def test_an_unknown_key_gets_no_handshake(w: World) -> None:
    link = w.link(read=lambda: w.info(pair=make_keypair()))
    w.until(lambda: w.of(link, Refused), pace_s=0.125)
    assert refusal(w, link).etype == "SecurityError"
    assert w.hub.rejected["unknown key"] >= 3
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
    """Return ZeroMQ's events of a connection from its beginning to its end."""
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


def greeted(w: World, pair: KeyPair, greeting: Hello | None = None) -> zmq.Socket[bytes]:
    sock = w.raw(pair)
    sock.send(wire.encode_handshake(greeting or hello()))
    assert isinstance(wire.decode_handshake(w.answer(sock)), Welcome)
    return sock


def data(number: int, content: bytes, ack: int = 0) -> bytes:
    return HEADER.pack(PacketKind.DATA, number, ack) + content


@pytest.mark.parametrize(
    ("key", "greeting", "etype", "text"),
    [
        ("client", hello("agent"), "SecurityError", "a key of client does not allow to be 'agent'"),
        ("reader", hello("agent"), "SecurityError", "a key of reader"),
        ("agent", hello("client"), "SecurityError", "a key of agent"),
        ("client", hello(farm="another"), "FarmReplaced", "farm 'default' is another one"),
        (
            "client",
            hello(protocol=99, version="9.9"),
            "VersionMismatch",
            f"0.1.0 .protocol {PROTOCOL}.*9.9 .protocol 99",
        ),
        ("client", hello(session=""), "SecurityError", "no greeting"),
        ("client", hello(session="x" * 161), "SecurityError", "no greeting"),
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
    future = {"type": "Hello", "protocol": 99, "version": "5.0", "role": ["x"], "more": {"a": 1}}
    sock.send(HEADER.pack(PacketKind.HANDSHAKE, 0, 0) + msgspec.msgpack.encode(future))
    refuse = wire.decode_handshake(w.answer(sock))
    assert isinstance(refuse, Refuse)
    assert "5.0 (protocol 99)" in refuse.text
    assert wire.own_version() in refuse.text


def test_a_link_to_a_controller_of_another_version_ends_with_both_named(w: World) -> None:
    link = w.link(read=lambda: msgspec.structs.replace(w.info(), protocol=PROTOCOL + 1, version="2.0"))
    refuse = refusal(w, link)
    assert refuse.etype == "VersionMismatch"
    assert f"2.0 (protocol {PROTOCOL + 1})" in refuse.text
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


def test_a_client_whose_message_is_too_large_for_one_commit_is_refused(w: World) -> None:
    sock = greeted(w, w.keys.client)
    for number in range(1, CLIENT_MESSAGE_BYTES // PACKET_BYTES + 2):
        sock.send(HEADER.pack(PacketKind.PART, number, 0) + bytes(PACKET_BYTES))
        w.turn()
    while (frame := w.answer(sock))[0] == PacketKind.BEAT:
        pass
    refuse = wire.decode_handshake(frame)
    assert isinstance(refuse, Refuse)
    assert refuse.etype == "SecurityError"


def test_a_session_cannot_be_taken_over_by_another_key(w: World) -> None:
    link = w.up("s1")
    sock = w.raw(w.keys.reader)
    sock.send(wire.encode_handshake(hello(session="s1")))
    refuse = wire.decode_handshake(w.answer(sock))
    assert isinstance(refuse, Refuse)
    assert "does not allow to speak for the session 's1'" in refuse.text
    link.send(NeedIds())
    w.until(lambda: w.said() == [NeedIds()])


def test_a_read_only_key_may_ask_and_nothing_else(w: World) -> None:
    link = w.up("s1", key="reader")
    assert [peer.session for peer, _ in w.hub.peers()] == ["reader:s1"]
    link.send(AskQuestion(1, QueueStatus()))
    link.send(AskQuestion(2, HoldFarm()))
    w.until(lambda: w.told(link))
    assert w.said("reader:s1") == [AskQuestion(1, QueueStatus())]
    ((peer, _),) = w.hub.peers()
    assert peer.read_only
    text = (
        "this connection's key is read-only: it does not allow HoldFarm; `ipytaskfarm keys add --client` makes another"
    )
    assert w.told(link) == [Answer(2, Refusal("SecurityError", text))]
    link.send(submit(1))
    assert refusal(w, link).etype == "SecurityError"
    assert numbers(w.said()) == []


def test_a_read_only_key_may_ask_all_questions_that_change_nothing() -> None:
    assert set(scheduler.READ_ONLY) <= set(read_only.READ_ONLY)


def test_a_read_only_key_may_look_at_the_output_of_a_few_tasks() -> None:
    assert not read_only.why_refused(AskQuestion(1, Outputs.latest(7)))
    for question in (Outputs(None), Outputs(list(range(1000)))):
        assert "read-only" in read_only.why_refused(AskQuestion(1, question))


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
    "no greeting": [HEADER.pack(PacketKind.HANDSHAKE, 0, 0) + b"\xc1"],
    "a welcome": [wire.encode_handshake(Welcome("f", "n", 1, 0, "v"))],
    "pieces without an end": [HEADER.pack(PacketKind.PART, 1, 0) + b"\xdd" * 100_000],
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
    w.hub.send("s1", Answer(1, FlagReply(True)))
    refuse = refusal(w, link)
    assert refuse.etype == "VersionMismatch"
    assert "FromTheFuture" in refuse.text


def test_a_taken_port_is_named(w: World) -> None:
    with pytest.raises(errors.ConnectionError, match=rf"cannot listen on 127\.0\.0\.1:{w.hub.port}: Address .* in use"):
        Hub("127.0.0.1", w.hub.port, w.keys, "f", "default", 1)
    with pytest.raises(errors.ConnectionError, match="cannot listen on 192"):
        Hub("192.0.2.1", 0, w.keys, "f", "default", 1)


def test_a_want_of_descriptors_is_not_blamed_on_the_port() -> None:
    """`ulimit -n 20` led to the advice to choose another port."""
    text = why_not_listening("f", "127.0.0.1", 0, zmq.ZMQError(errno.EMFILE))
    assert text == "farm 'f' cannot listen on 127.0.0.1:0: Too many open files"
    assert "raise the limit of open files, `ulimit -n`" in str(refusal_of(EXIT_ADDRESS, f"a line before\n{text}"))
    assert isinstance(refusal_of(EXIT_ADDRESS, text), errors.ConnectionError)
    assert "choose another port" in why_not_listening("f", "127.0.0.1", 80, zmq.ZMQError(errno.EACCES))


def test_only_the_address_asked_for_is_listened_on(w: World) -> None:
    with socket.socket() as other, pytest.raises(OSError, match="refused"):
        other.connect(("127.0.0.2", w.hub.port))
    assert f":{w.hub.port:04X} " in Path("/proc/net/tcp").read_text()
