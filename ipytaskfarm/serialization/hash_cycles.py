"""Objects that contain themselves through a set or as a key of a dict.

Pickle puts an object into its set before the object has its state. Then a ``__hash__`` of its own fails, or gives a
hash by which the object is not found later. Such objects are built as instances of a temporary subclass that hashes by
identity. When the whole value is built, they get their own class, and the sets and dicts that have them are filled
again, also those outside of the cycle. A frozenset cannot be filled again: what is in one is left to pickle.

A search of the object graph with `gc.get_referents` finds these objects. It considers only objects with a hash written
in Python, looks at each object once per pickle, and examines further only if it meets a set, or a dict with keys other
than strings and numbers.
"""

from __future__ import annotations

import copyreg
import gc
import io
import itertools
import types
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

from . import rebuild_classes as build_classes
from .definition_stages import DEFINITIONS, LEAVES, Stages

_LOOKED_AT_MAX = 1_000_000


class SettlingPickler(Protocol):
    """The parts of a pickler that this module uses."""

    value: Any
    """The object that is being pickled."""
    cycles: Cycles | None
    inline: bool
    """Whether the value is a definition."""
    opened: list[Stages]
    """The stages of the definitions in this pickle, see `definition_stages`."""
    kinds: dict[type, Any]
    """Type -> its reducer in this pickle."""

    @property
    def memo(self) -> Any:
        """Return pickle's table of the objects that are written already."""

    def dump(self, obj: Any, /) -> None:
        """Write the pickle of an object."""

    def clear_memo(self) -> None:
        """Forget which objects are written already."""


class Cycles:
    """What one pickle knows of cycles among its objects."""

    def __init__(self) -> None:
        self.seen: set[int] = set()
        """Addresses of the objects that were examined."""
        self.groups: list[list[Any]] = []
        """The groups of objects that reach each other through sets or dicts."""
        self.members: dict[int, Any] = {}
        """Address -> an object that is first built as an instance of a temporary class."""
        self.containers: list[Any] = []
        """The sets and dicts that are filled again at the end."""
        self.frozen: list[frozenset[Any]] = []
        """The frozensets that were met."""
        self.has_functions = False
        """Whether functions were met. The objects that functions refer to are not examined."""
        self._skipped: set[type] = set(LEAVES)

    def look(self, start: Any) -> None:
        """Find the cycles among the objects that `start` reaches."""
        known = len(self.groups), len(self.frozen)
        hashing = self._reach([start])
        if hashing and self._is_reached_again(hashing):
            for group in _groups(start, self.seen):
                is_hashed = not hashing.keys().isdisjoint(map(id, group))
                if is_hashed and any(map(has_own_hash, set(map(type, group)))):
                    self.groups.append(group)
        if self.groups and known != (len(self.groups), len(self.frozen)):
            frozen = {id(each) for container in self.frozen for each in _hashed_in(container)}
            settled = (each for group in self.groups if frozen.isdisjoint(map(id, group)) for each in group)
            self.members = {id(each): each for each in settled if has_own_hash(type(each))}
        if self.members:
            self.containers += (each for each in hashing.values() if self._has_members(each))

    def look_at_new(self, starts: Iterable[Any]) -> None:
        """Look from those of these objects that were not examined."""
        for each in starts:
            if id(each) not in self.seen:
                self.look(each)

    def _has_members(self, container: Any) -> bool:
        return any(id(each) in self.members for each in _hashed_in(container))

    def _is_reached_again(self, hashing: dict[int, Any]) -> bool:
        """Return whether one of the sets and dicts is reachable from any of them.

        This first test is cheaper than `_groups`.
        """
        behind = Cycles()
        behind._reach(gc.get_referents(*hashing.values()))
        return not behind.seen.isdisjoint(hashing)

    def _reach(self, frontier: list[Any]) -> dict[int, Any]:
        """Return the newly met containers that hash their items, by address.

        As much as possible is done by loops in C, since the cost arises for each object of a large pickle.
        """
        hashing: dict[int, Any] = {}
        while frontier and len(self.seen) < _LOOKED_AT_MAX:
            skipped = self._skipped
            kinds = set(map(type, frontier))
            for kind in kinds - skipped:
                if issubclass(kind, DEFINITIONS):
                    skipped.add(kind)
                    self.has_functions |= kind is types.FunctionType
                elif issubclass(kind, set | dict):
                    containers = [each for each in frontier if type(each) is kind]
                    if not LEAVES.issuperset(map(type, itertools.chain.from_iterable(containers))):
                        hashing.update((id(each), each) for each in containers if _hashes_others(each))
                elif kind is frozenset:
                    self.frozen += (each for each in frontier if type(each) is kind and _hashes_others(each))
            # Most objects are of a level that is skipped whole, or not at all.
            if kinds <= skipped:
                break
            if not kinds.isdisjoint(skipped):
                frontier = [each for each in frontier if type(each) not in skipped]
            new = set(map(id, frontier))
            if len(new) < len(frontier) or not new.isdisjoint(self.seen):
                new -= self.seen
                frontier = [each for key, each in {id(each): each for each in frontier}.items() if key in new]
            self.seen |= new
            frontier = gc.get_referents(*frontier)
        return hashing


