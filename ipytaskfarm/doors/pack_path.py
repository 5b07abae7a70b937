"""Where in an object is the part that cannot be pickled?"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Iterator
from typing import Any

from .pack_reduce import class_attributes, find_named, reduced_by_pickle, used_globals

_LOOKED_AT_MAX = 10_000
_REMEDIES = {
    "lock": "make it where it is used, inside the task",
    "RLock": "make it where it is used, inside the task",
    "generator": "make a list of it",
    "TextIOWrapper": "open the file inside the task",
    "BufferedReader": "open the file inside the task",
    "BufferedWriter": "open the file inside the task",
    "socket": "connect inside the task",
    "module": "pull names instead",
    "Connection": "connect inside the task",
    "Thread": "start it inside the task",
    "coroutine": "await it, and send its result",
}


def find_culprit(obj: Any, names: str | tuple[str, ...], fails: Callable[[Any], bool]) -> tuple[str, Any]:
    """(path, the innermost part that fails by itself).  Names: what to call the object, or each of its items."""
    path = names if isinstance(names, str) else ""
    current = obj
    seen = {id(obj)}
    first = not isinstance(names, str)
    for _ in range(_LOOKED_AT_MAX):
        for step, part in _children(current):
            if first:
                step = names[int(step[1:-1])]
            if id(part) not in seen and fails(part):
                path, current = path + step, part
                seen.add(id(part))
                first = False
                break
        else:
            break
    return path, current


def _children(obj: Any) -> Iterator[tuple[str, Any]]:
    """(how to write the step, part) for all that would be pickled with the object."""
    if isinstance(obj, dict):
        for key, value in list(obj.items()):
            yield f"[{_short(key)}]", value
            yield f" (the key {_short(key)})", key
    elif isinstance(obj, list | tuple):
        yield from ((f"[{index}]", value) for index, value in enumerate(obj))
    elif isinstance(obj, set | frozenset):
        yield from ((f" (its item {_short(value)})", value) for value in obj)
    elif isinstance(obj, types.FunctionType):
        yield from _function_children(obj)
    elif isinstance(obj, types.MethodType):
        yield ".__self__", obj.__self__
        yield ".__func__", obj.__func__
    elif isinstance(obj, functools.partial):
        yield from ((".func", obj.func), (".args", obj.args), (".keywords", obj.keywords))
    elif isinstance(obj, property):
        yield from ((".fget", obj.fget), (".fset", obj.fset), (".fdel", obj.fdel))
    elif isinstance(obj, staticmethod | classmethod):
        yield "", obj.__func__
    elif isinstance(obj, type):
        if find_named(obj) is None:
            yield from ((f".{name}", value) for name, value in class_attributes(obj).items())
    else:
        yield from _instance_children(obj)


def _function_children(function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    if find_named(function) is not None:
        return
    name = function.__qualname__
    for variable, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            yield f" (variable {variable!r} of the function around {name})", cell.cell_contents
        except ValueError:
            pass
    for variable, value in used_globals(function)[0].items():
        yield f" (global {variable!r} used by {name})", value
    for index, value in enumerate(function.__defaults__ or ()):
        yield f" (default {index} of {name})", value
    for keyword, value in (function.__kwdefaults__ or {}).items():
        yield f" (default of {keyword!r} in {name})", value
    yield from ((f".{attribute}", value) for attribute, value in function.__dict__.items())


def _instance_children(obj: Any) -> Iterator[tuple[str, Any]]:
    try:
        reduced: Any = reduced_by_pickle(obj)
    except Exception:
        return
    if isinstance(reduced, str):
        return
    state = reduced[2] if len(reduced) > 2 else None
    states = state if isinstance(state, tuple) and len(state) == 2 else (state,)
    for part in states:
        if isinstance(part, dict):
            yield from ((f".{attribute}", value) for attribute, value in part.items())
        elif part is not None:
            yield " (its state)", part
    yield from ((f" (argument {index} of its class)", value) for index, value in enumerate(reduced[1]))
    for kind, items in zip(("[{}]", "[{}]"), reduced[3:5], strict=False):
        if items is not None:
            for index, value in enumerate(items):
                yield kind.format(index), value
    yield " (its class)", type(obj)


def _short(value: Any) -> str:
    try:
        text = repr(value)
    except Exception:
        text = f"a {type(value).__name__}"
    return text if len(text) <= 60 else text[:57] + "..."


def type_name(obj: Any) -> str:
    """``_thread.lock``, ``generator``: as an error message says it."""
    kind = type(obj)
    return (
        kind.__qualname__ if kind.__module__ in ("builtins", "__main__") else f"{kind.__module__}.{kind.__qualname__}"
    )


def explain(path: str, culprit: Any, error: BaseException) -> str:
    """The sentence for people."""
    article = "an" if type_name(culprit)[0].lower() in "aeiou" else "a"
    what = f"{article} {type_name(culprit)} cannot be pickled"
    remedy = _REMEDIES.get(type(culprit).__name__, "send something plainer, or give its class a __reduce__ method")
    reason = str(error)
    known = reason.startswith(("cannot pickle", "Can't pickle")) or not reason
    return f"{path}: {what}{'' if known else f' ({type(error).__name__}: {reason})'}: {remedy}"
