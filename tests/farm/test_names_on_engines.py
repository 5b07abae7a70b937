"""Test on a real farm which value of a name a function finds: the one placed on the engines by hand, or its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jupyter_client.blocking.client import BlockingKernelClient

from ipytaskfarm import Farm, MapTask, MultiEngineClient, StringTask, Task, TaskClient
from tests.support.farms import DEADLINE_S, incarnations, module_farm, until_engines
from tests.support.notebooks import executed
from tests.support.polling import eventually

pytestmark = pytest.mark.farm

FUNCTIONS = """
d = 1
class Adds:
    def add(self, y=0): return y + d
def f(): return d
def times(y): return y * d
def make():
    def inner(): return d
    return inner
def helped(): return f()
def use(adds): return adds.add()
def only(): return there
def size(): return len([1, 2, 3])
"""
WAYS = """
from ipytaskfarm import MapTask, MultiEngineClient, StringTask, Task, TaskClient
tc, mec = TaskClient(WHERE), MultiEngineClient(WHERE)
tc.progress = False
def call(function): return function()
def pushed(name, function):
    if function is not None: mec.push_function({name: function})
    mec.execute(f"got = {name}()")
    return mec.pull("got")[0]
mec.push_function({"before": f, "before_method": Adds().add})
ways = {
    "MapTask": lambda: tc.run(MapTask(f), block=True),
    "Task": lambda: tc.run(Task(f), block=True).result,
    "submit": lambda: tc.submit(f).result(),
    "tc.map": lambda: tc.map(times, [1, 1, 1])[2],
    "mec.map": lambda: mec.map(times, [1, 1, 1])[2],
    "a closure": lambda: tc.run(MapTask(make()), block=True),
    "a method": lambda: tc.run(MapTask(Adds().add), block=True),
    "an instance": lambda: tc.run(MapTask(use, (Adds(),)), block=True),
    "an argument": lambda: tc.run(MapTask(call, (f,)), block=True),
    "a helper": lambda: tc.run(MapTask(helped), block=True),
    "pushed now": lambda: pushed("now", f),
    "pushed before": lambda: pushed("before", None),
    "a method pushed before": lambda: pushed("before_method", None),
}
def values():
    found = {name: way() for name, way in ways.items()}
    return set(found.values()) if len(set(found.values())) == 1 else found
def everywhere(code):
    for engine in mec.get_ids(): tc.run(StringTask(code, targets=[engine]), block=True)
