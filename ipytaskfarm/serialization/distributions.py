"""Versions of the installed distributions that modules belong to, looked up quickly.

Metadata that is damaged, or that names no version, counts as absent, and makes no other distribution unknown.  A module
without a version, such as one in a folder of ``PYTHONPATH``, is known by the content of its files.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.machinery
import importlib.metadata
import importlib.util
import os
import sys
import time
from collections.abc import Iterator

from .module_origin import top_levels

LOOK_S = 1.0
_CODE = (".py", *importlib.machinery.EXTENSION_SUFFIXES)
_READ_MAX = 8 << 20
"""A larger file, which is a compiled one, is known by its size and its time."""


class DistributionVersion:
    """The version of the distribution of a top-level module.  It is a guard: it holds until an upgrade."""

    __slots__ = ("_looked_s", "_stamps", "_watched", "distribution", "text", "top")

    def __init__(self, top: str) -> None:
        self.top = top
        self.distribution, self.text, self._watched = _find(top)
        self._stamps = [_stamp(path) for path in self._watched]
        self._looked_s = time.monotonic()

    def holds(self) -> bool:
        """Return whether all is unchanged: an upgrade makes another folder.  It is looked at once a second."""
        now_s = time.monotonic()
        if now_s - self._looked_s < LOOK_S:
            return True
        self._looked_s = now_s
        same = [_stamp(path) for path in self._watched] == self._stamps
        return same and (bool(self._watched) or self.top not in sys.modules)


_versions: dict[str, DistributionVersion] = {}


def version_of(top: str) -> DistributionVersion | None:
    """Return the version that a top-level module's distribution has now; None if nothing tells it."""
    known = _versions.get(top)
    if known is None or not known.holds():
        known = _versions[top] = DistributionVersion(top)
    return known if known.text else None


def _find(top: str) -> tuple[str, str, list[str]]:
    """Return (distribution, version, what to watch for changes), "" and no paths if there is none."""
    for name in _candidates(top):
        found = list(_installed(name))
        if found:
            # An upgrade that was interrupted leaves two.
            version = " and ".join(sorted({version for _, version, _ in found}))
            folders = [folder for *_, folder in found]
            parents = {os.path.dirname(folder) for folder in folders}
            if _is_elsewhere(top, parents):
                content, files = _content(top)
                return found[0][0], _told(version, content), [*folders, *parents, *files]
            return found[0][0], version, [*folders, *parents]
    version = getattr(sys.modules.get(top), "__version__", "")
    content, files = _content(top)
    text = _told(version if isinstance(version, str) else "", content)
    return (top, text, files) if text else ("", "", [])


def _told(version: str, content: str) -> str:
    return ", ".join(filter(None, [version, f"content {content[:16]}" if content else ""]))


def _is_elsewhere(top: str, folders: set[str]) -> bool:
    """Return whether a module is in none of these folders, as one that was installed to be edited."""
    file = next((file for _, file in _files(top)), "")
    return bool(file) and not any(file.startswith(os.path.join(folder, "")) for folder in folders)


def _candidates(top: str) -> Iterator[str]:
    yield top
    yield from _providers().get(top, ())


def _installed(name: str) -> Iterator[tuple[str, str, str]]:
    """Yield (name, version, folder of its metadata) of the installed distributions of this name."""
    for found in importlib.metadata.distributions(name=name):
        try:
            metadata = found.metadata
            own, version = metadata["Name"], metadata["Version"]
        except Exception:  # not in UTF-8, or not to be read: the error differs between versions of Python
            continue
        folder = getattr(found, "_path", None)
        if version and folder is not None:
            yield str(own or name), str(version), str(folder)


def _providers() -> dict[str, list[str]]:
    """Return module -> names of its distributions.  The list is read again when ``sys.path`` has changed."""
    return _read_providers(tuple(sys.path))


@functools.lru_cache(maxsize=1)
def _read_providers(path: tuple[str, ...]) -> dict[str, list[str]]:
    # importlib.metadata.packages_distributions() fails for all if the metadata of one are damaged.
    providers: dict[str, list[str]] = {}
    for found in importlib.metadata.distributions():
        folder = str(getattr(found, "_path", ""))
        try:
            name = found.metadata["Name"]
        except Exception:
            continue
        for top in {*top_levels(folder)} if name else ():
            providers.setdefault(top, []).append(name)
    return {top: sorted({*names}) for top, names in providers.items()}


# -- modules without a version


def _content(top: str) -> tuple[str, list[str]]:
    """Return the digest of a module's files, and these files with their folders; ("", []) if there are none."""
    total, watched = hashlib.sha256(), list[str]()
    for root, file in _files(top):
        try:
            status = os.stat(file)
            if status.st_size > _READ_MAX:
                content = f"{status.st_size} {status.st_mtime_ns}".encode()
            else:
                with open(file, "rb") as opened:
                    content = hashlib.sha256(opened.read()).digest()
        except OSError:
            continue
        total.update(f"{os.path.relpath(file, root)}\n".encode(errors="surrogateescape") + content)
        watched.append(file)
    folders = sorted({os.path.dirname(file) for file in watched})
    return (total.hexdigest(), [*watched, *folders]) if watched else ("", [])


def _files(top: str) -> Iterator[tuple[str, str]]:
    """Yield (folder, file) for each file with code of a top-level module, which is not imported for that."""
    module = sys.modules.get(top)
    try:
        spec = importlib.util.find_spec(top) if module is None else None
    except Exception:  # a finder of a library may do anything
        return
    here = module if module is not None else spec
    places = getattr(here, "__path__" if module is not None else "submodule_search_locations", None)
    file = getattr(here, "__file__" if module is not None else "origin", None)
    if places is None:
        if isinstance(file, str):
            yield os.path.dirname(file), file
        return
    for place in sorted(map(str, places)):
        for folder, folders, names in os.walk(place):
            folders.sort()
            for name in sorted(names):
                if name.endswith(_CODE):
                    yield place, os.path.join(folder, name)


def _stamp(path: str) -> tuple[int, int, int] | None:
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    return status.st_mtime_ns, status.st_ino, status.st_size
