"""The controller's unix socket: who is let in, what happens when it is gone, peers that break off or do not read."""

from __future__ import annotations

import os
import shutil
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from ipytaskfarm.core.messages import Answer, NeedIds, TextReply
from ipytaskfarm.system.farm_paths import ConnectionInfo
from ipytaskfarm.transport import frame_stream, unix_listener
from ipytaskfarm.transport.frame_stream import FrameStream, StreamBroken
from ipytaskfarm.transport.hub import Hub
from ipytaskfarm.transport.hub_session import PeerUp
from ipytaskfarm.transport.key_challenge import answer_challenge
from ipytaskfarm.transport.keys import KeyPair, make_farm_keys
from ipytaskfarm.transport.peer import Acked, Lost, Refused, Resumed
from ipytaskfarm.transport.unix_connection import UnixConnection
from ipytaskfarm.transport.unix_listener import UnixListener
from tests.support.wire_world import World, world

NOBODY = 65534


@pytest.fixture
def w() -> Iterator[World]:
    with world(by_unix=True) as it:
        yield it


def path_of(w: World) -> Path:
    assert w.socket_path is not None
    return w.socket_path


def listener_of(hub: Hub) -> UnixListener:
    assert hub._unix is not None
    return hub._unix


def by_tcp_too(w: World, role: str = "client", pair: KeyPair | None = None) -> ConnectionInfo:
    """A connection file with both ways, without the proxy."""
    return w.info(role, direct=True, pair=pair)


def dial(w: World) -> socket.socket:
    """A connection that has proven nothing."""
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(str(path_of(w)))
    sock.setblocking(False)
    return sock


def next_frame(w: World, stream: FrameStream) -> bytes:
    frame = w.until(stream.receive)
    assert frame is not None
    return bytes(frame)


def is_cut(stream: FrameStream) -> bool:
    try:
        stream.receive()
    except StreamBroken:
        return True
    return False


# ------------------------------------------------------------------------------------------- who is let in


def test_the_socket_is_closed_to_others(w: World) -> None:
    assert path_of(w).stat().st_mode & 0o777 == 0o600
    assert path_of(w).parent.stat().st_mode & 0o777 == 0o700


TRY = """
import socket, sys
sock = socket.socket(socket.AF_UNIX)
sock.settimeout(10)
try:
    sock.connect(sys.argv[1])
except PermissionError:
    print("no permission")
else:
    print("cut" if not sock.recv(100) else "let in")
"""


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("setpriv") is None, reason="a second user needs root and setpriv")
def test_a_second_user_is_refused_by_the_folder_and_by_the_kernels_word(w: World) -> None:
    def tried() -> str:
        command = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
        child = subprocess.Popen(
            [*command, sys.executable, "-I", "-c", TRY, str(path_of(w))], stdout=subprocess.PIPE, text=True, cwd="/"
        )
        w.until(lambda: child.poll() is not None, 20.0)
        return child.communicate()[0].strip()

    assert tried() == "no permission"
    # Somebody has opened the folder and the socket: the kernel still says who is there.
    path_of(w).parent.chmod(0o711)
    path_of(w).chmod(0o666)
    assert tried() == "cut"
    assert w.hub.rejected["another user"] == 1
    assert not w.hub.peers()
    assert not listener_of(w.hub)._by_fd


@pytest.mark.parametrize("answer", ["nothing of the kind", "unknown key", "wrong secret", "another challenge", "early"])
def test_without_a_proof_of_a_key_nothing_is_let_in(w: World, answer: str) -> None:
    stream = FrameStream(dial(w), 1000)
    challenge = next_frame(w, stream)
    known, other, server = w.keys.client, make_farm_keys().client, w.keys.server.public
    frames = {
        "nothing of the kind": b"x" * 104,
        "unknown key": answer_challenge(challenge, server, other.public, other.secret)[0],
        "wrong secret": answer_challenge(challenge, server, known.public, other.secret)[0],
        "another challenge": answer_challenge(
            challenge[:-1] + bytes([challenge[-1] ^ 1]), server, known.public, known.secret
        )[0],
        "early": struct.pack("!BQQ", 3, 0, 0) + b"hello",
    }
    stream.send(frames[answer])
    w.until(lambda: is_cut(stream))
    assert w.hub.rejected["unknown key"] == 1
    assert not w.heard
    stream.close()


def test_a_peer_that_proves_nothing_is_cut_in_time_and_makes_room(w: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unix_listener, "UNPROVEN_MAX", 3)
    streams = [FrameStream(dial(w), 1000) for _ in range(4)]
    for stream in streams[1:]:
        next_frame(w, stream)
    w.until(lambda: is_cut(streams[0]))
    link = w.link(read=lambda: by_tcp_too(w))
    w.until(lambda: link.is_up)
    w.pass_time(6.0)
    for stream in streams[1:]:
        w.until(lambda stream=stream: is_cut(stream))  # type: ignore[misc]
    for stream in streams:
        stream.close()
    assert link.is_up
    assert len(listener_of(w.hub)._by_fd) == 1


