"""Test failures on a real farm, and what users see of them: errors, retries, recovery, losses, aborts, time limits."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from ipytaskfarm import Farm, MultiEngineClient, StringTask, Task, TaskClient, errors
from tests.support.farms import DEADLINE_S, Gate, incarnations, until_engines, until_running, value
from tests.support.polling import eventually

pytestmark = pytest.mark.farm(startup="from_startup = 'here'")


def counter(incarnation: str) -> int:
    return int(incarnation.rpartition(".")[2])


def newest(farm: Farm) -> int:
    return max(map(counter, incarnations(farm)))


# -- errors


def test_an_error_is_raised_where_its_result_is_looked_at(tc: TaskClient) -> None:
    task = tc.run(Task("1/0", pull="a"))
    tc.barrier(task, timeout=DEADLINE_S)
    tr = tc.get_task_result(task)
    assert tr.results == {}
    for look in (lambda: tr.ns.a, lambda: tr["a"], tr.raise_exception, tr.raiseException):
        with pytest.raises(ZeroDivisionError):
            look()
    assert tr.failure.type is ZeroDivisionError
    assert "1/0" in tr.failure.getTraceback()


@pytest.mark.parametrize(
    ("code", "pull", "error"),
    [
        ("a = 1", "absent", NameError),
        ("7 = 5", (), SyntaxError),
        ("a = globals()", "a", Exception),
        ("a = range(1e10)", "a", TypeError),
        ("os.kill(os.getpid(), 9)", (), NameError),
        ("import math as a", "a", errors.UnpickleableException),
        ("raise SystemExit(3)", (), Exception),
        ("exit()", (), Exception),
        ("raise KeyboardInterrupt", (), Exception),
        ("input()", (), Exception),
        ("breakpoint()", (), Exception),
    ],
)
def test_what_cannot_work_ends_as_a_readable_failure(
    code: str, pull: Any, error: type[Exception], tc: TaskClient, farm: Farm
) -> None:
    before = incarnations(farm)
    tr = tc.run(Task(code, pull=pull, clear_before=True), block=True)
    assert tr.failure is not None
    assert tr.failure.getTraceback()
    with pytest.raises(error):
        tr.raise_exception()
    assert incarnations(farm) == before, "the engine did not survive it"


def test_a_failing_statement_stops_the_task(tc: TaskClient) -> None:
    tc.run(Task("zz = 0\n1/0\nzz = 5", targets=[0]), block=True)
    assert value(tc, "pass", "zz", targets=[0]) == 0


# -- retries and recovery


def test_retries_run_the_same_task_again(tc: TaskClient, mec: MultiEngineClient) -> None:
    mec.execute("i = 0", targets=0)
    task = Task("i += 1\nassert i == 16", pull="i", retries=10, targets=[0])
    first = tc.run(task, block=True)
    assert isinstance(first.failure.value, AssertionError)
    assert len(first.attempts) == 11
    second = tc.run(task, block=True)
    assert second.ns.i == 16
    assert [a.outcome for a in second.attempts] == ["error"] * 4 + [""]


def test_a_recovery_chain_ends_with_the_first_that_works(tc: TaskClient) -> None:
    third = StringTask("a = 'third'", pull="a")
    second = StringTask("1/0", recovery_task=third)
    task = tc.run(StringTask("1/0", recovery_task=second))
    tr = tc.get_task_result(task, block=True)
    assert (tr.taskid, tr.ns.a) == (task, "third")
    assert len(tr.attempts) == 3


def test_if_all_of_a_chain_fail_the_last_error_stands(tc: TaskClient) -> None:
    tr = tc.run(StringTask("1/0", recovery_task=StringTask("{}['last']")), block=True)
    with pytest.raises(KeyError, match="last"):
        tr.raise_exception()


def test_a_recovery_loop_is_refused(tc: TaskClient) -> None:
    one, two = StringTask("1/0"), StringTask("2/0")
    one.recovery_task, two.recovery_task = two, one
    with pytest.raises(ValueError, match="1/0"):
        tc.run(one)


# -- lost engines


def test_a_task_that_kills_its_engine_fails_and_says_how(tc: TaskClient, farm: Farm) -> None:
    before = incarnations(farm)
    tr = tc.run(Task("import os; os.kill(os.getpid(), 9)"), block=True)
    with pytest.raises(errors.EngineLost, match=rf"engine {tr.engineid} .*signal 9"):
        tr.raise_exception()
    until_engines(farm, 2)
    assert len(before - incarnations(farm)) == 1


def test_with_a_retry_it_takes_two_engines_and_nobody_else_suffers(
    tc: TaskClient, farm: Farm, mec: MultiEngineClient
) -> None:
    mec.push({"kept": "sticky"}, sticky=True)
    before = incarnations(farm)
    others = [tc.run(Task("a = 1; import time; time.sleep(0.01)", pull="a", retries=1)) for _ in range(50)]
    killer = tc.run(Task("import os; os.kill(os.getpid(), 9)", retries=1))
    more = [tc.run(Task("a = 1", pull="a", retries=1)) for _ in range(50)]
    tc.barrier([*others, killer, *more], timeout=60)
    assert len(tc.get_task_result(killer).attempts) == 2
    assert all(tc.get_task_result(i).ns.a == 1 for i in [*others, *more])
    until_engines(farm, 2)
    assert newest(farm) - max(map(counter, before)) == 2, "exactly two engines were to be lost"
    assert mec.pull(["kept", "from_startup"]) == [["sticky", "here"]] * 2
    mec.clear_sticky()


@pytest.mark.parametrize("how", ["import os; os._exit(0)", "import ctypes; ctypes.string_at(0)"])
def test_an_exit_or_a_crash_in_c_is_never_a_success(how: str, tc: TaskClient) -> None:
    with pytest.raises(errors.EngineLost):
        tc.run(Task(how), block=True).raise_exception()


# -- aborts


SLEEPER = "import time; time.sleep(60)"
SPINNER = "while True: pass"
DEAF = "import signal, time\nwhile True:\n    try:\n        time.sleep(60)\n    except BaseException:\n        pass\n"


@pytest.mark.parametrize("code", [SLEEPER, SPINNER, DEAF], ids=["sleep", "spin", "deaf"])
def test_a_running_task_is_aborted_and_the_next_one_is_not_hit(code: str, tc: TaskClient, farm: Farm) -> None:
    victim = tc.run(Task(code, targets=[0]))
    until_running(tc, victim)
    followers = [tc.run(Task("a = 7", pull="a", targets=[0])) for _ in range(5)]
    tc.abort(victim)
    with pytest.raises(errors.TaskAborted):
        tc.get_task_result(victim)
    tc.barrier(followers, timeout=DEADLINE_S)
    assert [tc.get_task_result(i).ns.a for i in followers] == [7] * 5


def test_an_abort_in_each_state(tc: TaskClient, gate: Gate) -> None:
    running = [tc.run(Task(gate.code, targets=[i])) for i in (0, 1)]
    for task in running:
        until_running(tc, task)
    waiting = tc.run(Task("a = 1"))
    tc.abort(waiting)
    with pytest.raises(IndexError, match="already aborted"):
        tc.abort(waiting)
    gate.open()
    tc.barrier(running, timeout=DEADLINE_S)
    with pytest.raises(IndexError, match="already completed"):
        tc.abort(running[0])
    with pytest.raises(IndexError):
        tc.abort(10**9)
    with pytest.raises(TypeError):
        tc.abort("1")
    assert tc.status(waiting).reason == "aborted"


def test_an_abort_without_interrupt_lets_it_run_out(tc: TaskClient, gate: Gate, tmp_path: Path) -> None:
    mark = tmp_path / "ran_out"
    task = tc.run(Task(gate.code + f"open({str(mark)!r}, 'w').close()"))
    until_running(tc, task)
    tc.abort(task, interrupt=False)
    gate.open()
    eventually(mark.exists, DEADLINE_S)
    with pytest.raises(errors.TaskAborted):
        tc.get_task_result(task)


# -- time limits


def test_a_time_limit_counts_run_time_and_frees_the_engine(tc: TaskClient) -> None:
    began = time.monotonic()
    tr = tc.run(Task(SLEEPER, time_limit=0.3), block=True)
    with pytest.raises(errors.TimeLimitExceeded):
        tr.raise_exception()
    assert time.monotonic() - began < DEADLINE_S
    assert value(tc, "a = 1", "a", time_limit=5.0) == 1


def test_what_cannot_be_interrupted_is_killed_for_its_time_limit(tc: TaskClient, farm: Farm) -> None:
    before = incarnations(farm)
    # One C call that holds the interpreter: no signal handler of Python's runs meanwhile.
    held = "sum(range(10**13))"
    with pytest.raises(errors.TimeLimitExceeded):
        tc.run(Task(held, time_limit=0.3), block=True).raise_exception()
    until_engines(farm, 2)
    assert len(before - incarnations(farm)) == 1


def test_a_task_has_a_grace_of_its_own(tc: TaskClient, farm: Farm) -> None:
    """Between the interrupt of its time limit and the signals that end its engine."""
    code = """
