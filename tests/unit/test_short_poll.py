"""A wait that polls for a moment: when it does, when it sleeps, and that it returns what the epoll has."""

from __future__ import annotations

import os
import select

import pytest

from ipytaskfarm.transport import short_poll
from ipytaskfarm.transport.short_poll import CREDIT_MAX, FEW_BYTES, PAUSE_S, POLL_S, ShortPoll

FOUND = [(7, 1)]


class World:
    """Stands for the modules `time` and `os`, and for an epoll that finds something at given times."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.there_s = float("inf")
        """When something is there."""
        self.yield_s = 0.000_02
        self.slept = 0
        self.yields = 0

    def perf_counter(self) -> float:
        return self.now_s

    def sched_yield(self) -> None:
        self.yields += 1
        self.now_s += self.yield_s

    def poll(self, timeout_s: float) -> list[tuple[int, int]]:
        if timeout_s > 0:
            self.slept += 1
            self.now_s = min(self.now_s + timeout_s, max(self.now_s, self.there_s))
        return FOUND if self.there_s <= self.now_s else []


@pytest.fixture
def it(monkeypatch: pytest.MonkeyPatch) -> World:
    world = World()
    monkeypatch.setattr(short_poll, "time", world)
    monkeypatch.setattr(short_poll, "os", world)
    return world


def wait(
    it: World, poll: ShortPoll[list[tuple[int, int]]], gap_s: float, heard_bytes: int = 300, timeout_s: float = 0.5
) -> tuple[int, int]:
    """Let something come after a gap. Return how often the wait has slept and yielded."""
    slept, yields = it.slept, it.yields
    it.there_s = it.now_s + gap_s
    found = poll.wait(timeout_s, heard_bytes)
    assert found == (FOUND if gap_s <= timeout_s else [])
    it.there_s = float("inf")
    return it.slept - slept, it.yields - yields


def test_after_a_short_wait_the_next_one_does_not_sleep(it: World) -> None:
    poll = ShortPoll(it.poll)
    assert wait(it, poll, 0.0004) == (1, 0)
    for _ in range(10):
        slept, yields = wait(it, poll, 0.0004)
        assert (slept, yields > 10) == (0, True)


def test_what_is_there_already_and_a_wait_of_no_time_do_not_yield(it: World) -> None:
    poll = ShortPoll(it.poll)
    wait(it, poll, 0.0004)
    assert wait(it, poll, 0.0) == (0, 0)
    assert wait(it, poll, 1.0, timeout_s=0.0) == (0, 0)


def test_beside_longer_tasks_and_in_an_idle_farm_it_sleeps(it: World) -> None:
    poll = ShortPoll(it.poll)
    for _ in range(10):
        wait(it, poll, 0.0004)
    polled = [wait(it, poll, gap_s)[1] > 0 for gap_s in (0.02, 0.6, 0.02, 0.6, 0.02, 0.02, 0.02)]
    assert sum(polled) == CREDIT_MAX
    assert not polled[-1]
    before_s = it.now_s
    wait(it, poll, 0.6)
    assert it.now_s - before_s == pytest.approx(0.5)


def test_at_full_speed_it_sleeps(it: World) -> None:
    poll = ShortPoll(it.poll)
    for _ in range(10):
        wait(it, poll, 0.0004)
    assert wait(it, poll, 0.0004, FEW_BYTES + 1) == (1, 0)
    assert wait(it, poll, 0.0004, FEW_BYTES)[0] == 0


def test_where_others_want_the_core_it_sleeps_for_a_while(it: World) -> None:
    poll = ShortPoll(it.poll)
    for _ in range(10):
        wait(it, poll, 0.0004)
    it.yield_s = 0.003
    assert wait(it, poll, 0.02) == (1, 1)
    it.yield_s = 0.000_02
    assert wait(it, poll, 0.0004) == (1, 0)
    it.now_s += PAUSE_S
    assert wait(it, poll, 0.0004)[0] == 0


def test_a_poll_ends_with_its_time(it: World) -> None:
    poll = ShortPoll(it.poll)
    wait(it, poll, 0.0004)
    before_s = it.now_s
    assert wait(it, poll, 1.0, timeout_s=POLL_S / 2)[0] <= 1
    assert it.now_s - before_s < POLL_S


def test_a_real_epoll_is_waited_on() -> None:
    with select.epoll() as epoll:
        bell = os.eventfd(0)
        epoll.register(bell, select.EPOLLIN)
        poll = ShortPoll(epoll.poll)
        assert poll.wait(0.01, 0) == []
        os.eventfd_write(bell, 1)
        assert poll.wait(60.0, 0) == [(bell, select.EPOLLIN)]
        os.close(bell)
