"""Ids and times as people write them."""

from __future__ import annotations

from datetime import datetime

import pytest

from ipytaskfarm.core.messages.tables import JobRow
from ipytaskfarm.core.parsing import parse_ids, parse_since
from ipytaskfarm.display.farm_tables import job_state


@pytest.mark.parametrize(
    ("words", "ids"),
    [
        (["3"], [3]),
        (["3-9"], [3, 4, 5, 6, 7, 8, 9]),
        (["3,5,7"], [3, 5, 7]),
        (["7", "3-5", "5,9"], [7, 3, 4, 5, 9]),
        (["3,", "5", ","], [3, 5]),
        (["4-4"], [4]),
        ([], []),
    ],
)
def test_ids(words: list[str], ids: list[int]) -> None:
    assert parse_ids(words) == ids


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("x13", "'x13' is no task id: those are whole numbers, like 3"),
        ("-3", "'-3' is no task id"),
        ("1.5", "'1.5' is no task id"),
        ("²", "'²' is no task id"),
        ("3--5", "'3--5' is no task id"),
        ("9" * 30, "is no task id"),
        ("9-3", "write 3-9"),
        ("1-1000001", "are 1,000,001 task ids: no more than 1,000,000 at once"),
    ],
)
def test_what_is_no_id_is_named(word: str, told: str) -> None:
    with pytest.raises(ValueError, match="id") as raised:
        parse_ids(["1", word])
    assert told in str(raised.value)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90.0), ("10m", 600.0), ("2h", 7200.0), ("1.5d", 129600.0)],
)
def test_how_long_ago(text: str, seconds: float) -> None:
    assert parse_since(text, 1_000_000.0) == 1_000_000.0 - seconds


def test_since_when() -> None:
    assert parse_since("2026-11-21T10:00", 0.0) == datetime(2026, 11, 21, 10).timestamp()
    assert parse_since("2026-11-21", 0.0) == datetime(2026, 11, 21).timestamp()
    assert parse_since("2026-11-21T10:00+02:00", 0.0) == parse_since("2026-11-21T08:00Z", 0.0)


@pytest.mark.parametrize("text", ["", "yesterday", "10", "10 minutes", "-5m", "10x", "2026-13-01", "0001-01-01T00:00"])
def test_what_is_no_time_is_told_what_is(text: str) -> None:
    with pytest.raises(ValueError, match="10m, 2h") as raised:
        parse_since(text, 0.0)
    assert repr(text) in str(raised.value)


@pytest.mark.parametrize(
    ("unfinished", "arrived", "paused", "failed", "state"),
    [
        (2, 3, False, "", "running"),
        (2, 3, True, "", "paused"),
        (0, 2, False, "", "running"),
        (0, 3, True, "", "ended"),
        (0, 3, False, "task 1 of its job failed", "ended: task 1 of its job failed"),
    ],
)
def test_the_state_of_a_job(unfinished: int, arrived: int, paused: bool, failed: str, state: str) -> None:
    assert job_state(JobRow("id", "name", 3, arrived, unfinished, paused, failed, 0.0)) == state
