"""Functions whose results depend on state of this session, which no error would tell of, are warned of."""

from __future__ import annotations

import decimal
import functools
import random
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from ipytaskfarm.serialization import session_state
from ipytaskfarm.serialization.pack import pack_function
from tests.support.pack_peer import Notebook

DRAWS = """
import decimal, random
import numpy as np
rng, legacy, plain = np.random.default_rng(1), np.random.RandomState(1), random.Random(1)
def by_global(i): return rng.random()
def by_default(i, g=legacy): return g.rand()
def by_keyword(i, *, g=plain): return g.random()
def by_helper(i): return by_global(i)
def hidden(i): return np.random.rand(), random.random(), random.Random(i).random()
def argument(g): return g.random()
class Walk:
    def __init__(self): self.rng = np.random.default_rng(1)
    def step(self, i): return self.rng.random()
def made():
    mine = np.random.default_rng(1)
    return lambda i: mine.random()
def reckons(i): return decimal.Decimal(1) / 3
def divides(i): return np.float64(1) / i
"""


@pytest.fixture(autouse=True)
def _nothing_warned() -> Iterator[None]:
    session_state._warned.clear()
    yield
    session_state._warned.clear()


def said(call: Callable[..., Any], *args: Any) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call(*args)
    assert all(each.filename == __file__ for each in caught), "it points at the line that called"
    return [str(each.message) for each in caught]


def test_generators_that_tasks_share_here_but_not_on_engines(notebook: Notebook) -> None:
    notebook.run(DRAWS)
    for name, who, remedy in (
        ("by_global", "by_global draws from rng,", "such as rng.spawn(n)[i]"),
        ("by_default", "by_default draws from g,", "such as a seed for each"),
        ("by_keyword", "by_keyword draws from g,", "such as a seed for each"),
    ):
        (text,) = said(pack_function, notebook[name])
        assert text.startswith(who)
        assert text.endswith(remedy)
    assert said(pack_function, notebook["by_helper"]) == [], "it was told of by_global"
    for name in ("hidden", "argument"):
        assert said(pack_function, notebook[name]) == [], name


def test_generators_of_one_object_are_warned_of_in_maps(notebook: Notebook) -> None:
    notebook.run(DRAWS)
    shared = notebook["Walk"]().step, functools.partial(notebook["argument"], notebook["rng"]), notebook["made"]()
    for function in shared:  # of several such objects each may have a generator of its own
        assert said(pack_function, function) == []
        assert len(said(session_state.warn_of_one_for_all, function)) == 1
    for function in (notebook["by_helper"], len, notebook["Walk"], random.random, functools.partial(int, base=2)):
        assert said(session_state.warn_of_one_for_all, function) == []


def test_decimals_and_numpys_errors(notebook: Notebook) -> None:
    notebook.run(DRAWS)
    reckons, divides = notebook["reckons"], notebook["divides"]
    assert said(pack_function, reckons) == said(pack_function, divides) == []
    notebook.run(DRAWS)
    with decimal.localcontext(decimal.Context(prec=5)), np.errstate(divide="raise"):
        (text,) = said(pack_function, notebook["reckons"])
        assert text.startswith("this session's decimal context (prec=5, ROUND_HALF_EVEN) is not that of tasks")
        (text,) = said(pack_function, notebook["divides"])
        assert text.startswith("numpy raises here for divide (np.seterr), but not in tasks")
        notebook.run(DRAWS)
        assert said(pack_function, notebook["reckons"]) == [], "once is enough"
