"""Versions of the installed distributions that modules belong to, looked up quickly."""

from __future__ import annotations

import functools
import importlib.metadata
import os
import sys
import time

LOOK_S = 1.0


class DistributionVersion:
    """The version of the distribution of a top-level module.  It is a guard: it holds until an upgrade."""

    __slots__ = ("_folder", "_looked_s", "_stamp", "distribution", "text", "top")

    def __init__(self, top: str) -> None:
        self.top = top
        self.distribution, self.text, self._folder = _find(top)
        self._stamp = _stamp(self._folder)
        self._looked_s = time.monotonic()

    def holds(self) -> bool:
        """Return whether the metadata is unchanged: an upgrade makes another folder.  It is looked at once a second."""
        now_s = time.monotonic()
        if now_s - self._looked_s < LOOK_S:
            return True
        self._looked_s = now_s
        return _stamp(self._folder) == self._stamp and (bool(self._folder) or self.top not in sys.modules)


_versions: dict[str, DistributionVersion] = {}


def version_of(top: str) -> DistributionVersion | None:
    """Return the version that a top-level module's distribution has now; None if no distribution has the module."""
    known = _versions.get(top)
    if known is None or not known.holds():
        known = _versions[top] = DistributionVersion(top)
    return known if known.text else None


def _find(top: str) -> tuple[str, str, str]:
    """Return (distribution, version, folder of its metadata), each "" if there is none."""
    for name in (top, *_providers().get(top, ())):
        try:
            found = importlib.metadata.distribution(name)
        except (importlib.metadata.PackageNotFoundError, ValueError):
            continue
        folder = getattr(found, "_path", None)
        return found.metadata["Name"] or name, found.version or "", str(folder) if folder is not None else ""
    module = sys.modules.get(top)
    version = getattr(module, "__version__", "")
    return (top, version, "") if isinstance(version, str) and version else ("", "", "")


def _providers() -> dict[str, list[str]]:
    """Return module -> names of its distributions.  The list is read again when ``sys.path`` has changed."""
    return _read_providers(tuple(sys.path))


@functools.lru_cache(maxsize=1)
def _read_providers(path: tuple[str, ...]) -> dict[str, list[str]]:
    return {top: list(names) for top, names in importlib.metadata.packages_distributions().items()}


def _stamp(folder: str) -> tuple[int, int] | None:
    try:
        status = os.stat(folder)
    except (OSError, ValueError):
        return None
    return status.st_mtime_ns, status.st_ino
