"""Values as bytes, and what is said of those that cannot be."""

from __future__ import annotations

import functools
import importlib
import math
import pickle
import sys
import threading
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ipytaskfarm.client.profiles import PerEngine
from ipytaskfarm.core.errors import UnpickleableException
from ipytaskfarm.serialization import STORED_NAMES
from ipytaskfarm.serialization.memory_maps import naming_files
from ipytaskfarm.serialization.pack import (
    pack,
    pack_function,
    pack_names,
    unpack,
    unpack_function,
)
from ipytaskfarm.storage.blobs import Blobs, BlobWriter, use

from ..support.pack_peer import Notebook, Peer


@pytest.mark.parametrize(
    "value",
    [
        None,
        5,
        {"a": 5},
        [1, "x", b"y", 2.5, (1, {2})],
        {"deep": [{"er": (None,)}]},
        math.sqrt,
        dict,
        type(None),
        1 + 2j,
    ],
)
def test_plain_values_come_back(value: Any) -> None:
    assert unpack(pack(value)) == value
    assert unpack(memoryview(pack(value)), {}) == value


def test_plain_data_is_plain_pickle() -> None:
    assert pickle.loads(pack({"a": [1, 2]})) == {"a": [1, 2]}


@pytest.mark.parametrize("count", [3, 100_000])
def test_arrays_come_back_equal_and_writable(count: int) -> None:
    one = np.arange(count, dtype=float)
    data = pack({"a": one, "b": [one, one[::2], one.reshape(-1, 1).T]})
    back = unpack(data)
    assert np.array_equal(back["a"], one)
    assert np.array_equal(back["b"][1], one[::2])
    assert back["b"][0] is back["a"]
    back["a"][0] = 7
    assert one[0] == 0
    assert unpack(data)["a"][0] == 0


def test_many_arrays_that_are_too_small_to_be_blobs_are_one(tmp_path: Path) -> None:
    blobs = Blobs.create(tmp_path / "blobs", "farm")
    use(blobs)
    value = {n: np.full(5000, float(n)) for n in range(100)}
    packed = pack(value, writer=BlobWriter(blobs))
    assert len(packed) < 2 << 20
    found = unpack(packed)
    assert all((found[n] == value[n]).all() and found[n].flags.writeable for n in value)
    function = pack_function(lambda: sum(map(len, value.values())), BlobWriter(blobs))
    assert unpack_function(function.code)() == 500_000


def test_read_only_arrays_stay_read_only() -> None:
    one = np.zeros(100_000)
    one.flags.writeable = False
    assert not unpack(pack(one)).flags.writeable


class Engines:
    def __init__(self, see: bool) -> None:
        self.see = see

    def names_file(self, path: str) -> bool:
        return self.see


VIEWS: dict[str, Callable[[Any], Any]] = {
    "whole": lambda m: m,
    "in Fortran's order": lambda m: m.T,
    "rows": lambda m: m[1:3],
    "backwards, with gaps": lambda m: m[::-1, 1::2],
    "one row, no memmap": lambda m: np.asarray(m)[2],
    "another type of items": lambda m: m.view("i4")[:, 3:],
    "fields": lambda m: m.view([("x", "f8"), ("y", "f8")])["y"],
}


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS.keys())
@pytest.mark.parametrize("offset", [0, 24])
def test_maps_of_files_travel_as_the_name_of_the_file(tmp_path: Path, view: Callable[[Any], Any], offset: int) -> None:
    mapped = np.memmap(tmp_path / "file", "f8", "w+", offset, (4, 6))
    mapped[:] = np.arange(24).reshape(4, 6)
    array = view(mapped)
    with naming_files(Engines(True)):
        back = unpack(pack({"a": array, "b": [array]}))["a"]
    np.testing.assert_array_equal(back, array)
    assert (type(back), back.dtype) == (type(array), array.dtype)
    back[...] = 77
    assert (array == 77).all(), "it is the same file"
    assert (mapped == 77).sum() <= array.size
    with naming_files(Engines(True)):
        again = unpack(pack(back))
    again[...] = 78
    assert (array == 78).all(), "what came as a file goes on as one"


