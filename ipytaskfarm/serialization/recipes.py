"""Recipes: all that the results of a function depend on beside its arguments, part by part.

The parts make the first half of a cache key, and differences between two recipes explain why a key changed.  A part has
a digest of its own content; where the content refers to another part, the name of that part stands in its place.  So a
change of a helper changes the helper's part and not that of each caller.

Not in a recipe: file names, lines and numbers of cells, comments, addresses, the order of sets, and docstrings, unless
code of the function asks for docstrings.
"""

from __future__ import annotations

import builtins
import functools
import hashlib
import shlex
import sys
import types
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import msgspec

from ..core.errors import UnpickleableException
from ..core.messages.result_cache import KeyPart, Recipe
from ..core.messages.task_types import Function
from ..system.user_code import cell_of
from .cache import KeptPacks, hold
from .code_objects import code_digest
from .digests import Digester, Seen
from .distributions import version_of
from .file_arguments import File
from .function_imports import asks_by_name, imports_of, is_import_call, names_imported
from .function_parts import annotations_of, closure_of, defaults_of
from .global_names import mentioned, nested_codes, passes_modules, whole_uses
from .guards import BundleGuard, FunctionGuard
from .module_bundles import Bundle, bundle_of
from .module_origin import Travel, home_module, is_compiled, travel
from .module_slices import ALL, reached_from
from .named_members import place_of
from .outside_inputs import full_name, outside_inputs
from .pickler import (
    PYTHON,
    content_of,
    dispatched,
    dumps_to_compare,
    find_named,
    is_made_in_c,
    used_globals,
    used_submodules,
)
from .rebuild import is_call
from .references import Ref
from .shared_state import refuse_key_of

_OWN = __name__.partition(".")[0]
_SHOWN_MAX = 40
_encode = msgspec.json.Encoder().encode
_LIBRARY_STATE = ("dataclasses", "reprlib")
"""Libraries with functions, such as the ``__repr__`` of dataclasses, whose closures hold what is in use right now."""

Content: TypeAlias = tuple[tuple[str, str], ...]
"""(top-level module that goes by name, digest of its files) for each that has no version: an engine compares them."""


class FunctionRecipe(NamedTuple):
    """The recipe of a function, ready to be sent."""

    name: str
    packed: Function
    """Its digest and its encoded parts."""
    warnings: tuple[str, ...]
    """What the function asks for that no key can hold: "the time (time.time), in `f`"."""
    content: Content = ()
    sentinels: tuple[object, ...] = ()
    """The plain objects among the values, of which an argument may be one."""


_recipes = KeptPacks()


def recipe_of(function: Any) -> FunctionRecipe:
    """Return the recipe of a function as it is now.  An unchanged function costs a few microseconds.

    Raises:
        UnpickleableException: an object in it has no digest.
    """
    entry = _recipes.get(function)
    if entry is not None and entry.guards is not None and hold(entry.guards):
        known: FunctionRecipe = entry.value
        return known
    walk = _Walk()
    try:
        made = walk.recipe(function)
    except TypeError as error:
        if isinstance(error, UnpickleableException):
            raise
        raise UnpickleableException(f"{walk.first_label()}: its results cannot be kept ({error})") from error
    _recipes.put(function, walk.guards if walk.sure else None, made)
    return made


