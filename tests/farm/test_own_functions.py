"""Functions of a script that come back from an engine are the script's own functions, as after pickle."""

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
import functools, pickle, sys
from ipytaskfarm import Executor, MultiEngineClient, Task, TaskClient

factor = 1
def logged(function):
    @functools.wraps(function)
    def wrapper(*args): return function(*args)
    return wrapper
def scaled(x, unit=()): return x * factor
@logged
def shown(x): return x
@logged
@logged
def twice(x): return x
@functools.lru_cache
def square(x): return x * x
class Rule:
    def __init__(self, function): self.function = function
    def apply(self, x): return self.function(x)
    @staticmethod
    def always(x): return True

OWN = {"function": scaled, "decorated": shown, "twice decorated": twice, "inner": twice.__wrapped__, "cached": square,
       "method": Rule.apply, "static method": Rule.always}
def all_of_them(): return OWN
def same(value): return value
def rule(): return Rule(scaled)
def made():
    def scaled(x, unit=()): return x * factor
    return scaled
square(3)

def others(tc, mec):
    # functions that have come under a name of the script and are other functions
    global shown
    changed = logged(shown)
    yield tc.submit(same, changed).result() is not shown
    yield tc.submit(made).result() is not scaled
    before = tc.submit(same, shown)
    def shown(x): return -x
    yield before.result() is not shown and before.result()(4) == 4 and shown(4) == -4
    mec.execute("def scaled(x, unit=()): return x * 50")
    yield mec.pull("scaled", targets=0)[0](1) == 50

with TaskClient(sys.argv[1]) as tc, MultiEngineClient(sys.argv[1]) as mec, Executor(tc) as executor:
    found = {"result": tc.submit(all_of_them).result(), "item": dict(zip(OWN, tc.map(same, OWN.values()))),
             "executor": dict(zip(OWN, executor.map(same, OWN.values()))),
             "pulled": tc.run(Task("back = own", push={"own": OWN}, pull="back"), block=True)["back"]}
    wrong = [(way, name) for way, values in found.items() for name in OWN if values[name] is not OWN[name]]
    back = tc.submit(rule).result()
    factor = 3
    checks = [back.apply(2), {scaled: "key"}[back.function], pickle.loads(pickle.dumps(back)).function is scaled,
              square.cache_info().hits, scaled.__defaults__, vars(twice.__wrapped__).keys() == {"__wrapped__"}]
    square(3)
    print([wrong, checks, square.cache_info().hits, list(others(tc, mec))])
"""


def test_they_are_the_scripts_own(farm: Farm, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(PROGRAM)
    run = subprocess.run(
        [sys.executable, script, str(farm.connection_file)], capture_output=True, text=True, timeout=DEADLINE_S
    )
    assert run.returncode == 0, run.stderr
    wrong, checks, hits, others = ast.literal_eval(run.stdout)
    assert wrong == []
    assert checks == [6, "key", True, 0, ((),), True]
    assert hits == 1
    assert others == [True] * 4
