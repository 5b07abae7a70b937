"""How users' functions and objects are called."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable
from typing import Any


def signature_of(function: Callable[..., Any], follow_wrapped: bool = True) -> inspect.Signature:
    """Return the signature of a function, also if names in its annotations are not defined (since Python 3.14).

    Raises ValueError or TypeError as `inspect.signature` does."""
    options: dict[str, Any] = {}
    if sys.version_info >= (3, 14):
        from annotationlib import Format

        options["annotation_format"] = Format.FORWARDREF
    return inspect.signature(function, follow_wrapped=follow_wrapped, **options)


def called_name(function: Callable[..., Any]) -> str:
    """Return the name of a function, that of the function of a partial, or that of the class of a callable object."""
    while isinstance(function, functools.partial):
        function = function.func
    return getattr(function, "__name__", None) or type(function).__name__


def is_executed(thing: object) -> bool:
    """Return whether the task of an object calls its ``execute()``.  Raises TypeError for a class with this method."""
    if not callable(getattr(thing, "execute", None)):
        return False
    if isinstance(thing, type):
        name = thing.__name__
        raise TypeError(
            f"an instance is needed, {name}(), whose execute() is called on an engine, not the class itself; "
            f"Task({name}) calls the class"
        )
    return True


def execute_object(thing: Any, *args: Any, **kwargs: Any) -> Any:
    """Call ``execute()`` on the engine; return its value, or the object's ``result`` if the value is None."""
    value = thing.execute(*args, **kwargs)
    return getattr(thing, "result", None) if value is None else value
