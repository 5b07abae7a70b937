"""Parts for the tests of packing: a process in the role of an engine, and a namespace in the role of a notebook."""

from __future__ import annotations

import linecache
import os
import pickle
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import ipytaskfarm
from ipytaskfarm.core.messages.payload import FailureBody
from ipytaskfarm.serialization.pack import (
    pack,
    pack_called,
    unpack,
    unpack_error,
)

PEER = """
import pickle, struct, sys
from ipytaskfarm.serialization.function_templates import fill_template
from ipytaskfarm.serialization.pack import *
namespace = {}
functions = {}
while True:
    head = sys.stdin.buffer.read(4)
    if not head: break
    verb, *rest = pickle.loads(sys.stdin.buffer.read(struct.unpack(">I", head)[0]))
    try:
        if verb == "call":
            digest, code, values, arguments = rest
            if getattr(functions.get(digest), "renews", digest not in functions):
                functions[digest] = unpack_function(code, namespace)
            function = functions[digest] if values is None else fill_template(functions[digest], unpack(values))
            args, kwargs = unpack(arguments, namespace)
            answer = (True, pack(function(*args, **kwargs)))
        elif verb == "run":
            exec(rest[0], namespace); answer = (True, pack(None))
        elif verb == "push":
            namespace.update(unpack(rest[0], namespace)); answer = (True, pack(None))
        elif verb == "pull":
            answer = (True, pack_names({rest[0]: namespace[rest[0]]}))
    except BaseException as error:
        body = pack_error(error)
        answer = (False, (body.etype, body.value, body.traceback, body.pickled))
    data = pickle.dumps(answer)
    sys.stdout.buffer.write(struct.pack(">I", len(data)) + data); sys.stdout.buffer.flush()
"""


class Peer:
    """Plays the engine."""

    def __init__(self, folder: Path, warnings: str = "error") -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-W", warnings, "-c", PEER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(Path(ipytaskfarm.__file__).parents[1])},
        )

    def ask(self, *question: Any) -> Any:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        data = pickle.dumps(question)
        self.process.stdin.write(len(data).to_bytes(4, "big") + data)
        self.process.stdin.flush()
        size = int.from_bytes(self.process.stdout.read(4), "big")
        good, answer = pickle.loads(self.process.stdout.read(size))
        if good:
            return unpack(answer)
        raise unpack_error(FailureBody(*answer), 3)

    def call(self, function: Any, *args: Any, **kwargs: Any) -> Any:
        made, values = pack_called(function)
        return self.ask("call", made.digest, made.code, values, pack((args, kwargs), ("args", "kwargs")))

    def run(self, lines: str) -> None:
        self.ask("run", lines)

    def push(self, **names: Any) -> None:
        self.ask("push", pack(names, "push"))

    def pull(self, name: str) -> Any:
        return self.ask("pull", name)[name]

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        assert self.process.wait(60) == 0
        assert self.process.stdout is not None
        self.process.stdout.close()


class Notebook:
    """A namespace in which cells are run as a notebook does it."""

    def __init__(self) -> None:
        self.names: dict[str, Any] = {"__name__": "__main__"}
        self.cells = 0

    def run(self, source: str) -> None:
        self.cells += 1
        source = textwrap.dedent(source)
        name = f"<cell {id(self)} {self.cells}>"
        linecache.cache[name] = (len(source), None, source.splitlines(True), name)
        exec(compile(source, name, "exec", dont_inherit=True), self.names)

    def __getitem__(self, name: str) -> Any:
        return self.names[name]


CLASSES = """
    import abc, dataclasses, enum, collections, typing, functools
    T = typing.TypeVar("T")
    class Base:
        count = 2
        def __init__(self, x): self.x = x
        def double(self): return self.x * self.count
        @property
        def twice(self): return self.double()
        @classmethod
        def make(cls, x): return cls(x)
        @staticmethod
        def plus(a, b): return a + b
        @functools.cached_property
        def kept(self): return self.x + 100
        def __eq__(self, other): return type(self) is type(other) and self.x == other.x
        __hash__ = None
    class Child(Base):
        def double(self): return super().double() + 1
        def other(self): return Base(1), Child
    class Slots:
        __slots__ = ("a", "b")
        def __init__(self, a): self.a = a
    @dataclasses.dataclass
    class Point:
        x: int
        y: int = 2
        tags: list = dataclasses.field(default_factory=list)
    @dataclasses.dataclass(frozen=True, order=True)
    class Frozen:
        x: int
    class Colour(enum.Enum):
        RED = 1
        BLUE = (2, 3)
        CRIMSON = 1
        def shout(self): return self.name + "!"
    class Planet(enum.IntEnum):
        EARTH = 3
    class Perm(enum.Flag):
        R = 1
        W = 2
    class Mass(enum.Enum):
        A = (1, 2)
        def __init__(self, m, r): self.ratio = m / r
    Pair = collections.namedtuple("Pair", "a b")
    class Typed(typing.NamedTuple):
        a: int
        b: str = "x"
        def both(self): return f"{self.a}{self.b}"
    class Stack(typing.Generic[T]):
        def __init__(self): self.items = []
    class Shape(abc.ABC):
        @abc.abstractmethod
        def area(self): ...
    class Square(Shape):
        def area(self): return 4
    class Meta(type):
        def __call__(cls, *a): return super().__call__(*a)
        def extra(cls): return "meta"
    class WithMeta(metaclass=Meta): pass
    class Error(Exception):
        def __init__(self, code, what):
            super().__init__(f"{what} ({code})")
            self.code = code
"""
