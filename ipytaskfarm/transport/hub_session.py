"""What the hub knows of one session."""

from __future__ import annotations

from collections.abc import Iterable

from .interface import ConnectionId
from .peer_events import Peer
from .reliable_session import Greeting, ReliableSession


class HubSession:
    """The hub's state of one session."""

    def __init__(self, peer: Peer, pool: str) -> None:
        self.peer = peer
        self.pool = pool
        """See `session_places.pool_of`."""
        self.user = ""
        """The user id of its present connection, which tells the key."""
        self.session = ReliableSession()
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
