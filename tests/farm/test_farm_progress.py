"""Progress that is true, on real farms."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ipytaskfarm import Farm, Task, TaskClient
from ipytaskfarm.client import progress as progress_module, screens
from ipytaskfarm.client.screens import ProgressView, Screen
from tests.support.farms import DEADLINE_S, Gate, until_running

pytestmark = pytest.mark.farm


class Recording:
    """A screen that records each view and its time."""

    def __init__(self) -> None:
        self.views: list[tuple[float, ProgressView]] = []
        self.last: ProgressView | None = None

    def show(self, view: ProgressView) -> None:
        self.views.append((time.monotonic(), view))

    def beside(self, write: object) -> None:
        raise AssertionError("nothing is written beside it")

    def close(self, view: ProgressView) -> None:
        self.last = view

    def screen(self) -> Screen:
        return self


@pytest.fixture
def screen(tc: TaskClient, monkeypatch: pytest.MonkeyPatch) -> Recording:
    recording = Recording()
    monkeypatch.delenv("IPYTASKFARM_PROGRESS", raising=False)
    monkeypatch.setattr(progress_module, "screen", recording.screen)
    monkeypatch.setattr(tc, "progress", True)
    return recording


TASK_S = 0.9


@pytest.mark.alone
def test_the_time_left_is_true_after_the_first_two_ends(tc: TaskClient, screen: Recording) -> None:
    """It is the case of 20 tasks of 3 s, scaled down."""
    ids = [tc.run(Task(f"import time; time.sleep({TASK_S})", name="equal")) for _ in range(14)]
    tc.barrier(ids)
    ended_s = time.monotonic()
    assert screen.views[0][1].left_s is None, "nothing has ended yet"
    known = [(at_s, view) for at_s, view in screen.views if 2 <= view.tally.ended <= 10]
    assert known
    for at_s, view in known:
        truth_s = ended_s - at_s
        assert view.left_s == pytest.approx(truth_s, rel=0.3), view.text()
    # It moves though nothing ends, and is not drawn more often than eyes can follow.
    gaps = [after - before for (before, _), (after, _) in zip(screen.views, screen.views[1:], strict=False)]
    assert min(gaps) >= 0.24
    assert {view.tally.runs for _, view in screen.views[2:-4]} <= {1, 2}
    assert screen.last is not None
    assert screen.last.head() == "14/14 tasks: 14 succeeded"


def test_one_long_item_of_a_map_has_a_display(tc: TaskClient, screen: Recording) -> None:
    def sleep(seconds: float) -> float:
        time.sleep(seconds)
        return seconds

    assert tc.map(sleep, [1.4]) == [1.4]
    assert screen.views
    assert all(view.text().startswith("0/1 items") for _, view in screen.views)
    assert screen.last is not None
    assert screen.last.head() == "1/1 items: 1 succeeded"


def test_a_job_shows_its_name_and_what_failed(tc: TaskClient, screen: Recording) -> None:
    job = tc.create_job("nightly")
    for n in range(4):
        job.add_task(Task(f"import time; time.sleep(0.5); 1 / {n % 2}"))
    job.submit()
    assert job.wait()
    assert screen.last is not None
    assert screen.last.head() == "job nightly: 4/4 tasks: 2 succeeded, 2 failed"
    assert repr(tc.progress(job.ids)).startswith("4/4 tasks: 2 succeeded, 2 failed, in ")


def test_progress_does_not_wait(tc: TaskClient, gate: Gate) -> None:
    ids = [tc.run(Task(gate.code)) for _ in range(5)]
    until_running(tc, ids[0])
    shown = tc.progress(ids)
    assert re.match(r"0/5 tasks: [12] running, [34] scheduled, .* – left", repr(shown))
    gate.open()
    tc.barrier(ids)
    assert repr(shown).startswith("5/5 tasks: 5 succeeded, in ")
    assert repr(tc.progress([])) == "0/0 tasks, in 0.0 s"
    with pytest.raises(IndexError):
        tc.progress([10**9])


def test_the_switch_is_still_a_switch(tc: TaskClient, screen: Recording) -> None:
    tc.progress = False
    assert not tc.progress
    tc.barrier(tc.run(Task("import time; time.sleep(1)")))
    assert not screen.views
    tc.progress = True
    assert tc.progress


def test_why_nothing_runs_is_said(tc: TaskClient, capfd: pytest.CaptureFixture[str]) -> None:
    task = tc.run(Task("1", targets=[777]))
    with pytest.raises(TimeoutError):
        tc.barrier(task, timeout=4.5)
    assert "nothing of what you wait for can run now" in capfd.readouterr().err
    tc.abort(task)


SCRIPT = """
import sys
from ipytaskfarm import Task, TaskClient
from ipytaskfarm.client import screens
screens.LINE_EVERY_S = 1.0
tc = TaskClient(sys.argv[1])
ids = [tc.run(Task('print("seen %d"); import time; time.sleep(0.8)' % n)) for n in range(4)]
tc.barrier(ids, stream=True)
print('end')
"""


def test_a_script_that_writes_to_files_has_no_control_characters_there(farm: Farm, tmp_path: Path) -> None:
    out, err = tmp_path / "out", tmp_path / "err"
    environment = {**os.environ, "IPYTASKFARM_PROGRESS": "1"}
    with out.open("wb") as stdout, err.open("wb") as stderr:
        command = [sys.executable, "-c", SCRIPT, str(farm.connection_file)]
        ended = subprocess.run(command, stdout=stdout, stderr=stderr, env=environment, timeout=DEADLINE_S, check=False)
    assert ended.returncode == 0, err.read_text()
    lines = out.read_text().splitlines()
    assert lines[-1] == "end"
    assert sorted(re.sub(r"^\[\d+\] ", "", line) for line in lines[:-1]) == [f"seen {n}" for n in range(4)]
    assert not re.search(rb"[\x00-\x09\x0b-\x1f]", out.read_bytes() + err.read_bytes())
    told = err.read_text().splitlines()
    assert told[-1].startswith("ipytaskfarm: 4/4 tasks: 4 succeeded, in ")
    assert screens.LINE_EVERY_S == 60.0
