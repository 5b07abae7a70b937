"""Objects that hold themselves in a set or as a key of a dict.

Pickle puts an object into its set before the object has its state, so that a ``__hash__`` of its own fails, or gives
a hash that is not found again.  Such objects are built under a class that stands in for theirs, whose hash is the
identity; when the whole value is there they get their class, and the sets and dicts are filled anew.

A look through the object graph by `gc.get_referents` finds them.  Only objects whose class has a hash written in
Python are looked at, only once in a pickle, and with a set or a dict of other keys than strings and numbers behind.
"""

from __future__ import annotations

import copyreg
import gc
import io
import types
from typing import TYPE_CHECKING, Any

from . import pack_build_classes as build_classes
from .pack_stages import LEAVES

if TYPE_CHECKING:
    from .pack_reduce import Pickler

_LOOKED_AT_MAX = 1_000_000
_DEFINITIONS = (types.FunctionType, type, types.ModuleType, types.CodeType, types.CellType)


class Cycles:
    """What is known of the objects of one pickle."""

    def __init__(self) -> None:
        self.seen: dict[int, Any] = {}
        """Objects by their addresses, looked at."""
        self.members: dict[int, Any] = {}
        """Those that are built under another class first."""
        self.containers: list[Any] = []
        """The sets and dicts that are filled anew."""

    def look(self, start: Any) -> None:
        """Find what `start` reaches."""
        found, hashing = self._reach(start)
        if hashing:
            for group in _groups(start, found):
                containers = [each for each in group if id(each) in hashing]
                if containers:
                    self.containers += containers
                    self.members.update((id(each), each) for each in group if has_own_hash(type(each)))

    def _reach(self, start: Any) -> tuple[dict[int, Any], set[int]]:
        """New objects by their addresses, and the addresses of those that hash others."""
        found: dict[int, Any] = {}
        hashing: set[int] = set()
        frontier = [start]
        while frontier and len(self.seen) < _LOOKED_AT_MAX:
            new = {id(each): each for each in frontier if type(each) not in LEAVES}
            new = {key: each for key, each in new.items() if key not in self.seen}
            new = {key: each for key, each in new.items() if not isinstance(each, _DEFINITIONS)}
            self.seen.update(new)
            found.update(new)
            hashing.update(key for key, each in new.items() if _hashes_others(each))
            frontier = gc.get_referents(*new.values())
        return found, hashing


def _hashes_others(obj: Any) -> bool:
    return isinstance(obj, set | dict) and not LEAVES.issuperset(map(type, obj))


def has_own_hash(kind: type) -> bool:
    """Whether the hash is written in Python, and the object is built in pickle's own two steps."""
    return (
        isinstance(kind.__hash__, types.FunctionType)
        and kind.__reduce_ex__ is object.__reduce_ex__
        and kind.__reduce__ is object.__reduce__
        and kind not in copyreg.dispatch_table
    )


def _groups(start: Any, found: dict[int, Any]) -> list[list[Any]]:
    """The objects that reach each other (Tarjan's strongly connected components of more than one)."""
    groups: list[list[Any]] = []
    index: dict[int, int] = {id(start): 0}
    low: dict[int, int] = {id(start): 0}
    stack = [start]
    on_stack = {id(start)}
    path = [(start, iter(gc.get_referents(start)))]
    while path:
        node, referents = path[-1]
        key = id(node)
        for each in referents:
            other = id(each)
            if other not in found:
                continue
            if other not in index:
                index[other] = low[other] = len(index)
                stack.append(each)
                on_stack.add(other)
                path.append((each, iter(gc.get_referents(each))))
                break
            if other in on_stack:
                low[key] = min(low[key], index[other])
        else:
            path.pop()
            if path:
                above = id(path[-1][0])
                low[above] = min(low[above], low[key])
            if low[key] == index[key]:
                position = next(n for n in range(len(stack) - 1, -1, -1) if stack[n] is node)
                group = stack[position:]
                del stack[position:]
                on_stack.difference_update(map(id, group))
                if len(group) > 1:
                    groups.append(group)
    return groups


def reduce_hashed(pickler: Pickler, obj: Any) -> Any:
    """Pickle's own way, unless the object is in a cycle through a set or dict."""
    cycles = pickler.cycles
    if cycles is None:
        if _is_plain(obj):
            return NotImplemented
        cycles = pickler.cycles = Cycles()
    if id(obj) not in cycles.seen:
        cycles.look(obj)
    if id(obj) not in cycles.members:
        return NotImplemented
    reduced: Any = obj.__reduce_ex__(5)
    create, arguments, state, *items = (*reduced, None, None, None)[:5]
    start = (create, arguments)
    return build_classes.new_provisional, start, (state,), *items, build_classes.fill_provisional


def _is_plain(obj: Any) -> bool:
    own = type(obj)
    for each in gc.get_referents(obj):
        kind = type(each)
        if kind in LEAVES or each is own:
            continue
        if (
            kind is not dict
            or not LEAVES.issuperset(map(type, each.values()))
            or not LEAVES.issuperset(map(type, each))
        ):
            return False
    return True


def dump_settled(pickler: Pickler, file: io.BytesIO, value: Any) -> None:
    """Pickle a value; once more if there are such objects in it, with what is to be done at the end."""
    pickler.dump(value)
    if pickler.cycles is not None and pickler.cycles.members:
        file.seek(0)
        file.truncate()
        pickler.clear_memo()
        pickler.dump(Finished(value))


class Finished:
    """The value of a pickle that has such objects."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value


class _Found:
    """Stands at the end: those of the objects that are in the pickle."""

    __slots__ = ("objects",)

    def __init__(self, objects: list[Any]) -> None:
        self.objects = objects


def reduce_finished(pickler: Pickler, finished: Finished) -> Any:
    """The value, then what is to be done with it."""
    assert pickler.cycles is not None
    members = _Found(list(pickler.cycles.members.values()))
    return build_classes.settle_hashes, (finished.value, members, _Found(pickler.cycles.containers))


def reduce_found(pickler: Pickler, found: _Found) -> Any:
    """A list; what its owner's state leaves out is not brought in by this."""
    memo = pickler.memo.copy()
    return list, ([each for each in found.objects if id(each) in memo],)


CYCLE_REDUCERS = {Finished: reduce_finished, _Found: reduce_found}
