"""Uploads of the blobs that engines make on a node which does not see the farm's folder: each blob once.

An engine writes a large value into the node's folder, sends `KeepBlob`, and waits: its result may name the blob only
when the controller has it.  A cut connection ends all uploads with an error.  Then the value travels inside the result,
which is kept in the flight recorder, and the engine goes on.
"""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import Callable
from pathlib import Path

from ..core.errors import BlobMissing
from ..core.messages.blob_chunks import (
    BlobHere,
    BlobKept,
    BlobPiece,
    BlobWritten,
    KeepBlob,
    ReadBlob,
    WantBlob,
    WriteBlob,
)
from ..core.messages.task_types import Incarnation
from ..core.uploads import PieceOrder
from ..storage.blob_copies import Copies
from .fetching import BlobFetches

AT_ONCE = 2
"""The most blobs that are sent at the same time; the others wait."""

ATTEMPTS, PAUSE_S = 60, 0.5
"""How often, and after which pause in seconds, an upload is tried for which the controller has no place."""


class BlobUploading:
    """Sends the blobs that the engines of one node have made."""

    def __init__(self, say: Callable[[WriteBlob], bool], tell: Callable[[Incarnation, BlobKept], object]) -> None:
        """Create it.

        Args:
            say: sends a message to the controller. Returns whether the controller is connected.
            tell: sends a message to an engine.
        """
        self._say = say
        self._tell = tell
        self._places = asyncio.Semaphore(AT_ONCE)
        self._wanted: dict[bytes, dict[Incarnation, None]] = {}
        """Blob -> the engines that wait for it.  There is one upload for each."""
        self._asked: dict[bytes, deque[asyncio.Future[BlobWritten]]] = {}
        """Blob -> the answers to come, in the order of sending."""
        self._tasks: set[asyncio.Task[None]] = set()

    def keep(self, engine: Incarnation, message: KeepBlob, copies: Copies) -> None:
        """Send a blob for an engine, which is told when the controller has it."""
        digest = message.digest
        if digest in self._wanted:
            self._wanted[digest][engine] = None
            return
        self._wanted[digest] = {engine: None}
        task = asyncio.get_running_loop().create_task(self._upload(copies, digest))
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def written(self, answer: BlobWritten) -> None:
        """Take the controller's answer to a piece."""
        waiting = self._asked.get(answer.digest)
        if waiting:
            asked = waiting.popleft()
            if not asked.done():
                asked.set_result(answer)

    def lost(self) -> None:
        """End all uploads with an error: the controller is not connected, or is another one."""
        for digest, waiting in self._asked.items():
            for asked in waiting:
                if not asked.done():
                    asked.set_result(BlobWritten(digest, error="the controller is not there"))
            waiting.clear()

    async def close(self) -> None:
        """Cancel all uploads."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def _upload(self, copies: Copies, digest: bytes) -> None:
        error = ""
        try:
            async with self._places:
                await self._send(copies.blobs.path(digest), digest)
                await asyncio.to_thread(copies.make_room)
        except (OSError, BlobMissing) as problem:
            error = str(problem)
        for engine in self._wanted.pop(digest):
            self._tell(engine, BlobKept(digest, error))

    async def _send(self, path: Path, digest: bytes) -> None:
        """Send the pieces that the controller lacks.

        Raises:
            OSError: the controller does not take the blob, or its file cannot be read.
        """
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        waiting = self._asked[digest] = deque()
        try:
            size = os.fstat(fd).st_size
            order, attempts, most = PieceOrder(size), 0, 0
            asked: deque[asyncio.Future[BlobWritten]] = deque()
            while not order.is_complete:
                while (piece := order.next_piece()) is not None:
                    offset, length = piece
                    data = await asyncio.to_thread(os.pread, fd, length, offset)
                    answer: asyncio.Future[BlobWritten] = asyncio.get_running_loop().create_future()
                    waiting.append(answer)
                    asked.append(answer)
                    if not self._say(WriteBlob(digest, size, offset, data)):
                        raise OSError("the controller is not there")
                answered = await asked.popleft()
                if why := order.handle_answer(answered):
                    raise OSError(why)
                if answered.upto > most:
                    attempts, most = 0, answered.upto
                if order.is_put_off and not asked:
                    attempts += 1
                    if attempts > ATTEMPTS:
                        raise OSError("the controller has no place for it")
                    order.resume()
                    await asyncio.sleep(PAUSE_S)
        finally:
            del self._asked[digest]
            os.close(fd)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            context = {"message": "an upload", "exception": error}
            asyncio.get_running_loop().call_exception_handler(context)


class BlobTransfers:
    """All blobs on their way to this node, and from it."""

    def __init__(
        self,
        say: Callable[[ReadBlob | WriteBlob], bool],
        tell: Callable[[Incarnation, BlobHere | BlobKept], object],
    ) -> None:
        """Create it; `say` and `tell` are those of `BlobUploading`."""
        self.fetches = BlobFetches(say, tell)
        self._uploads = BlobUploading(say, tell)

    def folder(self, place: Path, farm: str) -> str:
        """Return the node's folder of blobs.  The first call makes it, empty."""
        return self.fetches.folder(place, farm)

    def want(self, engine: Incarnation, message: WantBlob | KeepBlob) -> None:
        """Bring a blob for an engine, or send one that the engine has made."""
        if isinstance(message, WantBlob):
            self.fetches.want(engine, message)
        elif self.fetches.copies is not None:
            self._uploads.keep(engine, message, self.fetches.copies)

    def came(self, message: BlobPiece | BlobWritten) -> None:
        """Take the controller's answer."""
        if isinstance(message, BlobPiece):
            self.fetches.came(message)
        else:
            self._uploads.written(message)

    def lost(self) -> None:
        """Record that the controller is not connected."""
        self._uploads.lost()

    def restate(self) -> None:
        """Begin again with a controller that was restarted."""
        self._uploads.lost()
        self.fetches.restate()

    async def close(self) -> None:
        """End everything, and remove the copies."""
        await self._uploads.close()
        await self.fetches.close()
