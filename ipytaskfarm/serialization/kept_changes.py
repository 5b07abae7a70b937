"""Finds which objects outside of a function its code changes, so that each call would see what the former ones left.

``results.append(x)``, ``counts[key] += 1``, ``global n; n += 1``, ``next(numbers)``: in a plain run these change the
session's own objects.  On a farm each engine has copies.  Found are only the forms that tell by themselves that a later
call, or the session, is meant to see the change.  A function that clears the object, or takes away what it has added,
uses it for itself; ``if key not in known: known[key] = …`` is a cache.

What the code of a class changes of the class itself is its state, see `class_state`.
"""

from __future__ import annotations

import ast
import dis
import functools
import linecache
import random
import re
import sys
import textwrap
import types
import warnings
from collections import deque
from collections.abc import Callable, Collection, Iterator, MutableMapping, MutableSequence, MutableSet
from itertools import chain
from typing import Any

from .function_parts import closure_of
from .global_names import last_line, mentioned, nested_codes
from .module_origin import Travel, travel

_ADDING = frozenset((
    "add", "append", "appendleft", "discard", "extend", "extendleft", "insert", "remove", "subtract", "update",
))  # fmt: skip
_TAKING = frozenset(("pop", "popitem", "popleft"))
_FILLING = frozenset(("at", "fill", "itemset", "put"))
"""Methods of numpy's arrays that change them, and ``np.add.at`` and its like."""
_MENTIONED = _ADDING | _TAKING | _FILLING | {"next", "setdefault"}
_CHANGING = _MENTIONED | {
    "clear", "popitem", "reverse", "setattr", "sort", "__dict__",
    "heapify", "heappop", "heappush", "heappushpop", "heapreplace", "insort", "insort_left", "insort_right", "setitem",
    "shuffle",
}  # fmt: skip
_CHANGING_METHODS = _CHANGING | {
    "__delitem__", "__iadd__", "__setitem__", "difference_update", "intersection_update", "move_to_end", "rotate",
    "symmetric_difference_update",
}  # fmt: skip
_CHARACTERS_MAX = 20_000
_REBINDING = re.compile(r"\w+ \S*= ")  # total += …, best = max(best, x)


def changes_of(code: types.CodeType) -> dict[str, str]:
    """Return the names of globals, closure variables and parameters that the code may change, and an example of how."""
    parameters = code.co_argcount + code.co_kwonlyargcount
    own = {*code.co_varnames[parameters:], *code.co_cellvars}
    return {name: how for name, how in _changes_in(code).items() if name not in own}


def change_of_owner(code: types.CodeType) -> str:
    """Return an example of how a method changes its own object; "" if it does not."""
    return _changes_in(code).get(code.co_varnames[0], "") if code.co_argcount else ""


def may_change(value: Any, how: str, function: str) -> bool:
    """Return whether a change of this form changes the value, or binds its name to another one.

    how: the form, as `changes_of` returns it. function: the qualified name of the function.
    """
    kind = type(value)
    if isinstance(value, CONTAINERS):  # of a default, too
        return not how.startswith("next(")
    if isinstance(value, Iterator):
        return how.startswith("next(")
    if kind in _VALUES or str(kind.__module__).partition(".")[0] in ("numpy", "pandas"):
        if how.partition("(")[0].rpartition(".")[2] in _FILLING:
            return kind not in _VALUES
        return "=" in how and (kind not in _VALUES or not how.partition("=")[0].rstrip(" +-*/|&^%<>@").endswith("]"))
    if _REBINDING.match(how):  # a Decimal, a date, an object of a library: the name stands for another one then
        return True
    inside = "=" in how or how.partition("(")[0].count(".") > 1
    if isinstance(value, type | types.FunctionType):
        is_within = function.startswith(f"{value.__qualname__}.")
        return inside and not is_within and travel(value.__module__) is not Travel.REFERENCE
    return (_is_of_program(kind) or kind.__name__ in ("Namespace", "SimpleNamespace")) and inside


