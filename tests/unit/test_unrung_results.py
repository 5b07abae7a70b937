"""Results for which no engine has rung are read, but not at once: an engine with other work rings for several."""

from __future__ import annotations

from ipytaskfarm.agent.relay import UNRUNG_S, UnrungResults


def test_results_are_due_when_they_have_waited() -> None:
    unrung = UnrungResults()
    assert not unrung.are_due(True, 100.0)
    assert not unrung.are_due(True, 100.0 + UNRUNG_S / 2)
    assert unrung.are_due(True, 100.1 + UNRUNG_S)
    assert unrung.are_due(True, 100.2 + UNRUNG_S), "until they are read"


def test_the_wait_begins_anew_when_all_were_read() -> None:
    unrung = UnrungResults()
    assert not unrung.are_due(True, 100.0)
    unrung.read()
    assert not unrung.are_due(True, 100.1 + UNRUNG_S)


def test_the_wait_begins_anew_when_nothing_was_left() -> None:
    unrung = UnrungResults()
    assert not unrung.are_due(True, 100.0)
    assert not unrung.are_due(False, 100.01)
    assert not unrung.are_due(True, 100.1 + UNRUNG_S)
