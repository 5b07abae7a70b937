"""Which calls of one function have one key in the result cache."""

from __future__ import annotations

import functools
import importlib
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from ipytaskfarm import File, Ref
from ipytaskfarm.client.cache_keys import cache_key
from ipytaskfarm.serialization import distributions, file_arguments
from ipytaskfarm.serialization.distributions import DistributionVersion

Given = tuple[tuple[Any, ...], dict[str, Any]]


def give(x: Any, y: float = 1.0, *rest: Any, last: Any = None, **others: Any) -> Any:
    return x, y, rest, last, others


def placed(x: int, /, y: int = 2, **others: int) -> tuple[int, int, dict[str, int]]:
    return x, y, others


class Scale:
    def times(self, x: int, by: int = 1) -> int:
        return x * by


def called(*args: Any, **kwargs: Any) -> Given:
    return args, kwargs


def key(function: Any, given: Given) -> str:
    args, kwargs = given
    return cache_key(function, args, kwargs, "", None, "", lambda ref: 0)[0].key


@pytest.mark.parametrize(
    ("function", "same"),
    [
        (give, [called(1), called(x=1), called(1, 1.0), called(1, y=1.0), called(y=1.0, x=1), called(1, last=None)]),
        (give, [called(1, 2), called(1, y=2), called(y=2, x=1)]),
        (give, [called(1, 2, 3), called(1, 2, 3, last=None)]),
        (give, [called(1, z=2, a=3), called(z=2, a=3, x=1), called(z=2, y=1.0, a=3, x=1)]),
        (placed, [called(1), called(1, 2), called(1, y=2)]),
        (placed, [called(1, x=5), called(1, 2, x=5), called(1, x=5, y=2)]),
        (Scale().times, [called(3), called(x=3), called(3, 1), called(3, by=1)]),
        (len, [called("a"), called("a")]),
    ],
    ids=[
        "by place or by name",
        "two by place",
        "more by place",
        "more by name",
        "one by place alone",
        "one name twice",
        "a method",
        "not of Python",
    ],
)
def test_calls_that_a_function_cannot_tell_apart_have_one_key(function: Any, same: list[Given]) -> None:
    assert len({key(function, given) for given in same}) == 1


def test_calls_that_differ_have_keys_of_their_own() -> None:
    calls = [
        called(1), called(True), called(1, 1), called(1, 1.0, None), called(1, first=1), called(1, last=0),
        called(1, -1.0), called(1, 0.0), called(1, -0.0), called(1, "1.0"), called(None), called(1, rest=()),
        called(1, 2), called(1, 1.0, 2),
    ]  # fmt: skip
    assert len({key(give, given) for given in calls}) == len(calls)
    assert key(placed, called(1, x=1)) != key(placed, called(1))


def test_the_order_of_arguments_counts_where_a_function_sees_it() -> None:
    def by_name(*, a: int, b: int, **others: int) -> list[str]:
        return [*others]

    assert key(give, called(1, z=2, a=3)) != key(give, called(1, a=3, z=2))
    assert key(dict, called(z=2, a=3)) != key(dict, called(a=3, z=2))
    assert key(by_name, called(a=1, b=2, c=3)) == key(by_name, called(c=3, b=2, a=1))


def key_of(code: str, *args: Any) -> str:
    """Return the key of a call of the `f` of a notebook with one cell."""
    names: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(textwrap.dedent(code), "<ipython-input-1-0123456789ab>", "exec"), names)
    return key(names["f"], called(*args))


TEXTS = {
    "a docstring that is new": ("def f(x):\n    print(x)", "def f(x):\n    'doc'\n    print(x)"),
    "a docstring before a constant": (
        "def f(x):\n    return 1000 if x else None",
        "def f(x):\n    'doc'\n    return 1000 if x else None",
    ),
    "the docstring of a function in a function": (
        "def f(x):\n    def g(y):\n        'a'\n        return y\n    return g(x)",
        "def f(x):\n    def g(y):\n        'b'\n        return y\n    return g(x)",
    ),
    "the docstring of a class in a function": (
        "def f(x):\n    class C:\n        'a'\n        y = 1\n    return C.y",
        "def f(x):\n    class C:\n        'b'\n        y = 1\n    return C.y",
    ),
    "the docstring of a property": (
        "class C:\n    @property\n    def p(self):\n        'a'\n        return 1\ndef f(x): return C().p",
        "class C:\n    @property\n    def p(self):\n        'b'\n        return 1\ndef f(x): return C().p",
    ),
    "the line of a class in a function": (
        "def f(x):\n    class C:\n        y = 1\n    return C.y",
        "\n\n\ndef f(x):\n\n\n    class C:\n        y = 1\n    return C.y",
    ),
}


@pytest.mark.parametrize("name", TEXTS)
def test_texts_and_lines_are_in_no_key(name: str) -> None:
    before, after = TEXTS[name]
    assert key_of(before, 1) == key_of(after, 1)


