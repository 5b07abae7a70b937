"""Attributes of classes that their own methods change: counters, registries, the one instance."""

from __future__ import annotations

import functools
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ipytaskfarm import Farm, MultiEngineClient, Ref, Task, TaskClient
from ipytaskfarm.serialization.class_state import state_of_class
from tests.support.farms import DEADLINE_S

pytestmark = pytest.mark.farm

COUNTED = """
import itertools
class ByName:
    count = 0
    def __init__(self): ByName.count += 1
class ByType:
    count = 0
    def __init__(self): type(self).count += 1
class Derived(ByType): pass
class Numbered:
    ids = itertools.count()
    def __init__(self): self.id = next(self.ids)
class Registered:
    known = {}
    def __init__(self): Registered.known[len(Registered.known)] = self
class Meta(type):
    def __call__(cls):
        made = super().__call__()
        cls.last = made
        return made
class OfMeta(metaclass=Meta):
    last = None
"""
CLASSES = ["ByName", "ByType", "Derived", "Numbered", "Registered", "OfMeta"]
USES = """
def make(): return {0}()
def use(made): return isinstance(made, {0}), {0}() is not made
def use_pushed(): return isinstance(pushed, {0})
def use_shared(): return isinstance(shared.value, {0})
"""


def session(name: str) -> dict[str, Any]:
    names: dict[str, Any] = {"__name__": "__main__"}
    exec(COUNTED + USES.format(name), names)
    return names


@pytest.mark.parametrize("name", CLASSES)
def test_an_instance_stays_one_of_its_class(name: str, tc: TaskClient, mec: MultiEngineClient) -> None:
    names = session(name)
    first = tc.run(Task(names["make"]))
    assert tc.run(Task(names["use"], args=(Ref(first),)), block=True).result == (True, True)
    names["shared"] = tc.broadcast(names["make"]())
    mec.push({"pushed": names["make"]()})
    names["make"]()
    assert tc.submit(names["use_pushed"]).result(DEADLINE_S)
    assert tc.submit(names["use_shared"]).result(DEADLINE_S)
    assert tc.map(names["use"], [names["make"]() for _ in range(3)]) == [(True, True)] * 3
    mec.reset()


def test_what_this_session_changes_is_seen(tc: TaskClient) -> None:
    names = session("ByName")
    exec("def count(): return ByName.count\ndef count_of(made): return ByName.count", names)
    for count in (5, 0, 7):
        names["ByName"].count = count
        assert tc.submit(names["count"]).result(DEADLINE_S) == count
        names["ByName"].count = count + 1
        assert tc.submit(names["count_of"], names["ByName"]()).result(DEADLINE_S) == count + 2
    names["ByName"].count, made = 20, names["ByName"].__new__(names["ByName"])
    kind = tc.submit(type, made).result(DEADLINE_S)
    assert kind is names["ByName"]
    exec("def ask(made): return made.count", names)
    assert tc.submit(names["ask"], made).result(DEADLINE_S) == 20


PROGRAM = f"""{COUNTED}
import sys
from ipytaskfarm import TaskClient
def counts():
    for kind in KINDS: kind()
    return ByName.count, Derived.count, Numbered.ids, len(Registered.known)
def count(made): return made.count, ByType().count
def last(): return OfMeta.last, OfMeta() and None
KINDS = [ByName, Derived, Numbered, Registered]
with TaskClient(sys.argv[1]) as tc:
    print(tc.submit(counts).result(), tc.submit(count, ByType()).result(), tc.submit(last).result())
"""


def test_a_program_that_is_run_again_begins_with_its_own(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(PROGRAM)
    with Farm(n=1) as farm:
        command: list[str | Path] = [sys.executable, script, str(farm.connection_file)]
        first, second = (subprocess.check_output(command, text=True, timeout=DEADLINE_S) for _ in range(2))
    assert first == second


STATES: list[tuple[str, set[str]]] = [
    ("n = 0\ndef f(self): self.n += 1\ndef g(self): self.n = self.n + 1", set()),
    ("n = 0\ndef f(self): self.__class__.n += 1", {"n"}),
    ("n = 0\n@classmethod\ndef f(cls): cls.n += 1", {"n"}),
    ("n = None\ndef __new__(cls):\n  if cls.n is None: cls.n = object.__new__(cls)\n  return cls.n", {"n"}),
    ("known = []\n@staticmethod\ndef f(x): C.known.append(x)", {"known"}),
    ("known = []\n@property\ndef f(self): return len(self.known)", set()),
    ("table = {}\ndef f(self, k): return self.table[k]", set()),
    ("ids = iter(range(9))\ndef f(self): return next(self.ids)", {"ids"}),
    ("n = 0\n@functools.cached_property\ndef f(self): C.n += 1", {"n"}),
    ("n = 0\n@functools.cache\ndef f(self): C.n += 1", {"n"}),
    ("n = 0\n@property\ndef f(self): self.n += 1", set()),
    ("n = 0\nf = property(None, lambda self, x: setattr(self, 'm', x))\n@f.getter\ndef f(self): C.n += 1", {"n"}),
    ("n = 0\n@functools.singledispatchmethod\ndef f(self, x): C.n += 1", {"n"}),
]


@pytest.mark.parametrize(("body", "state"), STATES)
def test_the_state_of_a_class(body: str, state: set[str]) -> None:
    names: dict[str, Any] = {"__name__": "__main__", "functools": functools}
    exec("class C:\n " + body.replace("\n", "\n "), names)
    assert state_of_class(names["C"]) == state
