"""Test every value of the zoo in every place: an argument, a global, a default, a closure cell."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from ipytaskfarm.serialization.rebuild_values import KeptMethod, KeptRef

from ..support.pack_peer import Notebook, Peer
from ..support.zoo import ZOO


@pytest.fixture(scope="module")
def peer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Peer]:
    found = Peer(tmp_path_factory.mktemp("engine"), warnings="ignore")
    yield found
    found.close()


HELPERS = """
    import functools
    def give(x): return x
    def first(items): return next(iter(items))
    def close_over(value):
        def f(): return value
        return f
    def made_there(): return made
    def read_pushed(): return pushed
    def use_default(x=None): return x
    class Holder: pass
    holder = Holder()
    def read_global(): return value
    def read_held(): return Holder.__dict__["held"], holder.own
"""
Position = Callable[[Notebook, Peer, str, Any], Any]


def as_argument(notebook: Notebook, peer: Peer, source: str, value: Any) -> Any:
    return peer.call(notebook["give"], value)


def as_push(notebook: Notebook, peer: Peer, source: str, value: Any) -> Any:
    peer.push(pushed=value)
    return peer.call(notebook["read_pushed"])


def as_global(notebook: Notebook, peer: Peer, source: str, value: Any) -> Any:
    notebook.names["value"] = value
    return peer.call(notebook["read_global"])


def as_default(notebook: Notebook, peer: Peer, source: str, value: Any) -> Any:
    function = notebook["use_default"]
    function.__defaults__ = (value,)
    return peer.call(function)


def in_closure(notebook: Notebook, peer: Peer, source: str, value: Any) -> Any:
    return peer.call(notebook["close_over"](value))


def in_partial(notebook: Notebook, peer: Peer, source: str, value: Any) -> Any:
    return peer.call(functools.partial(notebook["give"], value))


def as_attribute(notebook: Notebook, peer: Peer, source: str, value: Any) -> Any:
    notebook["Holder"].held = value
    notebook["holder"].own = value
    held, own = peer.call(notebook["read_held"])
    assert type(own) is type(held)
    return held


def in_set(notebook: Notebook, peer: Peer, source: str, value: Any) -> Any:
    try:
        found = {value}
    except (TypeError, ValueError):
        return value  # cannot be hashed
    return peer.call(notebook["first"], found)


def as_return_value(notebook: Notebook, peer: Peer, source: str, value: Any) -> Any:
    before, _, last = source.rpartition("\n")
    peer.run(f"{before}\nmade = ({last})")
    return peer.call(notebook["made_there"])


POSITIONS: list[Position] = [
    as_argument,
    as_push,
    as_global,
    as_default,
    in_closure,
    in_partial,
    as_attribute,
    in_set,
    as_return_value,
]


@pytest.fixture(scope="module")
def helpers() -> Notebook:
    found = Notebook()
    found.run(HELPERS)
    return found


def make(notebook: Notebook, source: str) -> Any:
    before, _, last = source.rpartition("\n")
    notebook.run(f"{before}\nmade = ({last})")
    return notebook["made"]


def shown(value: Any, key: Callable[[Any], Any]) -> Any:
    kind = next(base for base in type(value).__mro__ if base not in (KeptRef, KeptMethod))
    return f"{kind.__module__}.{kind.__qualname__}", key(value)


@pytest.mark.parametrize("name", ZOO)
def test_a_value_travels_wherever_it_stands(helpers: Notebook, peer: Peer, name: str) -> None:
    source, key = ZOO[name]
    failed = []
    for position in POSITIONS:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # other people's libraries
            value = make(helpers, source)
            try:
                found = position(helpers, peer, source, value)
                if shown(found, key) != shown(value, key):
                    failed.append(f"{position.__name__}: {shown(found, key)} instead of {shown(value, key)}"[:600])
            except Exception as error:
                failed.append(f"{position.__name__}: {type(error).__name__}: {error}"[:600])
    assert not failed, "\n".join(failed)
