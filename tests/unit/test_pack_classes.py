"""Classes of the notebook, there and back."""

from __future__ import annotations

import abc
import colorsys
import copyreg
import sys
import textwrap
import types
from typing import Any

import pytest

from ipytaskfarm.client.packing import may_change_shared

from ..support.pack_peer import CLASSES, Notebook, Peer


def test_classes_of_the_notebook(peer: Peer, notebook: Notebook) -> None:
    notebook.run(CLASSES)
    notebook.run("""
        def check(c, p):
            assert isinstance(c, Child) and isinstance(c, Base) and isinstance(p, Point)
            assert c.double() == 11 and c.twice == 11 and Child.make(2).x == 2 and Child.plus(1, 2) == 3
            assert c.kept == 105 and c.kept == 105 and c.other()[1] is Child
            assert p == Point(1) and [f.name for f in dataclasses.fields(p)] == ["x", "y", "tags"]
            assert dataclasses.replace(p, x=5).x == 5 and repr(p).startswith("Point(x=1")
            assert Point(1).tags is not Point(1).tags and sorted([Frozen(2), Frozen(1)])[0] == Frozen(1)
            assert Colour.RED.shout() == "RED!" and Colour["CRIMSON"] is Colour(1) and Colour.BLUE.value == (2, 3)
            assert Planet.EARTH == 3 and Perm.R | Perm.W == Perm(3) and Mass.A.ratio == 0.5 and Mass((1, 2)) is Mass.A
            assert Pair(1, 2).b == 2 and Pair(1, 2)._replace(a=5) == (5, 2) and Typed(1).both() == "1x"
            assert Square().area() == 4 and WithMeta.extra() == "meta" and Stack().items == []
            s = Slots(1)
            assert not hasattr(s, "__dict__")
            try: Shape()
            except TypeError: pass
            else: raise AssertionError("abstract")
            return [c, p, Colour.RED, Planet.EARTH, Perm.R | Perm.W, Pair(1, 2), Typed(3), s, Frozen(1), Mass.A,
                    Square(), Stack(), Child, Error(5, "bad")]
    """)
    n = notebook.names
    sent = n["Child"](5), n["Point"](1)
    for _ in range(2):
        back = peer.call(n["check"], *sent)
    kinds = [
        "Child",
        "Point",
        "Colour",
        "Planet",
        "Perm",
        "Pair",
        "Typed",
        "Slots",
        "Frozen",
        "Mass",
        "Square",
        "Stack",
    ]
    assert [type(each) for each in back[:12]] == [n[kind] for kind in kinds]
    assert back[0] == sent[0]
    assert back[1] == sent[1]
    assert back[2] is n["Colour"].RED
    assert back[9] is n["Mass"].A
    assert back[12] is n["Child"]
    assert type(back[13]) is n["Error"]
    assert (back[13].code, str(back[13])) == (5, "bad (5)")


def test_instances_keep_their_class_on_the_engine(peer: Peer, notebook: Notebook) -> None:
    notebook.run("class C:\n    pass\ndef same(c): return type(c) is C\ndef keep(c): return [type(c)]")
    c = notebook["C"]()
    assert peer.call(notebook["same"], c)
    assert peer.call(notebook["same"], c)
    assert peer.call(notebook["keep"], c)[0] is notebook["C"]


def test_a_redefined_or_changed_class_is_the_new_one(peer: Peer, notebook: Notebook) -> None:
    notebook.run("def ask(c): return c.get(), C().get()")
    for value in range(3):
        notebook.run(f"class C:\n    def get(self): return {value}")
        assert peer.call(notebook["ask"], notebook["C"]()) == (value, value)
    notebook.run("C.get = lambda self: 'patched'")
    assert peer.call(notebook["ask"], notebook["C"]()) == ("patched", "patched")
    notebook.run("K = 1\nclass C:\n    def get(self): return K")
    assert peer.call(notebook["ask"], notebook["C"]()) == (1, 1)
    notebook.run("K = 2")
    assert peer.call(notebook["ask"], notebook["C"]()) == (2, 2)


def test_results_of_the_same_cell_run_again_are_of_the_new_class(peer: Peer, notebook: Notebook) -> None:
    cell = "class C:\n    pass\ndef make(): return C()"
    notebook.run(cell)
    peer.call(notebook["make"])
    notebook.run(cell)
    assert type(peer.call(notebook["make"])) is notebook["C"]


