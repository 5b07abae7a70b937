"""Test that modules beside the notebook are sent by value, and are always up to date."""

from __future__ import annotations

import math
import os
import shutil
import subprocess
import sys
import textwrap
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy.linalg  # the `folder` fixture forgets what tests import, and numpy cannot be imported twice
import pytest

from ipytaskfarm.core.errors import ModuleMissing, UnpickleableException
from ipytaskfarm.serialization import file_looks, module_bundles, module_origin, modules
from ipytaskfarm.serialization.pack import (
    add_dependency,
    pack,
    pack_function,
    unpack,
    unpack_function,
)

from ..support.pack_peer import Notebook, Peer
from ..support.polling import eventually


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


IMPORT_CALLS = {
    "a dotted name": "def use(): return importlib.import_module('called.mod').V",
    "a relative name": "def use(): return importlib.import_module('.mod', package='called').V",
    "__import__": "def use(): return __import__('called.mod', fromlist=['V']).V",
    "under another name": "from importlib import import_module as load\ndef use(): return load('called.mod').V",
    "a global": "NAME = 'called.mod'\ndef use(): return importlib.import_module(NAME).V",
    "a default": "def use(name='called.mod'): return importlib.import_module(name).V",
    "by a helper": "def helper(name): return importlib.import_module(name)\ndef use(): return helper('called.mod').V",
    "the beginning of a name": "M = 'mod'\ndef use(): return importlib.import_module(f'called.{M}').V",
    "of a table": "TABLE = {'a': 'called.mod'}\ndef use(): return importlib.import_module(TABLE['a']).V",
    "a member's name": "import pkgutil\ndef use(): return pkgutil.resolve_name('called.mod:V')",
    "as a script": (
        "import runpy, sys\ndef use():\n    sys.modules.pop('called.mod', None)\n"
        "    return runpy.run_module('called.mod')['V']"
    ),
    "in a text": "def use():\n    names = {}; exec('from called.mod import V', names); return names['V']",
    "a data file's package": (
        "from importlib.resources import files\ndef use(): return int(files('called').joinpath('v.txt').read_text())"
    ),
}


@pytest.mark.parametrize("name", IMPORT_CALLS)
def test_a_module_that_a_call_imports_is_never_stale(
    name: str, away: Callable[..., Any], notebook: Notebook, folder: Path
) -> None:
    write(folder / "called/__init__.py", "")
    for value in (1, 2):
        write(folder / "called/mod.py", f"V = {value}\n")
        write(folder / "called/v.txt", f"{value}")
        notebook.run(f"import importlib\n{IMPORT_CALLS[name]}")
        before = pack_function(notebook["use"])
        assert away(notebook["use"]) == value
        assert pack_function(notebook["use"]).digest == before.digest


def test_a_submodule_that_a_function_reaches_by_attribute_is_never_stale(
    peer: Peer, notebook: Notebook, folder: Path
) -> None:
    write(folder / "reached/__init__.py", "")
    write(folder / "reached/inner/leaf.py", "V = 1\n")
    notebook.run("import reached.inner.leaf\ndef use(): return reached.inner.leaf.V")
    assert peer.call(notebook["use"]) == 1
    write(folder / "reached/inner/leaf.py", "V = 2\n")
    assert peer.call(notebook["use"]) == 2


