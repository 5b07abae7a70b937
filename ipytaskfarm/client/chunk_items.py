"""Silent items of chunks of maps: their ends, out of the ends of their chunks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from ..core.messages.payload import ResultBody
from ..core.messages.task_types import Final
from ..display.ipython import show_figures
from ..serialization.pack import pack, unpack
from .arrivals import Arrivals
from .results import decode_body

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
