"""Globals that functions of the program assign in direct calls: they stay in the engine's namespace.

In ipyparallel, functions of ``__main__`` run in the engine's namespace, so ``global model; model = load()`` prepares an
engine for later calls.  Here a function brings globals of its own.  A call of a function that assigns to some is
therefore wrapped: what it has assigned goes to the namespace when it ends, with the precedence of a pushed name.
"""

from __future__ import annotations

import dis
import functools
import inspect
from collections.abc import Callable, Iterator
from types import CodeType, FunctionType
from typing import Any, TypeGuard

from ipytaskfarm.adapters.ipyparallel import engine_calls
from ipytaskfarm.adapters.ipyparallel.remote_functions import name_of
from ipytaskfarm.engine.namespace import place_by_call

_ABSENT = object()


def keeping(function: Any, mapping: bool = False) -> Callable[..., Any]:
    """Return what a direct view calls for a function: the function, or a call that keeps what it assigns to globals.

    mapping: the call's arguments are parts of sequences, and the function is called with their items.
    """
    names = _assigned(function, set()) if _is_of_program(function) else frozenset()
    called = function
    if names:
        called = functools.partial(call_keeping, function, sorted(names), mapping)
    elif mapping:
        called = functools.partial(engine_calls.map_part, function)
    if called is not function:
        called.__name__ = name_of(function)  # for people
    return called  # type: ignore[no-any-return]


def _is_of_program(function: Any) -> TypeGuard[FunctionType]:
    return isinstance(function, FunctionType) and function.__module__ == "__main__"


def _assigned(function: FunctionType, seen: set[FunctionType]) -> frozenset[str]:
    """Return the globals that a function, or one of the same module that it mentions, may assign."""
    seen.add(function)
    names, mentioned = _names_in(function.__code__)
    for name in mentioned:
        other = function.__globals__.get(name)
        if _is_of_program(other) and other.__globals__ is function.__globals__ and other not in seen:
            names |= _assigned(other, seen)
    return names


@functools.lru_cache(4096)
def _names_in(code: CodeType) -> tuple[frozenset[str], frozenset[str]]:
    """Return the globals that the code assigns, and all names that it mentions."""
    codes = list(_with_nested(code))
    assigned = {step.argval for each in codes for step in dis.get_instructions(each) if step.opname == "STORE_GLOBAL"}
    return frozenset(assigned), frozenset(name for each in codes for name in each.co_names)


def _with_nested(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _with_nested(constant)


def call_keeping(function: FunctionType, names: list[str], mapping: bool, /, *args: Any, **kwargs: Any) -> Any:
    """Call a function, and keep those of its globals that it has assigned, also before an error."""
    before = {name: function.__globals__.get(name, _ABSENT) for name in names}
    called: Any = functools.partial(engine_calls.map_part, function) if mapping else function
    try:
        value = called(*args, **kwargs)
    finally:
        _keep(function, before)
    return _keeping_later(value, function, before) if inspect.iscoroutine(value) else value


async def _keeping_later(coroutine: Any, function: FunctionType, before: dict[str, Any]) -> Any:
    try:
        return await coroutine
    finally:
        _keep(function, before)


def _keep(function: FunctionType, before: dict[str, Any]) -> None:
    here = function.__globals__
    changed = {name: here[name] for name, value in before.items() if here.get(name, value) is not value}
    if changed:
        place_by_call(changed, function.__qualname__)
