"""Functions that are sent as a template and the values of their closures and defaults."""

from __future__ import annotations

import datetime
import decimal
import functools
import gc
import pickle
import sys
import time
import types
import uuid
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ipytaskfarm.client.packing import may_change_shared
from ipytaskfarm.core.errors import UnpickleableException
from ipytaskfarm.serialization.function_templates import fill_template, split_function
from ipytaskfarm.serialization.pack import pack_called, pack_function, unpack_called, unpack_function

from ..support.pack_peer import Notebook, Peer


def made(n: Any, text: Any = "x") -> Callable[..., Any]:
    def inner(x: int = 1, *rest: int) -> tuple[Any, ...]:
        """Tell."""
        return n, text, x, rest

    return inner


@pytest.mark.parametrize(
    "value",
    [
        3, -(2**80), 0.5, True, None, 2j, "text", b"bytes", "", np.float64(0.5), np.int32(4), np.True_, Path("a/b"),
        datetime.date(2026, 1, 2), decimal.Decimal("1.10"), uuid.UUID(int=5),
    ],
)  # fmt: skip
def test_closures_of_one_code_have_one_function(value: Any) -> None:
    first, _ = pack_called(made(1))
    second, values = pack_called(made(value, "y"))
    assert second.digest == first.digest
    assert second.code is first.code
    found = unpack_called(second.code, values)(5, 6)
    assert found == (value, "y", 5, (6,))
    assert type(found[0]) is type(value)


def test_defaults_travel_apart_too(peer: Peer, notebook: Notebook) -> None:
    notebook.run("""
        K = 10
        fs = [lambda x=1, n=n: (K, x, n) for n in range(3)]
        def make(m, options): return [lambda x, n=n, o=options: (m, x, n, o) for n in range(3)]
    """)
    assert len({pack_called(f)[0].digest for f in notebook["fs"]}) == 1
    assert [peer.call(f) for f in notebook["fs"]] == [(10, 1, 0), (10, 1, 1), (10, 1, 2)]
    assert [peer.call(f, 7, n=8) for f in notebook["fs"]] == [(10, 7, 8)] * 3
    for options in ("plain", [1]):
        made = notebook["make"](5, options)
        assert [peer.call(f, 6) for f in made] == [(5, 6, n, options) for n in range(3)]
    with pytest.raises(TypeError, match="required positional"):
        peer.call(made[0])


def test_the_template_is_the_same_whichever_closure_comes_first() -> None:
    code = compile("def make(n):\n    def f(): return n\n    return f", "<cell>", "exec")
    found = []
    for value in (1, "two"):
        names: dict[str, Any] = {"__name__": "__main__"}
        exec(code, names)
        found.append(pack_called(names["make"](value))[0].digest)
    assert found[0] == found[1]


class Whole:
    """Makers of functions that travel as a whole, with what a call returns."""

    @staticmethod
    def counting(n: int) -> Callable[[], int]:
        def step() -> int:
            nonlocal n
            n += 1
            return n

        return step

    @staticmethod
    def list_within(n: int) -> Callable[[], int]:
        numbers = [n, 1]
        return lambda: sum(numbers)

    @staticmethod
    def function_within(n: int) -> Callable[[], int]:
        def helper() -> int:
            return n + 1

        return lambda: helper()

    @staticmethod
    def attribute(n: int) -> Callable[[], int]:
        def f() -> int:
            return n + 1

        f.note = "kept"  # type: ignore[attr-defined]
        return f

    @staticmethod
    def keyword_default(n: int) -> Callable[[], int]:
        def f(*, m: int = 1) -> int:
            return n + m

        return f

    @staticmethod
    def long_text(n: int) -> Callable[[], int]:
        text = "x" * 5000
        return lambda: len(text) - 5000 + n + 1

    @staticmethod
    def list_as_default(n: int) -> Callable[[], int]:
        return lambda numbers=[n, 1]: sum(numbers)  # type: ignore[misc]

    @staticmethod
    def partial_that_changes(n: int) -> Callable[[], int]:
        def last(numbers: list[int]) -> int:
            numbers.append(numbers[-1] + 1)
            return numbers[-1]

        return functools.partial(last, [n])

    @staticmethod
    def partial_of_an_object(n: int) -> Callable[[], int]:
        return functools.partial(int.__add__, Number(n), 1)

    @staticmethod
    def partial_with_an_attribute(n: int) -> Callable[[], int]:
        made = functools.partial(int.__add__, n, 1)
        made.note = "kept"  # type: ignore[attr-defined]
        return made


class Number(int):
    """A value that is not plain."""


@pytest.mark.parametrize("way", [name for name in vars(Whole) if not name.startswith("_")])
def test_others_are_sent_as_a_whole(peer: Peer, way: str) -> None:
    make = getattr(Whole, way)
    assert split_function(make(1)) is None
    function, values = pack_called(make(1))
    assert values is None
    assert function.digest == pack_function(make(1)).digest or way == "counting"  # this one belongs to its session
    assert [peer.call(make(n)) for n in (1, 5)] == [2, 6]


