"""The result cache in messages: the key of a task, what it was made of, and the questions about entries."""

from __future__ import annotations

import msgspec

ON, REFRESH, READONLY = "on", "refresh", "readonly"
MODES = (ON, REFRESH, READONLY)
"""How a task uses the cache: takes and leaves a result; runs in any case and leaves one; takes one and leaves none."""

CODE_OF = "the code of"
"""How a label begins that stands for functions and classes within an argument, not for an argument."""


class KeyPart(msgspec.Struct, frozen=True, array_like=True):
    """One thing that a function's results depend on."""

    kind: str
    """"function", "default", "global", "attribute", "package" … as people read it."""
    name: str
    digest: str
    """A digest of its content; of a package, its version; of a small value, its text."""
    user: str = ""
    """The function or class that uses it; "" for the cached function itself."""
    place: str = ""
    """Where it was defined when the recipe was made: "In [7]".  It is not part of the key."""


class Recipe(msgspec.Struct, frozen=True):
    """All that a function reaches.  It travels and is stored as bytes, named by its digest."""

    parts: tuple[KeyPart, ...]


class CacheKey(msgspec.Struct, frozen=True, array_like=True):
    """The key of a task's result, and what it was made of."""

    key: str
    """Digest over the recipe and the arguments.  Results of other tasks among the arguments are left to be added."""
    function: str
    """The function's name, for people."""
    recipe: str
    """Digest of the function's recipe, which travels among the functions of the message."""
    arguments: tuple[tuple[str, str], ...] = ()
    """(label, digest) of each argument: ("argument 2 (alpha)", "5f…")."""
    mode: str = ON
    value_first: bool = False
    """Whether the client wants a kept result at once (`KeptResults`), before the task that takes it is on disk."""


class CacheEntry(msgspec.Struct, frozen=True, array_like=True):
    """One entry of the cache, without its result."""

    key: str
    function: str
    recipe: str
    arguments: tuple[tuple[str, str], ...]
    task: int
    """The task that computed the result."""
    made_s: float
    run_s: float
    used_s: float
    hits: int
    size_bytes: int


class ListCache(msgspec.Struct, frozen=True, tag=True):
    """Ask for entries of the result cache, the most recently used first.  function: only of this name."""

    function: str | None = None
    last: int = 1000


class CacheTable(msgspec.Struct, frozen=True, tag=True):
    """Entries of the cache, and the number and the size of all of them."""

    rows: list[CacheEntry]
    count: int
    size_bytes: int
    limit_bytes: int
    hits: int = 0
    saved_s: float = 0.0
    """Seconds of computing that the hits of all present entries have saved."""
    notes: list[str] = []
    """What people should know: why nothing is kept, what was damaged."""


class ForgetCache(msgspec.Struct, frozen=True, tag=True):
    """Remove entries.  Answered with their number.

    function: of functions of this name; key: the entry with this key, or with a key that begins so; older_s: those that
    were not used for this time.  None of them: all entries.
    """

    function: str | None = None
    key: str | None = None
    older_s: float | None = None


class ReadCacheKey(msgspec.Struct, frozen=True, tag=True):
    """Ask why a task was taken from the cache, or was not."""

    task: int


class CacheReport(msgspec.Struct, frozen=True, tag=True):
    """What the controller knows about a task and the cache.  The client makes sentences of it."""

    key: CacheKey | None
    """None: the task did not ask for the cache."""
    state: str = ""
    """The task's state and reason: "succeeded", "failed: error", or "" if it has not ended."""
    hit: bool = False
    """Whether its result was taken from the cache."""
    full_key: str = ""
    """The key with the results of other tasks in it; "" if these have not ended."""
    entry: CacheEntry | None = None
    """The entry of its key."""
    nearest: CacheEntry | None = None
    """Of a miss: the entry of the same function that has most in common with it, made before it ended."""
    recipe: bytes = b""
    nearest_recipe: bytes = b""
    note: str = ""
    """Why the cache could not be used."""
    fault: str = ""
    """Why a result that was kept for this task was not used."""
