"""Share values between many tasks: ``tc.broadcast(value)`` and ``tc.accumulator()``."""

from __future__ import annotations

import contextlib
import threading
import uuid
import weakref
from collections import deque
from collections.abc import Callable
from typing import Any

from ..core.arguments import wrong
from ..core.messages.task_types import Final, Needs, Packed, Rules
from ..serialization.pack import pack, unpack
from ..serialization.shared_values import Adder, Received
from ..storage.blobs import BlobWriter
from .operate import clear_results
from .results import decode_body
from .session import Session


class Broadcast:
    """A value that is sent once to each node and unpickled once by each engine, however many tasks use it.

    ``b.value`` is the value, in the client, and in tasks that have `b` as an argument, in a closure, or as a global.
    The farm keeps the value until `unpersist`.  Made by ``tc.broadcast(value)``.  From bndl.
    """

    def __init__(self, session: Session, value: Any, key: str, packed: bytes | None, holder: int) -> None:
        self._session = session
        self.value = value
        self._key = key
        self._packed = packed
        self.id = holder
        """The id under which the farm keeps the value."""

    def unpersist(self) -> None:
        """Delete the value on the farm; a task that uses it later fails with BlobMissing."""
        clear_results(self._session, [self.id])

    def __reduce__(self) -> tuple[Any, ...]:
        return Received, (self._key, self._packed)

    def __repr__(self) -> str:
        return f"<Broadcast {type(self.value).__name__}, held as {self.id}>"


def broadcast(session: Session, value: Any) -> Broadcast:
    """Store a value on the farm; see ``TaskClient.broadcast``."""
    blobs = session.blobs
    writer = BlobWriter(blobs) if blobs is not None else None
    packed = pack(value, "value", writer)
    digest = None
    with contextlib.suppress(OSError):  # on a full disk it travels inside each task
        digest = blobs.put(memoryview(packed)) if blobs is not None else None
    held = (*(writer.taken() if writer is not None else ()), *((digest.hex(),) if digest is not None else ()))
    holder = Packed(b"", rules=Rules(name="broadcast"), blobs=held, needs=Needs(after=(), join=True, keep=True))
    task_id = session.submit(holder)
    session.flush()
    key = digest.hex() if digest is not None else uuid.uuid4().hex
    return Broadcast(session, value, key, packed if digest is None else None, task_id)


class Accumulator:
    """A sum to which tasks add with ``acc.add(x)``, and which the client reads as `value`.

    Made by ``tc.accumulator()``.

    The additions of a task count once, when the task has succeeded; failed attempts add nothing.  Only tasks that this
    process submits count.  From bndl.
    """

    def __init__(self, session: Session, initial: Any, op: Callable[[Any, Any], Any]) -> None:
        if not callable(op):
            raise wrong("op", "a function of two values", op)
        self._session = session
        self._op = op
        self._total = initial
        self._key = uuid.uuid4().hex
        self._lock = threading.Lock()
        self._ended: deque[Final] = deque()
        """Tasks that have succeeded and may have added; their additions do not count yet."""
        session.arrivals.followers[self._key] = self._ended
        weakref.finalize(self, session.arrivals.followers.pop, self._key)

    def add(self, value: Any) -> None:
        """Add a value; an addition in a task counts when the task has succeeded."""
        with self._lock:
            self._total = self._op(self._total, value)

    @property
    def value(self) -> Any:
        """Return the sum over all tasks that have succeeded until now, and all additions in this process.

        An error of `op` is raised; the next look begins with the addition that it was about.
        """
        with self._lock:
            while self._ended:
                ended = self._ended[0]
                final = ended if ended.body is not None else self._session.fetch(ended.id)
                added = decode_body(final).accumulated if final is not None and final.body else None
                if added is not None and self._key in added:
                    self._total = self._op(self._total, unpack(added[self._key]))
                self._ended.popleft()
            return self._total

    def __reduce__(self) -> tuple[Any, ...]:
        return Adder, (self._key, self._op)

    def __repr__(self) -> str:
        return f"<Accumulator: {self.value!r}>"
