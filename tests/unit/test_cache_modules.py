"""Which parts of a module count for the key of a cached call.

These texts stand apart: `test_cache_keys` has functions that travel, and with them would travel all that a module with
such imports in it may import.
"""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path

import pytest

from ipytaskfarm.serialization.module_origin import file_travels

from .test_cache_keys import key_of

PASSED_ON = {
    "to a function": "def run(m): return m.V\ndef f(x): return run(held)",
    "under another name": "other = held\ndef f(x): return other.V",
    "a local name": "def f(x):\n    m = held\n    return m.V",
    "imported here": "def run(m): return m.V\ndef f(x):\n    import held as h\n    return run(h)",
    "in a list": "L = [held]\ndef f(x): return L[0].V",
    "in a closure": "def outer():\n    import held as h\n    return lambda x: h.V\nf = outer()",
    "in a default": "def f(x, m=held): return m.V",
    "in a class": "class A:\n    m = held\n    def v(self): return self.m.V\ndef f(x): return A().v()",
    "in a partial": "import functools\nf = functools.partial(lambda m, x: m.V, held)",
    "by a call": "import importlib\ndef run(m): return m.V\ndef f(x): return run(importlib.import_module('held'))",
    "in a module": "import holder\ndef f(x): return holder.passes()",
    "an alias in a module": "import holder\ndef f(x): return holder.renamed()",
    "a call in a module": "import holder\ndef f(x): return holder.calls()",
}
HOLDER = """
import held
from importlib import import_module as load
alias, NAME = held, "held"
def run(m): return m.V
def passes(): return run(held)
def renamed(): return alias.V
def calls(): return load(NAME).V
"""


@pytest.mark.parametrize("name", PASSED_ON)
def test_a_module_that_is_passed_on_counts_with_all_that_is_in_it(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "holder.py").write_text(HOLDER)
    keys = []
    for value in (1, 2):
        (tmp_path / "held.py").write_text(f"V = {value}\n")
        os.utime(tmp_path / "held.py", ns=(value, value))
        for module in ("held", "holder"):
            sys.modules.pop(module, None)
        importlib.invalidate_caches()
        keys.append(key_of(f"import held\n{PASSED_ON[name]}", 1))
    assert keys[0] != keys[1]


def test_definitions_that_are_not_used_of_a_module_do_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    keys = []
    for value in (1, 2):
        (tmp_path / "held.py").write_text(f"V = 1\nOTHER = {value}\n")
        os.utime(tmp_path / "held.py", ns=(value, value))
        sys.modules.pop("held", None)
        importlib.invalidate_caches()
        keys.append(key_of("import held\nfrom held import V\ndef f(x): return held.V + V", 1))
    assert keys[0] == keys[1]


def test_modules_under_computed_names_are_warned_of() -> None:
    with pytest.warns(UserWarning, match=r"modules under computed names \(importlib.import_module\).*import them by"):
        key_of("import importlib\ndef f(x): return importlib.import_module(str(x)).V", "json")


EFFECTS = {
    "a call in a class": ("class A:\n    L.append(1)\n", "(1)", "(2)"),
    "a class in a class": ("class A:\n    class B:\n        L.append(1)\n", "(1)", "(2)"),
    "an item that a class sets": ("D = {}\nclass A:\n    D['a'] = 1\ndef f(x): return D\n", "1", "2"),
    "a list that a class extends": ("class A:\n    L += [1]\n", "[1]", "[2]"),
    "a global that a class sets": ("class A:\n    global V\n    V = 1\ndef f(x): return V\n", "1", "2"),
    "a decorator in a class": (
        "def keep(g):\n    L.append(g)\nclass A:\n    @keep\n    def g(): return 1\n", "return 1", "return 2",
    ),
    "__set_name__": (
        "class A:\n    def __init__(self, v): self.v = v\n    def __set_name__(self, owner, name): L.append(self.v)\n"
        "class B:\n    a = A('int')\n",
        "'int'", "'str'",
    ),
    "a default": ("def add(v): L.append(v)\ndef g(i=add(1)): pass\n", "(1)", "(2)"),
    "an annotation": ("def add(v): L.append(v)\ndef g(i: add(1)): pass\n", "(1)", "(2)"),
    "what is returned": ("def add(v): L.append(v)\ndef g() -> add(1): pass\n", "(1)", "(2)"),
    "globals at the import": (
        "def c_a(): return 1\nC = [g for n, g in list(globals().items()) if n[:2] == 'c_']\n"
        "def f(x): return [g() for g in C]\n",
        "return 1", "return 2",
    ),
    "names at the import": ("c_a = 1\nfor n in dir():\n    L.append(locals()[n])\n", "c_a = 1", "c_a = 2"),
    "members": (
        "import inspect, sys\ndef c_a(): return 1\n"
        "def f(x): return [g() for n, g in inspect.getmembers(sys.modules[__name__]) if n[:2] == 'c_']\n",
        "return 1", "return 2",
    ),
    "the names of a module": (
        "import sys\ndef c_a(): return 1\n"
        "def f(x): return [n for n in dir(sys.modules[__name__])]\n",
        "c_a", "c_b",
    ),
}  # fmt: skip


