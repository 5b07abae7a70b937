"""Globals of a module that the program assigned after the import: a warning, as tasks run the source."""

from __future__ import annotations

import functools
import importlib
import os
import sys
import time
import types
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import Mock

import pytest

from ipytaskfarm.serialization import assigned_globals, file_looks
from ipytaskfarm.serialization.module_bundles import bundle_of
from ipytaskfarm.serialization.module_state import changed_by_imports
from ipytaskfarm.serialization.pack import pack_function

SOURCE = """
import abc, dataclasses, functools, types
N, M = 1, 2
RATE: float = 0.5
MODE = None
TWICE = 1
TWICE = 2
count = 0
items = []
def uses(RATE_LOCAL): return RATE_LOCAL
def step():
    global count
    count += 1

OPTIONS = {"n": 1}
DEEP = {"deep": {"k": 1}}
REGISTRY = {}
NAMES = dict(a=1)
cache = {}
LEVEL = 0
def option(name): return OPTIONS.get(name), OPTIONS["n"], name in NAMES
def configure(level, **options):
    global LEVEL
    LEVEL = level
    OPTIONS.update(options)
def remember(i):
    cache[i] = i * i
    return cache[i]
def register(name):
    def decorate(function):
        REGISTRY[name] = function
        return function
    return decorate
@register("kind")
def kind(): return 1
class Kept:
    kinds = {}
    def __init_subclass__(cls): Kept.kinds[cls.__name__] = cls
    @classmethod
    def run(cls): return 1
class Abstract(abc.ABC): pass
@functools.singledispatch
def shown(value): return "?"
class Bus:
    def __init__(self): self.handlers = {}
    def on(self, name, function): self.handlers.setdefault(name, []).append(function)
bus = Bus()
class Config:
    scale = 1
    made = 0
    def __init_subclass__(cls): cls.made = 0
    def __class_getitem__(cls, item): return item
    def run(self):
        type(self).made += 1
        return self.scale
class Made:
    def __new__(cls): return object.__new__(cls)
made, by_name = Made(), Made()
class Model:
    def __init__(self):
        self.size = 1
        self.items = []
    def fit(self): self.fitted = True
@dataclasses.dataclass
class Data:
    n: int = 1
settings = Config()
a_model = Model()
some_data = Data(n=2)
simple = types.SimpleNamespace(a=1)
"""


