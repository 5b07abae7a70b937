"""Test the progress display: its contents, its place, and its frequency."""

from __future__ import annotations

import builtins
import io
import re
import sys
import threading
from types import SimpleNamespace
from typing import Any, cast

import pytest

from ipytaskfarm.client import progress as progress_module, screens
from ipytaskfarm.client.estimate import Estimate, Running, Tally
from ipytaskfarm.client.progress import CountedWork, LiveProgress, ProgressDisplay
from ipytaskfarm.client.questions import AsksController
from ipytaskfarm.client.screens import ProgressView
from ipytaskfarm.client.task_work import RunningNow
from ipytaskfarm.core.errors import FarmNotRunning
from ipytaskfarm.core.messages import RunningTable
from ipytaskfarm.display.ipython import notebook_shell

CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f]")


class Clock:
    """The time, as the display sees it."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def monotonic(self) -> float:
        return self.now_s

    def time(self) -> float:
        return self.now_s

    def localtime(self, at_s: float) -> float:
        return at_s

    def strftime(self, pattern: str, at_s: float) -> str:
        return "2026-11-28 12:00:00"

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds


class Play:
    """Work with a state that the test sets."""

    def __init__(self, clock: Clock, total: int = 10) -> None:
        self._clock = clock
        self.estimate: Estimate | None = Estimate(clock.now_s)
        self.now = Tally(total, running=[Running("task 0", 0, 0.0), Running("task 1", 1, 0.0)], engines=2)
        self.looks = 0

    def tally(self, now_s: float) -> Tally:
        self.looks += 1
        return self.now

    def end(self, succeeded: int, failed: int = 0, run_s: float = 1.0) -> None:
        assert self.estimate is not None
        self.estimate.add([run_s] * (succeeded + failed), self._clock.now_s)
        running = self.now.running if self.now.ended + succeeded + failed < self.now.total else []
        self.now = self.now._replace(
            succeeded=self.now.succeeded + succeeded, failed=self.now.failed + failed, running=running
        )

    def is_over(self) -> bool:
        return self.now.ended == self.now.total

    def is_lost(self) -> bool:
        return False

    def elapsed_s(self) -> float | None:
        return 42.0


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Publisher:
    """The display publisher of a notebook's shell, and what its cell shows."""

    def __init__(self) -> None:
        self.shown: dict[str, dict[str, Any]] = {}
        self.published = 0

    def publish(self, data: Any, metadata: Any, *, transient: Any, update: bool) -> None:
        self.published += 1
        assert (transient["display_id"] in self.shown) is update, "the first is new, and the others are updates"
        self.shown[transient["display_id"]] = data


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress_module, "time", clock)
    monkeypatch.delenv("IPYTASKFARM_PROGRESS", raising=False)
    return clock


@pytest.fixture
def play(clock: Clock) -> Play:
    return Play(clock)


@pytest.fixture
def notebook(monkeypatch: pytest.MonkeyPatch) -> Publisher:
    publisher = Publisher()
    shell = SimpleNamespace(kernel=object(), display_pub=publisher)
    monkeypatch.setattr(builtins, "get_ipython", lambda: shell, raising=False)
    return publisher


def sit_at_terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """A terminal as stderr; in a test and not in a fixture, behind which pytest puts its own stream in place."""
    screen = Terminal()
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr(sys, "stderr", screen)
    return screen


def ticks(clock: Clock, display: ProgressDisplay, seconds: float, every_s: float = 0.05) -> None:
    for _ in range(round(seconds / every_s)):
        clock.sleep(every_s)
        display.tick()


def test_it_appears_after_half_a_second_and_moves_each_second(clock: Clock, play: Play, notebook: Publisher) -> None:
    with ProgressDisplay(play) as display:
        ticks(clock, display, 0.4)
        assert not notebook.shown
        ticks(clock, display, 0.2)
        (shown,) = notebook.shown.values()
        assert shown["text/plain"] == "0/10 tasks: 2 running, 8 scheduled, 0 s, – left"
        for second in range(1, 5):
            ticks(clock, display, 1.0)
            (shown,) = notebook.shown.values()
            assert f", {second} s, – left" in shown["text/plain"], "nothing has ended, and the seconds go on"


def test_it_is_drawn_four_times_a_second_at_most(clock: Clock, play: Play, notebook: Publisher) -> None:
    with ProgressDisplay(play) as display:
        ticks(clock, display, 10.5, every_s=0.01)
        assert 20 <= notebook.published <= 42
        assert play.looks == notebook.published, "nobody counts for nothing"


