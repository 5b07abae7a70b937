"""Rows of the class zoo: classes of libraries."""

# ruff: noqa: E501 - a row is as short as it can be

from __future__ import annotations

ROWS: list[tuple[str, str]] = [
    (
        "import msgspec\n",
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
    ),
    (
        "import ctypes\n",
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
    _pack_ = 1; _layout_ = "ms"
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
    ),
    (
        "import pydantic\n",
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
def check(v): assert v[0].items[0].id == 2 and v[1].child.id == 2 and v[1]._private == 5 and v[2].items == [1] and Page[int](items=[2]).items == [2] and isinstance(v[1], Base) and isinstance(v[0], Page[Base]) and type(v[2]) is IntPage is Page[int]
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
    ),
    (
        "import attrs\n",
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
    ),
    (
        "",
        """
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
# ---- pydantic models that name each other
import pydantic, typing
class A(pydantic.BaseModel):
    b: "B"
    items: dict[str,"A"] = {}
class B(pydantic.BaseModel):
    n: int
    @pydantic.field_validator("n", mode="before")
    def parse(cls, v): return helper(v)
def helper(v): return int(v)+OFF
OFF=1
A.model_rebuild()
def make(): return A(b=B(n=1), items={"x":A(b={"n":2})})
def check(v): assert v.b.n==2 and v.items["x"].b.n==3 and A(b={"n":"5"}).b.n==6 and A.model_validate(v.model_dump()).b.n==3
# ---- pydantic create_model and enum field
import pydantic, enum
class C(enum.Enum):
    A="a"
D=pydantic.create_model("D", x=(int,1), c=(C,C.A))
D.inst=D()
def make(): return D(x=2)
def check(v): assert v.x==2 and v.c is C.A and D(c="a").c is C.A and D.inst.x==1
""",
    ),
]
"""(what every cell begins with, cells)"""
