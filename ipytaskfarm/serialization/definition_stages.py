"""The order in which definitions that refer to one another are written into a pickle.

A class or function that travels by value often reaches itself: a method uses its class as a global, a class holds
instances of itself. Pickle closes such a cycle wherever it meets it, possibly in front of an instance of a class that
has no methods yet. Therefore a definition is written in three stages:

1. *created*: the class or function, with all parts that need no other definition. Functions have code, name and
   empty cells; classes have their methods.
2. *completed*: globals, defaults, cells and attributes that hold definitions, or data of classes that go by name.
3. *data*: parts that reach instances of classes that travel by value. Such instances need complete classes to be
   built, and complete hashes to be found again.

The first definition that a pickle meets opens the stages. Each other definition that is reached from its stages 1 and 2
joins them. A definition that is first met in stage 3 opens stages of its own, and is complete before its instance.

The steps are items of one list that grows while the C pickler writes it: for an exact list, the pickler reads the
length again after each item. Since Python 3.14 it refuses such a list, and takes the items from a generator instead,
which costs some microseconds for each definition.
"""

from __future__ import annotations

import contextlib
import gc
import sys
import types
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol
from weakref import WeakKeyDictionary, WeakSet, WeakValueDictionary, ref

from . import rebuild as build, rebuild_classes as build_classes
from .function_parts import function_of

_WALKED_MAX = 20_000
_HEAP_TYPE = 1 << 9
DEFINITIONS = (types.FunctionType, type, types.ModuleType, types.CodeType, types.CellType)
LEAVES = frozenset(
    {type(None), type(...), type(NotImplemented), bool, int, float, complex, str, bytes, bytearray, range}
)


class StagedPickler(Protocol):
    """The parts of a pickler that the stages use."""

    stages: Stages | None
    """The stages that definitions join at present."""
    opened: list[Stages]
    """All stages of this pickle so far."""
    suspended: list[Stages | None]
    """The stages that are suspended while a value is written whole, the innermost last."""
    owner: type | None
    """The class that the most recently written step belongs to."""


class DefinitionStep:
    """One action on a definition, written at most once."""

    __slots__ = ("action", "owner", "part", "subject", "written")

    def __init__(self, action: Callable[[Any, Any], None], subject: Any, part: Any, owner: type | None) -> None:
        self.action = action
        self.subject = subject
        self.part = part
        self.owner = owner
        """The class that is incomplete without this step."""
        self.written = False


class Whole:
    """A value of which all definitions must be complete before any of its objects is built."""

    __slots__ = ("classes", "value")

    def __init__(self, value: Any, classes: Iterable[type] = ()) -> None:
        self.value = value
        self.classes = classes
        """Classes that may have been created already. Their waiting steps are written first."""


class Pull:
    """Marker in a pickle: the waiting steps of these classes are written here."""

    __slots__ = ("classes",)

    def __init__(self, classes: Iterable[type]) -> None:
        self.classes = classes


class After:
    """A value that is built after the waiting steps of classes that it uses, without suspending the stages."""

    __slots__ = ("classes", "value")

    def __init__(self, value: Any, classes: tuple[type, ...]) -> None:
        self.value = value
        self.classes = classes


class _Mark:
    """Marker in a pickle where the open stages are suspended or resumed."""

    __slots__ = ("suspends",)

    def __init__(self, suspends: bool) -> None:
        self.suspends = suspends


class _Growing:
    """A list that grows while it is written."""

    __slots__ = ("items",)

    def __init__(self, items: list[Any]) -> None:
        self.items = items


class _Turn:
    """Marker at the end of the steps that decides what follows."""

    __slots__ = ("stages",)

    def __init__(self, stages: Stages) -> None:
        self.stages = stages


