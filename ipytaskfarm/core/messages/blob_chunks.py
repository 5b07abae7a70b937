"""Large values on their way to machines that do not see the farm's folder of blobs, piece by piece.

Agents and clients on other machines ask the controller for one piece of a blob (`storage.blobs`) after the other.  So a
blob of gigabytes never delays other messages on the connection for longer than a few pieces take.
"""

from __future__ import annotations

import msgspec

PIECE_BYTES = 1 << 20
"""The size of a piece, except the last one of a blob."""

PIECES_AHEAD = 2
"""The number of pieces of a blob that are requested at a time: one is on its way while another is written."""


class ReadBlob(msgspec.Struct, frozen=True, tag=True):
    """Question of a client or an agent: the piece of a blob that begins at this offset.  Answer: `BlobPiece`."""

    digest: bytes
    """SHA-256, 32 bytes."""
    offset: int = 0


class BlobPiece(msgspec.Struct, frozen=True, tag=True):
    """A piece of a blob, or an error for people why there is none."""

    digest: bytes
    offset: int
    size: int = 0
    """The size of the whole blob, in bytes."""
    data: bytes = b""
    error: str = ""


class WantBlob(msgspec.Struct, frozen=True, tag=True):
    """An engine needs this blob in its node's folder. Answer: `BlobHere`, as soon as it is there."""

    digest: bytes


class BlobHere(msgspec.Struct, frozen=True, tag=True):
    """The blob is in the node's folder, or an error says why it never will be. Sent to an engine."""

    digest: bytes
    error: str = ""
