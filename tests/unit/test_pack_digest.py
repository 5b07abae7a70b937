"""Digests: equal for equal source, different for anything that makes a difference; and when a pack is made again."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import textwrap
import weakref
import zlib
from pathlib import Path
from typing import Any

import msgspec
import pytest

import ipytaskfarm
from ipytaskfarm.serialization import cache, module_bundles
from ipytaskfarm.serialization.digests import Digester
from ipytaskfarm.serialization.pack import pack, pack_environment, pack_function, unpack, unpack_function
from ipytaskfarm.serialization.recipes import recipe_of

SOURCE = """
import dataclasses, enum, math, functools, collections, re
import numpy as np
K = 3
NAMES = {"alpha", "beta", "gamma", "delta"}
FROZEN = frozenset({("a", 1), ("b", 2)})
TABLE = {"x": [1, 2.5, None], "y": NAMES}
ARRAY = np.arange(5)
PATTERN = re.compile("a+")
class Colour(enum.Enum):
    RED = 1
    BLUE = 2
@dataclasses.dataclass
class Point:
    x: int
    y: int = 2
    def far(self): return other(self.x)
def other(x): return f(x - 1) if x > 0 else Point(x).y
def deco(g):
    @functools.wraps(g)
    def wrapper(*a): return g(*a)
    return wrapper
@deco
def f(x, y={"a", "b", "c"}, *, z=frozenset("abc")):
    '''What it does.'''
    if x in {"one", "two", "three"}:
        return [Point(i).far() for i in range(3)], Colour.RED
    return other(x), NAMES, FROZEN, TABLE, ARRAY.sum(), PATTERN, K, math.pi, missing, (lambda: x), z
"""

SHOW = """
import sys
from ipytaskfarm.serialization.digests import Digester
from ipytaskfarm.serialization.pack import pack_function
source, name, lines = sys.argv[1:]
names = {"__name__": "__main__"}
exec(compile("\\n" * int(lines) + source, name, "exec"), names)
print(Digester().digest(names["f"]), Digester().digest(names["Point"]), pack_function(names["f"]).digest)
"""


def digest_elsewhere(folder: Path, seed: int, name: str, lines: int) -> str:
    environment = {**os.environ, "PYTHONPATH": str(Path(ipytaskfarm.__file__).parents[1]), "PYTHONHASHSEED": str(seed)}
    command = [sys.executable, "-W", "error", "-c", SHOW, SOURCE, name, str(lines)]
    return subprocess.run(command, capture_output=True, text=True, check=True, cwd=folder, env=environment).stdout


def test_the_same_cell_has_the_same_digest_in_another_kernel(tmp_path: Path) -> None:
    found = {digest_elsewhere(tmp_path, seed, f"<cell {seed}>", seed * 3).rpartition(" ")[0] for seed in (1, 2, 3)}
    here = cell(SOURCE)
    found.add(f"{Digester().digest(here['f'])} {Digester().digest(here['Point'])}")
    assert len(found) == 1


def test_a_function_that_moved_is_sent_anew(tmp_path: Path) -> None:
    """Its errors name the lines where it is now.  A notebook's cell is the same after a restart of the kernel."""
    first, again, below, restarted, other = (
        digest_elsewhere(tmp_path, seed, f"/tmp/ipykernel_{kernel}/{text}.py", lines)
        for seed, (kernel, text, lines) in enumerate([(1, 5, 0), (1, 5, 0), (1, 5, 2), (2, 5, 0), (1, 6, 0)])
    )
    assert first == again == restarted
    assert len({first, below, other}) == 3


def cell(source: str, names: dict[str, Any] | None = None) -> dict[str, Any]:
    names = {"__name__": "__main__"} if names is None else names
    exec(compile(textwrap.dedent(source), f"<cell {len(source)}>", "exec", dont_inherit=True), names)
    return names


def digest(source: str) -> str:
    return Digester().digest(cell(source)["f"])


BASE = "K = 1\ndef g(x): return x\ndef f(x, y=2): return g(x) + K"


@pytest.mark.parametrize(
    "source",
    [
        "\n\n\n" + BASE,
        "# a comment\n" + BASE,
        BASE.replace("return g(x) + K", "\n    # why\n    return g(x) + K"),
        "unused = 5\n" + BASE,
        BASE.replace("K = 1\n", "").replace("def f", "K = 1\ndef f"),
    ],
)
def test_what_makes_no_difference(source: str) -> None:
    assert digest(source) == digest(BASE)


