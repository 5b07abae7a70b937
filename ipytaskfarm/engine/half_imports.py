"""Imports that an interrupt has cut short.

Python forgets the modules that were being imported, and a later import begins anew.  Compiled modules that were loaded
stay loaded: numpy's refuse to be imported again ("cannot load module more than once per process").
"""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType
from typing import Any


def half_imported(error: BaseException) -> str:
    """Return the name of a package with compiled modules whose import ended in that error; "": there is none."""
    for name, folder in _packages(error.__traceback__).items():
        if any(line.endswith(".so") and f" {folder}/" in line for line in _mapped()):
            return name
    return ""


def _packages(place: TracebackType | None) -> dict[str, str]:
    """Return the top packages, and their folders, of the modules whose own code stands in the traceback."""
    found = {}
    while place is not None:
        frame = place.tb_frame
        spec: Any = frame.f_globals.get("__spec__")
        if frame.f_code.co_name == "<module>" and getattr(spec, "origin", None):
            levels = spec.name.count(".") - (spec.submodule_search_locations is None)
            if levels >= 0:  # else it is a module in no package
                folder = os.path.dirname(spec.origin)
                for _ in range(levels):
                    folder = os.path.dirname(folder)
                found[spec.name.partition(".")[0]] = os.path.realpath(folder)
        place = place.tb_next
    return found


def _mapped() -> list[str]:
    return Path("/proc/self/maps").read_text(errors="replace").splitlines()
