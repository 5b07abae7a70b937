"""Finds which by-value modules a function imports while it runs: by statements, and by calls with a name.

A call names its module by a text: a constant of the code, a global, a default, or a part of one
(``import_module(f"plugins.{name}")``).  So all such texts of a function that mentions an import call are looked at, and
those that name a module of the project count.  Too many may be found; a module that does not count would be missing on
an engine of another machine, and a kept result would not change with it.

Names that come as arguments are not known here: `imports_by_name` tells that there may be some.
"""

from __future__ import annotations

import dis
import re
import types
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from .function_parts import closure_of, defaults_of
from .global_names import nested_codes
from .module_bundles import Imports, bundle_of, is_sent, mentioned, modules_below, resolve
from .module_origin import package_of, project_roots

_IMPORT_NAME = dis.opmap["IMPORT_NAME"]
_CALLS = frozenset({"import_module", "__import__", "run_module", "resolve_name"})
"""Functions of the standard library that import a module under a name."""
_ASKS = _CALLS | {"resources", "get_data"}
"""The same, with what looks up data files under the name of their package.

Not ``find_spec`` and ``sys.modules``, which ask whether a module is there.
"""
_RUNS = frozenset({"exec", "eval", "compile", "run_cell"})
"""Functions whose texts may have import statements."""
_NAMED = re.compile(r"(\.*)((?:[^\W\d]\w*)?(?:\.[^\W\d]\w*)*)(\.?)(?::[\w.]+)?")
"""A text that names a module: its dots, its name, and a dot behind it that more of a name follows."""
_BELOW = ".*"
"""What follows the name of a package all of whose modules may be meant."""
_TEXTS_MAX = 64
_TEXT_CHARACTERS_MAX = 200
_SOURCE_CHARACTERS_MAX = 20_000


def imported_names(code: types.CodeType) -> set[str]:
    """Return the modules that import statements in the code, or in code nested in it, name.

    ``from a import b`` gives ``a`` and ``a.b``. Relative names keep their dots. Import statements in texts that the
    code runs, and constant names in its import calls, count too.
    """
    names: set[str] = set()
    for each in nested_codes(code):
        if not _RUNS.isdisjoint(each.co_names):
            for text in _texts(each.co_consts):
                if "import" in text and len(text) <= _SOURCE_CHARACTERS_MAX:
                    names |= mentioned(text.encode("utf-8", "replace"))
        if _IMPORT_NAME not in each.co_code[::2]:
            continue
        before: list[Any] = [0, None]
        for step in dis.get_instructions(each):
            if step.opname in ("LOAD_CONST", "LOAD_SMALL_INT"):
                before = [before[-1], step.argval]
            elif step.opcode == _IMPORT_NAME:
                level, wanted = before
                base = "." * (level if isinstance(level, int) else 0) + step.argval
                names.add(base)
                joint = "" if base.endswith(".") else "."
                names.update(f"{base}{joint}{name}" for name in wanted or () if name != "*")
    if asks_by_name(code):
        names |= module_names(_constants(code))
    return names


def _constants(code: types.CodeType) -> Iterator[str]:
    for each in nested_codes(code):
        yield from _texts(each.co_consts)


def _texts(value: Any) -> Iterator[str]:
    """Yield a text, or the texts in a small container."""
    if type(value) is str:
        yield value
    elif isinstance(value, tuple | list | set | frozenset | dict) and len(value) <= _TEXTS_MAX:
        for each in value:
            yield from _texts(each)
        if isinstance(value, dict):
            yield from _texts([*value.values()])


def module_names(texts: Iterable[str]) -> set[str]:
    """Return the modules that these texts may name; ``a.*`` for all modules of a package.

    A relative name is taken relative to each other name too: ``import_module(".b", "a")``.
    """
    plain: set[str] = set()
    relative: set[str] = set()
    for text in texts:
        found = _NAMED.fullmatch(text) if 0 < len(text) <= _TEXT_CHARACTERS_MAX else None
        if found is None:
            continue
        dots, name, below = found.groups()
        if name.startswith("."):
            dots, name = dots + ".", name.lstrip(".")
        if dots:
            relative.add(f"{dots}{name}{_BELOW if below else ''}" if name else f"{dots}*")
        elif name:
            plain.add(name)
            if below:
                plain.add(name + _BELOW)
    joined = {full for base in plain for full in resolve(base.removesuffix(_BELOW), True, relative)} if relative else ()
    return {*plain, *relative, *joined}


def imports_by_name(code: types.CodeType) -> bool:
    """Return whether the code, or code nested in it, may import modules under computed names."""
    return any(not _CALLS.isdisjoint(each.co_names) for each in nested_codes(code))


def asks_by_name(code: types.CodeType) -> bool:
    """Return whether the code, or code nested in it, imports or looks up modules under names."""
    return any(not _ASKS.isdisjoint(each.co_names) for each in nested_codes(code))


def is_import_call(value: Any) -> bool:
    """Return whether a value is a function that imports modules under names, also one of the user's own."""
    if isinstance(value, types.FunctionType):
        library = value.__module__ or ""
        if library.startswith("importlib.resources"):
            return True
        return value.__name__ in _ASKS if library in _LIBRARIES else imports_by_name(value.__code__)
    return isinstance(value, types.BuiltinFunctionType) and value.__name__ == "__import__"


_LIBRARIES = frozenset({"importlib", "runpy", "pkgutil", "importlib.util"})

_known: dict[types.CodeType, tuple[str, tuple[str, ...]]] = {}
_KNOWN_MAX = 4096


def _by_code(code: types.CodeType, package: str) -> tuple[str, ...]:
    known = _known.get(code)
    if known is None or known[0] != package:
        while len(_known) >= _KNOWN_MAX:
            _known.pop(next(iter(_known)), None)
        names = imported_names(code)
        found = {full for full in resolve(package, True, names) if full} if names else set()
        known = _known[code] = (package, tuple(sorted(found - {package} if package else found)))
    return known[1]


def names_imported(function: types.FunctionType, used: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the full names of the modules that a by-value function may import, whether they travel or not.

    used: the globals that it uses.
    """
    package = package_of(function.__globals__)
    names = _by_code(function.__code__, package)
    beside = (*defaults_of(function), *closure_of(function))
    values = [*(value for _, value in beside), *used.values()]
    aliases = any(map(is_import_call, values))
    if not aliases and not asks_by_name(function.__code__):
        return names
    found = module_names([*_texts(values[:_TEXTS_MAX]), *(_constants(function.__code__) if aliases else ())])
    more = {full for full in resolve(package, True, found) if full and full != package} if found else ()
    return tuple(sorted({*names, *more}))


def imports_of(function: types.FunctionType, used: Mapping[str, Any]) -> Imports | None:
    """Return what a by-value function imports by value while it runs, or by computed names; None if nothing.

    `used` are the globals that it uses.
    """
    names: dict[str, None] = {}
    for name in names_imported(function, used):
        if name.endswith(_BELOW):
            names.update(dict.fromkeys(modules_below(name.removesuffix(_BELOW))))
        elif is_sent(name):
            names[name] = None
    dynamic = imports_by_name(function.__code__) or any(map(is_import_call, used.values()))
    if not names and not dynamic:
        return None
    roots = project_roots() if dynamic else ()
    return Imports(tuple(map(bundle_of, sorted(names))), roots[0] if roots else "")
