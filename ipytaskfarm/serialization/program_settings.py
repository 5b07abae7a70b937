"""Finds what the program's own code sets outside of itself: in modules that travel as source, and in installed ones.

``config.OPTIONS["n"] = 5`` and ``settings.load(path)`` in a script change modules that tasks run as their source says;
``mpmath.mp.dps = 50`` and ``calendar.setfirstweekday(6)`` change libraries that tasks find as they are imported.  What
`assigned_globals` compares by value is seen there; here the statement tells, whatever the source of the module is.

The code of the script or the notebook's cells is followed into the functions of the user that it calls.  Functions that
it only passes on, as to ``tc.map``, are tasks.  Statements that have not begun yet are left out.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import linecache
import os
import re
import sys
import types
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import Any, NamedTuple

from ..system.user_code import depth_of_user
from .assigned_globals import source_says, told
from .kept_changes import CONTAINERS, tree_of
from .module_origin import Travel, travel
from .module_state import CHANGING_CALLS, callers_at_import, parsed
from .process_values import asked

_OWN_FOLDER = str(Path(__file__).parents[1])
_FUNCTIONS_MAX = 200
_UNKNOWN = object()
_SETTERS = (
    "add_", "configure", "disable", "enable", "install", "manual_seed", "register", "set", "unregister", "update",
    "use",
)  # fmt: skip
"""How the names of functions begin by which libraries are set."""
_TOLD_ELSEWHERE = frozenset((
    "argparse", "atexit", "builtins", "concurrent", "contextlib", "dask", "decimal", "distributed", "gc", "ipytaskfarm",
    "IPython", "joblib", "locale", "logging", "matplotlib", "os", "pandas", "random", "seaborn", "signal", "sklearn",
    "sys", "threading", "torch", "unittest", "warnings",
))  # fmt: skip
"""Libraries that others look at (`session_settings`, `session_reads`), or on whose settings no values depend."""
_OFTEN = ("numpy.errstate", "numpy.printoptions", "numpy.random.seed", "numpy.set_printoptions", "numpy.seterr")


_Function = ast.FunctionDef | ast.AsyncFunctionDef
_Assignment = ast.Assign | ast.AugAssign | ast.AnnAssign
_Import = ast.Import | ast.ImportFrom
_Step = ast.Assign | ast.AugAssign | ast.AnnAssign | ast.Call | ast.Expr | ast.Import | ast.ImportFrom | ast.With


class ProgramSetting(NamedTuple):
    """One statement of the program that sets something outside of it."""

    owner: str
    """The module that travels as source, or the top name of an installed package."""
    path: str
    """The name in the module, with attributes; of an installed package what is called or assigned."""
    text: str
    """The statement."""
    place: str


class _Instance(NamedTuple):
    """An object that the code has made of a class of the user, and that is not known itself."""

    kind: type


class _Scope(NamedTuple):
    """What names mean in a piece of code."""

    names: Mapping[str, Any]
    local: dict[str, Any]
    """Local names of a function: what they stand for, as far as it is known."""
    module: str
    place: str
    until: int
    """The line that is executed now."""
    shared: frozenset[str] = frozenset()
    """The names that the function declares global."""
    code: ast.AST | None = None
    """The function, if it is one of a module: such code may keep counters and caches of its own."""


_last: tuple[object, list[ProgramSetting]] = (None, [])


def warn_of_settings(modules: Set[str]) -> None:
    """Warn of what the program has set in these modules, which travel as source, once of each."""
    for owner, path, text, place in program_settings():
        if owner in modules and told.add(owner, path):
            warnings.warn(
                f"{owner}.{path} was set after the import ({place}: {text}), and tasks run the module's source, "
                "without it: pass it as an argument, or keep it in the script",
                stacklevel=depth_of_user(),
            )


def program_settings() -> list[ProgramSetting]:
    """Return what the program has set so far, as far as its code tells.

    The answer is kept while the program is at the same lines, as it is when a loop submits one function after another.
    """
    global _last
    main = vars(sys.modules["__main__"])
    cells = main.get("In")
    lines = _lines_of_frames()
    key = (lines, len(cells) if isinstance(cells, list) else None, len(sys.modules))
    if _last[0] != key:
        _last = (key, _found(main, lines))
    return _last[1]


def _found(main: Mapping[str, Any], lines: Mapping[types.CodeType, int]) -> list[ProgramSetting]:
    walk = _ProgramWalk(lines)
    for place, source, until in _program(main, lines):
        with contextlib.suppress(Exception):  # an object of the user may raise anything when it is looked at
            walk.look(_steps_of_source(source), _Scope(main, {}, "__main__", place, until))
    return walk.found


def _program(main: Mapping[str, Any], lines: Mapping[types.CodeType, int]) -> Iterator[tuple[str, bytes, int]]:
    """Yield name, source, and the line that is executed now, of the cells or of the script."""
    cells = main.get("In")
    now = {code: line for code, line in lines.items() if code.co_name.startswith(("<module>", "<cell line"))}
    if isinstance(cells, list):
        for number, cell in enumerate(cells):
            until = next(iter(now.values()), sys.maxsize) if number == len(cells) - 1 else sys.maxsize
            yield f"In [{number}]", str(cell).encode("utf-8", "replace"), until
    elif isinstance(file := main.get("__file__"), str):
        until = next((line for code, line in now.items() if code.co_filename == file), sys.maxsize)
        yield Path(file).name, "".join(linecache.getlines(file)).encode("utf-8", "replace"), until


def _lines_of_frames() -> dict[types.CodeType, int]:
    found: dict[types.CodeType, int] = {}
    frame: types.FrameType | None = sys._getframe()
    while frame is not None:
        if not frame.f_code.co_filename.startswith(_OWN_FOLDER):
            found.setdefault(frame.f_code, frame.f_lineno)
        frame = frame.f_back
    return found


class _ProgramWalk:
    """Follows the program's code through the functions that it calls."""

    def __init__(self, lines: Mapping[types.CodeType, int]) -> None:
        self.found: list[ProgramSetting] = []
        self._lines = lines
        self._entered: set[tuple[types.CodeType, int]] = set()
        self._places: dict[int, tuple[str, str]] | None = None

    def look(self, steps: Iterable[_Step], scope: _Scope) -> None:
        """Look at code in the order in which it runs, without its loops and branches."""
        for node in steps:
            if node.lineno > scope.until:
                continue
            if isinstance(node, ast.Call):
                self._called(node, scope)
            elif isinstance(node, ast.Expr):
                if isinstance(node.value, ast.Call):
                    self._library(node.value.func, node.value, scope)
            elif isinstance(node, ast.With):
                if scope.until <= (node.end_lineno or 0):  # the program is inside: ``with mpmath.workdps(50):``
                    for each in node.items:
                        if isinstance(each.context_expr, ast.Call) and each.optional_vars is None:
                            self._library(each.context_expr.func, node, scope)
            elif isinstance(node, _Import):
                if scope.local:  # of a function
                    scope.local.update(_imported(node, scope))
            else:
                self._assigned(node, scope)

    def _assigned(self, node: _Assignment, scope: _Scope) -> None:
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        if node.value is None:
            return
        for target in targets:
            for each in target.elts if isinstance(target, ast.Tuple | ast.List) else [target]:
                if isinstance(each, ast.Name) and each.id not in scope.shared:
                    if scope.code is not None or scope.local:
                        scope.local[each.id] = self._made(node.value, scope)
                elif scope.code is None or _is_setting(each, node, scope):
                    whole = isinstance(node, ast.Assign) and each is target and not isinstance(each, ast.Subscript)
                    self._set(each, node, scope, node.value if whole else None)
                    while isinstance(each, ast.Subscript):
                        each = each.value
                    if isinstance(each, ast.Attribute):
                        self._library(each, node, scope)

    def _called(self, call: ast.Call, scope: _Scope) -> None:
        function = call.func
        if isinstance(function, ast.Name) and function.id == "setattr" and call.args:
            self._set(ast.Attribute(call.args[0], "…", ast.Store()), call, scope)
        if isinstance(function, ast.Attribute) and function.attr in CHANGING_CALLS:
            value = self._value(function.value, scope)
            if isinstance(value, CONTAINERS) and (
                scope.code is None or (function.attr == "update" and not _is_read_before(function.value, call, scope))
            ):
                self._set(function.value, call, scope)
        called, owner = self._method(function, scope)
        self._enter(called, owner)
        if type(self._value(_first(function), scope)) is types.ModuleType and called is _UNKNOWN:
            for argument in call.args:  # as in ``typer.run(main)``
                self._enter(self._value(argument, scope), _UNKNOWN)

    def _enter(self, function: Any, owner: Any) -> None:
        """Follow a function of the user that is called."""
        for name in ("__func__", "callback", "__wrapped__"):
            if type(function) is not types.FunctionType:
                function = asked(function, name, function)
        if type(function) is not types.FunctionType or travel(function.__module__) is Travel.REFERENCE:
            return
        code = function.__code__
        if (code, id(owner)) in self._entered or len(self._entered) >= _FUNCTIONS_MAX:
            return
        self._entered.add((code, id(owner)))
        found = _definition(code)
        if found is None:
            return
        tree, steps, shared = found
        local = dict.fromkeys(code.co_varnames, _UNKNOWN)
        if owner is not _UNKNOWN and code.co_argcount:
            local[code.co_varnames[0]] = owner
        own = None if function.__module__ == "__main__" else tree
        place = os.path.basename(code.co_filename)
        until = self._lines.get(code, sys.maxsize)
        self.look(steps, _Scope(function.__globals__, local, function.__module__, place, until, shared, own))

    def _method(self, function: ast.expr, scope: _Scope) -> tuple[Any, Any]:
        """Return what is called, and the object or class whose method it is."""
        if isinstance(function, ast.Attribute):
            owner = self._value(function.value, scope)
            if type(owner) is _Instance:
                return _attribute(owner.kind, function.attr), _UNKNOWN
            if owner is not _UNKNOWN and type(owner) is not types.ModuleType:
                kind = owner if isinstance(owner, type) else type(owner)
                return _attribute(kind, function.attr), owner
        return self._value(function, scope), _UNKNOWN

    def _made(self, value: ast.expr, scope: _Scope) -> Any:
        if isinstance(value, ast.Call):
            kind = self._value(value.func, scope)
            return _Instance(kind) if isinstance(kind, type) else _UNKNOWN
        return self._value(value, scope)

    def _value(self, node: ast.expr, scope: _Scope) -> Any:
        """Return what an expression of names and attributes stands for; `_UNKNOWN` if that is not known."""
        if isinstance(node, ast.Name):
            if node.id in scope.local and node.id not in scope.shared:
                return scope.local[node.id]
            return scope.names.get(node.id, _UNKNOWN)
        if isinstance(node, ast.Attribute):
            owner = self._value(node.value, scope)
            return _UNKNOWN if owner is _UNKNOWN else _attribute(owner, node.attr)
        if isinstance(node, ast.Call):
            return self._made(node, scope)
        return _UNKNOWN

    def _set(self, target: ast.expr, node: ast.AST, scope: _Scope, value: ast.expr | None = None) -> None:
        """Note that a target is set, if it is in a module that travels as source."""
        parts: list[str] = []
        while isinstance(target, ast.Attribute | ast.Subscript):
            if isinstance(target, ast.Attribute):
                parts.insert(0, target.attr)
            else:
                parts.clear()
            target = target.value
            owner = self._value(target, scope) if isinstance(target, ast.Name | ast.Attribute) else _UNKNOWN
            if type(owner) is types.ModuleType:
                break
        else:
            if not isinstance(target, ast.Name):
                return
            owner = self._value(target, scope)
        if type(owner) is types.ModuleType:
            module, path = owner.__name__, ".".join(parts)
        elif isinstance(target, ast.Name) and target.id in scope.shared | (scope.names.keys() - scope.local.keys()):
            module, path = scope.module, ".".join([target.id, *parts])
        else:
            module, path = "", ""
        if module in ("", "__main__") and owner is not _UNKNOWN and (found := self._place_of(owner)):
            module, path = found[0], ".".join([found[1], *parts])
        if path and module not in ("", "__main__") and travel(module) is Travel.SOURCE and _is_so(module, path, value):
            self._note(module, path, node, scope)

    def _place_of(self, value: Any) -> tuple[str, str] | None:
        """Return the module that travels as source in which a value is, and its name there."""
        if self._places is None:
            self._places = {}
            for module in list(sys.modules):
                if module != "__main__" and travel(module) is Travel.SOURCE:
                    for name, each in list(vars(sys.modules[module]).items()):
                        home = (
                            asked(each, "__module__", module) if isinstance(each, type | types.FunctionType) else module
                        )
                        if home == module and type(each) not in _PLAIN:
                            self._places.setdefault(id(each), (module, name))
        return self._places.get(id(value))

    def _library(self, target: ast.expr, node: ast.AST, scope: _Scope) -> None:
        """Note that a call or an assignment sets something in an installed package."""
        root = self._value(_first(target), scope)
        if root is _UNKNOWN:
            return
        home = root.__name__ if type(root) is types.ModuleType else str(asked(root, "__module__"))
        top = home.partition(".")[0]
        if type(root) is not types.ModuleType:  # ``mp.dps = 50`` after ``from mpmath import mp``
            holders = [vars(sys.modules[each]) for each in (home, top) if each in sys.modules]
            if not any(root is each for holder in holders for each in holder.values()):
                return
        if top in _TOLD_ELSEWHERE or travel(top) is not Travel.REFERENCE:
            return
        name = ast.unparse(target)
        last = name.rpartition(".")[2]
        if f"{top}.{name.partition('.')[2]}" in _OFTEN:
            return
        if isinstance(node, ast.Call):
            first = self._value(node.args[0], scope) if node.args else None
            if not last.startswith(_SETTERS) or str(type(first).__module__).partition(".")[0] == top:
                return
        elif type(self._value(target, scope)) is types.FunctionType or isinstance(node, ast.AnnAssign):
            return
        self._note(top, name, node, scope)

    def _note(self, owner: str, path: str, node: ast.AST, scope: _Scope) -> None:
        place = f"{scope.place}:{node.lineno}" if hasattr(node, "lineno") else scope.place
        text = ast.unparse(node).partition("\n")[0]
        self.found.append(
            ProgramSetting(owner, path.removesuffix(".…"), text if len(text) < 60 else text[:57] + "…", place)
        )


