"""The controller's end of the connections by TCP: one ZeroMQ ROUTER with CURVE, and its gatekeeper."""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections import Counter
from collections.abc import Mapping

import zmq

from . import wire
from .interface import FULL, GONE, OK, ConnectionId, KnownKey, ReceivedFrame, Sent
from .reliable_session import HANDSHAKE

PARTS_PER_LOOK = 1000
LINGER_MS = 100
SILENT_MAX = 512
"""The most connections that have not said hello. The oldest one is cut for a new one."""
_EVENT = struct.Struct("=HI")


class SilentConnections:
    """The connections that have not said hello.

    ZeroMQ has no limit for them, and takes memory for a frame that a connection announces before it has proven a key.
    """

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], router: zmq.Socket[bytes]) -> None:
        self._router = router
        router.monitor("inproc://connections", zmq.EVENT_ACCEPTED | zmq.EVENT_DISCONNECTED)
        self._events = context.socket(zmq.PAIR)
        self._events.linger = 0
        self._events.rcvhwm = 0  # ZeroMQ's IO thread would wait until there is room
        self._events.connect("inproc://connections")
        self._fds: dict[int, None] = {}
        """Their descriptors, which belong to ZeroMQ, the oldest first."""

    def fd(self) -> int:
        """Return the descriptor that reports changes."""
        return int(self._events.getsockopt(zmq.FD))

    def look(self) -> int:
        """Note who has come and gone, and cut the oldest ones beyond `SILENT_MAX`; return how many."""
        while wire.has_input(self._events):
            event, fd = _EVENT.unpack(self._events.recv_multipart(zmq.NOBLOCK)[0])
            self._fds.pop(fd, None)
            if event == zmq.EVENT_ACCEPTED:
                self._fds[fd] = None
        oldest = list(self._fds)[: max(0, len(self._fds) - SILENT_MAX)]
        for fd in oldest:
            del self._fds[fd]
            self._cut(fd)
        return len(oldest)

    def _cut(self, fd: int) -> None:
        # ZeroMQ may have closed it, and the number may be that of something else: the copy shows what it is.
        try:
            copy = os.dup(fd)
        except OSError:
            return
        try:
            connection = socket.socket(fileno=copy)
        except OSError:
            os.close(copy)
            return
        port = self._router.getsockopt_string(zmq.LAST_ENDPOINT).rpartition(":")[2]
        with connection:
            name = connection.getsockname()
            if isinstance(name, tuple) and str(name[1]) == port:
                try:
                    connection.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass  # the peer has cut it

    def said_hello(self, fd: int) -> None:
        """Note that a connection is none of these any more."""
        self._fds.pop(fd, None)

    def close(self) -> None:
        """Stop looking."""
        self._router.disable_monitor()
        self._events.close(0)


def why_not_listening(farm: str, host: str, port: int, error: zmq.ZMQError) -> str:
    """Return the text of the error for an address at which a farm cannot listen."""
    text = f"farm {farm!r} cannot listen on {host}:{port}: {error.strerror or error}"
    if error.errno not in (errno.EADDRINUSE, errno.EADDRNOTAVAIL, errno.ENODEV, errno.EACCES, errno.EINVAL):
        return text  # such as a want of descriptors, for which the supervisor knows the remedy
    return (
        f"{text}. Another program has that port, or this machine has no such address; choose another port, or 0 for any"
        " that is free"
    )


