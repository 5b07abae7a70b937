"""Depend functions of one client that never end: those of another client are answered meanwhile."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import psutil
import pytest

from ipytaskfarm import Farm, Task, TaskClient
from tests.support.hostile import controller_pid
from tests.support.polling import eventually
from tests.support.thorough import THOROUGH

pytestmark = pytest.mark.farm

SLOW = 20
ANSWER_S = 2.0 if THOROUGH else 8.0
"""`make test` runs beside other tests, and evaluators are started meanwhile."""
HOSTILE = f"""
import sys
from ipytaskfarm import Task, TaskClient
tc = TaskClient(sys.argv[1])
for n in range({SLOW}):
    names = {{"__name__": "__main__"}}
    exec(f"def f(properties):\\n    import time\\n    time.sleep({{1000 + n}})", names)
    print(tc.run(Task("a = 1", depend=names["f"])), flush=True)
tc.flush(30)
print("under way", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def hanging(farm: Farm) -> Iterator[list[int]]:
    """The tasks of a client in a process of its own, so with a session of its own."""
    command = [sys.executable, "-c", HOSTILE, str(farm.connection_file)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as hostile:
        assert hostile.stdout is not None
        ids = [int(hostile.stdout.readline()) for _ in range(SLOW)]
        assert hostile.stdout.readline() == "under way\n"
        yield ids
        hostile.kill()


def new_function(n: int) -> Callable[[Any], Any]:
    """Return a depend function that no evaluator has seen, and that imports nothing."""
    names: dict[str, Any] = {"__name__": "__main__"}
    exec(f"def f(properties): return {n} < 1000", names)
    found: Callable[[Any], Any] = names["f"]
    return found


def test_quick_functions_of_others_are_answered_while_slow_ones_are_pending(tc: TaskClient, hanging: list[int]) -> None:
    for n in range(5):
        began_s = time.monotonic()
        assert tc.run(Task(f"a = {n}", depend=new_function(n), pull="a"), block=True)["a"] == n
        assert time.monotonic() - began_s < ANSWER_S
    # The others are stopped one after the other, each with its reason.
    eventually(lambda: "did not answer within 2 s" in str(tc.explain(hanging[0])), 60.0, every_s=0.2)
    tc.abort(hanging)


def test_an_evaluator_that_a_function_has_stopped_does_not_stop_the_controller(farm: Farm, tc: TaskClient) -> None:
    """The code of the next function does not fit into its pipe."""
    names: dict[str, Any] = {"__name__": "__main__"}
    exec(STOPS, names)
    assert tc.run(Task("a = 1", pull="a", depend=names["f"]), block=True)["a"] == 1
    children = psutil.Process(controller_pid(farm)).children()
    eventually(lambda: any(child.status() == psutil.STATUS_STOPPED for child in children))
    exec(f"def f(properties): return len({'x' * 1_000_000!r}) > 0", names)
    large = tc.run(Task("a = 2", pull="a", depend=names["f"]))
    began_s = time.monotonic()
    assert tc.run(Task("a = 3", pull="a"), block=True)["a"] == 3
    assert time.monotonic() - began_s < ANSWER_S
    assert tc.get_task_result(large, block=True, timeout=60)["a"] == 2


STOPS = """
def f(properties):
    import os, signal, threading
    threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGSTOP)).start()
    return True
"""
