"""Makes the places of a farm's own files usable again after a task has put something else there.

Tasks run as the farm's user, so they can replace any file of an agent: by a folder, a pipe (whose opening waits for
ever), a link to nothing, or a file without permissions. A process that only expects its own kind of file would end of
that, and each successor again. The places that are handed to these functions belong to the farm alone.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import stat
from os import PathLike
from pathlib import Path
from typing import BinaryIO

log = logging.getLogger(__name__)

_NOTE_BYTES_MAX = 64 * 1024


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
        if _is_folder(path):
            _remove_folder(path)
        if os.path.lexists(path):
            log.warning("%s cannot be removed: %s", path, error.strerror)


def clear_file(path: str | PathLike[str]) -> None:
    """Make a place usable for a file of ours: a file stays and becomes ours to use, everything else is removed."""
    found = _found(path)
    if found is None:
        return
    if not stat.S_ISREG(found.st_mode):
        log.warning("%s is no file: removed", path)
        remove_entry(path)
    elif found.st_mode & 0o600 != 0o600:
        with contextlib.suppress(OSError):  # another user's: the code that opens it says so
            os.chmod(path, 0o600)


def clear_folder(path: Path) -> None:
    """Make a place usable for a private folder: our folder stays and becomes private, other things of ours are removed.

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
        clear_file(path)
        os.replace(new, path)
    except OSError as error:
        log.warning("%s was not written: %s", path, error.strerror)


def _found(path: str | PathLike[str]) -> os.stat_result | None:
    try:
        return os.lstat(path)
    except OSError:
        return None


def _is_folder(path: str | PathLike[str]) -> bool:
    found = _found(path)
    return found is not None and stat.S_ISDIR(found.st_mode)


def _is_private(folder: Path) -> bool:
    found = _found(folder)
    return found is not None and found.st_uid == os.geteuid() and not found.st_mode & 0o077


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
