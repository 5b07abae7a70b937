"""Digests of functions and classes.

A digest names what a function *does*: its bytecode without file, lines and position, its constants, defaults, cells and
used globals, and the same of every function and class among them. The same source has the same digest in another cell,
another kernel and under another hash seed: names and sets are sorted, and identity plays no part. Only one mutable
object at two places (``[[0]] * 2``) is not the same as two equal ones, because a change of it is seen at both places;
nor is one plain ``object()``, because programs compare it by identity.

An object that cannot be taken apart here (most are made in C) is known by its pickle. Its digest may differ between
processes; the function is then sent once more. Nothing is refused for lack of a digest.

`Digester` records *guards* during its walk (see `guards`): which object was seen where, by identity. As long as all
guards hold, the digest is right, because the guarded objects can change only by being replaced. For an object that can
change unseen (an array, an instance) there is no guard; `sure` becomes False instead.
"""

from __future__ import annotations

import contextvars
import enum
import functools
import hashlib
import itertools
import marshal
import pickle
import struct
import sys
import types
import weakref
from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

from ..core.errors import VersionMismatch
from .changeable_types import HOLDERS, cannot_change, is_array, is_mutable, is_numpys_chance, owned_by
from .class_state import state_of_class
from .classes import (
    class_attributes,
    class_hints,
    enum_extras,
    enum_members,
    registered_subclasses,
    registered_with,
    struct_digested,
    without_seeds,
)
from .code_objects import place_of
from .function_imports import imports_of
from .function_parts import added_attributes, annotations_of, cell_state
from .function_templates import is_template
from .global_names import absent_submodules
from .guards import (
    AttributesGuard,
    BundleGuard,
    ClassGuard,
    FunctionGuard,
    Guard,
    ItemsGuard,
    MemberGuard,
    MembersGuard,
    RegistrationsGuard,
    SubmodulesGuard,
)
from .library_values import of_library
from .module_bundles import bundle_of
from .module_origin import Travel, home_module, travel
from .pickler import (
    REDUCERS,
    content_of,
    dispatched,
    dumps_to_compare,
    find_named,
    inherited_reducer,
    is_made_in_c,
    reduced_by_pickle,
    used_globals,
    used_submodules,
)
from .rebuild import is_call
from .standard_values import default_of, find_named_method, key_of_mark, without_locks

_ITEMS_GUARDED_MAX = 64
_ITEMS_WALKED_MAX = 4096
"""A larger container of objects is known by its pickle: a walk through it takes a hundred times as long.

If it holds sets, it is walked nevertheless: a pickle has their items in an order that differs between processes.
"""


# --------------------------------------------------------------------------------------------------


def _tagged(tag: bytes, data: bytes) -> bytes:
    return tag + struct.pack("<Q", len(data)) + data


_ATOMS: dict[type, Callable[[Any], bytes]] = {
    type(None): lambda _: b"N",
    type(...): lambda _: b"E",
    type(NotImplemented): lambda _: b"I",
    bool: lambda value: b"1" if value else b"0",
    int: lambda value: _tagged(b"i", b"%d" % value if -(2**63) < value < 2**63 else hex(value).encode()),
    float: lambda value: b"f" + struct.pack("<d", value),
    complex: lambda value: b"c" + struct.pack("<dd", value.real, value.imag),
    str: lambda value: _tagged(b"s", value.encode("utf-8", "surrogatepass")),
    bytes: lambda value: _tagged(b"b", value),
}
_NESTED = {*_ATOMS, tuple, list}
_MARSHAL_BY_VALUE = 0
"""The version of marshal's format without references and interned strings: equal values have equal bytes."""


def _only_atoms(items: Iterable[Any], depth: int = 3) -> bool:
    """Return whether a large container holds only numbers and strings, or tuples and lists of them. Runs at C speed."""
    kinds = {*map(type, items)}
    if kinds <= _ATOMS.keys():
        return True
    if depth == 0 or not kinds <= _NESTED:
        return False
    lists = [id(item) for item in items if type(item) is list]
    if len({*lists}) < len(lists):
        return False  # marshal would not tell one list twice from two equal lists
    nested = (item for item in items if type(item) is tuple or type(item) is list)
    return _only_atoms([*itertools.chain.from_iterable(nested)], depth - 1)


