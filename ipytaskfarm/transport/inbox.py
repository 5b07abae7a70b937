"""The messages that the controller has received and not handled yet, session by session, in the order of fair turns.

Packets wait as they came. One is decoded when its session has its turn, so what waits takes no more memory than it had
bytes. A packet with many messages is handled message by message; it is acknowledged after its last one.

A question of a peer that has not taken its earlier answers waits until it has: answers cannot pile up.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Protocol

from ..core.errors import ResultTooLarge
from ..core.messages import AskQuestion
from ..core.turn_shares import TurnShares
from . import message_parts, wire
from .reliable_session import PACKET_COST_BYTES

MESSAGE_S = 1e-5
"""The least cost of a message, in seconds; also the cost where no time passes, as in a simulation."""
BYTE_S = 4e-9
"""The cost of a byte, in seconds: a turn takes at most some MiB from its sessions."""
ALONE_S = 1e-3
"""If a session's message has cost less, and nobody else waited, the session does not owe anybody its turn."""
LARGE_BYTES = message_parts.COUNTED_BYTES
"""Larger packets of clients come last in a turn, as heavy messages do: to read one may take half a second."""
ANSWERS_BYTES = 16 << 20
"""While more bytes than this are on their way to a peer, its questions wait."""


class Left(Enum):
    """In the place of a message: the session has said good-bye after its last message."""

    LEFT = "left"


LEFT = Left.LEFT


class PacketReader(Protocol):
    """Reads messages for a session, and reports those that cannot be read."""

    def read(self, session: str, raw: Any) -> Any:
        """Return the message, or None for one that was refused."""

    def unreadable(self, session: str, body: Any, error: Exception) -> None:
        """Refuse a peer that sent something unreadable."""


@dataclass(slots=True)
class _Waiting:
    """The messages of one session."""

    key: str
    role: str
    packets: deque[tuple[int, bytes | memoryview]] = field(default_factory=deque)
    """(number, body) of packets that were not begun."""
    messages: deque[Any] = field(default_factory=deque)
    """The rest of the packet that is being handled, each as `message_parts.split` returns it."""
    begun: int = 0
    """The number of the packet that is being handled; 0 for none."""
    begun_bytes: int = 0
    size_bytes: int = 0
    """The memory of all packets, the begun one included."""
    left: bool = False
    heavy: bool = False
    """Whether the next message is known to be heavy."""


