"""What an ``except`` in the client sees of a task's exception, beside plain Python.

To extend the table, add a line to `CASES`: the body of a function that raises.  It is run here and in a task, and both
exceptions are compared: type, text, attributes, chain, notes, and what is printed of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import linecache
import textwrap
import traceback
from typing import Any

import msgspec
import pytest

from ipytaskfarm import MapTask, MultiEngineClient, Task, TaskClient
from ipytaskfarm.core.errors import CompositeError, RemoteError
from ipytaskfarm.core.messages.payload import FailureBody
from ipytaskfarm.serialization.pack import pack_error, unpack_error
from tests.support.farms import DEADLINE_S

CLASSES = """import asyncio, subprocess, threading, socket, json, dataclasses, sys, os
class Kw(ValueError):
    def __init__(self, *, field): super().__init__(field); self.field = field
class Two(Exception):
    def __init__(self, a, b): super().__init__(f"{a}-{b}"); self.a=a; self.b=b
class NoSuper(Exception):
    def __init__(self, a, b): self.a=a; self.b=b
class BadReduce(Exception):
    def __reduce__(self): raise RuntimeError("no")
class BadReduce2(Exception):
    def __reduce__(self): return int, ("x",)
class BadStr(Exception):
    def __str__(self): raise RuntimeError("no text")
class GetAttr(Exception):
    def __init__(self, x): self.inner = x
    def __getattr__(self, name): return getattr(self.inner2, name)
class Slots(Exception):
    __slots__ = ("code", "empty")
    def __init__(self, code): super().__init__(code); self.code = code
class NoneSlots(Exception):
    __slots__ = ("code", "detail", "__hidden", "empty")
    def __init__(self, code, detail=None):
        super().__init__(code); self.code = code; self.detail = detail; self.__hidden = None
    def __str__(self): return f"{self.code} {self.detail} {self.__hidden}"
class ChangedSlots(NoneSlots):
    __slots__ = ("count",)
    def __init__(self, code): super().__init__(code); self.count = 0
class OwnReduce(Exception):
    def __init__(self, a, b): super().__init__(f"{a}{b}"); self.a = a; self.b = b
    def __reduce__(self): return type(self), (self.a, self.b)
class OwnNote(OwnReduce):
    def __init__(self, a, b): super().__init__(a, b); self.add_note("of the class")
class FrozenReduce(OwnReduce):
    def __init__(self, a, b): super().__init__(a, b); self.add_note("of the class"); self.done = True
    def __setattr__(self, n, v):
        if "done" in self.__dict__: raise AttributeError("read only")
        super().__setattr__(n, v)
@dataclasses.dataclass(frozen=True)
class Frozen(Exception):
    x: int
    y: str = "y"
@dataclasses.dataclass
class Data(Exception):
    x: int
class Holds(Exception):
    def __init__(self, msg, **kw): super().__init__(msg); self.__dict__.update(kw)
class MyBase(BaseException): pass
class MyOS(OSError):
    def __init__(self, path): super().__init__(2, "gone", path); self.path = path
class New(Exception):
    def __new__(cls, a, b): self = super().__new__(cls, a); self.b = b; return self
    def __init__(self, a, b): super().__init__(a)
class Generic(Exception):
    code = 5
    def __init__(self, response): super().__init__(f"status {response['status']}"); self.response = response
class MyGroup(ExceptionGroup):
    def derive(self, e): return MyGroup(self.message, e)
class State(Exception):
    def __init__(self, a): super().__init__(a); self.a = a
    def __setstate__(self, s): raise RuntimeError("no state")
class Prop(Exception):
    @property
    def message(self): return "prop " + self.args[0]
class SetAttr(Exception):
    def __setattr__(self, n, v): raise AttributeError("read only")
class Enumish(Exception):
    def __eq__(self, o): raise RuntimeError("eq")
    __hash__ = None
