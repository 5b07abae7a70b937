"""Loads by-value modules where they arrive.

`module_origin` says which modules travel by value, `module_bundles` gathers their sources.  Members of such a module
are named inside it, so a class has one identity on an engine however often it arrives.

An engine keeps one module object per (name, digest), and puts the wanted ones into ``sys.modules`` before anything of
theirs is used.  Before a task that does not use them they are taken out again (`begin_run`), and what the engine had
under these names is put back.

The name `load_module` and its signature, and those of `offer`, are part of what is stored and sent: pickles name them.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.machinery
import importlib.util
import os
import sys
import time
import types
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import msgspec

from . import module_bundles
from .function_globals import placed
from .module_bundles import Bundle, ModuleSource
from .module_folders import as_arrived, home_of, write_set
from .module_names import begin_module, end_module, needs_engine, take_names
from .module_origin import Shipped, entry_of, is_compiled
from .rebuild import is_own_side, loading

_VERSIONS_KEPT = 512
_PROCESS_SINCE = time.time()
_MEMBERS = msgspec.msgpack.Decoder(list[ModuleSource])

_versions: OrderedDict[tuple[str, str], types.ModuleType] = OrderedDict()
"""(name, digest) -> the module made from it, or found here to be the same."""
_found_here: dict[tuple[str, str], tuple[ModuleSource, types.ModuleType]] = {}
"""Those that the engine itself had imported, and that are the same as what was sent."""
_offered: dict[str, ModuleSource] = {}
"""What an import of that name loads."""
_opened: OrderedDict[tuple[str, str], list[ModuleSource]] = OrderedDict()
active: dict[int, list[ModuleSource]] = {}
"""id -> the members of each bundle that is in ``sys.modules`` or offered."""
_sticky: dict[int, list[ModuleSource]] = {}
"""Those among them that belong to values in the engine's namespace."""
_lasting: dict[int, list[ModuleSource]] = {}
"""Those that belong to the engine's environment."""
_displaced: dict[str, types.ModuleType] = {}
"""What the engine itself had under the names of shipped modules."""
_beside: dict[str, types.ModuleType] = {}
"""Modules that were found in the sender's folders, see `FolderFinder`."""


class ShippedLoader(Shipped):
    """Runs a module's source that came with a function."""

    def __init__(self, module: ModuleSource) -> None:
        self.module = module

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType | None:
        return None

    def is_package(self, fullname: str) -> bool:
        return self.module.is_package

    def get_source(self, fullname: str) -> str:
        return importlib.util.decode_source(self.module.source)

    def get_code(self, fullname: str) -> types.CodeType:
        """For ``runpy``."""
        code: types.CodeType = compile(
            self.module.source, self.module.file or self.module.name, "exec", dont_inherit=True
        )
        return code

    def get_filename(self, fullname: str) -> str:
        return self.module.file

    def exec_module(self, module: types.ModuleType) -> None:
        source = self.module.source, self.module.file or self.module.name
        begin_module(module, *source)
        exec(self.get_code(self.module.name), module.__dict__)
        end_module(module, *source)
        _note_version(self.module, module)

    def get_data(self, path: str) -> bytes:
        """For ``pkgutil.get_data``."""
        try:
            return Path(path).read_bytes()
        except FileNotFoundError:
            self._say_left_out(path)
            raise

    def get_resource_reader(self, fullname: str) -> Any:
        """For ``importlib.resources``."""
        if not self.module.is_package:
            return None
        from importlib.readers import FileReader

        module = sys.modules.get(fullname)
        folder = next(iter(getattr(module, "__path__", ())), "")
        for path in self.module.left_out:
            if not os.path.exists(os.path.join(folder, path)):
                self._say_left_out(os.path.join(folder, path))
        return FileReader(cast(Any, types.SimpleNamespace(path=os.path.join(folder, "__init__.py"))))

    def _say_left_out(self, path: str) -> None:
        size = next((size for below, size in self.module.left_out.items() if path.endswith(below)), None)
        if size is not None:
            raise FileNotFoundError(
                f"{path}: this data file of package {self.module.name!r} ({size:,} bytes) did not travel with it, the "
                f"limit is {module_bundles.DATA_BYTES_MAX:,} bytes: put it where engines can read it, or install the "
                "package there"
            )


