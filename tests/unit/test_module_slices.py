"""Cutting of sources into definitions: which code counts as equal."""

from __future__ import annotations

import ast

import pytest

from ipytaskfarm.serialization.module_slices import _look, _parsed

DIFFERENT = [
    "x={None: v}", "x={**v}", "x={None: v, **w}", "x={**v, None: w}", "x=[1,[2]]", "x=[[1],2]", "x=[1,2]", "x=(1,2)",
    "x={1,2}", "x=f(a,b)", "x=f(a)(b)", "x=f(a,*b)", "x=f(a,b=b)", "x=a.b", "x=a['b']", "x=1", "x=True", "x=1.0",
    "x='1'", "x=b'1'", "x=-1", "x=1j", "def f(): pass", "def f():\n 'doc'", "def f(a): pass", "def f(*,a): pass",
    "def f(a,/): pass", "def f(*a): pass", "def f(**a): pass", "def f(a=1): pass", "def f(a:1): pass",
    "async def f(): pass", "class f: pass", "def f():\n global a, b", "def f():\n nonlocal a, b",
    "def f():\n global a\n global b", "x=lambda: 1", "x=a if b else c", "x=a and b and c", "x=(a and b) and c",
    "x=a<b<c", "x=(a<b)<c", "x=f'{a}b'", "x=f'{a!r}'", "x=f'{a:b}'", "x=[a for b in c if d]",
    "x=[a for b in c if d if e]", "x=[a for b in c for d in e]", "x=a[1:2]", "x=a[1:]", "x=a[:2]", "x=a[::2]",
    "def f():\n return", "def f():\n return None", "def f():\n 1\n return", "x: int", "x: int = 1", "x: 1 = int",
    "import a", "import a as b", "from a import b", "from .a import b", "from . import b", "from .. import b",
    "try:\n a\nexcept b:\n c", "try:\n a\nexcept b as c:\n d", "try:\n a\nfinally:\n b", "if a:\n b\nelse:\n c",
    "if a:\n b\n c", "x=a@b", "x=a*b", "x=u'1'", "match a:\n case {'b': c, **d}: pass",
    "match a:\n case [b, *_]: pass", "match a:\n case None: pass", "match a:\n case _: pass",
    "match a:\n case b: pass", "match a:\n case b.c: pass", "match a:\n case b(): pass",
    "match a:\n case b(c=1): pass", "match a:\n case 1|2: pass",
]  # fmt: skip
EQUAL = [
    ("def f(): pass", "def f():\n    'A text.'\n    pass  # here"),
    ("async def f(x):\n  return  x", "async def f(x):\n\n    return (x)"),
    ("class A:\n    'Old.'\n    x = 1", "class A:\n    'New.'\n    x = 1"),
    ("x = {'a': 1, **b}", 'x = {\n    "a": 1,\n    **b,\n}'),
]


def text(code: str) -> str:
    return _look(ast.parse(code).body[0]).text


def test_different_statements_have_different_texts() -> None:
    found: dict[str, str] = {}
    for code in DIFFERENT:
        assert text(code) not in found, (code, found[text(code)])
        found[text(code)] = code


@pytest.mark.parametrize(("one", "other"), EQUAL)
def test_equal_statements_have_equal_texts(one: str, other: str) -> None:
    assert text(one) == text(other)


def test_what_a_source_consists_of() -> None:
    found = _parsed(
        b"import a.b as c\nfrom .d import e\nfrom f import *\nX = 1\nY: int = g()\n"
        b"def h():\n    import i\n    return X + c.k\n@l\ndef m(): pass\n"
        b"if __name__ == '__main__': n()\n"
    )
    assert set(found.definitions) == {"c", "e", "X", "h"}
    assert found.definitions["h"][0].uses == {"i", "X", "c", "k"}
    assert found.effects.uses >= {"g", "l"}
    assert "n" not in found.effects.uses, "what a script does when it is run is no effect of an import"
    assert (found.imports["c"], found.imports["e"], found.imports["i"], found.stars) == (
        ("a.b",), (".d.e",), ("i",), ("f",),
    )  # fmt: skip
