"""Tells what a function reads of this session that tasks do not have: generators that the program has seeded, context
variables that it has set, the arguments of the program, errors made of warnings, the locale, the level of loggers.

Looked at are the function, and all functions and methods of the user that it reaches by name, also those of modules
that travel as source.
"""

from __future__ import annotations

import ast
import builtins
import contextvars
import dis
import functools
import linecache
import locale
import logging
import os
import random
import sys
import types
import warnings
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from .function_parts import closure_of
from .global_names import mentioned, nested_codes
from .module_origin import Travel, home_module, travel
from .module_state import parsed
from .outside_inputs import dotted_names, full_name
from .process_values import asked
from .program_settings import PARSING, program_arguments, program_settings
from .session_settings import (
    FILTERS,
    LOCALE,
    LOGGING,
    changed_numbers,
    changed_settings,
    changed_variables,
    computed_variables,
    sets_itself,
)
from .unnamed_globals import LOOKING_THROUGH, unnamed

_REACHED_MAX = 300


class Reading(NamedTuple):
    """What a function reads here, and not in a task."""

    key: str
    """What tells it apart from others: each is told once."""
    text: str
    is_note: bool = False
    """Whether it is told by a note: a warning would itself be an error, or values do not depend on it."""


def readings(function: Any, *, is_known: bool = False) -> Iterator[Reading]:
    """Yield what a function reads of this session.

    is_known: it is not packed now, when those of the main module would be looked at one by one.
    """
    reached = list(reached_functions(function))
    if not reached:
        return
    names = frozenset[str]().union(*(mentioned(each.__code__) for each in reached))
    for each in reached:
        if is_known or home_module(each.__globals__) is not None:
            for name in mentioned(each.__code__) & each.__globals__.keys():
                value = each.__globals__[name]
                yield from (Reading(*found) for found in changed_settings(value))
                yield from (Reading(*found) for found in changed_numbers(each, value))
            yield from (Reading(*found) for found in changed_variables(each))
        yield from _context_variables(each)
        yield from (Reading(*found, is_note=True) for found in computed_variables(each, _program_sources()))
    yield from (Reading(*found) for found in patches(reached))
    yield from _settings(reached, names)
    if "random" in names or not names.isdisjoint(_own_methods()):
        yield from _draws(reached)
    if not names.isdisjoint(_ARGUMENTS):
        yield from _arguments(reached)
    if names.isdisjoint(_FILTERS):
        yield from _warnings(reached)
    if "setlocale" not in names and not names.isdisjoint(_LOCALE):
        yield from _locale(reached)
    if names.isdisjoint(_LOGGING) and not names.isdisjoint(("info", "debug")):
        yield from _logs(reached)
    if not names.isdisjoint(LOOKING_THROUGH):
        yield from (Reading(*found, is_note=True) for found in unnamed(reached))
    if "hash" in names and os.environ.get("PYTHONHASHSEED", "random") == "random":
        yield from _hashes(reached)


def reached_functions(function: Any) -> Iterator[types.FunctionType]:
    """Yield the function and those of the user that it reaches by name, at most some hundred."""
    waiting = list(_functions_of(function))
    seen: set[int] = set()
    while waiting and len(seen) < _REACHED_MAX:
        each = waiting.pop()
        if id(each) in seen:
            continue
        seen.add(id(each))
        yield each
        here = each.__globals__
        names = mentioned(each.__code__)
        for name in names:
            value = here.get(name)
            if type(value) is types.ModuleType:
                if travel(value.__name__) is Travel.SOURCE:
                    inside = vars(value)
                    waiting += [found for other in names for found in _functions_of(inside.get(other))]
            elif value is not None:
                waiting += _functions_of(value)
        for _, value in closure_of(each):
            waiting += _functions_of(value)