@functools.lru_cache(1024)
def _definition(code: types.CodeType) -> tuple[_Function, tuple[_Step, ...], frozenset[str]] | None:
    """Return a function's definition with the lines of its file, its steps, and the names that it declares global;
    None if its source is not known.
    """
    tree = tree_of(code)
    found = tree.body[0] if isinstance(tree, ast.Module) and tree.body else None
    if not isinstance(found, _Function):
        return None
    ast.increment_lineno(found, code.co_firstlineno - 1)
    shared = frozenset(name for each in ast.walk(found) if isinstance(each, ast.Global) for name in each.names)
    return found, tuple(_steps(found.body)), shared


@functools.lru_cache(1024)
def _steps_of_source(source: bytes) -> tuple[_Step, ...]:
    tree = parsed(source)
    return () if tree is None else tuple(_steps(tree.body))


def _steps(nodes: Iterable[ast.AST]) -> Iterator[_Step]:
    """Yield assignments, calls and statements of a call, those inside of others first; not those of inner functions."""
    for node in nodes:
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda | ast.ClassDef):
            yield from _steps(ast.iter_child_nodes(node))
            if isinstance(node, _Step):
                yield node


_PLAIN = (bool, int, float, complex, str, bytes, type(None), types.ModuleType)


def _imported(node: _Import, scope: _Scope) -> Iterator[tuple[str, Any]]:
    """Yield each name that an import binds, and what it stands for."""
    for each in node.names:
        if isinstance(node, ast.Import):
            name = each.name if each.asname else each.name.partition(".")[0]
            yield each.asname or name, sys.modules.get(name, _UNKNOWN)
        else:
            package = str(scope.names.get("__package__") or "").split(".")
            above = package[: len(package) + 1 - node.level] if node.level else []
            module = ".".join([*above, *([node.module] if node.module else [])])
            found = sys.modules.get(f"{module}.{each.name}", _UNKNOWN)
            yield each.asname or each.name, vars(sys.modules.get(module, ast)).get(each.name, found)


