"""Files and folders that only this user can use: made, read, written and locked.

Files are 0600 in folders of 0700, whatever the umask. A file that others could have written or can read is refused, and
the error names it. So is what stands in the place of a file and is none: a folder, a link, a pipe, a socket. Nothing
here waits for the other end of a pipe.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import stat
from pathlib import Path

from ..core import errors
from .files import sync_folder
from .host import socket_bases
from .odd_files import kind_of, odd_kind, set_aside_unless_file

NOT_NOW = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
"""The errors of a process, or a system, that can open no further file at present."""

# ------------------------------------------------------------------------------------------------ locks


def set_aside_lock(path: Path, what: str, may_be_lost: bool = False) -> None:
    """Do the same as `set_aside_unless_file` with the place of a lock file, if no process holds that lock.

    Args:
        path: the lock file.
        what: the kind of holder, for the error message.
        may_be_lost: whether there was such a file, so that it was removed if it is missing.

    Raises:
        FarmExists: a process holds the file that was there before. The message has its pid.
        OSError: it cannot be renamed.
    """
    if not odd_kind(path) and (os.path.lexists(path) or not may_be_lost):
        return
    if (holder := holder_of_removed(path)) is not None:
        raise errors.FarmExists(f"{what} runs already: process {holder} holds what was {path}")
    set_aside_unless_file(path)


def holder_of_removed(path: Path) -> int | None:
    """Return a process of this user that still has the file open which had this name; None: there is none."""
    was = f"{path.parent.resolve() / path.name} (deleted)"
    for opened in Path("/proc").glob("[0-9]*/fd/*"):
        with contextlib.suppress(OSError):
            if os.readlink(opened) == was:
                return int(opened.parts[2])
    return None


# ------------------------------------------------------------------------------------------------ folders


def private_folder(path: Path) -> Path:
    """Create a folder with mode 0700, with its parents; or check that an existing one is ours and closed to others.

    Raises:
        SecurityError: the existing folder is not. The message names it and the remedy.
    """
    for base in socket_bases():
        if base in path.parents:
            private_folder(base)  # parents get the umask's mode, but this one must be private
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        # The umask may remove permissions, never add any. The mode is set below on the opened folder.
        os.mkdir(path, 0o700)
        made = True
    except FileExistsError:
        made = False
    try:
        folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        if made and isinstance(error, PermissionError):
            os.chmod(path, 0o700, follow_symlinks=False)
            return path
        if error.errno not in (errno.ELOOP, errno.ENOTDIR, errno.EACCES):
            raise
        raise errors.SecurityError(
            f"{path} is not a folder of ours ({error.strerror}; a link is not followed): remove it"
        ) from None
    try:
        if made:
            _make_private(path, folder)
        _check_owner(path, os.fstat(folder), "700")
    finally:
        os.close(folder)
    return path


def _make_private(path: Path, folder: int) -> None:
    """Set the mode of a folder that was just made. It is removed again if its file system cannot keep it private.

    Raises:
        SecurityError: the file system gives it to another user, or to all users.
    """
    with contextlib.suppress(PermissionError):  # it is another user's already
        os.fchmod(folder, 0o700)
    found = os.fstat(folder)
    if found.st_uid != os.geteuid():
        gives = f"gives what user {os.geteuid()} makes to user {found.st_uid} (root_squash, or mapped ids)"
    elif stat.S_IMODE(found.st_mode) & 0o077:
        gives = f"keeps no permissions: a folder made for us alone has {stat.S_IMODE(found.st_mode):o}"
    else:
        return
    with contextlib.suppress(OSError):
        os.rmdir(path)
    raise errors.SecurityError(
        f"the file system of {path} {gives}: set JUPYTER_DATA_DIR, and JUPYTER_RUNTIME_DIR, to folders on another one"
    )


def _check_owner(path: Path, found: os.stat_result, mode: str) -> None:
    if found.st_uid != os.geteuid():
        raise errors.SecurityError(f"{path} belongs to user {found.st_uid}, not to us ({os.geteuid()}): remove it")
    if stat.S_IMODE(found.st_mode) & 0o077:
        raise errors.SecurityError(
            f"others can use {path} (its permissions are {stat.S_IMODE(found.st_mode):o}): chmod {mode} {path}"
        )


# ------------------------------------------------------------------------------------------------ files


def write_private(path: Path, data: bytes) -> None:
    """Write a file with mode 0600. It is written whole or not at all, and is on disk when this returns.

    Raises:
        SecurityError: a link, or something else that is no file, has the file's name. It is neither followed nor
            replaced.
    """
    if odd := odd_kind(path):
        raise errors.SecurityError(f"{path} is {odd}; the file is not written: remove it")
    new = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    file = os.open(new, flags, 0o600)
    try:
        with os.fdopen(file, "wb") as stream:
            os.fchmod(stream.fileno(), 0o600)
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.rename(new, path)
    except BaseException:
        os.unlink(new)
        raise
    sync_folder(path.parent)


def read_private(path: Path) -> bytes:
    """Read a file that is private to this user.

    Raises:
        FileNotFoundError: there is no such file.
        SecurityError: it is a link, belongs to another user, is accessible to others, or others may write into its
            folder.
        OSError: it cannot be read now: this process, or the system, has too many files open.
    """
    try:
        file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        raise
    except OSError as error:
        if error.errno in NOT_NOW:
            raise
        what = f"is {odd}; " if (odd := odd_kind(path)) else ""
        is_refused = error.errno in (errno.EACCES, errno.EPERM)
        remedy = "remove it" if odd else f"chmod 600 {path}" if is_refused else "check its disk (`dmesg` says more)"
        raise errors.SecurityError(
            f"{path} cannot be read ({what}{error.strerror}{'; a link is not followed' if odd else ''}): {remedy}"
        ) from None
    found = os.fstat(file)
    if not stat.S_ISREG(found.st_mode):
        os.close(file)
        raise errors.SecurityError(f"{path} is not a file but {kind_of(found.st_mode)}: remove it")
    with os.fdopen(file, "rb") as stream:
        _check_owner(path, found, "600")
        # A copy may be in a folder that others can read (a home is often 0755), but not in one into which they can put
        # a file. In a sticky folder (/tmp) others can only put files of their own, which were refused above.
        above = os.stat(path.parent)
        mode = stat.S_IMODE(above.st_mode)
        if mode & 0o022 and not mode & stat.S_ISVTX:
            raise errors.SecurityError(f"others can write into {path.parent} (permissions {mode:o}): chmod 700 it")
        return stream.read()


def without_locks(path: Path, error: OSError) -> OSError:
    """Return the error for a file that cannot be locked because of its file system, with the remedy."""
    text = f"{error.strerror}: its file system has no locks (Lustre: see the mount option flock)"
    return OSError(error.errno, f"{text}; set JUPYTER_DATA_DIR to a folder on another one", str(path))


class Lock:
    """An exclusive lock on a file of its own. A process holds it until the process ends or calls `release`.

    The file stays: removing it would let two processes lock two files of one name. No other code of this process may
    open it: closing any descriptor of a file releases the POSIX locks on it.

    Args:
        path: the file.
        what: the kind of holder, for the error message.

    Raises:
        FarmExists: another process holds the lock. The message has its pid.
        SecurityError: there is no file that can be locked.
    """

    def __init__(self, path: Path, what: str = "another process") -> None:
        self._path = path
        self._file: int | None = self._open()
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(self._file, 32, 0).decode(errors="replace").strip() or "unknown"
            os.close(self._file)
            self._file = None
            if not isinstance(error, BlockingIOError | PermissionError):
                raise without_locks(path, error) from None
            raise errors.FarmExists(f"{what} runs already: process {holder} holds {path}") from None
        os.ftruncate(self._file, 0)
        os.pwrite(self._file, f"{os.getpid()}\n".encode(), 0)

    def _open(self) -> int:
        odd = odd_kind(self._path)
        why = f"it is {odd} and not a file"
        if not odd or odd == "a link":
            try:
                file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
                os.fchmod(file, 0o600)
                return file
            except OSError as error:
                why = f"{error.strerror}; a link is not followed"
        raise errors.SecurityError(f"{self._path} cannot be locked ({why}): look at it, then remove it")

    def release(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None
