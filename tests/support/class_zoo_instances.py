"""Rows of the class zoo: classes that hold instances, and instances that hold each other."""

# ruff: noqa: E501 - a row is as short as it can be

from __future__ import annotations

ROWS: list[tuple[str, str]] = [
    (
        "",
        """
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
# ---- __new__ wants what pickle does not have
import collections
class Plain:
    made = []
    def __new__(cls, x, *, unit):
        found = super().__new__(cls)
        cls.made.append(x)
        found.x, found.unit = x, unit
        return found
    def __init__(self, x, *, unit): pass
class Text(str):
    def __new__(cls, text, unit):
        found = super().__new__(cls, text)
        found.unit = unit
        return found
class Pair(collections.namedtuple("Pair", "a b")):
    __slots__ = ()
    def __new__(cls, a): return super().__new__(cls, a, 2 * a)
class Set(frozenset):
    def __new__(cls, a, b): return super().__new__((cls), [a, b])
class Key:
    __slots__ = ("a",)
    def __new__(cls, a):
        found = object.__new__(cls)
        found.a = a
        return found
    def __hash__(self): return hash(self.a)
    def __eq__(self, other): return self.a == other.a
class Wrong(ValueError):
    def __new__(cls, code, text):
        found = super().__new__(cls, text)
        found.code = code
        return found
    def __init__(self, code, text): super().__init__(text)
Plain.ONE = Plain(1, unit="m")
def make(): return Plain(2, unit="s"), Text("a", "m"), Pair(3), Set(1, 2), {Key(4): 5}, Wrong(6, "no")
def check(v):
    plain, text, pair, both, keys, wrong = v
    assert (plain.x, plain.unit, text, text.unit, pair, both) == (2, "s", "a", "m", (3, 6), {1, 2})
    assert (keys[Key(4)], wrong.code, wrong.args, Plain.ONE.unit) == (5, 6, ("no",), "m")
    assert [type(each) for each in v] == [Plain, Text, Pair, Set, dict, Wrong]
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
# ---- frozenset of self via attribute
class K:
    def __init__(s,n): s.n=n; s.f=None
    def __hash__(s): return hash(s.n)
    def __eq__(s,o): return s.n==o.n
def make(): a=K(1); a.f={frozenset([K(2)]):a}; a.s={a}; return a
def check(v): assert v in v.s and frozenset([K(2)]) in v.f
# ---- slots object in own set, frozen
import dataclasses
@dataclasses.dataclass(frozen=True, slots=True)
class K:
    n: int
    own: set = dataclasses.field(default_factory=set, compare=False)
def make(): a=K(1); a.own.add(a); a.own.add(K(2)); return a
def check(v): assert v in v.own and K(2) in v.own and type(v) is K
# ---- ordereddict and counter cycles
import collections
class K:
    def __init__(s,n): s.n=n
    def __hash__(s): return hash(s.n)
    def __eq__(s,o): return s.n==o.n
def make():
    a=K(1); b=K(2); a.c=collections.Counter([a,b,a]); a.o=collections.OrderedDict([(b,1),(a,2)]); a.d=collections.defaultdict(list,{a:[b]}); b.a=a
    return [a, a.c]
def check(v): a=v[0]; assert a.c is v[1] and a.c[a]==2 and a.c[K(2)]==1 and [k.n for k in a.o]==[2,1] and a.d[K(1)][0].a is a
# ---- class attr set with self cycles
class K:
    all = set()
    def __init__(s,n): s.n=n; s.peers=K.all; K.all.add(s)
    def __hash__(s): return hash(s.n)
    def __eq__(s,o): return s.n==o.n
K(1); K(2)
def make(): return K(3)
def check(v): assert K(1).n==1 and v in v.peers and len([k for k in v.peers])>=2
# ---- class reached by instance dict only
def mk():
    class A:
        def __init__(s): s.cls=A; s.f=lambda: s
        def me(s): return s.f()
    A.i=A()
    return A()
def make(): return mk()
def check(v): assert v.me() is v and type(v).i.me().cls is type(v)
# ---- structured: dataclass registry by decorator
import dataclasses
REG={}
def reg(c): REG[c.__name__]=c; return c
@reg
@dataclasses.dataclass(order=True, unsafe_hash=True)
class A:
    x:int
    kids: list = dataclasses.field(default_factory=list, hash=False, compare=False)
    def tree(s): return REG["A"](s.x+1)
A.ROOT=A(0,[A(1)])
def make(): return {A(1):A(2)}
def check(v): assert v[A(1)]==A(2) and A.ROOT.tree()==A(1) and sorted([A(2),A(1)])[0]==A(1)
""",
    ),
]
"""(what every cell begins with, cells)"""
