"""The handshake of a connection: it identifies the peer, and the packet from which both sides continue.

`transport.reliable_session` describes the steps after it.
"""

from __future__ import annotations

from typing import TypeAlias

import msgspec


class Hello(msgspec.Struct, frozen=True, tag=True):
    """The first message on every connection."""

    protocol: int
    version: str
    python: str
    role: str
    """client or agent; the key must allow it."""
    session: str
    """A random name that lives as long as the peer's process."""
    farm: str | None
    """The incarnation of the farm that this peer knows; None at the first contact."""
    epoch: int
    """The epoch of the controller that this peer was last connected to; 0 for none."""
    last_in: int
    """The number of the last packet of that epoch that the peer has received."""
    name: str = ""
    """The name for people: ``user@host pid``, or an agent's node."""


class Welcome(msgspec.Struct, frozen=True, tag=True):
    """The controller's acceptance.

    If the epoch differs from the peer's, or `last_in` is -1, both sides count from the beginning.
    """

    farm: str
    name: str
    epoch: int
    last_in: int
    version: str


class Refuse(msgspec.Struct, frozen=True, tag=True):
    """The controller's refusal. `etype` is a name of `core.errors`. The refusal is final unless `later` is set."""

    etype: str
    text: str
    later: bool = False


class WhoAreYou(msgspec.Struct, frozen=True, tag=True):
    """The controller's answer to anything but a `Hello` on a connection that it does not know."""


Handshake: TypeAlias = Hello | Welcome | Refuse | WhoAreYou

STORE_FULL = "StoreFull"
"""The `etype` of a refusal by a controller that lives and commits nothing, because its store has no room."""
REPLACED = "the key of this connection was replaced: read the connection file again"
REVOKED = (
    "the key of this connection was revoked: ask the farm's owner for another connection file (`ipytaskfarm keys add`)"
)
