"""Settings of the process that modules make while they are imported, such as a recursion limit or handlers of logging,
and environment variables, as a settings module sets that reads a file.

A module is imported once, and many tasks use it, so its settings belong to it as its globals do: they hold as long as
it is in ``sys.modules``. Without them is the *base*, what tasks find otherwise (`engine.baseline`).

What belongs to the context (decimal context, error state of numpy, context variables) is set anew in each run, because
each run has a context of its own.
"""

from __future__ import annotations

import contextvars
import os
import sys
import types
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import Any, NamedTuple

from ..system import process

_ABSENT = object()


def _replaced(before: Any, after: Any, present: Any) -> Any:
    return after


class ProcessSetting(NamedTuple):
    """One setting of the process."""

    get: Callable[[], Any]
    put: Callable[[Any], object]
    merge: Callable[[Any, Any, Any], Any] = _replaced
    """(before, after, present) -> the present value with the change that made `after` of `before`."""


def merge_lists(before: list[Any], after: list[Any], present: list[Any]) -> list[Any]:
    """Return the list without what was removed, and with what was added in front of the others or behind them."""
    begin = 0
    while not _in_order([each for each in after[begin:] if each in before], before):
        begin += 1
    while begin < len(after) and after[begin] not in before:
        begin += 1
    front, rest = after[:begin], after[begin:]
    kept = [each for each in present if each not in front and (each in rest or each not in before)]
    return [*front, *kept, *(each for each in rest if each not in before and each not in kept)]


def _in_order(some: list[Any], all_of_them: list[Any]) -> bool:
    left = iter(all_of_them)
    return all(each in left for each in some)


def merge_names(before: dict[str, Any], after: dict[str, Any], present: dict[str, Any]) -> dict[str, Any]:
    """Return the mapping with the names that were added or got another value."""
    return present | {name: value for name, value in after.items() if before.get(name, _ABSENT) is not value}


class OfModule:
    """Something that belongs to a module, for as long as the module is in ``sys.modules``."""

    def __init__(self, module_name: str, module: types.ModuleType) -> None:
        self._module_name = module_name
        self.module = weakref.ref(module)

    @property
    def is_wanted(self) -> bool:
        """Return whether the module is in ``sys.modules``."""
        module = self.module()
        return module is not None and sys.modules.get(self._module_name) is module


class _Record(OfModule):
    """What one module has set while it was imported."""

    def __init__(self, module: types.ModuleType) -> None:
        super().__init__(module.__name__, module)
        self.changes: dict[str, tuple[Any, Any]] = {}
        """Name of the setting -> its values before and after the import."""
        self.variables: list[tuple[contextvars.ContextVar[Any], Any]] = []
        self.is_adopted = False
        """Whether the baseline of tasks has these changes."""


