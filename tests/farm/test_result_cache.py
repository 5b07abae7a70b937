"""The result cache on a real farm: which edits keep a result and which do not, and the sentence about each."""

from __future__ import annotations

import importlib
import linecache
import os
import subprocess
import sys
import textwrap
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from ipytaskfarm import Farm, File, Ref, Task, TaskClient
from ipytaskfarm.errors import UnpickleableException
from tests.support.farms import DEADLINE_S
from tests.support.polling import eventually

pytestmark = pytest.mark.usefixtures("empty_cache")


class Cells:
    """A notebook: cells that are executed in one namespace, each with the file name that IPython would give it."""

    def __init__(self) -> None:
        self.names: dict[str, Any] = {"__name__": "__main__"}
        self.number = 0

    def run(self, code: str) -> None:
        self.number += 1
        text = textwrap.dedent(code)
        file = f"<ipython-input-{self.number}-0123456789ab>"
        linecache.cache[file] = (len(text), None, text.splitlines(keepends=True), file)
        exec(compile(text, file, "exec"), self.names)


NOTEBOOK = '''
import numpy as np
import helper_of_cache
RATE = 3

class Model:
    """A model."""
    degree = 2
    limits = {"low", "high", "middle"}
    def fit(self, x):
        return self.degree * x

def clean(x):
    return abs(x)

def f(x, scale=1):
    """Compute something."""
    return float(np.sum(Model().fit(clean(x)))) * RATE * scale + helper_of_cache.used(x) + len(Model.limits)
'''
MODULE = '''
"""A module beside the notebook."""
LIMIT = 5
def used(x):
    return min(x, LIMIT)
def unused(x):
    return x
'''


class Edit(NamedTuple):
    """An edit, and what is expected of a second run after it."""

    name: str
    before: str
    after: str
    sentence: str
    """A part of the sentence of `why_miss`; "": the result is taken from the cache."""
    of_module: bool = False


EDITS = [
    Edit("a comment", "    return abs(x)", "    # always positive\n    return abs(x)  # here", ""),
    Edit("a blank line", "def clean", "\n\n\ndef clean", ""),
    Edit("the text of a docstring", '"""Compute something."""', '"""Compute\n    something else."""', ""),
    Edit("the docstring of a class", '"""A model."""', '"""Another model."""', ""),
    Edit("parentheses", "return abs(x)", "return (abs(x))", ""),
    Edit("a new name that nothing uses", "RATE = 3", "RATE = 3\nOTHER = 4", ""),
    Edit("the order of a set", '{"low", "high", "middle"}', '{"middle", "low", "high"}', ""),
    Edit("the order of definitions", "RATE = 3\n", "def other(): return RATE\nRATE = 3\n", ""),
    Edit("a helper", "return abs(x)", "return abs(x) + 0", "function `clean`, called by `f`, changed (In [2])"),
    Edit("the function itself", "* RATE *", "* RATE / 1 *", "function `f` changed (In [2])"),
    Edit("a default", "scale=1", "scale=2", "default scale of `f` changed: 1 → 2"),
    Edit("a constant", "RATE = 3", "RATE = 4", "global `RATE`, used by `f`, changed: 3 → 4"),
    Edit("the type of a constant", "RATE = 3", "RATE = 3.0", "global `RATE`, used by `f`, changed: 3 → 3.0"),
    Edit("a class attribute", "degree = 2", "degree = 5", "attribute degree of class `Model` changed: 2 → 5"),
    Edit("a set of a class", '"low", "high"', '"high"', "attribute limits of class `Model` changed"),
    Edit("a method", "self.degree * x", "x * self.degree", "function `Model.fit`, called by `Model`, changed (In [2])"),
    Edit("a base class", "class Model:", "class Base: pass\nclass Model(Base):", "class `Model`, used by `f`, changed"),
    Edit("a helper replaced by a builtin", "def clean(x):\n    return abs(x)", "clean = abs", "`clean`"),
    Edit("a helper replaced by a lambda", "def clean(x):\n    return abs(x)", "clean = lambda x: abs(x)", "`clean`"),
    Edit("a comment in a module", "LIMIT = 5", "# the limit\nLIMIT = 5\n\n", "", True),
    Edit("another function of a module", "    return x\n", "    return x + 1\n", "", True),
    Edit("the docstring of a module", '"""A module beside', '"""The module beside', "", True),
    Edit("a module function", "min(x, LIMIT)", "min(LIMIT, x)", "function `helper_of_cache.used`, called by", True),
    Edit("a constant of a module", "LIMIT = 5", "LIMIT = 6", "global `helper_of_cache.LIMIT`, used by `f`", True),
    Edit(
        "a decorator in a module", "def used", "import functools\n@functools.cache\ndef used",
        "`helper_of_cache.used`", True,
    ),
    Edit(
        "a statement with effects in a module", "LIMIT = 5", "LIMIT = 5\nprint(end='')",
        "module `helper_of_cache`", True,
    ),
    Edit("a changed import", "import numpy as np", "import numpy.linalg as np", "global `np`, used by `f`, changed"),
    Edit("one more import that is not used", "import numpy as np", "import json\nimport numpy as np", ""),
]  # fmt: skip


