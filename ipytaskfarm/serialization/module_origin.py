"""Decides which modules travel by value (the user's project) and which go by name (installed ones).

A module is judged by the folder of ``sys.path`` in which its top-level package was found, in this order:

1. the standard library, ``site-packages`` and ``dist-packages``: by name;
2. a folder with metadata (``*.dist-info``, ``*-version.egg-info``) that names the module, as ``pip install --target``
   leaves it: by name;
3. below an editable install: by value;
4. below the folder of the script or notebook, or the project folder around it: by value;
5. a folder of ``PYTHONPATH`` or of a ``.pth`` file: by name, since several projects share it;
6. any other folder, which the program itself has put on ``sys.path``: by value.

`add_dependency` names modules that travel by value in spite of this. Nothing here imports a module or reads the
metadata of all distributions. The answers are kept for each module and each folder.
"""

from __future__ import annotations

import functools
import importlib.machinery
import json
import os
import pickle
import site
import sys
import sysconfig
import types
from collections.abc import Iterable, Iterator, Sequence
from enum import Enum
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from ..core.arguments import wrong

_OWN = __name__.partition(".")[0]


def _folder_at_start() -> str:
    try:
        return os.path.realpath(os.getcwd())
    except OSError:  # the folder was removed
        return ""


_STARTED_IN = _folder_at_start()
_PYTHONPATH = os.environ.get("PYTHONPATH", "")
_PROJECT_MARKS = ("pyproject.toml", "setup.py", "setup.cfg", ".git", ".hg")
_SUFFIXES_OF_INSTALLED = ("site-packages", "dist-packages")


class Travel(Enum):
    """The way in which an object that belongs to a module gets to the other side."""

    REFERENCE = 1
    """By name: the other side can import it."""
    SOURCE = 2
    """With the sources of the module and of the modules that it imports."""
    LOOSE = 3
    """Member by member: ``__main__``, and modules that have no source."""


class Shipped:
    """Base class of the loaders of by-value modules."""


_added_folders: list[str] = []
_added_modules: set[str] = set()
_kinds: dict[str, tuple[types.ModuleType, Travel]] = {}
_on_change: list[Any] = [_kinds.clear]


def when_rules_change(forget: Any) -> None:
    """Call `forget` whenever `add_dependency` has changed which modules travel."""
    _on_change.append(forget)


def add_dependency(path: str | os.PathLike[str] | types.ModuleType) -> None:
    """Send modules by value that would otherwise go by name.

    Args:
        path: the name of a module or package (with everything below it), a module, a file, or a folder (with all
            modules in
            it). An existing file or folder takes precedence over a module of that name.

    Raises:
        FileNotFoundError: there is no such file or folder, and no such module.
        ValueError: the module is compiled, or an installed package has compiled parts, or it is of the standard
            library: it cannot be sent as source.
        TypeError: it is neither a name, a path nor a module.
    """
    if isinstance(path, types.ModuleType):
        path = path.__name__
        _refuse_compiled(path)
        _added_modules.add(path)
    elif isinstance(path, str) and not os.path.exists(path):
        if path.partition(".")[0] not in sys.modules and find_spec(path) is None:
            raise FileNotFoundError(f"add_dependency({path!r}): there is no such file or folder, and no such module")
        _refuse_compiled(path)
        _added_modules.add(path)
    else:
        if not isinstance(path, str | os.PathLike):
            raise wrong("add_dependency's argument", "a module, its name, a file or a folder", path)
        if isinstance(path, str) and os.sep not in path and path in sys.modules and os.path.isdir(path):
            _added_modules.add(path)
        if os.path.isfile(path) and not os.fspath(path).endswith(".py") and _is_archive(path):
            raise ValueError(f"add_dependency({str(path)!r}): it is an archive: {UNPACK}")
        _added_folders.append(os.path.realpath(path))
    for forget in _on_change:
        forget()