class Stages:
    """The steps of the definitions that were opened together."""

    def __init__(self, by_value: Callable[[type], bool], parent: Stages | None) -> None:
        self._by_value = by_value
        self._parent = parent
        self._kinds: dict[type, bool] = {} if parent is None else parent._kinds
        self.steps: list[Any] = [None, _Turn(self)]
        self._late: list[tuple[DefinitionStep, set[type]]] = []
        self.classes: list[type] = []

    def add(self, action: Callable[[Any, Any], None], subject: Any, part: Any, owner: type | None) -> None:
        """Add a step to the second stage, or to the third stage if its part reaches instances."""
        classes = self.instances_in(part)
        if classes:
            self.add_late(action, subject, part, owner, classes)
        else:
            self.steps.append(DefinitionStep(action, subject, part, owner))

    def add_late(
        self, action: Callable[[Any, Any], None], subject: Any, part: Any, owner: type | None, classes: set[type]
    ) -> None:
        """Add a step to the third stage."""
        self._late.append((DefinitionStep(action, subject, Whole(part, classes), owner), classes))

    def add_each(
        self, action: Callable[[Any, Any], None], subject: Any, parts: dict[str, Any], owner: type | None
    ) -> None:
        """Add one step for all parts that reach no instances, and one step for each other part."""
        plain: dict[str, Any] = {}
        late = []
        for name, part in parts.items():
            classes = self.instances_in(part)  # looks through all of it: once, because it may be a large list
            if classes:
                late.append((name, part, classes))
                plain.update(_until_then(name, part, classes, owner))
            else:
                plain[name] = part
        if plain:
            self.steps.append(DefinitionStep(action, subject, plain, owner))
        for name, part, classes in late:
            self.add_late(action, subject, {name: part}, owner, classes)

    def instances_in(self, value: Any) -> set[type]:
        """Return the by-value classes that a value contains instances of. Functions and classes are not searched."""
        found: set[type] = set()
        if type(value) in LEAVES:
            return found
        waiting = [value]
        seen: dict[int, Any] = {}
        while waiting:
            obj = waiting.pop()
            kind = type(obj)
            if kind in LEAVES or id(obj) in seen or issubclass(kind, DEFINITIONS):  # isinstance asks dead proxies
                continue
            seen[id(obj)] = obj
            if kind is types.MethodType and isinstance(obj.__self__, type) and self._travels(obj.__self__):
                found.add(obj.__self__)  # pickle looks the method up in the class
            elif self._travels(kind):
                found.add(kind)
            if len(seen) > _WALKED_MAX:
                found.add(object)
                break
            referents = _referents(obj, kind)
            if not LEAVES.issuperset(map(type, referents)):
                waiting += referents
        return found

    def has_open(self, kind: type) -> bool:
        """Return whether the definition of a class, or of a base of it, is written in these stages or around them."""
        if any(each in self.classes for each in kind.__mro__):
            return True
        return self._parent is not None and self._parent.has_open(kind)

    def _travels(self, kind: type) -> bool:
        known = self._kinds.get(kind)
        if known is None:
            known = self._kinds[kind] = bool(kind.__flags__ & _HEAP_TYPE) and self._by_value(kind)
        return known

    def turn(self, pickler: StagedPickler, turn: _Turn) -> None:
        """Add the steps that follow once the known steps are written: one late step, or the completion
        of the classes.
        """
        if self.steps[-1] is turn:
            if self._late:
                self.steps.append(self._take())
            elif self._parent is None and self.classes:
                self.steps += [DefinitionStep(build_classes.finish_class, cls, None, None) for cls in self.classes]
                self.classes = []
            else:
                if self._parent is not None:
                    self._parent.classes += self.classes
                pickler.stages = None
                return
        self.steps.append(_Turn(self))

    def _take(self) -> DefinitionStep:
        """Remove and return the next step of the third stage, after the steps that complete the classes of its
        instances.
        """
        index = 0
        passed = {0}
        while True:
            classes = self._late[index][1]
            before = next(
                (n for n, (step, _) in enumerate(self._late) if n not in passed and step.owner in classes), None
            )
            if before is None:
                return self._late.pop(index)[0]
            index = before
            passed.add(index)

    def parts(self) -> Iterator[Any]:
        """Yield the parts of all steps, once they are written."""
        return (each.part for each in self.steps if isinstance(each, DefinitionStep))

    def waiting(self, classes: Iterable[type]) -> list[DefinitionStep]:
        """Return the unwritten steps of these classes, including those of the enclosing stages."""
        wanted = set(classes)
        steps = [each for each in self.steps if isinstance(each, DefinitionStep)] + [step for step, _ in self._late]
        found = [step for step in steps if step.owner in wanted and not step.written]
        return found if self._parent is None else found + self._parent.waiting(wanted)


def _referents(obj: Any, kind: Any) -> list[Any]:
    """Return what an object refers to; of one that its library reduces, like numba's functions, what it sends."""
    if issubclass(kind, ref):
        return [obj()]
    if type(kind.__reduce__) is types.FunctionType and kind.__reduce_ex__ is object.__reduce_ex__:
        with contextlib.suppress(Exception):  # its pickling tells
            return [obj.__reduce__()]
    return gc.get_referents(obj)


