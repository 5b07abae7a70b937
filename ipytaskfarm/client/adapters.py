"""Import the adapters on demand; the client knows them by name only.

Adapters use the client, so an import of one at the top would be circular.  An adapter may also need a library that is
not installed.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from types import ModuleType
from typing import Any

from ..system.farm_paths import ConnectionInfo


def adapter(name: str) -> ModuleType:
    """Import a module of ``ipytaskfarm/adapters`` and return it.

    Raises ImportError when the library that the module adapts is not installed.
    """
    return import_module(f"ipytaskfarm.adapters.{name}")


def live_view(read_info: Callable[[], ConnectionInfo], job: str = "") -> Any:
    """Return the live view of a farm for a notebook's cell; see `ipytaskfarm.adapters.live_widget.view`."""
    return adapter("live_widget").view(read_info, job)
