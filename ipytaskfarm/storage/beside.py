"""The files beside a store, which belong to it and have names that begin with its own."""

from __future__ import annotations

from pathlib import Path

from .blobs import blobs_folder


def recorders_folder(store: Path) -> Path:
    """Return the folder of the flight recorders of the agents on the store's machine."""
    return store.with_name(f"{store.name}.recorders")


def count_file(store: Path) -> Path:
    """Return the file that counts the commits, see `storage.commit_count`."""
    return store.with_name(f"{store.name}.count")


def beside(store: Path) -> list[Path]:
    """Return all files and folders that belong to a store, the store last, whether they exist or not."""
    logs = [store.with_name(store.name + suffix) for suffix in ("-wal", "-shm")]
    return [*logs, count_file(store), recorders_folder(store), blobs_folder(store), store]
