"""Maps files into memory: private, writable, and without an open descriptor for each.

Python's `mmap` keeps a copy of the descriptor as long as the memory is used (3.13 can turn this off). A holder of a
thousand values would have a thousand open files. The system needs no descriptor once a file is mapped. A process may
have only a limited number of mappings (``vm.max_map_count``, 65,530 by default). Therefore small files are read, and so
are other files once `MAPPINGS_MAX` files are mapped.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import weakref

MAPPED_BYTES = 512 * 1024
"""Smaller files are read, which takes no longer than mapping them and then touching their pages."""

MAPPINGS_MAX = 8192
"""The number of files that one process maps at the same time. Further files are read."""

_FAILED = ctypes.c_void_p(-1).value

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (
    ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long,
)  # fmt: skip
_libc.munmap.restype = ctypes.c_int
_libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)

_mapped: set[int] = set()
"""The addresses of the present mappings."""


def load(fd: int) -> memoryview:
    """Return the file's content as writable memory. Writing to it does not change the file.

    The descriptor may be closed afterwards. Pages of a large file are shared with other processes that map the file,
    until they are written to.

    Raises:
        OSError: the file cannot be read.
    """
    size = os.fstat(fd).st_size
    if size >= MAPPED_BYTES and len(_mapped) < MAPPINGS_MAX:
        found = _map(fd, size)
        if found is not None:
            return found
    return _read(fd, size)


def _map(fd: int, size: int) -> memoryview | None:
    """Map the file; return None if the system does not allow another mapping."""
    # The length is in whole pages, so that there is one ctypes type for each number of pages and not for each length.
    length = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
    address = _libc.mmap(None, length, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE, fd, 0)
    if address is None or address == _FAILED:
        return None
    memory = (ctypes.c_char * length).from_address(address)
    _mapped.add(address)
    # Views, and arrays on them, keep `memory` alive; the mapping ends with the last of them.
    weakref.finalize(memory, _unmap, address, length).atexit = False
    return memoryview(memory).cast("B")[:size]


def _unmap(address: int, length: int) -> None:
    _mapped.discard(address)
    _libc.munmap(address, length)


def _read(fd: int, size: int) -> memoryview:
    data = bytearray(size)
    view = memoryview(data)
    done = 0
    while done < size:
        count = os.preadv(fd, [view[done:]], done)
        if count == 0:
            raise OSError(f"the file ended after {done} of {size} bytes")
        done += count
    return view
