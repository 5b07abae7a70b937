"""Sessions: names saved on one engine, restored on another, in the client, and back."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import numpy as np
import pytest

from ipytaskfarm import Farm, MultiEngineClient, errors
from ipytaskfarm.cli import main
from ipytaskfarm.serialization.dill_sessions import MAGIC, SessionHead, read_head
from tests.support.shells import shell_with_magics

NAMES = """
import abc, collections, contextlib, datetime, decimal, enum, fractions, functools, io, itertools, json, math, pathlib
import random, re, socket, threading, types, typing
import numpy as np
import pandas as pd

a_int, a_float, a_text, a_bytes, a_bool, a_none = 7, 0.5, "text", b"bytes", True, None
a_complex, a_list, a_tuple, a_set, a_frozen = 1j, [1, [2]], (1, 2), {1, 2}, frozenset({3})
a_dict, a_range, a_slice, an_array = {"k": [1]}, range(5), slice(1, 2), np.arange(5.0)
a_frame = pd.DataFrame({"x": [1, 2]})
same_list = a_list
recursive = []
recursive.append(recursive)
a_date, a_decimal, a_fraction = datetime.date(2026, 1, 2), decimal.Decimal("1.5"), fractions.Fraction(1, 3)
a_path, a_pattern, a_counter = pathlib.Path("/tmp/x"), re.compile("a+"), collections.Counter("aab")
a_default, a_deque = collections.defaultdict(list, a=[1]), collections.deque([1])
an_ordered = collections.OrderedDict(a=1)
a_namespace, a_generator_state = types.SimpleNamespace(q=1), random.Random(3)
a_buffer, a_json = io.BytesIO(b"abc"), json

class Colour(enum.Enum):
    RED = 1
    BLUE = 2

    def told(self):
        return self.name, level

class Planet(enum.Enum):
    EARTH = (1.0, 2.0)

    def __init__(self, mass, radius):
        self.mass, self.radius = mass, radius

class Bits(enum.IntFlag):
    A = 1
    B = 2

T = typing.TypeVar("T", bound=int)
P = typing.ParamSpec("P")

class Box(typing.Generic[T]):
    def __init__(self, value):
        self.value = value

class Shape(abc.ABC):
    @abc.abstractmethod
    def area(self): ...

class Square(Shape):
    def __init__(self, side):
        self.side = side

    def area(self):
        return self.side**2 * level

class Child(Square):
    def area(self):
        return super().area() + 1

Point = collections.namedtuple("Point", "x y")

class Named(typing.NamedTuple):
    a: int
    b: int = 2

    def total(self):
        return self.a + self.b + level

level = 1

def plain():
    return level

def factorial(n):
    return 1 if n < 2 else n * factorial(n - 1)

def outer(k):
    def inner():
        return k + level

    return inner

closure = outer(10)
partial = functools.partial(outer, 20)
a_lambda = lambda: plain() + 1

@functools.wraps(np.dot)
def wrapped():
    return level

@functools.lru_cache
def cached(n):
    return n + level

@contextlib.contextmanager
def managed():
    yield level

@functools.singledispatch
def dispatched(value):
    return "other"

@dispatched.register
def _(value: int):
    return level

red, earth, both, box, child, point, named = (
    Colour.RED, Planet.EARTH, Bits.A | Bits.B, Box(3), Child(2), Point(1, 2), Named(1)
)
"""
UNABLE = """
a_lock, a_held, an_rlock, an_event = threading.Lock(), threading.Lock(), threading.RLock(), threading.Event()
a_held.acquire()
a_generator = (n for n in range(3))
a_socket = socket.socket()
a_file = open(path_of_file, "w")
a_file.write("kept")
a_file.flush()
inside = {"deep": [threading.Lock()]}
a_shell = get_ipython()
"""
CHECK = """
level = 100
assert a_int == 7 and a_dict == {"k": [1]} and same_list is a_list and recursive[0] is recursive
assert (an_array == range(5)).all() and a_frame.x.sum() == 3 and a_buffer.read() == b"abc" and a_json.dumps(1) == "1"
assert a_counter["a"] == 2 and a_default["b"] == [] and a_pattern.match("aa") and a_namespace.q == 1
assert plain() == 100 and factorial(5) == 120 and closure() == 110 and partial()() == 120 and a_lambda() == 101
assert wrapped() == 100 and cached(1) == 101 and dispatched(3) == 100 and dispatched("x") == "other"
with managed() as got:
    assert got == 100
