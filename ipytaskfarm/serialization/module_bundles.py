"""Bundles: the sources of by-value modules, collected on the sending side.

A module travels as its *source*, together with the sources of the modules that it imports and the data files of its
packages. They are read when the function is submitted, so the latest edit is sent. The imports are found by reading the
import statements of the source, including those inside functions. A package that imports under computed names travels
whole.

Every module of a bundle has a digest over its own source and the sources of all modules that it reaches.
"""

from __future__ import annotations

import ast
import hashlib
import os
import re
import sys
import warnings
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from threading import get_ident
from time import monotonic
from typing import Any

import msgspec

from ..system import process
from ..system.user_code import depth_of_user
from .assigned_globals import AssignedGlobals, state_to_compare, warn_of_script_parts
from .file_looks import FileLook, Stamp, pack_looks, stamp_of
from .module_origin import (
    Shipped,
    Travel,
    file_travels,
    find_spec,
    folder_travels,
    is_compiled,
    is_there,
    travel,
    when_rules_change,
)
from .module_state import parsed, state_of
from .program_settings import program_arguments, readers_of_arguments, warn_of_settings

DATA_BYTES_MAX = 16 * 2**20
"""The limit for the data files of one package. Files beyond it do not travel."""
_DATA_FILES_MAX = 2000
_MODULES_MAX = 20_000


class ModuleSource(msgspec.Struct, frozen=True, array_like=True):
    """One module as it travels."""

    name: str
    is_package: bool
    file: str
    """The module's file on the sending side. A compiled module travels as this path alone."""
    folders: list[str]
    """The folders of a package on the sending side, for extension modules and data if the other side sees them."""
    source: bytes
    digest: str = ""
    """Digest of this source and of all sources that it reaches."""
    data: dict[str, bytes] = {}
    """Data files of a package: path relative to its folder -> content."""
    left_out: dict[str, int] = {}
    """Data files beyond the limit: path relative to the package's folder -> size in bytes."""
    arguments: tuple[str, ...] = ()
    """``sys.argv`` for its import, if that reads the arguments of the program."""


class Bundle(msgspec.Struct, frozen=True):
    """A module with all by-value modules that it reaches, including itself."""

    name: str
    digest: str
    members: list[ModuleSource]
    packed: bytes
    stamps: tuple[tuple[str, Stamp], ...] = ()
    file: str | None = None
    """The file of the module that had this name when the bundle was made: another one may take its place."""
    path: tuple[str, ...] = ()
    """Where modules were looked for: after ``%cd`` or ``sys.path.insert`` one of the same name may come first."""
    arguments: tuple[str, ...] | None = None
    """The program's arguments, if the import of a module here reads them."""


class _Text:
    """A source file that was read, and the imports found in it."""

    __slots__ = ("dynamic", "mentioned", "opens_data", "source", "stamp")

    def __init__(self, stamp: Stamp, source: bytes) -> None:
        self.stamp = stamp
        self.source = source
        self.mentioned = mentioned(source)
        self.dynamic = _DYNAMIC.search(source) is not None
        """Whether it may import modules under names that no import statement mentions."""
        self.opens_data = _OPENS_DATA.search(source) is not None


_DYNAMIC = re.compile(
    rb"\b(import_module|__import__|resolve_name)\s*\((?!\s*[\"'][\w.]+[\"']\s*[,)])"
    rb"|\bimport_module[ \t]+as\b|=\s*(importlib\.)?import_module\b(?!\s*\()|\b(iter_modules|walk_packages)\b"
)
"""Excluded are calls with a constant, which count as statements, and ``find_spec``, a test whether a module exists."""
_OPENS_DATA = re.compile(rb"\b(importlib[._]resources|get_data|pkg_resources|__file__)\b")
_texts: dict[str, _Text] = {}
_bundles: dict[str, Bundle] = {}
_ALL_LOOKS, _PAUSE_LOOKS = 50, 20
"""A module is looked at for parts of the script with each of its first functions that are packed. Later looks are so
rare that they take a twentieth of the time: one takes a millisecond in a program of some modules."""
_part_looks: dict[str, tuple[int, float, float]] = {}
"""Module's name -> how often it was looked at, when the last look ended (monotonic), and how long it took."""
_assigned: dict[str, list[AssignedGlobals]] = {}
"""Bundle's name -> the constants of its modules."""
_looks: dict[str, FileLook] = {}
when_rules_change(_bundles.clear)

