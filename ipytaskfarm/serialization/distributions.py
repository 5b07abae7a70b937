"""Versions of the installed distributions that modules belong to, looked up quickly.

Metadata that is damaged, or that names no version, counts as absent, and makes no other distribution unknown.  A module
without a version, such as one in a folder of ``PYTHONPATH``, is known by the content of its files.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.machinery
import importlib.metadata
import os
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from threading import get_ident
from typing import NamedTuple

from .file_looks import FileLook, Stamp, stamp_at, stamp_of
from .module_origin import find_anew, is_there, top_levels

LOOK_S = 1.0
_CODE = (".py", *importlib.machinery.EXTENSION_SUFFIXES)
_FILES_MAX = 2000
_READ_MAX = 8 << 20
"""A larger file, which is a compiled one, is known by its size and its time."""


class DistributionVersion:
    """The version of the distribution of a top-level module.  It is a guard: it holds until an upgrade or an edit."""

    __slots__ = (
        "_look",
        "_looked_s",
        "_over",
        "_stamps",
        "_watched",
        "content",
        "distribution",
        "imports",
        "text",
        "top",
    )

    def __init__(self, top: str) -> None:
        self.top = top
        self.distribution, version, folders, files = _find(top)
        self.content = files.digest
        """Of the files of a module without a version, or that was installed to be edited; else ""."""
        self.imports = files.imports
        """The top-level modules that these files import."""
        self.text = ", ".join(filter(None, [version, f"content {files.digest[:16]}" if files.digest else ""]))
        # The stamps of files are those from before they were read.
        stamps = {path: stamp_at(path) for path in folders} | files.stamps
        self._watched, self._stamps = [*stamps], [*stamps.values()]
        self._over = False
        self._looked_s = time.monotonic()
        self._look = FileLook(get_ident(), self._looked_s, len(self._watched))

    def holds(self) -> bool:
        """Return whether all is unchanged.

        An upgrade makes another folder, which is looked at once a second.  Files that are edited are looked at as those
        of by-value modules are: not again while a loop submits one call after the other.
        """
        if self._over:  # a recipe has asked before `version_of`
            return False
        now_s, thread = time.monotonic(), get_ident()
        if self._look.is_good(thread, now_s) if self.content else now_s - self._looked_s < LOOK_S:
            return True
        self._looked_s = now_s
        same = [stamp_at(path) for path in self._watched] == self._stamps
        self._over = not (same and (bool(self._watched) or self.top not in sys.modules))
        self._look = FileLook(thread, now_s, len(self._watched))
        return not self._over


_versions: dict[str, DistributionVersion] = {}


def version_of(top: str) -> DistributionVersion | None:
    """Return the version that a top-level module's distribution has now; None if nothing tells it."""
    known = _versions.get(top)
    if known is None or not known.holds():
        known = _versions[top] = DistributionVersion(top)
    return known if known.text else None


def _find(top: str) -> tuple[str, str, list[str], ModuleFiles]:
    """Return (distribution, version, folders that an upgrade changes, files that count by their content)."""
    for name in _candidates(top):
        found = list(_installed(name))
        if found:
            # An upgrade that was interrupted leaves two.
            version = " and ".join(sorted({version for _, version, _ in found}))
            folders = [folder for *_, folder in found]
            parents = {os.path.dirname(folder) for folder in folders}
            files = _content(top) if _is_elsewhere(top, parents) else _NO_FILES
            return found[0][0], version, [*folders, *parents], files
    version = getattr(sys.modules.get(top), "__version__", "")
    return top, version if isinstance(version, str) else "", [], _content(top)


def _is_elsewhere(top: str, folders: set[str]) -> bool:
    """Return whether a module is in none of these folders, as one that was installed to be edited."""
    file = next((file for _, file in _files(top)), "")
    return bool(file) and not any(file.startswith(os.path.join(folder, "")) for folder in folders)


def _candidates(top: str) -> Iterator[str]:
    yield top
    yield from _read_providers(tuple(sys.path)).get(top, ())


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


@functools.lru_cache(maxsize=1)
def _read_providers(path: tuple[str, ...]) -> dict[str, list[str]]:
    """Return module -> names of its distributions.  The list is read again when ``sys.path`` has changed."""
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


class ModuleFiles(NamedTuple):
    """The files of a module."""

    digest: str
    """"" if there are none."""
    stamps: dict[str, Stamp | None]
    """File or folder -> its stamp before it was read."""
    imports: frozenset[str]


_NO_FILES = ModuleFiles("", {}, frozenset())
_IMPORTS = re.compile(rb"^[ \t]*(?:from[ \t]+(\w+)[\w.]*[ \t]+import\b|import[ \t]+([^#;\n]+))", re.MULTILINE)
_IMPORT_CALLS = re.compile(rb"\b(?:import_module|__import__)\(\s*[\"'](\w+)")


def _imported(source: bytes) -> Iterator[bytes]:
    """Yield the top-level modules that a source imports.  To parse a large package takes a hundred times as long."""
    for one, several in _IMPORTS.findall(source):
        yield from (
            (one,) if one else (each.split()[0].partition(b".")[0] for each in several.split(b",") if each.split())
        )
    yield from _IMPORT_CALLS.findall(source)


def _content(top: str) -> ModuleFiles:
    """Return the digest of a module's files, and these files with their folders."""
    total, stamps, imports = hashlib.sha256(), dict[str, Stamp | None](), set[bytes]()
    for root, file in _files(top):
        folder = os.path.dirname(file)
        if folder not in stamps:
            stamps[folder] = stamp_at(folder)
        try:
            status = os.stat(file)
            if status.st_size > _READ_MAX:
                content = f"{status.st_size} {status.st_mtime_ns}".encode()
            else:
                data = Path(file).read_bytes()
                content = hashlib.sha256(data).digest()
                if file.endswith(".py"):
                    imports.update(_imported(data))
        except OSError:
            continue
        total.update(f"{os.path.relpath(file, root)}\n".encode(errors="surrogateescape") + content)
        stamps[file] = stamp_of(status)
    names = frozenset(each.decode("utf-8", "replace") for each in imports)
    return ModuleFiles(total.hexdigest(), stamps, names) if stamps else _NO_FILES


def _files(top: str) -> Iterator[tuple[str, str]]:
    """Yield (folder, file) for each file of a top-level module, which is not imported for that.

    Of a package with very many files, those with code.
    """
    module = sys.modules.get(top)
    if module is not None and not is_there(module):  # it was moved or removed
        module = None
    spec = find_anew(top) if module is None else None
    here = module if module is not None else spec
    places = getattr(here, "__path__" if module is not None else "submodule_search_locations", None)
    file = getattr(here, "__file__" if module is not None else "origin", None)
    if places is None:
        if isinstance(file, str):
            yield os.path.dirname(file), file
        return
    found: list[tuple[str, str]] = []
    for place in sorted(map(str, places)):
        for folder, folders, names in os.walk(place):
            folders[:] = sorted(each for each in folders if each != "__pycache__" and not each.startswith("."))
            found += [(place, os.path.join(folder, name)) for name in sorted(names) if not _is_left(name)]
    yield from found if len(found) <= _FILES_MAX else (each for each in found if each[1].endswith(_CODE))


def _is_left(name: str) -> bool:
    return name.startswith(".") or name.endswith((".pyo", "~", ".swp", ".tmp", ".log"))