assert red is Colour.RED and Colour(2) is Colour.BLUE and red.told() == ("RED", 100)
assert list(Colour) == [red, Colour.BLUE]
assert earth.radius == 2.0 and Planet((1.0, 2.0)) is earth and both == Bits.A | Bits.B
assert T.__bound__ is int and Box[int] and box.value == 3 and isinstance(box, Box)
assert isinstance(child, Square) and child.area() == 401 and point.y == 2 and Point(3, 4).x == 3
assert named.total() == 103 and Named(5).b == 2
try:
    Shape()
except TypeError:
    pass
else:
    raise AssertionError("an abstract class was made")
"""
KINDS = 50


@pytest.fixture
def mec(mec: MultiEngineClient) -> MultiEngineClient:
    mec.reset()
    return mec


def test_a_session_moves_from_one_engine_to_another(mec: MultiEngineClient, tmp_path: Path) -> None:
    file = tmp_path / "engine.session"
    mec.execute(NAMES, targets=0)
    assert len(mec.keys(targets=0)[0]) >= KINDS
    assert mec.dump_session(file, targets=0) == [{}]
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert mec.load_session(file, targets=1) == [{}]
    mec.execute(CHECK, targets=1)
    assert mec.pull("level") == [1, 100]
    assert sorted(mec.keys(targets=1)[0]) == sorted([*mec.keys(targets=0)[0], "got"])


def test_what_cannot_travel_is_named_and_the_rest_is_there(mec: MultiEngineClient, tmp_path: Path) -> None:
    file, written = tmp_path / "engine.session", tmp_path / "written"
    mec.push({"path_of_file": str(written)}, targets=0)
    mec.execute(NAMES + UNABLE, targets=0)
    (left_out,) = mec.dump_session(file, targets=0)
    unable = {"a_lock", "a_held", "an_rlock", "an_event", "a_generator", "a_socket", "a_file", "inside"}
    assert unable <= left_out.keys() <= unable | {"a_shell"}
    assert "lock cannot be pickled" in left_out["a_held"]
    assert left_out["inside"].startswith("inside['deep'][0]: ")
    assert "open the file inside the task" in left_out["a_file"]
    assert mec.load_session(file, targets=1) == [left_out]
    mec.execute(CHECK, targets=1)
    assert written.read_text() == "kept", "a file opened for writing is not opened again"
    mec.execute("a_socket.close(); a_file.close(); a_held.release()", targets=0)


def test_the_newest_values_of_pushed_functions_are_saved(mec: MultiEngineClient, tmp_path: Path) -> None:
    file = tmp_path / "engine.session"
    factor = 3
    mec.push({"times": lambda n: n * factor, "start": 5}, targets=0)
    assert mec.dump_session(file, targets=0) == [{}]
    mec.load_session(file, targets=1)
    mec.execute("found = times(start)", targets=1)
    assert mec.pull("found", targets=1) == [15]


def test_functions_that_came_by_value_find_names_of_the_engine_again(mec: MultiEngineClient, tmp_path: Path) -> None:
    """Names placed by hand have priority, then the values that were sent with the function, then other names of the
    engine.
    """
    file = tmp_path / "engine.session"
    there: dict[str, object] = {"brought": 1, "both": 1, "__name__": "__main__"}
    code = """
import math

class Counter:
    steps = 0
    def step(self):
        self.steps += brought
        return self.steps, both, found, math.floor(2.5)