def deep(n): return deep(n-1) if n else 1/0
"""

CASES = {
    "zero": "1/0",
    "key": "{}['k']",
    "cause": "try: 1/0\nexcept Exception as e: raise ValueError('v') from e",
    "context": "try: 1/0\nexcept Exception: raise ValueError('v')",
    "from none": "try: 1/0\nexcept Exception: raise ValueError('v') from None",
    "cause+ctx": "try: 1/0\nexcept Exception: raise ValueError('v') from KeyError('other')",
    "deep chain": "e0 = None\nfor i in range(20):\n    e = ValueError(i); e.__cause__ = e0; e0 = e\nraise e0",
    "notes": "e = ValueError('v'); e.add_note('n1'); e.add_note('n2')\nraise e",
    "cause notes": "e = KeyError('v'); e.add_note('n1')\nraise ValueError('x') from e",
    "group": "raise ExceptionGroup('g', [ValueError(1), KeyError('k')])",
    "group chain": (
        "def m(x):\n"
        "    try:\n"
        "        try: 1/0\n"
        "        except Exception as e: raise ValueError(x) from e\n"
        "    except Exception as e: e.add_note('note%s' % x); return e\n"
        "raise ExceptionGroup('g', [m(1), m(2), ExceptionGroup('h', [m(3)])])"
    ),
    "mygroup": "raise MyGroup('g', [ValueError(1)])",
    "basegroup": "raise BaseExceptionGroup('g', [KeyboardInterrupt('x'), ValueError(1)])",
    "cpe": "subprocess.run(['sh','-c','echo out; echo err >&2; exit 3'], check=True, capture_output=True)",
    "cpe large": "subprocess.run(['sh','-c','head -c 5000000 /dev/zero; exit 3'], check=True, capture_output=True)",
    "timeout": "raise subprocess.TimeoutExpired(['sleep', '5'], 0.05, output=b'so far')",
    "fnf": "open('/nowhere/x')",
    "perm": "raise PermissionError(13, 'denied', '/x')",
    "oserror2": "raise OSError(5, 'io', 'f1', None, 'f2')",
    "conn": "raise ConnectionRefusedError(111, 'refused')",
    "blocking": "raise BlockingIOError(11, 'again', 5)",
    "unicode dec": "b'\\xff\\xfe'.decode('utf-8')",
    "unicode enc": "'é'.encode('ascii')",
    "unicode big": "(b'a'*3000000+b'\\xff').decode()",
    "syntax": "compile('x = = 1', 'f.py', 'exec')",
    "syntax eval": "eval('1 +')",
    "attr": "object().nope",
    "name": "undefined_name",
    "import": "import not_a_module_x",
    "importfrom": "from os import nope_x",
    "stopiter": "raise StopIteration(5)",
    "stopasync": "raise StopAsyncIteration(5)",
    "mybase": "raise MyBase('b')",
    "mem": "raise MemoryError('m')",
    "recursion": "def r(): return r()\nr()",
    "assert": "assert 1 == 2, ('a', 3)",
    "kw": "raise Kw(field='a')",
    "two": "raise Two(1, 'b')",
    "nosuper": "raise NoSuper(1, 2)",
    "badreduce": "raise BadReduce('x')",
    "badreduce2": "raise BadReduce2('x')",
    "badstr": "raise BadStr('x')",
    "getattr": "raise GetAttr(1)",
    "slots": "raise Slots(4)",
    "none slots": "raise NoneSlots(4)",
    "none slots with a lock": "e = NoneSlots(4)\ne.lock = threading.Lock()\nraise e",
    "changed slots": "e = ChangedSlots(4)\ne.count = 5\nraise e",
    "axis": "import numpy as np\nnp.sum(np.zeros((2, 2)), axis=2)",
    "axis text": "import numpy as np\nraise np.exceptions.AxisError('my text')",
    "json notes": (
        "try: json.loads('{bad')\nexcept ValueError as e: e.add_note('n1'); e.add_note('n2'); e.row = 5; raise"
    ),
    "own reduce": "e = OwnReduce(1, 2)\nfor each in 'n1', 'n1', 'n2': e.add_note(each)\nraise e",
    "own reduce in a cause": "e = OwnReduce(1, 2); e.add_note('n1')\nraise ValueError('v') from e",
    "own note": "e = OwnNote(1, 2); e.add_note('n1')\nraise e",
    "own note, read only": "e = FrozenReduce(1, 2); e.add_note('n1')\nraise e",
    "pydantic notes": (
        "import pydantic\n"
        "class M(pydantic.BaseModel): x: int\n"
        "try: M(x='a')\n"
        "except Exception as e: e.add_note('n1'); raise"
    ),
    "frozen": "raise Frozen(3)",
    "data": "raise Data(3)",
    "holds lock": "raise Holds('m', lock=threading.Lock(), n=5)",
    "holds event": "raise Holds('m', s=threading.Event(), n=5)",
    "holds gen": "raise Holds('m', g=(i for i in range(3)), n=5)",
    "holds frame": "raise Holds('m', f=sys._getframe(), n=5)",
    "holds tb": "try: 1/0\nexcept Exception as e: raise Holds('m', tb=e.__traceback__, n=5)",
    "holds exc": "try: 1/0\nexcept Exception as e: raise Holds('m', exc=e, n=5)",
    "holds large": "raise Holds('m', data=b'x'*5000000, n=5)",
    "holds list": "raise Holds('m', items=[1, threading.Lock(), 3], d={'a': 1, 'l': threading.Lock()}, n=5)",
    "holds lambda": "raise Holds('m', f=lambda x: x+1, n=5)",
    "holds module": "raise Holds('m', mod=json, n=5)",
    "holds condition": "raise Holds('m', f=threading.Condition(), n=5)",
    "holds np": "import numpy as np\nraise Holds('m', a=np.arange(20000), n=5)",
    "args lock": "raise ValueError('x', threading.Lock(), 3)",
    "args self": "e = ValueError('x'); e.args = (e,)\nraise e",
    "attr self": "e = Holds('x'); e.me = e\nraise e",
    "cause self": "e = ValueError('x'); e.__cause__ = e\nraise e",
    "cause cycle": "a = ValueError('a'); b = ValueError('b'); a.__cause__ = b; b.__cause__ = a\nraise a",
    "args large": "raise ValueError('y'*3000000)",
    "myos": "raise MyOS('/p')",
    "new": "raise New(1, 2)",
    "http": "raise Generic({'status': 500})",
    "state": "raise State(1)",
    "prop": "raise Prop('x')",
    "setattr": "raise SetAttr('x')",
    "eq": "raise Enumish('x')",
    "requests": (
        "import requests\n"
        "r = requests.Response(); r.status_code = 404; r.url = 'http://x'; r.reason='nf'\n"
        "r.raise_for_status()"
    ),
    "pydantic": "import pydantic\nclass M(pydantic.BaseModel): x: int\nM(x='a')",
    "json": "json.loads('{bad')",
    "pandas": "import pandas as pd\npd.DataFrame({'a': [1]})['b']",
    "numpy": "import numpy as np\nnp.linalg.inv(np.zeros((2,2)))",
    "jinja": "import jinja2\njinja2.Template('{% for %}')",
    "jinja undefined": "import jinja2\njinja2.Template('{{ x.y.z }}').render()",
    "click": "import click\nraise click.UsageError('bad')",
    "gen": "def g():\n    yield 1\n    raise ValueError('in gen')\nlist(g())",
    "gen stop": "def g():\n    yield 1\n    raise StopIteration\nlist(g())",
    "pool": (
        "from concurrent.futures import ThreadPoolExecutor\n"
        "def b(x): raise ValueError(x)\n"
        "with ThreadPoolExecutor(1) as p: list(p.map(b, [1]))"
    ),
    "procpool": "import multiprocessing as mp\nwith mp.get_context('fork').Pool(1) as p: p.map(int, ['a'])",
    "int": "int('x')",
    "index": "[][1]",
    "type": "len(3)",
    "overflow": "2.0**10000",
    "sqlite": "import sqlite3\nraise sqlite3.IntegrityError('UNIQUE')",
    "queue": "import queue\nqueue.Queue().get_nowait()",
    "warning": "raise UserWarning('w')",
    "exc local": "class Local(Exception):\n    def __init__(self, x): super().__init__(x); self.x = x\nraise Local(7)",
    "exc closure": "y = 3\nclass Local(Exception):\n    def m(self): return y\nraise Local(7)",
    "exc args none": "raise Exception",
    "multi-line": "raise ValueError('a\\nb\\nc')",
    "ctx exit": (
        "class C:\n"
        "    def __enter__(self): return self\n"
        "    def __exit__(self, *a): raise KeyError('exit')\n"
        "with C(): 1/0"
    ),
    "unreduced subclass OSError kw": (
        "class E(OSError):\n"
        "    def __init__(self, *, where): super().__init__(5, 'broken'); self.where = where\n"
        "raise E(where='x')"
    ),
}

LEFT_OUT = {
    "cpe large": "stdout",
    "holds lock": "lock",
    "none slots with a lock": "lock",
    "holds event": "s",
    "holds gen": "g",
    "holds frame": "f",
    "holds tb": "tb",
    "holds large": "data",
    "holds condition": "f",
}
"""In place of this attribute stands a remark."""
OTHER_TEXT = {"args lock", "args self", "args large"}
"""The text is made of what had to be left out."""


def _notebook() -> dict[str, Any]:
    """Functions as a notebook's cell defines them, their source known to linecache."""
    source = CLASSES + "".join(
        f"def case_{number}():\n{textwrap.indent(body, '    ')}\n" for number, body in enumerate(CASES.values())
    )
    name = "<cell of remote errors>"
    linecache.cache[name] = (len(source), None, source.splitlines(True), name)
    names: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(source, name, "exec", dont_inherit=True), names)
    return names


