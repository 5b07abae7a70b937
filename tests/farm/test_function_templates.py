"""Closures on a farm: those of one code share a function, and each task has its own values."""

from __future__ import annotations

import functools
import threading
import traceback
import weakref
from collections.abc import Callable
from typing import Any

import pytest

from ipytaskfarm import Executor, MapTask, Task, TaskClient
from ipytaskfarm.core.messages import ReadTask, TaskCopy
from ipytaskfarm.engine import current_task
from tests.support.polling import eventually

K = 100


def make(n: Any, text: str = "x") -> Callable[..., Any]:
    def inner(x: int = 0) -> tuple[Any, ...]:
        return n, text, K + x

    return inner


def late(n: int) -> Callable[[], int]:
    def f() -> int:
        found: list[int] = []
        thread = threading.Thread(target=lambda: found.append(n))
        thread.start()
        thread.join(60)
        return found[0] + 1

    return f


def waits(n: int) -> Callable[[], Any]:
    async def f() -> int:
        import asyncio

        await asyncio.sleep(0)
        return n + 1

    return f


def failing(n: int) -> Callable[[], Any]:
    def f() -> None:
        raise ValueError(f"the value is {n}")

    return f


def submits(n: int) -> Callable[[], Any]:
    def f() -> Any:
        me = current_task()
        return me.results(me.submit_all([Task(lambda: n + 1), Task(lambda: n + 2)]))

    return f


def test_each_task_has_the_values_of_its_closure(tc: TaskClient) -> None:
    ids = [tc.run(MapTask(make(n, str(n)), (n,))) for n in range(100)]
    ids += [tc.run(Task(make(None))), tc.run(make(2.5))]
    tc.barrier(ids)
    assert [tc.get_task_result(i) for i in ids[:100]] == [(n, str(n), 100 + n) for n in range(100)]
    assert [tc.get_task_result(i).result for i in ids[100:]] == [(None, "x", 100), (2.5, "x", 100)]
    copies = [tc.session.ask(ReadTask(i)) for i in ids[:100]]
    assert len({copy.task.function for copy in copies if isinstance(copy, TaskCopy)}) == 1


@pytest.mark.parametrize(
    ("make", "values"), [(late, [2, 3, 4]), (waits, [2, 3, 4]), (submits, [[2, 3], [3, 4], [4, 5]])]
)
def test_threads_coroutines_and_children_see_them(tc: TaskClient, make: Any, values: list[Any]) -> None:
    ids = [tc.run(MapTask(make(n))) for n in (1, 2, 3)]
    assert [tc.get_task_result(i, block=True) for i in ids] == values


def test_an_error_shows_the_users_lines_and_a_retry_has_the_same_values(tc: TaskClient) -> None:
    task = tc.run(MapTask(failing(3)))
    with pytest.raises(ValueError, match="the value is 3") as caught:
        tc.get_task_result(task, block=True)
    shown = "".join(traceback.format_exception(caught.value))
    assert "raise ValueError(f" in shown
    assert "serialization/function_templates.py" not in shown
    (again,) = tc.retry(task)
    with pytest.raises(ValueError, match="the value is 3"):
        tc.get_task_result(again, block=True)


@pytest.mark.parametrize(
    ("other", "value"),
    [(lambda: 7, 7), (make(1, "other"), (1, "other", 100)), (int, 0)],
    ids=["no closure", "another closure", "a class"],
)
def test_another_function_in_its_place_has_its_own_values(tc: TaskClient, other: Any, value: Any) -> None:
    task = tc.run(MapTask(failing(3)))
    tc.barrier(task)
    (again,) = tc.retry(task, other)
    assert tc.get_task_result(again, block=True) == value


def test_a_copy_of_a_task_runs_here_and_there(tc: TaskClient) -> None:
    task = tc.run(MapTask(make(5, "five"), (1,)))
    tc.barrier(task)
    copy = tc.fetch_task(task)
    assert copy.run_local() == (5, "five", 101)
    assert copy.function.__name__ == "inner"
    assert tc.get_task_result(tc.run(copy), block=True) == (5, "five", 101)