@pytest.mark.parametrize(
    "source",
    [
        BASE.replace("K = 1", "K = 1.0"),
        BASE.replace("K = 1", "K = True"),
        BASE.replace("K = 1", "K = '1'"),
        BASE.replace("K = 1", "K = [1]"),
        BASE.replace("K = 1\n", ""),
        BASE.replace("y=2", "y=3"),
        BASE.replace("def g(x): return x", "def g(x): return -x"),
        BASE.replace("def g(x): return x", "def g(x, y=1): return x"),
        BASE.replace("def g(x): return x", "g = abs"),
        BASE.replace("def g(x): return x", "g = lambda x: x"),
        BASE.replace("+ K", "- K"),
        BASE.replace("y=2", "*, y=2"),
        BASE + "\nf.mark = 1",
        BASE + "\nf.__doc__ = 'other'",
    ],
)
def test_what_makes_a_difference(source: str) -> None:
    assert digest(source) != digest(BASE)


@pytest.mark.parametrize(
    ("one", "two"),
    [
        ("class C:\n    def m(self): return 1", "class C:\n    def m(self): return 2"),
        ("class C:\n    n = 1", "class C:\n    n = 2"),
        ("class C: pass", "class C(int): pass"),
        ("class C:\n    __slots__ = ()", "class C: pass"),
        ("import enum\nclass C(enum.Enum):\n    A = 1", "import enum\nclass C(enum.Enum):\n    A = 2"),
        ("import enum\nclass C(enum.Enum):\n    A = 1", "import enum\nclass C(enum.Enum):\n    B = 1"),
        ("import math as C", "import cmath as C"),
        ("C = 0.0", "C = -0.0"),
        ("C = (1, (2, 3))", "C = ((1, 2), 3)"),
        ("C = ['ab', 'c']", "C = ['a', 'bc']"),
        ("import numpy\nC = numpy.zeros(2)", "import numpy\nC = numpy.zeros(2, dtype=int)"),
    ],
)
def test_used_globals_make_a_difference(one: str, two: str) -> None:
    use = "\ndef f(): return C"
    assert digest(one + use) != digest(two + use)
    assert digest(one + use) == digest(one + use)


def test_identity_counts_only_where_a_change_would_be_seen() -> None:
    shared = ("a", 1)
    assert Digester().digest([shared, shared]) == Digester().digest([("a", 1), ("a", int("1"))])
    row = [1, 2]
    assert Digester().digest([row, row]) != Digester().digest([[1, 2], [1, 2]])
    assert Digester().digest([row, row]) == Digester().digest([[1, 2]] * 2)
    loop: list[Any] = []
    loop.append(loop)
    assert Digester().digest(loop) == Digester().digest(loop)


# --------------------------------------------------------------------------------------------------
# When a pack is used again


def test_a_pack_is_used_again_while_nothing_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    # Sets and arrays can change unseen, so what stands on them is looked through each time.
    names = cell(SOURCE.replace("NAMES, FROZEN, TABLE, ARRAY.sum()", "FROZEN").replace('{"a", "b", "c"}', '("a", "b")'))
    made = pack_function(names["f"])
    monkeypatch.setattr(cache, "Digester", None)  # whoever looks through it again, fails
    for _ in range(3):
        assert pack_function(names["f"]) is made


