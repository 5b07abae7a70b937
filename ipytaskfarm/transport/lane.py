"""The agent's end of the lane: a unix socket to which each engine connects.

The first frame of a connection is the engine's incarnation, each further one a message (`core.messages.engine`) in
msgpack. Unlike in `transport.wire` there are no sequence numbers: on a unix socket nothing is lost while both processes
live. Results must survive either process, so they are in the flight recorder.

There are no heartbeats: an engine's pidfd shows whether it lives, and a stopped engine must not lose its connection.
"""

from __future__ import annotations

import math
import os
import select
import socket
from collections import deque
from collections.abc import Set
from pathlib import Path

import msgspec

from ..core.messages import FromEngine, ToEngine
from ..core.text import encoded
from ..system.odd_files import remove_entry
from ..system.private_files import NOT_NOW
from .frame_stream import FrameStream, StreamBroken, is_own_user

MESSAGE_BYTES_MAX = (1 << 32) - 1
"""msgpack's own limit for one value, and that of a frame's length."""
READ_MAX = 4096
"""The number of messages that are taken at once."""
SHARE_MAX, SHARE_BYTES = 128, 256 << 10
"""No further message of one engine is taken at once behind so many, or so many bytes: then come the other engines."""
UNREAD_BYTES = 64 << 20
"""An engine that does not read this much of what it is sent is not read either: it may ask without end."""


class _EngineConnection:
    """A connection. `engine` is "" until its first frame has arrived."""

    __slots__ = ("engine", "events", "is_held", "stream")

    def __init__(self, stream: FrameStream) -> None:
        self.stream = stream
        self.engine = ""
        self.events = select.EPOLLIN
        """The events that are watched."""
        self.is_held = False
        """Whether it is not read for the time being."""