class ArgumentDigests:
    """Digests of the arguments of one call, by their content.

    One mutable object at two places is not the same as two equal ones, because a change of it is seen at both places.
    """

    def __init__(self, number: Callable[[Ref], int] | None = None, sentinels: tuple[object, ...] = ()) -> None:
        """Create it.

        number: returns a number for a `Ref` in an argument: the result takes its place later.
        sentinels: see `FunctionRecipe.sentinels`.
        """
        self._number = number
        self._seen: Seen = {id(each): (place, each) for place, each in enumerate(sentinels)}
        self.content: dict[str, str] = {}
        """The digests of modules by name whose objects are among the arguments, see `Content`."""

    def of(self, value: Any) -> tuple[str, str, str]:
        """Return the digest of an argument, and the name and the digest of the code that it brings, or "" and "".

        The digest of a small number is its text.

        Raises:
            OSError: a `File` in it cannot be read.
        """
        short = _short(value)
        if short:
            return short, "", ""
        if type(value) in _TEXTS:
            return hashlib.blake2b(repr(value).encode("utf-8", "backslashreplace"), digest_size=20).hexdigest(), "", ""
        walk = _Walk(self._number)
        digest = walk.digest_of(value, "", self._seen)
        walk.go_on()
        walk.add_packages(only_content=True)
        self.content |= walk.content
        return (digest, walk.first_label(), walk.key()) if walk.parts else (digest, "", "")


_TEXTS = (str, bytes)


