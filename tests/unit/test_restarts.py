"""Test when crashed processes of a farm are started again."""

from __future__ import annotations

from ipytaskfarm.deployment.watched_process import PAUSE_MAX_S, RESTARTS, WORKED_S, Restarts


def test_pauses_grow_in_a_storm_and_stay_below_the_limit() -> None:
    restarts = Restarts()
    pauses = [restarts.pause_s(0.7) for _ in range(12)]
    assert pauses[:4] == [0.5, 1.0, 2.0, 4.0]
    assert pauses == sorted(pauses)
    assert pauses[-1] == PAUSE_MAX_S


def test_a_process_that_has_worked_begins_a_new_row() -> None:
    restarts = Restarts()
    for _ in range(RESTARTS):
        restarts.pause_s(0.1)
    assert not restarts.too_many
    restarts.pause_s(0.1)
    assert restarts.too_many
    assert restarts.pause_s(WORKED_S) == 0.5
    assert not restarts.too_many