def _functions_of(value: Any) -> Iterator[types.FunctionType]:
    """Yield the functions of the user in a value: itself, or those in a partial, a method or a class."""
    kind = type(value)
    if kind is functools.partial:
        yield from _functions_of(value.func)
    elif kind in (types.MethodType, staticmethod, classmethod):
        yield from _functions_of(value.__func__)
    elif kind is types.FunctionType:
        if travel(value.__module__) is not Travel.REFERENCE:
            yield value
        elif "__wrapped__" in value.__dict__:
            yield from _functions_of(value.__wrapped__)
    elif isinstance(value, type):
        if travel(value.__module__) is not Travel.REFERENCE:
            for member in vars(value).values():
                if type(member) in (types.FunctionType, staticmethod, classmethod):
                    yield from _functions_of(member)
    elif kind.__module__ == "functools" and asked(value, "__wrapped__") is not None:
        yield from _functions_of(value.__wrapped__)


def _short(function: types.FunctionType) -> str:
    return function.__qualname__.rpartition("<locals>.")[2]


# -- what the program has set


def _settings(reached: Iterable[types.FunctionType], names: frozenset[str]) -> Iterator[Reading]:
    """Yield what the program has set in installed packages that the functions use."""
    found = [each for each in program_settings() if travel(each.owner) is Travel.REFERENCE]
    if not found:
        return
    used = {package: _short(each) for each in reached for package in _packages(each)}
    for setting in found:
        if setting.owner in used and setting.path.rpartition(".")[2] not in names:
            yield Reading(
                f"{setting.owner}: {setting.path}",
                f"{used[setting.owner]} uses {setting.owner}, which this program has set ({setting.place}: "
                f"{setting.text}), and tasks have not: set it in the function, in a module of yours that it imports, "
                "or for all with mec.execute(…)",
            )


def _packages(function: types.FunctionType) -> Iterator[str]:
    """Yield the top names of the packages to which the globals that a function mentions belong."""
    here = function.__globals__
    for name in mentioned(function.__code__) & here.keys():
        value = here[name]
        owner = value.__name__ if type(value) is types.ModuleType else asked(value, "__module__")
        yield from (each.partition(".")[0] for each in (owner, type(value).__module__) if isinstance(each, str))


# -- generators


@functools.cache
def _own_methods() -> frozenset[str]:
    return frozenset(name for name, value in vars(random).items() if asked(value, "__self__") is _hidden("random"))


def _hidden(module: str) -> object:
    """Return the generator that the functions of a module share; None if the module is not imported."""
    if module == "random":
        return vars(random).get("_inst")
    return getattr(sys.modules.get("numpy.random.mtrand"), "_rand", None)


def _draws(reached: Iterable[types.FunctionType]) -> Iterator[Reading]:
    drawing: dict[str, str] = {}
    for each in reached:
        here = each.__globals__
        names = mentioned(each.__code__)
        if "random" not in names and not any(
            type(here.get(name)) in (types.MethodType, types.BuiltinFunctionType) for name in names
        ):
            continue
        for name, _ in dotted_names(each.__code__, lambda name: full_name(here[name]) if name in here else ""):  # noqa: B023
            module, _, attribute = name.partition(".") if name.startswith("random.") else name.rpartition(".")
            generator = _hidden(module) if module in ("random", "numpy.random") else None
            if generator is None or asked(vars(sys.modules[module]).get(attribute), "__self__") is not generator:
                continue
            if attribute in ("seed", "setstate", "set_state"):
                return  # it begins with numbers of its own
            drawing.setdefault(module, _short(each))
    for module, function in drawing.items():
        place = _seeded(module)
        if place is not None:
            yield Reading(
                f"{module}.seed",
                f"{function} draws from the generator of {module}, which this program has seeded{place}: engines have "
                "others, so results differ from those here, and from run to run. Give each task a seed of its own as "
                f"an argument, and make a generator of it, such as with {_MAKES[module]}",
            )


_MAKES = {"random": "random.Random", "numpy.random": "np.random.default_rng"}


def _seeded(module: str) -> str | None:
    """Return where the program seeds a module's generator, as far as that is known; None if it does not."""
    if module == "numpy.random":
        bits: Any = asked(_hidden(module), "_bit_generator")
        return "" if bits is not None and asked(bits, "seed_seq", bits) is None else None  # np.random.seed removes it
    for file, source in _sources():
        line = _line_of_seed(source)
        if line:
            return f" ({file}:{line})"
    return None


