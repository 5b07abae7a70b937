"""Environment variables that modules set while they are imported, for example a settings module that reads a file.

A module is imported once, and many tasks use it, so its variables belong to it as its globals do: they are set as long
as it is in ``sys.modules``.  A by-value module goes with the tasks that use it, and its variables go with it.
"""

from __future__ import annotations

import contextvars
import os
import sys
import types
from typing import Any

from .import_settings import IMPORT_SETTINGS, OfModule


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
    """The variables that modules have set while they were imported, in the order in which they were set."""

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
