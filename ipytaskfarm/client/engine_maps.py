"""Split a sequence into one part per engine, join such parts, and map over engines: all parts run at the same time.

The distributions are those of IPython 0.10's ``map.py``: blocks, of which the first ``len % n`` are one longer (dist
'b'), or round robin ('r').  Arrays, and the types of pandas and scipy, are split and joined by their own libraries.
This module imports none of them: if there is a value of such a type, its library is loaded.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
from typing import Any, Protocol, TypeAlias

import msgspec

from ..core.arguments import check_name, wrong
from ..core.messages.engine_commands import ApplyBody, MapBody
from ..core.text import exactly, shown
from ..serialization.pack import pack, pack_function
from ..serialization.rebuild_values import NotedValues
from ..storage.blobs import BlobStore, BlobWriter
from .commands import CommandPart, PendingResult, ResultList, value
from .map_items import read_whole
from .session import Session
from .task_arguments import check_args

DISTRIBUTIONS = ("b", "r")
_LISTS_ONCE: tuple[type[Iterable[Any]], ...] = (map, filter, zip, type({}.keys()), type({}.values()), type({}.items()))
"""The types of what was a list in Python 2, and in the programs that gather it."""


def check_dist(dist: str) -> None:
    """Raise ValueError for an unknown distribution."""
    if not isinstance(dist, str) or exactly(dist) not in DISTRIBUTIONS:
        hint = "; a decorator is @mec.parallel(), with ()" if callable(dist) else ""
        raise ValueError(f"dist must be 'b' (blocks) or 'r' (round robin), not {shown(dist)}{hint}")


def check_sequence(what: str, value: object) -> None:
    """Raise TypeError for a value that has no items."""
    try:
        iter(value)  # type: ignore[call-overload]
    except TypeError:
        raise wrong(what, "a list, an array or another iterable", value) from None


def parts(sequence: Any, count: int, dist: str = "b") -> list[Any]:
    """Split a sequence into `count` parts, of the sequence's type if it can be sliced; parts may be empty."""
    check_dist(dist)
    whole, length = _sliceable(sequence)
    if dist == "r":
        return [whole[i::count] for i in range(count)]
    size, longer = divmod(length, count)
    found = []
    start = 0
    for i in range(count):
        stop = start + size + (i < longer)
        found.append(whole[start:stop])
        start = stop
    return found


def flat(part: Any) -> Any:
    """Return the only item of a part of length 1; return any other part unchanged."""
    rows, length = _sliceable(part)
    return rows[0] if length == 1 else part


def joined(found: Sequence[Any], dist: str = "b") -> Any:
    """Join parts, as the inverse of `parts`.

    Lists, ranges, views of dicts and the objects of map, filter and zip become a list, and tuples a tuple.  Arrays,
    Series, frames, indexes and sparse matrices are concatenated, with their labels and dtypes.  Parts that cannot be
    joined are returned as a list of parts.
    """
    check_dist(dist)
    found = [list(part) if isinstance(part, _LISTS_ONCE) else part for part in found]
    if found and all(isinstance(part, tuple) and type(part) is type(found[0]) for part in found):
        return tuple(_interleaved(found) if dist == "r" else chain.from_iterable(found))
    if all(isinstance(part, list | range) for part in found):
        return _interleaved(found) if dist == "r" else list(chain.from_iterable(found))
    try:
        together = _concatenated(found)
        if together is None:
            return list(found)
        return together if dist == "b" else _reordered(together, [_sliceable(part)[1] for part in found])
    except (TypeError, ValueError, IndexError, NotImplementedError):
        return list(found)  # the parts do not fit together


def _sliceable(sequence: Any) -> tuple[Any, int]:
    """Return an object that is sliced by position, and its length."""
    if _is_a(sequence, "pandas", "Series", "DataFrame"):
        return sequence.iloc, len(sequence)  # slices of the frame itself may select by label
    if _is_sparse(sequence):
        rows = sequence if sequence.format in ("csr", "lil") else sequence.tocsr()
        return rows, rows.shape[0]
    if hasattr(sequence, "__len__") and can_slice(sequence):
        return sequence, len(sequence)
    items = list(sequence)
    return items, len(items)


