"""matplotlib's backend, without an environment variable that children would inherit.

ipykernel names the inline backend, which shows figures as displays, in ``MPLBACKEND``.  matplotlib looks there once,
while it is imported.  A child of a task that inherits the variable would draw into nothing, or fail for lack of the
module.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib.abc import Loader
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any


def keep_to_matplotlib(variable: str, given: str | None) -> None:
    """The variable is what it was before ipykernel set it, and what ipykernel set while matplotlib is imported.

    given: the user's own, which matplotlib finds anyway."""
    backend = os.environ.get(variable)
    if given or backend is None:
        return
    if given is None:
        del os.environ[variable]
    else:
        os.environ[variable] = given
    matplotlib: Any = sys.modules.get("matplotlib")
    if matplotlib is not None:  # preloaded, when nobody had named a backend
        matplotlib.rcParams["backend"] = backend
    else:
        sys.meta_path.insert(0, _Finder(variable, backend))


class _Finder:
    """Finds matplotlib as everybody does, and sets the variable while it is executed."""

    def __init__(self, variable: str, backend: str) -> None:
        self._variable = variable
        self._backend = backend
        self._looking = False

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Of matplotlib alone."""
        if name != "matplotlib" or self._looking:
            return None
        self._looking = True
        try:
            spec = find_spec(name)
        finally:
            self._looking = False
        if spec is not None and spec.loader is not None and hasattr(spec.loader, "exec_module"):
            self._set_while(spec.loader)
        return spec

    def _set_while(self, loader: Loader) -> None:
        execute = loader.exec_module

        def exec_module(module: ModuleType) -> None:
            usual = os.environ.get(self._variable)
            if not usual:
                os.environ[self._variable] = self._backend
            try:
                execute(module)
            finally:
                if usual is None:
                    os.environ.pop(self._variable, None)
                elif not usual:
                    os.environ[self._variable] = usual

        vars(loader)["exec_module"] = exec_module
