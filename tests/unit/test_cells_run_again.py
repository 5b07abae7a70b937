"""Classes whose cell ran again: what engines return is made from the class that the program has now."""

from __future__ import annotations

import linecache
import sys
import types
from collections.abc import Iterator
from typing import Any

import pytest

from ..support.pack_peer import Peer

BASE = """
class Base:
    def size(self): return 1
"""
CHILD = """
class Child(Base): pass
def child(): return Child()
"""
LOCAL = """
def local():
    class Local(Base): pass
    return Local()
"""
ATTRIBUTE = """
def local():
    class Local:
        kind = Base
        made = Base()
    return Local()
"""
CLOSURE = """
def local():
    base = Base
    class Local:
        def kind(self): return base
    return Local()
"""


@pytest.fixture(scope="module")
def peer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Peer]:
    found = Peer(tmp_path_factory.mktemp("engine"))
    yield found
    found.close()


class Main:
    """A ``__main__`` that is a notebook's."""

    def __init__(self) -> None:
        self.module = types.ModuleType("__main__")

    def run(self, *cells: str) -> None:
        for cell in cells:
            name = f"<cell {hash(cell)}>"
            linecache.cache[name] = (len(cell), None, cell.splitlines(True), name)
            exec(compile(cell, name, "exec", dont_inherit=True), vars(self.module))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.module, name)


@pytest.fixture
def main(monkeypatch: pytest.MonkeyPatch) -> Main:
    main = Main()
    monkeypatch.setitem(sys.modules, "__main__", main.module)
    return main


def test_a_local_class_has_the_base_of_now(main: Main, peer: Peer) -> None:
    main.run(BASE, LOCAL)
    before = peer.call(main.local)
    assert isinstance(before, main.Base)
    assert type(peer.call(main.local)) is type(before)
    main.run(BASE, LOCAL)
    after = peer.call(main.local)
    assert isinstance(after, main.Base), "the same cells ran again"
    assert type(peer.call(main.local)) is type(after)


def test_a_local_class_that_was_sent_is_not_kept_either(main: Main, peer: Peer) -> None:
    main.run(BASE, LOCAL)
    mine = main.local()
    assert type(peer.call(lambda value: value, mine)) is type(mine)
    main.run(BASE, LOCAL)
    assert isinstance(peer.call(main.local), main.Base)
    assert mine.size() == 1


def test_attributes_are_those_of_now(main: Main, peer: Peer) -> None:
    for _ in range(2):
        main.run(BASE, ATTRIBUTE)
        found = peer.call(main.local)
        assert found.kind is main.Base
        assert type(found.made) is main.Base


def test_closures_hold_what_is_there_now(main: Main, peer: Peer) -> None:
    for _ in range(2):
        main.run(BASE, CLOSURE)
        assert peer.call(main.local).kind() is main.Base


def test_a_returned_function_holds_what_is_there_now(main: Main, peer: Peer) -> None:
    for _ in range(2):
        main.run(BASE, "def local():\n    base = Base\n    def inner(): return base\n    return inner")
        assert peer.call(main.local)() is main.Base


def test_a_class_whose_own_cell_did_not_run_again_stays(main: Main, peer: Peer) -> None:
    main.run(BASE, CHILD)
    assert type(peer.call(main.child)) is main.Child
    main.run(BASE, "def size(): return Base().size()")
    assert peer.call(main.size) == 1
    assert type(peer.call(main.child)) is main.Child, "the program still has this one"


def test_unrelated_classes_stay(main: Main, peer: Peer) -> None:
    main.run(BASE, LOCAL, "def other():\n    class Other: pass\n    return Other()")
    before = peer.call(main.other)
    peer.call(main.local)
    main.run(BASE, LOCAL)
    peer.call(main.local)
    assert type(peer.call(main.other)) is type(before)


def test_an_edited_base_is_the_base(main: Main, peer: Peer) -> None:
    main.run(BASE, LOCAL)
    assert peer.call(main.local).size() == 1
    main.run(BASE.replace("return 1", "return 2"), LOCAL)
    found = peer.call(main.local)
    assert isinstance(found, main.Base)
    assert found.size() == 2
    main.run(BASE, LOCAL)
    found = peer.call(main.local)
    assert isinstance(found, main.Base), "and back again"
    assert found.size() == 1
