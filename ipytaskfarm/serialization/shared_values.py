"""Values that many tasks share: broadcast values, which engines unpack once, and accumulators, to which tasks add.

The names here are part of what is stored and sent, because pickles contain them.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, TypeAlias

from ..storage.blobs import mapped
from .pack import pack, unpack_lasting
from .rebuild import loading

KEPT = 32
"""The number of broadcast values that an engine keeps unpacked. The least recently used value is dropped first."""

_values: OrderedDict[str, Any] = OrderedDict()
_steps: dict[str, list[Callable[[], Any]]] = {}
"""Key of a value -> the steps that install its modules, for values that have some."""
_Added: TypeAlias = dict[str, tuple[Any, Callable[[Any, Any], Any]]]
_added: _Added = {}
_apart: ContextVar[_Added | None] = ContextVar("_apart", default=None)
"""What was added by the present context's run, where several runs are in progress."""


class Received:
    """A broadcast value on an engine. Each engine unpacks `value` once, and each node holds its data once."""

    __slots__ = ("_key", "_packed")

    def __init__(self, key: str, packed: bytes | None) -> None:
        self._key = key
        self._packed = packed

    @property
    def value(self) -> Any:
        """Return the value.

        Raises:
            BlobMissing: the value was unpersisted in the meantime.
        """
        if self._key in _values:
            _values.move_to_end(self._key)
            for step in _steps.get(self._key, ()):
                step()
            return _values[self._key]
        data = self._packed if self._packed is not None else mapped(bytes.fromhex(self._key))
        steps: list[Callable[[], Any]] = []
        value = _values[self._key] = unpack_lasting(data, loading.namespace, steps)
        if steps:
            _steps[self._key] = steps
        while len(_values) > KEPT:
            gone, _ = _values.popitem(last=False)
            _steps.pop(gone, None)
        return value

    def __reduce__(self) -> tuple[Any, ...]:
        return Received, (self._key, self._packed)

    def __repr__(self) -> str:
        return f"<broadcast value {self._key[:12]}>"


class Adder:
    """An accumulator inside a task: ``add(x)`` or ``+=``. What a task has added counts once the task has succeeded."""

    __slots__ = ("_key", "_op")

    def __init__(self, key: str, op: Callable[[Any, Any], Any]) -> None:
        self._key = key
        self._op = op

    def add(self, value: Any) -> None:
        """Add a value to the accumulator."""
        added = _here()
        known = added.get(self._key)
        added[self._key] = (value if known is None else self._op(known[0], value), self._op)

    def __iadd__(self, value: Any) -> Adder:
        self.add(value)
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return Adder, (self._key, self._op)


def _here() -> _Added:
    apart = _apart.get()
    return _added if apart is None else apart


def add_apart() -> None:
    """Count what is added in this context, and in copies of it, apart from what other runs add."""
    _apart.set({})


def take_added() -> dict[str, bytes]:
    """Return the sums since the last call: accumulator -> packed sum."""
    added = _here()
    if not added:
        return {}
    taken = {key: pack(total, "accumulator") for key, (total, _) in added.items()}
    added.clear()
    return taken


def forget_added() -> None:
    """Forget what was added by a run that has failed."""
    _added.clear()
