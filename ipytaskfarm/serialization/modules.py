"""Loads by-value modules on the receiving side.

`module_origin` decides which modules travel by value, and `module_bundles` collects their sources. Members of such a
module are referred to by their name in it, so a class has one identity on an engine however often it arrives.

An engine keeps one module object per (name, digest), and puts the needed versions into ``sys.modules`` before any of
their members is used. Before a task that does not use them they are removed (`begin_run`), and the modules that the
engine itself had under these names are restored.

The names and signatures of `load_module` and `offer` are part of what is stored and sent, because pickles contain them.
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
from collections.abc import Callable, Collection, Container, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import msgspec

from . import module_bundles
from .file_looks import Stamp, stamp_at
from .function_globals import placed
from .import_settings import follow_modules, run_module
from .module_bundles import Bundle, ModuleSource
from .module_folders import as_arrived, home_of, write_set
from .module_names import begin_module, end_module, needs_engine, take_names
from .module_origin import Shipped, entry_of, is_compiled
from .program_settings import as_arguments
from .rebuild import is_own_side, loading

_VERSIONS_KEPT = 512
_PROCESS_SINCE = time.time()
_MEMBERS = msgspec.msgpack.Decoder(list[ModuleSource])

_versions: OrderedDict[tuple[str, str], types.ModuleType] = OrderedDict()
"""(name, digest) -> the module that was made from it, or a module of this process that is the same."""
_found_here: dict[tuple[str, str], tuple[ModuleSource, types.ModuleType]] = {}
"""(name, digest) -> a module that the engine itself had imported and that equals the sent source."""
_offered: dict[str, ModuleSource] = {}
"""Name -> the source that an import of this name loads."""
_opened: OrderedDict[tuple[str, str], list[ModuleSource]] = OrderedDict()
active: dict[int, list[ModuleSource]] = {}
"""id -> the members of a bundle that is in ``sys.modules`` or offered."""
used: set[int] = set()
"""The ids of bundles that were put in place since a reader has cleared it."""
_sticky: dict[int, list[ModuleSource]] = {}
"""The active bundles that belong to values in the engine's namespace."""
_outdated: set[tuple[str, str]] = set()
"""(name, digest) of modules in `_sticky` whose files were edited since then: the next import finds the new ones."""
_lasting: dict[int, list[ModuleSource]] = {}
"""The active bundles that belong to the engine's environment."""
_displaced: dict[str, types.ModuleType] = {}
"""Name -> the module that the engine itself had under the name of a shipped module."""
_beside: dict[str, tuple[types.ModuleType, Stamp | None]] = {}
"""Name -> a module that was found in the sender's folders, see `FolderFinder`, and the stamp of its file then."""