class _Walk:
    """One walk over everything that a function reaches."""

    def __init__(self, number: Callable[[Ref], int] | None = None) -> None:
        """Create it; `number` returns the number of a reference to another task's result."""
        self._number = number
        self.parts: dict[tuple[str, str, str], KeyPart] = {}
        self.guards: list[Any] = []
        self.sure = True
        self.warnings: dict[str, None] = {}
        self._names: dict[int, str] = {}
        self._taken: dict[str, int] = {}
        self._alive: list[Any] = []
        self._waiting: deque[tuple[Any, str, str]] = deque()
        self._modules: dict[str, tuple[Bundle, set[str], str]] = {}
        self._tops: dict[str, str] = {}
        self.content: dict[str, str] = {}
        self._seen: Seen = {}
        """The mutable objects among the values of all names: one of them under two names is not two equal ones."""
        self._values: dict[tuple[str, str, int], str] = {}
        """(kind, name, address) -> digest, of values that several functions have under one name."""
        self._same: dict[int, str] = {}
        """Address -> digest, of values that have it under each name: no mutable object is first seen in them."""
        self._spaces: dict[int, int] = {}
        """Address of the globals of a function -> their number: two modules or namespaces may have one name."""
        self._reads_texts = False

    def recipe(self, function: Any) -> FunctionRecipe:
        name = _name_of(function)
        self.add("callable", name, self.digest_of(function, ""), "")
        self.go_on()
        if self._reads_texts:
            self._add_docstrings()
        self.add_packages()
        self.add("python", "Python", PYTHON, "")
        parts = tuple(sorted(self.parts.values(), key=lambda part: (part.kind, part.name, part.user, part.digest)))
        return FunctionRecipe(
            name,
            Function(self.key(), _encode(Recipe(parts))),
            tuple(self.warnings),
            tuple(self.content.items()),
            tuple(each for _, each in self._seen.values() if type(each) is object),
        )

    def _add_docstrings(self) -> None:
        for each in self._alive:
            label = self._names.get(id(each))
            if label is not None and isinstance(each.__doc__, str):
                text = each.__doc__.encode("utf-8", "surrogatepass")
                self.add("docstring", label, hashlib.sha256(text).hexdigest(), "")

    def key(self) -> str:
        """Return the digest of all parts."""
        keyed = sorted((part.kind, part.name, part.digest) for part in self.parts.values())
        return hashlib.sha256(_encode(keyed)).hexdigest()

    def first_label(self) -> str:
        """Return the name of the class or function that was reached first, else that of any part."""
        part = next((part for part in self.parts.values() if part.kind in ("class", "function")), None)
        return (part or next(iter(self.parts.values()))).name

    def go_on(self) -> None:
        """Walk through all parts that were referred to."""
        while self._waiting or self._modules:
            if self._waiting:
                found, label, user = self._waiting.popleft()
                if isinstance(found, type):
                    self._class(found, label, user)
                else:
                    self._function(found, label, user)
            else:
                _, (bundle, names, user) = self._modules.popitem()
                self._slice(bundle, frozenset(names), user)

    def add(self, kind: str, name: str, digest: str, user: str, place: str = "") -> None:
        self.parts.setdefault((kind, name, digest), KeyPart(kind, name, digest, user, place))

    def refer(self, obj: Any, user: str) -> bytes | None:
        """Return what stands for a function, class or module that is a part; None for any other object."""
        if type(obj) is Ref:
            if self._number is None:
                return None  # the pickler refuses it, and says why
            return f"result {self._number(obj)} {obj.name!r}".encode()
        if type(obj) is File:
            self.sure = False  # its content may change
            return f"file {obj} {obj.digest()}".encode("utf-8", "surrogateescape")
        if isinstance(obj, types.ModuleType):
            return self._module(obj, user)
        if isinstance(obj, types.FunctionType):
            while is_call(obj.__code__):
                obj = vars(obj)["__wrapped__"]
            if dispatched(obj) is not None and find_named(obj) is None:
                return None  # its registry is walked
        elif not isinstance(obj, type) or is_made_in_c(obj):
            refuse_key_of(obj)
            self._note_reference(obj, user)
            return None
        named = find_named(obj)
        if named is None:
            return self._part(obj, user)
        kind, module_name, qualname = named
        if kind is Travel.SOURCE:
            self._want(module_name, [qualname.partition(".")[0]], user)
            return f"member {module_name} {qualname}".encode()
        self._use_module(module_name, user)
        return f"name {module_name} {qualname}".encode()

    def _part(self, obj: Any, user: str) -> bytes:
        label = self._names.get(id(obj))
        if label is None:
            label = obj.__qualname__.replace("<locals>.", "")
            number = self._taken[label] = self._taken.get(label, 0) + 1
            label = label if number == 1 else f"{label}#{number}"
            self._names[id(obj)] = label
            self._alive.append(obj)
            self._waiting.append((obj, label, user))
        return f"part {label}".encode()

    def _note_reference(self, obj: Any, user: str) -> None:
        module_name = getattr(obj, "__module__", None) if callable(obj) else type(obj).__module__
        if isinstance(module_name, str) and travel(module_name) is not Travel.SOURCE:
            self._use_module(module_name, user)

    def _use_module(self, name: str, user: str) -> None:
        top = name.partition(".")[0]
        if top not in sys.stdlib_module_names and top not in ("__main__", "__mp_main__", _OWN, "builtins"):
            self._tops.setdefault(top, user)

    def _module(self, module: types.ModuleType, user: str, names: Iterable[str] = (ALL,)) -> bytes | None:
        """Return what stands for a module; None if it travels with its content.

        names: those that are used of it.  Of one that is kept in a value, or passed on, that can be any.
        """
        if content_of(module) is not None:
            return None
        if travel(module.__name__) is Travel.SOURCE:
            self._want(module.__name__, names, user)
        else:
            self._use_module(module.__name__, user)
        return f"module {module.__name__}".encode()

    def _want(self, module_name: str, names: Iterable[str], user: str) -> None:
        known = self._modules.get(module_name)
        if known is None:
            bundle = bundle_of(module_name)
            self.guards.append(BundleGuard(bundle))
            known = self._modules[module_name] = (bundle, set(), user)
        known[1].update(names)

    def digest_of(self, value: Any, user: str, seen: Seen | None = None) -> str:
        """Return the digest of a value; functions, classes and modules in it become parts.

        `seen` holds what other values of the same call have; those of a function are used together in any case.
        """
        digester = _PartDigester(self, user, self._seen if seen is None else seen)
        try:
            digest = digester.digest(value)
        except Exception:
            place = place_of(value)
            if place is None:
                raise
            self._want(place[0], place[1:], user)
            return "member " + ".".join(place)
        self.guards += digester.guards
        self.sure = self.sure and digester.sure
        return digest

    # -- functions

    def _function(self, function: types.FunctionType, label: str, user: str) -> None:
        code = function.__code__
        home = home_module(function.__globals__)
        if home is not None and travel(home.__name__) is Travel.REFERENCE:  # a wrapper made by a library's decorator
            self._use_module(home.__name__, user)
            used, wanted = dict[str, Any](), tuple[str, ...]()
        else:
            used, wanted = used_globals(function)
        found = used
        names = {*_names_used(code), *((ALL,) if asks_by_name(code) else ())}
        self._reads_texts = self._reads_texts or not names.isdisjoint(_ASK_FOR_TEXTS)
        # One that uses builtins alone travels without its module.
        of_module = used or ALL in names or not vars(builtins).keys() >= {*wanted}
        if of_module and home is not None and travel(home.__name__) is Travel.SOURCE:
            # The engine's function has the globals of the module's source there, not those of this session.
            self._want(home.__name__, names, label)
            used, wanted = {}, ()
        self.guards.append(FunctionGuard(function, [*used, *wanted]))
        digester = _PartDigester(self, label)
        state = (function.__name__, function.__qualname__, [*annotations_of(function).items()], code)
        self.add("function", label, digester.digest(state), user, cell_of(code.co_filename) or "")
        self.sure = self.sure and digester.sure
        for name, value in defaults_of(function):
            self._value("default", f"{name} of `{label}`", value, label)
        free = dict(closure_of(function))
        sure = self.sure
        for name, value in sorted(free.items()):  # several functions of one code have variables of one name
            self._named_value("closure variable", name, f"{name} of `{label}`", value, code, label)
        if home is not None and home.__name__ in _LIBRARY_STATE:
            self.sure = sure
        space = self._space(function.__globals__) if used or wanted else ""
        for name, value in used.items():
            self._named_value("global", name, f"{name}{space}", value, code, label)
        for name in wanted:
            if name not in vars(builtins):
                self.add("engine name", f"{name}{space}", "", label)
        for name, value in sorted(vars(function).items()):
            if name != "__wrapped__" or not isinstance(value, types.FunctionType):
                self._value("attribute", f"{name} of `{label}`", value, label)
            else:
                self.refer(value, label)
        self._imports(function, found, label)
        self._look_outside(function, {**found, **free}, label)

    def _space(self, names: dict[str, Any]) -> str:
        """Return what tells the names of these globals from equal names of other ones; "" for the first."""
        number = self._spaces.get(id(names))
        if number is None:
            number = self._spaces[id(names)] = len(self._spaces) + 1
            self._alive.append(names)
        return f"#{number}" if number > 1 else ""

    def _value(self, kind: str, name: str, value: Any, user: str) -> None:
        """Add a value as a part, unless it is a part by itself under another name."""
        short = _short(value)
        if short:
            self.add(kind, name, short, user)
            return
        reference = self.refer(value, user)
        if reference is not None:
            self.add(kind, name, reference.decode(), user)
            return
        place = kind, name, id(value)
        known = self._values.get(place)
        if known is None:
            known = self._values[place] = self._digest_again(value, user)
        self.add(kind, name, known, user)

    def _digest_again(self, value: Any, user: str) -> str:
        """Return the digest of a value that may have had one before, under another name."""
        known = self._same.get(id(value))
        if known is None:
            seen = len(self._seen)
            known = self.digest_of(value, user)
            self._alive.append(value)
            if len(self._seen) == seen:
                self._same[id(value)] = known
        return known

    def _named_value(self, kind: str, name: str, full: str, value: Any, code: types.CodeType, label: str) -> None:
        """Add the value of a name that a code looks up; of a module only what the code may use of it.

        full: the name that tells the value from those of other functions.
        """
        if isinstance(value, types.ModuleType) and name not in whole_uses(code):
            reference = self._module(value, label, _names_used(code))
            if reference is not None:
                self.add(kind, full, reference.decode(), label)
                return
        self._value(kind, full, value, label)

    def _imports(self, function: types.FunctionType, used: dict[str, Any], label: str) -> None:
        code = function.__code__
        mentioned = _names_used(code)
        imports = imports_of(function, used)
        if imports is not None:
            modules = frozenset(bundle.name for bundle in imports.bundles)
            called = asks_by_name(code) or any(map(is_import_call, used.values()))
            wanted = {ALL} if called or passes_modules(code, modules) else mentioned
            for bundle in imports.bundles:
                self._want(bundle.name, wanted, label)
        for module in used_submodules(function):
            if travel(module.__name__) is Travel.SOURCE:
                self._want(module.__name__, mentioned, label)
        for name in names_imported(function, used):
            if _is_installed(name):
                self._use_module(name, label)

    def _look_outside(self, function: types.FunctionType, values: dict[str, Any], label: str) -> None:
        of_builtins = {"__import__": "builtins.__import__"}
        full = lambda name: full_name(values[name]) if name in values else of_builtins.get(name, "")  # noqa: E731
        is_text = lambda name: isinstance(values.get(name), str | tuple | list | dict)  # noqa: E731
        for what in outside_inputs(function.__code__, full, is_text):
            self.warnings[f"{what}, in `{label}`"] = None

    # -- classes

    def _class(self, cls: type, label: str, user: str) -> None:
        digester = _PartDigester(self, label)
        digester.root = cls
        digest = digester.digest(cls)
        self.guards += digester.guards
        self.sure = self.sure and digester.sure
        self.add("class", label, digest, user)

    def attribute(self, name: str, value: Any, label: str) -> None:
        """Add an attribute of a class."""
        self._value("attribute", f"{name} of class `{label}`", value, label)

    # -- modules and distributions

    def _slice(self, bundle: Bundle, names: frozenset[str], user: str) -> None:
        reached = reached_from(bundle, names)
        for module, name, definition in reached.definitions:
            whole = f"{module}.{name}" if name else module
            self.add(definition.kind, whole, definition.digest, user, "" if not name else f"line {definition.line}")
            self._reads_texts = self._reads_texts or not definition.uses.isdisjoint(_ASK_FOR_TEXTS)
        for module, member in reached.members.items():
            if self._reads_texts:
                self.add("source of module", module, hashlib.sha256(member.source).hexdigest(), user)
            for path, content in member.data.items():
                self.add("data file", f"{module}/{path}", hashlib.sha256(content).hexdigest(), user)
            if is_compiled(member.file):
                content = Path(member.file).read_bytes()
                self.add("compiled module", module, hashlib.sha256(content).hexdigest(), user)
            if member.arguments:
                text = shlex.join(member.arguments[1:])
                digest = text if len(text) <= _SHOWN_MAX else hashlib.sha256(text.encode()).hexdigest()
                self.add("sys.argv of module", module, digest, user)
        for name in reached.outside:
            if _is_installed(name):
                self._use_module(name, user)

    def add_packages(self, only_content: bool = False) -> None:
        """Add the versions of the distributions that were reached; only_content: only of modules without a version."""
        waiting = [*self._tops.items()]
        while waiting:
            top, user = waiting.pop()
            version = version_of(top)
            if version is None or (only_content and not version.content):
                continue
            self.guards.append(version)
            self.add("package", version.distribution, version.text, user)
            if version.content:  # nobody gives it another version when a module changes that it imports
                if top != "__main__":  # an engine has another one, from which no task takes anything
                    self.content[top] = version.content
                for each in sorted(version.imports):
                    if each not in self._tops and each not in sys.stdlib_module_names and each != _OWN:
                        self._tops[each] = user
                        waiting.append((each, user))


