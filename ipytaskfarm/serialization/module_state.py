"""Reads from a module's source what its globals, classes and objects hold after its import.

Only what the source alone decides is expected: literals, functions and methods without decorators, and objects whose
attributes are literals.  What the module itself may change later (a counter, a cache, a registry) is not expected to
stay, but for what its functions take over from their parameters, as in ``def configure(n): global N; N = n``: that is
the program's setting, made through a function.
"""

from __future__ import annotations

import ast
import functools
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any, NamedTuple

PLAIN = (bool, int, float, complex, str, bytes, type(None))
CHANGING_CALLS = frozenset((
    "add", "append", "appendleft", "clear", "discard", "extend", "insert", "pop", "popitem", "remove", "setdefault",
    "sort", "update",
))  # fmt: skip
_READING_CALLS = frozenset(("copy", "count", "get", "index", "items", "keys", "values"))
_READING_FUNCTIONS = frozenset((
    "all", "any", "bool", "dict", "enumerate", "frozenset", "isinstance", "len", "list", "max", "min", "print", "repr",
    "set", "sorted", "str", "sum", "tuple", "zip",
))  # fmt: skip
_NO_LITERAL = object()
_NODES_MAX = 500
"""A longer literal is a table, whose comparison for each function that is packed would take too long."""
_LEAVES = frozenset((ast.Constant, ast.Load, ast.Store, ast.Del, ast.Pass, ast.arg))
_Function = ast.FunctionDef | ast.AsyncFunctionDef


class Defined(str):
    """The name of a function or method that the source defines, in place of a value."""

    __slots__ = ()


Expected = tuple[str, str, Any]
"""The global by whose attributes the value is found (or ""), its name, and its value or a `Defined`."""


