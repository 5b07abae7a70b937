"""A peer's end of a connection by TCP: one ZeroMQ DEALER with CURVE, and the monitor that reports its end."""

from __future__ import annotations

import itertools

import zmq

from ..system.farm_paths import ConnectionInfo
from . import wire
from .interface import ConnectionFailure, Frame

_numbers = itertools.count()

_FAILURES = {
    zmq.EVENT_DISCONNECTED: "the connection was cut",
    zmq.EVENT_CLOSED: "nothing listens there",
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL: "it broke off the handshake (another program, or another farm's keys)",
    zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL: "it does not speak the farm's protocol",
    zmq.EVENT_HANDSHAKE_FAILED_AUTH: "it does not know the key",
}


class CurveConnection:
    """See `interface.PeerConnection`.

    The descriptors report only changes: after `send`, call `receive` until it returns None, or the next message would
    wake nobody.

    Raises:
        zmq.ZMQError, ValueError: the connection file cannot be used.
    """

    reports_changes_only = True

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], info: ConnectionInfo, host: str) -> None:
        self._socket = socket = context.socket(zmq.DEALER)
        self._monitor: zmq.Socket[bytes] | None = None
        try:
            wire.guard(socket)
            socket.reconnect_ivl = -1
            socket.connect_timeout = int(wire.HANDSHAKE_S * 1000)
            socket.ipv6 = ":" in host
            socket.curve_serverkey = info.server_key.encode()
            socket.curve_publickey = info.public_key.encode()
            socket.curve_secretkey = info.secret_key.encode()
            kinds = 0
            for kind in _FAILURES:
                kinds |= kind
            self._monitor = socket.get_monitor_socket(kinds, f"inproc://link-monitor-{next(_numbers)}")
            self._monitor.linger = 0
            socket.connect(wire.tcp_endpoint(host, info.port))
        except (zmq.ZMQError, ValueError):
            self.close(0)
            raise

    def fds(self) -> list[int]:
        assert self._monitor is not None
        return [int(self._socket.getsockopt(zmq.FD)), int(self._monitor.getsockopt(zmq.FD))]

    def send(self, frame: bytes) -> bool:
        try:
            self._socket.send(frame, zmq.NOBLOCK)
        except zmq.Again:
            return False
        return True

    def receive(self) -> Frame | None:
        try:
            frame = self._socket.recv(zmq.NOBLOCK)
        except zmq.Again:
            return None
        if self._socket.getsockopt(zmq.RCVMORE):
            raise ValueError("it sent nonsense")
        return frame

    @property
    def is_congested(self) -> bool:
        """Return False: ZeroMQ has queues of its own."""
        return False

    def failure(self) -> ConnectionFailure | None:
        assert self._monitor is not None
        while wire.has_input(self._monitor):
            event = int.from_bytes(self._monitor.recv_multipart(zmq.NOBLOCK)[0][:2], "little")
            if event in _FAILURES:
                why = _FAILURES[zmq.Event(event)]
                return ConnectionFailure(why, denied=event == zmq.EVENT_HANDSHAKE_FAILED_AUTH)
        return None

    def close(self, linger_ms: int) -> None:
        self._socket.disable_monitor()
        if self._monitor is not None:
            self._monitor.close(0)
        self._socket.close(linger_ms)