def test_more_connections_than_there_are_places_come_by_tcp(w: World, monkeypatch: pytest.MonkeyPatch) -> None:
    w.up()
    monkeypatch.setattr(unix_listener, "CONNECTIONS_MAX", 1)
    link = w.link("s2", read=lambda: by_tcp_too(w))
    w.until(lambda: link.is_up, pace_s=0.05)
    assert w.hub.rejected["too many connections"] == 1
    assert len(w.hub.peers()) == 2


@pytest.mark.parametrize("kind", ["unknown", "of another farm"])
def test_a_peer_with_a_wrong_key_is_told_so(w: World, kind: str) -> None:
    other = make_farm_keys()

    def read() -> ConnectionInfo:
        info = by_tcp_too(w, pair=other.client)
        return info if kind == "unknown" else msgspec.structs.replace(info, server_key=other.server.public)

    link = w.link(read=read)
    if kind == "unknown":
        w.until(lambda: w.of(link, Refused), pace_s=0.05)
        assert "does not know the key" in w.of(link, Refused)[0].refuse.text
    else:
        w.until(lambda: "handshake" in link.problem, pace_s=0.05)
    assert not w.heard


def test_a_peer_does_not_trust_a_socket_that_is_not_the_farms(w: World) -> None:
    """Another farm's controller listens where the connection file says."""
    with world(by_unix=True) as stranger:
        link = w.link(read=lambda: msgspec.structs.replace(by_tcp_too(w), socket=str(path_of(stranger))))

        def up() -> bool:
            stranger.turn()
            return link.is_up

        w.until(up, pace_s=0.05)
        assert not stranger.heard
    assert w.until(w.hub.peers)


def test_a_role_holds_and_a_revoked_key_ends_a_session(w: World) -> None:
    reader = w.up("s1", key="reader")
    reader.send(NeedIds())
    w.until(lambda: w.of(reader, Refused), pace_s=0.05)
    assert w.hub.rejected["read-only key"] >= 1
    client = w.up("s2")
    fresh = make_farm_keys()
    w.keys = msgspec.structs.replace(w.keys, client=fresh.client)
    assert w.hub.rekey(w.keys)[0] == 1
    w.until(lambda: bool(w.of(client, Lost)) and bool(w.of(client, Resumed)), pace_s=0.05)


# -------------------------------------------------------------------------------- a socket file that is gone


def test_a_socket_file_that_is_gone_is_made_anew_and_tcp_stands_in(w: World) -> None:
    path_of(w).unlink()
    link = w.link(read=lambda: by_tcp_too(w))
    w.until(lambda: link.is_up)
    assert not listener_of(w.hub)._by_fd
    w.pass_time(2.0)
    assert path_of(w).is_socket()
    second = w.link("s2", read=lambda: by_tcp_too(w))
    w.until(lambda: second.is_up)
    assert len(listener_of(w.hub)._by_fd) == 1


def test_without_its_folder_the_controller_goes_on_by_tcp(w: World) -> None:
    moved = path_of(w).parent.with_name(f"{path_of(w).parent.name}-moved")
    path_of(w).parent.rename(moved)
    w.pass_time(2.0)
    link = w.link(read=lambda: by_tcp_too(w))
    w.until(lambda: link.is_up)
    moved.rename(path_of(w).parent)
    w.pass_time(2.0)
    second = w.link("s2", read=lambda: by_tcp_too(w))
    w.until(lambda: second.is_up)
    assert len(listener_of(w.hub)._by_fd) == 1


def test_a_dead_controllers_file_leads_to_tcp_and_the_next_one_takes_it_over(w: World) -> None:
    path = path_of(w)
    w.hub.close()
    assert not path.exists()
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    path.chmod(0o600)
    w.start_hub()
    link = w.link(read=lambda: by_tcp_too(w))
    w.until(lambda: link.is_up)
    assert len(listener_of(w.hub)._by_fd) == 1


# ------------------------------------------------------------------- peers that break off, and that do not read


def proven(w: World, session: str = "s1") -> FrameStream:
    """A connection under the client's key, driven by hand."""
    stream = FrameStream(dial(w), 1 << 20)
    pair = w.keys.client
    answer, expected = answer_challenge(next_frame(w, stream), w.keys.server.public, pair.public, pair.secret)
    stream.send(answer)
    assert next_frame(w, stream) == expected
    return stream


