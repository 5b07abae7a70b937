"""Test that values that cannot be pickled are refused with their path and a fitting remedy: a line for each."""

from __future__ import annotations

import contextlib
import unittest.mock
from typing import Any

import cloudpickle
import pytest

from ipytaskfarm.core.errors import UnpickleableException
from ipytaskfarm.serialization.pack import pack, pack_function, unpack_function

from ..support.pack_peer import Notebook

SHARED = "one that `multiprocessing.Manager()` makes"
MAKE, OPEN, CONNECT, START = "make it where it is used", "open the file", "connect inside", "start it inside"
LOCKS = "import threading\n"
FILES = "import os, tempfile\n"
PROCESSES = "import multiprocessing\n"


def library_object(module: str, name: str) -> str:
    """Return code that makes an object of a library's class that refuses to be pickled."""
    made = f"type({name!r}, (), {{'__module__': {module!r}, '__reduce__': refuse}})()"
    return f"def refuse(self): raise TypeError('no')\n{made}"


REFUSED: dict[str, tuple[str, str]] = {
    "lock": (LOCKS + "threading.Lock()", MAKE),
    "rlock": (LOCKS + "threading.RLock()", MAKE),
    "condition": (LOCKS + "threading.Condition()", MAKE),
    "event": (LOCKS + "threading.Event()", MAKE),
    "semaphore": (LOCKS + "threading.BoundedSemaphore()", MAKE),
    "barrier": (LOCKS + "threading.Barrier(2)", MAKE),
    "thread local": (LOCKS + "threading.local()", MAKE),
    "thread": (LOCKS + "threading.Thread(target=print)", START),
    "timer": (LOCKS + "threading.Timer(1, print)", START),
    "text file": (FILES + "open(os.devnull)", OPEN),
    "binary file": (FILES + "open(os.devnull, 'rb')", OPEN),
    "raw file": (FILES + "open(os.devnull, 'rb', buffering=0)", OPEN),
    "temporary file": (FILES + "tempfile.TemporaryFile()", OPEN),
    "named temporary file": (FILES + "tempfile.NamedTemporaryFile()", OPEN),
    "mapped file": ("import mmap\nmmap.mmap(-1, 10)", "map the file"),
    "zip file": ("import io, zipfile\nzipfile.ZipFile(io.BytesIO(), 'w')", OPEN),
    "shelf": (FILES + "import shelve\nshelve.open(tempfile.mkdtemp() + '/s')", OPEN),
    "database of names": (FILES + "import dbm.dumb\ndbm.dumb.open(tempfile.mkdtemp() + '/d')", OPEN),
    "HDF5 file": (library_object("h5py._hl.base", "HLObject"), OPEN),
    "netCDF variable": (library_object("netCDF4._netCDF4", "Variable"), OPEN),
    "library's object": ("import pyexpat\npyexpat.ParserCreate()", MAKE),
    "folder's entries": ("import os\nos.scandir('.')", "make a list"),
    "folder's entry": ("import os\nwith os.scandir('/') as entries: entry = next(entries)\nentry", "send its `path`"),
    "database row": (
        "import sqlite3\nd = sqlite3.connect(':memory:')\n"
        "d.row_factory = sqlite3.Row\nd.execute('select 1').fetchone()",
        "`dict(row)`",
    ),
    "profile": ("import cProfile\ncProfile.Profile()", "its statistics"),
    "manager": ("from multiprocessing.managers import BaseManager\nBaseManager()", START),
    "socket": ("import socket\nsocket.socket()", CONNECT),
    "TLS context": ("import ssl\nssl.create_default_context()", CONNECT),
    "selector": ("import selectors\nselectors.DefaultSelector()", MAKE),
    "database connection": ("import sqlite3\nsqlite3.connect(':memory:')", CONNECT),
    "database cursor": ("import sqlite3\nd = sqlite3.connect(':memory:')\nd.cursor()", CONNECT),
    "somebody's connection": (
        "class PgConnection:\n    def __reduce__(self): raise TypeError('no')\nPgConnection()",
        CONNECT,
    ),
    "generator": ("(i for i in 'ab')", "make a list"),
    "asynchronous generator": ("async def f(): yield 1\nf()", "make a list"),
    "csv reader": ("import csv\ncsv.reader(['a'])", "make a list"),
    "queue": ("import queue\nqueue.Queue()", MAKE),
    "simple queue": ("import queue\nqueue.SimpleQueue()", MAKE),
    "queue of processes": (PROCESSES + "multiprocessing.SimpleQueue()", SHARED),
    "lock of processes": (PROCESSES + "multiprocessing.Lock()", SHARED),
    "shared value": (PROCESSES + "multiprocessing.Value('i')", "make it with `lock=False`"),
    "process": (PROCESSES + "multiprocessing.Process(target=print)", START),
    "pipe": (PROCESSES + "multiprocessing.Pipe()[0]", CONNECT),
    "future": ("import concurrent.futures as cf\ncf.Future()", "send its result"),
    "pool of threads": ("import concurrent.futures as cf\ncf.ThreadPoolExecutor(1)", MAKE),
    "event loop": ("import asyncio\nasyncio.new_event_loop()", "`asyncio.run` inside"),
    "context": ("import contextvars\ncontextvars.copy_context()", "send the values"),
    "frame": ("import sys\nsys._getframe()", "f_locals"),
    "hash": ("import hashlib\nhashlib.sha256()", "send its digest"),
    "pointer": ("import ctypes\nctypes.pointer(ctypes.c_int(1))", "what it points to"),
    "key of cmp_to_key": ("import functools\nfunctools.cmp_to_key(len)(1)", "send the function"),
    "subprocess": ("import subprocess, sys\np = subprocess.Popen([sys.executable, '-c', ''])\n(p, p.wait())[0]", START),
    "joblib pool": ("import joblib\njoblib.Parallel(1)", MAKE),
    "match": ("import re\nre.match('a', 'a')", "`groups()`"),
    "shared library": ("import ctypes\nctypes.CDLL(None)", "load the library inside the task"),
    "compressor": ("import zlib\nzlib.compressobj()", MAKE),
    "iterator of arrays": ("import numpy\nnumpy.nditer([1])", "make it inside the task"),
    "psutil process": ("import psutil\npsutil.Process()", "send its pid"),
}
TAKEN_BY_CLOUDPICKLE = {
    "text file": "it sends what is left to read of the file, as a StringIO",
    "shelf": "a copy writes into the same files when it is collected",
    "database of names": "a copy writes into the same files when it is collected",
    "pipe": "it sends the number of a descriptor, which is another file elsewhere",
}
"""With what cloudpickle does, and why we do not."""


