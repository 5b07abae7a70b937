"""The engine's user namespace: its names, how it is cleared, which names are restored then, and the globals that it
gets from functions.
"""

from __future__ import annotations

import ast
import builtins
import contextlib
import functools
import sys
import types
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import CodeType, FunctionType
from typing import Any

from ..serialization.function_globals import BY_CALL, Names, living, placed
from ..serialization.global_names import global_names, stored_globals, stored_names
from ..serialization.module_names import take_names
from ..serialization.modules import active, take_placed_names
from ..serialization.pack import pack, unpack_with_globals
from ..serialization.rebuild import came
from . import user_namespace
from .child_processes import ChildProcesses

_ABSENT = object()


class WrittenGlobals:
    """Watches the globals of functions that stay in the namespace, if the functions assign to globals.

    In IPython 0.10 a pushed function ran in the engine's namespace, so ``global model; model = load()`` prepared the
    engine for later commands, and ``global n; n += 1`` counted in the engine's ``n``. Here a function brings globals of
    its own (`serialization.function_globals`). What it has assigned goes to the namespace after each statement of a
    cell, and at the end of each command and task. A command places the name by hand, as if it had assigned the name
    itself. A task changes names that were placed by hand, and no others.
    """

    def __init__(self) -> None:
        self._watched: list[tuple[weakref.ref[Names], frozenset[str]]] = []
        self._by_hand = False
        self._before: dict[tuple[int, str], Any] = {}
        """The globals of `_watched` when the command began: (identity of the globals, name) -> value."""

    def watch(self, found: Iterable[Names]) -> None:
        """Watch the globals of functions that were unpacked into the namespace."""
        new = [(weakref.ref(each), stores) for each in found if each.assigned and (stores := _stores(each))]
        if new:
            self._watched = [known for known in self._watched if known[0]() is not None] + new

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch the globals of all functions that the block brings into the namespace."""
        before = {id(each) for each in living()}
        yield
        self.watch(each for each in living() if id(each) not in before)

    @contextmanager
    def by_hand(self) -> Iterator[None]:
        """Run a command: what functions assign meanwhile is placed by hand."""
        self.begin()
        try:
            yield
        finally:
            self.end()

    def begin(self) -> None:
        """Begin a command."""
        self.take()
        self._by_hand = True
        # What tasks have assigned was not placed by hand.
        self._before = {
            (id(names), name): names.globals.get(name, _ABSENT)
            for reference, stores in self._watched
            if (names := reference()) is not None
            for name in stores
        }

    def end(self) -> None:
        """End a command."""
        self.take()
        self._by_hand = False
        self._before = {}

    def take(self) -> None:
        """Move what functions have assigned into the namespace."""
        for reference, stores in self._watched:
            names = reference()
            if names is not None:
                self._take(names, stores)

    def _take(self, names: Names, stores: frozenset[str]) -> None:
        here = names.globals
        values = {}
        for name in stores:
            value = here.get(name, _ABSENT)
            if value is _ABSENT or (name not in names.taken and value is names.packed.get(name, _ABSENT)):
                continue
            if name in placed.by or (self._by_hand and value is not self._before.get((id(names), name), _ABSENT)):
                values[name] = value
                del here[name]  # from now on it is looked up in the namespace
            elif name in names.taken:  # the task that runs has bound it, see `task_names`
                user_namespace()[name] = here.pop(name)
        if values:
            place_by_call(values, next(each.__qualname__ for each in names.functions if _assigns(each, values)))


def _assigns(function: types.FunctionType, names: Iterable[str]) -> bool:
    return not _stored_globals(function.__code__).isdisjoint(names)


@functools.lru_cache(4096)
def _stored_globals(code: types.CodeType) -> frozenset[str]:
    return frozenset(stored_globals(code))


def _stores(names: Names) -> frozenset[str]:
    """Return the globals that functions with these globals may assign."""
    return frozenset[str]().union(*(_stored_globals(each.__code__) for each in names.functions))


written_globals = WrittenGlobals()


def place_by_call(values: dict[str, Any], function: str) -> None:
    """Bind names that a function has assigned, with the precedence of pushed names over what functions bring.

    function: its qualified name.
    """
    user_namespace().update(values)
    placed.add(values, BY_CALL + function)
    take_placed_names()


class TaskNames:
    """The names that functions in the namespace have brought, and that a task may bind.

    IPython 0.10's tasks gave pushed functions their parameters in this way:
    ``StringTask("r = model()", push={"a": 5})``. So the names that the task itself pushes or assigns take precedence
    over what functions of the namespace have brought, like names that were placed by hand. When the task has ended they
    are names that a task has left, and do not.
    """

    def __init__(self) -> None:
        self.brought: dict[str, list[weakref.ref[Names]]] = {}
        """Name -> the globals of the functions that have brought a value for it."""

    def watch(self, found: Iterable[Names]) -> None:
        """Watch the globals of functions that were unpacked into the namespace."""
        for names in found:
            reference = weakref.ref(names)
            for name in names.packed:
                if not name.startswith("__"):
                    known = [each for each in self.brought.get(name, ()) if each() is not None]
                    self.brought[name] = [*known, reference]

    def bound_by(self, pushed: Iterable[str], codes: Iterable[CodeType | None]) -> frozenset[str]:
        """Return the names in `brought` that a task binds: those that it pushes, and those that its code assigns."""
        brought = self.brought.keys()
        found = frozenset(brought & {*pushed})
        for code in codes:
            if code is not None and not brought.isdisjoint(code.co_names):
                found |= brought & _stored(code)
        return found

    @contextmanager
    def preferred(self, bound: frozenset[str]) -> Iterator[None]:
        """Let functions in the namespace find these names there."""
        changed = []
        for name in bound:
            for reference in self.brought[name]:
                names = reference()
                if names is not None and name not in names.taken:
                    names.prefer(name)
                    changed.append(names)
        try:
            yield
        finally:
            for names in changed:
                names.hide()


@functools.lru_cache(1024)
def _stored(code: CodeType) -> frozenset[str]:
    return frozenset(stored_names(code))


task_names = TaskNames()


_SAID_MAX = 10_000
_PLAIN = (int, float, complex, str, bytes, bool, type(None))


class NameNotices:
    """Writes one line of standard error for each function and name, into the output of the run that first shows it."""

    def __init__(self) -> None:
        self._said: set[tuple[str, str]] = set()
        self._gathered: list[str] | None = None

    def tell(self, functions: Iterable[FunctionType], name: str, brought: Any, found: Any) -> None:
        """Write the notice, unless it was written before or the values are the same."""
        function = next((each for each in functions if name in global_names(each.__code__)), None)
        if function is None or name not in placed.by:  # the task itself has bound it
            return
        if placed.by[name].startswith(BY_CALL):
            return
        module = function.__module__
        label = function.__qualname__ if module == "__main__" else f"{module}.{function.__qualname__}"
        if (label, name) in self._said or _is_same(brought, found):
            return
        if len(self._said) >= _SAID_MAX:
            self._said.clear()
        self._said.add((label, name))
        own = "this session's" if module == "__main__" else f"{module}'s"
        if name in vars(builtins) and brought is vars(builtins)[name]:
            own = "Python's"
        text = f"{label} uses {name} from the engines (placed there by {placed.by.get(name, 'hand')}), not {own}"
        if self._gathered is not None:
            self._gathered.append(text)
        else:
            print(f"ipytaskfarm: {text}", file=sys.stderr)

    @contextlib.contextmanager
    def gathered(self) -> Iterator[list[str]]:
        """Collect the notices of the block in a list, for code that has no output of its own."""
        outer = self._gathered
        texts: list[str] = []
        self._gathered = texts
        try:
            yield texts
        finally:
            self._gathered = outer


def _is_same(one: Any, other: Any) -> bool:
    """Return whether two values have the same effect. Values that cannot be compared count as different."""
    if one is other:
        return True
    if type(one) is not type(other):
        return False
    if isinstance(one, _PLAIN):
        return bool(one == other) or one != one
    if getattr(one, "shape", None) is not None and str(one.shape) != str(other.shape):
        return False  # parts of a scatter, which need not be unpacked for this
    try:
        return pack(one) == pack(other)
    except Exception:
        return False


_MODULE_NAMES = ("__name__", "__doc__", "__package__", "__loader__", "__spec__", "__builtin__", "__builtins__")


class EngineId(int):
    """The engine's number, bound to ``id`` on an engine. Called as a function, it does what the builtin does."""

    def __call__(self, obj: object, /) -> int:
        return builtins.id(obj)

    def __reduce__(self) -> tuple[Any, ...]:
        return int, (int(self),)

    __hash__ = int.__hash__


