"""Large values on their way to the controller: the order of pieces, the places, the files, and an agent that sends."""

from __future__ import annotations

import asyncio
import hashlib
import os
import threading
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest

from ipytaskfarm.agent import uploading
from ipytaskfarm.agent.uploading import BlobUploading
from ipytaskfarm.controller import blob_receiving
from ipytaskfarm.controller.blob_receiving import (
    UPLOADED_KEPT_S,
    WAITING_IN_ALL,
    WAITING_PER_KEY,
    WAITING_PER_SESSION,
    BlobReceiver,
)
from ipytaskfarm.core.messages import AskQuestion
from ipytaskfarm.core.messages.blob_chunks import PIECE_BYTES, PIECES_AHEAD, BlobKept, BlobWritten, KeepBlob, WriteBlob
from ipytaskfarm.core.uploads import RESTARTS_MAX, SMALL_BYTES, PieceOrder, UploadPlaces
from ipytaskfarm.storage.blob_copies import Copies
from ipytaskfarm.storage.blobs import KEPT_S, Blobs
from ipytaskfarm.transport.read_only import why_refused
from tests.support.polling import DEADLINE_S, eventually
from tests.support.thorough import some
from tests.support.uploads import SIZE, UploadWorld

ROOM = 1 << 40


# ------------------------------------------------------------------------------------------------------------
# which piece is sent next