@functools.lru_cache(1)
def parsed(source: bytes) -> ast.Module | None:
    """Return the syntax tree of a source, None if it cannot be parsed.  The last one is kept: several look at it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the author saw the warnings when the module was imported
            return ast.parse(source)
    except (SyntaxError, ValueError, RecursionError):
        return None


@functools.lru_cache(4096)
def state_of(source: bytes) -> tuple[list[Expected], dict[str, dict[str, Any]]]:
    """Return what the source decides, and name and known attributes of each object that has no others."""
    try:
        return _expected_state(parsed(source) or ast.Module([], []))
    except RecursionError:
        return [], {}


@functools.lru_cache(4096)
def seeds_of(source: bytes) -> tuple[str, ...]:
    """Return what a module seeds when it is imported: its generators that functions use, and calls of ``seed``."""
    tree = parsed(source) if b"seed(" in source or b"default_rng(" in source or b"Random" in source else None
    found: list[str] = []
    for statement in tree.body if tree is not None else ():
        name, value = _assigned_value(statement)
        if isinstance(statement, ast.Expr):
            value = statement.value
        if not isinstance(value, ast.Call) or not (value.args or value.keywords):
            continue
        called = ast.unparse(value.func)
        if name is None and called in ("np.random.seed", "numpy.random.seed", "random.seed"):
            found.append(called)
        elif name is not None and called.rpartition(".")[2] in ("default_rng", "RandomState", "Random"):
            assert tree is not None
            functions = (node for node in ast.walk(tree) if isinstance(node, _Function | ast.Lambda))
            if any(_is_name(node, name) for function in functions for node in ast.walk(function)):
                found.append(name)
    return tuple(found)


def _expected_state(tree: ast.Module) -> tuple[list[Expected], dict[str, dict[str, Any]]]:
    names = _Names(tree)
    found: list[Expected] = []
    objects: dict[str, dict[str, Any]] = {}
    classes: dict[str, ast.ClassDef] = {}
    for statement in tree.body:
        name, value = _assigned_value(statement)
        if isinstance(statement, ast.ClassDef) and names.is_kept(statement.name):
            classes[statement.name] = statement
            found += ((statement.name, *each) for each in _of_class(statement, names))
        elif isinstance(statement, _Function) and not statement.decorator_list and names.is_kept(statement.name):
            found.append(("", statement.name, Defined(statement.name)))
        elif name is not None and value is not None and names.is_kept(name):
            literal = _literal(value)
            if literal is not _NO_LITERAL and (isinstance(literal, PLAIN) or not names.is_changed_within(name)):
                found.append(("", name, literal))
            elif (
                isinstance(value, ast.Call)
                and not names.sets_attributes
                and (attributes := _attributes(value, classes)) is not None
            ):
                objects[name] = attributes | dict.fromkeys(names.attributes, _NO_LITERAL)
    return found, objects


def _assigned_value(statement: ast.stmt) -> tuple[str | None, ast.expr | None]:
    if isinstance(statement, ast.Assign) and len(statement.targets) == 1:
        target: ast.expr = statement.targets[0]
    elif isinstance(statement, ast.AnnAssign):
        target = statement.target
    else:
        return None, None
    return (target.id if isinstance(target, ast.Name) else None), statement.value


def _literal(expression: ast.expr) -> Any:
    if sum(1 for _ in islice(ast.walk(expression), _NODES_MAX)) == _NODES_MAX:
        return _NO_LITERAL
    if isinstance(expression, ast.Call) and not expression.args and isinstance(expression.func, ast.Name):
        if expression.func.id == "dict" and all(each.arg for each in expression.keywords):
            values = {each.arg: _literal(each.value) for each in expression.keywords}
            return _NO_LITERAL if _NO_LITERAL in values.values() else values
        empty = {"list": list, "set": set}.get(expression.func.id)
        return _NO_LITERAL if empty is None or expression.keywords else empty()
    try:
        return ast.literal_eval(expression)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return _NO_LITERAL


def _of_class(definition: ast.ClassDef, names: _Names) -> Iterator[tuple[str, Any]]:
    """Yield name and value of the constants and methods in the body of a class."""
    bare = not (definition.decorator_list or definition.bases or definition.keywords)
    bound: dict[str, int] = {}
    for node in definition.body:
        name = node.name if isinstance(node, _Function | ast.ClassDef) else _assigned_value(node)[0]
        bound[name or ""] = bound.get(name or "", 0) + 1
    for node in definition.body:
        name, value = _assigned_value(node)
        if isinstance(node, _Function):
            if bare and not node.decorator_list and bound[node.name] == 1 and node.name not in names.attributes:
                yield node.name, Defined(node.name)
        elif name is not None and value is not None and bound[name] == 1 and name not in names.attributes:
            literal = _literal(value)
            if isinstance(literal, PLAIN):
                yield name, literal


def _attributes(call: ast.Call, classes: Mapping[str, ast.ClassDef]) -> dict[str, Any] | None:
    """Return the attributes of the object that a call makes, as far as the source decides; None: it does not."""
    made = {each.arg: _literal(each.value) for each in call.keywords if each.arg is not None}
    name = str(getattr(call.func, "attr", None) or getattr(call.func, "id", ""))
    if call.args or len(made) < len(call.keywords):
        return None
    if name in ("SimpleNamespace", "Namespace"):
        return made
    definition = classes.get(name)
    if definition is None or definition.bases or definition.keywords:
        return None
    methods = {node.name: node for node in definition.body if isinstance(node, _Function)}
    if definition.decorator_list:
        if not any("dataclass" in ast.unparse(each) for each in definition.decorator_list) or "__init__" in methods:
            return None
        fields = [node for node in definition.body if isinstance(node, ast.AnnAssign) and _is_name(node.target)]
        values = {_assigned_value(field)[0]: field.value for field in fields}
        known = {key: _NO_LITERAL if value is None else _literal(value) for key, value in values.items() if key}
        return known | made | dict.fromkeys(_set_by(methods.values()), _NO_LITERAL)
    if {"__new__", "__getattr__", "__setattr__"} & methods.keys():
        return None
    begins = methods.pop("__init__", None)
    parameters = {argument.arg for argument in begins.args.args} if begins is not None else set()
    known = {}
    for node in begins.body if begins is not None else ():
        target = node.targets[0] if isinstance(node, ast.Assign) and len(node.targets) == 1 else None
        if isinstance(target, ast.Attribute) and _is_name(target.value, "self"):
            known[target.attr] = _literal(node.value) if isinstance(node, ast.Assign) else _NO_LITERAL
    if len(parameters) > 1 or made:  # arguments decide
        known = {key: value for key, value in known.items() if value is not _NO_LITERAL}
    unknown = _set_by(methods.values()) | (_set_by([begins] if begins is not None else []) - known.keys())
    return known | dict.fromkeys(unknown, _NO_LITERAL)


def _set_by(methods: Iterable[ast.AST]) -> set[str]:
    nodes = (node for method in methods for node in ast.walk(method))
    return {node.attr for node in nodes if isinstance(node, ast.Attribute) and not isinstance(node.ctx, ast.Load)}


def _is_name(node: ast.AST, name: str | None = None) -> bool:
    return isinstance(node, ast.Name) and name in (None, node.id)


def is_decided(value: Any) -> bool:
    """Return whether the source decides the value of an attribute."""
    return value is not _NO_LITERAL


class _Names:
    """How often a module binds its names, and which of them its own code changes."""

    def __init__(self, tree: ast.Module) -> None:
        self._bound: dict[str, int] = {}
        self._changed: set[str] = set()
        self.attributes: set[str] = set()
        """Names of attributes that the module assigns to anything but ``self``."""
        self.sets_attributes = False
        """Whether it may assign others, by ``setattr`` and the like."""
        self._look(tree, frozenset(), frozenset())

    def is_kept(self, name: str) -> bool:
        """Return whether one statement of the module alone decides what the name is."""
        return self._bound.get(name) == 1

    def is_changed_within(self, name: str) -> bool:
        """Return whether code of the module may change the content of the object with this name."""
        return name in self._changed

    def _look(self, node: ast.AST, parameters: frozenset[str], shared: frozenset[str]) -> None:
        """Look at a node and all below it.

        parameters: those of the functions around it. shared: the names that the function around it declares global.
        """
        if isinstance(node, _Function | ast.Lambda):
            arguments = node.args
            every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg]
            parameters = parameters | {each.arg for each in every if each is not None}
            shared = frozenset(name for each in ast.walk(node) if isinstance(each, ast.Global) for name in each.names)
        if isinstance(node, _Function | ast.ClassDef):
            self._bind(node.name)
        elif isinstance(node, ast.alias):
            self._bound[node.asname or node.name] = 2
        elif isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
            self._bind(node.id)
        elif isinstance(node, ast.Attribute) and not isinstance(node.ctx, ast.Load):
            if not _is_name(node.value, "self"):
                self.attributes.add(node.attr)
            self._changed |= _named(_root(node))
        elif _takes_over(node, parameters, shared) or _is_setting_call(node, parameters):
            return
        elif isinstance(node, ast.Name):
            self._changed.add(node.id)
            self.sets_attributes = self.sets_attributes or node.id in ("setattr", "vars")
        elif _reaches_inside(node):
            self._changed |= _named(_root(node))
        for child in ast.iter_child_nodes(node):
            if type(child) not in _LEAVES and not _is_read(node, child):
                self._look(child, parameters, shared)

    def _bind(self, name: str) -> None:
        self._bound[name] = self._bound.get(name, 0) + 1


def _reaches_inside(node: ast.AST) -> bool:
    """Return whether a node may change what is inside a global's content: ``N["a"].append(1)``, ``N["a"]["b"] = 1``."""
    return (
        isinstance(node, ast.Attribute | ast.Subscript)
        and isinstance(node.value, ast.Subscript)
        and not (isinstance(node.ctx, ast.Load) and getattr(node, "attr", "get") in _READING_CALLS)
    )


