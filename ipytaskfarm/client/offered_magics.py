"""Register the ``%px`` magics of a client.

The client knows nothing of magics: the IPython extension, when it is loaded, passes a function to `offer_magics`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

_register_magics: list[Callable[[Any, str, bool], None]] = []


def offer_magics(register: Callable[[Any, str, bool], None]) -> None:
    """Let ``mec.activate()`` call `register` with (client, suffix, force)."""
    _register_magics[:] = [register]


def activate(client: object, suffix: str, force: bool) -> None:
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
