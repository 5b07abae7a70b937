"""Tells of functions that look for what nothing names: all globals of the script, or the subclasses of a class.

Tasks have what functions name.  A function that looks for more computes with less in a task, without an error.
"""

from __future__ import annotations

import ast
import functools
import sys
import types
from collections.abc import Iterable, Iterator, Sequence

from .global_names import mentioned
from .kept_changes import tree_of
from .module_origin import Travel, home_module, travel

LOOKING_THROUGH = frozenset({"globals", "vars", "dir", "getmembers", "hasattr", "getattr", "__subclasses__"})


def unnamed(reached: Sequence[types.FunctionType]) -> Iterator[tuple[str, str]]:
    """Yield (key, sentence) for what these functions look for in the script without naming it."""
    yield from _scans(reached)
    yield from _subclasses(reached)


def _short(function: types.FunctionType) -> str:
    return function.__qualname__.rpartition("<locals>.")[2]


def _subclasses(reached: Iterable[types.FunctionType]) -> Iterator[tuple[str, str]]:
    """Yield the classes of which a function asks the subclasses, if the program has some that may not come with it."""
    for each in reached:
        names = mentioned(each.__code__)
        if "__subclasses__" not in names:
            continue
        for name in names | {each.__qualname__.partition(".")[0]}:
            cls = each.__globals__.get(name)
            if not isinstance(cls, type) or travel(cls.__module__) is Travel.REFERENCE:
                continue
            subclasses: list[type] = type.__subclasses__(cls)
            if found := [sub.__name__ for sub in subclasses if not _comes_with(sub, cls)]:
                text = (
                    f"{_short(each)} asks for the subclasses of {cls.__name__}. Tasks have only those that were sent, "
                    f"and {', '.join(found[:3])} may be missing: keep them in a dict, see __init_subclass__"
                )
                yield f"subclasses: {cls.__module__}.{cls.__qualname__}", text


def _comes_with(sub: type, cls: type) -> bool:
    """Return whether the import of a class's module makes the subclass, too."""
    way = travel(sub.__module__)
    return way is Travel.REFERENCE or (way is Travel.SOURCE and sub.__module__ == cls.__module__)


def _scans(reached: Iterable[types.FunctionType]) -> Iterator[tuple[str, str]]:
    """Yield the functions that look for names in the script or notebook without an error for one that was not sent."""
    main = sys.modules.get("__main__")
    for each in reached:
        here = each.__globals__
        if home_module(here) is None and not mentioned(each.__code__).isdisjoint(LOOKING_THROUGH):
            for text, alias in _scanned(each.__code__):
                if alias is None or here.get(alias) is main:
                    found = (
                        f"{_short(each)} looks through {text}, where tasks have only what the function mentions by "
                        "name: keep what it looks for in a dict"
                    )
                    yield f"scan: {each.__qualname__} {text}", found


@functools.lru_cache(4096)
def _scanned(code: types.CodeType) -> tuple[tuple[str, str | None], ...]:
    """Return (text, None or the name that may be that of the main module) of what a code looks through."""
    tree = tree_of(code)
    found: dict[str, str | None] = {}
    by_name: set[int] = set()
    for node in ast.walk(tree or ast.Module([], [])):
        if _is_by_name(node):
            by_name.update(map(id, ast.iter_child_nodes(node)))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and _is_for_one(node, node.func.attr):
            by_name.add(id(node.func.value))
        if not isinstance(node, ast.Call) or id(node) in by_name:
            continue
        function = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
        if function == "globals" and not node.args:
            found["globals()"] = None
        elif node.args and (function in ("vars", "dir", "getmembers") or _is_asked_for_computed(function, node)):
            text = ast.unparse(node.args[0])
            if "modules[" in text or isinstance(node.args[0], ast.Name):
                found[text] = None if "modules[" in text else text
    return tuple(found.items())


def _is_for_one(call: ast.Call, method: str) -> bool:
    """Return whether a call of a method names what it is for: ``globals().get("a")``."""
    return method == "update" or any(isinstance(each, ast.Constant) for each in call.args[:1])


def _is_by_name(node: ast.AST) -> bool:
    """Return whether a node asks for names that it has, or an absent one is an error: ``globals()[name]``."""
    if isinstance(node, ast.Compare):
        return isinstance(node.left, ast.Constant)  # ``"a" in globals()``
    if isinstance(node, ast.Call):
        return isinstance(node.func, ast.Name) and node.func.id in ("eval", "exec")
    return isinstance(node, ast.Subscript | ast.BinOp)  # ``"%(a)s" % globals()``


def _is_asked_for_computed(function: str, call: ast.Call) -> bool:
    if len(call.args) != {"hasattr": 2, "getattr": 3}.get(function):
        return False
    return not isinstance(call.args[1], ast.Constant)
