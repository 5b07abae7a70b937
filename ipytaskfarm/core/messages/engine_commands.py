"""The bodies of MultiEngine commands and of their answers.

Only clients and engines read them, except for `SavedCheckpoint`, which the controller keeps.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from .payload import CellPlace
from .task_types import Function

VERBS = {
    "execute": "ExecuteBody -> ExecuteReply",
    "push": "PushBody -> b''",
    "pull": "encoded list[str] -> packed list of values",
    "keys": "b'' -> encoded list[str]",
    "get_result": "encoded int | None -> ExecuteReply",
    "reset": "b'' -> b''",
    "map": "MapBody -> packed list of values",
    "apply": "ApplyBody -> ApplyReply",
    "clear_queue": "encoded list of numbers of commands, b'': all -> b'', answered at once, not in its turn",
    "interrupt": "b'' -> b'', answered at once; the command that runs gets a KeyboardInterrupt",
    "properties": "PropertiesBody -> packed value",
    "dump_session": "DumpSessionBody -> SavedSession",
    "load_session": "LoadSessionBody -> encoded dict of the names that are not in it, each with the reason",
    "checkpoint": "b'' -> SavedCheckpoint; the client is told the dict of the names that are not in it",
    "replaces": "encoded str -> b''",
    "profile": "ProfileBody -> encoded CpuProfile | MemoryProfile | SampleProfile | None, whatever runs",
}
"""The body and the answer of each MultiEngine command.  "Packed" is `serialization.pack`, "encoded" is msgpack."""

APPLY = "apply"
"""The verb that calls a function.  Its calls do not depend on one another: if one fails, those behind it run."""

CLEAR_QUEUE = "clear_queue"
"""The verb that drops commands that an engine has not begun."""

INTERRUPT = "interrupt"
"""The verb that interrupts the command that an engine runs."""

REPLACES = "replaces"
"""The verb that tells an engine what it replaces, for errors about missing names."""

CHECKPOINT = "checkpoint"
"""The verb that saves an engine's session for its replacement."""

LOAD_SESSION = "load_session"

PROFILE = "profile"
"""The verb that is answered while a task runs, so that a long task can be profiled before its end."""


class ExecuteBody(msgspec.Struct, frozen=True):
    """Lines for the engine. `sticky`: the names that they bind survive `clear_before` and `reset`."""

    lines: str
    sticky: bool = False
    cell: CellPlace | None = None
    """The cell that the lines stand in.  None: they were given as a str."""


class PushBody(msgspec.Struct, frozen=True):
    """A packed dict for the engine's namespace."""

    packed: bytes
    sticky: bool = False


class MapBody(msgspec.Struct, frozen=True):
    """Call a function, or the object of that name on the engine, with each of these items."""

    packed: bytes
    """The packed list of items, each a tuple of arguments."""
    function: Function | None = None
    name: str | None = None


class ApplyBody(msgspec.Struct, frozen=True):
    """Call a function once, or what this expression is on the engine."""

    packed: bytes
    """The packed (args, kwargs)."""
    function: Function | None = None
    name: str | None = None


class CommandOutput(msgspec.Struct, frozen=True):
    """The output of a command: these fields of `ExecuteReply` and `ApplyReply`."""

    stdout: str = ""
    stderr: str = ""
    display: list[dict[str, Any]] = []


class ApplyReply(msgspec.Struct, frozen=True):
    """The result of `mec.apply` on one engine."""

    packed: bytes
    """The packed value."""
    notices: list[str] = []
    """Lines for the user about names of the function that the engine has too."""
    stdout: str = ""
    stderr: str = ""
    display: list[dict[str, Any]] = []


class DumpSessionBody(msgspec.Struct, frozen=True):
    """Save the names of the engine into this file of the engine's node; `path` None: into the answer."""

    path: str | None = None


class SavedSession(msgspec.Struct, frozen=True):
    """A saved session."""

    left_out: dict[str, str]
    """The names that could not travel, each with the reason."""
    packed: bytes | None = None
    """The packed session; None if it was written to a file."""


