"""Blobs: large values as files that are named by the SHA-256 of their content.

A value of 64 KiB and more does not travel through the controller. The process that packs it writes it into the farm's
blob folder under its SHA-256, and only the digest travels. The process that unpacks it maps the file, so that all
engines of a machine share its pages, or reads it if it is small. In both cases the memory is private: writing into an
array changes no other copy. No descriptor stays open for a value (`system.file_mapping`).

A machine that does not see the folder has copies (`storage.blob_copies`), which are fetched in pieces at their first
use: see `fetch_from`. What is packed there is sent to the controller, which writes the blob: see `BlobStore`.

A blob is on disk before its name is sent. The store records, in the same transaction, which blobs a task or a result
needs. A file that nothing needs is removed after `KEPT_S` (see `sweep`). Its time of modification shows its last use,
so a process that has a digest which is not in the store yet touches the file regularly.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import hashlib
import os
import stat
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Protocol, TypeAlias

from ..core.errors import BlobMissing
from ..system.farm_paths import private_folder
from ..system.file_mapping import load
from ..system.files import sync_folder, write_all
from ..system.odd_files import set_aside_unless_file, set_aside_unless_folder, set_aside_unless_link

BLOB_BYTES = 64 * 1024
"""Values of this size and more are blobs."""

KEPT_S = 600.0
"""How long (seconds) an unneeded blob is kept after it was last used."""

TOUCH_S = 120.0
"""How often (seconds) the holder of a digest touches the file."""

_MARK = "farm"
_LOCK = "lock"
_LARGE_BYTES = 4 * 2**20
_PLACES_KEPT = 16

_libc = ctypes.CDLL(None)
_libc.memcmp.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)

_COMPARED_BYTES = 64 * 1024
"""Pieces that fit into the processor's cache: comparing takes a sixth of the time of hashing then."""


class BlobStore(Protocol):
    """Where a process keeps the large values that it packs: the farm's folder, or the controller, which has it."""

    def put(self, data: memoryview) -> bytes:
        """Keep these bytes, and return their digest (32 bytes), which may be sent from now on.

        Raises:
            OSError: they cannot be kept.
        """

    def offer(self, data: memoryview) -> bytes | None:
        """Keep these bytes as `put` does, or return None if they had better be sent inside the message now.

        Raises:
            OSError: they cannot be kept.
        """

    def touch(self, digests: Iterable[bytes]) -> None:
        """Mark blobs as used: they are not swept for `KEPT_S`.

        Raises:
            OSError: they cannot be marked.
        """

    def names_file(self, path: str) -> bool:
        """Return whether a user's file may travel as its name, because all engines see it."""


def blobs_folder(store: Path) -> Path:
    """Return the folder of a store's blobs, beside the store."""
    return store.with_name(f"{store.name}.blobs")