NAMES = _notebook()
FUNCTIONS = {case: NAMES[f"case_{number}"] for number, case in enumerate(CASES)}


def raised_by(function: Any) -> BaseException:
    try:
        function()
    except BaseException as error:
        return error
    raise AssertionError("it did not fail")


def raised_far(tc: TaskClient, function: Any) -> BaseException:
    task = tc.run(MapTask(function))
    tc.barrier(task, timeout=DEADLINE_S)
    return raised_by(tc.get_task_result(task, raw=False).raise_exception)


def told(error: BaseException) -> str:
    try:
        return str(error)
    except Exception as problem:
        return f"<{type(problem).__name__}>"


def state(error: BaseException) -> dict[str, Any]:
    found: dict[str, Any] = object.__getattribute__(error, "__dict__")
    return found


def notes(error: BaseException) -> list[str]:
    return [each for each in state(error).get("__notes__", ()) if not each.startswith("raised on engine ")]


def chain(error: BaseException | None, above: tuple[int, ...] = ()) -> Any:
    """All that Python prints of an exception but frames."""
    if error is None:
        return None
    if id(error) in above:
        return "itself"
    above = (*above, id(error))
    members = error.exceptions if isinstance(error, BaseExceptionGroup) else ()
    text = told(error) if len(above) > 1 else ""
    links = chain(error.__cause__, above), chain(error.__context__, above), error.__suppress_context__
    return type(error).__qualname__, text, links, notes(error), [chain(each, above) for each in members]


