"""Writes blobs that peers send which do not see the farm's folder, piece by piece, in a thread.

Each session's uploads are its own: whatever it sends, another session's upload of the same digest ends well. A blob
gets its name when all of it is on the disk and its SHA-256 was checked; before that it is a part, of which nobody
knows. A part ends with its session, after `IDLE_S` without a piece, or with the controller; the next controller removes
it.

What is received and not written, what is unfinished, and what is announced is bounded for each session and each key,
and in all (`core.uploads`). Whoever is over a limit is told to ask again later.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import threading
import time
import uuid
from collections import Counter, deque
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import NamedTuple

from ..core.messages import Answer
from ..core.messages.blob_chunks import DIGEST_BYTES, BlobWritten, WriteBlob
from ..core.text import text_of
from ..core.uploads import UploadPlaces
from ..storage.blob_copies import Arrival
from ..storage.blobs import Blobs

log = logging.getLogger(__name__)

IDLE_S = 120.0
"""How long (seconds) an upload may wait for its next piece."""

WAITING_PER_SESSION = 32
WAITING_PER_KEY = 128
WAITING_IN_ALL = 192
"""Pieces, of up to 1 MiB, that are received and not written. An honest peer has eight at most."""

SYNC_BYTES = 32 << 20
"""The disk has all of an upload but this many bytes, so that the last sync does not keep others waiting for long."""

UPLOADED_KEPT_S = 3600.0
"""How long (seconds) such a blob is kept before something needs it: its peer may be cut off for as long as a lease."""

SIZE_MAX = 2**48
_SUFFIX = ".upload.part"


class WritePiece(NamedTuple):
    """A piece to write, for question `n` of a client; None for an agent."""

    session: str
    key: str
    """The title of the session's key."""
    n: int | None
    question: WriteBlob

    def answered(self, written: BlobWritten) -> Answer | BlobWritten:
        """Return the message that answers it."""
        return written if self.n is None else Answer(self.n, written)


@dataclass(slots=True)
class _Upload:
    """An unfinished blob of one session."""

    arrival: Arrival
    part: Path
    key: str
    heard_s: float
    """When (monotonic) its last piece came."""
    unsynced: int = 0


