"""Functions that were decorated with `tc.cached`: their calls, how they use one another, and methods."""

from __future__ import annotations

import os
import signal

import pytest

from ipytaskfarm import Task, TaskClient
from tests.conftest import Dirs
from tests.farm.test_farm import background_farm, pid_of
from tests.support.farms import DEADLINE_S


def test_cached_functions(tc: TaskClient) -> None:
    @tc.cached
    def cube(x: int, by: int = 1) -> int:
        "Return a cube."
        return x**3 * by

    @tc.cached(retries=1)  # type: ignore[untyped-decorator]
    def fourth(x: int) -> int:
        return x**4

    assert cube(3) == cube(3) == 27
    assert tc.why_hit(cube.last_id).startswith(f"task {cube.last_id} took its result from the cache")
    assert cube(3, by=2) == 54
    assert "argument 2 (by) is new" in tc.why_miss(cube.last_id)
    assert fourth(2) == 16
    task = tc.run(Task(cube, args=(3,), cache=True), block=True)
    assert (task.result, task.from_cache) == (27, True), "it is the same function in a task"
    assert cube.__name__ == "cube"
    assert cube.__doc__ == "Return a cube."
    with pytest.raises(TypeError, match="no argument 'retry'"):
        tc.cached(len, retry=1)  # type: ignore[call-arg]


def test_cached_functions_that_use_cached_functions(tc: TaskClient) -> None:
    @tc.cached
    def factorial(n: int) -> int:
        return 1 if n < 2 else int(n * factorial(n - 1))

    @tc.cached
    def clean(x: int) -> int:
        return x + 1

    def fit(x: int) -> int:
        return int(clean(x) * 2)

    assert factorial(5) == factorial(5) == 120
    assert "took its result from the cache" in tc.why_hit(factorial.last_id)
    assert tc.map(clean, [1, 2]) == [2, 3]
    assert tc.run(Task(fit, args=(1,), cache=True), block=True).result == 4
    assert tc.run(Task(fit, args=(1,), cache=True), block=True).from_cache

    @tc.cached  # type: ignore[no-redef]
    def clean(x: int) -> int:
        return x + 2

    changed = tc.run(Task(fit, args=(1,), cache=True), block=True)
    assert changed.result == 6
    assert ".clean`, called by `" in tc.why_miss(changed.taskid)


def test_calls_while_the_controller_is_killed_again_and_again(farm_dirs: Dirs) -> None:
    with background_farm("-n", "1") as home, TaskClient() as tc:

        @tc.cached
        def square(x: int) -> int:
            return x * x

        assert square(3) == 9
        tasks = []
        for round_number in range(40):
            if round_number in (10, 25):
                os.kill(pid_of(home, "controller"), signal.SIGKILL)
            assert square(3) == 9
            tasks.append(square.last_id)
        tc.barrier(timeout=DEADLINE_S)
        # Whatever value came before its task was on disk: the task has its record by now, under its id.
        assert all(tc.get_task_result(task).result == 9 for task in tasks)
        with TaskClient() as other:
            assert "took its result from the cache" in other.why_hit(tasks[-1])


def test_cached_methods(tc: TaskClient) -> None:
    class Model:
        by = 3

        def __init__(self, rate: int) -> None:
            self.rate = rate

        @tc.cached
        def fit(self, x: int) -> int:
            return self.rate * x

        @staticmethod
        @tc.cached
        def plus(x: int) -> int:
            return x + 1

        @classmethod
        @tc.cached
        def times(cls, x: int) -> int:
            return cls.by * x

    assert [Model(2).fit(5), Model(2).fit(x=5), Model(3).fit(5)] == [10, 10, 15]
    assert "argument 1 (self) differs" in tc.why_miss(Model.fit.last_id)
    assert [Model.plus(1), Model(1).plus(1), Model.times(2)] == [2, 2, 6]