@pytest.fixture(scope="module")
def notebook() -> Notebook:
    found = Notebook()
    found.run("""
        class Holder:
            def __init__(self, own): self.own = own
        def use(): return held
    """)
    return found


@pytest.fixture(params=REFUSED)
def refused(request: pytest.FixtureRequest, notebook: Notebook) -> Any:
    """Yield (the name of a value, the value, the words of its remedy), and close the value afterwards."""
    source, remedy = REFUSED[request.param]
    before, _, last = source.rpartition("\n")
    notebook.run(f"{before}\nmade = ({last})")
    value = notebook.names.pop("made")
    yield request.param, value, remedy
    closing = getattr(value, "close", getattr(value, "aclose", None))
    with contextlib.suppress(Exception):
        found: Any = closing() if closing is not None else None
        if found is not None:
            found.close()
    if "d" in notebook.names:
        notebook.names.pop("d").close()


def test_it_is_named_with_its_remedy(notebook: Notebook, refused: tuple[str, Any, str]) -> None:
    _, value, remedy = refused
    with pytest.raises(UnpickleableException) as caught:
        pack((([1, {"k": notebook["Holder"](value)}],), {}), ("args", "kwargs"))
    assert str(caught.value).startswith("args[0][1]['k'].own: a"), caught.value
    assert remedy in str(caught.value)


def test_it_is_named_where_a_function_stands_on_it(notebook: Notebook, refused: tuple[str, Any, str]) -> None:
    _, value, remedy = refused
    notebook.names["held"] = value
    with pytest.raises(UnpickleableException) as caught:
        pack_function(notebook["use"])
    assert str(caught.value).startswith("use (global 'held' used by use): a"), caught.value
    assert remedy in str(caught.value)


def test_a_librarys_object_is_named_and_not_what_is_in_it(notebook: Notebook) -> None:
    engine = pytest.importorskip("sqlalchemy").create_engine("sqlite://")
    notebook.run("def calls(): return locked()\nimport threading\nlock = threading.Lock()\ndef locked(): return lock")
    with pytest.raises(UnpickleableException, match=r"belongs to a sqlalchemy.engine.base.Engine, .* make the Engine"):
        pack(((notebook["Holder"](engine),), {}), ("args", "kwargs"))
    remedy = "make it where it is used, inside the task, or make it in a module of yours that the function imports"
    with pytest.raises(UnpickleableException) as caught:
        pack_function(notebook["calls"])
    assert str(caught.value).endswith(f"'lock' used by locked): a _thread.lock cannot be pickled: {remedy}")


