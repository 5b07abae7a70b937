"""Functions sent to another process, and called there."""

from __future__ import annotations

import collections
import dataclasses
import functools
import math
import sys
import textwrap
import threading
import types
import weakref
from typing import Any

import pytest

from ipytaskfarm.core.errors import VersionMismatch
from ipytaskfarm.serialization.definition_stages import Stages
from ipytaskfarm.serialization.function_globals import Names
from ipytaskfarm.serialization.pack import (
    for_many,
    pack,
    pack_function,
    unpack,
    unpack_function,
)
from ipytaskfarm.serialization.process_values import asked
from ipytaskfarm.serialization.recipes import recipe_of

from ..support.pack_peer import Notebook, Peer

NAMED_IN_TEXTS = {
    "a key": 'globals()["K"]',
    "a percent sign": '"%(K)d %(x)d" % dict(globals(), x=x)',
    "a format": '"{K:>3}".format(**globals())',
    "an expression": 'eval("K + g(2)")',
    "an expression with globals": 'eval("K + x", globals(), {"x": x})',
    "statements": 'exec("def h(): return K + g(1)\\nfound = h()", names := dict(globals())) or names["found"]',
    "a test": '("K" in globals(), "nowhere" in globals())',
    "timeit": '__import__("timeit").timeit("g(1)", globals=globals(), number=1) >= 0',
    "inside": '(lambda: globals()["K"])()',
    "a query": '__import__("pandas").DataFrame({"a": range(9)}).query("a > @K + @ONE.real").a.tolist()',
    "a template": '__import__("string").Template("$K ${ONE}").substitute(globals())',
    "a library of the caller's names": "evaluate('g(2) + K')",
    "an evaluation": '(lambda df: df.eval("a * @K").tolist())(__import__("pandas").DataFrame({"a": [1, 2]}))',
}


@pytest.mark.parametrize("way", NAMED_IN_TEXTS)
def test_globals_that_a_function_names_in_texts_are_sent(peer: Peer, notebook: Notebook, way: str) -> None:
    notebook.run(f"""
        import sys
        K = 3; ONE = 1 + 0j
        def g(x): return x * K
        def evaluate(text):
            caller = sys._getframe(1)
            return eval(text, caller.f_globals, caller.f_locals)
        def f(x):
            return {NAMED_IN_TEXTS[way]}
    """)
    f: Any = notebook.names["f"]
    assert peer.call(f, 5) == f(5)


def test_what_a_text_names_by_chance_does_not_have_to_be_sent(peer: Peer, notebook: Notebook) -> None:
    notebook.run("""
        import threading
        lock = threading.Lock()
        lines = (n for n in range(3))
        K = 3
        def f(x):
            "lock"
            kinds = ["lines", "f", "g"]
            return eval("x + K"), len(kinds)
        def g(x):
            "f"
            return eval("f(x)[0]") if x else "g"
        """)
    f, g = notebook.names["f"], notebook.names["g"]
    assert peer.call(f, 1) == (4, 3)
    assert (peer.call(g, 1), peer.call(g, 0)) == (4, "g")


def test_functions_of_the_notebook(peer: Peer, notebook: Notebook) -> None:
    notebook.run("""
        import math, functools
        import numpy as np
        import xml.dom.minidom
        K = 3
        def g(x, *, k=10): return x + K + k
        def f(x, y=2): return g(x) * y + math.sqrt(4)
        def fact(n): return 1 if n < 2 else n * fact(n - 1)
        def even(n): return True if n == 0 else odd(n - 1)
        def odd(n): return False if n == 0 else even(n - 1)
        def adder(n):
            def add(x):
                return 0 if x < 0 else x + n + 0 * add(-1)
            return add
        def total(): return float(np.ones(4).sum())
        def nested(xs): return [[K * x for x in row] for row in (lambda: xs)()]
        def tree(): return xml.dom.minidom.__name__
        def gen(n): yield from range(n)
        def use_gen(n): return list(gen(n))
        def note(x: "int" = 1) -> float:
            "What it does."
            return x
        note.mark = "here"
        def about(): return note.__doc__, note.mark, note.__annotations__, note.__name__
        def make():
            class Local:
                factor = K
                def times(self, x): return self.factor * x
            return Local().times(2)
        @functools.lru_cache(maxsize=7)
        def cached(x): return x * K
        def deco(f):
            @functools.wraps(f)
            def wrapper(*a, **k): return f(*a, **k) + 1
            return wrapper
        @deco
        def decorated(x): return x * K
    """)
    n = notebook.names
    assert peer.call(n["f"], 1) == 30
    assert peer.call(n["f"], x=1, y=1) == 16
    assert peer.call(n["fact"], 10) == math.factorial(10)
    assert peer.call(n["even"], 10) is True
    assert peer.call(n["adder"](5), 1) == 6
    assert peer.call(n["total"]) == 4
    assert peer.call(n["nested"], [[1], [2]]) == [[3], [6]]
    assert peer.call(n["tree"]) == "xml.dom.minidom"
    assert peer.call(n["use_gen"], 3) == [0, 1, 2]
    assert peer.call(n["about"]) == ("What it does.", "here", {"x": "int", "return": float}, "note")
    assert peer.call(n["make"]) == 6
    assert peer.call(n["cached"], 2) == 6
    assert peer.call(n["decorated"], 2) == 7
    assert peer.call(lambda x: 2 * x, 10) == 20
    assert peer.call(functools.partial(n["f"], y=1), 1) == 16