OWN = (
    "errno", "strerror", "filename", "filename2", "returncode", "cmd", "stdout", "stderr", "timeout", "name", "path",
    "code", "detail", "_NoneSlots__hidden", "count", "axis", "ndim", "_msg", "value", "encoding", "start", "end",
    "reason", "lineno", "offset", "text", "msg", "characters_written",
)  # fmt: skip


def attributes(error: BaseException) -> dict[str, str]:
    found = {name: value for name, value in state(error).items() if name not in ("remote_traceback", "engine_id")}
    for name in OWN:
        with contextlib.suppress(Exception):
            found[name] = getattr(error, name)
    found.pop("__notes__", None)
    return {name: repr(value)[:200].split(" at 0x")[0] for name, value in found.items()}


def printed(error: BaseException) -> list[str]:
    """The lines about the user's code; marks below them and the caller's frames left out."""
    lines = [line.strip(" |+-") for line in traceback.format_exception(error)]
    text = [line.strip(" |") for each in lines for line in each.splitlines()]
    return [line for line in text if line and set(line) - set("^~ +-|")]


@pytest.mark.parametrize("case", CASES)
def test_an_exception_is_what_it_was(tc: TaskClient, case: str) -> None:
    near, far = raised_by(FUNCTIONS[case]), raised_far(tc, FUNCTIONS[case])
    if "<locals>" in type(near).__qualname__:
        assert type(far).__qualname__ == type(near).__qualname__
    else:
        assert type(far) is type(near)
    assert chain(far) == chain(near)
    if case not in OTHER_TEXT:
        assert told(far) == told(near)
    expected, found = attributes(near), attributes(far)
    if case in LEFT_OUT:
        assert found.pop(LEFT_OUT[case]).startswith(("'<left out: ", '"<left out: '))
        del expected[LEFT_OUT[case]]
        for each in expected, found:
            each.pop("output", None)  # another name of stdout
    if case == "holds list":
        assert far.items[::2] == [1, 3]  # type: ignore[attr-defined]
        assert far.d["a"] == 1  # type: ignore[attr-defined]
        assert "<left out" in far.items[1]  # type: ignore[attr-defined]
        assert "<left out" in far.d["l"]  # type: ignore[attr-defined]
        del expected["items"], expected["d"], found["items"], found["d"]
    assert found == expected
    # The farm's own frames are the caller's, and nothing is shown twice.
    if case not in OTHER_TEXT | {"getattr", "recursion"}:
        mine = [line for line in printed(near) if "<cell of" in line]
        theirs = [line for line in printed(far) if "<cell of" in line and "raised on" not in line]
        assert theirs == mine
        lines = printed(far)
        assert [line for line in printed(near) if line not in lines and line not in ("function()", __file__)] == []
    text: str = far.remote_traceback  # type: ignore[attr-defined]
    assert "<cell of remote errors>" in text
    assert not any(word in text for word in ("rebuild", "runner.py", "each.py"))