def _program_sources() -> Iterator[bytes]:
    yield from (source for _, source in _sources())


def _sources() -> Iterator[tuple[str, bytes]]:
    """Yield name and content of the script, the notebook's cells, and the imported modules of the program."""
    main = vars(sys.modules["__main__"])
    cells = main.get("In")
    if isinstance(cells, list):
        yield from ((f"In [{number}]", str(cell).encode("utf-8", "replace")) for number, cell in enumerate(cells))
    elif isinstance(file := main.get("__file__"), str):
        yield Path(file).name, "".join(linecache.getlines(file)).encode("utf-8", "replace")
    for name in list(sys.modules):
        if travel(name) is Travel.SOURCE and isinstance(file := asked(sys.modules[name], "__file__"), str):
            yield Path(file).name, "".join(linecache.getlines(file)).encode("utf-8", "replace")


@functools.lru_cache(1024)
def _line_of_seed(source: bytes) -> int:
    """Return the line of the first call of `random.seed` with an argument; 0 if there is none."""
    tree = parsed(source) if b"seed(" in source and b"random" in source else None
    if tree is None:
        return 0
    own = {id(call) for function in ast.walk(tree) for call in _own_seeds(function)}
    calls = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and (node.args or node.keywords) and id(node) not in own
    ]
    imported = any(
        isinstance(node, ast.ImportFrom) and node.module == "random" and any(each.name == "seed" for each in node.names)
        for node in ast.walk(tree)
    )
    known = {"random.seed", "seed"} if imported else {"random.seed"}
    return min((node.lineno for node in calls if ast.unparse(node.func) in known), default=0)


def _own_seeds(function: ast.AST) -> Iterator[ast.AST]:
    """Yield the calls in a function that draws after it has seeded the generator: that is for itself."""
    if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
        inside = list(ast.walk(function))
        names = {ast.unparse(node) for node in inside if isinstance(node, ast.Attribute)}
        if any(f"random.{method}" in names for method in _own_methods() - {"seed"}):
            yield from (node for node in inside if isinstance(node, ast.Call))


# -- context variables


_UNSET = object()


def _context_variables(function: types.FunctionType) -> Iterator[Reading]:
    here = function.__globals__
    for name in mentioned(function.__code__):
        value = here.get(name)
        if type(value) is contextvars.ContextVar:
            present = value.get(_UNSET)
            if present is not _UNSET and present is not contextvars.Context().run(value.get, _UNSET):
                yield Reading(
                    f"{function.__module__}.{name}",
                    f"{_short(function)} reads the context variable {name}, which this session has set: tasks begin "
                    "with its default. Pass the value as an argument, or set it in the function",
                )


# -- the arguments of the program


_ARGUMENTS = PARSING | {"argv"}


def _arguments(reached: Iterable[types.FunctionType]) -> Iterator[Reading]:
    """Yield that a function reads ``sys.argv``.  A kernel's own arguments are nothing that its cells read."""
    if not program_arguments():
        return
    for each in reached:
        what = _reads_arguments(each)
        if what:
            yield Reading(
                "sys.argv",
                f"{_short(each)} {what}, which is empty in tasks, and here {sys.argv[1:]!r:.80}: read it here, "
                "and pass on what the function needs",
            )
            return


def _reads_arguments(function: types.FunctionType) -> str:
    """Return in words how a function reads ``sys.argv``; "" if it does not, or sets it itself."""
    names, here = mentioned(function.__code__), function.__globals__
    parsing = sorted(PARSING & names)
    reads = "argv" in names and (here.get("argv") is sys.argv or ("sys" in names and here.get("sys", sys) is sys))
    if not (reads or parsing):
        return ""
    found = [list(dis.get_instructions(code)) for code in nested_codes(function.__code__)]
    if any(each.opname == "STORE_ATTR" and each.argval == "argv" for code in found for each in code):
        return ""
    if reads:
        return "reads sys.argv"
    called = next((name for name in parsing if any(_calls_with_nothing(code, name) for code in found)), None)
    return f"reads sys.argv ({called})" if called is not None else ""


