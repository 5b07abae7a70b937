"""The time that some work will still take, on a clock of the test's own."""

from __future__ import annotations

import random

import pytest

from ipytaskfarm.client.estimate import Estimate, Running, Tally, span


def played(durations: list[float], engines: int, at_s: float) -> tuple[Estimate, Tally, float]:
    """Run tasks of these durations in order on simulated engines; return the state at one moment, and the true time
    left.
    """
    free = [0.0] * engines
    times = []
    for number, duration in enumerate(durations):
        engine = min(range(engines), key=free.__getitem__)
        times.append((free[engine], free[engine] + duration, number, engine))
        free[engine] += duration
    estimate = Estimate(0.0)
    for end, run_s in sorted((end, end - start) for start, end, _, _ in times if end <= at_s):
        estimate.add([run_s], end)
    running = [
        Running(f"task {number}", engine, at_s - start) for start, end, number, engine in times if start <= at_s < end
    ]
    ended = sum(1 for _, end, _, _ in times if end <= at_s)
    return estimate, Tally(len(durations), ended, 0, running, len(running), engines), max(free) - at_s


@pytest.mark.parametrize("at_s", [3.0, 3.5, 4.0, 5.9, 6.0, 10.0, 20.0, 29.0])
def test_equal_tasks_are_known_after_the_first_ends(at_s: float) -> None:
    estimate, tally, truth_s = played([3.0] * 20, 2, at_s)
    left_s = estimate.left_s(tally, at_s)
    assert left_s == pytest.approx(truth_s, rel=0.01, abs=0.01)


def test_nothing_is_said_before_the_first_end() -> None:
    estimate, tally, _ = played([3.0] * 20, 2, 2.0)
    assert estimate.left_s(tally, 2.0) is None
    assert estimate.mean_s is None


def test_the_last_round_counts_whole() -> None:
    estimate, tally, truth_s = played([3.0] * 5, 2, 3.0)
    assert truth_s == 6.0
    assert estimate.left_s(tally, 3.0) == pytest.approx(6.0)


@pytest.mark.parametrize("seed", range(10))
def test_unequal_tasks_are_known_roughly_half_way(seed: int) -> None:
    chance = random.Random(seed)
    durations = [chance.uniform(1.0, 9.0) for _ in range(200)]
    at_s = sum(durations) / 4 / 2
    estimate, tally, truth_s = played(durations, 4, at_s)
    assert estimate.left_s(tally, at_s) == pytest.approx(truth_s, rel=0.2)


def test_short_tasks_are_judged_by_how_many_end() -> None:
    """Ten milliseconds of work each, of which the way here and there takes ten times as long."""
    estimate = Estimate(0.0)
    for tick in range(1, 9):
        estimate.add([0.01] * 5, tick / 4)
    tally = Tally(140, 40, 0, [Running("task 40", 0, 0.0)], 1, 2)
    assert estimate.left_s(tally, 2.0) == pytest.approx(5.0)


def test_items_that_travel_together_count_each() -> None:
    estimate = Estimate(0.0)
    estimate.add_together(5, 10.0, 10.0)
    running = [Running("task 1", 0, 4.0, parts=5)]
    assert estimate.left_s(Tally(20, 5, 0, running, None, 1), 14.0) == pytest.approx(6.0 + 20.0)


def test_one_that_runs_longer_than_any_other_did_is_named_and_not_guessed() -> None:
    estimate = Estimate(0.0)
    estimate.add([2.0, 2.0, 2.0], 6.0)
    tally = Tally(4, 3, 0, [Running("task 3", 1, 60.0)], 1, 1)
    assert estimate.left_s(tally, 66.0) is None
    assert estimate.slow(tally) == ["task 3 has run for 1 min 00 s on engine 1, the others took 2 s"]


def test_many_that_are_slow_are_counted() -> None:
    estimate = Estimate(0.0)
    estimate.add([1.0] * 3, 3.0)
    running = [Running(f"task {n}", n, 50.0 + n) for n in range(6)]
    slow = estimate.slow(Tally(9, 3, 0, running, 6, 6))
    assert [line.partition(" has")[0] for line in slow] == ["task 5", "task 4", "task 3", "and 3 more like it"]


def test_what_cannot_move_has_no_time() -> None:
    estimate = Estimate(0.0)
    estimate.add([1.0] * 3, 3.0)
    assert estimate.left_s(Tally(9, 3, 0, [], 0, 0), 3.0) is None
    assert estimate.left_s(Tally(9, 3, 0, [], 0, 2, "the farm is held"), 3.0) is None
    assert estimate.left_s(Tally(9, 3, 0, None), 3.0) is None
    assert estimate.left_s(Tally(3, 3), 3.0) == 0.0


def test_earlier_ends_tell_durations_and_no_pace() -> None:
    estimate = Estimate(0.0)
    estimate.add_earlier([0.001] * 1000, 100.0)
    tally = Tally(2000, 1000, 0, [Running("task 9", 0, 0.0)], 1, 1)
    assert estimate.left_s(tally, 100.0) is None
    estimate.add([0.001] * 10, 101.0)
    assert estimate.left_s(tally._replace(succeeded=1010), 101.0) == pytest.approx(99.0)


def test_a_million_waiting_tasks_are_judged_at_once() -> None:
    estimate = Estimate(0.0)
    estimate.add([3.0] * 2, 3.0)
    tally = Tally(1_000_000, 2, 0, [Running("task 3", 0, 0.0), Running("task 4", 1, 0.0)], 2, 2)
    assert estimate.left_s(tally, 3.0) == pytest.approx(1_500_000, rel=0.01)


def test_counts_fit_together() -> None:
    tally = Tally(10, 3, 1, [Running("task 4", 0, 1.0)], 5, 5)
    assert (tally.ended, tally.runs, tally.waits) == (4, 5, 1)
    assert Tally(10, 3, 1).runs is None
    assert Tally(5, 4, 0, [Running("a", 0, 1.0), Running("b", 1, 1.0)]).runs == 1, "an end that is told already"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (0.94, "0.9 s"), (0.96, "1 s"), (27.4, "27 s"), (59.6, "1 min 00 s"), (187, "3 min 07 s"),
     (7_500, "2 h 05 min"), (300_000, "3 d 11 h")],
)  # fmt: skip
def test_durations_for_people(seconds: float, text: str) -> None:
    assert span(seconds) == text
