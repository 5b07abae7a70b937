"""The controller's end of the connections by unix socket: accepts processes of this user that prove to have a key."""

from __future__ import annotations

import itertools
import logging
import os
import select
import socket
import stat
from collections import Counter, deque
from collections.abc import Mapping
from pathlib import Path

from ..system.odd_files import remove_entry
from ..system.private_files import NOT_NOW
from .frame_stream import FrameStream, StreamBroken, is_own_user
from .interface import FULL, GONE, OK, ConnectionId, KnownKey, ReceivedFrame, Sent
from .key_challenge import ANSWER_BYTES, judge_answer, new_challenge
from .wire import FRAME_BYTES_MAX, HANDSHAKE_S

log = logging.getLogger(__name__)

CONNECTIONS_MAX = 4096
"""The number of connections; a peer that finds no place here uses TCP."""
UNPROVEN_MAX = 64
"""The number of connections that have proven nothing yet. The oldest makes room for a new one."""
UNFINISHED_BYTES_MAX = 256 << 20
"""The bytes of unfinished frames of all connections. The connection with the oldest one is ended beyond it."""
ACCEPTS_PER_LOOK = 64
LINGER_S = 0.1


class _Connection:
    """One connection. `user` is "" until the peer has proven to have a key."""

    __slots__ = ("challenge", "is_queued", "number", "seen_s", "stream", "user")

    def __init__(self, number: int, stream: FrameStream) -> None:
        self.number = number
        self.stream = stream
        self.seen_s: float | None = None
        """When `look_after` saw it first."""
        self.challenge = new_challenge()
        self.user = ""
        self.is_queued = False
        """Whether it stands in the queue of connections to read from."""


