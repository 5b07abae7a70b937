"""On a real farm: values of other people's libraries as globals, from wherever people keep their code."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from ipytaskfarm import Farm, MultiEngineClient, Task, TaskClient
from ipytaskfarm.core.errors import UnpickleableException
from tests.support.notebooks import executed, printed

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


HANDLE = [
    "%load_ext ipytaskfarm\n%taskfarm connect {WHERE}",
    "%%task -o h\nx = 5",
    "import threading\nfor each in threading.enumerate():\n    if each.name.startswith('task '): each.join(30)",
]
JOB = [
    "import os, time\nfrom ipytaskfarm import TaskClient\n"
    "def waits(path):\n    while not os.path.exists(path): time.sleep(0.01)\n"
    "job = TaskClient(WHERE).map(waits, [os.path.abspath('go')] * 2, block=False); job",
    "open('go', 'w').close(); job.wait()\n"
    "for each in threading.enumerate():\n    if each.name == 'ipytaskfarm progress': each.join(30)",
]
FIGURE = """import ipytaskfarm
def plot(i):
    import matplotlib.pyplot as plt, warnings
    if i < 0: warnings.warn("few")
    return plt.subplots()[0]
ipytaskfarm.TaskClient(WHERE).map(plot, [1])[0]"""
"""No figure was made here before, and no warning is an error but one of IPython's own."""


@pytest.mark.notebook
def test_from_a_notebook(farm: Farm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MPLBACKEND", raising=False)  # which the tests set
    cells = [f"WHERE = {str(farm.connection_file)!r}\n{GLOBALS}", USE, *HANDLE, *JOB, FIGURE]
    notebook = executed(cells, tmp_path)
    said = {"stdout": "", "stderr": ""}
    for output in notebook.cells[1].outputs:
        said[output.name] += output.text
    assert said["stdout"] == SAID
    assert "of_generator draws from generator, which is copied to each engine" in said["stderr"]
    assert "succeeded" in notebook.cells[3].outputs[0].data["text/html"], "nbclient takes updates from the cell it runs"
    assert "2/2 items: 2 succeeded" in notebook.cells[5].outputs[0].data["text/html"], "and so does the bar of a job"
    results = [output for output in notebook.cells[-1].outputs if output.output_type == "execute_result"]
    assert "image/png" in results[0].data
    assert "errors of warnings" not in printed(notebook)


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
import time
from ipytaskfarm import Task
def write_kept(value):
    with open("kept.py", "w") as file:
        file.write(f"V = {value}\\nclass Thing: pass")
def write_shared(value):
    with open(SHARED + "/inner.py", "w") as file:
        file.write(f"V = {value}")
def of_shared(): return shared.inner.V
def wait(path):
    import os, time
    while not os.path.exists(path): time.sleep(0.002)
def use_shared(tc):
    for value in (1, 2, 3):
        write_shared(value)
        runs = [tc.run(Task(of_shared, cache=cache)) for cache in (False, True)]
        print([tc.get_task_result(id, block=True).result for id in runs], tc.map(by_name, ["shared.inner"]))
def use_late(tc):
    "An edit between the submission and the run."
    write_shared(4)
    tc.run(Task(wait, args=(os.path.abspath("go"),)))
    late = tc.run(Task(of_shared, cache=True))
    write_shared(5)
    open("go", "w").close()
    tc.barrier(late)
    write_shared(4)
    again = tc.get_task_result(tc.run(Task(of_shared, cache=True)), block=True)
    print([again.result, again.from_cache])
def use_early(tc):
    "An edit while tasks of a job wait, and after it a task that was submitted later."
    write_shared(6)
    tc.run(Task(wait, args=(os.path.abspath("begin"),)))
    job = tc.create_job("early")
    job.add_task(Task(of_shared))
    [early], by_s = job.submit(), time.time() + 2.1
    job.pause()
    open("begin", "w").close()
    seen = {tc.run(Task(of_shared), block=True).result for _ in iter(lambda: time.time() < by_s, False)}
    write_shared(7)
    job.resume()
    print(*seen, tc.get_task_result(early, block=True).result, tc.run(Task(of_shared), block=True).result)
if __name__ == "__main__":
    write_kept(1)
    import kept, shared.inner
    with Farm(n=1) as farm, farm.task_client() as tc, farm.multiengine_client() as mec:
        use(tc)
        use_shared(tc)
        use_late(tc)
        use_early(tc)
        mec.push({"thing": kept.Thing()})
        mec.execute("import shared.inner")
        use(tc)
        use_shared(tc)
        for value in (2, 3):
            write_kept(value)
            print(tc.map(by_name, ["kept"]))
        print(mec.map(by_name, ["shared.inner"]))
"""
SAID_HERE = "[1, 1]\n[2, 2]\n" + "[1, 1] [1]\n[2, 2] [2]\n[3, 3] [3]\n"


def test_modules_under_computed_names_are_those_of_the_script_as_they_are_now(farm: Farm, tmp_path: Path) -> None:
    for values in ([1, 2], [3, 4]):
        folder = tmp_path / f"program{values[0]}"
        folder.mkdir()
        script = f"WHERE, VALUES = {str(farm.connection_file)!r}, {values}\n{EDITS}{ELSEWHERE}"
        (folder / "script.py").write_text(script)
        assert run(folder, "script.py") == "".join(f"[{value}, {value}]\n" for value in values)


def test_engines_do_not_keep_modules_that_they_find_themselves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the script's folder or by PYTHONPATH; also while names in their namespace keep other modules, or them."""
    program, shared = tmp_path / "program", tmp_path / "lib" / "shared"
    program.mkdir()
    shared.mkdir(parents=True)
    (shared / "__init__.py").write_text("")
    (shared / "inner.py").write_text("V = 0")
    path = os.environ.get("PYTHONPATH")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(shared.parent), *filter(None, [path])]))
    (program / "script.py").write_text(f"VALUES, SHARED = [1, 2], {str(shared)!r}\n{EDITS}{HERE}")
    assert run(program, "script.py") == SAID_HERE + "[4, False]\n6 6 7\n" + SAID_HERE + "[2]\n[3]\n[3]\n"


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


