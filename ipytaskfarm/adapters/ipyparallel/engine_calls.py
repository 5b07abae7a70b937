"""Functions that direct views call on engines."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from ipytaskfarm.adapters.ipyparallel.references import look_up
from ipytaskfarm.engine import user_namespace


def values_of(names: list[str]) -> list[Any]:
    """Return the values of expressions in the engine's namespace, such as ``a`` and ``a.b``."""
    return [look_up(name) for name in names]


def assign(values: dict[str, Any]) -> None:
    """Assign values to targets such as ``a.b`` in the engine's namespace."""
    names = user_namespace()
    for target, value in values.items():
        names["_ipp_value"] = value
        try:
            exec(f"{target} = _ipp_value", names)
        finally:
            del names["_ipp_value"]


def map_part(function: Callable[..., Any], *parts: Iterable[Any]) -> list[Any]:
    """Call a function with the items of parts of sequences, up to the end of the shortest."""
    return list(map(function, *parts))


def nothing() -> None:
    """Do nothing."""
