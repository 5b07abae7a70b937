"""The live view's fold: a picture of bounded size, and pages that follow it by deltas."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings, strategies as st

from ipytaskfarm.core.messages.tables import ConnectionRow
from ipytaskfarm.core.messages.view import (
    CauseTable,
    EngineLine,
    EnginePage,
    FailureCause,
    FarmChanges,
    JobPage,
    JobProgress,
    Stretch,
    WaitingTable,
)
from ipytaskfarm.core.stretches import OpenStretch, merged
from ipytaskfarm.view import fold, picture
from ipytaskfarm.view.fold import FarmFold, cut, version_differences
from ipytaskfarm.view.picture import Picture, apply
from ipytaskfarm.web.handlers import metrics_text
from ipytaskfarm.web.last_state import head

TEXTS = ["", "abc", "<img src=x onerror=alert(1)>", "\x1b[31m\x00\r", "é" * 5000, "z" * 100_000]
SEEDS = st.integers(0, 2**32)
"""Of messages: Hypothesis would draw each of their ten thousand numbers itself, which takes minutes."""


class Speaker:
    """Says what a controller could say, by chance."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def text(self) -> str:
        return self._random.choice(TEXTS)

    def count(self) -> int:
        return self._random.randrange(10**6)

    def time(self) -> float:
        return self._random.random() * 1e6

    def stretch(self) -> Stretch:
        begin = self.time()
        return Stretch(
            self._random.randrange(200), self.text(), self.text(), begin, begin + self._random.random(),
            self._random.randint(1, 9), self.count(), self._random.random(),
        )  # fmt: skip

    def cause(self) -> FailureCause:
        kind = str(self._random.randrange(20))
        return FailureCause(self.text(), kind, kind, self.text(), self.count(), [self.count()], self.time())

    def job(self) -> JobProgress:
        name, flag = str(self._random.randrange(400)), self._random.random() < 0.2
        arrived = self.count()
        unfinished = self._random.randint(0, arrived)
        return JobProgress(name, self.text(), arrived, arrived, unfinished, 3, flag, self.text(), self.time())

    def engine(self) -> EngineLine:
        state = self._random.choice(["idle", "busy"])
        return EngineLine(
            self._random.randrange(500), self.text(), state, self.count(), self.text(), self.time(), 1, 2, self.time(),
            7, self.text(), self.text(),
        )  # fmt: skip

    def some(self, one: Callable[[], Any], most: int) -> list[Any]:
        return [one() for _ in range(self._random.randrange(most))]

    def message(self) -> Any:
        counts = {state: self.count() for state in ("scheduled", "pending", "succeeded", "failed")}
        match self._random.randrange(6):
            case 0:
                return CauseTable(self.some(self.cause, 150), self.count(), [(str(self._random.randrange(9)), 5)])
            case 1:
                return JobPage(self.some(self.job, 150), self.count())
            case 2:
                nodes = [{"node": self.text(), "name": self.text(), "load": self._random.random(), "capacity": {}}]
                return EnginePage(self.some(self.engine, 200), self.count(), {"idle": 1}, 4, nodes)
            case 3:
                return WaitingTable([(self.text(), self.count(), self.count(), self.text())], self.count())
        parts = self.some(self.stretch, 60), 0, self.some(self.cause, 60), self.some(self.job, 60)
        told = self.count(), self.count(), *parts, self._random.random() < 0.1
        return FarmChanges(self._random.randint(1, 3), self.time(), counts, *told)


def say(folded: FarmFold, message: Any) -> None:
    match message:
        case FarmChanges():
            folded.changes(message)
        case CauseTable():
            folded.cause_table(message)
        case JobPage():
            folded.job_page(message, 1e6)
        case EnginePage():
            folded.engine_page(message)
        case WaitingTable():
            folded.waiting_table(message)


@settings(max_examples=30, deadline=None)
@given(SEEDS, st.integers(0, 12))
def test_a_page_that_follows_by_deltas_has_the_same_picture(seed: int, joins: int) -> None:
    folded = FarmFold()
    page: dict[str, Any] = {}
    speaker = Speaker(seed)
    said = [speaker.message() for _ in range(12)]
    for number, message in enumerate(said):
        if number == joins:
            folded.picture.taken()
            page = json.loads(json.dumps(folded.picture.data))
        say(folded, message)
        if number >= joins:
            apply(page, json.loads(json.dumps(folded.picture.taken())))
    if len(said) > joins:
        assert page == json.loads(json.dumps(folded.picture.data))