def changed_by_methods(value: Any, name: str, code: types.CodeType) -> str:
    """Return an example of how the code changes an object of the program's own classes by methods; "" if it does not.

    Only methods count whose results are not used: these are called for what they change."""
    kind: Any = type(value)
    if isinstance(value, type) or not _is_of_program(kind):
        return ""
    called = sorted(_statement_calls(code).get(name, ()))
    return next((f"{name}.{each}(…)" for each in called if _changes_instances(kind, frozenset({each}))), "")


def _is_of_program(kind: type) -> bool:
    return kind.__module__ == "__main__" or travel(kind.__module__) is Travel.SOURCE


def changes_itself(function: Any, levels: int = 5) -> bool:
    """Return whether a call may change what is part of the function itself: the object of a bound method, the
    arguments of a partial, the variables of a closure.

    A pool's process gets these anew with each call.
    """
    if levels == 0:
        return False
    if isinstance(function, functools.partial):
        called = function.func
        values = [*function.args, *function.keywords.values()]
        if type(called) is types.FunctionType and not _reaches_storing(called):  # a table that it only reads
            values = [value for value in values if not isinstance(value, _COLLECTIONS)]
        return any(_is_mutable(value) for value in values) or changes_itself(called, levels - 1)
    if isinstance(function, types.MethodType):
        method = function.__func__
        is_known = isinstance(method, types.FunctionType) and hasattr(type(function.__self__), method.__name__)
        return _is_mutable(function.__self__, frozenset({method.__name__}) if is_known else None)
    if isinstance(function, types.BuiltinFunctionType | types.MethodWrapperType):
        owner = function.__self__
        return not isinstance(owner, type | types.ModuleType | None) and (
            function.__name__ in _CHANGING_METHODS if isinstance(owner, CONTAINERS) else _goes_on(owner)
        )
    if not isinstance(function, types.FunctionType):
        return not isinstance(function, type) and _is_mutable(function, frozenset({"__call__"}))
    code = function.__code__
    if assigns_closure(code):
        return True
    for _, value in closure_of(function):
        if type(value) is types.FunctionType:
            if value is not function and changes_itself(value, levels - 1):
                return True
        elif _reaches_storing(function) if isinstance(value, CONTAINERS) else _is_mutable(value, mentioned(code)):
            return True
    return False


@functools.lru_cache(4096)
def may_store(code: types.CodeType) -> bool:
    """Return whether the code may change the content of a container."""
    return not mentioned(code).isdisjoint(_CHANGING) or _stores(code, _STORING)


def _reaches_storing(function: types.FunctionType, stores: Callable[[types.CodeType], bool] = may_store) -> bool:
    """Return whether the function, or one of the user's that it mentions, may change the content of a container."""
    waiting = {function}
    seen: set[types.FunctionType] = set()
    while waiting:
        each = waiting.pop()
        seen.add(each)
        if stores(each.__code__):
            return True
        for name in mentioned(each.__code__):
            used = each.__globals__.get(name)
            if type(used) is types.FunctionType and used not in seen:
                if travel(used.__module__) is not Travel.REFERENCE:
                    waiting.add(used)
            elif type(used) is types.ModuleType and travel(used.__name__) is not Travel.REFERENCE:
                return True  # what of it is called is not looked for
    return False


@functools.lru_cache(4096)
def fills_table(code: types.CodeType) -> bool:
    """Return whether the code may put something under a key: ``pool[key] = …``, ``pool.setdefault(key, …)``."""
    return "setdefault" in mentioned(code) or _stores(code, frozenset({dis.opmap["STORE_SUBSCR"]}))


@functools.lru_cache(4096)
def sets_attributes(code: types.CodeType) -> bool:
    """Return whether the code may set an attribute of an object."""
    return _stores(code, _SETTING)