def test_callables_by_reference(peer: Peer) -> None:
    assert peer.call(math.sqrt, 16) == 4
    assert peer.call(len, [1, 2]) == 2
    assert peer.call("abc".upper) == "ABC"
    assert peer.call(functools.partial(pow, 2), 5) == 32
    assert peer.call(int, "7") == 7
    assert peer.call(textwrap.dedent, "  a") == "a"
    assert len(pack_function(textwrap.dedent).code) < 60
    assert peer.call([1, 2].__add__, [3]) == [1, 2, 3]


def test_other_names_are_looked_up_in_the_engines_namespace(peer: Peer, notebook: Notebook) -> None:
    notebook.run("""
        def f(): return only_there + len("ab")
        def g(): return id
        def via_eval(): return eval("only_there")
    """)
    peer.run("only_there = 1; id = 77")
    assert peer.call(notebook["f"]) == 3
    peer.run("only_there = 10")
    assert peer.call(notebook["f"]) == 12
    assert peer.call(notebook["g"]) == 77
    assert peer.call(notebook["via_eval"]) == 10
    peer.run("del only_there, id")
    with pytest.raises(NameError, match="only_there"):
        peer.call(notebook["f"])
    assert peer.call(len, "a") == 1
    assert peer.call(notebook["g"]) is id


def test_functions_inside_data_see_the_namespace_too(peer: Peer, notebook: Notebook) -> None:
    notebook.run("def f(x): return x + there")
    peer.run("there = 5")
    assert peer.call(lambda f, x: f(x), notebook["f"], 1) == 6


def test_assignments_to_globals_stay_within_the_call(peer: Peer, notebook: Notebook) -> None:
    notebook.run("""
        n = 0
        def bump():
            global n, fresh
            n += 1
            seen = "fresh" in globals()
            fresh = 1
            globals()["sneaked"] = 1
            return n, seen, read()
        def read(): return n
        def wipe():
            global n
            del n
            return "n" in globals()
        def look(): return n, "sneaked" in globals()
    """)
    for _ in range(3):
        assert peer.call(notebook["bump"]) == (1, False, 1)
        assert peer.call(notebook["wipe"]) is False
        assert peer.call(notebook["look"]) == (0, False)
    names: dict[str, Any] = {}
    bump = unpack_function(pack_function(notebook["bump"]).code, names)
    assert [bump()[0] for _ in range(3)] == [1, 1, 1]
    assert names == {}
    assert notebook["n"] == 0


def test_imports_and_class_bodies_work_over_the_made_globals(peer: Peer, notebook: Notebook) -> None:
    notebook.run("""
        def f(x):
            import json
            from os import path
            class A:
                y = len(x) + there
                z = [len(x) for _ in range(2)]
            return json.dumps(A.y), path.basename("/a/b"), A.z, __name__
    """)
    peer.run("there = 3")
    assert peer.call(notebook["f"], "ab") == ("5", "b", [2, 2], "__main__")


def test_a_redefined_function_is_the_new_one(peer: Peer, notebook: Notebook) -> None:
    for value in range(4):
        notebook.run(f"def h(): return {value}\ndef f(): return h(), K\nK = {value}")
        assert peer.call(notebook["f"]) == (value, value)
    notebook.run("K = 'new'")
    assert peer.call(notebook["f"]) == (3, "new")
    notebook.run("h = lambda: 'lambda'")
    assert peer.call(notebook["f"]) == ("lambda", "new")


