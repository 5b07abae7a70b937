"""The handshake of a connection: who is there, and from where the two go on.  See `core.session` for what follows."""

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
    """A nonce that lives as long as the peer's process."""
    farm: str | None
    """The farm's incarnation this peer knows; None: the first time."""
    epoch: int
    """The controller's epoch this peer last spoke with; 0: none."""
    last_in: int
    """The last packet of that epoch received from the controller."""
    name: str = ""
    """For people: ``user@host pid``, or an agent's node."""


class Welcome(msgspec.Struct, frozen=True, tag=True):
    """The controller's answer: go on.  Another epoch than the peer's, or `last_in` -1: both sides count anew."""

    farm: str
    name: str
    epoch: int
    last_in: int
    version: str


class Refuse(msgspec.Struct, frozen=True, tag=True):
    """The controller's answer: go away.  `etype` is a name of `core.errors`; final unless `later`."""

    etype: str
    text: str
    later: bool = False


class WhoAreYou(msgspec.Struct, frozen=True, tag=True):
    """The controller's answer to anything but a `Hello` on a connection that it does not know."""


Handshake: TypeAlias = Hello | Welcome | Refuse | WhoAreYou