class Blobs:
    """One farm's blobs on this machine."""

    def __init__(self, folder: str | os.PathLike[str], durable: bool = True) -> None:
        """Create it; `durable` says that blobs are synced to the disk, as in the farm's folder."""
        self.folder = Path(folder)
        self._is_durable = durable
        self.sees_file: Callable[[str], bool] | None = None
        """Answers `names_file`; None for no."""
        self._written: dict[tuple[int, int], bytes] = {}
        """Digests by (address, size) of the last writes. A hint: the memory may have other content by now."""

    @classmethod
    def create(cls, folder: str | os.PathLike[str], farm: str) -> Blobs:
        """Make the folder (0700) if there is none, and write the farm's incarnation into it."""
        made = cls(folder)
        set_aside_unless_link(made.folder)
        private_folder(made.folder)
        for name in (_MARK, _LOCK):
            set_aside_unless_file(made.folder / name)
        (made.folder / _MARK).write_text(farm)
        (made.folder / _LOCK).touch(0o600)
        return made

    @classmethod
    def find(cls, folder: str, farm: str) -> Blobs | None:
        """Return the farm's blobs; None if this process does not see the farm's folder."""
        if not folder:
            return None
        found = cls(folder)
        try:
            with open(_opened(found.folder / _MARK), encoding="utf-8", errors="replace") as mark:
                same = mark.read() == farm
        except OSError:
            return None
        return found if same and os.access(found.folder, os.W_OK) else None

    def path(self, digest: bytes) -> Path:
        """Return the path of the blob with this digest (32 bytes)."""
        name = digest.hex()
        return self.folder / name[:2] / name

    def put(self, data: memoryview) -> bytes:
        """Write these bytes unless they exist already, and return their digest (32 bytes).

        They are on disk when this returns.  A file of their name with another content was damaged, and is replaced.

        Raises:
            OSError: they cannot be written.
        """
        place = _place(data)
        known = self._written.get(place) if place is not None else None
        # The same memory is often pushed again: comparing is faster than hashing.
        if known is not None and self._holds(known, data):
            return known
        digest = self._put(data)
        if place is not None:
            self._written[place] = digest
            while len(self._written) > _PLACES_KEPT:
                del self._written[next(iter(self._written))]
        return digest

    def offer(self, data: memoryview) -> bytes | None:
        """Write these bytes as `put` does: on this machine a file is always better than a message."""
        return self.put(data)

    def names_file(self, path: str) -> bool:
        """Return whether a user's file may travel as its name, because all engines see it."""
        return self.sees_file is not None and self.sees_file(path)

    def _put(self, data: memoryview) -> bytes:
        if data.nbytes < _LARGE_BYTES:
            digest = hashlib.sha256(data).digest()
            if self._holds(digest, data):
                return digest
        part = self.folder / f"{uuid.uuid4().hex}.part"
        digests: list[bytes] = []
        # A large value is hashed while it is written and synced, and none of them holds the GIL. Such a value is seldom
        # there already.
        hashing = threading.Thread(target=lambda: digests.append(hashlib.sha256(data).digest()), name="hash")
        hashing.start()
        try:
            fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            try:
                write_all(fd, data)
                if self._is_durable:
                    os.fsync(fd)
                hashing.join()
                if not self._holds(digests[0], data):
                    self.adopt(part, digests[0])
            finally:
                os.close(fd)
        finally:
            hashing.join()
            part.unlink(missing_ok=True)
        return digests[0]

    def has(self, digest: bytes, size: int) -> bool:
        """Return whether there is a blob of this digest and size, and mark it as used."""
        with self._in_hand():
            return _touch(self.path(digest), size)

    def adopt(self, part: Path, digest: bytes, kept_s: float = KEPT_S) -> None:
        """Give the file of a blob, which was synced and whose digest was checked, its name on the disk.

        Args:
            part: the file.
            digest: the blob's digest.
            kept_s: how long (seconds) it is kept at least, although nothing needs it.

        Raises:
            OSError: it cannot be renamed.
        """
        path = self.path(digest)
        set_aside_unless_folder(path.parent)
        is_new = not path.parent.exists()
        path.parent.mkdir(mode=0o700, exist_ok=True)
        set_aside_unless_file(path)
        if kept_s != KEPT_S:
            os.utime(part, (time.time() + kept_s - KEPT_S,) * 2)
        os.rename(part, path)
        if self._is_durable:
            sync_folder(path.parent)
            if is_new:
                sync_folder(self.folder)

    def _holds(self, digest: bytes, data: memoryview) -> bool:
        """Return whether the blob exists and has exactly these bytes."""
        if not self.has(digest, data.nbytes):
            return False
        mapped = self.map(digest)
        return mapped is not None and _equal(mapped, data)

    def map(self, digest: bytes) -> memoryview | None:
        """Return the blob as private memory, see `file_mapping.load`; None if it is not on this machine.

        Raises:
            BlobMissing: something stands in its place that is no file, or it cannot be read. The message has its path.
        """
        try:
            fd = _opened(self.path(digest))
            try:
                return load(fd)
            finally:
                os.close(fd)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise missing_blob(digest, f"{self.path(digest)} cannot be read ({error.strerror})") from None

    def read(self, digest: bytes, offset: int, count: int) -> tuple[int, bytes]:
        """Return (size of the blob, at most `count` bytes from `offset` on), and mark the blob as used.

        Raises:
            FileNotFoundError: the blob is not on this machine.
            OSError: it cannot be read.
        """
        self.touch([digest])
        fd = _opened(self.path(digest))
        try:
            size = os.fstat(fd).st_size
            return size, os.pread(fd, count, offset) if 0 <= offset < size else b""
        finally:
            os.close(fd)

    def touch(self, digests: Iterable[bytes]) -> None:
        """Mark blobs as used: they are not swept for `KEPT_S`."""
        with self._in_hand():
            for digest in digests:
                _touch(self.path(digest), None)

    def sweep(self, needed: Callable[[Sequence[str]], set[str]], older_than_s: float = KEPT_S) -> int:
        """Remove blobs that were not used for `older_than_s` and are not in `needed(their digests as hex)`.

        Returns:
            The number of removed blobs.
        """
        removed = 0
        for names in self._old(older_than_s):
            keep = needed(list(names))
            for name in names - keep:
                removed += self._remove(self.folder / name[:2] / name, older_than_s)
        return removed

    def _old(self, older_than_s: float) -> Iterator[set[str]]:
        """Yield the names of files that were not used for this time, one folder at a time."""
        for folder in [self.folder, *sorted(self.folder.glob("??"))]:
            names = set()
            with contextlib.suppress(FileNotFoundError, NotADirectoryError), os.scandir(folder) as entries:
                for entry in entries:
                    if not entry.is_file(follow_symlinks=False) or entry.name in (_MARK, _LOCK):
                        continue
                    if time.time() - entry.stat().st_mtime <= older_than_s:
                        continue
                    if entry.name.endswith(".part"):  # its writer died
                        os.unlink(entry.path)
                    else:
                        names.add(entry.name)
            if names:
                yield names

    def _remove(self, path: Path, older_than_s: float) -> int:
        """Remove a blob, unless it was touched in the meantime. Users of blobs take the same lock."""
        with open(_opened(self.folder / _LOCK), "rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            try:
                if time.time() - path.stat().st_mtime <= older_than_s:
                    return 0
                path.unlink()
            except FileNotFoundError:
                return 0
        return 1

    @contextlib.contextmanager
    def _in_hand(self) -> Iterator[None]:
        with open(_opened(self.folder / _LOCK), "rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH)
            yield


class BlobWriter:
    """Writes large buffers as blobs while a value is packed, and collects their digests."""

    def __init__(self, blobs: BlobStore) -> None:
        self._blobs = blobs
        self.digests: dict[bytes, int] = {}

    def keep(self, data: memoryview) -> bytes | None:
        """Write a buffer and return its digest; None if it must be sent inline."""
        try:
            digest = self._blobs.offer(data)
        except OSError:
            return None
        if digest is not None:
            self.digests[digest] = data.nbytes
        return digest

    def names_file(self, path: str) -> bool:
        """Return whether a user's file may travel as its name, because all engines see it."""
        return self._blobs.names_file(path)

    def sizes(self) -> dict[str, int]:
        """Return digest as hex -> bytes, of what was written since the last `taken`."""
        return {digest.hex(): size for digest, size in self.digests.items()}

    def taken(self) -> tuple[str, ...]:
        """Return the digests that were written since the last call, as hex."""
        if not self.digests:
            return ()
        digests, self.digests = self.digests, {}
        return tuple(digest.hex() for digest in digests)


Fetch: TypeAlias = Callable[[bytes], memoryview]
"""Fetches and maps the blob of a digest; blocks in the meantime. Raises BlobMissing if there is no such blob."""

_known: dict[Path, Blobs] = {}
_fetches: list[Fetch] = []


def use(blobs: Blobs) -> None:
    """Look for blobs in this folder when this process unpacks values."""
    _known[blobs.folder] = blobs


def fetch_from(fetch: Fetch) -> None:
    """Use this function, in the unpacking thread, for blobs that this process does not see."""
    _fetches.append(fetch)


def fetch_no_more(fetch: Fetch) -> None:
    """Stop using a fetch function."""
    if fetch in _fetches:
        _fetches.remove(fetch)


def mapped(digest: bytes) -> memoryview:
    """Return the blob of this digest from any known place.

    Raises:
        BlobMissing: there is none.
    """
    for blobs in list(_known.values()):
        found = blobs.map(digest)
        if found is not None:
            return found
    missing = None
    for fetch in list(_fetches):
        try:
            return fetch(digest)
        except BlobMissing as error:
            missing = error
    raise missing or missing_blob(
        digest, "its task was cleared, or it lies on a machine that this process does not see"
    )


def missing_blob(digest: bytes, why: str) -> BlobMissing:
    """Return the error for a blob that is not available."""
    return BlobMissing(f"the data of this value (blob {digest.hex()[:12]}…) is not here: {why}")


def _opened(path: Path) -> int:
    """Open a file to read it.

    Raises:
        OSError: it cannot be opened, or is no file.
    """
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "it is not a file", str(path))
    return fd


def _place(data: memoryview) -> tuple[int, int] | None:
    """Return (address, size) of large data; None if the data is small or read-only."""
    if data.nbytes < _LARGE_BYTES or data.readonly:
        return None
    return _address(data), data.nbytes


def _address(data: memoryview) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(data))


def _equal(one: memoryview, other: memoryview) -> bool:
    """Return whether two buffers of bytes with the same size have the same content."""
    if one.nbytes and not (one.readonly or other.readonly):
        return bool(
            _libc.memcmp(_address(one), _address(other), one.nbytes) == 0
        )  # without a copy, and without the GIL
    pieces = range(0, one.nbytes, _COMPARED_BYTES)
    return all(one[at : at + _COMPARED_BYTES].tobytes() == other[at : at + _COMPARED_BYTES].tobytes() for at in pieces)


def _touch(path: Path, size: int | None) -> bool:
    """Mark a file as used now, and return whether it exists and has that size."""
    try:
        found = path.lstat()
        if not stat.S_ISREG(found.st_mode):
            return False
        if size is not None and found.st_size != size:
            return False
        if found.st_mtime < time.time():  # otherwise it is kept for longer already, see `Blobs.adopt`
            os.utime(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True