@functools.lru_cache(4096)
def assigns_closure(code: types.CodeType) -> bool:
    """Return whether the code, or code nested in it, assigns to variables of its closure."""
    return _stores(code, _STORING_FREE) and any(
        step.opname == "STORE_DEREF" and step.argval in code.co_freevars
        for each in nested_codes(code)
        for step in dis.get_instructions(each)
    )


def _is_mutable(value: Any, called: frozenset[str] | None = None) -> bool:
    """Return whether a value is a container, an iterator, a random generator, or an instance of a class of the user
    that changes its instances.

    called: the names of the methods that may be called; None: any of them.
    """
    if isinstance(value, CONTAINERS):
        return True
    kind: Any = type(value)
    if travel(kind.__module__) is not Travel.REFERENCE:
        return _changes_instances(kind, called)
    if isinstance(value, _COLLECTIONS):
        return called is None or not called.isdisjoint(_CHANGING_METHODS)
    return _goes_on(value)


def may_change_shared(function: Any, arguments: Collection[Any], cannot_change: Callable[[Any], bool]) -> bool:
    """Return whether calls may change an object that is among their arguments several times, or in several of them.

    A pool's process gets these anew with each call.

    Args:
        function: what is called.
        arguments: the arguments of all calls, one after the other.
        cannot_change: returns whether a value cannot change at all.
    """
    kinds = set(map(type, arguments))
    # Most are, and the look at each costs more than its place in a map.
    if kinds <= _SAFE or (kinds == {tuple} and _SAFE.issuperset(map(type, chain.from_iterable(arguments)))):
        return False
    parts = arguments if kinds.isdisjoint(_RECORDS) else [*arguments, *_parts_of_records(arguments)]
    seen: set[int] = set()
    shared: dict[int, Any] = {}
    for value in parts:
        if type(value) not in _SAFE:
            if id(value) in seen:
                shared[id(value)] = value
            seen.add(id(value))
    values = [each for value in shared.values() for each in (value if type(value) is tuple else (value,))]
    changeable = [
        value for value in values if type(value) not in _SAFE and (_goes_on(value) or not cannot_change(value))
    ]
    return any(_may_change_argument(function, value) for value in changeable)


def _parts_of_records(arguments: Collection[Any]) -> Iterator[Any]:
    """Yield what stands in short tuples, lists and dicts: ``(settings, n)``, ``{"data": data, "n": n}``."""
    for value in arguments:
        if type(value) in _RECORDS and len(value) <= _RECORD_PARTS:
            yield from value.values() if type(value) is dict else value


def _may_change_argument(function: Any, value: Any) -> bool:
    """Return whether a call of the function may change an argument."""
    if _goes_on(value):
        return True
    while isinstance(function, functools.partial):
        function = function.func
    function = getattr(function, "__func__", function)
    if not isinstance(function, types.FunctionType | types.BuiltinFunctionType | type):
        function = type(function).__call__
    if not isinstance(function, types.FunctionType):
        return getattr(function, "__name__", "") in _CHANGING_METHODS
    if _reaches_storing(function, _changes_others):
        return True
    return travel(type(value).__module__) is not Travel.REFERENCE and _is_mutable(value, mentioned(function.__code__))


_NEW = frozenset((
    "BytesIO", "Counter", "OrderedDict", "StringIO", "arange", "bytearray", "bytes", "defaultdict", "deque", "dict",
    "empty", "float", "full", "int", "iter", "len", "linspace", "list", "ones", "range", "set", "sorted", "str", "sum",
    "zeros",
))  # fmt: skip
"""Functions that return a new object."""
_NEW_NODES = (
    ast.BinOp, ast.Compare, ast.Constant, ast.Dict, ast.DictComp, ast.JoinedStr, ast.List, ast.ListComp, ast.Set,
    ast.SetComp, ast.UnaryOp,
)  # fmt: skip