class _PartDigester(Digester):
    """A digester in whose result parts stand for themselves by name."""

    in_order = True

    def __init__(self, walk: _Walk, user: str, seen: Seen | None = None) -> None:
        super().__init__(seen)
        self._walk = walk
        self._user = user
        self.root: type | None = None
        """The class that is taken apart; its attributes become parts of their own."""

    def encode(self, obj: Any) -> bytes:
        if type(obj) not in _PLAIN and obj is not self.root:
            reference = self._walk.refer(obj, self._user)
            if reference is not None:
                return reference
        return super().encode(obj)

    def _member(self, kind: Travel, module_name: str, qualname: str) -> bytes:
        if kind is Travel.REFERENCE:
            return super()._member(kind, module_name, qualname)
        self._walk._want(module_name, [qualname.partition(".")[0]], self._user)
        return f"member {module_name} {qualname}".encode()

    def _by_pickle(self, obj: Any) -> bytes:
        self.sure = False
        refer = self._walk.refer
        return b"pickle" + dumps_to_compare(obj, lambda it: None if it is obj else refer(it, self._user))

    def _compound(self, obj: Any) -> bytes:
        kind = type(obj)
        if kind is types.CodeType:
            return code_digest(obj, self.encode)
        if kind is set or kind is frozenset:
            self._number_parts(obj)
        if kind is property:
            return self._parts("property", obj.fget, obj.fset, obj.fdel)  # its docstring is that of fget
        if kind.__qualname__ == "Decorator" and kind.__module__ == _PYDANTIC_DECORATORS:
            # Left out: cls_ref, the name and the address of the class.
            return self._parts("validator", obj.cls_var_name, obj.func, obj.shim, obj.info)
        return super()._compound(obj)

    def _number_parts(self, items: set[Any] | frozenset[Any]) -> None:
        """Number the parts of one name in a set by their content: a set has no order that lasts."""
        parts = [each for each in items if isinstance(each, types.FunctionType | type)]
        if len(parts) > 1:
            for each in sorted(parts, key=lambda each: Digester().digest(each)):
                self._walk.refer(each, self._user)

    def _in_order(self, tag: str, named: dict[str, Any]) -> bytes:
        if self.root is None or tag != "attributes" or self._open.keys() != {id(self.root)}:
            return super()._in_order(tag, named)
        own = {name: value for name, value in named.items() if name not in _DERIVED}
        for name, value in sorted(own.items()):
            self._walk.attribute(name, value, self._user)
        return self._parts(tag, *own)


