"""Files that are on the disk: names synced with their folder, and sessions written whole or not at all."""

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
