"""Which changes of what a function reaches give its calls another key: parts of one name and one content."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from .test_cache_keys import key_of

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
