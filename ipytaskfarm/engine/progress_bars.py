"""Progress bars as text. To tqdm an engine looks like a notebook's kernel, but no notebook shows its widgets.

``tqdm.auto`` would draw a widget, and the result would show only its first state: 0 of 5.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

_NAMES = {"tqdm": "tqdm", "trange": "trange", "tqdm_notebook": "tqdm", "tnrange": "trange"}
_MODULES = ("tqdm.autonotebook", "tqdm.notebook")


class TextBars(MetaPathFinder, Loader):
    """Gives tqdm's modules for notebooks the bars of its module for terminals."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return ModuleSpec(fullname, self) if fullname in _MODULES else None

    def exec_module(self, module: ModuleType) -> None:
        plain = importlib.import_module("tqdm.std")
        for name, meant in _NAMES.items():
            setattr(module, name, getattr(plain, meant))


def bars_as_text() -> None:
    """Make tqdm draw text in this process."""
    sys.meta_path.insert(0, TextBars())