@pytest.mark.parametrize("edit", EDITS, ids=[edit.name for edit in EDITS])
def test_edits(edit: Edit, tc: TaskClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    module = tmp_path / "helper_of_cache.py"
    module.write_text(MODULE)
    sys.modules.pop("helper_of_cache", None)
    cells = Cells()
    cells.run("import os")
    cells.run(NOTEBOOK)
    first = tc.run(Task(cells.names["f"], args=(3,), cache=True), block=True)
    assert not first.from_cache

    text, changed = (MODULE, module) if edit.of_module else (NOTEBOOK, None)
    assert edit.before in text
    text = text.replace(edit.before, edit.after)
    if changed is not None:
        # The time of a file may be as coarse as a tick of the clock, and its size may be the same.
        os.utime(changed, ns=(1, 1))
        changed.write_text(text)
        importlib.invalidate_caches()
    again = Cells()
    again.run("import os")
    again.run(NOTEBOOK if edit.of_module else text)
    second = tc.run(Task(again.names["f"], args=(3,), cache=True), block=True)
    if edit.sentence:
        why = tc.why_miss(second.taskid)
        assert not second.from_cache, "a result was taken that may be wrong"
        assert edit.sentence in why, why
        assert f"nearest is task {first.taskid}" in why
        assert why.count("\n") <= 3, why
    else:
        assert second.from_cache, tc.why_miss(second.taskid)
        assert second.result == first.result
        assert f"task {first.taskid} computed it" in tc.why_hit(second.taskid)


def test_rerun_renamed_and_moved_cells_are_the_same(tc: TaskClient) -> None:
    cells = Cells()
    cells.run("def g(x): return x + 1")
    first = tc.run(Task(cells.names["g"], args=(1,), cache=True), block=True)
    for _ in range(3):
        cells.run("1 + 1")
    cells.run("\n\n\ndef g(x): return x + 1")
    second = tc.run(Task(cells.names["g"], args=(1,), cache=True, name="renamed", priority=9, retries=3), block=True)
    assert not first.from_cache
    assert second.from_cache


class Call(NamedTuple):
    name: str
    first: tuple[Any, ...]
    second: tuple[Any, ...]
    sentence: str


CALLS = [
    Call("a number", (1,), (2,), "argument 1 (x) differs: 1 → 2"),
    Call("a bool for a number", (1,), (True,), "argument 1 (x) differs: 1 → True"),
    Call("a second argument", (1,), (1, 3), "argument 2 (y) is new"),
    Call("a text", ("a",), ("b",), "argument 1 (x) differs"),
    Call("equal lists", ([1, {"a": (2, None)}],), ([1, {"a": (2, None)}],), ""),
    Call("sets in another order", ({"a", "b", "c"},), ({"c", "b", "a"},), ""),
    Call("a list for a tuple", ([1],), ((1,),), "argument 1 (x) differs"),
]


@pytest.mark.parametrize("call", CALLS, ids=[call.name for call in CALLS])
def test_arguments_by_content(call: Call, tc: TaskClient) -> None:
    def give(x: Any, y: Any = None) -> Any:
        return repr(type(x)), y

    tc.run(Task(give, args=call.first, cache=True), block=True)
    second = tc.run(Task(give, args=call.second, cache=True), block=True)
    assert second.from_cache == (not call.sentence)
    if call.sentence:
        assert call.sentence in tc.why_miss(second.taskid)


def test_arrays_and_instances_by_content(tc: TaskClient) -> None:
    np = pytest.importorskip("numpy")
    cells = Cells()
    cells.run("""
        class Point:
            def __init__(self, x): self.x = x
        def total(data, point): return float(data.sum()) + point.x
    """)

    def run(size: int, at: int) -> Any:
        args = (np.arange(size), cells.names["Point"](at))
        return tc.run(Task(cells.names["total"], args=args, cache=True), block=True)

    assert not run(50_000, 1).from_cache
    assert run(50_000, 1).from_cache
    assert not run(50_001, 1).from_cache
    other = run(50_000, 2)
    assert not other.from_cache
    assert "argument 2 (point) differs" in tc.why_miss(other.taskid)


def arrays(*, shared: bool) -> Any:
    import numpy as np

    return [np.zeros(2)] * 2 if shared else [np.zeros(2), np.zeros(2)]


class Cell:
    def __init__(self) -> None:
        self.value = 0


@pytest.mark.parametrize(
    ("shared", "equal"),
    [
        (lambda: ([[0, 0]] * 3,), lambda: ([[0, 0], [0, 0], [0, 0]],)),
        (lambda: ([[0, 0]] * 300,), lambda: ([[0, 0] for _ in range(300)],)),
        (lambda: ({"a": [row := [0]], "b": row},), lambda: ({"a": [[0]], "b": [0]},)),
        (lambda: ([Cell()] * 2,), lambda: ([Cell(), Cell()],)),
        (lambda: (arrays(shared=True),), lambda: (arrays(shared=False),)),
        (lambda: [[]] * 2, lambda: [[], []]),
    ],
    ids=["lists", "many lists", "dicts", "instances", "arrays", "two arguments"],
)
def test_one_object_at_two_places_is_not_two_equal_ones(
    tc: TaskClient, shared: Callable[[], Any], equal: Callable[[], Any]
) -> None:
    """A change of it is seen at both places; the copies of each that a client makes are the same again."""

    def f(*values: Any) -> int:
        return 1

    def run(values: Any) -> bool:
        return bool(tc.run(Task(f, args=tuple(values), cache=True), block=True).from_cache)

    assert not run(shared())
    assert not run(equal())
    assert run(shared())
    assert run(equal())


def test_a_list_that_a_function_uses_twice(tc: TaskClient) -> None:
    cells = Cells()
    cells.run("rows = [[0, 0]] * 2\ndef f():\n    rows[0][0] = 5\n    return rows")
    assert tc.run(Task(cells.names["f"], cache=True), block=True).result == [[5, 0], [5, 0]]
    cells.run("rows = [[0, 0] for _ in range(2)]")
    other = tc.run(Task(cells.names["f"], cache=True), block=True)
    assert other.result == [[5, 0], [0, 0]], "the engine took the function that it had, with the shared list"
    assert "global `rows`, used by `f`, changed" in tc.why_miss(other.taskid)


def test_a_strided_array_is_its_content(tc: TaskClient) -> None:
    np = pytest.importorskip("numpy")
    assert not tc.run(Task(len, args=(np.arange(10)[::2],), cache=True), block=True).from_cache
    assert tc.run(Task(len, args=(np.arange(0, 10, 2),), cache=True), block=True).from_cache
    assert not tc.run(Task(len, args=(np.arange(10)[1::2],), cache=True), block=True).from_cache


def test_a_class_of_an_argument_that_changed_is_named(tc: TaskClient) -> None:
    cells = Cells()
    cells.run("class P:\n    def value(self): return 2\ndef f(p): return p.value()\np = P()")
    assert tc.run(Task(cells.names["f"], args=(cells.names["p"],), cache=True), block=True).result == 2
    cells.run("class P:\n    def value(self): return 3\np = P()")
    other = tc.run(Task(cells.names["f"], args=(cells.names["p"],), cache=True), block=True)
    assert other.result == 3
    said = tc.why_miss(other.taskid)
    assert "the code of `P`, which argument 1 (p) brings, differs" in said
    assert "argument 1 (p) differs" not in said
    again = tc.run(Task(cells.names["f"], args=(cells.names["p"],), cache=True), block=True)
    assert ", 1 argument, " in tc.why_hit(again.taskid)


def test_large_results_are_kept_and_checked(tc: TaskClient, farm: Farm) -> None:
    pytest.importorskip("numpy")

    def large(n: int) -> Any:
        import numpy

        return numpy.arange(n)

    first = tc.run(Task(large, args=(200_000,), cache=True), block=True)
    assert first.result.nbytes == 1_600_000
    second = tc.run(Task(large, args=(200_000,), cache=True), block=True)
    assert second.from_cache
    assert (second.result == first.result).all()
    tc.clear()
    assert tc.session.io.folder_of_blobs is not None
    (blob,) = [p for p in tc.session.io.folder_of_blobs.folder.glob("??/*") if p.stat().st_size >= 1_600_000]
    content = bytearray(blob.read_bytes())
    content[1000] ^= 1
    blob.write_bytes(content)
    with pytest.warns(UserWarning, match="does not have its digest"):
        third = tc.run(Task(large, args=(200_000,), cache=True), block=True)
    assert not third.from_cache, "a damaged result was taken"
    assert third.result[-1] == 199_999


def test_files_by_content(tc: TaskClient, tmp_path: Path) -> None:
    data = tmp_path / "data.csv"
    data.write_text("1\n2\n")

    def read(path: str) -> int:
        with open(path) as file:
            return sum(map(int, file))

    def run() -> Any:
        return tc.run(Task(read, args=(File(data),), cache=True), block=True)

    assert run().result == 3
    os.utime(data, (1, 1))
    assert run().from_cache, "the same content, at another time"
    data.write_text("1\n3\n")
    changed = run()
    assert not changed.from_cache
    assert changed.result == 4
    assert "argument 1 (path) differs" in tc.why_miss(changed.taskid)
    with pytest.raises(FileNotFoundError, match="the cache needs its content"):
        tc.run(Task(read, args=(File(tmp_path / "none"),), cache=True))


def test_the_plain_path_of_a_file_is_warned_of_once(tc: TaskClient, tmp_path: Path) -> None:
    def size(path: str) -> int:
        import os

        return os.path.getsize(path)

    for name in ("a", "b"):
        (tmp_path / name).write_text(name)
    with pytest.warns(UserWarning, match=r"size` is cached and is given the path of a file, '.*a'.*`File\(path\)`"):
        assert tc.run(Task(size, args=(str(tmp_path / "a"),), cache=True), block=True).result == 1
    tc.run(Task(size, args=(tmp_path / "b",), cache=True), block=True)
    tc.run(Task(size, args=(File(tmp_path / "b"),), cache=True), block=True)


def test_two_equal_tasks_at_once_run_once(tc: TaskClient, tmp_path: Path) -> None:
    def note(folder: str) -> int:
        import os
        import time

        open(os.path.join(folder, f"{time.time_ns()}"), "w").close()
        time.sleep(0.3)
        return len(os.listdir(folder))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ids = [tc.run(Task(note, args=(str(tmp_path),), cache=True)) for _ in range(6)]
    eventually(lambda: len(list(tmp_path.iterdir())) == 1, DEADLINE_S)
    assert any("is equal" in tc.explain(i) for i in ids)
    tc.barrier(ids, timeout=DEADLINE_S)
    results = [tc.get_task_result(i) for i in ids]
    assert [each.result for each in results] == [1] * 6
    assert sum(each.from_cache for each in results) == 5
    assert len(list(tmp_path.iterdir())) == 1


def test_a_failure_is_not_kept_and_the_next_equal_task_runs(tc: TaskClient) -> None:
    def fail(x: int) -> float:
        return 1 / x

    ids = [tc.run(Task(fail, args=(0,), cache=True)) for _ in range(3)]
    tc.barrier(ids, timeout=DEADLINE_S)
    results = [tc.get_task_result(i) for i in ids]
    assert [each.status for each in results] == ["failed"] * 3
    assert [each.failure.etype for each in results] == ["ZeroDivisionError"] * 3
    assert f"not cached: task {ids[0]} failed (error)" in tc.why_miss(ids[0])
    assert tc.cache.size.entries == 0


def test_refresh_and_readonly(tc: TaskClient, tmp_path: Path) -> None:
    def count(folder: str) -> int:
        import os
        import tempfile

        tempfile.mkstemp(dir=folder)
        return len(os.listdir(folder))

    def run(mode: Any) -> Any:
        return tc.run(Task(count, args=(str(tmp_path),), cache=mode), block=True)

    looked = run("readonly")
    assert (looked.result, looked.from_cache) == (1, False)
    assert 'not kept: cache="readonly"' in tc.why_miss(looked.taskid)
    assert run(True).result == 2
    assert run("readonly").result == 2
    anew = run("refresh")
    assert (anew.result, anew.from_cache) == (3, False)
    assert 'cache="refresh"' in tc.why_miss(anew.taskid)
    assert run(True).result == 3
    with pytest.raises(ValueError, match="cache must be True, False"):
        run("always")


def test_maps_jobs_graphs_and_running_tasks(tc: TaskClient) -> None:
    def square(x: int) -> int:
        return x * x

    def add(a: int, b: int) -> int:
        return a + b

    assert tc.map(square, range(30), cache=True) == [x * x for x in range(30)]
    assert tc.cache.size.hits == 0
    assert tc.map(square, range(31), cache=True) == [x * x for x in range(31)]
    assert tc.cache.size.hits == 30
    assert tc.run(Task(square, args=(7,), cache=True), block=True).from_cache, "an item of a map is a call"

    def graph() -> list[Any]:
        job = tc.create_job(cache=True)
        first = job.add_task(Task(square, args=(101,)))
        second = job.add_task(Task(add, args=(Ref(first), 1)))
        job.submit()
        tc.barrier(job.ids, timeout=DEADLINE_S)
        assert second is not None
        return [tc.get_task_result(i) for i in job.ids]

    assert [each.from_cache for each in graph()] == [False, False]
    again = graph()
    assert [(each.result, each.from_cache) for each in again] == [(10_201, True), (10_202, True)]
    other = tc.run(Task(square, args=(102,)), block=True)
    taken = tc.run(Task(add, args=(Ref(other.taskid), 1), cache=True), block=True)
    assert not taken.from_cache
    assert "the results of other tasks among its arguments differ" in tc.why_miss(taken.taskid)

    def parent(x: int) -> Any:
        from ipytaskfarm import Task
        from ipytaskfarm.engine import current_task

        child = current_task().submit(Task(square, args=(x,), cache=True))
        return current_task().results([child])[0]

    taken_before = tc.cache.size.hits
    assert tc.run(Task(parent, args=(7,)), block=True).result == 49
    assert tc.cache.size.hits == taken_before + 1


def test_warnings_of_time_chance_and_environment(tc: TaskClient) -> None:
    cells = Cells()
    cells.run("""
        import os, time
        from random import random
        def inner(): return time.time()
        def outer(x): return inner() + random() + len(os.environ)
        def harmless(x):
            import random
            return random.Random(x).random()
    """)
    with pytest.warns(UserWarning, match=r"the time \(time.time\), in `inner`") as told:
        tc.run(Task(cells.names["outer"], args=(1,), cache=True))
    text = str(told[0].message)
    assert "chance (random.random), in `outer`" in text
    assert "the environment (os.environ)" in text
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tc.run(Task(cells.names["outer"], args=(2,), cache=True))
        tc.run(Task(cells.names["harmless"], args=(2,), cache=True))


def test_what_cannot_be_cached_is_named(tc: TaskClient) -> None:
    with pytest.raises(TypeError, match="cache: code may use any name"):
        Task("a = 1", pull="a", cache=True)
    uncached = tc.run(Task(abs, args=(1,)), block=True)
    assert "did not ask for the cache" in tc.why_miss(uncached.taskid)
    with pytest.raises(IndexError, match="there is no task 987654"):
        tc.why_miss(987654)
    with pytest.raises(UnpickleableException):
        tc.run(Task(lambda x: x, args=((i for i in "ab"),), cache=True))


def test_a_marked_result_is_forgotten_and_that_of_the_new_run_is_kept(tc: TaskClient, tmp_path: Path) -> None:
    def count(folder: str) -> int:
        import os
        import tempfile

        tempfile.mkstemp(dir=folder)
        return len(os.listdir(folder))

    first = tc.run(Task(count, args=(str(tmp_path),), cache=True), block=True)
    hit = tc.run(Task(count, args=(str(tmp_path),), cache=True), block=True)
    assert (first.result, hit.result, hit.from_cache) == (1, 1, True)
    assert "with a result from the result cache at" in tc.explain(hit.taskid)
    for marked in (hit.taskid, first.taskid):
        tc.mark_failed(marked, "wrong")
        tc.barrier([marked], timeout=DEADLINE_S)
    assert [tc.get_task_result(i).result for i in (hit.taskid, first.taskid)] == [2, 3]
    assert "is wrong or cannot be read" in tc.why_miss(hit.taskid)
    assert "without a run: marked as failed: wrong" in tc.explain(hit.taskid)
    assert [event.what for event in tc.history([hit.taskid])].count("started") == 1
    now = tc.run(Task(count, args=(str(tmp_path),), cache=True), block=True)
    assert (now.result, now.from_cache) == (3, True)


def test_the_list_and_forgetting(tc: TaskClient, farm: Farm) -> None:
    def h(x: int) -> int:
        return x

    def i(x: int) -> int:
        return x

    for each in (h, i):
        tc.run(Task(each, args=(1,), cache=True), block=True)
        tc.run(Task(each, args=(1,), cache=True), block=True)
    size = tc.cache.size
    assert (size.entries, size.hits) == (2, 2)
    assert size.bytes > 0
    table = repr(tc.cache)
    name = h.__qualname__.replace("<locals>.", "")
    assert name[:12] in table
    assert tc.cache.forget(function=name) == 1
    assert tc.cache.forget(older=3600) == 0
    assert tc.cache.forget() == 1
    assert tc.cache.size.entries == 0


SCRIPT = """
import sys, warnings
sys.path.insert(0, {folder!r})
import package_of_cache
from ipytaskfarm import Task, TaskClient
LETTERS = {{"a", "b", "c", "d"}}
def f(x):
    return sorted(LETTERS)[x] + package_of_cache.name()
tc = TaskClient({connection!r})
result = tc.run(Task(f, args=(1,), cache=True), block=True)
print(result.result, result.from_cache, tc.why_miss(result.taskid).replace("\\n", " | "))
"""


def test_other_kernels_hash_seeds_and_versions(farm: Farm, tc: TaskClient, tmp_path: Path) -> None:
    folder = tmp_path / "site-packages"
    package = folder / "package_of_cache"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("def name(): return 'p'\n")
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(folder=str(folder), connection=str(farm.connection_file)))

    def install(version: str) -> None:
        for old in folder.glob("*.dist-info"):
            for file in old.iterdir():
                file.unlink()
            old.rmdir()
        info = folder / f"package_of_cache-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: package-of-cache\nVersion: {version}\n")
        (info / "top_level.txt").write_text("package_of_cache\n")
        (info / "RECORD").write_text("package_of_cache/__init__.py,,\n")

    def run(seed: str) -> str:
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        done = subprocess.run(
            [sys.executable, script], env=environment, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    with farm.multiengine_client() as mec:
        mec.execute(f"import sys; sys.path.insert(0, {str(folder)!r})", sticky=True)
        install("1.0")
        assert run("1").startswith("bp False")
        assert run("2").startswith("bp True")
        install("1.1")
        third = run("3")
        assert third.startswith("bp False")
        assert "package-of-cache 1.0 → 1.1" in third
        mec.clear_sticky()