def test_a_notebook_keeps_how_it_ended(clock: Clock, play: Play, notebook: Publisher) -> None:
    with ProgressDisplay(play, name="job <b>") as display:
        ticks(clock, display, 3.0)
        play.end(3, 1, run_s=2.0)
        ticks(clock, display, 0.7)
        (shown,) = notebook.shown.values()
        assert (
            shown["text/plain"] == "job <b>: 4/10 tasks: 3 succeeded, 1 failed, 2 running, 4 scheduled, 3 s, 6 s left"
        )
        assert "job &lt;b&gt;: 4/10 tasks" in shown["text/html"]
        assert "<b>" not in shown["text/html"]
        play.end(6)
    (shown,) = notebook.shown.values()
    assert shown["text/plain"] == "job <b>: 10/10 tasks: 9 succeeded, 1 failed, in 4 s"
    assert "in 4 s" in shown["text/html"]
    assert "script" not in shown["text/html"]
    assert "widget" not in shown["text/html"]


@pytest.mark.parametrize(
    ("error", "text"), [(KeyboardInterrupt, "interrupted after 2 s"), (OSError, "not waited for after 2 s")]
)
def test_a_wait_that_breaks_off_says_so(
    clock: Clock, play: Play, notebook: Publisher, error: type[BaseException], text: str
) -> None:
    def breaks_off() -> None:
        with ProgressDisplay(play) as display:
            ticks(clock, display, 2.0)
            raise error

    with pytest.raises(error):
        breaks_off()
    (shown,) = notebook.shown.values()
    assert shown["text/plain"] == f"0/10 tasks: 2 running, 8 scheduled, {text}"


def test_what_is_slow_and_why_nothing_moves_is_shown(clock: Clock, play: Play, notebook: Publisher) -> None:
    play.end(3)
    play.now = play.now._replace(running=[Running("task 8", 1, 30.0)], why="the farm is held\n\x1b[31m<i>")
    with ProgressDisplay(play) as display:
        ticks(clock, display, 1.0)
        (shown,) = notebook.shown.values()
        assert "\n  task 8 has run for 30 s on engine 1, the others took 1 s" in shown["text/plain"]
        assert "\n  the farm is held\n" in shown["text/plain"]
        assert "&lt;i&gt;" in shown["text/html"]
        assert not CONTROL.search(shown["text/plain"])