import time
end = time.monotonic() + {seconds}
while time.monotonic() < end:
    try:
        time.sleep(0.01)
    except BaseException:
        pass
"""
    before = incarnations(farm)
    patient = tc.run(Task(code.format(seconds=2.5), time_limit=0.3, grace=20))
    tr = tc.get_task_result(patient, block=True, timeout=DEADLINE_S)
    assert tr.reason in ("", "time limit"), "it came to its own end"
    assert incarnations(farm) == before
    tr = tc.run(Task(code.format(seconds=60), time_limit=0.3, grace=0.1), block=True)
    assert tr.reason == "time limit"
    assert tr.duration < 20
    until_engines(farm, 2)
    assert len(before - incarnations(farm)) == 1


# -- looking back


def test_tables_name_the_ids_that_the_farm_does_not_know(tc: TaskClient) -> None:
    known = tc.run(Task("a = 1"))
    tc.barrier([known])
    wrong = [10**9, 10**9 + 1]
    line = "not known: task 1000000000, 1000000001 (never submitted, or cleared)"
    table, groups = tc.tasks(ids=[known, *wrong]), tc.failures([known, *wrong])
    assert (table.ids, table.unknown) == ([known], groups.unknown) == ([known], wrong)
    assert repr(table).splitlines()[0] == line
    assert repr(groups) == f"{line}\n\nno failed tasks"
    assert line in table._repr_html_()
    assert line in groups._repr_html_()
    assert tc.tasks(ids=[known]).unknown == []
    assert "not known" not in repr(tc.tasks())


def test_failures_are_grouped_and_retried(tc: TaskClient) -> None:
    ids = [tc.run(Task(f"[][{n}]")) for n in range(3)]
    tc.barrier(ids, timeout=DEADLINE_S)
    assert "IndexError" in str(tc.failures(ids))
    again = tc.retry(ids)
    tc.barrier(again, timeout=DEADLINE_S)
    assert not set(again) & set(ids)
    assert all(tc.get_task_result(i).failure is not None for i in again)
    assert "IndexError" in tc.explain(ids[0])


def test_the_stack_of_a_running_task(tc: TaskClient, gate: Gate) -> None:
    task = tc.run(Task("def inner():\n    import time\n    time.sleep(60)\ninner()"))
    until_running(tc, task)
    # Handed out is not yet begun: the first look may find the engine on its way there.
    eventually(lambda: "inner" in tc.stack(task), DEADLINE_S)
    first, *frames = tc.stack(task).splitlines()
    assert first == "Stack (most recent call first):"
    assert [frame.partition(" line ")[2] for frame in frames] == ["3 in inner", "4 in <module>"], "the user's alone"
    tc.abort(task)


def test_an_unpicklable_argument_is_named(tc: TaskClient) -> None:
    import threading

    with pytest.raises(errors.UnpickleableException, match=r"args\[0\]\['lock'\]"):
        tc.run(Task(len, args=({"lock": threading.Lock()},)))
