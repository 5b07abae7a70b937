"""Serialization: values and code as bytes, and back.

``pack`` is the entry point for values, functions, errors and environments. ``pickler`` takes objects apart, ``rebuild``
puts them together on the other side, ``digests`` names functions and classes, ``cache`` keeps packed objects for reuse,
``modules`` loads modules that travel by value. Controller and agents never import this package: they forward payloads
as bytes.

Pickles name the modules of the functions that rebuild their objects, and of the objects' classes. Stores and sessions
from before these modules were renamed contain the old names; `STORED_NAMES` keeps such pickles readable.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import sys
import types
from collections.abc import Sequence

STORED_NAMES = {
    "ipytaskfarm.doors.pack_build": "ipytaskfarm.serialization.rebuild",
    "ipytaskfarm.doors.pack_modules": "ipytaskfarm.serialization.modules",
    "ipytaskfarm.doors.pack_refs": "ipytaskfarm.serialization.references",
    "ipytaskfarm.doors.pack_shared": "ipytaskfarm.serialization.shared_values",
    "ipytaskfarm.doors.pack_build_classes": "ipytaskfarm.serialization.rebuild_classes",
    "ipytaskfarm.doors.pack_build_errors": "ipytaskfarm.serialization.rebuild_errors",
    "ipytaskfarm.doors.pack_build_values": "ipytaskfarm.serialization.rebuild_values",
    "ipytaskfarm.doors.pack_children": "ipytaskfarm.serialization.child_processes",
    "ipytaskfarm.doors.pack_cycles": "ipytaskfarm.serialization.hash_cycles",
    "ipytaskfarm.doors.pack_parts": "ipytaskfarm.serialization.exception_parts",
    "ipytaskfarm.doors.pack_stages": "ipytaskfarm.serialization.definition_stages",
    "ipytaskfarm.adapters.ipyparallel.execute_reply": "ipytaskfarm.adapters.ipyparallel.display",
    "ipytaskfarm.client.kept_commands": "ipytaskfarm.client.multiengine",
    "ipytaskfarm.client.nodes": "ipytaskfarm.client.tables",
    "ipytaskfarm.client.profile_tables": "ipytaskfarm.client.profiles",
    "ipytaskfarm.client.task_messages": "ipytaskfarm.client.operate",
}
"""Module name in stored pickles -> the present module with the same functions."""


class _StoredNames(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finder that imports a module of `STORED_NAMES` under its old name, for stored pickles."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname == "ipytaskfarm.doors":  # the package that contained these modules
            return importlib.machinery.ModuleSpec(fullname, self, is_package=True)
        return importlib.machinery.ModuleSpec(fullname, self) if fullname in STORED_NAMES else None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType | None:
        present = STORED_NAMES.get(spec.name)
        return None if present is None else _Alias(spec.name, present)

    def exec_module(self, module: types.ModuleType) -> None:
        """Do nothing: an alias reads its attributes from the present module."""


class _Alias(types.ModuleType):
    """A module under its old name that has the attributes of the present module."""

    def __init__(self, name: str, present: str) -> None:
        super().__init__(name, f"Old name of {present}.")
        self.__dict__["_present"] = importlib.import_module(present)

    def __getattr__(self, name: str) -> object:
        return getattr(self.__dict__["_present"], name)


sys.meta_path.append(_StoredNames())
