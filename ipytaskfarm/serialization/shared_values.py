"""Values that many tasks share: broadcast ones, which engines unpack once, and accumulators, which they add to.

The names here are part of what is stored and sent: pickles name them.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from ..storage.blobs import mapped
from .pack import pack, unpack_lasting
from .rebuild import loading

KEPT = 32
"""So many broadcast values an engine keeps unpacked; the least recently used ones go."""

_values: OrderedDict[str, Any] = OrderedDict()
_steps: dict[str, list[Callable[[], Any]]] = {}
"""What puts the modules of a value in place, for each that has some."""
_added: dict[str, tuple[Any, Callable[[Any, Any], Any]]] = {}


class Received:
    """A broadcast value on an engine: `value` is unpacked once per engine, its data is there once per node."""

    __slots__ = ("_key", "_packed")

    def __init__(self, key: str, packed: bytes | None) -> None:
        self._key = key
        self._packed = packed

    @property
    def value(self) -> Any:
        """Return the value; BlobMissing when it was unpersisted meanwhile."""
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
    """An accumulator inside a task: ``add(x)``, or ``+=``.  What a task has added counts when it has succeeded."""

    __slots__ = ("_key", "_op")

    def __init__(self, key: str, op: Callable[[Any, Any], Any]) -> None:
        self._key = key
        self._op = op

    def add(self, value: Any) -> None:
        """Add to it."""
        known = _added.get(self._key)
        _added[self._key] = (value if known is None else self._op(known[0], value), self._op)

    def __iadd__(self, value: Any) -> Adder:
        self.add(value)
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return Adder, (self._key, self._op)


def take_added() -> dict[str, bytes]:
    """Return what was added since the last call: accumulator -> packed sum."""
    if not _added:
        return {}
    taken = {key: pack(total, "accumulator") for key, (total, _) in _added.items()}
    _added.clear()
    return taken


def forget_added() -> None:
    """A run has failed: what it added does not count."""
    _added.clear()