def _calls_with_nothing(code: list[dis.Instruction], method: str) -> bool:
    """Return whether a method of this name is called without arguments."""
    steps = [each for each in code if each.opname != "PRECALL"]  # of Python 3.11
    return any(
        load.argval == method and load.opname in ("LOAD_METHOD", "LOAD_ATTR") and call.opname == "CALL" and not call.arg
        for load, call in pairwise(steps)
    )


# -- warnings, locale and logging


_FILTERS = frozenset(("catch_warnings", "filterwarnings", "simplefilter", "warns", "deprecated_call"))
_LOCALE = frozenset(("atof", "currency", "format_string", "localeconv", "strcoll", "strftime", "strptime", "strxfrm"))
_LOGGING = frozenset(("addHandler", "basicConfig", "dictConfig", "fileConfig", "setLevel"))


def _warnings(reached: Iterable[types.FunctionType]) -> Iterator[Reading]:
    if all(action != "error" for action, *_ in warnings.filters):
        return
    for each in reached:
        for name in mentioned(each.__code__):
            found = each.__globals__.get(name, vars(warnings).get(name, vars(builtins).get(name)))
            kind = UserWarning if found is warnings.warn else found
            if isinstance(kind, type) and issubclass(kind, Warning) and _are_errors(kind, kind is found):
                if sets_itself(each, FILTERS):
                    return
                yield Reading(
                    "warnings",
                    f"{_short(each)} mentions {name}, and this session makes errors of warnings, which tasks do not: "
                    "set the filter in the function, or for all with mec.execute(…)",
                    is_note=True,
                )
                return


def _are_errors(kind: type[Warning], caught: bool) -> bool:
    """Return whether this session makes errors of some warnings of this class.

    A filter of another class says nothing: IPython and libraries have some for warnings of their own.

    caught: of classes derived from it too, as the function may catch them by it.
    """
    for action, message, category, module, line in warnings.filters:
        is_of_kind = issubclass(kind, category)
        is_derived = caught and isinstance(category, type) and issubclass(category, kind)
        is_derived = is_derived and not str(category.__module__).startswith("IPython.")
        if action == "error" and (is_of_kind or is_derived):
            return True
        if is_of_kind and message is None and module is None and not line:
            return False  # no filter behind this one is asked
    return False


def _locale(reached: Iterable[types.FunctionType]) -> Iterator[Reading]:
    names = ("LC_COLLATE", "LC_MONETARY", "LC_NUMERIC", "LC_TIME")
    present = {name: locale.setlocale(getattr(locale, name)) for name in names}
    changed = [f"{name}={value}" for name, value in present.items() if value not in ("C", "POSIX", "C.UTF-8", "C.utf8")]
    for each in reached if changed else ():
        used = sorted(mentioned(each.__code__) & _LOCALE)
        if used and not sets_itself(each, LOCALE):
            yield Reading(
                "locale",
                f"{_short(each)} uses the locale ({used[0]}), which this session has set ({', '.join(changed)}): tasks "
                "begin with C. Call locale.setlocale in the function, or for all with mec.execute(…)",
            )
            return


def _logs(reached: Iterable[types.FunctionType]) -> Iterator[Reading]:
    for each in reached:
        names = mentioned(each.__code__)
        if names.isdisjoint(("info", "debug")):
            continue
        for name in sorted(names):
            found = each.__globals__.get(name)
            logger = logging.getLogger() if found is logging else found
            if isinstance(logger, logging.Logger) and logger.isEnabledFor(logging.INFO) and logger.hasHandlers():
                if sets_itself(each, LOGGING):
                    return
                level = logging.getLevelName(logger.getEffectiveLevel())
                yield Reading(
                    "logging",
                    f"{_short(each)} logs below WARNING, which this session shows (level {level}): in tasks no logging "
                    "is set up, and these lines are dropped. Call logging.basicConfig in the function, or for all with "
                    "mec.execute(…)",
                    is_note=True,
                )
                return