def test_partials_of_one_function_have_one_template(peer: Peer, notebook: Notebook) -> None:
    notebook.run("""
        from functools import partial
        K = 10
        def f(*args, **options): return K, args, options
        class C:
            def __init__(self, n): self.n = n
            def get(self, x): return self.n + x
            def count(self, x): self.n += x; return self.n
        c = C(5)
        wide = [0] * 2000
        within = []; within.append(within)
    """)
    f, names = notebook["f"], notebook["partial"]
    parts = [names(f, 1), names(f, "a", [2, {"b": (3,)}], k={4}), names(names(f, None), 2.5)]
    assert len({pack_called(each)[0].digest for each in parts}) == 1
    assert [peer.call(each, 9, z=8) for each in parts] == [
        (10, (1, 9), {"z": 8}),
        (10, ("a", [2, {"b": (3,)}], 9), {"k": {4}, "z": 8}),
        (10, (None, 2.5, 9), {"z": 8}),
    ]
    for method, found in (("get", [6, 7]), ("count", [6, 7])):
        assert [peer.call(names(getattr(notebook["c"], method), x)) for x in (1, 2)] == found
    notebook.run("K = 20; c.n = 7")
    assert peer.call(names(f, 1)) == (20, (1,), {})
    assert peer.call(names(notebook["c"].get, 1)) == 8
    assert split_function(names(f, notebook["wide"])) is None
    assert split_function(names(f, notebook["within"])) is None
    assert split_function(names(f)) is None


def test_a_bound_method_is_packed_once(notebook: Notebook) -> None:
    notebook.run("""
        class C:
            numbers = {"a": 1}
            @classmethod
            def of(cls): return cls.numbers
            def one(self): return 1
            def two(self): return 2
        c, d = C(), C()
        d.n = 1
    """)
    c, d, cls = notebook["c"], notebook["d"], notebook["C"]
    assert pack_function(c.one) is pack_function(c.one)
    assert pack_function(cls.of) is pack_function(cls.of)
    assert len({pack_function(each).digest for each in (c.one, c.two, d.one)}) == 3
    before = pack_function(c.one)
    c.n = 2
    assert pack_function(c.one).digest != before.digest
    gone = weakref.ref(c)
    notebook.run("del c")
    del c
    gc.collect()
    assert gone() is None


def test_a_function_that_was_put_into_a_module_is_sent_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    named = made(1)
    named.__qualname__ = named.__name__ = "named"
    monkeypatch.setattr(sys.modules[__name__], "named", named, raising=False)
    assert pack_called(named)[1] is None


def test_the_values_are_those_of_the_submission(peer: Peer, notebook: Notebook) -> None:
    notebook.run("""
        def make(n):
            def f(): return n
            def change(m):
                nonlocal n
                n = m
            return f, change
        f, change = make(1)
    """)
    assert peer.call(notebook["f"]) == 1
    notebook["change"](2)
    assert peer.call(notebook["f"]) == 2


def test_globals_are_examined_for_each_closure(peer: Peer, notebook: Notebook) -> None:
    notebook.run("K = 10\ndef make(n):\n    def f(x=0): return K + n + x\n    return f")
    assert peer.call(notebook["make"](1)) == 11
    notebook.run("K = 20")
    assert peer.call(notebook["make"](1)) == 21
    notebook.run("def make(n):\n    def f(x=5): return K - n - x\n    return f")
    assert peer.call(notebook["make"](1)) == 14


def test_defaults_and_annotations_are_those_of_the_function(peer: Peer, notebook: Notebook) -> None:
    notebook.run("""
        def make(n, d, t):
            def f(x: t = d):
                import typing
                return n, x, typing.get_type_hints(f_of()).get("x")
            f_of = lambda: f
            return f
        def flat(n, d, t):
            def f(x: t = d): return n, x
            return f
    """)
    assert peer.call(notebook["flat"](1, 2, int)) == (1, 2)
    assert peer.call(notebook["flat"](1, [3], int)) == (1, [3])
    opened = [split_function(notebook["flat"](1, 2, each)) for each in (int, str)]
    assert [each.template.__annotations__ for each in opened if each is not None] == [{"x": int}, {"x": str}]


def test_each_call_has_cells_of_its_own() -> None:
    notebook = Notebook()
    notebook.run("K = 1\ndef make(n):\n    def f(): return lambda: n + K\n    return f")
    function, first = pack_called(notebook["make"](1))
    _, second = pack_called(notebook["make"](2))
    unpacked = unpack_function(function.code, {})
    calls = [fill_template(unpacked, pickle.loads(values)) for values in (first, second) if values is not None]
    kept = [call() for call in calls]
    assert [each() for each in kept] == [2, 3]
    assert [call.__name__ for call in calls] == ["f", "f"]
    assert all(type(call) is types.FunctionType for call in calls)


