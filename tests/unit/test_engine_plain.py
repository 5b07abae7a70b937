"""The short path is taken only where IPython would run the very same code.

Judged on a real engine, by IPython's own `transform_cell`: what the test calls plain must come out of it unchanged.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.fake_agent import FakeAgent, FakeEngine

JUDGE = """
from ipytaskfarm.engine.plain import PlainTest

def judge(cases):
    shell = get_ipython()
    test = PlainTest(shell)
    plain, unsafe = [], []
    for code in cases:
        if test.compile(code) is None:
            continue
        plain.append(code)
        transformed = shell.transform_cell(code)
        same = transformed.rstrip("\\n") == code.strip("\\n").rstrip()
        if not same or shell.should_run_async(code, transformed_cell=transformed):
            unsafe.append(code)
    return plain, unsafe
"""

PLAIN = [
    "a = 1",
    "a = 1; b = 2",
    "a",
    "a = 'x; y'",
    "i += 1; assert i == 16",
    "x = [1,\n     2]\n",
    "def f(x):\n    return x\n\nf(1)",
    "for i in range(3):\n    pass",
    "print('Loading... In [1]')",
    "import os; os.getpid()",
    "a = b % c",
    "x = '''\n%magic\n!cmd\n'''",
    "f(\na = 3)",
    "async def f(): await g()",
    "lambda: (yield)",
    "# nothing",
    "",
]
"""Must take the short path."""

OTHERS = [
    "%time x = 1",
    "%%time\nx = 1",
    "!ls",
    "x = !ls",
    "x = %pwd",
    "int?",
    "?int",
    "int??",
    "ls",
    "ls\n",
    "\n\nls",
    "ls -l",
    "pwd",
    "cd /",
    "who",
    "exit",
    "exit()",
    "quit()",
    "await f()",
    "x = await f()",
    "async with a: pass",
    "[x async for x in y]",
    "In [1]: x",
    "In [1]: x = 1\nIn [2]: y",
    ">>> x = 1",
    "...",
    "... x",
    "    a = 1",
    "  a = 1\n  b = 2",
    ",f a b",
    ";f a b",
    "/f a",
    "if x",
    "7 = 5",
    "from __future__ import annotations",
    "return 5",
    "a = (1,",
    "a = 1\n%time b = 2",
    "if True:\n    !ls",
    "print 'x'",
    "alias",
    "history",
    "%",
    "!",
    "\x00",
    "a = 1\x0cb",
    "x\n?",
    "run script.py",
    "run = 5",
    "time = 5",
    "edit = lambda: 1",
]
"""May or must go to IPython."""


@pytest.fixture(scope="module")
def engine() -> Iterator[FakeEngine]:
    agent = FakeAgent()
    engine = agent.start_engine()
    engine.run(JUDGE)
    yield engine
    agent.close()


def judge(engine: FakeEngine, cases: list[str], before: str = "pass") -> tuple[list[str], list[str]]:
    outcome = engine.run(f"{before}\nplain, unsafe = judge(cases)", "plain", "unsafe", push={"cases": cases})
    return outcome.value["plain"], outcome.value["unsafe"]


def test_plain_python_takes_the_short_path(engine: FakeEngine) -> None:
    plain, unsafe = judge(engine, PLAIN)
    assert [code for code in PLAIN if code not in plain] == []
    assert unsafe == []


def test_nothing_of_ipythons_does(engine: FakeEngine) -> None:
    plain, unsafe = judge(engine, OTHERS)
    assert unsafe == []
    assert plain == []


def test_statements_of_the_standard_library(engine: FakeEngine) -> None:
    """Each statement runs as a task, and all statements of a module run as one."""
    code = """
import ast, inspect, textwrap, json.decoder, heapq
cases = []
for module in (textwrap, json.decoder, heapq):
    source = inspect.getsource(module)
    cases.append(source)
    cases += [ast.get_source_segment(source, statement) for statement in ast.parse(source).body]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Assign, ast.Expr, ast.Return, ast.If, ast.For)):
            cases.append(textwrap.dedent(" " * node.col_offset + ast.get_source_segment(source, node)))
plain, unsafe = judge(cases)
total, fast = len(cases), len(plain)
"""
    found = engine.run(code, "total", "fast", "unsafe").value
    assert found["unsafe"] == []
    assert found["total"] > 300
    assert found["fast"] > 0.75 * found["total"]  # a return outside of a function does not compile


@pytest.mark.parametrize(
    "change",
    [
        "import ast; get_ipython().ast_transformers.append(ast.NodeTransformer())",
        "get_ipython().ast_transformers = [__import__('ast').NodeTransformer()]",
        "get_ipython().input_transformers_post.append(lambda lines: lines)",
        "get_ipython().input_transformer_manager.line_transforms.append(lambda lines: lines)",
        "get_ipython().events.register('pre_run_cell', lambda info: None)",
        "get_ipython().events.register('post_run_cell', lambda result: None)",
        "get_ipython().ast_node_interactivity = 'all'",
        "get_ipython().autocall = 1",
    ],
)
def test_what_the_user_registers_is_honoured(engine: FakeEngine, change: str) -> None:
    fresh = engine.agent.start_engine()
    fresh.run(change)
    assert fresh.run("import sys; deep = sys._getframe(3).f_code.co_name", "deep").value == {"deep": "run_ast_nodes"}
    assert engine.run("import sys; deep = sys._getframe(2).f_code.co_name", "deep").value == {"deep": "_guarded"}


def test_a_magics_name_that_is_bound_is_the_users(engine: FakeEngine) -> None:
    assert engine.run("ls", "ls", push={"ls": [1]}).value == {"ls": [1]}
    assert engine.run("ls", push={"ls": [1]}).body.outputs[0]["data"] == {"text/plain": "[1]"}
