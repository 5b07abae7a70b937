"""Globals that pushed functions assign: the engine's namespace gets them, as in IPython 0.10."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ipytaskfarm import Farm, MapTask, MultiEngineClient, StringTask, TaskClient
from tests.farm.test_names_on_engines import in_main
from tests.support.farms import DEADLINE_S
from tests.support.polling import eventually

pytestmark = pytest.mark.farm


@pytest.fixture(autouse=True)
def forgotten(mec: MultiEngineClient) -> None:
    """Delete the names that the test before has left."""
    mec.reset()


SOURCE = """
data = []
total = 0
def load():
    global data, unknown_here
    data, unknown_here = [1, 2, 3], "new"
def process(i): return data[i] if i < len(data) else None
def add(x):
    global total
    total += x
    return total
"""


@pytest.fixture
def functions() -> dict[str, Callable[..., Any]]:
    names: dict[str, Any] = in_main(f"{SOURCE}\ndef all_names(): return globals()", "all_names")()
    return {name: names[name] for name in ("load", "process", "add")}


def test_a_pushed_function_prepares_the_engines(
    mec: MultiEngineClient, tc: TaskClient, functions: dict[str, Callable[..., Any]]
) -> None:
    mec.push_function(functions)
    mec.execute("before = process(0)\nload()\nafter = (process(0), len(data), unknown_here)")
    assert mec.pull("before", targets=0) == [None]
    assert mec.pull("after", targets=0) == [(1, 3, "new")]
    assert mec.pull("unknown_here", targets=0) == ["new"]
    assert tc.map(functions["process"], range(3)) == [1, 2, 3], "it is placed by hand"
    mec.push_function(functions)
    mec.execute("again = process(2)")
    assert mec.pull("again", targets=0) == [3]


def test_the_engines_value_is_changed_and_seen(
    mec: MultiEngineClient, tc: TaskClient, functions: dict[str, Callable[..., Any]]
) -> None:
    mec.push({"total": 100})
    mec.push_function(functions)
    mec.execute("add(1); add(2); sums = (add(3), total)")
    assert mec.pull("sums", targets=0) == [(106, 103)], "the cell sees it from its next statement on"
    assert mec.pull("total", targets=0) == [106]
    mec.execute("total = 0")
    mec.execute("first = add(5); total = 50; second = add(5)")
    assert mec.pull(["first", "second", "total"], targets=0) == [[5, 55, 55]]
    task = StringTask("total = 7; r = add(1)", pull=["r", "total"], targets=(0,))
    assert tc.run(task, block=True).results == {"r": 8, "total": 8}


def test_what_only_a_task_has_called_is_not_placed(
    mec: MultiEngineClient, tc: TaskClient, functions: dict[str, Callable[..., Any]]
) -> None:
    mec.push_function(functions)
    assert tc.run(StringTask("load(); r = process(0)", pull="r", targets=(0,)), block=True)["r"] == 1
    assert tc.run(MapTask(functions["process"], (0,), targets=[0]), block=True) is None, "it brings its own"
    assert "data" not in mec.keys(targets=0)[0]
    mec.execute("pass")
    assert "data" not in mec.keys(targets=0)[0]


def test_it_is_done_again_on_a_replacement(
    farm: Farm, mec: MultiEngineClient, functions: dict[str, Callable[..., Any]]
) -> None:
    mec.push_function(functions)
    mec.execute("load(); add(4)")
    before = {row.id: row.pid for row in mec.engines()}
    os.kill(before[0], signal.SIGKILL)
    eventually(lambda: {row.id: row.pid for row in mec.engines()}.get(0) not in (None, before[0]), DEADLINE_S)
    mec.execute("add(5)")
    assert mec.pull(["data", "total"], targets=0) == [[[1, 2, 3], 9]]


def test_a_restored_session_goes_on(
    mec: MultiEngineClient, functions: dict[str, Callable[..., Any]], tmp_path: Path
) -> None:
    mec.push_function(functions)
    mec.execute("add(4)", targets=0)
    mec.dump_session(tmp_path / "a.session", targets=0)
    mec.load_session(tmp_path / "a.session", targets=1)
    mec.execute("add(5)", targets=1)
    assert mec.pull("total", targets=1) == [9]