def test_a_docstring_whose_text_the_function_also_returns() -> None:
    for code in (
        "def f(x):\n    {0!r}\n    return {0!r}",
        "def f(x):\n    def g():\n        {0!r}\n        return {0!r}",
    ):
        assert key_of(code.format("low"), 1) != key_of(code.format("high"), 1)


MODEL = """
from pydantic import BaseModel, Field, field_validator
class Model(BaseModel):
    rate: float = Field(default=1, gt=0)
    @field_validator("rate")
    @classmethod
    def check(cls, rate):
        return rate * 2
def f(x):
    return Model(rate=x).rate
"""


def test_a_model_of_pydantic_has_one_key_in_each_kernel() -> None:
    pytest.importorskip("pydantic")
    assert key_of(MODEL, 1) == key_of(MODEL, 1) == key_of(MODEL + "Model(rate=3).rate = 4\n", 1)
    for old, new in [("gt=0", "gt=0.5"), ("rate * 2", "rate * 3"), ("default=1", "default=2"), ("float", "int")]:
        assert key_of(MODEL, 1) != key_of(MODEL.replace(old, new), 1)


POINTS = """
class Point:
    def __init__(self, x): self.x = x
    def twice(self): return self.x * 2
POINTS = [Point(number) for number in range(5000)]
def f(x): return POINTS[x].twice()
"""


def test_large_lists_know_their_classes_files_and_results_by_content(tmp_path: Path) -> None:
    assert key_of(POINTS, 1) == key_of("\n\n" + POINTS, 1)
    assert key_of(POINTS, 1) != key_of(POINTS.replace("* 2", "+ 2"), 1)
    path = tmp_path / "data"
    path.write_text("1")
    files = [File(path)] * 5000
    before = key(give, called(files))
    path.write_text("22")
    assert key(give, called(files)) != before
    assert key(give, called([Ref(number) for number in range(5000)]))


