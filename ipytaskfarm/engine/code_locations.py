"""What profiles call the places they point to."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import TypeAlias

import ipykernel
import IPython.core

from ..core.messages.engine_commands import Place

Spot: TypeAlias = tuple[str, str, int]
"""(function, file, line) as the interpreter has them; function "": a line."""

OTHER: Spot = ("(others)", "(others)", 0)
"""What there is no room for, all in one."""
TEXT_MAX = 300
"""Characters kept of a function's or a file's name: users make them up."""

MACHINERY = tuple(f"{os.path.dirname(file)}/" for file in (__file__, IPython.core.__file__, ipykernel.__file__))
"""Files that run tasks and cells, and are none of the user's."""


def known_file(file: str) -> str:
    """Return one name for the code of all tasks, and one for all cells.

    Theirs have a hash or a number in them: 100,000 tasks ``f(17)`` would be 100,000 places.
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
    """Return the dotted name under which a file is imported from one of these folders; the file's own if from none."""
    if file.startswith("<frozen "):
        return file[len("<frozen ") : -1]
    if not file.endswith(".py"):
        return file
    roots = [len(root) for root in path if isinstance(root, str) and root and file.startswith(root)]
    name = file[max(roots) :] if roots else os.path.basename(file)
    return name.strip("/").removesuffix(".py").removesuffix("/__init__").replace("/", ".")


class CodeLocations:
    """Numbers for spots, and in the end what they are."""

    def __init__(self) -> None:
        self._numbers: dict[Spot, int] = {}
        self._modules: dict[str, str] = {}

    def number(self, spot: Spot) -> int:
        """Return the number of a spot: 0, 1, 2 … in the order in which they come."""
        return self._numbers.setdefault(spot, len(self._numbers))

    def all(self) -> list[Place]:
        """Return the places by number."""
        return [Place(function, self._module(file), file, line) for function, file, line in self._numbers]

    def _module(self, file: str) -> str:
        module = self._modules.get(file)
        if module is None:
            module = self._modules[file] = module_of(file, sys.path)
        return module