def _until_then(name: str, part: Any, classes: set[type], owner: type | None) -> dict[str, Any]:
    """Return what a name stands for while instances in its value are made by code of the user, as ``__reduce__`` says.

    That code may look into the very table that it fills, ``if key not in cls.known``, or ask for ``cls.only is None``.
    """
    if not any(_is_made_by_code(each) for each in classes):
        return {}
    kind = type(part)
    if kind in _TABLES:
        return {name: kind()}
    if kind is defaultdict:
        return {name: defaultdict(part.default_factory)}
    if kind not in classes:
        return {}
    functions = map(function_of, vars(owner).values() if owner is not None else ())
    codes = [each.__code__ for each in functions if type(each) is types.FunctionType]
    return {} if any("hasattr" in code.co_names for code in codes) else {name: None}


def _is_made_by_code(kind: Any) -> bool:
    """Return whether pickle makes instances by calling code of the user."""
    return types.FunctionType in (type(kind.__reduce__), type(kind.__reduce_ex__))


_TABLES = frozenset((dict, list, set, OrderedDict, deque, WeakKeyDictionary, WeakSet, WeakValueDictionary))


def _suspended(pickler: StagedPickler) -> Stages | None:
    return next((each for each in reversed(pickler.suspended) if each is not None), None)


def join(pickler: StagedPickler, by_value: Callable[[type], bool]) -> tuple[Stages, list[Any] | None]:
    """Return (the open stages, None), or (new stages, the list of their steps, which the caller puts
    into the pickle).
    """
    if pickler.stages is not None:
        return pickler.stages, None
    stages = Stages(by_value, _suspended(pickler))
    pickler.stages = stages
    pickler.opened.append(stages)
    return stages, stages.steps


def reduced(create: Callable[..., Any], arguments: tuple[Any, ...], steps: list[Any] | None) -> Any:
    """Return the reduction of a definition that has joined the stages; `steps` is not None if it opened them."""
    if steps is None:
        return create, arguments
    growing = _Growing(steps) if sys.version_info >= (3, 14) else steps
    return create, arguments, growing, None, None, build_classes.finish


_BATCH = 1000
"""The number of items that the C pickler writes in one go.  It takes the first two before it writes either."""


def _reduce_growing(pickler: StagedPickler, growing: _Growing) -> Any:
    """Reduce a list to its items, those included that it gets while it is written."""
    return list, (), None, _each_so_far(growing.items)


def _each_so_far(items: list[Any]) -> Iterator[Any]:
    """Yield each item when all before it have been written, with two Nones where the pickler takes two at once."""
    position = number = 0
    while position < len(items):
        if number % _BATCH < 2:
            yield None
        else:
            yield items[position]
            position += 1
        number += 1


def reduce_step(pickler: StagedPickler, step: DefinitionStep) -> Any:
    """Reduce a step to the call of its action."""
    step.written = True
    pickler.owner = step.owner
    return step.action, (step.subject, step.part)


def reduce_whole(pickler: StagedPickler, whole: Whole) -> Any:
    """Reduce a value to itself between two marks, after the waiting steps of its classes."""
    return build_classes.whole, (_Mark(True), Pull(whole.classes), whole.value, _Mark(False))


def reduce_after(pickler: StagedPickler, after: After) -> Any:
    """Reduce a value to its classes, then their waiting steps, then the value: writing a class makes its
    steps known.
    """
    return build_classes.whole, (*after.classes, Pull(after.classes), after.value, None)


def reduce_pull(pickler: StagedPickler, pull: Pull) -> Any:
    """Reduce the marker to a list of the waiting steps. The list itself is not used."""
    stages = pickler.stages or _suspended(pickler)
    waiting = stages.waiting(pull.classes) if stages is not None and pull.classes else []
    return build.same, (waiting or None,)


def reduce_mark(pickler: StagedPickler, mark: _Mark) -> Any:
    """Suspend or resume the stages, and reduce the mark to None."""
    if mark.suspends:
        pickler.suspended.append(pickler.stages)
        pickler.stages = None
    else:
        pickler.stages = pickler.suspended.pop()
    return build.same, (None,)


def reduce_turn(pickler: StagedPickler, turn: _Turn) -> Any:
    """Add the steps that follow, and reduce the marker to None."""
    turn.stages.turn(pickler, turn)
    return build.same, (None,)


STAGE_REDUCERS: dict[type, Callable[[Any, Any], Any]] = {
    DefinitionStep: reduce_step,
    Whole: reduce_whole,
    After: reduce_after,
    Pull: reduce_pull,
    _Growing: _reduce_growing,
    _Mark: reduce_mark,
    _Turn: reduce_turn,
}
