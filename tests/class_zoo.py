"""A table of classes as people write them; `test_pack_class_zoo` sends each there and back.

A row is a name and a cell.  The cell defines `make`, which gives a value, and `check`, which asserts on one, both in
the session and on the engine.  To add a row, write the cell; everything it needs, imports included, stands in it.
"""

# ruff: noqa: E501 - a row is as short as it can be

from __future__ import annotations

ZOO: dict[str, str] = {}


def _rows(text: str, before: str = "") -> None:
    for part in text.split("\n# ---- ")[1:]:
        name, _, cell = part.partition("\n")
        ZOO[name.strip()] = before + cell


# What happens to classes after their statement, and what instances look like.
_rows("""
# ---- attribute holds a bound classmethod
class Shape:
    @classmethod
    def square(cls): return cls, 4
Shape.makers = {"s": Shape.square}
def make(): return Shape()
def check(v): assert type(v).makers["s"]() == (type(v), 4) and Shape.makers["s"]()[0] is Shape
# ---- attribute holds a bound method of an instance
class A:
    def m(self): return self.n
a = A(); a.n = 3
A.hook = a.m
def make(): return A()
def check(v): assert type(v).hook() == 3 and type(A.hook.__self__) is A
# ---- attribute is an instance of a plain class
class V:
    def __init__(self, x): self.x = x
V.ZERO = V(0)
def make(): return V.ZERO
def check(v): assert v.x == 0 and type(v) is V and V.ZERO.x == 0
# ---- attribute is an instance, __setstate__
class V:
    def __init__(self, x): self.x = x
    def __getstate__(self): return {"y": self.x}
    def __setstate__(self, state): self.x = helper(state["y"])
def helper(y): return y + LIMITS.low
class Limits:
    low = 0
LIMITS = Limits()
V.ZERO = V(7)
def make(): return V.ZERO
def check(v): assert v.x == 7 and V.ZERO.x == 7
# ---- attribute is an instance, __new__
class V:
    def __new__(cls, x):
        made = super().__new__(cls)
        made.x = x
        return made
    def __getnewargs__(self): return (self.x,)
V.ALL = [V(1), V(2)]
def make(): return V(3)
def check(v): assert v.x == 3 and [each.x for each in V.ALL] == [1, 2]
# ---- attribute is an instance, __getnewargs_ex__
class V:
    def __new__(cls, *, x):
        made = super().__new__(cls)
        made.x = x
        return made
    def __getnewargs_ex__(self): return (), {"x": self.x}
V.ONE = V(x=1)
def make(): return V.ONE
def check(v): assert v.x == 1 and V.ONE.x == 1
# ---- attribute is an instance, __reduce__
class V:
    def __init__(self, x, y=None): self.x = x; self.kept = TABLE[x]
    def __reduce__(self): return V, (self.x,)
TABLE = {1: "one"}
V.ONE = V(1)
def make(): return V.ONE
def check(v): assert v.kept == "one" and V.ONE.kept == "one"
# ---- attribute is an instance, __reduce_ex__ with a function
class V:
    def __init__(self, x): self.x = x
    def __reduce_ex__(self, protocol): return rebuild, (self.x,)
def rebuild(x): return V(scale(x))
def scale(x): return x * FACTOR.n
class Factor: n = 1
FACTOR = Factor()
V.ONE = V(1)
def make(): return V.ONE
def check(v): assert v.x == 1 and V.ONE.x == 1
# ---- dataclass with slots and a constant
import dataclasses
@dataclasses.dataclass(slots=True)
class Vec:
    x: int
    y: int
Vec.ZERO = Vec(0, 0)
def make(): return Vec(1, 2)
def check(v): assert v == Vec(1, 2) and Vec.ZERO == Vec(0, 0) and type(Vec.ZERO) is Vec
# ---- frozen dataclass with a constant
import dataclasses
@dataclasses.dataclass(frozen=True)
class Vec:
    x: int
Vec.ZERO = Vec(0)
def make(): return Vec.ZERO
def check(v): assert v == Vec.ZERO and v in {Vec.ZERO} and hash(v) == hash(Vec(0))
# ---- frozen dataclass with slots and a constant
import dataclasses
@dataclasses.dataclass(frozen=True, slots=True)
class Vec:
    x: int
    y: int = 1
Vec.ZERO = Vec(0, 0)
Vec.ALL = {Vec(1), Vec.ZERO}
def make(): return {Vec(1): "one"}
def check(v): assert v[Vec(1)] == "one" and Vec(1) in Vec.ALL and Vec.ZERO in Vec.ALL
# ---- dataclass with __post_init__ and a default instance
import dataclasses
@dataclasses.dataclass(frozen=True)
class Point:
    x: int = 0
@dataclasses.dataclass
class Line:
    a: Point = Point(1)
    b: Point = dataclasses.field(default_factory=lambda: Point(2))
    def __post_init__(self): self.length = self.b.x - self.a.x
Line.UNIT = Line()
def make(): return Line()
def check(v): assert v == Line.UNIT and v.length == 1 and dataclasses.fields(Line)[0].default == Point(1)
# ---- dataclass with InitVar, kw_only and inheritance
import dataclasses
@dataclasses.dataclass(kw_only=True)
class A:
    x: int
    y: dataclasses.InitVar[int] = 2
    def __post_init__(self, y): self.z = self.x + y
@dataclasses.dataclass
class B(A):
    w: int = 0
B.ONE = B(x=1)
def make(): return B(x=1)
def check(v): assert v == B.ONE and v.z == 3 and B(5, x=1).w == 5 and dataclasses.replace(v, x=2, y=0).z == 2
# ---- class holds instances of a subclass
class Base:
    def who(self): return type(self).__name__
class Child(Base):
    def __init__(self): self.n = 1
    def __setstate__(self, state): self.__dict__.update(state); assert self.who() == "Child"
Base.default = Child()
def make(): return Base()
def check(v): assert v.default.who() == "Child" and v.default.n == 1 and isinstance(Base.default, Child)
# ---- two classes hold instances of each other
class A:
    def __init__(self, n): self.n = n
    def __setstate__(self, s): self.n = s["n"]; B
    def __hash__(self): return hash(("A", self.n))
    def __eq__(self, other): return type(other) is A and self.n == other.n
class B:
    def __init__(self, n): self.n = n
    def __setstate__(self, s): self.n = s["n"]; A
    def __hash__(self): return hash(("B", self.n))
    def __eq__(self, other): return type(other) is B and self.n == other.n
A.bs = {B(1): "x"}; B.as_ = {A(1), A(2)}
def make(): return A(5), B(6)
def check(v): assert v[0].bs[B(1)] == "x" and A(2) in v[1].as_ and v == (A(5), B(6))
# ---- default argument is an instance of the class
class A:
    def __init__(self, n): self.n = n
    def __setstate__(self, s): self.n = s["n"]; self.check()
    def check(self): return True
    def plus(self, other=None): return self.n + other.n
A.plus.__defaults__ = (A(10),)
def make(): return A(1)
def check(v): assert v.plus() == 11
# ---- closure holds an instance of the class
def build():
    class A:
        def __init__(self, n): self.n = n
        def get(self): return one.n + self.n
        def __setstate__(self, s): self.n = s["n"]; assert self.ok()
        def ok(self): return A is type(self)
    one = A(1)
    return A
A = build()
def make(): return A(2)
def check(v): assert v.get() == 3
# ---- method uses a global instance
class A:
    def __init__(self, n): self.n = n
    def __setstate__(self, s): self.n = s["n"] * TWO
    def __getstate__(self): return {"n": self.n / TWO}
    def get(self): return ONE.n
TWO = 2
ONE = A(1)
def make(): return A(5)
def check(v): assert v.get() == 1 and v.n == 5
# ---- function attribute holds an instance
class A:
    def __init__(self, n): self.n = n
    def __setstate__(self, s): self.n = s["n"]; self.ok()
    def ok(self): pass
def f(): return f.default.n
f.default = A(4)
def make(): return A(1)
def check(v): assert f() == 4
# ---- instances as keys of a set
class K:
    def __init__(self, n): self.n = n
    def __hash__(self): return hash(self.n)
    def __eq__(self, other): return self.n == other.n
    def find(self): return self in KEPT, NAMES[self]
KEPT = {K(1), K(2)}
NAMES = {K(1): "one"}
def make(): return {K(1), K(3)}
def check(v): assert K(3) in v and K(2) in KEPT and NAMES[K(1)] == "one" and K(1).find() == (True, "one")
# ---- frozenset, defaultdict, OrderedDict and Counter with instances
import collections
class K:
    def __init__(self, *n): self.n = n
    def __hash__(self): return hash(self.n)
    def __eq__(self, other): return self.n == other.n
    ALL = ()
K.ALL = frozenset([K(1)]), collections.defaultdict(list, {K(1): [2]}), collections.OrderedDict({K(1): 1})
K.COUNTS = collections.Counter([K(1), K(1)])
def make(): return K.ALL, K.COUNTS
def check(v):
    for (a, b, c), d in (v, (K.ALL, K.COUNTS)):
        assert K(1) in a and b[K(1)] == [2] and c[K(1)] == 1 and d[K(1)] == 2 and b[K(9)] == []
# ---- hash of an attribute object
class Name:
    def __init__(self, text): self.text = text
    def __hash__(self): return hash(self.text)
    def __eq__(self, other): return self.text == other.text
class Item:
    def __init__(self, text): self.name = Name(text)
    def __hash__(self): return hash(self.name)
    def __eq__(self, other): return self.name == other.name
Name.known = {Item("a"): {Name("b")}}
def make(): return {Item("x"): 1}
def check(v): assert v[Item("x")] == 1 and Name("b") in Name.known[Item("a")]
# ---- an object in its own set
class N:
    def __init__(self, n): self.n = n; self.group = {self}
    def __hash__(self): return hash(self.n)
    def __eq__(self, other): return self.n == other.n
def make(): return N(3)
def check(v): assert v in v.group and N(3) in v.group and len(v.group) == 1 and next(iter(v.group)) is v
# ---- an object as a key of its own dict
class N:
    def __init__(self, n): self.n = n; self.names = {self: "me"}
    def __hash__(self): return hash(self.n)
    def __eq__(self, other): return self.n == other.n
def make(): return [N("a")]
def check(v): assert v[0].names[N("a")] == "me" and [*v[0].names][0] is v[0]
# ---- friends in sets of one another
class P:
    def __init__(self, name): self.name = name; self.friends = set()
    def __hash__(self): return hash(self.name)
    def __eq__(self, other): return self.name == other.name
def make():
    a, b, c = P("a"), P("b"), P("c")
    a.friends |= {b, c}; b.friends |= {a, c}; c.friends |= {a, b, c}
    return a
def check(v):
    assert P("b") in v.friends and P("c") in v.friends and len(v.friends) == 2
    b = next(each for each in v.friends if each.name == "b")
    assert v in b.friends and P("a") in b.friends and P("c") in b.friends
# ---- children whose hash asks their parent
class Tree:
    def __init__(self, name): self.name = name; self.children = set()
    def add(self, name): self.children.add(Node(self, name)); return self
class Node:
    def __init__(self, parent, name): self.parent = parent; self.name = name
    def __hash__(self): return hash((self.parent.name, self.name))
    def __eq__(self, other): return (self.parent.name, self.name) == (other.parent.name, other.name)
def make(): return Tree("t").add("x").add("y")
def check(v): assert Node(v, "x") in v.children and Node(v, "y") in v.children and len(v.children) == 2
# ---- a frozen dataclass that a registry of its own class holds
import dataclasses
@dataclasses.dataclass(frozen=True)
class Unit:
    name: str
    registry = {}
    def __post_init__(self): type(self).registry[self] = self.name
M = Unit("m"); S = Unit("s")
def make(): return Unit.registry
def check(v): assert Unit.registry[Unit.__new__(Unit) if False else M] == "m" and v[S] == "s" and len(v) == 2
# ---- defaultdict subclass with instances in it
import collections
class K(str):
    def __hash__(self): return hash(self.lower())
    def __eq__(self, other): return self.lower() == other.lower()
class Table(collections.defaultdict): pass
K.T = Table(int, {K("A"): 1})
def make(): return K.T
def check(v): assert v[K("a")] == 1 and K.T[K("a")] == 1
# ---- dict subclass and list subclass with state
class D(dict):
    def __init__(self, *a): super().__init__(*a); self.mark = 1
class L(list):
    def __init__(self, *a): super().__init__(*a); self.mark = 2
D.one = D(a=1) if False else D({"a": 1}); L.one = L([D.one])
def make(): return D.one, L.one
def check(v): assert v[0] == {"a": 1} and v[0].mark == 1 and v[1].mark == 2 and L.one[0] is D.one
""")

