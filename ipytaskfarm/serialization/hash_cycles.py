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
import itertools
import types
from collections.abc import Callable
from typing import Any, Protocol

from . import rebuild_classes as build_classes
from .definition_stages import LEAVES

_LOOKED_AT_MAX = 1_000_000
_DEFINITIONS = (types.FunctionType, type, types.ModuleType, types.CodeType, types.CellType)


class SettlingPickler(Protocol):
    """What this module needs of the pickler."""

    value: Any
    """What is being pickled."""
    cycles: Cycles | None
    inline: bool
    """Whether the value is a definition."""
    kinds: dict[type, Any]
    """Type -> its reducer in this pickle."""

    @property
    def memo(self) -> Any:
        """Pickle's table of the objects that are written already."""

    def dump(self, obj: Any, /) -> None:
        """Write the pickle of an object."""

    def clear_memo(self) -> None:
        """Forget what is written already."""


class Cycles:
    """What is known of the objects of one pickle."""

    def __init__(self) -> None:
        self.seen: set[int] = set()
        """Addresses of the objects that were looked at."""
        self.members: dict[int, Any] = {}
        """Those that are built under another class first."""
        self.containers: list[Any] = []
        """The sets and dicts that are filled anew."""
        self.has_functions = False
        """Functions were met: what they refer to was not looked at."""
        self._skipped: set[type] = set(LEAVES)

    def look(self, start: Any) -> None:
        """Find what `start` reaches."""
        hashing = self._reach([start])
        if hashing and self._is_reached_again(hashing):
            for group in _groups(start, self.seen):
                containers = [each for each in group if id(each) in hashing]
                if containers:
                    self.containers += containers
                    self.members.update((id(each), each) for each in group if has_own_hash(type(each)))

    def _is_reached_again(self, hashing: dict[int, Any]) -> bool:
        """Return whether one of the sets and dicts is behind one of them: the first look, cheaper than `_groups`."""
        behind = Cycles()
        behind._reach(gc.get_referents(*hashing.values()))
        return not behind.seen.isdisjoint(hashing)

    def _reach(self, frontier: list[Any]) -> dict[int, Any]:
        """Those new objects that hash others, by their addresses.

        As much as possible is done by loops in C: this is paid for each object of a large pickle.
        """
        hashing: dict[int, Any] = {}
        while frontier and len(self.seen) < _LOOKED_AT_MAX:
            skipped = self._skipped
            for kind in set(map(type, frontier)) - skipped:
                if issubclass(kind, _DEFINITIONS):
                    skipped.add(kind)
                    self.has_functions |= kind is types.FunctionType
                elif issubclass(kind, set | dict):
                    containers = [each for each in frontier if type(each) is kind]
                    if not LEAVES.issuperset(map(type, itertools.chain.from_iterable(containers))):
                        hashing.update((id(each), each) for each in containers if _hashes_others(each))
            frontier = [each for each in frontier if type(each) not in skipped]
            new = set(map(id, frontier))
            if len(new) < len(frontier) or not new.isdisjoint(self.seen):
                new -= self.seen
                frontier = [each for key, each in {id(each): each for each in frontier}.items() if key in new]
            self.seen |= new
            frontier = gc.get_referents(*frontier)
        return hashing


def _hashes_others(container: set[Any] | dict[Any, Any]) -> bool:
    return not LEAVES.issuperset(map(type, container))


def _found(kind: type, name: str) -> type:
    return next(each for each in kind.__mro__ if name in vars(each))


def has_own_hash(kind: type) -> bool:
    """Return whether the hash is written in Python, and the object is built in pickle's own two steps."""
    return (
        isinstance(kind.__hash__, types.FunctionType)
        and _found(kind, "__reduce_ex__") is object
        and _found(kind, "__reduce__") is object
        and kind not in copyreg.dispatch_table
    )


def _groups(start: Any, found: set[int]) -> list[list[Any]]:
    """Return the objects that reach each other (Tarjan's strongly connected components of more than one)."""
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


def reduce_hashed(pickler: SettlingPickler, obj: Any) -> Any:
    """Pickle's own way, unless the object is in a cycle through a set or dict."""
    cycles = pickler.cycles
    if cycles is None:
        cycles = pickler.cycles = Cycles()
        if not pickler.inline:  # else the value is a definition
            cycles.look(pickler.value)
    if id(obj) not in cycles.seen:
        cycles.look(obj)
    elif not cycles.members and not cycles.has_functions and not pickler.inline:
        pickler.kinds[type(obj)] = None  # all is known, and there is nothing
    if id(obj) not in cycles.members:
        return NotImplemented
    reduced: Any = obj.__reduce_ex__(5)
    create, arguments, state, *items = (*reduced, None, None, None)[:5]
    start = (create, arguments)
    return build_classes.new_provisional, start, (state,), *items, build_classes.fill_provisional


def dump_settled(pickler: SettlingPickler, file: io.BytesIO, value: Any) -> None:
    """Pickle a value; once more if there are such objects in it, with what is to be done at the end."""
    pickler.value = value
    pickler.dump(value)
    pickler.value = None
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


def reduce_finished(pickler: SettlingPickler, finished: Finished) -> Any:
    """Return the value, then what is to be done with it."""
    assert pickler.cycles is not None
    members = _Found(list(pickler.cycles.members.values()))
    return build_classes.settle_hashes, (finished.value, members, _Found(pickler.cycles.containers))


def reduce_found(pickler: SettlingPickler, found: _Found) -> Any:
    """Return a list; what its owner's state leaves out is not brought in by this."""
    memo = pickler.memo.copy()
    return list, ([each for each in found.objects if id(each) in memo],)


CYCLE_REDUCERS: dict[type, Callable[[Any, Any], Any]] = {Finished: reduce_finished, _Found: reduce_found}
