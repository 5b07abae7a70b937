"""Rows of the class zoo: metaclasses, hooks, descriptors and methods of every kind."""

# ruff: noqa: E501 - a row is as short as it can be

from __future__ import annotations

ROWS: list[tuple[str, str]] = [
    (
        "",
        """
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
# ---- singleton, pool and counter in a __new__
class One:
    made = None
    def __new__(cls):
        if cls.made is None: cls.made = super().__new__(cls)
        return cls.made
class Pooled:
    pool = {}
    def __new__(cls, name):
        if name not in cls.pool: cls.pool[name] = super().__new__(cls); cls.pool[name].name = name
        return cls.pool[name]
    def __getnewargs__(self): return (self.name,)
class Counted:
    all = []
    def __new__(cls): cls.all.append(super().__new__(cls)); return cls.all[-1]
One(); Pooled("a"); Pooled("b"); Counted()
def make(): return One, Pooled, Counted
def check(v): assert One() is One.made and sorted(Pooled.pool) == ["a", "b"] and Pooled("a").name == "a" and len(Counted.all) == 1
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
# ---- metaclass instance holding sets of classes
class M(type):
    classes=set()
    def __init__(c,*a): super().__init__(*a); M.classes.add(c)
    def __hash__(c): return hash(c.__name__)
    def __eq__(c,o): return c is o
class A(metaclass=M): pass
class B(A): pass
A.other={B: A}
def make(): return A
def check(v): assert M.classes=={A,B} and A.other[B] is A
# ---- property subclass
class cp(property):
    def __set_name__(s,o,n): s.n=n
class A:
    @cp
    def x(self): return K
K=3
A.z=A()
def make(): return A()
def check(v): assert v.x==3 and type(vars(A)["x"]) is cp
# ---- abc caches and generic mixin
import abc, typing
T=typing.TypeVar("T")
class R(abc.ABC, typing.Generic[T]):
    reg: dict = {}
    def __init_subclass__(cls, *, key=None, **k): super().__init_subclass__(**k); R.reg[key]=cls
    @abc.abstractmethod
    def f(self)->T: ...
class A(R[int], key="a"):
    def f(self): return 1
def make(): return A()
def check(v): assert R.reg["a"] is A and v.f()==1 and isinstance(v,R)
""",
    ),
]
"""(what every cell begins with, cells)"""
