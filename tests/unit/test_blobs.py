"""Test large values as files named by their content: written once, mapped, and kept while they are needed."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ipytaskfarm.core.errors import BlobMissing
from ipytaskfarm.serialization.pack import pack, pack_names, unpack
from ipytaskfarm.storage import blobs as door
from ipytaskfarm.storage.blobs import BLOB_BYTES, KEPT_S, Blobs, BlobWriter


@pytest.fixture
def blobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Blobs:
    monkeypatch.setattr(door, "_known", {})
    made = Blobs.create(tmp_path / "blobs", "farm-1")
    door.use(made)
    return made


def files(blobs: Blobs) -> list[Path]:
    return sorted(path for path in blobs.folder.glob("??/*"))


def age(blobs: Blobs, seconds: float) -> None:
    for path in [*files(blobs), *blobs.folder.glob("*.part")]:
        os.utime(path, (time.time() - seconds,) * 2)


def test_a_blob_is_named_by_its_content_and_written_once(blobs: Blobs) -> None:
    data = memoryview(os.urandom(100_000))
    digest = blobs.put(data)
    assert digest == hashlib.sha256(data).digest()
    (path,) = files(blobs)
    before = path.stat()
    assert blobs.put(data) == digest
    assert files(blobs) == [path]
    assert path.stat().st_ino == before.st_ino
    assert before.st_mode & 0o777 == 0o600
    found = blobs.map(digest)
    assert found is not None
    assert found == data


def test_the_names_of_a_blob_and_of_its_folder_are_on_the_disk(blobs: Blobs, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[Path] = []
    monkeypatch.setattr(door, "sync_folder", synced.append)
    digest = blobs.put(memoryview(os.urandom(100_000)))
    assert synced == [blobs.path(digest).parent, blobs.folder]
    blobs.path(digest).unlink()
    synced.clear()
    blobs.adopt(_written(blobs), digest)
    assert synced == [blobs.path(digest).parent], "the folder was there already"


def _written(blobs: Blobs) -> Path:
    part = blobs.folder / "one.part"
    part.write_bytes(b"content")
    return part


def test_a_torn_file_under_the_right_name_is_written_again(blobs: Blobs) -> None:
    data = memoryview(os.urandom(100_000))
    digest = blobs.put(data)
    blobs.path(digest).write_bytes(b"short")
    blobs.put(data)
    assert blobs.path(digest).read_bytes() == data


@pytest.mark.parametrize("size", [100_000, 5_000_000])
@pytest.mark.parametrize("kind", [bytes, bytearray])
def test_a_damaged_file_of_the_right_size_is_written_again(blobs: Blobs, kind: type, size: int) -> None:
    data = memoryview(kind(os.urandom(size)))
    digest = blobs.put(data)
    damaged = bytearray(data)
    damaged[-1] ^= 1
    blobs.path(digest).write_bytes(damaged)
    assert blobs.put(data) == digest
    assert blobs.path(digest).read_bytes() == data
    assert len(files(blobs)) == 1


def test_large_memory_that_is_written_again_is_compared(blobs: Blobs, monkeypatch: pytest.MonkeyPatch) -> None:
    array: Any = np.arange(1_000_000)
    first = blobs.put(memoryview(array).cast("B"))
    with monkeypatch.context() as patch:
        patch.setattr(hashlib, "sha256", None)  # not needed
        assert blobs.put(memoryview(array).cast("B")) == first
    array[999_999] = 0
    second = blobs.put(memoryview(array).cast("B"))
    assert second == hashlib.sha256(array).digest() != first
    blobs.path(second).unlink()
    assert blobs.put(memoryview(array).cast("B")) == second
    found = blobs.map(second)
    assert found == memoryview(array).cast("B")
    array.setflags(write=False)
    assert blobs.put(memoryview(array).cast("B")) == second


def test_writing_into_a_mapped_array_changes_nobody_elses(blobs: Blobs) -> None:
    writer = BlobWriter(blobs)
    packed = pack(np.zeros(BLOB_BYTES), writer=writer)
    first, second = unpack(packed), unpack(packed)
    first[0] = 1.0
    assert second[0] == 0.0
    assert unpack(packed)[0] == 0.0


def test_a_read_only_array_stays_read_only(blobs: Blobs) -> None:
    array = np.arange(BLOB_BYTES)
    array.setflags(write=False)
    again = unpack(pack(array, writer=BlobWriter(blobs)))
    assert not again.flags.writeable
    assert (again == array).all()


@pytest.mark.parametrize(
    "value",
    [
        "é" * BLOB_BYTES,
        b"x" * BLOB_BYTES,
        list(range(BLOB_BYTES)),
        {"a": np.arange(BLOB_BYTES), "b": np.arange(3), "c": "x" * (2 * BLOB_BYTES)},
        (np.arange(BLOB_BYTES), np.arange(BLOB_BYTES)),
    ],
    ids=["str", "bytes", "list", "mixed", "the same twice"],
)
def test_large_values_leave_only_digests_behind(blobs: Blobs, value: object) -> None:
    writer = BlobWriter(blobs)
    packed = pack(value, writer=writer)
    assert len(packed) < 2_000
    assert repr(unpack(packed)) == repr(value)
    assert sorted(writer.taken()) == [path.name for path in files(blobs)]
    assert writer.taken() == ()


def test_small_values_stay_where_they_are(blobs: Blobs) -> None:
    writer = BlobWriter(blobs)
    value = {"a": np.arange(1_000), "b": "x" * 40_000}
    assert pack_names(value, writer=writer) == pack_names(value)
    assert writer.taken() == ()
    assert files(blobs) == []


def test_without_room_the_value_travels_as_it_is(blobs: Blobs, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_room(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_room)
    writer = BlobWriter(blobs)
    array = np.arange(BLOB_BYTES)
    assert (unpack(pack(array, writer=writer)) == array).all()
    assert writer.taken() == ()
    assert list(blobs.folder.glob("**/*.part")) == []


def test_a_missing_blob_says_why(blobs: Blobs) -> None:
    packed = pack(np.arange(BLOB_BYTES), writer=BlobWriter(blobs))
    files(blobs)[0].unlink()
    with pytest.raises(BlobMissing, match="task was cleared"):
        unpack(packed)


def test_sweeping_leaves_what_is_needed_and_what_is_in_hand(blobs: Blobs) -> None:
    needed, unneeded, touched = (blobs.put(memoryview(os.urandom(BLOB_BYTES))) for _ in range(3))
    age(blobs, KEPT_S + 1)
    blobs.touch([touched])
    fresh = blobs.put(memoryview(os.urandom(BLOB_BYTES)))
    (blobs.folder / "0123.part").write_bytes(b"")
    age_part = blobs.folder / "0123.part"
    os.utime(age_part, (0, 0))
    asked: list[str] = []

    def still_needed(names: object) -> set[str]:
        assert isinstance(names, list)
        asked.extend(names)
        return {needed.hex()}

    assert blobs.sweep(still_needed) == 1
    assert blobs.map(unneeded) is None
    assert all(blobs.map(digest) is not None for digest in (needed, touched, fresh))
    assert not age_part.exists()
    assert sorted(asked) == sorted([needed.hex(), unneeded.hex()])


def test_taken_in_hand_while_the_sweep_looks(blobs: Blobs) -> None:
    """The same value is packed again between the sweep's check and its removal, so the file stays."""
    data = memoryview(os.urandom(BLOB_BYTES))
    digest = blobs.put(data)
    age(blobs, KEPT_S + 1)

    def meanwhile(_: object) -> set[str]:
        blobs.put(data)
        return set()

    assert blobs.sweep(meanwhile) == 0
    assert blobs.map(digest) == data


def test_only_the_farms_own_folder_is_found(blobs: Blobs, tmp_path: Path) -> None:
    assert Blobs.find(str(blobs.folder), "farm-1") is not None
    assert Blobs.find(str(blobs.folder), "farm-2") is None
    assert Blobs.find(str(tmp_path / "elsewhere"), "farm-1") is None
    assert Blobs.find("", "farm-1") is None
