"""Tells which modules that this engine has imported by name were edited or upgraded since then.

Tasks find such modules in ``sys.modules``, and would compute with the old code for as long as the engine lives. What an
import has read is noted by the loaders, as the file may be edited before anybody looks at it again. Two kinds of files:

- a person's own (`OwnFile`): outside of the standard library and of folders with metadata of distributions. They are
  looked at one by one.
- those of distributions: an upgrade replaces the metadata, so only the folders that hold the metadata are looked at.
  A module without metadata in such a folder counts as a person's own.

A look costs about 1 µs per file. It is done before a run that begins after a pause, in which somebody may have
edited something and submitted it, and otherwise so rarely that it takes at most `LOOKING_PART` of the time.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
import sys
import time
from collections.abc import Iterable, Iterator
from importlib.machinery import ExtensionFileLoader, ModuleSpec, SourceFileLoader, SourcelessFileLoader
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from ..serialization.module_origin import (
    entry_of,
    holds_distributions,
    is_compiled,
    names_of_distributions,
    without_metadata,
)
from ..serialization.modules import other_finders

LOOKING_PART = 0.05
PAUSE_S = 0.0001
"""After a pause of this length a look is due."""
LOOK_AGAIN_S = 0.0002, 0.02
"""The shortest and the longest time between two looks. Nobody can edit, submit and be sent a run in the shortest."""
CHEAP_S = 0.0001
"""A look that takes longer is not repeated after each pause: one task alone must not become slow."""
SORT_WITHIN_S = 1.0
"""The time after which an engine that is never idle sorts new modules."""
FOLDERS_AGAIN_S = 0.02
"""The time between two looks at the folders of distributions: an installation takes longer."""
_READ_MAX = 1 << 20
_STDLIB = os.path.join(os.path.dirname(os.__file__), "")
_OWN_PACKAGE = __name__.partition(".")[0]

Stamp: TypeAlias = tuple[int, int, int]


class OwnFile(NamedTuple):
    """A file of a person's own, as it was imported."""

    name: str
    stamp: Stamp
    digest: bytes
    """Of its content; of a large one, which is compiled, its stamp."""
    came: bool = False
    """Whether the module came by value, and a value in the engine's namespace keeps it."""


class Edited(NamedTuple):
    """A module whose file is another one than the engine has imported."""

    name: str
    file: str
    is_own: bool
    """Whether it belongs to no distribution."""

    @property
    def can_be_imported_again(self) -> bool:
        """Return whether this process can import it again: a compiled module stays as it is, and so do modules of
        distributions, of which other modules hold parts.
        """
        return self.is_own and not is_compiled(self.file)


