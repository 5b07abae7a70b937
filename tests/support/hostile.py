"""A hostile client: raw ZeroMQ sockets against a running farm, and the farm's state as seen from outside."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import psutil
import zmq
from msgspec import inspect

from ipytaskfarm import Farm
from ipytaskfarm.core.messages import Answer
from ipytaskfarm.system.farm_paths import ConnectionInfo, read_connection_file
from ipytaskfarm.transport import wire
from ipytaskfarm.transport.handshake import Handshake, Hello, Refuse, Welcome
from ipytaskfarm.transport.keys import FarmKeys, KeyPair, load_keys
from ipytaskfarm.transport.reliable_session import HEADER, PacketKind
from tests.support.polling import eventually
from tests.support.wire_world import bare_socket, hello

ANSWER_MS = 10_000


def data(number: int, *messages: object, ack: int = 0) -> bytes:
    """Return a packet with these messages; a str stands for an empty message of that kind."""
    plain = [{"type": message} if isinstance(message, str) else message for message in messages]
    return HEADER.pack(PacketKind.DATA, number, ack) + msgspec.msgpack.encode(plain)


def instance(kind: type, **given: object) -> Any:
    """A message of that kind with next to nothing in it."""
    info = inspect.type_info(kind)
    assert isinstance(info, inspect.StructType)
    return kind(**{field.name: _least(field.type) for field in info.fields if field.required} | given)


def _least(kind: inspect.Type) -> Any:
    match kind:
        case inspect.IntType() | inspect.FloatType():
            return 0
        case inspect.StrType():
            return ""
        case inspect.BytesType():
            return b""
        case inspect.BoolType():
            return False
        case inspect.ListType():
            return []
        case inspect.UnionType():
            return None if any(isinstance(each, inspect.NoneType) for each in kind.types) else _least(kind.types[0])
        case inspect.StructType():
            return instance(kind.cls)
    raise AssertionError(kind)


class Intruder:
    """Whoever can reach the farm's port."""

    def __init__(self, farm: Farm) -> None:
        self.info: ConnectionInfo = read_connection_file(farm.connection_file)
        self.keys = keys_of(farm)
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._sockets: list[zmq.Socket[bytes]] = []

    def socket(
        self, pair: KeyPair | None, *, server: str | None = None, port: int | None = None, connect: bool = True
    ) -> zmq.Socket[bytes]:
        sock = bare_socket(self._context, pair, server or self.keys.server.public)
        self._sockets.append(sock)
        if connect:
            sock.connect(f"tcp://127.0.0.1:{port or self.info.port}")
        return sock

    def greeted(self, pair: KeyPair, role: str = "client", session: str = "raw") -> zmq.Socket[bytes]:
        """A connection that was welcomed; the controller has heard the beat that says so."""
        sock = self.socket(pair)
        answer = self.greet(sock, hello(role, session))
        assert isinstance(answer, Welcome), answer
        sock.send(HEADER.pack(PacketKind.BEAT, 0, 0))
        return sock

    def greet(self, sock: zmq.Socket[bytes], greeting: Hello) -> Handshake:
        sock.send(wire.encode_handshake(greeting))
        return self.handshake(sock)

    def handshake(self, sock: zmq.Socket[bytes]) -> Handshake:
        """The next handshake on it; data and beats before it are passed over."""
        while True:
            frame = self.frame(sock)
            if frame[0] == PacketKind.HANDSHAKE:
                return wire.decode_handshake(frame)

    def refused(self, sock: zmq.Socket[bytes]) -> Refuse:
        answer = self.handshake(sock)
        assert isinstance(answer, Refuse), answer
        return answer

    def frame(self, sock: zmq.Socket[bytes]) -> bytes:
        assert sock.poll(ANSWER_MS), "the controller says nothing"
        return sock.recv()

    def messages(self, sock: zmq.Socket[bytes]) -> list[Any]:
        """Return the messages of the next packet."""
        pieces = b""
        while True:
            frame = self.frame(sock)
            if frame[0] in (PacketKind.PART, PacketKind.DATA):
                pieces += frame[HEADER.size :]
            if frame[0] == PacketKind.DATA:
                return list(wire.to_client().decode(pieces))

    def answer(self, sock: zmq.Socket[bytes]) -> Answer:
        """Return the next answer, past what the controller sends unasked to a session that follows the farm."""
        while True:
            for message in self.messages(sock):
                if isinstance(message, Answer):
                    return message

    def fate(self, sock: zmq.Socket[bytes]) -> set[str]:
        """Return ZeroMQ's events of a connection from its beginning to its end."""
        monitor = sock.get_monitor_socket()
        sock.connect(f"tcp://127.0.0.1:{self.info.port}")
        with contextlib.suppress(zmq.Again):
            sock.send(wire.encode_handshake(hello()), zmq.NOBLOCK)
        seen: set[str] = set()

        def closed() -> bool:
            while monitor.poll(5):
                seen.add(zmq.Event(int.from_bytes(monitor.recv_multipart()[0][:2], "little")).name or "")
            return bool(seen & {"DISCONNECTED", "CLOSED"})

        eventually(closed)
        assert not sock.poll(0)
        sock.disable_monitor()
        monitor.close(0)
        return seen

    def close(self) -> None:
        for sock in self._sockets:
            sock.close(0)
        self._context.destroy(linger=0)


@contextlib.contextmanager
def intruder(farm: Farm) -> Iterator[Intruder]:
    it = Intruder(farm)
    try:
        yield it
    finally:
        it.close()


def folder_of(farm: Farm) -> Path:
    """The farm's own folder."""
    return farm._home.folder


def keys_of(farm: Farm) -> FarmKeys:
    keys = load_keys(folder_of(farm))
    assert keys is not None
    return keys


def controller_pid(farm: Farm) -> int:
    return read_connection_file(farm.connection_file).controller_pid


def processes(farm: Farm) -> list[psutil.Process]:
    """Controller, agent, zygote, engines, evaluator: all that belongs to the farm and is not we."""
    agents = farm.state.agents if farm.state is not None else []
    # An invented agent of a test may say that it is process 1, the parent of everybody's.
    tops = [controller_pid(farm), *(agent["pid"] for agent in agents if agent["pid"] != 1)]
    found = {top: psutil.Process(top) for top in tops}
    for process in list(found.values()):
        found.update({child.pid: child for child in process.children(recursive=True)})
    return list(found.values())


def secrets_of(keys: FarmKeys) -> list[str]:
    return [pair.secret for pair in (keys.server, *keys.peers().values())]
