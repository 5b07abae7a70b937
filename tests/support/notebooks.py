"""Run notebooks without a browser, and Jupyter's programs without what only slows their start."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import nbclient
import nbformat

_QUICKLY = (
    "import runpy, sys\n"
    "sys.modules['rfc3987_syntax'] = None\n"
    "sys.argv = sys.argv[1:]\n"
    "runpy.run_module(sys.argv[0], run_name='__main__', alter_sys=True)\n"
)


def quickly(module: str) -> list[str]:
    """Return the command of ``python -m module``, for modules that validate JSON.

    jsonschema imports a grammar of international addresses, which is made in 2.5 s of CPU time at each start; no schema
    of Jupyter asks for it.  Without it jsonschema does not check that format, and all others.  `tests.conftest` leaves
    it out of the tests' own processes.
    """
    return [sys.executable, "-c", _QUICKLY, module]


def executed(cells: Iterable[str], folder: Path, timeout_s: float = 60.0) -> Any:
    """Run these cells one after the other in a kernel that starts in `folder`; return the notebook with its outputs."""
    made = [nbformat.v4.new_code_cell(cell) for cell in cells]  # type: ignore[no-untyped-call]
    notebook = nbformat.v4.new_notebook(cells=made)  # type: ignore[no-untyped-call]
    client = nbclient.NotebookClient(notebook, timeout=int(timeout_s), resources={"metadata": {"path": str(folder)}})
    client.execute()
    return notebook


def printed(notebook: Any) -> str:
    """Return what the cells of a notebook have printed."""
    return "".join(output.get("text", "") for cell in notebook.cells for output in cell.outputs)
