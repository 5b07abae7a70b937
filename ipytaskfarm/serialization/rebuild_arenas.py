"""Opens the shared memory in which a ``RawArray`` of `multiprocessing` is. Pickles call this module by name.

The memory is a file without a name, which children of the program inherit. Engines are no children, so they open it by
the program's descriptor, in ``/proc``, as long as the program runs.
"""

from __future__ import annotations

import os
import weakref
from typing import Any, TypeAlias

Where: TypeAlias = tuple[int, int, int, int]
"""Process, descriptor, device and number of the file."""

_arenas: weakref.WeakValueDictionary[Where, Any] = weakref.WeakValueDictionary()


def opened_at(arena: Any) -> Where | None:
    """Return from where this process has opened an arena; None: the arena is its own."""
    where: Where | None = getattr(arena, "opened_at", None)
    return where


def open_arena(process: int, descriptor: int, device: int, inode: int, size: int) -> Any:
    """Return the arena of another process, once for all arrays in it.

    Args:
        process: the process that has made it.
        descriptor: that process's descriptor of the file.
        device, inode: of the file: another one is refused.
        size: in bytes.

    Raises:
        FileNotFoundError: this process cannot open the file.
    """
    from multiprocessing import heap, util

    where = process, descriptor, device, inode
    arena = _arenas.get(where)
    if arena is None:
        own = _opened(*where)
        arena = heap.Arena(size, own)
        arena.opened_at = where  # type: ignore[attr-defined]
        util.Finalize(arena, os.close, (own,))
        _arenas[where] = arena
    return arena


def _opened(process: int, descriptor: int, device: int, inode: int) -> int:
    fault = (
        "the memory of a multiprocessing.RawArray or RawValue cannot be opened: its program has ended, or runs on"
        " another machine. Pass its content, or the name of a SharedMemory"
    )
    try:
        own = os.open(f"/proc/{process}/fd/{descriptor}", os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise FileNotFoundError(fault) from error
    status = os.fstat(own)
    if (status.st_dev, status.st_ino) != (device, inode):
        os.close(own)
        raise FileNotFoundError(fault)
    return own
