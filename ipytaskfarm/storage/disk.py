"""Checks of a file and its disk before the store uses them."""

from __future__ import annotations

import os
import re
import stat
import tempfile
from importlib import resources
from pathlib import Path

from ..core.errors import StoreError
from ..system.files import FULL
from ..system.odd_files import odd_kind, set_aside_if_lost

NETWORK_FILE_SYSTEMS = frozenset(
    {
        "9p", "afs", "beegfs", "ceph", "cifs", "coda", "fhgfs", "fuse.ceph", "fuse.cephfs", "fuse.glusterfs",
        "fuse.rclone", "fuse.s3fs", "fuse.sshfs", "gfs", "gfs2", "glusterfs", "gpfs", "lustre", "ncpfs", "nfs", "nfs4",
        "ocfs2", "orangefs", "panfs", "pvfs2", "smb2", "smb3", "smbfs", "wekafs",
    }
)  # fmt: skip
"""File systems on which SQLite's locks and its shared memory are not reliable."""


def network_file_system(path: Path) -> str | None:
    """Return the type of the network file system that contains a path; None if the file system is local.

    The path need not exist. If the mounts cannot be read (no /proc), every disk counts as local.
    """
    try:
        mounts = Path("/proc/self/mounts").read_text("utf-8", "surrogateescape")
    except OSError:
        return None
    kind = _kind_of_mount(os.path.realpath(path), mounts)
    return kind if kind in NETWORK_FILE_SYSTEMS else None


def _kind_of_mount(path: str, mounts: str) -> str:
    """Return the file system type of the longest mount point above the path; of equal ones, the last one counts."""
    best, kind = "", ""
    for line in mounts.splitlines():
        fields = line.split(" ")
        if len(fields) < 3:
            continue
        point = re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), fields[1])
        inside = path == point or path.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(best):
            best, kind = point, fields[2]
    return kind


def refuse_network_file_system(path: Path) -> None:
    """Refuse a path on a network file system.

    Raises:
        StoreError: the path is on one. The message has the remedy.
    """
    kind = network_file_system(path.parent)
    if kind is not None:
        raise StoreError(
            f"the store {path} would be on a network file system ({kind}), where SQLite's locks cannot be relied on: "
            "set store_dir to a folder on a local disk of this machine"
        )


_BESIDE = {"-wal": "log", "-shm": "index of its log", "-journal": "journal"}
"""Suffix -> what SQLite has in the file with that name beside a store."""


def mend_odd_files(path: Path) -> None:
    """Set aside what stands in the place of the files beside a store and is none.

    A log that is lost is as if it had been removed, and the count of commits tells what was in it. A link may lead to
    the log, and stays.
    """
    for suffix in _BESIDE:
        set_aside_if_lost(path.with_name(f"{path.name}{suffix}"))


def refuse_odd_files(path: Path) -> None:
    """Check that a store and the files that SQLite keeps beside it are plain files, as far as they exist.

    SQLite would follow a link, and wait for the other end of a pipe.

    Raises:
        StoreError: one is none. The message names it.
    """
    refuse_odd_store(path)
    for suffix, what in _BESIDE.items():
        beside = path.with_name(f"{path.name}{suffix}")
        if odd := odd_kind(beside):
            raise StoreError(f"the store {path} cannot be used: {beside}, the {what}, is {odd}: move it away")


def refuse_odd_store(path: Path) -> None:
    """Check that a store is a plain file, if it exists.

    Raises:
        StoreError: it is none. The message has the remedy.
    """
    if odd := odd_kind(path):
        raise StoreError(
            f"the store {path} is {odd} and not a plain file: move it away, and put a backup in its place or start "
            "with an empty store by `ipytaskfarm start --fresh`"
        )


def make_or_check_file(path: Path) -> bool:
    """Make the file (0600), or check that an existing one is private to this user. Return whether it was made.

    Raises:
        OSError: the file cannot be made.
        StoreError: it is no plain file, belongs to another user, is open to others, or has another name.
    """
    refuse_odd_store(path)
    mend_odd_files(path)
    refuse_odd_files(path)
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
        return True
    except FileExistsError:
        pass
    found = os.lstat(path)
    if found.st_uid != os.geteuid():
        raise StoreError(
            f"the store {path} belongs to the user with uid {found.st_uid}: set store_dir to a folder of yours"
        )
    if stat.S_IMODE(found.st_mode) & 0o077:
        raise StoreError(f"the store {path} can be read or written by others: chmod 600 {path}")
    if found.st_nlink > 1:
        raise StoreError(
            f"the store {path} has {found.st_nlink} names (hard links), so that another farm, or a backup, is the same "
            f"file: put a copy of it in its place, cp -p {path} {path}.copy && mv {path}.copy {path}"
        )
    return False


MIN_FREE_BYTES = 2**30
MIN_FREE_SHARE = 0.02


def least_room(folder: Path) -> int:
    """Return the free bytes below which a store accepts no tasks, so that results still fit."""
    found = os.statvfs(folder)
    return max(MIN_FREE_BYTES, int(found.f_blocks * found.f_frsize * MIN_FREE_SHARE))


def is_full(folder: Path) -> bool:
    """Return whether there is no room for a small file, because the disk or the user's quota is full."""
    try:
        with tempfile.TemporaryFile(dir=folder) as probe:
            os.posix_fallocate(probe.fileno(), 0, 1 << 16)
    except OSError as error:
        return error.errno in FULL
    return False


def schema_text() -> str:
    """Return the SQL that makes the tables of a new store."""
    return resources.files(__package__).joinpath("schema.sql").read_text("utf-8")


def view_text() -> str:
    """Return the SQL that makes the view for people.  A view holds no data, so no migration has to change it."""
    return resources.files(__package__).joinpath("view.sql").read_text("utf-8")


def migrations() -> list[tuple[int, str]]:
    """Return (schema that it leads to, SQL) of every migration, in order."""
    folder = resources.files(__package__).joinpath("migrations")
    found = [(re.fullmatch(r"(\d{4})_\w+\.sql", entry.name), entry) for entry in folder.iterdir()]
    return sorted((int(match[1]), entry.read_text("utf-8")) for match, entry in found if match is not None)


def file_number(path: Path) -> tuple[int, int]:
    """Return the device and the number of a file, which tell it from another one of its name."""
    status = path.stat()
    return status.st_dev, status.st_ino


def harm(path: Path, number: tuple[int, int]) -> str:
    """Return what has become of an open file since it had this number: "" if it is there and has a content."""
    try:
        status = path.stat()
    except OSError:
        return "was removed"
    if (status.st_dev, status.st_ino) != number:
        return "was replaced"
    return "" if status.st_size else "was emptied"