class ShippedFinder:
    """Answers for the modules that came with functions, before the folders of ``sys.path`` are asked."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        offered = _offered.get(fullname)
        if offered is None:
            return None
        if is_compiled(offered.file):
            if not os.path.isfile(offered.file):
                return None
            return importlib.util.spec_from_file_location(fullname, offered.file)
        origin, folders = home_of(offered, _members_with(offered))
        spec = importlib.machinery.ModuleSpec(
            fullname, cast(Any, ShippedLoader(offered)), origin=origin or None, is_package=offered.is_package
        )
        spec.has_location = bool(origin)
        if spec.submodule_search_locations is not None:
            if not offered.file:  # a namespace package: this machine may have parts of it too
                here = importlib.machinery.PathFinder.find_spec(fullname, path)
                folders = [*folders, *((here and here.submodule_search_locations) or ())]
            spec.submodule_search_locations.extend(dict.fromkeys(folders))
        return spec


class FolderFinder:
    """Looks, after all others, into the sender's folders if this machine sees them.

    There are the modules that are imported by computed names, and compiled ones.
    """

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if path is not None or "." in fullname or not active:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, _sender_folders())
        if spec is not None and spec.loader is not None:
            spec.loader = cast(Any, _Noting(spec.loader))
        return spec if spec is not None and spec.loader is not None else None


class _Noting:
    """A loader whose module is forgotten with the bundles of its folder."""

    def __init__(self, loader: Any) -> None:
        self._loader = loader

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def create_module(self, spec: Any) -> Any:
        spec.loader = self._loader
        return self._loader.create_module(spec)

    def exec_module(self, module: types.ModuleType) -> None:
        if not is_compiled(module.__file__ or ""):
            _beside[module.__name__] = module
        self._loader.exec_module(module)


def _sender_folders() -> list[str]:
    found: dict[str, None] = {}
    for members in active.values():
        for member in members:
            if member.file:
                found[entry_of(member.name, member.file)] = None
            elif member.name == _MAIN_FOLDER:
                found.update(dict.fromkeys(member.folders))
    return list(found)


_MAIN_FOLDER = "__main__"
"""The name of a member that stands for the folder of a script, see `offer_folder`."""
finder = ShippedFinder()
_folder_finder = FolderFinder()


def _members_with(member: ModuleSource) -> list[ModuleSource]:
    for members in active.values():
        if any(each is member for each in members):
            return members
    return [member]


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


module_bundles.register_own = _register_own


def load_module(name: str, digest: str, packed: bytes) -> types.ModuleType:
    """Return the module of that name and digest.  In a client: its own module of that name, if it has one."""
    if is_own_side():
        try:
            return importlib.import_module(name)
        except ImportError:
            pass
    members = _open(name, digest, packed)
    return activate(name, members)


def offer(bundles: tuple[tuple[str, str, bytes], ...]) -> None:
    """Have the modules of these bundles found by imports that follow; nothing is imported now."""
    if is_own_side():
        return
    for name, digest, packed in bundles:
        if not _is_active(members := _open(name, digest, packed)):
            _place_all(members)


def offer_folder(folder: str, offered: None = None) -> None:
    """Have the sender's folder looked into, if this machine sees it, for modules that are found nowhere else.

    Args:
        folder: of the sender's script.
        offered: what `offer` gave, for a function that needs both.
    """
    if is_own_side() or not os.path.isdir(folder):
        return
    members = _opened.get((_MAIN_FOLDER, folder))
    if members is None:
        members = _opened[_MAIN_FOLDER, folder] = [ModuleSource(_MAIN_FOLDER, True, "", [folder], b"", folder)]
    if loading.before is not None:
        loading.before.append(functools.partial(activate, "", members))
    activate("", members)


def _open(name: str, digest: str, packed: bytes) -> list[ModuleSource]:
    members = _opened.get((name, digest))
    if members is None:
        members = _MEMBERS.decode(zlib.decompress(packed))
        _opened[name, digest] = members
        while len(_opened) > _VERSIONS_KEPT:
            _opened.popitem(last=False)
    if loading.before is not None:
        loading.before.append(functools.partial(activate, name, members))
    return members


def activate(name: str, members: list[ModuleSource]) -> types.ModuleType:
    """Put these versions into ``sys.modules``, and import the one of that name ("": none).

    Also called before each call of a function that uses them: another version may have been used meanwhile.
    """
    if not _is_active(members):
        _place_all(members)
    if not name:
        return cast(types.ModuleType, None)
    return sys.modules.get(name) or importlib.import_module(name)


def _is_active(members: list[ModuleSource]) -> bool:
    return active.get(id(members)) is members


def _place_all(members: list[ModuleSource]) -> None:
    strangers = []
    for member in members:
        if member.name == _MAIN_FOLDER:
            continue
        present = sys.modules.get(member.name)
        wanted = _versions.get((member.name, member.digest))
        if wanted is None and present is not None:
            strangers.append((member, present))
        elif wanted is not None and wanted is not present:
            _set_aside(member.name, present)
            _place(member.name, wanted)
        _offered[member.name] = member
    if strangers:
        same = all(_is_same(member, present) for member, present in strangers)
        for member, present in strangers:
            if same:
                _note_version(member, present)
                _found_here[member.name, member.digest] = member, present
            else:
                _set_aside(member.name, present)
                del sys.modules[member.name]
    for key, others in list(active.items()):
        if any(_offered.get(other.name, other).digest != other.digest for other in others):
            del active[key]
    active[id(members)] = members
    install_finders()


def install_finders() -> None:
    """Let imports find by-value modules.  An engine does so as it starts, or the first module would look like a change
    that a task has made."""
    if finder not in sys.meta_path:
        sys.meta_path.insert(0, finder)
    if _folder_finder not in sys.meta_path:
        sys.meta_path.append(_folder_finder)


def _set_aside(name: str, present: types.ModuleType | None) -> None:
    """Keep what the engine itself imported under that name, to put it back afterwards."""
    if present is not None and not _is_shipped(present):
        _displaced.setdefault(name, present)


def is_by_value(name: str) -> bool:
    """Return whether the module of that name came by value, and is not found by an import in another process."""
    module = sys.modules.get(name)
    return module is not None and (_is_shipped(module) or name.partition(".")[0] in _beside)


def active_versions() -> Iterator[tuple[str, str]]:
    """Yield the name and the version of each module that child processes find now."""
    for members in active.values():
        yield from ((member.name, member.digest) for member in members if member.name != _MAIN_FOLDER)
    for name, module in _beside.items():
        with contextlib.suppress(OSError):
            yield name, f"{module.__file__} {os.stat(module.__file__ or '').st_mtime_ns}"


def write_for_children(synced: list[tuple[Any, ...]]) -> bool:
    """Have what is active now found below `child_folder`, by processes that are about to be started.

    Args:
        synced: what was written last; changed here.

    Returns: whether anything else than the last time was written.
    """
    key = (*active, *_beside)
    if synced and synced[0] == key:
        return False
    # Written without any as well: a process remembers that there is no such folder, and so do those that it starts.
    write_set([member for members in active.values() for member in members], list(_beside.values()))
    synced[:] = [key, tuple(active.values())]  # held, so that no other list gets one of these ids
    return True


def _is_shipped(module: types.ModuleType) -> bool:
    spec: Any = getattr(module, "__spec__", None)
    return isinstance(getattr(spec, "loader", None), ShippedLoader)


def _place(name: str, module: types.ModuleType) -> None:
    sys.modules[name] = module
    parent, _, child = name.rpartition(".")
    if parent in sys.modules:
        setattr(sys.modules[parent], child, module)


def begin_run(steps: Iterable[Callable[[], Any]] = ()) -> None:
    """Take out of ``sys.modules`` what an earlier task brought, but for what the next one uses.

    Args:
        steps: what `load_module` left in ``loading.before`` while the next function was unpacked.
    """
    _take_out_unused(steps)
    if placed.generation:
        take_names(tell=True)


def _take_out_unused(steps: Iterable[Callable[[], Any]]) -> None:
    kept = {id(step.args[1]) for step in steps if isinstance(step, functools.partial) and step.func is activate}
    gone = [members for key, members in active.items() if key not in kept and key not in _sticky]
    if not gone and _sticky.keys() <= active.keys():
        return
    staying = {member.name for key, members in active.items() if key in kept or key in _sticky for member in members}
    for members in gone:
        del active[id(members)]
        for member in members:
            if member.name not in staying:
                _take_out(member.name)
    for name, module in _beside.items():
        if sys.modules.get(name) is module:
            del sys.modules[name]
    _beside.clear()
    for members in _sticky.values():
        if not _is_active(members):
            _place_all(members)


def take_placed_names() -> None:
    """Names were placed on the engine by hand: have modules see them.

    A module that the engine has imported itself stays as it is; where its functions look for such a name, the module
    that was sent is used in its place from now on.
    """
    for key, (member, module) in list(_found_here.items()):
        if not needs_engine(module, member.source, member.file):
            continue
        del _found_here[key]
        if _versions.get(key) is module:
            del _versions[key]
        for number, members in list(active.items()):
            if any((each.name, each.digest) == key for each in members):
                del active[number]
                for each in members:
                    _take_out(each.name)
    take_names(tell=False)


def _take_out(name: str) -> None:
    _offered.pop(name, None)
    present = sys.modules.get(name)
    own = _displaced.pop(name, None)
    if present is not None and _is_shipped(present):
        del sys.modules[name]
    if own is not None:
        _place(name, own)


def keep_active(always: bool = False) -> None:
    """What is active now belongs to values that stay in the engine's namespace; always: as long as the engine lives."""
    _sticky.update(active)
    if always:
        _lasting.update(active)


def forget_kept() -> None:
    """The engine's namespace was cleared."""
    _sticky.clear()
    _sticky.update(_lasting)


def _is_same(member: ModuleSource, present: types.ModuleType) -> bool:
    """Return whether a module that was imported here from a file is the one that was sent.

    Only sure if the file is older than this process: what was imported cannot be asked for its source.
    """
    if _is_shipped(present):
        return False
    file = getattr(present, "__file__", None)
    if file is None:
        return not member.file
    if is_compiled(file):
        return True  # it cannot be loaded twice
    if not as_arrived(member, file) or os.stat(file).st_mtime >= _PROCESS_SINCE:
        return False
    return not needs_engine(present, member.source, member.file)