def test_maps_of_files_travel_as_their_content_where_the_file_is_of_no_use(tmp_path: Path) -> None:
    path = tmp_path / "file"
    writable = np.memmap(path, "f8", "w+", shape=10_000)
    writable[:] = 1
    read_only, private = np.memmap(path, "f8", "r"), np.memmap(path, "f8", "c")
    private[0] = 5
    with naming_files(Engines(True)):
        named, small, own = pack(read_only), pack(read_only[:100]), pack(private)
        function = pack_function(lambda: writable)
    assert len(named) < len(small) < 80_000 < len(own)
    assert len(function.code) > 80_000, "closures have the content"
    assert not unpack(named).flags.writeable
    assert unpack(own)[0] == 5
    assert len(pack(writable)) > 80_000, "results have the content"
    with naming_files(Engines(False)), pytest.warns(UserWarning, match="tasks get copies of this writable np.memmap"):
        assert len(pack(writable)) > 80_000
    path.replace(tmp_path / "moved")
    path.write_bytes(bytes(80_000))
    with pytest.raises(FileNotFoundError, match="removed or replaced") as raised:
        unpack(named)
    assert raised.value.filename == str(path)
    with naming_files(Engines(True)):
        assert unpack(pack(read_only)).sum() == 10_000, "another file has its name"


def test_arrays_stand_on_writable_memory_uncopied() -> None:
    memory = bytearray(pack(np.zeros(100_000)))
    back = unpack(memoryview(memory))
    back[:] = 1
    assert memory.count(b"\0\0\0\0\0\0\xf0\x3f") >= 100_000
    assert back.ctypes.data % 16 == 0


def test_a_failed_pack_spoils_nothing() -> None:
    for _ in range(20):
        with pytest.raises(UnpickleableException):
            pack([np.zeros(100_000), threading.Lock()])
        assert unpack(pack({"a": 5})) == {"a": 5}


class Holder:
    def __init__(self, handle: Any) -> None:
        self.handle = handle


@pytest.mark.parametrize(
    ("value", "names", "text"),
    [
        (([1], {}), ("args", "kwargs"), None),
        (([1, threading.Lock()], {}), ("args", "kwargs"), "args[1]: a _thread.lock cannot be pickled: make it"),
        (
            ([1, {"lock": Holder(threading.Lock())}], {}),
            ("args", "kwargs"),
            "args[1]['lock'].handle: a _thread.lock cannot be pickled: make it where it is used, inside the task",
        ),
        (
            ((), {"k": (i for i in "ab")}),
            ("args", "kwargs"),
            "kwargs['k']: a generator cannot be pickled: make a list of",
        ),
        (functools.partial(print, threading.Lock()), "value", "value.args[0]: a _thread.lock"),
        ({(1, threading.Lock())}, "value", "a _thread.lock"),
    ],
)
def test_the_path_of_what_cannot_be_pickled(value: Any, names: Any, text: str | None) -> None:
    if text is None:
        pack(value, names)
        return
    with pytest.raises(UnpickleableException) as caught:
        pack(value, names)
    assert text in str(caught.value)
    assert isinstance(caught.value, TypeError)


def test_a_reduce_that_fails_is_named(notebook: Notebook) -> None:
    notebook.run("""
        class Bad:
            def __reduce__(self):
                raise ValueError("not me")
    """)
    with pytest.raises(UnpickleableException, match=r"value\[0\]: a Bad cannot be pickled \(ValueError: not me\)"):
        pack([notebook["Bad"]()])