def _hashes_others(container: set[Any] | frozenset[Any] | dict[Any, Any]) -> bool:
    return not LEAVES.issuperset(map(type, container))


def _hashed_in(container: Iterable[Any]) -> Iterator[Any]:
    """Yield what a container hashes: its items or keys, and the items of tuples and frozensets among them."""
    for each in container:
        yield each
        if type(each) in (tuple, frozenset):
            yield from _hashed_in(each)


def _found(kind: type, name: str) -> type:
    return next(each for each in kind.__mro__ if name in vars(each))


def has_own_hash(kind: type) -> bool:
    """Return whether the class has a hash written in Python and its instances are built in pickle's
    default two steps.

    The class's attributes are not asked for: a mock makes a new one at each look.
    """
    return (
        isinstance(vars(_found(kind, "__hash__"))["__hash__"], types.FunctionType)
        and _found(kind, "__reduce_ex__") is object
        and _found(kind, "__reduce__") is object
        and kind not in copyreg.dispatch_table
    )


def _groups(start: Any, found: set[int]) -> list[list[Any]]:
    """Return the groups of objects that reach each other: Tarjan's strongly connected components with
    several members.
    """
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
    """Reduce an object in pickle's own way, unless it is in a cycle through a set or dict."""
    cycles = pickler.cycles
    if cycles is None:
        cycles = pickler.cycles = Cycles()
        if not pickler.inline:  # if it is inline, the value is a definition
            cycles.look(pickler.value)
    if id(obj) not in cycles.seen:
        cycles.look(obj)
    elif not cycles.groups and not cycles.has_functions and not pickler.inline:
        pickler.kinds[type(obj)] = None  # everything has been examined and there is no cycle
    if id(obj) not in cycles.members:
        return NotImplemented
    reduced: Any = obj.__reduce_ex__(5)
    create, arguments, state, *items = (*reduced, None, None, None)[:5]
    start = (create, arguments)
    return build_classes.new_provisional, start, (state,), *items, build_classes.fill_provisional


def dump_settled(pickler: SettlingPickler, file: io.BytesIO, value: Any) -> None:
    """Pickle a value. If it has such cycles, pickle it again with the steps that settle the hashes at the end."""
    pickler.value = value
    pickler.dump(value)
    pickler.value = None
    if pickler.cycles is not None and pickler.cycles.groups:
        # What hashes the objects may be in globals that were written before or after them.
        pickler.cycles.look_at_new(part for stages in pickler.opened for part in stages.parts())
        pickler.opened = []
        file.seek(0)
        file.truncate()
        pickler.clear_memo()
        pickler.dump(Finished(value))


class Finished:
    """A value with such cycles, to be followed in the pickle by the steps that settle the hashes."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value


class _Found:
    """Marker at the end of a pickle: the objects from this list that the pickle contains."""

    __slots__ = ("objects",)

    def __init__(self, objects: list[Any]) -> None:
        self.objects = objects


def reduce_finished(pickler: SettlingPickler, finished: Finished) -> Any:
    """Reduce the value to a call that settles its hashes."""
    assert pickler.cycles is not None
    members = _Found(list(pickler.cycles.members.values()))
    return build_classes.settle_hashes, (finished.value, members, _Found(pickler.cycles.containers))


def reduce_found(pickler: SettlingPickler, found: _Found) -> Any:
    """Reduce the marker to a list of the objects that are in the pickle already.

    Objects that the state of their owner leaves out are not in the pickle, and the marker does not bring them in.
    """
    memo = pickler.memo.copy()
    return list, ([each for each in found.objects if id(each) in memo],)


CYCLE_REDUCERS: dict[type, Callable[[Any, Any], Any]] = {Finished: reduce_finished, _Found: reduce_found}
