"""Exchange large values with the controller, for a client that does not see the farm's folder.

Each is sent once, before its tasks. A value is sent when it is packed, in the caller's thread, so Ctrl-C ends the wait.
The caller may change the value afterwards, as with a client that writes files itself.  The controller is asked first
whether it has the value; what this session has sent recently is not asked for again.

A value of less than `INSIDE_BYTES` travels inside the first task that uses it: most are used once, and to wait for an
answer each time would take longer than the value itself.  A value that the controller does not take stays inside, too.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Iterable
from typing import TYPE_CHECKING

from ..core import errors
from ..core.messages.blob_chunks import PIECE_BYTES, BlobPiece, BlobWritten, ReadBlob, WriteBlob
from ..core.uploads import PieceOrder
from ..storage.blob_copies import Arrival, PieceWindow
from ..storage.blobs import KEPT_S, missing_blob
from ..system.file_mapping import load

if TYPE_CHECKING:
    from .questions import AsksController, PendingQuestion

AT_ONCE = 4
"""Uploads that run at the same time, each in its caller's thread."""

SURE_S = KEPT_S / 2
"""Seconds after which the controller is asked again whether it has a value; it keeps an unused one for `KEPT_S`."""

INSIDE_BYTES = PIECE_BYTES
"""Smaller values are sent as blobs from their second use on."""

KNOWN_MAX = 10_000
"""Largest number of values that are remembered."""

PATIENCE_S = 60.0
"""Seconds for which a place for an upload is waited for, since the controller has last taken a piece."""

PAUSES_S = (0.05, 0.1, 0.2, 0.5, 1.0)
"""Pauses between two attempts to get a place; the last one is repeated."""


class BlobUploads:
    """The uploads of one session.  A `storage.blobs.BlobStore`."""

    def __init__(self, session: AsksController) -> None:
        self._session = session
        self._pid = os.getpid()
        self._lock = threading.RLock()
        self._places = threading.Semaphore(AT_ONCE)
        self._known: OrderedDict[bytes, tuple[int, float]] = OrderedDict()
        """Digest -> (size, when (monotonic) the controller said that it has the value)."""
        self._seen: OrderedDict[bytes, None] = OrderedDict()
        """Digests of the values that have travelled inside a task."""
        self._under_way: dict[bytes, threading.RLock] = {}
        """Digest -> a lock that is held during its upload; other threads with the same value wait for it."""
        self.bytes = 0
        """Number of uploaded bytes."""

    def put(self, data: memoryview) -> bytes:
        """Send a value unless the controller has it already, and return its digest.

        Raises:
            OSError: it cannot be sent.  The error of the session, if there is one, is raised by the next use of it.
        """
        return self._put(hashlib.sha256(data).digest(), data)

    def names_file(self, path: str) -> bool:
        """Return whether a user's file may travel as its name: no, other machines do not see it."""
        return False

    def offer(self, data: memoryview) -> bytes | None:
        """Send a value as `put` does; return None for a small one that is used for the first time.

        Raises:
            OSError: it cannot be sent.
        """
        self._check_process()
        digest = hashlib.sha256(data).digest()
        if data.nbytes < INSIDE_BYTES and not self._is_there(digest):
            with self._lock:
                is_new = digest not in self._seen
                self._seen[digest] = None
                self._seen.move_to_end(digest)
                if len(self._seen) > KNOWN_MAX:
                    self._seen.popitem(last=False)
            if is_new:
                return None
        return self._put(digest, data)

    def _put(self, digest: bytes, data: memoryview) -> bytes:
        self._check_process()
        if self._is_there(digest):
            return digest
        with self._lock:
            under_way = self._under_way.setdefault(digest, threading.RLock())
        with under_way:
            try:
                if not self._is_there(digest):
                    with self._places:
                        self._send(digest, data)
                    self._note(digest, data.nbytes)
            except OSError:
                raise
            except Exception as error:  # a refusal may name any error
                raise OSError(f"a large value cannot be sent: {error}") from error
            finally:
                with self._lock:
                    self._under_way.pop(digest, None)
        return digest

    def _check_process(self) -> None:
        if os.getpid() != self._pid:
            raise OSError("the session belongs to the process that this one was forked from")

    def touch(self, digests: Iterable[bytes]) -> None:
        """Tell the controller that these values will be needed.  Returns at once; the answers are not waited for.

        Raises:
            OSError: the session has ended.
        """
        with self._lock:
            known = [(digest, self._known[digest][0]) for digest in digests if digest in self._known]
        for digest, size in known:
            try:
                self._session.begin(WriteBlob(digest, size))
            except errors.TaskFarmError as error:
                raise OSError(str(error)) from error

    def _is_there(self, digest: bytes) -> bool:
        with self._lock:
            _, said_s = self._known.get(digest, (0, -SURE_S))
            return time.monotonic() - said_s < SURE_S

    def _note(self, digest: bytes, size: int) -> None:
        with self._lock:
            self._known[digest] = size, time.monotonic()
            self._known.move_to_end(digest)
            while len(self._known) > KNOWN_MAX:
                self._known.popitem(last=False)

    def _send(self, digest: bytes, data: memoryview) -> None:
        """Send the pieces that the controller lacks, until it has the whole value.

        Raises:
            OSError: the controller does not take it.
        """
        order = PieceOrder(data.nbytes)
        asked: deque[PendingQuestion] = deque()
        put_off = most = 0
        deadline_s = time.monotonic() + PATIENCE_S
        try:
            while not order.is_complete:
                while (piece := order.next_piece()) is not None:
                    offset, length = piece
                    part = bytes(data[offset : offset + length])
                    asked.append(self._session.begin(WriteBlob(digest, data.nbytes, offset, part)))
                    self.bytes += length
                answer = self._session.answer(asked.popleft())
                if not isinstance(answer, BlobWritten):
                    raise OSError(f"the controller answered WriteBlob with {type(answer).__name__}")
                if why := order.handle_answer(answer):
                    raise OSError(f"the controller does not take a large value: {why}")
                if answer.upto > most:
                    put_off, most, deadline_s = 0, answer.upto, time.monotonic() + PATIENCE_S
                if order.is_put_off and not asked:
                    if time.monotonic() > deadline_s:
                        raise OSError(f"the controller does not take a large value: {answer.error}")
                    order.resume()
                    time.sleep(PAUSES_S[min(put_off, len(PAUSES_S) - 1)])
                    put_off += 1
        finally:
            for left in asked:
                self._session.forget(left)


if TYPE_CHECKING:
    from io import FileIO

    from .questions import AsksController, PendingQuestion

KEPT_BYTES = 2**30
"""Bytes of downloads that are kept on disk; older ones are downloaded again when they are needed."""

KEPT_FILES = 64
"""Largest number of kept files: each takes a descriptor."""

DOWNLOADS_AT_ONCE = 4
"""Downloads that run at the same time, each in its caller's thread."""


class BlobDownloads:
    """The downloads of one session.

    A large result is downloaded when a caller uses it, in the caller's thread, so Ctrl-C ends the wait. Downloads are
    kept in unnamed files, which the kernel deletes with the process.
    """

    def __init__(self, session: AsksController, kept_bytes: int = KEPT_BYTES) -> None:
        self._session = session
        self._kept_bytes_max = kept_bytes
        self._kept: OrderedDict[bytes, FileIO] = OrderedDict()
        self._kept_bytes = 0
        self._lock = threading.RLock()
        self._places = threading.Semaphore(DOWNLOADS_AT_ONCE)
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