IMPORTS = """
import traceback
from ipytaskfarm import TaskClient
def falls_back(name):
    try:
        if name == "no_python": import no_python
        if name == "refuses": import refuses
        if name == "needs_no_python": import needs_no_python
    except (SyntaxError, RuntimeError) as error:
        return type(error).__name__
    return "nothing imported"
def fails_1(i):
    import needs_no_python
def fails_2(i):
    import refuses
if __name__ == "__main__":
    with TaskClient(WHERE) as tc:
        tc.progress = False
        for _ in range(2):
            print(*tc.map(falls_back, ["", "no_python", "", "refuses", "needs_no_python"], chunksize=1))
        for fails in (fails_1, fails_2):
            try:
                tc.map(fails, [1])
            except Exception as error:
                # The first frame is the one above, and the farm's are before the first one of the function.
                names = [frame.name for frame in traceback.extract_tb(error.__traceback__)]
                print(*names[names.index(fails.__name__):], error.__notes__[-1].rpartition("/")[2])
"""


def test_a_function_that_imports_a_module_itself_decides_whether_it_may_fail(farm: Farm, tmp_path: Path) -> None:
    """Optional modules are imported in `try` or under a condition, as here; nothing imports them before the call."""
    (tmp_path / "no_python.py").write_text("def f(:\n    pass\n")
    (tmp_path / "refuses.py").write_text("raise RuntimeError('no display here')\n")
    (tmp_path / "needs_no_python.py").write_text("import no_python\n")
    (tmp_path / "script.py").write_text(f"WHERE = {str(farm.connection_file)!r}\n{IMPORTS}")
    said = "nothing imported SyntaxError nothing imported RuntimeError SyntaxError\n"
    ends = "fails_1 <module> no_python.py:1\nfails_2 <module> refuses.py:1 in <module>\n"
    assert run(tmp_path, "script.py") == 2 * said + ends


SETS = """
import decimal, os, subprocess, warnings
from ipytaskfarm import TaskClient
def key(i): return os.environ.get("KEY_OF_SETTINGS")
def of_child(i):
    import settings
    return subprocess.run("echo $KEY_OF_SETTINGS", shell=True, capture_output=True, text=True).stdout.strip()
def third(i):
    import settings
    return len(str(decimal.Decimal(1) / 3))
def replaces(i):
    import settings
    found, os.environ["KEY_OF_SETTINGS"] = os.environ["KEY_OF_SETTINGS"], "replaced"
    return found
if __name__ == "__main__":
    import settings, uses_settings
    warnings.simplefilter("ignore")  # this program's decimal context
    with TaskClient(WHERE) as tc:
        tc.progress = False
        for _ in range(2):
            for function in (key, of_child, third, uses_settings.key, key, replaces, uses_settings.key):
                print(*tc.map(function, range(4), chunksize=2))
"""


def test_variables_of_a_settings_module_are_set_for_the_tasks_that_use_it(farm: Farm, tmp_path: Path) -> None:
    """In each task, not only in the one that happens to import the module; and in no task of others."""
    settings = "import decimal, os\nos.environ['KEY_OF_SETTINGS'] = 'k'\ndecimal.getcontext().prec = 50\n"
    (tmp_path / "settings.py").write_text(settings)
    (tmp_path / "uses_settings.py").write_text(
        "import os, settings\ndef key(i): return os.environ['KEY_OF_SETTINGS']\n"
    )
    (tmp_path / "script.py").write_text(f"WHERE = {str(farm.connection_file)!r}\n{SETS}")
    none, key, thirds = "None None None None\n", "k k k k\n", "52 52 52 52\n"
    assert run(tmp_path, "script.py") == 2 * (none + key + thirds + key + none + key + key)


ARGUMENTS = """
import sys
import settings
from ipytaskfarm import Task, TaskClient
def rate(i): return settings.args.rate * i
def rate_within(i):
    import settings
    return settings.args.rate * i
if __name__ == "__main__":
    with TaskClient(WHERE) as tc:
        tc.progress = False
        print(*tc.map(rate, [1, 2]), *tc.map(rate_within, [1, 2]))
        runs = [tc.get_task_result(tc.run(Task(rate, args=(1,), cache=True)), block=True) for _ in range(2)]
        print(*(each.result for each in runs), *(each.from_cache for each in runs))
        print(tc.why_miss(runs[0].taskid).rpartition(": ")[2])
"""