"""
TABLE = """
print("nothing", values())
mec.push({"d": 30})
print("pushed", values())
mec.execute("d = 31")
print("executed", values())
everywhere("d = 32")
print("changed by a task", values())
mec.reset()
mec.push_function({"before": f, "before_method": Adds().add})
print("reset", values())
everywhere("d = 7")
print("left by a task", values())
mec.execute("d = 7")
print("placed again", values())
mec.execute("del d")
print("deleted", values())
mec.scatter("d", [40, 41])
print("scattered", len(mec.map(times, [1, 1])[0]))
mec.reset()
mec.push({"there": 5, "d": 1})
print("only there", tc.run(MapTask(only), block=True), tc.submit(only).result(), mec.map(call, [only])[0])
mec.reset()
everywhere("there = 6")
print("left there", tc.run(MapTask(only), block=True))
mec.reset()
mec.clear_sticky()
everywhere("len = str")
print("a builtin", tc.run(MapTask(size), block=True))
mec.push_function({"len": lambda x: 99})
print("a builtin by hand", tc.run(MapTask(size), block=True))
mec.reset()
print("Python's", tc.run(MapTask(size), block=True))
"""
SAID = """nothing {1}
pushed {30}
executed {31}
changed by a task {32}
reset {1}
left by a task {1}
placed again {7}
deleted {1}
scattered 1
only there 5 5 5
left there 6
a builtin 3
a builtin by hand 99
Python's 3
"""


@pytest.fixture
def mec(mec: MultiEngineClient) -> MultiEngineClient:
    mec.clear_sticky()
    mec.reset()
    return mec


def said_by_script(farm: Farm, folder: Path, text: str) -> str:
    until_engines(farm, 2)
    with farm.multiengine_client() as mec:
        mec.clear_sticky()
        mec.reset()
    (folder / "script.py").write_text(f"WHERE = {str(farm.connection_file)!r}\n{text}")
    ended = subprocess.run(
        [sys.executable, "script.py"],
        capture_output=True, text=True, timeout=60, check=False, cwd=folder, env=os.environ,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def test_the_table_in_main(farm: Farm, tmp_path: Path) -> None:
    assert said_by_script(farm, tmp_path, FUNCTIONS + WAYS + TABLE) == SAID


def test_the_table_in_a_module_that_travels(farm: Farm, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(FUNCTIONS)
    said = said_by_script(farm, tmp_path, "from mine import *\n" + WAYS + TABLE)
    # A module's builtins are Python's: `from pylab import *` on the engines is not for the code of libraries.
    assert said == SAID.replace("by hand 99", "by hand 3")


@pytest.mark.notebook
def test_the_table_in_a_notebook(farm: Farm, mec: MultiEngineClient, tmp_path: Path) -> None:
    cells = [f"WHERE = {str(farm.connection_file)!r}", FUNCTIONS, WAYS, TABLE]
    assert in_notebook(cells, tmp_path) == SAID


# -- each way in which a hand places a name

d = 1


def read_d() -> int:
    return d


def in_main(source: str, name: str = "f") -> Callable[..., Any]:
    """A function as a session would define it."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    exec(source, namespace)
    found: Callable[..., Any] = namespace[name]
    return found


PX = """
from ipytaskfarm import MapTask, MultiEngineClient, TaskClient
mec, tc = MultiEngineClient(WHERE), TaskClient(WHERE)
mec.activate()
stack = 1
def f(): return stack
def g(): return sqrt(16)
def sqrt(x): return "mine"
"""


@pytest.mark.notebook
def test_px_run_and_sync_imports_place_names(farm: Farm, mec: MultiEngineClient, tmp_path: Path) -> None:
    (tmp_path / "lines.py").write_text("stack = 3\n")
    cells = [
        f"WHERE = {str(farm.connection_file)!r}\n{PX}",
        "%px stack = 2",
        "print(tc.run(MapTask(f), block=True))",
        "mec.run('lines.py')\nprint(tc.run(MapTask(f), block=True))",
        "with mec.sync_imports():\n    from math import sqrt as stack\n"
        "stack = 1\nprint(tc.run(MapTask(f), block=True).__name__)",
        "%px from math import *",
        "print(tc.run(MapTask(g), block=True))",
    ]
    printed = in_notebook(cells, tmp_path)
    said = [line for line in printed.splitlines() if not line.startswith("importing")]
    assert said[1:] == ["2", "3", "sqrt", "4.0"]  # the first is what `activate` says


def in_notebook(cells: list[str], folder: Path, name: str = "stdout") -> str:
    """Run cells in a notebook one after the other; return their output."""
    cells_run = executed(cells, folder).cells
    outputs = [output for cell in cells_run for output in cell.outputs if output.output_type == "stream"]
    return "".join(output.text for output in outputs if output.name == name)


def test_a_cell_that_failed_or_awaited_has_placed_what_it_bound(mec: MultiEngineClient, tc: TaskClient) -> None:
    with pytest.raises(Exception, match="division"):
        mec.execute("d = 2; 1 / 0")
    assert tc.run(MapTask(read_d), block=True) == 2
    mec.reset()
    assert tc.run(MapTask(read_d), block=True) == 1
    mec.execute("import asyncio; await asyncio.sleep(0); d = 3")
    assert tc.run(MapTask(read_d), block=True) == 3


