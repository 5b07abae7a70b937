"""Functions without the plain values of their closures and defaults, so that those of one code are sent as one.

``[tc.run(MapTask(make(n))) for n in range(2000)]`` and ``[tc.run(lambda n=n: f(n)) for n in range(2000)]`` make 2,000
functions that differ in a number.  Each of them would be packed, examined, stored and rebuilt as a function of its own.
A template is packed once, and the values travel with each task (docs/decisions/0126).
"""

from __future__ import annotations

import dis
import functools
import itertools
import pickle
import sys
import types
import weakref
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

from .function_globals import Names
from .function_parts import annotations_of, cell_content
from .global_names import mentioned, nested_codes
from .kept_changes import assigns_closure
from .rebuild import is_call
from .session_reads import reached_functions

Values: TypeAlias = tuple[tuple[Any, ...], tuple[Any, ...] | None]
"""What the cells contain, in the order of ``co_freevars``, and the defaults."""
Templates: TypeAlias = OrderedDict[int, types.FunctionType]
"""Address of the code -> the template that was made of it last, which keeps the code alive."""

_PLAIN = frozenset({int, float, bool, complex, type(None), str, bytes})
"""The types of values that travel apart from the function: nothing can change in them, and no name is looked up."""
_TEXTS = frozenset({str, bytes})
_BYTES_MAX = 1024
"""The most bytes of values that travel apart, since they are sent again with each task of the same function."""
_KEPT_MAX = 256
_COMPARING_MAX = 1000
_IS = dis.opmap["IS_OP"]
_MARK = "__ipytaskfarm_template__"


class SplitFunction(NamedTuple):
    """A function in two parts."""

    template: types.FunctionType
    """The function with empty cells. Functions that differ in their values alone have the same template."""
    values: bytes
    """The pickle of `Values`."""
    has_texts: bool
    """Whether there are texts or bytes among the values; see `may_compare`."""


_templates: weakref.WeakKeyDictionary[types.ModuleType, Templates] = weakref.WeakKeyDictionary()
_comparing: dict[str, bool] = {}
"""Digest of a template -> what `may_compare` returned."""


def split_function(function: object) -> SplitFunction | None:
    """Return a function in two parts; None: it travels as a whole.

    Whether a function is taken apart depends on what it is, not on what was packed before, so that its template has the
    same digest in each session.
    """
    # One without "<" in its name, of a function around it or a lambda, can be found by its name.
    if type(function) is not types.FunctionType or "<" not in function.__qualname__:
        return None
    closure, defaults = function.__closure__, function.__defaults__
    if not (closure or defaults):
        return None
    cells = tuple(map(cell_content, closure)) if closure else ()
    values = (*cells, *defaults) if defaults else cells
    kinds = set(map(type, values))
    if not _PLAIN.issuperset(kinds):
        return None
    has_texts = not kinds.isdisjoint(_TEXTS)
    if has_texts:
        for value in values:
            if type(value) in _TEXTS and len(value) > _BYTES_MAX:
                return None  # it is not pickled again for each task
    packed = pickle.dumps((cells, defaults), 5)
    if len(packed) > _BYTES_MAX:
        return None
    template = _template_of(function)
    return None if template is None else SplitFunction(template, packed, has_texts)


def may_compare(template: object, digest: str) -> bool:
    """Return whether a text among the values may be compared by identity with one that the template brings.

    ``def f(x=UNSET): return x is UNSET``: pickles keep the identity of texts and bytes within one pack.

    digest: that of the template, which differs for other code.
    """
    known = _comparing.get(digest)
    if known is None:
        known = any(_tests_identity(each.__code__) for each in reached_functions(template))
        if len(_comparing) >= _COMPARING_MAX:
            _comparing.clear()
        _comparing[digest] = known
    return known


@functools.lru_cache(4096)
def _tests_identity(code: types.CodeType) -> bool:
    """Return whether the code asks for the identity of objects, other than whether one is None or another constant."""
    if not mentioned(code).isdisjoint(("id", "is_", "is_not")):
        return True
    for each in nested_codes(code):
        if _IS in each.co_code[::2]:
            steps = [step.opname for step in dis.get_instructions(each)]
            if any(now == "IS_OP" and before != "LOAD_CONST" for before, now in itertools.pairwise(steps)):
                return True
    return False