def test_what_a_function_stands_on_is_named(notebook: Notebook) -> None:
    notebook.run("""
        import threading
        lock = threading.Lock()
        def f(): return lock
        def outer():
            inside = lock
            return lambda: inside
    """)
    with pytest.raises(UnpickleableException, match=r"global 'lock' used by f.: a _thread.lock cannot"):
        pack_function(notebook["f"])
    with pytest.raises(UnpickleableException, match="variable 'inside' of the function around outer"):
        pack_function(notebook["outer"]())
    with pytest.raises(UnpickleableException, match=r"args\[0\] .global 'lock' used by f."):
        pack(((notebook["f"],), {}), ("args", "kwargs"))


@pytest.mark.parametrize("count", [1, 2, 332, 333, 334, 499, 500, 998, 999, 1000, 1001, 3000])
def test_as_many_definitions_as_there_are_arrive(notebook: Notebook, count: int) -> None:
    """Pickle writes the steps in batches of 1,000, and each function is found when the one before it is written."""
    notebook.run("".join(f"def f{n}(): return {n}, f{n + 1}\n" for n in range(count)) + f"f{count} = None\n")
    function: Any = unpack_function(pack_function(notebook["f0"]).code)
    for n in range(count):
        number, function = function()
        assert number == n
    assert function is None


def test_too_deep_a_nesting_is_said() -> None:
    deep: list[Any] = []
    for _ in range(200_000):
        deep = [deep]
    with pytest.raises(UnpickleableException):
        pack(deep)
    while deep:  # dropping it at once would recurse in C
        deep = deep.pop()


def test_pulled_names() -> None:
    assert unpack(pack_names({"a": 1, "b": "x"})) == {"a": 1, "b": "x"}
    with pytest.raises(UnpickleableException, match=r"'a' holds a module \(math\): pull names instead"):
        pack_names({"a": math})
    with pytest.raises(UnpickleableException, match="'a' holds a dict with a module"):
        pack_names({"a": {"m": math}})
    namespace: dict[str, Any] = {"x": 1}
    namespace["a"] = namespace
    with pytest.raises(UnpickleableException, match="'a' holds the engine's whole namespace"):
        pack_names({"a": namespace}, namespace)
    with pytest.raises(UnpickleableException, match=r"'b' holds a list that cannot be sent: b\[0\]: a generator"):
        pack_names({"a": 1, "b": [(i for i in "ab")]})


def test_classes_are_found_under_the_names_of_their_former_modules() -> None:
    """Stores, and sessions that were saved, have these names."""
    assert pickle.loads(b"cipytaskfarm.client.profile_tables\nPerEngine\n.") is PerEngine
    for former, present in STORED_NAMES.items():
        assert vars(importlib.import_module(former))["_present"] is importlib.import_module(present)


def test_contexts_of_mpmath(peer: Peer, notebook: Notebook) -> None:
    pytest.importorskip("mpmath")
    notebook.run("""
        import mpmath
        from mpmath import iv, matrix, mp, pi
        m, third = matrix([[1, 2], [3, 4]]), iv.mpf(1) / 3
        def ask(): return mp is mpmath.mp, iv is mpmath.iv, pi is mpmath.pi, mpmath.det(m) == -2, 1 / 3 in third
        def given(made): return type(made) is matrix, made + m
    """)
    assert peer.call(notebook["ask"]) == (True,) * 5
    assert peer.call(notebook["given"], notebook["m"]) == (True, 2 * notebook["m"])


def test_elements_of_lxml(peer: Peer, notebook: Notebook) -> None:
    pytest.importorskip("lxml")
    notebook.run("""
        from lxml import etree, html
        root = etree.fromstring("<!-- t --><a xmlns:q='u'><q:b k='&lt;1'/>é<?pi x?><!-- c --></a>")
        page, tree = html.fromstring("<p>a<br>&nbsp;b<b>c</b>d</p>"), root.getroottree()
        def ask(): return *map(etree.tostring, (root, tree, page)), type(page.find("b")).__name__
        def given(each): return etree.tostring(each), each.getparent(), each.tail
        odd = html.fromstring("<p @click='f'/>")
        def asks_odd(): return odd
    """)
    root, etree = notebook["root"], notebook["etree"]
    expected = [etree.tostring(notebook[name]) for name in ("root", "tree", "page")]
    assert peer.call(notebook["ask"]) == (*expected, "HtmlElement")
    for each in (*root, *notebook["page"]):
        assert peer.call(notebook["given"], each) == (etree.tostring(each), None, each.tail)
    with pytest.raises(UnpickleableException, match="HtmlElement"):
        pack_function(notebook["asks_odd"])


