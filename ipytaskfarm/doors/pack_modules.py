"""Which modules travel by value, and how they do.

By reference: the standard library and installed distributions (``site-packages``).  By value: everything else, that
is the session's folder, user paths and editable installs.  Such a module travels as its *source*, together with the
sources it imports in turn, read from the file as it stands when the function is handed in: so an edit is seen.
Members of it are named inside it, so a class has one identity on an engine however often it arrives.

Every module of such a bundle has a digest over its own source and all those it reaches.  An engine keeps one module
object per (name, digest), and puts the wanted ones into ``sys.modules`` before anything of theirs is used.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib
import importlib.machinery
import importlib.util
import os
import site
import sys
import sysconfig
import time
import types
import zlib
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from enum import Enum
from pathlib import Path
from typing import Any, cast

import msgspec

from .pack_build import loading

_OWN = __name__.partition(".")[0]
_VERSIONS_KEPT = 512
_PROCESS_SINCE = time.time()


class Travel(Enum):
    """How what belongs to a module gets to the other side."""

    REFERENCE = 1
    """By name: it can be imported there."""
    SOURCE = 2
    """As the source of the whole module."""
    LOOSE = 3
    """Member by member: ``__main__``, and modules that have no source."""


class ModuleSource(msgspec.Struct, frozen=True, array_like=True):
    """One module as it travels."""

    name: str
    is_package: bool
    file: str
    folders: list[str]
    """Where a package's other members (extension modules, data) lie, if the other side has them at all."""
    source: bytes
    digest: str = ""
    """Of this source and all that it reaches."""


class Bundle(msgspec.Struct, frozen=True):
    """A module with all the by-value modules that it reaches, itself included."""

    name: str
    digest: str
    members: list[ModuleSource]
    packed: bytes
    stamps: tuple[tuple[str, tuple[int, int, int]], ...] = ()


_MEMBERS = msgspec.msgpack.Decoder(list[ModuleSource])


# --------------------------------------------------------------------------------------------------
# By value or by reference

_added_folders: list[str] = []
_added_modules: set[str] = set()
_kinds: dict[str, tuple[types.ModuleType, Travel]] = {}


def add_dependency(path: str | os.PathLike[str]) -> None:
    """Make modules travel by value that would go by reference: a file, a folder, or the name of a module."""
    if isinstance(path, str) and not os.path.exists(path):
        if path.partition(".")[0] not in sys.modules and _find(path) is None:
            raise FileNotFoundError(f"add_dependency({path!r}): there is no such file or folder, and no such module")
        _added_modules.add(path)
    else:
        _added_folders.append(os.path.realpath(path))
    _kinds.clear()
    _bundles.clear()


def _installed_folders() -> tuple[str, ...]:
    paths = sysconfig.get_paths()
    folders = [paths[key] for key in ("stdlib", "platstdlib", "purelib", "platlib")]
    folders += [*site.getsitepackages(), site.getusersitepackages()]
    return tuple({os.path.join(form, "") for folder in folders for form in (folder, os.path.realpath(folder))})


_INSTALLED_FOLDERS = _installed_folders()


def _file_travels(file: str) -> bool:
    real = os.path.realpath(file)
    for added in _added_folders:
        if real == added or real.startswith(os.path.join(added, "")):
            return True
    return not (file.startswith(_INSTALLED_FOLDERS) or real.startswith(_INSTALLED_FOLDERS))


def travel(name: str | None) -> Travel:
    """How members of the module of that name travel."""
    if name is None:
        return Travel.LOOSE
    module = sys.modules.get(name)
    if module is None:
        return Travel.LOOSE
    known = _kinds.get(name)
    if known is not None and known[0] is module:
        return known[1]
    kind = _travel(name, module)
    _kinds[name] = (module, kind)
    return kind


def _travel(name: str, module: types.ModuleType) -> Travel:
    if name in ("__main__", "__mp_main__"):
        return Travel.LOOSE
    spec = getattr(module, "__spec__", None)
    if name.partition(".")[0] == _OWN or name in sys.builtin_module_names:
        return Travel.REFERENCE
    if isinstance(getattr(spec, "loader", None), ShippedLoader):
        return Travel.SOURCE
    forced = any(name == added or name.startswith(added + ".") for added in _added_modules)
    file = getattr(module, "__file__", None)
    if file is None:
        if spec is None:
            return Travel.LOOSE
        folders = list(spec.submodule_search_locations or ())
        return Travel.SOURCE if folders and (forced or _file_travels(folders[0])) else Travel.REFERENCE
    if not file.endswith(".py") or not os.path.isfile(file):
        return Travel.REFERENCE
    return Travel.SOURCE if forced or _file_travels(file) else Travel.REFERENCE


# --------------------------------------------------------------------------------------------------
# Sources and bundles, where they are sent from

_texts: dict[str, tuple[tuple[int, int, int], bytes, frozenset[str]]] = {}
"""File -> (stamp, source, names that its import statements mention)."""
_bundles: dict[str, Bundle] = {}