class AgentLane:
    """The socket and its connections. Nothing here blocks."""

    def __init__(self, path: Path) -> None:
        remove_entry(path)
        self._epoll = select.epoll()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.setblocking(False)
        # The folder is 0700 already; this is a second barrier.
        umask = os.umask(0o177)
        try:
            self._socket.bind(str(path))
        finally:
            os.umask(umask)
        self._socket.listen(256)
        self._epoll.register(self._socket.fileno(), select.EPOLLIN)
        self._by_fd: dict[int, _EngineConnection] = {}
        self._by_engine: dict[str, _EngineConnection] = {}
        self._readable: deque[_EngineConnection] = deque()
        self._held: Set[str] = frozenset()
        self._is_full = False
        """Whether the last connection could not be accepted, because no descriptor was left."""
        self._unread: set[str] = set()
        """Engines that do not read."""
        self._decoder = msgspec.msgpack.Decoder(FromEngine)
        self._encoder = msgspec.msgpack.Encoder()

    def fileno(self) -> int:
        """Return the descriptor to watch for readability."""
        return self._epoll.fileno()

    def pending(self) -> bool:
        """Return whether the last `receive` has left something."""
        return bool(self._readable)

    def send(self, engine: str, message: ToEngine) -> bool:
        """Queue a message for an engine, and return whether the engine is connected."""
        return self.forward(engine, encoded(self._encoder.encode, message))

    def forward(self, engine: str, encoded: bytes | memoryview) -> bool:
        """Queue an encoded message for an engine, and return whether the engine is connected."""
        connection = self._by_engine.get(engine)
        if connection is None:
            return False
        try:
            connection.stream.send(bytes(encoded))
        except StreamBroken:
            return False
        if connection.stream.out_bytes > UNREAD_BYTES:
            self._unread.add(engine)
        self._watch(connection)
        return True

    def hold(self, engines: Set[str]) -> None:
        """Take no more messages of these engines until a call no longer names them."""
        wanted = engines | self._unread
        for engine in wanted ^ self._held:
            connection = self._by_engine.get(engine)
            if connection is None:
                continue
            connection.is_held = engine in wanted
            if connection.is_held and connection in self._readable:
                self._readable.remove(connection)
            elif not connection.is_held and connection not in self._readable:
                self._readable.append(connection)  # something may be in its buffer
            self._watch(connection)
        self._held = wanted

    def receive(self) -> list[tuple[str, FromEngine]]:
        """Return (engine's incarnation, message) of at most `READ_MAX` messages that have arrived, in turns."""
        if self._is_full:
            self._is_full = False
            self._epoll.modify(self._socket.fileno(), select.EPOLLIN)
        for fd, events in self._epoll.poll(0):
            connection = self._by_fd.get(fd)
            if connection is None:
                self._accept()
                continue
            if events & select.EPOLLOUT:
                self._flush(connection)
            if events & ~select.EPOLLOUT and connection not in self._readable:
                self._readable.append(connection)
        got: list[tuple[str, FromEngine]] = []
        for _ in range(len(self._readable)):
            if len(got) >= READ_MAX:
                break
            connection = self._readable.popleft()
            try:
                self._receive_from(connection, got)
            except StreamBroken:
                self._end(connection)
        return got

    def _receive_from(self, connection: _EngineConnection, got: list[tuple[str, FromEngine]]) -> None:
        upto, size = min(READ_MAX, len(got) + SHARE_MAX), 0
        while len(got) < upto and size < SHARE_BYTES:
            frame = connection.stream.receive()
            if frame is None:
                return
            size += len(frame)
            try:
                if connection.engine:
                    got.append((connection.engine, self._decoder.decode(frame)))
                else:
                    self._name(connection, bytes(frame).decode())
            except (ValueError, OverflowError, RecursionError, msgspec.DecodeError):
                continue  # unreadable messages are dropped: users' code runs in engines, and may write anything
        self._readable.append(connection)

    def _name(self, connection: _EngineConnection, engine: str) -> None:
        """Take a connection's first frame. An engine has one connection: with more, it could not be held."""
        if engine in self._by_engine:
            raise StreamBroken(f"engine {engine} is connected already")
        connection.engine = engine
        self._by_engine[engine] = connection

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._socket.accept()
            except OSError as error:
                # Not watched until the next look: it would be found readable all the time.
                self._is_full = error.errno in NOT_NOW
                if self._is_full:
                    self._epoll.modify(self._socket.fileno(), 0)
                return
            if not is_own_user(sock):
                sock.close()
                continue
            self._by_fd[sock.fileno()] = _EngineConnection(FrameStream(sock, MESSAGE_BYTES_MAX, math.inf))
            self._epoll.register(sock.fileno(), select.EPOLLIN)

    def _flush(self, connection: _EngineConnection) -> None:
        try:
            connection.stream.flush()
        except StreamBroken:
            return  # reading finds the end, behind what the engine sent before
        if connection.stream.out_bytes <= UNREAD_BYTES:
            self._unread.discard(connection.engine)
        self._watch(connection)

    def _watch(self, connection: _EngineConnection) -> None:
        """Be told when an engine has sent something, and when one that does not read takes more of what is queued."""
        events = (0 if connection.is_held else select.EPOLLIN) | (
            select.EPOLLOUT if connection.stream.has_output else 0
        )
        if events != connection.events:
            connection.events = events
            self._epoll.modify(connection.stream.sock.fileno(), events)

    def _end(self, connection: _EngineConnection) -> None:
        fd = connection.stream.sock.fileno()
        self._epoll.unregister(fd)
        del self._by_fd[fd]
        if self._by_engine.get(connection.engine) is connection:
            del self._by_engine[connection.engine]
            self._unread.discard(connection.engine)
        connection.stream.close()

    def close(self) -> None:
        """Close the socket.  Messages that are still queued are dropped."""
        for connection in list(self._by_fd.values()):
            self._end(connection)
        self._socket.close()
        self._epoll.close()
