"""Warns of what the program has set in its by-value modules from outside, after their import.

Tasks run the module's source, so after ``config.N = 5``, ``config.OPTIONS["n"] = 5`` or ``helpers.load = fake`` they
would compute with what the source says, without a word.  `module_state` tells what the source decides; what other
modules of the program set when they are imported they set on engines too.  A file that was edited after this process
began is left alone, because its source may differ from what was imported.
"""

from __future__ import annotations

import abc
import contextlib
import functools
import operator
import os
import sys
import time
import types
import warnings
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from ..core.text import shown
from ..system.farm_paths import process_started
from ..system.user_code import depth_of_user
from .module_origin import Travel, travel
from .module_state import PLAIN, Defined, Expected, changed_by_imports, is_decided, seeds_of, state_of
from .process_values import asked

_STATE_MAX = 10_000
"""How many values of a module are compared, whenever its file is looked at: those that cannot change inside are
compared by identity first, which takes a third of a millisecond for as many."""
_MISSING = object()


class Told:
    """Of which values of modules the user was warned."""

    def __init__(self) -> None:
        self._paths: set[tuple[str, str]] = set()

    def __contains__(self, path: tuple[str, str]) -> bool:
        return path in self._paths

    def add(self, module: str, path: str) -> bool:
        """Note that the user is told of a value; return whether that is news."""
        if (module, path) in self._paths:
            return False
        self._paths.add((module, path))
        return True


told = Told()
_quiet: dict[str, set[str]] = defaultdict(set)
"""Module's name -> what other modules change in it when they are imported, on engines too."""


class AssignedGlobals:
    """What one imported module has by its source, to compare it with what it has by now."""

    __slots__ = ("_expected", "_fixed", "_globals", "_name", "_names", "_objects", "_seeds", "_seen")

    def __init__(
        self, name: str, expected: list[Expected], objects: dict[str, dict[str, Any]], seeds: tuple[str, ...]
    ) -> None:
        self._name = name
        self._fixed = [each for each in expected if not each[0] and type(each[2]) in (*PLAIN, Defined)]
        """Constants and functions of the module, which do not change inside."""
        fixed = {each[1] for each in self._fixed}
        self._expected = [each for each in expected if each[0] or each[1] not in fixed]
        self._names = [each[1] for each in self._fixed]
        self._seen: list[Any] = []
        """Their values at the last look. They are kept, because another object may get the identity of a freed one."""
        self._objects = objects
        self._globals = vars(sys.modules[name])
        self._seeds = seeds

    def warn(self) -> None:
        """Warn of what has another value by now, once of each."""
        for seed in self._seeds:
            if told.add(self._name, f"{seed}()"):
                text = f"{self._name} seeds {seed.removesuffix('.seed')} when it is imported: tasks on several engines "
                text += "get the same random numbers. Give each task its own generator or seed as an argument"
                warnings.warn(text, stacklevel=depth_of_user())
        changed = [
            each for each in self._changes() if (self._name, each[0]) not in told and each[0] not in _quiet[self._name]
        ]
        if not changed:
            return
        by_imports = changed_by_imports([_last(path) for path, *_ in changed], _imported())
        for path, text, source_text in changed:
            if _last(path) in by_imports:
                _quiet[self._name].add(path)
            elif told.add(self._name, path):
                warnings.warn(
                    f"{self._name}.{path} was {text} after the import, and tasks run the module's source{source_text}: "
                    "pass it as an argument, or keep it in the script",
                    stacklevel=depth_of_user(),
                )

    def _changes(self) -> Iterator[tuple[str, str, str]]:
        """Yield the path of each changed value, what was done to it, and what the source says."""
        present = self._globals
        seen = [*map(present.get, self._names)]
        is_same = len(seen) == len(self._seen) and all(map(operator.is_, seen, self._seen))
        fixed = () if is_same else self._fixed
        self._seen = seen
        for owner, name, value in (*fixed, *self._expected):
            holder = present
            if owner:
                definition = present.get(owner)
                if not isinstance(definition, type) or definition.__module__ != self._name:
                    continue
                holder = vars(definition)  # type: ignore[assignment]
            now = holder.get(name, _MISSING)
            path = f"{owner}.{name}" if owner else name
            if now is value or now is _MISSING:
                continue
            if type(value) is Defined:
                if not self._is_defined(now, value):
                    yield path, f"replaced by {shown(now)}", ""
            elif not _same(now, value) and (not owner or type(now) in PLAIN):
                yield path, f"set to {shown(now)}", f", where it is {shown(value)}"
        for name, known in self._objects.items():
            for key, now in _attributes(present.get(name)):
                value = known.get(key, _MISSING)
                if is_decided(value) and type(now) in PLAIN and not _same(now, value):
                    text = "does not exist" if value is _MISSING else f"is {shown(value)}"
                    yield f"{name}.{key}", f"set to {shown(now)}", f", where it {text}"

    def _is_defined(self, now: Any, name: str) -> bool:
        """Return whether a function is the source's own, or wraps it."""
        for _ in range(10):
            if isinstance(now, types.FunctionType) and now.__code__.co_name == name and now.__module__ == self._name:
                return True
            now = asked(now, "__wrapped__")  # a classmethod has it too, as __init_subclass__ becomes one
        return False


