"""Rows of the class zoo: typing and enumerations."""

# ruff: noqa: E501 - a row is as short as it can be

from __future__ import annotations

ROWS: list[tuple[str, str]] = [
    (
        "",
        """
# ---- ParamSpec
import typing
P = typing.ParamSpec("P"); R = typing.TypeVar("R")
def deco(f: typing.Callable[P, R]) -> typing.Callable[P, R]:
    def inner(*args: P.args, **kwargs: P.kwargs) -> R: return f(*args, **kwargs)
    return inner
@deco
def g(x: int) -> int: return x + 1
def make(): return g
def check(v): assert v(1) == 2 and v.__annotations__["args"].__origin__.__name__ == "P"
# ---- a __class_getitem__ that asks its super class
import typing
T = typing.TypeVar("T")
class Stack(typing.Generic[T]):
    asked = 0
    def __class_getitem__(cls, what):
        cls.asked += 1
        return super().__class_getitem__(what)
class IntStack(Stack[int]): pass
ALIAS = Stack[str]
def make(): return ALIAS, IntStack
def check(v): assert v[0] == ALIAS == Stack[str] and v[1].__orig_bases__ == (Stack[int],) and v[1] is IntStack
# ---- a metaclass with items and a Generic
import typing
T = typing.TypeVar("T")
class Meta(type):
    def __getitem__(cls, what): return f"{super().__repr__()}{what}"
class Box(typing.Generic[T], metaclass=Meta): pass
ALIAS = Box.__class_getitem__(int)
def make(): return ALIAS
def check(v): assert v.__origin__ is Box and v == ALIAS and Box[3].endswith("3")
# ---- Generic over a ParamSpec
import typing
P = typing.ParamSpec("P"); R = typing.TypeVar("R")
class Job(typing.Generic[P, R]):
    def __init__(self, f: typing.Callable[P, R]): self.f = f
    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R: return self.f(*args, **kwargs)
class IntJob(Job[[int], int]): pass
Job.first = Job(abs)
def make(): return Job(len), IntJob(abs)
def check(v): assert v[0]("ab") == 2 and v[1](-1) == 1 and Job.__parameters__ == (P, R) and Job[[int], str] is not None and Job.first(-2) == 2
# ---- TypeVarTuple
import typing
Ts = typing.TypeVarTuple("Ts"); T = typing.TypeVar("T", bound="Base")
class Base: pass
class Arr(typing.Generic[T, typing.Unpack[Ts]]):
    def __init__(self, *shape: typing.Unpack[Ts]): self.shape = shape
class Arr2(Arr[Base, int, int]): pass
Arr.zero = Arr()
def make(): return Arr(1, 2), Arr2(3)
def check(v): assert v[0].shape == (1, 2) and v[1].shape == (3,) and Arr.__parameters__ == (T, Ts) and Arr[Base, int, str] is not None
# ---- TypeVar with bound, constraints and variance
import typing
class B: pass
T = typing.TypeVar("T", bound=B); U = typing.TypeVar("U", int, str); V = typing.TypeVar("V", covariant=True)
class G(typing.Generic[T, U, V]): pass
class H(G[B, int, T]): pass
def make(): return H(), T, U, V
def check(v): assert v[1].__bound__ is B and v[2].__constraints__ == (int, str) and v[3].__covariant__ and H.__parameters__ == (T,)
# ---- string annotations of a class
import typing
class Tree:
    left: "Tree | None"
    other: "Leaf"
    maybe: "typing.Optional[Leaf]"
    numbers: "list[int]"
class Leaf: pass
def make(): return Tree()
def check(v):
    hints = typing.get_type_hints(type(v))
    assert hints["other"] is Leaf and hints["left"] == (Tree | None) and hints["maybe"] == typing.Optional[Leaf]
# ---- string annotations of functions and methods
import typing
class A:
    def m(self, other: "A", n: "Num") -> "list[A]": return [other]
Num = typing.NewType("Num", int)
def f(a: "A", b: "typing.Any" = None) -> "A": return a
def make(): return A()
def check(v):
    assert typing.get_type_hints(f)["a"] is A and typing.get_type_hints(A.m)["return"] == list[A]
    assert typing.get_type_hints(type(v).m)["n"] is Num
# ---- future annotations in a dataclass
from __future__ import annotations
import dataclasses, typing
@dataclasses.dataclass
class Node:
    value: int
    next: Node | None = None
    kind: typing.ClassVar[str] = "k"
Node.END = Node(0)
def make(): return Node(1, Node(2))
def check(v):
    hints = typing.get_type_hints(Node)
    assert v.next.value == 2 and hints["next"] == (Node | None) and len(dataclasses.fields(Node)) == 2 and Node.END == Node(0)
# ---- NamedTuple with methods and defaults
import typing
class P(typing.NamedTuple):
    x: int
    y: "P | None" = None
    def up(self): return P(self.x + 1, self)
P.ORIGIN = P(0)
def make(): return P(1).up()
def check(v): assert v == (2, (1, None)) and type(v.y) is P and P.ORIGIN.x == 0 and P._field_defaults == {"y": None} and v._replace(x=1).x == 1
# ---- NamedTuple that is generic, namedtuple subclass
import typing, collections
T = typing.TypeVar("T")
class P(typing.NamedTuple, typing.Generic[T]):
    x: T
class Q(collections.namedtuple("Q", "a b", defaults=[1])):
    __slots__ = ()
    def s(self): return self.a + self.b
Q.one = Q(0)
def make(): return P(1), Q(2)
def check(v): assert v[0].x == 1 and v[1].s() == 3 and Q.one.s() == 1 and P[int] is not None and not hasattr(v[1], "__dict__")
# ---- TypedDict, total and inheritance
import typing
class A(typing.TypedDict):
    x: int
class B(A, total=False):
    y: typing.Required["str"]
    z: int
def make(): return B(x=1, y="a")
def check(v): assert v == {"x": 1, "y": "a"} and B.__required_keys__ >= {"x"} and "z" in B.__optional_keys__ and not B.__total__
# ---- Protocol, runtime checkable
import typing
T = typing.TypeVar("T", covariant=True)
@typing.runtime_checkable
class Runs(typing.Protocol[T]):
    name: str
    def run(self) -> T: ...
class A:
    name = "a"
    def run(self): return 1
class B(Runs[int]):
    name = "b"
    def run(self): return 2
def make(): return A(), B()
def check(v):
    assert isinstance(v[0], Runs) and isinstance(v[1], Runs) and not isinstance(3, Runs)
    try: Runs()
    except TypeError: pass
    else: raise AssertionError
# ---- generic classes, aliases, subclasses
import typing
K = typing.TypeVar("K"); V = typing.TypeVar("V")
class Box(typing.Generic[K]):
    def __init__(self, x): self.x = x
class Pair(Box[K], typing.Generic[K, V]): pass
IntBox = Box[int]
Nested = typing.Dict[str, typing.List[Box[int]]]
Box.kinds = {Box[int]: "int", Nested: "nested"}
def make(): return IntBox(1), Pair[int, str](2), Nested
def check(v): assert v[0].x == 1 and v[1].x == 2 and Box.kinds[Box[int]] == "int" and v[2] == Nested and Pair.__parameters__ == (K, V)
# ---- Annotated, Literal, NewType, unions with classes
import typing
class A: pass
class Meta:
    def __init__(self, n): self.n = n
Number = typing.NewType("Number", int); Ann = typing.Annotated[A, Meta(3)]
Choice = typing.Literal["a", 1]; Either = A | Meta | None
def f(x: Ann, y: Choice, z: Either) -> Number: return Number(1)
def make(): return Ann, Choice, Either
def check(v): assert v[0].__metadata__[0].n == 3 and v[1] == Choice and v[2] == Either and f(1, 2, 3) == 1 and f.__annotations__["x"].__origin__ is A
# ---- enumerations with methods and properties
import enum
class C(enum.Enum):
    RED = 1
    BLUE = 2
    ALIAS = 1
    def next(self): return C(self.value % 2 + 1)
    @property
    def low(self): return self.name.lower()
    @classmethod
    def first(cls): return cls.RED
    @staticmethod
    def n(): return LIMIT
LIMIT = 2
C.default = C.RED
def make(): return C.BLUE, {C.RED: 1}
def check(v): assert v[0] is C.BLUE and v[1][C.RED] == 1 and v[0].next() is C.RED and C.RED.low == "red" and C.first() is C.ALIAS and C.n() == 2 and C.default is C.RED
# ---- StrEnum, IntEnum, IntFlag, Flag
import enum
class S(enum.StrEnum):
    A = enum.auto()
    B = "b!"
class I(enum.IntEnum):
    ONE = 1
    def up(self): return I(self)
class F(enum.IntFlag):
    R = enum.auto(); W = enum.auto(); RW = R | W
class G(enum.Flag, boundary=enum.CONFORM):
    X = 1; Y = 2; Z = 4
    def has(self): return G.X in self
def make(): return S.A, I.ONE, F.R | F.W, G.X | G.Z
def check(v): assert v[0] is S("a") and v[1] is I.ONE and v[2] is F.RW and v[3].has() and G(15) == G.X | G.Y | G.Z and I.ONE.up() == 1
# ---- enumeration with _missing_, __new__, __init__, _generate_next_value_
import enum
class Named(enum.Enum):
    @staticmethod
    def _generate_next_value_(name, start, count, last): return name.lower()
    @classmethod
    def _missing_(cls, value): return FALLBACK(cls)
class C(Named):
    A = enum.auto(); B = enum.auto()
def FALLBACK(cls): return cls.A
class P(enum.Enum):
    EARTH = (1.0, 2.0)
    MARS = (3.0, 4.0)
    def __init__(self, m, r): self.m = m; self.r = r
class N(int, enum.Enum):
    def __new__(cls, v, label): made = int.__new__(cls, v); made._value_ = v; made.label = label; return made
    ONE = 1, "one"
def make(): return C("zzz"), P.MARS, N.ONE
def check(v): assert v[0] is C.A and C("b") is C.B and v[1] is P.MARS and P.MARS.m == 3.0 and v[2].label == "one" and v[2] == 1 and P((1.0, 2.0)) is P.EARTH
# ---- enumeration whose values are objects
import enum, dataclasses
@dataclasses.dataclass(frozen=True)
class Spec:
    n: int
    def go(self): return E(self)
class E(enum.Enum):
    A = Spec(1); B = Spec(2)
    def n(self): return self.value.n
Spec.default = E.A
def make(): return E.B, Spec(1)
def check(v): assert v[0] is E.B and v[1].go() is E.A and v[0].n() == 2 and Spec.default is E.A and E(Spec(2)) is E.B
# ---- enumeration over a dataclass
import enum, dataclasses
@dataclasses.dataclass
class Creature:
    size: str
    legs: int
    def walk(self): return self.legs * STEP
class Animal(Creature, enum.Enum):
    BEETLE = "small", 6
    DOG = "medium", 4
STEP = 2
def make(): return Animal.DOG
def check(v): assert v is Animal.DOG and v.legs == 4 and v.walk() == 8
# ---- enumeration with a mixin of the notebook and functions for values
import enum, functools
class Mixin:
    def hello(self): return type(self).__name__
    def __str__(self): return "x" + self.name
def op(a): return a + K
K = 1
class E(Mixin, enum.Enum):
    A = enum.member(functools.partial(op)); B = enum.member(functools.partial(abs))
    def __call__(self, x): return self.value(x)
def make(): return E.A
def check(v): assert v is E.A and v(1) == 2 and str(v) == "xA" and v.hello() == "E" and E.B(-1) == 1
# ---- enumeration with a metaclass of its own
import enum
class M(enum.EnumMeta):
    def __contains__(cls, x): return x in {each.value for each in cls}
    def __new__(mcls, name, bases, ns, label=None, **k): made = super().__new__(mcls, name, bases, ns, **k); made.label = label; return made
class E(enum.Enum, metaclass=M, label="l"):
    A = 1
def make(): return E.A
def check(v): assert v is E.A and 1 in E and 2 not in E and E.label == "l"
# ---- enumeration with nested class, unique, verify
import enum
@enum.unique
class E(enum.Enum):
    A = "a"
    @enum.member
    class Inner: n = 1
    @enum.nonmember
    class Other: n = 2
    _ignore_ = ["tmp"]
    tmp = 3
def make(): return E.A, E.Inner
def check(v): assert v[0] is E.A and v[1].value.n == 1 and E.Other.n == 2 and len(E) == 2
# ---- functional enumerations and types
import enum, types, collections, dataclasses, typing
E = enum.Enum("E", "A B")
D = dataclasses.make_dataclass("D", [("x", int), ("y", list, dataclasses.field(default_factory=list))], frozen=True)
N = collections.namedtuple("N", "a b")
T = type("T", (), {"f": lambda self: 1}); X = types.new_class("X", (T,), {}, lambda ns: ns.update(n=2))
U = typing.NamedTuple("U", [("a", int)])
def make(): return E.A, D(1), N(1, 2), T(), X(), U(1)
def check(v): assert v[0] is E.A and v[1] == D(1) and v[2] == N(1, 2) and v[3].f() == 1 and v[4].n == 2 and v[5].a == 1
# ---- classes made in a function, twice
def factory(n):
    class C:
        value = n
        def get(self): return n, C
    C.one = C()
    return C
A = factory(1); B = factory(2)
def make(): return A(), B()
def check(v): assert v[0].get() == (1, A) and v[1].get() == (2, B) and A.one.get()[0] == 1
""",
    ),
]
"""(what every cell begins with, cells)"""
