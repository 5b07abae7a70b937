"""Objects that programs compare by identity, in classes and modules, and lambdas that modules keep under a name."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from ipytaskfarm import Farm
from tests.support.farms import DEADLINE_S

pytestmark = pytest.mark.farm

TABLE = """
import contextvars
class Table:
    empty = object()
    level = contextvars.ContextVar("level", default=1)
    class Row:
        unset = object()
    def __init__(self): self.keys = [self.empty, self.Row.unset]
    def is_free(self): return self.keys[0] is self.empty and self.keys[1] is Table.Row.unset
class Derived(Table): pass
"""
MODULE = f"""{TABLE}
unset, same = object(), lambda x: x
class Field:
    def __init__(self, factory=same): self.factory = factory
    def is_plain(self): return self.factory is same
"""
PROGRAM = """
import sys
from ipytaskfarm import TaskClient
def made(kind): return kind()
def is_free(table): return table.is_free()
def level(): return Table.level
with TaskClient(sys.argv[1]) as tc:
    found = []
    for kind in Table, Derived:
        found += [tc.submit(made, kind).result().is_free(), tc.submit(is_free, kind()).result(),
                  tc.submit(kind().is_free).result(), *tc.map(is_free, [kind()])]
    print([*found, tc.submit(level).result() is Table.level, MORE])
"""
OF_SCRIPT = f"""{TABLE}{PROGRAM.replace("MORE", "redefined(tc)")}
"""
REDEFINED = """
def redefined(tc):
    exec(compile(TEXT, __file__, "exec"), globals())  # as when a cell is run again
    return tc.submit(made, Table).result().is_free() and tc.submit(is_free, Table()).result()
"""
OF_MODULE = f"""
from NAME import Field, Table, Derived, unset, same
def own(): return unset, same
def more(tc):
    found = tc.submit(own).result() == (unset, same)
    return found and tc.submit(made, Field).result().is_plain() and tc.submit(Field().is_plain).result()
{PROGRAM.replace("MORE", "more(tc)")}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "script.py").write_text(f"TEXT = {TABLE!r}{REDEFINED}{OF_SCRIPT}")
    for name in "one", "two":
        (tmp_path / f"table_{name}.py").write_text(f"{MODULE}\nname = {name!r}\n")
        (tmp_path / f"{name}.py").write_text(OF_MODULE.replace("NAME", f"table_{name}"))
    return tmp_path


def test_they_are_the_same_in_each_program(folder: Path) -> None:
    """An engine that had a class from the program before used the object of that one, and a module in the place of
    another one was not looked at.
    """
    with Farm(n=1) as farm:
        for name in ("script", "one", "two") * 2:
            command = [sys.executable, str(folder / f"{name}.py"), str(farm.connection_file)]
            run = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S)
            assert run.returncode == 0, run.stderr
            found = ast.literal_eval(run.stdout)
            assert found == [True] * len(found), name
