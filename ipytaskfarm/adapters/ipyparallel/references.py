"""`Reference` and `interactive`: calls that use the names of the engines."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from types import FunctionType
from typing import Any

from ipytaskfarm.engine import is_engine, user_namespace


class Reference:
    """An expression that each engine evaluates in its namespace: ``view.apply(f, Reference("rank"))``.

    It may be an argument, a part of an argument, the function of a call, or an item of a map.
    """

    def __init__(self, name: str) -> None:
        if not isinstance(name, str):
            raise TypeError(f"illegal name: {name!r}")
        self.name = name

    def __repr__(self) -> str:
        return f"<Reference: {self.name!r}>"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Refuse: the object that the name refers to is on the engines."""
        raise TypeError(f"{self!r} is called on engines alone: view.apply(Reference({self.name!r}), …)")

    def __reduce__(self) -> tuple[Any, ...]:
        return look_up, (self.name,)


def look_up(name: str) -> Any:
    """Evaluate an expression in the engine's namespace; outside engines, return the `Reference` again."""
    return eval(name, user_namespace()) if is_engine() else Reference(name)


class InteractiveFunction:
    """A function whose globals are the engine's namespace, or ``__main__`` outside engines; made by `interactive`."""

    def __init__(self, function: FunctionType) -> None:
        self._function = function
        self._here = in_names(function, vars(sys.modules["__main__"]))
        functools.update_wrapper(self, function)
        self.__module__ = "__main__"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._here(*args, **kwargs)

    def __reduce__(self) -> tuple[Any, ...]:
        return on_engine, (self._function,)


def in_names(function: FunctionType, names: dict[str, Any]) -> FunctionType:
    """Return a function with the same code and other globals."""
    made = FunctionType(function.__code__, names, function.__name__, function.__defaults__, function.__closure__)
    made.__kwdefaults__ = function.__kwdefaults__
    return made


def on_engine(function: FunctionType) -> Callable[..., Any]:
    """Return the function for the process that unpickles it."""
    return in_names(function, user_namespace()) if is_engine() else InteractiveFunction(function)


def interactive(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that finds its global names in the engine's namespace alone.

    Other functions bring the values that they use, and names that were placed on the engine have priority.
    """
    return InteractiveFunction(function) if isinstance(function, FunctionType) else function
