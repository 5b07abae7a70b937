"""Changes that a cached call must see, on a real farm: each call gives what the same call without the cache gives."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ipytaskfarm import Task, TaskClient

from .test_result_cache import Cells

pytestmark = pytest.mark.usefixtures("empty_cache")


def both(tc: TaskClient, function: Callable[..., Any], *args: Any) -> tuple[Any, bool]:
    """Return the result of a cached call, which is that of one without the cache, and whether it is a kept one."""
    cached = tc.run(Task(function, args=args, cache=True), block=True)
    assert cached.result == tc.run(Task(function, args=args), block=True).result
    return cached.result, cached.from_cache


def test_closures_of_one_factory_that_change_places(tc: TaskClient) -> None:
    cells = Cells()
    cells.run("""
        def times(n):
            def wrap(g):
                def scaled(): return n * g()
                return scaled
            return wrap
        @times(2)
        def a(): return 1
        @times(3)
        def b(): return 1
        def f(): return a() * 10 + b()
        def run(functions): return [g() for g in functions]
    """)
    names = cells.names
    assert both(tc, names["f"]) == (23, False)
    cells.run("a, b = b, a")
    assert both(tc, names["f"]) == (32, False)
    cells.run("a, b = b, a")
    assert both(tc, names["f"]) == (23, True)
    items = [[names["a"], names["b"]], [names["b"], names["a"]]]
    assert list(tc.map(names["run"], items, cache=True)) == [[2, 3], [3, 2]]
    cells.run("b = times(5)(lambda: 1)")
    missed = tc.run(Task(names["f"], cache=True), block=True)
    assert missed.result == 25
    assert "closure variable n of `times.wrap.scaled#2` changed: 3 → 5" in tc.why_miss(missed.taskid)


def write(file: Path, text: str, version: int) -> None:
    file.write_text(text)
    os.utime(file, ns=(version, version))  # the time of a file may be as coarse as a tick of the clock


def test_an_edit_of_a_module_that_is_taken_back(
    tc: TaskClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A function within a module has the globals of the file on the engine: the result is kept for these."""
    monkeypatch.syspath_prepend(tmp_path)
    file, text = (
        tmp_path / "rates_of_cache.py",
        "K = 1\ndef make():\n    def rate(): return K\n    return rate\nrate = make()\n",
    )
    write(file, text, 1)
    cells = Cells()
    cells.run("from rates_of_cache import rate\ndef f(): return rate()")
    assert both(tc, cells.names["f"]) == (1, False)
    write(file, text.replace("1", "2"), 2)
    assert both(tc, cells.names["f"]) == (2, False)
    write(file, text, 3)
    assert both(tc, cells.names["f"]) == (1, True)
    sys.modules.pop("rates_of_cache")
    again = Cells()
    again.run("from rates_of_cache import rate\ndef f(): return rate()")
    assert both(tc, again.names["f"]) == (1, True)


def test_what_modules_do_when_they_are_imported(
    tc: TaskClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    acts, package = tmp_path / "acts_of_cache.py", tmp_path / "steps_of_cache"
    package.mkdir()
    text = (
        "L = []\nclass One:\n    L.append('one')\ndef c_a(): return 1\n"
        "C = [g for n, g in list(globals().items()) if n[:2] == 'c_']\ndef run(): return L, [g() for g in C]\n"
    )
    (package / "__init__.py").write_text(
        "import importlib, pkgutil\n"
        "S = [importlib.import_module('.' + m.name, __name__) for m in pkgutil.iter_modules(__path__)]\n"
        "def run(): return [s.step() for s in S]\n"
    )
    step = "def step(): return 1\n"
    write(acts, text, 1)
    write(package / "a.py", step, 1)
    cells = Cells()
    cells.run("import acts_of_cache, steps_of_cache\ndef f(): return acts_of_cache.run(), steps_of_cache.run()")
    assert both(tc, cells.names["f"]) == (((["one"], [1]), [1]), False)
    assert both(tc, cells.names["f"])[1]
    write(acts, text.replace("one", "two"), 2)
    assert both(tc, cells.names["f"]) == (((["two"], [1]), [1]), False)
    write(acts, text.replace("one", "two").replace("return 1", "return 2"), 3)
    assert both(tc, cells.names["f"]) == (((["two"], [2]), [1]), False)
    write(package / "a.py", step.replace("1", "2"), 2)
    assert both(tc, cells.names["f"]) == (((["two"], [2]), [2]), False)
    write(package / "b.py", step.replace("1", "3"), 1)
    importlib.invalidate_caches()
    assert both(tc, cells.names["f"]) == (((["two"], [2]), [2, 3]), False)