def test_another_module_of_the_name_may_come_first_later(
    away: Callable[..., Any], notebook: Notebook, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notebook.run("def use():\n    from come_first import V\n    return V")
    for value in (1, 2):
        place = folder / f"place{value}"
        write(place / "come_first.py", f"V = {value}\n")
        monkeypatch.syspath_prepend(place)
        assert away(notebook["use"]) == value


def test_versions_do_not_mix(peer: Peer, notebook: Notebook, folder: Path) -> None:
    write(folder / "mixed.py", "def f():\n    import mixed\n    return mixed.V\nV = 1\n")
    notebook.run("import mixed\ndef use(): return mixed.f()")
    old = pack_function(notebook["use"])
    write(folder / "mixed.py", "def f():\n    import mixed\n    return mixed.V\nV = 2\n")
    new = pack_function(notebook["use"])
    empty = pack(((), {}))
    answers = [peer.ask("call", each.digest, each.code, None, empty) for each in (old, new, old, new, old)]
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


def test_packages_without_init_that_are_imported_when_a_function_runs(
    peer: Peer, notebook: Notebook, folder: Path
) -> None:
    write(folder / "nsp_outer/inner/deepest/leaf.py", "from nsp_outer.inner import side\nN = 3 * side.K\n")
    write(folder / "nsp_outer/inner/side.py", "K = 5\n")
    notebook.run("def use():\n    from nsp_outer.inner.deepest.leaf import N\n    return N")
    assert peer.call(notebook["use"]) == 15
    assert "nsp_outer" not in sys.modules


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

    travel, kinds = module_origin.travel, module_origin.Travel
    for name in (
        "os",
        "os.path",
        "json.decoder",
        "sys",
        "numpy",
        "numpy.linalg",
        "builtins",
        "ipytaskfarm.serialization.pack",
        "_pickle",
    ):
        assert travel(name) is kinds.REFERENCE, name
    assert travel(mine.__name__) is kinds.SOURCE
    assert travel("__main__") is kinds.LOOSE
    assert travel("installed_one") is kinds.REFERENCE
    by_name = pack_function(installed_one.f).code
    monkeypatch.setattr(module_origin, "_added_folders", [])
    add_dependency(folder / "site")
    assert travel("installed_one") is kinds.SOURCE
    assert b"load_module" not in by_name, "so a function that was sent before has to be packed again"
    assert b"load_module" in pack_function(installed_one.f).code
    with pytest.raises(FileNotFoundError, match="no such file or folder, and no such module"):
        add_dependency("/does/not/exist")


def test_a_module_that_an_installed_package_makes_goes_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    made, below = types.ModuleType("xml.made"), types.ModuleType("xml.made.below")
    own = types.ModuleType("ours.made")
    for module in (made, below, own, types.ModuleType("ours")):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    assert unpack(pack([made, below])) == [made, below]
    assert unpack(pack(own)) is not own


def test_a_made_up_module_travels_with_all_that_is_in_it() -> None:
    module = types.ModuleType("made_up")
    exec("import math\nK = 3\ndef f(x): return x + K\nclass C:\n    def m(self): return K, math.pi", vars(module))
    back = unpack(pack({"m": module}), {})["m"]
    assert (back.f(1), back.C().m(), back.__name__) == (4, (3, math.pi), "made_up")
    assert "made_up" not in sys.modules


SORTED = """
import sys
sys.path[1:1] = [sys.argv[1] + "/project/vendor", sys.argv[1] + "/elsewhere"]
names = sys.argv[2].split(",")
for name in names: __import__(name)
from ipytaskfarm.serialization.module_origin import travel
print(" ".join(travel(name).name for name in names))
"""

WHERE = [
    ("project/beside.py", "beside", "SOURCE"),
    ("project/pkg/__init__.py", "pkg", "SOURCE"),
    ("project/pkg/deep/mod.py", "pkg.deep.mod", "SOURCE"),
    ("project/spaces/mod.py", "spaces", "SOURCE"),
    ("project/src/below.py", "below", "SOURCE"),
    ("project/vendor/own.py", "own", "SOURCE"),
    ("project/vendor/vendored.py", "vendored", "REFERENCE"),
    ("project/.venv/lib/python3/site-packages/packaged.py", "packaged", "REFERENCE"),
    ("elsewhere/added.py", "added", "SOURCE"),
    ("target/installed.py", "installed", "REFERENCE"),
    ("target/installed_package/__init__.py", "installed_package", "REFERENCE"),
    ("shared/common.py", "common", "REFERENCE"),
    ("old.egg/from_egg.py", "from_egg", "REFERENCE"),
    ("editable/src/developed.py", "developed", "SOURCE"),
    ("overlay/laid_over.py", "laid_over", "REFERENCE"),
]
"""A file, the module that it holds, and how that travels from ``project/script.py``; to add a case, add a line."""


def test_whose_code_a_module_is(tmp_path: Path) -> None:
    for file, _, _ in WHERE:
        write(tmp_path / file, "")
    metadata = "Metadata-Version: 2.1\nName: {0}\nVersion: 1.0\n"
    for folder, record in (("project/vendor", "vendored.py,,"), ("target", "installed.py,,\ninstalled_package/x.py,,")):
        write(tmp_path / folder / "some_name-1.0.dist-info/METADATA", metadata.format("some_name"))
        write(tmp_path / folder / "some_name-1.0.dist-info/RECORD", record)
    packages = tmp_path / "project/.venv/lib/python3/site-packages"
    url = f'{{"url": "file://{tmp_path}/editable", "dir_info": {{"editable": true}}}}'
    write(packages / "developed-1.0.dist-info/direct_url.json", url)
    (tmp_path / "project/script.py").write_text(SORTED)
    entries = ["project/src", "project/.venv/lib/python3/site-packages", "target", "shared", "old.egg", "editable/src"]
    path = os.pathsep.join([*(str(tmp_path / entry) for entry in [*entries, "overlay"]), str(pack_peer_root())])
    command = [sys.executable, "script.py", str(tmp_path), ",".join(name for _, name, _ in WHERE)]
    ended = subprocess.run(
        command, cwd=tmp_path / "project", env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    assert dict(zip([file for file, _, _ in WHERE], ended.stdout.split(), strict=True)) == {
        file: kind for file, _, kind in WHERE
    }


PACK_ARRAYS = """
import numpy, pandas
from ipytaskfarm.serialization.pack import pack, unpack
packs = pack(numpy.arange(4)), pack(pandas.DataFrame({"x": [1, 2]}))
print(numpy.__file__, *map(len, packs), unpack(packs[0]).sum(), unpack(packs[1]).x.sum())
"""


@pytest.mark.parametrize("metadata", [True, False], ids=["with metadata", "without metadata"])
def test_numpy_and_pandas_on_pythonpath_alone_go_by_name(tmp_path: Path, metadata: bool) -> None:
    """As the modules of a cluster, and as ``pip install --target`` leaves them."""
    site = Path(numpy.__file__).parents[1]
    for entry in site.iterdir():
        own = entry.name.startswith(("numpy", "pandas"))
        if own and entry.is_dir() and (metadata or not entry.name.endswith("info")):
            no_tests = shutil.ignore_patterns("tests")
            shutil.copytree(entry, tmp_path / "target" / entry.name, ignore=no_tests, copy_function=link_or_copy)
        elif not own and entry.suffix != ".pth":
            (tmp_path / "others").mkdir(exist_ok=True)
            (tmp_path / "others" / entry.name).symlink_to(entry)
    path = os.pathsep.join([str(tmp_path / "target"), str(tmp_path / "others"), str(pack_peer_root())])
    (tmp_path / "project").mkdir()
    ended = subprocess.run(
        [sys.executable, "-S", "-B", "-c", PACK_ARRAYS], cwd=tmp_path / "project", capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": path}, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    place, array, frame, *sums = ended.stdout.split()
    assert Path(place).is_relative_to(tmp_path / "target")
    assert (int(array) <= 1000, int(frame) <= 2000, sums) == (True, True, ["6", "3"]), ended.stdout


def link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system
        shutil.copy2(source, target)


def pack_peer_root() -> Path:
    return Path(module_origin.__file__).parents[2]


@pytest.fixture
def away(peer: Peer, folder: Path) -> Callable[..., Any]:
    """Calls a function on an engine that cannot see the folder."""

    def call(function: Any, *args: Any) -> Any:
        made, packed = pack_function(function), pack((args, {}))
        hidden = folder.with_name(f"{folder.name}-hidden")
        folder.rename(hidden)
        try:
            return peer.ask("call", made.digest, made.code, None, packed)
        finally:
            hidden.rename(folder)

    return call


def test_packages_arrive_as_packages(away: Callable[..., Any], notebook: Notebook, folder: Path) -> None:
    write(
        folder / "whole/__init__.py",
        "import importlib\ndef plug(n): return importlib.import_module('.' + n, __name__).N",
    )
    write(folder / "whole/plugin.py", "N = 4\n")
    write(folder / "whole/data/text.txt", "inside")
    write(
        folder / "whole/reading.py",
        """
        import importlib.resources, pathlib, pkgutil
        def read():
            package = importlib.resources.files("whole")
            beside = (pathlib.Path(__file__).parent / "data" / "text.txt").read_text()
            return package.joinpath("data/text.txt").read_text(), pkgutil.get_data("whole", "data/text.txt"), beside
        def names():
            import whole
            found = sorted(module.name for module in pkgutil.iter_modules(whole.__path__))
            return __package__, __spec__.name, whole.__package__, found
        """,
    )
    notebook.run("""
        import whole, whole.reading
        def read(): return whole.reading.read()
        def plug(): return whole.plug("plugin")
        def lazy():
            from whole import plugin
            import whole.reading as other
            return plugin.N, other.__name__
    """)
    assert away(notebook["read"]) == ("inside", b"inside", "inside")
    assert away(notebook["plug"]) == 4
    assert away(notebook["lazy"]) == (4, "whole.reading")
    assert away(sys.modules["whole.reading"].names) == ("whole", "whole.reading", "whole", ["plugin", "reading"])
    write(folder / "whole/data/text.txt", "edited")
    assert away(notebook["read"])[0] == "edited"


def test_functions_of_a_package_that_is_run_import_relatively(away: Callable[..., Any], folder: Path) -> None:
    write(folder / "runs/__init__.py", "")
    write(folder / "runs/sub.py", "X = 7\n")
    main = Notebook()
    main.names["__package__"] = "runs"
    main.run("""
        def f():
            from .sub import X
            from . import sub
            import runs.sub
            return X, sub.X, runs.sub.X, __package__
    """)
    assert away(main["f"]) == (7, 7, 7, "runs")


def test_data_that_is_too_much_stays_and_says_so(
    away: Callable[..., Any], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module_bundles, "DATA_BYTES_MAX", 1000)
    write(folder / "heavy/__init__.py", "import pkgutil\ndef f(): return pkgutil.get_data(__name__, 'big.bin')\n")
    write(folder / "heavy/big.bin", "x" * 2000)
    import heavy  # type: ignore[import-not-found]

    with pytest.warns(UserWarning, match=r"package heavy: 1 of its data files \(2 kB.*install heavy there"):
        pack_function(heavy.f)
    with pytest.raises(FileNotFoundError, match=r"'heavy' \(2,000 bytes\) did not travel"):
        away(heavy.f)


def test_a_module_that_is_not_there_is_named_with_its_version_and_the_remedy(peer: Peer, folder: Path) -> None:
    write(folder / "gone.py", "def f(): return 1\nclass C:\n    pass\n")
    write(folder / "gone-1.5.dist-info/METADATA", "Metadata-Version: 2.1\nName: gone\nVersion: 1.5\n")
    write(folder / "gone-1.5.dist-info/RECORD", "gone.py,,\n")
    import gone  # type: ignore[import-not-found]

    for function, argument in ((gone.f, ()), (len, ((gone.C(),),))):
        with pytest.raises(ModuleMissing) as caught:
            peer.call(function, *argument)
        text = str(caught.value)
        assert "module 'gone' cannot be imported in this process" in text
        assert "add_dependency('gone')" in text
        assert text.endswith("(this client has gone 1.5)")
    lazy = Notebook()
    lazy.run("def f():\n    import gone\n    return gone.f()")
    with pytest.raises(ModuleNotFoundError) as unkept:
        peer.call(lazy["f"])
    assert unkept.value.__notes__ == ["this client has gone 1.5: install it where the engines run"]


def test_a_compiled_module_beside_the_script_goes_with_its_folder(peer: Peer, notebook: Notebook, folder: Path) -> None:
    import _heapq

    source = Path(getattr(_heapq, "__file__", None) or "/nowhere")
    found = next(source.parent.glob("xxlimited.*.so"), None)
    if found is None:
        pytest.skip("this Python has no compiled module to copy")
    shutil.copy(found, folder)
    write(folder / "uses.py", "import xxlimited\ndef f(): return xxlimited.foo(1, 2)\n")
    import uses  # type: ignore[import-not-found]

    notebook.run("import xxlimited\ndef f(): return xxlimited.foo(2, 2)")
    assert (peer.call(uses.f), peer.call(notebook["f"]), peer.call(sys.modules["xxlimited"].foo, 3, 3)) == (3, 4, 6)
    with pytest.raises(ValueError, match="is compiled and cannot be sent"):
        add_dependency("xxlimited")


def test_nothing_of_a_task_stays_for_the_next(folder: Path) -> None:
    """The engine's side runs in this process: its own modules are restored under their names."""
    write(folder / "staying.py", "V = 'sent'\ndef f(): return V\n")
    import staying  # type: ignore[import-not-found]

    code = pack_function(staying.f).code
    own = types.ModuleType("staying")
    sys.modules["staying"] = own
    modules._versions.clear()
    function = unpack_function(code, {})
    assert function() == "sent"
    assert sys.modules["staying"] is not own
    modules.begin_run(modules.bundles_of(function.brought[1]))  # type: ignore[attr-defined]
    assert function() == "sent"
    modules.begin_run()
    assert sys.modules["staying"] is own
    assert function() == "sent"
    modules.begin_run()
    assert sys.modules["staying"] is own


def test_packing_that_takes_long_says_what_it_packs(
    notebook: Notebook, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("ipytaskfarm.serialization.pack.NOTICE_AFTER_S", 0.0)
    monkeypatch.setattr("ipytaskfarm.serialization.pack.notice.on", True)
    said: list[str] = []

    def heard() -> bool:
        said.append(capsys.readouterr().err)
        return "packing" in "".join(said)

    class Slow:
        def __reduce__(self) -> tuple[Any, ...]:
            eventually(heard)
            return int, ()

    notebook.names["value"] = Slow()
    notebook.run("def f(): return value")
    pack_function(notebook["f"])
    assert "packing f: a Slow (" in "".join(said)


def test_a_loop_looks_at_files_now_and_then_and_a_pause_makes_it_look(
    notebook: Notebook, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(folder / "looked_at.py", "def f(): return 1\n")
    notebook.run("import looked_at")
    now_s = 1000.0
    for module in (module_bundles, file_looks):
        monkeypatch.setattr(module, "monotonic", lambda: now_s)
    bundle = module_bundles.bundle_of("looked_at")
    looks: list[float] = []
    unchanged = module_bundles._unchanged

    def looked(one: module_bundles.Bundle) -> bool:
        looks.append(now_s)
        return unchanged(one)

    monkeypatch.setattr(module_bundles, "_unchanged", looked)
    for _ in range(1000):  # calls of a loop, 10 us apart
        assert module_bundles.is_current(bundle)
        now_s += 10e-6
    assert 5 <= len(looks) <= 20, "a look each millisecond"
    write(folder / "looked_at.py", "def f(): return 2\n")
    now_s += 100e-6  # a file takes longer than the step of the loop
    assert not module_bundles.is_current(bundle)


MODULES_WITH_A_CLASS = {
    "of another class": "class M(types.ModuleType):\n    def __call__(self): return self.f()\n"
    "sys.modules[__name__].__class__ = M",
    "replaced by one of another class": "class M(types.ModuleType):\n    def __call__(self): return self.f()\n"
    "made = M(__name__)\nmade.__dict__.update(sys.modules[__name__].__dict__)\nsys.modules[__name__] = made",
}


@pytest.mark.parametrize("name", MODULES_WITH_A_CLASS)
def test_modules_with_a_class_of_their_own_travel_and_are_never_stale(
    name: str, peer: Peer, notebook: Notebook, folder: Path
) -> None:
    for value in (1, 2):
        write(folder / "callable.py", f"import sys, types\ndef f(): return {value}\n{MODULES_WITH_A_CLASS[name]}\n")
        if "callable" not in notebook.names:
            notebook.run("import callable\ndef use(): return callable(), callable.f()")
        assert peer.call(notebook["use"]) == (value, value)


def test_a_bound_method_that_a_module_has_is_never_stale(peer: Peer, notebook: Notebook, folder: Path) -> None:
    for value in (1, 2):
        write(
            folder / "bound.py",
            f"class Engine:\n    V = {value}\n    def ask(self): return self.V\nengine = Engine()\nask = engine.ask\n",
        )
        if "ask" not in notebook.names:
            notebook.run("from bound import ask\ndef use(): return ask()")
        assert peer.call(notebook["use"]) == peer.call(notebook["ask"]) == value


MEMBERS = """
import functools, threading
from service import db, lock, pool, query, Db
def plain(): return db.ask(), pool.submit(abs, -1).result()
def locks():
    with lock: return 1
def default(db=db): return db.ask()
def within(): return both["db"].ask()
def makes(own): return lambda: own.ask()
both = {"db": db}
closes = makes(db)
part = functools.partial(default)
own = Db(threading.RLock())
def not_of_the_module(): return own.ask()
"""


def test_what_cannot_be_pickled_goes_as_the_member_of_its_module(
    peer: Peer, notebook: Notebook, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for value in (1, 2):
        write(
            folder / "service.py",
            f"""
            import concurrent.futures, threading
            class Db:
                def __init__(self, lock): self.lock, self.value = lock, {value}
                def ask(self):
                    with self.lock: return self.value
            lock = threading.RLock()
            db, pool = Db(lock), concurrent.futures.ThreadPoolExecutor(1)
            query = db.ask
            """,
        )
        if "db" not in notebook.names:
            notebook.run(MEMBERS)
        assert peer.call(notebook["plain"]) == (value, 1)
        assert peer.call(notebook["locks"]) == 1
        for name in ("default", "within", "closes", "part", "query"):
            assert peer.call(notebook[name]) == value, name
    said = capsys.readouterr().err
    assert said.count("plain uses service.db, which cannot be pickled: each engine has its own, as the import") == 1
    with pytest.raises(
        UnpickleableException, match=r"global 'own' used by not_of_the_module\)\.lock: a _thread\.RLock"
    ):
        pack_function(notebook["not_of_the_module"])