def outer(n):
    def inner(left):
        return left and (n, both, inner(left - 1))
    return inner

def count():
    global brought
    brought += 1
    return brought
"""
    exec(code, there)
    counter = there["Counter"]()  # type: ignore[operator]
    pushed = {"counter": counter, "inner": there["outer"](7), "count": there["count"]}  # type: ignore[operator]
    mec.push({"both": 30, "found": 40, **pushed}, targets=0)
    check = "seen = counter.step(), inner(1), count(), isinstance(counter, type(counter))"
    mec.execute(check, targets=0)
    assert mec.pull("seen", targets=0) == [((1, 30, 40, 2), (7, 30, 0), 2, True)]
    assert mec.dump_session(file, targets=0) == [{}]
    mec.load_session(file, targets=1)
    mec.execute("both, found = 50, 60", targets=1)
    mec.execute(check, targets=1)
    assert mec.pull("seen", targets=1) == [((3, 50, 60, 2), (7, 50, 0), 3, True)]


OF_THE_PROCESS = """
from os import environ
from random import gauss, random
from numpy.random import rand
"""


def test_what_belongs_to_the_process_is_the_other_processes_own(mec: MultiEngineClient, tmp_path: Path) -> None:
    mec.execute(OF_THE_PROCESS, targets=0)
    mec.dump_session(tmp_path / "engine.session", targets=0)
    mec.load_session(tmp_path / "engine.session")
    mec.execute("drawn = [random(), gauss(0, 1), float(rand())]")
    first, second = mec.pull("drawn")
    assert not set(first) & set(second), "each engine has its own random numbers"
    mec.execute("import os\nown = environ is os.environ")
    assert mec.pull("own") == [True, True]


def test_each_engine_has_a_file_of_its_own(mec: MultiEngineClient, tmp_path: Path) -> None:
    mec.execute("mine = int(id)")
    with pytest.raises(ValueError, match=r"2 engines would write the same file .*\{id\}"):
        mec.dump_session(tmp_path / "all.session")
    assert mec.dump_session(tmp_path / "all-{id}.session") == [{}, {}]
    mec.load_session(tmp_path / "all-0.session")
    assert mec.pull("mine") == [0, 0]
    mec.load_session(tmp_path / "all-{id}.session")
    assert mec.pull("mine") == [0, 1]


def refused(mec: MultiEngineClient, data: bytes, file: Path) -> str:
    """Return why engine 1 refuses a session; its names are untouched."""
    file.write_bytes(data)
    mec.execute("keep = 1", targets=1)
    with pytest.raises(errors.CompositeError) as caught:
        mec.load_session(file, targets=1)
    assert mec.keys(targets=1) == [["keep"]]
    assert isinstance(caught.value.elist[0][2], errors.SessionError)
    return str(caught.value.elist[0][2])


def test_a_session_that_cannot_be_restored_changes_nothing(mec: MultiEngineClient, tmp_path: Path) -> None:
    file = tmp_path / "engine.session"
    mec.execute("one = 1", targets=0)
    mec.dump_session(file, targets=0)
    data = file.read_bytes()
    head, body = read_head(data, "it")

    def with_head(changed: SessionHead) -> bytes:
        encoded = msgspec.msgpack.encode(changed)
        return b"".join((MAGIC, len(encoded).to_bytes(8, "little"), encoded, body))

    here = f"{sys.version_info.major}.{sys.version_info.minor}"
    text = refused(mec, with_head(msgspec.structs.replace(head, python="3.9.1")), file)
    assert "Python 3.9.1" in text
    assert f"Python {here}" in text
    assert "dill 0.1.2" in refused(mec, with_head(msgspec.structs.replace(head, dill="0.1.2")), file)
    missing = with_head(msgspec.structs.replace(head, modules=["no_such_module"]))
    assert "uses module no_such_module, which cannot be imported here" in refused(mec, missing, file)
    assert "damaged" in refused(mec, data[:-1], file)
    assert "damaged" in refused(mec, data[:-3] + bytes([data[-3] ^ 1]) + data[-2:], file)
    assert "damaged" in refused(mec, data[: len(MAGIC) + 20], file)
    assert "not a session" in refused(mec, b"something else", file)
    with pytest.raises(errors.CompositeError, match="No such file"):
        mec.load_session(tmp_path / "none", targets=1)
    with pytest.raises(errors.CompositeError, match="No such file"):
        mec.dump_session(tmp_path / "no folder" / "x", targets=1)


SCRIPT = """
import threading
import helper
import ipytaskfarm
from ipytaskfarm import client

