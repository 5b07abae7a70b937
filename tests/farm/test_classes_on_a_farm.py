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
