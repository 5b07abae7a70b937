"""Tasks that a running task submits: packed here, run as its children."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from ..core.needs import Needs
from ..core.parcels import Packed, Submission
from ..core.work import CallWork
from ..doors.blobs import Blobs, Keeper
from ..doors.pack import pack, pack_function
from ..doors.pack_refs import noting

_encode = msgspec.msgpack.Encoder().encode


def packed_child(what: Any, args: tuple[Any, ...], kwargs: dict[str, Any], blobs: Blobs | None) -> Packed:
    """A `Task`, or a function with its arguments, ready to travel.

    Raises TypeError for anything else, UnpickleableException for what cannot travel."""
    packs_itself: Callable[[Blobs | None], Packed] | None = getattr(what, "_pack", None)
    if packs_itself is not None:
        if args or kwargs:
            raise TypeError("a Task has its arguments already: submit(Task(f, args=(…)))")
        return packs_itself(blobs)
    if not callable(what):
        raise TypeError(f"submit() takes a Task or a function, not {type(what).__name__}")
    keeper = Keeper(blobs) if blobs is not None else None
    function = pack_function(what)
    inputs: dict[int, None] = {}

    def note(task: object) -> int:
        inputs[int(task)] = None  # type: ignore[call-overload]
        return int(task)  # type: ignore[call-overload, no-any-return]

    arguments = None
    if args or kwargs:
        with noting(note):
            arguments = pack((args, kwargs), ("args", "kwargs"), keeper)
    needs = Needs(after=tuple(inputs), inputs=tuple((i, i) for i in inputs)) if inputs else None
    taken = keeper.taken() if keeper is not None else ()
    return Packed(_encode(CallWork(arguments)), function.digest, None, (function,), False, taken, needs)


def submission(number: int, packed: Packed) -> Submission:
    """As it travels; the controller gives the id."""
    return Submission(number, packed.payload, 0.0, packed.function, packed.rules, packed.blobs, packed.needs)
