"""What a function has beside its code and its globals: the values of its closure and of its defaults, annotations."""

from __future__ import annotations

import functools
import sys
import types
import weakref
from collections.abc import Callable, Iterator, Sequence
from inspect import CO_VARARGS
from typing import Any

ABSENT = object()
"""What `cell_content` returns for an empty cell."""


def cell_content(cell: types.CellType) -> Any:
    """Return what is in a cell; `ABSENT` if it is empty."""
    try:
        return cell.cell_contents
    except ValueError:
        return ABSENT


def cell_state(cell: types.CellType) -> tuple[Any, ...]:
    """Return what is in a cell as a tuple of one; () if it is empty."""
    value = cell_content(cell)
    return () if value is ABSENT else (value,)


def closure_of(function: types.FunctionType) -> Sequence[tuple[str, Any]]:
    """Return name and value of each closure variable that has a value."""
    cells = function.__closure__
    if cells is None:
        return ()
    named = zip(function.__code__.co_freevars, map(cell_content, cells), strict=False)
    return [(name, value) for name, value in named if value is not ABSENT]


def defaults_of(function: types.FunctionType) -> Sequence[tuple[str, Any]]:
    """Return name and default of each parameter that has one."""
    values, by_keyword = function.__defaults__ or (), function.__kwdefaults__ or {}
    if not (values or by_keyword):
        return ()
    code = function.__code__
    names = code.co_varnames[code.co_argcount - len(values) : code.co_argcount]
    return [*zip(names, values, strict=True), *by_keyword.items()]


def function_of(member: Any) -> Any:
    """Return the function that a method, a property or a wrapper in a class has; any other member as it is.

    Others are not asked for attributes: a proxy may raise what it likes.
    """
    kind = type(member)
    if issubclass(kind, types.MethodType | staticmethod | classmethod):
        return member.__func__
    return member.fget if issubclass(kind, property) else member


def takes(function: Any, count: int) -> bool:
    """Return whether a function can be called with so many arguments by position.  One written in C is believed to."""
    if type(function) is not types.FunctionType:
        return True
    code = function.__code__
    if count == code.co_argcount and not code.co_kwonlyargcount:
        return True
    required = code.co_argcount - len(function.__defaults__ or ())
    by_keyword = code.co_kwonlyargcount - len(function.__kwdefaults__ or {})
    return required <= count and not by_keyword and (count <= code.co_argcount or bool(code.co_flags & CO_VARARGS))


def makers_of(cls: type) -> Iterator[Any]:
    """Yield the ``__new__`` of a class and of its bases, in the order in which they are looked up."""
    for each in cls.__mro__:
        made = vars(each).get("__new__")
        if made is not None:
            yield made.__func__ if isinstance(made, staticmethod) else made


def added_attributes(wrapper: Any) -> dict[str, Any]:
    """Return the attributes that the program has set on what `lru_cache` or `singledispatch` made of a function."""
    own = getattr(wrapper.__wrapped__, "__dict__", {})
    return {
        name: value
        for name, value in vars(wrapper).items()
        if name not in _SET_BY_DECORATORS and not (name in own and own[name] is value)
    }


_SET_BY_DECORATORS = frozenset(
    {*functools.WRAPPER_ASSIGNMENTS, "__wrapped__", "cache_parameters", "registry", "dispatch", "register"}
    | {"_clear_cache"}
)


EVALUATED_LATE = sys.version_info >= (3, 14)
MADE_BY_PYTHON = frozenset({"__annotate_func__", "__annotations_cache__", "__classdictcell__"})
"""The attributes of a class from which Python 3.14 computes ``__annotations__``."""

_of_class: Callable[[type], dict[str, Any]] = vars(type)["__annotations__"].__get__
_partial: weakref.WeakKeyDictionary[Any, tuple[Any, dict[str, Any]]] = weakref.WeakKeyDictionary()
"""Function or class -> (the function that evaluates its annotations, these as far as names are defined).  The same
dict as long as nothing changes: guards compare the values by identity."""


def annotations_of(function: types.FunctionType) -> dict[str, Any]:
    """Return the annotations of a function.

    Since Python 3.14 (PEP 649) annotations are evaluated when somebody asks for them. They travel as values, as they do
    from an older Python; a name that is not defined makes a string of its annotation, as
    ``from __future__ import annotations`` would.
    """
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
