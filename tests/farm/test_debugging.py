"""`tc.fetch_task` and `tc.debug`: failed tasks of any kind run again in the caller's process, on a real farm."""

from __future__ import annotations

import json
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any

import pexpect
import pytest

from ipytaskfarm import Farm, Ref, StringTask, Task, TaskClient, TaskEnvironment, errors
from ipytaskfarm.client import debugging
from ipytaskfarm.client.tasks import CallTask, Join
from tests.support.failing import CODE, Divider, Prepared, Ratio, closure, divide, divide_later
from tests.support.farms import DEADLINE_S
from tests.support.shells import shell_with_magics

pytestmark = pytest.mark.farm(n=1)


class Impossible(TaskEnvironment):
    def __init__(self, engine: int) -> None:
        self.engine = engine

    def setup(self) -> None:
        import os

        if os.getpid() == self.engine:
            raise FileNotFoundError("no such licence")


def error_here(tc: TaskClient, task_id: int) -> BaseException:
    """Return the error that `tc.debug` raises where nobody can type, after the task has failed on its engine."""
    tc.barrier([task_id])
    assert tc.status(task_id).state == "failed"
    with pytest.raises(ZeroDivisionError) as raised:
        tc.debug(task_id)
    return raised.value


def variables(error: BaseException) -> dict[str, Any]:
    """Return the local variables of the innermost frame: those of this process, no texts."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return frame.f_locals


@pytest.mark.parametrize(
    "task",
    [
        Task(divide, args=(3,)),
        Task(Ratio, args=(3,)),
        Task(Divider(0), args=(3,)),
        Task(closure(0), args=(3,)),
        Task(divide_later, args=(3,)),
        Task(divide, args=(3,), environment=Prepared()),
        Task(divide, args=(3,), retries=1, priority=2, requires={"memory": "> 1 MB"}),
    ],
    ids=["function", "class", "object", "closure", "coroutine", "environment", "rules"],
)
def test_a_call_fails_here_as_it_did_there(tc: TaskClient, task: Task) -> None:
    here = variables(error_here(tc, tc.run(task)))
    assert (here["x"], here["difference"]) == (3, 0)


def test_code_fails_here_with_what_it_pushed_and_the_names_of_this_session(
    tc: TaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules["__main__"], "factor", 0, raising=False)
    here = variables(error_here(tc, tc.run(StringTask("b = a * 0\nc = 1 / b", push={"a": 3}, pull="c"))))
    assert (here["a"], here["b"]) == (3, 0)
    lost = tc.run(StringTask("d = a / factor", push={"a": 3}))  # the engine has no such name
    tc.barrier([lost])
    with pytest.raises(ZeroDivisionError):
        tc.debug(lost)


def test_code_with_push_magics_and_await(tc: TaskClient, farm: Farm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(debugging, "can_ask", lambda: True)
    code = f"import asyncio\nawait asyncio.sleep(0)\n{CODE}"
    with shell_with_magics() as shell:
        shell.ok(f"%taskfarm connect {farm.connection_file}")
        shell["bad"] = tc.run(StringTask(code, push={"a": 3}))
        tc.barrier([shell["bad"]])
        opened: list[Any] = []
        shell.shell.InteractiveTB.debugger = lambda force: opened.append(sys.last_value)
        cell = shell.ok(f"%task debug {shell['bad']}")
        assert isinstance(opened[0], ZeroDivisionError)
        assert "int(found[0]) / b" in cell.out


def test_a_result_of_another_task_is_given_as_it_was(tc: TaskClient) -> None:
    zero = tc.run(Task(int))
    bad = tc.run(Task(divide, args=(3, Ref(zero))))
    assert variables(error_here(tc, bad))["by"] == 0
    again = tc.fetch_task(bad)
    assert isinstance(again, CallTask)
    assert again.args is not None
    assert isinstance(again.args[1], Ref)
    assert int(again.args[1].task) == zero
    assert tc.run(again, block=True).failure is not None
    tc.clear([zero])
    with pytest.raises(
        IndexError, match=rf"task {zero}, an argument of this one, has been cleared; tc.debug\(id, run=F"
    ):
        tc.debug(bad)


def test_an_environment_is_set_up_here_and_taken_down(tc: TaskClient) -> None:
    bad = tc.run(StringTask("x = 1 / env.ready", environment=Prepared(0)))
    assert variables(error_here(tc, bad))["env"].ready == 0
    assert not hasattr(sys.modules["__main__"], "env")


def test_an_environment_that_cannot_be_set_up_here_is_named(tc: TaskClient) -> None:
    import os

    bad = tc.run(Task(divide, args=(3,), environment=Impossible(os.getpid())))
    tc.barrier([bad])
    said = f"the environment Impossible of task {bad} cannot be set up in this process: FileNotFoundError: no such"
    with pytest.raises(errors.EnvironmentSetupError, match=said):
        tc.debug(bad)


def test_an_item_of_a_map(tc: TaskClient) -> None:
    with pytest.raises(ZeroDivisionError):
        tc.map(divide, [1, 2, 3], [1, 0, 2], name="items")
    (bad,) = tc.failures(tc.job("items").ids)[0].ids
    assert variables(error_here(tc, bad))["x"] == 2
    silent = bad + 1
    assert tc.fetch_task(silent).run_local() == 1.5


def test_a_task_that_succeeds_here_prints_its_value(tc: TaskClient, capsys: pytest.CaptureFixture[str]) -> None:
    good = tc.run(Task(divide, args=(3, 2)))
    tc.debug(good)
    assert f"task {good} succeeded here: 1.5" in capsys.readouterr().out


def test_a_fetched_task_has_what_it_was_given(tc: TaskClient) -> None:
    other = Task("print(2)")
    rules: dict[str, Any] = {
        "retries": 2, "priority": -3, "time_limit": 4.0, "name": "given", "retry_delay": 0.5, "retry_on": OSError,
        "requires": {"memory": "> 1 MB"}, "resources": {"cores": 1}, "placement": "random", "warn_after": 3.0,
        "recovery_task": other, "targets": [0, 1], "lost_retries": 1, "grace": 2.0, "group": "few", "max_parallel": 3,
        "depend": closure(1.0), "locality": closure(1.0), "environment": Prepared(0), "unique": "one of its kind",
    }  # fmt: skip
    given = Task("a = b", pull=["a"], push={"b": 2}, clear_before=True, **rules)
    again = tc.fetch_task(tc.run(given))
    for name in ["expression", "pull", "push", "clear_before", *rules]:
        was, now = getattr(given, name), getattr(again, name)
        if name in ("depend", "locality"):
            assert now(3) == was(3)
        elif name == "environment":
            assert (type(now), now.zero) == (Prepared, 0)
        elif name == "recovery_task":
            assert now.expression == other.expression
        else:
            assert now == was, name
    join = tc.fetch_task(tc.run(Join(after=[tc.run(Task(int))])))
    assert isinstance(join, Join)


def test_a_task_of_another_program(tc: TaskClient, farm: Farm, tmp_path: Path) -> None:
    """The program that handed it in has ended; its function and its class were in its own ``__main__``."""
    program = tmp_path / "program.py"
    program.write_text(
        "import sys\nfrom ipytaskfarm import Task, TaskClient\nLIMIT = 4\n"
        "class Job:\n    def __init__(self, n): self.n = n\n"
        "def work(job):\n    rest = job.n - LIMIT\n    return 1 / rest\n"
        "tc = TaskClient(sys.argv[1])\nprint(tc.run(Task(work, args=(Job(4),))))\ntc.barrier()\n"
    )
    command = [sys.executable, str(program), str(farm.connection_file)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    here = variables(error_here(tc, int(ended.stdout)))
    assert (here["job"].n, here["rest"]) == (4, 0)
    assert not hasattr(sys.modules["__main__"], "LIMIT")


def test_the_frames_that_came_with_the_failure(tc: TaskClient) -> None:
    bad = tc.run(Task(divide, args=(3,)))
    tc.barrier([bad])
    with pytest.raises(ZeroDivisionError) as raised:
        tc.debug(bad, run=False)
    assert repr(variables(raised.value)["difference"]) in ("0", "0.0")
    good = tc.run(Task(int))
    tc.barrier([good])
    with pytest.raises(ValueError, match=f"task {good} has not failed"):
        tc.debug(good, run=False)


def test_a_task_that_is_not_there(tc: TaskClient) -> None:
    for wrong in (10**9, -1):
        with pytest.raises(IndexError):
            tc.fetch_task(wrong)
    gone = tc.run(Task(int))
    tc.barrier([gone])
    tc.clear([gone])
    with pytest.raises(IndexError, match=f"no task {gone}: it was never submitted, or has been cleared"):
        tc.debug(gone)


def test_the_command_opens_the_debugger(tc: TaskClient, farm: Farm) -> None:
    bad = tc.run(Task(divide, args=(3,)))
    tc.barrier([bad])
    command = ["-m", "ipytaskfarm", "debug", str(bad), "--farm", str(farm.connection_file)]
    terminal = pexpect.spawn(sys.executable, command, encoding="utf-8", timeout=DEADLINE_S, dimensions=(40, 160))
    terminal.expect_exact("(Pdb)")
    terminal.sendline("p difference, x")
    terminal.expect_exact("(0.0, 3)")
    terminal.sendline("q")
    terminal.expect(pexpect.EOF)
    terminal.close()
    assert terminal.exitstatus == 0
    asked = subprocess.run([sys.executable, *command], capture_output=True, text=True, timeout=60, check=False)
    assert asked.returncode == 1, "without a terminal the command shows the task's own error"
    assert "ZeroDivisionError" in asked.stderr
    assert "there is no terminal for a debugger" in asked.stderr
    assert "application.py" not in asked.stderr
    gone = [sys.executable, "-m", "ipytaskfarm", "debug", "987654", "--farm", str(farm.connection_file)]
    ended = subprocess.run(gone, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 1
    assert "there is no task 987654" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_ipythons_syntax_needs_ipython(tc: TaskClient) -> None:
    bad = tc.run(StringTask("%magic_of_nobody 3"))
    tc.barrier([bad])
    with pytest.raises(SyntaxError) as raised:
        tc.debug(bad)
    assert f"if task {bad} uses IPython's syntax (%magics, !commands), debug it in IPython" in raised.value.__notes__


def test_a_failure_tells_its_frames_and_explain_the_variables(tc: TaskClient) -> None:
    bad = tc.run(Task(divide, args=(3,)))
    tc.barrier([bad])
    result = tc.get_task_result(bad)
    (frame,) = result.failure.frames
    assert (frame.function, frame.variables["x"], frame.variables["by"]) == ("divide", "3", "0.0")
    assert "    x = 3" in tc.explain(bad)
    assert "local variables" in result.html()
    assert "local variables" not in tc.run(Task(divide, args=(3, 1)), block=True).html()


def _opens(text: str, depth: int) -> object:
    return json.loads(text) if not depth else _opens(text, depth - 1)


def test_the_variables_are_those_of_the_users_frames_however_deep_a_library_fails(tc: TaskClient) -> None:
    deep = "import json, re\nclass Deep(dict): pass\n" + "pattern = '(' * 60 + 'a'\nre.compile(pattern)"
    for task in (Task(_opens, args=("{broken", 1)), StringTask(deep)):
        bad = tc.run(task, block=True)
        told = bad.failure.variables()
        assert "in decode" not in told
        assert "in _parse" not in told
        assert ("    text = '{broken'" in told) or ("    pattern = '((((" in told), told
        assert told in tc.explain(bad.taskid)


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("breakpoint()", "breakpoint() was called on an engine, where nobody can answer: tc.debug(id) runs the task"),
        ("import pdb; pdb.set_trace(); x = 1", "a debugger was started on an engine"),
        ("import pdb\ntry: 1 / 0\nexcept ZeroDivisionError: pdb.post_mortem()", "a debugger was started on an engine"),
        ("from IPython.core.debugger import set_trace; set_trace(); x = 1", "a debugger was started on an engine"),
        ("import code; code.interact()", "a console was opened on an engine"),
        ("import IPython; IPython.embed()", "a console was opened on an engine"),
        ("input()", "input() was called on an engine, where nobody can answer: push the value"),
    ],
)
def test_a_debugger_in_a_task_says_how_to_debug_it(tc: TaskClient, code: str, expected: str) -> None:
    with pytest.raises(RuntimeError) as raised:
        tc.run(Task(code), block=True).raise_exception()
    assert str(raised.value).startswith(expected)
