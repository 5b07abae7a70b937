"""Every class of the zoo: as an argument, as a global of a function, as what a function returns."""

from __future__ import annotations

import importlib.util
import linecache
import re
import sys
import types
from collections.abc import Iterator

import pytest

from ..support.class_zoo import LATE_ANNOTATIONS, NEW_SYNTAX, ZOO
from ..support.pack_peer import Peer

ROWS = {
    **ZOO,
    **(NEW_SYNTAX if sys.version_info >= (3, 12) else {}),
    **(LATE_ANNOTATIONS if sys.version_info >= (3, 14) else {}),
}
USES = """
def use():
    check(VALUE)
    return True
def take(value):
    check(value)
    return value
"""
_LIBRARIES = ("attrs", "pandas", "pydantic", "sklearn", "traitlets")


@pytest.fixture(scope="module")
def peer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Peer]:
    found = Peer(tmp_path_factory.mktemp("engine"))
    yield found
    found.close()


def session(cell: str) -> types.ModuleType:
    """A ``__main__`` in which the cell ran."""
    module = types.ModuleType("__main__")
    name = f"<zoo {hash(cell)}>"
    source = cell + USES
    linecache.cache[name] = (len(source), None, source.splitlines(True), name)
    sys.modules["__main__"] = module
    exec(compile(source, name, "exec", dont_inherit=True), module.__dict__)
    return module


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("position", ["argument", "global", "result"])
def test_class(name: str, position: str, peer: Peer, monkeypatch: pytest.MonkeyPatch) -> None:
    for library in _LIBRARIES:
        used = re.search(rf"^(import|from) {library}\b", ROWS[name], re.MULTILINE)
        if used and importlib.util.find_spec(library) is None:
            pytest.skip(f"{library} is not installed")
    monkeypatch.setitem(sys.modules, "__main__", sys.modules["__main__"])
    main = session(ROWS[name])
    main.check(main.make())
    if position == "argument":
        main.check(peer.call(main.take, main.make()))
    elif position == "global":
        vars(main)["VALUE"] = main.make()
        assert peer.call(main.use)
    else:
        main.check(peer.call(main.make))