def test_a_class_changed_on_the_engine_comes_back_as_ours(peer: Peer, notebook: Notebook) -> None:
    notebook.run("class C:\n    n = 0\ndef f(c):\n    C.n += 1\n    return c, C()")
    first, second = peer.call(notebook["f"], notebook["C"]())
    assert type(first) is type(second) is notebook["C"]
    assert notebook["C"].n == 0


def test_classes_that_are_made_in_their_own_ways(peer: Peer, notebook: Notebook) -> None:
    notebook.run("""
        import dataclasses, enum, functools, typing
        T = typing.TypeVar("T")
        class Row(typing.TypedDict):
            x: int
        class Runs(typing.Protocol):
            def run(self) -> int: ...
        @dataclasses.dataclass(slots=True)
        class Slotted(typing.Generic[T]):
            x: T
            def again(self): return Slotted(self.x)
        class Tagged:
            seen = []
            def __init_subclass__(cls, *, tag, **more):
                super().__init_subclass__(**more)
                cls.tag = tag
                cls.seen.append(cls.__name__)
        class Five(Tagged, tag=5): pass
        class Byte(bytes, enum.Enum):
            def __new__(cls, value, label):
                made = bytes.__new__(cls, [value])
                made._value_ = value
                made.label = label
                return made
            ONE = (1, "one")
        class Text(str, enum.Enum):
            P = "p"
        @functools.singledispatch
        def kind(x): return "other"
        @kind.register
        def _(x: list): return [kind(each) for each in x]
        class A:
            def b(self): return B()
        class B:
            def a(self): return A()
        def check():
            assert Row(x=1) == {"x": 1} and Slotted(1).again().x == 1 and Slotted[int] is not None
            assert Five.tag == 5 and Tagged.seen == ["Five"]
            class Six(Tagged, tag=6): pass
            assert Six.tag == 6
            assert Byte.ONE.label == "one" and Byte(1) is Byte.ONE and bytes(Byte.ONE) == b"\\x01"
            assert Text.P == "p" and Text("p") is Text.P
            assert kind([1, [2]]) == ["other", ["other"]] and kind.registry[object] is not None
            assert type(A().b().a()) is A and Runs is not None
            return Five(), Byte.ONE, A()
    """)
    five, one, a = peer.call(notebook["check"])
    assert type(five) is notebook["Five"]
    assert one is notebook["Byte"].ONE
    assert type(a) is notebook["A"]
    assert notebook["Tagged"].seen == ["Five"]


def test_a_set_of_its_own_members_stays_one_object(peer: Peer, notebook: Notebook) -> None:
    notebook.run("""
        class K:
            def __init__(self, n): self.n = n
            def __hash__(self): return hash(self.n)
            def __eq__(self, other): return self.n == other.n
        def ask(k, group): return k.group is group, k in group, K(1) in group, type(k) is K, len(group)
    """)
    k = notebook["K"](1)
    k.group = {k, notebook["K"](2)}
    assert peer.call(notebook["ask"], k, k.group) == (True, True, True, True, 2)


def test_type_variables_that_come_twice_are_one(peer: Peer, notebook: Notebook) -> None:
    notebook.run("""
        import typing
        T = typing.TypeVar("T")
        class Box(typing.Generic[T]): pass
        def first(): return Box.__parameters__ == (T,)
        def second(box): return type(box).__parameters__ == (T,)
        def give(): return T
    """)
    assert peer.call(notebook["first"])
    assert peer.call(notebook["second"], notebook["Box"]())
    assert peer.call(notebook["give"]) is notebook["T"]


def test_a_name_in_a_string_annotation_that_changes_makes_a_new_class(
    peer: Peer, notebook: Notebook, monkeypatch: pytest.MonkeyPatch
) -> None:
    main = types.ModuleType("__main__")
    vars(main).update(notebook.names)
    notebook.names = vars(main)
    monkeypatch.setitem(sys.modules, "__main__", main)
    notebook.run("""
        import typing
        class Tree:
            leaf: "Leaf"
        def ask(tree): return typing.get_type_hints(type(tree))["leaf"].n
    """)
    for n in range(2):
        notebook.run(f"class Leaf:\n    n = {n}")
        assert peer.call(notebook["ask"], notebook["Tree"]()) == n


