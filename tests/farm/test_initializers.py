"""Initializers and setups that assign globals: the functions that are called later see them, as in a pool's workers."""

from __future__ import annotations

import multiprocessing
from typing import Any

import pytest

from ipytaskfarm import Pool, Task, TaskClient, TaskEnvironment
from tests.support.pack_peer import Notebook
from tests.support.polling import DEADLINE_S

pytestmark = pytest.mark.farm

FUNCTIONS = """
    import threading
    table, late, count = {}, None, 0

    class Model:
        weight = None
        def load(self, weight): self.weight = weight

    class Settings:
        level = None

    class Reader:
        def read(self, x): return new + x

    model = Model()

    def assigns_new(q):
        global new
        new = q
    def uses_new(x): return new + x

    def assigns_known(q):
        global late
        late = q
    def uses_known(x): return late + x

    def fills(q): table["q"] = q
    def uses_filled(x): return table["q"] + x

    def changes_instance(q): model.load(q)
    def uses_instance(x): return model.weight + x

    def changes_class(q): Settings.level = q
    def uses_class(x): return Settings.level + x

    def opens(q):
        global lock, add
        lock, add = threading.Lock(), lambda x: x + q
    def uses_opened(x):
        with lock:
            return add(x)

    def reads_by_method(x): return Reader().read(x)

    def marks(q): uses_marked.factor = q
    def uses_marked(x): return uses_marked.factor + x

    def marks_known(q): uses_mark.factor = q
    def uses_mark(x): return uses_mark.factor + x
    uses_mark.factor = 1

    def marks_within(q): uses_marks.table["q"] = q
    def uses_marks(x): return uses_marks.table["q"] + x
    uses_marks.table = {}

    def marks_helper(q): helper.factor = q
    def helper(x): return helper.factor + x
    def uses_helper(x): return helper(x)

    def counts(q):
        global count
        count = q
    def uses_count(x):
        global count
        count += x
        return count
"""


@pytest.fixture
def script() -> Notebook:
    found = Notebook()
    found.run(FUNCTIONS)
    return found


@pytest.mark.parametrize(
    ("initializer", "function"),
    [
        ("assigns_new", "uses_new"),
        ("assigns_new", "reads_by_method"),
        ("assigns_known", "uses_known"),
        ("fills", "uses_filled"),
        ("changes_instance", "uses_instance"),
        ("changes_class", "uses_class"),
        ("opens", "uses_opened"),
        ("marks", "uses_marked"),
        ("marks_known", "uses_mark"),
        ("marks_within", "uses_marks"),
        ("marks_helper", "uses_helper"),
        ("counts", "uses_count"),  # each call begins with what the initializer left, as with any other global
    ],
)
def test_a_function_sees_what_the_initializer_did(
    tc: TaskClient, script: Notebook, initializer: str, function: str
) -> None:
    with tc.executor(initializer=script[initializer], initargs=(10,)) as executor:
        assert list(executor.map(script[function], range(3))) == [10, 11, 12]
        assert executor.submit(script[function], 5).result(DEADLINE_S) == 15


def test_other_tasks_do_not_see_what_an_initializer_did(tc: TaskClient, script: Notebook) -> None:
    def alone(name: str) -> Any:
        return tc.get_task_result(tc.submit(script[name], 1).id, block=True, raw=False)

    with tc.executor(initializer=script["assigns_new"], initargs=(10,)) as executor:
        for _ in range(3):
            assert list(executor.map(script["uses_new"], range(4))) == [10, 11, 12, 13]
            assert "name 'new' is not defined" in str(alone("uses_new").failure)
    with tc.executor(initializer=script["marks_known"], initargs=(10,)) as executor:
        for _ in range(3):
            assert list(executor.map(script["uses_mark"], range(4))) == [10, 11, 12, 13]
            assert alone("uses_mark").result == 2
    with tc.executor(initializer=script["assigns_known"], initargs=(20,)) as executor:
        assert executor.submit(script["uses_known"], 1).result(DEADLINE_S) == 21
        assert "NoneType" in str(alone("uses_known").failure)
        script.run("late = 5")
        assert alone("uses_known").result == 6
        assert executor.submit(script["uses_known"], 1).result(DEADLINE_S) == 21


def test_a_global_that_the_initializer_only_reads_stays_the_clients(tc: TaskClient, script: Notebook) -> None:
    script.run("""
        numbers = {"a": 1}
        def reads(): return len(numbers)
        def uses_numbers(x): return numbers["a"] + x
    """)
    with tc.executor(initializer=script["reads"]) as executor:
        assert executor.submit(script["uses_numbers"], 1).result(DEADLINE_S) == 2
        script.run('numbers = {"a": 10}')
        assert executor.submit(script["uses_numbers"], 1).result(DEADLINE_S) == 11


def test_the_setup_of_an_environment_does_the_same(tc: TaskClient, script: Notebook) -> None:
    script.names["TaskEnvironment"] = TaskEnvironment
    script.run("""
        class Loaded(TaskEnvironment):
            def setup(self):
                global late
                late = 30
                table["q"] = 40
    """)
    loaded = script["Loaded"]()
    ids = [tc.run(Task(script[name], args=(1,), environment=loaded)) for name in ("uses_known", "uses_filled")]
    assert [tc.get_task_result(task, block=True, raw=False).result for task in ids] == [31, 41]


def work(x: int) -> int:
    return int(vars(work)["factor"]) * x


def init(factor: int) -> None:
    vars(work).update(factor=factor)


@pytest.mark.parametrize("pool", [multiprocessing.get_context("spawn").Pool, Pool])
def test_an_attribute_of_the_worker_function_is_kept_as_in_a_pool_of_processes(pool: Any) -> None:
    with pool(1, init, (5,)) as made:
        assert made.map(work, [1, 2]) == [5, 10]
