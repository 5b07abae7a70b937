"""The controller's receiver of large values, with its questions and answers."""

from __future__ import annotations

import hashlib
import select
import time
from pathlib import Path

from ipytaskfarm.controller.blob_receiving import BlobReceiver, WritePiece
from ipytaskfarm.core.messages import Answer
from ipytaskfarm.core.messages.blob_chunks import PIECE_BYTES, BlobWritten, WriteBlob
from ipytaskfarm.storage.blobs import Blobs
from tests.support.polling import DEADLINE_S

SIZE = 3 * PIECE_BYTES + 1000


class UploadWorld:
    """A receiver and its questions."""

    def __init__(self, blobs: Blobs) -> None:
        self.blobs = blobs
        self.receiver = BlobReceiver(blobs)
        self._n = 0

    def ask(self, question: WriteBlob, session: str = "c", key: str = "client") -> int:
        self._n += 1
        self.receiver.ask(WritePiece(session, key, self._n, question))
        return self._n

    def answers(self, count: int) -> list[BlobWritten]:
        found: list[BlobWritten] = []
        deadline = time.monotonic() + DEADLINE_S
        while len(found) < count:
            for _, answer in self.receiver.answers():
                assert isinstance(answer, Answer)
                assert isinstance(answer.reply, BlobWritten)
                found.append(answer.reply)
            if len(found) < count:
                left_s = deadline - time.monotonic()
                assert left_s > 0, f"{len(found)} of {count} answers"
                select.select([self.receiver.fd()], [], [], left_s)
        return found

    def answer(self, question: WriteBlob, session: str = "c", key: str = "client") -> BlobWritten:
        self.ask(question, session, key)
        (found,) = self.answers(1)
        return found

    def send(self, data: bytes, upto: int | None = None, session: str = "c") -> BlobWritten:
        """Send the pieces of a blob, all or until this offset; return the last answer."""
        digest, answer = hashlib.sha256(data).digest(), BlobWritten(b"")
        for offset in range(0, len(data) if upto is None else upto, PIECE_BYTES):
            piece = data[offset : offset + PIECE_BYTES]
            answer = self.answer(WriteBlob(digest, len(data), offset, piece), session)
        return answer

    def parts(self) -> list[Path]:
        return list(self.blobs.folder.glob("*.part"))