def _refuse_compiled(name: str) -> None:
    top = name.partition(".")[0]
    if top in sys.stdlib_module_names or top == _OWN:
        raise ValueError(f"add_dependency({name!r}): every engine has it, and it is sent by name: leave this call out")
    spec = getattr(sys.modules.get(name), "__spec__", None) or find_spec(name)
    origin = getattr(spec, "origin", None)
    folders = getattr(spec, "submodule_search_locations", None)
    if folders is not None:
        origin = next(_installed_compiled(folders), None)
    if archive := archive_of(origin):
        raise ValueError(f"add_dependency({name!r}): it is in the archive {archive}: {UNPACK}")
    if origin and not origin.endswith(".py"):
        raise ValueError(
            f"add_dependency({name!r}): {origin} is compiled and cannot be sent: install it where engines run."
            " Files, folders, modules and packages of Python alone can be sent"
        )


UNPACK = "the modules in it cannot be sent: unpack it, and run the program from the folder, as in `python folder`"
"""What to do about a module in a zipped archive, such as `zipapp` makes."""


def _is_archive(path: str | os.PathLike[str]) -> bool:
    import zipfile  # it would take more time than the rest of the import of this package's client

    return zipfile.is_zipfile(path)


def archive_of(file: str | None) -> str:
    """Return the zipped archive in which a module's file is; "" if it is in a folder."""
    if file is None or os.path.exists(file):
        return ""
    return next((str(place) for place in Path(file).parents if place.is_file()), "")


def _installed_compiled(folders: Iterable[str]) -> Iterator[str]:
    """Yield the compiled modules of an installed package; those of a project go by their folder."""
    for folder in folders:
        if any(part in _SUFFIXES_OF_INSTALLED for part in Path(folder).parts):
            for below, _, files in os.walk(folder):
                yield from (os.path.join(below, file) for file in sorted(files) if is_compiled(file))


def find_spec(name: str) -> importlib.machinery.ModuleSpec | None:
    """Return the spec of a module without running any code of it; None if there is none."""
    path: Sequence[str] | None = None
    spec: importlib.machinery.ModuleSpec | None = None
    parts = name.split(".")
    for depth in range(1, len(parts) + 1):
        full = ".".join(parts[:depth])
        loaded = sys.modules.get(full)
        spec = (getattr(loaded, "__spec__", None) if is_there(loaded) else None) or _find_one(full, path)
        if spec is None:
            return None
        path = spec.submodule_search_locations
        if path is None and depth < len(parts):
            return None
    return spec


def is_there(module: types.ModuleType | None) -> bool:
    """Return whether the file from which a module was imported, if there was one, was not moved or removed since."""
    file = getattr(module, "__file__", None)
    return not isinstance(file, str) or isinstance(getattr(module, "__loader__", None), Shipped) or os.path.exists(file)


def find_anew(name: str) -> importlib.machinery.ModuleSpec | None:
    """Return the spec of a top-level module as an import would find it now, whatever was imported; None if there is
    none.
    """
    return _find_one(name, None)


def _find_one(name: str, path: Sequence[str] | None) -> importlib.machinery.ModuleSpec | None:
    for finder in sys.meta_path:
        try:
            spec = finder.find_spec(name, path)
        except KeyError:  # the parent of a namespace package is not imported, and Python looks it up
            spec = _namespace_package(name, path or ())
        except (ImportError, AttributeError, TypeError, ValueError, OSError):
            continue
        if spec is not None:
            return spec
    return None


def _namespace_package(name: str, path: Sequence[str]) -> importlib.machinery.ModuleSpec | None:
    """Return the spec of a package without an ``__init__.py``, with all folders that hold a part of it."""
    parts = [os.path.join(folder, name.rpartition(".")[2]) for folder in path]
    spec = importlib.machinery.ModuleSpec(name, None, is_package=True)
    spec.submodule_search_locations = [part for part in parts if os.path.isdir(part)]
    return spec if spec.submodule_search_locations else None


