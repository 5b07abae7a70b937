"""Connections between the controller and its peers, as the sessions see them: two ways that carry the same frames.

===============  ==================  =====================  =====================================================
way              the controller has  a peer has             who may use it
===============  ==================  =====================  =====================================================
TCP with CURVE   `CurveListener`     `CurveConnection`      everybody who has a key
unix socket      `UnixListener`      `UnixConnection`       the same user on the same machine who has a key
===============  ==================  =====================  =====================================================

`transport.reliable_session` makes the frames, and repairs losses on both ways. A unix socket costs one system call for
each frame and wakes one thread; ZeroMQ adds its IO threads and the encryption at both ends.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum
from typing import NamedTuple, Protocol, TypeAlias

Frame: TypeAlias = bytes | memoryview

ConnectionId: TypeAlias = bytes | int
"""The controller's name of a connection: ZeroMQ's routing id, which the peer may choose, or the number of a connection
by unix socket."""


class KnownKey(NamedTuple):
    """A key that peers may have."""

    user: str
    """The user id of all that comes under this key."""
    secret: str
    """The secret half, in z85."""


class ReceivedFrame(NamedTuple):
    """A frame that arrived at the controller."""

    connection: ConnectionId
    user: str
    """The user id of the key that the peer has proven to have."""
    frame: memoryview | None
    """None if a part of a malformed message was skipped."""


class Sent(Enum):
    """The result of sending a frame."""

    OK = "the connection has taken the frame"
    FULL = "the connection takes no frame at present: the peer does not read"
    GONE = "the connection has ended"


OK, FULL, GONE = Sent
"""Access to a member of an enumeration takes long, compared with the code that is run for each frame."""


class PeerListener(Protocol):
    """The controller's end of all connections of one way. Nothing here blocks."""

    def receive(self) -> ReceivedFrame | None:
        """Return the next frame, from the connections in turn; None if there is none."""
        ...

    def send(self, connection: ConnectionId, frame: bytes) -> Sent:
        """Send a frame on a connection."""
        ...

    def close(self) -> None:
        """Close all connections. Frames that were sent are still delivered, within a tenth of a second."""
        ...


SPEAKERS_MAX = 256


def speakers(listener: PeerListener) -> Iterator[ConnectionId]:
    """Drop what has arrived, up to a bound, and yield the connection of each frame."""
    for _ in range(SPEAKERS_MAX):
        if (packet := listener.receive()) is None:
            return
        if packet.frame is not None:
            yield packet.connection


class ConnectionFailure(NamedTuple):
    """Why a peer's connection has ended."""

    why: str
    denied: bool = False
    """Whether the controller does not know the key."""


class PeerConnection(Protocol):
    """A peer's end of a connection. Nothing here blocks."""

    reports_changes_only: bool
    """Whether `fds` are readable only after a change, so that it must be read after each action."""

    def fds(self) -> list[int]:
        """Return the descriptors to watch for readability."""
        ...

    def send(self, frame: bytes) -> bool:
        """Send a frame. Return False if the connection takes none at present."""
        ...

    def receive(self) -> Frame | None:
        """Return the next frame; None if there is none.

        Raises:
            ValueError: something arrived that is no frame.
        """
        ...

    @property
    def is_congested(self) -> bool:
        """Return whether frames wait until the controller reads, which no descriptor reports."""
        ...

    def failure(self) -> ConnectionFailure | None:
        """Return why the connection has ended; None while it stands. Frames may still wait for `receive`."""
        ...

    def close(self, linger_ms: int) -> None:
        """Close the connection. Frames that were sent are still delivered, if that takes at most `linger_ms`."""
        ...
