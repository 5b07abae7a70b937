"""The names of code locations in profiles."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import TypeAlias

import ipykernel
import IPython.core

from ..core.messages.engine_commands import Place

Spot: TypeAlias = tuple[str, str, int]
"""(function, file, line) as the interpreter has them. If function is "", the spot is a line."""

OTHER: Spot = ("(others)", "(others)", 0)
"""Stands for all spots beyond the limit."""
TEXT_MAX = 300
"""The number of characters that are kept of a function's or a file's name, as users can choose the names."""

_PACKAGE = os.path.dirname(os.path.dirname(__file__))
MACHINERY = (
    *(f"{os.path.join(_PACKAGE, part)}/" for part in ("engine", "serialization", "adapters")),
    *(f"{os.path.dirname(file)}/" for file in (IPython.core.__file__, ipykernel.__file__)),
)
"""Folders of code that runs tasks and cells and is not the user's."""


def known_file(file: str) -> str:
    """Return the file's name for profiles: one name for the code of all tasks, and one for all cells.

    Their own names contain a hash or a number: 100,000 tasks ``f(17)`` would be 100,000 places.
    """
    if file.startswith("<"):
        if file.startswith("<task "):
            return "<task>"
        if file.startswith(("<cell ", "<ipython-input-")):
            return "<cell>"
    elif "/ipykernel_" in file:
        return "<cell>"
    return file[:TEXT_MAX]


def module_of(file: str, path: Sequence[str]) -> str:
    """Return the dotted name under which a file is imported from one of these folders; else the file's base name."""
    if file.startswith("<frozen "):
        return file[len("<frozen ") : -1]
    if not file.endswith(".py"):
        return file
    roots = [len(root) for root in path if isinstance(root, str) and root and file.startswith(root)]
    name = file[max(roots) :] if roots else os.path.basename(file)
    return name.strip("/").removesuffix(".py").removesuffix("/__init__").replace("/", ".")


class CodeLocations:
    """Numbers for spots, from which the list of places is made in the end."""

    def __init__(self) -> None:
        self._numbers: dict[Spot, int] = {}
        self._modules: dict[str, str] = {}

    def number(self, spot: Spot) -> int:
        """Return the number of a spot: 0, 1, 2 … in the order of the first calls."""
        return self._numbers.setdefault(spot, len(self._numbers))

    def all(self) -> list[Place]:
        """Return the places in the order of their numbers."""
        return [Place(function, self._module(file), file, line) for function, file, line in self._numbers]

    def _module(self, file: str) -> str:
        module = self._modules.get(file)
        if module is None:
            module = self._modules[file] = module_of(file, sys.path)
        return module