CHANGES = [
    ("K = 1\ndef f(): return K", "K = 2"),
    ("K = [1]\ndef f(): return K", "K.append(2)"),
    ("K = {'a': [1]}\ndef f(): return K", "K['a'][0] = 2"),
    ("K = list(range(1000))\ndef f(): return K", "K[500] = -1"),
    ("K = {1}\ndef f(): return K", "K.add(2)"),
    ("import numpy\nK = numpy.zeros(3)\ndef f(): return K.tolist()", "K[1] = 1"),
    ("def g(): return 1\ndef f(): return g()", "def g(): return 2"),
    ("def h(): return 1\ndef g(): return h()\ndef f(): return g()", "def h(): return 2"),
    ("def g(): return 1\ndef f(): return g()", "g.__code__ = (lambda: 2).__code__"),
    ("def f(x=1): return x", "f.__defaults__ = (2,)"),
    ("def f(*, x=1): return x", "f.__kwdefaults__['x'] = 2"),
    ("def f(x=[1]): return x", "f()[0] = 2"),
    ("def f(): return f.mark\nf.mark = 1", "f.mark = 2"),
    (
        "def o():\n n = 1\n def s():\n  nonlocal n\n  n += 1\n def f(): return n\n return f, s\nf, s = o()",
        "s()",
    ),
    ("class C:\n    n = 1\ndef f(): return C.n", "C.n = 2"),
    ("class C:\n    def m(self): return 1\ndef f(): return C().m()", "C.m = lambda self: 2"),
    ("class B:\n    n = 1\nclass C(B): pass\ndef f(): return C.n", "B.n = 2"),
    ("class C:\n    n = [1]\ndef f(): return C.n", "C.n.append(2)"),
    ("class C:\n    a = 1\ndef f(): return sorted(vars(C))[-1]", "C.b = C.a; del C.a"),
    ("class C: pass\nc = C()\nc.n = 1\ndef f(): return c.n", "c.n = 2"),
    ("K = 1\nclass C:\n    @property\n    def n(self): return K\ndef f(): return C().n", "K = 2"),
    ("def f(): return sorted('ab')", "sorted = lambda x: 2"),
    ("import functools\ndef g(x): return x\nf = functools.partial(g, [1])", "f.args[0].append(2)"),
    ("import functools\nK = 1\ndef g(): return K\nf = functools.partial(g)", "K = 2"),
    ("import functools\ng = functools.partial(int)\ndef f(): return getattr(g, 'k', 0)", "g.k = 1"),
    ("import functools\ng = functools.partial(int)\ng.k = [1]\ndef f(): return g.k", "g.k.append(2)"),
    ("import functools\nK = 1\n@functools.lru_cache\ndef f(): return K", "K = 2; f.cache_clear()"),
    ("import functools\n@functools.lru_cache\ndef g(): pass\ng.k = 1\ndef f(): return g.k", "g.k = 2"),
    ("import functools\n@functools.lru_cache\ndef g(): pass\ndef f(): return hasattr(g, 'k')", "g.k = 2"),
    ("import functools\n@functools.lru_cache\ndef g(): pass\ng.k = [1]\ndef f(): return g.k", "g.k.append(2)"),
    ("import functools\n@functools.singledispatch\ndef g(x): pass\ng.k = 1\ndef f(): return g.k", "g.k = 2"),
    ("class C:\n    n = 1\n    def m(self): return self.n\nc = C()\nf = c.m", "c.n = 2"),
    ("class C:\n    n = 1\n    def __call__(self): return self.n\nf = C()", "f.n = 2"),
    (
        "import dataclasses as d\nT = [1]\nn = d.field(default_factory=lambda: T[0])\nf = lambda: n.default_factory()",
        "T[0] = 2",
    ),
    (
        "import dataclasses as d\nclass V: n = 1\n@d.dataclass\nclass C:\n    n: V = V()\ndef f(): return C().n.n",
        "V.n = 2",
    ),
    ("import dataclasses as d\nT = {'u': 1}\nn = d.field(metadata=T)\ndef f(): return n.metadata['u']", "T['u'] = 2"),
    (
        "import dataclasses as d\nclass V: pass\nv = V()\nv.n = 1\nn = d.field(default=v)\ndef f(): return n.default.n",
        "v.n = 2",
    ),
    (
        "import typing as t\nT = t.TypeVar('T')\nclass C(t.Generic[T]):\n    n = [1]\nA = C[int]\ndef f(): return A.n",
        "C.n.append(2)",
    ),
    ("import enum\nclass E(enum.Enum):\n    A = 1\nE.n = [1]\na = E.A\ndef f(): return a.n", "E.n.append(2)"),
    ("def g(): pass\ndef f(): return g.__doc__", "g.__doc__ = 'new'"),
    ("def g(): pass\ndef f(): return g.__module__", "g.__module__ = 'new'"),
    (
        "import dataclasses\n@dataclasses.dataclass\nclass C:\n    n: int = 1\ndef f(): return C()",
        "C.__init__.__defaults__ = (2,)",
    ),
]


@pytest.mark.parametrize(("source", "change"), CHANGES)
def test_a_change_is_never_missed(source: str, change: str) -> None:
    names = cell(source)
    before = [pack_function(names["f"]) for _ in range(3)]
    assert len({each.digest for each in before}) == 1
    old = repr(unpack_function(before[0].code, {})())
    cell(change, names)
    after = pack_function(names["f"])
    assert after.digest != before[0].digest
    assert repr(unpack_function(after.code, {})()) == repr(names["f"]())
    assert repr(unpack_function(after.code, {})()) != old


