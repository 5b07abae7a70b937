"""Names that a task of code binds: functions in the engine's namespace find them, as in IPython 0.10."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from ipytaskfarm import MapTask, MultiEngineClient, StringTask, TaskClient
from tests.farm.test_names_on_engines import in_main

pytestmark = pytest.mark.farm

SOURCE = """
a, b = 1000, 1
def model(): return a * b
def outer(): return model()
class Model:
    def run(self): return a * b
    @staticmethod
    def static(): return a * b
def change():
    global a
    a += 1
    return a
def everything(): return {"model": model, "outer": outer, "m": Model(), "change": change}
"""


@pytest.fixture
def functions(mec: MultiEngineClient) -> dict[str, Callable[..., Any]]:
    mec.reset()
    found: dict[str, Callable[..., Any]] = in_main(SOURCE, "everything")()
    return found


def values(tc: TaskClient, *tasks: StringTask) -> list[Any]:
    return [tc.run(task, block=True)["r"] for task in tasks]


@pytest.mark.parametrize("call", ["model()", "outer()", "m.run()", "m.static()", "[model() for _ in '1'][0]"])
@pytest.mark.parametrize("way", ["pushed", "assigned", "in a cell", "functions too"])
def test_pushed_functions_get_the_names_of_each_task(
    tc: TaskClient, mec: MultiEngineClient, functions: dict[str, Callable[..., Any]], call: str, way: str
) -> None:
    if way != "functions too":
        mec.push(functions)
    tasks = {
        "pushed": lambda i: StringTask(f"r = {call}", push={"a": i, "b": 2}, pull="r"),
        "assigned": lambda i: StringTask(f"a = {i}\nb = 2\nr = {call}", pull="r"),
        "in a cell": lambda i: StringTask(f"%alias_magic t timeit\na, b = {i}, 2\nr = {call}", pull="r"),
        "functions too": lambda i: StringTask(f"r = {call}", push={"a": i, "b": 2, **functions}, pull="r"),
    }
    assert values(tc, *(tasks[way](i) for i in range(4))) == [0, 2, 4, 6]
    task = tc.run(StringTask(f"r = {call}", pull="r", push=functions if way == "functions too" else {}), block=True)
    assert task["r"] == 1000, "what tasks have left does not take the place of what the function brings"
    assert "from the engines" not in task.stderr


def test_other_names_and_tasks_are_not_concerned(
    tc: TaskClient, mec: MultiEngineClient, functions: dict[str, Callable[..., Any]]
) -> None:
    mec.push(functions)
    mec.push({"b": 3})
    assert values(tc, StringTask("r = model()", push={"a": 2}, pull="r")) == [6], "b is placed by hand"
    assert values(tc, StringTask("unused = 2; r = model()", pull="r")) == [3000]
    assert values(tc, StringTask("a = 2; 1/0", recovery_task=StringTask("r = model()", pull="r"))) == [3000]
    assert tc.run(MapTask(functions["model"]), block=True) == 3000
    mec.execute("r = model()")
    assert mec.pull("r", targets=0) == [3000]


def test_a_function_changes_the_name_of_the_task(
    tc: TaskClient, mec: MultiEngineClient, functions: dict[str, Callable[..., Any]]
) -> None:
    mec.push(functions)
    task = StringTask("change(); r = change(), model()", push={"a": 5}, pull=["r", "a"])
    assert tc.run(task, block=True).results == {"r": (7, 7), "a": 7}
    assert values(tc, StringTask("r = change()", push={"a": 1}, pull="r")) == [2]