def test_sticky_names_count_after_a_reset_and_on_a_fresh_engine(
    farm: Farm, mec: MultiEngineClient, tc: TaskClient
) -> None:
    stuck = in_main("stuck = 1\ndef f(): return stuck")
    mec.push({"stuck": 4}, sticky=True)
    mec.reset()
    tc.run(StringTask("", clear_before=True), block=True)
    assert tc.run(MapTask(stuck), block=True) == 4
    before = incarnations(farm)
    mec.execute("pid = __import__('os').getpid()", targets=0)
    os.kill(mec.pull("pid", targets=0)[0], signal.SIGKILL)
    eventually(lambda: len(incarnations(farm)) == 2 and incarnations(farm) != before, DEADLINE_S, what="another engine")
    values = [tc.run(MapTask(stuck, targets=[engine]), block=True) for engine in (0, 1)]
    mec.clear_sticky()
    assert values == [4, 4]


def test_start_up_code_places_names() -> None:
    with module_farm(1, startup="d = 5") as farm, farm.task_client() as tc:
        result = tc.get_task_result(tc.run(Task(in_main("d = 1\ndef f(): return d"))), block=True)
    assert result.result == 5
    assert result.stderr == (
        "ipytaskfarm: f uses d from the engines (placed there by start-up code or a sticky command), "
        "not this session's\n"
    )


def test_a_console_places_names(farm: Farm, mec: MultiEngineClient, tc: TaskClient) -> None:
    mec.execute("from ipykernel import get_connection_file; file = get_connection_file()")
    file = mec.pull("file")
    client = BlockingKernelClient(connection_file=file[0])
    client.load_connection_file()
    client.start_channels()
    try:
        client.wait_for_ready(timeout=DEADLINE_S)
        client.execute_interactive("d = 6", timeout=DEADLINE_S)
    finally:
        client.stop_channels()
    assert tc.run(MapTask(read_d, targets=[0]), block=True) == 6
    assert tc.run(MapTask(read_d, targets=[1]), block=True) == 1


# -- what is said


def noticed(tc: TaskClient, function: Callable[..., Any], engine: int = 0) -> str:
    """Run a function as a task on an engine; return its stderr."""
    told: str = tc.get_task_result(tc.run(Task(function, targets=[engine])), block=True).stderr
    return told


def test_it_is_said_once_for_each_function_and_name_where_the_values_differ(
    mec: MultiEngineClient, tc: TaskClient
) -> None:
    scaled = in_main("factor, offset = 1, 2\ndef scaled(): return factor + offset", "scaled")
    other = in_main("factor, offset = 1, 2\ndef other(): return factor", "other")
    alone = in_main("apart = 1\ndef alone(): return apart", "alone")
    mec.push({"factor": 30, "offset": 2, "np": np})
    line = "ipytaskfarm: {} uses factor from the engines (placed there by push), not this session's\n"
    assert noticed(tc, scaled) == line.format("scaled")
    assert noticed(tc, scaled) == ""
    assert noticed(tc, scaled, engine=1) == line.format("scaled")
    assert noticed(tc, other) == line.format("other")
    assert noticed(tc, alone) == ""


@pytest.mark.parametrize(
    ("here", "there", "differs"),
    [
        ("import numpy as v", "import numpy as v", False),
        ("import numpy as np; v = np.arange(9)", "import numpy as np; v = np.arange(9)", False),
        ("import numpy as np; v = np.arange(9)", "import numpy as np; v = np.arange(4)", True),
        ("v = float('nan')", "v = float('nan')", False),
        ("v = 1", "v = True", True),
        ("v = {'a': [1, 2]}", "v = {'a': [1, 2]}", False),
        ("import threading; v = 3", "import threading; v = threading.Lock()", True),
        ("def v(): return 1", "def v(): return 2", True),
    ],
)
def test_values_are_compared_by_what_they_are(
    mec: MultiEngineClient, tc: TaskClient, here: str, there: str, differs: bool
) -> None:
    mec.execute(there)
    name = f"f_{abs(hash((here, there)))}"
    told = noticed(tc, in_main(f"{here}\ndef {name}(): return type(v).__name__", name))
    assert ("uses v from the engines (placed there by execute)" in told) == differs