def test_a_function_that_is_no_template_keeps_its_own_values() -> None:
    whole = made(1)
    assert fill_template(whole, ((2, "y"), (5,))) is whole
    assert fill_template(len, ((2,), None)) is len


def test_texts_that_are_compared_by_identity_stay_in_one_pack(peer: Peer, notebook: Notebook) -> None:
    notebook.run("""
        import operator, uuid
        MISSING, MARK = str(uuid.uuid4()), uuid.uuid4().bytes
        def is_missing(x): return x is MISSING
        class Model:
            def check(self, x): return x is MISSING
        model = Model()
        fs = [
            lambda x=MISSING: x is MISSING, lambda x=MARK: x is MARK, lambda x=MISSING: is_missing(x),
            lambda x=MISSING: Model().check(x),
            lambda x=MISSING: id(x) == id(MISSING), lambda x=MISSING: operator.is_(x, MISSING),
            (lambda x: lambda: x is MISSING)(MISSING),
        ]
        split = [lambda x="a": x is None or x, lambda x=3: x is MISSING, lambda x=None: x is MISSING]
    """)
    assert [peer.call(f) for f in notebook["fs"]] == [True] * len(notebook["fs"])
    assert {pack_called(f)[1] for f in notebook["fs"]} == {None}
    assert [peer.call(f) for f in notebook["split"]] == ["a", False, False]
    assert all(pack_called(f)[1] for f in notebook["split"])


def test_a_long_text_is_not_pickled_at_each_call() -> None:
    long, short = made("x" * 50_000_000), made("x")
    took_s = []
    for function in (long, short):
        pack_called(function)
        began_s = time.thread_time()
        for _ in range(20):
            pack_called(function)
        took_s.append(time.thread_time() - began_s)
    assert took_s[0] < 100 * took_s[1]


class Large:
    """A value whose end can be seen."""


def test_defaults_live_no_longer_for_it() -> None:
    def makes(n: int) -> Any:
        large = Large()
        pack_called(lambda x=large: (n, x))
        return weakref.ref(large)

    found = makes(1)
    gc.collect()
    assert found() is None


@pytest.mark.parametrize("here", [True, False], ids=["in the client", "in the engine"])
def test_globals_live_no_longer_for_it(here: bool) -> None:
    names: dict[str, Any] = {"__name__": "__main__"}
    exec("class Large: pass\nlarge = Large()\ndef make(n):\n def f(): return n, large\n return f", names)
    make = names["make"]
    if not here:
        make = unpack_function(pack_function(make).code, {})
    split = split_function(make(1))
    assert split is not None
    if not here:
        again = split_function(make(2))
        assert again is not None
        assert again.template is split.template
    kept = weakref.ref(make(3)()[1])
    del split, make, names
    again = None
    gc.collect()
    assert kept() is None


def test_an_error_names_the_users_function(notebook: Notebook) -> None:
    notebook.run("import sys\nframe = sys._getframe()\ndef make(n):\n    def f(): return frame, n\n    return f")
    with pytest.raises(UnpickleableException, match=r"global 'frame' used by .*f"):
        pack_called(notebook["make"](1))


SHARED_ARGUMENTS = """
import heapq
def append(d): d.append(1)
def alias(d): x = d["a"]; x.append(1)
def inner(d): o = dict(d); o["a"].append(1)
def each(d):
    for x in d: x += 1
def within(d):
    def g(): d.pop()
    return g()
def heap(d): heapq.heappush(d, 1)
def helped(d): return append(d)
def out(d): return d.dot(d, out=d)
def names(d): (y := d).append(1)
def delete(d): del d["a"]
own = lambda d: [x + 1 for x in d]
def makes(d, n=3):
    found = {}; found[1] = n
    count = 0
    rows = [x for x in d]
    rows.sort()
    for i in range(n): count += i; rows.insert(0, i)
    return count, next(iter(d))
def reads(d): return d["a"] + len(d)
"""


CHANGING = "append", "alias", "inner", "each", "within", "heap", "helped", "out", "names", "delete"


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        *((name, True) for name in CHANGING),
        *((name, False) for name in ["own", "makes", "reads"]),
    ],
)
def test_functions_that_may_change_an_argument_which_others_have(notebook: Notebook, name: str, changes: bool) -> None:
    notebook.run(SHARED_ARGUMENTS)
    shared: dict[str, int] = {}
    assert may_change_shared(notebook[name], [shared, shared]) is changes
    assert not may_change_shared(notebook[name], [{}, {"a": 1}, 1, 1])
    assert may_change_shared(notebook[name], [(shared, 1), (shared, 2)]) is changes
    assert may_change_shared(notebook[name], [{"d": shared, "n": 1}, {"d": shared, "n": 2}]) is changes
    path = Path("a")
    assert not may_change_shared(notebook[name], [path, path])