def _first(node: ast.expr) -> ast.expr:
    while isinstance(node, ast.Attribute | ast.Subscript | ast.Call):
        node = node.func if isinstance(node, ast.Call) else node.value
    return node


def _attribute(owner: Any, name: str) -> Any:
    """Return an attribute that an object has without running code of the user."""
    if isinstance(owner, type):
        return next((vars(each)[name] for each in owner.__mro__ if name in vars(each)), _UNKNOWN)
    try:
        found = vars(owner).get(name, _UNKNOWN)
    except TypeError:
        return _UNKNOWN
    return found if found is not _UNKNOWN or type(owner) is types.ModuleType else _attribute(type(owner), name)


def _is_so(module: str, path: str, value: ast.expr | None) -> bool:
    """Return whether the module still has what was assigned, and something else than its source says."""
    now: Any = sys.modules.get(module)
    for part in path.split("."):
        now = _UNKNOWN if now is _UNKNOWN else _attribute(now, part)
    if value is not None and now is not _UNKNOWN:
        try:
            if ast.literal_eval(value) != now:
                return False  # in a branch that was not taken
        except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
            pass
    return source_says(module, path) is not True


def _is_setting(target: ast.expr, node: _Assignment, scope: _Scope) -> bool:
    """Return whether a function of a module takes something over, rather than counts, keeps or remembers it."""
    assert node.value is not None
    if _is_read_before(target, node, scope) or any(_counts(each, scope) for each in ast.walk(scope.code or node)):
        return False
    given = {each for each in scope.local if scope.local[each] is _UNKNOWN}
    named = {each.id for each in ast.walk(node.value) if isinstance(each, ast.Name)}
    if isinstance(target, ast.Subscript) and not isinstance(target.slice, ast.Constant):
        return (
            isinstance(target.slice, ast.Name)
            and isinstance(node.value, ast.Name)
            and _comes_from_outside(node.value.id, scope)
        )
    if isinstance(target, ast.Attribute) and isinstance(target.value, ast.Name) and target.value.id == "self":
        owner = scope.local.get("self", _UNKNOWN)
        begins = asked(type(owner), "__init__")
        names = begins.__code__.co_names if type(begins) is types.FunctionType else ()
        return target.attr in names or hasattr(type(owner), target.attr)
    return not ast.unparse(target).startswith("_") or bool(named & given)


