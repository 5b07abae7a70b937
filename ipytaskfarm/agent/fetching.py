"""Fetching of blobs for a node that does not see the farm's folder: each blob is fetched once for all engines.

An engine that unpacks a value whose blob is not in the node's folder sends `WantBlob` and waits.  The pieces come over
the agent's link.  Unanswered questions are sent again to a restarted controller, so a fetch survives the restart.  A
fetch goes on after its task was aborted, because other tasks of the same kind will need the same blob.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from pathlib import Path

from ..core.errors import BlobMissing
from ..core.messages.blob_chunks import BlobHere, BlobPiece, ReadBlob, WantBlob
from ..core.messages.task_types import Incarnation
from ..storage.blob_copies import Arrival, Copies, PieceWindow
from ..storage.blobs import missing_blob

log = logging.getLogger(__name__)

AT_ONCE = 2
"""The most blobs that are fetched at the same time; the others wait."""


class BlobFetches:
    """Fetches the blobs that the engines of one node need."""

    def __init__(self, say: Callable[[ReadBlob], object], tell: Callable[[Incarnation, BlobHere], object]) -> None:
        """Create it.

        Args:
            say: sends a message to the controller. The message may be lost with the controller, see `restate`.
            tell: sends a message to an engine.
        """
        self._say = say
        self._tell = tell
        self.copies: Copies | None = None
        """The node's folder; None: no engine was told of one yet."""
        self._places = asyncio.Semaphore(AT_ONCE)
        self._wanted: dict[bytes, dict[Incarnation, None]] = {}
        """Blob -> the engines that wait for it.  There is one fetch for each."""
        self._asked: dict[tuple[bytes, int], asyncio.Future[BlobPiece]] = {}
        """(blob, offset) -> the piece to come, in the order in which they were asked for."""
        self._tasks: set[asyncio.Task[None]] = set()
        self.count = 0
        """How many blobs were fetched."""
        self.bytes = 0
        """The size of these blobs together."""

    def folder(self, place: Path, farm: str) -> str:
        """Return the folder of copies.  The first call makes it, empty."""
        if self.copies is None:
            self.copies = Copies(place, farm)
        return str(self.copies.blobs.folder)

    def want(self, engine: Incarnation, message: WantBlob) -> None:
        """Fetch a blob for an engine, or tell the engine at once that the blob is here."""
        digest, copies = message.digest, self.copies
        if copies is None:
            return  # no engine was told of a folder of copies
        if digest in self._wanted:
            self._wanted[digest][engine] = None
        elif copies.has(digest):
            self._tell(engine, BlobHere(digest))
        else:
            self._wanted[digest] = {engine: None}
            task = asyncio.get_running_loop().create_task(self._fetch(copies, digest))
            self._tasks.add(task)
            task.add_done_callback(self._ended)

    def came(self, piece: BlobPiece) -> None:
        """Take a piece from the controller.  A piece that nobody waits for is a repetition, and is dropped."""
        waiting = self._asked.pop((piece.digest, piece.offset), None)
        if waiting is not None and not waiting.done():
            waiting.set_result(piece)

    def restate(self) -> None:
        """Send all unanswered questions again, to a controller that was restarted."""
        for digest, offset in self._asked:
            self._say(ReadBlob(digest, offset))

    async def close(self) -> None:
        """Cancel all fetches, and remove the copies."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        if self.copies is not None:
            await asyncio.to_thread(self.copies.remove)

    async def _fetch(self, copies: Copies, digest: bytes) -> None:
        error = ""
        try:
            async with self._places:
                await self._bring(copies, digest)
        except BlobMissing as missing:
            error = str(missing)
        except OSError as problem:
            error = str(missing_blob(digest, f"this node cannot keep it: {problem}"))
        if error:
            log.warning("%s", error)
        for engine in self._wanted.pop(digest):
            self._tell(engine, BlobHere(digest, error))

    async def _bring(self, copies: Copies, digest: bytes) -> None:
        began_s = time.monotonic()
        piece = await self._ask(digest, 0)
        if piece.error:
            raise missing_blob(digest, piece.error)
        arrival, part = await asyncio.to_thread(copies.begin, digest, piece.size)
        try:
            await self._take(arrival, piece)
            await asyncio.to_thread(copies.keep, arrival, part)
        finally:
            arrival.file.close()
            part.unlink(missing_ok=True)
        self.count += 1
        self.bytes += piece.size
        log.debug("blob %s: %s bytes in %.3f s", digest.hex()[:12], piece.size, time.monotonic() - began_s)

    async def _take(self, arrival: Arrival, piece: BlobPiece) -> None:
        """Write the first piece, then fetch and write the others."""
        window = PieceWindow(arrival.size, lambda offset: self._ask(arrival.digest, offset))
        try:
            while True:
                await asyncio.to_thread(arrival.take, piece)
                asked = window.take_oldest()
                if asked is None:
                    return
                piece = await asked
                window.ask_more()
        finally:
            for key in [key for key in self._asked if key[0] == arrival.digest]:
                del self._asked[key]

    def _ask(self, digest: bytes, offset: int) -> asyncio.Future[BlobPiece]:
        answer = self._asked[digest, offset] = asyncio.get_running_loop().create_future()
        self._say(ReadBlob(digest, offset))
        return answer

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            context = {"message": "a fetch", "exception": error}
            asyncio.get_running_loop().call_exception_handler(context)
