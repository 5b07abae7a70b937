"""``numpy.memmap`` among the arguments of tasks: it travels as the name of its file, and the engine maps the file.

So all engines of the machine share its pages, and what a task writes into a map of mode ``r+`` or ``w+`` is in the
file, as with the workers of joblib and multiprocessing.  The content counts as it is when the task runs.  A map travels
as its content, like any array, if an engine may not see the file, in mode ``c``, and if it is read-only and small.  The
result cache always looks at the content.
"""

from __future__ import annotations

import os
import sys
import threading
import warnings
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from ..system.user_code import depth_of_user
from . import rebuild_maps
from .pickler import KINDS, Pickler, Reduced

SMALL_BYTES = 64 * 1024
"""Read-only maps below this size travel as their content: nothing is gained by the file."""
_WRITES = ("r+", "w+")
_warned: set[str] = set()


class NamesFiles(Protocol):
    """The part of a `BlobWriter` that this module uses."""

    def names_file(self, path: str) -> bool:
        """Return whether all engines see the file of this name."""


class _Packing(threading.local):
    writer: NamesFiles | None = None


_packing = _Packing()


class naming_files:  # noqa: N801 - it is used as a statement
    """A context, ``with naming_files(writer):``, in which arguments are packed; None for maps as their content."""

    __slots__ = ("_before", "_writer")

    def __init__(self, writer: NamesFiles | None) -> None:
        self._writer = writer

    def __enter__(self) -> None:
        self._before, _packing.writer = _packing.writer, self._writer

    def __exit__(self, *exc_info: object) -> None:
        _packing.writer = self._before


class _Region(NamedTuple):
    """The part of a file that an array looks at."""

    path: str
    inode: int
    start: int
    """Offset in the file of the first byte that belongs to the array."""
    size: int
    first: int
    """Offset of the array's first item behind `start`; not 0 for a reversed array."""


def _reducer_of(kind: type) -> Any:
    numpy = sys.modules.get("numpy")
    if numpy is None or _packing.writer is None:
        return None
    return _reduce_array if kind is numpy.ndarray or issubclass(kind, numpy.memmap) else None


def _reduce_array(pickler: Pickler, array: Any) -> Reduced:
    """Reduce an array over the file of a memory map to the place in the file; leave any other array to pickle."""
    writer = _packing.writer
    root = _root_of(array)
    if root is None or writer is None or pickler.inline or str(type(array).__module__).partition(".")[0] != "numpy":
        return NotImplemented
    writes = bool(array.flags.writeable)
    if (writes and root.mode not in _WRITES) or not array.nbytes or not (writes or array.nbytes >= SMALL_BYTES):
        return NotImplemented
    region = _region_of(array, root)
    if region is None:
        return NotImplemented
    if not writer.names_file(region.path):
        if writes:
            _warn_of_copies(region.path)
        return NotImplemented
    is_map = type(array) is not sys.modules["numpy"].ndarray
    order = "C" if array.flags.c_contiguous else "F" if array.flags.f_contiguous else ""
    layout = order or (region.first, array.strides)
    mode = "r+" if writes else "r"
    return rebuild_maps.map_array, (*region[:4], array.dtype, array.shape, layout, mode, is_map)


def _root_of(array: Any) -> Any:
    """Return the memory map over whose file an array lies; None if there is none."""
    memmap, found = sys.modules["numpy"].memmap, array
    while (base := getattr(found, "base", None)) is not None:
        if type(base).__name__ == "mmap" and isinstance(found, memmap):
            return found
        found = base
    return None


def _region_of(array: Any, root: Any) -> _Region | None:
    """Return which part of which file an array looks at; None if the file has gone, or another one has its name."""
    if not isinstance(root.filename, str | Path):
        return None
    path = str(root.filename)
    address = array.__array_interface__["data"][0]
    back = sum(min(0, (n - 1) * step) for n, step in zip(array.shape, array.strides, strict=True))
    ahead = sum(max(0, (n - 1) * step) for n, step in zip(array.shape, array.strides, strict=True))
    start = root.offset + address + back - root.__array_interface__["data"][0]
    try:
        inode = os.stat(path).st_ino
    except OSError:
        return None
    if inode != _inode_at(address):
        return None
    return _Region(path, inode, start, ahead - back + array.itemsize, -back)


def _inode_at(address: int) -> int | None:
    """Return the inode of the file that is mapped at this address of this process."""
    try:
        with open("/proc/self/maps") as maps:
            for line in maps:
                begin, _, end = line.partition(" ")[0].partition("-")
                if int(begin, 16) <= address < int(end, 16):
                    return int(line.split()[4])
    except OSError:
        pass
    return None


def _warn_of_copies(path: str) -> None:
    if path not in _warned and len(_warned) < 100:
        _warned.add(path)
        warnings.warn(
            f"the farm has engines that may not see {path}: tasks get copies of this writable np.memmap, and what they "
            "write does not reach the file; return it, or give the file's name to tasks whose engines see it",
            stacklevel=depth_of_user(),
        )


KINDS.append(_reducer_of)
