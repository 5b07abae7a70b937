"""The bell: engines wake their agent, which then reads their flight recorders."""

from __future__ import annotations

import os
import socket

from .odd_files import remove_entry

_RINGS_MAX = 8
"""Linux keeps 10 datagrams per socket (net.unix.max_dgram_qlen) before it drops datagrams."""


class Bell:
    """Wakes the agent: engines ring, and the agent then reads their recorders.

    It is a datagram socket, so ringing never waits and works without a listener. A ring may be lost, because the
    socket's queue is short. The agent reads the recorders of all its engines if `take` reports this, and also from time
    to time.
    """

    def __init__(self, path: str, sock: socket.socket, listening: bool) -> None:
        self.path = path
        self._socket = sock
        self._listening = listening
        self._connected = listening

    @classmethod
    def listen(cls, path: str | os.PathLike[str]) -> Bell:
        """Return the agent's end. A socket of an earlier agent at this path is replaced.

        Raises:
            OSError: the path cannot be used.
        """
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            remove_entry(path)
            sock.bind(os.fspath(path))
        except OSError:
            sock.close()
            raise
        return cls(os.fspath(path), sock, listening=True)

    @classmethod
    def connect(cls, path: str | os.PathLike[str]) -> Bell:
        """Return an engine's end. The agent's end need not exist yet."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        return cls(os.fspath(path), sock, listening=False)

    def ring(self, engine: int) -> None:
        """Report a record in the recorder of the engine with this counter. Called by engines; never waits or raises."""
        message = engine.to_bytes(8, "little")
        for _ in range(2):
            try:
                if not self._connected:
                    self._socket.connect(self.path)
                    self._connected = True
                self._socket.send(message)
                return
            except BlockingIOError:
                return  # the agent has not taken earlier rings yet, and will come for them
            except OSError:
                self._connected = False  # there is no agent, or another one by now: connect again

    def take(self) -> set[int] | None:
        """Return the counters of the engines that have rung since the last call; None if some rings may
        have been lost.
        """
        engines: set[int] = set()
        for _ in range(_RINGS_MAX):
            try:
                engines.add(int.from_bytes(self._socket.recv(8), "little"))
            except BlockingIOError:
                return engines
        return None

    def fileno(self) -> int:
        """Return the descriptor to poll."""
        return self._socket.fileno()

    def close(self) -> None:
        """Close this end. The agent's end also removes the socket file."""
        self._socket.close()
        if self._listening:
            remove_entry(self.path)
