"""When an engine rings for its results: at once, or for several together as long as it has other work."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from ipytaskfarm.engine import result_bell
from ipytaskfarm.engine.result_bell import BUSY_PAUSE_S, GATHERED_MAX, PAUSE_S, SPARE_PAUSE_S, ResultBell
from ipytaskfarm.system.bell import Bell
from ipytaskfarm.system.flight_recorder import Recorder


class Desk:
    """A bell with a recorder that the agent has not read, and a clock that is set."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s = 100.0
        monkeypatch.setattr(result_bell, "time", SimpleNamespace(perf_counter=lambda: self.now_s))
        self.agent = Bell.listen(folder / "bell.sock")
        self.recorder = Recorder.create(folder / "recorder", "agent.4", 4)
        self.reader = Recorder.open(folder / "recorder")
        self.engine = Bell.connect(folder / "bell.sock")
        self.bell = ResultBell(self.engine, self.recorder, 4)
        self.bell.begin()

    def result(self, run_s: float, waiting: int, in_company: bool = False) -> bool:
        """Let a run end, and return whether the engine has rung."""
        self.now_s += run_s
        self.recorder.end_with(b"record", 1, 1)
        self.bell.result(run_s, waiting, in_company)
        return self.has_rung()

    def watch_after(self, seconds: float) -> bool:
        """Let the lane's thread look after this time, and return whether the engine has rung."""
        self.now_s += seconds
        self.bell.ring_if_due()
        return self.has_rung()

    def has_rung(self) -> bool:
        return self.agent.take() == {4}

    def read(self) -> None:
        """Let the agent read all results, and the controller acknowledge them."""
        self.reader.release(self.reader.read()[-1].cursor)


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Desk]:
    desk = Desk(tmp_path, monkeypatch)
    yield desk
    desk.agent.close()
    desk.engine.close()


def test_the_last_result_rings_at_once(desk: Desk) -> None:
    assert not desk.result(PAUSE_S / 10, waiting=1)
    assert desk.result(PAUSE_S / 10, waiting=0)


def test_a_result_before_the_last_run_is_not_kept_back(desk: Desk) -> None:
    assert desk.result(0.02, waiting=1), "the agent must send more before the next run ends"


def test_results_gather_while_the_engine_has_other_work(desk: Desk) -> None:
    rung = [desk.result(0.03, waiting) for waiting in range(19, 11, -1)]
    assert rung == [False, False, False, True] * 2, "each time after a tenth of a second"


def test_results_gather_for_less_than_the_work_that_is_left(desk: Desk) -> None:
    took_s = SPARE_PAUSE_S / 10
    rung = [desk.result(took_s, waiting) for waiting in range(9, -1, -1)]
    assert rung.index(True) in (2, 3), "after three runs as many are left as twice that time"
    assert rung[-2:] == [True, True]


def test_a_long_run_behind_a_result_does_not_keep_it_back(desk: Desk) -> None:
    assert not desk.result(0.02, waiting=9)
    assert not desk.watch_after(SPARE_PAUSE_S / 3)
    assert desk.watch_after(SPARE_PAUSE_S)
    assert not desk.watch_after(SPARE_PAUSE_S), "it was reported"


def test_the_lanes_thread_does_not_ring_for_what_was_read(desk: Desk) -> None:
    assert not desk.result(0.02, waiting=9)
    desk.read()
    assert not desk.watch_after(2 * SPARE_PAUSE_S)


def test_many_results_do_not_wait_longer_than_at_full_speed(desk: Desk) -> None:
    quick_s = BUSY_PAUSE_S / GATHERED_MAX / 2
    rung = [desk.result(quick_s, waiting=1000) for _ in range(3 * GATHERED_MAX)]
    assert rung.index(True) in (2 * GATHERED_MAX - 1, 2 * GATHERED_MAX)
    assert sum(rung) == 1


def test_few_quick_runs_ring_every_millisecond(desk: Desk) -> None:
    rung = [desk.result(PAUSE_S / 4, waiting=3) for _ in range(20)]
    assert sum(rung) == 4


def test_what_runs_beside_coroutines_is_no_work_to_spare(desk: Desk) -> None:
    assert not desk.result(PAUSE_S / 2, waiting=0, in_company=True), "more may end in the same round of the loop"
    assert desk.bell.gathered == 1, "the engine rings after the pause"
    assert desk.result(0.02, waiting=5, in_company=True)


def test_results_that_the_agent_has_read_for_another_engine_are_not_reported_again(desk: Desk) -> None:
    assert not desk.result(0.02, waiting=19)
    assert not desk.result(0.02, waiting=18)
    desk.read()  # another engine has rung
    rung = [desk.result(0.02, waiting) for waiting in range(17, 10, -1)]
    assert rung.index(True) == 5, "the pause begins with the first that the agent does not know"