# Metaclasses, hooks and descriptors.
_rows("""
# ---- metaclass keywords
class M(type):
    def __new__(mcls, name, bases, ns, x): return super().__new__(mcls, name, bases, {**ns, "x": x})
    def __init__(cls, name, bases, ns, x): super().__init__(name, bases, ns)
class A(metaclass=M, x=1): pass
class B(A, x=2): pass
def make(): return B()
def check(v): assert type(v).x == 2 and A.x == 1 and type(B) is M
# ---- __init_subclass__ keywords
class Base:
    seen = []
    def __init_subclass__(cls, /, tag, **more): super().__init_subclass__(**more); cls.tag = tag; cls.seen.append(cls)
class A(Base, tag="a"): pass
class B(A, tag="b"): pass
def make(): return B()
def check(v): assert v.tag == "b" and A.tag == "a" and Base.seen == [A, B]
# ---- metaclass that checks the body
class M(type):
    def __new__(mcls, name, bases, ns):
        if "run" not in ns or not ns.get("__doc__"): raise TypeError("no run")
        return super().__new__(mcls, name, bases, ns)
class A(metaclass=M):
    "Something."
    def run(self): return 1
def make(): return A()
def check(v):
    assert v.run() == 1
    try: M("X", (), {})
    except TypeError: pass
    else: raise AssertionError
# ---- metaclass that refuses a second class of a name
class M(type):
    known = {}
    def __init__(cls, name, bases, ns):
        if name in M.known: raise ValueError(name)
        M.known[name] = cls
        super().__init__(name, bases, ns)
class A(metaclass=M): pass
class B(A): pass
def make(): return B()
def check(v): assert M.known == {"A": A, "B": B}
# ---- metaclass with __prepare__ and order
class M(type):
    @classmethod
    def __prepare__(mcls, name, bases, **k): return Tracking()
    def __new__(mcls, name, bases, ns, **k):
        made = super().__new__(mcls, name, bases, dict(ns)); made.order = [n for n in ns if n[0] != "_"]; return made
class Tracking(dict): pass
class A(metaclass=M, deep=True):
    b = 1
    a = 2
def make(): return A()
def check(v): assert v.order == ["b", "a"]
# ---- metaclass with __call__, singletons
class Single(type):
    kept = {}
    def __call__(cls, *a):
        if cls not in cls.kept: cls.kept[cls] = super().__call__(*a)
        return cls.kept[cls]
class A(metaclass=Single):
    def __init__(self): self.n = 4
A()
def make(): return [A]
def check(v): assert A().n == 4 and A() is A()
# ---- metaclass over ABCMeta
import abc
class M(abc.ABCMeta):
    def __new__(mcls, name, bases, ns, **k): return super().__new__(mcls, name, bases, ns)
class A(metaclass=M, extra=1):
    @abc.abstractmethod
    def f(self): ...
    @classmethod
    @abc.abstractmethod
    def g(cls): ...
class B(A):
    def f(self): return 1
    @classmethod
    def g(cls): return 2
@A.register
class C: pass
def make(): return B()
def check(v):
    assert isinstance(v, A) and isinstance(C(), A) and v.g() == 2
    try: A()
    except TypeError: pass
    else: raise AssertionError
# ---- metaclass with __getattr__, __setattr__, __iter__, __len__
class M(type):
    def __getattr__(cls, name): return "no " + name
    def __setattr__(cls, name, value): raise AttributeError("fixed")
    def __iter__(cls): return iter(ITEMS)
    def __len__(cls): return 3
class A(metaclass=M):
    n = 1
ITEMS = [1, 2]
def make(): return A()
def check(v): assert A.foo == "no foo" and list(A) == [1, 2] and len(A) == 3 and A.n == 1
# ---- metaclass with a hash of its own
class M(type):
    def __hash__(cls): return hash(cls.__name__)
    def __eq__(cls, other): return cls is other
class A(metaclass=M): pass
REG = {A: "a"}
def make(): return REG
def check(v): assert v[A] == "a" and REG[A] == "a"
# ---- metaclass property and classmethod
class M(type):
    @property
    def size(cls): return cls.n * 2
class A(metaclass=M):
    n = 2
A.copy = A()
def make(): return A
def check(v): assert v.size == 4
# ---- abstract base class, registrations, subclass hook
import abc
class A(abc.ABC):
    @classmethod
    def __subclasshook__(cls, other): return True if MARK in vars(other) else NotImplemented
    @property
    @abc.abstractmethod
    def p(self): ...
MARK = "quack"
@A.register
class B: pass
class C:
    quack = 1
def make(): return B(), C()
def check(v): assert isinstance(v[0], A) and isinstance(v[1], A) and A.__abstractmethods__ == {"p"}
# ---- library class with __init_subclass__ keywords
import string
class T(string.Template):
    delimiter = "%"
    idpattern = "[a-z]+"
T.one = T("%a")
def make(): return T("%x")
def check(v): assert v.substitute(x=1) == "1" and T.one.substitute(a=2) == "2"
# ---- collections.abc classes
import collections.abc
class S(collections.abc.MutableMapping):
    def __init__(self): self.d = {}
    def __getitem__(self, k): return self.d[k]
    def __setitem__(self, k, v): self.d[k] = v
    def __delitem__(self, k): del self.d[k]
    def __iter__(self): return iter(self.d)
    def __len__(self): return len(self.d)
S.one = S(); S.one["a"] = 1
def make(): return S.one
def check(v): assert dict(v) == {"a": 1} and S.one["a"] == 1 and isinstance(v, collections.abc.Mapping)
# ---- descriptor with __set_name__
class Field:
    def __set_name__(self, owner, name): self.owner = owner; self.name = name; owner.names = [*getattr(owner, "names", ()), name]
    def __get__(self, obj, cls=None): return self if obj is None else obj.__dict__.get(self.name, 0)
    def __set__(self, obj, value): obj.__dict__[self.name] = value
class A:
    x = Field()
    y = Field()
def make(): a = A(); a.x = 3; return a
def check(v): assert v.x == 3 and v.y == 0 and A.names == ["x", "y"] and A.x.owner is A
# ---- properties, cached_property, setters
import functools
class A:
    def __init__(self): self._x = 1
    @property
    def x(self):
        "doc of x"
        return self._x
    @x.setter
    def x(self, v): self._x = v
    @functools.cached_property
    def y(self): return self.x + OFFSET
    z = property(None, lambda self, v: None)
OFFSET = 10
def make(): return A()
def check(v): v.x = 2; assert v.y == 12 and v.y == 12 and A.x.__doc__ == "doc of x" and A.x.fset is not None
# ---- slots, inheritance, weak references
import weakref
class A:
    __slots__ = ("a", "__private", "__weakref__")
    def __init__(self): self.a = 1; self.__private = 2
    def private(self): return self.__private
class B(A):
    __slots__ = ("b",)
    def __init__(self): super().__init__(); self.b = 3
class C(B): pass
def make(): return B(), C()
def check(v):
    b, c = v
    assert (b.a, b.b, b.private()) == (1, 3, 2) and not hasattr(b, "__dict__") and weakref.ref(b)() is b
    c.d = 4; assert c.d == 4
# ---- slots given by an iterator and by a dict
class A:
    __slots__ = iter(["a", "b"])
class B:
    __slots__ = {"a": "doc of a"}
def make(): b = B(); b.a = 2; return A, b
def check(v):
    a = v[0](); a.a = 1
    assert v[0].b and v[1].a == 2 and B.__slots__["a"] == "doc of a" and not hasattr(a, "__dict__")
# ---- super() without arguments in every kind of method
class A:
    def m(self): return 1
    @classmethod
    def c(cls): return 2
    @staticmethod
    def s(): return 3
    @property
    def p(self): return 4
    def __init_subclass__(cls): super().__init_subclass__(); cls.made = __class__
    def __new__(cls): return super().__new__(cls)
    def __getattr__(self, n): raise AttributeError(n)
class B(A):
    def m(self): return super().m() + 10
    @classmethod
    def c(cls): return super().c() + 10
    @staticmethod
    def s(): return super(__class__, __class__).s() + 10
    @property
    def p(self): return super().p + 10
    def who(self): return __class__
    l = lambda self: super().m()
B.one = B()
def make(): return B()
def check(v): assert (v.m(), v.c(), v.s(), v.p, v.l(), v.who(), v.made) == (11, 12, 13, 14, 1, B, A)
# ---- nested classes, local classes
class Outer:
    class Inner:
        def up(self): return Outer
        class Deep:
            n = 1
    def get(self):
        class Local(Outer.Inner): pass
        return Local
Outer.Inner.one = Outer.Inner(); Outer.kept = Outer().get()()
def make(): return Outer.Inner(), Outer().get()()
def check(v): assert v[0].up() is Outer and isinstance(v[1], Outer.Inner) and Outer.Inner.Deep.n == 1 and Outer.kept.up() is Outer
# ---- exceptions with an __init__ of their own
class E(Exception):
    def __init__(self, code, *, why): super().__init__(f"{why} {code}"); self.code = code
class F(E):
    def __str__(self): return NAMES[self.code]
NAMES = {1: "one"}
E.known = [F(1, why="x")]
def make(): return F(1, why="y")
def check(v): assert str(v) == "one" and v.code == 1 and E.known[0].code == 1
# ---- __class_getitem__, __del__, __call__, __missing__
class A:
    def __class_getitem__(cls, item): return (cls, item)
    def __del__(self): GONE.append(1)
    def __call__(self, x): return x + 1
class D(dict):
    def __missing__(self, k): return k * 2
GONE = []
A.d = D(a=1)
def make(): return A(), D()
def check(v): assert A[int] == (A, int) and v[0](1) == 2 and v[1]["x"] == "xx" and A.d["b"] == "bb"
# ---- singledispatchmethod, total_ordering, partialmethod
import functools
@functools.total_ordering
class A:
    def __init__(self, n): self.n = n
    def __eq__(self, other): return self.n == other.n
    def __lt__(self, other): return self.n < other.n
    __hash__ = None
    @functools.singledispatchmethod
    def kind(self, x): return "other"
    @kind.register
    def _(self, x: int): return "int"
    @kind.register(list)
    def _(self, x): return [self.kind(each) for each in x]
    def add(self, a, b): return a + b + self.n
    add1 = functools.partialmethod(add, 1)
    @functools.lru_cache
    def cached(self_cls): return 5
A.__hash__ = lambda self: 1
A.low = A(-1)
def make(): return A(2)
def check(v): assert v >= A(1) and v.kind(1) == "int" and v.kind([1, "a"]) == ["int", "other"] and v.add1(2) == 5 and A.low < v and v.cached() == 5
# ---- singledispatchmethod over classes of the notebook
import functools
class X: pass
class Y(X): pass
class A:
    @functools.singledispatchmethod
    def kind(self, x): return "other"
    @kind.register
    def _(self, x: X): return "x", type(x) is Y
@functools.singledispatch
def f(x): return 0
@f.register
def _(x: A): return f(x.child) + 1 if hasattr(x, "child") else 1
A.zero = A(); f.a = A.zero
def make(): a = A(); a.child = Y(); return a
def check(v): assert v.kind(v.child) == ("x", True) and f(v) == 1 and v.kind(3) == "other" and f(A.zero) == 1
# ---- multiple inheritance, mixins, diamonds
class R:
    def f(self): return ["R"]
class A(R):
    def f(self): return ["A", *super().f()]
class B(R):
    def f(self): return ["B", *super().f()]
class C(A, B):
    def f(self): return ["C", *super().f()]
R.every = [C(), A(), B()]
def make(): return C()
def check(v): assert v.f() == ["C", "A", "B", "R"] and [type(each) for each in R.every] == [C, A, B]
# ---- int, str, tuple, float, bytes subclasses
class I(int):
    def twice(self): return I(self * 2)
class S(str):
    def __new__(cls, s, extra=None): made = super().__new__(cls, s); made.extra = extra; return made
class T(tuple):
    def __new__(cls, *a): return super().__new__(cls, a)
    def __getnewargs__(self): return tuple(self)
I.one = I(1); S.one = S("a", 1); T.one = T(1, 2)
def make(): return I(2), S("x", 5), T(1)
def check(v): assert v[0].twice() == 4 and v[1].extra == 5 and v[2] == (1,) and I.one == 1 and S.one.extra == 1 and T.one == (1, 2)
# ---- class whose attribute is a lock made on demand, threading.local aside
import functools
class Meta(type):
    @functools.cache
    def table(cls): return {n: v for n, v in vars(cls).items() if n[0] != "_"}
class A(metaclass=Meta):
    x = 1
A.table()
def make(): return A
def check(v): assert v.table()["x"] == 1
# ---- weak registries in a class
import weakref
class A:
    def __init__(self): self.n = 1
    kept = []
A.kept.append(A())
def make(): return A
def check(v): assert v.kept[0].n == 1 and type(v.kept[0]) is v
# ---- decorated classes and class decorators that replace
def deco(cls):
    class Wrapped(cls):
        def extra(self): return 1
        original = cls
    Wrapped.__name__ = cls.__name__; Wrapped.__qualname__ = cls.__qualname__
    return Wrapped
@deco
class A:
    def f(self): return 2
A.one = A()
def make(): return A()
def check(v): assert v.extra() == 1 and v.f() == 2 and type(v) is A and A.original is not A
# ---- decorated methods
import functools, contextlib
def logged(f):
    @functools.wraps(f)
    def wrapper(self, *a): LOG.append(f.__name__); return f(self, *a)
    return wrapper
LOG = []
class A:
    @logged
    def f(self, x): return x
    @contextlib.contextmanager
    def ctx(self): yield self
    @classmethod
    @logged
    def g(cls): return cls
def make(): return A()
def check(v):
    assert v.f(1) == 1 and A.g() is A and A.f.__name__ == "f" and A.f.__wrapped__ is not None
    with v.ctx() as w: assert w is v
# ---- abstract members spelled in the old ways
import abc
class A(abc.ABC):
    @abc.abstractclassmethod
    def c(cls): ...
    @abc.abstractstaticmethod
    def s(): ...
    @abc.abstractproperty
    def p(self): ...
def make(): return A
def check(v): assert A.__abstractmethods__ == {"c", "s", "p"}
# ---- copy, deepcopy and equality hooks
import copy
class A:
    def __init__(self): self.items = [1]
    def __deepcopy__(self, memo): made = A(); made.deep = True; return made
    def __eq__(self, other): return self.items == other.items
    def __bool__(self): return False
    def __len__(self): return 0
A.proto = A()
def make(): return A()
def check(v): assert copy.deepcopy(v).deep and A.proto == v and not v
# ---- equality that cannot be asked before state is there
class A:
    def __init__(self, n): self.n = n
    def __eq__(self, other): return self.n == other.n
    def __hash__(self): return self.n
    def __repr__(self): return f"A({self.n})"
    def __lt__(self, other): return self.n < other.n
A.pairs = {(A(1), A(2)): A(3)}; A.sorted = sorted([A(2), A(1)])
def make(): return A.pairs
def check(v): assert v[(A(1), A(2))] == A(3) and A.pairs[(A(1), A(2))].n == 3
# ---- graphs of objects: linked lists, parents, back references
class Node:
    def __init__(self, v): self.v = v; self.next = self.prev = None
def make():
    first = last = Node(0)
    for i in range(1, 50): n = Node(i); last.next = n; n.prev = last; last = n
    first.prev = last; last.next = first
    return first
Node.EMPTY = make()
def check(v): assert v.prev.v == 49 and v.prev.next is v and Node.EMPTY.next.prev is Node.EMPTY
# ---- __getattr__ that recurses when there is no state
class Proxy:
    def __init__(self, inner): self.inner = inner
    def __getattr__(self, name): return getattr(self.inner, name)
    def __getstate__(self): return self.inner
    def __setstate__(self, inner): self.inner = inner
Proxy.one = Proxy([1])
def make(): return Proxy("abc")
def check(v): assert v.upper() == "ABC" and Proxy.one.index(1) == 0
# ---- context variables of a class: __annotations__, __doc__, __match_args__
class A:
    "The doc."
    x: int
    y: "str" = "a"
    __match_args__ = ("x", "y")
    def __init__(self, x): self.x = x
def make(): return A(1)
def check(v):
    match v:
        case A(1, "a"): pass
        case _: raise AssertionError
    assert A.__doc__ == "The doc." and A.__annotations__ == {"x": int, "y": "str"}
""")