@settings(max_examples=10, deadline=None)
@given(SEEDS)
def test_the_picture_and_the_fold_are_bounded(seed: int) -> None:
    folded = FarmFold()
    speaker = Speaker(seed)
    for _ in range(80):
        say(folded, speaker.message())
    data = folded.picture.data
    assert len(data["jobs"]) <= fold.JOBS_MAX
    assert len(data["causes"]) <= fold.CAUSES_MAX
    assert len(data["stretches"]) <= fold.STRETCHES_MAX
    assert len(folded._speeds) == len(folded._jobs) <= fold.JOBS_MAX
    assert len(folded._causes) <= fold.CAUSES_MAX
    assert max(len(text) for text in _texts(data)) <= 600
    assert not any("\x1b" in text or "\x00" in text for text in _texts(data))


def _texts(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        return [*value, *(text for each in value.values() for text in _texts(each))]
    return [text for each in value for text in _texts(each)] if isinstance(value, list) else []


def test_a_second_of_changes_is_small() -> None:
    """30 kB/s for a page of a farm on which everything happens at once."""
    folded = FarmFold()
    jobs = [JobProgress(str(n), f"job number {n}", 10**6, 10**6, 500_000 + n, 3, False, "", 0.0) for n in range(50)]
    folded.job_page(JobPage(jobs), 0.0)
    folded.picture.taken()
    size = 0
    for number in range(1, 41):
        at_s = 1.7e9 + number / 4
        runs = [
            Stretch(n % 64, "simulate", "", at_s - 0.25 + n / 1250, at_s - 0.249 + n / 1250, 40, 10**6 + n, 0.2)
            for n in range(300)
        ]
        causes = [
            FailureCause("error", "ValueError", f"model.py:{n} in f", "no " * 30, 5, [1, 2], at_s) for n in range(50)
        ]
        moved = [
            JobProgress(str(n), f"job number {n}", 10**6, 10**6, 400_000 - number, 3, False, "", 0.0) for n in range(50)
        ]
        counts = {"scheduled": 10**6 - number, "pending": 64, "succeeded": number * 300, "failed": number}
        folded.changes(FarmChanges(number, at_s, counts, 300, 1, runs, 0, causes, moved))
        size += len(json.dumps(folded.picture.taken(), separators=(",", ":")))
    assert size / 10 <= 60_000


def test_what_is_missed_is_asked_for_again() -> None:
    folded = FarmFold()
    counts = dict.fromkeys(("scheduled", "pending", "succeeded", "failed"), 0)
    folded.needs_tables = False
    folded.changes(FarmChanges(7, 1.0, counts, 0, 0))
    folded.changes(FarmChanges(8, 2.0, counts, 0, 0))
    assert not folded.needs_tables
    folded.changes(FarmChanges(10, 3.0, counts, 0, 0))
    assert folded.needs_tables


def test_failures_that_are_told_while_the_tables_are_read_are_counted_once() -> None:
    folded = FarmFold()
    numbers = iter(range(1, 100))

    def tell(failed: int) -> None:
        job = JobProgress("j", "fit", 20, 20, 0, failed, False, "", 0.0)
        causes = [FailureCause("error", "ValueError", "f", "no", failed, [1], 1.0)] if failed else []
        counts = dict.fromkeys(("scheduled", "pending", "succeeded", "failed"), 0)
        folded.changes(FarmChanges(next(numbers), 1.0, counts, 0, failed, causes=causes, jobs=[job]))

    def ask_and_answer(failed: int) -> None:
        folded.tables_asked()
        folded.job_page(JobPage([JobProgress("j", "fit", 20, 20, 0, 0, False, "", 0.0)]), 1.0)
        rows = [FailureCause("error", "ValueError", "f", "no", failed, [1], 1.0)]
        folded.cause_table(CauseTable(rows, 0, [("j", failed)]))

    ask_and_answer(5)
    tell(3)  # three of the five: they were told a moment after the store had them
    assert folded.needs_tables
    ask_and_answer(5)
    tell(0)
    assert not folded.needs_tables
    assert folded.doubts == 0
    assert folded.picture.data["jobs"]["j"]["failed"] == 5
    (cause,) = folded.picture.data["causes"].values()
    assert cause["count"] == 5
    folded.tables_asked()
    tell(2)  # perhaps after the store was read, and the answer has them not
    folded.cause_table(CauseTable([], 0, []))
    assert folded.needs_tables
    tell(1)  # nothing was asked for meanwhile
    ask_and_answer(8)
    tell(0)
    assert not folded.needs_tables


def test_failures_are_taken_for_known_only_of_the_jobs_that_were_counted() -> None:
    """One that came after the question keeps what was told of it; of more failed tasks than can be read all stays."""
    folded = FarmFold()
    old, new = (JobProgress(name, name, 9, 9, 0, 0, False, "", 0.0) for name in ("old", "new"))
    folded.job_page(JobPage([old]), 1.0)
    assert folded.jobs_to_count() == ["old"]
    counts = dict.fromkeys(("scheduled", "pending", "succeeded", "failed"), 0)
    cause = FailureCause("error", "ValueError", "f", "no", 3, [1], 1.0)
    folded.changes(FarmChanges(1, 1.0, counts, 0, 0, jobs=[msgspec.structs.replace(new, failed=3)]))
    folded.cause_table(CauseTable([cause], 0, [("old", 5)]))
    folded.settle()
    assert {key: job["failed"] for key, job in folded.picture.data["jobs"].items()} == {"old": 5, "new": 3}
    folded.needs_tables = False
    folded.cause_table(CauseTable([], complete=False))
    assert len(folded.picture.data["causes"]) == 1
    assert folded.needs_tables


def test_the_time_left_of_a_job_comes_from_its_speed() -> None:
    folded = FarmFold()
    counts = dict.fromkeys(("scheduled", "pending", "succeeded", "failed"), 0)
    folded.job_page(JobPage([JobProgress("j", "fit", 1000, 1000, 1000, 0, False, "", 100.0)]), 100.0)
    for second in range(1, 21):
        job = JobProgress("j", "fit", 1000, 1000, 1000 - 10 * second, 0, False, "", 100.0)
        folded.changes(FarmChanges(second, 100.0 + second, counts, 10, 0, jobs=[job]))
    entry = folded.picture.data["jobs"]["j"]
    assert entry["rate"] == pytest.approx(10, rel=0.1)
    assert entry["left_s"] == pytest.approx(80, rel=0.1)
    paused = JobProgress("j", "fit", 1000, 1000, 800, 0, True, "", 100.0)
    folded.changes(FarmChanges(21, 121.0, counts, 0, 0, jobs=[paused]))
    assert folded.picture.data["jobs"]["j"]["left_s"] is None


def test_what_was_foretold_of_a_job_is_taken_back_when_nothing_ends() -> None:
    folded = FarmFold()
    counts = dict.fromkeys(("scheduled", "pending", "succeeded", "failed"), 0)
    folded.job_page(JobPage([JobProgress("j", "fit", 60, 60, 60, 0, False, "", 100.0)]), 100.0)
    job = JobProgress("j", "fit", 60, 60, 20, 0, False, "", 100.0)
    folded.changes(FarmChanges(1, 104.0, counts, 40, 0, jobs=[job]))
    found = []
    for second in range(1, 61):  # the others hang
        found.append(folded.picture.data["jobs"]["j"]["left_s"])
        folded.changes(FarmChanges(1 + second, 104.0 + second, counts, 0, 0))
    assert found[0] == 2.0
    assert found[20] > 8.0
    assert found[-1] is None


def test_numbers_of_a_farm_that_is_gone_are_not_given_as_the_present() -> None:
    picture = {
        "counts": {"scheduled": 3, "running": 2, "succeeded": 1, "failed": 0},
        "engine_states": {"busy": 2},
        "status": {"state": "up", "text": ""},
    }
    assert b'taskfarm_tasks{farm="f",state="running"} 2.0' in metrics_text("f", picture)
    assert head("f", picture).startswith("farm 'f': 3 scheduled, 2 running, 1 succeeded, 0 failed; 2 engines, 20")
    picture["status"] = {"state": "gone", "text": "it was stopped", "seen_s": 86400.0}
    metrics = metrics_text("f", picture)
    assert b'taskfarm_up{farm="f"} 0.0' in metrics
    assert b"taskfarm_tasks" not in metrics
    at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(86400.0))
    assert head("f", picture).startswith("farm 'f' (it was stopped): 3 scheduled")
    assert head("f", picture).endswith(f"2 engines, {at}")


