"""A real engine on a node that does not see the farm's folder of blobs: it asks its agent, and waits."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from ipytaskfarm.core.messages.blob_chunks import BlobHere, BlobKept, KeepBlob, WantBlob
from ipytaskfarm.core.messages.engine_commands import PushBody
from ipytaskfarm.core.messages.payload import StringWork
from ipytaskfarm.serialization.pack import pack
from ipytaskfarm.storage.blobs import Blobs, BlobWriter
from ipytaskfarm.system.flight_recorder import ABORT
from tests.support.fake_agent import FakeAgent, FakeEngine, Outcome

ARRAY = np.arange(100_000)


@pytest.fixture(scope="module")
def copies(agent: FakeAgent) -> Blobs:
    return Blobs.create(agent.folder / "blobs", "farm-1")


@pytest.fixture(scope="module")
def shared(agent: FakeAgent, copies: Blobs) -> FakeEngine:
    return agent.start_engine(copies=str(copies.folder))


@pytest.fixture
def engine(shared: FakeEngine) -> Iterator[FakeEngine]:
    yield shared
    assert shared.command("keys").ok  # all that it said before has come
    shared.inbox.clear()


@pytest.fixture
def farm(tmp_path: Path) -> Blobs:
    """Provide the farm's own folder, which the engine does not know."""
    return Blobs.create(tmp_path / "farm", "farm-1")


def packed(farm: Blobs, value: Any) -> tuple[bytes, bytes]:
    """Packed for the engine, and the digest of its one blob."""
    writer = BlobWriter(farm)
    body = pack(value, "push", writer)
    (digest,) = writer.taken()
    return body, bytes.fromhex(digest)


def bring(engine: FakeEngine, farm: Blobs, copies: Blobs) -> None:
    """Bring a blob as the agent does when it is asked."""
    digest = engine.wait(WantBlob).digest
    found = farm.map(digest)
    assert found is not None
    assert copies.put(found) == digest
    engine.send(BlobHere(digest))


def test_a_task_waits_for_its_data(engine: FakeEngine, farm: Blobs, copies: Blobs) -> None:
    push, digest = packed(farm, {"x": ARRAY + 1})
    work = StringWork("x[0] = 7; s = int(x.sum()); maps = open('/proc/self/maps').read()", ("s", "maps"), push)
    first, second = engine.hand(work, work)
    bring(engine, farm, copies)
    for key in (first, second):
        value = Outcome(engine.ended(key)).value
        assert value["s"] == (ARRAY + 1).sum() + 6
        assert digest.hex() in value["maps"]
    assert not [message for message in engine.inbox if isinstance(message, WantBlob)], "it was there for the second"


def test_large_results_stay_inside(engine: FakeEngine, copies: Blobs) -> None:
    before = sorted(copies.folder.glob("??/*"))
    outcome = engine.run("import numpy; y = numpy.arange(100_000)", "y")
    assert outcome.ended.blobs == ()
    assert len(outcome.ended.body) > ARRAY.nbytes
    assert (outcome.value["y"] == ARRAY).all()
    assert sorted(copies.folder.glob("??/*")) == before


def test_a_result_of_a_mebibyte_is_named_when_the_controller_has_it(engine: FakeEngine, copies: Blobs) -> None:
    """The engine waits, and asks once for equal values."""
    work = StringWork("import numpy; y = numpy.arange(200_000)", ("y",))
    (key,) = engine.hand(work)
    digest = engine.wait(KeepBlob).digest
    assert copies.map(digest) == memoryview(np.arange(200_000).tobytes())
    engine.send(BlobKept(digest))
    for ended in (engine.ended(key), engine.run(work.code, "y").ended):
        assert ended.blobs == (digest.hex(),)
        assert len(ended.body) < 1000
    assert not [message for message in engine.inbox if isinstance(message, KeepBlob)]


def test_a_result_that_the_controller_does_not_take_stays_inside(engine: FakeEngine) -> None:
    (key,) = engine.hand(StringWork("import numpy; y = numpy.arange(200_000) + 1", ("y",)))
    engine.send(BlobKept(engine.wait(KeepBlob).digest, "the controller is not there"))
    ended = engine.ended(key)
    assert ended.blobs == ()
    assert (Outcome(ended).value["y"] == np.arange(200_000) + 1).all()