class ImportSettings:
    """What modules have set while they were imported, in the order in which their imports ended."""

    def __init__(self) -> None:
        self._settings: Mapping[str, ProcessSetting] = {}
        self.records: list[_Record] = []
        self._base: dict[str, Any] = {}
        """Name -> its value without modules, of each setting that a module in ``sys.modules`` has changed."""
        self._put: dict[str, Any] = {}
        """Name -> the value that it got from modules. A task that finds another one there has set it itself."""
        self._adopted: set[str] = set()
        """The settings that the baseline of tasks has from modules."""

    def watch(self, settings: Mapping[str, ProcessSetting]) -> None:
        """Record from now on what modules set."""
        self._settings = settings

    def run(self, code: types.CodeType, names: dict[str, Any], context: contextvars.Context) -> None:
        """Run a module's code in a context, and record what it has set."""
        before = {name: setting.get() for name, setting in self._settings.items()}
        if before:
            process.importing.append(str(names.get("__name__")))
        try:
            context.run(exec, code, names)
        finally:
            if before:
                process.importing.pop()
        module = sys.modules.get(names.get("__name__", ""))
        if not before or module is None or vars(module) is not names:
            return
        record = _Record(module)
        for name, value in before.items():
            after = self._settings[name].get()
            if not _equal(after, value):
                record.changes[name] = value, after
                self._base.setdefault(name, value)
                self._put[name] = after
        record.variables += _changed_variables(context)
        if record.changes or record.variables:
            self.records.append(record)
            _put_variables(record)

    def is_due(self) -> bool:
        """Return whether the baseline must be told of modules that came or went."""
        return any(each.is_adopted is not each.is_wanted for each in self.records)

    def move(self) -> None:
        """Let the settings of the modules in ``sys.modules`` hold, but for what the running task has set itself."""
        for name in dict.fromkeys((*self._base, *self._wanted_names())):
            present = self._settings[name].get()
            base = self._base.setdefault(name, present)
            if _equal(present, self._put.setdefault(name, base)):
                self._set(name, present)

    def adopt(self) -> None:
        """Do so between tasks. The surroundings are those of the baseline, which then takes what it finds."""
        wanted = set(self._wanted_names())
        for name in dict.fromkeys((*self._base, *wanted)):
            present = self._settings[name].get()
            if name not in self._adopted:
                self._base[name] = present  # a task may have set it before it imported the module
            self._set(name, present)
        self._note_adopted(wanted)

    def renewed(self) -> None:
        """Record that the user makes the present surroundings the baseline: what somebody has changed by hand is no
        module's any more.
        """
        for name, base in list(self._base.items()):
            if not _equal(self._settings[name].get(), self._put.get(name, base)):
                for each in self.records:
                    each.changes.pop(name, None)
        self._note_adopted(set(self._wanted_names()))

    def put_variables(self) -> None:
        """Set what belongs to the context in the present one."""
        for each in self.records:
            if each.variables and each.is_wanted:
                _put_variables(each)

    def _wanted_names(self) -> Iterator[str]:
        for each in self.records:
            if each.is_wanted:
                yield from each.changes

    def _set(self, name: str, present: Any) -> None:
        setting, value = self._settings[name], self._base[name]
        for each in self.records:
            if name in each.changes and each.is_wanted:
                value = setting.merge(*each.changes[name], value)
        if not _equal(value, present):
            with suppress(Exception):  # a folder that is gone, a handler of signals outside of the main thread
                setting.put(value)
        self._put[name] = value

    def _note_adopted(self, wanted: set[str]) -> None:
        self.records = [each for each in self.records if each.module() is not None]
        for each in self.records:
            each.is_adopted = each.is_wanted
        for name in self._base.keys() - wanted:
            del self._base[name]
            self._put.pop(name, None)
        self._adopted = wanted


IMPORT_SETTINGS = ImportSettings()
"""The settings of this process. Nothing is recorded in a process without a baseline of tasks."""


def _equal(one: Any, other: Any) -> bool:
    try:
        return bool(one == other)
    except Exception:  # builtins may be anything, such as arrays
        return False


def _changed_variables(inside: contextvars.Context) -> Iterator[tuple[contextvars.ContextVar[Any], Any]]:
    """Yield the context variables that differ in a copy of the present context."""
    here = contextvars.copy_context()
    decimal = sys.modules.get("decimal")
    for variable, value in inside.items():
        if decimal is not None and isinstance(value, decimal.Context):
            if _fields(value) != _fields(decimal.getcontext()):
                yield variable, value
        elif here.get(variable, _ABSENT) is not value:
            yield variable, value


def _fields(context: Any) -> list[Any]:
    *fields, _, traps = context.__reduce__()[1]
    return [*fields, traps]


def _put_variables(record: _Record) -> None:
    decimal = sys.modules.get("decimal")
    for variable, value in record.variables:
        # A decimal context is changed in place, so each run needs one of its own.
        is_decimal = decimal is not None and isinstance(value, decimal.Context)
        variable.set(value.copy() if is_decimal else value)


class _Setting(OfModule):
    """A variable that a module has set or deleted while it was imported."""

    def __init__(self, module_name: str, module: types.ModuleType, name: bytes, before: bytes | None) -> None:
        super().__init__(module_name, module)
        self.name = name
        self.before = before
        """None: the variable was not set."""
        self.value: bytes | None = None
        """None: the module has deleted the variable."""
        self.is_set = True
        """Whether the module was in ``sys.modules`` when `ImportVariables.follow` looked last."""