def _takes_over(node: ast.AST, parameters: frozenset[str], shared: frozenset[str]) -> bool:
    """Return whether a statement of a function puts a parameter into a global, or into one's content."""
    if not isinstance(node, ast.Assign) or len(node.targets) > 1:
        return False
    if not (isinstance(node.value, ast.Name) and node.value.id in parameters):
        return False
    target = node.targets[0]
    if isinstance(target, ast.Name):
        return target.id in shared
    if isinstance(target, ast.Subscript):
        key = target.slice
        plain = isinstance(key, ast.Constant) or (isinstance(key, ast.Name) and key.id in parameters)
        return plain and isinstance(target.value, ast.Name) and target.value.id not in parameters
    return isinstance(target, ast.Attribute) and _is_name(target.value) and not _is_name(target.value, "self")


def _is_setting_call(node: ast.AST, parameters: frozenset[str]) -> bool:
    function = node.func if isinstance(node, ast.Call) else None
    return (
        isinstance(node, ast.Call)
        and bool(parameters)
        and isinstance(function, ast.Attribute)
        and function.attr == "update"
        and isinstance(function.value, ast.Name)
        and all(isinstance(each, ast.Name) and each.id in parameters for each in node.args)
        and all(isinstance(each.value, ast.Name) and each.value.id in parameters for each in node.keywords)
    )


