"""Processes that a task starts find what came with it by value: from a script, a module beside it, and a notebook.

The farm starts in another folder than the script's, so that nothing can be imported by where it lies.  Each row of
`ROWS` is one task; to add a case, add what it needs to `PROJECT` and a line to the table.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import assert_nothing_left, isolated
from tests.support.notebooks import executed, printed

BESIDE = """
import multiprocessing
def tripled(x): return 3 * x
class Box:
    def __init__(self, x): self.x = x
def pool(method):
    with multiprocessing.get_context(method).Pool(2) as pool: return pool.map(tripled, [1, 2])
"""

PROJECT = """
import concurrent.futures, functools, multiprocessing, pickle, subprocess, sys
import beside

def square(x): return x * x
def fails(x): raise Wrong(x, "wrong")
def chain(x): return square(x) + pickle.loads(pickle.dumps(Point(1))).x
class Point:
    def __init__(self, x): self.x = x
    def plus(self, y): return self.x + y
class Wrong(Exception):
    def __init__(self, x, text): super().__init__(x, text)
STATE = "none"
def begin(state):
    global STATE
    STATE = state
def look(x): return STATE, Point(x)
LOCK = None
def locked(x):
    with LOCK: return x
def with_lock(method):
    global LOCK
    LOCK = multiprocessing.get_context(method).Lock()
    try: return pool(method, locked)
    except Exception as error: return "cannot be sent to a process that was not forked" in str(error)

def pool(method, function, items=(1, 2)):
    with multiprocessing.get_context(method).Pool(2) as pool: return pool.map(function, items)
def futures(method, function, items=(1, 2)):
    context = multiprocessing.get_context(method)
    with concurrent.futures.ProcessPoolExecutor(2, context) as executor: return list(executor.map(function, items))
def initialised(method):
    with multiprocessing.get_context(method).Pool(1, begin, ("set",)) as pool: found = pool.map(look, [5])
    return [(state, type(point) is Point, point.x) for state, point in found]
def points(method): return [type(each) is Point for each in futures(method, Point)]
def boxes(method): return [type(each) is beside.Box for each in futures(method, beside.Box)]
def raised(method):
    try: pool(method, fails, [1])
    except Wrong as error: return error.args
class Putting(multiprocessing.get_context("spawn").Process):
    def __init__(self, queue):
        super().__init__()
        self.queue = queue
    def run(self): self.queue.put(Point(7))
def process():
    queue = multiprocessing.get_context("spawn").Queue()
    child = Putting(queue)
    child.start()
    found = queue.get(timeout=20)
    child.join()
    return found.x
def pickled():
    found = pickle.loads(pickle.dumps((square, Point, Point(3), beside.Box(4))))
    return found[0] is square, found[1] is Point, found[2].x, found[3].x
def command():
    code = "import beside; print(beside.tripled(3))"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    return beside.tripled(1), ended.stdout or ended.stderr
def job(backend, function):
    import joblib
    return joblib.Parallel(2, backend=backend)(joblib.delayed(function)(x) for x in (1, 2))
def in_main():
    import __main__
    main = sys.modules["__main__"]
    return __main__.square(3), main.Point is Point, hasattr(main, "absent"), square(1)
def no_begin(x): raise ValueError("no beginning")
def dies(method):
    # With a chunk size: without one Pool.map divides by the number of its workers, which is 0 for a moment.
    try:
        with multiprocessing.get_context(method).Pool(1, no_begin, (1,)) as pool: pool.map(square, [1, 2], 1)
    except RuntimeError as error: return "was ended by an exception: its initializer failed" in str(error)
def leaves(method):
    with multiprocessing.get_context(method).Pool(1) as pool:
        try: return list(pool.imap(sys.exit, [1, 1]))
        except RuntimeError as error: return "SystemExit" in str(error)
def left():
    import importlib.util
    name, main, own = ("".join(reversed(word)) for word in ("ediseb", "__niam__", "erauqs"))  # so that none is sent
    return importlib.util.find_spec(name), name in sys.modules, hasattr(sys.modules[main], own)
