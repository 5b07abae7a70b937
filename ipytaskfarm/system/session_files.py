"""Files of saved sessions: private, and whole or not there."""

from __future__ import annotations

import contextlib
import os
import tempfile
from os import PathLike
from pathlib import Path


def write(path: str | PathLike[str], data: bytes) -> None:
    """Write a session to a file that only its owner can read.

    Args:
        path: the file; ``~`` is the user's home.  A file that is there is replaced once the new one is whole.
        data: the session.

    Raises:
        OSError: the file cannot be written; what was there is untouched.
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


def read(path: str | PathLike[str]) -> bytes:
    """Read the session in a file.  OSError: the file is not there or cannot be read."""
    return Path(path).expanduser().read_bytes()
