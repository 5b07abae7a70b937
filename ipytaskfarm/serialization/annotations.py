"""The annotations of functions and classes, on Pythons that evaluate them at the definition and on those that wait.

Since Python 3.14 (PEP 649) annotations are evaluated when somebody asks for them.  They travel as values, as they do
from an older Python; a name that is not defined makes a string of its annotation, as ``from __future__ import
annotations`` would.
"""

from __future__ import annotations

import sys
import types
import weakref
from collections.abc import Callable
from typing import Any

EVALUATED_LATE = sys.version_info >= (3, 14)
MADE_BY_PYTHON = frozenset({"__annotate_func__", "__annotations_cache__", "__classdictcell__"})
"""The attributes of a class from which Python 3.14 computes ``__annotations__``."""

_of_class: Callable[[type], dict[str, Any]] = vars(type)["__annotations__"].__get__
_partial: weakref.WeakKeyDictionary[Any, tuple[Any, dict[str, Any]]] = weakref.WeakKeyDictionary()
"""Function or class -> (the function that evaluates its annotations, these as far as names are defined).  The same
dict as long as nothing changes: guards compare the values by identity."""


def annotations_of(function: types.FunctionType) -> dict[str, Any]:
    """Return the annotations of a function."""
    try:
        return function.__annotations__
    except Exception:  # the annotations are code of the user
        return _as_far_as_defined(function)


def own_annotations(cls: type) -> dict[str, Any]:
    """Return the annotations of the class itself, without those of its bases."""
    found = vars(cls).get("__annotations__")
    if isinstance(found, dict) or not EVALUATED_LATE:
        return found if isinstance(found, dict) else {}
    try:
        return _of_class(cls)
    except Exception:
        return _as_far_as_defined(cls)


def texts_of(cls: type) -> dict[str, str]:
    """Return the annotations of a class, which can be evaluated, as they are written; only where that is done late."""
    from annotationlib import Format, get_annotations  # type: ignore[import-not-found,unused-ignore]

    texts: dict[str, str] = get_annotations(cls, format=Format.STRING)
    return texts


def _as_far_as_defined(owner: Any) -> dict[str, Any]:
    """Return annotations of which at least one cannot be evaluated: that one as a string.

    If code in them fails, there are none."""
    from annotationlib import Format, ForwardRef, get_annotations  # type: ignore[import-not-found,unused-ignore]

    evaluate, known = owner.__annotate__, _partial.get(owner)
    if known is not None and known[0]() is evaluate:
        return known[1]
    found: dict[str, Any]
    try:
        values = get_annotations(owner, format=Format.FORWARDREF)
        found = {name: value.__forward_arg__ if type(value) is ForwardRef else value for name, value in values.items()}
    except Exception:
        found = {}
    _partial[owner] = weakref.ref(evaluate), found
    return found
