"""What is told of a function that uses what the session has replaced in installed modules, or reads its variables."""

from __future__ import annotations

import io
import json
import os
import random
import sys
import time
import urllib.request
import warnings
from collections.abc import Iterator
from contextlib import redirect_stderr
from typing import Any
from unittest import mock

import pytest

from ipytaskfarm.serialization import session_settings, session_state
from ipytaskfarm.serialization.pack import pack_function
from ipytaskfarm.system import process
from tests.support.pack_peer import Notebook

CODE = """
import json, os, random, subprocess, time, unittest.mock, urllib.request
def mocks(): return unittest.mock.ANY, unittest.mock.sentinel.one, unittest.mock.call(1)
def fetch(url): return urllib.request.urlopen(url)
def now(): return time.time()
def within():
    import time
    return time.sleep(0)
def encode(): return json.JSONEncoder.default
def read(path): return open(path).read()
def none_of_them(x): return json.dumps(x), time.perf_counter(), len(x)
PREFIX = "SET_"
class Settings:
    def __init__(self): self.value = os.environ.get(PREFIX + "HERE")
def by_prefix(): return Settings().value
def by_argument(name): return os.getenv(name, "nothing")
def all_of_them(): return {k: v for k, v in os.environ.items() if k[0] == "S"}
def expands(): return os.path.expandvars("$SET_HERE/x")
def asks_a_shell(): return subprocess.run("echo ${SET_HERE}", shell=True)
def reads_another(): return os.environ.get("HOME"), os.environ.get("UNKNOWN_ONE")
def sets_one(name):
    os.environ["X"] = "1"
    return os.environ[name]
"""


@pytest.fixture
def notebook() -> Iterator[Notebook]:
    session_state._warned.clear()
    notebook = Notebook()
    notebook.run(CODE)
    yield notebook
    session_state._warned.clear()


def told(function: Any) -> str:
    """Pack a function, and return the warnings and notes."""
    written = io.StringIO()
    with warnings.catch_warnings(record=True) as caught, redirect_stderr(written):
        warnings.simplefilter("always")
        pack_function(function)
    return "\n".join([*(str(each.message) for each in caught), written.getvalue()]).strip()


@pytest.mark.parametrize(
    ("name", "owner", "attribute", "value", "said"),
    [
        ("fetch", urllib.request, "urlopen", lambda url: "fake", "uses urllib.request.urlopen, which this session"),
        ("now", time, "time", mock.Mock(return_value=5.0), "now uses time.time, which this session has replaced"),
        ("within", time, "sleep", mock.Mock(), "within uses time.sleep"),
        ("encode", json.JSONEncoder, "default", lambda self, value: 1, "uses json.JSONEncoder.default"),
        ("none_of_them", time, "time", mock.Mock(return_value=5.0), ""),
        ("none_of_them", json.JSONEncoder, "default", lambda self, value: 1, ""),
        ("now", time, "time", time.monotonic, ""),
        ("now", random, "random", mock.Mock(), ""),
        ("mocks", random, "random", mock.Mock(), ""),
    ],
)
def test_replaced_parts_of_installed_modules(
    notebook: Notebook, monkeypatch: pytest.MonkeyPatch, name: str, owner: Any, attribute: str, value: Any, said: str
) -> None:
    """The lambdas belong to this module, which is no part of an installed distribution."""
    monkeypatch.setattr(owner, attribute, value)
    found = told(notebook[name])
    assert (said in found) if said else not found


def test_a_replaced_builtin(notebook: Notebook) -> None:
    with mock.patch("builtins.open", mock.mock_open(read_data="fake")):
        assert told(notebook["read"]).startswith(
            "read uses open, which this session has replaced: tasks use that of Py"
        )
    assert not told(notebook["read"])


@pytest.fixture
def variable(monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable that the program, whose source names it, has set since it began."""
    began = dict(os.environ)
    monkeypatch.setattr(process, "farm_began_with", began)
    monkeypatch.setenv("SET_HERE", "1")
    monkeypatch.setenv("_".join(["SET", "BY", "A", "LIBRARY"]), "1")  # this module is one of the program's sources
    main = sys.modules["__main__"]
    monkeypatch.setattr(main, "In", ["os.environ['SET_HERE'] = '1'"], raising=False)


@pytest.mark.parametrize("name", ["by_prefix", "by_argument", "all_of_them"])
def test_variables_under_computed_names_are_told_by_a_note(notebook: Notebook, variable: None, name: str) -> None:
    found = told(notebook[name])
    assert "reads variables under names that it computes, and this session has set SET_HERE: tasks have" in found


@pytest.mark.parametrize("name", ["expands", "asks_a_shell"])
def test_variables_in_texts_that_are_expanded(notebook: Notebook, variable: None, name: str) -> None:
    assert f"{name} reads the variable SET_HERE, which was set in this session" in told(notebook[name])


@pytest.mark.parametrize("name", ["reads_another", "sets_one", "now"])
def test_nothing_is_told_of_other_variables(notebook: Notebook, variable: None, name: str) -> None:
    assert not told(notebook[name])


@pytest.mark.parametrize(
    ("text", "expands"),
    [("$ABC", True), ("a${ABC}b", True), ("$ABC/x", True), ("$ABCD", False), ("$ABC_D", False), ("ABC", False)],
)
def test_what_a_shell_expands(text: str, expands: bool) -> None:
    assert session_settings._expands(text, "ABC") is expands
