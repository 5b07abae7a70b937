"""A peer's end of a connection by unix socket."""

from __future__ import annotations

import contextlib
import hmac
import os
import socket
import stat
from pathlib import Path

from ..system.farm_paths import ConnectionInfo
from .frame_stream import FrameStream, StreamBroken, is_own_user
from .interface import ConnectionFailure, Frame
from .key_challenge import answer_challenge
from .wire import FRAME_BYTES_MAX


class UnixConnection:
    """See `interface.PeerConnection`. Frames that are sent before the keys are proven wait here."""

    reports_changes_only = False

    def __init__(self, stream: FrameStream, info: ConnectionInfo) -> None:
        self._stream = stream
        self._info = info
        self._expected: bytes | None = None
        """The controller's reply to our answer, once its challenge was answered."""
        self._proven = False
        self._waiting: list[bytes] = []
        self._failure: ConnectionFailure | None = None

    def fds(self) -> list[int]:
        return [self._stream.sock.fileno()]

    def send(self, frame: bytes) -> bool:
        if not self._proven:
            self._waiting.append(frame)
            return True
        try:
            if self._stream.has_output:
                self._stream.flush()
            return self._stream.send(frame)
        except StreamBroken:
            # What the controller sent before can still be read, and the end is found behind it.
            return True

    def receive(self) -> Frame | None:
        if self._stream.has_output:
            with contextlib.suppress(StreamBroken):  # what arrived before can still be read, and the end behind it
                self._stream.flush()
        try:
            while (frame := self._stream.receive()) is not None:
                if self._proven:
                    return frame
                self._prove(frame)
        except StreamBroken as error:
            self._failure = self._failure or ConnectionFailure(str(error))
        return None

    def _prove(self, frame: memoryview) -> None:
        info = self._info
        if self._expected is None:
            try:
                answer, self._expected = answer_challenge(frame, info.server_key, info.public_key, info.secret_key)
            except ValueError:
                raise StreamBroken("it does not speak the farm's protocol") from None
            self._stream.send(answer)
        elif hmac.compare_digest(frame, self._expected):
            self._proven = True
            waiting, self._waiting = self._waiting, []
            for one in waiting:
                self._stream.send(one)
        else:
            raise StreamBroken("it does not know the key")

    @property
    def is_congested(self) -> bool:
        """Return whether frames wait until the controller reads."""
        return self._stream.has_output

    def failure(self) -> ConnectionFailure | None:
        return self._failure

    def close(self, linger_ms: int) -> None:
        self._stream.close(linger_ms / 1000)


def connect_by_unix(info: ConnectionInfo) -> UnixConnection | None:
    """Return a connection by the farm's unix socket; None if this process cannot use it.

    Pathnames of unix sockets lead to processes of this machine only. So a file that exists, belongs to this user and
    is connected to is enough; whether it is this farm's, its proof of the key shows.
    """
    path = Path(info.socket)
    try:
        found = os.stat(path, follow_symlinks=False)
        if not stat.S_ISSOCK(found.st_mode) or found.st_uid != os.geteuid():
            return None
    except (OSError, ValueError):
        return None
    try:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    except OSError:
        return None  # no descriptor is left
    try:
        sock.setblocking(False)
        sock.connect(str(path))
        if is_own_user(sock):
            return UnixConnection(FrameStream(sock, FRAME_BYTES_MAX), info)
    except OSError:
        pass  # nobody listens there any more, or more peers wait there than it admits at once
    sock.close()
    return None