def test_data_holds_the_class_as_it_is_now() -> None:
    names = cell("class C:\n    n = 1\nc = C()")
    first = pack(names["c"])
    assert pack(names["c"]) == first
    cell("C.n = 2", names)
    assert pack(names["c"]) != first
    assert type(unpack(first)) is names["C"]


def test_old_functions_and_classes_are_let_go() -> None:
    names = cell("class C:\n    def m(self): return f\nTABLE = {}\ndef f(x):\n    return f, C, TABLE\n")
    pack_function(names["f"])
    pack(names["C"]())
    gone = [weakref.ref(names["f"]), weakref.ref(names["C"])]
    names.clear()
    gc.collect()
    assert [each() for each in gone] == [None, None]


def test_bound_methods_are_looked_through_each_time() -> None:
    names = cell("class C:\n    def m(self): return self.n\nc = C()")
    found = set()
    for value in range(3):
        names["c"].n = value
        found.add(pack_function(names["c"].m).digest)
    assert len(found) == 3


@pytest.mark.filterwarnings("ignore:The inplace keyword")
def test_a_mutated_array_or_frame_is_always_seen() -> None:
    names = cell("""
        import functools
        import numpy as np, pandas as pd
        array = np.arange(20_000.0)
        view = array[::2]
        df = pd.DataFrame({"a": np.arange(20_000), "b": 1.5, "c": "x", "k": pd.Categorical(["u", "v"] * 10_000)})
        series = pd.Series(["p", "q"])
        rows = [[i] for i in range(10_000)]
        table = {i: [i] for i in range(10_000)}
        several = set(range(100))
        def f(): return array, df, series, rows, table, several
        @functools.lru_cache
        def cached(): return array, rows
    """)
    seen = set()
    changes = [
        "view[3] = 7",
        "array.flags.writeable = False; array.flags.writeable = True; array[1] = 5",
        "df.loc[5, 'a'] = -1",
        "df.iloc[6, 1] = 2.5",
        "df['d'] = 5",
        "df.rename(columns={'d': 'e'}, inplace=True)",
        "df.sort_values('a', inplace=True)",
        "df['a'].array[7] = 99",
        "df.loc[3, 'c'] = 'y'",
        "df.loc[3, 'k'] = 'v' if df.loc[3, 'k'] == 'u' else 'u'",
        "df.index.name = 'i'",
        "df.attrs['n'] = 1",
        "series.array[0] = 'z'",
        "series[1] = 'w'",
        "rows[9_000].append(1)",
        "table[9_000].append(1)",
        "several.add('x')",
    ]
    for number, change in enumerate(["", *changes]):
        cell(change, names)
        seen.add(pack_function(names["f"]).digest)
        assert pack_function(names["f"]).digest in seen
        assert len(seen) == number + 1, change
    before = pack_function(names["cached"]).digest
    names["rows"].append(5)
    after = pack_function(names["cached"]).digest
    names["array"][0] = 5
    assert len({before, after, pack_function(names["cached"]).digest}) == 3


def test_a_method_of_an_array_sees_its_array_change() -> None:
    names = cell("import numpy as np\narray = np.arange(5)\ntotal = array.sum\ndef f(): return total()")
    before = pack_function(names["f"]).digest
    names["array"][0] = 5
    after = pack_function(names["f"])
    assert after.digest != before
    assert unpack_function(after.code, {})() == 15


@pytest.mark.parametrize(
    "source",
    [
        "VALUE = [str(i) for i in range(1000)]",
        "VALUE = {str(i): (i, 2.5) for i in range(1000)}",
        "VALUE = frozenset(str(i) for i in range(1000))",
        "VALUE = [(i, [str(i), None]) for i in range(1000)]",
    ],
)
def test_large_containers_of_plain_things_have_stable_digests(source: str) -> None:
    found = digest(f"{source}\ndef f(): return VALUE")
    assert digest(f"{source}\ndef f(): return VALUE") == found
    changed = f"{source}\nVALUE = type(VALUE)([*VALUE][:-1]) if not isinstance(VALUE, dict) else {{**VALUE, '5': 6}}"
    assert digest(f"{changed}\ndef f(): return VALUE") != found


def test_arrays_of_equal_bytes_and_other_types_differ() -> None:
    sources = [f"import numpy as np\nV = [np.zeros(2, {kind!r})] * 100\ndef f(): return V" for kind in ("i8", "f8")]
    assert digest(sources[0]) != digest(sources[1])