@functools.lru_cache(4096)
def _changes_others(code: types.CodeType) -> bool:
    """Return whether the code may change other objects than those that it makes and names itself."""
    tree = tree_of(code)
    if tree is None:
        return True
    nodes = list(ast.walk(tree))
    made = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    made -= {node.arg for node in nodes if isinstance(node, ast.arg)}
    kept: set[int] = set()
    for node in nodes:
        if isinstance(node, ast.Assign | ast.AnnAssign) and (node.value is None or _is_new(node.value)):
            kept.update(map(id, node.targets if isinstance(node, ast.Assign) else [node.target]))
        elif isinstance(node, ast.AugAssign):
            kept.add(id(node.target))
    made -= {node.id for node in nodes if _is_stored(node) and isinstance(node, ast.Name) and id(node) not in kept}
    return any(_changes_other(node, made) for node in nodes)


def _is_new(node: ast.expr) -> bool:
    function = node.func if isinstance(node, ast.Call) else None
    name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
    return isinstance(node, _NEW_NODES) or name in _NEW


def _is_stored(node: ast.AST) -> bool:
    return isinstance(getattr(node, "ctx", None), ast.Store | ast.Del)


def _changes_other(node: ast.AST, made: set[str]) -> bool:
    """Return whether a node changes an object that has none of these names."""
    changed: Any = None
    if isinstance(node, ast.AugAssign):
        changed = node.target
    elif isinstance(node, ast.Subscript | ast.Attribute) and _is_stored(node):
        changed = node.value
    elif isinstance(node, ast.Call):
        if any(each.arg in ("inplace", "out") for each in node.keywords):
            return True
        if isinstance(node.func, ast.Attribute) and node.func.attr in _CHANGING_METHODS:
            changed = node.func.value
        elif isinstance(node.func, ast.Name) and node.func.id in _CHANGING_METHODS:
            changed = node.args[0] if node.args else node.func
    if isinstance(changed, ast.Subscript | ast.Attribute) and isinstance(node, ast.AugAssign):
        changed = changed.value
    is_own = changed is None or (isinstance(changed, ast.Name) and changed.id in made) or _is_new(changed)
    return not is_own or (isinstance(node, ast.Attribute) and node.attr == "__dict__")


def _goes_on(value: Any) -> bool:
    """Return whether a value gives something else each time: an iterator, or a generator of random numbers."""
    return isinstance(value, Iterator) or is_random_generator(value)


def is_random_generator(value: Any) -> bool:
    """Return whether a value is a random generator of the program's own, of numpy or of Python."""
    kind = type(value)
    if str(kind.__module__).startswith("numpy.random"):
        hidden = getattr(sys.modules.get("numpy.random.mtrand"), "_rand", None)
        return kind.__name__ in ("Generator", "RandomState") and value is not hidden
    is_seeded = isinstance(value, random.Random) and not isinstance(value, random.SystemRandom)
    return is_seeded and value is not getattr(random, "_inst", None)


@functools.lru_cache(1024)
def _changes_instances(kind: type, called: frozenset[str] | None) -> bool:
    """Return whether these methods of the class, or methods that they mention, may change an instance."""
    methods = {
        name: function
        for base in reversed(kind.__mro__)
        if travel(base.__module__) is not Travel.REFERENCE
        for name, function in vars(base).items()
        if type(function) is types.FunctionType and name not in _MAKING
    }
    waiting = list(methods if called is None else called & methods.keys())
    while waiting:
        function = methods.pop(waiting.pop(), None)
        if function is not None:
            if may_store(function.__code__):
                return True
            waiting += mentioned(function.__code__) & methods.keys()
    return False


_MAKING = ("__init__", "__new__", "__post_init__", "__setstate__", "__init_subclass__", "__repr__", "__getstate__")
CONTAINERS = (list, dict, set, deque, bytearray)
_COLLECTIONS = (*CONTAINERS, MutableSequence, MutableMapping, MutableSet)
_RECORDS = frozenset({tuple, list, dict})
_RECORD_PARTS = 16  # a look at the parts of longer ones would take as long as to pack them
_SAFE = frozenset({bool, int, float, complex, str, bytes, type(None), type, types.FunctionType, types.ModuleType})
_VALUES = (bool, int, float, complex, str, bytes, tuple, frozenset, type(None))


