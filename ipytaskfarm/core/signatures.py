"""The signatures of users' functions."""

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
