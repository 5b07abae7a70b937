"""Exceptions come back with their type, text and the user's frames."""

from __future__ import annotations

import importlib
import io
import traceback
from pathlib import Path
from typing import Any

import pytest

from ipytaskfarm.core.errors import RemoteError
from ipytaskfarm.core.messages.payload import FailureBody
from ipytaskfarm.serialization import known_classes
from ipytaskfarm.serialization.pack import (
    brief_error,
    note_rebuild,
    pack,
    pack_error,
    pack_function,
    traceback_of,
    unpack,
    unpack_error,
    unpack_function,
)
from ipytaskfarm.serialization.tracebacks import VALUES_FRAMES

from ..support.pack_peer import CLASSES, Notebook, Peer


def failing(x: int) -> float:
    return 1 / x


def caught(function: Any, *args: Any) -> BaseException:
    try:
        function(*args)
    except BaseException as error:
        return error
    raise AssertionError("it did not fail")


def test_errors_come_back_with_type_text_and_frames(peer: Peer, notebook: Notebook) -> None:
    notebook.run("def inner(x):\n    return 1 / x  # the place\ndef f(x):\n    return inner(x)\n")
    with pytest.raises(ZeroDivisionError, match="division by zero") as raised:
        peer.call(notebook["f"], 0)
    text: str = raised.value.remote_traceback  # type: ignore[attr-defined]
    assert raised.value.engine_id == 3  # type: ignore[attr-defined]
    assert "return 1 / x  # the place" in text
    assert "in inner" in text
    assert "rebuild" not in text


def test_errors_whose_constructors_want_more(peer: Peer, notebook: Notebook) -> None:
    notebook.run(CLASSES)
    notebook.run("""
        class Kw(ValueError):
            def __init__(self, *, field):
                super().__init__()
                self.field = field
        class Io(OSError):
            def __init__(self, where):
                super().__init__(5, "broken")
                self.where = where
        def f(): raise Error(7, "bad")
        def g(): raise Kw(field="a")
        def h(): raise Io("there")
        def i(): raise KeyError("k") from ValueError("cause")
    """)
    first = caught(peer.call, notebook["f"])
    assert type(first) is notebook["Error"]
    assert (first.code, str(first)) == (7, "bad (7)")  # type: ignore[attr-defined]
    second = caught(peer.call, notebook["g"])
    assert isinstance(second, ValueError)
    assert second.field == "a"  # type: ignore[attr-defined]
    third = caught(peer.call, notebook["h"])
    assert isinstance(third, OSError)
    assert (third.errno, third.where) == (5, "there")  # type: ignore[attr-defined]
    fourth = caught(peer.call, notebook["i"])
    assert isinstance(fourth, KeyError)
    assert "ValueError: cause" in fourth.remote_traceback  # type: ignore[attr-defined]


def test_errors_with_parts_that_cannot_travel_keep_their_type(notebook: Notebook) -> None:
    notebook.run("""
        import threading
        class Holds(Exception):
            def __init__(self): self.lock = threading.Lock(); self.code = 7
        class Explodes(Exception):
            def __reduce__(self): return int, ("x",)
        class Quiet(Exception):
            def __str__(self): raise RuntimeError("no text")
    """)
    for name in ("Holds", "Explodes"):
        error = unpack_error(pack_error(notebook[name]()), 2)
        assert type(error) is notebook[name]
        assert error.engine_id == 2  # type: ignore[attr-defined]
    held: Any = unpack_error(pack_error(notebook["Holds"]()))
    assert held.code == 7
    assert held.lock.startswith("<left out: a _thread.lock cannot travel")
    assert "cannot be had" in pack_error(notebook["Quiet"]()).value


def test_errors_that_cannot_be_rebuilt_are_remote_errors() -> None:
    gone = FailureBody("some.where.Gone", "text", "trace", b"\x80\x05cnot_there\nGone\n.")
    error = unpack_error(gone, None)
    assert isinstance(error, RemoteError)
    assert str(error) == "some.where.Gone: text"
    assert error.remote_traceback == "trace"  # type: ignore[attr-defined]
    assert "No module named 'not_there'" in error.__notes__[0]


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt, GeneratorExit])
def test_what_would_end_the_caller_comes_as_a_remote_error(kind: type[BaseException]) -> None:
    error = unpack_error(pack_error(kind(3)), 0)
    assert isinstance(error, RemoteError)
    assert error.etype == kind.__name__


def test_the_traceback_begins_where_told() -> None:
    error = caught(failing, 0)
    assert error.__traceback__ is not None
    text = pack_error(error, error.__traceback__.tb_next).traceback
    assert "in caught" not in text
    assert "in failing" in text
    brief = brief_error(error)
    assert brief.etype == "ZeroDivisionError"
    assert brief.place.endswith("in failing")
    assert pack_error(ValueError("x")).traceback == "ValueError: x"


