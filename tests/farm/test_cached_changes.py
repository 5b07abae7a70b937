"""Changes that a cached call must see, on a real farm: each call gives what the same call without the cache gives."""

from __future__ import annotations

from collections.abc import Callable
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
