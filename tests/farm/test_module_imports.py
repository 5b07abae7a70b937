"""On a real farm: modules of the project that are imported on engines again and again, or do work at their import."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from ipytaskfarm import Farm

SHADOWS = """
import sys
import pk, pk.name
from ipytaskfarm import TaskClient
def both(_): return pk.name(), sys.modules["pk.name"].V, pk.other.V
def imports(_):
    from pk.name import V, name
    return name(), V, callable(pk.name)
def without(_): return "pk" in sys.modules
with TaskClient(WHERE) as tc:
    for function in (both, imports, without, both, imports):
        print(*(tc.submit(function, 0).result() for _ in range(4)))
"""


def test_a_package_keeps_what_it_has_under_the_name_of_its_module(farm: Farm, tmp_path: Path) -> None:
    (tmp_path / "pk" / "name").mkdir(parents=True)
    (tmp_path / "pk" / "__init__.py").write_text("from .name import name\nfrom . import other\n")
    (tmp_path / "pk" / "other.py").write_text("V = 'other'\n")
    (tmp_path / "script.py").write_text(f"WHERE = {str(farm.connection_file)!r}\n{SHADOWS}")
    for version in ("first", "edited"):
        (tmp_path / "pk" / "name" / "__init__.py").write_text(f"V = {version!r}\ndef name(): return V\n")
        both, imports = f"('{version}', '{version}', 'other')", f"('{version}', '{version}', True)"
        lines = [both, imports, "False", both, imports]
        assert run(tmp_path, "script.py") == "".join(" ".join([line] * 4) + "\n" for line in lines)


COMPILED = """
from fast.xxlimited import foo
from ipytaskfarm import TaskClient
def of_a_global(x): return foo(x, 1)
def of_an_argument(function, x): return function(x, 2)
with TaskClient(WHERE) as tc:
    print(tc.submit(foo, 1, 1).result(), tc.map(of_a_global, [1, 2]), tc.submit(of_an_argument, foo, 1).result())
"""


def test_a_function_of_a_compiled_module_brings_the_folder_of_the_module(farm: Farm, tmp_path: Path) -> None:
    found = next(Path(sysconfig.get_config_var("DESTSHARED") or "/nowhere").glob("xxlimited.*.so"), None)
    if found is None:
        pytest.skip("this Python has no compiled module to copy")
    (tmp_path / "fast").mkdir()
    (tmp_path / "fast" / "__init__.py").touch()
    shutil.copy(found, tmp_path / "fast")  # engines find it at the top level
    (tmp_path / "script.py").write_text(f"WHERE = {str(farm.connection_file)!r}\n{COMPILED}")
    assert run(tmp_path, "script.py") == "2 [2, 3] 3\n"


def test_a_module_that_makes_a_farm_at_its_import_does_so_on_no_engine(tmp_path: Path) -> None:
    """Each of these farms would make another one."""
    (tmp_path / "makes_one.py").write_text(
        "from ipytaskfarm import Farm\ndef f(x): return x\n"
        "with Farm(n=1) as farm, farm.task_client() as tc:\n    tc.submit(f, 1).result()\n"
    )
    said = failure(tmp_path, "-c", "import makes_one")
    assert "RuntimeError: an engine imports the module 'makes_one', which makes a Farm there: put that into" in said


def test_a_module_that_submits_its_functions_at_its_import_does_so_on_no_engine(farm: Farm, tmp_path: Path) -> None:
    (tmp_path / "submits.py").write_text(
        "from ipytaskfarm import TaskClient\ndef f(x): return x\n"
        f"with TaskClient({str(farm.connection_file)!r}) as tc:\n    three = tc.submit(len, 'abc').result()\n"
        "    tc.submit(f, 1).result()\n"
    )
    said = failure(tmp_path, "-c", "import submits")
    assert "RuntimeError: an engine imports the module 'submits', which submits work with functions of its own" in said


IN_AN_ARCHIVE = """
import lib
from ipytaskfarm import TaskClient, add_dependency
for given in (lib, "program.pyz"):
    try:
        add_dependency(given)
    except ValueError as error:
        print(error)
with TaskClient(WHERE) as tc:
    try:
        tc.submit(lib.f, 1).result()
    except ModuleNotFoundError as error:
        print(error)
