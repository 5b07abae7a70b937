"""An engine's names in the functions of modules that travel as source.

If neither the module nor Python has a name that a function of the module uses, the function finds it in the engine's
user namespace: `ModuleBuiltins`. Only modules with such functions get these builtins.

A name that was placed on the engine by hand takes precedence over the module's own value while it is placed: it is
bound in the module. There are two exceptions. A name that the module imports stays its own (as in ``from time import
time`` where somebody has placed the module ``time``). So do its functions and classes, if the engine's value comes from
an earlier version of the module.
"""

from __future__ import annotations

import builtins
import dis
import functools
import types
import weakref
from typing import Any

from .function_globals import placed
from .global_names import nested_codes

_ABSENT = object()
_LOAD_GLOBAL = dis.opmap["LOAD_GLOBAL"]
_STORES = frozenset({"STORE_NAME", "STORE_GLOBAL", "DELETE_NAME", "DELETE_GLOBAL"})
_DEFINED = (types.FunctionType, types.BuiltinFunctionType, type)


class ModuleBuiltins(dict[str, Any]):
    """The ``__builtins__`` of a module: Python's own, those that were added since, such as ``_`` of gettext, and the
    engine's user namespace for names that are missing there.
    """

    __slots__ = ()

    def __init__(self) -> None:
        super().__init__(vars(builtins))

    def __missing__(self, name: str) -> Any:
        added = vars(builtins)
        return added[name] if name in added else (placed.namespace or {})[name]


class ModuleNames:
    """The records about the names of one module."""

    __slots__ = ("generation", "own", "shared", "used")

    def __init__(self, used: frozenset[str]) -> None:
        self.used = used
        """Names that its functions look up among their globals."""
        self.own: dict[str, Any] = {}
        """The module's own values of the names that are bound to the engine's values at present."""
        self.generation = -1
        self.shared: list[str] = []
        """The names in `used` that were placed by hand, as of `generation`."""


_modules: weakref.WeakKeyDictionary[types.ModuleType, ModuleNames] = weakref.WeakKeyDictionary()


class ModulesSeen:
    """What `take_names` has found: without it, each task would look through all modules."""

    generation = -1
    """That of `placed`, if no module has come since."""
    any_shared = False
    """Whether a module uses a name that was placed: the value under it may change at any time."""


_seen = ModulesSeen()


@functools.lru_cache(maxsize=512)
def names_of(source: bytes, file: str) -> tuple[frozenset[str], frozenset[str]]:
    """Return (the globals that functions in a module's source look up, those among them that the module does not bind).

    Raises:
        SyntaxError: the source is not valid.
    """
    code = compile(source, file, "exec", dont_inherit=True)
    used: set[str] = set()
    bound: set[str] = set()
    for each in nested_codes(code):
        for step in dis.get_instructions(each):
            if step.opcode == _LOAD_GLOBAL:
                used.add(step.argval)
            elif step.opname in _STORES and (each is code or step.opname.endswith("GLOBAL")):
                bound.add(step.argval)
    used = {name for name in used if not name.startswith("__")}
    return frozenset(used), frozenset(used - bound - vars(builtins).keys())


def begin_module(module: types.ModuleType, source: bytes, file: str) -> None:
    """Give a module its builtins before its code runs: functions take their builtins from the module when they are
    made.
    """
    if placed.namespace is not None and names_of(source, file)[1]:
        module.__dict__["__builtins__"] = ModuleBuiltins()


def end_module(module: types.ModuleType, source: bytes, file: str) -> None:
    """Record the names of a module after its code has run."""
    if placed.namespace is not None:
        known = _modules[module] = ModuleNames(names_of(source, file)[0])
        _seen.generation = -1
        if placed.by:
            _take(module, known, tell=False)


def needs_engine(module: types.ModuleType, source: bytes, file: str) -> bool:
    """Return whether functions of a module would see other names if it had travelled.

    `module` is one that the engine has imported itself.
    """
    if placed.namespace is None:
        return False
    used, unbound = names_of(source, file)
    return not unbound <= vars(module).keys() or not used.isdisjoint(placed.by)


def take_names(tell: bool) -> None:
    """Bind the names that are placed on the engine at present, in all modules.

    tell: whether to report it in the output, which the user will read.
    """
    if _seen.generation == placed.generation and not _seen.any_shared:
        return
    modules = list(_modules.items())
    for module, known in modules:
        if known.generation != placed.generation or known.shared:
            _take(module, known, tell)
    _seen.generation = placed.generation
    _seen.any_shared = any(known.shared for _, known in modules)


def _take(module: types.ModuleType, known: ModuleNames, tell: bool) -> None:
    namespace = placed.namespace or {}
    here = vars(module)
    if known.generation != placed.generation:
        known.generation = placed.generation
        known.shared = sorted(known.used & placed.by.keys())
    for name in [name for name in known.own if name not in placed.by or name not in namespace]:
        here[name] = known.own.pop(name)
    for name in known.shared:
        value = namespace.get(name, _ABSENT)
        if value is _ABSENT or not (name in known.own or _gives_way(module, name, value)):
            continue
        if name not in known.own:
            known.own[name] = here[name]
        here[name] = value
        if tell:
            functions = [each for each in here.values() if getattr(each, "__globals__", None) is here]
            placed.tell(functions, name, known.own[name], value)


def _gives_way(module: types.ModuleType, name: str, value: Any) -> bool:
    """Return whether the engine's value takes precedence over the module's."""
    own = vars(module).get(name, _ABSENT)
    if own is _ABSENT or own is value or isinstance(own, types.ModuleType):
        return False
    if isinstance(own, _DEFINED) and own.__module__ != module.__name__:
        return False
    return not (isinstance(value, _DEFINED) and value.__module__ == module.__name__)