def _last(path: str) -> str:
    return path.rpartition(".")[2]


def _attributes(found: Any) -> Iterator[tuple[str, Any]]:
    try:
        yield from list(vars(found).items())
    except TypeError:  # it has none
        return


def _same(now: Any, value: Any) -> bool:
    try:
        return type(now) is type(value) and bool(now == value)
    except Exception:  # of an array inside, whose comparison is no truth
        return False


def state_to_compare(name: str, file: str, source: bytes) -> AssignedGlobals | None:
    """Return what of a by-value module with this source may be compared with its globals; None if there is nothing."""
    if name not in sys.modules or not (b"=" in source or b"def " in source or b"seed(" in source):
        return None
    try:
        if os.stat(file).st_ctime >= _began_s():  # the time of an edit can be set, this one cannot
            return None
    except OSError:
        return None
    (expected, objects), seeds = state_of(source), seeds_of(source)
    if not (expected or objects or seeds):
        return None
    return AssignedGlobals(
        name, sorted(expected, key=lambda each: type(each[2]) is Defined)[:_STATE_MAX], objects, seeds
    )


def source_says(module: str, path: str) -> bool | None:
    """Return whether the source of an imported module says what it has under a path; None if no source decides it."""
    try:
        expected, objects = state_of(Path(sys.modules[module].__file__ or "").read_bytes())
    except OSError:
        return None
    owner, _, name = path.rpartition(".")
    known = dict.get({(holder, key): value for holder, key, value in expected}, (owner, name), _MISSING)
    if known is _MISSING and owner in objects:
        known = objects[owner].get(name, _MISSING)
    if known is _MISSING or not is_decided(known) or type(known) is Defined:
        return None
    found: Any = sys.modules[module]
    for part in path.split("."):
        found = asked(found, part)
    return _same(found, known)


@functools.cache
def _began_s() -> float:
    """Return the wall-clock time at which this process began."""
    since_boot_s = process_started()
    return 0.0 if since_boot_s is None else time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + since_boot_s


def _imported() -> Iterator[bytes]:
    """Yield the sources of all imported modules that travel by value."""
    for name in list(sys.modules):
        if travel(name) is Travel.SOURCE and (file := getattr(sys.modules[name], "__file__", None)):
            with contextlib.suppress(OSError):
                yield Path(file).read_bytes()


_ITEMS_MAX = 1000
_LEVELS = 2
"""How deep containers are looked through, as in ``handlers["event"].append(function)``."""
_LEAVES = frozenset((
    bool, int, float, complex, str, bytes, type(None), types.ModuleType, types.BuiltinFunctionType, types.CodeType,
))  # fmt: skip
_CONTAINERS = (dict, types.MappingProxyType, list, tuple, set, frozenset, deque)
_KEYED = (dict, types.MappingProxyType)
_METHODS = (staticmethod, classmethod, property, functools.partial, types.MethodType)
_get_dump = getattr(__import__("_abc"), "_get_dump", None)