@pytest.mark.parametrize(
    ("code", "etype", "text"),
    [
        ("raise SystemExit(3)", "SystemExit", "3"),
        ("import sys; sys.exit('a word')", "SystemExit", "a word"),
        ("raise KeyboardInterrupt('me')", "KeyboardInterrupt", "me"),
        ("raise GeneratorExit", "GeneratorExit", ""),
        ("import asyncio; raise asyncio.CancelledError('c')", "asyncio.exceptions.CancelledError", "c"),
    ],
)
def test_what_would_end_the_caller_is_told_by_a_remote_error(tc: TaskClient, code: str, etype: str, text: str) -> None:
    error = raised_by(lambda: tc.run(Task(f"try: 1/0\nfinally:\n    {code}"), block=True).raise_exception())
    assert isinstance(error, RemoteError)
    assert (error.etype, error.value) == (etype, text)
    assert type(error.__context__) is ZeroDivisionError
    assert code in "".join(traceback.format_exception(error))


def test_a_syntax_error_of_a_task_says_where(tc: TaskClient) -> None:
    error = raised_by(tc.run(Task("a = 1\nb = = 2"), block=True).raise_exception)
    assert type(error) is SyntaxError
    assert (error.lineno, error.offset, error.text) == (2, 5, "b = = 2\n")


def test_lines_of_tasks_are_shown_though_they_are_not_here(tc: TaskClient) -> None:
    """Tasks' code is known by short names: other code of the same name must not show the first one's lines."""
    for word in ("first", "second"):
        error = raised_by(tc.run(Task(f"def {word}():\n    return 1 / 0\n\n{word}()"), block=True).raise_exception)
        text = "".join(traceback.format_exception(error))
        assert f"    {word}()\n" in text
        assert "    return 1 / 0\n           ~~^~~\n" in text
        assert text.count("Traceback (most recent call last)") == 1


def test_a_class_that_is_not_here_is_named_with_the_reason() -> None:
    body = pack_error(raised_by(FUNCTIONS["cause"]))
    body = msgspec.structs.replace(body, etype="only.there.Gone", pickled=b"\x80\x05conly_there\nGone\n.")
    error = unpack_error(body, 4)
    assert isinstance(error, RemoteError)
    assert str(error) == "ValueError: v"
    assert "No module named 'only_there'" in " ".join(error.__notes__)
    assert type(error.__cause__) is ZeroDivisionError
    assert "raise ValueError('v') from e" in "".join(traceback.format_exception(error))