def test_a_task_whose_result_is_on_its_way_can_be_aborted(engine: FakeEngine) -> None:
    (key,) = engine.hand(StringWork("import numpy; y = numpy.arange(200_000) + 2", ("y",)))
    digest = engine.wait(KeepBlob).digest
    assert engine.interrupt(key, ABORT).outcome == "aborted"
    engine.send(BlobKept(digest))
    assert engine.run("a = 1", "a").value == {"a": 1}


def test_what_is_gone_fails_the_task_and_is_named(engine: FakeEngine, farm: Blobs) -> None:
    push, digest = packed(farm, {"x": ARRAY + 2})
    (key,) = engine.hand(StringWork("s = x.sum()", ("s",), push))
    assert engine.wait(WantBlob).digest == digest
    engine.send(BlobHere(digest, "blob 1234: its task was cleared"))
    failure = Outcome(engine.ended(key)).failure
    assert (failure.etype, failure.value) == ("BlobMissing", "blob 1234: its task was cleared")
    assert engine.run("a = 1", "a").value == {"a": 1}


def test_a_task_that_waits_for_its_data_can_be_aborted(engine: FakeEngine, farm: Blobs, copies: Blobs) -> None:
    push, digest = packed(farm, {"x": ARRAY + 3})
    (key,) = engine.hand(StringWork("s = int(x.sum())", ("s",), push))
    assert engine.wait(WantBlob).digest == digest
    assert engine.interrupt(key, ABORT).outcome == "aborted"
    engine.send(BlobHere(digest))  # it comes after all, to nobody
    (again,) = engine.hand(StringWork("s = int(x.sum())", ("s",), push))
    bring(engine, farm, copies)
    assert Outcome(engine.ended(again)).value == {"s": (ARRAY + 3).sum()}


def test_a_copy_that_went_to_make_room_is_asked_for_again(engine: FakeEngine, farm: Blobs, copies: Blobs) -> None:
    push, digest = packed(farm, {"x": ARRAY + 4})
    (key,) = engine.hand(StringWork("s = int(x.sum())", ("s",), push))
    assert engine.wait(WantBlob).digest == digest
    engine.send(BlobHere(digest))  # it was there, for a moment
    bring(engine, farm, copies)
    assert Outcome(engine.ended(key)).value == {"s": (ARRAY + 4).sum()}


def test_a_push_to_the_engine_waits_for_its_data_too(engine: FakeEngine, farm: Blobs, copies: Blobs) -> None:
    body, _ = packed(farm, {"pushed": ARRAY + 5})
    sent = engine.post("push", msgspec.msgpack.encode(PushBody(body)))
    bring(engine, farm, copies)
    assert engine.wait_command(sent).ok
    assert engine.run("s = int(pushed.sum())", "s").value == {"s": (ARRAY + 5).sum()}


def test_threads_of_a_task_wait_each_for_themselves(engine: FakeEngine, farm: Blobs, copies: Blobs) -> None:
    body, digest = packed(farm, ARRAY + 6)
    code = (
        "from concurrent.futures import ThreadPoolExecutor\n"
        "from ipytaskfarm.serialization.pack import unpack\n"
        "with ThreadPoolExecutor(4) as pool:\n"
        "    sums = [int(a.sum()) for a in pool.map(unpack, [body] * 4)]\n"
    )
    (key,) = engine.hand(StringWork(code, ("sums",), pack({"body": body})))
    bring(engine, farm, copies)
    assert Outcome(engine.ended(key)).value == {"sums": [(ARRAY + 6).sum()] * 4}
    assert copies.map(digest) is not None


def test_a_forked_child_is_told_what_to_do(engine: FakeEngine, farm: Blobs) -> None:
    body, _ = packed(farm, ARRAY + 7)
    code = (
        "import os\n"
        "from ipytaskfarm.serialization.pack import unpack\n"
        "read, write = os.pipe()\n"
        "if os.fork() == 0:\n"
        "    try: unpack(body)\n"
        "    except Exception as error: os.write(write, str(error).encode())\n"
        "    os._exit(0)\n"
        "os.wait()\n"
        "said = os.read(read, 1000).decode()\n"
    )
    assert "use it in the task first" in engine.run(code, "said", push={"body": body}).value["said"]
