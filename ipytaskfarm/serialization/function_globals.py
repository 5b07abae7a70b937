"""The globals of functions that travel by value, and the engine's names that take precedence over them.

A by-value function gets a dict of its own as globals. All functions of one pickle share it if they shared their globals
at home. The dict holds the globals that were found there; any other name is looked up in the engine's user namespace
when it is used, then among the builtins. CPython uses ordinary item access for a ``__builtins__`` that is a dict
*subclass*, so `Names.__missing__` can answer with the namespace's value. This is ten times slower than a plain look-up
(0.4 µs), so names that are known beforehand are copied: see `Names.settle` and `rebuild.bind`.

A name that was placed on the engine by hand (`placed`) takes precedence over the value that a function brings. If each
call starts with fresh globals, the name is copied then (`Names.reset`). From all other globals the name is removed when
it is placed (`Names.hide`), so that it is looked up in the namespace. What the setup of the engine's environment has
assigned takes precedence over what functions bring too, while a task of the environment runs, see `SetupGlobals`. The
same holds for attributes of functions.
"""

from __future__ import annotations

import builtins
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import FunctionType
from typing import Any

_BUILTINS = builtins.__dict__
BUILTINS_AT_HOME = frozenset(
    name
    for name in dir(builtins)
    if not name.startswith("_")
    and name not in {"id", "copyright", "credits", "display", "exit", "get_ipython", "help", "license", "quit"}
)
"""Builtins that stay builtins. A by-value function looks a name up on the engine if it was no global at home. There,
one of these names was the builtin; so it is here, whatever tasks have put into the engine's namespace. Not included:
``id``, which on an engine is the engine's number, and the names that IPython and ``site`` add."""
_ALWAYS_THERE = frozenset({*dir(builtins), "display", "get_ipython"})
_ABSENT = object()
_NONE: frozenset[str] = frozenset()
_REMEMBERED_MIN = 256

BY_CALL = "a call of "
"""How a name was placed that a call of ipyparallel's direct view has assigned. Nobody is told of its use: the program
has assigned it by itself."""

Tell = Callable[[Iterable[FunctionType], str, Any, Any], None]
"""Called as (functions, name, value they brought, engine's value) when the functions use the engine's value."""


class PlacedNames:
    """The names that were placed by submit this engine's namespace. A client has none."""

    def __init__(self) -> None:
        self.namespace: Mapping[str, Any] | None = None
        """The engine's user namespace; None in a process that is no engine."""
        self.by: dict[str, str] = {}
        """Name -> how it was placed, such as "push"."""
        self.generation = 0
        """Number of changes of `by` so far."""
        self.tell: Tell = _tell_nobody

    def add(self, names: Iterable[str], by: str) -> None:
        """Record that these names were placed in this way."""
        added = dict.fromkeys(names, by)
        if added:
            new = not added.keys() <= self.by.keys()
            self.by.update(added)
            if new:
                self._changed()

    def keep_only(self, names: Iterable[str]) -> None:
        """Forget all other names."""
        wanted = set(names)
        if not self.by.keys() <= wanted:
            self.by = {name: by for name, by in self.by.items() if name in wanted}
            self._changed()

    def _changed(self) -> None:
        self.generation += 1
        for names in living():
            names.hide()


def _tell_nobody(functions: Iterable[FunctionType], name: str, brought: Any, found: Any) -> None:
    """Do nothing: outside engines no names are placed."""


placed = PlacedNames()


class SetupGlobals:
    """The globals that the setup of this engine's environment has assigned or changed."""

    def __init__(self) -> None:
        self.values: dict[str, dict[str, Any]] = {}
        """Name of a module -> name -> value."""
        self.attributes: dict[tuple[str, str], dict[str, Any]] = {}
        """Module and qualified name of a function -> attribute -> value: what the setup has assigned to functions."""
        self.active = False
        """Whether a task of the environment runs."""
        self._own: set[int] = set()
        """The identities of the globals of the environment's own functions, which hold the values anyway."""

    def add(self, names: Names, values: dict[str, Any]) -> None:
        """Keep these values of globals of the environment's own functions."""
        self._own.add(id(names))
        if values:
            self.values.setdefault(names.packed["__name__"], {}).update(values)

    def add_attributes(self, function: FunctionType, values: dict[str, Any]) -> None:
        """Keep these attributes of one of the environment's own functions."""
        if values:
            self.attributes.setdefault((function.__module__, function.__qualname__), {}).update(values)

    def activate(self, active: bool) -> None:
        """Begin a task of the environment, or one that is not of the environment."""
        if active is self.active:
            return
        self.active = active
        if self.values or self.attributes:
            for names in living():
                names.take_setup()

    def of(self, names: Names) -> dict[str, Any]:
        """Return the values that these globals take now, apart from names that were placed by hand."""
        if not self.active or not self.values or id(names) in self._own:
            return _NO_VALUES
        found = self.values.get(names.packed["__name__"], _NO_VALUES)
        return {
            name: value
            for name, value in found.items()
            if (name in names.packed or name in names.wanted) and name not in names.taken
        }

    def attributes_of(self, names: Names) -> Iterator[tuple[FunctionType, dict[str, Any]]]:
        """Yield the functions with these globals that take attributes now, and the attributes."""
        if self.active and self.attributes and id(names) not in self._own:
            for function in names.functions:
                found = self.attributes.get((function.__module__, function.__qualname__))
                if found is not None:
                    yield function, found