def _stamp(file: str) -> tuple[int, int, int]:
    status = os.stat(file)
    return status.st_mtime_ns, status.st_size, status.st_ino


def bundle_of(name: str) -> Bundle:
    """The module's sources as they stand now.  The same object as long as no file changed."""
    known = _bundles.get(name)
    if known is not None and _unchanged(known):
        return known
    bundle = _make_bundle(name)
    _bundles[name] = bundle
    _register_own(bundle)
    return bundle


def _unchanged(bundle: Bundle) -> bool:
    try:
        return all(_stamp(file) == stamp for file, stamp in bundle.stamps)
    except OSError:
        return False


def _make_bundle(name: str) -> Bundle:
    found: dict[str, ModuleSource] = {}
    reaches: dict[str, set[str]] = {}
    waiting = [name]
    while waiting:
        each = waiting.pop()
        if each in found:
            continue
        source, mentioned = _read(each)
        if source is None:
            continue
        found[each] = source
        reaches[each] = {m for m in _resolve(source, mentioned) if m == each or _is_sent(m)}
        waiting.extend(reaches[each] - found.keys())
    members = [_with_digest(source, found, reaches) for _, source in sorted(found.items())]
    digest = next(member.digest for member in members if member.name == name)
    # A level above 1 gains little on source text, and this is paid at every edit.
    packed = zlib.compress(msgspec.msgpack.encode(members), 1)
    stamps = tuple((m.file, _stamp(m.file)) for m in members if m.file and os.path.isfile(m.file))
    return Bundle(name=name, digest=digest, members=members, packed=packed, stamps=stamps)


def _with_digest(source: ModuleSource, found: dict[str, ModuleSource], reaches: dict[str, set[str]]) -> ModuleSource:
    reached: set[str] = set()
    waiting = [source.name]
    while waiting:
        each = waiting.pop()
        if each not in reached and each in found:
            reached.add(each)
            waiting.extend(reaches[each])
    total = hashlib.blake2b(digest_size=20)
    for name in sorted(reached):
        text = found[name].source
        total.update(f"{name}\0{len(text)}\0".encode())
        total.update(text)
    return msgspec.structs.replace(source, digest=total.hexdigest())


def _read(name: str) -> tuple[ModuleSource | None, frozenset[str]]:
    module = sys.modules.get(name)
    spec = getattr(module, "__spec__", None) or _find(name)
    if spec is None:
        return None, frozenset()
    if isinstance(spec.loader, ShippedLoader):
        shipped = spec.loader.module
        return shipped, _mentioned(shipped.source)
    folders = list(spec.submodule_search_locations or ())
    file = getattr(module, "__file__", None) or (spec.origin if spec.has_location else None)
    if file is None:
        return ModuleSource(name, True, "", folders, b""), frozenset()
    stamp = _stamp(file)
    known = _texts.get(file)
    if known is None or known[0] != stamp:
        text = Path(file).read_bytes()
        known = (stamp, text, _mentioned(text))
        _texts[file] = known
    is_package = spec.submodule_search_locations is not None
    return ModuleSource(name, is_package, file, folders, known[1]), known[2]


def _mentioned(source: bytes) -> frozenset[str]:
    """Absolute names as they are, relative ones with their dots; ``from a import b`` gives ``a`` and ``a.b``."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return frozenset()  # the engine will say it, with the line
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            joint = "" if base.endswith(".") else "."
            names.add(base)
            names.update(f"{base}{joint}{alias.name}" for alias in node.names)
    return frozenset(names)


def _resolve(source: ModuleSource, mentioned: frozenset[str]) -> Iterator[str]:
    """The full names, with the packages around them."""
    package = source.name if source.is_package else source.name.rpartition(".")[0]
    for name in mentioned | {source.name}:
        full = name
        if name.startswith("."):
            level = len(name) - len(name.lstrip("."))
            parts = package.split(".")
            if level - 1 >= len(parts):
                continue
            full = ".".join([*parts[: len(parts) - level + 1], *filter(None, name[level:].split("."))])
        while full:
            yield full
            full = full.rpartition(".")[0]


def _is_sent(name: str) -> bool:
    if name in sys.modules:
        return travel(name) is Travel.SOURCE
    top = name.partition(".")[0]
    added = bool(_added_modules or _added_folders)
    if top in sys.stdlib_module_names or (not added and travel(top) is Travel.REFERENCE):
        return False
    spec = _find(name)
    if spec is None:
        return False
    if isinstance(spec.loader, ShippedLoader):
        return True
    if not spec.has_location or spec.origin is None:
        folders = list(spec.submodule_search_locations or ())
        return bool(folders) and _file_travels(folders[0])
    return spec.origin.endswith(".py") and _file_travels(spec.origin)


def _find(name: str) -> importlib.machinery.ModuleSpec | None:
    """The spec of a module that need not be imported; nothing is run to find it."""
    path: Sequence[str] | None = None
    spec = None
    parts = name.split(".")
    for depth in range(1, len(parts) + 1):
        full = ".".join(parts[:depth])
        loaded = sys.modules.get(full)
        spec = getattr(loaded, "__spec__", None)
        if spec is None:
            try:
                spec = _finder.find_spec(full) or importlib.machinery.PathFinder.find_spec(full, path)
            except KeyError:  # a namespace package around it is not imported any more
                return None
        if spec is None:
            return None
        path = spec.submodule_search_locations
        if path is None and depth < len(parts):
            return None
    return spec


# --------------------------------------------------------------------------------------------------
# Modules that came from elsewhere

_versions: OrderedDict[tuple[str, str], types.ModuleType] = OrderedDict()
"""(name, digest) -> the module made from it, or found here to be the same."""
_offered: dict[str, ModuleSource] = {}
"""What an import of that name loads: the version used last."""
_opened: OrderedDict[tuple[str, str], list[ModuleSource]] = OrderedDict()


class ShippedLoader:
    """Runs a module's source that came with a function."""

    def __init__(self, module: ModuleSource) -> None:
        self.module = module

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType | None:
        return None

    def is_package(self, fullname: str) -> bool:
        return self.module.is_package

    def get_source(self, fullname: str) -> str:
        return importlib.util.decode_source(self.module.source)

    def exec_module(self, module: types.ModuleType) -> None:
        code = compile(self.module.source, self.module.file or self.module.name, "exec", dont_inherit=True)
        exec(code, module.__dict__)
        _note_version(self.module, module)