def test_what_has_no_digest_is_known_by_its_pickle() -> None:
    names = cell("""
        class Untold:
            calls = 0
            def __reduce_ex__(self, protocol):
                Untold.calls += 1
                if Untold.calls == 2: raise ValueError("not twice")  # the walk for the digest comes second
                return int, (5,)
        value = Untold()
        def f(): return value
    """)
    made = pack_function(names["f"])
    assert unpack_function(made.code, {})() == 5


def test_a_deep_global_travels() -> None:
    names = cell("deep = []\nfor _ in range(300): deep = [deep]\ndef f(): return deep")
    assert repr(unpack_function(pack_function(names["f"]).code, {})()).count("[") == 301


def test_a_second_pack_does_not_digest_the_frame_again(monkeypatch: pytest.MonkeyPatch) -> None:
    names = cell("import numpy as np, pandas as pd\ndf = pd.DataFrame(np.ones((2000, 9)))\ndef f(): return df")
    made = pack_function(names["f"])
    monkeypatch.setattr(cache, "Digester", None)
    assert pack_function(names["f"]) is made


SHARING = {
    "two globals": "def f():\n    a.append(1)\n    return b",
    "a helper's global": "def g(): return b\ndef f():\n    a.append(1)\n    return g()",
    "a cell": "def make(c):\n    def f():\n        c.append(1)\n        return b\n    return f\nf = make(a)",
    "a default": "def f(x=a):\n    x.append(1)\n    return b",
    "a class": "class Rows:\n    rows = a\ndef f():\n    Rows.rows.append(1)\n    return b",
    "within a global": "c = (a, 1)\ndef f():\n    c[0].append(1)\n    return b",
}


@pytest.mark.parametrize("uses", SHARING.values(), ids=SHARING)
def test_one_object_under_two_names_is_not_two_equal_ones(uses: str) -> None:
    """A change of it is seen under both: what a cached call returns may differ."""

    def key(first: str) -> str:
        return recipe_of(cell(f"{first}\n{uses}")["f"]).packed.digest

    assert key("a = b = [0]") != key("a, b = [0], [0]")
    assert key("a = b = [0]") == key("b = a = [0]")
    assert key("a, b = [0], [0]") == key("b, a = [0], [0]")


def test_an_object_that_two_functions_use_is_one_part() -> None:
    """So a result that was kept is found although a helper uses the same global."""
    names = cell("rows = [0]\ndef g(): return rows\ndef f(): return rows + g()")
    parts = msgspec.json.decode(recipe_of(names["f"]).packed.code)
    assert str(parts).count("'rows'") == 1


SESSIONS = """
from ipytaskfarm import TaskEnvironment
seen = []
class Counter:
    n = 0
    def step(self):
        self.n += 1
        return self.n
class Loaded(TaskEnvironment):
    def setup(self):
        self.weights = {"a": 1}
        seen.append(1)
"""


def test_an_environment_is_the_same_in_each_session_and_a_counter_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """Engines keep an environment for tasks of other sessions, and nothing that an earlier session has counted."""
    names: dict[str, Any] = {"__name__": "__main__"}
    exec(SESSIONS, names)

    def digests() -> tuple[str, str]:
        return pack_environment(names["Loaded"]())[0].digest, pack_function(names["Counter"]().step).digest

    environment, counter = digests()
    assert digests() == (environment, counter)
    monkeypatch.setattr(cache, "_SESSION", "another one")
    later_environment, later_counter = digests()
    assert later_environment == environment
    assert later_counter != counter


def test_a_function_and_its_digest_are_of_one_look_at_the_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An edit between them would give a new digest to old code."""
    monkeypatch.syspath_prepend(tmp_path)
    file = tmp_path / "one_look.py"
    file.write_text("V = 1\n")
    names: dict[str, Any] = {"__name__": "__main__"}
    exec("import one_look\ndef made(n): return lambda: one_look.V + n", names)
    pack_function(names["made"](0))
    looks: list[str] = []
    unchanged = module_bundles._unchanged

    def edited_after_the_look(bundle: module_bundles.Bundle) -> bool:
        looks.append(bundle.name)
        is_unchanged = unchanged(bundle)
        file.write_text("V = 2  # edited\n")
        return is_unchanged

    monkeypatch.setattr(module_bundles, "_unchanged", edited_after_the_look)
    old, new = pack_function(names["made"](1)), pack_function(names["made"](1))
    assert looks == ["one_look"] * 2
    assert b"V = 2" in zlib.decompress(module_bundles.bundle_of("one_look").packed)
    assert old.digest != new.digest
    assert old.code != new.code