def _counts(node: ast.AST, scope: _Scope) -> bool:
    """Return whether a statement counts something outside of its function, which then keeps records."""
    if not isinstance(node, ast.AugAssign):
        return False
    return not isinstance(node.target, ast.Name) or node.target.id in scope.shared


def _comes_from_outside(name: str, scope: _Scope) -> bool:
    """Return whether a local name is a parameter, or one of a loop over items."""
    assert isinstance(scope.code, _Function)
    arguments = scope.code.args
    if name in {each.arg for each in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)}:
        return True
    loops = (each for each in ast.walk(scope.code) if isinstance(each, ast.For))
    return any(isinstance(each, ast.Name) and each.id == name for loop in loops for each in ast.walk(loop.target))


def _is_read_before(target: ast.expr, node: ast.AST, scope: _Scope) -> bool:
    """Return whether a function looks at what it sets: a counter, a cache, the best so far."""
    if scope.code is None:
        return False
    text = ast.unparse(target.value if isinstance(target, ast.Subscript) else target)
    own = {id(each) for each in ast.walk(target)}
    return any(
        isinstance(each, ast.Name | ast.Attribute)
        and isinstance(each.ctx, ast.Load)
        and each.lineno <= node.lineno  # type: ignore[attr-defined]
        and id(each) not in own
        and ast.unparse(each) == text
        for each in ast.walk(scope.code)
    )


