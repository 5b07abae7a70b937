"""Blobs on their way to where the farm's folder is not seen: read in pieces, brought once, checked, bounded."""

from __future__ import annotations

import asyncio
import hashlib
import os
import select
import threading
import time
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ipytaskfarm.agent.fetching import BlobFetches
from ipytaskfarm.client import Task, TaskClient
from ipytaskfarm.client.large_values import BlobDownloads
from ipytaskfarm.controller.blob_reading import AHEAD_BYTES, BEGUN_MAX, BlobReader, ReadPiece
from ipytaskfarm.core.errors import BlobMissing
from ipytaskfarm.core.messages import Answer
from ipytaskfarm.core.messages.blob_chunks import PIECE_BYTES, PIECES_AHEAD, BlobHere, BlobPiece, ReadBlob, WantBlob
from ipytaskfarm.core.messages.payload import ResultBody
from ipytaskfarm.serialization.pack import pack
from ipytaskfarm.storage import blob_copies, blobs as door
from ipytaskfarm.storage.blob_copies import IN_HAND_S, Copies
from ipytaskfarm.storage.blobs import BLOB_BYTES, Blobs, BlobWriter, mapped
from tests.support.fake_hub_controller import FakeController, encode, final
from tests.support.polling import DEADLINE_S, eventually

SIZE = 3 * PIECE_BYTES + 1000


@pytest.fixture
def data() -> memoryview:
    return memoryview(bytearray(os.urandom(SIZE)))


@pytest.fixture
def blobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Blobs:
    """The farm's own folder, which this process does not know of."""
    monkeypatch.setattr(door, "_known", {})
    monkeypatch.setattr(door, "_fetches", [])
    return Blobs.create(tmp_path / "farm", "farm-1")


def piece_of(blobs: Blobs, question: ReadBlob) -> BlobPiece:
    """Return the answer of the controller's thread."""
    reader = BlobReader(blobs)
    try:
        return reader._piece(ReadPiece("", None, question.digest, question.offset))
    finally:
        reader.close()


# ------------------------------------------------------------------------------------------------------------
# the controller


@pytest.fixture
def reader(blobs: Blobs) -> Iterator[BlobReader]:
    reader = BlobReader(blobs)
    yield reader
    reader.close()


def answers(reader: BlobReader, count: int) -> list[tuple[str, Answer | BlobPiece]]:
    """Return the next answers, and wait for the bell before each look."""
    found: list[tuple[str, Answer | BlobPiece]] = []
    deadline = time.monotonic() + DEADLINE_S
    while len(found) < count:
        ready, _, _ = select.select([reader.fd()], [], [], max(0.0, deadline - time.monotonic()))
        assert ready, f"{len(found)} of {count} answers"
        found += reader.answers()
    assert not select.select([reader.fd()], [], [], 0)[0], "the bell rings for nothing"
    return found


def test_pieces_make_up_the_blob_and_say_its_size(blobs: Blobs, reader: BlobReader, data: memoryview) -> None:
    digest = blobs.put(data)
    for offset in range(0, SIZE, PIECE_BYTES):
        reader.ask(ReadPiece("agent", None, digest, offset))
    reader.go_on(lambda session: 0)
    pieces = [piece for _, piece in answers(reader, 4) if isinstance(piece, BlobPiece)]
    assert b"".join(piece.data for piece in pieces) == data
    assert [piece.offset for piece in pieces] == list(range(0, SIZE, PIECE_BYTES))
    assert {piece.size for piece in pieces} == {SIZE}


@pytest.mark.parametrize("digest", [bytes(32), b"", b"\xab", b"/" * 40, b"../../../../../../../../etc/passwd"])
def test_what_is_not_there_is_said(reader: BlobReader, digest: bytes) -> None:
    reader.ask(ReadPiece("client", 7, digest, 0))
    reader.go_on(lambda session: 0)
    ((session, answer),) = answers(reader, 1)
    assert isinstance(answer, Answer)
    assert isinstance(answer.reply, BlobPiece)
    assert (session, answer.n, answer.reply.data) == ("client", 7, b"")
    assert "cleared" in answer.reply.error


