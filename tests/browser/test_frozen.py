"""A frozen engine in JupyterLab: its frames in a cell of the user's notebook, and a notebook on the engine itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest

from ipytaskfarm import Farm, Ref, Task, TaskClient
from tests.conftest import Dirs
from tests.support.browser import Lab, Notebook, answer, connect_to, other_kernels
from tests.support.failing import CODE, Prepared, Ratio, closure, divide
from tests.support.far import NODE, far_engines
from tests.support.farms import engines, until_engines
from tests.support.polling import DEADLINE_S, eventually

pytestmark = [pytest.mark.browser, pytest.mark.farm]


@pytest.fixture(scope="module")
def farm(world: Dirs) -> Iterator[Farm]:
    with Farm(n=1, drain=0, frozen_engines=8) as farm:
        yield farm


def connected(lab: Lab, farm: Farm, name: str) -> Notebook:
    notebook = lab.open(name)
    notebook.run(
        f"from ipytaskfarm import *\ntc = TaskClient({str(farm.connection_file)!r})\n"
        "def halve(x):\n    rest = x % 2\n    return x / rest"
    )
    return notebook


def test_the_debugger_opens_in_the_users_own_notebook(lab: Lab, farm: Farm) -> None:
    notebook = connected(lab, farm, "own")
    notebook.run("bad = tc.run(Task(halve, args=(4,), on_failure='hold'))\ntc.barrier([bad])")
    cell = notebook.start("tc.debug(bad)")
    cell.shows("return x / rest")
    answer(notebook, "p x, rest")
    cell.shows("(4, 0)")
    answer(notebook, "q")
    cell.done()
    notebook.run("tc.release()").shows("1")
    notebook.page.close()


class Kind(NamedTuple):
    """A kind of task: what fails, and what a notebook on its frozen engine shows."""

    make: Callable[[TaskClient], Task]
    place: str
    """The line of code that failed."""
    asked: str
    """What is asked in the frames."""
    answer: str
    far: bool = False
    """Whether it fails on the other machine."""
    cell: tuple[str, str] | None = None
    """Code that looks at the engine's namespace, and what it prints."""


DIVISION = "return x / difference"
KINDS = {
    "class": Kind(lambda tc: Task(Ratio, args=(3,), on_failure="hold"), DIVISION, "x, difference", "(3, 0"),
    "closure": Kind(lambda tc: Task(closure(0), args=(3,), on_failure="hold"), DIVISION, "x, by", "(3, 0"),
    "code": Kind(
        lambda tc: Task(CODE, push={"a": 3}, on_failure="hold"), "int(found[0]) / b", "a, b, found", "(3, 0, ['3'])",
        cell=("print(a, b, found, env if 'env' in dir() else 'no env')", "3 0 ['3'] no env"),
    ),
    "result": Kind(
        lambda tc: Task(divide, args=(3, Ref(tc.run(Task(int)))), on_failure="hold"), DIVISION, "x, by", "(3, 0)"
    ),
    "environment": Kind(
        lambda tc: Task("x = 1 / env.ready", environment=Prepared(), on_failure="hold"), "1 / env.ready", "env.ready",
        "0", cell=("print(type(env).__name__, env.zero)", "Prepared 0"),
    ),
    "far": Kind(lambda tc: Task(divide, args=(3,), on_failure="hold"), DIVISION, "x, difference", "(3, 0.0)", True),
}  # fmt: skip


def test_a_notebook_on_each_frozen_engine(lab: Lab, farm: Farm, world: Dirs) -> None:
    """The six are frozen at once, and one notebook is connected with one after the other."""
    folder = world.root / "far"
    folder.mkdir(mode=0o700)
    with far_engines(farm, folder, engines=1), farm.task_client() as tc:
        kind_of: dict[int, Kind] = {}
        for kind in KINDS.values():
            until_engines(farm, 2)
            task = kind.make(tc)
            task.targets = next(row.id for row in engines(farm) if (row.node == NODE) == kind.far)
            kind_of[failed := tc.run(task)] = kind
            tc.barrier([failed])
            tc.debug(failed)  # nobody can type here: it is only offered to Jupyter
        engine_of = {str(row.pid): row for row in tc.frozen()}
        notebook = lab.open("engine")
        for kernel in other_kernels(notebook, len(KINDS)):
            connect_to(notebook, kernel)
            row = engine_of.pop(notebook.run("import os; print(os.getpid())").text.strip())
            looks_at_its_frames(notebook, kind_of.pop(row.task))
            assert tc.release([row.task]) == 1
        eventually(lambda: not tc.frozen().rows, DEADLINE_S)
        notebook.page.close()


def looks_at_its_frames(notebook: Notebook, kind: Kind) -> None:
    """Look at the variables of the frame that failed, in the debugger that opens in a cell."""
    if kind.cell:
        code, shown = kind.cell
        notebook.run(code).shows(shown)
    cell = notebook.start("%debug")
    cell.shows(kind.place)
    answer(notebook, f"p {kind.asked}")
    cell.shows(kind.answer)
    answer(notebook, "q")
    cell.done()
