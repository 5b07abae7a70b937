"""Reports of an engine's properties: the first one at once, of quick changes the last one."""

from __future__ import annotations

import pytest

from ipytaskfarm.core.errors import InvalidProperty
from ipytaskfarm.core.limits import PROPERTIES_BYTES
from ipytaskfarm.core.messages import PropertiesChanged
from ipytaskfarm.engine.properties import BYTES_PER_S, PAUSE_S, SMALL_BYTES, Properties, PropertyReports


class World:
    """What was sent, and a clock."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.sent: list[int] = []
        self.waits = 0
        self.reports = PropertyReports(lambda report: self.sent.append(report.version), self._wait, lambda: self.now_s)

    def _wait(self) -> None:
        self.waits += 1

    def change(self, version: int, size: int = 10) -> None:
        self.reports.changed(PropertiesChanged("s.1", version, bytes(size)))


@pytest.fixture
def world() -> World:
    return World()


def test_of_quick_changes_the_first_and_the_last_are_told(world: World) -> None:
    for version in range(1, 1000):
        world.change(version)
    assert world.sent == [1]
    assert world.waits > 0
    world.reports.watch()
    assert world.sent == [1]
    world.now_s += PAUSE_S
    world.reports.watch()
    assert world.sent == [1, 999]
    assert not world.reports.is_waiting
    world.now_s += PAUSE_S
    world.reports.watch()
    assert world.sent == [1, 999]


def test_before_a_result_the_last_change_is_told_at_once(world: World) -> None:
    world.change(1)
    world.change(2)
    world.reports.flush()
    assert world.sent == [1, 2]
    world.reports.flush()
    assert world.sent == [1, 2]


def test_large_properties_wait_for_their_turn(world: World) -> None:
    size = max(SMALL_BYTES + 1, BYTES_PER_S // 2)
    world.change(1, size)
    world.change(2, size)
    world.reports.flush()
    world.now_s += 0.4
    world.reports.watch()
    assert world.sent == [1]
    world.now_s += 0.2
    world.reports.watch()
    assert world.sent == [1, 2]


def test_properties_beyond_the_limit_are_refused_and_nothing_changes() -> None:
    told: list[int] = []
    properties = Properties((), lambda version, packed, plain: told.append(version))
    properties["a"] = 1
    with pytest.raises(InvalidProperty, match=r"would have 16,.* bytes, and 16,777,216 are the most: .*push"):
        properties["data"] = bytes(PROPERTIES_BYTES)
    with pytest.raises(InvalidProperty):
        properties["text"] = "x" * (PROPERTIES_BYTES // 2)
    with pytest.raises(InvalidProperty):
        properties.update({str(i): 1 for i in range(200_000)})
    assert dict(properties) == {"a": 1}
    assert told == [1]
