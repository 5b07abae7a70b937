"""Import the adapters on demand; the client knows them by name only.

Adapters use the client, so an import of one at the top would be circular.  An adapter may also need a library that is
not installed.
"""

from __future__ import annotations

from importlib import import_module
from types import ModuleType


def adapter(name: str) -> ModuleType:
    """Import a module of ``ipytaskfarm/adapters`` and return it.

    Raises ImportError when the library that the module adapts is not installed.
    """
    return import_module(f"ipytaskfarm.adapters.{name}")
