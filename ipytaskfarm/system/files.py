"""Files that are on the disk: names synced with their folder, files written whole or not at all, ends of logs."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import resource
import tempfile
from os import PathLike
from pathlib import Path

from .odd_files import remove_entry

_WRITE_BYTES = 2 * 2**20
"""The disk begins with each piece of this size while the next one is copied."""

_SYNC_FILE_RANGE_WRITE = 2

# It is Linux's own; on other systems the disk begins later.
_begin_writing = getattr(ctypes.CDLL(None), "sync_file_range", None)
if _begin_writing is not None:
    _begin_writing.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)


def write_all(descriptor: int, data: memoryview) -> None:
    """Write all bytes to a new file, and let the disk begin at once.

    Without that, the disk idles until the `fsync` that follows, which then waits for all of it.

    Raises:
        OSError: the bytes cannot be written.
    """
    for start in range(0, data.nbytes, _WRITE_BYTES):
        piece = data[start : start + _WRITE_BYTES]
        size = piece.nbytes
        while piece:
            piece = piece[os.write(descriptor, piece) :]
        if _begin_writing is not None:
            _begin_writing(descriptor, start, size, _SYNC_FILE_RANGE_WRITE)  # a hint: `fsync` reports errors


def sync_folder(folder: Path) -> None:
    """Sync a folder. Only then is a new file's name on the disk. Some file systems (CIFS) have no such call."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
    finally:
        os.close(descriptor)


def write_session(path: str | PathLike[str], data: bytes) -> None:
    """Write a session to a file that only its owner can read.

    Args:
        path: the file; ``~`` is the user's home. An existing file is replaced once the new one is complete.
        data: the session.

    Raises:
        OSError: the file cannot be written; an existing file is unchanged.
    """
    target = Path(path).expanduser()
    descriptor, part = tempfile.mkstemp(prefix=f"{target.name}.", suffix=".part", dir=target.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, target)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(part)
        raise


def read_session(path: str | PathLike[str]) -> bytes:
    """Read the session in a file.

    Raises:
        OSError: the file does not exist or cannot be read.
    """
    return Path(path).expanduser().read_bytes()


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)


def tail(path: Path, limit: int = 4096, since: int = 0) -> str:
    """Return the last part of a text file, from the start of a line; "" if there is no such file. It never waits.

    Args:
        path: the file.
        limit: the largest number of bytes.
        since: nothing before this position.
    """
    try:
        with open(path, "rb", opener=_without_waiting) as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(since, size - limit))
            data = file.read(limit)
    except OSError:
        return ""
    if size - since > limit:
        # A last line that is longer than the limit is shown without its start.
        data = data[data.find(b"\n") + 1 :] or data
    return data.decode(errors="replace").strip()


FULL = (errno.ENOSPC, errno.EDQUOT)
"""The errors of a disk, or a quota, that has no room for bytes or for files."""


def write_if_room(path: str, data: bytes) -> bool:
    """Write a new file. Return False if the disk is full; then no part of the file is left."""
    try:
        descriptor = _open_new(path)
    except OSError as error:
        if error.errno in FULL:
            return False
        raise
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(descriptor, view) :]
    except OSError as error:
        os.unlink(path)
        if error.errno in FULL:
            return False
        raise
    finally:
        os.close(descriptor)
    return True


def _open_new(path: str) -> int:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    remove_entry(path)  # only a task can have put something there: a name is used once
    try:
        return os.open(path, flags, 0o600)
    except OSError as error:
        if error.errno != errno.EMFILE:
            raise
    # The task has used up all descriptors; its result must not be lost for that reason.
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft + 16, hard) if hard >= 0 else soft + 16, hard))
    try:
        return os.open(path, flags, 0o600)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
