"""Run code of real users, each line from a script, a module beside it, `python -m pkg.main` and a notebook.

The rows are in `tests/support/real_code.py`; `tests/unit/test_odd_starts.py` starts farms in odd surroundings.
"""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ipytaskfarm import Farm
from tests.support.farms import module_farm
from tests.support.notebooks import executed, printed
from tests.support.real_code import BEGIN, PACKAGE, ROWS, Row
from tests.support.thorough import some_of

CODE = BEGIN + "\n".join(row.lines for row in ROWS)

USE = f"""
from ipytaskfarm import MultiEngineClient, TaskClient
def value(call, names):
    try: return repr(eval(call, globals(), names))
    except BaseException as error: return f"{{type(error).__name__}}: {{error}}"
with TaskClient(WHERE) as tc, MultiEngineClient(WHERE) as mec:
    tc.progress = False
    found = [value(call, {{"tc": tc, "mec": mec}}) for call in {[row.call for row in ROWS]!r}]
print("FOUND", ascii(found))
"""


def run(folder: Path, *arguments: str) -> str:
    ended = subprocess.run(
        [sys.executable, *arguments],
        capture_output=True, text=True, timeout=300, check=False, cwd=folder, env=os.environ,
    )  # fmt: skip
    return ended.stdout + ended.stderr


def from_a_script(folder: Path, where: str) -> str:
    (folder / "script.py").write_text(where + CODE + USE)
    return run(folder, "script.py")


def from_a_module(folder: Path, where: str) -> str:
    (folder / "beside.py").write_text(CODE)
    (folder / "script.py").write_text(f"from beside import *\n{where}{USE}")
    return run(folder, "script.py")


def from_a_package(folder: Path, where: str) -> str:
    package = folder / "pkg"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "main.py").write_text(where + CODE + USE)
    return run(folder, "-m", "pkg.main")


def from_a_notebook(folder: Path, where: str) -> str:
    return printed(executed((where + CODE, USE), folder, timeout_s=300))


def compiled_module(package: Path) -> None:
    """Put Python's own example of a compiled module into a package; without it, a module that does the same."""
    libraries = Path(sysconfig.get_config_var("DESTSHARED") or "/nowhere")
    found = next(libraries.glob("xxlimited.*.so"), None)
    if found is None:
        (package / "xxlimited.py").write_text("def foo(a, b): return a + b\n")
    else:
        shutil.copy(found, package)


WAYS = [from_a_script, from_a_module, from_a_notebook, from_a_package]


@pytest.fixture(scope="module")
def shared() -> Iterator[Farm]:
    with module_farm(2) as farm:
        yield farm


@pytest.fixture(scope="module", params=some_of(WAYS, 2), ids=lambda way: way.__name__)
def found(request: pytest.FixtureRequest, shared: Farm, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    way: Callable[[Path, str], str] = request.param
    folder = tmp_path_factory.mktemp(way.__name__)
    for name, text in PACKAGE.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    compiled_module(folder / "realpkg")
    said = way(folder, f"WHERE = {str(shared.connection_file)!r}\n")
    lines = [line for line in said.splitlines() if line.startswith("FOUND ")]
    assert lines, said
    values: list[Any] = ast.literal_eval(lines[0].removeprefix("FOUND "))
    return dict(zip((row.call for row in ROWS), values, strict=True))


@pytest.mark.farm
@pytest.mark.notebook
@pytest.mark.slow
@pytest.mark.timeout(400)  # the first row of a place runs all of them
@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.kind} {row.name}")
def test_an_input_works(found: dict[str, str], row: Row) -> None:
    assert found[row.call] == repr(row.value)