class ShippedLoader(Shipped):
    """Runs the source of a module that came with a function."""

    def __init__(self, module: ModuleSource) -> None:
        self.module = module

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType | None:
        return None

    def is_package(self, fullname: str) -> bool:
        return self.module.is_package

    def get_source(self, fullname: str) -> str:
        return importlib.util.decode_source(self.module.source)

    def get_code(self, fullname: str) -> types.CodeType:
        """Return the compiled source, for ``runpy``."""
        name = self.module.file or self.module.name
        return compile(self.module.source, name, "exec", dont_inherit=True)

    def get_filename(self, fullname: str) -> str:
        return self.module.file

    def exec_module(self, module: types.ModuleType) -> None:
        source = self.module.source, self.module.file or self.module.name
        begin_module(module, *source)
        with as_arguments(self.module.arguments):
            run_module(self.get_code(self.module.name), module.__dict__)
        end_module(module, *source)
        _note_version(self.module, module)

    def get_data(self, path: str) -> bytes:
        """Return the content of a data file, for ``pkgutil.get_data``."""
        try:
            return Path(path).read_bytes()
        except FileNotFoundError:
            self._say_left_out(path)
            raise

    def get_resource_reader(self, fullname: str) -> Any:
        """Return the reader of a package's data files, for ``importlib.resources``."""
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
    """Finds the modules that came with functions, before the folders of ``sys.path`` are searched."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        offered = _offered.get(fullname)
        if offered is None:
            if path is None:
                return _noted(_found_at_sender(fullname)) if active else None
            if fullname.partition(".")[0] not in _beside:
                return None
            return _noted(importlib.machinery.PathFinder.find_spec(fullname, path))
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
            if not offered.file:  # a namespace package: this machine may have further parts of it
                here = importlib.machinery.PathFinder.find_spec(fullname, path)
                folders = [*folders, *((here and here.submodule_search_locations) or ())]
            spec.submodule_search_locations.extend(dict.fromkeys(folders))
        return spec


class FolderFinder:
    """Searches the sender's folders after all other finders, if this machine sees them.

    Modules that are imported under computed names, and compiled modules, are found there.
    """

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if path is not None or "." in fullname or not active:
            return None
        return _noted(importlib.machinery.PathFinder.find_spec(fullname, _sender_folders()))


class _Noting:
    """A loader that records its module, so that the module is forgotten together with the bundles of its folder."""

    def __init__(self, loader: Any) -> None:
        self._loader = loader

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def create_module(self, spec: Any) -> Any:
        return self._loader.create_module(spec)

    def exec_module(self, module: types.ModuleType) -> None:
        loader, file = self._loader, module.__file__ or ""
        if module.__spec__ is not None:
            module.__spec__.loader = loader
        module.__loader__ = loader
        if file and not is_compiled(file):
            _beside[module.__name__] = module, stamp_at(file)
        if type(loader) is importlib.machinery.SourceFileLoader:
            # Read anew: a .pyc file tells edits within one second apart by their size alone.
            run_module(loader.source_to_code(loader.get_data(file), file), module.__dict__)
        else:
            loader.exec_module(module)


def _noted(spec: importlib.machinery.ModuleSpec | None) -> importlib.machinery.ModuleSpec | None:
    """Return the spec of a module in a sender's folder with a loader that records the module."""
    if spec is None or spec.loader is None:
        return None
    spec.loader = cast(Any, _Noting(spec.loader))
    return spec


def _found_at_sender(name: str) -> importlib.machinery.ModuleSpec | None:
    """Return the spec of a module that the engine's own path finds in a sender's folder; None for any other module.

    Engines that were started in the script's folder find its modules themselves, and would keep them for ever.
    """
    folders = {os.path.realpath(folder) for folder in _sender_folders()}
    if not folders.intersection(os.path.realpath(entry) for entry in sys.path):
        return None
    spec = importlib.machinery.PathFinder.find_spec(name)
    if spec is None or not spec.has_location or spec.origin is None:
        return None
    place = os.path.dirname(os.path.realpath(spec.origin))
    return spec if (os.path.dirname(place) if spec.submodule_search_locations else place) in folders else None


def _sender_folders() -> list[str]:
    found: dict[str, None] = {}
    # What values in the engine's namespace keep active comes last: it may belong to another program.
    for _, members in sorted(active.items(), key=lambda item: item[0] in _sticky):
        for member in members:
            if member.file:
                found[entry_of(member.name, member.file)] = None
            elif member.name == _MAIN_FOLDER:
                found.update(dict.fromkeys(member.folders))
    return list(found)


_MAIN_FOLDER = "__main__"
"""The name of a bundle member that represents the folder of a script, see `offer_folder`."""
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
    # A module that comes back to its sender is the sender's own module.
    for member in bundle.members:
        module = sys.modules.get(member.name)
        if module is not None:
            _note_version(member, module)


module_bundles.register_own = _register_own


def load_module(name: str, digest: str, packed: bytes) -> types.ModuleType:
    """Return the module of this name and digest. A client returns its own module of the name if it has one."""
    if is_own_side():
        try:
            return importlib.import_module(name)
        except ImportError:
            pass
    members = _open(name, digest, packed)
    _before_each_call(name, members)
    return activate(name, members)


def offer(bundles: tuple[tuple[str, str, bytes], ...]) -> None:
    """Make the modules of these bundles available to later imports. Nothing is imported here, nor before a call."""
    if is_own_side():
        return
    for name, digest, packed in bundles:
        members = _open(name, digest, packed)
        _before_each_call("", members)
        activate("", members)


def offer_folder(folder: str, offered: None = None) -> None:
    """Make the sender's folder available for modules that are found nowhere else, if this machine sees it.

    Args:
        folder: the folder of the sender's script.
        offered: not used. A function that needs bundles too passes the call of `offer` here, so that pickle makes it.
    """
    if is_own_side() or not os.path.isdir(folder):
        return
    members = _opened.get((_MAIN_FOLDER, folder))
    if members is None:
        members = _opened[_MAIN_FOLDER, folder] = [ModuleSource(_MAIN_FOLDER, True, "", [folder], b"", folder)]
    _before_each_call("", members)
    activate("", members)