"""

ROWS: list[tuple[str, Any]] = [
    ("pickled()", (True, True, 3, 4)),
    ("command()", (3, "9\n")),
    ("in_main()", (9, True, False, 1)),
    ("process()", 7),
    ("dies('fork')", True),
    ("dies('spawn')", True),
    ("leaves('fork')", True),
    ("with_lock('fork')", [1, 2]),
    ("with_lock('spawn')", True),
    ("job('loky', square)", [1, 4]),
    ("job('loky', beside.tripled)", [3, 6]),
    ("job('multiprocessing', square)", [1, 4]),
    ("job('multiprocessing', beside.tripled)", [3, 6]),
    *(
        (call.replace("METHOD", repr(method)), expected)
        for method in ("fork", "spawn", "forkserver")
        for call, expected in (
            ("pool(METHOD, square)", [1, 4]),
            ("pool(METHOD, chain)", [2, 5]),
            ("pool(METHOD, beside.tripled)", [3, 6]),
            ("pool(METHOD, Point(1).plus)", [2, 3]),
            ("pool(METHOD, functools.partial(pow, 2))", [2, 4]),
            ("beside.pool(METHOD)", [3, 6]),
            ("futures(METHOD, square)", [1, 4]),
            ("points(METHOD)", [True, True]),
            ("boxes(METHOD)", [True, True]),
            ("initialised(METHOD)", [("set", True, 5)]),
            ("raised(METHOD)", (1, "wrong")),
        )
    ),
    ("left()", (None, False, False)),
]
"""A call, as a task makes it, and its value."""

RUN = """
import ast, os
from ipytaskfarm import Farm, Task
here = os.getcwd()
os.chdir("/")
farm = Farm(n=1)
os.chdir(here)
tc = farm.task_client()
def value(call):
    name, arguments = call.split("(", 1)
    values = eval(f"(lambda *a: a)({arguments}", globals())
    try:
        ended = tc.get_task_result(tc.run(Task(eval(name, globals()), args=values)), block=True, timeout=40)
        ended.raise_exception()
        return ended.result
    except BaseException as error:
        return f"{type(error).__name__}: {error}"
if __name__ == "__main__":
    try:
        found = [value(call) for call in ROWS]
        print("FOUND", repr(found))
    finally:
        tc.close()
        farm.stop()
"""


def calls() -> list[str]:
    return [call for call, _ in ROWS]


IN_NOTEBOOK = [row for row, (call, _) in enumerate(ROWS) if "'fork" not in call]
"""From a notebook the way is the same; what is slow there is the notebook."""


def found_in(text: str) -> list[Any]:
    line = next((line for line in text.splitlines() if line.startswith("FOUND ")), None)
    assert line is not None, text
    found: list[Any] = ast.literal_eval(line.removeprefix("FOUND "))
    return found


def write_project(folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "beside.py").write_text(BESIDE)


@pytest.fixture(scope="module")
def from_script(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    folder = tmp_path_factory.mktemp("script") / "project"
    write_project(folder)
    (folder / "script.py").write_text(f"{PROJECT}\nROWS = {calls()!r}\n{RUN}")
    with isolated("itf-") as dirs:
        command = [sys.executable, "script.py"]
        ended = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=180, check=False)
        assert_nothing_left(dirs)
    return found_in(ended.stdout + ended.stderr)


@pytest.fixture(scope="module")
def from_notebook(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    folder = tmp_path_factory.mktemp("notebook") / "project"
    write_project(folder)
    some = [calls()[row] for row in IN_NOTEBOOK]
    with isolated("itf-") as dirs:
        notebook = executed((PROJECT, f"ROWS = {some!r}\n{RUN}"), folder, timeout_s=180)
        assert_nothing_left(dirs)
    return found_in(printed(notebook))


@pytest.mark.slow
@pytest.mark.parametrize("row", range(len(ROWS)), ids=calls())
def test_from_a_script(from_script: list[Any], row: int) -> None:
    assert from_script[row] == ROWS[row][1]


@pytest.mark.slow
@pytest.mark.parametrize("row", IN_NOTEBOOK, ids=[calls()[row] for row in IN_NOTEBOOK])
def test_from_a_notebook(from_notebook: list[Any], row: int) -> None:
    assert from_notebook[IN_NOTEBOOK.index(row)] == ROWS[row][1]
