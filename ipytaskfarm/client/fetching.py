"""Download large results for a client that cannot see the farm's folder.

A large result is downloaded when a caller uses it, in the caller's thread, so Ctrl-C ends the wait.  Downloads are kept
in unnamed files, which the kernel deletes with the process.
"""

from __future__ import annotations

import tempfile
import threading
from collections import OrderedDict
from typing import TYPE_CHECKING

from ..core import errors
from ..core.messages.blob_chunks import BlobPiece, ReadBlob
from ..storage.blob_copies import Arrival, PieceWindow
from ..storage.blobs import missing_blob
from ..system.file_mapping import load

if TYPE_CHECKING:
    from io import FileIO

    from .questions import AsksController, PendingQuestion

KEPT_BYTES = 2**30
"""Bytes of downloads that are kept on disk; older ones are downloaded again when they are needed."""

KEPT_FILES = 64
"""Largest number of kept files: each takes a descriptor."""

AT_ONCE = 4
"""Downloads that run at the same time, each in its caller's thread."""


class BlobDownloads:
    """The downloads of one session."""

    def __init__(self, session: AsksController, kept_bytes: int = KEPT_BYTES) -> None:
        self._session = session
        self._kept_bytes_max = kept_bytes
        self._kept: OrderedDict[bytes, FileIO] = OrderedDict()
        self._kept_bytes = 0
        self._lock = threading.RLock()
        self._places = threading.Semaphore(AT_ONCE)
        self._under_way: dict[bytes, threading.RLock] = {}
        """Blob -> a lock that is held during its download; other threads that need the same blob wait for it."""
        self.bytes = 0
        """Number of downloaded bytes."""

    def fetch(self, digest: bytes) -> memoryview:
        """Download a blob if needed, and return it as mapped memory.

        Raises BlobMissing if the farm does not have it.
        """
        found = self._look(digest)
        if found is not None:
            return found
        with self._lock:
            under_way = self._under_way.setdefault(digest, threading.RLock())
        with under_way:
            try:
                return self._look(digest) or self._bring(digest)
            except errors.BlobMissing:
                raise
            except errors.TaskFarmError as error:
                raise missing_blob(digest, str(error)) from error
            finally:
                with self._lock:
                    self._under_way.pop(digest, None)

    def _look(self, digest: bytes) -> memoryview | None:
        with self._lock:
            file = self._kept.get(digest)
            if file is None:
                return None
            self._kept.move_to_end(digest)
            return load(file.fileno())

    def _bring(self, digest: bytes) -> memoryview:
        with self._places:
            piece = self._answer(self._ask(digest, 0))
            if piece.error:
                raise missing_blob(digest, piece.error)
            file = tempfile.TemporaryFile(buffering=0, prefix="ipytaskfarm-")  # noqa: SIM115 - it is kept
            try:
                arrival = Arrival(digest, piece.size, file)
                self._take(arrival, piece)
                arrival.check()
            except BaseException:
                file.close()
                raise
        found = load(file.fileno())
        self._keep(digest, piece.size, file)
        return found

    def _take(self, arrival: Arrival, piece: BlobPiece) -> None:
        """Write the first piece of a blob and all that follow."""
        window = PieceWindow(arrival.size, lambda offset: self._ask(arrival.digest, offset))
        try:
            while True:
                arrival.take(piece)
                asked = window.take_oldest()
                if asked is None:
                    return
                piece = self._answer(asked)
                window.ask_more()
        finally:
            for left in window.unanswered:
                self._session.forget(left)

    def _ask(self, digest: bytes, offset: int) -> PendingQuestion:
        return self._session.begin(ReadBlob(digest, offset))

    def _answer(self, asked: PendingQuestion) -> BlobPiece:
        reply = self._session.answer(asked)
        assert isinstance(reply, BlobPiece), f"the controller answered ReadBlob with {type(reply).__name__}"
        return reply

    def _keep(self, digest: bytes, size: int, file: FileIO) -> None:
        with self._lock:
            self.bytes += size
            if digest in self._kept:
                return file.close()
            self._kept[digest] = file
            self._kept_bytes += size
            while self._kept_bytes > self._kept_bytes_max or len(self._kept) > KEPT_FILES:
                _, oldest = self._kept.popitem(last=False)  # mappings of deleted files stay valid
                self._kept_bytes -= oldest.seek(0, 2)
                oldest.close()

    def close(self) -> None:
        """Delete all kept downloads."""
        with self._lock:
            for file in self._kept.values():
                file.close()
            self._kept.clear()
            self._kept_bytes = 0
