"""What the hub knows of one session: its peer, the events about the peer, and what is to be sent."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TypeAlias

import msgspec

from ..core.messages import AgentMessage, ClientMessage
from .handshake import Hello
from .interface import ConnectionId
from .reliable_session import Greeting, ReliableSession, message_bytes_max


class Peer(msgspec.Struct, frozen=True):
    """A peer that has a session."""

    session: str
    role: str
    """client or agent."""
    name: str
    title: str = ""
    """The title of its key, see `transport.keys`."""
    version: str = ""
    """Its version of this package."""
    python: str = ""
    """Its version of Python."""

    @property
    def read_only(self) -> bool:
        """Return whether the peer may change nothing."""
        return self.title == "reader"


class PeerUp(msgspec.Struct, frozen=True):
    """The peer is connected again, after a cut within the epoch or after `PeerSilent`."""


class PeerNewEpoch(msgspec.Struct, frozen=True):
    """The peer starts again in this epoch, and will report what it holds."""

    hello: Hello


class PeerSilent(msgspec.Struct, frozen=True):
    """The peer was not heard for 5 s and is unreachable. Messages to it are queued."""


class PeerGone(msgspec.Struct, frozen=True):
    """The peer has left, or was silent for `GONE_S`: its session is forgotten."""

    said: bool = False
    """Whether it said good-bye: then this session never comes back."""


PeerEvent: TypeAlias = PeerUp | PeerNewEpoch | PeerSilent | PeerGone
Incoming: TypeAlias = ClientMessage | AgentMessage | PeerEvent


LAZY_S, LAZY_ACK_S = 0.002, 0.02
"""How long a message that can wait, and an acknowledgement alone, wait for another message to the same peer. One is
under way soon if the peer is busy; if it is idle, waking it for this alone takes a core from those who work."""
LAZY_BYTES = 64 << 10
"""After a turn that received more, an acknowledgement waits no longer than a message: the peer's window may be full."""


class HubSession:
    """The hub's state of one session."""

    def __init__(self, peer: Peer, pool: str) -> None:
        self.peer = peer
        self.pool = pool
        """See `session_places.pool_of`."""
        self.user = ""
        """The user id of its present connection, which tells the key."""
        self.session = ReliableSession(max_message_bytes=message_bytes_max(peer.role))
        self.connection: ConnectionId | None = None
        self.ended: ConnectionId | None = None
        """The connection that the peer has closed, until there is a new one: its last messages may still be read."""
        self.welcome: Greeting | None = None
        """The Welcome to be sent by the next flush."""
        self.beat_due = False
        self.is_urgent = False
        """Whether a message for it is queued that cannot wait."""
        self.spoke_awake_s = 0.0
        self.heard_awake_s = 0.0
        self.silent = False
        self.lazy_until_s = math.inf
        """When what there is for it is sent at the latest, see `LazySessions`."""

    def patience_s(self, read_bytes: int) -> float:
        """Return how long what there is for the peer may wait; `read_bytes` were received in this turn."""
        return LAZY_S if self.session.has_unsent or read_bytes > LAZY_BYTES else LAZY_ACK_S


class LazySessions:
    """Sessions for which something waits that is sent later, or with the next message."""

    def __init__(self) -> None:
        self.until_s = math.inf
        """When the first of them is to be sent at the latest."""
        self._waiting: dict[str, HubSession] = {}

    def add(self, state: HubSession, until_s: float) -> None:
        """Let a session wait if there is anything for it; one that waits already waits no longer than before."""
        if not (state.session.owes_ack or state.session.has_unsent):
            return
        self._waiting[state.peer.session] = state
        state.lazy_until_s = min(until_s, state.lazy_until_s)
        self.until_s = min(until_s, self.until_s)

    def drop(self, session: str) -> None:
        """Let a session wait no more: everything for it is sent now."""
        state = self._waiting.pop(session, None)
        if state is not None:
            is_first, state.lazy_until_s = state.lazy_until_s <= self.until_s, math.inf
            if is_first:  # a time that is over for nobody would cost a turn
                self.until_s = min((each.lazy_until_s for each in self._waiting.values()), default=math.inf)

    def take(self, now_s: float) -> dict[str, HubSession]:
        """Return those that have waited for long enough, which wait no more."""
        if now_s < self.until_s:
            return {}
        found = {name: state for name, state in self._waiting.items() if state.lazy_until_s <= now_s}
        for name in found:
            self.drop(name)
        return found


def too_slow(sessions: Iterable[HubSession], per_session: int, in_all: int) -> list[HubSession]:
    """Return the sessions that take too little of what is said to them, those with most first.

    Without them, no session has more than `per_session` bytes that are not acknowledged, and all have `in_all`.
    """
    found = []
    backlogs = sorted(((state.session.unacked_bytes, state) for state in sessions), key=lambda each: each[0])
    total = sum(size for size, _ in backlogs)
    while backlogs and (total > in_all or backlogs[-1][0] > per_session):
        size, state = backlogs.pop()
        total -= size
        found.append(state)
    return found
