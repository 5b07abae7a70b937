"""Test a client that does not see the farm's folder: it sends its large values to the controller, each once."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest

from ipytaskfarm.client import Task, TaskClient, large_values
from ipytaskfarm.client.large_values import BlobUploads
from ipytaskfarm.controller.blob_receiving import (
    UPLOADED_KEPT_S,
    BlobReceiver,
)
from ipytaskfarm.core.messages import Refusal
from ipytaskfarm.core.messages.blob_chunks import PIECE_BYTES, BlobWritten, WriteBlob
from ipytaskfarm.serialization.cache import blob_digests
from ipytaskfarm.storage.blobs import BLOB_BYTES
from ipytaskfarm.system import farm_paths
from tests.support.fake_hub_controller import FakeController
from tests.support.polling import DEADLINE_S, eventually
from tests.support.uploads import SIZE, UploadWorld


class FarFarm(FakeController):
    """A controller on another machine."""

    def __init__(self, folder: Path, world: UploadWorld) -> None:
        self.world = world
        super().__init__(folder)
        self.answers[WriteBlob] = world.answer

    def pieces(self) -> list[tuple[int, int]]:
        """(offset, bytes) of each piece that came."""
        asked = [getattr(message, "question", None) for message in self.heard]
        return [(each.offset, len(each.data)) for each in asked if isinstance(each, WriteBlob)]

    def bytes(self) -> int:
        return sum(count for _, count in self.pieces())


@pytest.fixture
def fake(tmp_path: Path, world: UploadWorld) -> Iterator[FarFarm]:
    fake = FarFarm(tmp_path / "fake", world)
    yield fake
    fake.stop()


@pytest.fixture
def tc(fake: FarFarm) -> Iterator[TaskClient]:
    with TaskClient(str(fake.connection_file)) as tc:
        yield tc


def store_of(tc: TaskClient) -> BlobUploads:
    found = tc._session.blobs
    assert isinstance(found, BlobUploads)
    return found


@pytest.fixture
def array() -> np.ndarray:
    return np.random.default_rng(1).random(SIZE // 8 + 1)


def bytes_of(array: np.ndarray) -> memoryview:
    return memoryview(array.tobytes())


def sha256(array: np.ndarray) -> hashlib._Hash:
    return hashlib.sha256(bytes_of(array))


def pushes(fake: FarFarm) -> list[tuple[str, ...]]:
    return [task.blobs for task in fake.submitted.values()]


def test_an_array_of_many_tasks_is_sent_once_and_before_them(fake: FarFarm, tc: TaskClient, array: np.ndarray) -> None:
    digest = sha256(array).hexdigest()
    tc.barrier([tc.run(Task("a = 1", push={"x": array})) for _ in range(20)])
    assert fake.bytes() == array.nbytes
    assert pushes(fake) == [(digest,)] * 20
    assert max(len(task.payload) for task in fake.submitted.values()) < 1000
    assert fake.world.blobs.map(bytes.fromhex(digest)) == bytes_of(array)
    kinds = [type(getattr(message, "question", message)).__name__ for message in fake.heard]
    assert kinds.index("Submit") > max(i for i, kind in enumerate(kinds) if kind == "WriteBlob")
    with TaskClient(str(fake.connection_file)) as again:
        assert again._session is tc._session
    array[0] = 7.0
    tc.run(Task("a = 1", push={"x": array}))
    assert fake.bytes() == 2 * array.nbytes


def test_what_another_client_has_sent_is_not_sent(fake: FarFarm, tc: TaskClient, array: np.ndarray) -> None:
    fake.world.blobs.put(bytes_of(array))
    tc.run(Task(np.sum, args=(array,)))
    assert fake.pieces() == [(0, 0)]


def test_a_small_value_is_sent_as_a_blob_from_its_second_use_on(fake: FarFarm, tc: TaskClient) -> None:
    """Most are used once: nobody waits for an answer then, and many are on their way at a time."""
    first, second = np.random.default_rng(2).random((2, 10_000))
    tc.barrier([tc.run(Task("a = 1", push={"x": first, "y": second})) for _ in range(3)])
    assert [len(blobs) for blobs in pushes(fake)] == [0, 2, 2]
    assert fake.pieces() == [(0, first.nbytes), (0, second.nbytes)]
    shared = tc.broadcast(first)
    assert fake.world.blobs.map(bytes.fromhex(shared._key)) is not None


def test_threads_with_the_same_value_send_it_once(fake: FarFarm, tc: TaskClient, array: np.ndarray) -> None:
    threads = [threading.Thread(target=tc.run, args=(Task("a = 1", push={"x": array}),)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE_S)
    assert fake.bytes() == array.nbytes


def test_a_value_that_is_not_known_for_sure_is_asked_for_again(
    fake: FarFarm, tc: TaskClient, array: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    tc.run(Task("a = 1", push={"x": array}))
    monkeypatch.setattr("ipytaskfarm.client.large_values.SURE_S", 0.0)
    fake.world.blobs.sweep(lambda names: set(), older_than_s=-UPLOADED_KEPT_S)
    tc.run(Task("a = 1", push={"x": array}))
    assert fake.bytes() == 2 * array.nbytes


def test_a_killed_controller_is_sent_it_again(fake: FarFarm, tc: TaskClient, array: np.ndarray) -> None:
    held = threading.Event()

    def take(question: WriteBlob) -> BlobWritten:
        if question.offset == PIECE_BYTES:
            fake.mute = True
            held.set()
        return fake.world.answer(question)

    fake.answers[WriteBlob] = take
    thread = threading.Thread(target=tc.run, args=(Task("a = 1", push={"x": array}),))
    thread.start()
    assert held.wait(DEADLINE_S)
    fake.stop()
    fake.world.receiver.session_ended(tc._session.session_id)
    fake.world.receiver.close()
    fake.world.receiver = BlobReceiver(fake.world.blobs)
    fake.answers[WriteBlob] = fake.world.answer
    fake.mute = False
    fake.start()
    thread.join(DEADLINE_S)
    digest = sha256(array).digest()
    eventually(lambda: pushes(fake) == [(digest.hex(),)], DEADLINE_S)
    assert fake.world.blobs.map(digest) == bytes_of(array)


@pytest.mark.parametrize(
    "answer",
    [
        lambda question: BlobWritten(question.digest, error="the disk is full"),
        lambda question: BlobWritten(question.digest, 0),
        lambda question: Refusal("ValueError", "no"),
        lambda question: Refusal("SecurityError", "no"),
    ],
    ids=["full", "takes nothing", "no such question", "not allowed"],
)
def test_what_the_controller_does_not_take_stays_inside(
    fake: FarFarm, tc: TaskClient, array: np.ndarray, answer: Callable[[WriteBlob], object]
) -> None:
    fake.answers[WriteBlob] = answer
    tc.barrier([tc.run(Task("a = 1", push={"x": array}))])
    (task,) = fake.submitted.values()
    assert task.blobs == ()
    assert len(task.payload) > array.nbytes
    assert blob_digests(task.payload) == []


def test_a_client_waits_for_a_place(
    fake: FarFarm, tc: TaskClient, array: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = iter([True] * 3)
    later = BlobWritten(b"", error="others have all places", later=True)
    fake.answers[WriteBlob] = lambda question: later if next(full, False) else fake.world.answer(question)
    tc.run(Task("a = 1", push={"x": array}))
    assert fake.bytes() == array.nbytes
    monkeypatch.setattr("ipytaskfarm.client.large_values.PATIENCE_S", 0.0)
    fake.answers[WriteBlob] = lambda question: later
    with pytest.raises(OSError, match="all places"):
        store_of(tc).put(memoryview(os.urandom(BLOB_BYTES)))


def test_what_is_not_accepted_yet_is_touched(fake: FarFarm, tc: TaskClient, array: np.ndarray) -> None:
    """The disk may be full for long: the controller must not remove what the tasks in the outbox need."""
    fake.full = "the disk is full"
    tc.run(Task("a = 1", push={"x": array}))
    path = fake.world.blobs.path(sha256(array).digest())
    os.utime(path, (0, 0))
    tc._session.io._touch_blobs()
    eventually(lambda: path.stat().st_mtime > 0, DEADLINE_S)
    assert fake.bytes() == array.nbytes
    fake.full = None


def test_a_reader_sends_nothing(fake: FarFarm) -> None:
    info = farm_paths.read_connection_file(fake.connection_file)
    own = fake.keys.reader
    info = msgspec.structs.replace(info, role="reader", public_key=own.public, secret_key=own.secret)
    path = fake.connection_file.with_name("reader.json")
    farm_paths.write_connection_file(info, path)
    with TaskClient(str(path)) as tc:
        assert tc._session.blobs is None


class SlowController:
    """In the place of the session and of the clock: an answer takes ten seconds, and some refuse a place for now."""

    def __init__(self, size: int, place_after: int) -> None:
        self.size = size
        self.place_after = place_after
        """After how many refusals there is a place again."""
        self.now_s = self.came = self.refused = 0

    def monotonic(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += 1

    def begin(self, question: WriteBlob) -> WriteBlob:
        return question

    def forget(self, question: WriteBlob) -> None:
        pass

    def answer(self, question: WriteBlob) -> BlobWritten:
        self.now_s += 10
        if self.came >= self.size // 2 and self.refused < self.place_after:
            self.refused += 1
            return BlobWritten(question.digest, error="no place now", later=True)
        if question.offset == self.came:
            self.came += len(question.data)
        return BlobWritten(question.digest, self.came)


def test_a_place_is_waited_for_since_the_last_piece_and_not_since_the_begin(monkeypatch: pytest.MonkeyPatch) -> None:
    data = memoryview(bytes(24 * PIECE_BYTES))
    slow = SlowController(len(data), place_after=2)
    monkeypatch.setattr(large_values, "time", slow)
    BlobUploads(slow)._send(b"d" * 32, data)  # type: ignore[arg-type]
    assert (slow.came, slow.refused) == (len(data), 2)
    never = SlowController(len(data), place_after=10**6)
    monkeypatch.setattr(large_values, "time", never)
    with pytest.raises(OSError, match="no place now"):
        BlobUploads(never)._send(b"d" * 32, data)  # type: ignore[arg-type]