def test_long_texts_are_bounded() -> None:
    body = pack_error(ValueError("x" * 10_000_000))
    assert len(body.value) < 20_000
    assert len(body.traceback) < 80_000
    assert body.pickled is not None
    assert len(body.pickled) < 2000
    assert str(unpack_error(body)).startswith("<left out: 10,000,000 characters are too much")
    assert len(brief_error(ValueError("x" * 10_000_000)).value) < 2000


def test_an_error_of_another_version_names_both(notebook: Notebook, monkeypatch: pytest.MonkeyPatch) -> None:
    notebook.run("class E(Exception):\n    def method(self): pass")
    monkeypatch.setattr("ipytaskfarm.serialization.pickler.PYTHON", "3.99")
    body = pack_error(notebook["E"]("x"))
    known_classes._originals.clear()
    error = unpack_error(body, 1)
    assert isinstance(error, RemoteError)
    assert "3.99" in error.__notes__[0]


def test_printing_a_remote_traceback_is_plain_text() -> None:
    error = unpack_error(pack_error(caught(failing, 0)), 1)
    out = io.StringIO()
    traceback.print_exception(error, file=out)
    assert "ZeroDivisionError" in out.getvalue()


# -- local variables


def raised_again(code: str) -> dict[str, Any]:
    """The local variables of the innermost frame of an error, as they are seen where its task came from."""
    space: dict[str, Any] = {}
    with pytest.raises(ZeroDivisionError) as found:
        exec(compile(code, "<task>", "exec"), space)
    error = unpack_error(pack_error(found.value), 0)
    tb = traceback_of(error)
    while tb is not None and tb.tb_next is not None:
        tb = tb.tb_next
    assert tb is not None
    return {name: repr(value) for name, value in tb.tb_frame.f_locals.items()}


def test_local_variables_come_as_text() -> None:
    code = (
        "def f(x, rows):\n    import os\n    total = {'a': [1] * 99}\n    def g(): return total\n"
        "    return x / 0\nf(7, range(5))"
    )
    assert raised_again(code) == {"x": "7", "rows": "range(0, 5)", "total": "{'a': [1, 1, 1, 1, 1, 1, ...]}"}


def test_of_a_cell_only_what_its_line_could_use_comes() -> None:
    assert raised_again("other = 1\nx = 5\nx / 0") == {"other": "1", "x": "5"}
    assert raised_again("import os\ndef unused(): pass\nx = 5\nx / 0") == {"x": "5"}


def test_values_that_cannot_be_told_do_no_harm() -> None:
    code = (
        "import collections\n"
        "class Bad:\n    def __repr__(self): raise SystemExit(3)\n"
        "def f():\n    bad, much = Bad(), collections.OrderedDict.fromkeys(range(10**5))\n"
        "    long, half = 'x' * 10**6, '\\udc80'\n    1 / 0\nf()"
    )
    found = raised_again(code)
    assert found["bad"] == "<a Bad without a text: SystemExit>"
    assert found["much"] == "<OrderedDict of 100,000 items>"
    assert len(found["long"]) <= 400
    assert found["half"].startswith("'")


def test_only_the_innermost_frames_bring_variables() -> None:
    def deep(n: int) -> float:
        return 1 / n if n == 0 else deep(n - 1)

    with pytest.raises(ZeroDivisionError) as found:
        deep(100)
    body = pack_error(found.value)
    assert len(body.traceback) < 10_000
    assert sum(bool(place.values) for place in body.places) <= VALUES_FRAMES


class Imports:
    """Rebuilt, it imports a module."""

    def __reduce__(self) -> tuple[Any, ...]:
        return importlib.import_module, ("broken_since",)


@pytest.mark.parametrize(("code", "kind"), [("1/0\n", ZeroDivisionError), ("def f(x) return x\n", SyntaxError)])
def test_an_error_of_a_modules_import_names_the_module(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, kind: type[Exception]
) -> None:
    (tmp_path / "broken_since.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(kind) as raised:
        unpack(pack(Imports()))
    note_rebuild(raised.value, "the function was rebuilt")
    assert raised.value.__notes__[0].endswith("broken_since.py was imported for it, and has the error")
    other = ValueError("x")
    note_rebuild(other, "the function was rebuilt")
    assert "cannot be made again" in other.__notes__[0]


def test_a_module_that_was_removed_fails_where_it_is_imported(
    notebook: Notebook, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    module = tmp_path / "goes_away.py"
    module.write_text("K = 1\n")
    notebook.run("def use():\n    import goes_away\n    return goes_away.K")
    with_it = pack_function(notebook["use"])
    module.unlink()
    alone = pack_function(notebook["use"])  # without the module, so that the import fails on the engine
    assert len(alone.code) < len(with_it.code)
    with pytest.raises(ModuleNotFoundError, match="No module named 'goes_away'"):
        unpack_function(alone.code, {})()