class UnixListener:
    """All connections by one socket file. See `interface.PeerListener`.

    Args:
        path: the socket file, in a folder of mode 0700.
        server: the controller's public key.
        known: public key -> the key, for all keys that peers may have. The caller keeps it up to date.
        epoll: is told all descriptors; the caller waits with it, and calls `is_ready` with those that it reports.
        rejected: counts refused connections by reason.
    """

    def __init__(
        self, path: Path, server: str, known: Mapping[str, KnownKey], epoll: select.epoll, rejected: Counter[str]
    ) -> None:
        self.path = path
        self._server = server
        self._known = known
        self._epoll = epoll
        self._rejected = rejected
        self._numbers = itertools.count(1)
        self._by_fd: dict[int, _Connection] = {}
        self._by_number: dict[int, _Connection] = {}
        self._unproven: dict[int, _Connection] = {}
        self._unfinished: dict[int, int] = {}
        """Number of a connection -> the bytes of its unfinished frame, in the order of their beginnings."""
        self._unfinished_bytes = 0
        self._readable: deque[_Connection] = deque()
        self._ended: list[int] = []
        self._socket: socket.socket | None = None
        self._file: tuple[int, int] | None = None
        self._listen()

    def _listen(self) -> None:
        """Make the socket file. It appears under its name only when it can be connected to."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        new = self.path.with_name(f".{os.getpid()}.sock")
        try:
            sock.setblocking(False)
            remove_entry(new)
            # The folder is 0700 already; this is a second barrier.
            umask = os.umask(0o177)
            try:
                sock.bind(str(new))
            finally:
                os.umask(umask)
            sock.listen(256)
            if self.path.is_dir():
                remove_entry(self.path)  # of which a file cannot take the name
            os.rename(new, self.path)
            found = os.stat(self.path, follow_symlinks=False)
        except OSError:
            sock.close()
            remove_entry(new)
            raise
        self._socket = sock
        self._file = (found.st_dev, found.st_ino)
        self._epoll.register(sock.fileno(), select.EPOLLIN)

    def look_after(self, now_s: float) -> None:
        """Make a missing socket file again, and end connections that do not prove their key within `HANDSHAKE_S`.

        Call it from time to time; `now_s` is on any monotonic clock.
        """
        for connection in list(self._unproven.values()):
            if connection.seen_s is None:
                connection.seen_s = now_s
            elif now_s - connection.seen_s > HANDSHAKE_S:
                self._rejected["no proof of a key"] += 1
                self._end(connection)
        if self._is_there():
            assert self._socket is not None
            self._epoll.modify(self._socket.fileno(), select.EPOLLIN)
        else:
            self._stop_listening()
            try:
                self._listen()
            except OSError:
                pass  # the folder is gone, or the disk is full: TCP remains, and the next look tries again

    def _is_there(self) -> bool:
        try:
            found = os.stat(self.path, follow_symlinks=False)
        except OSError:
            return False
        return self._socket is not None and (found.st_dev, found.st_ino) == self._file and stat.S_ISSOCK(found.st_mode)

    def _stop_listening(self) -> None:
        if self._socket is not None:
            self._epoll.unregister(self._socket.fileno())
            self._socket.close()
            self._socket = None

    def is_ready(self, fd: int, events: int) -> bool:
        """Note that a descriptor is ready. Return False if it is none of these connections."""
        connection = self._by_fd.get(fd)
        if connection is None:
            if self._socket is None or fd != self._socket.fileno():
                return False
            self._accept()
            return True
        if events & select.EPOLLOUT:
            self._flush(connection)
        if events & ~select.EPOLLOUT and not connection.is_queued:
            connection.is_queued = True
            self._readable.append(connection)
        return True

    @property
    def has_input(self) -> bool:
        """Return whether `receive` should be called before the caller waits."""
        return bool(self._readable)

    def take_ended(self) -> list[int]:
        """Return the connections that have ended since the last call."""
        if not self._ended:
            return []
        ended, self._ended = self._ended, []
        return ended

    def _accept(self) -> None:
        assert self._socket is not None
        for _ in range(ACCEPTS_PER_LOOK):
            try:
                sock, _ = self._socket.accept()
            except OSError as error:
                if error.errno in NOT_NOW:
                    self._rejected["no descriptor left"] += 1
                    # Not watched until `look_after`: it would be found readable all the time.
                    self._epoll.modify(self._socket.fileno(), 0)
                return
            if not is_own_user(sock):
                self._rejected["another user"] += 1
                sock.close()
            elif len(self._by_fd) >= CONNECTIONS_MAX:
                self._rejected["too many connections"] += 1
                sock.close()
            else:
                self._begin(sock)

    def _begin(self, sock: socket.socket) -> None:
        if len(self._unproven) >= UNPROVEN_MAX:
            self._rejected["no proof of a key"] += 1
            self._end(next(iter(self._unproven.values())))
        connection = _Connection(next(self._numbers), FrameStream(sock, ANSWER_BYTES))
        self._by_fd[sock.fileno()] = self._by_number[connection.number] = connection
        self._unproven[connection.number] = connection
        self._epoll.register(sock.fileno(), select.EPOLLIN)
        self._put(connection, connection.challenge)

    def receive(self) -> ReceivedFrame | None:
        while self._readable:
            connection = self._readable.popleft()
            connection.is_queued = False
            if connection.number not in self._by_number:
                continue
            try:
                frame = connection.stream.receive()
            except StreamBroken:
                self._end(connection)
                continue
            if frame is None or self._unfinished:
                self._count_unfinished(connection, frame is None)
            if frame is None:
                continue
            if not connection.stream.is_exhausted():
                connection.is_queued = True
                self._readable.append(connection)
            if connection.user:
                return ReceivedFrame(connection.number, connection.user, frame)
            self._judge(connection, frame)
        return None

    def _count_unfinished(self, connection: _Connection, is_unfinished: bool) -> None:
        before = self._unfinished.get(connection.number, 0)
        now = connection.stream.unfinished_bytes if is_unfinished else 0
        if now:
            self._unfinished[connection.number] = now
        elif before:
            del self._unfinished[connection.number]
        self._unfinished_bytes += now - before
        while self._unfinished_bytes > UNFINISHED_BYTES_MAX:
            self._rejected["too many unfinished bytes"] += 1
            self._end(self._by_number[next(iter(self._unfinished))])

    def _judge(self, connection: _Connection, answer: memoryview) -> None:
        found = judge_answer(connection.challenge, answer, self._server, self._known)
        if found is None:
            self._rejected["unknown key"] += 1
            self._put(connection, b"")
            self._end(connection)
            return
        key, reply = found
        self._unproven.pop(connection.number, None)
        connection.user = key.user
        connection.stream.frame_bytes_max = FRAME_BYTES_MAX
        self._put(connection, reply)

    def send(self, connection: ConnectionId, frame: bytes) -> Sent:
        found = self._by_number.get(connection) if isinstance(connection, int) else None
        return GONE if found is None else self._put(found, frame)

    def _put(self, connection: _Connection, frame: bytes) -> Sent:
        stream = connection.stream
        had_output = stream.has_output
        try:
            if not stream.send(frame):
                return FULL
        except StreamBroken:
            # What the peer sent before it ended can still be read, and the end is found behind it.
            return GONE
        if stream.has_output and not had_output:
            self._epoll.modify(stream.sock.fileno(), select.EPOLLIN | select.EPOLLOUT)
        return OK

    def _flush(self, connection: _Connection) -> None:
        try:
            if not connection.stream.flush():
                return
        except StreamBroken:
            pass  # reading finds the end
        self._epoll.modify(connection.stream.sock.fileno(), select.EPOLLIN)

    def _end(self, connection: _Connection, linger_s: float = 0.0) -> None:
        fd = connection.stream.sock.fileno()
        self._epoll.unregister(fd)
        del self._by_fd[fd], self._by_number[connection.number]
        self._unproven.pop(connection.number, None)
        self._unfinished_bytes -= self._unfinished.pop(connection.number, 0)
        connection.stream.close(linger_s)
        self._ended.append(connection.number)

    def close(self) -> None:
        self._stop_listening()
        try:
            if self._file is not None and os.stat(self.path, follow_symlinks=False).st_ino == self._file[1]:
                self.path.unlink()
        except OSError:
            pass
        linger_s = LINGER_S
        for connection in list(self._by_number.values()):
            self._end(connection, linger_s)
            if connection.stream.has_output:
                linger_s = 0.0


def listen_here(
    path: Path | None, server: str, known: Mapping[str, KnownKey], epoll: select.epoll, rejected: Counter[str]
) -> UnixListener | None:
    """Return a listener at a path, or None if there can be none: then peers of this machine use TCP."""
    if path is None:
        return None
    try:
        return UnixListener(path, server, known, epoll, rejected)
    except OSError as error:
        log.warning("%s cannot be made (%s): processes of this machine connect by TCP", path, error.strerror)
        return None
