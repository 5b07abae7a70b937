"""The agent's handle on its zygote, the process that forks engines and reaps them.

The protocol is described in ``ipytaskfarm/engine/zygote.py``.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from ..core.text import last_line
from ..system.files import tail
from .zygote_process import ZygoteProcess

log = logging.getLogger(__name__)

READY_S = 60.0
"""How long (seconds) a zygote may take to import IPython, which is slow from a cold network disk."""
STATUS_WAIT_S = 1.0
"""How long (seconds) to wait for the zygote's report about a process that has ended."""
FORK_S = 5.0
"""A fork takes milliseconds; a zygote that does not answer within this time is stopped, or waits for a disk."""
QUIT_S = 2.0
"""How long (seconds) a zygote may take to end by itself."""
_LENGTH = struct.Struct(">I")


class Exit(NamedTuple):
    """How a process ended."""

    status: int | None
    """The raw wait status.  None: unknown, because the zygote died too."""
    peak_bytes: int = 0

    @property
    def signal(self) -> int | None:
        """Return the signal that ended the process.  None: no signal, or unknown."""
        return os.WTERMSIG(self.status) if self.status is not None and os.WIFSIGNALED(self.status) else None

    @property
    def exit_code(self) -> int | None:
        """Return the exit code.  None: a signal ended the process, or it is unknown."""
        return os.WEXITSTATUS(self.status) if self.status is not None and os.WIFEXITED(self.status) else None


class StartError(Exception):
    """Raised when an engine could not be started; the text is for people."""


class Child:
    """A process that a zygote forked.  Signals go through its pidfd, so never to another process of the same number."""

    def __init__(self, pid: int, zygote_pid: int) -> None:
        self.pid = pid
        self.exit: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()
        self._pidfd: int | None = None
        self._is_gone = self._is_orphan = False
        try:
            pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            return
        if parent_of(pid) == zygote_pid:
            self._pidfd = pidfd
            asyncio.get_running_loop().add_reader(pidfd, self._gone)
        else:
            os.close(pidfd)

    def send_signal(self, signum: int) -> bool:
        """Send a signal, and return whether the process was still there."""
        if self._pidfd is None:
            return False
        try:
            signal.pidfd_send_signal(self._pidfd, signum)
        except ProcessLookupError:
            return False
        return True

    def ended(self, how: Exit) -> None:
        """Record how the process ended, and close its pidfd. Later calls do nothing."""
        if self._pidfd is not None:
            asyncio.get_running_loop().remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = None
        if not self.exit.done():
            self.exit.set_result(how)

    def orphaned(self) -> None:
        """Kill the process: its zygote is gone, so nobody will report its end."""
        self._is_orphan = True
        self.send_signal(signal.SIGKILL)
        if self._is_gone or self._pidfd is None:
            self.ended(Exit(None))

    def _gone(self) -> None:
        loop = asyncio.get_running_loop()
        self._is_gone = True
        if self._pidfd is not None:
            loop.remove_reader(self._pidfd)
        if self._is_orphan:
            self.ended(Exit(None))
        else:  # the zygote knows how it ended, and reports it at once unless it is stuck
            loop.call_later(STATUS_WAIT_S, self.ended, Exit(None))


