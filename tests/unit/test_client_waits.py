"""Which tasks a running task waits for with clients of its own, as the lane's thread sees it from outside."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable

import pytest

from ipytaskfarm.core.messages.running_task import Await, TaskCall
from ipytaskfarm.engine import client_waits
from ipytaskfarm.engine.client_waits import AGAIN_S, IDS_MAX, ClientWaits

LOOK_S = 0.05
RUN = (1, 1)


class World:
    """Stands for the clock, the main thread's processor time, and the sessions of this process."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.busy_s = 7.0
        self.unfinished: dict[str, set[int]] = {}
        self.said: list[TaskCall] = []
        self.waits = ClientWaits("s.1", "farm-1", self.said.append)

    def monotonic(self) -> float:
        return self.now_s

    def unfinished_tasks(self, farm: str) -> set[int]:
        return set(self.unfinished.get(farm, ()))

    def look(self, busy: float = 0.0, run: tuple[int, int] = RUN, asks: bool = False) -> list[list[int]]:
        """Let the thread look after the main thread was busy for a part of the time. Return what was told."""
        before = len(self.said)
        self.now_s += LOOK_S
        self.busy_s += busy * LOOK_S
        self.waits.look(run, asks)
        told = self.said[before:]
        for call in told:
            assert isinstance(call.question, Await)
            assert call.question.keeps
            assert (call.engine, call.run, call.n) == ("s.1", run, 0)
        return [call.question.ids for call in told if isinstance(call.question, Await)]


@pytest.fixture
def it(monkeypatch: pytest.MonkeyPatch) -> World:
    world = World()
    sessions = types.ModuleType("sessions")
    vars(sessions)["unfinished_tasks"] = world.unfinished_tasks
    monkeypatch.setitem(sys.modules, "ipytaskfarm.client.sessions", sessions)
    monkeypatch.setattr(client_waits, "time", world)
    busy: Callable[[], float] = lambda: world.busy_s  # noqa: E731
    monkeypatch.setattr(client_waits, "main_busy_s", busy)
    return world


def test_an_idle_task_with_unfinished_tasks_waits_for_them(it: World) -> None:
    it.unfinished["farm-1"] = {5, 4}
    assert [it.look(busy=1.0), it.look(busy=1.0), it.look()] == [[]] * 3
    assert it.look() == [[4, 5]]
    assert [it.look() for _ in range(20)] == [[]] * 20, "it is told once"


def test_it_goes_on_when_it_computes(it: World) -> None:
    it.unfinished["farm-1"] = {4}
    told = [it.look() for _ in range(4)]
    assert [[4]] in told
    assert it.look(busy=0.5) == [[]]
    assert it.look(busy=0.5) == [], "once"
    assert [it.look(), it.look()] == [[], [[4]]]


def test_it_goes_on_when_all_have_ended_and_waits_for_the_next_ones(it: World) -> None:
    it.unfinished["farm-1"] = {4}
    assert [[4]] in [it.look() for _ in range(4)]
    it.unfinished["farm-1"] = set()
    assert it.look() == [[]]
    it.unfinished["farm-1"] = {6}
    assert [[6]] in [it.look() for _ in range(4)]
    it.unfinished["farm-1"] = {7}
    assert it.look() == [[7]], "6 has ended, and nothing was computed since"


def test_a_wait_is_told_again_after_a_while(it: World) -> None:
    it.unfinished["farm-1"] = {4}
    assert [[4]] in [it.look() for _ in range(4)]
    told = [it.look() for _ in range(int(2.5 * AGAIN_S / LOOK_S))]
    assert told.count([[4]]) == 2


def test_a_task_that_computes_or_has_no_tasks_does_not_wait(it: World) -> None:
    assert [it.look() for _ in range(5)] == [[]] * 5
    it.unfinished["farm-1"] = {4}
    assert [it.look(busy=0.3) for _ in range(20)] == [[]] * 20
    it.unfinished = {"farm-2": {4}}
    assert [it.look() for _ in range(5)] == [[]] * 5, "of another farm, whose ids are others"


def test_tasks_that_an_earlier_run_has_left_behind_are_not_waited_for(it: World) -> None:
    it.unfinished["farm-1"] = {4}
    assert [[4]] in [it.look() for _ in range(4)]
    told = [it.look(run=(2, 1)) for _ in range(5)]
    assert told == [[]] * 5
    it.unfinished["farm-1"] = {4, 8}
    assert [it.look(run=(2, 1)) for _ in range(3)] == [[], [], [[8]]]


def test_a_task_that_asks_the_controller_itself_is_left_alone(it: World) -> None:
    it.unfinished["farm-1"] = {4}
    assert [it.look(asks=True) for _ in range(5)] == [[]] * 5
    assert [[4]] in [it.look() for _ in range(4)]


def test_of_very_many_tasks_the_first_ones_are_told(it: World) -> None:
    it.unfinished["farm-1"] = set(range(10, 10 + 3 * IDS_MAX))
    assert [[*range(10, 10 + IDS_MAX)]] in [it.look() for _ in range(4)]


def test_without_a_client_nothing_is_looked_at(it: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "ipytaskfarm.client.sessions")
    it.unfinished["farm-1"] = {4}
    assert [it.look() for _ in range(5)] == [[]] * 5
