"""Test the number of engines for a load: it grows at once, shrinks after a while, and stays within the limits."""

from __future__ import annotations

from hypothesis import given, strategies as st

from ipytaskfarm.core.scheduler.autoscaling import Limits, Load, Scaler, engines_for


def load(busy: int = 0, waiting: int = 0, waiting_s: float | None = 0.0) -> Load:
    return Load(busy=busy, waiting=waiting, waiting_s=waiting_s)


def test_as_many_as_work_off_what_waits_within_patience() -> None:
    assert engines_for(load(), 2, 10.0) == 0
    assert engines_for(load(busy=2, waiting=100, waiting_s=35.0), 2, 10.0) == 6
    assert engines_for(load(busy=2, waiting=3, waiting_s=3600.0), 2, 10.0) == 5, "a task needs one engine at most"
    assert engines_for(load(busy=2, waiting=1000, waiting_s=0.1), 2, 10.0) == 3


def test_what_was_not_measured_doubles_at_most() -> None:
    assert engines_for(load(waiting=1000, waiting_s=None), 0, 10.0) == 1
    assert engines_for(load(busy=2, waiting=1000, waiting_s=None), 2, 10.0) == 4
    assert engines_for(load(busy=2, waiting=1, waiting_s=None), 2, 10.0) == 3


def test_it_grows_at_once_and_shrinks_after_a_while() -> None:
    scaler = Scaler(Limits(1, 8, 60.0), 10.0)
    busy = load(busy=1, waiting=50, waiting_s=500.0)
    assert scaler.wanted(busy, 1, 0.0) == 8
    assert scaler.wanted(load(busy=3), 8, 10.0) == 8
    assert scaler.wanted(load(busy=3), 8, 69.0) == 8
    assert scaler.wanted(load(busy=3), 8, 71.0) == 3
    assert scaler.wanted(load(busy=8), 8, 72.0) == 8
    assert scaler.wanted(load(), 8, 80.0) == 8, "it was needed meanwhile: the time starts again"
    assert scaler.wanted(load(), 8, 141.0) == 1


def test_agents_have_several_engines_each() -> None:
    scaler = Scaler(Limits(0, 10, 60.0), 60.0, engines_each=4)
    assert scaler.wanted(load(waiting=1, waiting_s=30.0), 0, 0.0) == 1
    assert scaler.wanted(load(busy=4, waiting=100, waiting_s=600.0), 1, 0.0) == 4


def test_more_than_the_limit_are_given_back_at_once() -> None:
    scaler = Scaler(Limits(0, 2, 60.0), 10.0)
    assert scaler.wanted(load(busy=5, waiting=100, waiting_s=1000.0), 5, 0.0) == 2


@given(
    st.integers(0, 100), st.integers(0, 10_000), st.one_of(st.none(), st.floats(0, 1e6)), st.integers(0, 50),
    st.integers(0, 10), st.integers(1, 8),
)  # fmt: skip
def test_never_beyond_the_limits(
    busy: int, waiting: int, waiting_s: float | None, there: int, least: int, each: int
) -> None:
    scaler = Scaler(Limits(least, least + 5, 60.0), 10.0, each)
    wanted = scaler.wanted(load(busy, waiting, waiting_s), there, 0.0)
    assert least <= wanted <= least + 5 or wanted == there
    if there < least:
        assert wanted >= least