def warn_of_script_parts(modules: Iterable[types.ModuleType]) -> None:
    """Warn of what the modules, which travel by value, have of the script, once of each.

    ``@plugins.register("mine")`` in a script, a subclass of a class that keeps its subclasses, ``area.register`` of a
    `functools.singledispatch` function, ``Model.run = faster``: the modules get parts of the script. Tasks run the
    source of the modules, and nobody runs the script there. So `plugins.known["mine"]` would fail, or a default would
    be taken without a word.
    """
    for module in modules:
        try:
            parts = list(_parts_of(module))
        except Exception:  # an object of the user may raise anything when it is looked at
            continue
        for path, what in parts:
            if told.add(module.__name__, path):
                warnings.warn(
                    f"{module.__name__}.{path} {what} of this session's __main__, and tasks run the module's source "
                    "without it: define it in a module that the function imports, or pass it as an argument",
                    stacklevel=depth_of_user(),
                )


def _parts_of(module: types.ModuleType) -> Iterator[tuple[str, str]]:
    """Yield where a module has something of the script, and what that is."""
    for name, value in list(vars(module).items()):
        kind = type(value)
        if kind in _LEAVES or name.startswith("__"):
            continue
        if _is_of_script(value):
            yield name, f"is {_named(value)}"
        elif kind is types.FunctionType:
            if value.__module__ == module.__name__ and value.__dict__:
                yield from _inside(name, vars(value).items())
        elif isinstance(value, type):
            if value.__module__ == module.__name__:
                yield from _inside(name, vars(value).items())
                yield from _registered(name, value)
        elif isinstance(value, _CONTAINERS):
            yield from _in_container(name, value, _LEVELS)
        elif travel(kind.__module__) is Travel.SOURCE and isinstance(state := getattr(value, "__dict__", None), dict):
            yield from _inside(name, state.items())


def _inside(owner: str, attributes: Iterable[tuple[str, Any]]) -> Iterator[tuple[str, str]]:
    """Yield what the attributes of a function, class or instance have of the script."""
    for name, value in list(attributes):
        if type(value) in _LEAVES or name in ("__wrapped__", "__dict__", "__weakref__"):
            continue
        if isinstance(value, functools.singledispatchmethod):
            value, name = value.dispatcher.registry, f"{name}.register"
        if _is_of_script(value):
            yield f"{owner}.{name}", f"is {_named(value)}"
        elif isinstance(value, _CONTAINERS):
            yield from _in_container(f"{owner}.{name}", value, _LEVELS)


def _in_container(path: str, container: Any, levels: int) -> Iterator[tuple[str, str]]:
    """Yield what a container, or one inside it, has of the script."""
    keyed = isinstance(container, _KEYED)
    items = list(islice(container.items(), _ITEMS_MAX)) if keyed else [(None, each) for each in container][:_ITEMS_MAX]
    for key, value in items:
        if _is_of_script(value) or (keyed and _is_of_script(key)):
            yield path, f"has {_named(key)}: {_named(value)}" if keyed else f"has {_named(value)}"
        elif levels > 1 and isinstance(value, _CONTAINERS):
            yield from _in_container(path, value, levels - 1)


def _registered(name: str, cls: type) -> Iterator[tuple[str, str]]:
    """Yield the classes of the script that were registered with an abstract class."""
    if isinstance(cls, abc.ABCMeta) and _get_dump is not None:
        for reference in _get_dump(cls)[0]:
            found = reference()
            if found is not None and _is_of_script(found):
                yield f"{name}.register", f"has {_named(found)}"


def _is_of_script(value: Any) -> bool:
    kind = type(value)
    if kind in _LEAVES:
        return False
    if kind in _METHODS:
        value = next(
            (found for part in ("__func__", "fget", "func") if (found := getattr(value, part, None)) is not None), None
        )
        kind = type(value)
    if kind is types.FunctionType or isinstance(value, type):
        return _is_in_main(value)
    return _is_in_main(kind)


def _is_in_main(value: Any) -> bool:
    """Return whether a function or class is of the script: a module's own code may run under that name too."""
    if value.__module__ != "__main__":
        return False
    main = vars(sys.modules["__main__"])
    if type(value) is types.FunctionType:
        return value.__globals__ is main
    return value.__qualname__.partition(".")[0] in main


def _named(value: Any) -> str:
    name = getattr(value, "__qualname__", None) if isinstance(value, type | types.FunctionType) else None
    return name if isinstance(name, str) else shown(value, 40)