@functools.lru_cache(4096)
def _changes_in(code: types.CodeType) -> dict[str, str]:
    if mentioned(code).isdisjoint(_MENTIONED) and not _stores(code, _STORING):
        return {}
    tree = tree_of(code)
    return _Changes(tree).found if tree is not None else {}


@functools.lru_cache(4096)
def _statement_calls(code: types.CodeType) -> dict[str, set[str]]:
    """Return name -> its methods that the code calls in statements of their own."""
    found: dict[str, set[str]] = {}
    for node in ast.walk(tree_of(code) or ast.Module([], [])):
        called = node.value.func if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call) else None
        if isinstance(called, ast.Attribute) and isinstance(called.value, ast.Name):
            found.setdefault(called.value.id, set()).add(called.attr)
    return found


def tree_of(code: types.CodeType) -> ast.AST | None:
    """Return the syntax tree of a function's source; None if it is not known, or too long."""
    text = "".join(linecache.getlines(code.co_filename)[code.co_firstlineno - 1 : last_line(code)])
    if not text or len(text) > _CHARACTERS_MAX:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(textwrap.dedent(text))
    except (SyntaxError, ValueError, RecursionError):  # a lambda within a longer expression
        return None
    return tree if code.co_name != "<lambda>" else _lambda_in(tree, code)


def _lambda_in(tree: ast.AST, code: types.CodeType) -> ast.AST:
    """Return the lambda of this code among what stands on its line; the whole line if it is not found."""
    names = {*code.co_names, *code.co_varnames, *code.co_freevars, *code.co_cellvars}
    for node in ast.walk(tree):
        if isinstance(node, ast.Lambda):
            parameters = [each.arg for each in (*node.args.posonlyargs, *node.args.args)]
            used = {each.id for each in ast.walk(node.body) if isinstance(each, ast.Name)}
            used |= {each.attr for each in ast.walk(node.body) if isinstance(each, ast.Attribute)}
            if parameters == list(code.co_varnames[: code.co_argcount]) and used <= names:
                return node
    return tree


def _stores(code: types.CodeType, opcodes: frozenset[int]) -> bool:
    """Return whether the code, or code nested in it, has one of these instructions."""
    return any(opcode in opcodes for each in nested_codes(code) for opcode in each.co_code[::2])


_STORING_FREE = frozenset({dis.opmap["STORE_DEREF"]})
_SETTING = frozenset({dis.opmap["STORE_ATTR"]})
_STORING = _STORING_FREE | {
    dis.opmap[name] for name in ("STORE_SUBSCR", "STORE_ATTR", "STORE_GLOBAL", "DELETE_SUBSCR", "DELETE_ATTR")
}


