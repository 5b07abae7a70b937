"""Tells whether code may change state that belongs to the whole process.

Nothing reports an assignment to ``sys.stdout`` or ``decimal.getcontext().prec``. The user's own code that does so
mentions the module or the function somewhere. Changes that libraries make by themselves are found by occasional
examinations (see `baseline`).
"""

from __future__ import annotations

import types
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

from ..serialization.function_parts import closure_of
from ..serialization.process_values import asked

WAYS: dict[str, frozenset[str]] = {
    "os": frozenset({"environ"}),
    "sys": frozenset({
        "path", "argv", "stdout", "stderr", "stdin", "__stdout__", "__stderr__", "__stdin__", "meta_path", "path_hooks",
        "modules", "excepthook", "displayhook", "breakpointhook", "unraisablehook", "dont_write_bytecode",
        "pycache_prefix", "tracebacklimit", "monitoring",
    }),
    "gc": frozenset({"callbacks", "disable", "enable", "set_debug", "set_threshold"}),
    "logging": frozenset({
        "root", "getLogger", "disable", "lastResort", "raiseExceptions", "config", "captureWarnings",
    }),
    "socket": frozenset({"socket", "setdefaulttimeout"}),
    "tempfile": frozenset({"tempdir"}),
    "threading": frozenset({"excepthook", "settrace", "setprofile", "stack_size"}),
    "tracemalloc": frozenset({"start"}),
    "warnings": frozenset({"filters", "showwarning", "formatwarning"}),
}  # fmt: skip
"""Module -> names in it through which code reaches state of the process. Not included are the watched functions of
``os``, ``signal``, ``locale`` …"""
NAMES = frozenset({
    "__builtins__", "__dict__", "__import__", "asyncio", "basicConfig", "builtins", "cpu_affinity", "decimal",
    "dictConfig", "eval", "exec", "filterwarnings", "get_ipython", "getcontext", "import_module", "nice",
    "resetwarnings", "set_asyncgen_hooks", "set_coroutine_origin_tracking_depth", "set_event_loop",
    "set_int_max_str_digits", "set_printoptions", "set_start_method", "setcontext", "setdefaulttimeout",
    "setdlopenflags", "seterr", "setprofile", "setrecursionlimit", "setswitchinterval", "settrace", "simplefilter",
    "vars",
})  # fmt: skip
"""Names that are sufficient by themselves."""


_MENTIONED = NAMES | WAYS.keys()


def reaches(code: types.CodeType) -> bool:
    """Return whether the code mentions one of the names. Takes 0.1 µs for a line of code."""
    names = code.co_names
    if not _MENTIONED.isdisjoint(names) and _names_reach(names):
        return True
    for each in code.co_consts:  # noqa: SIM110  # a generator would cost as much again
        if type(each) is types.CodeType and reaches(each):
            return True
    return False


def _names_reach(names: tuple[str, ...]) -> bool:
    return not NAMES.isdisjoint(names) or any(
        not ways.isdisjoint(names) for module, ways in WAYS.items() if module in names
    )


def function_reaches(function: Any) -> bool:
    """Return whether a function, or a user's function that it calls by name, mentions one of the names."""
    return any(map(_reaches_itself, _functions(function)))


def _functions(start: Any) -> Iterator[types.FunctionType]:
    """Yield the Python functions that can be reached by globals, cells and wrappers, each once."""
    waiting, seen = [start], set()
    while waiting:
        each = waiting.pop()
        if id(each) in seen:
            continue
        seen.add(id(each))
        if isinstance(each, types.MethodType):
            waiting.append(each.__func__)
        elif isinstance(each, types.FunctionType):
            yield each
            waiting.extend(_used(each))
        elif isinstance(each, type):
            waiting.extend(value for value in vars(each).values() if isinstance(value, types.FunctionType))
        elif hasattr(each, "func") and hasattr(each, "keywords"):  # a functools.partial
            waiting.append(each.func)


def _used(function: types.FunctionType) -> Iterator[Any]:
    if "__wrapped__" in vars(function):
        yield vars(function)["__wrapped__"]
    for name in function.__code__.co_names:
        value = function.__globals__.get(name)
        if isinstance(value, types.FunctionType | types.MethodType | type):
            yield value
    yield from (value for _, value in closure_of(function))


def _reaches_itself(function: types.FunctionType) -> bool:
    code = function.__code__
    if reaches(code):
        return True
    return any(_is_a_way(function.__globals__.get(name), code) for name in code.co_names)


def _is_a_way(value: Any, code: types.CodeType) -> bool:
    """Return whether a global is one of these modules or functions, whatever its name is here."""
    if isinstance(value, types.ModuleType):
        name = value.__name__
        return name in NAMES or not WAYS.get(name, frozenset()).isdisjoint(all_names(code))
    name = asked(value, "__name__")
    return isinstance(value, ContextVar) or (isinstance(name, str) and name in NAMES)


def all_names(code: types.CodeType) -> set[str]:
    """Return the names that the code, and code nested in it, mentions."""
    inner = (all_names(each) for each in code.co_consts if isinstance(each, types.CodeType))
    return set(code.co_names).union(*inner)
