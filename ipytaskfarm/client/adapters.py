"""Reach what the client does not import: the adapters, which it knows by name only, and the magics.

Adapters use the client, so an import of one at the top would be circular.  An adapter may also need a library that is
not installed.
"""

from __future__ import annotations

import sys
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


_register_magics: list[Callable[[Any, str, bool], None]] = []


def offer_magics(register: Callable[[Any, str, bool], None]) -> None:
    """Let ``mec.activate()`` call `register` with (client, suffix, force).

    The client knows nothing of magics: the IPython extension, when it is loaded, passes a function to `offer_magics`.
    """
    _register_magics[:] = [register]


def activate_magics(client: object, suffix: str, force: bool) -> None:
    """Register the magics for this client, see `MultiEngineClient.activate`.

    Raises RuntimeError in plain Python.
    """
    if not _register_magics:
        ipython: Any = sys.modules.get("IPython")
        shell = ipython.get_ipython() if ipython is not None else None
        if shell is None:
            raise RuntimeError("activate() registers magics, and this is plain Python: use it in IPython or Jupyter")
        shell.extension_manager.load_extension("ipytaskfarm")
    _register_magics[0](client, suffix, force)