class BlobReceiver:
    """Answers `WritePiece` requests, those of each session in order."""

    def __init__(self, blobs: Blobs, min_free_bytes: int = 0, places: UploadPlaces | None = None) -> None:
        """Create it, and remove what uploads to an earlier controller have left.

        Args:
            blobs: the farm's blobs.
            min_free_bytes: the room on the disk that uploads leave for results.
            places: the bounds of uploads; None for the defaults.
        """
        self._blobs = blobs
        self._min_free_bytes = min_free_bytes
        self._places = places or UploadPlaces()
        self._uploads: dict[tuple[str, bytes], _Upload] = {}
        """(session, digest) -> its unfinished upload. Only the thread uses it."""
        self._waiting: Counter[str] = Counter()
        """Session -> its pieces that are not written."""
        self._of_key: Counter[str] = Counter()
        self._to_write: queue.SimpleQueue[WritePiece | str | None] = queue.SimpleQueue()
        """Pieces; a session that has ended; None for the end."""
        self._written: deque[tuple[WritePiece, BlobWritten]] = deque()
        self._refused: list[tuple[str, Answer | BlobWritten]] = []
        self._bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        for left in blobs.folder.glob(f"*{_SUFFIX}"):
            left.unlink(missing_ok=True)
        self._was_asked = False
        """Whether there was any question: until then no turn of the controller looks for answers."""
        # It is started now, because later there may be no room for a thread.
        self._thread = threading.Thread(target=self._serve, name="writer of blobs", daemon=True)
        self._thread.start()

    # -- called by the loop

    def fd(self) -> int:
        """Return a descriptor that is readable when there are answers."""
        return self._bell

    def ask(self, piece: WritePiece) -> None:
        """Queue a piece, or answer that it must come again later."""
        self._was_asked = True
        session = piece.session
        if (
            self._waiting[session] >= WAITING_PER_SESSION
            or self._of_key[piece.key] >= WAITING_PER_KEY
            or self._waiting.total() >= WAITING_IN_ALL
        ):
            text = "the controller has received more pieces of large values than it has written"
            answer = BlobWritten(piece.question.digest, error=text, later=True)
            self._refused.append((session, piece.answered(answer)))
            return
        self._waiting[session] += 1
        self._of_key[piece.key] += 1
        self._to_write.put(piece)

    def session_ended(self, session: str) -> None:
        """Remove the unfinished uploads of a session that is over."""
        self._to_write.put(session)

    def answers(self) -> list[tuple[str, Answer | BlobWritten]]:
        """Return (session, answer) for each piece that was written. Never blocks."""
        if not self._was_asked:
            return []
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._bell)
        found, self._refused = self._refused, []
        while self._written:
            piece, written = self._written.popleft()
            self._waiting[piece.session] -= 1
            self._of_key[piece.key] -= 1
            found.append((piece.session, piece.answered(written)))
        self._waiting += Counter()  # drops the entries with zero
        return found

    def close(self) -> None:
        """End the thread, and remove what is unfinished."""
        self._to_write.put(None)
        self._thread.join()
        os.close(self._bell)

    # -- the thread

    def _serve(self) -> None:
        while True:
            try:
                what = self._to_write.get(timeout=IDLE_S / 4 if self._uploads else None)
            except queue.Empty:
                what = ""
            if what is None:
                break
            if isinstance(what, WritePiece):
                self._written.append((what, self._answer(what)))
                os.eventfd_write(self._bell, 1)
            self._drop_old(what if isinstance(what, str) else "")
        for upload in list(self._uploads):
            self._end(upload)

    def _drop_old(self, ended: str) -> None:
        """Remove the uploads of a session that has ended, and those for which nothing came."""
        now_s = time.monotonic()
        for key, upload in list(self._uploads.items()):
            if key[0] == ended or now_s - upload.heard_s > IDLE_S:
                log.info("an upload has ended after %s of %s bytes", upload.arrival.came, upload.arrival.size)
                self._end(key)

    def _answer(self, piece: WritePiece) -> BlobWritten:
        """Return the answer to a piece. An error is that upload's only, not the thread's."""
        digest = piece.question.digest
        try:
            return self._write(piece)
        except OSError as error:
            why = f"the controller cannot write it: {error.strerror or error}"
        except Exception as error:
            log.exception("a piece of an upload cannot be written")
            why = f"the controller cannot write it: {text_of(error)}"
        self._end((piece.session, digest))
        return BlobWritten(digest, error=why)

    def _write(self, piece: WritePiece) -> BlobWritten:
        question, place = piece.question, (piece.session, piece.question.digest)
        digest, size = question.digest, question.size
        if len(digest) != DIGEST_BYTES or not 0 < size <= SIZE_MAX:
            return BlobWritten(digest, error="a large value is named by a SHA-256 and a size")
        if self._blobs.has(digest, size):
            self._end(place)  # another client has sent it in the meantime
            return BlobWritten(digest, size)
        upload = self._uploads.get(place)
        if upload is not None and upload.arrival.size != size:
            self._end(place)
            upload = None
        came = upload.arrival.came if upload is not None else 0
        if upload is None and question.offset == 0:
            room_bytes = self._room_bytes()
            if refused := self._places.why_not(piece.key, piece.session, size, room_bytes):
                return BlobWritten(digest, error=refused.why, later=refused.later)
        if not question.data or question.offset != came:
            return BlobWritten(digest, came)
        if upload is None:
            upload = self._begin(place, piece.key, size)
        return self._take(place, upload, question.data)

    def _take(self, place: tuple[str, bytes], upload: _Upload, data: bytes) -> BlobWritten:
        """Write the next piece of an upload; give the blob its name after the last one."""
        arrival, digest = upload.arrival, place[1]
        upload.heard_s = time.monotonic()
        if len(data) != arrival.next_length:
            self._end(place)
            return BlobWritten(digest, error=f"its piece at {arrival.came:,} has {len(data):,} bytes")
        arrival.write(data)
        self._places.came(upload.key, place[0], len(data))
        upload.unsynced += len(data)
        if arrival.came == arrival.size:
            if not arrival.is_right:
                self._end(place)
                return BlobWritten(digest, error="what came has another SHA-256: it was changed while it was sent")
            os.fsync(arrival.file.fileno())
            self._blobs.adopt(upload.part, digest, UPLOADED_KEPT_S)
            self._end(place)
        elif upload.unsynced >= SYNC_BYTES:
            os.fdatasync(arrival.file.fileno())
            upload.unsynced = 0
        return BlobWritten(digest, arrival.came)

    def _begin(self, place: tuple[str, bytes], key: str, size: int) -> _Upload:
        part = self._blobs.folder / f"{uuid.uuid4().hex}{_SUFFIX}"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        arrival = Arrival(place[1], size, FileIO(os.open(part, flags, 0o600), "w"))
        upload = self._uploads[place] = _Upload(arrival, part, key, time.monotonic())
        self._places.begin(key, place[0], size)
        return upload

    def _end(self, place: tuple[str, bytes]) -> None:
        """Forget an upload, complete or not, and remove its part."""
        upload = self._uploads.pop(place, None)
        if upload is None:
            return
        self._places.end(upload.key, place[0], upload.arrival.size - upload.arrival.came)
        with contextlib.suppress(OSError):
            upload.arrival.file.close()
            upload.part.unlink(missing_ok=True)

    def _room_bytes(self) -> int:
        """Return how many bytes may still be written, those that were announced included."""
        disk = os.statvfs(self._blobs.folder)
        return disk.f_bavail * disk.f_frsize - self._min_free_bytes
