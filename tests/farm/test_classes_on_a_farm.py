"""Classes of a session on real engines: a few of each kind; `test_pack_class_zoo` has them all."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from ..support.class_zoo import ZOO
from ..unit.test_pack_class_zoo import session

if TYPE_CHECKING:
    from ipytaskfarm import TaskClient

NAMES = [
    "attribute holds a bound classmethod",
    "frozen dataclass with slots and a constant",
    "an object in its own set",
    "metaclass keywords",
    "ctypes Structure with a pointer to itself",
    "Struct with everything",
    "string annotations of a class",
    "ParamSpec",
    "enumeration whose values are objects",
]


@pytest.mark.parametrize("name", NAMES)
def test_class_on_an_engine(name: str, tc: TaskClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "__main__", sys.modules["__main__"])
    main: Any = session(ZOO[name])
    take: Callable[[Any], Any] = main.take
    for value in tc.map(take, [main.make(), main.make()]):
        main.check(value)


COUNTS = """
COUNT = 0
class Counts:
    def count(self):
        global COUNT, LAST
        COUNT += 1
        found, LAST = "LAST" in globals(), COUNT
        return COUNT, found
def count(counts): return counts.count()
def count_there(_): return Counts().count()
"""


def test_what_methods_assign_to_globals_does_not_stay_for_the_next_task_or_item(tc: TaskClient) -> None:
    names: dict[str, Any] = {"__name__": "__main__"}
    exec(COUNTS, names)
    made = names["Counts"]()
    for _ in range(2):
        assert tc.map(names["count"], [made] * 20) == [(1, False)] * 20
        assert tc.map(names["count_there"], range(20)) == [(1, False)] * 20
        assert tc.map(made.count.__func__, [made] * 3) == [(1, False)] * 3
        assert [tc.submit(names["count"], made).result() for _ in range(2)] == [(1, False)] * 2