class Receiver:
    """What a controller answers, without files."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.came = 0
        self.taken = 0
        """The bytes that were sent in all."""

    def answer(self, offset: int, length: int) -> BlobWritten:
        self.taken += length
        if length and offset == self.came:
            self.came += length
        return BlobWritten(b"", self.came)


def send(order: PieceOrder, receiver: Receiver) -> None:
    """Send pieces until nothing is left to send, and answer all."""
    asked = []
    while not order.is_complete:
        while (piece := order.next_piece()) is not None:
            asked.append(piece)
        assert len(asked) <= PIECES_AHEAD
        assert order.handle_answer(receiver.answer(*asked.pop(0))) == ""


@pytest.mark.parametrize("size", [1, SMALL_BYTES, SMALL_BYTES + 1, PIECE_BYTES, PIECE_BYTES + 1, SIZE, 9 * PIECE_BYTES])
def test_each_piece_is_sent_once(size: int) -> None:
    receiver = Receiver(size)
    send(PieceOrder(size), receiver)
    assert receiver.came == receiver.taken == size


@pytest.mark.parametrize("size", [SMALL_BYTES, SIZE])
def test_what_is_there_is_not_sent(size: int) -> None:
    """A small one has been sent with the question."""
    order = PieceOrder(size)
    assert order.next_piece() == ((0, size) if size == SMALL_BYTES else (0, 0))
    assert order.next_piece() is None
    order.handle_answer(BlobWritten(b"", size))
    assert order.is_complete
    assert order.next_piece() is None


def test_an_upload_goes_on_where_it_was() -> None:
    order = PieceOrder(SIZE)
    order.next_piece()
    order.handle_answer(BlobWritten(b"", PIECE_BYTES))
    assert order.next_piece() == (PIECE_BYTES, PIECE_BYTES)


def test_a_restarted_controller_is_sent_it_again() -> None:
    order, receiver = PieceOrder(SIZE), Receiver(SIZE)
    order.next_piece()
    order.handle_answer(receiver.answer(0, 0))
    first, second = order.next_piece(), order.next_piece()
    assert first
    assert second
    order.handle_answer(receiver.answer(*first))
    receiver = Receiver(SIZE)  # and the answer to the second was lost: the question comes again
    order.handle_answer(receiver.answer(*second))
    assert receiver.came == 0
    send(order, receiver)
    assert receiver.came == receiver.taken - PIECE_BYTES == SIZE


@pytest.mark.parametrize("seed", range(some(50, 1000)))
def test_whatever_is_lost_or_repeated_it_ends(seed: int) -> None:
    """Controllers come and go, and say that they have no place: the last one has all of it."""
    random = Random(seed)
    size = random.choice([1, SMALL_BYTES, SIZE, 6 * PIECE_BYTES])
    order, receiver = PieceOrder(size), Receiver(size)
    asked: list[tuple[int, int]] = []
    troubles = 12
    while not order.is_complete:
        if order.is_put_off and not asked:
            order.resume()
        while not order.is_put_off and (piece := order.next_piece()) is not None:
            asked.append(piece)
        assert asked, "it does not go on"
        what = random.random() if troubles else 1.0
        troubles -= what < 0.4 and troubles > 0
        if what < 0.2:
            receiver = Receiver(size)
        if what < 0.3:
            receiver.answer(*asked[0])  # it comes twice
        late = BlobWritten(b"", error="full", later=True)
        assert order.handle_answer(late if 0.3 <= what < 0.4 else receiver.answer(*asked.pop(0))) == ""
        if 0.3 <= what < 0.4:
            asked.pop(0)
    assert receiver.came == size


def test_a_controller_that_takes_nothing_is_given_up() -> None:
    order = PieceOrder(SMALL_BYTES)
    for _ in range(RESTARTS_MAX):
        assert order.next_piece() == (0, SMALL_BYTES)
        assert order.handle_answer(BlobWritten(b"", 0)) == ""
    order.next_piece()
    assert "never ended" in order.handle_answer(BlobWritten(b"", 0))


@pytest.mark.parametrize("upto", [-1, SIZE + 1, 2**63])
def test_nonsense_of_a_controller_is_named(upto: int) -> None:
    order = PieceOrder(SIZE)
    order.next_piece()
    assert "says that it has" in order.handle_answer(BlobWritten(b"", upto))


# ------------------------------------------------------------------------------------------------------------
# who may begin


def test_places_are_bounded_for_a_session_a_key_and_in_all() -> None:
    places = UploadPlaces(per_session=2, per_key=3, in_all=4)
    for session in ("a", "a", "b"):
        assert places.why_not("key", session, 10, ROOM) is None
        places.begin("key", session, 10)
    for session, what in (("a", "session has 2"), ("c", "key has 3")):
        refused = places.why_not("key", session, 10, ROOM)
        assert refused is not None
        assert refused.later
        assert what in refused.why
    places.begin("other", "d", 10)
    refused = places.why_not("third", "e", 10, ROOM)
    assert refused is not None
    assert "farm has 4" in refused.why
    places.came("key", "a", 10)
    places.end("key", "a", 0)
    places.end("key", "b", 10)
    assert (places.count, places.missing_bytes) == (2, 20)
    assert places.why_not("third", "e", 10, ROOM) is None


def test_nobody_announces_more_than_half_of_the_room() -> None:
    places = UploadPlaces()
    assert places.why_not("key", "a", 50, 100) is None
    too_large = places.why_not("key", "a", 51, 100)
    assert too_large is not None
    assert not too_large.later
    assert "make room" in too_large.why
    places.begin("key", "a", 30)
    for session in ("a", "b"):
        refused = places.why_not("key", session, 30, 100)
        assert refused is not None
        assert refused.later
    assert places.why_not("other", "c", 50, 100) is None
    places.begin("other", "c", 50)
    assert places.why_not("third", "d", 21, 100) is not None
    assert places.why_not("third", "d", 20, 100) is None
    full = places.why_not("third", "d", 1, -5)
    assert full is not None
    assert not full.later


# ------------------------------------------------------------------------------------------------------------
# the controller


@pytest.fixture
def data() -> bytes:
    return os.urandom(SIZE)


def test_pieces_become_a_blob_after_the_last_one(world: UploadWorld, data: bytes) -> None:
    digest = hashlib.sha256(data).digest()
    assert world.answer(WriteBlob(digest, SIZE)) == BlobWritten(digest)
    assert world.parts() == [], "a question leaves nothing"
    assert world.send(data, 2 * PIECE_BYTES) == BlobWritten(digest, 2 * PIECE_BYTES)
    assert not world.blobs.has(digest, SIZE)
    (part,) = world.parts()
    assert part.stat().st_mode & 0o777 == 0o600
    # What comes again changes nothing.
    assert world.send(data, PIECE_BYTES) == BlobWritten(digest, 2 * PIECE_BYTES)
    assert world.answer(WriteBlob(digest, SIZE)) == BlobWritten(digest, 2 * PIECE_BYTES)
    assert world.send(data) == BlobWritten(digest, SIZE)
    assert world.blobs.map(digest) == memoryview(data)
    assert world.blobs.path(digest).stat().st_mode & 0o777 == 0o600
    assert world.answer(WriteBlob(digest, SIZE), "other") == BlobWritten(digest, SIZE)
    # Its peer may be cut off before the controller hears who needs it.
    assert world.blobs.sweep(lambda names: set(), KEPT_S - UPLOADED_KEPT_S + DEADLINE_S) == 0
    assert world.blobs.sweep(lambda names: set(), KEPT_S - UPLOADED_KEPT_S - DEADLINE_S) == 1


def test_two_clients_send_the_same_and_it_is_stored_once(world: UploadWorld, data: bytes) -> None:
    """Neither depends on what the other one sends, and who comes later need not send the rest."""
    digest = hashlib.sha256(data).digest()
    world.send(data, PIECE_BYTES, "a")
    bad = world.answer(WriteBlob(digest, SIZE, 0, bytes(PIECE_BYTES)), "b")
    assert bad.upto == PIECE_BYTES
    assert len(world.parts()) == 2
    assert world.send(data, session="a") == BlobWritten(digest, SIZE)
    piece = data[PIECE_BYTES : 2 * PIECE_BYTES]
    assert world.answer(WriteBlob(digest, SIZE, PIECE_BYTES, piece), "b") == BlobWritten(digest, SIZE)
    assert world.parts() == []
    assert world.blobs.map(digest) == memoryview(data)


def test_what_has_another_digest_is_never_a_blob(world: UploadWorld, data: bytes) -> None:
    digest = hashlib.sha256(b"another").digest()
    for offset in range(0, SIZE, PIECE_BYTES):
        answer = world.answer(WriteBlob(digest, SIZE, offset, data[offset : offset + PIECE_BYTES]))
    assert "SHA-256" in answer.error
    assert not answer.later
    assert world.parts() == []
    assert not world.blobs.has(digest, SIZE)


@pytest.mark.parametrize(
    "question",
    [
        WriteBlob(b"", 5, 0, b"12345"),
        WriteBlob(b"../../../../../../../../tmp/file" + b"x", 5, 0, b"12345"),
        WriteBlob(bytes(32), 0),
        WriteBlob(bytes(32), -1, 0, b"1"),
        WriteBlob(bytes(32), 2**63 - 1, 0, b"1"),
        WriteBlob(bytes(32), 5, 0, b"1234"),
        WriteBlob(bytes(32), 5, 0, b"123456"),
        WriteBlob(bytes(32), 2**40, 0, bytes(PIECE_BYTES + 1)),
    ],
)
def test_what_is_no_upload_is_refused(world: UploadWorld, question: WriteBlob) -> None:
    assert world.answer(question).error
    assert world.parts() == []


@pytest.mark.parametrize("offset", [-1, 1, PIECE_BYTES, 2**63 - 1])
def test_a_piece_that_is_not_the_next_one_is_not_written(world: UploadWorld, offset: int) -> None:
    assert world.answer(WriteBlob(bytes(32), SIZE, offset, b"x" * PIECE_BYTES)) == BlobWritten(bytes(32))
    assert world.parts() == []


def test_uploads_end_with_their_session_or_when_nothing_comes(
    world: UploadWorld, data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.send(data, PIECE_BYTES, "a")
    world.send(data, PIECE_BYTES, "b")
    world.receiver.session_ended("a")
    eventually(lambda: len(world.parts()) == 1, DEADLINE_S)
    monkeypatch.setattr(blob_receiving, "IDLE_S", 0.0)
    world.answer(WriteBlob(bytes(32), 5), "c")
    eventually(lambda: world.parts() == [], DEADLINE_S)
    assert world.receiver._places.count == world.receiver._places.missing_bytes == 0


def test_a_controller_removes_what_the_one_before_has_left(blobs: Blobs, data: bytes) -> None:
    """It has no end that could do so: it was killed. What other processes write now stays."""
    world = UploadWorld(blobs)
    world.send(data, PIECE_BYTES)
    (left,) = world.parts()
    others = blobs.folder / "0123.part"
    others.touch()
    again = UploadWorld(blobs)
    assert world.parts() == [others]
    assert not left.exists()
    others.unlink()
    for each in (again, world):
        each.receiver.close()


def test_who_is_over_a_limit_is_told_to_come_later(world: UploadWorld, data: bytes) -> None:
    for number in range(8):
        assert not world.answer(WriteBlob(bytes([number]) * 32, SIZE, 0, data[:PIECE_BYTES])).error
    ninth = world.answer(WriteBlob(bytes([9]) * 32, SIZE))
    assert ninth.later
    assert "unfinished" in ninth.error
    assert not world.answer(WriteBlob(bytes([9]) * 32, SIZE), "another session").error


def test_what_is_received_and_not_written_is_bounded(world: UploadWorld, data: bytes) -> None:
    hold = threading.Lock()
    has = world.blobs.has

    def slow(digest: bytes, size: int) -> bool:
        with hold:
            return has(digest, size)

    world.blobs.has = slow  # type: ignore[method-assign]
    with hold:
        for number in range(6):
            for _ in range(WAITING_PER_SESSION + 5):
                world.ask(WriteBlob(bytes(32), SIZE), f"session {number}")
        most = 4 * WAITING_PER_SESSION
        assert most == WAITING_PER_KEY
        refused = world.answers(6 * (WAITING_PER_SESSION + 5) - most)
        assert all(each.later for each in refused)
        for number in range(6):  # of another key
            for _ in range(WAITING_PER_SESSION):
                world.ask(WriteBlob(bytes(32), SIZE), f"agent:{number}", "agent")
        refused = world.answers(6 * WAITING_PER_SESSION - (WAITING_IN_ALL - most))
        assert all(each.later for each in refused)
    assert not any(each.later for each in world.answers(WAITING_IN_ALL))
    assert not world.answer(WriteBlob(bytes(32), SIZE)).error


def test_a_full_disk_is_said_and_nothing_stays(
    world: UploadWorld, data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = hashlib.sha256(data).digest()
    world.send(data, PIECE_BYTES)
    monkeypatch.setattr(os, "fsync", _no_space)
    assert "No space left" in world.send(data).error
    assert world.parts() == []
    monkeypatch.undo()
    assert world.send(data) == BlobWritten(digest, SIZE)
    monkeypatch.setattr(BlobReceiver, "_room_bytes", lambda self: SIZE)
    assert "make room" in world.answer(WriteBlob(bytes(32), SIZE)).error


def test_a_reader_may_not_send() -> None:
    assert "does not allow WriteBlob" in why_refused(AskQuestion(1, WriteBlob(bytes(32), SIZE)))


def _no_space(descriptor: int) -> None:
    raise OSError(28, os.strerror(28))


# ------------------------------------------------------------------------------------------------------------
# the agent


class Node:
    """An agent with a blob of one of its engines, and the controller's answers when the test says so."""

    def __init__(self, folder: Path, world: UploadWorld) -> None:
        self.world = world
        self.is_up = True
        self.asked: list[WriteBlob] = []
        self.told: list[tuple[str, BlobKept]] = []
        self.uploads = BlobUploading(self._say, lambda engine, kept: self.told.append((engine, kept)))
        self.copies = Copies(folder, "farm-1")
        self.data = os.urandom(SIZE)
        self.digest = self.copies.blobs.put(memoryview(self.data))

    def _say(self, message: WriteBlob) -> bool:
        self.asked.append(message)
        return self.is_up

    def keep(self, engine: str) -> None:
        self.uploads.keep(engine, KeepBlob(self.digest), self.copies)

    async def serve(self, rounds: int | None = None) -> int:
        """Answer until the engines were told, or so many questions; return the bytes that came."""
        came = 0
        async with asyncio.timeout(DEADLINE_S):
            while not self.told and rounds != 0:
                while self.asked and rounds != 0:
                    question = self.asked.pop(0)
                    came += len(question.data)
                    self.uploads.written(await asyncio.to_thread(self.world.answer, question, "agent", "agent"))
                    rounds = None if rounds is None else rounds - 1
                await asyncio.sleep(0.001)
        return came