def _open(name: str, digest: str, packed: bytes) -> list[ModuleSource]:
    members = _opened.get((name, digest))
    if members is None:
        members = _opened[name, digest] = _MEMBERS.decode(zlib.decompress(packed))
        while len(_opened) > _VERSIONS_KEPT:
            _opened.popitem(last=False)
    return members


def _before_each_call(name: str, members: list[ModuleSource]) -> None:
    """Let `activate` be called with these arguments before each call of the function that is being unpacked."""
    if loading.before is not None:
        loading.before.append(functools.partial(activate, name, members))


def activate(name: str, members: list[ModuleSource]) -> types.ModuleType:
    """Put these versions into ``sys.modules``, then import and return the module `name` ("" for none).  This is also
    called before each call of a function that uses the modules, because another version may have been used since."""
    if not _is_active(members):
        _place_all(members)
    used.add(id(members))
    if not name:
        return cast(types.ModuleType, None)
    return sys.modules.get(name) or importlib.import_module(name)


def _is_active(members: list[ModuleSource]) -> bool:
    return active.get(id(members)) is members


def _place_all(members: list[ModuleSource], but: Collection[tuple[str, str]] = ()) -> None:
    strangers, dropped = [], list[str]()
    for member in members:
        if member.name == _MAIN_FOLDER or (but and (member.name, member.digest) in but):
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
            if key not in _sticky:
                dropped.extend(other.name for other in others)
    active[id(members)] = members
    for name in {*dropped} - _names_of(active) if dropped else ():
        _take_out(name)  # it belongs to the other version, and a computed import would find it
    follow_modules()
    install_finders()


def install_finders() -> None:
    """Install the import hooks for by-value modules.

    An engine does so when it starts. Otherwise the first by-value module would look like a change made by a task.
    """
    if finder not in sys.meta_path:
        sys.meta_path.insert(0, finder)
    if _folder_finder not in sys.meta_path:
        sys.meta_path.append(_folder_finder)


def other_finders() -> list[Any]:
    """Return the finders of this process apart from those for by-value modules."""
    return [each for each in sys.meta_path if each is not finder and each is not _folder_finder]


def kept_files(known: Container[str]) -> Iterator[tuple[str, str]]:
    """Yield name and file of the modules that values in the engine's namespace keep, if this machine has the files.

    known: files that are left out.
    """
    for members in _sticky.values():
        for member in members:
            file = member.file
            if file and file not in known and not is_compiled(file) and as_arrived(member, file):
                yield member.name, member.file


def take_out_own(names: Collection[str]) -> dict[str, types.ModuleType]:
    """Take the engine's own modules of these names out of ``sys.modules``, and all by-value ones, which may have parts
    of them. Return the former; the next import loads them anew.
    """
    for members in _sticky.values():
        if any(member.name in names for member in members):
            _outdated.update((member.name, member.digest) for member in members)
    for members in active.values():
        for member in members:
            _take_out(member.name)
    _forget_beside()
    for known in (active, _offered, _versions, _found_here):
        known.clear()
    taken = {name: sys.modules.pop(name) for name in names if name in sys.modules}
    _place_sticky()
    return taken


def _names_of(keys: Iterable[int]) -> set[str]:
    """Return the names of the modules in these active bundles, without those that are kept and were edited."""
    return {
        member.name
        for key in keys
        for member in active[key]
        if key not in _sticky or (member.name, member.digest) not in _outdated
    }


def _place_sticky() -> None:
    for members in _sticky.values():
        if not _is_active(members):
            _place_all(members, _outdated)


def _set_aside(name: str, present: types.ModuleType | None) -> None:
    """Keep the module that the engine itself imported under this name, to restore it later."""
    if present is not None and not _is_shipped(present) and (name not in _beside or _beside[name][0] is not present):
        _displaced.setdefault(name, present)


def is_by_value(name: str) -> bool:
    """Return whether the module of this name came by value, so that another process cannot import it."""
    module = sys.modules.get(name)
    return module is not None and (_is_shipped(module) or name.partition(".")[0] in _beside)