def test_a_terminal_has_a_bar_and_keeps_a_line(clock: Clock, play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = sit_at_terminal(monkeypatch)
    with ProgressDisplay(play) as display:
        ticks(clock, display, 1.0)
        play.end(5, 1)
        ticks(clock, display, 3.0)
        display.beside(lambda: print("beside it", file=sys.stderr))
        drawn = terminal.getvalue()
        assert "0/10 tasks: 2 running" in drawn
        assert "━" in drawn
        assert "beside it\n" in drawn
        play.end(4)
    assert terminal.getvalue().endswith("10/10 tasks: 9 succeeded, 1 failed, in 4 s\n")


def test_a_terminal_forgets_what_went_well_soon(clock: Clock, play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = sit_at_terminal(monkeypatch)
    with ProgressDisplay(play) as display:
        ticks(clock, display, 1.0)
        play.end(10)
    assert "0/10" in terminal.getvalue()
    assert "in 1 s" not in terminal.getvalue()


def test_a_file_gets_a_line_a_minute_without_control_characters(
    clock: Clock, play: Play, capsys: pytest.CaptureFixture[str]
) -> None:
    with ProgressDisplay(play) as display:
        ticks(clock, display, 150.0, every_s=0.25)
        play.end(10)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.splitlines() == [
        "ipytaskfarm: 0/10 tasks: 2 running, 8 scheduled, 1 min 00 s, – left",
        "ipytaskfarm: 0/10 tasks: 2 running, 8 scheduled, 2 min 00 s, – left",
        "ipytaskfarm: 10/10 tasks: 10 succeeded, in 2 min 30 s",
    ]


def test_a_file_is_not_told_of_what_is_soon_over(clock: Clock, play: Play, capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressDisplay(play) as display:
        ticks(clock, display, 50.0, every_s=0.25)
        play.end(10)
    assert capsys.readouterr() == ("", "")


def test_it_can_be_switched_off(clock: Clock, play: Play, notebook: Publisher, monkeypatch: pytest.MonkeyPatch) -> None:
    with ProgressDisplay(play, show=False) as display:
        ticks(clock, display, 2.0)
    monkeypatch.setenv("IPYTASKFARM_PROGRESS", "0")
    with ProgressDisplay(play) as display:
        ticks(clock, display, 2.0)
    assert notebook.published == play.looks == 0


def test_engines_that_start_are_counted(clock: Clock, notebook: Publisher) -> None:
    ready = [0]
    starting = CountedWork(lambda: 4, lambda: ready[0], lambda: "engine 3: being prepared: 1 of 2, import numpy, 7 s")
    with ProgressDisplay(starting, "engines ready", name="farm here", counts_states=False) as display:
        ticks(clock, display, 1.3)
        (shown,) = notebook.shown.values()
        assert shown["text/plain"].splitlines() == [
            "farm here: 0/4 engines ready, 1 s",
            "  engine 3: being prepared: 1 of 2, import numpy, 7 s",
        ]
        ready[0] = 4
    (shown,) = notebook.shown.values()
    assert shown["text/plain"] == "farm here: 4/4 engines ready, in 1 s"


def test_progress_that_nobody_waits_for(clock: Clock, play: Play) -> None:
    play.end(4, run_s=2.0)
    live = LiveProgress(play, name="job x")
    assert repr(live) == "job x: 4/10 tasks: 4 succeeded, 2 running, 4 scheduled, 42 s, 6 s left"
    play.end(6)
    assert repr(live) == "job x: 10/10 tasks: 10 succeeded, in 42 s"
    assert "in 42 s" in live._repr_html_()


def test_progress_stands_still_while_the_farm_is_away(clock: Clock, play: Play, notebook: Publisher) -> None:
    play.end(4, run_s=2.0)
    live = LiveProgress(play)
    live._display.began_earlier(play, 0.0)
    live._display.at_once()
    (shown,) = notebook.shown.values()
    assert shown["text/plain"] == "4/10 tasks: 4 succeeded, 2 running, 4 scheduled, 42 s, 6 s left"
    told = notebook.published
    before = clock.now_s
    for away_s in (6.0, 7.0, 60.0):
        clock.now_s = before + away_s
        play.now = play.now._replace(running=None, why="the farm does not answer", away_s=away_s)
        live._display.tick()
    (shown,) = notebook.shown.values()
    assert shown["text/plain"] == "4/10 tasks: 4 succeeded, 42 s, – left\n  the farm does not answer"
    assert notebook.published == told + 1, "a saved notebook is not changed again and again"


class Asked:
    """A session of a farm that answers, falls silent, and is found to be stopped."""

    def __init__(self) -> None:
        self.reply: RunningTable | None = RunningTable([(1, 0, 5.0)], 1, 0)
        self.stopped = False

    def begin(self, question: object) -> SimpleNamespace:
        if self.stopped:
            raise FarmNotRunning("farm 'x' was stopped")
        event = threading.Event()
        if self.reply is not None:
            event.set()
        return SimpleNamespace(event=event, reply=self.reply)

    def forget(self, asked: object) -> None:
        pass


def test_what_ran_before_the_farm_was_away_is_not_known_to_run() -> None:
    session = Asked()
    running = RunningNow(cast(AsksController, session))
    assert running.look({1, 2}, 0, 10.0) == ([Running("task 1", 0, 5.0, task=1)], 1, 1)
    session.reply = None
    running.look({1, 2}, 0, 12.0)
    assert (running.why, running.away_s) == ("", 0.0), "it may answer yet"
    assert running.look({1, 2}, 0, 18.0) == (None, 0, 0)
    assert (running.why, running.away_s) == ("the farm does not answer", 8.0)
    session.stopped, running._asked = True, None
    assert running.look({1, 2}, 0, 20.0) == (None, 0, 0)
    assert running.why == "farm 'x' was stopped"
    session.stopped, session.reply = False, RunningTable([], 0, 2)
    assert running.look({1, 2}, 0, 22.0) == ([], 0, 2)
    assert (running.why, running.away_s) == ("", 0.0)


def test_an_engine_is_no_notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = type("TaskKernel", (), {"__module__": "ipytaskfarm.engine.kernel"})()
    monkeypatch.setattr(builtins, "get_ipython", lambda: SimpleNamespace(kernel=kernel), raising=False)
    assert notebook_shell() is None


def test_a_bar_fills_its_width_and_no_more() -> None:
    for tally in (Tally(3, 1, 1, [Running("task 2", 0, 1.0)]), Tally(7, 7), Tally(1, 0, 0, None), Tally(0)):
        view = ProgressView("tasks", tally, 1.0)
        widths = [float(width) for width in re.findall(r"width:([\d.]+)%", view.html())]
        assert sum(widths) <= 100.01
        for columns in (200, 60, 40, 20):
            first, *more = str(screens._drawn(view, columns)).splitlines()
            chars = len(re.match(r"[━╌─]*", first)[0])  # type: ignore[index]
            assert screens.BAR_CHARS_LEAST <= chars <= screens.BAR_CHARS
            told = first if view.times() in first else more[0]
            assert told.endswith(view.times()), "the bar gives way to the times, which are not cut off"


def test_a_long_name_leaves_room_for_the_counts() -> None:
    view = ProgressView("items", Tally(60, 12, 3, []), 1.0, name="a sweep of parameters with a rather long name")
    for columns, told in ((40, "a sweep…: 15/60 items"), (80, "12 succeeded, 3 failed")):
        first = str(screens._drawn(view, columns)).splitlines()[0]
        assert told in first[:columns]
    assert view.name in str(screens._drawn(view, 200))
