"""What the hub knows of one session."""

from __future__ import annotations

from .peer_events import Peer
from .reliable_session import Greeting, ReliableSession


class HubSession:
    """The hub's state of one session."""

    def __init__(self, peer: Peer) -> None:
        self.peer = peer
        self.user = ""
        """The ZeroMQ user id of its present connection, which tells the key."""
        self.session = ReliableSession()
        self.connection: bytes | None = None
        self.ended: bytes | None = None
        """The connection that the peer has closed, until there is a new one: its last messages may still be read."""
        self.welcome: Greeting | None = None
        """The Welcome to be sent by the next flush."""
        self.beat_due = False
        self.spoke_awake_s = 0.0
        self.heard_awake_s = 0.0
        self.silent = False
