"""Finds which global names and submodules the bytecode of a function mentions."""

from __future__ import annotations

import contextlib
import dataclasses
import dis
import functools
import keyword
import linecache
import os
import re
import sys
import threading
import types
import typing
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

_EXTENDED = dis.EXTENDED_ARG
_LOAD_GLOBAL = dis.opmap["LOAD_GLOBAL"]
# Class bodies look names up in their own namespace first, then among the globals.
_BY_NAME = frozenset(
    dis.opmap[name]
    for name in ("STORE_GLOBAL", "DELETE_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS")
    if name in dis.opmap
)

_HINTS_ARE = (type, types.ModuleType, types.FunctionType, typing.TypeVar, typing.ParamSpec, typing.NewType)
_IN_TYPING = frozenset({"typing", "types", "typing_extensions"})
_OF_TYPING = _IN_TYPING | {"annotationlib", "collections.abc"}


def nested_codes(code: types.CodeType) -> Iterator[types.CodeType]:
    """Yield the code itself and the codes of the functions, classes and comprehensions inside it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from nested_codes(constant)


_BY_TEXT = frozenset({"globals", "eval", "exec"})
"""Builtins by which code looks up globals that it names in texts."""
_QUERIES = frozenset({"query", "eval"})
"""Methods of pandas whose texts name variables of the caller: ``df.query("a > @least")``."""
_NAME_IN_QUERY = re.compile(r"@(\w+)")
_BY_CALLERS = frozenset({
    "dmatrices", "dmatrix", "duckdb", "evaluate", "from_formula", "glm", "gls", "glsar", "logit", "mixedlm",
    "mnlogit", "model_matrix", "negativebinomial", "ols", "phreg", "probit", "quantreg", "rlm", "sql", "wls",
})  # fmt: skip
"""Functions of libraries that look up names of their texts in the caller: numexpr's ``evaluate("a * 2")``, formulas of
patsy, statsmodels and formulaic, ``duckdb.sql("from frame")``, ``pl.sql``."""
_WORD = re.compile(r"[^\W\d]\w*")
_NAME_IN_TEXT = re.compile(r"%\((\w+)\)|\{(\w+)[^{}]*\}|\$\{?(\w+)")
_TEXT_MAX = 10_000
_SOURCE_CHARACTERS_MAX = 20_000


def global_names(code: types.CodeType) -> list[str]:
    """Return the sorted names that the code, or code nested in it, looks up among the globals.

    Included are those in constant texts of code that uses `_BY_TEXT`: ``globals()["a"]``, ``"%(a)s" % globals()``,
    ``eval("a + 1")``; those in texts of code that uses `_QUERIES` or `_BY_CALLERS`; and the attributes of code that
    mentions the main module: ``import __main__; __main__.a``, ``sys.modules[__name__].a``.
    """
    names = _names_in_code(code)
    return sorted(names | _names_by_text(code, names))


def only_in_texts(code: types.CodeType, names: Iterable[str]) -> frozenset[str]:
    """Return those of the code's global names that only texts name.  So they may be meant, and need not be."""
    found = _names_by_text(code, names)
    return found - _names_in_code(code) if found else found


def _names_by_text(code: types.CodeType, names: Iterable[str]) -> frozenset[str]:
    found = _names_by_others(code)
    return found if _BY_TEXT.isdisjoint(names) else found | _names_in_texts(code)


@functools.lru_cache(maxsize=4096)
def _names_by_others(code: types.CodeType) -> frozenset[str]:
    """Return the names that libraries look up among the caller's, and those of attributes of the main module."""
    names = mentioned(code)
    texts = [value for each in nested_codes(code) for value in each.co_consts if isinstance(value, str)]
    found: set[str] = set()
    if not names.isdisjoint(_QUERIES):
        found.update(name for text in texts for name in _NAME_IN_QUERY.findall(text))
    if not names.isdisjoint(_BY_CALLERS):
        found.update(name for text in texts if len(text) <= _TEXT_MAX for name in _WORD.findall(text))
    if "__main__" in names or "__main__" in texts or names >= {"modules", "__name__"}:
        found |= names
        found.update(text for text in texts if text.isidentifier())
    return frozenset(found)


def _names_in_code(code: types.CodeType) -> set[str]:
    names: set[str] = set()
    for each in nested_codes(code):
        instructions = each.co_code
        extended = 0
        for opcode, argument in zip(instructions[::2], instructions[1::2], strict=True):
            if opcode == _LOAD_GLOBAL:
                names.add(each.co_names[(extended | argument) >> 1])  # the lowest bit means: push NULL too
            elif opcode in _BY_NAME:
                names.add(each.co_names[extended | argument])
            extended = (extended | argument) << 8 if opcode == _EXTENDED else 0
    return names