def module_with(obj: object, name: str) -> str:
    """Return the name of the module that has an object under this name; "__main__" if none has."""
    try:
        found: str = pickle.whichmodule(obj, name)  # type: ignore[attr-defined]
    except pickle.PicklingError:  # since Python 3.14
        return "__main__"
    return found


def travel(name: str | None) -> Travel:
    """Return how members of the module of this name travel."""
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
    own_name = getattr(spec, "name", name)
    if own_name != name and sys.modules.get(own_name) is module and travel(own_name) is Travel.REFERENCE:
        return Travel.REFERENCE  # another name of an installed module, such as os.path
    top = name.partition(".")[0]
    if top == _OWN or name in sys.builtin_module_names:
        return Travel.REFERENCE
    if isinstance(getattr(spec, "loader", None), Shipped):
        return Travel.SOURCE
    file = getattr(module, "__file__", None)
    if file is None:
        if spec is None:
            # An installed package may make modules while it is imported: an import there makes them too.
            parent = name.rpartition(".")[0]
            return Travel.REFERENCE if travel(parent) is Travel.REFERENCE else Travel.LOOSE
        folders = list(spec.submodule_search_locations or ())
        return Travel.SOURCE if folder_travels(name, folders) else Travel.REFERENCE
    if top in sys.stdlib_module_names and not os.path.isfile(file):
        return Travel.REFERENCE
    return Travel.SOURCE if file_travels(name, file) else Travel.REFERENCE


def home_module(function_globals: dict[str, Any]) -> types.ModuleType | None:
    """Return the module that these globals belong to, if the whole module will exist on the other side; else None."""
    name = function_globals.get("__name__")
    if not isinstance(name, str) or travel(name) is Travel.LOOSE:
        return None
    module = sys.modules[name]
    return module if module.__dict__ is function_globals else None


def package_of(function_globals: dict[str, Any]) -> str:
    """Return the package that relative imports in these globals start from; "" outside packages."""
    package = function_globals.get("__package__")
    return package if isinstance(package, str) else ""


def is_added(name: str, file: str) -> bool:
    """Return whether `add_dependency` has named the module or its file."""
    if any(name == added or name.startswith(added + ".") for added in _added_modules):
        return True
    if not _added_folders:
        return False
    real = os.path.realpath(file)
    return any(real == added or real.startswith(os.path.join(added, "")) for added in _added_folders)


def folder_travels(name: str, folders: list[str]) -> bool:
    """Return whether a package without a file, which consists of these folders, travels by value."""
    marker = os.path.join("{}", "__init__.py")
    return any(file_travels(name, marker.format(folder)) for folder in folders if os.path.isdir(folder))


def file_travels(name: str, file: str) -> bool:
    """Return whether the module of this name travels by value if it was loaded from this file."""
    if name.partition(".")[0] == _OWN:  # every engine has it, and its modules hold the engine's state
        return False
    if not file.endswith(".py"):
        return is_compiled(file) and os.path.isfile(file) and _place_travels(name, file)
    if is_added(name, file):
        return True
    if not os.path.isfile(file) and not file.endswith("__init__.py"):
        return False  # the module is in a zipped archive
    return _place_travels(name, file)


def is_compiled(file: str) -> bool:
    """Return whether the file is a compiled module.

    Such a module travels by name, with the folder to import it from.
    """
    return file.endswith((".so", ".pyd"))


def entry_of(name: str, file: str) -> str:
    """Return the folder of ``sys.path`` from which the module of this name is loaded if this is its file."""
    depth = name.count(".") + (os.path.basename(file).partition(".")[0] == "__init__")
    folder = os.path.dirname(os.path.abspath(file))
    for _ in range(depth):
        folder = os.path.dirname(folder)
    return folder