class EditedModules:
    """The files that this process has imported, and what became of them."""

    def __init__(self) -> None:
        self.own: dict[str, OwnFile] = {}
        """File -> what was imported from it."""
        self.installed: dict[str, tuple[str, Stamp]] = {}
        """File of a distribution -> the module's name, and the file's stamp then."""
        self.folders: dict[str, int] = {}
        """Folder that holds metadata of distributions -> its time at the last look."""
        self.due_s = float("inf")
        """When a look is due although nothing has paused, by ``perf_counter``."""
        self.after_pause_s = float("inf")
        """From when on a look is due after a pause."""
        self.kept_old: list[Edited] = []
        """The modules of which this engine runs an old version, because it cannot import them again."""
        self.ended_s = 0.0
        """When the last slice of runs ended (`lane`); 0.0 before the first one."""
        self._folders_due_s = 0.0
        self._fastest_stat_s = float("inf")
        self.unsorted: set[tuple[str, str]] = set()
        """(folder with metadata, top-level module in it) that count as a person's own until they are sorted."""
        self._claimed: set[tuple[str, str]] = set()
        """Those that were found to belong to a distribution, of another name."""
        self._sort_by_s = 0.0

    def note(self, name: str, file: str, status: os.stat_result) -> bool:
        """Note that a file is being imported, and return whether it is a person's own."""
        if file.startswith(_STDLIB) and "-packages" not in file:
            return False
        top = name.partition(".")[0]
        if top in ("__main__", "__mp_main__", _OWN_PACKAGE):
            return False
        entry = entry_of(name, file)
        among = holds_distributions(entry)
        if among and entry not in self.folders:
            self.folders[entry] = _time_of(entry)
        if among and (top in names_of_distributions(entry) or (entry, top) in self._claimed):
            self.installed[file] = name, _stamp(status)
        else:
            self.own[file] = OwnFile(name, _stamp(status), _digest(file, status))
            if among and (entry, top) not in self.unsorted:
                if not self.unsorted:
                    self._sort_by_s = time.perf_counter() + SORT_WITHIN_S
                self.unsorted.add((entry, top))
        self.due_s = self.after_pause_s = 0.0
        return file in self.own

    def note_kept(self, modules: Iterable[tuple[str, str]]) -> None:
        """Note modules that came by value, have these files, and are kept for values in the engine's namespace."""
        for name, file in modules:
            if file not in self.own:
                with contextlib.suppress(OSError):
                    status = os.stat(file)
                    self.own[file] = OwnFile(name, _stamp(status), _digest(file, status), came=True)
                    self.due_s = self.after_pause_s = 0.0

    def look(self) -> list[Edited]:
        """Return the modules that were edited or upgraded since they were imported."""
        began_s = time.perf_counter()
        found = [*self.edited()]
        if found and self.unsorted:  # what belongs to a distribution cannot be imported again
            self.sort()
            found = [*self.edited()]
        if began_s >= self._folders_due_s:
            found += self._upgraded()
            self._folders_due_s = began_s + FOLDERS_AGAIN_S
        ended_s = time.perf_counter()
        looked_at = len(self.own) + len(self.folders)
        # The others were interrupted: what a look costs says nothing of how busy the machine is.
        self._fastest_stat_s = min(self._fastest_stat_s, (ended_s - began_s) / max(looked_at, 1))
        took_s = looked_at * self._fastest_stat_s
        shortest_s, longest_s = LOOK_AGAIN_S
        again_s = ended_s + min(max(shortest_s, took_s / LOOKING_PART), longest_s)
        if self.own:
            self.due_s = again_s
            self.after_pause_s = ended_s + shortest_s if took_s <= CHEAP_S else again_s
        else:
            self.due_s = self.after_pause_s = max(again_s, self._folders_due_s)
        return found

    def forget(self, edited: Iterable[Edited]) -> None:
        """Forget files, so that they are not told of again."""
        for each in edited:
            self.own.pop(each.file, None)
            self.installed.pop(each.file, None)

    def begin(self) -> list[Edited]:
        """Begin an engine: what its zygote had imported and was edited since then is imported anew.

        Returns the modules for which that is impossible.
        """
        found = self.look()
        if any(each.is_own for each in found):
            for file, known in [*self.own.items()]:
                if not is_compiled(file):
                    sys.modules.pop(known.name, None)
                    del self.own[file]
        self.forget(found)
        self.kept_old += [each for each in found if not each.can_be_imported_again]
        return self.kept_old

    def edited(self) -> Iterator[Edited]:
        """Yield a person's own modules whose files have another content now."""
        stat = os.stat
        for file, known in [*self.own.items()]:
            try:
                status = stat(file)
            except (FileNotFoundError, NotADirectoryError):
                if not known.came and _is_missed(known.name, file):
                    yield Edited(known.name, file, True)
                else:  # it was made for one import
                    del self.own[file]
                continue
            except OSError:  # a file server that does not answer
                continue
            if (status.st_mtime_ns, status.st_size, status.st_ino) == known.stamp:
                continue
            if _digest(file, status) == known.digest:
                self.own[file] = known._replace(stamp=_stamp(status))
            elif known.came or _origin_now(known.name) == file:
                yield Edited(known.name, file, True)
            else:
                del self.own[file]

    def _upgraded(self) -> Iterator[Edited]:
        """Yield modules of distributions that were replaced, if anything was installed at all."""
        if self.unsorted and time.perf_counter() >= self._sort_by_s:
            self.sort()
        for folder, seen in [*self.folders.items()]:
            now = _time_of(folder)
            if now == seen:
                continue
            self.folders[folder] = now
            inside = os.path.join(folder, "")
            for file, (name, stamp) in self.installed.items():
                if file.startswith(inside) and _stamp_of(file) != stamp:
                    yield Edited(name, file, False)

    def sort(self) -> None:
        """Find out which new modules that lie among distributions belong to one.

        This reads metadata for some milliseconds: an engine does it when it is idle.
        """
        for folder in {folder for folder, _ in self.unsorted}:
            tops = {top for each, top in self.unsorted if each == folder}
            claimed = {(folder, top) for top in tops - without_metadata(folder, tops)}
            self._claimed |= claimed
            for file, known in [*self.own.items()] if claimed else ():
                if (entry_of(known.name, file), known.name.partition(".")[0]) in claimed:
                    del self.own[file]
                    self.installed[file] = known.name, known.stamp
        self.unsorted.clear()


