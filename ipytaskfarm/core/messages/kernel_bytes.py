"""Bytes between a client and the kernel of a frozen engine that the client cannot reach itself.

A *stream* is one connection to one of the kernel's sockets. The client passes on what it reads, and asks for what the
kernel says. A question may come twice: positions say which bytes are meant.
"""

from __future__ import annotations

import msgspec

from .task_types import Incarnation

PIECE_BYTES = 256 * 1024
"""The most bytes of one question, and of one answer."""


class ExchangeBytes(msgspec.Struct, frozen=True, tag=True):
    """Question: pass these bytes on, or wait for more of the kernel's. Answer: `KernelBytes`.

    Without a stream, the answer is the kernel's connection file.
    """

    engine: Incarnation
    stream: str = ""
    """The client's name for the stream, which its first question opens."""
    channel: str = ""
    """shell, iopub, stdin, control, hb."""
    at: int = 0
    """The position of `data` among all bytes to the kernel."""
    data: bytes = b""
    seen: int = 0
    """How many bytes of the kernel the client has."""
    wait: bool = False
    """Whether the answer waits for more bytes of the kernel, for some seconds."""
    close: bool = False
    """Whether the client has closed the stream."""


class KernelBytes(msgspec.Struct, frozen=True, tag=True):
    """Bytes of a kernel, from the position `ExchangeBytes.seen` on."""

    data: bytes = b""
    closed: bool = False
    """Whether the stream has ended, so that no more bytes come."""


class KernelQuery(msgspec.Struct, frozen=True, tag=True):
    """A client's question, on its way to the engine's agent. Answer: `KernelAnswer`."""

    n: int
    question: ExchangeBytes


class KernelAnswer(msgspec.Struct, frozen=True, tag=True):
    """The answer to a `KernelQuery`."""

    n: int
    reply: KernelBytes
