"""The limits that keep one peer from taking what belongs to all, and the accounts of held bytes.

`PeerLimits` has them all, with their defaults; `docs/limits.md` explains them to users. Errors name the limit that was
reached, and the remedy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

PARTS_MAX = 1_000_000
"""The most values (numbers, texts, lists …) in one message. Bytes within a message count as one value."""

PAYLOAD_BYTES = 64 << 10
"""A payload or a function of this size is large: it counts when an engine is sent tasks ahead."""

PROPERTIES_BYTES = 16 << 20
"""The most bytes of one engine's properties, as `properties_bytes` counts them."""


def properties_bytes(packed: bytes, plain: Mapping[str, object]) -> int:
    """Return the size of properties: packed, and those that are text or numbers once more."""
    texts = sum(len(name) + len(value) for name, value in plain.items() if isinstance(value, str))
    return len(packed) + texts + 100 * len(plain)


@dataclass(frozen=True)
class CountLimits:
    """How many of each thing clients may leave in the controller. Beyond it a question is refused."""

    watches: int = 1_000_000
    """Tasks of other clients that one client watches."""
    watches_in_all: int = 4_000_000
    open_questions: int = 1000
    """Questions of one client of one kind that wait for a task, an engine or a function."""
    open_questions_in_all: int = 50_000
    own_watches: int = 250
    own_questions: int = 10
    """What each client may have, whatever others have: no client can shut others out."""
    sticky: int = 1000
    sticky_bytes: int = 64 << 20
    """The bytes of all sticky commands."""
    senders: int = 1000
    """Different senders of messages to one task."""
    own_senders: int = 100
    """How many more there may be from the client that has submitted the task."""


COUNTS = CountLimits()


@dataclass(frozen=True)
class PeerLimits:
    """The limits of what sessions may hold in the controller. Sizes are in bytes."""

    sessions: int = 4096
    """The most sessions under one key."""
    sessions_in_all: int = 20_000
    sessions_kept: int = 4096
    """The places among `sessions_in_all` that only agents may have."""
    incoming: int = 768 << 20
    """Received messages that are not handled yet, with the pieces of unfinished ones, of all sessions."""
    outgoing: int = 1 << 30
    """Messages to all sessions that are not acknowledged yet."""

    @property
    def incoming_per_key(self) -> int:
        """Return the share of `incoming` that sessions under one key may have: two thirds."""
        return self.incoming * 2 // 3

    @property
    def outgoing_per_session(self) -> int:
        """Return the share of `outgoing` that one session may have: a half."""
        return self.outgoing // 2


FREE_BYTES = 64 << 10
"""Every session may hold so much, whatever others hold: questions and the reports of engines always get in."""


@dataclass(slots=True)
class ByteAccounts:
    """How many bytes are held for each session, for the sessions of each key, and in all."""

    per_session: int
    per_key: int
    in_all: int
    total: int = 0
    _of_key: dict[str, int] = field(default_factory=dict)
    _of_session: dict[str, int] = field(default_factory=dict)

    def why_not(self, key: str, session: str, more: int) -> str:
        """Return why a session may not hold this number of bytes more; "" if it may."""
        held = self._of_session.get(session, 0) + more
        if held <= FREE_BYTES:
            return ""
        if held > self.per_session:
            return f"this session has {held:,} bytes there, and {self.per_session:,} are the most of one session"
        of_key = self._of_key.get(key, 0) + more
        if of_key > self.per_key:
            return f"the peers under this key have {of_key:,} bytes there, and {self.per_key:,} are the most of one key"
        if self.total + more > self.in_all:
            return f"all peers have {self.total + more:,} bytes there, and {self.in_all:,} are the most"
        return ""

    def of(self, session: str) -> int:
        """Return how many bytes are held for a session."""
        return self._of_session.get(session, 0)

    def hold(self, key: str, session: str, size: int) -> None:
        """Record that this many bytes are held for a session from now on, in the place of what was held before."""
        change = size - self._of_session.get(session, 0)
        if size:
            self._of_session[session] = size
        else:
            self._of_session.pop(session, None)
        if change:
            self._of_key[key] = self._of_key.get(key, 0) + change
            self.total += change
