"""The code on the pages of the documentation runs, in the order of each page, on one farm."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import Dirs
from tests.support.pages import blocks, checked

BEGIN = """
import time
import ipytaskfarm.joblib
import numpy as np
import pandas as pd
from ipytaskfarm import *
from ipytaskfarm import client
from joblib import Parallel, delayed, parallel_config

farm = Farm(n=2, name="default")
tc, mec = TaskClient(), MultiEngineClient()
tc.progress = False
"""
GIVEN = {
    "index.md": "",
    "debugging.md": "",
    "what-travels.md": """
pd.DataFrame({"a": range(20), "b": range(20)}).to_csv("large.csv")
data = np.arange(100.0)

def write_sum(data, output, i):
    output[i] = data.sum() + i
""",
    "surroundings.md": "",
    "output.md": """
ids = [tc.run(Task(f"print('loss', {n})")) for n in range(3)]
code = "print(2)"

def f(x):
    if x == 7:
        print("item", x)
    return x
""",
    "sessions.md": """
environment = TaskEnvironment()
mec.execute("import threading; lock = threading.Lock()")
""",
    "environments.md": """
class Connection:
    def count(self):
        return 3

    def close(self):
        pass

class Sieve(TaskEnvironment):
    def __init__(self, most):
        self.most = most

    def setup(self):
        pass

def connect(path):
    return Connection()

def f(x):
    return x
""",
    "jobs.md": """
def f(x):
    return x

async def fetch(url):
    return 1

items, urls, xs, simulate, summary = range(20), ["a", "b"], range(10), f, sum
tc.map(f, xs, name="sweep")
""",
    "caching.md": """
data, datasets = [1, 2], [[1], [2]]

def fit(data, rate=0.1):
    return sum(data) * rate
""",
    "profiling.md": """
def f(x):
    return sum(range(x))
""",
}
"""Page -> what its code takes for granted. The other pages have tests of their own, or need more than one machine."""

LEFT_OUT = ("me = current_task()", "optuna", ">>> ")
"""Blocks for the inside of a task, of a library with its own test, or with prompts."""


@pytest.mark.farm
@pytest.mark.slow
def test_the_code_on_the_pages_runs(farm_dirs: Dirs, tmp_path: Path) -> None:
    script = [BEGIN]
    for page, given in GIVEN.items():
        code = [block for block in blocks(page) if not any(text in block for text in LEFT_OUT)]
        assert code, page
        script += [f"print({page!r}, flush=True)", given, *map(checked, code)]
    path = tmp_path / "pages.py"
    path.write_text("\n".join([*script, "farm.stop()"]).replace('"/data"', repr(str(tmp_path))))
    assert path.read_text().count("assert (") >= 2
    done = subprocess.run(
        [sys.executable, str(path)], cwd=tmp_path, capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr
