"""A table of classes as people write them; `test_pack_class_zoo` sends each there and back.

A row is a name and a cell.  The cell defines `make`, which gives a value, and `check`, which asserts on one, both in
the session and on the engine.  To add a row, write the cell; everything it needs, imports included, stands in it.
"""

# ruff: noqa: E501 - a row is as short as it can be

from __future__ import annotations

from . import class_zoo_hooks, class_zoo_instances, class_zoo_libraries, class_zoo_typing

_NEW_SYNTAX = """
# ---- type parameters of a class
class Base: pass
class Box[T: Base, *Ts, **P]:
    def __init__(self, x: T): self.x = x
    def get[U](self, u: U) -> "Box[T]": return self
class Sub[T](Base, list[T]):
    kind: T
Box.zero = Box(0)
def make(): return Box(1), Sub([1])
def check(v): assert v[0].x == 1 and v[1] == [1] and len(Box.__type_params__) == 3 and Box.zero.x == 0 and Box.get.__type_params__[0].__name__ == "U" and Box.__type_params__[0].__bound__ is Base
# ---- type aliases and generic functions
class A: pass
type Pair[T] = tuple[T, A]
type Tree = list[Tree] | int
def first[T](xs: list[T]) -> T: return xs[0]
def make(): return Pair, first
def check(v): assert v[0].__value__.__args__[1] is A and v[1]([1]) == 1 and v[0].__name__ == "Pair"
# ---- type aliases that mention themselves, each other, and classes that mention them
import typing
type Json = dict[str, Json] | list[Json] | str
type One = list[Two]
type Two = dict[str, One]
type Linked[T: (int, Json), *Ts, **P] = tuple[T, *Ts, Linked[T, *Ts, P]] | typing.Callable[P, T]
type Kids = list[Leaf]
class Leaf: kids: Kids
def read(text: Json) -> Linked[int, str, []]: return Leaf
def make(): return Json, One, Linked, Kids, read
def check(v):
    assert v[0].__value__.__args__[1].__args__[0] is v[0] and v[1].__value__.__args__[0].__value__.__args__[1] is v[1]
    first = v[2].__value__.__args__[0].__args__
    assert v[2].__type_params__[0] is first[0] and first[0].__constraints__[1] is v[0] and first[-1].__origin__ is v[2]
    assert v[3].__value__.__args__[0].__annotations__["kids"].__name__ == "Kids" == v[4]("x").__annotations__["kids"].__name__
    assert v[0].__module__ == v[2].__module__ == "__main__" and v[4].__annotations__["text"] is v[0]
# ---- dataclass with type parameters
import dataclasses
@dataclasses.dataclass(slots=True, frozen=True)
class D[T]:
    x: T
    def up(self): return D(self.x)
D.one = D(1)
def make(): return {D(2)}
def check(v): assert D(2) in v and D.one.up() == D(1)
"""

_LATE_ANNOTATIONS = """
# ---- annotations that name their own class
import dataclasses
@dataclasses.dataclass
class Node:
    v: int
    next: Node | None = None
    def behind(self, other: Node) -> Node: return Node(self.v, other)
def make(): return Node(1).behind(Node(2))
def check(v): assert v.next.v == 2 and Node.__annotations__["next"] == (Node | None) and Node.behind.__annotations__["other"] is Node
# ---- annotations of which a name is not defined
from annotationlib import Format, get_annotations
class A:
    x: Undefined | None
    y: int
    def f(self, a: Undefined) -> int: return a
def make(): return A()
def check(v): assert v.f(1) == 1 and get_annotations(A, format=Format.STRING) == {"x": "Undefined | None", "y": "int"}
# ---- annotations that raise
class A:
    x: 1 / 0
    def f(self, a: 1 / 0): return a
def make(): return A()
def check(v): assert v.f(1) == 1
# ---- msgspec structs that refer to one another
import msgspec
class X(msgspec.Struct):
    a: int
    y: Y | None = None
class Y(msgspec.Struct):
    b: X
    more: list[Y] = []
def make(): return X(1, Y(X(2)))
def check(v): assert v.y.b.a == 2 and msgspec.json.decode(msgspec.json.encode(v), type=X) == v
# ---- named tuples and typed dictionaries that name themselves
import typing
class NT(typing.NamedTuple):
    a: int
    b: NT | None = None
class TD(typing.TypedDict):
    a: int
    up: TD
def make(): return NT(1, NT(2))
def check(v): assert v.b.a == 2 and typing.get_type_hints(TD)["up"] is TD and NT.__annotations__["a"] is int
"""


def _rows(text: str, before: str = "") -> dict[str, str]:
    parts = (part.partition("\n") for part in text.split("\n# ---- ")[1:])
    return {name.strip(): before + cell for name, _, cell in parts}


ZOO: dict[str, str] = {}
for _module in (class_zoo_instances, class_zoo_hooks, class_zoo_typing, class_zoo_libraries):
    for _before, _text in _module.ROWS:
        ZOO.update(_rows(_text, _before))
NEW_SYNTAX = _rows(_NEW_SYNTAX)
"""Rows for Python 3.12 and later."""
LATE_ANNOTATIONS = _rows(_LATE_ANNOTATIONS)
"""Rows for Python 3.14 and later."""
