"""Peers of the controller, and the events about them that the hub reports."""

from __future__ import annotations

from typing import TypeAlias

import msgspec

from ..core.messages import AgentMessage, ClientMessage
from .handshake import Hello


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
