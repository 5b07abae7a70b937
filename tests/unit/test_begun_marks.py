"""Test the marks of how far an engine may have come: no run begins behind the mark that the disk has."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from ipytaskfarm.engine.begun_marks import BegunMarks, Place
from ipytaskfarm.system.flight_recorder import Recorder
from tests.support.polling import eventually


class Disk:
    """What the disk has of a recorder: the mark as of the last fsync."""

    def __init__(self, recorder: Recorder) -> None:
        self.mark: Place = (0, 0)
        self.syncs = 0
        self._recorder = recorder
        self._mark_begun = recorder.mark_begun

    def mark_begun(self, number: int, place: int) -> None:
        self._mark_begun(number, place)
        self.mark = self._recorder.begun_upto() or (0, 0)
        self.syncs += 1


@pytest.fixture
def recorder(tmp_path: Path) -> Iterator[Recorder]:
    made = Recorder.create(tmp_path / "engine-1.rec", "s.1", 1, boot="this one", is_marked=True)
    yield made
    made.close()


@pytest.fixture
def disk(recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> Disk:
    disk = Disk(recorder)
    monkeypatch.setattr(recorder, "mark_begun", disk.mark_begun)
    return disk


@pytest.fixture
def marks(recorder: Recorder) -> Iterator[BegunMarks]:
    marks = BegunMarks(recorder)
    marks.start()
    yield marks
    marks.finish()


def begin(marks: BegunMarks, place: Place) -> None:
    """What the runner does."""
    if place > marks.next:
        marks.begin(place)


@pytest.mark.parametrize("seed", range(10))
def test_no_run_begins_behind_the_mark(
    seed: int, marks: BegunMarks, recorder: Recorder, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rule of the controller: what may have begun is the first unanswered run, and all up to the mark."""
    chance = random.Random(seed)
    clock = [1000.0]
    monkeypatch.setattr("ipytaskfarm.engine.begun_marks.time.monotonic", lambda: clock[0])
    number, unanswered, runs = 7 << 32, 0, 0
    for _ in range(30):
        number += chance.randrange(1, 5)
        count = chance.choice((1, 2, 40))
        marks.expect(number, 0, count)
        for at in range(count):
            clock[0] += chance.choice((0.0001, 0.001, 0.5))
            begin(marks, (number, at))
            assert not unanswered or (number, at) <= disk.mark
            recorder.begin(runs, 1)
            recorder.end_with(b"result", runs, 1)
            runs += 1
            unanswered += 1
            if chance.random() < 0.2:
                recorder.read()
                recorder.release(recorder._cursor)
                unanswered = 0


def test_short_runs_share_their_marks(marks: BegunMarks, recorder: Recorder, disk: Disk) -> None:
    marks.expect(1, 0, 5000)
    recorder.end_with(b"result", 0, 1)
    for at in range(5000):
        begin(marks, (1, at))
    eventually(lambda: disk.mark >= (1, 4999))
    assert disk.syncs < 50


def test_one_task_at_a_time_needs_no_mark(marks: BegunMarks, recorder: Recorder, disk: Disk) -> None:
    for number in range(1, 20):
        marks.expect(number, 0, 1)
        begin(marks, (number, 0))
        recorder.end_with(b"result", number, 1)
        recorder.read()
        recorder.release(recorder._cursor)
    assert not disk.syncs


def test_marks_reach_into_the_hand_outs_that_have_arrived_and_no_further(recorder: Recorder) -> None:
    marks = BegunMarks(recorder)
    for number, count in ((3, 4), (8, 2), (9, 5)):
        marks.expect(number, 0, count)
    assert marks._ahead((3, 0), 0) == (3, 0)
    assert marks._ahead((3, 1), 2) == (3, 3)
    assert marks._ahead((3, 1), 3) == (8, 0)
    assert marks._ahead((3, 1), 5) == (9, 0)
    assert marks._ahead((8, 1), 100) == (9, 4)
    assert marks._ahead((9, 0), 1) == (9, 1)


def test_a_recorder_knows_its_boot(recorder: Recorder) -> None:
    again = Recorder.open(recorder.path)
    assert (again.boot, again.begun_upto()) == ("this one", (0, 0))
    recorder.mark_begun(5, 2)
    assert again.begun_upto() == (5, 2)
    again.close()


def test_without_marks_nothing_is_known_after_a_reboot(tmp_path: Path) -> None:
    recorder = Recorder.create(tmp_path / "engine-2.rec", "s.2", 2)
    marks = BegunMarks(recorder)
    assert recorder.begun_upto() is None
    assert marks.next > (1 << 63, 1 << 63)
    recorder.close()
