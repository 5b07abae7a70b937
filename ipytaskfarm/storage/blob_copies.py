"""Copies of blobs on machines that do not see the farm's folder, fetched in pieces and checked by their SHA-256.

A node has one folder of copies for all its engines, inside its agent's folder; the folder is removed with the agent. A
copy may be removed to make room. It is fetched again when it is needed again.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator
from io import FileIO
from itertools import islice
from pathlib import Path
from typing import Generic, TypeVar

from ..core.messages.blob_chunks import PIECE_BYTES, PIECES_AHEAD, BlobPiece
from .blobs import Blobs, missing_blob

SHARE = 0.1
"""The share of the disk that copies may fill; beyond it the least recently used ones are removed."""

IN_HAND_S = 60.0
"""A copy that was used within this many seconds is not removed to make room."""


Question = TypeVar("Question")


class Arrival:
    """A blob that arrives in pieces, which are written and hashed in order."""

    def __init__(self, digest: bytes, size: int, file: FileIO) -> None:
        """Create it; `file` is empty."""
        self.digest = digest
        self.size = size
        self.file = file
        self.came = 0
        """How many bytes were written."""
        self._hash = hashlib.sha256()

    @property
    def next_length(self) -> int:
        """Return the length of the next piece; 0 if all have arrived."""
        return min(PIECE_BYTES, self.size - self.came)

    def take(self, piece: BlobPiece) -> None:
        """Write the next piece.

        Raises:
            BlobMissing: the piece is an error.
            OSError: the piece cannot be written.
        """
        if piece.error:
            raise missing_blob(self.digest, piece.error)
        if piece.offset != self.came or len(piece.data) != self.next_length:
            raise missing_blob(self.digest, "the length of the controller's file has changed")
        self.write(piece.data)

    def write(self, data: bytes) -> None:
        """Write the bytes of the next piece.

        Raises:
            OSError: they cannot be written.
        """
        rest = memoryview(data)
        while rest:
            rest = rest[self.file.write(rest) :]
        self._hash.update(data)
        self.came += len(data)

    @property
    def is_right(self) -> bool:
        """Return whether the SHA-256 of what was written is the blob's name."""
        return self._hash.digest() == self.digest

    def check(self) -> None:
        """Check the SHA-256 of the whole blob.

        Raises:
            BlobMissing: it differs from the blob's name.
        """
        if not self.is_right:
            raise missing_blob(self.digest, "the controller's file is damaged: what came has another SHA-256")


class PieceWindow(Generic[Question]):
    """The open questions about pieces of one blob after its first piece.

    At most `PIECES_AHEAD` are open, so that pieces travel while another one is written.
    """

    def __init__(self, size: int, ask: Callable[[int], Question]) -> None:
        """Ask for the first pieces.

        Args:
            size: the size of the blob in bytes.
            ask: asks for the piece at an offset, and returns a value that identifies the question.
        """
        self._ask = ask
        self._offsets = iter(range(PIECE_BYTES, size, PIECE_BYTES))
        self.unanswered: deque[Question] = deque()
        self.ask_more()

    def ask_more(self) -> None:
        """Ask for as many further pieces as have arrived since."""
        missing = PIECES_AHEAD - len(self.unanswered)
        self.unanswered.extend(self._ask(offset) for offset in islice(self._offsets, missing))

    def take_oldest(self) -> Question | None:
        """Remove and return the question that is answered next; None if all pieces have arrived."""
        return self.unanswered.popleft() if self.unanswered else None


class Copies:
    """The folder of copies of one node."""

    def __init__(self, folder: Path, farm: str, limit_bytes: int | None = None) -> None:
        """Make the folder, empty.

        Args:
            folder: the folder.
            farm: the farm's incarnation.
            limit_bytes: the limit for all copies together; None for `SHARE` of the disk.
        """
        shutil.rmtree(folder, ignore_errors=True)
        self.blobs = Blobs.create(folder, farm)
        self._limit_bytes = int(SHARE * shutil.disk_usage(folder).total) if limit_bytes is None else limit_bytes

    def has(self, digest: bytes) -> bool:
        """Return whether the blob is here."""
        return self.blobs.path(digest).exists()

    def begin(self, digest: bytes, size: int) -> tuple[Arrival, Path]:
        """Make room for a blob of `size` bytes. Return an object that takes its pieces, and its temporary path."""
        self.make_room(size)
        part = self.blobs.folder / f"{uuid.uuid4().hex}.part"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        return Arrival(digest, size, FileIO(os.open(part, flags, 0o600), "w")), part

    def keep(self, arrival: Arrival, part: Path) -> None:
        """Give a complete blob its name.

        Raises:
            BlobMissing: its SHA-256 is wrong.
        """
        arrival.check()
        path = self.blobs.path(arrival.digest)
        path.parent.mkdir(mode=0o700, exist_ok=True)
        os.rename(part, path)

    def remove(self) -> None:
        """Remove the folder.  Mapped blobs stay mapped."""
        shutil.rmtree(self.blobs.folder, ignore_errors=True)

    def make_room(self, size: int = 0) -> None:
        """Remove the least recently used copies until `size` more bytes are within the limit."""
        here = sorted(self._files())
        excess = sum(bytes_ for _, bytes_, _ in here) + size - self._limit_bytes
        for used_s, bytes_, path in here:
            if excess <= 0 or time.time() - used_s < IN_HAND_S:
                return
            path.unlink(missing_ok=True)
            excess -= bytes_

    def _files(self) -> Iterator[tuple[float, int, Path]]:
        """Yield (time of last use, bytes, path) of each copy."""
        for path in self.blobs.folder.glob("??/*"):
            found = path.stat()
            yield found.st_mtime, found.st_size, path