def test_a_peer_killed_within_a_message_resumes_and_nothing_is_lost(w: World) -> None:
    link = w.up()
    for n in range(5):
        link.send(NeedIds(), n)
        w.proxy.halves = True
        w.turn()
        w.turn()
        w.proxy.halves = False
        assert w.said().count(NeedIds()) == n
        before = len(w.of(link, Resumed))
        w.proxy.reset()
        w.until(lambda before=before: len(w.of(link, Resumed)) > before, pace_s=0.05)  # type: ignore[misc]
        w.until(lambda n=n: w.said().count(NeedIds()) == n + 1)  # type: ignore[misc]
    w.until(lambda: len(w.of(link, Acked)) == 5)
    assert w.said().count(NeedIds()) == 5


def test_a_frame_that_never_ends_costs_its_own_connection_alone(w: World) -> None:
    other = w.up("s2")
    stream = proven(w)
    stream.sock.send(struct.pack("!I", 5000) + b"x" * 100)
    w.pass_time(1.0)
    assert other.is_up
    stream.sock.close()
    w.until(lambda: len(listener_of(w.hub)._by_fd) == 1)
    too_long = proven(w)
    too_long.sock.send(struct.pack("!I", 0xFFFFFFFF))
    w.until(lambda: is_cut(too_long))
    too_long.close()


def test_unfinished_frames_of_many_connections_are_bounded(w: World, monkeypatch: pytest.MonkeyPatch) -> None:
    other = w.up("s2")
    monkeypatch.setattr(unix_listener, "UNFINISHED_BYTES_MAX", 100_000)
    streams = [proven(w) for _ in range(4)]
    for stream in streams:
        stream.sock.send(struct.pack("!I", 200_000) + b"x" * 40_000)
        w.pass_time(0.1)
    for oldest in streams[:2]:
        w.until(lambda: is_cut(oldest))  # noqa: B023 - it is called at once
    assert not any(is_cut(stream) for stream in streams[2:])
    assert w.hub.rejected["too many unfinished bytes"] == 2
    assert other.is_up
    for stream in streams:
        stream.close()


def test_the_length_of_a_frame_takes_no_memory(w: World) -> None:
    stream = proven(w)
    stream.sock.send(struct.pack("!I", 200_000))
    w.pass_time(0.1)
    (connection,) = listener_of(w.hub)._by_number.values()
    large = connection.stream._large
    assert large is not None
    assert len(large) <= frame_stream.READ_BYTES
    stream.close()


def test_a_peer_that_does_not_read_holds_a_bounded_buffer_and_others_go_on(w: World) -> None:
    slow, other = w.up("slow"), w.up("other")
    reading = w.events.pop(slow)
    sent = 200
    for n in range(sent):
        w.hub.send("slow", Answer(n, TextReply("y" * (100 << 10))))
    w.turn()
    w.hub.send("other", Answer(1, TextReply("z")))
    w.until(lambda: w.told(other))
    queued = [connection.stream._out_bytes for connection in listener_of(w.hub)._by_number.values()]
    assert max(queued) <= frame_stream.OUT_BYTES + (512 << 10)
    w.events[slow] = reading
    w.until(lambda: len(w.told(slow)) == sent)
    assert [message.n for message in w.told(slow) if isinstance(message, Answer)] == list(range(sent))
    w.until(lambda: w.hub.backlog_bytes("slow") == 0)


def test_a_stream_keeps_frames_whole_however_they_are_cut() -> None:
    one, two = socket.socketpair()
    sender, receiver = FrameStream(one, 1 << 20), FrameStream(two, 1 << 20)
    frames = [bytes([n % 251]) * size for n, size in enumerate([0, 1, 3, 4, 70_000, 65_532, 65_536, 5, 1 << 20, 17])]
    got: list[bytes] = []
    for frame in frames:
        while not sender.send(frame):
            got += drained(receiver)
            sender.flush()
    while not sender.flush() or len(got) < len(frames):
        got += drained(receiver)
    assert got == frames
    sender.close()
    with pytest.raises(StreamBroken, match="cut"):
        drained(receiver)
    receiver.close()


def drained(stream: FrameStream) -> list[bytes]:
    found: list[bytes] = []
    while (frame := stream.receive()) is not None:
        found.append(bytes(frame))
    return found


def test_what_arrived_before_a_cut_is_read_although_something_is_still_to_be_sent(w: World) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    connection = UnixConnection(FrameStream(ours, 1 << 20), w.info())
    connection._proven = True
    while not connection.is_congested:
        assert connection.send(bytes(1 << 16))
    other = FrameStream(theirs, 1 << 20)
    assert other.send(b"why it ends")
    other.close()
    assert connection.receive() == b"why it ends"
    assert connection.failure() is None
    w.until(lambda: connection.receive() is None and connection.failure() is not None)
    connection.close(0)


def test_a_cut_by_unix_socket_is_seen_at_once_and_repaired(w: World) -> None:
    link = w.up()
    w.proxy.reset()
    w.until(lambda: w.of(link, Lost))
    w.until(lambda: PeerUp() in w.said(), pace_s=0.05)
    assert w.said().count(PeerUp()) == 1
