"""Test event logs: the decisions of a controller are repeated, and differences are named."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from ipytaskfarm import Farm, Task
from ipytaskfarm.cli import main
from ipytaskfarm.controller.replay import play
from ipytaskfarm.core import messages as m, saves as s
from ipytaskfarm.core.errors import StoreError
from ipytaskfarm.core.messages.task_types import Submission
from ipytaskfarm.core.scheduler.decision import Now
from ipytaskfarm.core.scheduler.events import Joined, Tick
from ipytaskfarm.core.scheduler.restore import restored_farm
from ipytaskfarm.core.scheduler.scheduler import Scheduler
from ipytaskfarm.core.scheduler.settings import SchedulerSettings
from ipytaskfarm.storage.event_log import EVENTS, EventLog, PolicyName, mark_of, read
from ipytaskfarm.testing.memory_store import MemoryStore

from ..support.store_model import final, task

FIFO = PolicyName("ipytaskfarm.policies:FIFO")


def made(path: Path, turns: int = 3) -> Path:
    """Return an event log of a farm without engines, to which tasks are submitted."""
    now = Now(10.0, 1_700_000_000.0)
    snapshot = MemoryStore().load()
    log = EventLog.begin(path, "logged", snapshot, SchedulerSettings(), FIFO, False, now)
    scheduler = Scheduler(restored_farm("logged", snapshot, SchedulerSettings(), now))
    heard: list[tuple[str, object]] = [("client", Joined("client", "me")), ("client", m.NeedIds())]
    for turn in range(turns):
        out = scheduler.turn(heard, now)  # type: ignore[arg-type]
        log.note(now, heard, out.saves)  # type: ignore[arg-type]
        now = Now(now.mono_s + 0.5, now.wall_s + 0.5)
        heard = [("client", m.Submit([Submission(turn, b"work", 0.0)])), ("", Tick())]
    log.close()
    return path


def test_a_tape_plays_as_it_was_recorded(tmp_path: Path) -> None:
    path = made(tmp_path / "events", 4)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    played = list(play(path))
    assert [each.number for each in played] == [0, 1, 2, 3]
    assert all(each.same for each in played)
    assert [type(event).__name__ for _, event in played[1].events] == ["Submit", "Tick"]
    assert len(played[-1].scheduler.farm.tasks.unfinished) == 3
    assert played[-1].now == Now(11.5, 1_700_000_001.5)


def test_a_tape_of_an_earlier_release_is_played() -> None:
    """The log contains questions that the scheduler handled then, and that the controller's loop answers now."""
    played = list(play(Path(__file__).parents[1] / "data" / "version1.events"))
    # In the first turn a client was given its ids, more of them than now; in the second a task was saved, of which less
    # was told then.
    assert [each.same for each in played] == [False, False, True]
    heard = {type(getattr(event, "question", event)).__name__ for each in played for _, event in each.events}
    assert heard >= {"ReadHistory", "CompactStore", "ListConnections", "ReadBlob", "SetUp", "Results"}
    assert list(played[-1].scheduler.farm.tasks.finals) == [0]


def test_other_saves_have_another_mark_in_any_order() -> None:
    saves: list[s.Save] = [task(1), task(2), final(1)]
    assert mark_of(saves) == mark_of(saves[::-1])
    assert mark_of(saves) != mark_of(saves[:2])
    assert mark_of([task(1)]) != mark_of([task(1, b"other")])


def test_every_event_can_be_taped() -> None:
    assert {"Submit", "Results", "EngineLost", "Joined", "Tick", "Evaluated", "Originals", "Ask"} <= EVENTS.keys()


def test_a_tape_that_breaks_off_is_played_up_to_there(tmp_path: Path) -> None:
    path = made(tmp_path / "events", 4)
    data = path.read_bytes()
    path.write_bytes(data[:-3])
    assert len(list(play(path))) == 3


class SlowFile:
    """Takes a part of each write, as a file does on a disk that becomes full."""

    def __init__(self) -> None:
        self.taken = bytearray()

    def write(self, data: memoryview) -> int:
        self.taken += data[:7]
        return min(7, len(data))


def test_a_turn_is_written_whole_by_a_file_that_takes_a_part_at_a_time(tmp_path: Path) -> None:
    file = SlowFile()
    log = EventLog(file)  # type: ignore[arg-type]
    log.note(Now(1.0, 2.0), [("client", m.NeedIds())], [])
    whole = made(tmp_path / "events", 0).read_bytes() + file.taken
    (tmp_path / "both").write_bytes(whole)
    _, turns = read(tmp_path / "both")
    assert [turn.mono_s for turn in turns] == [1.0]


def test_what_is_no_tape_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="cannot be read"):
        read(tmp_path / "none")
    other = tmp_path / "other"
    other.write_bytes(b"\0\0\0\4abcd")
    with pytest.raises(StoreError, match="not an event log"):
        read(other)
    with pytest.raises(StoreError, match="cannot be written"):
        made(tmp_path / "no folder" / "events")


def test_an_older_tape_is_set_aside(tmp_path: Path) -> None:
    made(tmp_path / "events", 2)
    made(tmp_path / "events", 4)
    assert len(list(play(tmp_path / "events"))) == 4
    assert len(list(tmp_path.iterdir())) == 2


def test_the_command_names_the_turn_that_differs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = made(tmp_path / "events", 4)
    assert main(["replay", str(path), "--task", "1"]) == 0
    told = capsys.readouterr().out
    assert "turn 2" in told
    assert " accepted" in told
    assert "4 turns, at the end: 3 scheduled" in told
    # Another payload in one turn, of the same length: other saves come of it than were marked then.
    data = path.read_bytes()
    at = data.rindex(b"work")
    path.write_bytes(data[:at] + b"walk" + data[at + 4 :])
    assert main(["replay", str(path)]) == 1
    assert "turn 3 first" in capsys.readouterr().out


@pytest.mark.farm
def test_a_farms_life_on_tape(farm_dirs: object, tmp_path: Path) -> None:
    log = tmp_path / "events"
    with Farm(n=2, record=log) as farm, farm.task_client() as tc:
        ids = [tc.run(Task("a = n // (n % 7)", push={"n": n}, pull="a", retries=1)) for n in range(60)]
        tc.barrier(ids)
        failed = tc.queue_status()["failed"]
    assert failed == 9
    played = list(play(log))
    assert all(each.same for each in played)
    farm_then = played[-1].scheduler.farm
    assert (len(farm_then.tasks.finals), sum(1 for reason in farm_then.tasks.finals.values() if reason)) == (60, failed)
