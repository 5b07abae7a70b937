"""The client's way to the adapters, which the client knows by their names alone.

An adapter is made of clients, so an import of one here would be a circle; and it may need a library that is not
installed, so it is imported when a user asks for it.
"""

from __future__ import annotations

from importlib import import_module
from types import ModuleType


def adapter(name: str) -> ModuleType:
    """Import a module of ``ipytaskfarm/adapters`` and return it.

    Raises ImportError when the library that the module adapts is not installed.
    """
    return import_module(f"ipytaskfarm.adapters.{name}")
