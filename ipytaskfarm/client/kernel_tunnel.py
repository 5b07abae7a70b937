"""Sockets on this machine for the kernel of a frozen engine on another one.

Each connection to one of these sockets is a stream of bytes through the farm: client, controller, agent, kernel. So
Jupyter and its consoles find a kernel as if the engine were here.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import tempfile
import threading
import uuid
import weakref
from pathlib import Path

from ..core.errors import TaskFarmError
from ..core.messages.kernel_bytes import PIECE_BYTES, ExchangeBytes, KernelBytes
from .session import Session

CHANNELS = ("shell", "iopub", "stdin", "control", "hb")
ANSWER_S = 30.0
"""How long (seconds) an answer may take before a stream is given up."""


class KernelTunnel:
    """The sockets and the connection file of one kernel, as long as this process and the engine live."""

    def __init__(self, session: Session, engine: str, connection: bytes) -> None:
        """Open the sockets.

        Args:
            session: the connection to the farm.
            engine: the engine.
            connection: the contents of its connection file.
        """
        self.session = session
        self._engine = engine
        self._folder = Path(tempfile.mkdtemp(prefix="ipytaskfarm-kernel-"))
        self._remove = weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        info = {**json.loads(connection), "ip": str(self._folder / "kernel"), "transport": "ipc"}
        self._listening = []
        for channel in CHANNELS:
            listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            listener.bind(f"{info['ip']}-{info[f'{channel}_port']}")
            listener.listen(16)
            self._listening.append(listener)
            self._start(self._accept, listener, channel)
        session.at_close.append(self.close)
        self.connection_file = self._folder / "kernel.json"
        self.connection_file.write_text(json.dumps(info))
        self.connection_file.chmod(0o600)

    def _start(self, function: object, *args: object) -> None:
        threading.Thread(target=function, args=args, name="kernel tunnel", daemon=True).start()  # type: ignore[arg-type]

    def close(self) -> None:
        """Close the sockets, and remove them."""
        for listener in self._listening:
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()
        self._remove()

    def _ask(self, question: ExchangeBytes) -> KernelBytes:
        reply = self.session.ask(question, ANSWER_S)
        return reply if isinstance(reply, KernelBytes) else KernelBytes(b"", True)

    def _accept(self, listener: socket.socket, channel: str) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                stream = uuid.uuid4().hex
                self._start(self._send, connection, stream, channel)
                self._start(self._receive, connection, stream, channel)

    def _send(self, connection: socket.socket, stream: str, channel: str) -> None:
        """Pass on what comes from here to the kernel."""
        at = 0
        with contextlib.suppress(OSError, TaskFarmError, TimeoutError):
            while data := connection.recv(PIECE_BYTES):
                if self._ask(ExchangeBytes(self._engine, stream, channel, at, data)).closed:
                    break
                at += len(data)
            self._ask(ExchangeBytes(self._engine, stream, channel, close=True))
        with contextlib.suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)

    def _receive(self, connection: socket.socket, stream: str, channel: str) -> None:
        """Pass on what comes from the kernel; when it has ended, the sockets are closed with it."""
        seen = 0
        with contextlib.suppress(OSError, TaskFarmError, TimeoutError):
            while True:
                reply = self._ask(ExchangeBytes(self._engine, stream, channel, seen=seen, wait=True))
                connection.sendall(reply.data)
                seen += len(reply.data)
                if reply.closed:
                    break
        with contextlib.suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)
        connection.close()


_tunnels: dict[str, KernelTunnel] = {}
"""Engine -> its tunnel in this process."""


def tunnel_to(session: Session, engine: str, connection: bytes) -> Path:
    """Return the connection file of a kernel that is reached through the farm; the first call opens its sockets."""
    known = _tunnels.get(engine)
    if known is None or not known.connection_file.exists():
        known = _tunnels[engine] = KernelTunnel(session, engine, connection)
    return known.connection_file


def close_tunnels(session: Session, living: set[str]) -> None:
    """Close the tunnels of a session to engines that are not among these."""
    for engine, tunnel in list(_tunnels.items()):
        if tunnel.session is session and engine not in living:
            del _tunnels[engine]
            tunnel.close()
