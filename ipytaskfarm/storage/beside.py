"""The files beside a store, which belong to it and have names that begin with its own."""

from __future__ import annotations

import fcntl
import os
import struct
from pathlib import Path

from .blobs import blobs_folder
from .result_cache import cache_file

STORE_NAME = "store.sqlite"
"""The name of a store in its farm's folder."""


def recorders_folder(store: Path) -> Path:
    """Return the folder of the flight recorders of the agents on the store's machine."""
    return store.with_name(f"{store.name}.recorders")


def count_file(store: Path) -> Path:
    """Return the file that counts the commits, see `storage.commit_count`."""
    return store.with_name(f"{store.name}.count")


def beside(store: Path) -> list[Path]:
    """Return all files and folders that belong to a store, the store last, whether they exist or not."""
    cache = cache_file(store)
    files = [store, cache]
    logs = [file.with_name(file.name + suffix) for file in files for suffix in ("-wal", "-shm")]
    damaged = cache.with_name(f"{cache.name}.damaged")
    return [*logs, cache, damaged, count_file(store), recorders_folder(store), blobs_folder(store), store]


_GET_GENERATION = 0x80087601
"""Linux's FS_IOC_GETVERSION: a number that is drawn again when the number of a deleted file is used again."""


def identity(folder: Path, store: Path) -> str:
    """Return which folder and store these are, as "folder/store": a copy has another one, what was moved has the same.

    The store is not opened: closing it would release SQLite's locks on it.
    """
    file = str(store.stat().st_ino) if store.exists() else ""
    return f"{folder.stat().st_ino}.{_generation(folder)}/{file}"


def _generation(folder: Path) -> int:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return int(struct.unpack("=q", fcntl.ioctl(descriptor, _GET_GENERATION, bytes(8)))[0]) & 0xFFFFFFFF
    except OSError:
        return 0  # this file system has no generations
    finally:
        os.close(descriptor)