def test_lazy_properties_have_locks_of_their_own(peer: Peer, notebook: Notebook) -> None:
    """As astropy's ``lazyproperty``."""
    notebook.run("""
        import threading
        class Lazy(property):
            def __init__(self, get):
                super().__init__(get)
                self.key, self.locks = get.__name__, 0
                self.lock, self.inner = threading.RLock(), threading.Lock()
            def __get__(self, owner, kind=None):
                if owner is None: return self
                with self.lock, self.inner: return owner.__dict__.setdefault(self.key, self.fget(owner))
        class Row:
            @Lazy
            def size(self): return [3]
        def ask(): return (row := Row()).size is row.size, Row.size.locks
    """)
    assert peer.call(notebook["ask"]) == (True, 0)


NAMED = """
import threading
class Missing:
    def __reduce__(self): return "MISSING"
MISSING = Missing()
class Cached:  # as that of cachetools
    def __init__(self, function):
        self.__wrapped__, self.kept, self.lock = function, {}, threading.Lock()
        self.__qualname__ = function.__qualname__
    def __call__(self, x):
        with self.lock: known = x in self.kept
        if not known: self.kept[x] = self.__wrapped__(x)
        return self.kept[x]
    def __get__(self, owner, kind=None): return self
    def __reduce__(self): return self.__qualname__
class OfClass:
    def __init__(self, function): self.function = function
    def __set_name__(self, owner, name): self.place = owner, name
    def __get__(self, owner, kind=None): return self.function
    def __reduce__(self): return vars_of, self.place
def vars_of(owner, name): return vars(owner)[name]
FACTOR = 2
@Cached
def fib(n): return n if n < 2 else fib(n - 1) + fib(n - 2)
@Cached
def times(x): return x * FACTOR
class Row:
    @OfClass
    def size(): return 3
def ask(x=MISSING): return fib(20), times(3), x is MISSING, Row.size()
def same(x): return x is MISSING
def give(): return MISSING
"""


def test_what_pickle_writes_as_the_name_of_a_global(peer: Peer, notebook: Notebook) -> None:
    notebook.run(NAMED)
    assert peer.call(notebook["ask"]) == (6765, 6, True, 3)
    assert peer.call(notebook["same"], notebook["MISSING"])
    assert not peer.call(notebook["same"], 5)
    assert peer.call(notebook["give"]) is notebook["MISSING"]
    before = pack_function(notebook["ask"]).digest
    notebook.run("FACTOR = 5")
    assert pack_function(notebook["ask"]).digest != before
    assert peer.call(notebook["ask"]) == (6765, 15, True, 3)