def _place_travels(name: str, file: str) -> bool:
    entry = entry_of(name, file)
    return _entry_travels(entry, name.partition(".")[0])


@functools.lru_cache(4096)
def _entry_travels(entry: str, top: str) -> bool:
    real = os.path.realpath(entry)
    if _is_installed_folder(entry) or _is_installed_folder(real):
        return False
    if top in _claimed(real, _mtime(real)):
        return False
    if any(_is_below(real, root) for root in _editable_roots()):
        return True
    if any(_is_below(real, root) for root in project_roots()):
        return True
    return real not in _shared_entries()


when_rules_change(_entry_travels.cache_clear)


def _is_below(folder: str, root: str) -> bool:
    return folder == root or (root != os.sep and folder.startswith(os.path.join(root, "")))


def _mtime(folder: str) -> int:
    try:
        return os.stat(folder).st_mtime_ns
    except OSError:
        return 0


# --------------------------------------------------------------------------------------------------
# Installed modules


@functools.cache
def _installed_folders() -> tuple[str, ...]:
    paths = sysconfig.get_paths()
    folders = [paths[key] for key in ("stdlib", "platstdlib", "purelib", "platlib")]
    folders += [*site.getsitepackages(), site.getusersitepackages()]
    return tuple({os.path.join(form, "") for folder in folders for form in (folder, os.path.realpath(folder))})


def _is_installed_folder(folder: str) -> bool:
    parts = folder.split(os.sep)
    if any(part in _SUFFIXES_OF_INSTALLED or part.endswith(".egg") for part in parts):
        return True
    return os.path.join(folder, "").startswith(_installed_folders())


@functools.lru_cache(256)
def _claimed(folder: str, mtime: int) -> frozenset[str]:
    """Return the top-level names of the distributions whose metadata stands in this folder."""
    found: set[str] = set()
    for metadata in _metadata_in(folder):
        found.update(top_levels(metadata))
    return frozenset(found)


def _metadata_in(folder: str) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            return [each.path for each in entries if _is_metadata(each.name)]
    except OSError:
        return []


def _is_metadata(name: str) -> bool:
    # A bare "project.egg-info" is left beside the sources by an editable install or a build.
    return name.endswith(".dist-info") or (name.endswith(".egg-info") and "-" in name)


def top_levels(metadata: str) -> Iterator[str]:
    """Yield the names from top_level.txt and RECORD, or the distribution's own name if both are missing."""
    top_level = _text(os.path.join(metadata, "top_level.txt"))
    record = _text(os.path.join(metadata, "RECORD")) or _text(os.path.join(metadata, "installed-files.txt"))
    yield from top_level.split()
    for line in record.splitlines():
        path = line.partition(",")[0]
        first, slash, _ = path.partition("/")
        if first and not first.endswith((".dist-info", ".egg-info")) and first != "..":
            yield first if slash else first.partition(".")[0]
    if not top_level and not record:
        yield os.path.basename(metadata).partition("-")[0].replace("-", "_")


@functools.lru_cache(1024)
def holds_distributions(folder: str) -> bool:
    """Return whether distributions are installed into this folder."""
    return any(part in _SUFFIXES_OF_INSTALLED for part in folder.split(os.sep)) or bool(_metadata_in(folder))


def names_of_distributions(folder: str) -> frozenset[str]:
    """Return the names of the distributions that are installed into a folder, as they stand in its entries."""
    return _names_in(folder, _mtime(folder))


@functools.lru_cache(256)
def _names_in(folder: str, mtime: int) -> frozenset[str]:
    return frozenset(os.path.basename(each).partition("-")[0] for each in _metadata_in(folder))


def without_metadata(folder: str, tops: set[str]) -> set[str]:
    """Return which of these top-level modules in a folder belong to no distribution there.

    The metadata is searched, not parsed: that takes a tenth of the time.
    """
    left = tops - names_of_distributions(folder)
    for each in _metadata_in(folder):
        if not left:
            break
        for file in ("top_level.txt", "RECORD", "installed-files.txt"):
            text = "\n" + _text(os.path.join(each, file))
            left -= {top for top in left if any(f"\n{top}{end}" in text for end in ("\n", "/", "."))}
    return left


