"""Which changes of what a function reaches give its calls another key: parts of one name and one content."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ipytaskfarm.serialization.module_bundles import bundle_of
from ipytaskfarm.serialization.pack import pack_function
from ipytaskfarm.serialization.recipes import recipe_of

from .test_cache_keys import called, key, key_of

MAKE = "def make(n):\n    def inner(): return n\n    return inner\n"
SPACES = (
    "def space(k):\n    names = {'__name__': '__main__', 'K': k}\n    exec('def g(): return K', names)\n"
    "    return names['g']\na, b = space(1), space(2)\n"
)
LISTS = "L = [make(n) for n in (1, 1, 2)]\ndef f(x): return [g() for g in L]"
SWAPPED = {
    "closures": (f"{MAKE}a, b = make(1), make(2)\ndef f(x): return a(), b()", "make(1), make(2)", "make(2), make(1)"),
    "a list of closures": (f"{MAKE}{LISTS}", "1, 1, 2", "1, 2, 1"),
    "one more of one value": (f"{MAKE}{LISTS}", "1, 1, 2", "1, 2, 2"),
    "decorators": (
        "def times(n):\n    def deco(g):\n        def new(): return n * g()\n        return new\n    return deco\n"
        "@times(2)\ndef a(): return 1\n@times(3)\ndef b(): return 1\ndef f(x): return a() - b()",
        "times(2)\ndef a(): return 1\n@times(3)", "times(3)\ndef a(): return 1\n@times(2)",
    ),
    "classes": (
        "def make(n):\n    class C:\n        def get(self): return n\n    return C\n"
        "A, B = make(1), make(2)\ndef f(x): return A().get(), B().get()",
        "make(1), make(2)", "make(2), make(1)",
    ),
    "namespaces": (f"{SPACES}def f(x): return a(), b()", "space(1), space(2)", "space(2), space(1)"),
    "one object of two closures": (
        "def make(n):\n    def inner(): n.append(1); return len(n)\n    return inner\n"
        "L = []\na, b = make(L), make(L)\ndef f(x): return a(), b()",
        "make(L), make(L)", "make(L), make([])",
    ),
    "one object in a tuple of two closures": (
        "def make(n):\n    def inner(): n[0].append(1); return len(n[0])\n    return inner\n"
        "L = ([],)\na, b = make(L), make(L)\ndef f(x): return a(), b()",
        "make(L), make(L)", "make(L), make(([],))",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SWAPPED)
def test_functions_of_one_code_keep_their_own_values(name: str) -> None:
    code, before, after = SWAPPED[name]
    assert before in code
    assert key_of(code, 1) == key_of(code, 1)
    assert key_of(code, 1) != key_of(code.replace(before, after), 1)


def printed(code: str, seed: str = "0") -> str:
    """Return the key of `f` in a process of its own."""
    text = f"from tests.unit.test_cache_keys import key_of\nprint(key_of({code!r}, 1))"
    done = subprocess.run(
        [sys.executable, "-c", text], env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, text=True,
        timeout=60, check=True,
    )  # fmt: skip
    return done.stdout


def test_sets_of_functions_of_one_code_have_one_key_in_each_process() -> None:
    code = f"{MAKE}S = {{make(n) for n in range(20)}}\ndef f(x): return sum(g() for g in S)"
    assert len({printed(code, seed) for seed in ("1", "2")}) == 1


OTHER = {
    "a sentinel": ("D = M = object()\ndef f(x): return D is M", "D = M = object()", "D, M = object(), object()"),
    **{
        f"a {kind}": (
            f"import array, collections, io, itertools, random\nq = {kind}\nr = q\ndef f(x): return q, r",
            "r = q", f"r = {kind}",
        )
        for kind in (
            "collections.deque([1])", "collections.Counter('a')", "collections.defaultdict(list)", "ValueError('a')",
            "collections.OrderedDict(a=1)", "io.StringIO('a')", "io.BytesIO(b'a')", "itertools.count(1)",
            "array.array('i', [1])", "random.Random(1)",
        )
    },
    "attributes of a class": (
        "class C:\n    a = 1\n    b = 2\ndef f(x): return [*vars(C)]", "a = 1\n    b = 2", "b = 2\n    a = 1",
    ),
    "the name of a class": ("class C: pass\nC.__name__ = 'D'\ndef f(x): return C.__name__", "'D'", "'E'"),
    "the boundary of a flag": (
        "import enum\nclass E(enum.Flag, boundary=enum.KEEP):\n    A = 1\ndef f(x): return E(8)", "KEEP", "CONFORM",
    ),
    "a docstring": ("def g():\n    'a'\ndef f(x): return g.__doc__", "'a'", "'b'"),
    "the docstring of a class": (
        "import inspect\nclass C:\n    'a'\n    def g(self): return inspect.getdoc(self)\ndef f(x): return C().g()",
        "'a'", "'b'",
    ),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:Pickle, copy, and deepcopy support:DeprecationWarning")  # of itertools, in 3.12
@pytest.mark.parametrize("name", OTHER)
def test_what_a_function_can_see_of_its_values_counts(name: str) -> None:
    code, before, after = OTHER[name]
    assert key_of(code, 1) == key_of(code, 1)
    assert key_of(code, 1) != key_of(code.replace(before, after), 1)


@pytest.mark.parametrize("told", ["m.told()", "m.g.__doc__", "inspect.getsource(m.g)"])
def test_the_texts_of_a_module_count_if_they_are_read(
    told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    name = f"texts_{len(told)}"
    file = tmp_path / f"{name}.py"
    text = "def g():\n    'one'\ndef told(): return g.__doc__\n"
    code = f"import inspect, {name} as m\ndef f(x): return {told}"
    keys = []
    for version, doc in enumerate(("one", "one", "two"), 1):
        file.write_text(text.replace("one", doc))
        os.utime(file, ns=(version, version))
        keys.append(key_of(code, 1))
    assert keys[0] == keys[1] != keys[2]


def test_an_argument_may_be_the_sentinel_of_the_function() -> None:
    names: dict[str, Any] = {"__name__": "__main__"}
    exec("MISSING = object()\ndef f(x): return x is MISSING", names)
    assert key(names["f"], called(names["MISSING"])) == key(names["f"], called(names["MISSING"]))
    assert key(names["f"], called(names["MISSING"])) != key(names["f"], called(object()))


IN_PLACE = {
    "an annotation": ("def g(a: int): pass\ndef f(x): return g.__annotations__", "g.__annotations__['a'] = float"),
    "a name": ("def g(): pass\ndef f(x): return g.__name__", "g.__name__ = 'other'"),
    "a qualified name": ("def g(): pass\ndef f(x): return g.__qualname__", "g.__qualname__ = 'other'"),
    "the name of a class": ("class C: pass\ndef f(x): return C.__name__", "C.__name__ = 'D'"),
    "a metaclass": (
        "class M(type): pass\nclass N(type): pass\nclass C(metaclass=M): pass\ndef f(x): return type(C)",
        "C.__class__ = N",
    ),
    "a registration": (
        "import abc\nclass B(abc.ABC): pass\nclass C: pass\ndef f(x): return isinstance(C(), B)", "B.register(C)",
    ),
    "a registration with a class of Python": (
        "import collections.abc as A\nclass C: pass\ndef f(x): return isinstance(C(), A.Sized)", "A.Sized.register(C)",
    ),
    "an attribute of a member": (
        "import enum\nclass E(enum.Enum):\n    A = 1\ne = E.A\ndef f(x): return e.note", "e.note = 1",
    ),
    "a new value of it": (
        "import enum\nclass E(enum.Enum):\n    A = 1\ne = E.A\ne.note = 1\ndef f(x): return e.note", "e.note = 2",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", IN_PLACE)
def test_a_change_in_place_is_seen_by_keys_and_packs(name: str) -> None:
    code, change = IN_PLACE[name]
    names: dict[str, Any] = {"__name__": "__main__"}
    exec(code, names)
    before, pack = key(names["f"], called(1)), pack_function(names["f"]).digest
    assert key(names["f"], called(1)) == before
    exec(change, names)
    assert key(names["f"], called(1)) != before
    assert pack_function(names["f"]).digest != pack


def test_a_file_of_the_same_size_and_time_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    file, code = tmp_path / "same_stamp.py", "from same_stamp import V\ndef f(x): return V"
    file.write_text("V = 1\n")
    os.utime(file, ns=(1, 1))
    bundle = bundle_of("same_stamp")
    with file.open("r+") as writing:
        writing.write("V = 2\n")
    os.utime(file, ns=(1, 1))
    assert bundle_of("same_stamp").digest != bundle.digest
    assert key_of(code, 1) == key_of(code, 1)


ATTRS = "import attrs\n@attrs.frozen\nclass P:\n    a: int = 1\ndef f(x): return P()"


def test_a_class_of_attrs_has_one_key_under_each_hash_seed() -> None:
    pytest.importorskip("attrs")
    assert len({printed(ATTRS, seed) for seed in ("1", "2")}) == 1


def test_the_hidden_state_of_numpys_chance_is_known_by_name() -> None:
    """All distributions of ``scipy.stats`` hold it."""
    code = (
        "import numpy as np\nclass D:\n    def __init__(self, state): self.state = state\nd = D({})\ndef f(x): return d"
    )
    own = code.format("np.random.RandomState(1)")
    code = code.format("np.random.mtrand._rand")
    before = key_of(code, 1)
    np.random.rand()
    assert key_of(code, 1) == before
    assert key_of(own, 1) not in (before, key_of(own.replace("State(1)", "State(2)"), 1))


def test_a_class_of_attrs_that_changed_has_another_key() -> None:
    pytest.importorskip("attrs")
    assert key_of(ATTRS, 1) != key_of(ATTRS.replace("a: int", "b: int"), 1)
    assert key_of(ATTRS, 1) != key_of(ATTRS.replace("frozen", "define"), 1)
    assert key_of(ATTRS, 1) != key_of(ATTRS.replace("a: int = 1", "a: int = attrs.field(default=1, hash=False)"), 1)


def test_the_recipe_of_a_function_with_a_dataclass_is_used_again() -> None:
    names: dict[str, Any] = {"__name__": "__main__"}
    exec("import dataclasses\n@dataclasses.dataclass\nclass P:\n    a: int = 1\ndef f(x): return P()", names)
    assert recipe_of(names["f"]) is recipe_of(names["f"])