def patches(reached: Iterable[types.FunctionType]) -> Iterator[tuple[str, str]]:
    """Yield (name, sentence) for what these functions use of installed modules, and the session has replaced.

    A function that would send a request where the program has put a mock must not do so without a word.
    """
    for function in reached:
        for name in _replaced(function):
            where = "Python" if name.startswith("builtins.") else name.partition(".")[0]
            yield (
                name,
                f"{function.__qualname__.rpartition('<locals>.')[2]} uses {name.removeprefix('builtins.')}, which this "
                f"session has replaced: tasks use that of {where}. Replace it in the function, or for all with "
                "mec.execute(…)",
            )


def _replaced(function: types.FunctionType) -> Iterator[str]:
    here = function.__globals__
    for name in mentioned(function.__code__) - here.keys():
        if name in vars(builtins) and _is_of_session(vars(builtins)[name]):
            yield f"builtins.{name}"
    for name in _looked_up(function.__code__):
        if name[0] == _GLOBAL:
            root, _, rest = name[1:].partition(".")
            owner = here.get(root)
            if not isinstance(owner, types.ModuleType | type):
                continue
            name = f"{full_name(owner)}.{rest}"
        found = _replaced_in(name)
        if found:
            yield found


_GLOBAL = "\0"


@functools.lru_cache(4096)
def _looked_up(code: types.CodeType) -> tuple[str, ...]:
    """Return the dotted names that a code looks up; those that begin with a global have a mark before them."""
    names = {name for name, _ in dotted_names(code, lambda name: f"{_GLOBAL}{name}")}
    return tuple(sorted(name for name in names if "." in name))


def _replaced_in(name: str) -> str:
    """Return the part of a dotted name that the session has replaced: an attribute of a module, or of a class there."""
    owner: Any = None
    whole = ""
    for part in name.split("."):
        whole = f"{whole}.{part}" if whole else part
        if owner is None or type(owner) is types.ModuleType:
            module = sys.modules.get(whole)
            if module is not None:
                if travel(whole) is not Travel.REFERENCE:
                    return ""
                owner = module
                continue
        if owner is None:
            return ""
        value = vars(owner).get(part)
        if _is_of_session(value):
            return whole if owner is not sys.modules.get("unittest.mock") else ""  # it has some of its own: ``ANY``
        if not isinstance(value, type):
            return ""
        owner = value
    return ""


def _is_of_session(value: Any) -> bool:
    """Return whether a value was made by the program's own code, or is a mock."""
    kind = type(value)
    if kind is types.FunctionType:
        return _is_own(value.__globals__.get("__name__"))  # `wraps` copies the name of a module
    if kind is types.MethodType:
        return _is_of_session(value.__func__)
    if kind is functools.partial:
        return _is_of_session(value.func)
    if isinstance(value, type):
        return _is_own(value.__module__)
    return _is_own(kind.__module__) or any(cls.__module__ == "unittest.mock" for cls in kind.__mro__)


def _is_own(module: object) -> bool:
    """Return whether a module of this name is the program's own; those of Cython's types have no files."""
    return module == "__main__" or (isinstance(module, str) and travel(module) is Travel.SOURCE)


# -- hashes


def _hashes(reached: Iterable[types.FunctionType]) -> Iterator[Reading]:
    """Yield that a function computes with hashes, rather than to be found by them."""
    for each in reached:
        own = {name for code in nested_codes(each.__code__) if code.co_name != "__hash__" for name in code.co_names}
        if "hash" in own and each.__globals__.get("hash", hash) is hash:
            yield Reading(
                "hash",
                f"{_short(each)} uses hash(), which gives another number for the same text in this session, and on "
                "each node. Use zlib.crc32 or hashlib, or start farm and session with PYTHONHASHSEED=0",
                is_note=True,
            )
            return
