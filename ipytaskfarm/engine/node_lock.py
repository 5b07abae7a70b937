"""A lock that all tasks of a user on one machine share, including tasks of different farms."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from hashlib import sha256

from ..core.arguments import wrong
from ..core.text import exactly
from ..system.farm_paths import lock_folder

AGAIN_S = 0.01


def _bytes_of(name: object) -> bytes:
    if not isinstance(name, str):
        raise wrong("name", "a str", name)
    return exactly(name).encode("utf-8", "surrogatepass")


class NodeLock:
    """A file that one process has locked.

    The operating system releases the lock when the process ends, however it ends.
    """

    def __init__(self, name: str) -> None:
        self._name = sha256(_bytes_of(name)).hexdigest()[:32]
        self._handle = -1

    def acquire(self) -> None:
        """Wait for the lock. An interrupt of the task ends the wait."""
        while not self._try():
            time.sleep(AGAIN_S)

    def _try(self) -> bool:
        path = lock_folder() / self._name
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except FileNotFoundError:
            return False  # the folder was removed with another lock
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The former holder removes the file: the locked file must be the one that others find.
            if os.stat(path).st_ino == os.fstat(handle).st_ino:
                self._handle, handle = handle, -1
                return True
        except (BlockingIOError, FileNotFoundError):
            pass
        finally:
            if handle >= 0:
                os.close(handle)
        return False

    def release(self) -> None:
        """Release the lock. Remove the file, and the folder after the last lock."""
        path = lock_folder() / self._name
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        os.close(self._handle)
        with contextlib.suppress(OSError):
            os.rmdir(path.parent)
