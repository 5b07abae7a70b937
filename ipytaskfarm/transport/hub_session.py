"""What the hub knows of one session."""

from __future__ import annotations

from collections.abc import Iterable

from .handshake import Hello, Refuse
from .interface import ConnectionId
from .keys import role_of, session_fits
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


def why_unwelcome(hello: Hello, title: str, known: Peer | None, farm: str, name: str, epoch: int) -> Refuse | None:
    """Return why a peer is refused; None if it is accepted.

    Args:
        hello: its greeting.
        title: the title of its key.
        known: the peer to which the session belongs so far.
        farm, name, epoch: the farm's incarnation and name, and the number of this life of its controller.
    """
    role = role_of(title)
    if hello.role != ("client" if role == "reader" else role):
        return Refuse("SecurityError", f"a key of {title} does not allow to be {hello.role[:40]!r}")
    if not session_fits(title, hello.session):
        return Refuse("SecurityError", f"a key of {title} does not allow to speak for the session {hello.session!r}")
    if hello.farm is not None and (hello.farm != farm or hello.epoch > epoch):
        text = f"farm {name!r} is another one than the farm of that name which this peer knew: make a new client"
        return Refuse("FarmReplaced", text)
    if known is not None and known.title != title:
        return Refuse("SecurityError", "this session belongs to a peer with another key")
    return None
