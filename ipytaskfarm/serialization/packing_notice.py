"""A notice on standard error that says what is being packed, if packing takes longer than two seconds."""

from __future__ import annotations

import sys
import threading
import time
import types
from collections.abc import Iterable
from typing import Any

from .function_parts import closure_of
from .module_bundles import size_text, working

NOTICE_AFTER_S = 2.0
_LOOK_EVERY_S = 0.25
_IDLE_S = 30.0
"""The watching thread ends when nothing was packed for this time."""


class PackingNotice:
    """The packing in progress in this process, and when it began."""

    def __init__(self) -> None:
        self.on = False
        """Whether notices are shown. Only clients set this: nobody reads what an engine prints by itself."""
        self.what: Any = None
        self.name = ""
        self.begun = 0.0
        self.thread: threading.Thread | None = None

    def begin(self, what: Any, name: str | tuple[str, ...]) -> None:
        """Record that packing begins. The caller sets `what` to None when it has ended."""
        self.name = name if isinstance(name, str) else name[0]
        self.begun = time.monotonic()
        self.what = (what,)
        if self.thread is None:
            self.thread = threading.Thread(target=self._look, name="ipytaskfarm packing notice", daemon=True)
            self.thread.start()

    def _look(self) -> None:
        said = 0.0
        while time.monotonic() - self.begun < _IDLE_S or self.what is not None:
            time.sleep(_LOOK_EVERY_S)
            what, begun = self.what, self.begun
            if what is not None and begun != said and time.monotonic() - begun > NOTICE_AFTER_S:
                said = begun
                print(f"packing {self.name}: {working.what or _largest(what[0])} …", file=sys.stderr, flush=True)
        self.thread = None


notice = PackingNotice()


def _largest(obj: Any) -> str:
    """Describe the largest part, as far as it can be found without a deep search."""
    try:
        return _described(max(_parts(obj), key=_size, default=obj))
    except Exception:  # it changes while another thread packs it, or the user's code that gives its size fails
        return f"a {type(obj).__name__}"


def _parts(obj: Any) -> Iterable[Any]:
    if isinstance(obj, types.FunctionType):
        yield from (obj.__globals__[name] for name in obj.__code__.co_names if name in obj.__globals__)
        yield from obj.__defaults__ or ()
        yield from (value for _, value in closure_of(obj))
    elif isinstance(obj, tuple | list):
        for each in obj[:1000]:
            yield from _parts(each)
    elif isinstance(obj, dict):
        yield from obj.values()
    else:
        yield obj


def _size(obj: Any) -> int:
    size = getattr(obj, "nbytes", None)
    return size if isinstance(size, int) else sys.getsizeof(obj)


def _described(obj: Any) -> str:
    name = type(obj).__name__
    return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name} ({size_text(_size(obj))})"
