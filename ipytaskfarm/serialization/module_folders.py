"""Folders with by-value modules on the receiving side: for data files of packages, and for imports of child processes.

All of them lie below one private folder of the process. An engine is given its folder (`use_folder`); another process
makes a temporary one, and removes it when it ends.
"""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
import types
from collections.abc import Iterable, Sequence
from pathlib import Path

from .module_bundles import ModuleSource
from .module_origin import is_compiled

_root: list[str] = []
_homes: dict[tuple[str, str], tuple[str, list[str]]] = {}


def use_folder(folder: str) -> None:
    """Write modules below this folder from now on. Its owner, not this process, removes it."""
    _root[:] = [folder]
    _homes.clear()


def private_folder() -> str:
    """Return the private folder of this process, which is created at the first call."""
    if not _root:
        folder = tempfile.mkdtemp(prefix="ipytaskfarm-modules-")
        _root.append(folder)
        atexit.register(_remove, folder, os.getpid())
    os.makedirs(_root[0], mode=0o700, exist_ok=True)
    return _root[0]


def _remove(folder: str, made_by: int) -> None:
    if os.getpid() == made_by:
        shutil.rmtree(folder, ignore_errors=True)


def as_arrived(member: ModuleSource, file: str) -> bool:
    """Return whether the file on this machine holds the source that was sent."""
    try:
        return Path(file).read_bytes() == member.source
    except OSError:
        return False


def home_of(member: ModuleSource, members: list[ModuleSource]) -> tuple[str, list[str]]:
    """Return the ``__file__`` and the ``__path__`` of a by-value module on this machine.

    They are its own file and folders if this machine sees them. Otherwise the whole bundle of a package's module is
    written to a folder; a module that belongs to no package keeps the name of the file that it was sent from.
    """
    key = member.name, member.digest
    known = _homes.get(key)
    if known is None:
        known = _homes[key] = _home_of(member, members)
    return known


def _home_of(member: ModuleSource, members: list[ModuleSource]) -> tuple[str, list[str]]:
    folders = [folder for folder in member.folders if os.path.isdir(folder)]
    in_package = member.is_package or "." in member.name
    if not in_package or (member.file and as_arrived(member, member.file)):
        return member.file, folders
    if not member.file and folders:
        return "", folders
    top = member.name.partition(".")[0]
    root = os.path.join(private_folder(), "packages", member.digest[:24])
    write_members(root, [each for each in members if each.name.partition(".")[0] == top])
    file = os.path.join(root, _path_of(member))
    return (file if member.file else ""), [os.path.dirname(file), *folders] if member.is_package else []


def _path_of(member: ModuleSource) -> str:
    parts = os.path.join(*member.name.split("."))
    return os.path.join(parts, "__init__.py") if member.is_package else parts + ".py"


def write_members(root: str, members: Iterable[ModuleSource]) -> None:
    """Write sources and data files below a folder, in the layout that imports expect."""
    for member in members:
        if is_compiled(member.file):
            if os.path.isfile(member.file):
                target = os.path.join(root, *member.name.split(".")[:-1], os.path.basename(member.file))
                os.makedirs(os.path.dirname(target), mode=0o700, exist_ok=True)
                if not os.path.lexists(target):
                    os.symlink(member.file, target)
            continue
        file = os.path.join(root, _path_of(member))
        os.makedirs(os.path.dirname(file), mode=0o700, exist_ok=True)
        if member.file:
            Path(file).write_bytes(member.source)
        for below, content in member.data.items():
            path = os.path.join(os.path.dirname(file), below)
            os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
            Path(path).write_bytes(content)


def child_folder() -> str:
    """Return the entry of ``sys.path`` and PYTHONPATH in which child processes find by-value modules."""
    return os.path.join(_root[0] if _root else private_folder(), "children")


def write_set(members: Sequence[ModuleSource], beside: Sequence[types.ModuleType]) -> None:
    """Replace the content of `child_folder`.  beside: modules that were found in the sender's folders."""
    root = tempfile.mkdtemp(prefix="set-", dir=private_folder())
    write_members(root, members)
    for module in beside:
        file = module.__file__ or ""
        source = os.path.dirname(file) if hasattr(module, "__path__") else file
        target = os.path.join(root, os.path.basename(source))
        if source and not os.path.lexists(target):
            os.symlink(source, target)
    link = child_folder()
    before = os.path.realpath(link) if os.path.islink(link) else ""
    new = f"{root}.link"
    os.symlink(root, new)
    os.replace(new, link)
    if before:
        shutil.rmtree(before, ignore_errors=True)
