"""A hub, its links, and a proxy with faults, all driven in one thread by a clock that tests set.

The tests of the transport share it.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import struct
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import msgspec
import zmq

from ipytaskfarm import __version__
from ipytaskfarm.core.limits import PeerLimits
from ipytaskfarm.core.messages import PROTOCOL, AgentState, Submit
from ipytaskfarm.core.messages.task_types import Submission
from ipytaskfarm.system.farm_paths import ConnectionInfo
from ipytaskfarm.transport.handshake import Hello
from ipytaskfarm.transport.hub import Hub
from ipytaskfarm.transport.hub_session import Incoming, Peer
from ipytaskfarm.transport.keys import FarmKeys, KeyPair, make_farm_keys
from ipytaskfarm.transport.peer import Link, LinkEvent, ReceivedMessage
from tests.support.polling import DEADLINE_S, eventually

T = TypeVar("T")
AGENT_STATE = AgentState("node", 1, 2, 3, "linux", "3.11", [])


def submit(number: int, size: int = 10) -> Submit:
    """Return a message with one task."""
    return Submit([Submission(number, b"x" * size, 1.0)])


def numbers(messages: list[object]) -> list[int]:
    """Return the ids of the tasks in messages of `submit`."""
    return [message.tasks[0].id for message in messages if isinstance(message, Submit)]


def hello(role: str = "client", session: str = "raw", **changes: object) -> Hello:
    """Return a greeting."""
    greeting = Hello(PROTOCOL, "0.1.0", "3.11", role, session, None, 0, 0)
    return msgspec.structs.replace(greeting, **changes)


class Proxy:
    """Forwards connections by TCP or by unix socket; it can reset all of them, swallow one direction, and stop
    answering.
    """

    def __init__(self, port: int, path: Path | None = None, target: Path | None = None) -> None:
        """Forward to a port of this machine, or what comes to the socket file `path` to the socket file `target`."""
        self._port = port
        self._target = target
        self._selector = selectors.DefaultSelector()
        self._listener = socket.create_server(("127.0.0.1", 0)) if path is None else socket.socket(socket.AF_UNIX)
        if path is not None:
            self._listener.bind(str(path))
            self._listener.listen()
        self._listener.setblocking(False)
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._pairs: dict[socket.socket, tuple[socket.socket, bool]] = {}
        self._waiting: dict[socket.socket, bytearray] = {}
        self.port: int = self._listener.getsockname()[1] if path is None else 0
        self.swallow_up = False
        """Whether packets from peers are lost without notice."""
        self.swallow_down = False
        self.halves = False
        """Whether only the first half of what peers send at once is forwarded."""
        self.accepted = 0

    def turn(self) -> None:
        for key, _ in self._selector.select(0):
            sock = key.fileobj
            assert isinstance(sock, socket.socket)
            if sock is self._listener:
                self._accept()
            elif sock in self._pairs:
                self._forward(sock)
        for sock in list(self._waiting):
            self._write(sock)

    def _accept(self) -> None:
        inner, _ = self._listener.accept()
        if self._target is None:
            outer = socket.create_connection(("127.0.0.1", self._port))
            for sock in (inner, outer):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        else:
            outer = socket.socket(socket.AF_UNIX)
            outer.connect(str(self._target))
        self.accepted += 1
        for sock, other, up in ((inner, outer, True), (outer, inner, False)):
            sock.setblocking(False)
            self._pairs[sock] = (other, up)
            self._waiting[sock] = bytearray()
            self._selector.register(sock, selectors.EVENT_READ)

    def _forward(self, sock: socket.socket) -> None:
        other, up = self._pairs[sock]
        try:
            data = sock.recv(1 << 16)
        except OSError:
            data = b""
        if not data:
            self._close(sock)
        elif not (self.swallow_up if up else self.swallow_down):
            self._waiting[other] += data[: len(data) // 2] if self.halves and up else data

    def _write(self, sock: socket.socket) -> None:
        waiting = self._waiting.get(sock)
        if waiting:
            with contextlib.suppress(OSError):
                del waiting[: sock.send(waiting)]

    def _close(self, sock: socket.socket) -> None:
        other, _ = self._pairs[sock]
        for one in (sock, other):
            self._selector.unregister(one)
            del self._pairs[one], self._waiting[one]
            one.close()

    def reset(self) -> None:
        """Reset every connection with RST; packets on their way are lost."""
        while self._pairs:
            sock, (other, _) = next(iter(self._pairs.items()))
            for one in (sock, other):
                one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self._close(sock)

    def close(self) -> None:
        self.reset()
        self._selector.close()
        self._listener.close()


class World:
    """All of it. `turn` is one turn of everybody's loop.

    Args:
        by_unix: whether the links use unix sockets. TCP then leads nowhere.
        limits: the bounds of what peers may hold.
    """

    def __init__(self, by_unix: bool = False, limits: PeerLimits | None = None) -> None:
        self.limits = limits
        self._folder = tempfile.TemporaryDirectory(prefix="itf-", dir="/tmp")
        folder = Path(self._folder.name)
        self.socket_path = folder / "controller.sock" if by_unix else None
        self._proxy_path = folder / "proxy.sock" if by_unix else None
        self.keys: FarmKeys = make_farm_keys()
        self._offset_s = 0.0
        self._on_the_way = 0
        self.epoch = 0
        self.committing = True
        self.heard: list[tuple[Peer, Incoming]] = []
        self.events: dict[Link, list[LinkEvent]] = {}
        self.incarnation = "farm-1"
        self.hub = self.start_hub(0)
        self.proxy = Proxy(self.hub.port, self._proxy_path, self.socket_path)
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._raw: list[zmq.Socket[bytes]] = []

    def now(self) -> float:
        return time.monotonic() + self._offset_s

    def start_hub(self, port: int | None = None) -> Hub:
        """The next life of the controller."""
        self.epoch += 1
        port = self.hub.port if port is None else port
        self.hub = Hub(
            "127.0.0.1", port, self.keys, self.incarnation, "default", self.epoch, clock=self.now,
            socket_path=self.socket_path, limits=self.limits,
        )  # fmt: skip
        self._count(self.hub, "_put", 1)
        self._count(self.hub, "_on_frame", -1)
        return self.hub

    def info(self, role: str = "client", *, direct: bool = False, pair: KeyPair | None = None) -> ConnectionInfo:
        pair = pair or self.keys.peers()[role]
        return ConnectionInfo(
            farm="default", incarnation=self.incarnation, host="127.0.0.1",
            port=self.hub.port if direct else self.proxy.port or 1, server_key=self.keys.server.public,
            public_key=pair.public, secret_key=pair.secret, role=role, controller_pid=1, controller_started=1.0,
            version=__version__, protocol=PROTOCOL,
            socket=str((self.socket_path if direct else self._proxy_path) or ""),
        )  # fmt: skip

    def link(
        self,
        session: str = "s1",
        role: str = "client",
        *,
        key: str | None = None,
        read: Callable[[], ConnectionInfo] | None = None,
        farm: str | None = None,
    ) -> Link:
        link = Link(read or (lambda: self.info(key or role)), role, session, "tester", farm=farm)
        self._count(link, "_put", 1)
        self._count(link, "_on_frame", -1)
        self.events[link] = []
        return link

    def up(self, session: str = "s1", role: str = "client", *, key: str | None = None) -> Link:
        """A link that is connected, with the events so far forgotten."""
        link = self.link(session, role, key=key)
        # The hub must have received something since, or a cut now would begin a new epoch.
        name = f"reader:{session}" if key == "reader" else session
        self.until(lambda: link.is_up and self.hub._states[name].session._proven)
        self.events[link].clear()
        self.heard.clear()
        return link

    def _count(self, who: Link | Hub, method: str, by: int) -> None:
        """Know how many frames are on the way: how long they take is the machine's affair, not the clock's."""
        call = getattr(who, method)

        def counted(*arguments: object) -> object:
            result = call(*arguments)
            self._on_the_way += by if result is not False else 0
            return result

        setattr(who, method, counted)

    def turn(self) -> None:
        for link, events in self.events.items():
            events += link.step(self.now())
        self.proxy.turn()
        self.hub.poll(0.0005)
        self.proxy.turn()
        self.heard += self.hub.receive()
        if self.committing:
            self.hub.flush(self.now())

    def until(self, predicate: Callable[[], T], timeout_s: float = DEADLINE_S, *, pace_s: float = 0.0) -> T:
        """Run turns until a condition holds; pace_s: seconds that pass in each turn while no link connects."""
        patient_until = 0.0

        def turned() -> T:
            nonlocal patient_until
            if not any(link._connection is not None and not link.is_up for link in self.events):
                patient_until = time.monotonic() + 0.5
                self._offset_s += pace_s
            elif time.monotonic() > patient_until:
                self._offset_s += pace_s
            self.turn()
            return predicate()

        return eventually(turned, timeout_s, every_s=0.0, what="the wire")

    def pass_time(self, seconds: float, *, step_s: float = 0.5) -> None:
        """Let time pass in steps, with turns of all loops."""
        while seconds > 0:
            self._offset_s += min(step_s, seconds)
            seconds -= step_s
            self._settle()

    def _settle(self) -> None:
        """Run turns until all packets have arrived or are lost."""
        deadline = time.monotonic() + 0.1
        for _ in range(4):
            self.turn()
        while self._on_the_way and time.monotonic() < deadline:
            self.turn()
        self._on_the_way = 0

    def stall(self, seconds: float) -> None:
        """Let time pass without any turn, like a suspended machine."""
        self._offset_s += seconds

    def said(self, session: str = "s1") -> list[object]:
        """Return the messages that the hub received from a session."""
        return [what for peer, what in self.heard if peer.session == session]

    def told(self, link: Link) -> list[object]:
        """The messages that a link received."""
        return [event.message for event in self.events[link] if isinstance(event, ReceivedMessage)]

    def of(self, link: Link, kind: type[T]) -> list[T]:
        """A link's events of one kind."""
        return [event for event in self.events[link] if isinstance(event, kind)]

    def raw(self, pair: KeyPair | None, *, server: str | None = None, connect: bool = True) -> zmq.Socket[bytes]:
        """A peer's socket without a link: for those who do as they please."""
        sock = bare_socket(self.context, pair, server or self.keys.server.public)
        self._raw.append(sock)
        if connect:
            sock.connect(f"tcp://127.0.0.1:{self.hub.port}")
        return sock

    def answer(self, sock: zmq.Socket[bytes]) -> bytes:
        """The next frame that a raw socket gets."""
        assert self.until(lambda: sock.poll(0))
        return sock.recv()

    def close(self) -> None:
        for link in self.events:
            link.close()
        self.hub.close()
        self.proxy.close()
        for sock in self._raw:
            sock.close()
        self.context.destroy(linger=0)
        self._folder.cleanup()


@contextlib.contextmanager
def world(by_unix: bool = False, limits: PeerLimits | None = None) -> Iterator[World]:
    it = World(by_unix, limits)
    try:
        yield it
    finally:
        it.close()


def body(*messages: object) -> bytes:
    """Return messages encoded like the body of a packet."""
    return msgspec.msgpack.encode(list(messages))


def bare_socket(context: zmq.Context[zmq.Socket[bytes]], pair: KeyPair | None, server: str) -> zmq.Socket[bytes]:
    """Return a peer's socket with these keys that is not connected yet and never reconnects; None: without keys."""
    sock = context.socket(zmq.DEALER)
    sock.linger = 0
    sock.reconnect_ivl = -1
    if pair is not None:
        sock.curve_publickey, sock.curve_secretkey = pair.public.encode(), pair.secret.encode()
        sock.curve_serverkey = server.encode()
    return sock
