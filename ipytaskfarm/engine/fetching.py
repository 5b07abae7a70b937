"""Fetches large values on a node that does not see the farm's folder. The agent brings each value once for all engines.

A thread that unpacks a value which is not in the node's folder waits here. In the main thread, an interrupt of the task
ends the wait. The agent answers as long as it lives, and engines do not outlive it.
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
    """The requests of one engine."""

    def __init__(self, copies: Blobs, send: Callable[[FromEngine], None]) -> None:
        """Create it; `copies` is the node's folder."""
        self._copies = copies
        self._send = send
        self._pid = os.getpid()
        # Queues are used because they stay consistent if an interrupt raises an exception between any two lines.
        self._waiting: dict[_Answers, bytes] = {}

    def fetch(self, digest: bytes) -> memoryview:
        """Return the blob, mapped, once it is on this node.

        Raises:
            BlobMissing: the blob does not exist anywhere.
        """
        while True:
            # First of all: a blob that is in use is not removed to make room.
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
        """Take the agent's answer that a blob is here, or cannot be brought. Called by the lane's thread."""
        for answers, digest in list(self._waiting.items()):
            if digest == answer.digest:
                answers.put(answer)
