"""Exchanges large values with the agent of a node that does not see the farm's folder, once each for all engines.

A thread that unpacks a value which is not in the node's folder waits here. In the main thread, an interrupt of the task
ends the wait. The agent answers as long as it lives, and engines do not outlive it.

A value that an engine makes is written into the node's folder, and sent to the controller by the agent before a result
names it. One of less than `INSIDE_BYTES` travels inside the result, for which the engine need not wait.
"""

from __future__ import annotations

import os
import queue
import time
from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

from ..core.errors import BlobMissing
from ..core.messages import FromEngine
from ..core.messages.blob_chunks import PIECE_BYTES, BlobHere, BlobKept, KeepBlob, WantBlob
from ..storage.blobs import KEPT_S, Blobs, missing_blob

_Answer = TypeVar("_Answer", BlobHere, BlobKept)

INSIDE_BYTES = PIECE_BYTES
"""Smaller values travel inside the message that names them."""

SURE_S = KEPT_S / 2
"""Seconds for which the controller certainly has a value that it was sent."""

KNOWN_MAX = 1000


class AgentQuestions(Generic[_Answer]):
    """The questions of one engine about blobs whose answers are of one kind."""

    def __init__(self, send: Callable[[FromEngine], None]) -> None:
        self._send = send
        self._pid = os.getpid()
        # Queues are used because they stay consistent if an interrupt raises an exception between any two lines.
        self._waiting: dict[queue.SimpleQueue[_Answer], bytes] = {}

    @property
    def forked(self) -> bool:
        """Return whether a task has forked this process: it has no lane, and nobody would answer."""
        return os.getpid() != self._pid

    def ask(self, question: WantBlob | KeepBlob) -> _Answer:
        """Send the question, and return the agent's answer about its blob."""
        answers: queue.SimpleQueue[_Answer] = queue.SimpleQueue()
        self._waiting[answers] = question.digest
        try:
            self._send(question)
            return answers.get()
        finally:
            del self._waiting[answers]

    def answered(self, answer: _Answer) -> None:
        """Take the agent's answer, for all who wait for it. Called by the lane's thread."""
        for answers, digest in list(self._waiting.items()):
            if digest == answer.digest:
                answers.put(answer)


class BlobRequests:
    """The large values that one engine fetches."""

    def __init__(self, copies: Blobs, send: Callable[[FromEngine], None]) -> None:
        """Create it; `copies` is the node's folder."""
        self._copies = copies
        self._questions: AgentQuestions[BlobHere] = AgentQuestions(send)

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
            if self._questions.forked:
                raise missing_blob(digest, "a process that a task has forked cannot fetch it: use it in the task first")
            answer = self._questions.ask(WantBlob(digest))
            if answer.error:
                raise BlobMissing(answer.error)

    def arrived(self, answer: BlobHere) -> None:
        """Take the agent's answer that a blob is here, or cannot be brought. Called by the lane's thread."""
        self._questions.answered(answer)


class NodeBlobs:
    """The large values that one engine makes. A `storage.blobs.BlobStore`."""

    def __init__(self, copies: Blobs, send: Callable[[FromEngine], None]) -> None:
        """Create it; `copies` is the node's folder."""
        self._copies = copies
        self._questions: AgentQuestions[BlobKept] = AgentQuestions(send)
        self._known: dict[bytes, float] = {}
        """Digest -> when (monotonic) the controller had it."""

    def names_file(self, path: str) -> bool:
        """Return whether a user's file may travel as its name: no, other machines do not see it."""
        return False

    def offer(self, data: memoryview) -> bytes | None:
        """Send a value as `put` does; return None for one that travels inside."""
        return self.put(data) if data.nbytes >= INSIDE_BYTES else None

    def put(self, data: memoryview) -> bytes:
        """Write a value, wait until the controller has it, and return its digest.

        Raises:
            OSError: it cannot be written, or the controller does not take it.
        """
        if self._questions.forked:
            raise OSError("a process that a task has forked cannot send large values")
        digest = self._copies.put(data)
        if time.monotonic() - self._known.get(digest, -SURE_S) < SURE_S:
            return digest
        answer = self._questions.ask(KeepBlob(digest))
        if answer.error:
            raise OSError(answer.error)
        self._known[digest] = time.monotonic()
        while len(self._known) > KNOWN_MAX:
            del self._known[next(iter(self._known))]
        return digest

    def touch(self, digests: Iterable[bytes]) -> None:
        """Mark the node's copies as used."""
        self._copies.touch(digests)

    def kept(self, answer: BlobKept) -> None:
        """Take the agent's answer. Called by the lane's thread."""
        self._questions.answered(answer)