@settings(max_examples=30, deadline=None)
@given(SEEDS, st.floats(1e-3, 10), st.integers(250, 400))
def test_merging_loses_no_run(seed: int, resolution_s: float, most: int) -> None:
    rows = [Speaker(seed + n).stretch() for n in range(600)]
    found = merged(rows, resolution_s, most)
    assert len(found) <= most
    assert sum(row.count for row in found) == sum(row.count for row in rows)
    assert sum(row.busy_s for row in found) == pytest.approx(sum(row.busy_s for row in rows))
    assert {row.engine_id for row in found} == {row.engine_id for row in rows}
    failed = {row.engine_id for row in rows if row.outcome}
    assert failed == {row.engine_id for row in found if row.outcome}, "a failure stays in the picture"


@pytest.mark.parametrize("seed", range(20))
def test_a_run_is_added_without_an_object_as_with_one(seed: int) -> None:
    chance = random.Random(seed)
    at_s, one, other = 0.0, None, None
    for task in range(200):
        name, outcome = chance.choice(["", "", "", "fit"]), chance.choice(["", "", "", "error"])
        began_s = at_s + chance.choice([0.0, 0.001, 0.03])
        at_s = began_s + chance.choice([-0.001, 0.0, 0.001, 0.019, 0.02, 0.3])
        run = Stretch(3, name, outcome, began_s, at_s, chance.choice([1, 4]), task, max(0.0, at_s - began_s))
        if one is not None and one.takes(run, 0.02):
            one.add(run)
        else:
            one = OpenStretch(run)
        if other is None or not other.takes_run(name, outcome, began_s, at_s, run.count, 0.02):
            other = OpenStretch(run)
        assert one.closed() == other.closed()


