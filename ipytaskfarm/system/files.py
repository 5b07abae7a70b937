"""Files that are on the disk: names synced with their folder, files written whole or not at all, ends of logs."""

from __future__ import annotations

import contextlib
import os
import tempfile
from os import PathLike
from pathlib import Path


def sync_folder(folder: Path) -> None:
    """Sync a folder. Only then is a new file's name on the disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
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


def tail(path: Path, limit: int = 4096, since: int = 0) -> str:
    """Return the last part of a text file, from the start of a line; "" if there is no such file.

    Args:
        path: the file.
        limit: the largest number of bytes.
        since: nothing before this position.
    """
    try:
        with open(path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(since, size - limit))
            data = file.read(limit)
    except OSError:
        return ""
    if size - since > limit:
        data = (
            data[data.find(b"\n") + 1 :] or data
        )  # a last line that is longer than the limit is shown without its start
    return data.decode(errors="replace").strip()