PARSING = frozenset(("parse_args", "parse_known_args", "parse_intermixed_args", "parse_known_intermixed_args"))
"""Methods of argparse that read ``sys.argv`` if they are given nothing."""
_READING = PARSING | {"argv", "docopt", "parse_args_into_dataclasses"}
_READS = re.compile(rb"\b(?:%s)\b" % b"|".join(name.encode() for name in sorted(_READING)))


def program_arguments() -> tuple[str, ...]:
    """Return ``sys.argv``; () if there are no arguments, or if they are a kernel's, which are nothing to its cells.

    ``args = parser.parse_args()`` at the top of a settings module is common, and an engine, which imports the module
    anew, has no arguments. Such a module gets those of the program for its import, as in a process that multiprocessing
    or loky has started.
    """
    return tuple(sys.argv) if len(sys.argv) > 1 and "__file__" in vars(sys.modules["__main__"]) else ()


def readers_of_arguments(sources: Mapping[str, bytes]) -> set[str]:
    """Return the modules that read the program's arguments while they are imported.

    sources: module -> its source, of all modules of a bundle."""
    return callers_at_import(_READING, sources) if any(map(_READS.search, sources.values())) else set()


@contextlib.contextmanager
def as_arguments(arguments: Sequence[str]) -> Iterator[None]:
    """Let the process have these arguments; () for those that it has."""
    before = sys.argv
    if arguments:
        sys.argv = list(arguments)
    try:
        yield
    finally:
        sys.argv = before