register_own: Any = None
"""Called with each new bundle. `modules` sets it, to record which modules of this process the bundle stands for."""
_warned: set[str] = set()


class Working:
    """The current packing step, for the notice that packing takes long."""

    what = ""


working = Working()


def bundle_of(name: str) -> Bundle:
    """Return the module's sources as they are now. The result is the same object as long as no file has changed."""
    found = pack_looks.found
    if found is None:
        return _bundle_now(name)
    if name not in found:
        found[name] = _bundle_now(name)
    bundle: Bundle = found[name]
    return bundle


def _bundle_now(name: str) -> Bundle:
    if process.importing:
        _refuse_at_import(name)
    known = _bundles.get(name)
    if known is not None and _unchanged(known):
        _warn(known)
        return known
    try:
        bundle = _Builder().build(name)
    finally:
        working.what = ""
    _bundles[name] = bundle
    register_own(bundle)
    compared = (state_to_compare(member.name, member.file, member.source) for member in bundle.members)
    _assigned[name] = [assigned for assigned in compared if assigned is not None]
    _warn(bundle)
    return bundle


def _refuse_at_import(name: str) -> None:
    """Refuse to send a module that is being imported: each engine that imports it would send it again, for ever.

    Raises:
        RuntimeError: it is being imported.
    """
    if name in process.importing:
        raise RuntimeError(
            f"an engine imports the module {name!r}, which submits work with functions of its own there: put that into "
            'a function, or below `if __name__ == "__main__":`'
        )


def _warn(bundle: Bundle) -> None:
    """Warn of what the program has put into the modules since they were imported."""
    for assigned in _assigned.get(bundle.name, ()):
        assigned.warn()
    looks, ended_s, took_s = _part_looks.get(bundle.name, (0, 0.0, 0.0))
    began_s = monotonic()
    if looks < _ALL_LOOKS or began_s - ended_s >= _PAUSE_LOOKS * took_s:
        modules = {member.name for member in bundle.members} & sys.modules.keys()
        warn_of_script_parts(map(sys.modules.__getitem__, modules))
        warn_of_settings(modules)
        ended_s = monotonic()
        _part_looks[bundle.name] = looks + 1, ended_s, ended_s - began_s


def is_current(bundle: Bundle) -> bool:
    """Return whether the module's sources are those of the bundle.

    A loop that submits one call after the other looks at the files (one stat each) now and then, not for each call.
    """
    name, thread, now_s = bundle.name, get_ident(), monotonic()
    look = _looks.get(name)
    if (
        look is not None
        and look.is_good(thread, now_s)
        and _bundles.get(name) is bundle
        and _file_of(name) == bundle.file
    ):
        return True
    current = bundle_of(name) is bundle
    if current:
        _looks[name] = FileLook(thread, now_s, len(bundle.stamps))
    else:  # what was made anew took longer than a look at files, and would pass for a slow disk
        _looks.pop(name, None)
    return current


def _file_of(name: str) -> str | None:
    return getattr(sys.modules.get(name), "__file__", None)


def _searched() -> tuple[str, ...]:
    try:
        here = os.getcwd() if "" in sys.path else ""
    except FileNotFoundError:  # the folder was removed
        here = ""
    return (here, *sys.path)


def _unchanged(bundle: Bundle) -> bool:
    if _file_of(bundle.name) != bundle.file or bundle.path != _searched():
        return False
    if bundle.arguments is not None and bundle.arguments != program_arguments():
        return False
    stat = os.stat
    try:
        for file, stamp in bundle.stamps:
            if stamp_of(stat(file)) != stamp:
                return False
    except OSError:
        return False
    return True