def test_metaclasses_that_travel_are_not_run_again(peer: Peer, notebook: Notebook) -> None:
    notebook.run("""
        import abc
        class Meta(abc.ABCMeta):
            made = []
            def __new__(mcls, name, bases, body, *, table):
                made = super().__new__(mcls, name, bases, body)
                mcls.made.append(table)
                return made
        class Row(metaclass=Meta, table="rows"):
            @abc.abstractmethod
            def f(self): ...
        def ask():
            class Other(Row, table="others"):
                def f(self): return 1
            return Meta.made, Other().f(), Row.__abstractmethods__
    """)
    assert peer.call(notebook["ask"]) == (["rows", "others"], 1, frozenset({"f"}))


def test_names_in_string_annotations_of_functions_travel(peer: Peer, notebook: Notebook) -> None:
    notebook.run("""
        import typing
        class Other: n = 5
        def f(x: "Other | None") -> "typing.List[Other]": return x
        def ask():
            found = typing.get_type_hints(f)
            return found["return"].__args__[0].n, found["x"].__args__[0].n
    """)
    assert peer.call(notebook["ask"]) == (5, 5)


def test_classes_that_exec_made_in_a_bare_namespace(peer: Peer) -> None:
    """Their module is "builtins", as in code that templates make."""
    names: dict[str, Any] = {}
    source = """
        class Base:
            def __init__(self, x): self.x = x
            def f(self): return self.x + K
        class Derived(Base):
            def f(self): return super().f() * 2
        class Failed(Exception): pass
        K = 5
        def make(x): return Derived(x)
        def ask(made):
            try: raise Failed(made.f())
            except Failed as error: return type(made) is Derived, isinstance(made, Base), error.args
        def fail(): raise Failed("so")
    """
    exec(textwrap.dedent(source), names)
    assert names["Base"].__module__ == "builtins"
    made = peer.call(names["make"], 3)
    assert (type(made), made.f()) == (names["Derived"], 16)
    assert peer.call(names["ask"], made) == (True, True, (16,))
    assert peer.call(made.f) == 16
    with pytest.raises(names["Failed"], match="so"):
        peer.call(names["fail"])
    one, other = peer.call(lambda kinds: [kind(1) for kind in kinds], [names["Base"], names["Derived"]])
    assert (type(one), type(other)) == (names["Base"], names["Derived"])


@pytest.mark.parametrize(
    "outside",
    ["{a: 1, b: 2}", "{a}", "{(a, 1): 2, (b, (a,)): 3}", "[{'x': {b: 1}}]", "collections.OrderedDict([(a, 1)])"],
)
def test_what_hashes_objects_of_a_cycle_outside_of_it(peer: Peer, notebook: Notebook, outside: str) -> None:
    """A graph whose nodes know their neighbours in sets, and a table of its nodes."""
    notebook.run(f"""
        import collections
        class Node:
            def __init__(self, name): self.name, self.near = name, set()
            def __hash__(self): return hash(self.name)
            def __eq__(self, other): return self.name == other.name
        a, b = Node("a"), Node("b")
        a.near |= {{a, b}}
        b.near.add(a)
        table = {outside}
        def lost(value):
            if isinstance(value, list | tuple):
                return [found for each in value for found in lost(each)]
            if isinstance(value, dict | set):
                inside = lost(list(value.values())) if isinstance(value, dict) else []
                return [key for key in value if key not in value] + inside
            return []
        def ask(*values): return lost(values), [lost(each.near) for each in (a, b)]
        def ask_globals(): return lost([a.near, table]), a in a.near
        """)
    n = notebook.names
    assert peer.call(n["ask"], n["a"], n["table"]) == ([], [[], []])
    assert peer.call(n["ask"], n["table"], n["b"]) == ([], [[], []])
    assert peer.call(n["ask_globals"]) == ([], True)


def test_what_is_in_a_frozenset_is_refused_or_found_but_not_lost(peer: Peer, notebook: Notebook) -> None:
    notebook.run("""
        class Node:
            def __init__(self, name): self.name, self.near = name, set()
            def __hash__(self): return hash(self.name)
            def __eq__(self, other): return self.name == other.name
        a = Node("a")
        a.near.add(a)
        def ask(group): return [each in group for each in group]
        """)
    with pytest.raises(AttributeError, match="no attribute 'name'"):  # as with pickle
        peer.call(notebook["ask"], frozenset({notebook["a"]}))


