"""The agent's end of the lane: one ZeroMQ ROUTER on a unix socket, to which each engine connects.

An engine's ZeroMQ identity is its incarnation. One message is one frame of msgpack (`core.messages.engine`). Unlike in
`transport.wire` there are no sequence numbers: on a unix socket nothing is lost while both processes live. Results must
survive either process, so they are in the flight recorder.

ZeroMQ heartbeats are off on purpose: an engine's pidfd shows whether it lives, and a stopped engine must not lose its
connection.
"""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import zmq

from ..core.messages import FromEngine, ToEngine
from ..core.text import encoded

MESSAGE_BYTES_MAX = 1 << 32
"""msgpack's own limit for one value."""
READ_MAX = 4096
"""The number of messages that are taken at once, so that one engine's flood of output does not delay the others."""


class AgentLane:
    """The socket. Nothing here blocks.

    `fileno` is ZeroMQ's edge-triggered descriptor: after it was readable, and after sending, call `receive` until
    `pending` is false.
    """

    def __init__(self, path: Path) -> None:
        path.unlink(missing_ok=True)
        self._context = zmq.Context(io_threads=1)
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.linger = 0
        self._socket.sndhwm = 0
        self._socket.rcvhwm = 0
        self._socket.router_mandatory = 1
        self._socket.maxmsgsize = MESSAGE_BYTES_MAX
        self._socket.handshake_ivl = 5000
        # The folder is 0700 already; this is a second barrier.
        umask = os.umask(0o177)
        try:
            self._socket.bind(f"ipc://{path}")
        finally:
            os.umask(umask)
        self._decoder = msgspec.msgpack.Decoder(FromEngine)
        self._encoder = msgspec.msgpack.Encoder()

    def fileno(self) -> int:
        """Return the descriptor to watch for readability; it is edge-triggered, see the class."""
        return int(self._socket.getsockopt(zmq.FD))

    def pending(self) -> bool:
        """Return whether `receive` would return something."""
        return bool(int(self._socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN)

    def send(self, engine: str, message: ToEngine) -> bool:
        """Queue a message for an engine, and return whether the engine is connected."""
        return self.forward(engine, encoded(self._encoder.encode, message))

    def forward(self, engine: str, encoded: bytes | memoryview) -> bool:
        """Queue an encoded message for an engine, and return whether the engine is connected."""
        try:
            self._socket.send_multipart((engine.encode(), encoded), zmq.NOBLOCK)
        except zmq.ZMQError as error:
            if error.errno in (zmq.EHOSTUNREACH, zmq.EAGAIN):
                return False
            raise
        return True

    def receive(self) -> list[tuple[str, FromEngine]]:
        """Return (engine's incarnation, message) of at most `READ_MAX` messages that have arrived."""
        got: list[tuple[str, FromEngine]] = []
        while len(got) < READ_MAX:
            try:
                frames = self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                break
            try:
                sender, body = frames
                got.append((sender.decode(), self._decoder.decode(body)))
            except (ValueError, OverflowError, RecursionError, msgspec.DecodeError):
                continue  # unreadable messages are dropped: users' code runs in engines, and may write anything
        return got

    def close(self) -> None:
        """Close the socket.  Messages that are still queued are dropped."""
        self._socket.close(0)
        self._context.term()
