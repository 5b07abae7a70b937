"""Test functions and notebook code on a real farm: how they are sent, which names they see, and their results."""

from __future__ import annotations

import collections
import fractions
import functools
import operator
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ipytaskfarm import Farm, MapTask, MultiEngineClient, Task, TaskClient
from ipytaskfarm.serialization.kept_changes import changes_itself
from tests.support.farms import python

pytestmark = pytest.mark.farm


def call(tc: TaskClient, f: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    return tc.run(MapTask(f, args, kwargs), block=True)


# -- functions


def test_a_map_task_gives_the_raw_value(tc: TaskClient) -> None:
    assert tc.run(MapTask(lambda x: 2 * x, (10,)), block=True) == 20
    task = tc.run(Task(divmod, args=(17, 5)))
    assert tc.get_task_result(task, block=True).result == (3, 2)


def test_a_map_task_that_failed_raises(tc: TaskClient) -> None:
    task = tc.run(MapTask(lambda x: 1 // x, (0,)))
    with pytest.raises(ZeroDivisionError):
        tc.get_task_result(task, block=True)
    assert tc.get_task_result(task, raw=False).failure.type is ZeroDivisionError


def test_what_a_function_stands_on_travels_with_it(tc: TaskClient) -> None:
    offset = 3
    assert call(tc, lambda x, y=4: x + y + offset, 1) == 8
    assert call(tc, functools.partial(pow, 2), 5) == 32
    assert call(tc, "abc".upper) == "ABC"
    assert call(tc, operator.add, 1, 2) == 3

    def factorial(n: int) -> int:
        return 1 if n == 0 else n * factorial(n - 1)

    assert call(tc, factorial, 5) == 120


def test_a_redefined_function_is_the_new_one(tc: TaskClient) -> None:
    def version() -> int:
        return 1

    assert call(tc, version) == 1

    def version() -> int:  # type: ignore[no-redef]
        return 2

    assert call(tc, version) == 2


def test_a_global_that_only_the_engine_has(tc: TaskClient, mec: MultiEngineClient) -> None:
    mec.execute("import math as on_engine_only\nscale = 10")
    f = eval("lambda x: on_engine_only.floor(x) * scale", {"__name__": "__main__"})
    assert call(tc, f, 2.5) == 20
    mec.push({"scale": 100})
    assert call(tc, f, 2.5) == 200


def test_assignments_to_globals_stay_within_the_call(tc: TaskClient, mec: MultiEngineClient) -> None:
    mec.push({"stays": "engine's"})
    namespace: dict[str, Any] = {"__name__": "__main__"}
    exec("def f():\n    global stays\n    stays = 'the call\\'s'\n    return stays", namespace)
    assert call(tc, namespace["f"]) == "the call's"
    assert mec.pull("stays") == ["engine's"] * 2


class Run:
    def __init__(self, n: int) -> None:
        self.n, self.t = n, 0

    def step(self) -> int:
        for _ in range(self.n):
            self.t += 1
        return self.t

    def __call__(self, x: int) -> int:
        self.t += x
        return self.t


def test_each_task_finds_the_object_of_its_method_as_it_was_sent(tc: TaskClient) -> None:
    for _ in range(2):
        assert [tc.submit(Run(3).step).result() for _ in range(4)] == [3] * 4
        assert [tc.submit(Run(0), 1).result() for _ in range(4)] == [1] * 4
    assert [tc.submit(functools.partial(adds, {"n": 0}), 1).result() for _ in range(4)] == [1] * 4
    with tc.executor() as executor:
        assert [executor.submit(Run(3).step).result() for _ in range(4)] == [3] * 4
    run = Run(3)
    assert [call(tc, run.step) for _ in range(4)] == [3] * 4


@pytest.mark.parametrize(
    ("make", "value"),
    [
        (lambda: random.Random(1).random, random.Random(1).random()),
        (lambda: functools.partial(random.Random(1).randint, 0, 10**9), random.Random(1).randint(0, 10**9)),
        (lambda: np.random.default_rng(1).random, np.random.default_rng(1).random()),
        (lambda: functools.partial(draws, random.Random(1)), random.Random(1).random()),
        (lambda: collections.UserList([1, 2]).pop, 2),
        (lambda: [1, 2].pop, 2),
        (lambda: collections.OrderedDict(a=1, b=2).popitem, ("b", 2)),
        (lambda: functools.partial(next, iter([1, 2])), 1),
        (lambda: iter([1, 2]).__next__, 1),
        (lambda: Run(3).step, 3),
    ],
    ids=range(10),
)
def test_objects_of_libraries_are_as_they_were_sent_too(tc: TaskClient, make: Any, value: Any) -> None:
    function = make()
    assert [call(tc, function) for _ in range(4)] == [value] * 4
    with tc.executor() as executor:
        [each.result() for each in [executor.submit(max, 1, 2) for _ in range(300)]]  # so that calls share tasks
        assert [each.result() for each in [executor.submit(function) for _ in range(300)]] == [value] * 300


def test_items_of_an_executors_map_are_as_those_of_a_pool(tc: TaskClient) -> None:
    run = Run(0)
    with tc.executor() as executor:
        assert list(executor.map(run, [1] * 100)) == [1] * 100
        assert list(executor.map(run, [1] * 6, chunksize=3)) == [1, 2, 3] * 2
    assert run.t == 0


@pytest.mark.parametrize("kind", ["map", "imap"])
def test_items_of_a_map_do_not_see_what_former_ones_changed(tc: TaskClient, kind: str) -> None:
    """Quick items share runs, of sizes that depend on the time that they take: so would the values."""
    each = getattr(tc, kind)
    run, state, numbers = Run(0), {"n": 0}, random.Random(1)
    items = 300
    assert list(each(run, [1] * items)) == [1] * items
    assert list(each(Run.__call__, [run] * items, [1] * items)) == [1] * items
    assert list(each(adds, [state] * items, [1] * items)) == [1] * items
    assert list(each(adds_to_pair, [(state, 1) for _ in range(items)])) == [1] * items
    assert list(each(functools.partial(adds, state), [1] * items)) == [1] * items
    assert list(each(draws, [numbers] * items)) == [random.Random(1).random()] * items
    assert list(each(adds, [state] * 6, [1] * 6, chunksize=3)) == [1, 2, 3] * 2  # as in a pool


class Examined:
    looks = 0

    def __reduce__(self) -> Any:
        Examined.looks += 1
        return int, (3,)


def test_a_map_looks_at_its_function_once(tc: TaskClient) -> None:
    assert tc.map(functools.partial(operator.mul, Examined()), range(50), chunksize=1) == list(range(0, 150, 3))
    assert Examined.looks < 5  # not once for each item: it might be a list of a million numbers


def test_which_partials_are_unpacked_for_each_task() -> None:
    assert not changes_itself(functools.partial(item_of, [1]))
    assert changes_itself(functools.partial(adds, {}))
    assert changes_itself(functools.partial(adds_by_helper, {}))
    assert changes_itself(functools.partial(len, []))


def item_of(table: list[int], place: int) -> int:
    return table[place]


def adds_by_helper(state: dict[str, int], x: int) -> int:
    return adds(state, x)


def test_asserts_that_pytest_has_rewritten(tc: TaskClient) -> None:
    def checks(x: int) -> int:
        assert x == 2, "two it is"
        return x

    assert tc.map(checks, [2]) == [2]
    with pytest.raises(AssertionError, match="two it is"):
        tc.map(checks, [1])


def adds_to_pair(pair: tuple[dict[str, int], int]) -> int:
    return adds(*pair)


def draws(numbers: random.Random) -> float:
    return numbers.random()


def adds(state: dict[str, int], x: int) -> int:
    state["n"] += x
    return state["n"]


def by_name(name: str) -> Any:
    return globals()[name]


def test_an_error_says_what_this_session_has(tc: TaskClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["__main__"], "only_here", 1, raising=False)
    monkeypatch.setattr(fractions.Fraction, "half", 1, raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "only_here.txt").write_text("1")
    f = functools.partial(eval, "lambda text: eval(text)", {"__name__": "__main__"})()
    with pytest.raises(KeyError) as raised:
        call(tc, by_name, "only_here")
    assert raised.value.__notes__[-1].startswith("this session has 'only_here', and a task has only the globals")
    digits = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(0)
    try:
        with pytest.raises(ValueError, match="Exceeds the limit") as too_long:
            call(tc, lambda: str(10**5000))
        assert too_long.value.__notes__[-1].startswith("the limit is off here, and Python's in a task")
    finally:
        sys.set_int_max_str_digits(digits)
    for text, expected in (
        ("only_here", "this session has 'only_here', and a task has only the globals that the code"),
        ("__import__('__main__').only_here", "this session has 'only_here'"),
        ("__import__('fractions').Fraction(1).half", "this session's Fraction has 'half', set after the import"),
        ("open('only_here.txt')", f"the file exists in this session's folder, {tmp_path}, and tasks begin in"),
        ("nowhere", ""),
        ("open('nowhere.txt')", ""),
        ("[].half", ""),
    ):
        with pytest.raises((NameError, KeyError, AttributeError, FileNotFoundError)) as caught:
            call(tc, f, text)
        notes = [note for note in caught.value.__notes__ if note.startswith(("this session", "the file"))]
        assert "".join(notes).startswith(expected), text
        assert bool(notes) is bool(expected), text


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("y = only_here", "a task has only what is sent with its code: push={'only_here': only_here}"),
        ("def f(): return only_here\nf()", "a task has only what is sent with its code: push={'only_here': only_here}"),
        ("%time only_here", "a task has only what is sent with its code: push={'only_here': only_here}"),
        ("quotients.Fraction(1)", "a task imports what its code uses: import fractions as quotients"),
        ("1", ""),
    ],
)
def test_an_error_of_code_says_how_to_send_the_name(
    tc: TaskClient, code: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules["__main__"], "only_here", 1, raising=False)
    monkeypatch.setattr(sys.modules["__main__"], "quotients", fractions, raising=False)
    with pytest.raises(NameError) as raised:
        tc.run(Task(code, pull="only_here"), block=True).raise_exception()
    told = [note.partition(", and ")[2] for note in raised.value.__notes__ if note.startswith("this session has")]
    assert told == ([expected] if expected else [])


def test_an_error_with_notes_of_its_own_says_what_this_session_has(
    tc: TaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules["__main__"], "only_here", 1, raising=False)
    with pytest.raises(NameError) as raised:
        tc.run(
            Task("try: only_here\nexcept NameError as e:\n    e.add_note('mine')\n    raise"), block=True
        ).raise_exception()
    assert raised.value.__notes__[0] == "mine"
    assert raised.value.__notes__[1].startswith("raised on engine ")
    assert raised.value.__notes__[2].startswith("this session has 'only_here'")


SCRIPT = """
import sys
from ipytaskfarm import MapTask, TaskClient

class Point:
    def __init__(self, x): self.x = x
    def double(self): return Point(2 * self.x)

tc = TaskClient(sys.argv[1])
p = tc.run(MapTask(Point(21).double), block=True)
print(type(p) is Point, p.x)
print(tc.run(MapTask(lambda q: q.double().x, (Point(4),)), block=True))
"""


def test_classes_of_main(farm: Farm) -> None:
    assert python(SCRIPT, str(farm.connection_file)).split() == ["True", "42", "8"]


def test_map_keeps_order_and_raises_the_first_failure(tc: TaskClient) -> None:
    assert tc.map(lambda x: x * x, range(50)) == [x * x for x in range(50)]
    assert tc.map(lambda x, y: x + y, [1, 2], [10, 20]) == [11, 22]
    assert tc.map(len, []) == []
    with pytest.raises(ValueError, match="length"):
        tc.map(operator.add, [1, 2], [1])
    with pytest.raises(ZeroDivisionError):
        tc.map(lambda x: 1 // x, [1, 0, 2])
    kept = tc.map(lambda x: 1 // x, [1, 0], return_exceptions=True)
    assert kept[0] == 1
    assert isinstance(kept[1], ZeroDivisionError)


def test_mapper_and_parallel(tc: TaskClient) -> None:
    ids = tc.mapper(block=False, retries=1).map(lambda x: x + 1, range(5))
    tc.barrier(ids)
    assert [tc.get_task_result(i) for i in ids] == [1, 2, 3, 4, 5]

    @tc.parallel()
    def cube(x: int) -> int:
        return x**3

    assert cube.__name__ == "cube"
    assert cube([1, 2, 3]) == [1, 8, 27]


# -- code as in a notebook cell


def test_magics_and_shell_commands(tc: TaskClient) -> None:
    tr = tc.run(Task("%time x = 1", pull="x"), block=True)
    assert tr.ns.x == 1
    assert "time" in tr.stdout.lower()
    assert "hello from the shell" in tc.run(Task("!echo hello from the shell"), block=True).stdout
    shown = tc.run(Task("int?"), block=True)
    assert "class" in (shown.stdout + str(shown.outputs)).lower()


def test_top_level_await(tc: TaskClient) -> None:
    code = "import asyncio\nasync def f():\n    await asyncio.sleep(0)\n    return 5\na = await f()"
    assert tc.run(Task(code, pull="a"), block=True).ns.a == 5


def test_a_last_expression_and_displays_come_back(tc: TaskClient) -> None:
    tr = tc.run(
        Task("print('said')\nfrom IPython.display import HTML, display\ndisplay(HTML('<b>x</b>'))\n6 * 7"), block=True
    )
    assert tr.stdout == "said\n"
    assert any("<b>x</b>" in output["data"].get("text/html", "") for output in tr.outputs)
    assert any(output["data"].get("text/plain") == "42" for output in tr.outputs)


def test_a_figure_comes_back(tc: TaskClient) -> None:
    code = "%matplotlib inline\nimport matplotlib.pyplot as plt\nplt.plot([1, 4, 9])\nplt.show()"
    tr = tc.run(Task(code), block=True)
    tr.raise_exception()
    assert any("image/png" in output["data"] for output in tr.outputs)