def test_an_attribute_that_raises_when_it_is_asked_for_what_it_does_not_have(peer: Peer, notebook: Notebook) -> None:
    notebook.run("""
        class Proxy:
            def __getattr__(self, name):
                if name.startswith("__") and name != "__func__":
                    raise AttributeError(name)
                raise RuntimeError("outside of a context")
            def __reduce__(self): return Proxy, ()
        class Holder:
            proxy, made = Proxy(), None
            def f(self): return type(self.proxy).__name__
        Holder.made = Holder()
        def ask(holder): return holder.f(), Holder().f()
        """)
    assert peer.call(notebook["ask"], notebook["Holder"]()) == ("Proxy", "Proxy")


def test_classes_of_no_module_whose_metaclass_is_registered(
    peer: Peer, notebook: Notebook, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the classes of sympy's undefined functions are."""
    notebook.run("""
        import abc
        def made(name): return abc.ABCMeta(name, (), {"__module__": None, "tag": name * 2})
        f = made("f")
        value = f()
        class Other: pass
        Other.__module__ = None
        other = Other()
        value.x = other.x = 1
        def ask(): return f.tag, value.x, type(value) is f, f.extra, other.x, type(other) is Other
    """)
    made = {"__module__": None, "tag": "of the reducer", "extra": 3}
    monkeypatch.setitem(copyreg.dispatch_table, abc.ABCMeta, lambda kind: (abc.ABCMeta, (kind.__name__, (), made)))
    assert peer.call(notebook["ask"]) == ("of the reducer", 1, True, 3, 1, True)


def test_the_names_of_a_notebook_that_pydantic_keeps_are_not_sent(peer: Peer, notebook: Notebook) -> None:
    """Before 2.9, models of a notebook have all names of the notebook as an attribute."""
    notebook.run("""
        import threading
        lock = threading.Lock()
        class Model: pass
        Model.__pydantic_parent_namespace__ = globals()
        def ask(): return Model.__pydantic_parent_namespace__
    """)
    assert peer.call(notebook["ask"]) is None


def test_a_model_of_the_users_own_class_is_in_no_library(
    peer: Peer, notebook: Notebook, monkeypatch: pytest.MonkeyPatch
) -> None:
    """pydantic before 2.10 puts it into the module of its generic model."""
    notebook.run("class Mine: pass\ndef ask(kind): return kind.__name__, kind.made_of['args'][0].__args__[0] is Mine")
    arguments = {"origin": None, "args": (types.GenericAlias(list, (notebook["Mine"],)),), "parameters": ()}
    made = type("Page[Mine]", (), {"__pydantic_generic_metadata__": arguments, "made_of": arguments})
    made.__module__ = "colorsys"
    monkeypatch.setitem(vars(colorsys), "Page[Mine]", made)
    assert peer.call(notebook["ask"], made) == ("Page[Mine]", True)


def test_the_systems_generator_of_an_own_class_keeps_its_attributes(peer: Peer, notebook: Notebook) -> None:
    notebook.run(
        "import random\n"
        "class Dice(random.SystemRandom):\n"
        "    def __init__(self, sides): self.sides = sides\n"
        "    def throw(self): return 1 <= self.randint(1, self.sides) <= 6\n"
        "dice = Dice(6)\n"
        "def throw(d): return d.throw(), d.sides, random.SystemRandom().random() < 1\n"
    )
    assert peer.call(notebook["throw"], notebook["dice"]) == (True, 6, True)


def test_random_generators_of_own_classes_keep_their_state_and_attributes(peer: Peer, notebook: Notebook) -> None:
    notebook.run(
        "import random\n"
        "class Dice(random.Random):\n"
        "    def __new__(cls, seed, sides): return super().__new__(cls, seed)\n"
        "    def __init__(self, seed, sides): super().__init__(seed); self.sides, self.thrown = sides, []\n"
        "    def throw(self): self.thrown.append(self.randint(1, self.sides)); return self.thrown\n"
        "dice = Dice(3, 20)\n"
        "dice.same, first = dice, dice.gauss(0, 1)\n"
        "def throw(d): return d.throw() + [d.gauss(0, 1), d.same is d, type(d).__name__]\n"
    )
    thrown = peer.call(notebook["throw"], notebook["dice"])
    assert thrown == notebook["throw"](notebook["dice"])
    assert may_change_shared(lambda d: d.random(), [notebook["dice"]] * 2)