class LoadSessionBody(msgspec.Struct, frozen=True):
    """Restore a session: from this file of the engine's node, or from the packed bytes."""

    path: str | None = None
    packed: bytes | None = None
    surroundings: SessionSurroundings | None = None
    """Where a checkpoint is restored: what the engine had beside its names."""


class SessionSurroundings(msgspec.Struct, frozen=True):
    """What a checkpoint holds beside the names: what was changed by hand since the engine's start."""

    placed: dict[str, str]
    """Name -> how it was placed by hand, such as "push".  Other names were left by tasks."""
    folder: str
    """The working folder.  "": the one that the engine was started in."""
    variables: dict[bytes, bytes | None]
    """Environment variables that were set, or deleted (None)."""
    path_first: list[str]
    """What was put before the first entry that ``sys.path`` had at the start."""
    path_last: list[str]
    """What else was added to ``sys.path``."""
    properties: bytes
    """The packed dict of the engine's properties."""


class SavedCheckpoint(msgspec.Struct, frozen=True):
    """A session as a replacement restores it."""

    body: bytes
    """The encoded `LoadSessionBody`."""
    blobs: dict[str, int]
    """Digests of the large values that the body needs, with their bytes."""
    count: int
    """How many names it holds."""
    left_out: dict[str, str]
    """The names that could not be saved, each with the reason."""


class ExecuteReply(msgspec.Struct, frozen=True):
    """The result of `mec.execute` on one engine."""

    id: int
    number: int
    raw: str
    translated: str
    stdout: str = ""
    stderr: str = ""
    display: list[dict[str, Any]] = []
    """Rich displays and values of expressions: ``{"data": {mime: ...}, "metadata": {...}}``.  A value has the number of
    the command too, ``"execution_count"``."""


class PropertiesBody(msgspec.Struct, frozen=True):
    """An operation on an engine's properties: set (packed dict), get, has, del (keys), clear."""

    op: str
    keys: list[str] | None = None
    packed: bytes | None = None
    facts: bool = False


# -- profiles: plain numbers and text, so that reading one runs no code of others


class ProfileBody(msgspec.Struct, frozen=True):
    """An action on one of an engine's profilers.

    "read" returns the profile, or None if the profiler was never started. The others return None.
    """

    profiler: Literal["cpu", "memory", "sampling"]
    op: Literal["start", "stop", "read"]
    clock: Literal["cpu", "wall"] = "cpu"
    """cpu: the clock that functions are timed with."""
    builtins: bool = False
    """cpu: whether functions written in C have rows of their own."""
    nframes: int = 1
    """memory: how many frames are kept of each allocation's traceback."""


READ_SAMPLES = msgspec.msgpack.encode(ProfileBody("sampling", "read"))
"""The body with which the sampler's stacks are read; also readers may send it."""

SAMPLING_KEY = "profile:sampling"
"""The key under which the start of the sampler is kept for engines that begin later."""


class Place(msgspec.Struct, frozen=True, array_like=True):
    """A function, or with `function` "" a line."""

    function: str
    module: str
    """The dotted name by which the module is imported, or a name in angle brackets: ``<task>``, ``<cell>``."""
    file: str
    line: int
    """The first line of the function."""


class CpuProfile(msgspec.Struct, frozen=True):
    """yappi's measurements on one engine."""

    engine: int
    clock: str
    runs: int
    """Tasks and commands that were profiled."""
    places: list[Place]
    calls: list[tuple[int, int, float, float]]
    """(index of the place, calls, seconds in the function itself, seconds with what it called)."""


class MemoryProfile(msgspec.Struct, frozen=True):
    """tracemalloc's measurements on one engine."""

    engine: int
    traced_bytes: int
    peak_bytes: int
    places: list[Place]
    blocks: list[tuple[list[int], int, int]]
    """(traceback as indices of places, the most recent call last; bytes; number of blocks)."""


class SampleProfile(msgspec.Struct, frozen=True):
    """The sampler's stacks on one engine."""

    engine: int
    interval_s: float
    places: list[Place]
    stacks: list[tuple[list[int], int]]
    """(stack as indices of places, the outermost function first; samples)."""
    is_on: bool = True
    """Whether the engine is sampled now."""