def _template_of(function: types.FunctionType) -> types.FunctionType | None:
    key = id(function.__code__)
    templates = _templates_beside(function.__globals__)
    known = templates.get(key)
    if known is not None and _is_like(function, known):
        return known
    if not _may_be_split(function):
        return None
    template = _with_values(function, tuple(types.CellType() for _ in function.__closure__ or ()), None)
    setattr(template, _MARK, True)
    templates.pop(key, None)  # it becomes the newest; another thread may have dropped it
    templates[key] = template
    if len(templates) > _KEPT_MAX:
        templates.popitem(last=False)
    return template


def _templates_beside(names: dict[str, Any]) -> Templates:
    """Return the templates of functions with these globals, which live as long as the module does.

    Those of a namespace that is no module's are not kept, since they would keep all that is in it.
    """
    builtins = names.get("__builtins__")
    if type(builtins) is Names:
        return builtins.templates
    name = names.get("__name__")
    module = sys.modules.get(name) if isinstance(name, str) else None
    if not isinstance(module, types.ModuleType) or vars(module) is not names:
        return OrderedDict()
    return _templates.setdefault(module, OrderedDict())


def _is_like(function: types.FunctionType, template: types.FunctionType) -> bool:
    """Return whether the function differs from the template in its values at most."""
    return (
        function.__code__ is template.__code__
        and function.__globals__ is template.__globals__
        and function.__kwdefaults__ is None
        and function.__qualname__ == template.__qualname__
        and function.__name__ == template.__name__
        and function.__module__ == template.__module__
        and function.__doc__ is template.__doc__
        and not function.__dict__
        and _are_the_same(annotations_of(function), template.__annotations__)
        and not getattr(function, "__type_params__", ())
    )


def _are_the_same(some: dict[str, Any], others: dict[str, Any]) -> bool:
    return len(some) == len(others) and all(others.get(name, some) is value for name, value in some.items())


def _may_be_split(function: types.FunctionType) -> bool:
    """Return whether the function travels by value, and each call may find its values as they were packed.

    One that assigns to variables of its closure is rebuilt for each task by `rebuild.Renewing`.
    """
    return (
        function.__kwdefaults__ is None
        and not function.__dict__
        and not getattr(function, "__type_params__", ())
        and not assigns_closure(function.__code__)
    )


def _with_values(
    function: types.FunctionType, cells: tuple[types.CellType, ...], defaults: tuple[Any, ...] | None
) -> types.FunctionType:
    closure = cells if function.__closure__ is not None else None
    made = types.FunctionType(function.__code__, function.__globals__, function.__name__, defaults, closure)
    made.__qualname__ = function.__qualname__
    made.__module__ = function.__module__
    made.__doc__ = function.__doc__
    if annotations := annotations_of(function):
        made.__annotations__ = dict(annotations)
    return made


def fill_template(function: Callable[..., Any], values: Values) -> Callable[..., Any]:
    """Return the function of a template that was unpacked, with these values.

    A function that is no template is returned as it is: a task that is retried with another function still has the
    values of its first one.
    """
    if type(function) is not types.FunctionType:
        return function
    is_wrapped = is_call(function.__code__)
    template = vars(function)["__wrapped__"] if is_wrapped else function
    if _MARK not in getattr(template, "__dict__", ()):
        return function
    cells, defaults = values
    made = _with_values(template, tuple(map(types.CellType, cells)), defaults)
    return _wrapped_again(function, template, made) if is_wrapped else made


def _wrapped_again(
    wrapper: types.FunctionType, template: types.FunctionType, made: types.FunctionType
) -> types.FunctionType:
    """Return the wrapper that `rebuild.bind` made of the template for the function, with the same steps."""
    cells = tuple(
        types.CellType(made) if cell.cell_contents is template else cell for cell in wrapper.__closure__ or ()
    )
    again = types.FunctionType(wrapper.__code__, wrapper.__globals__, made.__name__, None, cells)
    again.__qualname__ = made.__qualname__
    again.__module__ = made.__module__
    again.__wrapped__ = made  # type: ignore[attr-defined]
    return again
