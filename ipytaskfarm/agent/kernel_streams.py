"""Streams between clients on other machines and the kernels of frozen engines.

Each stream is a connection to one of the kernel's sockets. Bytes of the kernel are kept until the client has them; for
a client that reads slowly, at most `BUFFER_BYTES` are kept.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Callable
from pathlib import Path

from ..core.messages.kernel_bytes import PIECE_BYTES, ExchangeBytes, KernelAnswer, KernelBytes, KernelQuery

BUFFER_BYTES = 4 * PIECE_BYTES
WAIT_S = 5.0
"""How long an answer waits for bytes of the kernel."""
UNUSED_S = 60.0
"""A stream about which its client asks nothing for this time is closed: the client is gone."""
STREAMS_MAX = 64
CHANNELS = frozenset({"shell", "iopub", "stdin", "control", "hb"})


class KernelStream:
    """One connection to a kernel's socket."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._writer: asyncio.StreamWriter | None = None
        self._kept = bytearray()
        self._first = 0
        """The position of the first kept byte."""
        self._written = 0
        self._closed = False
        self._changed = asyncio.Condition()
        self._opening = asyncio.Lock()
        self._reading: asyncio.Task[None] | None = None
        self.used_s = time.monotonic()

    async def exchange(self, question: ExchangeBytes) -> KernelBytes:
        """Do what a question says, and return the answer."""
        self.used_s = time.monotonic()
        async with self._opening:
            if self._writer is None and not self._closed:
                await self._open()
        async with self._changed:
            await self._write(question)
            gone = min(max(0, question.seen - self._first), len(self._kept))
            del self._kept[:gone]
            self._first += gone
            self._changed.notify_all()
            if question.wait and not self._kept and not self._closed:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._changed.wait_for(lambda: self._kept or self._closed), WAIT_S)
            if not question.wait:
                return KernelBytes(b"", self._closed)
            return KernelBytes(bytes(self._kept[:PIECE_BYTES]), self._closed and len(self._kept) <= PIECE_BYTES)

    async def _open(self) -> None:
        try:
            reader, self._writer = await asyncio.open_unix_connection(self._path)
        except OSError:
            self._closed = True
            return
        self._reading = asyncio.get_running_loop().create_task(self._read(reader))

    async def _write(self, question: ExchangeBytes) -> None:
        fresh = question.data[max(0, self._written - question.at) :]
        if fresh and question.at <= self._written and self._writer is not None and not self._closed:
            self._writer.write(fresh)
            self._written += len(fresh)

    async def _read(self, reader: asyncio.StreamReader) -> None:
        try:
            while data := await reader.read(PIECE_BYTES):
                async with self._changed:
                    self._kept += data
                    self._changed.notify_all()
                    await self._changed.wait_for(lambda: len(self._kept) < BUFFER_BYTES)
        except OSError:
            pass
        await self._end()

    async def _end(self) -> None:
        async with self._changed:
            self._closed = True
            self._changed.notify_all()

    def close(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
        if self._writer is not None:
            self._writer.close()


class KernelStreams:
    """All streams of an agent's clients."""

    def __init__(self, say: Callable[[KernelAnswer], object], wake: Callable[[], None]) -> None:
        """Create it.

        Args:
            say: sends an answer to the controller.
            wake: called when there is something to send.
        """
        self._say = say
        self._wake = wake
        self._streams: dict[str, KernelStream] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def ask(self, query: KernelQuery, connection_file: str) -> None:
        """Answer a question about the kernel of a frozen engine; "" in place of its file: there is no such engine."""
        task = asyncio.get_running_loop().create_task(self._answer(query, connection_file))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer(self, query: KernelQuery, connection_file: str) -> None:
        try:
            reply = await self._reply(query.question, connection_file)
        except (OSError, ValueError, KeyError):  # the engine ends at this moment, and its file is gone
            reply = KernelBytes(b"", True)
        self._say(KernelAnswer(query.n, reply))
        self._wake()

    async def _reply(self, question: ExchangeBytes, connection_file: str) -> KernelBytes:
        self._close_unused()
        if not connection_file:
            return KernelBytes(b"", True)
        text = Path(connection_file).read_bytes()
        if not question.stream:
            return KernelBytes(text)
        if question.close:
            self._close(question.stream)
            return KernelBytes(b"", True)
        stream = self._streams.get(question.stream)
        if stream is None:
            if question.at or question.seen or question.channel not in CHANNELS or len(self._streams) >= STREAMS_MAX:
                return KernelBytes(b"", True)  # it was closed
            info = json.loads(text)
            path = f"{info['ip']}-{info[f'{question.channel}_port']}"
            stream = self._streams[question.stream] = KernelStream(path)
        return await stream.exchange(question)

    def _close_unused(self) -> None:
        now_s = time.monotonic()
        for name in [name for name, stream in self._streams.items() if now_s - stream.used_s > UNUSED_S]:
            self._close(name)

    def _close(self, name: str) -> None:
        stream = self._streams.pop(name, None)
        if stream is not None:
            stream.close()

    def close(self) -> None:
        for name in list(self._streams):
            self._close(name)
        for task in list(self._tasks):
            task.cancel()