def test_a_settings_module_that_parses_the_arguments_has_those_of_the_program(farm: Farm, tmp_path: Path) -> None:
    (tmp_path / "settings.py").write_text(
        "import argparse\nparser = argparse.ArgumentParser()\nparser.add_argument('--rate', type=int, default=0)\n"
        "args = parser.parse_args()\n"
    )
    (tmp_path / "script.py").write_text(f"WHERE = {str(farm.connection_file)!r}\n{ARGUMENTS}")
    assert run(tmp_path, "script.py", "--rate", "5").startswith("5 10 5 10\n5 5 False True\n")
    said = run(tmp_path, "script.py", "--rate", "7")
    assert said.startswith("7 14 7 14\n7 7 False True\n")
    assert said.splitlines()[-1] == "--rate 5 → --rate 7"


MOVED = """
def fails(i):
    class Divides:
        def by(self, i): return 1 / i
    return helper(Divides().by, i)
def helper(function, i):
    return function(i)
if __name__ == "__main__":
    import traceback
    from ipytaskfarm import TaskClient
    with TaskClient(WHERE) as tc:
        tc.progress = False
        try:
            tc.map(fails, [0])
        except ZeroDivisionError as error:
            frames = traceback.extract_tb(error.__traceback__)[-3:]
            print(*(f"{frame.filename.rpartition('/')[2]}:{frame.lineno}" for frame in frames), frames[-1].line)
"""


def test_errors_name_the_lines_where_the_function_is_now(farm: Farm, tmp_path: Path) -> None:
    for name, before in (("script.py", 0), ("script.py", 3), ("other.py", 1)):
        (tmp_path / name).write_text("# edited\n" * before + f"WHERE = {str(farm.connection_file)!r}\n{MOVED}")
        line = before + 3
        said = f"{name}:{line + 3} {name}:{line + 5} {name}:{line + 2} def by(self, i): return 1 / i\n"
        assert run(tmp_path, name) == said


MOVED_CLASSES = """
import dataclasses, functools, sys, traceback
from ipytaskfarm import TaskClient
def calls(value): return value.go()
class Plain:
    def go(self):
        INSIDE
        return 1 / 0
class Inherits(Plain):
    def go(self):
        return super().go()
@dataclasses.dataclass(slots=True)
class Slotted:
    x: int = 1
    @staticmethod
    def divide(): return 1 / 0
    def go(self): return self.divide()
class Nested:
    class Inner:
        @property
        def of(self):
            def inner():
                INSIDE
                return 1 / 0
            return inner()
    def go(self): return self.Inner().of
def makes(name): return KNOWN[name]().go()
KNOWN = {each.__name__: each for each in (Plain, Inherits, Slotted, Nested)}
def last(call, *args):
    try:
        call(*args)
    except ZeroDivisionError as error:
        return traceback.extract_tb(error.__traceback__)[-1].lineno
if __name__ == "__main__":
    with TaskClient(WHERE) as tc:
        tc.progress = False
        for name, cls in KNOWN.items():
            for function, value in ((calls, cls()), (makes, name), (cls().go, None)):
                args = () if value is None else (value,)
                here, there = last(function, *args), last(lambda: tc.submit(function, *args).result())
                assert here == there, (name, function, here, there)
        print("all right")
"""


def test_errors_name_the_lines_where_classes_are_now(farm: Farm, tmp_path: Path) -> None:
    """Also if only the inside of a method has moved."""
    for before, inside in ((0, 0), (3, 0), (3, 2), (0, 1)):
        text = "# edited\n" * before + f"WHERE = {str(farm.connection_file)!r}\n{MOVED_CLASSES}"
        (tmp_path / "script.py").write_text(re.sub(" *INSIDE\n", "#\n" * inside, text))
        assert run(tmp_path, "script.py") == "all right\n"


KEPT_CLASS = """
import sys
from ipytaskfarm import MultiEngineClient, TaskClient
class Kept:
    def go(self): return 1
def knows(value): return type(value) is type(kept) is Kept and isinstance(kept, Kept)
if __name__ == "__main__":
    if "push" in sys.argv:
        MultiEngineClient(WHERE).push({"kept": Kept()})
    with TaskClient(WHERE) as tc:
        tc.progress = False
        print(tc.map(knows, [Kept(), Kept()]), type(tc.submit(lambda: Kept()).result()) is Kept)
"""


def test_a_class_that_has_moved_is_the_same_class(farm: Farm, tmp_path: Path) -> None:
    for before, words in ((0, ["push"]), (4, [])):
        text = "# edited\n" * before + f"WHERE = {str(farm.connection_file)!r}\n{KEPT_CLASS}"
        (tmp_path / "script.py").write_text(text)
        assert run(tmp_path, "script.py", *words) == "[True, True] True\n"
