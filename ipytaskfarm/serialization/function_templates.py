"""Functions without the plain values of their closures and defaults, so that those of one code are sent as one.

``[tc.run(MapTask(make(n))) for n in range(2000)]`` and ``[tc.run(lambda n=n: f(n)) for n in range(2000)]`` make 2,000
functions that differ in a number, and ``partial(f, n)`` is another object each time.  Each of them would be packed,
examined, stored and rebuilt as a function of its own.  A template is packed once, and the values travel with each task
(docs/decisions/0126).
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
from collections.abc import Callable, Hashable, Iterable
from typing import Any, NamedTuple, TypeAlias

from ..core.signatures import called_name
from .function_globals import Names
from .function_parts import annotations_of, cell_content
from .global_names import mentioned, nested_codes
from .kept_changes import assigns_closure, changes_itself
from .rebuild import is_call
from .session_reads import reached_functions

Values: TypeAlias = tuple[tuple[Any, ...], Any]
"""What the cells contain, in the order of ``co_freevars``, and the defaults.  Of a partial: its arguments, and those by
keyword."""
Templates: TypeAlias = OrderedDict[int, types.FunctionType]
"""Address of the code -> the template that was made of it last, which keeps the code alive."""

_PLAIN = frozenset({int, float, bool, complex, type(None), str, bytes})
"""The types of values that travel apart from the function: nothing can change in them, and no name is looked up."""
_PLAIN_NAMES = {
    "datetime": ("date", "timedelta"),
    "decimal": ("Decimal",),
    "fractions": ("Fraction",),
    "numpy": (
        "bool", "bool_", "complex128", "complex64", "float16", "float32", "float64", "int16", "int32", "int64", "int8",
        "uint16", "uint32", "uint64", "uint8",
    ),
    "pathlib": ("PosixPath", "PurePosixPath", "PureWindowsPath", "WindowsPath"),
    "pathlib._local": ("PosixPath", "PurePosixPath", "PureWindowsPath", "WindowsPath"),
    "uuid": ("UUID",),
}  # fmt: skip
"""Module -> further types, which are found by these names wherever the value is."""
_NUMBERS = frozenset({int, float, bool, complex, type(None)})
"""Of these, pickles keep no identity."""
_TEXTS = frozenset({str, bytes})
_CONTAINERS = frozenset({tuple, frozenset, list, dict, set})
_MUTABLE = frozenset({list, dict, set})
_BYTES_MAX = 1024
"""The most bytes of values that travel apart, since they are sent again with each task of the same function."""
_KEPT_MAX = 256
_COMPARING_MAX = 1000
_IS = dis.opmap["IS_OP"]
_MARK = "__ipytaskfarm_template__"


class SplitFunction(NamedTuple):
    """A function in two parts."""

    template: Callable[..., Any]
    """The function with empty cells, or the partial without arguments. Functions that differ in their values alone have
    the same template."""
    values: bytes
    """The pickle of `Values`."""
    has_objects: bool
    """Whether there is more than numbers and None among the values; see `may_compare`."""


_templates: weakref.WeakKeyDictionary[types.ModuleType, Templates] = weakref.WeakKeyDictionary()
_comparing: dict[str, bool] = {}
"""Digest of a template -> what `may_compare` returned."""


def split_function(function: object) -> SplitFunction | None:
    """Return a function in two parts; None: it travels as a whole.

    Whether a function is taken apart depends on what it is, not on what was packed before, so that its template has the
    same digest in each session.
    """
    if type(function) is functools.partial:
        return _split_partial(function)
    # One without "<" in its name, of a function around it or a lambda, can be found by its name.
    if type(function) is not types.FunctionType or "<" not in function.__qualname__:
        return None
    closure, defaults = function.__closure__, function.__defaults__
    if not (closure or defaults):
        return None
    cells = tuple(map(cell_content, closure)) if closure else ()
    values = (*cells, *defaults) if defaults else cells
    kinds = set(map(type, values))
    if not _are_plain(kinds):
        return None
    if not kinds.isdisjoint(_TEXTS):
        for value in values:
            if type(value) in _TEXTS and len(value) > _BYTES_MAX:
                return None  # it is not pickled again for each task
    packed = pickle.dumps((cells, defaults), 5)
    if len(packed) > _BYTES_MAX:
        return None
    template = _template_of(function)
    return None if template is None else SplitFunction(template, packed, not kinds <= _NUMBERS)


def may_compare(template: object, digest: str) -> bool:
    """Return whether an object among the values may be compared by identity with one of the template.

    ``def f(x=UNSET): return x is UNSET``: pickles keep the identity of objects within one pack.

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


