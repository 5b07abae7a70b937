"""Variables that modules set while they are imported, and for how long they are set."""

from __future__ import annotations

import builtins
import decimal
import importlib
import os
import sys
import types
from collections.abc import Callable
from pathlib import Path

import pytest

from ipytaskfarm.serialization.import_settings import ImportVariables, run_module

Import = Callable[[str, str], types.ModuleType]


@pytest.fixture
def variables(monkeypatch: pytest.MonkeyPatch) -> ImportVariables:
    """Variables to which `SET` reports, as the wrapped ``putenv`` of an engine does."""
    made = ImportVariables()

    def put(name: str, value: str | None) -> None:
        made.note(name.encode(), value.encode() if value is not None else None)
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value

    monkeypatch.setattr(builtins, "put", put, raising=False)
    monkeypatch.setenv("SET_AT_FIRST", "first")
    monkeypatch.setenv("NOT_SET", "")
    del os.environ["NOT_SET"]  # and after the test again
    return made


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Import:
    """Writes and imports a module."""
    monkeypatch.syspath_prepend(tmp_path)

    def made(name: str, body: str) -> types.ModuleType:
        monkeypatch.delitem(sys.modules, name, raising=False)
        (tmp_path / f"{name}.py").write_text(body)
        importlib.invalidate_caches()
        return importlib.import_module(name)

    return made


def data() -> dict[bytes, bytes]:
    found: dict[bytes, bytes] = os.environ._data  # type: ignore[attr-defined]
    return found


def test_variables_go_and_come_with_their_module(variables: ImportVariables, make: Import) -> None:
    module = make("sets_two", "put('NOT_SET', '1')\ndef inner(): put('SET_AT_FIRST', None)\ninner()")
    before = variables.without(data())
    assert (before.get(b"NOT_SET"), before[b"SET_AT_FIRST"]) == (None, b"first")
    del sys.modules["sets_two"]
    assert variables.over(before) == before
    variables.follow()
    assert data() == before
    sys.modules["sets_two"] = module
    variables.follow()
    assert (os.environ["NOT_SET"], "SET_AT_FIRST" in os.environ) == ("1", False)
    assert variables.over(before) == data()


def test_what_is_set_outside_of_an_import_is_no_modules(variables: ImportVariables, make: Import) -> None:
    module = make("sets_later", "def later(): put('NOT_SET', '1')")
    module.later()
    exec("put('SET_AT_FIRST', '2')", {"__spec__": module.__spec__})
    assert variables.without(data()) == data()


def test_the_last_module_that_set_a_variable_counts(variables: ImportVariables, make: Import) -> None:
    first = make("sets_it", "put('NOT_SET', '0')\nput('NOT_SET', '1')")
    make("sets_it_too", "put('NOT_SET', '2')")
    base = variables.without(data())
    assert b"NOT_SET" not in base
    assert variables.over(base)[b"NOT_SET"] == b"2"
    del sys.modules["sets_it_too"]
    variables.follow()
    assert os.environ["NOT_SET"] == "1"
    assert first.__name__ in sys.modules
    del sys.modules["sets_it"]
    variables.follow()
    assert "NOT_SET" not in os.environ


def test_what_somebody_sets_afterwards_counts(variables: ImportVariables, make: Import) -> None:
    make("sets_first", "put('NOT_SET', '1')")
    os.environ["NOT_SET"] = "by hand"
    base = variables.without(data())
    assert base[b"NOT_SET"] == variables.over(base)[b"NOT_SET"] == b"by hand"
    del sys.modules["sets_first"]
    variables.follow()
    assert os.environ["NOT_SET"] == "by hand"


def test_a_module_that_cannot_be_imported_leaves_nothing(variables: ImportVariables, make: Import) -> None:
    with pytest.raises(ZeroDivisionError):
        make("sets_and_fails", "put('NOT_SET', '1')\n1/0")
    base = {key: value for key, value in data().items() if key != b"NOT_SET"}
    assert variables.over(base) == base


def test_a_modules_decimal_context_is_its_own() -> None:
    names = {"decimal": decimal}
    with decimal.localcontext() as context:
        context.prec = 20
        run_module(compile("decimal.getcontext().prec += 3\nfound = decimal.getcontext().prec", "", "exec"), names)
        assert (names["found"], decimal.getcontext().prec) == (23, 20)  # type: ignore[comparison-overlap]
