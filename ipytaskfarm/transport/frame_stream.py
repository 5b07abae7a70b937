"""Frames over a unix stream socket: a length of four bytes (big endian), then the frame. Buffers are bounded."""

from __future__ import annotations

import os
import socket
import struct
import sys
from collections import deque

READ_BYTES = 65_536
"""The number of bytes that are read at once."""
OUT_BYTES = 1 << 20
"""The number of bytes that wait for a peer which does not read; beyond it, `send` takes no more."""

_LENGTH = struct.Struct("!I")
_LENGTH_BYTES = _LENGTH.size
_CREDENTIALS = struct.Struct("=iII")


class StreamBroken(Exception):
    """The stream has ended, or carries something that is no frame. The text says which."""


class StreamEnded(StreamBroken):
    """The process at the other end has closed the stream, or has ended."""


def _cut_by(error: OSError) -> StreamBroken:
    kind = StreamEnded if isinstance(error, ConnectionError) else StreamBroken
    return kind(f"the connection was cut ({error.strerror})")


class FrameStream:
    """One end of a connected socket. Nothing here blocks.

    Args:
        sock: the socket, which belongs to this object from now on.
        frame_bytes_max: the largest frame that is accepted.
        out_bytes_max: how much is queued for a peer that does not read before `send` takes no more.
    """

    __slots__ = (
        "_at", "_drained", "_filled", "_in", "_large", "_out", "_out_bytes", "_out_bytes_max", "_wanted",
        "frame_bytes_max", "sock",
    )  # fmt: skip

    def __init__(self, sock: socket.socket, frame_bytes_max: int, out_bytes_max: float = OUT_BYTES) -> None:
        sock.setblocking(False)
        self.sock = sock
        self.frame_bytes_max = frame_bytes_max
        self._out_bytes_max = out_bytes_max
        self._in = b""
        self._at = 0
        """How much of `_in` was returned already."""
        self._large: bytearray | None = None
        """The frame that is being read, if it does not fit into one read. It grows with what arrives: a length alone
        takes no memory."""
        self._wanted = 0
        self._filled = 0
        self._drained = False
        """Whether the last read took all that there was: the next one would find nothing."""
        self._out: deque[memoryview] = deque()
        self._out_bytes = 0

    @property
    def unfinished_bytes(self) -> int:
        """Return how many bytes have come of a frame that is not complete."""
        return self._filled if self._large is not None else len(self._in) - self._at

    @property
    def has_output(self) -> bool:
        """Return whether frames wait until the peer reads."""
        return bool(self._out)

    @property
    def out_bytes(self) -> int:
        """Return how many bytes wait until the peer reads."""
        return self._out_bytes

    def is_exhausted(self) -> bool:
        """Return whether nothing was there behind the last frame. If so, the next `receive` reads again."""
        if not self._drained or self._at < len(self._in) or self._large is not None:
            return False
        self._drained = False
        return True

    def receive(self) -> memoryview | None:
        """Return the next frame; None if no whole frame has arrived. Call it again until it returns None.

        Raises:
            StreamBroken: there will be no further frame.
        """
        if self.is_exhausted():
            return None
        while True:
            if self._large is not None:
                if self._filled == self._wanted:
                    frame, self._large = memoryview(self._large), None
                    return frame
            elif (found := self._next()) is not None:
                return found
            if self._drained:
                self._drained = False
                return None
            if not self._read():
                return None

    def _next(self) -> memoryview | None:
        """Return the next frame in the buffer, or begin to gather one that goes on behind its end."""
        at = self._at
        left = len(self._in) - at - _LENGTH_BYTES
        if left < 0:
            return None
        length: int = _LENGTH.unpack_from(self._in, at)[0]
        if length > self.frame_bytes_max:
            raise StreamBroken(f"a frame of {length:,} bytes, more than {self.frame_bytes_max:,}")
        at += _LENGTH_BYTES
        if length <= left:
            self._at = at + length
            return memoryview(self._in)[at : at + length]
        self._wanted = length
        self._filled = len(self._in) - at
        self._large = bytearray(min(length, max(READ_BYTES, 2 * self._filled)))
        self._large[: self._filled] = memoryview(self._in)[at:]
        self._in, self._at = b"", 0
        return None

    def _read(self) -> bool:
        """Read once, and return whether anything has arrived."""
        try:
            if self._large is not None:
                if self._filled == len(self._large):
                    self._large.extend(bytes(min(len(self._large), self._wanted - self._filled)))
                wanted = len(self._large) - self._filled
                taken = self.sock.recv_into(memoryview(self._large)[self._filled :])
                self._filled += taken
            else:
                wanted = READ_BYTES
                data = self.sock.recv(READ_BYTES)
                taken = len(data)
                self._in = self._in[self._at :] + data if self._at < len(self._in) else data
                self._at = 0
        except (BlockingIOError, InterruptedError):
            return False
        except OSError as error:
            raise _cut_by(error) from None
        if not taken:
            raise StreamEnded("the connection was cut")
        self._drained = taken < wanted
        return True

    def send(self, frame: bytes) -> bool:
        """Send a frame, or queue what the socket does not take. Return False, without a change, if much is queued.

        Raises:
            StreamBroken: the other end is gone.
        """
        head = _LENGTH.pack(len(frame))
        if self._out:
            if self._out_bytes >= self._out_bytes_max:
                return False
            self._queue(memoryview(head + frame))
            return True
        try:
            sent = self.sock.send(head + frame) if len(frame) < READ_BYTES else self.sock.sendmsg((head, frame))
        except (BlockingIOError, InterruptedError):
            sent = 0
        except OSError as error:
            raise _cut_by(error) from None
        if sent < len(head) + len(frame):
            self._queue(memoryview(head + frame)[sent:])
        return True

    def _queue(self, data: memoryview) -> None:
        self._out.append(data)
        self._out_bytes += len(data)

    def flush(self) -> bool:
        """Send what is queued, as far as the socket takes it, and return whether all is sent.

        Raises:
            StreamBroken: the other end is gone.
        """
        while self._out:
            try:
                sent = self.sock.send(self._out[0])
            except (BlockingIOError, InterruptedError):
                return False
            except OSError as error:
                raise _cut_by(error) from None
            self._out_bytes -= sent
            if sent == len(self._out[0]):
                self._out.popleft()
            else:
                self._out[0] = self._out[0][sent:]
        return True

    def close(self, linger_s: float = 0.0) -> None:
        """Close the socket; wait up to `linger_s` seconds for a peer that is slow to read what is queued."""
        if self._out and linger_s > 0:
            self.sock.settimeout(linger_s)
            try:
                self.sock.sendall(b"".join(self._out))
            except OSError:
                pass
        self._out.clear()
        self.sock.close()


def is_own_user(sock: socket.socket) -> bool:
    """Return whether the process at the other end of a unix socket belongs to this user, as the kernel says."""
    if not sys.platform.startswith("linux"):
        return False
    credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return bool(_CREDENTIALS.unpack(credentials)[1] == os.geteuid())
