"""Splits received packets into messages, without building the values in them before they are needed.

Decoded values take ten and more times the memory of their bytes. So a packet is split by skipping, one message is
decoded at a time, and a large message is first counted: one with more than `PARTS_MAX` values is refused.
"""

from __future__ import annotations

import functools
from collections import deque
from typing import Any

import msgspec

from ..core import messages as m
from ..core.errors import ResultTooLarge
from ..core.limits import PARTS_MAX
from . import wire

SMALL_BYTES = 4096
"""A message of at most this size is decoded to see what it is."""
COUNTED_BYTES = 1 << 20
"""The values of larger messages are counted before the message is decoded."""

HEAVY = frozenset(
    {
        m.CheckTask, m.Clear, m.CompactStore, m.ExplainTasks, m.FarmStatus, m.FetchResults, m.FindJobs,
        m.ListCommandQueues, m.ListConnections, m.ListEngines, m.ListKept, m.ListRunning, m.ListSticky, m.ListTasks,
        m.MarkTasksFailed, m.ReadTask, m.ReadTaskMessages, m.RetryTasks, m.SetJobPriority, m.ListCache, m.ForgetCache,
        m.ReadCacheKey,
    }
)  # fmt: skip
"""The questions that read the store, or build tables."""

_LIGHT_TAGS = tuple(b"\xa4type" + bytes([0xA0 | len(tag)]) + tag for tag in (b"Submit", b"Command"))
"""How msgpack messages begin (after their map's header) that are light whatever their size."""
_ONE = 0x91
"""The first byte of a list with one item."""

_raw = msgspec.msgpack.Decoder(list[msgspec.Raw])


@functools.cache
def _from_client() -> msgspec.msgpack.Decoder[m.ClientMessage]:
    return msgspec.msgpack.Decoder(m.ClientMessage)


def split(role: str, body: bytes | memoryview) -> deque[Any]:
    """Return the messages in the body of a packet: decoded ones, and large ones of clients as `msgspec.Raw`.

    Raises:
        ResultTooLarge: there are too many values in it.
        One of `wire.READABLE`: it cannot be read.
    """
    if len(body) > COUNTED_BYTES:
        check_parts(body)
    if role == "agent":
        return deque(wire.from_agent().decode(body))
    # The usual packet is small, or has one message with tasks.
    if len(body) <= SMALL_BYTES or (body[0] == _ONE and bytes(body[2:17]).startswith(_LIGHT_TAGS)):
        return deque(wire.from_client().decode(body))
    return deque(_raw.decode(body))


def opened(message: Any) -> Any:
    """Return a message of `split` decoded if it is small, otherwise unchanged."""
    if type(message) is msgspec.Raw and len(memoryview(message)) <= SMALL_BYTES:
        return _from_client().decode(message)
    return message


def decoded(message: Any) -> Any:
    """Return a message of `split` decoded."""
    return _from_client().decode(message) if type(message) is msgspec.Raw else message


def is_heavy(message: Any) -> bool:
    """Return whether handling this message, as `opened` returns it, may take more than a fraction of a millisecond."""
    if type(message) is msgspec.Raw:
        return not bytes(memoryview(message)[1:16]).startswith(_LIGHT_TAGS)
    if type(message) is not m.AskQuestion:
        return False
    question = message.question
    return type(question) in HEAVY or (type(question) is m.QueueStatus and question.verbose)


def why_unreadable(role: str, body: Any, error: Exception) -> tuple[str, str]:
    """Return (error, text) for a peer of this role that sent something which could not be read because of `error`."""
    if isinstance(error, ResultTooLarge):
        return "ResultTooLarge", str(error)
    foreign = [tag for tag in wire.tags_in(body) if tag not in wire.TAGS[role]]
    if foreign:
        return "SecurityError", f"a key for the role {role} does not allow to send {foreign[0]}"
    return "VersionMismatch", f"the controller is {wire.own_version()} and cannot read what this peer sent: {error}"


def check_parts(body: bytes | memoryview, most: int = PARTS_MAX) -> None:
    """Count the values in msgpack data, without building them.

    Raises:
        ResultTooLarge: there are more than `most`.
        ValueError: the data ends too early, or is no msgpack.
    """
    data = memoryview(body)
    left, at, count, end = 1, 0, 0, len(data)
    try:
        while left:
            count += 1
            if count > most or left > most:
                raise ResultTooLarge(
                    f"a message of {end:,} bytes has more than {most:,} values, the most of one message: "
                    "pass large data as an array or as bytes, or in pieces"
                )
            left -= 1
            first = data[at]
            at += 1
            if first < 0x80 or first >= 0xE0 or first in (0xC0, 0xC2, 0xC3):
                continue
            if first < 0xA0:  # a short map or list
                left += 2 * (first & 0x0F) if first < 0x90 else first & 0x0F
            elif first < 0xC0:
                at += first & 0x1F
            elif first in _FIXED:
                at += _FIXED[first]
            else:
                width, beyond, children = _SIZED[first]
                size = int.from_bytes(data[at : at + width], "big")
                at += width
                left += children * size
                at += beyond + (0 if children else size)
    except (IndexError, KeyError):
        raise ValueError("the data ends too early, or is no msgpack") from None
    if at > end:
        raise ValueError("the data ends too early")


_FIXED = {
    0xCA: 4, 0xCB: 8, 0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8, 0xD0: 1, 0xD1: 2, 0xD2: 4, 0xD3: 8,
    0xD4: 2, 0xD5: 3, 0xD6: 5, 0xD7: 9, 0xD8: 17,
}  # fmt: skip
"""Type byte -> the number of bytes that follow it."""
_SIZED = {
    0xC4: (1, 0, 0), 0xC5: (2, 0, 0), 0xC6: (4, 0, 0), 0xC7: (1, 1, 0), 0xC8: (2, 1, 0), 0xC9: (4, 1, 0),
    0xD9: (1, 0, 0), 0xDA: (2, 0, 0), 0xDB: (4, 0, 0), 0xDC: (2, 0, 1), 0xDD: (4, 0, 1), 0xDE: (2, 0, 2),
    0xDF: (4, 0, 2),
}  # fmt: skip
"""Type byte -> (bytes of the size, further bytes, values per unit of the size; 0: the size counts bytes)."""
