"""A task's work and its result. Clients and engines read these; for controller and agents they are bytes."""

from __future__ import annotations

import struct
from typing import Any, NamedTuple, TypeAlias

import msgspec

NOTHING = msgspec.msgpack.encode({"kind": "call"})
"""The `ResultBody` of a task that ran no code: a value of None."""


AFTER_CHARS = "after_chars"
"""The key of a display that tells after how many characters of standard output it came; without it: after all."""


class Message(NamedTuple):
    """A message to a task, or from one."""

    value: Any
    sender: str
    """The name of a client, or "task 7"."""
    at_s: float
    """When the message was accepted (wall clock)."""


class CellPlace(msgspec.Struct, frozen=True, array_like=True):
    """Where the user typed code: tracebacks name this cell."""

    file: str
    """The file name that the user's IPython has given to the cell."""
    lines_before: int
    """The number of lines of the cell before the code: the line with the magic."""

    def placed(self, code: str) -> str:
        """Return the code with empty lines before it, so that its lines have the numbers that they have in the cell."""
        return "\n" * self.lines_before + code


class StringWork(msgspec.Struct, frozen=True, array_like=True, tag="string"):
    """Code that runs in the engine's namespace: push, execute, pull."""

    code: str
    pull: tuple[str, ...] = ()
    push: bytes | None = None
    """A packed dict, see `serialization.pack`."""
    clear_before: bool = False
    clear_after: bool = False
    cell: CellPlace | None = None
    """The cell that the code stands in.  None: the code was given as a str."""


class CallWork(msgspec.Struct, frozen=True, array_like=True, tag="call"):
    """A function call.  The function itself travels as `Function`, named by `Submission.function`."""

    arguments: bytes | None = None
    """Packed ``(args, kwargs)``.  None: a call without arguments."""
    clear_before: bool = False
    clear_after: bool = False
    raw: bool = False
    """Whether it is a MapTask: the runner writes this into `ResultBody.kind`, so that any client returns the bare
    value."""
    each: bool = False
    """Whether it is an item of a map, or a chunk of items.  The arguments are ``(items, star, first, total)``: the
    function is called with each item (star: with each item's items); the first is item `first` of `total` (None:
    nobody knows).  For calls of an executor, which have no places, `first` is -1 and each item is ``(args,)`` or
    ``(args, kwargs)``.  The value of a chunk is the list of values; None stands there for each item that is told of by
    itself, see `task_types.ItemsEnded`."""
    content: tuple[tuple[str, str], ...] = ()
    """Of a task whose result may be kept: (top-level module, digest of its files) for modules that go by name and have
    no version. If the engine has run others, its result is not kept."""
    values: bytes | None = None
    """The packed values of the function's closure and defaults, if `Function` is a template without them."""


def with_content(payload: bytes, content: tuple[tuple[str, str], ...]) -> bytes:
    """Return the payload of a function call that says which content of modules its result is kept for."""
    work = msgspec.msgpack.decode(payload, type=CallWork)
    return msgspec.msgpack.encode(msgspec.structs.replace(work, content=content))


Work: TypeAlias = StringWork | CallWork
"""The payload of a task.  Controller and agents see it only as bytes."""


class ErrorPlace(msgspec.Struct, frozen=True, array_like=True):
    """A place in the user's code where a traceback leads through."""

    filename: str
    module: str
    name: str
    """The function's name."""
    first_line: int
    """The first line of the function."""
    line: int
    end_line: int | None = None
    column: int | None = None
    end_column: int | None = None
    lines: tuple[str, ...] = ()
    """Source lines around it, …"""
    lines_from: int = 1
    """… beginning with the line of this number."""
    values: tuple[tuple[str, str], ...] = ()
    """Names of local variables of that frame, with their values as text."""


class ErrorLink(msgspec.Struct, frozen=True, array_like=True):
    """One exception of a chain: the raised one, a cause, a context, or a member of a group."""

    etype: str
    value: str
    pickled: bytes | None = None
    fields: bytes | None = None
    """Packed dict of attributes that the exception's own pickle lacks (`name` of an AttributeError)."""
    why: str = ""
    """Why it could not be pickled."""
    cause: int = -1
    """Which link of the chain is its `__cause__`; -1: none."""
    context: int = -1
    suppresses: bool = False
    members: tuple[int, ...] | None = None
    """An exception group: the links that are its members."""
    notes: tuple[str, ...] = ()
    frames: tuple[int, ...] = ()
    """The places of its traceback, by their index, the outermost one first."""


class FailureBody(msgspec.Struct, frozen=True, omit_defaults=True):
    """An exception as it travels: readable even if it cannot be unpickled."""

    etype: str
    value: str
    traceback: str = ""
    """The frames of user code, as text."""
    pickled: bytes | None = None
    """The exception itself, where it can be pickled."""
    links: tuple[ErrorLink, ...] = ()
    """The exception and all that it refers to; the first is the exception itself, pickled above."""
    places: tuple[ErrorPlace, ...] = ()
    stdout: str = ""
    """What a failed command had printed …"""
    stderr: str = ""
    outputs: list[dict[str, Any]] = []
    """… and displayed."""


class ItemOutput(msgspec.Struct, frozen=True, array_like=True):
    """What an item of a running chunk has newly written."""

    index: int
    """The item's place in the chunk."""
    stdout: str = ""
    stderr: str = ""
    chars: tuple[int, int] = (0, 0)
    """How many characters it has written of each: more than these texts have if the beginning was left out."""


class ResultBody(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """The result of a run: its values, its failure, its output."""

    value: bytes | None = None
    """Packed: a dict of the pulled names, or a function's return value."""
    failure: FailureBody | None = None
    stdout: str = ""
    stderr: str = ""
    outputs: list[dict[str, Any]] = []
    """Rich displays: ``{"data": {mime: ...}, "metadata": {...}}``."""
    progress: tuple[float, float | None, str] | None = None
    """The last progress that the task reported: (value, total, message)."""
    accumulated: dict[str, bytes] | None = None
    """Accumulator -> packed sum of the task's additions to it.  None: it added nothing."""
    kind: str = "names"
    """The kind of work: "names" (`StringWork`), "call" (`CallWork`) or "raw" (`CallWork`, raw=True)."""


# -- packs

WITH_BUFFERS = 1
"""First byte of a pack that has buffers beside its pickle. A plain pickle begins with 0x80."""
READ_ONLY = 1 << 63
IN_BLOB = 1 << 62
"""Flag of a length: the pack holds the digest of a blob instead of the bytes."""
DIGEST_BYTES = 32


def packed_bytes(pack: bytes | None) -> int:
    """Return the size of a packed value in bytes, with its large values, of which the pack holds digests alone."""
    if not pack or pack[0] != WITH_BUFFERS:
        return len(pack or b"")
    try:
        (count,) = struct.unpack_from("<4xI", pack)
        lengths = struct.unpack_from(f"<{count + 1}Q", pack, 8)
    except struct.error:  # it is damaged
        return len(pack)
    large: list[int] = [length & ~(READ_ONLY | IN_BLOB) for length in lengths if length & IN_BLOB]
    return len(pack) + sum(large) - DIGEST_BYTES * len(large)
