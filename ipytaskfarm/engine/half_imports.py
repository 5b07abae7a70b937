"""Find imports that an interrupt has ended half-way.

Python removes the modules whose import was interrupted, so that a later import starts afresh.  Compiled modules stay
loaded, and those of numpy refuse a second import ("cannot load module more than once per process").
"""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType
from typing import Any


def half_imported(error: BaseException) -> str:
    """Return the name of a package whose import ended with this error while its compiled modules were loaded, or ""."""
    for name, folder in _packages(error.__traceback__).items():
        if any(line.endswith(".so") and f" {folder}/" in line for line in _mapped()):
            return name
    return ""


def _packages(place: TracebackType | None) -> dict[str, str]:
    """Return {top package: its folder} of the modules whose module-level code is in the traceback."""
    found = {}
    while place is not None:
        frame = place.tb_frame
        spec: Any = frame.f_globals.get("__spec__")
        if frame.f_code.co_name == "<module>" and getattr(spec, "origin", None):
            levels = spec.name.count(".") - (spec.submodule_search_locations is None)
            if levels >= 0:  # otherwise it is a module outside of packages
                folder = os.path.dirname(spec.origin)
                for _ in range(levels):
                    folder = os.path.dirname(folder)
                found[spec.name.partition(".")[0]] = os.path.realpath(folder)
        place = place.tb_next
    return found


def _mapped() -> list[str]:
    return Path("/proc/self/maps").read_text(errors="replace").splitlines()
