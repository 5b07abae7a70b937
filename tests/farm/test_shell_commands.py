"""A command of a task, ``!command``, has no input, writes at once to a terminal, and ends with the task."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from ipytaskfarm import Farm, Task, TaskClient
from tests.support.polling import eventually

pytestmark = pytest.mark.farm

NO_INPUT = {
    "cat": ("!cat", ""),
    "a magic": ("%system cat", ""),
    "a method": ("get_ipython().system('cat')", ""),
    "assigned": ("a = !cat\nprint(a)", "[]\n"),
    "a cell": ("%%bash\ncat", ""),
    "a child": ("import subprocess; print(subprocess.run('cat').returncode)", "0\n"),
    "a child of os": ("import os; print(os.system('cat'))", "0\n"),
    "read": ("!read a; echo $? '[$a]'", "1 [$a]\r\n"),
    "a program": ("!{sys.executable} -c 'import sys; print([*sys.stdin])'", "[]\r\n"),
    "a password": ("!{sys.executable} -c 'open(\"/dev/tty\")' 2>/dev/null || echo nobody to ask", "nobody to ask\r\n"),
    "the task's own": ("import os, sys; print(os.read(0, 9), sys.stdin.read(), [*sys.stdin])", "b''  []\n"),
}


@pytest.mark.parametrize("case", NO_INPUT)
def test_nothing_waits_for_an_input(tc: TaskClient, case: str) -> None:
    code, expected = NO_INPUT[case]
    if not code.startswith("%%"):
        code = f"import sys\n{code}"
    result = tc.run(Task(code, time_limit=60), block=True)
    assert (result.failure, result.stdout) == (None, expected)


def test_commands_at_several_engines_neither(farm: Farm) -> None:
    mec = farm.multiengine_client()
    mec.execute("!cat; echo over")
    assert all("over" in line["stdout"] for line in mec.get_result())


def test_a_command_writes_to_a_terminal_and_has_an_exit_code(tc: TaskClient) -> None:
    code = "!test -t 1 && stty size <&1; test -t 0 || exit 3\na = _exit_code\n!kill -9 $$\nb = _exit_code"
    result = tc.run(Task(code, pull=["a", "b"]), block=True)
    assert (result.stdout, result.result) == ("24 80\r\n", {"a": 3, "b": -9})
    long = tc.run(Task("!seq 10000; printf 'no newline: \\303\\244'"), block=True)
    assert long.stdout.endswith("9999\r\n10000\r\nno newline: \N{LATIN SMALL LETTER A WITH DIAERESIS}")
    assert long.stdout.count("\n") == 10_000


def test_the_background_of_a_command_does_not_keep_it(tc: TaskClient) -> None:
    began = time.monotonic()
    result = tc.run(Task("!(sleep 300; echo late) & echo now"), block=True)
    assert result.stdout == "now\r\n"
    chatty = tc.run(Task("!setsid timeout 5 yes & echo now", time_limit=60), block=True)
    assert "now" in chatty.stdout
    assert time.monotonic() - began < 60


@pytest.mark.parametrize("stubborn", ["", "trap '' INT TERM; "])
def test_an_abort_ends_the_command_with_its_children_and_the_task(
    tc: TaskClient, tmp_path: Path, stubborn: str
) -> None:
    code = f"!{stubborn}echo $$ > {tmp_path}/pid; sleep 300; sleep 300\nopen({str(tmp_path / 'went_on')!r}, 'w')"
    task = tc.run(Task(code, lost_retries=0))
    pid = int(eventually(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text(), 30.0, what="it runs"))
    tc.abort(task)
    eventually(lambda: not tc.tasks(state="unfinished").rows, 30.0, what="it has ended")
    eventually(lambda: not os.path.exists(f"/proc/{pid}"), 30.0, what="the command has ended")
    assert tc.status(task).state == "failed"
    assert not (tmp_path / "went_on").exists(), "an interrupt ends the task, not only its command"