def _is_read(node: ast.AST, child: ast.AST) -> bool:
    """Return whether a node only reads the name below it: ``N["a"]``, ``N.get(…)``, ``x in N``, ``for x in N``."""
    if not isinstance(child, ast.Name):
        return (
            isinstance(node, ast.Call)
            and child is node.func
            and isinstance(child, ast.Attribute)
            and child.attr in _READING_CALLS
            and isinstance(child.value, ast.Name)
        )
    if isinstance(node, ast.Subscript):
        return child is node.value and isinstance(node.ctx, ast.Load)
    if isinstance(node, ast.Call):
        return child is not node.func and _is_name(node.func) and getattr(node.func, "id", "") in _READING_FUNCTIONS
    if isinstance(node, ast.For | ast.AsyncFor | ast.comprehension):
        return child is node.iter
    if isinstance(node, ast.keyword):
        return node.arg is None  # of ``f(**N)``
    return isinstance(node, ast.Compare | ast.BoolOp | ast.UnaryOp | ast.If | ast.IfExp | ast.Dict | ast.FormattedValue)


class _Effects(NamedTuple):
    """What code does to names when it runs."""

    changes: frozenset[str]
    """The names that it assigns, or whose content it changes."""
    calls: frozenset[str]
    """The names of what it calls, decorators too; and ``argv`` if it reads the arguments of the program."""


_ModuleEffects = tuple[_Effects, list[tuple[str, _Effects]]]
"""What a module does when it is imported; (name, what it does when it is called) of each of its functions."""


def changed_by_imports(names: Iterable[str], sources: Iterable[bytes]) -> set[str]:
    """Return those of these names that modules assign, or whose content they change, while they are imported.

    Functions that are called meanwhile, by any of the modules, count too: they are followed by their names alone.
    """
    read = _that_matter(set(names), list(sources)).values()
    followed = _followed([on_import for on_import, _ in read], _functions_of(read))
    return {name for effects in followed for name in effects.changes}.intersection(names)


def callers_at_import(names: Iterable[str], sources: Mapping[str, bytes]) -> set[str]:
    """Return the modules that call one of these names while they are imported, also by functions of the modules.

    names: as in `_Effects.calls`. sources: module -> its source.
    """
    wanted = set(names)
    read = _that_matter(wanted, list(sources.values()))
    functions = _functions_of(read.values())
    calling = {
        source
        for source, (on_import, _) in read.items()
        if any(not wanted.isdisjoint(each.calls) for each in _followed([on_import], functions))
    }
    return {name for name, source in sources.items() if source in calling}


