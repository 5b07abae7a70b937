"""Test the flight recorder: what it keeps if either side is killed at any moment."""

from __future__ import annotations

import errno
import os
import random
import resource
import signal
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ipytaskfarm.system import flight_recorder as module
from ipytaskfarm.system.bell import Bell
from ipytaskfarm.system.flight_recorder import ABORT, TIME_LIMIT, Recorder, RecorderDamaged
from tests.support.polling import eventually
from tests.support.recorders import held_bytes

SMALL = 16_384


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "engine-1.rec"


@pytest.fixture
def agent(path: Path) -> Iterator[Recorder]:
    made = Recorder.create(path, "session.1", 3, ring_bytes=SMALL)
    yield made
    made.close()


@pytest.fixture
def engine(agent: Recorder) -> Iterator[Recorder]:
    opened = Recorder.open(agent.path)
    yield opened
    opened.close()


def drain(agent: Recorder) -> list[tuple[int, int, bytes]]:
    found: list[tuple[int, int, bytes]] = []
    while records := agent.read():
        found.extend((r.task, r.attempt, r.data) for r in records)
        agent.release(records[-1].cursor)
    return found


def spills(path: Path) -> list[Path]:
    return list(path.parent.glob("*.spill-*"))


def in_child(work: Callable[[], None]) -> int:
    """Run this in a forked child that never comes back into pytest; its pid."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
        finally:
            os._exit(0)
    return pid


def test_it_says_whose_it_is(agent: Recorder, engine: Recorder) -> None:
    assert (engine.engine, engine.engine_id) == ("session.1", 3)
    assert stat.S_IMODE(agent.path.stat().st_mode) == 0o600
    assert agent.path.stat().st_blocks * 512 >= SMALL, "no holes: storing into one of a full disk kills the engine"


def test_a_run_and_its_result(agent: Recorder, engine: Recorder) -> None:
    before = time.monotonic_ns()
    assert agent.current() is None
    engine.begin(17, 2, deadline_ns=99)
    current = agent.current()
    assert current is not None
    assert (current.run, current.deadline_ns) == ((17, 2), 99)
    assert before <= current.began_ns <= time.monotonic_ns()
    assert not agent.unread
    engine.end_with(b"result", 17, 2)
    assert agent.current() is None
    assert agent.unread
    assert [r[1:] for r in agent.read()] == [(17, 2, b"result")]
    assert not agent.unread
    assert agent.read() == []


def test_idle_and_commands(agent: Recorder, engine: Recorder) -> None:
    engine.begin(1, 1)
    engine.idle()
    assert agent.current() is None
    assert not agent.unread
    engine.begin_command()
    assert agent.current() is None
    engine.end_command()
    assert agent.current() is None


def test_a_run_that_has_an_end_and_goes_on(agent: Recorder, engine: Recorder) -> None:
    """A task can find the recorder and write its own end; only the engine leaves the run."""
    engine.begin(1, 1)
    assert agent.lingering() is None
    engine.end_with(b"forged", 1, 1)
    assert agent.current() is None
    assert agent.lingering() == (1, 1)
    engine.leave()
    assert agent.lingering() is None
    engine.begin(2, 1)
    engine.end_with(b"forged", 2, 1)
    assert agent.lingering() == (2, 1)
    engine.begin_command()
    assert agent.lingering() is None


def test_what_was_not_released_is_read_again_by_another_agent(agent: Recorder, engine: Recorder) -> None:
    for n in range(5):
        engine.begin(n, 1)
        engine.end_with(b"%d" % n, n, 1)
    first = agent.read(limit=3)
    assert [r.task for r in first] == [0, 1, 2]
    agent.release(first[1].cursor)
    agent.close()
    again = Recorder.open(engine.path)
    assert [r.task for r in again.read()] == [2, 3, 4]
    again.close()


def test_release_wants_a_cursor_that_was_read(agent: Recorder, engine: Recorder) -> None:
    engine.end_with(b"x", 1, 1)
    with pytest.raises(ValueError, match="not between 0"):
        agent.release(32)


def test_read_stops_at_its_bounds(agent: Recorder, engine: Recorder) -> None:
    for n in range(6):
        engine.end_with(bytes(1000), n, 1)
    assert len(agent.read(limit=2)) == 2
    assert len(agent.read(bytes_max=1500)) == 2
    assert len(agent.read(bytes_max=0)) == 0
    assert len(agent.read(bytes_max=1)) == 1, "one at least, however large"


def test_the_ring_goes_round(agent: Recorder, engine: Recorder) -> None:
    chance = random.Random(5)
    sent: list[tuple[int, int, bytes]] = []
    got: list[tuple[int, int, bytes]] = []
    for n in range(3000):
        record = chance.randbytes(chance.randrange(0, 900))
        engine.begin(n, 1)
        engine.end_with(record, n, 1)
        sent.append((n, 1, record))
        if chance.random() < 0.2:
            got += drain(agent)
    got += drain(agent)
    assert got == sent
    assert held_bytes(agent) == 0


def test_a_large_record_goes_to_a_file_of_its_own(agent: Recorder, engine: Recorder) -> None:
    large = os.urandom(SMALL * 3)
    engine.begin(1, 1)
    engine.end_with(large, 1, 1)
    assert agent.current() is None
    (spill,) = spills(agent.path)
    assert stat.S_IMODE(spill.stat().st_mode) == 0o600
    (record,) = agent.read()
    assert record[1:] == (1, 1, large)
    assert spill.exists(), "not acknowledged yet"
    agent.release(record.cursor)
    assert not spill.exists()


def test_a_full_ring_spills_and_keeps_the_order(agent: Recorder, engine: Recorder) -> None:
    sent = [(n, 1, bytes([n]) * 1000) for n in range(100)]
    for task, attempt, record in sent:
        engine.end_with(record, task, attempt)
    assert len(spills(agent.path)) > 80
    agent.close()
    again = Recorder.open(engine.path)  # another agent finds the files too
    assert drain(again) == sent
    assert spills(again.path) == []
    engine.end_with(b"back to the ring", 100, 1)
    assert spills(again.path) == []
    assert drain(again) == [(100, 1, b"back to the ring")]
    again.close()


def test_when_even_references_find_no_room_the_engine_waits(agent: Recorder) -> None:
    sent = [(n, 1, bytes([n % 256]) * 1000) for n in range(400)]
    path = agent.path

    def work() -> None:
        engine = Recorder.open(path)
        for task, attempt, record in sent:
            engine.begin(task, attempt)
            engine.end_with(record, task, attempt)

    pid = in_child(work)
    try:
        eventually(lambda: held_bytes(agent) > SMALL - 64)
        assert agent.current() is not None, "the run whose result has no room yet has not ended"
        got: list[tuple[int, int, bytes]] = []

        def all_here() -> bool:
            got.extend(drain(agent))
            return len(got) == len(sent)

        eventually(all_here)
        assert got == sent
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def test_a_disk_without_room_for_a_file_makes_the_engine_wait(
    agent: Recorder, engine: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, failures = os.write, [errno.ENOSPC, errno.EDQUOT]

    def write(descriptor: int, data: memoryview) -> int:
        if failures:
            raise OSError(failures.pop(), "no room")
        return real(descriptor, data)

    monkeypatch.setattr(os, "write", write)
    monkeypatch.setattr(module, "_FULL_POLL_S", 0.001)
    said: list[bool] = []
    engine.on_full = said.append
    engine.end_with(bytes(SMALL), 1, 1)
    assert drain(agent) == [(1, 1, bytes(SMALL))]
    assert said == [True, False]


def test_a_task_that_used_up_all_descriptors_has_a_result_all_the_same(agent: Recorder, engine: Recorder) -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.open(os.devnull, os.O_RDONLY)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, before[1]))
    try:
        with pytest.raises(OSError, match="Too many open files"):
            os.open(os.devnull, os.O_RDONLY)
        engine.end_with(bytes(SMALL), 1, 1)
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == lowest
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert drain(agent) == [(1, 1, bytes(SMALL))]


def test_interrupts_are_for_the_run_that_was_meant(agent: Recorder, engine: Recorder) -> None:
    assert engine.wanted() is None
    engine.begin(1, 1)
    assert engine.wanted() is None
    agent.want((1, 1), TIME_LIMIT)
    assert not agent.was_delivered()
    assert engine.wanted() == (1, 1, TIME_LIMIT)
    engine.mark_delivered()
    assert agent.was_delivered()
    assert engine.wanted() is None, "once is enough"
    agent.want((1, 1), ABORT)
    assert engine.wanted() == (1, 1, ABORT), "asked again"
    engine.end_with(b"", 1, 1)
    assert engine.wanted() is None
    engine.begin(1, 2)
    assert engine.wanted() is None, "another attempt"
    engine.idle()
    engine.begin(1, 1)
    assert engine.wanted() == (1, 1, ABORT)
    agent.want((2, 1), ABORT)
    engine.mark_delivered()
    assert not agent.was_delivered(), "what was delivered is what was seen, not what came after"


def test_a_forked_child_does_not_record(agent: Recorder, engine: Recorder) -> None:
    engine.begin(1, 1)
    seen, said = os.pipe()

    def work() -> None:
        calls: list[Callable[[], None]] = [
            lambda: engine.end_with(b"twice", 1, 1),
            lambda: engine.begin(2, 1),
            engine.idle,
        ]
        for call in calls:
            try:
                call()
            except RuntimeError:
                os.write(said, b"r")

    pid = in_child(work)
    os.waitpid(pid, 0)
    os.close(said)
    with open(seen, "rb") as answers:
        assert answers.read() == b"rrr"
    engine.end_with(b"once", 1, 1)
    assert drain(agent) == [(1, 1, b"once")]


def record_until_killed(path: Path, seed: int) -> None:
    """Act as an engine: write results in which every byte shows whether they are torn, and a ledger
    entry after each.
    """
    engine = Recorder.open(path)
    chance = random.Random(seed)
    n = 0
    while True:
        n += 1
        size = chance.choice((0, 7, 100, 800, 3000, 5000))  # 5000: more than a quarter of the ring
        engine.begin(n, 1, deadline_ns=n * 7)
        if chance.random() < 0.1:
            engine.begin_command()
            engine.end_command()
            engine.begin(n, 1, deadline_ns=n * 7)
        engine.end_with(bytes([n % 256]) * size, n, 1)


@pytest.mark.parametrize("seed", range(50))
def test_an_engine_killed_at_any_moment_leaves_a_readable_file(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    path = tmp_path / "engine.rec"
    agent = Recorder.create(path, "s.1", 1, ring_bytes=SMALL)
    pid = in_child(lambda: record_until_killed(path, chance.randrange(1 << 30)))
    seen = 0
    deadline = time.monotonic() + chance.random() * 0.02
    eventually(lambda: agent.unread)
    while time.monotonic() < deadline:
        for task, _, data in drain(agent):
            seen += 1
            assert (task, set(data) - {task % 256}) == (seen, set())
        current = agent.current()
        assert current is None or current.deadline_ns == current.run[0] * 7
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    agent.close()
    again = Recorder.open(path)
    current = again.current()
    for task, _, data in drain(again):
        seen += 1
        assert (task, set(data) - {task % 256}) == (seen, set())
    # Finished, running and never begun are known apart: the next one runs, or nothing does.
    assert current is None or (current.run == (seen + 1, 1) and current.deadline_ns == (seen + 1) * 7)
    again.close()
    Recorder.remove(path)
    assert list(tmp_path.iterdir()) == [], "nothing is left over"


def test_an_agent_killed_at_any_moment_loses_nothing(tmp_path: Path) -> None:
    path = tmp_path / "engine.rec"
    Recorder.create(path, "s.1", 1, ring_bytes=SMALL).close()
    engine_pid = in_child(lambda: record_until_killed(path, 1))
    chance = random.Random(2)
    seen = 0
    try:
        deadline = time.monotonic() + 60.0
        kills = 0
        # On a busy machine a child may be killed before it has read anything, so the lives that count read something.
        while kills < 30 or (seen <= 100 and time.monotonic() < deadline):
            kills += 1
            reader, writer = os.pipe()

            def work(writer: int = writer) -> None:
                agent = Recorder.open(path)
                while True:
                    for record in agent.read(limit=3):
                        os.write(writer, record.task.to_bytes(8, "little"))
                        agent.release(record.cursor)

            pid = in_child(work)
            os.close(writer)
            # The moment of the kill, not a wait for something: later and later where children are slow to begin.
            time.sleep(chance.random() * 0.01 * (1 + kills // 30))
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            with open(reader, "rb") as told:
                data = told.read()
            tasks = [int.from_bytes(data[i : i + 8], "little") for i in range(0, len(data), 8)]
            if tasks:
                assert tasks[0] in (seen, seen + 1), "told and not released: told again; nothing is left out"
                assert tasks == list(range(tasks[0], tasks[0] + len(tasks)))
                seen = tasks[-1]
    finally:
        os.kill(engine_pid, signal.SIGKILL)
        os.waitpid(engine_pid, 0)
    assert seen > 100
    Recorder.remove(path)
    assert list(tmp_path.iterdir()) == []


def test_damage_is_said_after_what_is_whole(agent: Recorder, engine: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_TRIES", 2)
    engine.end_with(b"whole", 1, 1)
    engine.end_with(b"to be damaged", 2, 1)
    with open(agent.path, "r+b") as file:
        data = file.read()
        file.seek(data.index(b"to be damaged"))
        file.write(b"T")
    assert [r.data for r in agent.read()] == [b"whole"]
    with pytest.raises(RecorderDamaged, match="no record at"):
        agent.read()


def test_a_spill_file_that_is_gone_is_damage(agent: Recorder, engine: Recorder) -> None:
    engine.end_with(bytes(SMALL), 1, 1)
    spills(agent.path)[0].write_bytes(b"short")
    with pytest.raises(RecorderDamaged, match="another length"):
        agent.read()
    spills(agent.path)[0].unlink()
    with pytest.raises(RecorderDamaged, match="is gone"):
        agent.read()


def test_files_that_are_no_recorders(tmp_path: Path) -> None:
    short, other, link = tmp_path / "short", tmp_path / "other", tmp_path / "link"
    short.write_bytes(b"x")
    other.write_bytes(bytes(1 << 16))
    link.symlink_to(other)
    with pytest.raises(RecorderDamaged, match="too short"):
        Recorder.open(short)
    with pytest.raises(RecorderDamaged, match="no flight recorder"):
        Recorder.open(other)
    with pytest.raises(OSError):
        Recorder.open(link)
    with pytest.raises(FileExistsError):
        Recorder.create(other, "s.1", 1)
    with pytest.raises(ValueError, match="ring of 5 bytes"):
        Recorder.create(tmp_path / "new", "s.1", 1, ring_bytes=5)
    Recorder.remove(tmp_path / "never there")


def test_the_bell(tmp_path: Path) -> None:
    path = tmp_path / "bell.sock"
    engine = Bell.connect(path)
    engine.ring(1)  # nobody listens: no harm
    agent = Bell.listen(path)
    assert agent.take() == set()
    engine.ring(4)
    engine.ring(2)
    engine.ring(4)
    assert agent.take() == {2, 4}
    for _ in range(50):
        engine.ring(1)
    assert agent.take() is None, "some were lost: look at everyone"
    eventually(lambda: agent.take() == set())
    again = Bell.listen(path)
    engine.ring(7)
    assert again.take() == set(), "still connected to the first agent"
    agent._socket.close()  # which now dies without a word
    engine.ring(7)
    assert again.take() == {7}
    again.close()
    assert not path.exists()
    engine.ring(7)
    engine.close()
