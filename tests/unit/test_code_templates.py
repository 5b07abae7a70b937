"""Code from templates is the code that the compiler makes."""

from __future__ import annotations

import sys
import warnings
from types import CodeType
from typing import Any

import pytest
from IPython.core.interactiveshell import InteractiveShell
from traitlets.config import Config

from ipytaskfarm.engine.plain import Plain, PlainTest, Templates, filename_of

FILLED = (
    "a = {}", "f({}, {})", "x = g({}); y = {}", "a = b + {}\nc = [n for n in rows][{}]", "run({}, 'run', 1.5)",
    "print(k, {})", "a, b = {}, k", "for n in range({}):\n    total += n", "a = {} if k else {}", "k or f({})",
    "match k:\n    case {}:\n        a = 1\n", "a = k ** {}", "a = {}\nb = {}\nc = {}", "d = {{'n': {}}}", "k == {}",
    "x = {}; f = lambda: x", "a = sum(n * m for n in range({}))", "def f(n):\n    return lambda: n\na = f({})",
)  # fmt: skip
SMALL = ("match k:\n    case {}:\n        a = 1\n", "a = {}\nb = {}\nc = {}")
"""With numbers below 256, which since Python 3.14 are no constants but parts of instructions."""
COMPILED = (
    "a = -{}", "a = {} * 60", "a = ({}, 2)", "a = '{}'", "f = lambda: {}", "if {}:\n    a = 1\nelse:\n    a = 2\n",
    "a = k if {} else 0", "a = not {}", "a = 1 + {}", "while {}:\n    break", "def f(n={}):\n    return n", "a = f'{}'",
    "a = '%d' '{}'", "a = {}.5", "a = 0x{}", "a = b{}", "a = {}_0", "# {}\na = k",
    "assert {}",
)  # fmt: skip
"""Numbers that the compiler changes, or that are none."""
NUMBERS = (1000, 2000, 3141, 9999, 1001, 5, 7, 0, 1, 42, 255, 256, 257, 100, 123456789012345, 12345678901234567, 77)


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> InteractiveShell:
    return InteractiveShell(
        ipython_dir=str(tmp_path_factory.mktemp("ipython")), config=Config({"HistoryManager": {"enabled": False}})
    )


@pytest.fixture(scope="module")
def usual(shell: InteractiveShell) -> PlainTest:
    return PlainTest(shell)


def constants(plain: Plain) -> list[tuple[type, object]]:
    parts = [part for part in plain[:2] if part is not None]
    return [(type(value), value) for part in parts for value in part.co_consts]


def assert_same(code: CodeType, other: CodeType, filename: str) -> None:
    assert code.co_filename == other.co_filename == filename
    assert list(code.co_positions()) == list(other.co_positions())
    inner = [[each for each in both.co_consts if isinstance(each, CodeType)] for both in (code, other)]
    for each, of_other in zip(*inner, strict=True):
        assert_same(each, of_other, filename)


@pytest.mark.parametrize("text", FILLED + COMPILED)
def test_code_is_as_if_compiled(usual: PlainTest, text: str) -> None:
    templates = Templates(usual._compile, filename_of)
    made = 0
    for _ in range(3):
        for at, number in enumerate(NUMBERS):
            code = text.format(number, NUMBERS[at - 5], NUMBERS[at - 9], k="{k}")
            found, from_template = templates.compile(code)
            expected = usual._compile(code)
            assert found is not None
            assert expected is not None
            made += from_template
            assert found == expected
            assert constants(found) == constants(expected)
            for part, other in zip(found[:2], expected[:2], strict=True):
                assert (part is None) == (other is None)
                if part is not None and other is not None:
                    assert_same(part, other, filename_of(code))
    assert bool(made) == (text in FILLED and not (sys.version_info >= (3, 14) and text in SMALL)), (
        f"{made} of templates"
    )


def test_what_the_compiler_warns_of_is_compiled_each_time(usual: PlainTest) -> None:
    templates = Templates(usual._compile, filename_of)
    for number in range(100, 110):
        with pytest.warns(SyntaxWarning, match=r'"is" with .* literal'):
            assert templates.compile(f"a is {number}")[1] is False


def test_numbers_that_are_equal_stay_one_object(usual: PlainTest) -> None:
    templates = Templates(usual._compile, filename_of)
    for number in range(1000, 1010):
        names: dict[str, object] = {}
        plain, _ = templates.compile(f"a = {number}\nb = {number}")
        assert plain is not None
        assert plain.body is not None
        exec(plain.body, names)
        assert names["a"] is names["b"]


def test_templates_are_bounded(usual: PlainTest) -> None:
    templates = Templates(usual._compile, filename_of)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for at in range(1000):
            for number in (1, 2, 3):
                templates.compile(f"name_{at:04d} = {number}")
    assert len(templates._known) + len(templates._seen) <= 256


def test_a_future_statement_counts_for_code_of_the_same_shape(shell: InteractiveShell) -> None:
    test = PlainTest(shell)
    for number in range(10, 20):
        names: dict[str, object] = {}
        if number == 15:
            shell.compile.flags |= __import__("__future__").annotations.compiler_flag
        plain = test.compile(f"n: undefined = {number}" if number >= 15 else f"n: int = {number}")
        assert plain is not None
        assert plain.body is not None
        exec(plain.body, names)
        evaluate: Any = names.get("__annotate__")  # since Python 3.14
        annotations = names["__annotations__"] if evaluate is None else evaluate(1)
        assert annotations == ({"n": int} if number < 15 else {"n": "undefined"})
