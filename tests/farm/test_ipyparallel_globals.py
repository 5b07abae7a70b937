"""Globals that functions of the program assign in direct calls stay on the engines, as with ipyparallel."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.polling import DEADLINE_S

pytestmark = pytest.mark.farm

SCRIPT = """
import {module} as ipp

def setup(n):
    global model
    model = list(range(n))

def use(i):
    return model[i]

def count():
    global calls
    try:
        calls += 1
    except NameError:
        calls = 1
    return calls

def add(x):
    global total
    total = total + x if "total" in globals() else x
    return total

def fails():
    global before
    before = 7
    raise ValueError("as planned")

if __name__ == "__main__":
    with ipp.Cluster(n=2, log_level=40) as rc:
        view = rc[:]
        print(view.apply_sync(setup, 3), view.apply_sync(use, 2), view["model"], view.map_sync(use, range(3)))
        print(rc.load_balanced_view().apply_sync(use, 1))
        print([view.apply_sync(count) for _ in range(3)], view["calls"])
        view.push({{"calls": 10}}, block=True)
        print(view.apply_sync(count), rc[0].apply_sync(count), view["calls"])
        print(view.map_sync(add, [1, 1, 1, 1]), view.map_sync(add, [1, 1, 1, 1]), view["total"])
        try:
            view.apply_sync(fails)
        except ipp.CompositeError:
            print(view["before"])
        view.clear(block=True)
        print(view.apply_sync(count))
"""
FOUND = """\
[None, None] [2, 2] [[0, 1, 2], [0, 1, 2]] [0, 1, 2]
1
[[1, 1], [2, 2], [3, 3]] [3, 3]
[11, 11] 12 [12, 11]
[1, 2, 1, 2] [3, 4, 3, 4] [4, 4]
[7, 7]
[1, 1]
"""


@pytest.mark.parametrize("module", ["ipyparallel", "ipytaskfarm.ipyparallel"])
def test_globals_that_direct_calls_assign(module: str, tmp_path: Path) -> None:
    assert _printed(SCRIPT.format(module=module), tmp_path)[0] == FOUND


KNOWN_HERE = """
import ipytaskfarm.ipyparallel as ipp

late = None

def assign(x):
    global late
    late = x

def by_helper(x):
    assign(x)

def use():
    return late

async def assign_later(x):
    global late
    late = x

if __name__ == "__main__":
    with ipp.Cluster(n=1) as rc:
        view = rc[:]
        for function in (assign, by_helper, assign_later):
            print(view.apply_sync(use))
            view.apply_sync(function, function.__name__)
        print(view.apply_sync(use), view["late"], late)
"""


def test_they_have_the_precedence_of_pushed_names(tmp_path: Path) -> None:
    found = "[None]\n['assign']\n['by_helper']\n['assign_later'] ['assign_later'] None\n"
    assert _printed(KNOWN_HERE, tmp_path) == (found, "")


def _printed(text: str, folder: Path) -> tuple[str, str]:
    """Run a program; return what it has printed, and its error stream."""
    script = folder / "script.py"
    script.write_text(text)
    ended = subprocess.run([sys.executable, script], timeout=DEADLINE_S, capture_output=True, text=True, check=True)
    return ended.stdout, ended.stderr