EDITED = EditedModules()
"""Of this process.  An engine begins with what its zygote has imported."""


def watch_imports() -> None:
    """Let the loaders of this process note what they read.

    `path_stats` is asked for each source, whether or not its compiled form is used. A compiled form that is as old as
    the source, to the second, may be that of an earlier edit of the same size: it is made anew.
    """
    usual = vars(SourceFileLoader).get("path_stats", SourceFileLoader.path_stats)
    if getattr(usual, "notes", False):
        return

    def path_stats(self: SourceFileLoader, path: str) -> dict[str, float]:
        status = os.stat(path)
        is_own = EDITED.note(self.name, os.fspath(path), status)
        size = -1 if is_own and _may_be_of_an_earlier_edit(path, status) else status.st_size
        return {"mtime": status.st_mtime, "size": size}

    path_stats.notes = True  # type: ignore[attr-defined]
    SourceFileLoader.path_stats = path_stats  # type: ignore[method-assign]
    _note_before(SourcelessFileLoader, "get_code")
    _note_before(ExtensionFileLoader, "create_module")


def _note_before(loader: Any, method: str) -> None:
    usual = getattr(loader, method)

    def noted(self: Any, argument: Any) -> Any:
        with contextlib.suppress(OSError):
            EDITED.note(self.name, os.fspath(self.path), os.stat(self.path))
        return usual(self, argument)

    setattr(loader, method, noted)


def _may_be_of_an_earlier_edit(file: str, status: os.stat_result) -> bool:
    try:
        compiled = os.stat(importlib.util.cache_from_source(file))
    except (OSError, NotImplementedError):
        return False
    return int(compiled.st_mtime) <= int(status.st_mtime)


def _stamp(status: os.stat_result) -> Stamp:
    return status.st_mtime_ns, status.st_size, status.st_ino


def _stamp_of(file: str) -> Stamp | None:
    try:
        return _stamp(os.stat(file))
    except OSError:
        return None


def _time_of(folder: str) -> int:
    try:
        return os.stat(folder).st_mtime_ns
    except OSError:
        return 0


def _digest(file: str, status: os.stat_result) -> bytes:
    if status.st_size <= _READ_MAX:
        with contextlib.suppress(OSError):
            return hashlib.blake2b(Path(file).read_bytes(), digest_size=16).digest()
    return repr(_stamp(status)).encode()


def _origin_now(name: str) -> str | None:
    """Return the file from which an import of this name would load the module now."""
    parent = name.rpartition(".")[0]
    path = getattr(sys.modules.get(parent), "__path__", None) if parent else None
    if parent and path is None:
        return None
    importlib.invalidate_caches()
    spec: ModuleSpec | None = None
    for finder in other_finders():
        with contextlib.suppress(Exception):  # a finder of a library may do anything
            spec = finder.find_spec(name, path)
        if spec is not None:
            return spec.origin
    return None


def _is_missed(name: str, file: str) -> bool:
    """Return whether a file that is gone was a module for good: its folder is searched for modules still, or another
    file has taken its place.
    """
    return _origin_now(name) is not None or entry_of(name, file) in sys.path
