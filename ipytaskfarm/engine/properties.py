"""The user's properties of an engine."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from threading import RLock
from typing import Any, TypeAlias

from ..core.arguments import INT_MAX, INT_MIN
from ..core.errors import InvalidProperty, UnpickleableException
from ..core.limits import PROPERTIES_BYTES, properties_bytes
from ..core.messages import PropertiesChanged
from ..core.text import escaped, exactly, is_utf8, shown
from ..serialization.pack import pack

Changed: TypeAlias = Callable[[int, bytes, dict[str, str | float | bool]], None]


_PLAIN = frozenset({str, int, float, bool})
"""The types of values that conditions (`requires`) can test."""
_FLOAT_MAX = 2**1023


def _is_plain(value: object) -> bool:
    return type(value) in _PLAIN and not (type(value) is int and abs(value) >= _FLOAT_MAX)


def _plain(value: Any) -> str | float | bool:
    """Return a value in the form that conditions test: integers beyond 64 bits as floats, text escaped."""
    if type(value) is str:
        return escaped(value)
    return float(value) if type(value) is int and not INT_MIN <= value <= INT_MAX else value


class Properties(dict[str, Any]):
    """A dict that reports its whole content to the farm at each change.

    A value that is changed in place (``properties['l'].append(1)``) is not noticed: assign it again.
    """

    def __init__(self, reserved: Iterable[str], changed: Changed) -> None:
        super().__init__()
        self._reserved = frozenset(reserved)
        self._changed = changed
        self._lock = RLock()
        self.version = 0
        """The number of changes. Answers of depend functions refer to it. 0: empty, and never reported."""

    def __setitem__(self, key: str, value: Any) -> None:
        self._replace({**self, key: value})

    def __delitem__(self, key: str) -> None:
        left = dict(self)
        del left[key]
        self._replace(left)

    def update(self, *args: Any, **kwargs: Any) -> None:
        """Update like a dict, as one change. If one of the values cannot be a property, nothing changes."""
        self._replace({**self, **dict(*args, **kwargs)})

    def __ior__(self, other: Any) -> Properties:  # type: ignore[override, misc]
        self.update(other)
        return self

    def clear(self) -> None:
        """Remove all items, like a dict."""
        self._replace({})

    def remove(self, keys: Iterable[str]) -> None:
        """Delete several keys as one change.

        Raises:
            KeyError: a key is missing; nothing is deleted.
        """
        left = dict(self)
        for key in keys:
            if key not in left:
                raise KeyError(key)
            del left[key]
        self._replace(left)

    def pop(self, key: str, *default: Any) -> Any:
        """Remove a key and return its value, like a dict."""
        value = super().get(key, *default) if default else self[key]
        if key in self:
            del self[key]
        return value

    def popitem(self) -> tuple[str, Any]:
        """Remove and return the last item, like a dict."""
        key = next(reversed(self))
        return key, self.pop(key)

    def setdefault(self, key: str, default: Any = None) -> Any:
        """Return the value of a key, and set it first if it is missing, like a dict."""
        if key not in self:
            self[key] = default
        return self[key]

    def __reduce__(self) -> tuple[Any, ...]:
        return dict, (dict(self),)

    def replace(self, new: Mapping[str, Any]) -> None:
        """Set these properties as one change, and delete all others."""
        self._replace(new)

    def _replace(self, new: Mapping[str, Any]) -> None:
        with self._lock:
            self._check(new)
            try:
                packed = pack(dict(new))
            except UnpickleableException as error:
                raise InvalidProperty(f"a property must be picklable: {error}") from None
            plain = {key: _plain(value) for key, value in new.items() if _is_plain(value)}
            _check_size(packed, plain)
            super().clear()
            super().update(new)
            self.version += 1
            self._changed(self.version, packed, plain)

    def _check(self, new: Mapping[str, Any]) -> None:
        for key in new:
            if not isinstance(key, str):
                raise InvalidProperty(f"a property's name is a str, not {type(key).__name__}: {shown(key)}")
            if not is_utf8(exactly(key)):
                raise InvalidProperty(f"a property's name must be text that is UTF-8, not {shown(key)}")
            if key in self._reserved:
                raise InvalidProperty(f"{key!r} is a fact about the engine, which cannot be set: choose another name")


def _check_size(packed: bytes, plain: Mapping[str, str | float | bool]) -> None:
    """Check that the properties fit into a message, and leave room for those of other engines."""
    size = properties_bytes(packed, plain)
    if size > PROPERTIES_BYTES:
        raise InvalidProperty(
            f"the engine's properties would have {size:,} bytes, and {PROPERTIES_BYTES:,} are the most: nothing was "
            "changed. Properties are for choosing engines; keep data in the namespace (push), or in files"
        )


PAUSE_S = 0.05
"""The shortest time between two reports, unless something that follows them is reported in between."""
BYTES_PER_S = 16 << 20
"""Large properties wait longer."""
SMALL_BYTES = 64 << 10
"""So much is reported before a result, however short the pause was."""


class PropertyReports:
    """Sends reports, or keeps the last one until it is due: each has all properties."""

    def __init__(
        self,
        send: Callable[[PropertiesChanged], None],
        wait: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Create it; wait: called when a report waits: somebody must call `watch` soon."""
        self._send = send
        self._wait = wait
        self._clock = clock
        self._lock = threading.RLock()
        self._waiting: PropertiesChanged | None = None
        self._due_s = 0.0

    @property
    def is_waiting(self) -> bool:
        """Return whether a report waits."""
        return self._waiting is not None

    def changed(self, report: PropertiesChanged) -> None:
        """Take the newest report. Any thread may call this."""
        with self._lock:
            self._waiting = report
            self._send_if_due()
        if self._waiting is not None:
            self._wait()

    def watch(self) -> None:
        """Send the report that waits if it is due."""
        if self._waiting is not None:
            with self._lock:
                self._send_if_due()

    def flush(self) -> None:
        """Send the report that waits before something is reported that follows it, unless it is large."""
        waiting = self._waiting
        if waiting is not None:
            with self._lock:
                if properties_bytes(waiting.packed, waiting.plain) <= SMALL_BYTES:
                    self._due_s = 0.0
                self._send_if_due()

    def _send_if_due(self) -> None:
        report, now_s = self._waiting, self._clock()
        if report is None or now_s < self._due_s:
            return
        self._waiting = None
        self._due_s = now_s + max(PAUSE_S, properties_bytes(report.packed, report.plain) / BYTES_PER_S)
        self._send(report)