_DERIVED = frozenset(
    {
        "__doc__", "__firstlineno__", "__pydantic_complete__", "__pydantic_core_schema__", "__pydantic_serializer__",
        "__pydantic_setattr_handlers__", "__pydantic_validator__",
    }
)  # fmt: skip
"""Attributes of classes that texts and lines of the source make, or that pydantic makes of the other attributes.

The latter hold addresses, and some are filled when the class is used.
"""
_PYDANTIC_DECORATORS = "pydantic._internal._decorators"

_PLAIN = frozenset({type(None), bool, int, float, complex, str, bytes, tuple, list, dict})


def _name_of(function: Any) -> str:
    while isinstance(function, functools.partial):
        function = function.func
    name = getattr(function, "__qualname__", "") or type(function).__qualname__
    return str(name).replace("<locals>.", "")


def _names_used(code: types.CodeType) -> set[str]:
    """Return which names of a module a code may use; `ALL` among them if it may compute them."""
    constants = (each for part in nested_codes(code) for each in part.co_consts)
    names = {*mentioned(code), *(text for text in constants if isinstance(text, str) and text.isidentifier())}
    return names if names.isdisjoint(_COMPUTES) else {*names, ALL}


_ASK_FOR_TEXTS = ("__doc__", "getdoc", "getsource", "getsourcelines")
_COMPUTES = ("getattr", "globals", "vars", "__dict__", "eval", "exec", "dir", "attrgetter", "getmembers")


def _short(value: Any) -> str:
    """Return a small number as text, which a person compares at a glance; "" for other values."""
    if type(value) in (int, float, bool) or value is None:
        text = repr(value)
        return text if len(text) <= _SHOWN_MAX else ""
    return ""


def _is_installed(name: str) -> bool:
    """Return whether an import of this name means an installed module."""
    top = name.partition(".")[0]
    module = sys.modules.get(top)
    return module is None or travel(top) is not Travel.SOURCE
