"""Values that many tasks share: ``tc.broadcast(value)`` and ``tc.accumulator()``."""

from __future__ import annotations

import operator
import uuid
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..core.messages.dependencies import Needs
from ..core.messages.task_types import Packed, Rules
from ..serialization.pack import pack, unpack
from ..serialization.shared_values import Adder, Received
from ..storage.blobs import BlobWriter
from .results import decode_body

if TYPE_CHECKING:
    from .taskclient import TaskClient


class Broadcast:
    """A value that travels once to each node and is unpacked once by each engine, however many tasks use it.

    ``b.value`` is the value, here and in tasks that get `b` as an argument or use it from their closure or globals.
    It is kept by the farm until `unpersist`.  Made by ``tc.broadcast(value)``.  From bndl.
    """

    def __init__(self, client: TaskClient, value: Any, key: str, packed: bytes | None, holder: int) -> None:
        self._client = client
        self.value = value
        self._key = key
        self._packed = packed
        self.id = holder
        """The id under which the farm holds it."""

    def unpersist(self) -> None:
        """The farm may forget it; a task that uses it afterwards fails with BlobMissing."""
        self._client.clear([self.id])

    def __reduce__(self) -> tuple[Any, ...]:
        return Received, (self._key, self._packed)

    def __repr__(self) -> str:
        return f"<Broadcast {type(self.value).__name__}, held as {self.id}>"


def broadcast(self: TaskClient, value: Any) -> Broadcast:
    """Send a value to the farm once, for many tasks; returns its `Broadcast`, once it is on the farm's disk.

    Raises UnpickleableException for what cannot travel.
    """
    blobs = self._session.blobs
    keeper = BlobWriter(blobs) if blobs is not None else None
    packed = pack(value, "value", keeper)
    digest = blobs.put(memoryview(packed)) if blobs is not None else None
    held = (*(keeper.taken() if keeper is not None else ()), *((digest.hex(),) if digest is not None else ()))
    holder = Packed(b"", rules=Rules(name="broadcast"), blobs=held, needs=Needs(after=(), join=True, keep=True))
    task_id = self._session.hand_in(holder)
    self.flush()
    key = digest.hex() if digest is not None else uuid.uuid4().hex
    return Broadcast(self, value, key, packed if digest is None else None, task_id)


class Accumulator:
    """A sum over tasks: ``acc.add(x)`` within tasks, `value` here.  Made by ``tc.accumulator()``.

    What a task adds counts once, when it has succeeded: attempts that failed and were repeated add nothing.  Tasks that
    this process hands in count.  From bndl.
    """

    def __init__(self, client: TaskClient, initial: Any, op: Callable[[Any, Any], Any]) -> None:
        self._client = client
        self._op = op
        self._total = initial
        self._key = uuid.uuid4().hex
        client._session.follow_accumulator(self._key)

    def add(self, value: Any) -> None:
        """Add to it; in a task, what counts when the task has succeeded."""
        self._total = self._op(self._total, value)

    @property
    def value(self) -> Any:
        """The sum over all tasks that have ended until now."""
        session = self._client._session
        for told in session.take_accumulated(self._key):
            final = told if told.body is not None else session.fetch(told.id)
            added = decode_body(final).accumulated.get(self._key) if final is not None and final.body else None
            if added is not None:
                self._total = self._op(self._total, unpack(added))
        return self._total

    def __reduce__(self) -> tuple[Any, ...]:
        return Adder, (self._key, self._op)

    def __repr__(self) -> str:
        return f"<Accumulator: {self.value!r}>"


def accumulator(self: TaskClient, initial: Any = 0, op: Callable[[Any, Any], Any] = operator.add) -> Accumulator:
    """A sum that tasks add to; `op` joins two summands and has to be associative and commutative."""
    return Accumulator(self, initial, op)
