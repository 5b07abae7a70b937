"""Globals of a module that the program assigned after the import: a warning, as tasks run the source."""

from __future__ import annotations

import importlib
import os
import sys
import time
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from ipytaskfarm.serialization import assigned_globals
from ipytaskfarm.serialization.module_bundles import bundle_of
from ipytaskfarm.serialization.pack import pack_function

SOURCE = """
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
"""


@pytest.fixture
def settings(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return an imported module that travels by value; each test has one of a name of its own."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(assigned_globals, "_began_s", lambda: time.time() + 60)  # the files are older than the process
    name = f"settings_of_{abs(hash(request.node.name))}"
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
        pack_function(lambda: module)
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


def test_what_a_module_does_with_its_own_globals_is_its_own_affair(settings: Any) -> None:
    settings.step()
    settings.items.append(1)
    settings.TWICE, settings.added, settings.MODE = 3, 1, object()
    assert warned(settings.__name__) == []


def test_what_another_module_assigns_on_import_is_assigned_on_engines_too(settings: Any, tmp_path: Path) -> None:
    name = settings.__name__
    write(tmp_path / f"user_of_{name}.py", f"import {name}\n{name}.RATE = 0.75\n")
    importlib.invalidate_caches()
    importlib.import_module(f"user_of_{name}")
    assert warned(f"user_of_{name}") == []


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