class _Builder:
    """Collects the modules that one module reaches."""

    def __init__(self) -> None:
        self._found: dict[str, ModuleSource] = {}
        self._reaches: dict[str, set[str]] = {}
        self._sent: dict[str, bool] = {}
        self._stamps: dict[str, Stamp] = {}
        self._whole: dict[str, set[str]] = {}
        self._bytes = 0
        self._own: dict[str, bytes] = {}
        self._digests: dict[frozenset[str], str] = {}

    def build(self, name: str) -> Bundle:
        """Return the bundle of the module."""
        waiting = [name]
        while waiting:
            each = waiting.pop()
            if each in self._found:
                continue
            read = self._read(each)
            if read is None:
                continue
            source, text = read
            self._found[each] = source
            self._bytes += len(source.source) + sum(map(len, source.data.values()))
            working.what = f"module {name} ({size_text(self._bytes)} of sources, {len(self._found)} files)"
            names = set(resolve(source.name, source.is_package, text.mentioned if text is not None else ()))
            if text is not None and text.dynamic:
                names |= self._all_of(each.partition(".")[0])
            reached = {m for m in names if m == each or self._is_sent(m)}
            self._reaches[each] = reached
            waiting.extend(reached - self._found.keys())
        arguments = self._give_arguments()
        members = [self._with_digest(source) for _, source in sorted(self._found.items())]
        digest = next((member.digest for member in members if member.name == name), None)
        if digest is None:  # nothing has imported it here, and it was there a moment ago
            raise ModuleNotFoundError(f"No module named {name!r}: its file was moved or removed", name=name)
        # A level above 1 gains little on source text, and this cost arises at every edit.
        packed = zlib.compress(msgspec.msgpack.encode(members), 1)
        stamps = tuple(self._stamps.items())
        return Bundle(name, digest, members, packed, stamps, _file_of(name), _searched(), arguments)

    def _give_arguments(self) -> tuple[str, ...] | None:
        """Give the program's arguments to the modules that read them; return those, None if no module reads them."""
        # One with a digest was sent to this process, with the arguments of its own program.
        readers = readers_of_arguments({name: each.source for name, each in self._found.items() if not each.digest})
        arguments = program_arguments() if readers else None
        for name in readers:
            self._found[name] = msgspec.structs.replace(self._found[name], arguments=arguments)
        return arguments

    def _is_sent(self, name: str) -> bool:
        found = self._sent.get(name)
        if found is None:
            found = self._sent[name] = is_sent(name)
        return found

    def _with_digest(self, source: ModuleSource) -> ModuleSource:
        reached: set[str] = set()
        waiting = [source.name]
        while waiting:
            each = waiting.pop()
            if each not in reached and each in self._found:
                reached.add(each)
                waiting.extend(self._reaches[each])
        key = frozenset(reached)
        digest = self._digests.get(key)
        if digest is None:
            total = hashlib.blake2b(digest_size=20)
            for name in sorted(reached):
                total.update(self._own_digest(name))
            digest = self._digests[key] = total.hexdigest()
        return msgspec.structs.replace(source, digest=digest)

    def _own_digest(self, name: str) -> bytes:
        known = self._own.get(name)
        if known is not None:
            return known
        member = self._found[name]
        total = hashlib.blake2b(digest_size=20)
        total.update(f"{name}\0{len(member.source)}\0".encode())
        total.update(member.source)
        if member.arguments:
            total.update(repr(member.arguments).encode())
        for path, content in sorted(member.data.items()):
            total.update(f"{path}\0{len(content)}\0".encode("utf-8", "surrogateescape"))
            total.update(content)
        if is_compiled(member.file):
            total.update(f"{member.file}\0{self._stamps.get(member.file)}".encode("utf-8", "surrogateescape"))
        known = self._own[name] = total.digest()
        return known

    def _read(self, name: str) -> tuple[ModuleSource, _Text | None] | None:
        module = sys.modules.get(name)
        if not is_there(module):
            gone, module = module, None
            if find_spec(name) is None:
                at = getattr(gone, "__file__", "")
                raise FileNotFoundError(f"module {name} was moved or removed, {at} is gone: import what you use anew")
        spec = getattr(module, "__spec__", None) or find_spec(name)
        file = getattr(module, "__file__", None)
        if spec is not None and isinstance(spec.loader, Shipped):
            shipped: ModuleSource = spec.loader.module  # type: ignore[attr-defined]
            return shipped, _Text((0, 0, 0, 0), shipped.source)
        if spec is None and file is None:
            return None
        found = spec.submodule_search_locations if spec is not None else getattr(module, "__path__", None)
        folders = list(found or ())
        file = file or (spec.origin if spec is not None and spec.has_location else None)
        if file is None:
            return ModuleSource(name, True, "", folders, b""), None
        stamp = self._stamps[file] = stamp_of(os.stat(file))
        if is_compiled(file):
            return ModuleSource(name, False, file, [os.path.dirname(file)], b""), None
        text = _texts.get(file)
        if text is None or text.stamp != stamp:
            text = _texts[file] = _Text(stamp, Path(file).read_bytes())
            if module is not None:
                state_of(text.source)  # now that it is parsed
        if found is None:
            return ModuleSource(name, False, file, [], text.source), text
        known = set(self._stamps)
        data, left_out = self._data(os.path.dirname(file))
        if not data and not text.opens_data:
            # For a package without data, only new sources matter: do not stat its folders at each submission.
            self._stamps = {path: self._stamps[path] for path in self._stamps if path in known}
        if left_out and text.opens_data:
            _warn_of_left_out(name, left_out)
        return ModuleSource(name, True, file, folders, text.source, "", data, left_out), text

    def _data(self, package: str) -> tuple[dict[str, bytes], dict[str, int]]:
        """Return the data files of a package, without those of its subpackages, and the sizes of the files that are
        left out.
        """
        data: dict[str, bytes] = {}
        left_out: dict[str, int] = {}
        room = DATA_BYTES_MAX
        for path, status in self._walk(package, sources=False):
            below = os.path.relpath(path, package)
            if status.st_size > room or len(data) >= _DATA_FILES_MAX:
                left_out[below] = status.st_size
                if len(left_out) >= _DATA_FILES_MAX:
                    break
                continue
            try:
                data[below] = Path(path).read_bytes()
            except OSError:
                continue
            room -= len(data[below])
            self._stamps[path] = stamp_of(status)
        return data, left_out

    def _all_of(self, top: str) -> set[str]:
        """Return the names of all modules of a package; an empty set if it is not a regular package."""
        known = self._whole.get(top)
        if known is None:
            known = self._whole[top] = self._list_all(top)
        return known

    def _list_all(self, top: str) -> set[str]:
        spec = getattr(sys.modules.get(top), "__spec__", None) or find_spec(top)
        locations = getattr(spec, "submodule_search_locations", None)
        origin = getattr(spec, "origin", None)
        if spec is None or isinstance(spec.loader, Shipped) or not locations or not origin:
            return set()
        found: set[str] = set()
        root = os.path.dirname(origin)
        for path, _ in self._walk(root, sources=True):
            parts = os.path.relpath(path, os.path.dirname(root)).removesuffix(".py").split(os.sep)
            if parts[-1] == "__init__":
                parts.pop()
            if all(part.isidentifier() for part in parts):
                found.add(".".join(parts))
            if len(found) >= _MODULES_MAX:
                break
        return found

    def _walk(self, folder: str, sources: bool) -> Iterator[tuple[str, os.stat_result]]:
        """Yield the files below a package's folder: its Python sources, or all other files.

        Record the folders that were read.
        """
        waiting = [folder]
        while waiting:
            here = waiting.pop()
            try:
                self._stamps[here] = stamp_of(os.stat(here))
                entries = sorted(os.scandir(here), key=lambda entry: entry.name)
            except OSError:
                continue
            names = {entry.name for entry in entries}
            if here != folder and ("pyvenv.cfg" in names or (not sources and "__init__.py" in names)):
                continue
            for entry in entries:
                if entry.name.startswith(".") or entry.name == "__pycache__":
                    continue
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)
                elif entry.is_file() and entry.name.endswith(".py") is sources and not _is_made(entry.name):
                    yield entry.path, entry.stat()