def _text(file: str) -> str:
    try:
        return Path(file).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


@functools.cache
def _editable_roots() -> tuple[str, ...]:
    """Return the folders of editable installs, from ``direct_url.json`` and ``.egg-link`` files."""
    roots: set[str] = set()
    folders = {folder.rstrip(os.sep) for folder in _installed_folders()}
    folders.update(entry for entry in sys.path if entry.endswith(_SUFFIXES_OF_INSTALLED))
    for folder in folders:
        try:
            names = os.listdir(folder)
        except OSError:
            continue
        for name in names:
            if name.endswith(".dist-info"):
                root = _editable_root(os.path.join(folder, name, "direct_url.json"))
                roots.update((root,) if root else ())
            elif name.endswith(".egg-link"):
                roots.update(_text(os.path.join(folder, name)).splitlines()[:1])
    return tuple({os.path.realpath(root) for root in roots} - {os.sep})


def _editable_root(file: str) -> str:
    text = _text(file)
    if "editable" not in text:
        return ""
    try:
        url = json.loads(text)
        if not url["dir_info"]["editable"]:
            return ""
        return unquote(urlsplit(url["url"]).path)
    except (ValueError, KeyError, TypeError):
        return ""


@functools.cache
def _shared_entries() -> frozenset[str]:
    """Return the folders in PYTHONPATH and in ``.pth`` files."""
    found = {os.path.join(_STARTED_IN, entry) for entry in _PYTHONPATH.split(os.pathsep) if entry}
    for folder in {folder.rstrip(os.sep) for folder in _installed_folders()}:
        try:
            names = [name for name in os.listdir(folder) if name.endswith(".pth")]
        except OSError:
            continue
        for name in names:
            lines = _text(os.path.join(folder, name)).splitlines()
            found.update(os.path.join(folder, line.strip()) for line in lines if not line.startswith(("import", "#")))
    return frozenset(map(os.path.realpath, found))


# --------------------------------------------------------------------------------------------------
# The user's own modules


def project_roots() -> tuple[str, ...]:
    """Return the folder of the script or notebook, and the project folder around it."""
    main: Any = sys.modules.get("__main__")
    return _roots(getattr(main, "__file__", None), getattr(getattr(main, "__spec__", None), "name", "") or "")


@functools.lru_cache(64)
def _roots(file: str | None, module: str) -> tuple[str, ...]:
    folder = script_folder(file, module)
    if not folder:
        return ()
    roots = [folder]
    home = os.path.realpath(os.path.expanduser("~"))
    around = folder
    while around not in (os.sep, home):
        if any(os.path.exists(os.path.join(around, mark)) for mark in _PROJECT_MARKS):
            roots.append(around)
            break
        around = os.path.dirname(around)
    return tuple(dict.fromkeys(roots))


def script_folder(file: str | None, module: str) -> str:
    """Return the folder of the script or notebook, with ``-m`` that of the top-level package, else where Python
    started.
    """
    if file is not None and (not os.path.isabs(file) or os.path.isfile(file)):
        real = os.path.realpath(os.path.join(_STARTED_IN, file))
        folder = os.path.dirname(real)
        for _ in range(module.count(".")):
            folder = os.path.dirname(folder)
        scripts = os.path.realpath(sysconfig.get_path("scripts"))
        if not _is_installed_folder(folder) and folder != scripts:
            return folder
    notebook = os.environ.get("JPY_SESSION_NAME", "")
    if os.path.isabs(notebook) and os.path.isdir(os.path.dirname(notebook)):
        return os.path.realpath(os.path.dirname(notebook))
    return _STARTED_IN
