"""Places in notebook cells are named as IPython names them."""

from __future__ import annotations

import inspect
import linecache
import sys
import traceback
from types import SimpleNamespace
from typing import Any

import pytest
from IPython.core.compilerop import CachingCompiler

from ipytaskfarm.core.messages.payload import ErrorPlace
from ipytaskfarm.serialization import tracebacks
from ipytaskfarm.serialization.tracebacks import made_frames
from ipytaskfarm.system.user_code import UNKNOWN, cell_of, file_here, with_cells

CELL = "/tmp/ipykernel_4711/1234567.py"
OTHER = "/tmp/ipykernel_4711/7654321.py"
TEXT = f'Traceback:\n  File "{CELL}", line 3, in f\n    1 / 0\n  File "/home/study.py", line 9\n'


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """An interpreter in which one cell was typed."""
    compiler = SimpleNamespace(format_code_name=lambda name: ("Cell", "In[7]") if name == CELL else None)
    module = SimpleNamespace(get_ipython=lambda: SimpleNamespace(compile=compiler))
    monkeypatch.setitem(sys.modules, "IPython", module)


@pytest.mark.usefixtures("kernel")
def test_a_cell_of_this_kernel_has_its_number() -> None:
    assert cell_of(CELL) == "In [7]"
    assert with_cells(TEXT) == TEXT.replace(f'File "{CELL}", line 3', "In [7], line 3")
    assert with_cells(f"{CELL}:3 in f") == "In [7], line 3 in f"
    assert with_cells(f"ValueError: no ({CELL}:3 in f)") == "ValueError: no (In [7], line 3 in f)"


@pytest.mark.usefixtures("kernel")
def test_a_cell_of_another_kernel_is_a_cell() -> None:
    assert with_cells(f"{OTHER}:3 in f") == f"{UNKNOWN}, line 3 in f"


@pytest.mark.parametrize(
    ("there", "here"),
    [
        ("/tmp/ipykernel_99/1234567.py", CELL),
        ("<ipython-input-3-0bf14da1e67d>", "<ipython-input-8-0bf14da1e67d>"),
    ],
)
def test_a_cell_that_ran_here_again_has_its_number_here(monkeypatch: pytest.MonkeyPatch, there: str, here: str) -> None:
    compiler = CachingCompiler()
    compiler._filename_map = {CELL: 7, "<ipython-input-8-0bf14da1e67d>": 8, "<ipython-input-3-aaaaaaaaaaaa>": 3}
    monkeypatch.setattr("IPython.get_ipython", lambda: SimpleNamespace(compile=compiler))
    number = compiler._filename_map[here]
    assert file_here(there) == here
    assert with_cells(f"{there}:3 in f") == f"In [{number}], line 3 in f"
    for other in (OTHER, "<ipython-input-3-bbbbbbbbbbbb>"):
        assert file_here(other) == other
        assert with_cells(f"{other}:3 in f") == f"{UNKNOWN}, line 3 in f"
    (frame,) = made_frames([ErrorPlace(there, "__main__", "f", 1, 1)])
    assert frame.f_code.co_filename == here


def test_a_script_without_ipython_names_cells_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "IPython", raising=False)
    assert with_cells(f"{CELL}:3 in f") == f"{UNKNOWN}, line 3 in f"


def test_a_terminals_cell_tells_its_number_by_itself() -> None:
    assert with_cells("<ipython-input-12-0bf14da1e67d>:3 in f") == "In [12], line 3 in f"
    assert with_cells('  File "<ipython-input-12-0bf14da1e67d>", line 3') == "  In [12], line 3"


@pytest.mark.parametrize("text", ["", "/home/me/study.py:3 in f", "at 12:30:07 in May", 'File "<task>", line 2'])
def test_everything_else_stays(text: str) -> None:
    assert with_cells(text) == text


@pytest.mark.parametrize("length", [2, 5, 30])
def test_ipython_finds_the_line_of_a_function_that_no_file_here_has(length: int) -> None:
    """IPython reads from the function's first line on, which is sent only if it is near."""
    body = "".join(f"    a{n} = {n}\n" for n in range(length))
    source = f"import time\n@staticmethod\ndef work():\n{body}    raise LookupError\nwork.__func__()\n"
    name = f"/gone/ipykernel_7/{length}.py"
    linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
    with pytest.raises(LookupError) as caught:
        exec(compile(source, name, "exec"), {"__name__": "__main__"})
    found = [each for each, _ in traceback.walk_tb(caught.tb) if each.f_code.co_filename == name]
    tb: Any = caught.tb
    while tb.tb_frame is not found[0]:
        tb = tb.tb_next
    places = []
    while tb is not None:
        places.append(tracebacks._place(tb, tb.tb_frame.f_code, None))
        tb = tb.tb_next
    del linecache.cache[name]
    for frame in tracebacks.made_frames(places):
        lines, first = inspect.getsourcelines(frame)
        shown = lines[frame.f_lineno - max(first, 1)].strip()
        assert shown == {"<module>": "work.__func__()", "work": "raise LookupError"}[frame.f_code.co_name]
        assert frame.f_code.co_filename == name