@functools.lru_cache(maxsize=4096)
def _names_in_texts(code: types.CodeType) -> frozenset[str]:
    found: set[str] = set()
    for text in (value for each in nested_codes(code) for value in each.co_consts if isinstance(value, str)):
        if text.isidentifier():
            found.add(text)
        elif len(text) <= _TEXT_MAX:
            found.update(name for match in _NAME_IN_TEXT.finditer(text) for name in match.groups() if name)
            with contextlib.suppress(SyntaxError, ValueError, RecursionError, MemoryError):
                found.update(global_names(_compiled(text)))
    return frozenset(name for name in found if not keyword.iskeyword(name))


def _compiled(text: str) -> types.CodeType:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return compile(text, "", "exec", dont_inherit=True)


def added_by_rewriting(function: types.FunctionType) -> dict[str, Any]:
    """Return the globals that no source can name, and that pytest's rewriting of ``assert`` has put into the module.

    The module is sent as its source, which has none of them.
    """
    here = function.__globals__
    if not any(name.startswith("@") for name in here):
        return {}
    return {name: here[name] for name in global_names(function.__code__) if name.startswith("@") and name in here}


def stored_names(code: types.CodeType) -> set[str]:
    """Return the names that the code of a cell binds at its top level."""
    return {step.argval for step in dis.get_instructions(code) if step.opname in ("STORE_NAME", "STORE_GLOBAL")}


def stored_globals(code: types.CodeType) -> set[str]:
    """Return the globals that the code, or code nested in it, assigns."""
    steps = (step for each in nested_codes(code) for step in dis.get_instructions(each))
    return {step.argval for step in steps if step.opname == "STORE_GLOBAL"}


@functools.lru_cache(maxsize=4096)
def _names_in(annotation: str) -> tuple[str, ...]:
    try:
        return compile(annotation, "", "eval", dont_inherit=True).co_names
    except (SyntaxError, ValueError):
        return ()


def annotation_names(annotations: Mapping[str, Any]) -> list[str]:
    """Return the sorted names that string annotations mention, also those inside of others: ``Optional["Node"]``."""
    return sorted({name for each in annotations.values() for text in _texts_in(each) for name in _names_in(text)})


def _texts_in(annotation: Any) -> Iterator[str]:
    """Yield the strings in an annotation that stand for types."""
    if isinstance(annotation, str):
        yield annotation
    elif type(annotation).__module__ in _OF_TYPING and not isinstance(annotation, type):
        text = getattr(annotation, "__forward_arg__", None)
        if isinstance(text, str):
            yield text
        elif getattr(annotation, "__origin__", None) is not typing.Literal:
            for each in getattr(annotation, "__args__", ()):
                yield from _texts_in(each)


def is_hint(value: Any) -> bool:
    """Return whether a value is of a type that is used in annotations."""
    return isinstance(value, _HINTS_ARE) or type(value).__module__ in _IN_TYPING or value is dataclasses.KW_ONLY


_ATTRIBUTES = frozenset({"LOAD_ATTR", "LOAD_METHOD"})
_LOADS = ("LOAD_GLOBAL", "LOAD_NAME", "LOAD_DEREF", "LOAD_CLASSDEREF", "LOAD_FAST", "STORE_FAST_LOAD_FAST")
_SKIPPED = frozenset({"EXTENDED_ARG", "CACHE", "NOP"})


@functools.lru_cache(maxsize=4096)
def whole_uses(code: types.CodeType) -> frozenset[str]:
    """Return the names that the code, or code nested in it, uses otherwise than by an attribute.

    ``m`` is such a name in ``f(m)`` and ``n = m``, and not in ``m.f()``.
    """
    found: set[str] = set()
    for each in nested_codes(code):
        last = ""
        for step in dis.get_instructions(each):
            if step.opname in _SKIPPED:
                continue
            if last and step.opname not in _ATTRIBUTES:
                found.add(last)
            last = ""
            if step.opname.startswith(_LOADS):
                names = step.argval if isinstance(step.argval, tuple) else (step.argval,)
                if step.opname.startswith("LOAD"):
                    found.update(names[:-1])
                last = names[-1]
    return frozenset(found)


def passes_modules(code: types.CodeType, modules: frozenset[str]) -> bool:
    """Return whether the code, or code nested in it, keeps or passes on a module that it imports.

    modules: the full names of the modules in question.
    """
    last_parts = {name.rpartition(".")[2] for name in modules}
    whole = whole_uses(code)
    for each in nested_codes(code):
        imported = False
        for step in dis.get_instructions(each):
            if step.opcode == _IMPORT_NAME:
                imported = True
            elif step.opname == "IMPORT_FROM":
                imported = step.argval in last_parts
            elif step.opname.startswith("STORE_"):
                stored = step.argval[0] if isinstance(step.argval, tuple) else step.argval
                if imported and stored in whole:
                    return True
                imported = False
    return False


