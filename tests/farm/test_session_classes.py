"""Classes of a session: their hooks do not run again when the session is restored."""

from __future__ import annotations

from pathlib import Path

import pytest

from ipytaskfarm import MultiEngineClient

pytestmark = pytest.mark.farm

CASES = {
    "a registry in the base": (
        """
class Plugin:
    plugins = {}
    def __init_subclass__(cls, key=None, **rest):
        super().__init_subclass__(**rest)
        Plugin.plugins[key] = cls
class Xml(Plugin, key="xml"): pass
class Html(Xml, key="html"): pass
""",
        "[[*Plugin.plugins], Plugin.plugins['xml'] is Xml, Html.__mro__[1] is Xml]",
    ),
    "a registry in the session": (
        """
registry = []
class Base:
    def __init_subclass__(cls, *, name): registry.append(name)
class A(Base, name="a"): pass
""",
        "[registry, A.__mro__[1] is Base]",
    ),
    "a list of the classes": (
        """
class Base:
    made = []
    def __init_subclass__(cls): cls.made.append(cls.__name__)
class A(Base): pass
class B(A): pass
""",
        "[Base.made, B.made is Base.made]",
    ),
    "a descriptor": (
        """
log = []
class Field:
    def __set_name__(self, owner, name): self.name = name; log.append(name)
    def __get__(self, instance, owner): return self.name
class Row:
    title = Field()
""",
        "[log, Row.title]",
    ),
    "a metaclass": (
        """
made = []
class Meta(type):
    def __new__(meta, name, bases, names, *, table): return super().__new__(meta, name, bases, names | {"table": table})
    def __init__(cls, name, bases, names, *, table): cls.label = getattr(cls, "label", "") + name; made.append(name)
    def __len__(cls): return 7
class Row(metaclass=Meta, table="rows"): pass
""",
        "[made, Row.table, Row.label, len(Row), type(Row) is Meta]",
    ),
    "an abstract class": (
        """
import abc, typing
class Shape(abc.ABC):
    @abc.abstractmethod
    def area(self): ...
class Square(Shape):
    def __init__(self, side): self.side = side
    def area(self): return self.side**2
    def __eq__(self, other): return self.side == other.side
    def __hash__(self): return hash(self.side)
@Shape.register
class Other: pass
class Named(typing.Protocol):
    name: str
class Person(Named):
    name = "Ann"
squares = {Square(2), Square(3)}
""",
        "[Square(2) in squares, issubclass(Other, Shape), Shape.__abstractmethods__, Person().name]",
    ),
    "slots, properties and super": (
        """
import functools
class A:
    __slots__ = ("x", "__dict__")
    def __init__(self): self.x = 1
    @functools.cached_property
    def twice(self): return self.x * factor
class B(A):
    def __init__(self):
        super().__init__()
        self.x += 1
    @property
    def me(self): return __class__
factor = 2
b = B()
""",
        "[b.x, b.twice, b.me is B, B().twice]",
    ),
    "an error with its own arguments": (
        """
class Refused(Exception):
    def __init__(self, code, *, text):
        super().__init__(text)
        self.code = code
refused = same = Refused(4, text="no")
""",
        "[refused.code, refused.args, refused is same, isinstance(refused, Refused)]",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_class_is_what_it_was(name: str, mec: MultiEngineClient, tmp_path: Path) -> None:
    source, check = CASES[name]
    mec.reset()
    mec.execute(source, targets=0)
    assert mec.dump_session(tmp_path / "engine.session", targets=0) == [{}]
    assert mec.load_session(tmp_path / "engine.session", targets=1) == [{}]
    mec.execute(f"found = repr({check})")
    before, after = mec.pull("found")
    assert after == before
    mec.dump_session(tmp_path / "engine.session", targets=1)
    mec.load_session(tmp_path / "engine.session", targets=1)
    mec.execute(f"found = repr({check})", targets=1)
    assert mec.pull("found", targets=1) == [before], "nor when it is restored where it is"