# typing and enum.
_rows("""
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
""")

# Libraries.
_rows(
    """
# ---- Struct with everything
class S(msgspec.Struct, frozen=True, kw_only=True, tag="s", rename="camel"):
    first_name: str
    items: list[int] = []
    made: dict = msgspec.field(default_factory=lambda: {"a": LIMIT})
    def total(self): return sum(self.items)
    @property
    def p(self): return LIMIT
LIMIT = 4
def make(): return S(first_name="a", items=[1, 2])
def check(v):
    assert v.total() == 3 and v.p == 4 and v == S(first_name="a", items=[1, 2], made={"a": 4}) and hash(S(first_name="b", items=(), made=())) is not None
    assert msgspec.json.decode(msgspec.json.encode(v), type=S) == v and b"firstName" in msgspec.json.encode(v)
# ---- Struct array_like, order, __post_init__, inheritance
class A(msgspec.Struct, array_like=True, order=True):
    x: int
    y: int = 2
    def __post_init__(self): CALLS.append(self.x); assert self.x >= 0
class B(A, frozen=False, tag=7):
    z: str = "z"
CALLS = []
A.zero = A(0)
def make(): return B(1), A(3)
def check(v): assert v[0].z == "z" and v[1] < A(4) and A.zero.x == 0 and msgspec.json.encode(v[1]) == b"[3,2]" and msgspec.json.encode(v[0]) == b'[7,1,2,"z"]'
# ---- Struct that refers to itself and to others
import typing
class Leaf(msgspec.Struct): n: int
class Tree(msgspec.Struct):
    leaf: Leaf
    kids: "list[Tree]" = []
    best: typing.Optional["Tree"] = None
    kind: typing.ClassVar[str] = "k"
def make(): return Tree(Leaf(1), [Tree(Leaf(2))])
def check(v): assert v.kids[0].leaf.n == 2 and Tree.kind == "k" and msgspec.json.decode(msgspec.json.encode(v), type=Tree) == v
# ---- Struct with generic parameter and default object
import typing
T = typing.TypeVar("T")
class D(msgspec.Struct, frozen=True): n: int = 3
class G(msgspec.Struct, typing.Generic[T], forbid_unknown_fields=True, omit_defaults=True):
    x: T
    d: D = D()
def make(): return G(1)
def check(v): assert v.d == D(3) and msgspec.json.decode(b'{"x":5}', type=G[int]).x == 5
# ---- Struct weakref, dict and a metaclass of one's own
import weakref
class M(type(msgspec.Struct)):
    def extra(cls): return 1
class S(msgspec.Struct, metaclass=M, weakref=True, dict=True):
    x: int
def make(): return S(1)
def check(v): v.more = 2; assert weakref.ref(v)() is v and S.extra() == 1
""",
    "import msgspec\n",
)
_rows(
    """
# ---- ctypes Structure with a pointer to itself
class Node(ctypes.Structure): pass
Node._fields_ = [("next", ctypes.POINTER(Node)), ("v", ctypes.c_int)]
def make(): return Node
def check(v):
    a = v(None, 1); b = v(ctypes.pointer(a), 2)
    assert b.next.contents.v == 1 and ctypes.sizeof(v) == 16 and v is Node
# ---- ctypes Structure, Union, packing, arrays, methods
class P(ctypes.Structure):
    _pack_ = 1
    _fields_ = [("x", ctypes.c_int8), ("y", ctypes.c_int32 * 2)]
    def total(self): return self.x + sum(self.y)
class U(ctypes.Union):
    _anonymous_ = ("p",)
    _fields_ = [("p", P), ("raw", ctypes.c_uint8 * 9)]
class W(ctypes.BigEndianStructure):
    _fields_ = [("a", ctypes.c_uint16), ("b", ctypes.c_uint16, 4)]
class C(P):
    _fields_ = [("z", ctypes.c_int8), ("many", P * 2)]
def make(): return P(1, (2, 3)), U, W(1), C(1, (1, 1), 5)
def check(v): assert v[0].total() == 6 and ctypes.sizeof(P) == 9 and v[1](p=P(7)).x == 7 and bytes(v[2])[:2] == b"\\0\\1" and v[3].z == 5 and ctypes.sizeof(C) == 28
# ---- ctypes structures that refer to each other
class A(ctypes.Structure): pass
class B(ctypes.Structure): pass
A._fields_ = [("b", ctypes.POINTER(B)), ("n", ctypes.c_int)]
B._fields_ = [("a", A), ("f", ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(A)))]
def make(): return A, B, ctypes.POINTER(A), A * 3
def check(v):
    b = B(A(None, 4)); assert b.a.n == 4 and ctypes.sizeof(B) == 24 and v[2] is ctypes.POINTER(A) and ctypes.sizeof(v[3]) == 48
# ---- ctypes instances
class P(ctypes.Structure):
    _fields_ = [("x", ctypes.c_int)]
class I(ctypes.c_int):
    def plus(self): return self.value + 1
P.ZERO = P(0)
def make(): return P(5), (P * 2)(P(1), P(2)), I(3)
def check(v): assert v[0].x == 5 and v[1][1].x == 2 and v[2].plus() == 4 and P.ZERO.x == 0
""",
    "import ctypes\n",
)
_rows(
    """
# ---- pydantic model with a field_validator
class M(pydantic.BaseModel):
    x: int
    name: str = "a"
    @pydantic.field_validator("x")
    @classmethod
    def positive(cls, v):
        if v < LOW: raise ValueError("low")
        return v
LOW = 0
def make(): return M(x=1)
def check(v):
    assert v == M(x="1") and M.model_validate_json('{"x": 3}').x == 3 and v.model_dump() == {"x": 1, "name": "a"}
    try: M(x=-1)
    except pydantic.ValidationError: pass
    else: raise AssertionError
# ---- pydantic nested models, model_validator, serializers
import typing, datetime
class Inner(pydantic.BaseModel):
    n: typing.Annotated[int, pydantic.Field(gt=0)]
    when: datetime.date = datetime.date(2020, 1, 1)
    @pydantic.field_serializer("n")
    def show(self, n): return n + EXTRA
class Outer(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(frozen=True)
    inner: Inner = Inner(n=1)
    many: list[Inner] = pydantic.Field(default_factory=list)
    @pydantic.model_validator(mode="after")
    def whole(self):
        if len(self.many) > 2: raise ValueError("many")
        return self
    @pydantic.computed_field
    @property
    def size(self) -> int: return len(self.many)
EXTRA = 100
Outer.DEFAULT = Outer()
def make(): return Outer(many=[{"n": 2}])
def check(v):
    assert v.many[0].n == 2 and v.model_dump()["many"][0]["n"] == 102 and v.size == 1 and Outer.DEFAULT.inner.n == 1 and "properties" in Outer.model_json_schema()
    try: Outer(many=[{"n": 1}] * 3)
    except pydantic.ValidationError: pass
    else: raise AssertionError
# ---- pydantic generic models, inheritance, self reference
import typing
T = typing.TypeVar("T")
class Page(pydantic.BaseModel, typing.Generic[T]):
    items: list[T]
class Base(pydantic.BaseModel):
    id: int = 0
    _private: int = pydantic.PrivateAttr(default=5)
    @pydantic.field_validator("id")
    def even(cls, v): return v * 2
class Child(Base):
    child: "Child | None" = None
IntPage = Page[int]
def make(): return Page[Base](items=[Base(id=1)]), Child(child=Child(id=1)), IntPage(items=["1"])
def check(v): assert v[0].items[0].id == 2 and v[1].child.id == 2 and v[1]._private == 5 and v[2].items == [1] and Page[int](items=[2]).items == [2] and isinstance(v[1], Base)
# ---- pydantic root validators, aliases, discriminated unions, root models
import typing
class Cat(pydantic.BaseModel):
    kind: typing.Literal["cat"] = "cat"
class Dog(pydantic.BaseModel):
    kind: typing.Literal["dog"] = "dog"
    @pydantic.model_validator(mode="before")
    @classmethod
    def fill(cls, data): return data
class Owner(pydantic.BaseModel):
    pet: typing.Union[Cat, Dog] = pydantic.Field(discriminator="kind", alias="thePet")
class Many(pydantic.RootModel[list[Cat]]): pass
def make(): return Owner(thePet={"kind": "dog"}), Many([{}])
def check(v): assert type(v[0].pet) is Dog and type(v[1].root[0]) is Cat and type(Owner(thePet={"kind": "cat"}).pet) is Cat
# ---- pydantic dataclass
@pydantic.dataclasses.dataclass
class D:
    x: int
    y: int = 1
    @pydantic.field_validator("x")
    @classmethod
    def ok(cls, v): return v + ONE
ONE = 1
D.ZERO = D(0)
def make(): return D("1")
def check(v): assert v.x == 2 and D("4").x == 5 and D.ZERO.x == 1
""",
    "import pydantic\n",
)
_rows(
    """
# ---- attrs define with slots, validators, converters
@attrs.define
class A:
    x: int = attrs.field(converter=int, validator=attrs.validators.ge(0))
    y: list = attrs.Factory(list)
    @x.validator
    def _check(self, attribute, value):
        if value > TOP: raise ValueError
    def up(self): return __class__(self.x + 1)
TOP = 10
A.ZERO = A(0)
def make(): return A("3")
def check(v):
    assert v == A(3) and v.up() == A(4) and A.ZERO == A(0) and not hasattr(v, "__dict__") and attrs.asdict(v) == {"x": 3, "y": []}
    try: A(11)
    except ValueError: pass
    else: raise AssertionError
# ---- attrs frozen, hash, inheritance, keys
@attrs.frozen
class K:
    a: int
    b: "K | None" = None
@attrs.frozen
class L(K):
    c: int = 0
    def __attrs_post_init__(self): object.__setattr__(self, "c", 7)
K.NAMES = {K(1): "one", L(2): "two"}
def make(): return {K(1, K(2))}, L(1)
def check(v): assert K(1, K(2)) in v[0] and v[1].c == 7 and K.NAMES[K(1)] == "one" and K.NAMES[L(2)] == "two"
# ---- attrs classic with __dict__ and cached_property in slots
import attr, functools
@attr.s(auto_attribs=True)
class A:
    x: int = 1
@attrs.define
class B:
    n: int = 2
    @functools.cached_property
    def twice(self): return self.n * 2
A.one = A(); B.one = B()
def make(): return A(2), B(3)
def check(v): assert v[0].x == 2 and v[1].twice == 6 and B.one.n == 2 and A.one == A(1)
""",
    "import attrs\n",
)
_rows("""
# ---- traitlets
import traitlets
class T(traitlets.HasTraits):
    n = traitlets.Int(3)
    names = traitlets.List(traitlets.Unicode())
    @traitlets.observe("n")
    def _changed(self, change): self.seen = change["new"]
    @traitlets.default("names")
    def _names(self): return ["a"]
def make(): return T(n=4)
def check(v): v.n = 5; v.n = 6; assert v.n == 6 and v.seen == 6 and v.names == ["a"] and T().n == 3
# ---- declarative registry in the manner of an ORM
class Column:
    def __init__(self, kind): self.kind = kind
    def __set_name__(self, owner, name): self.name = name; self.table = owner
    def __hash__(self): return hash(self.name)
    def __eq__(self, other): return self.name == other.name
class ModelMeta(type):
    registry = {}
    def __new__(mcls, name, bases, ns, table=None, abstract=False):
        cls = super().__new__(mcls, name, bases, ns)
        cls.columns = {v: k for k, v in ns.items() if isinstance(v, Column)}
        if not abstract:
            if name in mcls.registry: raise ValueError("table is defined twice: " + name)
            mcls.registry[name] = cls; cls.table = table or name.lower()
        return cls
class Model(metaclass=ModelMeta, abstract=True):
    def __init__(self, **k): self.__dict__.update(k)
    @classmethod
    def find(cls, name): return cls.registry_of()[name]
    @staticmethod
    def registry_of(): return ModelMeta.registry
class User(Model, table="users"):
    name = Column(str)
class Post(Model):
    user = Column(User)
    title = Column(str)
def make(): return User(name="a"), Post(title="t")
def check(v): assert v[1].find("User") is User and User.table == "users" and Post.columns[Post.user] == "user" and Post.user.table is Post and len(ModelMeta.registry) == 2
# ---- numpy subclasses and structured constants
import numpy as np
class A(np.ndarray):
    def __new__(cls, data, unit="m"): made = np.asarray(data).view(cls); made.unit = unit; return made
    def __array_finalize__(self, obj): self.unit = getattr(obj, "unit", None)
    def __reduce__(self): f, a, s = super().__reduce__(); return f, a, (*s, self.unit)
    def __setstate__(self, s): self.unit = s[-1]; super().__setstate__(s[:-1])
A.ORIGIN = A([0, 0], "km")
def make(): return A([1, 2])
def check(v): assert v.unit == "m" and A.ORIGIN.unit == "km" and (v + 1).unit == "m" and v.sum() == 3
# ---- pandas extension of a DataFrame
import pandas as pd
class F(pd.DataFrame):
    @property
    def _constructor(self): return F
    def total(self): return int(self["x"].sum())
F.ONE = F({"x": [1, 2]})
def make(): return F({"x": [3]})
def check(v): assert v.total() == 3 and F.ONE.total() == 3 and type(v) is F
# ---- sklearn estimator of one's own
from sklearn.base import BaseEstimator, TransformerMixin
class Scale(TransformerMixin, BaseEstimator):
    def __init__(self, k=2): self.k = k
    def fit(self, X, y=None): return self
    def transform(self, X): return [x * self.k for x in X]
Scale.default = Scale(3)
def make(): return Scale(5)
def check(v): assert v.transform([1]) == [5] and Scale.default.get_params() == {"k": 3} and type(v) is Scale
# ---- threads, contexts and iterators by class
import threading, contextlib
class T(threading.local): n = 1
class C(contextlib.ContextDecorator):
    def __enter__(self): LOG.append(1); return self
    def __exit__(self, *a): return False
class It:
    def __init__(self, n): self.n = n
    def __iter__(self): return self
    def __next__(self):
        if not self.n: raise StopIteration
        self.n -= 1; return self.n
LOG = []
C.shared = C()
@C.shared
def work(): return len(LOG)
def make(): return It(2), C, T
def check(v): v[0].n = 2; assert list(v[0]) == [1, 0] and work() >= 1 and v[2].n == 1
""")

NEW_SYNTAX: dict[str, str] = {}
"""Rows for Python 3.12 and later."""


def _new_rows(text: str) -> None:
    for part in text.split("\n# ---- ")[1:]:
        name, _, cell = part.partition("\n")
        NEW_SYNTAX[name.strip()] = cell


_new_rows("""
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
# ---- dataclass with type parameters
import dataclasses
@dataclasses.dataclass(slots=True, frozen=True)
class D[T]:
    x: T
    def up(self): return D(self.x)
D.one = D(1)
def make(): return {D(2)}
def check(v): assert D(2) in v and D.one.up() == D(1)
""")