class Inbox:
    """Waiting messages of all sessions."""

    def __init__(
        self,
        clock: Callable[[], float],
        reader: PacketReader,
        backlog_bytes: Callable[[str], int],
        shares: TurnShares | None = None,
    ) -> None:
        self._clock = clock
        self._reader = reader
        self._backlog_bytes = backlog_bytes
        self.shares = shares or TurnShares()
        self._waiting: dict[str, _Waiting] = {}
        self._alone: str | None = None
        """The session that waits, if it is the only one: it need not be put in order."""
        self._parked: set[str] = set()
        """Sessions with questions that wait until their earlier answers were taken."""

    @property
    def has_work(self) -> bool:
        """Return whether a message can be handled now."""
        return self._alone is not None or bool(self.shares)

    def put(self, session: str, key: str, role: str, number: int, body: bytes | memoryview) -> None:
        """Add a packet of a session."""
        waiting = self._waiting.get(session)
        if waiting is None:
            is_alone = not self._waiting
            waiting = self._waiting[session] = _Waiting(key, role)
            if is_alone:
                self._alone = session
            else:
                self._put_in_order()
                self.shares.wait(key, session, False)
        # A small body is copied: it would keep the whole buffer that it arrived in.
        waiting.packets.append((number, body if len(body) > message_parts.SMALL_BYTES else bytes(body)))
        waiting.size_bytes += len(body) + PACKET_COST_BYTES

    def _put_in_order(self) -> None:
        """Let the session take its turn that was the only one."""
        session, self._alone = self._alone, None
        if session is not None:
            self.shares.wait(self._waiting[session].key, session, False)

    def bytes_of(self, session: str) -> int:
        """Return how many bytes wait for a session."""
        waiting = self._waiting.get(session)
        return waiting.size_bytes if waiting is not None else 0

    def handled(self, session: str) -> int | None:
        """Return the number of the last packet that was handled completely; None if none waits."""
        waiting = self._waiting.get(session)
        if waiting is None:
            return None
        if waiting.begun:
            return waiting.begun - 1
        return waiting.packets[0][0] - 1 if waiting.packets else None

    def leave(self, session: str) -> bool:
        """Record that a session said good-bye. Return whether messages of it wait; `take` returns `LEFT` after them."""
        waiting = self._waiting.get(session)
        if waiting is not None:
            waiting.left = True
        return waiting is not None

    def drop(self, session: str) -> None:
        """Forget the waiting messages of a session, which starts again."""
        if self._waiting.pop(session, None) is not None:
            self._alone = None if self._alone == session else self._alone
            self._parked.discard(session)
            self.shares.forget(session)

    def forget(self, session: str) -> None:
        self.drop(session)
        self.shares.forget(session)

    def take(self) -> Iterator[tuple[str, Any]]:
        """Return (session, message) for the messages of one turn, in fair order.

        The time until the next message is asked for is the cost of a message.
        """
        shares = self.shares
        shares.begin()
        if self._parked:
            self._resume()
        alone, self._alone = self._alone, None
        while (session := alone or shares.pop()) is not None:
            is_alone, alone = alone is not None, None
            waiting = self._waiting.get(session)
            if waiting is None:
                continue
            began_s = self._clock()
            cost_s = 0.0 if waiting.messages else len(waiting.packets[0][1]) * BYTE_S
            message = self._next(session, waiting)
            if message is not None:
                yield session, message
            if self._waiting.get(session) is waiting and session not in self._parked:
                self._go_on(session, waiting)
            cost_s += max(MESSAGE_S, self._clock() - began_s)
            if not is_alone:
                shares.charge(session, cost_s)
            elif cost_s > ALONE_S:
                shares.charge_alone(waiting.key, session, cost_s)
            if waiting.left and self._waiting.get(session) is None:
                yield session, LEFT

    def _resume(self) -> None:
        for session in [each for each in self._parked if self._backlog_bytes(each) <= ANSWERS_BYTES]:
            self._parked.discard(session)
            waiting = self._waiting[session]
            self.shares.wait(waiting.key, session, waiting.heavy)

    def _go_on(self, session: str, waiting: _Waiting) -> None:
        if waiting.messages and not waiting.heavy:
            try:
                waiting.messages[0] = message_parts.opened(waiting.messages[0])
            except wire.READABLE:
                pass  # its session is refused when its turn comes
            else:
                waiting.heavy = message_parts.is_heavy(waiting.messages[0])
        if waiting.messages or waiting.packets:
            self.shares.wait(waiting.key, session, waiting.heavy)
        else:
            del self._waiting[session]

    def _next(self, session: str, waiting: _Waiting) -> Any:
        """Return the next message of a session; None if it must wait, or was refused."""
        body: Any = b""
        try:
            if not waiting.messages:
                if waiting.role != "agent" and not waiting.heavy and len(waiting.packets[0][1]) > LARGE_BYTES:
                    waiting.heavy = True
                    return None
                waiting.begun, body = waiting.packets.popleft()
                waiting.begun_bytes = len(body) + PACKET_COST_BYTES
                waiting.messages = message_parts.split(waiting.role, body)
            if waiting.messages:
                body = waiting.messages[0] = message_parts.opened(waiting.messages[0])
                if not self._may_begin(session, waiting):
                    return None
                waiting.messages.popleft()
                waiting.heavy = False
                return self._reader.read(session, body)
        except (*wire.READABLE, ResultTooLarge) as error:
            self.drop(session)
            self._reader.unreadable(session, body, error)
            return None
        finally:
            if not waiting.messages:
                waiting.size_bytes -= waiting.begun_bytes
                waiting.begun = waiting.begun_bytes = 0
        return None

    def _may_begin(self, session: str, waiting: _Waiting) -> bool:
        """Return whether the next message can be handled now; otherwise make its session wait."""
        message = waiting.messages[0]
        is_heavy = message_parts.is_heavy(message)
        if (is_heavy or type(message) is AskQuestion) and self._backlog_bytes(session) > ANSWERS_BYTES:
            waiting.heavy = is_heavy
            self._parked.add(session)
            return False
        if is_heavy and not waiting.heavy:
            waiting.heavy = True
            return False
        return True
