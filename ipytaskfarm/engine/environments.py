"""The task environment of an engine: set up for its first task, and torn down at the engine's end."""

from __future__ import annotations

import hashlib
import importlib
import io
import os
import sys
import traceback
import types
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from ..core.errors import EnvironmentSetupError
from ..core.messages import FromEngine, SetUp
from ..serialization.function_globals import Names, setup_globals
from ..serialization.function_parts import function_of
from ..serialization.modules import keep_active
from ..serialization.pack import unpack_environment
from ..serialization.pickler import Pickler
from .baseline import Baseline
from .namespace import Namespace

COMPARED_BYTES = 2**20
"""The largest pickle of a value whose content is compared. A change inside a larger value goes unnoticed."""
_UNCHANGING = (
    type(None), bool, int, float, complex, str, bytes, frozenset, type, types.FunctionType, types.BuiltinFunctionType,
    types.ModuleType, types.MethodType,
)  # fmt: skip


class _TooLong(Exception):
    """The pickle is longer than what is compared."""


class _Limited(io.BytesIO):
    def write(self, data: Any, /) -> int:
        if self.tell() + len(data) > COMPARED_BYTES:
            raise _TooLong
        return super().write(data)


def _fingerprint(value: object) -> bytes | None:
    """Return a digest of a value's content; None if it is too large, or cannot be pickled any more."""
    file = _Limited()
    try:
        Pickler(file, 5).dump(value)
    except Exception:
        return None
    return hashlib.blake2b(file.getbuffer(), digest_size=16).digest()


class _Before(NamedTuple):
    """A module's globals before the setup."""

    names: Names
    contents: dict[str, bytes | None]
    """Name -> digest of a value that can be changed in place."""


class _AttributesBefore(NamedTuple):
    """A function's attributes before the setup."""

    function: types.FunctionType
    values: dict[str, Any]
    contents: dict[str, bytes | None]
    """Name -> digest of a value that can be changed in place."""


def _contents(values: dict[str, Any]) -> dict[str, bytes | None]:
    return {name: _fingerprint(value) for name, value in values.items() if not isinstance(value, (*_UNCHANGING, Names))}


class SetupWatch:
    """Finds the globals that a setup assigns or changes: make it before the setup, and call `record` after it.

    A worker of a process pool calls the initializer in the module of the functions that it calls later: these see what
    the initializer has assigned. A by-value function brings its own globals instead. Therefore an engine keeps the
    globals that the setup of its environment has assigned, and those whose content it has changed; while a task of the
    environment runs, they take precedence over the values that functions of the same module bring. The same holds for
    attributes of functions (``work.queue = queue``), which go to the functions of the same module and name. Names that
    were placed on the engine by hand take precedence over all globals.
    """

    def __init__(self, instance: object, brought: Iterable[Names]) -> None:
        """Watch an environment; brought: the globals of the functions that came with it."""
        found = {id(names): names for names in (*brought, *_of_methods(type(instance)))}
        self._before = [_Before(names, _contents(names.packed)) for names in found.values()]
        self._attributes = [
            _AttributesBefore(function, dict(vars(function)), _contents(vars(function)))
            for names in found.values()
            for function in names.functions
        ]

    def record(self) -> None:
        """Keep what the setup has assigned or changed for the functions of the environment's tasks."""
        for names, contents in self._before:
            changed = {
                name: value
                for name, value in names.globals.items()
                if self._is_new(names, name, value) or self._has_changed(contents, name, value)
            }
            setup_globals.add(names, changed)
        for function, values, contents in self._attributes:
            now = vars(function)
            setup_globals.add_attributes(
                function,
                {
                    name: value
                    for name, value in now.items()
                    if name not in values or value is not values[name] or self._has_changed(contents, name, value)
                },
            )

    @staticmethod
    def _is_new(names: Names, name: str, value: object) -> bool:
        if name in names.packed:
            return value is not names.packed[name]
        return not names.is_builtin(name, value)  # those were copied for speed

    @staticmethod
    def _has_changed(contents: dict[str, bytes | None], name: str, value: object) -> bool:
        before = contents.get(name)
        return before is not None and _fingerprint(value) != before


def _of_methods(cls: type) -> list[Names]:
    """Return the globals of the methods of a class and its bases: the class may have been built for an earlier task."""
    members = [member for each in cls.__mro__ for member in vars(each).values()]
    functions = [found for found in map(function_of, members) if type(found) is types.FunctionType]
    found = [function.__globals__.get("__builtins__") for function in functions]
    return [names for names in found if isinstance(names, Names)]


class Environments:
    """The environment of the engine: at most one in the engine's whole life."""

    def __init__(
        self, engine: str, namespace: Namespace, baseline: Baseline, send: Callable[[FromEngine], None]
    ) -> None:
        self._engine = engine
        self._namespace = namespace
        self._baseline = baseline
        self._send = send
        self.ready: str | None = None
        """The identity of the environment that is set up."""
        self.failed = False
        """Whether a setup did not finish. Then no task that needs an environment can run here."""
        self.instance: Any = None

    def set_up(self, identity: str, code: bytes) -> None:
        """Unpack the environment, change to its folder, import its preloads and call its `setup`.

        The changes that this makes (folder, environment variables, ``sys.path``) belong to the surroundings of every
        later task.

        Raises:
            EnvironmentSetupError: a step failed.
        """
        if self.ready is not None:
            raise EnvironmentSetupError("this engine is set up for another environment already")
        self.failed = True
        try:
            instance, brought = unpack_environment(code, self._namespace.names)
            self.instance = instance
            keep_active(always=True)
            self._namespace.provide("env", instance)
            if instance.cwd is not None:
                os.chdir(instance.cwd)
            for module in instance.preload:
                importlib.import_module(module)
            watch = SetupWatch(instance, brought)
            instance.setup()
            watch.record()
        except Exception as error:
            text = f"{type(error).__name__}: {error}"
            raise EnvironmentSetupError(f"the setup of {type(self.instance).__name__} failed: {text}") from error
        self._baseline.renew()
        self.failed = False
        self.ready = identity
        self._send(SetUp(self._engine, identity))

    def give_up(self, identity: str, why: str) -> None:
        """Tell the farm that the setup failed or was interrupted, so that this engine cannot run tasks of the
        environment.
        """
        self._send(SetUp(self._engine, identity, why))

    def tear_down(self) -> None:
        """Call the environment's `teardown` before an orderly end. An error goes to the engine's output."""
        if self.ready is None:
            return
        self.ready = None
        try:
            self.instance.teardown()
        except BaseException:  # SystemExit too: the kernel has yet to be closed
            traceback.print_exc(file=sys.__stderr__)