def test_a_map_on_engines_says_it_in_the_client(mec: MultiEngineClient, capsys: pytest.CaptureFixture[str]) -> None:
    mec.push({"weight": 3})
    weigh = in_main("weight = 1\ndef weigh(y): return y * weight", "weigh")
    assert mec.map(weigh, [1, 2]) == [3, 6]
    line = "ipytaskfarm: weigh uses weight from the engines (placed there by push), not this session's\n"
    assert capsys.readouterr().err == 2 * line
    assert mec.map(weigh, [1, 2]) == [3, 6]
    assert capsys.readouterr().err == ""


# -- functions that the engines know already, and what is around them


def test_a_map_sees_what_was_placed_since_the_last_map(mec: MultiEngineClient, tc: TaskClient) -> None:
    times = in_main("d = 1\ndef f(y): return y * d")
    assert tc.map(times, range(50)) == list(range(50))
    for value in (2, 3):
        mec.push({"d": value})
        assert tc.map(times, range(50)) == [value * y for y in range(50)]
    mec.execute("del d")
    assert tc.map(times, range(50)) == list(range(50))


def test_names_in_texts_are_the_engines_too(mec: MultiEngineClient, tc: TaskClient) -> None:
    by_key = in_main('d = 1\ndef f(): return globals()["d"], "%(d)s %(there)s" % globals(), eval("d + there")')
    mec.push({"d": 30, "there": 5})
    assert tc.run(MapTask(by_key), block=True) == (30, "30 5", 35)


def test_an_array_in_parts_is_summed_by_its_parts(mec: MultiEngineClient) -> None:
    total = in_main("import numpy as np\nx = np.arange(10)\ndef f(): return int(x.sum())")
    mec.push_function({"total": total})
    mec.execute("before = total()")
    mec.scatter("x", np.arange(10))
    mec.execute("part = total()")
    assert mec.pull("before") == [45, 45]
    assert mec.pull("part") == [10, 35]


def test_a_global_that_a_function_assigns_begins_anew_with_each_call(mec: MultiEngineClient, tc: TaskClient) -> None:
    count = in_main("n = 0\ndef f():\n    global n\n    n += 1\n    return n")
    assert [tc.run(MapTask(count, targets=[0]), block=True) for _ in range(2)] == [1, 1]
    mec.push({"n": 10})
    assert [tc.run(MapTask(count, targets=[0]), block=True) for _ in range(2)] == [11, 11]
    assert mec.pull("n") == [10, 10]


def test_classes_that_an_engine_knows_already_see_it_too(mec: MultiEngineClient, tc: TaskClient) -> None:
    source = (
        "d = 1\nclass Adds:\n    def add(self): return d\n    @classmethod\n    def make(cls): return cls().add()\n"
    )
    adds: Any = in_main(source, "Adds")
    assert tc.run(MapTask(lambda made: made.add(), (adds(),), targets=[0]), block=True) == 1
    mec.push({"d": 30})
    assert tc.run(MapTask(lambda made: made.add(), (adds(),), targets=[0]), block=True) == 30
    assert tc.run(MapTask(adds.make, targets=[0]), block=True) == 30


def test_a_function_that_comes_home_brings_what_it_brought(mec: MultiEngineClient, tc: TaskClient) -> None:
    inner = in_main("d = 1\ndef f(): return d")
    mec.push({"d": 30})
    home = tc.run(MapTask(lambda given: given, (inner,)), block=True)
    assert home() == 1


def test_a_pool_in_a_task_sees_the_engines_value(mec: MultiEngineClient, tc: TaskClient) -> None:
    source = """
import multiprocessing
d = 1
def times(y): return y * d
def f():
    with multiprocessing.get_context("spawn").Pool(1) as pool: return pool.map(times, [1, 2])
"""
    mec.push({"d": 30})
    assert tc.run(MapTask(in_main(source)), block=True) == [30, 60]


