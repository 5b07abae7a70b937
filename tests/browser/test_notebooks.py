"""Run the notebooks: their outputs equal the saved ones, and they leave nothing behind."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Dirs, assert_nothing_left, processes_of
from tests.support.browser import drawing_world
from tests.support.notebooks import quickly
from tests.support.thorough import by_hand

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SANITIZE = ROOT / "notebooks" / "sanitize.cfg"

CELL_TIMEOUT_S = 60
UNUSED = ("-p", "no:hypothesispytest", "-p", "no:anyio", "-p", "no:cacheprovider")
"""Plugins that cost each run more than a second."""
NBVAL_S = 280.0
ALL_NOTEBOOKS_S = 900.0
"""A minute on an idle machine."""


@pytest.fixture
def world() -> Iterator[Dirs]:
    with drawing_world() as dirs:
        yield dirs


def nbval(*arguments: str | Path, timeout_s: float = NBVAL_S) -> subprocess.CompletedProcess[str]:
    """Run notebooks as everybody can, with ``pytest --nbval``.  Each start of pytest costs two seconds of CPU time."""
    # A busy machine would have bars where none are saved, in whatever takes longer than a second there.
    environment = {**os.environ, "IPYTASKFARM_PROGRESS": "0"}
    return subprocess.run(
        [*quickly("pytest"), "--nbval", f"--nbval-sanitize-with={SANITIZE}",
         f"--nbval-cell-timeout={CELL_TIMEOUT_S}", *UNUSED, "--color=no", "-v", *map(str, arguments)],
        capture_output=True, text=True, timeout=timeout_s, check=False, cwd=ROOT, env=environment,
    )  # fmt: skip


def cells(notebook: Path) -> list[dict[str, Any]]:
    """The code cells of a notebook, as they are on disk."""
    return [cell for cell in json.loads(notebook.read_text())["cells"] if cell["cell_type"] == "code"]


def passed(said: str, notebook: Path) -> int:
    """Return how many cells of a notebook passed."""
    return len(re.findall(rf"\b{re.escape(notebook.stem)}::ipynb::Cell \d+ PASSED", said))


@pytest.fixture(scope="module")
def said() -> str:
    """Run all notebooks, one after the other; what nbval says."""
    with drawing_world() as world:
        ended = nbval(*NOTEBOOKS, timeout_s=ALL_NOTEBOOKS_S)
        # The last cell of each has stopped its farm; what was left to the kernel's end is gone too.
        assert not processes_of(world.root)
    return ended.stdout + ended.stderr


@pytest.mark.notebook
@pytest.mark.farm
@pytest.mark.slow
@pytest.mark.timeout(ALL_NOTEBOOKS_S)  # the first one runs them all
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda notebook: notebook.stem)
def test_a_notebook_says_again_what_is_saved_in_it(notebook: Path, said: str) -> None:
    assert passed(said, notebook) == len(cells(notebook)), said


@pytest.mark.notebook
@pytest.mark.farm
@pytest.mark.slow
def test_a_notebook_that_breaks_off_leaves_nothing_behind(world: Dirs, tmp_path: Path) -> None:
    import nbformat

    broken = nbformat.v4.new_notebook()  # type: ignore[no-untyped-call]
    for source in ("from ipytaskfarm import Farm, Task; farm = Farm(n=2)",
                   "tc = farm.task_client(); ids = [tc.run(Task('import time; time.sleep(60)')) for _ in range(9)]",
                   "import sys; print(sys.prefix); 1/0"):  # fmt: skip
        broken.cells.append(nbformat.v4.new_code_cell(source))  # type: ignore[no-untyped-call]
    path = tmp_path / "broken.ipynb"
    nbformat.write(broken, path)  # type: ignore[no-untyped-call]
    ended = nbval("--rootdir", tmp_path, path)
    assert ended.returncode == 1
    assert "ZeroDivisionError" in ended.stdout
    assert "2 passed" in ended.stdout
    assert_nothing_left(world)


@pytest.mark.notebook
@pytest.mark.farm
def test_a_changed_output_is_noticed(world: Dirs, tmp_path: Path) -> None:
    """nbval compares outputs with our sanitising file, so the test above can fail."""
    import nbformat

    notebook = nbformat.v4.new_notebook()  # type: ignore[no-untyped-call]
    cell = nbformat.v4.new_code_cell("import sys; print(sys.prefix)")  # type: ignore[no-untyped-call]
    cell.execution_count = 1
    notebook.cells.append(cell)
    same, changed = tmp_path / "same.ipynb", tmp_path / "changed.ipynb"
    for path, text in ((same, f"{sys.prefix}\n"), (changed, "/another/python\n")):
        cell.outputs = [nbformat.v4.new_output("stream", text=text)]  # type: ignore[no-untyped-call]
        nbformat.write(notebook, path)  # type: ignore[no-untyped-call]
    ended = nbval("--rootdir", tmp_path, same, changed)
    assert (ended.returncode, passed(ended.stdout, same), passed(ended.stdout, changed)) == (1, 1, 0), ended.stdout


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda notebook: notebook.stem)
def test_a_saved_notebook_has_been_run_from_top_to_bottom(notebook: Path) -> None:
    found = cells(notebook)
    assert [cell["execution_count"] for cell in found] == list(range(1, len(found) + 1))
    unexpected = [
        output
        for cell in found
        if "raises-exception" not in cell["metadata"].get("tags", [])
        for output in cell["outputs"]
        if output["output_type"] == "error"
    ]
    assert not unexpected
    speaking = [cell for cell in found if cell["outputs"]]
    ignored = [cell for cell in speaking if "nbval-ignore-output" in cell["metadata"].get("tags", [])]
    assert len(ignored) < len(speaking) / 2
    assert any("image/png" in output.get("data", {}) for cell in found for output in cell["outputs"])
    assert os.fspath(ROOT) not in notebook.read_text()


@by_hand
@pytest.mark.notebook
@pytest.mark.slow
def test_the_notebook_for_ipyparallel_says_the_same_there(world: Dirs, tmp_path: Path) -> None:
    """Only the import differs, up to the part on lost engines, which ipyparallel does not replace."""
    pytest.importorskip("ipyparallel")
    notebook = json.loads((ROOT / "notebooks" / "09-ipyparallel.ipynb").read_text())
    sources = ["".join(cell["source"]) for cell in notebook["cells"]]
    lost = next(place for place, source in enumerate(sources) if source.startswith("## An engine is killed"))
    notebook["cells"] = [*notebook["cells"][:lost], notebook["cells"][-1]]
    # ipyparallel shows a bar while its engines start.
    notebook["cells"][1]["metadata"]["tags"] = ["nbval-ignore-output"]
    ours, theirs = "import ipytaskfarm.ipyparallel as ipp", "import ipyparallel as ipp"
    text = json.dumps(notebook)
    assert text.count(ours) == 2, "in the text, and in the first cell"
    path = tmp_path / "theirs.ipynb"
    path.write_text(text.replace(ours, theirs))
    ended = nbval("--rootdir", tmp_path, path)
    assert ended.returncode == 0, ended.stdout + ended.stderr