"""


def test_modules_of_an_archive_are_refused_with_the_remedy(farm: Farm, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "program.pyz", "w") as archive:
        archive.writestr("lib.py", "def f(x): return x\n")
        archive.writestr("__main__.py", f"WHERE = {str(farm.connection_file)!r}\n{IN_AN_ARCHIVE}")
    said = run(tmp_path, "program.pyz").splitlines()
    assert len(said) == 3
    assert all("the modules in it cannot be sent: unpack it" in line for line in said)
    assert f"here it is in the archive {tmp_path / 'program.pyz'}" in said[2]


def run(folder: Path, *arguments: str) -> str:
    ended = python(folder, *arguments)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def failure(folder: Path, *arguments: str) -> str:
    ended = python(folder, *arguments)
    assert ended.returncode == 1, ended.stdout
    return ended.stderr


def python(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], cwd=folder, capture_output=True, text=True, timeout=60)


MEMBERS = """
from service import ask, calls, db
from ipytaskfarm import Task, TaskClient
def by_method(_): return ask()
def by_instance(_): return db.ask()
def by_ufunc(_): return calls(0), db.lock is None
with TaskClient(WHERE) as tc:
    for function in (by_method, by_instance, by_ufunc):
        runs = [tc.get_task_result(tc.run(Task(function, args=(0,), cache=True)), block=True) for _ in range(2)]
        print(tc.submit(function, 0).result(), *(f"{each.result} {each.from_cache}" for each in runs))
"""


def test_kept_results_of_members_of_modules_are_never_stale(farm: Farm, tmp_path: Path) -> None:
    """Also if the member cannot be pickled."""
    (tmp_path / "script.py").write_text(f"WHERE = {str(farm.connection_file)!r}\n{MEMBERS}")
    for lock in ("None", "threading.Lock()"):
        for value in ("1", "2", "1"):
            (tmp_path / "service.py").write_text(
                f"import numpy, threading\nclass Db:\n    lock = None\n"
                f"    def ask(self): return {value}, self.lock is None\n"
                f"db = Db()\ndb.lock = {lock}\nask = db.ask\n"
                f"calls = numpy.frompyfunc(lambda _: {value}, 1, 1)\n"
            )
            result = f"({value}, {lock == 'None'})"
            assert run(tmp_path, "script.py").count(result) == 9
            assert run(tmp_path, "script.py") == f"{result} {result} True {result} True\n" * 3


METHODS = """
import os, pickle, subprocess, sys
import lib
from ipytaskfarm import TaskClient
class Job:
    def imports(self):
        from lib import value
        return value()
    def reads(self): return lib.value()
    def pickles(self): return pickle.loads(pickle.dumps(lib.Thing())).x
    def child(self):
        code = "import lib; print(lib.value())"
        return int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout)
class Slow(Job):
    pass
class Plain:
    def imports(self): return "lib" in sys.modules or "SET_BY_LIB" in os.environ
    reads = pickles = child = imports
def call(job, name): return getattr(job, name)()
def other(_): return "lib" in sys.modules
with TaskClient(WHERE) as tc:
    tc.progress = False
    for name in ("imports", "reads", "pickles", "child"):
        for job in (Job(), Slow()):
            for _ in range(3):
                one, two = tc.submit(call, job, name).result(), tc.map(call, [job] * 2, [name] * 2)
                print(one, *two, tc.submit(other, 0).result(), tc.submit(call, Plain(), name).result())
"""


def test_methods_of_arguments_find_their_modules_in_each_task(farm: Farm, tmp_path: Path) -> None:
    """Also if the engine knows the class of the argument from an earlier one."""
    (tmp_path / "script.py").write_text(f"WHERE = {str(farm.connection_file)!r}\n{METHODS}")
    for value in ("1", "2"):
        (tmp_path / "lib.py").write_text(
            f"import os\nos.environ['SET_BY_LIB'] = '{value}'\nclass Thing:\n    x = {value}\n"
            "def value(): return int(os.environ['SET_BY_LIB'])\n"
        )
        assert run(tmp_path, "script.py") == f"{value} {value} {value} False False\n" * 24