class ShippedFinder:
    """Answers for the modules that came with functions, before the folders of ``sys.path`` are asked."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        offered = _offered.get(fullname)
        if offered is None:
            return None
        spec = importlib.machinery.ModuleSpec(
            fullname, cast(Any, ShippedLoader(offered)), origin=offered.file or None, is_package=offered.is_package
        )
        spec.has_location = bool(offered.file)
        if spec.submodule_search_locations is not None:
            spec.submodule_search_locations.extend(folder for folder in offered.folders if os.path.isdir(folder))
        return spec


_finder = ShippedFinder()


def _note_version(source: ModuleSource, module: types.ModuleType) -> None:
    _versions[source.name, source.digest] = module
    while len(_versions) > _VERSIONS_KEPT:
        _versions.popitem(last=False)


def _register_own(bundle: Bundle) -> None:
    # What comes back to where it was sent from is the module that is there already.
    for member in bundle.members:
        module = sys.modules.get(member.name)
        if module is not None:
            _note_version(member, module)


def load_module(name: str, digest: str, packed: bytes) -> types.ModuleType:
    """The module of that name and digest.  In a client: its own module of that name, if it has one."""
    if loading.namespace is None:
        try:
            return importlib.import_module(name)
        except ImportError:
            pass
    members = _opened.get((name, digest))
    if members is None:
        members = _MEMBERS.decode(zlib.decompress(packed))
        _opened[name, digest] = members
        while len(_opened) > _VERSIONS_KEPT:
            _opened.popitem(last=False)
    if loading.before is not None:
        loading.before.append(functools.partial(activate, name, members))
    return activate(name, members)


def activate(name: str, members: list[ModuleSource]) -> types.ModuleType:
    """Put these versions into ``sys.modules``, and import the one of that name.

    Also called before each call of a function that uses them: another version may have been used meanwhile.
    """
    if all(_is_active(member) for member in members):
        return sys.modules[name]
    strangers = []
    for member in members:
        present = sys.modules.get(member.name)
        wanted = _versions.get((member.name, member.digest))
        if wanted is None and present is not None:
            strangers.append((member, present))
        elif wanted is not None and wanted is not present:
            _place(member.name, wanted)
        _offered[member.name] = member
    if strangers:
        same = all(_is_same(member, present) for member, present in strangers)
        for member, present in strangers:
            if same:
                _note_version(member, present)
            else:
                del sys.modules[member.name]
    if _finder not in sys.meta_path:
        sys.meta_path.insert(0, _finder)
    return importlib.import_module(name)


def _is_active(member: ModuleSource) -> bool:
    version = _versions.get((member.name, member.digest))
    return version is not None and sys.modules.get(member.name) is version and _offered.get(member.name) == member


def _place(name: str, module: types.ModuleType) -> None:
    sys.modules[name] = module
    parent, _, child = name.rpartition(".")
    if parent in sys.modules:
        setattr(sys.modules[parent], child, module)


def _is_same(member: ModuleSource, present: types.ModuleType) -> bool:
    """Whether a module that was imported here from a file is the one that was sent.

    Only sure if the file is older than this process: what was imported cannot be asked for its source.
    """
    spec: Any = getattr(present, "__spec__", None)
    if isinstance(getattr(spec, "loader", None), ShippedLoader):
        return False
    file = getattr(present, "__file__", None)
    try:
        if file is None:
            return not member.file
        return os.stat(file).st_mtime < _PROCESS_SINCE and Path(file).read_bytes() == member.source
    except OSError:
        return False