def test_functions_that_toolz_has_curried(peer: Peer, notebook: Notebook, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("toolz")
    notebook.run("""
        import toolz
        FACTOR = 2
        @toolz.curry
        def add(a, b): return (a + b) * FACTOR
        add_one = add(1)
        def ask(x): return add(1, x), add(1)(x), add_one(x), toolz.pipe(x, add_one, str)
    """)
    main = types.ModuleType("__main__")  # where toolz looks for them
    vars(main).update(notebook.names)
    monkeypatch.setitem(sys.modules, "__main__", main)
    assert peer.call(notebook["ask"], 2) == (6, 6, 6, "6")
    notebook.run("FACTOR = 3")
    assert peer.call(notebook["ask"], 2) == (9, 9, 9, "9")
    assert peer.call(notebook["add"], 1, 1) == peer.call(notebook["add_one"], 1) == 6


MARKERS = """
class Marker:
    def __init__(self, name): self.name = name
class Slotted:
    __slots__ = ("name",)
    def __init__(self, name): self.name = name
SHIFT, REDUCE, SLOTTED = Marker("shift"), Marker("reduce"), Slotted(None)
def names(*found): return [next((n for n, each in globals().items() if each is one), one.name) for one in found]
"""


def test_named_objects_of_a_module_keep_their_identity(
    peer: Peer, notebook: Notebook, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "markers.py").write_text(MARKERS)
    monkeypatch.syspath_prepend(tmp_path)
    notebook.run("""
        import markers
        from markers import SHIFT, SLOTTED, names
        table = {"a": [SHIFT]}
        def by_globals(): return names(SHIFT, SLOTTED, table["a"][0])
        def result(): return SHIFT
    """)
    markers = notebook["markers"]
    try:
        assert peer.call(markers.names, markers.SHIFT, markers.REDUCE, markers.SLOTTED) == [
            "SHIFT",
            "REDUCE",
            "SLOTTED",
        ]
        assert peer.call(notebook["by_globals"]) == ["SHIFT", "SLOTTED", "SHIFT"]
        assert peer.call(notebook["result"]) is markers.SHIFT
        markers.SHIFT.name = "changed here"
        assert peer.call(markers.names, markers.SHIFT, markers.REDUCE) == ["changed here", "REDUCE"]
    finally:
        del sys.modules["markers"]


def test_values_of_libraries_keep_their_own_way(peer: Peer, notebook: Notebook) -> None:
    notebook.run("""
        import numpy as np
        eps = np.finfo(float)
        def f(): return eps.eps, np.finfo(float) is eps
    """)
    assert peer.call(notebook["f"]) == (np.finfo(float).eps, True)


def test_templates_of_jinja_can_be_sent(peer: Peer, notebook: Notebook) -> None:
    pytest.importorskip("jinja2")
    notebook.run("""
        import jinja2
        env = jinja2.Environment(loader=jinja2.DictLoader({"page": "{{ name|shout }} {{ missing|default('-') }}"}))
        env.filters["shout"] = lambda text: text.upper() + "!"
        page = env.get_template("page")
        def render(name): return page.render(name=name), env.get_template("page").render(name=name)
    """)
    assert peer.call(notebook["render"], "a") == ("A! -", "A! -")


def test_attributes_of_arrays_of_own_classes(peer: Peer, notebook: Notebook) -> None:
    notebook.run("""
        import numpy as np
        class Quantity(np.ndarray):
            def __new__(cls, values, unit=None):
                found = np.asarray(values).view(cls)
                found.unit = unit
                return found
            def __array_finalize__(self, of): self.unit = getattr(of, "unit", None)
        q = Quantity([[1, 2]], "kg")
        def twice(x): return 2 * x
        def by_global(): return q.unit, q.sum().unit
    """)
    found = peer.call(notebook["twice"], notebook["q"])
    assert (type(found), found.unit, found.tolist()) == (notebook["Quantity"], "kg", [[2, 4]])
    assert peer.call(notebook["by_global"]) == ("kg", "kg")
    notebook.run("q.unit = 'g'")
    assert peer.call(notebook["by_global"]) == ("g", "g")


def test_parsers_of_arguments(peer: Peer, notebook: Notebook) -> None:
    notebook.run("""
        import argparse
        class Parser(argparse.ArgumentParser): pass
        parser = Parser(argument_default=argparse.SUPPRESS)
        parser.add_argument("--n", type=int)
        parser.add_argument("--hidden", help=argparse.SUPPRESS)
        def parse(*args): return vars(parser.parse_args(args)), "hidden" in parser.format_usage()
    """)
    assert peer.call(notebook["parse"], "--n", "3") == ({"n": 3}, False)
    assert peer.call(notebook["parse"]) == ({}, False)