class Zygote:
    """One zygote process, of which this process is the parent."""

    def __init__(self, started: ZygoteProcess, output: Path, died: Callable[[], None] = lambda: None) -> None:
        """Take over a process that was started.

        Args:
            started: what `spawn_zygote` returned.
            output: the file for its output.
            died: called once when its process is gone.
        """
        self._process, self._control = started
        self._output = output
        self._died = died
        self._forking: dict[str, asyncio.Future[Child]] = {}
        self._children: dict[str, Child] = {}
        self._buffer = bytearray()
        loop = asyncio.get_running_loop()
        self.ready: asyncio.Future[None] = loop.create_future()
        self.stuck = False
        """Whether the zygote did not answer: its engines go on, but it forks no more."""
        self._pidfd = os.pidfd_open(self._process.pid)
        loop.add_reader(self._pidfd, self._on_death)
        loop.add_reader(self._control.fileno(), self._on_readable)
        self._late = loop.call_later(READY_S, self._not_ready)
        self._gone: asyncio.Future[None] = loop.create_future()
        self.alive = True

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def was_ready(self) -> bool:
        """Return whether the zygote was ever ready to fork."""
        return self.ready.done() and self.ready.exception() is None

    async def fork(self, request: dict[str, Any]) -> Child:
        """Fork an engine; `request` holds the protocol's fields.

        Raises:
            StartError: no engine was forked.
        """
        engine: str = request["engine"]
        await asyncio.shield(self.ready)
        if not self.alive:
            raise StartError("the zygote is gone")
        answer: asyncio.Future[Child] = asyncio.get_running_loop().create_future()
        self._forking[engine] = answer
        self._send({"op": "fork", **request})
        try:
            return await asyncio.wait_for(answer, FORK_S)
        except TimeoutError:
            self.stuck = True
            raise StartError(f"the zygote (pid {self.pid}) did not answer within {FORK_S:g} s") from None
        finally:
            self._forking.pop(engine, None)

    def kill(self) -> None:
        """Kill the zygote, and all its engines with it."""
        if self.alive:
            self._process.kill()

    async def close(self) -> None:
        """Tell the zygote to kill the remaining engines and to exit."""
        if self.alive:
            self._send({"op": "quit"})
        await asyncio.wait({self._gone}, timeout=QUIT_S)
        self.kill()
        await self._gone

    def _send(self, message: dict[str, Any]) -> None:
        body = json.dumps(message).encode()
        # Requests are rare and small compared with the socket's buffer: a zygote that lets it fill up is stuck.
        try:
            sent = self._control.send(_LENGTH.pack(len(body)) + body)
        except OSError as error:
            log.error("zygote %d takes no requests (%s): ending it", self.pid, error)
            self.kill()
            return
        if sent < len(body) + _LENGTH.size:
            log.error("zygote %d reads no requests: ending it", self.pid)
            self.kill()

    def _on_readable(self) -> None:
        try:
            data = self._control.recv(1 << 16)
        except (BlockingIOError, ConnectionResetError):
            return
        if not data:
            asyncio.get_running_loop().remove_reader(self._control.fileno())
            return
        self._buffer += data
        while len(self._buffer) >= _LENGTH.size:
            end = _LENGTH.size + _LENGTH.unpack_from(self._buffer)[0]
            if len(self._buffer) < end:
                return
            message = json.loads(self._buffer[_LENGTH.size : end])
            del self._buffer[:end]
            self._on_message(message)

    def _on_message(self, message: dict[str, Any]) -> None:
        match message["op"]:
            case "ready":
                self._late.cancel()
                for name, why in message.get("dropped", []):
                    log.warning("%s is not preloaded: %s", name, why)
                if not self.ready.done():
                    self.ready.set_result(None)
            case "forked":
                # The child is made here and not by the waiting coroutine: `exited` may be in the same read.
                child = self._children[message["engine"]] = Child(message["pid"], self.pid)
                if message["engine"] not in self._forking:
                    child.send_signal(signal.SIGKILL)  # nobody waits for it any more
                self._answer(message["engine"], child)
            case "failed":
                self._answer(message["engine"], StartError(message["error"]))
            case "exited":
                if message["engine"] in self._children:
                    self._children.pop(message["engine"]).ended(Exit(message["status"], message["maxrss"]))
            case unknown:
                log.error("the zygote said %r, which is not in its protocol", unknown)

    def _answer(self, engine: str, answer: Child | StartError) -> None:
        waiting = self._forking.pop(engine, None)
        if waiting is None or waiting.done():
            return
        if isinstance(answer, StartError):
            waiting.set_exception(answer)
        else:
            waiting.set_result(answer)

    def _not_ready(self) -> None:
        log.error("zygote %d was not ready after %g s: ending it", self.pid, READY_S)
        self.kill()

    def _on_death(self) -> None:
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        status = self._process.wait()
        self._on_readable()  # exits that it reported before
        self.alive = False
        self._late.cancel()
        if self._control.fileno() >= 0:
            loop.remove_reader(self._control.fileno())
            self._control.close()
        printed = tail(self._output)
        last = last_line(printed) or "it printed nothing"
        why = StartError(f"the process that forks engines ended with exit code {status}: {last}\n{printed}".rstrip())
        for engine in list(self._forking):
            self._answer(engine, why)
        if not self.ready.done():
            self.ready.set_exception(why)
            self.ready.exception()  # if nobody waits for it, that is fine
        for child in self._children.values():
            child.orphaned()
        self._gone.set_result(None)
        self._died()


def parent_of(pid: int) -> int | None:
    """Return the parent of a process.  None: the process has ended."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return int(file.read().rpartition(b")")[2].split()[1])
    except (OSError, IndexError):
        return None
