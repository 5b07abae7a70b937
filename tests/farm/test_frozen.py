"""Frozen engines on a real farm: each kind of task is debugged on its engine, and again in this process."""

from __future__ import annotations

import builtins
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pexpect
import pytest

from ipytaskfarm import Farm, Ref, StringTask, Task, TaskClient
from ipytaskfarm.client import frozen
from tests.support.failing import CODE, Divider, Prepared, Ratio, closure, divide, divide_later
from tests.support.far import NODE, far_engines, farm_state
from tests.support.farms import DEADLINE_S, engines, module_farm, until_engines
from tests.support.polling import eventually
from tests.support.thorough import by_hand

pytestmark = pytest.mark.farm


@pytest.fixture(scope="module")
def shared() -> Iterator[Farm]:
    with module_farm(1, frozen_engines=3) as farm:
        yield farm


@pytest.fixture
def tc(shared: Farm) -> Iterator[TaskClient]:
    with shared.task_client() as client:
        yield client
        client.release()
        eventually(lambda: not client.frozen().rows, DEADLINE_S)


Console = Callable[..., str]


@pytest.fixture
def console(tc: TaskClient, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Console:
    return console_of(tc, monkeypatch, capsys)


def console_of(tc: TaskClient, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Console:
    """Return a function that debugs a task, types these lines, and returns what was printed."""

    def debug(task: int, *lines: str) -> str:
        left = [*lines, "q"]
        monkeypatch.setattr(frozen, "can_ask", lambda: True)
        monkeypatch.setattr(builtins, "input", lambda prompt="": left.pop(0))
        capsys.readouterr()
        tc.debug(task)
        assert not left, "the debugger did not ask so often"
        return re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out)

    return debug


def fail(tc: TaskClient, task: Task) -> int:
    """Run a task that fails, and return its id."""
    failed: int = tc.run(task)
    tc.barrier([failed], timeout=DEADLINE_S)
    assert tc.status(failed).state == "failed"
    return failed


@pytest.mark.parametrize(
    "task",
    [
        Task(divide, args=(3,), on_failure="hold"),
        Task(Ratio, args=(3,), on_failure="hold"),
        Task(Divider(0), args=(3,), on_failure="hold"),
        Task(closure(0), args=(3,), on_failure="hold"),
        Task(divide_later, args=(3,), on_failure="hold"),
        Task(divide, args=(3,), on_failure="hold", environment=Prepared()),
    ],
    ids=["function", "class", "object", "closure", "coroutine", "environment"],
)
def test_a_call_is_debugged_on_its_engine_and_here(tc: TaskClient, console: Console, task: Task) -> None:
    failed = fail(tc, task)
    said = console(failed, "p ('found', x, difference)", "u", "p 1 + 1")
    assert "return x / difference" in said
    assert "('found', 3, 0" in said
    with pytest.raises(ZeroDivisionError):
        tc.debug(failed, run=True)


def test_code_with_push_and_magics(tc: TaskClient, console: Console) -> None:
    failed = fail(tc, StringTask(CODE, push={"a": 3}, on_failure="hold", clear_after=True))
    said = console(failed, "p ('found', a, b, found)")
    assert "('found', 3, 0, ['3'])" in said
    assert "int(found[0]) / b" in said


def test_the_environment_is_there(tc: TaskClient, console: Console) -> None:
    failed = fail(tc, StringTask("x = 1 / env.ready", environment=Prepared(), on_failure="hold"))
    assert "('found', 0)" in console(failed, "p ('found', env.ready)")


def test_a_result_of_another_task(tc: TaskClient, console: Console) -> None:
    zero = tc.run(Task(int))
    failed = fail(tc, Task(divide, args=(3, Ref(zero)), on_failure="hold"))
    assert "('found', 3, 0)" in console(failed, "p ('found', x, by)")
    with pytest.raises(ZeroDivisionError):
        tc.debug(failed, run=True)


def test_an_item_of_a_map_and_the_others_go_on(tc: TaskClient, console: Console) -> None:
    values = tc.map(divide, [1, 2, 3, 4], [1, 0, 2, 4], on_failure="hold", on_error="return")
    assert [value for value in values if not isinstance(value, Exception)] == [1, 1.5, 1]
    (row,) = tc.frozen()
    assert "('found', 2, 0)" in console(row.task, "p ('found', x, by)")


def test_an_interrupted_run_is_kept(tc: TaskClient, console: Console) -> None:
    failed = fail(tc, StringTask("import time\nturns = 7\ntime.sleep(60)", on_failure="hold", time_limit=0.3))
    (row,) = tc.frozen()
    assert "<task>:3" in row.place, "the place is where the user's code was, not what interrupted it"
    assert "('found', 7)" in console(failed, "p ('found', turns)")


def test_the_default_of_a_client_and_of_a_job(tc: TaskClient) -> None:
    tc.on_failure = "hold"
    failed = fail(tc, Task(divide, args=(3,)))
    fail(tc, Task(divide, args=(3,), on_failure="fail"))
    tc.on_failure = "fail"
    fail(tc, Task(divide, args=(3,)))
    job = tc.create_job("kept", on_failure="hold")
    job.add_task(Task(divide, args=(3,)))
    (of_job,) = job.submit()
    tc.barrier([of_job])
    assert [row.task for row in tc.frozen()] == [failed, of_job]
    assert tc.fetch_task(failed).on_failure == "hold"
    with pytest.raises(ValueError, match="on_failure must be one of 'fail', 'hold', not 'keep'"):
        tc.on_failure = "keep"


def test_another_engine_takes_its_place_and_retries_run_there(tc: TaskClient, shared: Farm) -> None:
    until_engines(shared, 1)
    (before,) = engines(shared)
    failed = fail(tc, Task(divide, args=(3,), on_failure="hold", retries=1))
    eventually(lambda: [row.id for row in engines(shared)] == [before.id], DEADLINE_S)
    (after,) = engines(shared)
    (kept,) = tc.frozen()
    assert (kept.task, kept.attempt, kept.pid) == (failed, 1, before.pid)
    assert after.pid != before.pid
    assert f"tc.debug({failed}) opens its frames" in tc.explain(failed)
    result = tc.get_task_result(failed)
    assert f"tc.debug({failed}) opens them" not in result.failure.getErrorMessage(), "that was the first attempt"


def test_the_commands(tc: TaskClient, shared: Farm) -> None:
    failed = fail(tc, Task(divide, args=(3,), on_failure="hold"))
    words = ["--farm", str(shared.connection_file)]
    command = [sys.executable, "-m", "ipytaskfarm"]
    terminal = pexpect.spawn(
        command[0], [*command[1:], "debug", str(failed), *words], encoding="utf-8", timeout=DEADLINE_S,
        dimensions=(40, 160),
    )  # fmt: skip
    terminal.expect_exact("ipdb>")
    terminal.sendline("p ('found', x, difference)")
    terminal.expect_exact("('found', 3, 0.0)")
    terminal.sendline("q")
    terminal.expect(pexpect.EOF)
    terminal.close()
    assert terminal.exitstatus == 0

    def said(*more: str, code: int = 0) -> str:
        ended = subprocess.run([*command, *more, *words], capture_output=True, text=True, timeout=60, check=False)
        assert ended.returncode == code, ended.stderr
        return ended.stdout + ended.stderr

    for shown in (said("status"), said("engines", "list")):
        assert "frozen for a debugger" in shown
        assert "ZeroDivisionError" in shown
    assert "1 frozen engine released" in said("engines", "release", str(failed))
    eventually(lambda: not tc.frozen().rows, DEADLINE_S)
    assert f"no engine is frozen for task {failed}" in said("engines", "release", str(failed), code=1)


def test_ctrl_c_interrupts_what_was_typed_and_the_debugger_goes_on(tc: TaskClient, shared: Farm) -> None:
    failed = fail(tc, Task(divide, args=(3,), on_failure="hold"))
    words = [sys.executable, "-m", "ipytaskfarm", "debug", str(failed), "--farm", str(shared.connection_file)]
    terminal = pexpect.spawn(words[0], words[1:], encoding="utf-8", timeout=DEADLINE_S, dimensions=(40, 160))
    terminal.expect_exact("ipdb>")
    for line in ("while True: print('round')", "print('round'); __import__('time').sleep(300)"):
        terminal.sendline(line)
        terminal.expect_exact("\nround")
        terminal.sendintr()
        terminal.expect_exact("KeyboardInterrupt")
        terminal.expect_exact("ipdb>")
    terminal.sendline("p ('found', x, difference)")
    terminal.expect_exact("('found', 3, 0.0)")
    terminal.sendline("q")
    terminal.expect(pexpect.EOF)
    terminal.close()
    assert terminal.exitstatus == 0


def test_a_frozen_engine_that_is_busy_says_so(
    tc: TaskClient, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = fail(tc, Task(divide, args=(3,), on_failure="hold"))
    monkeypatch.setattr(frozen, "READY_S", 0.5)
    from jupyter_client.blocking.client import BlockingKernelClient

    kernel: Any = BlockingKernelClient(connection_file=tc.frozen().rows[0].connection_file)
    kernel.load_connection_file()
    kernel.start_channels()
    kernel.wait_for_ready(DEADLINE_S)
    kernel.execute("print('busy'); import time; time.sleep(300)")
    while kernel.get_iopub_msg(timeout=DEADLINE_S)["msg_type"] != "stream":
        pass
    with pytest.raises(RuntimeError, match=rf"runs what was typed there before.* tc.release\({failed}\) ends it"):
        console(failed)
    kernel.stop_channels()


def test_where_nobody_can_type_it_says_how_to_get_there(tc: TaskClient, capsys: pytest.CaptureFixture[str]) -> None:
    failed = fail(tc, Task(divide, args=(3,), on_failure="hold"))
    tc.debug(failed)
    said = capsys.readouterr().out
    assert "its engine is frozen until" in said
    link = Path(said.partition("--existing ")[2].strip())
    assert link.exists()
    tc.release(failed)
    eventually(lambda: not link.exists(), DEADLINE_S, what="the kernel's file goes with the engine")


def test_it_lives_through_the_death_of_the_controller(tc: TaskClient, shared: Farm, console: Console) -> None:
    failed = fail(tc, Task(divide, args=(3,), on_failure="hold"))
    (before,) = tc.frozen()
    os.kill(farm_state(shared).pid, signal.SIGKILL)
    eventually(lambda: [row.pid for row in tc.frozen() if row.state == "frozen"] == [before.pid], DEADLINE_S)
    assert "('found', 3)" in console(failed, "p ('found', x)")
    until_engines(shared, 1)


def test_its_death_is_told(tc: TaskClient) -> None:
    failed = fail(tc, Task(divide, args=(3,), on_failure="hold"))
    os.kill(tc.frozen()[0].pid, signal.SIGKILL)
    eventually(lambda: not tc.frozen().rows, DEADLINE_S)
    with pytest.raises(ZeroDivisionError):
        tc.debug(failed)  # it runs here, as there is no such engine any more


def test_no_more_are_kept_than_may_be(tc: TaskClient, shared: Farm, capsys: pytest.CaptureFixture[str]) -> None:
    """Of the others it is said why, wherever it is looked for; also of the items of a map, and of old failures."""
    ids = [tc.run(Task(divide, args=(n,), on_failure="hold")) for n in range(5)]
    tc.barrier(ids, timeout=DEADLINE_S)
    assert len(tc.frozen()) == 3
    until_engines(shared, 1)
    (missed, *_) = set(ids) - {row.task for row in tc.frozen()}
    why = " has 3 frozen engines already, as many as it may have: tc.release() ends them, `--frozen-engines` allows"
    assert why in tc.explain(missed)
    with pytest.raises(ZeroDivisionError):
        tc.debug(missed)
    said = capsys.readouterr().out
    assert why in said
    assert f"the task runs here instead; tc.debug({missed}, run=False) opens the frames" in said
    assert why not in tc.explain(fail(tc, Task(divide, args=(3,))))
    items = tc.map(divide, range(120), on_failure="hold", block=False)
    tc.barrier(items.ids, timeout=DEADLINE_S)
    assert why in tc.explain(items.ids[119])
    with pytest.raises(ZeroDivisionError):
        tc.debug(missed)
    assert f"no engine is frozen for task {missed}; tc.explain({missed}) tells more" in capsys.readouterr().out
    assert "a node keeps at most 3 (`--frozen-engines`), for 600 s after their last use" in tc.explain(missed)


@by_hand
def test_one_on_another_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with module_farm(1) as farm, farm.task_client() as tc, far_engines(farm, tmp_path, engines=1):
        far = next(row for row in engines(farm) if row.node == NODE)
        failed = fail(tc, Task(divide, args=(3,), on_failure="hold", targets=far.id))
        assert [row.node for row in tc.frozen()] == ["far"]
        assert "('found', 3, 0.0)" in console_of(tc, monkeypatch, capsys)(failed, "p ('found', x, difference)")
        monkeypatch.setattr(frozen, "_holds", lambda path, data: False)  # as on a machine that does not see the file
        assert "('found', 3, 0.0)" in console_of(tc, monkeypatch, capsys)(failed, "p ('found', x, difference)")
        with pytest.raises(ZeroDivisionError):
            tc.debug(failed, run=True)


def test_time_is_over(tmp_path: Path) -> None:
    with module_farm(1, frozen_time=1.0) as farm, farm.task_client() as tc:
        failed = fail(tc, Task(divide, args=(3,), on_failure="hold"))
        assert [row.task for row in tc.frozen()] == [failed]
        eventually(lambda: not tc.frozen().rows, DEADLINE_S)
        with pytest.raises(IndexError, match=f"no engine is frozen for task {failed}"):
            tc.release(failed)
        until_engines(farm, 1)