@pytest.fixture
def settings(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return an imported module that travels by value; each test has one of a name of its own."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(assigned_globals, "_began_s", lambda: time.time() + 60)  # the files are older than the process
    for pause in ("_PAUSE_S", "_PAUSE_STATS"):
        monkeypatch.setattr(file_looks, pause, 0.0)  # so that each call looks at the files
    name = f"settings_of_{abs(hash(request.node.name))}"
    # The other tests are modules that travel by value, too, and change values of the same names.
    of_program = assigned_globals._imported
    here = SOURCE.encode()
    monkeypatch.setattr(
        assigned_globals, "_imported", lambda: (each for each in of_program() if each == here or name.encode() in each)
    )
    write(tmp_path / f"{name}.py", SOURCE)
    importlib.invalidate_caches()
    for each in (name, f"user_of_{name}"):
        monkeypatch.setitem(sys.modules, each, ModuleType(each))  # so that it is removed at the end
        del sys.modules[each]
    return importlib.import_module(name)


def write(file: Path, source: str, at_s: int = 1) -> None:
    file.write_text(source)
    os.utime(file, (at_s, at_s))  # another time than that of an earlier file of this name


def warned(name: str) -> list[str]:
    """Return the warnings of packing a module."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        module = importlib.import_module(name)
        # a function of a script: with one of this file the whole folder of tests would be packed
        pack_function(eval("lambda: module", {"__name__": "__main__", "module": module}))
        assert bundle_of(name).members
    return [str(each.message).removeprefix(f"{name}.") for each in caught]


def test_each_assigned_constant_is_warned_of_once(settings: Any) -> None:
    name = settings.__name__
    assert warned(name) == []
    settings.RATE, settings.MODE = 0.75, "fast"
    said = warned(name)
    assert [text.partition(",")[0] for text in said] == [
        "RATE was set to 0.75 after the import",
        "MODE was set to 'fast' after the import",
    ]
    assert all("pass it as an argument" in text for text in said)
    assert warned(name) == []


def test_a_value_with_the_identity_of_a_freed_one_is_seen(settings: Any) -> None:
    assert warned(settings.__name__) == []
    former = id(settings.RATE)
    kept: list[float] = []
    settings.RATE = float("0.5")  # equal, so that nothing is said of it
    del settings.RATE
    while len(kept) < 1000 and (not kept or id(kept[-1]) != former):
        kept.append(float("0.25"))
    settings.RATE = kept[-1]
    assert [text.partition(",")[0] for text in warned(settings.__name__)] == ["RATE was set to 0.25 after the import"]


def fake(name: str) -> str:
    return name


SET_FROM_OUTSIDE: list[tuple[str, Callable[[Any], object], str]] = [
    ("an object", lambda m: setattr(m, "MODE", print), "MODE was set to <built-in function print>"),
    ("a key", lambda m: m.OPTIONS.update(n=5), "OPTIONS was set to {'n': 5}"),
    ("a key inside", lambda m: m.DEEP["deep"].update(k=2), "DEEP was set to {'deep': {'k': 2}}"),
    ("a new key", lambda m: m.NAMES.update(b=1), "NAMES was set to {'a': 1, 'b': 1}"),
    ("by its own function, a global", lambda m: m.configure(3), "LEVEL was set to 3"),
    ("an item", lambda m: m.items.append(1), "items was set to [1]"),
    ("an attribute of a class", lambda m: setattr(m.Config, "scale", 2), "Config.scale was set to 2"),
    ("an attribute of an object", lambda m: setattr(m.settings, "scale", 2), "settings.scale was set to 2"),
    ("one that __init__ sets", lambda m: setattr(m.a_model, "size", 2), "a_model.size was set to 2"),
    ("a field", lambda m: setattr(m.some_data, "n", 3), "some_data.n was set to 3"),
    ("a new name", lambda m: setattr(m.simple, "verbose", True), "simple.verbose was set to True"),
    ("a function", lambda m: setattr(m, "option", fake), "option was replaced by <function fake"),
    ("a method", lambda m: setattr(m.Config, "run", Mock()), "Config.run was replaced by <Mock"),
]


def test_whatever_is_set_from_outside_is_warned_of(settings: Any) -> None:
    assert warned(settings.__name__) == []
    for what, sets, expected in SET_FROM_OUTSIDE:
        sets(settings)
        said = warned(settings.__name__)
        assert [text.partition(" after")[0][: len(expected)] for text in said] == [expected], what


def test_what_a_module_does_with_its_own_globals_is_its_own_affair(settings: Any) -> None:
    settings.step()
    settings.remember(3)
    settings.register("more")(len)
    settings.Config().run()
    settings.a_model.fit()
    settings.a_model.items.append(1)
    settings.TWICE, settings.added = 3, 1
    settings.uses = functools.wraps(settings.uses)(lambda *args: 1)
    assert warned(settings.__name__) == []


def of_main(kind: type | None = None) -> Any:
    """Return a function, or a class that inherits from the given one, of the script."""
    main = vars(sys.modules["__main__"])
    if kind is None:
        return eval("lambda *args: 1", main)
    main["Mine"] = made = types.new_class("Mine", (kind,))
    made.__module__ = "__main__"
    return made


PARTS_OF_SCRIPT: list[tuple[Callable[[Any], Any], str]] = [
    (lambda m: m.register("mine")(of_main()), "REGISTRY has 'mine': <lambda>"),
    (lambda m: setattr(m, "more", of_main()), "more is <lambda>"),
    (lambda m: of_main(m.Kept), "Kept.kinds has 'Mine': Mine"),
    (lambda m: m.shown.register(int, of_main()), "shown.registry has int: <lambda>"),
    (lambda m: m.Abstract.register(of_main(object)), "Abstract.register has Mine"),
    (lambda m: setattr(m.Kept, "run", of_main()), "Kept.run is <lambda>"),
    (lambda m: m.bus.on("event", of_main()), "bus.handlers has <lambda>"),
]


def test_parts_of_the_script_in_a_module_are_warned_of(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(vars(sys.modules["__main__"]), "Mine", None)  # to be removed afterwards
    assert warned(settings.__name__) == []
    for sets, expected in PARTS_OF_SCRIPT:
        sets(settings)
        said = warned(settings.__name__)
        assert [text.partition(" of this session's __main__")[0] for text in said] == [expected]


def test_what_another_module_assigns_on_import_is_assigned_on_engines_too(settings: Any, tmp_path: Path) -> None:
    name = settings.__name__
    write(
        tmp_path / f"user_of_{name}.py",
        f"""
import {name} as s
s.RATE = 0.75
try: s.MODE = "quick"
finally: s.NAMES["b"] = 2
def add(key, value): s.OPTIONS[key] = value
add("n", 3)
s.settings.scale = s.Config.scale = 2
if __name__ == "__main__": s.N = 5
""",
    )
    importlib.invalidate_caches()
    importlib.import_module(f"user_of_{name}")
    assert warned(name) == warned(f"user_of_{name}") == []


def test_modules_with_many_constants_are_compared_too(settings: Any, tmp_path: Path) -> None:
    name = f"many_of_{settings.__name__}"
    write(tmp_path / f"{name}.py", "".join(f"N{number} = {number}\n" for number in range(3000)))
    importlib.invalidate_caches()
    many: Any = importlib.import_module(name)
    try:
        assert warned(name) == []
        many.N2999 = 5
        assert [text.partition(" ")[0] for text in warned(name)] == ["N2999"]
    finally:
        del sys.modules[name]


def test_an_edited_file_is_no_assignment(settings: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = settings.__name__
    monkeypatch.undo()
    monkeypatch.syspath_prepend(tmp_path)
    sys.modules[name] = settings
    write(tmp_path / f"{name}.py", SOURCE.replace("0.5", "0.75"), at_s=2)
    assert warned(name) == []
    assert sys.modules[name].RATE == 0.5


@pytest.mark.usefixtures("_numpys_generator")
def test_seeds_at_import_are_warned_of(settings: Any, tmp_path: Path) -> None:
    name = f"user_of_{settings.__name__}"
    source = """
import random
import numpy as np
np.random.seed(1)
rng = np.random.default_rng(1)
unseeded = np.random.default_rng()
unused = random.Random(2)
def draw(): return rng.random() + unseeded.random()
"""
    write(tmp_path / f"{name}.py", source)
    importlib.invalidate_caches()
    importlib.import_module(name)
    first = [text.partition(":")[0] for text in warned(name)]
    assert first == [f"{name} seeds {what} when it is imported" for what in ("np.random", "rng")]
    assert warned(name) == []


def test_a_change_by_an_import_is_found_through_functions_of_other_modules() -> None:
    """The modules between have neither name: they are found by the names of the functions that they call."""
    sets = b"N = 1\ndef set_it(n):\n    global N\n    N = n\n"
    calls, uses, other = b"def prepare(): set_it(3)\n", b"prepare()\n", b"M = 2\nx.N\n"
    assert changed_by_imports(["N", "M"], [other, uses, calls, sets]) == {"N"}
    assert changed_by_imports(["N"], [other, calls, sets]) == set()
    assert changed_by_imports(["N"], [b"if __name__ == '__main__': prepare()\n", calls, sets]) == set()