class CurveListener:
    """See `interface.PeerListener`.

    Args:
        host, port: the address; port 0 for any that is free.
        secret: the controller's secret key.
        known: public key -> the key, for all keys that peers may have. The caller keeps it up to date.
        rejected: counts refused connections and messages by reason.

    Raises:
        zmq.ZMQError: the address cannot be listened on.
    """

    def __init__(
        self, host: str, port: int, secret: str, known: Mapping[str, KnownKey], rejected: Counter[str]
    ) -> None:
        self._known = known
        self._rejected = rejected
        self._discarding = False
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context(io_threads=1)
        self._gate = self._context.socket(zmq.REP)
        self._gate.linger = 0
        self._gate.bind("inproc://zeromq.zap.01")
        self._router = self._context.socket(zmq.ROUTER)
        try:
            self._listen(host, port, secret)
        except zmq.ZMQError:
            self._context.destroy(linger=0)
            raise
        self._silent = SilentConnections(self._context, self._router)
        self.port = int(self._router.getsockopt_string(zmq.LAST_ENDPOINT).rpartition(":")[2])
        self._fds = [int(self._gate.getsockopt(zmq.FD)), int(self._router.getsockopt(zmq.FD)), self._silent.fd()]
        self._is_quiet = False
        """Whether nothing was there when ZeroMQ was asked last, and nothing was done since: then its descriptors report
        what comes. Asking it takes several system calls."""

    def _listen(self, host: str, port: int, secret: str) -> None:
        wire.guard(self._router)
        self._router.router_mandatory = 1
        self._router.ipv6 = ":" in host
        self._router.curve_server = 1
        self._router.curve_secretkey = secret.encode()
        self._router.setsockopt(zmq.ZAP_DOMAIN, wire.DOMAIN)
        # Without this option libzmq would accept everyone if the gatekeeper were missing.
        self._router.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)
        self._router.bind(wire.tcp_endpoint(host, port or "*"))

    def fds(self) -> list[int]:
        """Return the descriptors to wait for. They report only changes: call `has_input` before each wait."""
        return self._fds

    def is_ready(self, fd: int) -> bool:
        """Note that a descriptor is ready. Return False if it is none of `fds`."""
        if fd not in self._fds:
            return False
        self._is_quiet = False
        return True

    def has_input(self) -> bool:
        """Return whether `receive` would return something; let peers with known keys in."""
        if self._is_quiet:
            return False
        self.serve_gate()
        if cut := self._silent.look():
            self._rejected["silent connection"] += cut
        there = self._discarding or wire.has_input(self._router)
        self._is_quiet = not there
        return there

    def serve_gate(self) -> None:
        """Answer ZeroMQ's questions whether a key is accepted.

        The answer contains the user id for all messages under that key.
        """
        while wire.has_input(self._gate):
            version, request, domain, _, _, mechanism, *credentials = self._gate.recv_multipart(zmq.NOBLOCK)
            known = None
            if domain == wire.DOMAIN and mechanism == b"CURVE" and len(credentials) == 1:
                known = self._known.get(wire.public_key(credentials[0]))
            if known is None:
                self._rejected["unknown key"] += 1
                verdict = [b"400", b"this key is not of this farm", b""]
            else:
                verdict = [b"200", b"", known.user.encode()]
            self._gate.send_multipart([version, request, *verdict, b""], zmq.NOBLOCK)

    def receive(self) -> ReceivedFrame | None:
        if self._discarding:
            return self._discard()
        try:
            connection = self._router.recv(zmq.NOBLOCK)
        except zmq.Again:
            return None
        # Only a frame that was not copied has the user id of its key.
        frame = self._router.recv(zmq.NOBLOCK, copy=False)
        if frame.more:
            self._rejected["too many parts"] += 1
            self._discarding = True
            return ReceivedFrame(connection, "", None)
        buffer = frame.buffer
        if len(buffer) and buffer[0] == HANDSHAKE:
            self._silent.look()  # its arrival may not have been noted yet
            self._silent.said_hello(int(frame.get(zmq.SRCFD)))
        return ReceivedFrame(connection, str(frame.get(wire.USER_ID)), buffer)

    def _discard(self) -> ReceivedFrame:
        """Skip the parts of a message that has too many, some at a time."""
        for _ in range(PARTS_PER_LOOK):
            if not self._router.getsockopt(zmq.RCVMORE):
                self._discarding = False
                break
            self._router.recv(zmq.NOBLOCK, copy=False)
        return ReceivedFrame(b"", "", None)

    def send(self, connection: ConnectionId, frame: bytes) -> Sent:
        assert isinstance(connection, bytes)
        self._is_quiet = False
        try:
            self._router.send_multipart([connection, frame], zmq.NOBLOCK)
        except zmq.Again:
            return FULL
        except zmq.ZMQError as error:
            if error.errno != zmq.EHOSTUNREACH:
                raise
            return GONE
        return OK

    def close(self, linger_ms: int = LINGER_MS) -> None:
        """See `PeerListener`. Closing it twice is no error."""
        if not self._router.closed:
            self._silent.close()
        self._router.close(linger_ms)
        self._gate.close(0)
        self._context.term()

    @property
    def closed(self) -> bool:
        return bool(self._router.closed)