def test_raised_again_and_again_it_is_shown_once(tc: TaskClient) -> None:
    result = tc.run(Task("1/0"), block=True)
    texts = {"".join(traceback.format_exception(raised_by(result.raise_exception))) for _ in range(5)}
    assert len(texts) == 1
    assert texts.pop().count("ZeroDivisionError") == 1


def test_items_of_a_map_too(tc: TaskClient) -> None:
    def f(n: int) -> int:
        if n == 7:
            try:
                return 1 // 0
            except ZeroDivisionError as error:
                raise KeyError("seven") from error
        return n

    found = tc.map(f, range(10), return_exceptions=True)[7]
    assert type(found) is KeyError
    assert type(found.__cause__) is ZeroDivisionError
    error = raised_by(lambda: tc.map(f, range(10)))
    text = "".join(traceback.format_exception(error))
    assert text.count('raise KeyError("seven") from error') == 1
    assert text.count("return 1 // 0") == 1
    assert raised_by(lambda: list(tc.imap(f, range(10)))).args == ("seven",)


def test_an_item_is_named_though_the_class_has_its_own_reduce(tc: TaskClient) -> None:
    def load(s: str) -> Any:
        return json.loads(s)

    def noted(s: str) -> Any:
        try:
            return json.loads(s)
        except ValueError as e:
            e.add_note(f"while reading {s!r}")
            raise

    assert raised_by(lambda: tc.map(load, ["1", "{x"])).__notes__[0] == "item 1 of 2: load(s='{x')"
    notes = raised_by(lambda: tc.map(noted, ["{x"])).__notes__
    assert notes[:2] == ["while reading '{x'", "item 0 of 1: noted(s='{x')"]


def test_commands_too(mec: MultiEngineClient) -> None:
    error = raised_by(lambda: mec.execute("try: 1/0\nexcept Exception as e: raise KeyError('k') from e"))
    assert isinstance(error, CompositeError)
    inner = raised_by(error.raise_exception)
    assert (type(inner), type(inner.__cause__)) == (KeyError, ZeroDivisionError)
    assert "1/0" in "".join(traceback.format_exception(inner))


def test_ipython_shows_the_engines_frames(tc: TaskClient) -> None:
    from IPython.core.ultratb import FormattedTB

    def inner(x: int) -> float:
        return 1 / x  # the place

    error = raised_by(lambda: tc.map(inner, [0]))
    for mode in ("Context", "Plain", "Verbose"):
        out = io.StringIO()
        FormattedTB(mode=mode, theme_name="nocolor", ostream=out)(type(error), error, error.__traceback__)
        shown = [line for line in out.getvalue().splitlines() if line.endswith("return 1 / x  # the place")]
        assert len([line for line in shown if mode == "Plain" or line.startswith("-")]) == 1
        assert "ZeroDivisionError: division by zero" in out.getvalue()


def test_an_error_of_an_older_farm_is_told_as_before() -> None:
    error = unpack_error(FailureBody("ValueError", "old", "Traceback …", b"\x80\x05cbuiltins\nValueError\n)R."), 4)
    assert type(error) is ValueError
    assert error.remote_traceback == "Traceback …"  # type: ignore[attr-defined]


def test_a_chain_is_bounded() -> None:
    first: BaseException | None = None
    for number in range(2000):
        error = ValueError(number, "x" * 10_000)
        error.__cause__ = first
        first = error
    assert first is not None
    body = pack_error(first)
    assert sum(len(link.pickled or b"") for link in body.links) <= 1024 * 1024
    again = unpack_error(body, 1)
    assert again.args[0] == 1999
    assert again.__cause__ is not None


def test_cancelled_inside_a_task_keeps_its_group() -> None:
    group = BaseExceptionGroup("both", [asyncio.CancelledError("c"), ValueError("v")])
    again = unpack_error(pack_error(group), 1)
    assert isinstance(again, BaseExceptionGroup)
    assert [type(each) for each in again.exceptions] == [asyncio.CancelledError, ValueError]