def active_versions() -> Iterator[tuple[str, str]]:
    """Yield the name and the version of each module that child processes find now."""
    for members in active.values():
        yield from ((member.name, member.digest) for member in members if member.name != _MAIN_FOLDER)
    for name, (module, _) in _beside.items():
        with contextlib.suppress(OSError):
            yield name, f"{module.__file__} {os.stat(module.__file__ or '').st_mtime_ns}"


def write_for_children(synced: list[tuple[Any, ...]]) -> bool:
    """Write the active modules to `child_folder`, for processes that are about to start.

    synced: the key of the modules that were written most recently. It is updated in place.

    Returns whether the modules have changed since the last call.
    """
    key = (*active, *_beside)
    if synced and synced[0] == key:
        return False
    # The folder is written even without modules: a process that misses it once never looks for it again, and neither do
    # the processes that a fork server makes.
    write_set(
        [member for members in active.values() for member in members],
        [module for name, (module, _) in _beside.items() if "." not in name],
    )
    synced[:] = [key, tuple(active.values())]  # kept alive, so that no other list gets one of these ids
    return True


def _is_shipped(module: types.ModuleType) -> bool:
    spec: Any = getattr(module, "__spec__", None)
    return isinstance(getattr(spec, "loader", None), ShippedLoader)


def _place(name: str, module: types.ModuleType) -> None:
    sys.modules[name] = module
    parent, _, child = name.rpartition(".")
    if parent in sys.modules and isinstance(sys.modules[parent].__dict__.get(child, module), types.ModuleType):
        setattr(sys.modules[parent], child, module)  # otherwise the package has a function of this name, for example


def bundles_of(steps: Iterable[Callable[[], Any]]) -> frozenset[int]:
    """Return which bundles these steps put in place, by their ids as in `active`.

    Args:
        steps: what `load_module` left in ``loading.before`` while a function was unpacked.
    """
    return frozenset(
        id(step.args[1]) for step in steps if isinstance(step, functools.partial) and step.func is activate
    )


def begin_run(bundles: frozenset[int] = frozenset()) -> None:
    """Take out of ``sys.modules`` what an earlier task brought, but for what the next one uses.

    Args:
        bundles: those that the next one uses, see `bundles_of`; their steps keep them alive.
    """
    if active.keys() != bundles or _sticky:
        _take_out_unused(bundles)
    if _beside and any(stamp_at(module.__file__ or "") != stamp for module, stamp in _beside.values()):
        _forget_beside()  # one was edited, and others may have taken names of it
    if placed.generation:
        take_names(tell=True)
    follow_modules()


def _take_out_unused(kept: frozenset[int]) -> None:
    gone = [members for key, members in active.items() if key not in kept and key not in _sticky]
    if not gone and _sticky.keys() <= active.keys():
        return
    staying = _names_of(key for key in active if key in kept or key in _sticky)
    for members in gone:
        del active[id(members)]
        for member in members:
            if member.name not in staying:
                _take_out(member.name)
    _forget_beside()
    _place_sticky()


def _forget_beside() -> None:
    for name, (module, _) in _beside.items():
        if sys.modules.get(name) is module:
            del sys.modules[name]
    _beside.clear()


def take_placed_names() -> None:
    """Bind names that were just placed on the engine by submit all by-value modules.

    A module that the engine has imported itself stays as it is. If its functions use such a name, the module that was
    sent replaces it from now on.
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
    """Keep the active modules for values that stay in the engine's namespace; with `always`, for the engine's whole
    life.
    """
    _sticky.update(active)
    if always:
        _lasting.update(active)


def forget_kept() -> None:
    """Forget the kept modules, because the engine's namespace was cleared. Those of the environment stay."""
    _sticky.clear()
    _outdated.clear()
    _sticky.update(_lasting)


def _is_same(member: ModuleSource, present: types.ModuleType) -> bool:
    """Return whether a module that was imported here from a file equals the module that was sent.

    The answer is True only if the file is older than this process, because an imported module does not keep its source.
    """
    if _is_shipped(present) or member.arguments:
        return False
    file = getattr(present, "__file__", None)
    if file is None:
        return not member.file
    if is_compiled(file):
        return True  # it cannot be loaded twice
    if not as_arrived(member, file) or os.stat(file).st_mtime >= _PROCESS_SINCE:
        return False
    return not needs_engine(present, member.source, member.file)
