"""``mec.activate()``: the ``%px`` magics, from the client's side.

The client knows nothing of magics: those who make them say here how, when the IPython extension is loaded.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .multiengine import MultiEngineClient

_activate: Callable[[MultiEngineClient, str, bool], None] | None = None


def offer(activate: Callable[[MultiEngineClient, str, bool], None]) -> None:
    """Have `activate` called with (client, suffix, force)."""
    global _activate
    _activate = activate


def activate(client: MultiEngineClient, suffix: str, force: bool) -> None:
    """Load the extension if need be, and register the magics.  RuntimeError where there is no IPython."""
    if _activate is None:
        ipython: Any = sys.modules.get("IPython")
        shell = ipython.get_ipython() if ipython is not None else None
        if shell is None:
            raise RuntimeError("activate() registers magics, and this is plain Python: use it in IPython or Jupyter")
        shell.extension_manager.load_extension("ipytaskfarm")
    assert _activate is not None
    _activate(client, suffix, force)