def test_a_class_that_cannot_be_taken_apart_belongs_in_a_module(notebook: Notebook) -> None:
    pytest.importorskip("sqlalchemy")
    notebook.run("""
        import threading
        from sqlalchemy import orm
        class Base(orm.DeclarativeBase): pass
        class User(Base):
            __tablename__ = "users"
            id: orm.Mapped[int] = orm.mapped_column(primary_key=True)
        def mapped(): return User(id=1)
        class Only:
            lock = threading.Lock()
        def locks(): return Only.lock
    """)
    remedies = {"mapped": "cannot be pickled: define User", "locks": "inside the task, or define Only"}
    for name, remedy in remedies.items():
        with pytest.raises(UnpickleableException) as caught:
            pack_function(notebook[name])
        assert str(caught.value).endswith(f"{remedy} in a module of yours that the function imports")
    with pytest.raises(UnpickleableException, match="define Only in a module"):
        pack_function(notebook["Only"])


def test_a_part_is_found_behind_what_refers_back_to_the_whole(notebook: Notebook) -> None:
    notebook.run("""
        import threading
        lock = threading.Lock()
        class Program:
            @staticmethod
            def step(x): return Program.scale * x
            scale = 2
            def save(self): return lock
    """)
    with pytest.raises(UnpickleableException, match=r"\.save \(global 'lock' used by Program.save\): a _thread.lock"):
        pack_function(notebook["Program"].step)


def test_a_deep_value_has_a_short_message() -> None:
    deep: list[Any] = []
    for _ in range(200_000):  # Python 3.14 can pickle some ten thousand levels
        deep = [deep]
    with pytest.raises(UnpickleableException, match=r"nested too deeply to be pickled: send it flat") as caught:
        pack(((deep,), {}), ("args", "kwargs"))
    assert len(str(caught.value)) < 200
    while deep:  # dropping it at once would recurse in C
        deep = deep.pop()


class Options(dict[str, Any]):
    """The dict whose keys are its attributes, too: its key "items" hides the method that pickle calls."""

    def __init__(self, **values: Any) -> None:
        super().__init__(values)
        self.__dict__ = self


def test_a_dict_whose_key_hides_its_method_is_refused_by_name() -> None:
    with pytest.raises(UnpickleableException, match=r"^a\['options'\]: an? .*Options cannot be pickled \(TypeError: "):
        pack({"options": Options(items=3)}, "a")


def test_a_mock_does_not_make_more_of_itself_when_it_is_looked_at() -> None:
    mock = unittest.mock.MagicMock()
    with contextlib.suppress(UnpickleableException):
        pack(mock)
    assert "__hash__" not in {name for name in dir(mock) if name in mock._mock_children}


def test_cloudpickle_takes_none_of_them_but_those_listed(refused: tuple[str, Any, str]) -> None:
    name, value, _ = refused
    if name in TAKEN_BY_CLOUDPICKLE:
        assert cloudpickle.dumps(value)
    else:
        with pytest.raises(Exception):  # noqa: B017 - each of them raises another one
            cloudpickle.loads(cloudpickle.dumps(value))


MADE_ON_FIRST_USE = """
import sqlite3
connection = None
def ask():
    global connection
    if connection is None: connection = sqlite3.connect(":memory:")
    return connection.execute("select 1").fetchone()
def asks(x): return ask()
"""


def test_what_a_function_has_made_on_its_first_call_here(notebook: Notebook) -> None:
    notebook.run(MADE_ON_FIRST_USE)
    assert notebook["asks"](1) == (1,)
    with pytest.raises(UnpickleableException) as refused:
        pack_function(notebook["asks"])
    assert str(refused.value) == (
        "asks (global 'ask' used by asks) (global 'connection' assigned by ask): a sqlite3.Connection cannot be "
        "pickled: set connection back to what it was before ask was called here, such as None, and each engine makes "
        "its own"
    )
    notebook["connection"].close()
    notebook.names["connection"] = None
    pack_function(notebook["asks"])


def test_instances_of_a_pool_are_refused_at_the_call(notebook: Notebook) -> None:
    notebook.run("""
        class Interned:
            pool = {}
            def __new__(cls, key):
                if key not in cls.pool: cls.pool[key] = super().__new__(cls)
                return cls.pool[key]
        one = Interned(1)
        def f(): return Interned(1) is Interned(1)
    """)
    with pytest.raises(UnpickleableException, match="its __new__ keeps instances"):
        pack([notebook["one"]])
    assert unpack_function(pack_function(notebook["f"]).code, {})()