class _Changes:
    """The names that a function changes."""

    def __init__(self, tree: ast.AST) -> None:
        self.found: dict[str, str] = {}
        self._stored: dict[str, str] = {}
        """Names in whose items the function puts something: a change if it never looks at them."""
        self._used: set[str] = set()
        self._reset: set[str] = set()
        self._added: set[str] = set()
        self._taken: set[str] = set()
        self._look(tree)
        for name, how in self._stored.items():
            if name not in self._used:
                self.found.setdefault(name, how)
        for name in self._reset | (self._added & self._taken):
            self.found.pop(name, None)

    def _look(self, node: ast.AST) -> None:
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call) and self._is_added_to(node.value):
            for part in (*node.value.args, *node.value.keywords):
                self._look(part)
            return
        value = node.body if isinstance(node, ast.Lambda) else node.value if isinstance(node, ast.Return) else None
        # What these methods of containers return is None: `lambda x: results.append(x)` is meant to change them.
        called = value.func if isinstance(value, ast.Call) else None
        if isinstance(value, ast.Call) and isinstance(called, ast.Attribute) and isinstance(called.value, ast.Name):
            self._is_added_to(value)
        if isinstance(node, ast.AugAssign):
            name = _root(node.target)
            if name is not None:
                self.found[name] = f"{ast.unparse(node.target)} {_SIGNS.get(type(node.op), '')}= …"
        elif isinstance(node, ast.Assign):
            self._assigned(node)
            self._look(node.value)
            return
        elif isinstance(node, ast.Call):
            self._look_at_call(node)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
            self._used.add(node.id)
        for child in ast.iter_child_nodes(node):
            self._look(child)

    def _is_added_to(self, call: ast.Call) -> bool:
        function = call.func
        name = _root(function.value) if isinstance(function, ast.Attribute) else None
        if name is None or not isinstance(function, ast.Attribute):
            return False
        if function.attr == "clear":
            self._reset.add(name)
        elif function.attr in _TAKING:
            self._taken.add(name)
        elif function.attr in _ADDING or (function.attr in _FILLING and function.attr != "at"):
            self._added.add(name)
            self.found[name] = f"{ast.unparse(function)}(…)"
            return True
        return False

    def _look_at_call(self, call: ast.Call) -> None:
        function = call.func
        if isinstance(function, ast.Name) and function.id == "next" and call.args:
            if isinstance(call.args[0], ast.Name):
                self.found[call.args[0].id] = f"next({call.args[0].id})"
        elif (
            isinstance(function, ast.Attribute) and function.attr == "at" and isinstance(function.value, ast.Attribute)
        ):
            if call.args and isinstance(call.args[0], ast.Name):
                self.found[call.args[0].id] = f"{ast.unparse(function)}(…)"
        elif isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name):
            name = function.value.id
            if function.attr in _TAKING:
                self._taken.add(name)
                self.found.setdefault(name, f"{name}.{function.attr}()")

    def _assigned(self, node: ast.Assign) -> None:
        for target in node.targets:
            root = _root(target)
            if isinstance(target, ast.Attribute) and root is not None and _mentions(node.value, root):
                self.found[root] = f"{ast.unparse(target)} = {ast.unparse(node.value)}"  # f.calls = f.calls + 1
            elif isinstance(target, ast.Subscript) and root is not None:
                self._stored[root] = f"{ast.unparse(target.value)}[…] = …"
                self._look_inside(target)
            elif isinstance(target, ast.Name):
                if _mentions(node.value, target.id):
                    self.found[target.id] = f"{target.id} = {ast.unparse(node.value)}"
                else:
                    self._reset.add(target.id)
            else:
                self._look(target)

    def _look_inside(self, target: ast.expr) -> None:
        """Look at the indexes of a target, not at the name at its root."""
        while isinstance(target, ast.Attribute | ast.Subscript):
            if isinstance(target, ast.Subscript):
                self._look(target.slice)
            target = target.value


def _mentions(node: ast.AST, name: str) -> bool:
    return any(isinstance(each, ast.Name) and each.id == name for each in ast.walk(node))


_SIGNS: dict[type[ast.operator], str] = {
    ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/", ast.BitOr: "|", ast.BitAnd: "&", ast.BitXor: "^",
    ast.Pow: "**", ast.Mod: "%", ast.FloorDiv: "//", ast.LShift: "<<", ast.RShift: ">>", ast.MatMult: "@",
}  # fmt: skip


def _root(target: ast.expr) -> str | None:
    """Return the name at which an expression like ``a.b[c].d`` begins, or ``a.setdefault(b, [])``; None for others."""
    while isinstance(target, ast.Attribute | ast.Subscript) or _is_setdefault(target):
        target = target.func if isinstance(target, ast.Call) else target.value  # type: ignore[attr-defined]
    return target.id if isinstance(target, ast.Name) else None


def _is_setdefault(node: ast.expr) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "setdefault"
