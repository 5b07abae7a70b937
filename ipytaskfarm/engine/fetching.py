"""Large values on a node that does not see the farm's folder: the agent brings them, once for all its engines.

Whoever unpacks one that is not in the node's folder waits here, in whatever thread that is; in the main thread an
interrupt of its task ends the waiting.  The agent answers as long as it lives, and engines do not outlive it.
"""

from __future__ import annotations

import os
import queue
from collections.abc import Callable
from typing import TypeAlias

from ..core.errors import BlobMissing
from ..core.messages import FromEngine
from ..core.messages.blob_chunks import BlobHere, WantBlob
from ..storage.blobs import Blobs, missing_blob

_Answers: TypeAlias = "queue.SimpleQueue[BlobHere]"


class BlobRequests:
    """One engine's."""

    def __init__(self, copies: Blobs, send: Callable[[FromEngine], None]) -> None:
        """copies: the node's folder."""
        self._copies = copies
        self._send = send
        self._pid = os.getpid()
        # Queues, because an exception that an interrupt raises between any two lines leaves them as they are.
        self._waiting: dict[_Answers, bytes] = {}

    def fetch(self, digest: bytes) -> memoryview:
        """Return the blob, mapped, once it is here.  BlobMissing: it is nowhere."""
        while True:
            # First: what is in hand is not removed to make room.
            self._copies.touch([digest])
            found = self._copies.map(digest)
            if found is not None:
                return found
            self._await(digest)

    def _await(self, digest: bytes) -> None:
        if os.getpid() != self._pid:
            raise missing_blob(digest, "a process that a task has forked cannot fetch it: use it in the task first")
        answers: _Answers = queue.SimpleQueue()
        self._waiting[answers] = digest
        try:
            self._send(WantBlob(digest))
            answer = answers.get()
        finally:
            del self._waiting[answers]
        if answer.error:
            raise BlobMissing(answer.error)

    def arrived(self, answer: BlobHere) -> None:
        """The agent has brought it, or cannot; from the lane's thread."""
        for answers, digest in list(self._waiting.items()):
            if digest == answer.digest:
                answers.put(answer)
