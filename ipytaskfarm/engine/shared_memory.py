"""Keeps `multiprocessing.shared_memory` alive that tasks only attach to, when their engine ends.

Python registers each block with the process's resource tracker, also one that somebody else made, and the tracker
removes what is registered when the process has ended. Workers of a process pool share the tracker of the process that
made the block. An engine has a tracker of its own, which would remove the memory of a program that still uses it.
Python 3.13 has an argument for this, `track`.
"""

from __future__ import annotations

import functools
import sys
import threading
from multiprocessing import resource_tracker, shared_memory
from typing import Any

_KIND = "shared_memory"
_HAS_TRACK = sys.version_info >= (3, 13)


class _Attaching(threading.local):
    is_on = False


_attaching = _Attaching()


def install() -> None:
    """Let blocks that this process and its forked children attach to go unregistered."""
    cls: Any = shared_memory.SharedMemory
    tracker: Any = resource_tracker
    usual_init, usual_unlink, usual_register = cls.__init__, cls.unlink, tracker.register

    def init(self: Any, name: str | None = None, create: bool = False, size: int = 0, **track: bool) -> None:
        if create or track:
            usual_init(self, name, create, size, **track)
        elif _HAS_TRACK:
            usual_init(self, name, track=False)
            self._attached = True
        else:
            _attaching.is_on = True
            try:
                usual_init(self, name)
            finally:
                _attaching.is_on = False
            self._attached = True

    def unlink(self: Any) -> None:
        if getattr(self, "_attached", False):  # it takes the name back, which the tracker has to know for that
            usual_register(self._name, _KIND)
            self._track = True
        usual_unlink(self)

    def register(name: str, kind: str) -> None:
        if not (_attaching.is_on and kind == _KIND):
            usual_register(name, kind)

    cls.__init__ = functools.wraps(usual_init)(init)
    cls.unlink = functools.wraps(usual_unlink)(unlink)
    if not _HAS_TRACK:
        tracker.register = register
