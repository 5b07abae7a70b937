"""Reducers for values of certain libraries, which pickle refuses or brings back changed."""

from __future__ import annotations

import contextlib
import copyreg
import functools
import sys
from collections.abc import Callable
from typing import Any

from . import rebuild_values as values
from .module_origin import Travel, travel
from .pickler import Pickler, Reduced, by_member


def of_wrapt(kind: type) -> Any:
    """Find the reducer for functions and methods with a decorator of wrapt, which it leaves to others."""
    wrapt: Any = sys.modules.get("wrapt")
    if wrapt is not None and kind is wrapt.BoundFunctionWrapper:
        return lambda pickler, found: (getattr, (found._self_instance, found.__name__))
    if wrapt is None or kind is not wrapt.FunctionWrapper:
        return None
    return lambda pickler, found: (
        values.new_wrapper,
        (found.__wrapped__, found._self_wrapper, found._self_enabled),
        vars(found) or None,
    )


def _of_mpmath(kind: Any) -> Any:
    """Find the reducer for the contexts of mpmath, by which its matrices compute, and its constants: each process has
    its own.
    """
    if not (kind.__module__.startswith("mpmath.ctx_") and kind.__name__.endswith(("Context", "constant"))):
        return None
    members = vars(sys.modules["mpmath"])

    def reduce(pickler: Pickler, found: Any) -> Reduced:
        name = next((name for name, value in list(members.items()) if value is found), None)
        return NotImplemented if name is None else by_member("mpmath", name)

    return reduce


def place_in_context(cls: type) -> str | None:
    """Return where a class is that a context of mpmath has made for itself, such as ``mp.matrix``."""
    if not str(cls.__module__).startswith("mpmath."):
        return None
    contexts = vars(sys.modules["mpmath"])
    places = ((name, key, value) for name in ("mp", "fp", "iv") for key, value in list(vars(contexts[name]).items()))
    return next((f"{name}.{key}" for name, key, value in places if value is cls), None)


def _of_lxml(kind: type) -> Any:
    """Find the reducer for elements and trees of lxml, which travel as text: an element without what is around it."""
    if kind.__module__ not in ("lxml.etree", "lxml.html"):
        return None
    etree: Any = sys.modules["lxml.etree"]
    if not issubclass(kind, etree._Element | etree._ElementTree):
        return None

    def reduce(pickler: Pickler, found: Any) -> Reduced:
        is_tree = isinstance(found, etree._ElementTree)
        text = etree.tostring(found, encoding="utf-8", with_tail=not is_tree)
        parts = text, is_tree, type(found.getroot() if is_tree else found).__module__ == "lxml.html"
        with contextlib.suppress(etree.XMLSyntaxError):
            if etree.tostring(values.new_element(*parts), encoding="utf-8") == text:
                return values.new_element, parts
        return NotImplemented  # HTML may have names that are none in XML

    return reduce


def _of_curry(kind: type) -> Any:
    """Find the reducer for functions that toolz has curried, which it reduces to the names of their functions."""
    if kind.__name__ != "curry":
        return None

    def reduce(pickler: Pickler, found: Any) -> Reduced:
        restore, (cls, function, *rest, is_whole) = found.__reduce__()
        module, _, name = function.partition(":") if isinstance(function, str) else ("", "", "")
        way = travel(module) if module else Travel.REFERENCE
        if way is Travel.SOURCE and is_whole:
            return by_member(module, name)
        if way is Travel.SOURCE:
            function = functools.reduce(getattr, name.split("."), sys.modules[module])
        elif way is Travel.LOOSE:
            function = found.func
        return restore, (cls, function, *rest, is_whole if way is Travel.REFERENCE else None)

    return reduce


class _Suppress:
    """Stands in a pickle for ``argparse.SUPPRESS``, a text that argparse compares by identity."""

    def __reduce__(self) -> Any:
        return getattr, (sys.modules["argparse"], "SUPPRESS")


def _of_argparse(kind: type) -> Any:
    """Find the reducer for parsers and their arguments."""
    argparse: Any = sys.modules["argparse"]
    if not issubclass(kind, argparse.Action | argparse._ActionsContainer):
        return None

    def reduce(pickler: Pickler, found: Any) -> Reduced:
        state = {key: _Suppress() if value is argparse.SUPPRESS else value for key, value in vars(found).items()}
        return vars(copyreg)["__newobj__"], (kind,), state

    return reduce


def _of_array(kind: type) -> Any:
    """Find the reducer for arrays of a class of the user, whose attributes numpy's own ``__reduce__`` leaves out."""
    plain: Any = getattr(sys.modules.get("numpy"), "ndarray", None)
    if plain is None or not issubclass(kind, plain) or travel(kind.__module__) is Travel.REFERENCE:
        return None
    if any(getattr(kind, name) is not getattr(plain, name) for name in ("__reduce__", "__reduce_ex__", "__setstate__")):
        return None

    def reduce(pickler: Pickler, found: Any) -> Reduced:
        if not getattr(found, "__dict__", None):
            return NotImplemented
        make, arguments, state = found.__reduce__()
        return make, arguments, (state, vars(found)), None, None, values.fill_array

    return reduce


def of_library(kind: type) -> Any:
    """Find the reducer for types of some libraries, and for arrays of the user's types."""
    find: Callable[[Any], Any] = _LIBRARIES.get(str(kind.__module__).partition(".")[0], _of_array)
    return find(kind)


_LIBRARIES: dict[str, Callable[[Any], Any]] = {
    "argparse": _of_argparse,
    "cytoolz": _of_curry,
    "lxml": _of_lxml,
    "mpmath": _of_mpmath,
    "toolz": _of_curry,
}