class ImportVariables:
    """The variables that modules have set while they were imported, in the order in which they were set.

    A module is imported once, and many tasks use it, so its variables belong to it as its globals do: they are set as
    long as it is in ``sys.modules``. A by-value module goes with the tasks that use it, and its variables go with it.
    """

    def __init__(self) -> None:
        self._settings: list[_Setting] = []

    def note(self, name: bytes, value: bytes | None) -> None:
        """Record that a variable is about to be set, or deleted, if that belongs to an import."""
        found = _being_imported()
        if found is None:
            return
        module_name, module = found
        for setting in self._settings:
            if setting.module() is module and setting.name == name:
                break
        else:
            setting = _Setting(module_name, module, name, _present_data().get(name))
            self._settings.append(setting)
        setting.value = value

    def without(self, data: dict[bytes, bytes]) -> dict[bytes, bytes]:
        """Return these variables as they were before modules set them.

        What somebody has changed since then is no module's any more.
        """
        found = dict(data)
        kept = []
        for setting in reversed(self._settings):
            if not setting.is_wanted:
                kept.append(setting)
            elif found.get(setting.name) == setting.value:
                _set(found, setting.name, setting.before)
                kept.append(setting)
        self._settings = [setting for setting in reversed(kept) if setting.module() is not None]
        return found

    def over(self, data: dict[bytes, bytes]) -> dict[bytes, bytes]:
        """Return these variables, and those of the modules that are in ``sys.modules``."""
        if not self._settings:
            return data
        found = dict(data)
        for setting in self._settings:
            if setting.is_wanted:
                _set(found, setting.name, setting.value)
        return found

    def follow(self) -> None:
        """Set the variables of modules that are in ``sys.modules`` again, and take back those of modules that went."""
        moved = [setting for setting in self._settings if setting.is_wanted is not setting.is_set]
        for setting in moved:
            setting.is_set = not setting.is_set
        for name in {setting.name for setting in moved}:
            own = [setting for setting in self._settings if setting.name == name]
            values = [own[0].before, *(setting.value for setting in own if setting.is_set)]
            if values[-1] is None:
                os.environ.pop(os.fsdecode(name), None)
            else:
                os.environ[os.fsdecode(name)] = os.fsdecode(values[-1])


IMPORT_VARIABLES = ImportVariables()
"""The variables of this process.  Nothing is recorded in a process whose variables nobody watches."""


def _set(data: dict[bytes, bytes], name: bytes, value: bytes | None) -> None:
    if value is None:
        data.pop(name, None)
    else:
        data[name] = value


def _present_data() -> dict[bytes, bytes]:
    found: dict[bytes, bytes] = os.environ._data  # type: ignore[attr-defined]
    return found


def _being_imported() -> tuple[str, types.ModuleType] | None:
    """Return name and module of the innermost import in which the present call is, if there is one."""
    frame: types.FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_name == "<module>":
            spec: Any = frame.f_globals.get("__spec__")
            if getattr(spec, "_initializing", False):
                module = sys.modules.get(spec.name)
                if module is not None and vars(module) is frame.f_globals:
                    return spec.name, module
        frame = frame.f_back
    return None


def follow_modules() -> None:
    """Let hold what the modules in ``sys.modules`` have set while they were imported, and nothing of others."""
    IMPORT_VARIABLES.follow()
    if IMPORT_SETTINGS.records:
        IMPORT_SETTINGS.move()
        IMPORT_SETTINGS.put_variables()


def run_module(code: types.CodeType, names: dict[str, Any]) -> None:
    """Run a module's code in a context of its own, and record what it sets.

    Otherwise a decimal context, or an error state of numpy, that it sets would hold for the run that happens to import
    it, and not for the next one.
    """
    context = contextvars.copy_context()
    decimal = sys.modules.get("decimal")
    if decimal is not None:  # a copy of a context shares the decimal context in it
        context.run(decimal.setcontext, decimal.getcontext().copy())
    IMPORT_SETTINGS.run(code, names, context)