class Namespace:
    """The shell's ``user_ns`` with the rules of ``clear_before``, ``clear_after`` and ``reset``.

    These empty the namespace, In, Out and ``_*``, and numbering restarts. ``id``, IPython's own names and the names
    that sticky commands bound exist afterwards. ``sys.modules`` and the properties stay.
    """

    def __init__(self, shell: Any, engine_id: int) -> None:
        self._shell = shell
        self.names: dict[str, Any] = shell.user_ns
        self.names["id"] = EngineId(engine_id)
        shell.user_ns_hidden["id"] = self.names["id"]
        self._own = dict(self.names)
        self._hidden = dict(shell.user_ns_hidden)
        self.sticky: dict[str, Any] = {}
        self.children: ChildProcesses | None = None
        self._before_cell: dict[str, Any] = {}
        self.notices = NameNotices()
        shell.clear_names = self.clear
        placed.namespace = self.names
        placed.tell = self.notices.tell

    def clear(self) -> None:
        """Empty the namespace. Python reports errors of objects that die with it (``__del__``)."""
        shell = self._shell
        history = shell.history_manager
        # IPython's own reset takes milliseconds, half of it for a garbage collection; a task may ask for two resets.
        history.input_hist_parsed[:] = [""]
        history.input_hist_raw[:] = [""]
        history.output_hist.clear()
        history.output_hist_reprs.clear()
        history.outputs.clear()
        history.exceptions.clear()
        history._i00 = history._i = history._ii = history._iii = ""
        shell.execution_count = 1
        shell.last_execution_result = None
        hook = shell.displayhook
        hook._, hook.__, hook.___ = "", "", ""
        names = self.names
        names.clear()
        names.update(self._own)
        names.update(self.sticky)
        placed.keep_only(self.sticky)
        take_names(tell=False)
        if self.children is not None:
            self.children.forget_kept()
        shell.user_ns_hidden.clear()
        shell.user_ns_hidden.update(self._hidden)

    def provide(self, name: str, value: object) -> None:
        """Bind a name that belongs to the farm: it is not listed among the user's names, and survives `clear`."""
        self.names[name] = self._own[name] = value
        self._shell.user_ns_hidden[name] = self._hidden[name] = value

    def push(self, packed: bytes) -> list[str]:
        """Bind the names of a packed dict, and return them."""
        values, found = unpack_with_globals(packed, self.names)
        self.names.update(values)
        written_globals.watch(found)
        task_names.watch(found)
        if (came or active) and self.children is not None:
            self.children.keep()
        return list(values)

    def dump_session(self) -> tuple[bytes, dict[str, str]]:
        """Save the user's names. Return the session, and the names that were left out with the reason for each."""
        from ..serialization.dill_sessions import dump_session  # dill is imported when it is used

        return dump_session(self.names, {*self._hidden, *_MODULE_NAMES})

    def load_session(self, data: bytes, source: str) -> tuple[list[str], dict[str, str]]:
        """Bind the names of a session. Return them, and the names that were left out of it with the reason for each.

        Raises:
            SessionError: the session cannot be restored here. No name was changed.
        """
        from ..serialization.dill_sessions import load_session

        with written_globals.watching():
            head = load_session(data, self.names, source)
        if (came or active) and self.children is not None:
            self.children.keep()
        return head.names, head.left_out

    def snapshot(self) -> dict[str, Any]:
        """Return a copy of the namespace for `bound_since`."""
        return dict(self.names)

    def bound_since(self, before: dict[str, Any], code: str = "") -> list[str]:
        """Return the names that were bound since the snapshot, without IPython's own.

        code: Python source that ran since then, to recognise an assignment of the same object.
        """
        stored: set[str] | None = None
        bound = []
        for name, value in self.names.items():
            if _is_bookkeeping(name):
                continue
            if name not in before or before[name] is not value:
                bound.append(name)
            elif name not in placed.by and name in code and name not in self._own:
                stored = assigned_names(code) if stored is None else stored
                if name in stored:
                    bound.append(name)
        return bound

    def place(self, names: Iterable[str], by: str) -> None:
        """Record that names were placed by hand, so that they take precedence over those that functions bring.

        by: how they were placed, such as "push".
        """
        placed.add(names, by)
        placed.keep_only(self.names)
        take_placed_names()

    def placed_of(self, names: Iterable[str]) -> dict[str, str]:
        """Return how these names were placed by hand; names that were not are left out."""
        return {name: placed.by[name] for name in names if name in placed.by}

    def begin_cell(self) -> None:
        """Prepare for a console's cell."""
        written_globals.begin()
        self._before_cell = self.snapshot()

    def end_cell(self) -> None:
        """Record the names that a console's cell has bound as placed by hand."""
        written_globals.end()
        self.place(self.bound_since(self._before_cell), "a console")
        self._before_cell = {}

    def keep(self, names: Iterable[str]) -> None:
        """Make names sticky."""
        for name in names:
            self.sticky[name] = self.names[name]

    def user_keys(self) -> list[str]:
        """Return the user's names in order."""
        hidden = {*self._hidden, *_MODULE_NAMES}
        return [name for name in self.names if name not in hidden and not _is_bookkeeping(name)]

    @property
    def execution_count(self) -> int:
        """Return the number of the next command."""
        count: int = self._shell.execution_count
        return count

    def pull(self, name: str) -> Any:
        """Return the value of a name.

        Raises:
            NameError: there is no such name.
        """
        try:
            return self.names[name]
        except KeyError:
            raise NameError(f"name {name!r} is not defined", name=name) from None


def assigned_names(code: str) -> set[str]:
    """Return the names that code binds at the top level; nothing if it does not compile by itself."""
    with contextlib.suppress(SyntaxError, ValueError):
        return stored_names(compile(code, "", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True))
    return set()


def _is_bookkeeping(name: str) -> bool:
    """Return whether IPython maintains the name: ``_``, ``__``, ``_i``, ``_7``, ``_i7``, ``_ih`` …"""
    if not name.startswith("_"):
        return False
    rest = name.lstrip("_").removeprefix("i")
    return rest in {"", "i", "ii", "h", "oh", "dh", "exit_code"} or rest.isdigit()
