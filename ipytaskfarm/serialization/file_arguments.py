"""`File`: a path among the arguments of a cached task that stands for the content of its file."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import time

from .file_looks import Stamp, stamp_of

_digests: dict[str, tuple[Stamp, str]] = {}
_KEPT_MAX = 10_000
_TICK_NS = 100_000_000
"""A file that changed this recently is read again: one more change of it may have the same times."""


class File(str):
    """A path as an argument of a cached task: ``Task(f, args=(File("data.csv"),), cache=True)``.

    The task gets the path, a str.  The cache knows the argument by the content of the file, and by the path as it was
    given.  The content is read when the task is submitted, and not again as long as size and times of the file are the
    same.  The file must be the same on the engines.

    Raises TypeError for anything but a path.
    """

    __slots__ = ()

    def __new__(cls, path: str | os.PathLike[str]) -> File:
        """Return the file of a path."""
        text = os.fspath(path)
        if not isinstance(text, str):
            raise TypeError(f"File(path) needs a str or a Path, not {type(text).__name__}")
        return str.__new__(cls, text)

    def __repr__(self) -> str:
        return f"File({str.__repr__(self)})"

    def __reduce__(self) -> tuple[type[File], tuple[str]]:
        return File, (str(self),)

    def digest(self) -> str:
        """Return the SHA-256 of the content, as hex digits.

        Raises:
            OSError: it cannot be read; for a folder, IsADirectoryError.
        """
        path = os.path.abspath(self)
        try:
            status = os.stat(path)
            if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
                # To open a pipe would wait for somebody who writes into it.
                raise OSError(errno.EINVAL, "It is no regular file")
            known = _digests.get(path)
            if known is not None and known[0] == stamp_of(status):
                return known[1]
            with open(path, "rb") as file:
                status, now_ns = os.fstat(file.fileno()), time.time_ns()
                digest = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            remedy = ": give the files in it one by one" if isinstance(error, IsADirectoryError) else ""
            raise type(error)(error.errno, f"{error.strerror}, and the cache needs its content{remedy}", path) from None
        if abs(now_ns - status.st_ctime_ns) > _TICK_NS:
            while len(_digests) >= _KEPT_MAX:
                _digests.pop(next(iter(_digests)), None)
            _digests[path] = stamp_of(status), digest
        return digest
