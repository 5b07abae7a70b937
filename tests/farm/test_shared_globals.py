"""Globals that methods of a class change, and functions that use the class read; generators of random numbers."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from ipytaskfarm import Farm
from tests.support.farms import DEADLINE_S

pytestmark = pytest.mark.farm

PROGRAM = """
import contextlib, random, sys
from ipytaskfarm import Task, TaskClient

results, random_numbers = [], random.Random(3)
class Tracker:
    def add(self, x): results.append(x)
    @classmethod
    def first(cls): return results[0] if results else None
class Logged(contextlib.ContextDecorator):
    def __enter__(self): results.append("begin")
    def __exit__(self, *error): results.append("end")

def made():
    Tracker().add(1)
    return list(results)
def made_by_another():
    Tracker().add(2)
    return list(results), Tracker.first()
def given(tracker):
    tracker.add(3)
    return list(results)
def both():
    results.append(4)
    Tracker().add(5)
    with Logged(): pass
    return list(results)
def without():
    return Tracker.first()
def drawn():
    return random_numbers.random()

with TaskClient(sys.argv[1]) as tc:
    print([tc.run(Task(f, args=args), block=True).result for f, args in (
        (made, ()), (made_by_another, ()), (given, (Tracker(),)), (both, ()), (without, ()), (drawn, ()))])
"""


def test_a_class_and_a_function_see_one_list(tmp_path: Path) -> None:
    """The class came with the first function, or with the program before, and its methods changed the list of that."""
    script = tmp_path / "script.py"
    script.write_text(PROGRAM)
    with Farm(n=1) as farm:
        command = [sys.executable, str(script), str(farm.connection_file)]
        runs = [ast.literal_eval(subprocess.check_output(command, text=True, timeout=DEADLINE_S)) for _ in range(2)]
    for *lists, drawn in runs:
        assert lists == [[1], ([2], 2), [3], [4, 5, "begin", "end"], None]
        assert drawn == runs[0][-1]
