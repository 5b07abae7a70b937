"""Modules beside the notebook travel by value, and are never stale."""

from __future__ import annotations

import os
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import numpy.linalg  # noqa: F401 - the `folder` fixture forgets what tests import, and numpy cannot be imported twice
import pytest

from ipytaskfarm.core.errors import UnpickleableException
from ipytaskfarm.doors import pack_origin
from ipytaskfarm.doors.pack import (
    add_dependency,
    pack,
    pack_function,
)

from .pack_peer import Notebook, Peer


@pytest.fixture(scope="module")
def peer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Peer]:
    found = Peer(tmp_path_factory.mktemp("engine"))
    yield found
    found.close()


@pytest.fixture
def notebook() -> Notebook:
    return Notebook()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


def write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(textwrap.dedent(text))
    # Never the same stamp twice, however coarse the file system's clock is.
    write.count += 1  # type: ignore[attr-defined]
    os.utime(file, ns=(write.count * 10**9, write.count * 10**9))  # type: ignore[attr-defined]


write.count = 0  # type: ignore[attr-defined]


def test_modules_beside_the_notebook_travel_by_value(peer: Peer, notebook: Notebook, folder: Path) -> None:
    write(folder / "beside_a.py", "import beside_b, math\nclass P:\n    pass\ndef f(x): return beside_b.g(x), P()\n")
    write(folder / "beside_b.py", "def g(x):\n    import beside_c\n    return beside_c.K * x\n")
    write(folder / "beside_c.py", "K = 5\n")
    notebook.run("import beside_a\nfrom beside_a import P\ndef use(p, x): return isinstance(p, P), *beside_a.f(x)")
    a = notebook["beside_a"]
    good, five, p = peer.call(notebook["use"], a.P(), 1)
    assert (good, five, type(p)) == (True, 5, a.P)
    five, p = peer.call(a.f, 1)
    assert (five, type(p)) == (5, a.P)


def test_an_edited_module_is_never_stale(peer: Peer, notebook: Notebook, folder: Path) -> None:
    import importlib

    write(folder / "edited_inner.py", "K = 1\n")
    write(folder / "edited.py", "import edited_inner\ndef f(): return 'one', edited_inner.K\n")
    notebook.run("import edited\ndef use(): return edited.f()")
    assert peer.call(notebook["use"]) == ("one", 1)
    digest = pack_function(notebook["use"]).digest
    write(folder / "edited.py", "import edited_inner\ndef f(): return 'two', edited_inner.K\n")
    assert pack_function(notebook["use"]).digest != digest
    assert peer.call(notebook["use"]) == ("two", 1)
    write(folder / "edited_inner.py", "K = 2\n")
    assert peer.call(notebook["use"]) == ("two", 2)
    importlib.reload(notebook["edited"])
    assert peer.call(notebook["edited"].f) == ("two", 2)
    write(folder / "edited.py", "import edited_inner\ndef f(): return 'one', edited_inner.K\n")
    write(folder / "edited_inner.py", "K = 1\n")
    assert pack_function(notebook["use"]).digest == digest
    assert peer.call(notebook["use"]) == ("one", 1)


def test_versions_do_not_mix(peer: Peer, notebook: Notebook, folder: Path) -> None:
    write(folder / "mixed.py", "def f():\n    import mixed\n    return mixed.V\nV = 1\n")
    notebook.run("import mixed\ndef use(): return mixed.f()")
    old = pack_function(notebook["use"])
    write(folder / "mixed.py", "def f():\n    import mixed\n    return mixed.V\nV = 2\n")
    new = pack_function(notebook["use"])
    empty = pack(((), {}))
    answers = [peer.ask("call", each.digest, each.code, empty) for each in (old, new, old, new, old)]
    assert answers == [1, 2, 1, 2, 1]


def test_packages_and_relative_imports(peer: Peer, folder: Path) -> None:
    write(folder / "pack_age/__init__.py", "from .one import f\n")
    write(folder / "pack_age/one.py", "from . import two\nfrom .deep.three import C\ndef f(): return two.N, C\n")
    write(folder / "pack_age/two.py", "N = 2\n")
    write(folder / "pack_age/deep/__init__.py", "")
    write(folder / "pack_age/deep/three.py", "from ..two import N\nclass C:\n    n = N\n")
    import pack_age  # type: ignore[import-not-found]

    number, cls = peer.call(pack_age.f)
    assert number == 2
    assert cls is sys.modules["pack_age.deep.three"].C


def test_the_traceback_shows_the_lines_of_a_module_that_came_by_value(peer: Peer, folder: Path) -> None:
    write(folder / "failing.py", "def f():\n    return 1 / 0  # here\n")
    import failing  # type: ignore[import-not-found]

    with pytest.raises(ZeroDivisionError) as caught:
        peer.call(failing.f)
    assert "return 1 / 0  # here" in caught.value.remote_traceback  # type: ignore[attr-defined]


def test_which_modules_travel_how(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(folder / "mine.py", "")
    write(folder / "site/installed_one.py", "def f(): return 1\n")
    write(folder / "site/some_name-1.0.dist-info/RECORD", "installed_one.py,sha256=x,1\n")
    monkeypatch.syspath_prepend(folder / "site")
    import installed_one  # type: ignore[import-not-found]
    import mine  # type: ignore[import-not-found]

    travel, kinds = pack_origin.travel, pack_origin.Travel
    for name in ("os", "json.decoder", "sys", "numpy", "numpy.linalg", "builtins", "ipytaskfarm.doors.pack", "_pickle"):
        assert travel(name) is kinds.REFERENCE, name
    assert travel(mine.__name__) is kinds.SOURCE
    assert travel("__main__") is kinds.LOOSE
    assert travel("installed_one") is kinds.REFERENCE
    monkeypatch.setattr(pack_origin, "_added_folders", [])
    add_dependency(folder / "site")
    assert travel("installed_one") is kinds.SOURCE
    assert b"load_module" in pack_function(installed_one.f).code
    with pytest.raises(FileNotFoundError, match="no such file or folder, and no such module"):
        add_dependency("/does/not/exist")


def test_a_made_up_module_is_refused_readably() -> None:
    import types

    with pytest.raises(UnpickleableException, match="module 'made_up' cannot travel"):
        pack({"m": types.ModuleType("made_up")})