_NO_VALUES: dict[str, Any] = {}
setup_globals = SetupGlobals()


def _is_meant(name: str) -> bool:
    """Return whether there is a builtin that counts more than what tasks have put into the engine's namespace."""
    return name in _BUILTINS and (name in BUILTINS_AT_HOME or name not in _ALWAYS_THERE)


_USED_BY_C = {name: _BUILTINS[name] for name in ("__build_class__", "__import__", "getattr", "iter", "reversed")}
"""What C code takes from the builtins of the running function without `Names.__missing__`: in some Python versions
IMPORT_NAME and LOAD_BUILD_CLASS, and whenever bound methods and iterators are pickled or copied."""


class Names(dict[str, Any]):
    """The ``__builtins__`` of by-value functions, with the globals that belong to it."""

    __slots__ = (
        "__weakref__", "assigned", "attributes_before", "by_setup", "functions", "globals", "namespace", "packed",
        "taken", "templates", "told", "wanted",
    )  # fmt: skip

    def __init__(self, module_name: str, namespace: Mapping[str, Any]) -> None:
        super().__init__(_USED_BY_C)
        self.namespace = namespace
        self.assigned = False
        """Whether some function with these globals may assign to a global."""
        self.packed: dict[str, Any] = {"__name__": module_name, "__builtins__": self}
        self.globals = dict(self.packed)
        self.wanted: set[str] = set()
        self.functions: list[FunctionType] = []
        """The functions with these globals, which `Tell` reports on."""
        self.taken = _NONE
        """The names of these functions that were placed on the engine by hand."""
        self.by_setup = _NO_VALUES
        """The values of the environment's setup that these functions use now."""
        self.attributes_before: list[tuple[FunctionType, dict[str, Any]]] = []
        """For functions that use attributes of the environment's setup now: what they brought in place of these."""
        self.templates: OrderedDict[int, FunctionType] = OrderedDict()
        """See `function_templates`."""
        self.told: dict[str, int] | None = None
        """Name -> identity of the engine's value when it was last compared with the functions' own value."""

    def __missing__(self, name: str) -> Any:
        if name in self.taken:
            if name in self.namespace:
                return self._engines(name)
            if name in self.packed:
                return self.packed[name]
        # The name was no global at home. If there is a builtin of that name, the function means the builtin. So it does
        # if a module has added one, such as ``_`` of gettext, which IPython's namespace has, too.
        if _is_meant(name):
            return _BUILTINS[name]
        try:
            return self.namespace[name]
        except KeyError:
            return _BUILTINS[name]

    def add(self, used: dict[str, Any], wanted: tuple[str, ...], function: FunctionType | None = None) -> None:
        """Add the globals that a function brings, and the names that it will look up."""
        self.packed.update(used)
        self.globals.update(used)
        self.wanted.update(wanted)
        if function is not None:
            self.functions.append(function)

    def settle(self) -> None:
        """Copy the builtins that the namespace does not hide at present, so that they are found at full speed."""
        for name in self.wanted:
            if name not in self.globals and name in _BUILTINS and not self._hidden(name):
                self.globals[name] = _BUILTINS[name]
        if placed.by:
            self.hide()
        if setup_globals.active:
            self.take_setup()

    def take_setup(self) -> None:
        """Use the values of the environment's setup if one of its tasks runs, and otherwise those that were brought."""
        for name in self.by_setup:
            if name in self.packed and name not in self.taken:
                self.globals[name] = self.packed[name]
            else:
                self.globals.pop(name, None)
        self.by_setup = setup_globals.of(self)
        self.globals.update(self.by_setup)
        if setup_globals.attributes:
            self._take_attributes()

    def _take_attributes(self) -> None:
        for function, before in reversed(self.attributes_before):  # a function may be among `functions` twice
            attributes = vars(function)
            for name, value in before.items():
                if value is _ABSENT:
                    attributes.pop(name, None)
                else:
                    attributes[name] = value
        self.attributes_before.clear()
        for function, given in setup_globals.attributes_of(self):
            attributes = vars(function)
            self.attributes_before.append((function, {name: attributes.get(name, _ABSENT) for name in given}))
            attributes.update(given)

    def is_builtin(self, name: str, value: object) -> bool:
        """Return whether a global is a builtin that was copied for speed."""
        return name in self.wanted and _BUILTINS.get(name, _ABSENT) is value

    def _hidden(self, name: str) -> bool:
        """Return whether the namespace's value takes precedence over the builtin."""
        return name in self.namespace and name not in BUILTINS_AT_HOME

    def hide(self) -> None:
        """Remove names that were placed by hand from the globals, so that each use looks them up in the namespace."""
        before = self.taken
        self.look_for_placed()
        for name in before - self.taken:
            if name in self.packed:
                self.globals.setdefault(name, self.packed[name])
            if name in _USED_BY_C:
                self[name] = _USED_BY_C[name]
        for name in self.taken:
            self._look_up(name)

    def _look_up(self, name: str) -> None:
        """Make each use of a name look it up in the namespace."""
        self.globals.pop(name, None)
        self.pop(name, None)

    def prefer(self, name: str) -> None:
        """Look a name up in the namespace although it was not placed by hand, until the next `hide`."""
        self.taken |= {name}
        self._look_up(name)

    def look_for_placed(self) -> None:
        """Find which of the functions' names are placed by hand at present."""
        self.taken = frozenset(
            name
            for name in placed.by
            if (name in self.packed or (name in self.wanted and name in BUILTINS_AT_HOME))
            and not (name.startswith("__") and name.endswith("__"))
        )

    def reset(self) -> None:
        """Undo the assignments of the last call, and look the wanted names up again (`bind` made the two sets
        disjoint).

        The dict object stays, and usually its keys too, so that the interpreter's inline caches stay valid.
        """
        here = self.globals
        here.update(self.packed)
        namespace = self.namespace
        found = len(self.packed)
        for name in self.wanted:
            if name in namespace and name != "_" and not _is_meant(name):  # a module may add ``_`` in the call
                here[name] = namespace[name]
                found += 1
            elif name in _BUILTINS:
                here[name] = _BUILTINS[name]
                found += 1
            else:
                here.pop(name, None)
        if len(here) != found:
            for name in here.keys() - self.packed.keys() - self.wanted:
                del here[name]
        if self.by_setup:
            here.update(self.by_setup)
        if self.taken:
            here.update((name, self._engines(name)) for name in self.taken if name in namespace)

    def _engines(self, name: str) -> Any:
        """Return the engine's value, and report that it is used instead of the functions' own value."""
        value = self.namespace[name]
        if self.told is None:
            self.told = {}
        if self.told.get(name) != id(value):
            self.told[name] = id(value)
            brought = self.packed[name] if name in self.packed else _BUILTINS[name]
            if brought is not value:
                placed.tell(self.functions, name, brought, value)
        return value

    def taken_values(self, for_child: bool) -> dict[str, Any]:
        """Return the values of the names in `taken` for a function that is packed here.

        Args:
            for_child: whether the function goes to a child process, which does not have the engine's namespace.
        """
        values = {name: self.packed[name] for name in self.taken if name in self.packed}
        namespace = self.namespace
        if for_child:
            return values | {name: namespace[name] for name in self.taken if name in namespace}
        # A value that a call has assigned is sent as it is.
        here = self.globals
        return {
            name: here[name] if name in here and here[name] is not namespace.get(name, _ABSENT) else value
            for name, value in values.items()
        }


_remembered: list[weakref.ref[Names]] = []
_limit = [_REMEMBERED_MIN]


def remember(names: Names) -> None:
    """Register these globals, so that names that are placed later are hidden in them."""
    _remembered.append(weakref.ref(names))
    if len(_remembered) > _limit[0]:
        _limit[0] = max(_REMEMBERED_MIN, 2 * len(living()))


def living() -> list[Names]:
    """Return the registered globals that are still in use."""
    living = [names for reference in _remembered if (names := reference()) is not None]
    _remembered[:] = map(weakref.ref, living)
    return living
