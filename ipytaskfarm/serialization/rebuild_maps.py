"""Maps the files of `memory_maps` on an engine. Pickles call this module by name."""

from __future__ import annotations

import errno
import os
from typing import Any

_named: set[str] = set()
"""The files that this process has mapped under the name that it was given."""


def map_array(
    path: str,
    inode: int,
    start: int,
    size: int,
    dtype: Any,
    shape: tuple[int, ...],
    layout: str | tuple[int, tuple[int, ...]],
    mode: str,
    is_map: bool,
) -> Any:
    """Return an array over a part of a file.

    Args:
        path: the file.
        inode: the file's number: another file of its name is refused.
        start, size: the part, in bytes.
        dtype, shape: of the array.
        layout: "C" or "F", or (bytes before the first item, strides).
        mode: "r", or "r+" to write into the file.
        is_map: whether the array is a ``numpy.memmap`` itself, or an array over one.

    Raises:
        FileNotFoundError: this process does not see the file.
    """
    import numpy

    try:
        status = os.stat(path)
    except OSError:
        status = None
    if status is None or status.st_ino != inode or status.st_size < start + size:
        text = (
            "the file of this np.memmap, an argument of the task, was removed or replaced, or is not on this machine: "
            "give np.array(…) of it to send the content"
        )
        raise FileNotFoundError(errno.ENOENT, text, path)
    _named.add(path)
    found: Any
    if isinstance(layout, str):
        found = numpy.memmap(path, dtype, mode, start, shape, layout)  # type: ignore[call-overload]
    else:
        first, strides = layout
        base = numpy.memmap(path, numpy.uint8, mode, start, (size,))  # type: ignore[call-overload]
        found = numpy.ndarray(shape, dtype, base, first, strides)
        return found.view(numpy.memmap) if is_map else found
    return found if is_map else found.view(numpy.ndarray)


def was_named(path: str) -> bool:
    """Return whether a file came to this process by its name: then all engines see it."""
    return path in _named