def _is_made(name: str) -> bool:
    return name.endswith((".pyc", ".pyo", ".so", ".pyd", ".o", ".a", ".c", ".cpp"))


def _warn_of_left_out(name: str, left_out: dict[str, int]) -> None:
    if name in _warned:
        return
    _warned.add(name)
    largest = max(left_out, key=lambda path: left_out[path])
    total = size_text(sum(left_out.values()))
    warnings.warn(
        f"package {name}: {len(left_out)} of its data files ({total}, the largest is {largest}) do not travel with it, "
        f"the limit is {size_text(DATA_BYTES_MAX)}: put them where engines can read them, or install {name} there",
        stacklevel=depth_of_user(),
    )


def size_text(count: float) -> str:
    """Return a number of bytes as text for people."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


# --------------------------------------------------------------------------------------------------
# Which modules a source imports


def mentioned(source: bytes) -> frozenset[str]:
    """Return the modules that the import statements of a source name.

    ``from a import b`` gives ``a`` and ``a.b``. Relative names keep their dots.
    """
    if b"import" not in source:
        return frozenset()
    tree = parsed(source)
    if tree is None:
        return frozenset()  # the engine will report the error, with its line
    by_call = _IMPORT_CALL.search(source) is not None
    names: set[str] = set()
    for node in ast.walk(tree) if by_call else _statements(tree.body):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            joint = "" if base.endswith(".") else "."
            names.add(base)
            names.update(f"{base}{joint}{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and node.args and _called(node.func) in ("import_module", "__import__"):
            named, *others = [*node.args[:2], *(each.value for each in node.keywords if each.arg == "package")]
            base = _text_of(others[0]) if others else ""
            name = _text_of(named)
            names.update(resolve_one(base, True, name) if base and name.startswith(".") else (name,))
    return frozenset(names - {""})


def _text_of(node: ast.expr) -> str:
    """Return the text of a constant; "" for all else."""
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


_IMPORT_CALL = re.compile(rb"\b(import_module|__import__)\b")


def _statements(body: list[ast.stmt]) -> Iterator[ast.AST]:
    """Yield all statements below. Expressions, which are most of a syntax tree, are skipped."""
    waiting: list[Any] = [*body]
    while waiting:
        node = waiting.pop()
        yield node
        for field in ("body", "orelse", "finalbody", "handlers", "cases"):
            waiting.extend(getattr(node, field, None) or ())


def _called(function: ast.expr) -> str:
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def resolve(name: str, is_package: bool, names: Iterable[str]) -> Iterator[str]:
    """Yield the full names of the modules that the module `name` mentions, of the packages around them, and `name`
    itself.
    """
    for each in {*names, name}:
        yield from resolve_one(name, is_package, each)


def resolve_one(name: str, is_package: bool, mentioned_name: str) -> Iterator[str]:
    """Yield the full name of the module that the module `name` mentions, then those of the packages around it."""
    full = mentioned_name
    if full.startswith("."):
        level = len(full) - len(full.lstrip("."))
        parts = (name if is_package else name.rpartition(".")[0]).split(".")
        if level - 1 >= len(parts):
            return
        full = ".".join([*parts[: len(parts) - level + 1], *filter(None, full[level:].split("."))])
    while full:
        yield full
        full = full.rpartition(".")[0]


def is_sent(name: str) -> bool:
    """Return whether the module of this name travels by value. It need not be imported."""
    if name in sys.modules:
        return sys.modules[name] is not None and travel(name) is Travel.SOURCE
    top = name.partition(".")[0]
    if top in sys.stdlib_module_names and sys.modules.get(top) is not None and travel(top) is Travel.REFERENCE:
        return False
    spec = find_spec(name)
    if spec is None:
        return False
    if isinstance(spec.loader, Shipped):
        return True
    if not spec.has_location or spec.origin is None:
        return folder_travels(name, list(spec.submodule_search_locations or ()))
    return file_travels(name, spec.origin)


def modules_below(package: str) -> list[str]:
    """Return the names of the modules of a package that travels by value, with its own; [] for all others."""
    if not is_sent(package):
        return []
    spec = getattr(sys.modules.get(package), "__spec__", None) or find_spec(package)
    found = [package]
    for folder in getattr(spec, "submodule_search_locations", None) or ():
        names = {entry.removesuffix(".py") for entry in _entries(folder)}
        found += [f"{package}.{name}" for name in sorted(names) if name.isidentifier() and name != "__init__"]
    return [name for name in found if is_sent(name)][:_MODULES_MAX]


def _entries(folder: str) -> list[str]:
    """Return the sources and packages in a folder."""
    try:
        with os.scandir(folder) as entries:
            return [
                each.name
                for each in entries
                if each.name.endswith(".py") or os.path.exists(os.path.join(each.path, "__init__.py"))
            ]
    except OSError:
        return []  # it is in an archive, or does not exist any more


# --------------------------------------------------------------------------------------------------
# Modules that functions of ``__main__`` import while they run


class Imports(msgspec.Struct, frozen=True):
    """The by-value modules that a function's own import statements name.

    The pickle contains a call of `offer` for it.
    """

    bundles: tuple[Bundle, ...]
    folder: str = ""
    """The script's folder, in which modules that are imported under computed names may be found."""