def can_slice(sequence: Any) -> bool:
    """Return whether a slice of a sequence is a part of it."""
    if isinstance(sequence, Mapping):  # since Python 3.12 a slice is a key, which a defaultdict would add
        return False
    try:
        sequence[0:0]
    except (TypeError, KeyError, ValueError):
        return False
    return True


def _concatenated(found: Sequence[Any]) -> Any:
    """Return the parts joined one after the other; None: no library can join them."""
    if not found:
        return None
    first, same = found[0], all(type(part) is type(found[0]) for part in found)
    if all(_is_a(part, "pandas", "Series", "DataFrame") for part in found) and same:
        # An empty part must not change the dtype, and pandas warns about it.
        return sys.modules["pandas"].concat([part for part in found if len(part)] or found[:1])
    if all(_is_a(part, "pandas", "Index") for part in found):
        return first.append(list(found[1:]))
    if all(map(_is_sparse, found)) and same:
        return type(first)(sys.modules["scipy.sparse"].vstack(found))
    if all(_is_a(part, "numpy", "ndarray") and part.shape for part in found):
        numpy = sys.modules["numpy"]
        masked = any(isinstance(part, numpy.ma.MaskedArray) for part in found)
        return (numpy.ma if masked else numpy).concatenate(found)  # numpy's own function drops the masks
    if same and hasattr(type(first), "_concat_same_type"):  # an array type of pandas
        return type(first)._concat_same_type(found)
    return _by_its_library(found) if same else None


def _by_its_library(found: Sequence[Any]) -> Any:
    """Join arrays of another library: objects with `dtype` and `shape` and a function in their module that
    concatenates.
    """
    if not all(hasattr(part, "dtype") and bool(getattr(part, "shape", ())) for part in found):
        return None
    module = sys.modules.get(str(type(found[0]).__module__).partition(".")[0])
    join = next(
        (f for name in ("concatenate", "concat", "cat") if (f := getattr(module, name, None)) is not None), None
    )
    return None if join is None else join(list(found))


def _reordered(together: Any, lengths: list[int]) -> Any:
    """Return joined round-robin parts in the original order of their items."""
    starts = [sum(lengths[:i]) for i in range(len(lengths))]
    order = _interleaved([range(start, start + length) for start, length in zip(starts, lengths, strict=True)])
    return _sliceable(together)[0][order]


def _is_a(value: Any, module: str, *names: str) -> bool:
    """Return whether a value has one of these classes of a library that may not be imported."""
    library = sys.modules.get(module)
    return library is not None and isinstance(value, tuple(getattr(library, name) for name in names))


def _is_sparse(value: Any) -> bool:
    library = sys.modules.get("scipy.sparse")
    return library is not None and bool(library.issparse(value)) and value.ndim == 2


def _interleaved(found: Sequence[Sequence[Any]]) -> list[Any]:
    longest = max((len(part) for part in found), default=0)
    return [part[i] for i in range(longest) for part in found if i < len(part)]


Targets: TypeAlias = int | Sequence[int] | str | None
"""Engine ids, "all", or None for the targets of the client."""

_encode = msgspec.msgpack.Encoder().encode


class EngineCalls(Protocol):
    """The methods of `MultiEngineClient` that maps over engines call; they are documented there."""

    @property
    def session(self) -> Session: ...
    @property
    def blobs(self) -> BlobStore | None: ...
    def ids_of(self, targets: Targets) -> list[int]: ...
    def send(self, pending: PendingResult) -> PendingResult: ...
    def raw_map(
        self,
        func: Callable[..., Any] | str,
        sequences: Sequence[Iterable[Any]],
        dist: str = "b",
        targets: Targets = None,
        block: bool | None = None,
    ) -> Any: ...


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