def test_changed_mutable_globals_are_seen(peer: Peer, notebook: Notebook) -> None:
    notebook.run("""
        import numpy as np
        data = {"a": [1]}
        array = np.zeros(3)
        def f(): return data["a"], float(array.sum())
    """)
    assert peer.call(notebook["f"]) == ([1], 0)
    notebook["data"]["a"].append(2)
    notebook["array"][0] = 5
    assert peer.call(notebook["f"]) == ([1, 2], 5)


def test_functions_come_back(peer: Peer, notebook: Notebook) -> None:
    notebook.run("def make(n):\n    return lambda x: x + n + len('ab')")
    back = peer.call(notebook["make"], 3)
    assert back(1) == 6
    assert peer.call(back, 1) == 6


def test_code_of_another_minor_version_is_refused(notebook: Notebook, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ipytaskfarm.serialization.pickler.PYTHON", "3.99")
    code = pack_function(lambda: 1).code
    here = f"{sys.version_info[0]}.{sys.version_info[1]}"
    with pytest.raises(VersionMismatch, match=rf"Python 3\.99 .* Python {here}"):
        unpack_function(code, {})


def test_names_of_the_shell_are_the_engines(notebook: Notebook) -> None:
    notebook.run("""
        class Shell: pass
        Shell.__module__ = "IPython.core.interactiveshell"
        def get_ipython(): pass
        get_ipython.__module__ = "IPython.core.getipython"
        Out = _oh = {}
        _dh = []
        def f(): return get_ipython, Out
    """)
    assert unpack_function(pack_function(notebook["f"]).code, {"get_ipython": 1, "Out": 2})() == (1, 2)


def test_what_was_unpacked_can_be_packed_again(peer: Peer, notebook: Notebook) -> None:
    notebook.run("K = 2\ndef g(x): return x * K\ndef f(x): return g(x) + there")
    made = pack_function(notebook["f"])
    again = pack_function(unpack_function(made.code, {"there": 1}))
    peer.run("there = 5")
    assert peer.ask("call", again.digest, again.code, None, pack(((1,), {}))) == 7
    assert again.digest == made.digest


def test_threads_may_pack_at_the_same_time(notebook: Notebook) -> None:
    notebook.run("class C:\n    pass\ndef f(x): return C, x")
    value = [notebook["C"](), {"a": 5}, notebook["f"]]
    wanted = len(pack(value))
    found: set[int] = set()

    def work() -> None:
        for _ in range(200):
            found.add(len(pack(value)))
            pack_function(notebook["f"])

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {wanted}


def test_many_calls_in_a_row_start_afresh_once_unless_they_assign() -> None:
    typed: dict[str, Any] = {"__name__": "__main__"}
    exec(
        "def quiet(x): return x + 1\ndef loud(x):\n    global n\n    n = globals().get('n', 0) + x\n    return n", typed
    )
    quiet = unpack_function(pack_function(typed["quiet"]).code, {})
    assert for_many(quiet) is not quiet
    assert [for_many(quiet)(n) for n in range(3)] == [1, 2, 3]
    loud = unpack_function(pack_function(typed["loud"]).code, {})
    assert for_many(loud) is loud
    assert [for_many(loud)(1) for _ in range(3)] == [1, 1, 1]
    assert for_many(len) is len


def test_a_submodule_that_is_imported_later_is_sent(notebook: Notebook, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "wsgiref"]:
        monkeypatch.delitem(sys.modules, name)  # another test may have imported it
    notebook.run("import wsgiref\ndef f(): return wsgiref.util.guess_scheme({})")
    before = pack_function(notebook["f"])
    assert pack_function(notebook["f"]) is before
    notebook.run("import wsgiref.util")
    assert pack_function(notebook["f"]).digest != before.digest
    assert notebook["f"]() == "http"


def _proxy_class(slots: bool) -> type:
    """Return a class, made where it cannot be imported, of instances that look up every name in their state."""

    class Proxy:
        if slots:
            __slots__ = ("inner",)

        def __init__(self, inner: dict[str, int]) -> None:
            self.inner = inner

        def __getattr__(self, name: str) -> int:
            try:
                return self.inner[name]
            except KeyError:
                raise AttributeError(name) from None

    return Proxy


@pytest.mark.parametrize("slots", [False, True], ids=["dict", "slots"])
def test_an_object_that_asks_its_state_for_every_name_travels(slots: bool) -> None:
    proxy = _proxy_class(slots)({"a": 3})
    assert unpack(pack(proxy)).a == 3
    assert unpack(pack(lambda x: x + proxy.a))(4) == 7


def test_a_function_that_pydantic_validates_travels(peer: Peer, notebook: Notebook) -> None:
    pytest.importorskip("pydantic")
    notebook.run("""
        import pydantic
        K = 3
        @pydantic.validate_call(validate_return=True)
        def f(x: int) -> int: return x + K
    """)
    assert peer.call(notebook["f"], "4") == 7


def test_what_else_is_in_a_notebook_stays_there_when_pydantic_keeps_its_globals(
    peer: Peer, notebook: Notebook, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("pydantic")
    main = types.ModuleType("__main__")
    vars(main).update(notebook.names, lock=threading.Lock(), large=b"x" * 1_000_000)
    notebook.names = vars(main)
    monkeypatch.setitem(sys.modules, "__main__", main)
    notebook.run("""
        import pydantic
        K = 3
        @pydantic.validate_call
        def f(x: "int") -> int: return x + K
    """)
    assert len(pack(notebook["f"])) < 10_000
    assert peer.call(notebook["f"], "4") == 7


SENTINELS = """
import contextlib, dataclasses, typing
from dataclasses import KW_ONLY
import numpy as np
from numpy import sin
MISSING = object()
class Words(dict):
    __getattr__ = dict.__getitem__
words = Words(a=1)
@contextlib.contextmanager
def doubled(x):
    yield 2 * x
@doubled(2)
def in_context(x): return x
@np.errstate(divide="raise")
def divides(x): return np.float64(1) / x
@dataclasses.dataclass
class Row:
    a: "int"
    _: "KW_ONLY"
    b: "int" = 2
def by_default(x=MISSING): return x is MISSING
def same(x): return x is MISSING, dataclasses.MISSING is dataclasses.fields(Row)[0].default
def gives(): return MISSING
def asks(): return words.a
def hints(): return typing.get_type_hints(Row)["a"]
def sine(x): return sin(x)
"""


def test_what_is_compared_by_identity_keeps_it(peer: Peer, notebook: Notebook, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["__main__"], "KW_ONLY", dataclasses.KW_ONLY, raising=False)
    notebook.run(SENTINELS)
    missing = notebook["MISSING"]
    assert peer.call(notebook["same"], missing) == (True, True)
    assert peer.call(notebook["same"], object()) == (False, True)
    assert peer.call(notebook["by_default"], missing)
    assert peer.call(notebook["gives"]) is missing
    notebook.run("MISSING = object()")
    assert peer.call(notebook["same"], notebook["MISSING"])[0], "another object, another function"
    assert peer.call(notebook["in_context"], 3) == peer.call(notebook["in_context"], 3) == 3
    assert peer.call(notebook["asks"]) == 1
    assert peer.call(notebook["hints"]) is int
    assert peer.call(notebook["sine"], 0.0) == 0.0
    with pytest.raises(FloatingPointError):
        peer.call(notebook["divides"], 0.0)
    for name in ("asks", "divides", "gives"):  # the keys of the result cache
        recipe_of(notebook[name])


CHANGING = """
import functools
class Run:
    def __init__(self): self.n = 0
    def step(self): self.n += 1; return self.n
    def twice(self): self.step(); return self.step()
    def look(self): return self.n
    def __call__(self): return self.step()
class Empty: pass
def made():
    n = 0
    def count():
        nonlocal n
        n += 1
        return n
    return count
def held(): run = Run(); return lambda: run.step()
def passed(): run = Run(); return lambda: run.look()
def add(to): to.append(1); return len(to)
"""


def test_each_task_has_a_function_anew_whose_calls_change_it(notebook: Notebook) -> None:
    notebook.run(CHANGING)
    run = notebook["Run"]()
    changing = run.step, run.twice, run, notebook["made"](), notebook["held"](), functools.partial(notebook["add"], [])
    for function in changing:
        first, second = pack_function(function), pack_function(function)
        assert first.digest == second.digest
        unpacked: Any = unpack_function(first.code)
        assert unpacked.renews, function
        assert unpack_function(first.code)() == unpack_function(first.code)()
    for function in (run.look, notebook["passed"](), functools.partial(notebook["add"], ()), notebook["add"]):
        unpacked = unpack_function(pack_function(function).code)
        assert not unpacked.renews, function


def test_attributes_of_what_functools_made_of_a_function(peer: Peer, notebook: Notebook) -> None:
    notebook.run("""
        import functools
        def marked(f):
            f.mark = "inner"
            return f
        @functools.lru_cache
        @marked
        def cached(x): return cached.scale * x, cached.mark, cached.itself is cached
        cached.scale, cached.itself = 3, cached
        @functools.singledispatch
        def kind(x): return kind.other(x)
        @kind.register
        def _(x: int): return "int"
        kind.other = lambda x: type(x).__name__
        def ask(): return cached(2), kind(1), kind("")
    """)
    assert peer.call(notebook["ask"]) == ((6, "inner", True), "int", "str")
    assert peer.call(notebook["cached"], 3) == (9, "inner", True)
    assert peer.call(notebook["kind"], 1.5) == "float"


def test_what_an_object_holds_and_does_not_send_may_be_dead(peer: Peer, notebook: Notebook) -> None:
    """As it is with functions that numba has compiled: they are reduced to their source."""
    notebook.run("""
        import logging, weakref
        log = logging.getLogger("of a library")
        log.compiled = [weakref.proxy({1, 2})]
        def ask(): return log.name
    """)
    assert peer.call(notebook["ask"]) == "of a library"
    assert Stages(lambda kind: True, None).instances_in([weakref.proxy({1, 2})]) == set()


def test_bound_methods_and_iterators_are_pickled_in_a_function(peer: Peer, notebook: Notebook) -> None:
    """C code looks ``getattr``, ``iter`` and ``reversed`` up among the builtins of the function that runs."""
    notebook.run("""
        import copy, fractions, pickle
        def ask():
            method = pickle.loads(pickle.dumps(fractions.Fraction(1, 2).limit_denominator))
            parts = [iter([1, 2]), reversed([1, 2]), iter({1: 2}), iter(b"ab"), int.from_bytes]
            return method() == 0.5, [list(copy.copy(each)) for each in parts[:4]], len(pickle.dumps(parts)) > 0
    """)
    assert peer.call(notebook["ask"]) == (True, [[1, 2], [2, 1], [1], [97, 98]], True)
    names = Names("__main__", {"iter": 3})
    names.prefer("iter")
    assert names["iter"] == 3
    names.hide()
    assert names["iter"] is iter


def test_functions_with_decorators_of_wrapt(peer: Peer, notebook: Notebook) -> None:
    pytest.importorskip("wrapt")
    notebook.run("""
        import wrapt
        K = 2
        @wrapt.decorator
        def noted(wrapped, instance, args, kwargs): return type(instance).__name__, wrapped(*args, **kwargs)
        @noted
        def f(x): return x * K
        class C:
            @noted
            def m(self, x): return x * K
            @noted
            @classmethod
            def c(cls): return cls.__name__
        method = C().m
        def ask(x): return f(x), C().m(x), C.c(), f.__name__
    """)
    assert peer.call(notebook["ask"], 3) == (("NoneType", 6), ("C", 6), ("type", "C"), "f")
    notebook.run("K = 5")
    assert peer.call(notebook["ask"], 3)[:2] == (("NoneType", 15), ("C", 15))
    assert (peer.call(notebook["f"], 1), peer.call(notebook["method"], 1)) == (("NoneType", 5), ("C", 5))


def test_functions_that_numba_compiles(peer: Peer, notebook: Notebook) -> None:
    pytest.importorskip("numba")
    notebook.run("""
        import numba
        K = 2
        @numba.njit
        def inner(x): return x * K
        @numba.njit
        def f(x): return inner(x) + 1
        @numba.vectorize(["f8(f8)"])
        def g(x): return x * K
        def ask(x): return f(x), float(g(x))
    """)
    ask: Any = notebook["ask"]
    assert ask(3) == peer.call(ask, 3) == peer.call(ask, 3) == (7, 6.0)


def test_undefined_functions_of_sympy(peer: Peer, notebook: Notebook) -> None:
    pytest.importorskip("sympy")
    notebook.run("""
        import sympy
        t, F = sympy.Symbol("t"), sympy.Function("f")
        slope = F(t).diff(t)
        def ask(): return slope == F(t).diff(t), slope.args[0].func is F, F(2)
    """)
    assert peer.call(notebook["ask"]) == (True, True, notebook["F"](2))


def test_no_attribute_is_made_by_a_look_at_a_value() -> None:
    class Items(collections.defaultdict[str, Any]):
        __getattr__ = collections.defaultdict.__getitem__

    class Node:
        def __init__(self) -> None:
            self.children: dict[str, Node] = {}

        def __getattr__(self, name: str) -> Node:
            return self.children.setdefault(name, Node())

    items, node = Items(list, a=1), Node()
    assert asked(items, "__name__") is asked(node, "__wrapped__") is None
    assert (dict(items), node.children) == ({"a": 1}, {})
    assert asked(node, "__module__") == asked(Node, "__module__") == __name__
    assert asked(node, "children") is node.children
