"""Map over engines: each engine gets a part of the items, and all parts run at the same time."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol, TypeAlias

import msgspec

from ..core.arguments import check_name, wrong
from ..core.messages.engine_commands import ApplyBody, MapBody
from ..serialization.pack import pack, pack_function
from ..serialization.rebuild_values import NotedValues
from ..storage.blobs import BlobStore, BlobWriter
from .commands import CommandPart, PendingResult, ResultList, value
from .map_items import read_whole
from .scatter import check_dist, check_sequence, joined, parts
from .session import Session
from .task_arguments import check_args

Targets: TypeAlias = int | Sequence[int] | str | None
"""Engine ids, "all", or None for the targets of the client."""

_encode = msgspec.msgpack.Encoder().encode


class EngineCalls(Protocol):
    """The methods of `MultiEngineClient` that maps over engines call; they are documented there."""

    @property
    def session(self) -> Session:
        """Return the connection, shared by all clients of this process."""

    @property
    def blobs(self) -> BlobStore | None:
        """Return the store for large values; None: large values are sent inline."""

    def ids_of(self, targets: Targets) -> list[int]:
        """Return the ids of the engines that `targets` selects now."""

    def send(self, pending: PendingResult) -> PendingResult:
        """Record a running command, so that `flush` can discard it."""

    def raw_map(
        self,
        func: Callable[..., Any] | str,
        sequences: Sequence[Iterable[Any]],
        dist: str = "b",
        targets: Targets = None,
        block: bool | None = None,
    ) -> Any:
        """Run a map with explicit settings."""


def _values(body: bytes) -> Any:
    """Return the values that one engine computed, and print its notices."""
    found = value(body)
    if not isinstance(found, NotedValues):
        return found
    for text in found.notices:
        print(f"ipytaskfarm: {text}", file=sys.stderr)
    return found.values


def map_on_engines(
    client: EngineCalls,
    function: Callable[..., Any] | str,
    sequences: Sequence[Iterable[Any]],
    dist: str,
    targets: Targets,
    block: bool,
) -> Any:
    """Return the list of results in order, or with block=False a PendingResult of the list.

    See ``MultiEngineClient.map``.
    """
    check_dist(dist)
    if not sequences:
        raise ValueError("map needs at least one sequence")
    if not isinstance(function, str) and not callable(function):
        raise TypeError(f"map takes a function, or the name of one on the engines, not {type(function).__name__}")
    for sequence in sequences:
        check_sequence("sequences, a list of sequences: each of them", sequence)
    items = list(zip(*read_whole(sequences), strict=True))
    code = None if isinstance(function, str) else pack_function(function)
    name = check_name("func", function) if isinstance(function, str) else None
    engines = client.ids_of(targets)
    writer = BlobWriter(client.blobs) if client.blobs is not None else None
    sent = []
    for engine_id, part in zip(engines, parts(items, len(engines), dist), strict=True):
        if part:
            body = _encode(MapBody(pack(part, "items", writer), code, name))
            sent.append(CommandPart([engine_id], body, writer.taken() if writer is not None else ()))
    shown = function if isinstance(function, str) else _name_of(function)
    pending = client.send(PendingResult(client.session, "map", sent, _values, f"map({shown:.40})"))
    pending.add_callback(_together, dist)
    return pending.get_result() if block else pending


def packed_call(
    function: Callable[..., Any] | str, args: Sequence[Any], kwargs: dict[str, Any] | None, blobs: BlobStore | None
) -> tuple[bytes, tuple[str, ...], str]:
    """Pack a call for ``mec.apply``: its body, the digests of its large values, and a text for people.

    Raises TypeError for a function that is none, UnpickleableException for what cannot travel.
    """
    if not isinstance(function, str) and not callable(function):
        raise TypeError(f"apply takes a function, or the name of one on the engines, not {type(function).__name__}")
    writer = BlobWriter(blobs) if blobs is not None else None
    given = check_args(args) if isinstance(args, str | bytes) or not isinstance(args, Iterable) else args
    packed = pack((tuple(given), dict(kwargs or {})), "arguments", writer)
    if isinstance(function, str):
        body, text = ApplyBody(packed, None, check_name("func", function)), function
    else:
        body, text = ApplyBody(packed, pack_function(function)), _name_of(function)
    return _encode(body), writer.taken() if writer is not None else (), text


def _name_of(function: Callable[..., Any]) -> str:
    return getattr(function, "__name__", None) or type(function).__name__


def _together(found: ResultList, dist: str) -> list[Any]:
    together: list[Any] = joined([list(part) for part in found], dist)
    return together


class EngineMapper:
    """An object with a `map` method and settings for it; made by ``mec.mapper``.

    The attributes `multiengine` (the client), `dist`, `targets` and `block` may be assigned later.
    """

    def __init__(self, multiengine: EngineCalls, dist: str, targets: Targets, block: bool | None) -> None:
        check_dist(dist)
        self.multiengine = multiengine
        self.dist = dist
        self.targets = targets
        self.block = block

    def map(self, function: Callable[..., Any] | str, *sequences: Iterable[Any]) -> Any:
        """Return the results in order.  See ``MultiEngineClient.map``."""
        return self.multiengine.raw_map(function, sequences, self.dist, self.targets, self.block)


class EngineParallelFunction:
    """The decorator that ``mec.parallel`` makes; it may decorate any number of functions."""

    def __init__(self, mapper: EngineMapper) -> None:
        self.mapper = mapper

    def __call__(self, function: Callable[..., Any] | str) -> Callable[..., Any]:
        if not callable(function) and not isinstance(function, str):
            error = wrong("function", "a function, or the name of one on the engines", function)
            raise TypeError(f"{error}; the decorator is @mec.parallel(), with ()")

        @functools.wraps(function)  # type: ignore[arg-type]
        def call(*sequences: Iterable[Any]) -> Any:
            return self.mapper.map(function, *sequences)

        return call
