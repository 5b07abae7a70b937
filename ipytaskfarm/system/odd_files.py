"""What stands in the place of a farm's own file or folder and is something else: a folder, a link, a pipe, a socket.

Tasks run as the farm's user, so they can replace any file of the farm, and so can the user. A process that only expects
its own kind of file would end of that, and each successor again. So there is one function for each thing that can be
done about it:

- `odd_kind` names it, for an error: of files that the farm cannot make again, such as the store.
- `set_aside_unless_file` and `set_aside_unless_folder` give it another name: in a farm's folder, where it may be
  somebody's, in the place of what the farm makes again; `set_aside_if_lost` in the place of keys and logs.
- `remove_unless_file` and `remove_unless_folder` remove it: in folders for running processes, which belong to the farm
  alone.
- `make_usable` gives a file's owner its permissions back.
- `open_file`, `read_note` and `write_note` use a file in spite of it. Opening a pipe would wait for its other end;
  nothing here does.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import stat
import time
from os import PathLike
from pathlib import Path
from typing import BinaryIO

log = logging.getLogger(__name__)

_KINDS = {
    stat.S_IFREG: "a file",
    stat.S_IFDIR: "a folder",
    stat.S_IFLNK: "a link",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
}
_NOTE_BYTES_MAX = 64 * 1024


# ------------------------------------------------------------------------------------------------ naming


def kind_of(mode: int) -> str:
    """Return the kind of file with this `st_mode`, for people."""
    return _KINDS.get(stat.S_IFMT(mode), "a device")


def odd_kind(path: Path) -> str:
    """Return what stands in the place of a file and is none, such as "a folder"; "" for a file or nothing."""
    found = _found(path)
    return "" if found is None or stat.S_ISREG(found.st_mode) else kind_of(found.st_mode)


# ------------------------------------------------------------------------------------------------ setting aside


def set_aside_unless_file(path: Path) -> str:
    """Give another name to what stands in the place of a file and is none; links are not followed.

    Returns:
        What was done, for people, which is logged too; "" if there is a file or nothing.

    Raises:
        OSError: it cannot be renamed.
    """
    return _set_aside(path, stat.S_IFREG)


def set_aside_unless_folder(path: Path) -> str:
    """Give another name to what stands in the place of a folder and is none; otherwise like `set_aside_unless_file`."""
    return _set_aside(path, stat.S_IFDIR)


def set_aside_unless_link(path: Path) -> str:
    """Do the same as `set_aside_unless_folder`, except with a link that leads to something: it stays."""
    return "" if path.is_symlink() and path.exists() else set_aside_unless_folder(path)


def set_aside_if_lost(path: Path) -> str:
    """Do the same as `set_aside_unless_file` if the file's content is lost anyhow: a link may lead to it, and stays."""
    return "" if path.is_symlink() and path.exists() else set_aside_unless_file(path)


def _set_aside(path: Path, wanted: int) -> str:
    found = _found(path)
    if found is None or stat.S_IFMT(found.st_mode) == wanted:
        return ""
    if stat.S_IFMT(found.st_mode) not in _KINDS:  # a device is nobody's by mistake, and may be needed by all
        return ""
    aside = spoiled_name(path)
    os.rename(path, aside)
    remark = f"{path} was {kind_of(found.st_mode)} and not {_KINDS[wanted]}: it is {aside.name} now, and is made again"
    log.warning("%s", remark)
    return remark


def spoiled_name(path: Path) -> Path:
    """Return a name that is free, for what cannot be used in the place of a file."""
    return path.with_name(f"{path.name}.spoiled-{time.strftime('%Y%m%d-%H%M%S')}-{os.urandom(2).hex()}")


# ------------------------------------------------------------------------------------------------ removing


def remove_unless_file(path: str | PathLike[str]) -> None:
    """Remove what stands in the place of a file and is none; a file stays, and is made usable."""
    found = _found(path)
    if found is not None and not stat.S_ISREG(found.st_mode):
        log.warning("%s is no file: removed", path)
        remove_entry(path)
    else:
        make_usable(path)


def remove_unless_folder(path: Path) -> None:
    """Remove what stands in the place of a private folder and is none, if it is ours; our folder becomes private.

    What belongs to another user stays, and so does a folder of which others can have changed the contents: the code
    that opens the folder refuses it.
    """
    found = _found(path)
    if found is None or found.st_uid != os.geteuid():
        return
    if not stat.S_ISDIR(found.st_mode):
        log.warning("%s is no folder: removed", path)
        remove_entry(path)
    elif stat.S_IMODE(found.st_mode) != 0o700 and (not found.st_mode & 0o077 or _is_private(path.parent)):
        with contextlib.suppress(OSError):
            os.chmod(path, 0o700)


def remove_entry(path: str | PathLike[str]) -> None:
    """Remove whatever has this name: a file, a link, a socket, or a folder with all that is in it.

    Nothing happens if there is nothing. What cannot be removed stays and is logged: the code that needs the place
    fails there with the reason.
    """
    try:
        os.unlink(path)
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        found = _found(path)
        if found is not None and stat.S_ISDIR(found.st_mode):
            _remove_folder(path)
        if os.path.lexists(path):
            log.warning("%s cannot be removed: %s", path, error.strerror)


def _remove_folder(path: str | PathLike[str]) -> None:
    import shutil  # seldom needed, and the agent imports this module before it starts its zygote

    with contextlib.suppress(OSError):
        os.chmod(path, 0o700)
    for folder, names, _ in os.walk(path):  # folders without permissions would stay
        for name in names:
            inner = os.path.join(folder, name)
            if not os.path.islink(inner):
                with contextlib.suppress(OSError):
                    os.chmod(inner, 0o700)
    shutil.rmtree(path, ignore_errors=True)


# ------------------------------------------------------------------------------------------------ permissions


def make_usable(path: str | PathLike[str]) -> None:
    """Let a file's owner read and write it; what is no file stays as it is."""
    found = _found(path)
    if found is not None and stat.S_ISREG(found.st_mode) and found.st_mode & 0o600 != 0o600:
        with contextlib.suppress(OSError):  # another user's: the code that opens it says so
            os.chmod(path, 0o600)


# ------------------------------------------------------------------------------------------------ using


def open_file(path: str | PathLike[str]) -> BinaryIO:
    """Open a file for reading, without ever waiting.

    Raises:
        OSError: it cannot be opened, or something else has its name. Links are not followed.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is no file", os.fspath(path))
    return os.fdopen(descriptor, "rb")


def read_note(path: Path) -> str:
    """Return the text of a short file; "" if there is none, or something else. It never waits."""
    try:
        with open_file(path) as file:
            return file.read(_NOTE_BYTES_MAX).decode(errors="replace")
    except OSError:
        return ""


def write_note(path: Path, text: str) -> None:
    """Write a short file, whole or not at all, in the place of whatever has its name. Failures are logged."""
    new = path.with_name(f".{path.name}.new")
    try:
        remove_entry(new)
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
        remove_unless_file(path)
        os.replace(new, path)
    except OSError as error:
        log.warning("%s was not written: %s", path, error.strerror)


def _found(path: str | PathLike[str]) -> os.stat_result | None:
    try:
        return os.lstat(path)
    except OSError:
        return None


def _is_private(folder: Path) -> bool:
    found = _found(folder)
    return found is not None and found.st_uid == os.geteuid() and not found.st_mode & 0o077