def test_merged_runs_know_how_many_were_bad() -> None:
    """One failure in twenty does not make twenty failures."""
    rows = [Stretch(0, "", "error" if n % 20 == 7 else "", n / 100, n / 100 + 0.005, 2, n, 0.005) for n in range(400)]
    for most in (400, 100, 7, 1):
        found = merged(merged(rows, 1e-3, 2 * most), 1e-3, most)
        assert len(found) <= most
        assert sum(row.count for row in found) == 800
        assert sum(row.bad for row in found) == 40
        assert all(fold.stretch_row(row)[-1] == row.bad for row in found)


def test_merging_makes_few_of_many() -> None:
    rows = [Stretch(n % 4, f"t{n % 3}", "", n / 100, n / 100 + 0.008, 1, n, 0.008) for n in range(20_000)]
    found = merged(rows, 0.001, 100)
    assert 4 <= len(found) <= 100
    assert sum(row.count for row in found) == 20_000


def test_a_page_resumes_by_number_if_it_was_not_away_for_long() -> None:
    log = picture.DeltaLog("abc")
    assert log.add([]) is None
    for number in range(1, picture.KEPT + 21):
        delta = log.add([["set", "x", number]])
        assert delta is not None
        assert delta.number == number
    last = log.number
    assert log.since("abc", last) == []
    missed = log.since("abc", last - 2)
    assert missed is not None
    assert [delta.number for delta in missed] == [last - 1, last]
    assert log.since("abc", 3) is None, "too long ago"
    assert log.since("other", last) is None, "another picture"
    assert log.since("abc", last + 1) is None
    assert log.since("abc", "4") is None
    assert log.since("abc", None) is None


def test_an_operation_that_changes_nothing_is_none() -> None:
    picture = Picture()
    picture.set("a", 1)
    picture.put("b", {"x": 1})
    picture.append("c", [1, 2, 3], 2)
    assert len(picture.taken()) == 3
    picture.set("a", 1)
    picture.put("b", {"x": 1})
    picture.append("c", [], 2)
    picture.drop("b", ["y"])
    assert picture.taken() == []
    assert picture.data == {"a": 1, "b": {"x": 1}, "c": [2, 3]}
    with pytest.raises(ValueError, match="no operation 'add'"):
        apply({}, [["add", "a", 1]])


def test_foreign_text_is_cut_and_marked() -> None:
    assert cut("\x1b[31mred\x00") == "\N{REPLACEMENT CHARACTER}[31mred\N{REPLACEMENT CHARACTER}"
    assert cut("a\nb") == "a\nb"
    assert cut("x" * 500) == "x" * 399 + "…"
    assert cut("<b>") == "<b>", "it is shown as text, so it stays as it is"


def test_versions_that_differ_are_named_with_the_remedy() -> None:
    def client(name: str, version: str, python: str, there: bool = True, key: str = "client") -> ConnectionRow:
        return ConnectionRow(key, name, there, version, python)

    same = client("me@here 1", "1.0", "3.11.2")
    assert version_differences("1.0", "1.0", [same, client("old@peer 1", "", "")], ["3.11.9"]) == []
    assert version_differences("1.0", "", [], []) == []
    (line,) = version_differences("1.0", "2.0", [], [])
    assert "from ipytaskfarm 1.0, and the farm runs 2.0" in line
    (line,) = version_differences("1.0", "1.0", [same, client("me@here 7", "0.9", "3.11.2")], ["3.11.9"])
    assert line.startswith("The client me@here 7 uses ipytaskfarm 0.9, and the farm 1.0")
    others = [client(f"me@here {n}", "1.0", "3.9.1") for n in range(3)]
    (line,) = version_differences("1.0", "1.0", others, ["3.11.9", "", "strange"])
    assert line.startswith("3 clients use Python 3.9, and the engines 3.11")
    gone = [client("me@here 7", "0.9", "3.9.1", there=False), client("node", "0.9", "3.9.1", key="agent:a")]
    assert version_differences("1.0", "1.0", gone, ["3.11.9"]) == []