def test_large_lists_of_sets_have_one_key_under_each_hash_seed() -> None:
    program = """
        from tests.unit.test_cache_keys import called, give, key
        sets = [{str(number), "b", "c"} for number in range(5000)]
        print(key(give, called(sets)), key(give, called({number: {"own": frozenset("abc")} for number in range(5000)})))
    """
    keys = {
        subprocess.run(
            [sys.executable, "-c", textwrap.dedent(program)],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(keys) == 1


def test_files_that_no_argument_holds_count_by_content(tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_text("1")
    default, names = File(path), {"FILE": File(path)}

    def with_default(x: int, file: str = default) -> str:
        return file

    exec("def with_global(x):\n    return FILE", names)
    functions = [with_default, names["with_global"], functools.partial(give, File(path))]
    before = [key(function, called(1)) for function in functions]
    assert before == [key(function, called(1)) for function in functions]
    path.write_text("22")
    after = [key(function, called(1)) for function in functions]
    assert all(new != old for new, old in zip(after, before, strict=True))


def test_a_file_that_changed_a_moment_ago_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "data"
    path.write_text("1")
    first = File(path).digest()
    # Where the clock of the file system is coarse, the next change has the same times.
    status = path.stat()
    monkeypatch.setattr(
        file_arguments, "stamp_of", lambda _: (1, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)
    )
    path.write_text("2")
    assert File(path).digest() != first


def test_a_pipe_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="no regular file"):
        File(tmp_path / "pipe").digest()


MODULES = {
    "the order of two values of one name": ("K = 1\nK = 2\ndef used(): return K", "K = 2\nK = 1\ndef used(): return K"),
    "the order of a function and another one of its name": (
        "def used(): return 1\ndef other(): return 2\nused = other",
        "def other(): return 2\nused = other\ndef used(): return 1",
    ),
    "a value before and after a loop that sets it": (
        "K = 1\nfor K in range(3): pass\ndef used(): return K",
        "for K in range(3): pass\nK = 1\ndef used(): return K",
    ),
    "the order of two imports of one name": (
        "import math as m\nimport cmath as m\ndef used(): return m.sqrt(2)",
        "import cmath as m\nimport math as m\ndef used(): return m.sqrt(2)",
    ),
    "what `__getattr__` of the module gives": (
        "K = 1\ndef __getattr__(name): return lambda: K",
        "K = 2\ndef __getattr__(name): return lambda: K",
    ),
}


def key_with_module(text: str, tmp_path: Path) -> str:
    module = tmp_path / "edited_module.py"
    os.utime(module, ns=(1, 1)) if module.exists() else None
    module.write_text(text)
    sys.modules.pop("edited_module", None)
    importlib.invalidate_caches()
    return key_of("import edited_module\ndef f(x): return edited_module.used()", 1)


@pytest.mark.parametrize("name", MODULES)
def test_the_order_in_a_module(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    before, after = MODULES[name]
    assert key_with_module(before, tmp_path) != key_with_module(after, tmp_path)


def test_the_order_of_definitions_in_a_module_does_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    parts = ["import os\n", "class A(dict): pass\n", "def used(): return own()\n", "def own(): return K\n", "K = 1\n"]
    assert key_with_module("".join(parts), tmp_path) == key_with_module("".join([*parts[1:], parts[0]]), tmp_path)


# -- installed modules


def install(site: Path, name: str, version: str | None, *, record: bytes = b"", metadata: bytes = b"") -> Path:
    """Leave a distribution in a folder of installed ones, perhaps with damaged metadata; return its own folder."""
    (site / f"{name}.py").write_text("def give():\n    return 1\n")
    info = site / f"{name}-{version or 0}.dist-info"
    info.mkdir()
    of_version = b"" if version is None else f"Version: {version}\n".encode()
    (info / "METADATA").write_bytes(metadata or f"Metadata-Version: 2.1\nName: {name}\n".encode() + of_version)
    (info / "RECORD").write_bytes(record or f"{name}.py,,\n".encode())
    return info


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "site-packages"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setattr(distributions, "LOOK_S", 0.0)
    return folder


def test_broken_metadata_are_no_version_and_harm_no_other_distribution(site: Path) -> None:
    damaged = b"Metadata-Version: 2.1\nName: damaged_dist\nVersion: 1\nAuthor: \xff\n"
    install(site, "damaged_dist", "1", record=b"damaged_dist.py,,\n\xff\n", metadata=damaged)
    install(site, "versionless_dist", None)
    (site / "nameless_dist-1.dist-info").mkdir()
    (site / "file_dist-1.dist-info").write_text("no folder")
    install(site, "sound_dist", "1.0")
    assert DistributionVersion("sound_dist").text == "1.0"
    assert DistributionVersion("numpy").text.count(".") >= 1
    assert DistributionVersion("yaml").distribution == "PyYAML", "modules of other names are found"
    for name in ("damaged_dist", "versionless_dist"):
        assert DistributionVersion(name).text.startswith("content ")
    assert DistributionVersion("nothing_dist").text == ""


def test_an_upgrade_that_left_the_old_metadata_is_another_version(site: Path) -> None:
    old = install(site, "upgraded_dist", "1.0")
    before = DistributionVersion("upgraded_dist")
    assert (before.text, before.holds()) == ("1.0", True)
    new = install(site, "upgraded_dist", "2.0")
    os.utime(site, ns=(1, 1))  # times may be coarse
    assert not before.holds()
    assert not before.holds(), "several functions ask, and each has to hear it"
    assert DistributionVersion("upgraded_dist").text == "1.0 and 2.0"
    for info in (old, new):
        for file in info.iterdir():
            file.unlink()
        info.rmdir()
    assert DistributionVersion("upgraded_dist").text.startswith("content ")


@pytest.mark.parametrize("kind", ["a module", "a package", "with a version of its own", "edited elsewhere"])
def test_an_edited_module_without_a_version_has_another_key(site: Path, tmp_path: Path, kind: str) -> None:
    """Such as one in a folder of PYTHONPATH, which goes by its name."""
    name = f"edited_{kind.replace(' ', '_')}"
    file = site / f"{name}.py"
    if kind == "a package":
        (site / name).mkdir()
        (site / name / "__init__.py").write_text("from .inner import give\n")
        file = site / name / "inner.py"
    elif kind == "edited elsewhere":
        (tmp_path / "lib").mkdir()
        (tmp_path / "lib" / "site-packages").mkdir()
        file = tmp_path / "lib" / "site-packages" / f"{name}.py"
        install(site, name, "1.0")
        (site / f"{name}.py").unlink()
        sys.path.insert(0, str(file.parent))  # ends with the test: `site` puts the old list back
    version = "__version__ = '1'\n" if "version" in kind else ""
    file.write_text(f"{version}def give():\n    return 1\n")
    importlib.invalidate_caches()
    names: dict[str, Any] = {"__name__": "__main__"}
    exec(f"import {name}\ndef f(x):\n    return {name}.give() + x", names)
    first = key(names["f"], called(1))
    assert key(names["f"], called(1)) == first
    file.write_text(f"{version}def give():\n    return 2\n")
    os.utime(file, ns=(1, 1))
    second = key(names["f"], called(1))
    assert second != first
    if kind == "a package":  # its data files count, as those of packages by value do
        (site / name / "table.txt").write_text("1")
        second, first = key(names["f"], called(1)), second
        assert second != first
    deeper = site / f"deeper_than_{name}.py"
    deeper.write_text("V = 1\n")
    file.write_text(f"{version}import {deeper.stem}\ndef give():\n    return {deeper.stem}.V\n")
    third = key(names["f"], called(1))
    deeper.write_text("V = 2\n")
    assert len({first, second, third, key(names["f"], called(1))}) == 4, "modules count that only it imports"


def test_an_engine_need_not_have_the_main_module_that_a_module_asks_for(site: Path) -> None:
    """Engines have a main module of their own: no result of such a function was kept."""
    (site / "asks_for_main.py").write_text("import __main__\ndef give():\n    return 1\n")
    names: dict[str, Any] = {"__name__": "__main__"}
    exec("import asks_for_main\ndef f(x):\n    return asks_for_main.give() + x", names)
    found = cache_key(names["f"], (1,), {}, "", None, "", lambda ref: 0)
    assert [name for name, _ in found[2]] == ["asks_for_main"]
