"""Maps over engines: each gets a part of the items and calls the function with them, all at the same time."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from ..core.arguments import check_name
from ..core.messages.engine_commands import MapBody
from ..serialization.pack import pack, pack_function
from ..storage.blobs import BlobWriter
from .commands import CommandPart, PendingResult, ResultList, value
from .maps import read_whole
from .scatter import check_dist, joined, parts

if TYPE_CHECKING:
    from .multiengine import MultiEngineClient, Targets

_encode = msgspec.msgpack.Encoder().encode


def map_on_engines(
    client: MultiEngineClient,
    function: Callable[..., Any] | str,
    sequences: Sequence[Iterable[Any]],
    dist: str,
    targets: Targets,
    block: bool,
) -> Any:
    """The list of results in order, or a PendingResult of it.  See ``MultiEngineClient.map``."""
    check_dist(dist)
    if not sequences:
        raise ValueError("map needs at least one sequence")
    if not isinstance(function, str) and not callable(function):
        raise TypeError(f"map takes a function, or the name of one on the engines, not {type(function).__name__}")
    items = list(zip(*read_whole(sequences), strict=True))
    code = None if isinstance(function, str) else pack_function(function)
    name = check_name("func", function) if isinstance(function, str) else None
    engines = client.ids_of(targets)
    keeper = BlobWriter(client.blobs) if client.blobs is not None else None
    sent = []
    for engine_id, part in zip(engines, parts(items, len(engines), dist), strict=True):
        if part:
            body = _encode(MapBody(pack(part, "items", keeper), code, name))
            sent.append(CommandPart([engine_id], body, keeper.taken() if keeper is not None else ()))
    shown = name or getattr(function, "__name__", None) or type(function).__name__
    pending = client.send(PendingResult(client.session, "map", sent, value, f"map({shown:.40})"))
    pending.add_callback(_together, dist)
    return pending.get_result() if block else pending


def _together(found: ResultList, dist: str) -> list[Any]:
    together: list[Any] = joined([list(part) for part in found], dist)
    return together


class EngineMapper:
    """`map` with its settings; made by ``mec.mapper``."""

    def __init__(self, client: MultiEngineClient, dist: str, targets: Targets, block: bool | None) -> None:
        check_dist(dist)
        self._client = client
        self.dist = dist
        self.targets = targets
        self.block = block

    def map(self, function: Callable[..., Any] | str, *sequences: Iterable[Any]) -> Any:
        """See ``MultiEngineClient.map``."""
        return self._client.raw_map(function, sequences, self.dist, self.targets, self.block)


class EngineParallelFunction:
    """The decorator that ``mec.parallel`` makes; it may decorate any number of functions."""

    def __init__(self, mapper: EngineMapper) -> None:
        self.mapper = mapper

    def __call__(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*sequences: Iterable[Any]) -> Any:
            return self.mapper.map(function, *sequences)

        return call
