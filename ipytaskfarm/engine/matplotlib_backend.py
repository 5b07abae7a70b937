"""Sets matplotlib's backend without an environment variable that children would inherit.

ipykernel names the inline backend, which shows figures as displays, in ``MPLBACKEND``. matplotlib reads it once, while
it is imported. A child of a task that inherited the variable would draw figures that nobody sees, or fail because the
backend's module is missing.
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
    """Restore the variable to its value before ipykernel set it; set ipykernel's value only while matplotlib is
    imported.

    `given` is the user's own value, which matplotlib finds in any case.
    """
    backend = os.environ.get(variable)
    if given or backend is None:
        return
    if given is None:
        del os.environ[variable]
    else:
        os.environ[variable] = given
    matplotlib: Any = sys.modules.get("matplotlib")
    if matplotlib is not None:  # preloaded at a time when no backend was named
        matplotlib.rcParams["backend"] = backend
    else:
        sys.meta_path.insert(0, _Finder(variable, backend))


class _Finder:
    """Finds matplotlib like other finders, and sets the variable while its code runs."""

    def __init__(self, variable: str, backend: str) -> None:
        self._variable = variable
        self._backend = backend
        self._looking = False

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the spec of matplotlib; None for all other modules."""
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