def _are_plain(kinds: Iterable[type]) -> bool:
    return all(kind in _PLAIN or kind.__name__ in _PLAIN_NAMES.get(kind.__module__, ()) for kind in kinds)


def _split_partial(function: functools.partial[Any]) -> SplitFunction | None:
    """Return a partial in two parts: each call gets its arguments anew, as from a pool's pickles."""
    values = function.args, function.keywords
    if function.__dict__ or values == ((), {}):
        return None
    kinds = _kinds_in((*function.args, *function.keywords.values()))
    if not _are_plain(kinds - _CONTAINERS):
        return None
    if not _MUTABLE.isdisjoint(kinds) and changes_itself(function):  # which its user is told
        return None
    packed = pickle.dumps(values, 5)
    if len(packed) > _BYTES_MAX:
        return None
    template = functools.partial(function.func)
    setattr(template, _MARK, True)
    return SplitFunction(template, packed, not kinds <= _NUMBERS)


def _kinds_in(values: tuple[Any, ...]) -> set[type]:
    """Return the types of values and of all that is in their containers; of too many values another type too."""
    kinds = set(map(type, values))
    if kinds <= _PLAIN:
        return kinds
    waiting, left = [*values], _BYTES_MAX
    while waiting and left > 0:
        value = waiting.pop()
        kinds.add(type(value))
        left -= 1
        if type(value) in _CONTAINERS and len(value) <= left:
            waiting += value
            waiting += value.values() if type(value) is dict else ()
        elif type(value) in _CONTAINERS:
            left = 0
    return kinds if left > 0 else {object}


def is_template(function: object) -> bool:
    """Return whether this is a template."""
    return _MARK in getattr(function, "__dict__", ())


class Lasting(NamedTuple):
    """What lasts of a callable, under a key: bound methods, and templates of partials, are other objects each time."""

    key: Hashable
    part: Any

    def reference(self, forget: Callable[[weakref.ref[Any]], object]) -> weakref.ref[Any]:
        """Return a weak reference.  Raises TypeError if there can be none."""
        return (weakref.WeakMethod if type(self.part) is types.MethodType else weakref.ref)(self.part, forget)

    def is_of(self, reference: weakref.ref[Any]) -> bool:
        """Return whether a reference is to this."""
        found = reference()
        return found is self.part or (type(found) is types.MethodType and bool(found == self.part))


def lasting(function: Any) -> Lasting:
    """Return what lasts of a callable."""
    if type(function) is types.MethodType:
        return Lasting((id(function.__self__), id(function.__func__)), function)
    if type(function) is functools.partial and is_template(function):
        key, part = lasting(function.func)
        return Lasting(("partial", key), part)
    return Lasting(id(function), function)


def alike(function: Any) -> Lasting:
    """Return what callables have in common whose calls take about the same time: those of one code, partials of one."""
    if type(function) is functools.partial:
        key, part = alike(function.func)
        return Lasting(("partial", key), part)
    if type(function) is types.FunctionType and "<" in function.__qualname__:
        return Lasting(id(function.__code__), function.__code__)
    return lasting(function)


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
    is_wrapped = is_call(getattr(function, "__code__", None))
    template: Any = vars(function)["__wrapped__"] if is_wrapped else function
    if not is_template(template):
        return function
    cells, by_default = values
    made: Any
    if type(template) is functools.partial:
        made = functools.partial(template.func, *cells, **by_default)
    else:
        made = _with_values(template, tuple(map(types.CellType, cells)), by_default)
    return _wrapped_again(function, template, made) if is_wrapped else made


def _wrapped_again(wrapper: Any, template: Callable[..., Any], made: Callable[..., Any]) -> types.FunctionType:
    """Return the wrapper that `rebuild.bind` made of the template for the function, with the same steps."""
    cells = tuple(
        types.CellType(made) if cell.cell_contents is template else cell for cell in wrapper.__closure__ or ()
    )
    again = types.FunctionType(wrapper.__code__, wrapper.__globals__, called_name(made), None, cells)
    again.__qualname__ = getattr(made, "__qualname__", again.__name__)
    again.__module__ = made.__module__
    again.__wrapped__ = made  # type: ignore[attr-defined]
    return again
