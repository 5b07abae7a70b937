"""The items of a map, taken from the user's sequences, and the list of its values."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from itertools import islice
from operator import length_hint
from typing import Any, TypeAlias

import msgspec

from ..core.messages.payload import ResultBody
from ..core.messages.task_types import Final
from ..display.ipython import show_figures
from ..serialization.pack import pack, unpack
from ..storage.blobs import BlobStore
from .arrivals import Arrivals
from .packing import PackedOnce, pack_once
from .results import decode_body
from .tasks import CallTask

ENDLESS = (itertools.repeat, itertools.count, itertools.cycle)


class EachTask(CallTask):
    """An item of a map, or a chunk of items, see `core.messages.payload.CallWork.each`.

    Args:
        function: the function of the map.
        items: the items of the chunk.
        star: an item is a tuple of arguments.
        first: the place of the first item in the map.
        total: the number of the map's items; None if it is not known.
        packed: the packed function, if it is the same for several tasks.
        ours: the rules of the task.
    """

    _each = True

    def __init__(
        self,
        function: Callable[..., Any],
        items: Any,
        star: bool,
        first: int,
        total: int | None,
        packed: PackedOnce | None = None,
        **ours: Any,
    ) -> None:
        super().__init__(function, args=(items, star, first, total), **ours)
        self.__dict__["_items"] = len(items) if len(items) > 1 else 0
        self.__dict__["_packed"] = packed

    def pack_function(self, blobs: BlobStore | None) -> None:
        """Pack the function, unless it was packed.  Raises UnpickleableException if it cannot travel."""
        if self._packed is None:
            self.__dict__["_packed"] = pack_once(self.function, blobs)

    def _cached_call(self) -> tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any], str]:
        items, star = (self.args or ((), False))[:2]
        return self.function, tuple(items[0]) if star else (items[0],), {}, ""


class Items:
    """The arguments of a map, which are taken in chunks."""

    def __init__(self, sequences: Sequence[Iterable[Any]]) -> None:
        if not sequences:
            raise ValueError("map needs at least one sequence")
        self.star = len(sequences) > 1
        first = sequences[0]
        # A slice of a range is a range, which travels as three numbers.
        self._sliced = first if not self.star and isinstance(first, range | list | tuple) else None
        self._rest: Iterator[Any] = zip(*sequences, strict=False) if self.star else iter(first)
        self.total = common_length(sequences)
        self.taken = 0
        self.error: Exception | None = None
        """The exception that an iterable raised instead of its next item."""
        self._back: list[Any] = []

    @property
    def left(self) -> int | None:
        """Return the number of items that were not taken; None: it is not known."""
        return None if self.total is None else self.total - self.taken

    def take(self, count: int) -> Sequence[Any]:
        """Return the next items; fewer than `count` at the end."""
        if self._sliced is not None:
            chunk: Sequence[Any] = self._sliced[self.taken : self.taken + count]
        else:
            chunk = self._read(count)
        self.taken += len(chunk)
        return chunk

    def put_back(self, chunk: Sequence[Any]) -> None:
        """Take back the last items of `take`."""
        self.taken -= len(chunk)
        if self._sliced is None:
            self._back[:0] = chunk

    def _read(self, count: int) -> list[Any]:
        chunk, self._back = self._back[:count], self._back[count:]
        if self.error is None and len(chunk) < count:
            try:
                chunk.extend(islice(self._rest, count - len(chunk)))
            except Exception as error:  # the user's generator: earlier items are computed all the same
                self.error = error
        return chunk


def common_length(sequences: Sequence[Iterable[Any]]) -> int | None:
    """Return the length of the sequences that have a length; None: none has.  Raises ValueError if lengths differ.

    Generators and endless iterators have no length: as in the builtin `map`, the shortest decides.
    """
    lengths = [length for sequence in sequences if (length := _length(sequence)) is not None]
    if len(set(lengths)) > 1:
        raise ValueError(f"the sequences of a map must have equal lengths, not {lengths}: one is shorter than another")
    return lengths[0] if lengths else None


def _length(sequence: Iterable[Any]) -> int | None:
    if isinstance(sequence, Sized):
        return len(sequence)
    # Iterators of builtin types know how many items are left; others guess.
    left = length_hint(sequence, -1) if type(sequence).__module__ == "builtins" else -1
    return left if left >= 0 else None


def read_whole(sequences: Sequence[Iterable[Any]]) -> list[Sequence[Any]]:
    """Read the sequences as far as the shortest goes, so that errors are found before any task is submitted.

    Raises ValueError if lengths differ, or if all sequences are endless.
    """
    common_length(sequences)
    if sequences and all(isinstance(s, ENDLESS) and length_hint(s, -1) < 0 for s in sequences):
        raise ValueError("the sequences of this map never end: tc.imap takes them, and reads only a little ahead")
    if len(sequences) == 1 or all(isinstance(sequence, Sized) for sequence in sequences):
        return [s if isinstance(s, range | list | tuple) else list(s) for s in sequences]
    rows = list(zip(*sequences, strict=False))
    return [[row[i] for row in rows] for i in range(len(sequences))]


Printed: TypeAlias = dict[int, tuple[str, str]]
"""Item -> its output (stdout, stderr).  Items without output are missing."""


_encode = msgspec.msgpack.Encoder().encode


def chunk_values(chunk: Final) -> list[Any]:
    """Return the values of a chunk of a map; None stands for each item that is a task of its own."""
    body = decode_body(chunk)
    values: list[Any] = unpack(body.value) if body.value is not None else [None] * chunk.items
    show_figures()
    return values


def item_final(chunk: Final, task_id: int, values: Sequence[Any] | None) -> Final:
    """Return the end of a silent item of a chunk.  values: those of the chunk; None: the chunk failed as a whole."""
    body = chunk.body
    if values is not None:
        body = _encode(ResultBody(pack(values[task_id - chunk.id - 1], "value"), kind="call"))
    run_s = chunk.run_s / max(1, chunk.items - len(chunk.separate))
    return msgspec.structs.replace(chunk, id=task_id, run_s=run_s, body=body, items=0, separate=())


class ItemEnds:
    """Finds the ends of silent items.  The values of the last chunk are kept, for a caller who loops over items."""

    def __init__(self, arrivals: Arrivals) -> None:
        self._arrivals = arrivals
        self._opened: tuple[int, list[Any]] = -1, []

    def held(self, task_id: int) -> Final | None:
        """Return the end of a task, or of a silent item of a chunk, that has arrived; None: none has."""
        final = self._arrivals.finals.get(task_id)
        if final is None:
            chunk = self._arrivals.chunks.of(task_id)
            of_chunk = self._arrivals.finals.get(chunk) if chunk is not None else None
            if of_chunk is not None and of_chunk.body is not None:
                return self._item_of(of_chunk, task_id)
        return final

    def found(self, finals: Iterable[Final], task_id: int) -> Final | None:
        """Return the end of a task among fetched ones: its own, or that of a silent item of a chunk."""
        for final in finals:
            if final.id == task_id:
                return final
            if final.id < task_id <= final.id + final.items and task_id - final.id - 1 not in final.separate:
                return self._item_of(final, task_id)
        return None

    def _item_of(self, chunk: Final, task_id: int) -> Final:
        if chunk.reason or not chunk.body:
            return item_final(chunk, task_id, None)
        if self._opened[0] != chunk.id:
            self._opened = chunk.id, chunk_values(chunk)
        return item_final(chunk, task_id, self._opened[1])
