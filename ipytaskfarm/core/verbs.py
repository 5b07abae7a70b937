"""What MultiEngine commands hold: a matter between client and engine, bytes to everybody else."""

from __future__ import annotations

from typing import Any

import msgspec

from .parcels import Function

VERBS = {
    "execute": "ExecuteBody -> ExecuteReply",
    "push": "PushBody -> b''",
    "pull": "encoded list[str] -> packed list of values",
    "keys": "b'' -> encoded list[str]",
    "get_result": "encoded int | None -> ExecuteReply",
    "reset": "b'' -> b''",
    "map": "MapBody -> packed list of values",
    "clear_queue": "b'' -> b'', answered at once, not in its turn",
    "properties": "PropertiesBody -> packed value",
}
"""What a MultiEngine command's body and answer hold.  "Packed" is `doors.pack`, "encoded" is msgpack."""


class ExecuteBody(msgspec.Struct, frozen=True):
    """Lines for the engine.  sticky: the names they leave survive `clear_before` and `reset`."""

    lines: str
    sticky: bool = False


class PushBody(msgspec.Struct, frozen=True):
    """A packed dict for the engine's namespace."""

    packed: bytes
    sticky: bool = False


class MapBody(msgspec.Struct, frozen=True):
    """Call a function, or what has that name on the engine, with each of these items."""

    packed: bytes
    """The packed list of items, each a tuple of arguments."""
    function: Function | None = None
    name: str | None = None


class ExecuteReply(msgspec.Struct, frozen=True):
    """What `mec.execute` shows of one engine."""

    id: int
    number: int
    raw: str
    translated: str
    stdout: str = ""
    stderr: str = ""
    display: list[dict[str, Any]] = []
    """The last expression's value and rich displays: ``{"data": {mime: ...}, "metadata": {...}}``."""


class PropertiesBody(msgspec.Struct, frozen=True):
    """An operation on an engine's properties: set (packed dict), get, has, del (keys), clear."""

    op: str
    keys: list[str] | None = None
    packed: bytes | None = None
    facts: bool = False