@pytest.fixture
def on_node(world: UploadWorld, tmp_path: Path) -> Callable[[Callable[[Node], Any]], None]:
    """Run a coroutine with a node."""

    def run(body: Callable[[Node], Any]) -> None:
        async def all_of_it() -> None:
            node = Node(tmp_path / "node", world)
            try:
                await body(node)
            finally:
                await node.uploads.close()

        asyncio.run(all_of_it())

    return run


OnNode = Callable[[Callable[[Node], Any]], None]


def test_two_engines_made_the_same_and_it_is_sent_once(on_node: OnNode, blobs: Blobs) -> None:
    async def body(node: Node) -> None:
        node.keep("a.1")
        node.keep("a.2")
        assert await node.serve() == SIZE
        assert node.told == [("a.1", BlobKept(node.digest)), ("a.2", BlobKept(node.digest))]
        assert blobs.map(node.digest) == memoryview(node.data)
        node.told.clear()
        node.keep("a.3")
        assert await node.serve() == 0

    on_node(body)


def test_pauses_count_since_the_last_piece_that_was_taken(
    on_node: OnNode, blobs: Blobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploading, "ATTEMPTS", 2)
    monkeypatch.setattr(uploading, "PAUSE_S", 0.0)
    refused = 0

    async def body(node: Node) -> None:
        nonlocal refused
        answer = node.world.answer
        since = 0

        def busy(question: WriteBlob, session: str, key: str) -> BlobWritten:
            nonlocal refused, since
            if question.data and since < 2:
                refused, since = refused + 1, since + 1
                return BlobWritten(question.digest, later=True)
            since = 0 if question.data else since
            return answer(question, session, key)

        monkeypatch.setattr(node.world, "answer", busy)
        node.keep("a.1")
        await node.serve()
        assert node.told == [("a.1", BlobKept(node.digest))]

    on_node(body)
    assert refused > 2