@pytest.mark.parametrize("offset", [-1, SIZE, 2**64 - 1])
def test_an_offset_beyond_the_blob_is_no_piece(blobs: Blobs, data: memoryview, offset: int) -> None:
    assert piece_of(blobs, ReadBlob(blobs.put(data), offset)).data == b""


def test_many_sessions_of_one_key_have_the_share_of_one(blobs: Blobs, reader: BlobReader, data: memoryview) -> None:
    digest = blobs.put(data)
    for number in range(50):
        for _ in range(8):
            reader.ask(ReadPiece(f"many {number}", None, digest, 0, "client"))
    for _ in range(8):
        reader.ask(ReadPiece("agent:1", None, digest, 0, "agent:node"))
    reader.go_on(lambda session: 0)
    first = [session for session, _ in answers(reader, BEGUN_MAX)]
    assert first.count("agent:1") == 8
    assert max(first.count(f"many {number}") for number in range(50)) == 1
    for _ in range(-(-8 * 51 // BEGUN_MAX) - 1):
        reader.go_on(lambda session: 0)
        found = answers(reader, min(BEGUN_MAX, 8 * 51 - len(first)))
        first += [session for session, _ in found]
    assert all(first.count(f"many {number}") == 8 for number in range(50))


def test_who_takes_nothing_makes_nobody_wait_and_fills_no_memory(
    blobs: Blobs, reader: BlobReader, data: memoryview
) -> None:
    digest = blobs.put(data)
    backlog = {"slow": AHEAD_BYTES, "quick": 0}
    for _ in range(100):
        reader.ask(ReadPiece("slow", None, digest, 0))
    reader.ask(ReadPiece("quick", None, digest, 0))
    reader.go_on(backlog.__getitem__)
    assert [session for session, _ in answers(reader, 1)] == ["quick"]
    backlog["slow"] = AHEAD_BYTES - PIECE_BYTES
    reader.go_on(backlog.__getitem__)
    assert [session for session, _ in answers(reader, 1)] == ["slow"]
    backlog["slow"] = 0
    reader.go_on(backlog.__getitem__)
    reader.go_on(backlog.__getitem__)
    assert len(answers(reader, AHEAD_BYTES // PIECE_BYTES)) == AHEAD_BYTES // PIECE_BYTES


def test_what_is_read_is_in_hand(blobs: Blobs, data: memoryview) -> None:
    digest = blobs.put(data)
    os.utime(blobs.path(digest), (0, 0))
    piece_of(blobs, ReadBlob(digest))
    assert blobs.sweep(lambda names: set()) == 0


# ------------------------------------------------------------------------------------------------------------
# the agent


class Node:
    """An agent's fetches, and a controller that answers when the test says so."""

    def __init__(self, blobs: Blobs, folder: Path) -> None:
        self.blobs = blobs
        self.asked: list[ReadBlob] = []
        self.told: list[tuple[str, BlobHere]] = []
        self.fetches = BlobFetches(self.asked.append, lambda engine, here: self.told.append((engine, here)))
        self.copies = Blobs(self.fetches.folder(folder, "farm-1"))

    async def until(self, fits: Callable[[], object]) -> None:
        async with asyncio.timeout(DEADLINE_S):
            while not fits():
                await asyncio.sleep(0.001)

    async def serve(self, change: Callable[[BlobPiece], BlobPiece] = lambda piece: piece) -> None:
        """Answer until the engines were told."""
        async with asyncio.timeout(DEADLINE_S):
            while not self.told:
                asked, self.asked[:] = list(self.asked), []
                for question in asked:
                    self.fetches.came(change(piece_of(self.blobs, question)))
                await asyncio.sleep(0.001)


@pytest.fixture
def on_node(blobs: Blobs, tmp_path: Path) -> Callable[[Callable[[Node], Any]], None]:
    """Run a coroutine with a node, and close the node."""

    def run(body: Callable[[Node], Any]) -> None:
        async def all_of_it() -> None:
            node = Node(blobs, tmp_path / "node")
            try:
                await body(node)
            finally:
                await node.fetches.close()

        asyncio.run(all_of_it())
        assert not (tmp_path / "node").exists()

    return run


OnNode = Callable[[Callable[[Node], Any]], None]


def test_two_engines_want_it_and_it_comes_once(on_node: OnNode, blobs: Blobs, data: memoryview) -> None:
    digest = blobs.put(data)

    async def body(node: Node) -> None:
        node.fetches.want("a.1", WantBlob(digest))
        await node.until(lambda: node.asked)
        node.fetches.want("a.2", WantBlob(digest))
        assert node.asked == [ReadBlob(digest)]
        await node.serve()
        assert sorted(node.told) == [("a.1", BlobHere(digest)), ("a.2", BlobHere(digest))]
        assert (node.fetches.count, node.fetches.bytes) == (1, SIZE)
        assert node.copies.map(digest) == data
        assert node.copies.path(digest).stat().st_mode & 0o777 == 0o600
        node.fetches.want("a.3", WantBlob(digest))
        assert node.told[2:] == [("a.3", BlobHere(digest))]
        assert node.asked == []

    on_node(body)


def test_no_more_than_a_few_pieces_are_on_their_way(on_node: OnNode, blobs: Blobs) -> None:
    digest = blobs.put(memoryview(os.urandom(12 * PIECE_BYTES)))
    under_way: list[int] = []

    async def body(node: Node) -> None:
        def note(piece: BlobPiece) -> BlobPiece:
            under_way.append(len(node.fetches._asked))
            return piece

        node.fetches.want("a.1", WantBlob(digest))
        await node.serve(note)
        assert node.copies.map(digest) is not None
        assert max(under_way) == PIECES_AHEAD

    on_node(body)


def test_a_blob_that_is_gone_is_named(on_node: OnNode) -> None:
    async def body(node: Node) -> None:
        node.fetches.want("a.1", WantBlob(b"\xab" * 32))
        await node.serve()
        ((_, here),) = node.told
        assert "abababababab" in here.error
        assert "cleared" in here.error
        assert node.fetches.count == 0

    on_node(body)


def _spoilt(piece: BlobPiece) -> BlobPiece:
    return BlobPiece(piece.digest, piece.offset, piece.size, b"?" * len(piece.data))


def _shortened(piece: BlobPiece) -> BlobPiece:
    return BlobPiece(piece.digest, piece.offset, piece.size, piece.data[:-1])


def _swept(piece: BlobPiece) -> BlobPiece:
    return piece if not piece.offset else BlobPiece(piece.digest, piece.offset, error="its task was cleared")


@pytest.mark.parametrize(
    ("change", "why"),
    [(_spoilt, "SHA-256"), (_shortened, "length"), (_swept, "cleared")],
    ids=["other bytes", "fewer bytes", "gone on the way"],
)
def test_what_is_not_what_its_name_says_is_not_kept(
    on_node: OnNode, blobs: Blobs, data: memoryview, change: Callable[[BlobPiece], BlobPiece], why: str
) -> None:
    digest = blobs.put(data)

    async def body(node: Node) -> None:
        node.fetches.want("a.1", WantBlob(digest))
        await node.serve(change)
        assert why in node.told[0][1].error
        assert node.copies.map(digest) is None
        assert list(node.copies.folder.glob("*.part")) == []
        assert not node.fetches._asked
        node.told.clear()
        node.fetches.want("a.1", WantBlob(digest))  # nothing is remembered against it
        await node.serve()
        assert node.told == [("a.1", BlobHere(digest))]

    on_node(body)


def test_another_controller_is_asked_again_and_what_comes_twice_counts_once(
    on_node: OnNode, blobs: Blobs, data: memoryview
) -> None:
    digest = blobs.put(data)

    async def body(node: Node) -> None:
        node.fetches.want("a.1", WantBlob(digest))
        await node.until(lambda: node.asked)
        node.fetches.came(piece_of(blobs, node.asked.pop()))
        await node.until(lambda: len(node.asked) == PIECES_AHEAD)
        lost = list(node.asked)
        node.asked.clear()
        node.fetches.restate()
        assert node.asked == lost
        node.fetches.came(piece_of(blobs, lost[0]))
        await node.serve()
        assert node.told == [("a.1", BlobHere(digest))]
        assert node.copies.map(digest) == data

    on_node(body)


class Restarts:
    """What can happen to a fetch around a controller's restart, in any order."""

    def __init__(self, node: Node, digest: bytes) -> None:
        self.node = node
        self.digest = digest
        self.lost: list[ReadBlob] = []
        self.engines = {"a.1"}
        node.fetches.want("a.1", WantBlob(digest))

    async def answer(self) -> None:
        """Answer one question that the present controller has, or nothing."""
        if self.node.asked:
            self.node.fetches.came(piece_of(self.node.blobs, self.node.asked.pop()))
        await asyncio.sleep(0.002)

    async def restart(self) -> None:
        """Lose the questions with the controller; the next one is asked again."""
        self.lost += self.node.asked
        self.node.asked.clear()
        self.node.fetches.restate()

    async def late(self) -> None:
        """Deliver what the controller before had answered."""
        for question in self.lost:
            self.node.fetches.came(piece_of(self.node.blobs, question))
        self.lost.clear()

    async def want(self) -> None:
        """Let another engine want the blob."""
        engine = f"a.{len(self.engines) + 1}"
        self.engines.add(engine)
        self.node.fetches.want(engine, WantBlob(self.digest))


STEPS = (Restarts.answer, Restarts.restart, Restarts.late, Restarts.want)


@pytest.mark.parametrize("first", STEPS, ids=lambda step: step.__name__)
def test_a_fetch_comes_to_its_end_however_a_restart_falls_into_it(
    on_node: OnNode, blobs: Blobs, data: memoryview, first: Callable[[Restarts], Any]
) -> None:
    digests = []
    for number in range(len(STEPS) ** 3):
        data[:8] = number.to_bytes(8, "little")
        digests.append(blobs.put(data))

    async def body(node: Node) -> None:
        for digest, others in zip(digests, product(STEPS, repeat=3), strict=True):
            node.asked.clear()
            node.told.clear()
            fetch = Restarts(node, digest)
            before = node.fetches.count
            for step in (first, *others):
                await step(fetch)
            await node.serve()
            order = [step.__name__ for step in (first, *others)]
            assert sorted(node.told) == [(engine, BlobHere(digest)) for engine in sorted(fetch.engines)], order
            assert node.fetches.count == before + 1, order
            assert hashlib.sha256(node.copies.map(digest) or b"").digest() == digest, order
            assert not node.fetches._asked
        assert list(node.copies.folder.glob("*.part")) == []

    on_node(body)


def test_an_agent_that_ends_waits_for_no_piece(on_node: OnNode, blobs: Blobs, data: memoryview) -> None:
    digest = blobs.put(data)

    async def body(node: Node) -> None:
        node.fetches.want("a.1", WantBlob(digest))
        await node.until(lambda: node.asked)

    on_node(body)


def test_copies_make_room_for_others(tmp_path: Path, data: memoryview) -> None:
    copies = Copies(tmp_path / "node", "farm-1", limit_bytes=2 * SIZE + 100)
    now_s = time.time()

    def bring(content: memoryview, used_s: float) -> bytes:
        digest = hashlib.sha256(content).digest()
        arrival, part = copies.begin(digest, len(content))
        with arrival.file:
            for offset in range(0, len(content), PIECE_BYTES):
                piece = bytes(content[offset : offset + PIECE_BYTES])
                arrival.take(BlobPiece(digest, offset, len(content), piece))
        copies.keep(arrival, part)
        os.utime(copies.blobs.path(digest), (used_s, used_s))
        return digest

    def others(count: int) -> list[memoryview]:
        return [memoryview(os.urandom(SIZE)) for _ in range(count)]

    older = bring(data, now_s - 2 * IN_HAND_S)
    newer = bring(others(1)[0], now_s - 1.5 * IN_HAND_S)
    bring(others(1)[0], now_s)
    assert not copies.has(older)
    assert copies.has(newer)
    in_hand = [bring(content, now_s) for content in others(2)]
    assert not copies.has(newer)
    assert all(map(copies.has, in_hand)), "what is in hand stays, whatever the limit"


def test_copies_of_an_agent_before_are_not_trusted(tmp_path: Path) -> None:
    stale = tmp_path / "node" / "ab" / ("ab" * 32)
    stale.parent.mkdir(parents=True)
    stale.write_bytes(b"half of it")
    (tmp_path / "node").chmod(0o700)
    assert not Copies(tmp_path / "node", "farm-1").has(b"\xab" * 32)
    assert blob_copies.SHARE < 1


# ------------------------------------------------------------------------------------------------------------
# the client


@pytest.fixture
def fake(tmp_path: Path, blobs: Blobs) -> Iterator[FakeController]:
    """Provide a controller with a connection file that names no folder of blobs, as on another machine."""
    fake = FakeController(tmp_path / "fake")
    fake.answers[ReadBlob] = lambda question: piece_of(blobs, question)
    yield fake
    fake.stop()


@pytest.fixture
def tc(fake: FakeController) -> Iterator[TaskClient]:
    with TaskClient(str(fake.connection_file)) as tc:
        yield tc


def fetching(tc: TaskClient) -> BlobDownloads:
    found = tc._session._downloads
    assert found is not None
    return found


def questions(fake: FakeController) -> list[int]:
    """The offsets that were asked for."""
    return [m.question.offset for m in fake.heard if isinstance(getattr(m, "question", None), ReadBlob)]


def test_a_large_result_comes_when_it_is_looked_at_and_once(fake: FakeController, tc: TaskClient, blobs: Blobs) -> None:
    array = np.arange(SIZE // 8 + 1)
    body = encode(ResultBody(value=pack({"a": array}, writer=BlobWriter(blobs))))
    fake.respond = lambda task: final(task.id, body=body)
    task = tc.run(Task("a = 1", pull="a"))
    first = tc.get_task_result(task, block=True, timeout=DEADLINE_S)
    second = tc.get_task_result(task)
    assert questions(fake) == []
    assert (first["a"] == array).all()
    first["a"][0] = 7
    assert second["a"][0] == 0
    assert questions(fake) == list(range(0, array.nbytes, PIECE_BYTES))
    assert fetching(tc).bytes == array.nbytes


def test_threads_that_want_the_same_wait_for_one(fake: FakeController, tc: TaskClient, blobs: Blobs) -> None:
    content = memoryview(os.urandom(SIZE))
    digest = blobs.put(content)
    found: list[bool] = []
    threads = [threading.Thread(target=lambda: found.append(mapped(digest) == content)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE_S)
    assert found == [True] * 8
    assert len(questions(fake)) == 4


def test_results_that_came_are_kept_within_bounds(fake: FakeController, tc: TaskClient, blobs: Blobs) -> None:
    digests = [blobs.put(memoryview(os.urandom(BLOB_BYTES))) for _ in range(3)]
    small = BlobDownloads(tc._session, kept_bytes=2 * BLOB_BYTES)
    views = [small.fetch(digest) for digest in digests]
    assert len(questions(fake)) == 3
    assert [hashlib.sha256(view).digest() for view in views] == digests
    small.fetch(digests[2])
    assert len(questions(fake)) == 3
    small.fetch(digests[0])
    assert len(questions(fake)) == 4
    small.close()


def test_a_large_result_that_is_gone_is_named(fake: FakeController, tc: TaskClient) -> None:
    with pytest.raises(BlobMissing, match=r"cdcdcdcdcdcd.*cleared"):
        mapped(b"\xcd" * 32)


def test_a_large_result_that_was_damaged_is_refused(fake: FakeController, tc: TaskClient, blobs: Blobs) -> None:
    digest = blobs.put(memoryview(os.urandom(SIZE)))
    fake.answers[ReadBlob] = lambda question: _spoilt(piece_of(blobs, question))
    with pytest.raises(BlobMissing, match="damaged"):
        mapped(digest)


def test_a_fetch_goes_on_with_the_next_controller(fake: FakeController, tc: TaskClient, blobs: Blobs) -> None:
    content = memoryview(os.urandom(SIZE))
    digest = blobs.put(content)
    fake.mute = True
    found: list[bool] = []
    thread = threading.Thread(target=lambda: found.append(mapped(digest) == content))
    thread.start()
    eventually(lambda: questions(fake), DEADLINE_S)
    fake.mute = False
    fake.restart()
    thread.join(DEADLINE_S)
    assert found == [True]


def test_a_client_that_is_closed_says_so(fake: FakeController, blobs: Blobs) -> None:
    digest = blobs.put(memoryview(os.urandom(BLOB_BYTES)))
    with TaskClient(str(fake.connection_file)) as tc:
        session = tc._session
        found = BlobDownloads(session)
    with pytest.raises(BlobMissing, match="make a new one"):
        found.fetch(digest)
    with pytest.raises(BlobMissing, match="does not see"):
        mapped(digest)
