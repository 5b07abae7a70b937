"""Large values on their way to and from machines that do not see the farm's folder of blobs, piece by piece.

Peers on other machines ask the controller for one piece of a blob (`storage.blobs`) after the other, and send it their
own blobs so.  A blob of gigabytes never delays other messages on the connection for longer than a few pieces take.
"""

from __future__ import annotations

import msgspec

PIECE_BYTES = 1 << 20
"""The size of a piece, except the last one of a blob."""

PIECES_AHEAD = 2
"""The number of pieces of a blob that are requested, or sent, at a time: one is on its way while another is written."""

DIGEST_BYTES = 32
"""The size of a SHA-256."""


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


class WriteBlob(msgspec.Struct, frozen=True, tag=True):
    """Question of a client or an agent: keep this piece of a blob; without data, how much of the blob is there?

    Answer: `BlobWritten`.  The pieces come in order.  A piece that is not the next one is not written, and the answer
    says which one is: so a piece may be sent twice, and a restarted controller is sent the blob from its beginning.
    """

    digest: bytes
    """SHA-256 of the whole blob, 32 bytes."""
    size: int
    """The size of the whole blob, in bytes."""
    offset: int = 0
    data: bytes = b""


class BlobWritten(msgspec.Struct, frozen=True, tag=True):
    """How much of a blob the controller has, or an error for people why it does not take the blob."""

    digest: bytes
    upto: int = 0
    """The bytes from the beginning that need not be sent again. If it is the size, the blob is on disk, and its SHA-256
    was checked."""
    error: str = ""
    later: bool = False
    """Whether the same may be asked again after a pause: others have all places for uploads now."""


class WantBlob(msgspec.Struct, frozen=True, tag=True):
    """An engine needs this blob in its node's folder. Answer: `BlobHere`, as soon as it is there."""

    digest: bytes


class BlobHere(msgspec.Struct, frozen=True, tag=True):
    """The blob is in the node's folder, or an error says why it never will be. Sent to an engine."""

    digest: bytes
    error: str = ""


class KeepBlob(msgspec.Struct, frozen=True, tag=True):
    """An engine has written this blob into its node's folder, and will name it. Answer: `BlobKept`, as soon as the
    controller has it.
    """

    digest: bytes


class BlobKept(msgspec.Struct, frozen=True, tag=True):
    """The controller has the blob, or an error says why it has not. Sent to an engine."""

    digest: bytes
    error: str = ""
