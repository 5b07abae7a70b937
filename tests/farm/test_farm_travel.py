"""On a real farm: values of other people's libraries as globals, from wherever people keep their code."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from ipytaskfarm import Farm, MultiEngineClient, Task, TaskClient
from ipytaskfarm.core.errors import UnpickleableException
from tests.support.notebooks import executed

GLOBALS = """
import sys
import numpy as np, pandas as pd
from scipy.stats import norm
from sklearn.linear_model import LinearRegression
df = pd.DataFrame({"x": [1, 2, 3], "s": ["a", "b", "c"]})
when = pd.Timestamp("2024-02-29")
missing = pd.NaT
generator = np.random.default_rng(1)
model = LinearRegression().fit([[0], [1]], [1, 3])
def of_frame(i): return int(df.x.iloc[i])
def of_time(i): return when.day + i, missing is pd.NaT
def of_norm(i): return round(float(norm.cdf(i)), 3)
def of_generator(i): return round(float(generator.random()), 3) < 1
def of_model(i): return round(float(model.predict([[i]])[0]), 3)
def of_default(i, file=sys.stderr): return file is sys.stderr
"""
USE = """
from ipytaskfarm import TaskClient
with TaskClient(WHERE) as tc:
    tc.progress = False
    print(tc.map(of_frame, [0, 2]))
    print(tc.map(of_time, [1]))
    print(tc.map(of_norm, [0]))
    print(tc.map(of_generator, [0]))
    print(tc.map(of_model, [2]))
    print(tc.map(of_default, [2]))
    print([len(part) for part in tc.map(np.random.rand, [1, 2])])
    print([len(part) for part in tc.map(df.head, [1, 2])])
"""
SAID = """[1, 3]
[(30, True)]
[0.5]
[True]
[5.0]
[True]
[1, 2]
[1, 2]
"""


def run(folder: Path, *arguments: str) -> str:
    ended = subprocess.run(
        [sys.executable, *arguments],
        capture_output=True, text=True, timeout=60, check=False, cwd=folder, env=os.environ,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def test_from_a_script(farm: Farm, tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(f"WHERE = {str(farm.connection_file)!r}\n{GLOBALS}{USE}")
    assert run(tmp_path, "script.py") == SAID


def test_from_a_module_beside_the_script(farm: Farm, tmp_path: Path) -> None:
    (tmp_path / "beside.py").write_text(GLOBALS)
    (tmp_path / "script.py").write_text(f"from beside import *\nWHERE = {str(farm.connection_file)!r}\n{USE}")
    assert run(tmp_path, "script.py") == SAID


def test_from_a_package_that_is_run(farm: Farm, tmp_path: Path) -> None:
    package = tmp_path / "pkg"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "sub.py").write_text(GLOBALS)
    (package / "main.py").write_text(f"from .sub import *\nWHERE = {str(farm.connection_file)!r}\n{GLOBALS}{USE}")
    assert run(tmp_path, "-m", "pkg.main") == SAID


@pytest.mark.notebook
def test_from_a_notebook(farm: Farm, tmp_path: Path) -> None:
    cells = [f"WHERE = {str(farm.connection_file)!r}\n{GLOBALS}", USE]
    notebook = executed(cells, tmp_path)
    said = {"stdout": "", "stderr": ""}
    for output in notebook.cells[1].outputs:
        said[output.name] += output.text
    assert said["stdout"] == SAID
    assert "of_generator draws from generator, which is copied to each engine" in said["stderr"]


EDITS = """
import importlib, os
from ipytaskfarm import Farm, TaskClient
def by_name(name): return importlib.import_module(name).V
os.makedirs("plugged", exist_ok=True)
def write(value):
    for name in ("plugged/__init__", "plugged/one", "plugin"):
        with open(name + ".py", "w") as file:
            file.write(f"V = {value}")
def use(tc):
    tc.progress = False
    for value in VALUES:
        write(value)
        print(tc.map(by_name, ["plugged.one", "plugin"]))
"""
ELSEWHERE = """
with TaskClient(WHERE) as tc:
    use(tc)
"""
HERE = """
if __name__ == "__main__":
    with open("kept.py", "w") as file:
        file.write("class Thing: pass")
    import kept
    with Farm(n=1) as farm, farm.task_client() as tc, farm.multiengine_client() as mec:
        use(tc)
        mec.push({"thing": kept.Thing()})
        use(tc)
"""


def test_modules_under_computed_names_are_those_of_the_script_as_they_are_now(farm: Farm, tmp_path: Path) -> None:
    for values in ([1, 2], [3, 4]):
        folder = tmp_path / f"program{values[0]}"
        folder.mkdir()
        script = f"WHERE, VALUES = {str(farm.connection_file)!r}, {values}\n{EDITS}{ELSEWHERE}"
        (folder / "script.py").write_text(script)
        assert run(folder, "script.py") == "".join(f"[{value}, {value}]\n" for value in values)


def test_engines_in_the_scripts_folder_do_not_keep_its_modules(tmp_path: Path) -> None:
    """They find them by a path of their own; also while a value in their namespace keeps other modules."""
    (tmp_path / "script.py").write_text(f"VALUES = [1, 2]\n{EDITS}{HERE}")
    assert run(tmp_path, "script.py") == "[1, 1]\n[2, 2]\n" * 2


class Holder:
    def __init__(self, own: Any) -> None:
        self.own = own


def test_clients_farms_and_locks_are_refused_and_use_no_id(farm: Farm, tc: TaskClient, mec: MultiEngineClient) -> None:
    before = tc.run(Task(abs, args=(-1,)))
    remedies = {
        "a TaskClient cannot travel; inside a task use `current_task()`": tc,
        "a MultiEngineClient cannot travel; inside a task use `current_task()`": mec,
        "a Farm cannot travel; inside a task use `current_task()`": farm,
        "a _thread.lock cannot be pickled: make it where it is used": threading.Lock(),
    }
    for remedy, value in remedies.items():
        with pytest.raises(UnpickleableException) as caught:
            tc.run(Task(abs, args=(Holder(value),)))
        assert str(caught.value).startswith(f"args[0].own: {remedy}")
        with pytest.raises(UnpickleableException) as caught:
            tc.run(Task(lambda value=value: value))
        assert remedy in str(caught.value)
    future = tc.submit(abs, -1)
    with pytest.raises(UnpickleableException, match="a TaskFuture cannot travel; give it as an argument"):
        tc.run(Task(lambda: future))
    assert tc.run(Task(abs, args=(-1,))) == int(future) + 1 == before + 2