def test_a_recovery_task_and_a_kept_result(tc: TaskClient) -> None:
    task = tc.run(MapTask(failing(1), recovery_task=MapTask(make(6))))
    assert tc.get_task_result(task, block=True) == (6, "x", 100)
    values = [tc.get_task_result(tc.run(Task(make(n), cache=True)), block=True).result for n in (1, 2, 1)]
    assert values == [(1, "x", 100), (2, "x", 100), (1, "x", 100)]


def shifted(n: int, *, by: int = 0) -> int:
    if n == 700:
        raise ValueError(n, by)
    return n + by


def shifting(n: int) -> Callable[..., int]:
    return lambda by=0: shifted(n, by=by)


class Shift:
    def __init__(self, by: int) -> None:
        self.by = by

    def of(self, n: int) -> int:
        return shifted(n, by=self.by)


SHIFT = Shift(3)


@pytest.mark.parametrize(
    ("call", "arguments", "named"),
    [
        (lambda n: (lambda n=n: shifted(n, by=3),), (), {}),
        (lambda n: (shifting(n), 3), (3,), {}),
        (lambda n: (functools.partial(shifted, n, by=3),), (), {}),
        (lambda n: (functools.partial(shifted, by=3), n), (700,), {}),
        (lambda n: (functools.partial(SHIFT.of, n),), (), {}),
        (lambda n: (SHIFT.of, n), (700,), {}),
        (lambda n: (functools.partial(shifted, by=4), n, "by", 3), (700,), {"by": 3}),
    ],
    ids=["default", "closure", "partial", "partial by keyword", "partial of a method", "method", "keyword"],
)
def test_calls_of_an_executor_share_tasks_each_with_its_values(
    tc: TaskClient, call: Any, arguments: tuple[Any, ...], named: dict[str, Any]
) -> None:
    with Executor(tc) as executor:
        futures: list[Any] = []
        for n in range(1000):
            function, *args = call(n)
            options = dict([args[1:]]) if len(args) > 1 else {}
            futures.append(executor.submit(function, *args[:1], **options))
        assert futures[999].id >= 0
        chunks = {future.chunk for future in futures if not future.done()}
        assert len(chunks) < 500
        found = [future.exception() or future.result() for future in futures]
        assert [each for n, each in enumerate(found) if n != 700] == [n + 3 for n in range(1000) if n != 700]
        assert repr(found[700]) == "ValueError(700, 3)"
        task = futures[700].id
    copy = tc.fetch_task(task)
    assert (copy.args, copy.kwargs) == (arguments, named)
    with pytest.raises(ValueError, match="700, 3"):
        copy.run_local()
    (again,) = tc.retry(task, lambda *args, **kwargs: (args, kwargs))
    assert tc.get_task_result(again, block=True).result == (arguments, named)


def test_calls_that_cannot_share_a_task_have_their_values_too(tc: TaskClient) -> None:
    with Executor(tc) as executor:
        assert [each.result() for each in [executor.submit(shifting(n)) for n in range(300)]] == list(range(300))
        last = [executor.submit(shifting(n), threading.Lock() if n == 250 else 1) for n in range(300)]
        assert [each.result() for n, each in enumerate(last) if n != 250] == [n + 1 for n in range(300) if n != 250]
        with pytest.raises(TypeError, match="lock"):
            last[250].result()


@pytest.mark.parametrize("way", ["method", "partial"])
def test_an_executor_holds_no_object_of_a_method(tc: TaskClient, way: str) -> None:
    with Executor(tc) as executor:
        shift = Shift(1)
        gone = weakref.ref(shift)
        called = executor.submit(shift.of, 1) if way == "method" else executor.submit(functools.partial(shift.of, 1))
        assert called.result() == 2
        del shift, called
        eventually(lambda: gone() is None, what="the object to be freed")