def _holds_sets(items: Iterable[Any], depth: int = 3) -> bool:
    """Return whether there are sets in a large container, or in the containers in it.  Runs at C speed."""
    kinds = {*map(type, items)}
    if set in kinds or frozenset in kinds:
        return True
    if depth == 0 or kinds.isdisjoint((tuple, list, dict)):
        return False
    nested = [*itertools.chain.from_iterable(item for item in items if type(item) is tuple or type(item) is list)]
    if dict in kinds:
        nested += itertools.chain.from_iterable(item.values() for item in items if type(item) is dict)
    return _holds_sets(nested, depth - 1)


Seen: TypeAlias = dict[int, tuple[int, Any]]
"""Address of a mutable object -> its number among them, and the object, which keeps its address as long."""
_codes: dict[int, bytes] = {}
"""Address of a code object -> digest of what is in it, which cannot change: each new closure has the same code."""
_LIBRARY_STATE = ("dataclasses", "reprlib", "functools")
"""Libraries with functions that have sets and locks in their closures, which do not affect what a function does."""


class Digester:
    """One walk over an object. `digest` may be called once."""

    in_order = False
    """Whether the order of a class's attributes counts. A class that was rebuilt elsewhere may have another order."""

    def __init__(self, seen: Seen | None = None, *, with_state: bool = True) -> None:
        """Create it; `seen` holds what other walks have seen whose objects are used together with this one.

        with_state: whether the state of classes counts, see `state_of_class`.
        """
        self._seen: Seen = {} if seen is None else seen
        self._with_state = with_state
        self.has_state = False
        """Whether there are classes with a state among the objects."""
        self.marks: set[str] = set()
        """The keys of the objects that are compared by identity, on which the digest does not depend."""
        self.guards: list[Guard] = []
        self.sure = True
        """Whether every change of the object breaks a guard."""
        self.places: set[str] = set()
        """File and first line of each by-value function, on which the digest does not depend."""
        self._has_classes = False
        self._kinds: dict[type, bool] = {}
        self._open: dict[int, int] = {}
        self._done: dict[int, bytes] = {}
        self._alive: list[Any] = []

    def digest(self, obj: Any) -> str:
        """Return the digest of the object as hex digits. It does not depend on memory addresses."""
        try:
            data = self.encode(obj)
        except RecursionError:  # the pickler can nest deeper than this walk
            data = self._by_pickle(obj)
        return hashlib.blake2b(data, digest_size=20).hexdigest()

    def encode(self, obj: Any) -> bytes:
        """Return bytes that are equal for equal objects."""
        atom = _ATOMS.get(type(obj))
        if atom is not None:
            return atom(obj)
        key = id(obj)
        if key in self._open:
            return b"^%d" % self._open[key]
        if self._may_change(type(obj)):
            known = self._seen.get(key)
            if known is not None:
                return b"again %d" % known[0]
            self._seen[key] = len(self._seen), obj
        done = self._done.get(key)
        if done is not None:
            return done
        self._open[key] = len(self._open)
        self._alive.append(obj)
        try:
            body = self._compound(obj)
        except (RecursionError, MemoryError, VersionMismatch):
            raise
        except Exception:
            body = self._by_pickle(obj)
        finally:
            del self._open[key]
        result = self._done[key] = b"#" + hashlib.blake2b(body, digest_size=20).digest()
        return result

    def _may_change(self, kind: type) -> bool:
        known = self._kinds.get(kind)
        if known is None:
            known = self._kinds[kind] = is_mutable(kind)
        return known

    def _by_pickle(self, obj: Any) -> bytes:
        self.sure = False
        return b"pickle" + dumps_to_compare(obj)

    def _parts(self, tag: str, *parts: Any) -> bytes:
        return b"".join([b"(%d" % len(parts), tag.encode(), *map(self.encode, parts)])

    def _compound(self, obj: Any) -> bytes:
        kind = type(obj)
        known = _COMPOUNDS.get(kind)
        if known is not None:
            return known(self, obj)
        if issubclass(kind, type):
            return self._class(obj)
        if issubclass(kind, staticmethod | classmethod):
            return self._wrapped(obj)
        return self._other(obj)

    def _sequence(self, obj: tuple[Any, ...] | list[Any]) -> bytes:
        if isinstance(obj, list):
            self._guard_items(obj)
        if len(obj) > _ITEMS_GUARDED_MAX and _only_atoms(obj):
            return type(obj).__name__.encode() + marshal.dumps(obj, _MARSHAL_BY_VALUE)
        if len(obj) > _ITEMS_WALKED_MAX and not _holds_sets(obj):
            return self._by_pickle(obj)
        return self._parts(type(obj).__name__, *obj)

    def _guard_items(self, obj: list[Any] | dict[Any, Any]) -> None:
        if len(obj) <= _ITEMS_GUARDED_MAX:
            self.guards.append(ItemsGuard(obj))
        else:
            self.sure = False

    def _dict(self, obj: dict[Any, Any]) -> bytes:
        self._guard_items(obj)
        if len(obj) > _ITEMS_GUARDED_MAX and _only_atoms(obj.keys()) and _only_atoms(obj.values()):
            return b"dict" + marshal.dumps(obj, _MARSHAL_BY_VALUE)
        if len(obj) > _ITEMS_WALKED_MAX and not _holds_sets(obj.values()):
            return self._by_pickle(obj)
        return self._parts("dict", *(part for item in obj.items() for part in item))

    def _in_order(self, tag: str, named: dict[str, Any]) -> bytes:
        return self._parts(tag, *(part for item in named.items() for part in item))

    def _sorted(self, tag: str, named: dict[str, Any]) -> bytes:
        return self._parts(tag, *(part for item in sorted(named.items()) for part in item))

    def _set(self, obj: set[Any] | frozenset[Any]) -> bytes:
        if isinstance(obj, set):
            self.sure = False
        if len(obj) > _ITEMS_GUARDED_MAX and _only_atoms(obj, 0):
            return type(obj).__name__.encode() + marshal.dumps(obj, _MARSHAL_BY_VALUE)  # marshal sorts sets
        return type(obj).__name__.encode() + b"".join(sorted(map(self.encode, obj)))

    def _buffer(self, obj: bytearray | pickle.PickleBuffer) -> bytes:
        self.sure = False
        raw = obj.raw() if isinstance(obj, pickle.PickleBuffer) else obj
        # SHA-256 has processor instructions: hashing takes less than half of the time of pickling a frame.
        return b"buffer" + hashlib.sha256(raw).digest()

    def _code(self, code: types.CodeType) -> bytes:
        key = id(code)
        known = _codes.get(key)
        if known is None:
            body = self._code_parts(code)
            known = _codes[key] = hashlib.blake2b(body, digest_size=20).digest()
            weakref.finalize(code, _codes.pop, key, None).atexit = False
        return known

    def _code_parts(self, code: types.CodeType) -> bytes:
        # Left out: file name, first line, line table. The exception table is included, because it belongs to the
        # bytecode.
        return self._parts(
            "code",
            code.co_code,
            code.co_consts,
            code.co_names,
            code.co_varnames,
            code.co_freevars,
            code.co_cellvars,
            code.co_argcount,
            code.co_posonlyargcount,
            code.co_kwonlyargcount,
            code.co_flags,
            code.co_qualname,
            code.co_exceptiontable,
            sys.version_info[:2],
        )

    def _named(self, obj: Any) -> bytes | None:
        """Return the name of a by-reference object; name and module digest of a by-value module's member; else None."""
        named = find_named(obj)
        if named is None:
            return None
        if named[0] is Travel.SOURCE:
            self.guards.append(MemberGuard(obj))
        return self._member(*named)

    def _member(self, kind: Travel, module_name: str, qualname: str) -> bytes:
        if kind is Travel.REFERENCE:
            return self._parts("name", module_name, qualname)
        bundle = bundle_of(module_name)
        self.guards.append(BundleGuard(bundle))
        return self._parts("member", module_name, bundle.digest, qualname)

    def _function(self, function: types.FunctionType) -> bytes:
        if is_call(function.__code__):
            return self._compound(vars(function)["__wrapped__"])
        named = self._named(function)
        if named is not None:
            return named
        self.places.add(place_of(function.__code__))
        registry = dispatched(function)
        if registry is not None:
            self.sure = False
            items = sorted(self.encode(cls) + self.encode(value) for cls, value in registry.items())
            return b"dispatch" + b"".join(items) + self._sorted("attributes", added_attributes(function))
        home = home_module(function.__globals__)
        used: dict[str, Any] = {}
        wanted: tuple[str, ...] = ()
        imported: tuple[str, ...] = ()
        if home is None:
            used, wanted = used_globals(function)
            imports = imports_of(function, used)
            bundles = imports.bundles if imports is not None else ()
            self.guards += map(BundleGuard, bundles)
            imported = tuple(f"{each.name} {each.digest}" for each in bundles)
            if imports is not None and imports.folder:
                imported = (*imported, f"in {imports.folder}")  # another program may have an equal function
        self.guards.append(FunctionGuard(function, [*used, *wanted]))
        absent = absent_submodules(used.values(), function.__code__)
        if absent:
            self.guards.append(SubmodulesGuard(absent))
        sure = self.sure
        parts = self._parts("cells", *map(cell_state, function.__closure__ or ()))
        if home is not None and home.__name__ in _LIBRARY_STATE:
            self.sure = sure
        return self._parts(
            "function",
            function.__code__,
            function.__name__,
            function.__qualname__,
            function.__module__,
            function.__defaults__,
            parts,
            home,
            wanted,
            imported,
            function.__doc__,
            tuple(map(self._version, used_submodules(function, home is None))),
            self._sorted("globals", used),
            self._sorted("keywords", function.__kwdefaults__ or {}),
            self._sorted("attributes", function.__dict__),
            self._in_order("annotations", annotations_of(function)),
        )

    def _version(self, module: types.ModuleType) -> str:
        """Return the name of a module, and which version of it this is if it travels by value."""
        if content_of(module) is not None or travel(module.__name__) is not Travel.SOURCE:
            return module.__name__
        bundle = bundle_of(module.__name__)
        self.guards.append(BundleGuard(bundle))
        return f"{module.__name__} {bundle.digest}"

    def _class(self, cls: type) -> bytes:
        named = self._named(cls)
        if named is not None:
            return named
        if is_made_in_c(cls):
            return self._parts("type", cls.__qualname__)
        self.guards.append(ClassGuard(cls))
        if not self._has_classes:
            self._has_classes = True
            self.guards.append(RegistrationsGuard())
        members: dict[str, Any] = {}
        extras: dict[str, Any] = {}
        attributes = without_seeds(class_attributes(cls))
        state = state_of_class(cls)
        self.has_state = self.has_state or bool(state)
        if not self._with_state:
            attributes = {name: value for name, value in attributes.items() if name not in state}
        if isinstance(cls, enum.EnumMeta):
            members = enum_members(cls)
            extras = enum_extras(cls)
            self.guards.append(MembersGuard(cls))
            if (boundary := vars(cls).get("_boundary_")) is not None:  # what becomes of bits that have no name
                attributes = {**attributes, "_boundary_": boundary}
        return self._parts(
            "class",
            cls.__qualname__,
            cls.__name__,
            cls.__module__,
            type(cls),
            cls.__bases__,
            tuple(members.items()),
            tuple((name, tuple(sorted(extra.items()))) for name, extra in extras.items()),
            (self._in_order if self.in_order else self._sorted)("attributes", attributes),
            self._sorted("hints", class_hints(cls)),
            tuple(sorted(map(self.encode, [*registered_subclasses(cls), *registered_with(cls)]))),
            struct_digested(cls),
        )

    def _module(self, module: types.ModuleType) -> bytes:
        content = content_of(module)
        if content is not None:
            self.sure = False
            return self._sorted("made module", content)
        return self._parts("module", *self._version(module).split(" "))

    def _cell(self, cell: types.CellType) -> bytes:
        self.sure = False  # this cell was reached by another way than through its function
        return self._parts("cell", *cell_state(cell))

    def _partial(self, obj: functools.partial[Any]) -> bytes:
        if not is_template(obj):
            self.guards.append(AttributesGuard(obj))
        attributes = [obj.__dict__] if obj.__dict__ else []
        return self._parts("partial", obj.func, obj.args, obj.keywords, *attributes)

    def _wrapped(self, obj: staticmethod[Any, Any] | classmethod[Any, Any, Any]) -> bytes:
        return self._parts(type(obj).__name__, obj.__func__)

    def _method(self, obj: types.MethodType) -> bytes:
        named = find_named_method(obj) if hasattr(obj, "__name__") else None
        if named is not None:
            self.sure = self.sure and named[0] is Travel.REFERENCE
            return self._member(*named)
        return self._parts("method", obj.__func__, obj.__self__)

    def _mark(self, obj: object, *parts: Any) -> bytes:
        """Encode an object that is compared by identity: its key is another one in each session."""
        if key := key_of_mark(obj):
            self.marks.add(key)
        return self._parts("mark", *parts)

    def _cached(self, obj: Any) -> bytes:
        self.guards.append(AttributesGuard(obj))
        return self._other(obj)

    def _other(self, obj: Any) -> bytes:
        """Encode any other object by the reduction that pickle would use."""
        if is_numpys_chance(obj):
            return self._parts("name", "numpy.random.mtrand", "_rand")
        known = cannot_change(obj)
        reduced: Any = NotImplemented
        if is_array(type(obj)) and not obj.flags.forc:  # it has gaps between its items
            obj = obj.copy(order="C")  # the pickler sends it so, and its buffer can be hashed
        reducer = REDUCERS.get(type(obj))
        if reducer is None:
            reducer = inherited_reducer(type(obj)) or of_library(type(obj))
        if reducer is not None:
            reduced = reducer(None, obj)  # type: ignore[arg-type] # those called here do not use the pickler
        if reduced is NotImplemented:
            reduced = reduced_by_pickle(obj)
        holds = isinstance(obj, HOLDERS)
        owned = b""
        if known and not holds and not isinstance(reduced, str):
            encoded = [(each, self.encode(each)) for each in owned_by(reduced[:3])]
            owned = b"".join(data for each, data in encoded if self._may_change(type(each)))
        sure, before = self.sure, len(self.guards)
        if isinstance(reduced, str):
            if not reduced.replace(".", "").isidentifier():  # "f (vectorized)" of `numpy.frompyfunc`
                raise pickle.PicklingError(f"cannot pickle {reduced!r}")
            module = getattr(obj, "__module__", None)
            way = travel(module) if isinstance(module, str) else Travel.REFERENCE
            self.sure = sure and known
            if way is Travel.SOURCE:
                return self._member(way, str(module), reduced)
            if way is Travel.LOOSE:
                self.sure = False
                return self._mark(obj, type(obj), *without_locks(obj.__getstate__()))
            return self._parts("global", module, reduced)
        reduced = (*reduced, None, None, None)
        parts = (reduced[0], reduced[1], reduced[2], *(tuple(each) for each in reduced[3:5] if each is not None))
        result = self._parts("reduced", *parts)
        if not known:
            self.sure = False
        elif not holds:
            # The parts can change, but they were made for this walk.
            self.sure = sure
            self.guards[before:] = [guard for guard in self.guards[before:] if not isinstance(guard, ItemsGuard)]
        return result + owned


_COMPOUNDS: dict[type, Callable[[Digester, Any], bytes]] = {
    tuple: Digester._sequence,
    list: Digester._sequence,
    dict: Digester._dict,
    set: Digester._set,
    frozenset: Digester._set,
    bytearray: Digester._buffer,
    pickle.PickleBuffer: Digester._buffer,
    types.CodeType: Digester._code,
    types.FunctionType: Digester._function,
    types.ModuleType: Digester._module,
    types.CellType: Digester._cell,
    types.MethodType: Digester._method,
    functools.partial: Digester._partial,
    functools._lru_cache_wrapper: Digester._cached,
    staticmethod: Digester._wrapped,
    classmethod: Digester._wrapped,
    property: lambda digester, obj: digester._parts("property", obj.fget, obj.fset, obj.fdel, obj.__doc__),
    type: Digester._class,
    object: Digester._mark,
    contextvars.ContextVar: lambda digester, obj: digester._mark(obj, obj.name, *default_of(obj)),
}