def test_a_cut_connection_ends_an_upload_and_it_may_begin_again(on_node: OnNode, blobs: Blobs) -> None:
    """Answers of before may come late, to the next attempt."""

    async def body(node: Node) -> None:
        node.keep("a.1")
        await node.serve(rounds=2)
        while not node.asked:
            await asyncio.sleep(0.001)
        late = [node.world.answer(question, "agent", "agent") for question in node.asked]
        node.asked.clear()
        node.uploads.lost()
        await node.serve()
        ((_, kept),) = node.told
        assert "not there" in kept.error
        node.told.clear()
        node.keep("a.1")
        while not node.asked:
            await asyncio.sleep(0.001)
        for answer in late:
            node.uploads.written(answer)
        assert await node.serve() < SIZE
        assert node.told == [("a.1", BlobKept(node.digest))]
        assert blobs.map(node.digest) == memoryview(node.data)

    on_node(body)


def test_without_a_controller_an_engine_is_told_at_once(on_node: OnNode) -> None:
    async def body(node: Node) -> None:
        node.is_up = False
        node.keep("a.1")
        await node.serve(rounds=-1)
        ((_, kept),) = node.told
        assert "not there" in kept.error

    on_node(body)


def test_a_blob_that_went_to_make_room_is_an_error(on_node: OnNode) -> None:
    async def body(node: Node) -> None:
        node.copies.blobs.path(node.digest).unlink()
        node.keep("a.1")
        await node.serve()
        assert node.told[0][1].error

    on_node(body)