_IMPORT_NAME = dis.opmap["IMPORT_NAME"]


@functools.lru_cache(4096)
def mentioned(code: types.CodeType) -> frozenset[str]:
    """Return the global and attribute names that the code, or code nested in it, mentions."""
    return frozenset(name for each in nested_codes(code) for name in each.co_names)


def loaded_submodules(values: Iterable[Any], code: types.CodeType) -> list[types.ModuleType]:
    """Return the submodules that the code may reach by attribute (``import a.b`` binds only ``a``)."""
    found: list[types.ModuleType] = []
    waiting = [value for value in values if type(value) is types.ModuleType and hasattr(value, "__path__")]
    while waiting:
        module = waiting.pop()
        for name in sorted(mentioned(code)):
            submodule = sys.modules.get(f"{module.__name__}.{name}")
            if submodule is not None and submodule not in found:
                found.append(submodule)
                waiting.append(submodule)
    return found


def absent_submodules(values: Iterable[Any], code: types.CodeType) -> list[str]:
    """Return the full names of submodules that the code mentions and that are not imported yet.

    `values` are the objects among which the code finds its packages.
    """
    packages = [value for value in values if type(value) is types.ModuleType and hasattr(value, "__path__")]
    found = []
    for package in packages:
        missing = mentioned(code) - vars(package).keys()
        if missing:
            found += [f"{package.__name__}.{name}" for name in sorted(missing & _submodule_names(package))]
    return found


def _submodule_names(package: types.ModuleType) -> set[str]:
    names: set[str] = set()
    for folder in package.__path__:
        try:
            names.update(entry.partition(".")[0] for entry in os.listdir(folder))
        except OSError:
            continue  # the folder is in an archive, or does not exist any more
    return names


def source_of(code: types.CodeType) -> tuple[int, str] | None:
    """Return (first line number, source text) for tracebacks; None if the source is not available or too long."""
    lines = linecache.getlines(code.co_filename)
    text = "".join(lines[code.co_firstlineno - 1 : last_line(code)])
    return (code.co_firstlineno, text) if 0 < len(text) <= _SOURCE_CHARACTERS_MAX else None


def last_line(code: types.CodeType) -> int:
    """Return the last source line of the code."""
    lines = (line for each in nested_codes(code) for _, _, line in each.co_lines() if line is not None)
    return max(lines, default=code.co_firstlineno)


_SHELL_HISTORY = {"In": "_ih", "Out": "_oh", "_ih": "_ih", "_oh": "_oh", "_dh": "_dh"}
_SHELL_CALLS = frozenset({"get_ipython", "exit", "quit", "display"})


def engine_owns(name: str, here: Mapping[str, Any]) -> bool:
    """Return whether IPython puts the name into every namespace, so that the function must find the engine's value."""
    if name == "__builtins__":
        return True
    if name in _SHELL_HISTORY:
        return here[name] is here.get(_SHELL_HISTORY[name]) and "_dh" in here
    if name not in _SHELL_CALLS:
        return False
    owner = getattr(here[name], "__self__", here[name])
    place = getattr(owner, "__module__", None) or type(owner).__module__
    return isinstance(place, str) and place.startswith(("IPython", "ipykernel"))


_SURE = frozenset({int, float, complex, bool, str, bytes, type(None), types.ModuleType, types.BuiltinFunctionType})
_LARGE_BYTES = 1 << 20
"""An array of this size is not pickled as a trial: it can be sent, and a trial would take as long as sending it."""


class _TrialPickles(threading.local):
    """The values of which the thread finds out whether they can be sent."""

    def __init__(self) -> None:
        self.under_way: set[int] = set()


_trials = _TrialPickles()


def can_be_sent(value: Any, dump: Callable[[Any], object]) -> bool:
    """Return whether a value can be pickled, which code may mean by a text that it has: ``eval("model.fit(x)")``.

    A text may also name a global by chance. If that is a lock or a generator, the function is sent without it.

    dump: pickles the value. A function that names itself in a text is reached again by that.
    """
    if type(value) in _SURE or id(value) in _trials.under_way or _is_large(value):
        return True
    _trials.under_way.add(id(value))
    try:
        dump(value)
    except Exception:
        return False
    finally:
        _trials.under_way.discard(id(value))
    return True


def _is_large(value: Any) -> bool:
    size = getattr(value, "nbytes", 0)
    return isinstance(size, int) and size > _LARGE_BYTES