def test_depend_goes_by_properties(mec: MultiEngineClient, tc: TaskClient) -> None:
    mec.set_properties({"d": 5}, targets=1)
    mec.push({"d": 30})
    wants = in_main("d = 5\ndef f(properties): return properties.get('d') == d")
    assert tc.get_task_result(tc.run(Task(abs, args=(-1,), depend=wants)), block=True).engineid == 1
    mec.clear_properties()


MODULE = """
from time import time
import math
scale = 1
def double(y): return 2 * y
def now(): return time() > 0
def scaled(y): return y * scale
def doubled(y): return double(y)
def missing(): return nowhere_else + 1
"""


def test_a_module_keeps_its_imports_and_its_newer_functions(farm: Farm, tmp_path: Path) -> None:
    (tmp_path / "travels.py").write_text(MODULE)
    script = """
import travels
from ipytaskfarm import MapTask, MultiEngineClient, Task, TaskClient
tc, mec = TaskClient(WHERE), MultiEngineClient(WHERE)
tc.progress = False
mec.execute("import time")
print(tc.run(MapTask(travels.now), block=True))
mec.push({"scale": 30})
result = tc.get_task_result(tc.run(Task(travels.scaled, args=(2,))), block=True)
print(result.result, result.stderr, end="")
mec.push_function({"double": travels.double})
text = open("travels.py").read().replace("2 * y", "4 * y")
open("travels.py", "w").write(text + "# newer")
import importlib; importlib.reload(travels)
print(tc.map(travels.doubled, [1]))
mec.push_function({"double": lambda y: 100 * y})
print(tc.map(travels.doubled, [1]))
try: tc.run(MapTask(travels.missing), block=True)
except NameError as error: print(error)
mec.push({"nowhere_else": 41})
print(tc.run(MapTask(travels.missing), block=True))
"""
    assert said_by_script(farm, tmp_path, script) == (
        "True\n"
        "60 ipytaskfarm: travels.scaled uses scale from the engines (placed there by push), not travels's\n"
        "[4]\n[100]\nname 'nowhere_else' is not defined\n42\n"
    )


def test_a_cell_that_rebinds_a_name_and_calls_a_function_of_a_module(farm: Farm, tmp_path: Path) -> None:
    """The function sees the new value in the next statement, not first in the next cell."""
    (tmp_path / "travels.py").write_text(MODULE)
    script = """
import travels
from ipytaskfarm import MultiEngineClient
mec = MultiEngineClient(WHERE)
mec.push({"scale": 30})
mec.push_function({"scaled": travels.scaled})
mec.execute("one = scaled(2); scale = 40; two = scaled(2)", targets=0)
print(mec.pull(["one", "two"], targets=0))
mec.execute("scale = 50; import asyncio; await asyncio.sleep(0); three = scaled(2)", targets=0)
print(mec.pull("three", targets=0))
"""
    assert said_by_script(farm, tmp_path, script) == "[[60, 80]]\n[100]\n"


def test_a_module_that_the_engines_have_imported_too(farm: Farm, tmp_path: Path) -> None:
    (tmp_path / "imported.py").write_text(MODULE)
    script = """
import os, imported
from ipytaskfarm import MapTask, MultiEngineClient, TaskClient
tc, mec = TaskClient(WHERE), MultiEngineClient(WHERE)
tc.progress = False
mec.execute(f"import sys; sys.path.insert(0, {os.getcwd()!r}); import imported")
print(tc.map(imported.doubled, [1]), tc.map(imported.scaled, [1]))
mec.execute("nowhere_else = 41; scale = 30")
print(tc.run(MapTask(imported.missing), block=True), tc.map(imported.scaled, [1]))
mec.execute("print(imported.scale)")
mec.execute("seen = imported.scale")
print(mec.pull("seen", targets=0))
mec.execute("sys.path.pop(0); del sys.modules['imported']")
"""
    assert said_by_script(farm, tmp_path, script) == "[2] [1]\n42 [30]\n[1]\n"
