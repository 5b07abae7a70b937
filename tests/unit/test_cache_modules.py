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