mec = client.MultiEngineClient()
level, lock = 1, threading.Lock()

def f(n):
    return helper.double(n) + level

class Thing:
    def __init__(self, n):
        self.n = n

thing = Thing(4)
left_out = mec.push_session()
assert left_out.keys() == {"mec", "lock"}, left_out
assert "inside a task use" in left_out["mec"], left_out
mec.execute("level = 10; found = f(2), thing.n, type(thing) is Thing")
assert mec.pull("found") == [(14, 4, True)] * 2, mec.pull("found")
mec.execute("import threading; new = f; there = threading.Lock()", targets=0)
assert mec.pull_session(0).keys() == {"there"}
assert level == 10 and new(1) == 12 and thing.n == 4, (level, new(1))
level = 20
assert new(1) == 22 and f(1) == 22
print("all is well")
"""


def test_a_script_gives_the_engines_its_session_and_takes_theirs(farm: Farm, tmp_path: Path) -> None:
    (tmp_path / "helper.py").write_text("def double(n):\n    return 2 * n\n")
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.replace("MultiEngineClient()", f"MultiEngineClient({farm.name!r})"))
    ran = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=60, check=False, env={**os.environ}
    )
    assert (ran.stdout, ran.returncode) == ("all is well\n", 0), ran.stderr


def test_a_large_session(mec: MultiEngineClient, tmp_path: Path) -> None:
    file = tmp_path / "large.session"
    mec.execute("import numpy as np; big = np.ones(13_000_000); words = [str(n) for n in range(1000)]", targets=0)
    began = time.monotonic()
    mec.dump_session(file, targets=0)
    mec.load_session(file, targets=1)
    assert time.monotonic() - began < 60
    assert file.stat().st_size > 100_000_000
    mec.execute("total = big.sum()", targets=1)
    assert mec.pull("total", targets=1) == [np.float64(13_000_000)]


def test_the_command(mec: MultiEngineClient, farm: Farm, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mec.execute("import threading; n, lock = int(id), threading.Lock()")
    path = tmp_path / "s-{id}"
    assert main(["session", "save", str(path), "--farm", farm.name]) == 0
    out = capsys.readouterr().out
    assert f"engine 1: saved to {tmp_path}/s-1" in out
    assert "  without lock: lock: a _thread.lock cannot be pickled" in out
    assert main(["session", "load", f"{tmp_path}/s-0", "--engines", "1", "--farm", farm.name]) == 0
    assert mec.pull("n") == [0, 0]
    assert main(["session", "forget", "x", "--farm", farm.name]) == 2


def test_the_magic(mec: MultiEngineClient, tmp_path: Path) -> None:
    mec.execute("import threading; n, lock = int(id), threading.Lock()")
    with shell_with_magics() as shell:
        shell["mec"] = mec
        shell.ok("mec.activate()")
        saved = shell.ok(f"%pxsession save {tmp_path}/s-{{id}}")
        assert "[1] without lock: lock: a _thread.lock cannot be pickled" in saved.out
        mec.reset()
        shell["folder"] = tmp_path
        shell.ok("%pxsession load {folder}/s-1 -t 0")
        assert mec.pull("n", targets=0) == [1]
        assert mec.keys(targets=1) == [[]]
        assert "there is no action 'forget'" in shell.run("%pxsession forget file").shown