def keys_of_module(
    before: str, after: str, folder: Path, code: str = "import held\ndef f(x): return held.f(x)"
) -> list[str]:
    """Return the keys of a function that uses a module, before and after an edit of it and its import anew."""
    keys = []
    for number, text in enumerate((before, after), 1):
        (folder / "held.py").write_text(text)
        os.utime(folder / "held.py", ns=(number, number))
        for module in [each for each in sys.modules if each.partition(".")[0] in ("held", "steps")]:
            del sys.modules[module]
        importlib.invalidate_caches()
        keys.append(key_of(code, 1))
    return keys


@pytest.mark.parametrize("name", EFFECTS)
def test_what_acts_when_a_module_is_imported_counts(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    text, before, after = EFFECTS[name]
    assert before in text
    text = f"L = []\ndef f(x): return L\n{text}"
    first, second = keys_of_module(text, text.replace(before, after), tmp_path)
    assert first != second


def test_a_class_that_does_nothing_at_the_import_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    text = (
        "class A:\n    v = 1\n    @property\n    def p(self): return print(1)\n"
        "def g(x=1): print(1)\ndef f(x): return x\n"
    )
    first, second = keys_of_module(text, text.replace("1", "2"), tmp_path)
    assert first == second


@pytest.mark.parametrize("how", ["importlib.import_module('.' + m.name, __name__)", "__import__('steps.' + m.name)"])
def test_modules_that_a_package_imports_under_computed_names_count(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "steps").mkdir()
    (tmp_path / "steps" / "__init__.py").write_text(
        f"import importlib, pkgutil\nSTEPS = [{how} for m in pkgutil.iter_modules(__path__)]\ndef run(): return STEPS\n"
    )
    keys = []
    for number, step in enumerate(("return 1", "return 2", "return 2"), 1):
        (tmp_path / "steps" / "a.py").write_text(f"def step(): {step}\n")
        os.utime(tmp_path / "steps" / "a.py", ns=(number, number))
        if number == 3:
            (tmp_path / "steps" / "b.py").write_text("")
        for module in [each for each in sys.modules if each.partition(".")[0] == "steps"]:
            del sys.modules[module]
        importlib.invalidate_caches()
        keys.append(key_of("import steps\ndef f(x): return steps.run()", 1))
    assert len({*keys}) == 3


INSIDE = "def make():\n    def rate(): return K\n    return rate\nrate = make()\n"


@pytest.mark.parametrize(
    "text",
    [
        INSIDE,
        "def deco(g): return lambda: g()\n@deco\ndef rate(): return K\n",
        "rate = lambda: K\n",
        "def make():\n    class C:\n        def get(self): return K\n    return C\nC = make()\n"
        "def rate(): return C().get()\n",
        "def make():\n    def rate(): return globals()['K']\n    return rate\nrate = make()\n",
        "def g(): return K\ndef make():\n    def rate(): return g()\n    return rate\nrate = make()\n",
    ],
    ids=["a closure", "a decorated function", "a lambda", "a class", "globals", "through a function"],
)
def test_a_function_within_a_module_has_the_globals_of_the_source(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine gives it the module as its file is, also after an edit that this session did not import."""
    monkeypatch.syspath_prepend(tmp_path)
    code = "from held import rate\ndef f(x): return rate()"
    first, *_ = keys_of_module(f"K = 1\n{text}", f"K = 2\n{text}", tmp_path, code)
    edited = key_of(code, 1)
    (tmp_path / "held.py").write_text(f"K = 1\n{text}")  # the edit is taken back
    assert edited != first
    assert key_of(code, 1) == first
    sys.modules["held"].K = 5  # type: ignore[attr-defined]
    assert key_of(code, 1) == first


def test_a_function_within_a_module_that_uses_builtins_alone_does_not_bring_the_module(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    text = "print(end='')\ndef make():\n    def rate(): return sum([1])\n    return rate\nrate = make()\n"
    first, second = keys_of_module(
        text, f"print(end='')\n{text}", tmp_path, "from held import rate\ndef f(x): return rate()"
    )
    assert first == second


@pytest.mark.parametrize(("package", "travels"), [("ipytaskfarm", False), ("project", True)])
def test_the_modules_of_the_farm_itself_go_by_name(tmp_path: Path, package: str, travels: bool) -> None:
    (tmp_path / "pyproject.toml").touch()
    module = tmp_path / package / "engine.py"
    module.parent.mkdir()
    module.touch()
    assert file_travels(f"{package}.engine", str(module)) is travels