def _functions_of(read: Iterable[_ModuleEffects]) -> dict[str, list[_Effects]]:
    functions: dict[str, list[_Effects]] = {}
    for _, of_functions in read:
        for name, effects in of_functions:
            functions.setdefault(name, []).append(effects)
    return functions


def _followed(pending: list[_Effects], functions: Mapping[str, list[_Effects]]) -> list[_Effects]:
    """Return these effects, and those of all functions that are called by them."""
    found = list(pending)
    called: set[str] = set()
    for effects in found:  # which grows
        new = effects.calls - called
        called |= new
        found += (each for name in new for each in functions.get(name, ()))
    return found


def _that_matter(words: set[str], sources: list[bytes]) -> dict[bytes, _ModuleEffects]:
    """Return the effects of the sources that have one of these words, or the name of a function that leads to one.

    To read the syntax of a whole program takes seconds.
    """
    read: dict[bytes, _ModuleEffects] = {}
    new = words
    while new and sources:
        pattern = re.compile(rb"\b(?:%s)\b" % b"|".join(re.escape(word.encode()) for word in new))
        found = [source for source in sources if pattern.search(source)]
        sources = [source for source in sources if not pattern.search(source)]
        read.update((source, _effects_of(source)) for source in found)
        leading = {
            name
            for _, of_functions in read.values()
            for name, effects in of_functions
            if not words.isdisjoint(effects.changes | effects.calls)
        }
        new = leading - words
        words = words | leading
    return read


@functools.lru_cache(4096)
def _effects_of(source: bytes) -> _ModuleEffects:
    """Return what a module and its functions do."""
    tree = parsed(source) or ast.Module([], [])
    functions = []
    for node in ast.walk(tree):
        if isinstance(node, _Function):  # with the functions inside, which it may call or return
            inner = [part for each in ast.walk(node) if isinstance(each, _Function) for part in each.body]
            functions.append((node.name, _effects(inner)))
    return _effects(tree.body), functions


def _effects(code: Iterable[ast.AST]) -> _Effects:
    changes: set[str] = set()
    calls: set[str] = set()
    pending = list(code)
    while pending:
        node = pending.pop()
        if isinstance(node, ast.If) and any(getattr(each, "id", "") == "__name__" for each in ast.walk(node.test)):
            pending += node.orelse
            continue
        called: Iterable[ast.expr] = ()
        if isinstance(node, _Function):
            pending += node.decorator_list
            called = [each for each in node.decorator_list if not isinstance(each, ast.Call)]
        elif isinstance(node, ast.Call):
            called = [node.func]
        elif isinstance(node, ast.Attribute | ast.Subscript) and not isinstance(node.ctx, ast.Load):
            changes |= _named(node)
        elif isinstance(node, ast.Global):
            changes.update(node.names)
        elif "argv" in (getattr(node, "attr", None), getattr(node, "id", None)):
            calls.add("argv")
        for function in called:
            name = str(getattr(function, "attr", None) or getattr(function, "id", ""))
            calls.add(name)
            if name in CHANGING_CALLS and isinstance(function, ast.Attribute):
                changes |= _named(function.value)
        if not isinstance(node, _Function | ast.Lambda):
            pending += ast.iter_child_nodes(node)
    return _Effects(frozenset(changes), frozenset(calls))


def _root(node: ast.AST) -> ast.AST:
    while isinstance(node, ast.Attribute | ast.Subscript):
        node = node.value
    return node


def _named(node: ast.AST) -> set[str]:
    """Return the last name of what a node assigns: ``b`` of ``a.b = 1``, ``a.b["c"] = 1`` and ``a.b.append(1)``."""
    if isinstance(node, ast.Subscript):
        return _named(node.value)
    return {name} if (name := getattr(node, "attr", None) or getattr(node, "id", None)) else set()
