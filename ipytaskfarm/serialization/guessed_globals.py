"""Globals that code may mean by a text that it has, such as ``eval("model.fit(x)")``: they are sent if they can be.

A text may also name a global by chance.  If that is a lock or a generator, the function is sent without it.
"""

from __future__ import annotations

import threading
import types
from collections.abc import Callable
from typing import Any

_SURE = frozenset({int, float, complex, bool, str, bytes, type(None), types.ModuleType, types.BuiltinFunctionType})
_LARGE_BYTES = 1 << 20
"""An array of this size is not pickled as a trial: it can be sent, and a trial would take as long as sending it."""


class _TrialPickles(threading.local):
    """The values of which the thread finds out whether they can be sent."""

    def __init__(self) -> None:
        self.under_way: set[int] = set()


_trials = _TrialPickles()


def can_be_sent(value: Any, dump: Callable[[Any], object]) -> bool:
    """Return whether a value can be pickled.

    Args:
        value: a global.
        dump: pickles it. A function that names itself in a text is reached again by that.
    """
    if type(value) in _SURE or id(value) in _trials.under_way or _is_large(value):
        return True
    _trials.under_way.add(id(value))
    try:
        dump(value)
    except Exception:
        return False
    finally:
        _trials.under_way.discard(id(value))
    return True


def _is_large(value: Any) -> bool:
    size = getattr(value, "nbytes", 0)
    return isinstance(size, int) and size > _LARGE_BYTES
